"""The text encoder: a T5 encoder, padded to a fixed length and not masked, as the released models expect."""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogvideox.core.errors import InputError, Note

SAMPLE = 256  # bytes of each tensor that enter a fingerprint


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hash of weights: names, dtypes, shapes and 256 bytes from the middle of every tensor.

    Cheap even for memory-mapped models of many gigabytes, and the same however the tensors are split
    into files. Training changes whole tensors, so it tells models apart; it does not prove integrity.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        flat = tensor.reshape(-1)
        count = max(1, SAMPLE // max(tensor.element_size(), 1))
        start = max(0, (flat.numel() - count) // 2)
        sample = flat[start : start + count].cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class EmbeddingCache:
    """The most recently used embeddings, kept on the CPU. Several encoders may share one."""

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[tuple[str, int, str], Tensor] = OrderedDict()

    def get(self, key: tuple[str, int, str]) -> Tensor | None:
        """The embedding (length, dim) stored under (text, length, weights hash), or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: tuple[str, int, str], embedding: Tensor) -> None:
        """Store one embedding; the least recently used one goes when there are too many."""
        self._entries[key] = embedding.cpu()
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)


class TextEncoder:
    """Prompts -> embeddings of exactly `length` tokens; padding is encoded like text, no mask anywhere.

    `model` is an ordinary module and may be moved between devices.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: T5EncoderModel,
        length: int,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval()
        self.length = length
        self.cache = EmbeddingCache() if cache is None else cache
        self.fingerprint = fingerprint(model.state_dict())

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.model.config.d_model)

    def tokens(self, prompt: str) -> int:
        """Tokens of a prompt, end marker included: what is beyond `length` is cut."""
        return len(self._ids(prompt))

    def cut_tail(self, prompt: str) -> str:
        """The end of a prompt that does not fit into `length` tokens; empty if all of it fits."""
        ids = self._ids(prompt)
        return str(self.tokenizer.decode(ids[self.length - 1 : -1])) if len(ids) > self.length else ""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (n, length, dim) on the model's device, in its precision.

        Each prompt is encoded by itself, so its embedding does not depend on its neighbours. Warns with
        the lost words when a prompt is too long. Raises InputError if the weights were released and a
        prompt is not cached.
        """
        if isinstance(prompts, str):
            raise InputError("encode takes a list of prompts, not one string")
        for prompt in prompts:
            if tail := self.cut_tail(prompt):
                used = f"the prompt has {self.tokens(prompt)} tokens, {self.length} fit"
                warnings.warn(f"{used}; lost: {tail!r}", Note, stacklevel=2)
        embeddings = [self._encode(prompt) for prompt in prompts]
        device = self.model.device
        return torch.stack(embeddings).to("cpu" if device.type == "meta" else device)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        key = (prompt, self.length, self.fingerprint)
        known = self.cache.get(key)
        if known is not None:
            return known
        device = self.model.device
        if device.type == "meta":
            raise InputError(
                "the text encoder was released and the prompt is not cached; load the model again"
            )
        ids = self._ids(prompt)
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], ids[-1]]
        pad = self.tokenizer.pad_token_id
        padded = torch.tensor([ids + [pad] * (self.length - len(ids))], device=device)
        embedding = self.model(input_ids=padded).last_hidden_state[0].cpu()
        self.cache.put(key, embedding)
        return embedding

    def keep(self, prompts: Sequence[str]) -> None:
        """Embed `prompts` and have them stay in the cache, however many they are. Does not warn."""
        self.cache.capacity = max(self.cache.capacity, len(self.cache) + len(prompts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for prompt in prompts:
                self.encode([prompt])

    def release(self) -> None:
        """Free the weights: only prompts in the cache can still be had."""
        if self.model.device.type != "meta":
            self.model.to("meta")
            gc.collect()

    def _ids(self, prompt: str) -> list[int]:
        """All tokens of a prompt with the end marker, neither padded nor cut."""
        ids = self.tokenizer(prompt, add_special_tokens=True, verbose=False)["input_ids"]
        return list(ids)
