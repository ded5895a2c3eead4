"""A small T5 and its tokenizer, made for the captions of a data set and trained together with the
transformer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config, T5EncoderModel

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
