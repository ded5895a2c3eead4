"""The text encoder's first training: captions of one clip come together, those of others apart."""

import torch

from cogvideox.training.loop import train
from cogvideox.training.text import TextSpec, TextTask, make_tokenizer, new_t5, tokenize

SPEC = TextSpec(layers=2, heads=2, head_dim=16, ff_dim=64, vocabulary=100)
CAPTIONS = [
    [f"a {who} {does} in the {where}", f"in the {where} a {who} {does}"]
    for who in ("cat", "dog", "fox", "owl")
    for does in ("runs", "sits")
    for where in ("snow", "forest")
]


def task(steps=100):
    torch.manual_seed(0)
    tokenizer = make_tokenizer([caption for told in CAPTIONS for caption in told], SPEC.vocabulary)
    text = new_t5(SPEC, 32, len(tokenizer))
    return TextTask(text, lambda told: tokenize(tokenizer, told, 8), CAPTIONS, steps=steps, seed=0, width=16)


def test_a_caption_finds_its_paraphrase_through_any_token(tmp_path):
    learner = task()
    batches = learner.batches()
    _, before = learner.loss(batches[0], 0)
    train(learner, tmp_path, steps=100, lr=5e-3, warmup=5, workers=0)
    after = [learner.loss(batches[0], step)[1]["found"] for step in range(10)]  # other tokens each time
    assert before["found"] < 0.3
    assert min(after) > 0.5


def test_partners_are_two_captions_of_one_clip():
    one, other = task().batches()[3]
    assert len(one) == len(set(one)) == len(CAPTIONS)
    for pair in zip(one, other, strict=True):
        assert sorted(pair) in [sorted(told) for told in CAPTIONS]
