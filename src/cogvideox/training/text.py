"""A small T5 and its tokenizer, made for the captions of a data set. The encoder learns which captions
mean the same; then it is frozen.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from cogvideox.core import rng
from cogvideox.generation.generate import Place
from cogvideox.training.task import Loss, Phase

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-:;"


class TextSpec(BaseModel):
    """Sizes of the text encoder; its width is the transformer's `text_dim`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int
    heads: int
    head_dim: int
    ff_dim: int
    vocabulary: int
    """Pieces of the tokenizer: the words of the captions, then parts of words and letters for all others."""


def make_tokenizer(captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A case-blind tokenizer with the most frequent words of the captions as pieces, and letters for all
    others.

    Special tokens as in T5: <pad> 0, </s> 1 (ends every prompt), <unk> 2.
    """
    words = Counter(
        word for caption in captions for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", caption.lower())
    )
    fixed = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -20.0), *((c, -20.0) for c in LETTERS)]
    total = words.total()
    pieces = [(f"\u2581{w}", math.log(n / total)) for w, n in words.most_common(vocabulary - len(fixed))]
    tokenizer = Tokenizer(models.Unigram([*fixed, *pieces], unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def new_t5(spec: TextSpec, width: int, vocabulary: int) -> T5EncoderModel:
    """A T5 encoder with fresh weights."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=spec.head_dim,
        d_ff=spec.ff_dim,
        num_layers=spec.layers,
        num_heads=spec.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[str], length: int) -> Tensor:
    """Token ids (n, length), cut and padded as `models.text.TextEncoder` does it."""
    rows = tokenizer(captions, padding="max_length", truncation=True, max_length=length)["input_ids"]
    return torch.tensor(rows)


Family = Sequence[Sequence[str]]
"""The captions of each of some clips that show the same character in the same scene."""


class _Pairs(Dataset[Any]):
    """Step -> one micro-batch: two captions of each clip of some families, those of one list, then their
    partners.
    """

    def __init__(self, family: Callable[[int], Family], families: int, *, seed: int, clips: int) -> None:
        self.family, self.families, self.seed, self.clips = family, families, seed, clips

    def __getitem__(self, step: int) -> list[tuple[list[str], list[str]]]:
        draw = rng.generator(self.seed, "text-batch", step)
        chosen: list[Sequence[str]] = []
        for index in draw.permutation(self.families).tolist():
            if len(chosen) >= self.clips:
                break
            chosen += self.family(index)
        pairs = [draw.choice(captions, size=2, replace=False) for captions in chosen[: self.clips]]
        return [([str(a) for a, _ in pairs], [str(b) for _, b in pairs])]


class _Seen(nn.Module):
    """The encoder, and a projection that only this training has."""

    def __init__(self, text: T5EncoderModel, width: int, seed: int) -> None:
        super().__init__()
        self.text = text
        self.head = nn.Parameter(rng.normal((text.config.d_model, width), seed, "text-head"))


class TextTask:
    """Captions of one clip mean the same: contrastive training of an encoder, its weights in fp32.

    InfoNCE between two captions of each clip of a batch. Of either only one token is looked at, any one, so
    that every token comes to carry what the caption says, and the transformer finds every difference in it.
    Trained with the transformer the encoder would forget what does not pay in the first steps, as characters.
    Clips come in `families`, of which `family` gives each: where all clips of a batch differ in who they show
    and where, nothing else is learned, left and right not either.
    """

    def __init__(
        self,
        text: T5EncoderModel,
        tokenize: Callable[[list[str]], Tensor],
        family: Callable[[int], Family],
        families: int,
        place: Place,
        *,
        seed: int,
        clips: int = 128,
        width: int = 128,
        temperature: float = 0.1,
        near: T5EncoderModel | None = None,
    ) -> None:
        """`near`: an encoder from which this one should not move far, for a transformer has learned to read
        it; the squared distance of their embeddings, over their squared length, is added to the loss.
        """
        self.model = _Seen(text, width, seed).to(place.device)
        self.place, self.tokenize, self.seed, self.temperature = place, tokenize, seed, temperature
        self.near = None if near is None else nn.Module.to(near, place.device)
        self._batches = _Pairs(family, families, seed=seed, clips=clips)

    def batches(self) -> Dataset[Any]:
        return self._batches

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("model", self.model),)

    def loss(self, phase: str, micro: tuple[list[str], list[str]], step: int) -> Loss:
        ids = self.tokenize([*micro[0], *micro[1]])  # those too long are cut, as in sampling
        ids, half = ids.to(self.place.device), self.place.dtype == torch.bfloat16
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=half):
            hidden_NLC = self.model.text(input_ids=ids)[0]
            with torch.no_grad():
                before_NLC = None if self.near is None else self.near(input_ids=ids)[0].float()
        rows, length = ids.shape
        place = torch.from_numpy(rng.generator(self.seed, "text-token", step).integers(length, size=rows))
        seen_ND = F.normalize(hidden_NLC[torch.arange(rows), place].float() @ self.model.head, dim=-1)
        one, other = seen_ND.chunk(2)
        scores, partner = one @ other.T / self.temperature, torch.arange(len(one), device=one.device)
        loss = (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2
        found = (scores.argmax(1) == partner).sum().item()
        metrics = {"found": (found, float(len(one)))}
        if before_NLC is not None:
            moved = F.mse_loss(hidden_NLC.float(), before_NLC) / before_NLC.square().mean()
            metrics["moved"] = (moved.item(), 1.0)
            loss = loss + moved
        return Loss(loss * len(one), float(len(one)), metrics)

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        return {}
