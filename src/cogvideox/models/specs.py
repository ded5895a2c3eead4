"""One table of all model sizes. Everything that differs between the released models stands here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Positions = Literal["rope", "sincos", "learned"]
Modality = Literal["expert", "shared", "mmdit"]
AttentionSpan = Literal["full", "2d+1d"]
PositionPolicy = Literal["interpolate", "extrapolate"]
Unconditional = Literal["zeros", "empty"]


@dataclass(frozen=True, kw_only=True)
class VAESpec:
    """Sizes of the 3D causal VAE (paper section 2.1): 8x8 in space, 4 in time."""

    channels: tuple[int, ...] = (128, 256, 256, 512)
    """Width of each of the four levels, full resolution first."""
    blocks: int = 3
    """Residual blocks per encoder level; the decoder has one more."""
    latent_channels: int = 16
    groups: int = 32
    """Groups of every GroupNorm."""
    scale: float = 0.7
    """Latents are multiplied by this after encoding and divided before decoding, so that their variance is
    near 1.
    """
    condition_scale: float = 0.7
    """The same for the image condition of image-to-video models. The released 1.5-5B-I2V was trained with
    1.0.
    """


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """Sizes of the expert transformer (paper section 2.2)."""

    layers: int
    heads: int
    head_dim: int = 64
    in_channels: int = 16
    """Latent channels at the input: 16, or 32 with an image condition."""
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latents per token along (t, h, w)."""
    time_dim: int = 512
    """Width of the timestep embedding."""
    ofs_dim: int | None = None
    """Width of the `ofs` embedding of 1.5-5B-I2V; None: the model has none."""
    text_dim: int = 4096
    """Width of the text encoder's output."""
    text_length: int = 226
    """Text tokens per prompt, padding included."""
    positions: tuple[Positions, ...] = ("rope",)
    base_grid: tuple[int, int, int] = (13, 30, 45)
    """Tokens (t, h, w) of the native shape: the box of interpolated and of learned positions."""
    spatial_scale: float = 1.875
    """Spatial coordinates of sin-cos positions are divided by this."""
    out_norm_eps: float = 1e-5
    modality: Modality = "expert"
    """How text and video differ inside a block; the released models are all `expert`."""
    attention: AttentionSpan = "full"

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def patch_dim(self) -> int:
        """Numbers per output patch."""
        t, h, w = self.patch
        return self.out_channels * t * h * w


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole model: what to build, and the shapes and conventions that it was trained with."""

    name: str
    transformer: TransformerSpec
    vae: VAESpec
    snr_shift: float = 1.0
    """Divides the signal-to-noise ratio of the noise schedule."""
    frames: int = 49
    height: int = 480
    width: int = 720
    fps: int = 8
    trained_frames: tuple[int, int] = (9, 49)
    """Fewest and most frames of the training clips; outside of it results get worse, and generation says so.
    """
    trained_side: tuple[int, int] = (480, 480)
    """Smallest and largest short side in pixels of the training clips."""
    sampler: str = "dpm++2m-sde"
    steps: int = 50
    guidance: float = 6.0
    dynamic_guidance: str = "official"
    """Mode of `diffusion.guidance`: how the guidance scale changes over the steps."""
    position_policy: PositionPolicy = "interpolate"
    """Positions for other sizes: scaled into the base grid, or plain integer coordinates."""
    unconditional: Unconditional = "zeros"
    """Text of the unconditional branch: zero embeddings (as trained) or the embedding of ''."""
    first_frame: bool = False
    """A text-to-video model (16 input channels) that was also trained to continue a given first frame."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the released weights."""
    hub: str | None = None
    """Repository on the model hub."""
    licence: str = "Apache-2.0"

    @property
    def image_conditioned(self) -> bool:
        """The image condition enters as extra input channels."""
        return self.transformer.in_channels > self.vae.latent_channels


_T5B = TransformerSpec(layers=42, heads=48)
_T15 = replace(_T5B, patch=(2, 2, 2), text_length=224, base_grid=(11, 48, 85), out_norm_eps=1e-6)
_V5B = VAESpec()
_LICENCE_5B = "CogVideoX LICENSE"

SPECS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="2b",
            transformer=TransformerSpec(layers=30, heads=30, positions=("sincos",)),
            vae=VAESpec(scale=1.15258426, condition_scale=1.15258426),
            snr_shift=3.0,
            sampler="ddim",
            dynamic_guidance="constant",
            dtype="float16",
            hub="zai-org/CogVideoX-2b",
        ),
        ModelSpec(
            name="5b",
            transformer=_T5B,
            vae=_V5B,
            hub="zai-org/CogVideoX-5b",
            licence=_LICENCE_5B,
        ),
        ModelSpec(
            name="5b-i2v",
            transformer=replace(_T5B, in_channels=32, positions=("rope", "learned")),
            vae=_V5B,
            hub="zai-org/CogVideoX-5b-I2V",
            licence=_LICENCE_5B,
        ),
        ModelSpec(
            name="1.5-5b",
            transformer=_T15,
            vae=_V5B,
            frames=81,
            height=768,
            width=1360,
            fps=16,
            trained_frames=(17, 161),
            trained_side=(768, 768),
            position_policy="extrapolate",
            hub="zai-org/CogVideoX1.5-5B",
            licence=_LICENCE_5B,
        ),
        ModelSpec(
            name="1.5-5b-i2v",
            transformer=replace(_T15, in_channels=32, ofs_dim=512),
            vae=replace(_V5B, condition_scale=1.0),
            frames=81,
            height=768,
            width=1360,
            fps=16,
            trained_frames=(17, 161),
            trained_side=(768, 768),
            position_policy="extrapolate",
            hub="zai-org/CogVideoX1.5-5B-I2V",
            licence=_LICENCE_5B,
        ),
    )
}
