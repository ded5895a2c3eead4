"""The text encoder's first training: captions of one clip come together, those of others apart."""

import copy
from functools import partial

import torch
import torch.nn.functional as F

from cogvideox.generation.generate import Place
from cogvideox.training.loop import Rates, train
from cogvideox.training.text import TextSpec, TextTask, make_tokenizer, new_t5, tokenize

SPEC = TextSpec(layers=2, heads=2, head_dim=16, ff_dim=64, vocabulary=100)
CAPTIONS = [
    [f"a {who} {does} in the {where}", f"in the {where} a {who} {does}"]
    for who in ("cat", "dog", "fox", "owl")
    for does in ("runs", "sits")
    for where in ("snow", "forest")
]


def task():
    torch.manual_seed(0)
    tokenizer = make_tokenizer([caption for told in CAPTIONS for caption in told], SPEC.vocabulary)
    text = new_t5(SPEC, 32, len(tokenizer))
    place = Place.pick("cpu")
    families = [CAPTIONS[first : first + 4] for first in range(0, len(CAPTIONS), 4)]
    ids = partial(tokenize, tokenizer, length=8)
    count = len(families)
    return TextTask(text, ids, lambda n: families[n], count, place, seed=0, clips=16, width=16)


def found(learner, place):
    """Share of captions that are nearest to their partner, both seen through the token at `place`."""
    with torch.no_grad():
        seen = [
            learner.model.text(input_ids=learner.tokenize(list(side)))[0]
            for side in zip(*CAPTIONS, strict=True)
        ]
        one, other = (F.normalize(side[:, place] @ learner.model.head, dim=-1) for side in seen)
    return ((one @ other.T).argmax(1) == torch.arange(len(CAPTIONS))).float().mean().item()


def test_a_caption_finds_its_paraphrase_through_any_token(tmp_path):
    learner = task()
    before = [found(learner, place) for place in range(8)]
    train(learner, tmp_path, {"model": Rates(matrix_lr=0.0, lr=5e-3, warmup=5)}, steps=100, workers=0)
    after = [found(learner, place) for place in range(8)]
    assert min(before) < 0.2
    assert min(after) > 0.8


def test_partners_are_two_captions_of_one_clip():
    ((one, other),) = task().batches()[3]
    assert len(one) == len(set(one)) == len(CAPTIONS)
    for pair in zip(one, other, strict=True):
        assert sorted(pair) in [sorted(told) for told in CAPTIONS]


def test_families_stay_together():
    """Half of all clips: two whole families, of one character each."""
    learner = task()
    learner.batches().clips = 8
    for step in range(5):
        ((one, _),) = learner.batches()[step]
        who = [
            next(word for word in caption.split() if word in ("cat", "dog", "fox", "owl")) for caption in one
        ]
        assert len(set(who[:4])) == len(set(who[4:])) == 1
        assert len(set(one)) == 8


def test_an_encoder_stays_near_the_one_that_is_known(tmp_path):
    """Trained by itself it goes far away; with `near` much less, and it still learns."""
    moved = {}
    for name in ("free", "near"):
        learner = task()
        before = copy.deepcopy(learner.model.text)
        learner.near = before if name == "near" else None
        train(
            learner, tmp_path / name, {"model": Rates(matrix_lr=0.0, lr=5e-3, warmup=5)}, steps=60, workers=0
        )
        ids = learner.tokenize([caption for told in CAPTIONS for caption in told])
        with torch.no_grad():
            now, then = learner.model.text(input_ids=ids)[0], before(input_ids=ids)[0]
        moved[name] = ((now - then).square().mean() / then.square().mean()).item()
        assert min(found(learner, place) for place in range(8)) > 0.5
    assert moved["near"] < 0.5 * moved["free"]
