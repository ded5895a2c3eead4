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
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.core.device import matrix_units
from cogvideox.core.native import Kernels, kept
from cogvideox.core.pack import Pack
from cogvideox.models.specs import TransformerSpec

if TYPE_CHECKING:
    from cogvideox.models.transformer.blocks import Block, FullAttention
    from cogvideox.models.transformer.positions import Rope

KERNELS = Kernels(Path(__file__).with_suffix(".c"))
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


def serve(spec: TransformerSpec) -> bool:
    """Whether inference of a transformer in bf16 on this CPU goes through the kernels, attention included."""
    suits = spec.modality == "expert" and spec.attention == "full" and spec.head_dim == HEAD
    return suits and not matrix_units() and KERNELS.loaded is not None


def suit(x_LD: Tensor) -> bool:
    """Whether the kernels can take the hidden state: one for kernels, its width in whole vectors."""
    return x_LD.shape[1] % 16 == 0 and KERNELS.take(x_LD)


def run_block(block: Block, x_LD: Tensor, temb_SC: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
    """What `Block.forward` does, for expert AdaLN and any attention. Leaves `x_LD` as it is."""
    table = block.modulation.linear(F.silu(temb_SC)).float()  # (S, [video, text] x PARTS x D)
    y_LD = torch.empty_like(x_LD)

    def gate_norm(x: Tensor, h: Tensor | None, gate: int, norm: nn.LayerNorm | None, shift: int) -> Tensor:
        """y = x + gate h, if there is h; returns that sum (else x) normed and modulated, without norm y."""
        parts = PARTS, gate, shift + SHIFT, shift + SCALE
        modulation = _Modulation(table.data_ptr(), pack.kind_L.data_ptr(), *parts)
        weight, bias, eps = (
            (None, None, 0.0) if norm is None else (norm.weight.float(), norm.bias.float(), norm.eps)
        )
        out = None if norm is None else torch.empty_like(x)
        KERNELS.call("gate_norm", x, h, *x.shape, modulation, weight, bias, ctypes.c_float(eps), y_LD, out)
        return y_LD if out is None else out

    h_LD = block.attention(gate_norm(x_LD, None, GATE, block.norm1, 0), pack, rope)
    u_LD = block.mlp.up(gate_norm(x_LD, h_LD, GATE, block.norm2, 3), pack)
    KERNELS.call("gelu", u_LD, ctypes.c_int64(u_LD.numel()))
    return gate_norm(y_LD, block.mlp.down(u_LD, pack), 3 + GATE, None, 0)


def attends(attention: FullAttention) -> bool:
    """Whether `attend` can: heads of its size, scores in its bounds, and no faster matrix units."""
    whole = attention.norm_q.normalized_shape == (HEAD,)
    return whole and not matrix_units() and _kept_norms(attention)[1] < LARGEST


def _kept_norms(attention: FullAttention) -> tuple[list[Tensor], float]:
    norm_q, norm_k = attention.norm_q, attention.norm_k
    return kept(attention, _norms, norm_q.weight, norm_q.bias, norm_k.weight, norm_k.bias)


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
    heads, (weights, _) = attention.heads, _kept_norms(attention)
    norms = _Norms(*(w.data_ptr() for w in weights), attention.norm_q.eps)
    out_LD = qkv_LD.new_empty(len(qkv_LD), heads * HEAD)
    assert KERNELS.loaded is not None
    start = 0
    for index, group in enumerate(pack.groups):
        segment, end = group.segment, start + group.length
        padded = KERNELS.loaded.padded_length(segment.length)
        memory = qkv_LD.new_empty(group.count * heads * 3 * padded * HEAD)
        cosine, sine = (None, None) if rope is None else rope[index]
        sizes = (group.count, segment.length, heads, segment.text_length)
        KERNELS.call("attend", qkv_LD[start:end], *sizes, cosine, sine, norms, memory, out_LD[start:end])
        start = end
    return out_LD
