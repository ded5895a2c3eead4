"""A block's small operations and its attention in C (`kernels.c`), for inference in bf16 on CPUs that
multiply it in AVX-512. `blocks.py` holds the plain versions, which are the oracle.

Gate, residual, LayerNorm and modulation are one pass; so are the norms and the rotation of q and k. Attention
needs no running maximum: the LayerNorms bound the scores, and where their weights allow scores too large for
fp32, the plain version is taken. CPUs with matrix units (AMX) keep PyTorch's attention.

Shape legend: L tokens of the pack, S segments, D width, N heads, K head dim, C width of the timestep
embedding.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.core.device import matrix_units
from cogvideox.core.native import AVX512_BF16, call, kept, library
from cogvideox.core.pack import Pack

if TYPE_CHECKING:
    from cogvideox.models.transformer.blocks import Block, FullAttention
    from cogvideox.models.transformer.positions import Rope

HEAD = 64  # numbers per head, as in kernels.c
LARGEST = 80.0
"""Scores up to this, e^80, can be summed in fp32 without a running maximum."""
SHIFT, SCALE, GATE, PARTS = 0, 1, 2, 6
"""Modulation of a row: shift, scale and gate of attention, then of the MLP."""


class _Modulation(ctypes.Structure):
    _fields_ = (
        ("table", ctypes.c_void_p),
        ("kind", ctypes.c_void_p),
        ("parts", ctypes.c_int),
        ("gate", ctypes.c_int),
        ("shift", ctypes.c_int),
        ("scale", ctypes.c_int),
    )


class _Norms(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q_gamma", "q_beta", "k_gamma", "k_beta")),
        ("eps", ctypes.c_float),
    )


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library, where this CPU can run it."""
    return library(Path(__file__).with_suffix(".c"), AVX512_BF16)


def suit(x_LD: Tensor) -> bool:
    """Whether the kernels can take the hidden state: bf16 on a CPU, no gradients, whole heads."""
    return (
        x_LD.dtype == torch.bfloat16
        and x_LD.device.type == "cpu"
        and not torch.is_grad_enabled()
        and x_LD.shape[1] % HEAD == 0
        and kernels() is not None
    )


def run_block(block: Block, x_LD: Tensor, temb_SC: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
    """What `Block.forward` does, for expert AdaLN and any attention. Leaves `x_LD` as it is."""
    table = block.modulation.linear(F.silu(temb_SC)).float()  # (S, [video, text] x PARTS x D)
    kinds = _kinds(pack)
    y_LD = torch.empty_like(x_LD)

    def gate_norm(
        x: Tensor, h: Tensor | None, gate: int, norm: nn.LayerNorm | None, shift: int
    ) -> Tensor | None:
        modulation = _Modulation(
            table.data_ptr(), kinds.data_ptr(), PARTS, gate, shift + SHIFT, shift + SCALE
        )
        out = None if norm is None else torch.empty_like(x)
        affine = (None, None, 0.0) if norm is None else (norm.weight.float(), norm.bias.float(), norm.eps)
        eps = ctypes.c_float(affine[2])
        _call("gate_norm", x, h, *x.shape, modulation, *affine[:2], eps, y_LD, out)
        return out

    h_LD = gate_norm(x_LD.contiguous(), None, GATE, block.norm1, 0)
    h_LD = block.attention(h_LD, pack, rope)
    h_LD = gate_norm(x_LD.contiguous(), h_LD, GATE, block.norm2, 3)
    u_LD = block.mlp.up(h_LD, pack)
    _call("gelu", u_LD, ctypes.c_int64(u_LD.numel()))
    gate_norm(y_LD, block.mlp.down(u_LD, pack), 3 + GATE, None, 0)
    return y_LD


def _kinds(pack: Pack) -> Tensor:
    """Which row of modulation each token takes: 2s for video, 2s + 1 for text, int32 (L,)."""
    counts = [n for s in pack.segments for n in (s.text_length, s.video_length)]
    kinds = torch.tensor(
        [2 * s + text for s in range(len(pack.segments)) for text in (1, 0)], dtype=torch.int32
    )
    return kinds.repeat_interleave(torch.tensor(counts))


def attends(attention: FullAttention) -> bool:
    """Whether scores are bounded as `attend` needs it."""
    norms = attention.norm_q, attention.norm_k
    parameters = (p for norm in norms for p in (norm.weight, norm.bias))
    return not matrix_units() and kept(attention, _norms, *parameters)[1] < LARGEST


def _norms(*parameters: Tensor) -> tuple[list[Tensor], float]:
    """Weights with even numbers before odd ones, fp32, and the largest score there can be.

    A LayerNorm without weights returns vectors of length sqrt(K) = 8, so that |q| <= 8 max |weight| + |bias|.
    """
    halves = [p.float().unflatten(0, (-1, 2)).T.flatten().contiguous() for p in parameters]
    weight_q, bias_q, weight_k, bias_k = (p.float() for p in parameters)
    q, k = (8 * w.abs().max() + b.norm() for w, b in ((weight_q, bias_q), (weight_k, bias_k)))
    return halves, float(q * k / 8)


def attend(attention: FullAttention, qkv_LD: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
    """Attention inside each segment with the norms and the rotation of q and k: (L, 3D) -> (L, D)."""
    norm_q, norm_k, heads = attention.norm_q, attention.norm_k, attention.heads
    weights, _ = kept(attention, _norms, norm_q.weight, norm_q.bias, norm_k.weight, norm_k.bias)
    norms = _Norms(*(w.data_ptr() for w in weights), norm_q.eps)
    out_LD = qkv_LD.new_empty(len(qkv_LD), heads * HEAD)
    found = kernels()
    assert found is not None
    start = 0
    for index, group in enumerate(pack.groups):
        segment, end = group.segment, start + group.length
        padded = found.padded_length(segment.length)
        memory = qkv_LD.new_empty(group.count * heads * 3 * padded * HEAD)
        cosine, sine = (None, None) if rope is None else rope[index]
        sizes = (group.count, segment.length, heads, segment.text_length)
        _call("attend", qkv_LD[start:end], *sizes, cosine, sine, norms, memory, out_LD[start:end])
        start = end
    return out_LD


def _call(name: str, *arguments: object) -> None:
    found = kernels()
    assert found is not None
    call(found, name, *arguments)
