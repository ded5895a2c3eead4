"""Encoding a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from benchmarks.case import CPU, PROMPT, Build, Case, Side, T5Layers
from cogvideox.checkpoints.folder import build_t5, read_tokenizer
from cogvideox.checkpoints.hub import MINI
from cogvideox.checkpoints.weights import Weights
from cogvideox.models.text import EmbeddingCache, TextEncoder


def _tokenizer() -> PreTrainedTokenizerBase:
    return read_tokenizer(MINI / "tokenizer")


def ours(length: int) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        model = build_t5(T5Config.from_pretrained(folder), Weights(folder), str(folder), dtype, CPU)
        text = TextEncoder(_tokenizer(), model, length, EmbeddingCache(0))  # nothing is remembered
        return Side(lambda: text.encode([PROMPT]), (model,), amount=(1, "prompts"))

    return make


def theirs(length: int) -> Build:
    """As `CogVideoXPipeline.encode_prompt` does it."""

    def make(folder: Path, dtype: torch.dtype) -> Side:
        tokenizer = _tokenizer()
        model: Any = T5EncoderModel.from_pretrained(folder, dtype=dtype)

        def run() -> Tensor:
            ids = tokenizer(
                [PROMPT], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            found: Tensor = model(ids)[0]
            return found

        return Side(run, (model,), amount=(1, "prompts"))

    return make


def cases(quick: bool) -> tuple[Case, ...]:
    def case(name: str, model: Path | T5Layers, length: int, scale: float = 1.0) -> Case:
        sides = {"ours": ours(length), "diffusers": theirs(length)}
        return Case("text", f"{name}, a prompt of {length} tokens", sides, model, scale)

    mini = case("mini text encoder", MINI / "text_encoder", 32)
    return (mini,) if quick else (mini, case("T5-XXL, 1 of 24 layers", T5Layers(1), 226, 24.0))
