"""The text encoder: padded and unmasked as in diffusers, loud about what it cuts, cached by content."""

import warnings

import pytest
import torch
from diffusers import CogVideoXPipeline

from cogvideox.core.errors import InputError
from cogvideox.models.text import EmbeddingCache, TextEncoder, fingerprint
from tests.models.oracle import relative_error
from tests.tiny import TEXT_DIM, TEXT_LENGTH, prompt, tiny_text


@pytest.fixture
def text():
    return tiny_text()


def reference(text, prompts):
    pipeline = CogVideoXPipeline(
        tokenizer=text.tokenizer, text_encoder=text.model, vae=None, transformer=None, scheduler=None
    )
    embeds = pipeline._get_t5_prompt_embeds(
        prompts, max_sequence_length=text.length, device=torch.device("cpu")
    )
    return embeds.detach()


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize("words", [0, 1, 5, TEXT_LENGTH - 1, TEXT_LENGTH, 40])
def test_equal_to_diffusers(text, words):
    prompts = [prompt(words, seed) for seed in range(2)]
    ours = text.encode(prompts)
    assert ours.shape == (2, TEXT_LENGTH, TEXT_DIM)
    assert relative_error(ours, reference(text, prompts)) < 1e-5


def test_padding_is_encoded_not_masked(text):
    """The same words at another length get other embeddings, since they attend to the padding."""
    longer = TextEncoder(text.tokenizer, text.model, TEXT_LENGTH + 8)
    short, long = text.encode(["a cat"]), longer.encode(["a cat"])
    assert not torch.allclose(short[0, 0], long[0, 0], atol=1e-4)


def test_a_long_prompt_warns_with_the_lost_tail(text):
    words = prompt(TEXT_LENGTH + 3).split()
    with pytest.warns(UserWarning, match=f"has {TEXT_LENGTH + 4} tokens, {TEXT_LENGTH} fit") as caught:
        text.encode([" ".join(words)])
    assert repr(" ".join(words[TEXT_LENGTH - 1 :])) in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning points at the caller"
    assert text.tokens(" ".join(words)) == TEXT_LENGTH + 4


def test_a_prompt_that_just_fits_does_not_warn(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.encode([prompt(TEXT_LENGTH - 1), ""])
    assert text.tokens(prompt(TEXT_LENGTH - 1)) == TEXT_LENGTH
    assert text.tokens("") == 1


def test_a_prompt_does_not_depend_on_its_neighbours(text):
    alone = tiny_text().encode(["a cat runs"])
    assert torch.equal(text.encode(["the dog", "a cat runs", ""])[1:2], alone)


def test_the_cache_answers_after_the_weights_are_released(text):
    before = text.encode(["a cat", "a dog"])
    text.model.to("meta")
    assert torch.equal(text.encode(["a dog", "a cat"]), before.flip(0))
    with pytest.raises(InputError, match="released"):
        text.encode(["a bird"])


def test_the_cache_knows_text_length_and_weights():
    cache = EmbeddingCache()
    first, other = tiny_text(0), tiny_text(1)
    encoders = [
        TextEncoder(first.tokenizer, first.model, 8, cache),
        TextEncoder(first.tokenizer, first.model, 9, cache),
        TextEncoder(other.tokenizer, other.model, 8, cache),
    ]
    a, b, c = (encoder.encode(["a cat"]) for encoder in encoders)
    assert len(cache) == 3
    assert a.shape != b.shape
    assert not torch.equal(a, c)
    assert torch.equal(encoders[0].encode(["a cat"]), a)
    assert len(cache) == 3


def test_the_cache_forgets_the_least_recently_used(text):
    text.cache = EmbeddingCache(capacity=2)
    text.encode(["a", "b"])
    text.encode(["a"])
    text.encode(["c"])
    assert len(text.cache) == 2
    assert text.cache.get(("b", TEXT_LENGTH, text.fingerprint)) is None
    assert text.cache.get(("a", TEXT_LENGTH, text.fingerprint)) is not None


def test_two_encoders_share_nothing(text):
    text.encode(["a cat"])
    assert len(tiny_text().cache) == 0


def test_one_string_is_not_a_list_of_prompts(text):
    with pytest.raises(InputError, match="list of prompts"):
        text.encode("a cat")


def test_fingerprint_sees_names_shapes_dtypes_and_numbers():
    weights = {"a": torch.arange(1000.0), "b": torch.zeros(())}
    seen = {fingerprint(weights)}
    seen.add(fingerprint({"a": weights["a"], "c": weights["b"]}))
    seen.add(fingerprint(weights | {"a": weights["a"].view(10, 100)}))
    seen.add(fingerprint(weights | {"a": weights["a"].bfloat16()}))
    seen.add(fingerprint(weights | {"a": weights["a"] + 1}))
    assert len(seen) == 5
    assert fingerprint(dict(reversed(weights.items()))) in seen
