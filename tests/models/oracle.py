"""Our models beside their diffusers counterparts, with the same random weights."""

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor, nn

from cogvideox.checkpoints.keymaps import diffusers_transformer, diffusers_vae, to_ours
from cogvideox.core.pack import Pack, Segment, patchify, unpatchify
from cogvideox.models.specs import TransformerSpec, VAESpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from tests.tiny import randomise

SMALL_VAE = VAESpec(channels=(16, 32, 32, 64), blocks=2, groups=8)


def relative_error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def vae_pair(spec: VAESpec = SMALL_VAE, seed: int = 0) -> tuple[VAE, AutoencoderKLCogVideoX]:
    reference = AutoencoderKLCogVideoX(
        block_out_channels=spec.channels,
        layers_per_block=spec.blocks,
        norm_num_groups=spec.groups,
        latent_channels=spec.latent_channels,
        scaling_factor=spec.scale,
    )
    randomise(reference, seed)
    ours = VAE(spec).eval()
    ours.load_state_dict(to_ours(diffusers_vae(spec), reference.state_dict(), shapes(ours), "vae"))
    return ours, reference


def transformer_pair(
    spec: TransformerSpec, policy: str = "extrapolate", seed: int = 0
) -> tuple[Transformer, CogVideoXTransformer3DModel]:
    t, h, w = spec.base_grid
    reference = CogVideoXTransformer3DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=spec.head_dim,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        time_embed_dim=spec.time_dim,
        ofs_embed_dim=spec.ofs_dim,
        text_embed_dim=spec.text_dim,
        num_layers=spec.layers,
        sample_width=w * spec.patch[2],
        sample_height=h * spec.patch[1],
        sample_frames=(t * spec.patch[0] - 1) * 4 + 1,
        patch_size_t=None if spec.patch[0] == 1 else spec.patch[0],
        max_text_seq_length=spec.text_length,
        use_rotary_positional_embeddings="rope" in spec.positions,
        use_learned_positional_embeddings="learned" in spec.positions,
    )
    randomise(reference, seed)
    ours = Transformer(spec, policy).eval()
    weights = to_ours(diffusers_transformer(spec), reference.state_dict(), shapes(ours), "transformer")
    ours.load_state_dict(weights)
    return ours, reference


def run_ours(model: Transformer, x_BTCHW: Tensor, text_BLC: Tensor, timestep_B: Tensor) -> Tensor:
    """Our transformer called with diffusers' arguments."""
    spec = model.spec
    grid = tuple(n // p for n, p in zip((x_BTCHW.shape[1], *x_BTCHW.shape[3:]), spec.patch, strict=True))
    pack = Pack(
        segments=tuple(Segment(text_BLC.shape[1], grid) for _ in x_BTCHW),
        text_LC=text_BLC.flatten(0, 1),
        video_LP=torch.cat([patchify(x.transpose(0, 1), spec.patch) for x in x_BTCHW]),
        timestep_S=timestep_B,
        ofs=2.0 if spec.ofs_dim else None,
    )
    parts = pack.per_segment(model(pack))
    return torch.stack([unpatchify(p, grid, spec.patch).transpose(0, 1) for p in parts])
