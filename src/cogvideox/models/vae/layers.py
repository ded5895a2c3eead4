"""Layers of the 3D causal VAE (paper section 2.1). Shape legend: B batch, C channels, T frames, H W pixels.

Nothing here keeps state: what a causal convolution must know of the chunk before it travels in a `Carry`.
Activations are best kept in `torch.channels_last_3d`, in which per-frame views cost nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.models.vae import gradients, kernels

Cache = tuple[Tensor, ...]


class Carry:
    """Passes the tails of the causal convolutions from one chunk of a clip to the next.

    Built from the cache that the previous chunk left (None for the first); convolutions call `pad` in a fixed
    order, and `cache` holds their new tails once the chunk is through. With `reuse` they are written into the
    memory of the old ones, which are then spent: a long clip does not scatter small blocks over the heap.
    The `last` chunk of a clip leaves none: for a picture they would be twice its activations.

    Where clips are cut between processes, a subclass brings what lies beyond the piece that is here.
    """

    whole = True
    """Frames are whole: convolutions pad them with zeros."""
    native = True
    """Nothing but tails comes from elsewhere: kernels may do the work."""

    def __init__(
        self, previous: Cache | None, lead: bool, *, reuse: bool = False, last: bool = False
    ) -> None:
        self.first = previous is None
        """This chunk opens a clip."""
        self.lead = lead and self.first
        """This chunk opens a clip whose first frame stands alone."""
        self._previous = iter(previous or ())
        self.last = last
        """No chunk follows: nothing has to be left."""
        self._reuse = reuse
        self._tails: list[Tensor] = []
        self._workspace: Tensor | None = None

    def take(self, x_BCTHW: Tensor) -> Tensor | None:
        """The tail that the next convolution left in the chunk before: two frames such as those of `x_BCTHW`,
        whoever computed them; None when the clip opens.
        """
        return next(self._previous, None)

    def room(self, new: Tensor, head: Tensor | None) -> Tensor:
        """Memory for a tail: that of `head`, what `take` gave, if that may be reused, else `new`."""
        return new if head is None or not self._reuse else head

    def keep(self, tail_BCTHW: Tensor) -> None:
        """Hand a tail on to the next chunk."""
        self._tails.append(tail_BCTHW)

    def leave(self, tail: Tensor, head: Tensor | None) -> None:
        """Keep a copy of `tail` for the next chunk, so that the cache does not keep the whole chunk alive."""
        if not self.last:
            self.keep(self.room(torch.empty_like(tail), head).copy_(tail))

    def workspace(self, like: Tensor, count: int) -> Tensor:
        """Memory for `count` numbers, the same at the next call for as many: new memory is slow."""
        if self._workspace is None or len(self._workspace) != count:
            self._workspace = None
            self._workspace = like.new_empty(count)
        return self._workspace

    def pad(self, x_BCTHW: Tensor) -> Tensor:
        """Two frames in front: the tail of the previous chunk, or the clip's first frame twice."""
        head = self.take(x_BCTHW)
        first = x_BCTHW[:, :, :1]  # twice, for `cat` keeps channels_last_3d only if all its parts have it
        padded = torch.cat([first, first, x_BCTHW] if head is None else [head, x_BCTHW], dim=2)
        self.leave(padded[:, :, -2:], head)
        return padded

    def border(self, x: Tensor, above: int = 1, below: int = 1) -> Tensor:
        """With the rows (of the last axis but one) beyond the edges of a piece of frames; whole ones have
        none.
        """
        return x

    def group_norm(self, x_BCTHW: Tensor, norm: nn.GroupNorm) -> Tensor:
        """`norm(x)`, whose statistics are those of whole frames."""
        return group_norm(x_BCTHW, norm)

    @property
    def cache(self) -> Cache:
        return tuple(self._tails)


class CausalConv3d(nn.Conv3d):
    """3x3x3 convolution, zero-padded in space, padded in time only in front."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=(0, 1, 1))

    def forward(self, x_BCTHW: Tensor, carry: Carry) -> Tensor:  # type: ignore[override]
        x_BCTHW = carry.border(x_BCTHW)
        padded, rows = carry.pad(x_BCTHW), int(carry.whole)
        # In low precision the rounded sum of taps is a fifth worse than the convolution: only to train with.
        exact = self.weight.dtype == torch.float32
        if carry.first and x_BCTHW.shape[2] == 1 and (exact or torch.is_grad_enabled()):
            # One frame three times under three taps: a 2D convolution with their sum, a third of the work.
            x_BCHW, weight = x_BCTHW[:, :, 0], self.weight.sum(2)
            return F.conv2d(x_BCHW, weight, self.bias, padding=(rows, 1)).unsqueeze(2)
        return F.conv3d(padded, self.weight, self.bias, padding=(0, rows, 1))


def group_norm(x_BCTHW: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm(x)`; in training at low precision through fp32, whose backward is five times faster on CPUs."""
    dtype = torch.float32 if torch.is_grad_enabled() else x_BCTHW.dtype
    x, weight, bias = x_BCTHW.to(dtype), norm.weight.to(dtype), norm.bias.to(dtype)
    return F.group_norm(x, norm.num_groups, weight, bias, norm.eps).to(x_BCTHW.dtype)


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift come from the latent that is being decoded.

    The 1x1x1 convolutions commute with nearest-neighbour upsampling, so they run on the small latent grid.
    """

    def __init__(self, channels: int, latent_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.scale = nn.Conv3d(latent_channels, channels, 1)
        self.shift = nn.Conv3d(latent_channels, channels, 1)

    def forward(self, x_BCTHW: Tensor, z_BCTHW: Tensor, carry: Carry) -> Tensor:
        size = x_BCTHW.shape[2:]
        scale = upsample_latent(self.scale(z_BCTHW), size, carry.lead)
        shift = upsample_latent(self.shift(z_BCTHW), size, carry.lead)
        return torch.addcmul(shift, carry.group_norm(x_BCTHW, self.norm), scale)

    def modulation(self, z_BCTHW: Tensor) -> Tensor:
        """Scale and shift on the latent grid in fp32, as rows: (B, cells, 2 channels)."""
        z = z_BCTHW.flatten(2).transpose(1, 2).float()
        both = ((c.weight.flatten(1).float(), c.bias) for c in (self.scale, self.shift))
        return torch.cat(
            [F.linear(z, weight, None if bias is None else bias.float()) for weight, bias in both], 2
        )


def upsample_latent(z_BCTHW: Tensor, size: torch.Size, lead: bool) -> Tensor:
    """Nearest-neighbour upsampling of latents to `size` (T, H, W); a leading frame maps to one frame."""
    if not lead or z_BCTHW.shape[2] == 1:
        return F.interpolate(z_BCTHW, size=size)
    first = F.interpolate(z_BCTHW[:, :, :1], size=(1, *size[1:]))
    rest = F.interpolate(z_BCTHW[:, :, 1:], size=(size[0] - 1, *size[1:]))
    return torch.cat([first, rest], dim=2)


class GroupNorm(nn.GroupNorm):
    """The encoder's norm: GroupNorm over a chunk, called like `SpatialNorm` (the latent is not used)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x_BCTHW: Tensor, z_BCTHW: Tensor | None, carry: Carry) -> Tensor:  # type: ignore[override]
        return carry.group_norm(x_BCTHW, self)


def norm_silu_conv(
    x_BCTHW: Tensor,
    z_BCTHW: Tensor | None,
    carry: Carry,
    norm: SpatialNorm | GroupNorm,
    conv: CausalConv3d,
    residual_BCTHW: Tensor | None = None,
) -> Tensor:
    """conv(silu(norm(x))), plus the residual if there is one, whose memory the result may take."""
    engines = (kernels, gradients) if carry.native else ()
    engine = next((engine for engine in engines if engine.suit(x_BCTHW)), None)
    if engine is not None:
        if isinstance(norm, GroupNorm):
            return engine.norm_silu_conv(x_BCTHW, None, carry, norm, conv, residual_BCTHW)
        assert z_BCTHW is not None
        grid = kernels.Grid(norm.modulation(z_BCTHW), z_BCTHW.shape[2:], carry.lead)
        return engine.norm_silu_conv(x_BCTHW, grid, carry, norm.norm, conv, residual_BCTHW)
    h = conv(F.silu(norm(x_BCTHW, z_BCTHW, carry)), carry)
    return h if residual_BCTHW is None else h.add_(residual_BCTHW)


def project(x_BCTHW: Tensor, shortcut: nn.Module, carry: Carry) -> Tensor:
    """shortcut(x), which may take the memory of x."""
    if isinstance(shortcut, nn.Conv3d) and carry.native and kernels.suit(x_BCTHW):
        if shortcut.out_channels < shortcut.in_channels:
            return kernels.project(x_BCTHW, shortcut)
    residual: Tensor = shortcut(x_BCTHW)
    return residual


def make_norm(channels: int, groups: int, latent_channels: int | None) -> SpatialNorm | GroupNorm:
    """The decoder's norm when `latent_channels` is given, else the encoder's."""
    return (
        GroupNorm(channels, groups)
        if latent_channels is None
        else SpatialNorm(channels, latent_channels, groups)
    )


class ResBlock(nn.Module):
    """norm - SiLU - conv - norm - SiLU - conv, plus the input (1x1x1 convolution if channels change)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, latent_channels: int | None) -> None:
        super().__init__()
        self.norm1 = make_norm(in_channels, groups, latent_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = make_norm(out_channels, groups, latent_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x_BCTHW: Tensor, z_BCTHW: Tensor | None, carry: Carry) -> Tensor:
        """`x_BCTHW` is spent: by kernels, the result may take its memory."""
        h = norm_silu_conv(x_BCTHW, z_BCTHW, carry, self.norm1, self.conv1)
        residual = project(x_BCTHW, self.shortcut, carry)
        return norm_silu_conv(h, z_BCTHW, carry, self.norm2, self.conv2, residual)


def as_images(x_BCTHW: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W); a view in channels_last_3d."""
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def as_video(x_NCHW: Tensor, batch: int) -> Tensor:
    """Inverse of `as_images`."""
    return x_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)


class Downsample(nn.Module):
    """Halves height and width, and time if asked: frames are averaged in pairs, a leading frame is kept.
    Called like a block (the latent is not used).
    """

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCTHW: Tensor, z_BCTHW: Tensor | None, carry: Carry) -> Tensor:
        if self.time and x_BCTHW.shape[2] > 1:
            first, rest = x_BCTHW.split([int(carry.lead), x_BCTHW.shape[2] - int(carry.lead)], dim=2)
            # Rounded once, as a mean would be: halving is exact.
            x_BCTHW = torch.cat([first, (rest[:, :, ::2] + rest[:, :, 1::2]) * 0.5], dim=2)
        # Zeros on the right and bottom only, as the released weights expect.
        images = carry.border(as_images(x_BCTHW), above=0)
        return as_video(self.conv(F.pad(images, (0, 1, 0, int(carry.whole)))), x_BCTHW.shape[0])


class Upsample(nn.Module):
    """Doubles height and width (nearest, then a convolution), and time if asked, except a leading frame.
    Called like a block (the latent is not used).
    """

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCTHW: Tensor, z_BCTHW: Tensor | None, carry: Carry) -> Tensor:
        if carry.native and kernels.suit(x_BCTHW):
            return kernels.upsample_conv(x_BCTHW, self.conv, self.time, carry.lead)
        images = carry.border(F.interpolate(as_images(x_BCTHW), scale_factor=2.0))
        # The convolution sees one frame at a time, so it comes before frames are doubled: half the work.
        images = F.conv2d(images, self.conv.weight, self.conv.bias, padding=(int(carry.whole), 1))
        x_BCTHW = as_video(images, x_BCTHW.shape[0])
        if not self.time:
            return x_BCTHW
        first, rest = x_BCTHW.split([int(carry.lead), x_BCTHW.shape[2] - int(carry.lead)], dim=2)
        return torch.cat([first, rest.repeat_interleave(2, dim=2)], dim=2)
