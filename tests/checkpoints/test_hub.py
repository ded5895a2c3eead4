"""Where models come from: names, folders and the hub, without a network."""

from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from cogvideox.checkpoints import hub
from cogvideox.core.errors import InputError


def test_a_folder_is_itself(folder_of):
    assert hub.resolve(folder_of("5b")) == folder_of("5b")
    assert hub.resolve(str(folder_of("5b"))) == folder_of("5b")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("5bb", "no model or folder named '5bb' .did you mean '5b'"),
        ("./missing", "no model or folder named './missing'"),
        ("/missing/model", "no model or folder"),
        ("missing/model.pt", "no model or folder named 'missing/model.pt'"),
        ("someone/something", "cannot load 'someone/something': the hub cannot be reached.*local folder"),
        ("1.5-5b-i2v", "cannot load 'zai-org/CogVideoX1.5-5B-I2V': the hub cannot be reached"),
        ("bad name/x", "cannot load 'bad name/x': the hub has no such repository"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(source, message):
    with pytest.raises(InputError, match=message) as caught:
        hub.resolve(source)
    assert "\n" not in str(caught.value)


def test_mini_is_the_packaged_folder(monkeypatch, tmp_path, folder_of):
    monkeypatch.setattr(hub, "MINI", tmp_path)
    with pytest.raises(InputError, match="'mini' has no weights"):
        hub.resolve("mini")
    monkeypatch.setattr(hub, "MINI", folder_of("5b"))
    assert hub.resolve("mini") == folder_of("5b")


def test_a_revision_needs_the_hub(folder_of):
    with pytest.raises(InputError, match="revision 'v1'"):
        hub.resolve(folder_of("5b"), "v1")


def test_a_checkpoint_file_is_no_model(tmp_path):
    (tmp_path / "x.pt").touch()
    with pytest.raises(InputError, match="cogvideox convert"):
        hub.resolve(tmp_path / "x.pt")


def test_only_the_files_needed_are_fetched(monkeypatch, tmp_path):
    asked = {}

    def download(repo, **options):
        asked.update(repo=repo, **options)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.resolve("2b", "v2") == tmp_path
    assert (asked["repo"], asked["revision"]) == ("zai-org/CogVideoX-2b", "v2")

    def wanted(name):
        return any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    for name in (
        "model_index.json",
        "cogvideox.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/spiece.model",
        "tokenizer/added_tokens.json",
    ):
        assert wanted(name), name
    for name in ("README.md", "assets/demo.mp4", "transformer/pytorch_model.bin", "LICENSE"):
        assert not wanted(name), name


def test_an_unknown_repository_names_the_nearest(monkeypatch):
    def download(repo, **options):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"no such repository .did you mean 'zai-org/CogVideoX-5b'"):
        hub.resolve("zai-org/CogVideoX-5c")
