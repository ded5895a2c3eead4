"""Keyed randomness: every random number is a pure function of a key, never of what ran before.

A key is a seed followed by any number of names or integers, for example `(seed, "noise", sample_id)`. Keys
are hashed to 128 bits that key a counter-based generator (Philox 4x64), so different keys give independent
streams, and the same key gives the same numbers alone, in a batch, in any order and on any number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import index

import numpy as np
import torch
from torch import Tensor

Key = int | str


def _digest(key: Sequence[Key]) -> int:
    """128-bit hash of a key: 1 and "1" differ, 1 and numpy's 1 do not. TypeError for other kinds of parts."""
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{index(part)}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*key: Key) -> np.random.Generator:
    """A numpy generator for `key`, for example `generator(seed, "clip", index)`."""
    if not key:
        raise ValueError("a random key needs at least one part, such as the seed")
    return np.random.Generator(np.random.Philox(key=_digest(key)))


def normal(shape: Sequence[int], *key: Key) -> Tensor:
    """Standard normal float32 tensor of `shape` on the CPU, a pure function of (shape, key)."""
    return torch.from_numpy(generator(*key).standard_normal(tuple(shape), dtype=np.float32))
