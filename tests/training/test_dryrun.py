"""Plans and rehearsals: every recipe can be planned anywhere, and a rehearsal leaves nothing."""

import json
import re
import tempfile

import pytest

from cogvideox.cli.train import _dry_run
from cogvideox.core import device
from cogvideox.core.device import Memory
from cogvideox.data.storybook import World
from cogvideox.data.video import write_video
from cogvideox.generation.generate import Place
from cogvideox.training import budget, dryrun
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.recipe import load_recipe
from tests.test_architecture import RECIPES
from tests.tiny import tiny_folder, tiny_spec
from tests.training.test_recipes import DIFFUSION, SMALL, VAE, train, write

BIG = [path for path in RECIPES if path.parent.name == "recipes" and path.name != "vae.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_can_be_planned(path):
    recipe = load_recipe(path)
    plans = dryrun.plan(recipe)
    assert [plan.steps for plan in plans] == [stage.steps for stage in recipe.stages]
    assert all(plan.tokens > 0 and plan.need.total > 0 for plan in plans)
    assert all(plan.flops > 0 for plan in plans) == (recipe.task != "judge")


@pytest.mark.parametrize("path", BIG, ids=lambda path: path.name)
def test_large_recipes_fit_the_hardware_that_they_name(path):
    recipe = load_recipe(path)
    for stage, plan in zip(recipe.stages, dryrun.plan(recipe), strict=True):
        assert plan.need.total < 70e9  # of 80, for the allocator and the libraries
        assert stage.rows * stage.sequence % recipe.parallel.ranks == 0
        assert recipe.parallel.ranks % recipe.parallel.shards == 0


def test_the_vae_at_real_size_fits_the_processes_that_it_names():
    recipe = load_recipe("recipes/vae.yaml")
    for stage, plan in zip(recipe.stages, dryrun.plan(recipe), strict=True):
        assert plan.need.total < 70e9
        assert stage.micro * stage.sequence % 8 == 0
    assert dryrun.needed(recipe, 1) > 4 * dryrun.needed(recipe, 8)


def test_large_recipes_follow_table_5():
    """Clips, tokens of a row and steps of the paper's stages, as many as whole rows allow; Table 6's Adam."""
    table = {
        "2b.yaml": [(2000, 25_000, 400_000), (1000, 75_000, 220_000), (100, 75_000, 10_000)],
        "5b.yaml": [(2000, 25_000, 400_000), (1000, 75_000, 220_000), (100, 75_000, 10_000)],
        "1.5-5b.yaml": [
            (2000, 25_000, 400_000),
            (1000, 75_000, 220_000),
            (250, 350_000, 120_000),
            (100, 350_000, 10_000),
        ],
    }
    for path in BIG:
        recipe = load_recipe(path)
        rates = recipe.optimizer
        assert (rates.matrix_lr, rates.weight_decay, rates.clip, rates.decay_from) == (None, 1e-4, 1.0, 0.0)
        if path.name not in table:  # the paper tells no sizes of image to video's
            continue
        stages = zip(recipe.stages, dryrun.plan(recipe), strict=True)
        for (stage, plan), (clips, *rest) in zip(stages, table[path.name], strict=True):
            clip = dryrun._row(recipe, stage)[0].length
            assert plan.tokens / clip == pytest.approx(clips, rel=0.05)
            assert [stage.capacity, stage.steps] == rest


def test_mini_by_hand():
    """Rows of 4096 tokens, such as 11 clips of 5 * 8 * 8 tokens and 36 of text, and a part of one more."""
    recipe = load_recipe(next(path for path in RECIPES if path.name == "transformer.yaml"))
    assert dryrun.plan(recipe)[0].tokens == 4096
    lengths = [segment.length for segment in dryrun._row(recipe, recipe.stages[0])]
    assert lengths == [5 * 8 * 8 + 36] * 11 + [180]


def test_a_rehearsal_goes_through_the_run_and_leaves_nothing(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    path = write(tmp_path / "vae.yaml", VAE)
    before = set(tmp_path.rglob("*"))
    done = train(path, tmp_path / "run", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"one step of stage 9 frames: [0-9.]+ s", done.stdout), done.stdout
    assert "GiB at most" in done.stdout
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("missing", [0, 1])
def test_what_does_not_fit_is_planned_and_not_tried(tmp_path, monkeypatch, capsys, missing):
    recipe = load_recipe(write(tmp_path / "vae.yaml", VAE))
    free = dryrun.needed(recipe, 1) - missing
    monkeypatch.setattr(device, "memory", lambda device: Memory(free, free))
    monkeypatch.setattr(dryrun, "rehearse", lambda *_: dryrun.Rehearsed("9 frames", 1.0, 2**30))
    _dry_run(recipe, 0, Place.pick("cpu", "bf16"))
    assert ("not tried" in capsys.readouterr().out) == bool(missing)


LORA = [path for path in RECIPES if path.parent.name == "lora"]


@pytest.mark.parametrize("path", LORA, ids=lambda path: path.name)
def test_an_adapter_needs_little_beside_its_base(path):
    """The base's weights once; gradients, masters, moments and averages of the adapter alone."""
    recipe = load_recipe(path)
    (plan,) = dryrun.plan(recipe)
    base = sum(p.numel() for p in budget.on_meta(recipe.model.transformer).parameters())
    spec = recipe.model.transformer
    count = sum(
        recipe.lora.rank * (4 * spec.width if "qkv" in name else 2 * spec.width)
        for name in recipe.lora.modules(spec)
        if "attention" in name
    )
    count += sum(recipe.lora.rank * 5 * spec.width for name in recipe.lora.modules(spec) if "mlp" in name)
    assert plan.need.masters == plan.need.average == 4 * count
    assert plan.need.moments == 8 * count
    assert plan.need.weights == 2 * (base + count)
    assert plan.need.total < 70e9
    full = budget.need(budget.on_meta(spec), None, activations=plan.need.activations)
    assert plan.need.total < full.total - 15 * (base - count)  # of the 18 bytes of each weight, two are left


@pytest.fixture
def tiny(tmp_path):
    """A recipe of each task whose stages are tried on latents."""
    write_video(tmp_path / "a.mp4", [World(seed=0).clip(0, 1.0).render(9, 8, 32, 32)], 8.0)
    (tmp_path / "prompts.txt").write_text("a cat")
    (tmp_path / "videos.txt").write_text("a.mp4")
    base = str(tiny_folder(tmp_path / "base", tiny_spec("5b", **SMALL | {"text_length": 24})))
    full = DIFFUSION | {"vae": base, "data": DIFFUSION["data"] | {"encoded": str(tmp_path / "encoded")}}
    changes = ["data.held=0", "stages.0.capacity=64", "stages.0.largest=[9, 32, 32]", "lora.rank=2"]
    changes += [f"base={base}", f"data.manifest={tmp_path}"]
    return {
        "diffusion": load_recipe(write(tmp_path / "full.yaml", full)),
        "lora": load_recipe("recipes/lora/mini.yaml", changes),
    }


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize("task", ["diffusion", "lora"])
def test_latents_are_rehearsed_too(tiny, task, tmp_path, monkeypatch):
    """One step and one validation; what fails in either is seen before anything is there."""
    done = dryrun.rehearse(tiny[task], 0, Place.pick("cpu", "fp32"))
    assert (done.stage, done.peak > 0) == (tiny[task].stages[0].name, True)
    assert 0 < done.seconds < 60

    def full(*_):
        raise MemoryError("no room")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(DiffusionTask, "validated", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(MemoryError, match="no room"):
        dryrun.rehearse(tiny[task], 0, Place.pick("cpu", "fp32"))
    assert set(tmp_path.iterdir()) == before


def test_fewer_processes_than_planned_need_more_each():
    recipe = load_recipe(next(path for path in BIG if path.name == "2b.yaml"))
    assert dryrun.needed(recipe, 48) == max(plan.need.total for plan in dryrun.plan(recipe))
    assert dryrun.needed(recipe, 1) > 20 * 1.69e9


def test_work_is_told_in_units():
    assert [dryrun._work(x) for x in (0, 5e12, 4.946e22)] == ["?", "5 TFLOP", "49.5 ZFLOP"]


def test_a_rehearsal_is_of_the_largest_stage_with_few_clips(tmp_path):
    sizes = {"one": {}, "two": {"rows": 2}, "many": {"rows": 8, "capacity": 64}}  # the last has most tokens
    stages = [DIFFUSION["stages"][0] | {"name": name} | size for name, size in sizes.items()]
    recipe = load_recipe(write(tmp_path / "r.yaml", DIFFUSION | {"stages": stages}))
    short = dryrun.shortest(recipe, tmp_path)
    assert [(stage.name, stage.steps) for stage in short.stages] == [("two", 1)]
    assert [(part.frames, part.clips) for part in short.data.parts] == [(9, 1 + 216 // 12), (1, 1 + 216 // 4)]
    assert (short.text.steps, short.data.encoded) == (1, tmp_path)
    assert json.loads(short.model_dump_json())["every"]["evaluate"] == 1
    assert short.text_steps == 0
    on = recipe.model_copy(update={"start": "mini", "text_steps": 9})
    assert dryrun.shortest(on, tmp_path).text_steps == 1
