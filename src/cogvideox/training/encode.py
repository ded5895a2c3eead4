"""Samples -> what training takes: posteriors of the VAE, noised image conditions, text embeddings.

`encode` writes them to a folder once; `Live` makes them as they are needed. Both are the same function of
pixels, the one that generation encodes with. Shape legend: C channels, T H W latent grid, B clips.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cogvideox.checkpoints.folder import load_text, read_spec
from cogvideox.checkpoints.hub import resolve
from cogvideox.checkpoints.keymaps import diffusers_vae
from cogvideox.checkpoints.weights import Weights, build
from cogvideox.core import launch, rng
from cogvideox.core.errors import InputError
from cogvideox.core.shapes import encode_plan
from cogvideox.data.encoded import INDEX, SHARD, Content, Source, finish, shard_name, write_shard
from cogvideox.data.manifest import read_manifest
from cogvideox.data.samples import Rule, Sample, Selection, pixels, select, subject
from cogvideox.data.video import Frames
from cogvideox.generation.generate import Place
from cogvideox.generation.media import to_signed
from cogvideox.models.specs import ModelSpec, VAESpec
from cogvideox.models.text import TextEncoder, fingerprint
from cogvideox.models.vae.autoencoder import VAE, Posterior

DRAWS = 4
"""Noised versions of a sample's image condition."""
SIGMA = (-3.0, 0.5)
"""Mean and deviation of the logarithm of the condition's noise, in pixel values from -1 to 1."""
BATCH = 2**21
"""Numbers in the pixels of a batch: two clips of 17x128x128. Activations of larger ones fall out of a
processor's caches; single clips in fp32 go PyTorch's slow path (0.5 million pixels a second, not 0.75).
"""
POLL = 0.5
"""Seconds between looks at what other processes have written."""


@dataclass(frozen=True)
class Encoder:
    """Frames -> content. The image condition is noised in pixels, as the released models were trained
    (paper, section 3; log-normal), then a sample of its posterior is taken.
    """

    spec: ModelSpec
    vae: VAE
    text: TextEncoder | None
    """None: content without texts."""
    seed: int
    """Of the conditions' noise."""

    @torch.no_grad()
    def __call__(
        self, samples: Sequence[Sample], clips: Sequence[Frames], captions: Sequence[Sequence[str]]
    ) -> list[Content]:
        """Content of samples of one shape, on the CPU; latents and texts in the models' precision."""
        device, plan = self.vae.device, encode_plan(samples[0].frames)
        parts = zip(*(np.split(clip, np.cumsum(plan.sizes)[:-1]) for clip in clips), strict=True)
        chunks = (torch.cat([to_signed(part) for part in same]).to(device) for same in parts)
        posterior = Posterior.join(self.vae.encode_stream(chunks, plan))
        mean, std = (self.vae.spec.scale * x for x in (posterior.mean, (posterior.logvar / 2).exp()))
        found = []
        for index, sample in enumerate(samples):
            mask = subject(sample)
            found.append(
                Content(
                    mean_CTHW=mean[index].cpu(),
                    std_CTHW=std[index].cpu(),
                    subject_THW=None if mask is None else torch.from_numpy(mask),
                    conditions=self._conditions(sample, clips[index][:1]),
                    texts=self._texts(captions[index]),
                )
            )
        return found

    def _conditions(self, sample: Sample, frame: Frames) -> Tensor | None:
        """The first frame, noised and encoded `DRAWS` times: (draws, C, H, W)."""
        if not self.spec.image_conditioned:
            return None
        image, key = to_signed(frame), (self.seed, "condition", sample.id)
        noised = []
        for draw in range(DRAWS):
            sigma = math.exp(rng.generator(*key, "sigma", draw).normal(*SIGMA))
            noised.append(image + sigma * rng.normal(image.shape, *key, draw))
        posterior = self.vae.posterior(torch.cat(noised).to(self.vae.device, self.vae.dtype))
        noise = rng.normal(posterior.mean.shape, *key, "posterior")
        return self.vae.latents(posterior, noise, condition=True)[:, :, 0].cpu()

    def _texts(self, captions: Sequence[str]) -> Tensor | None:
        if self.text is None:
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the prompt has")  # captions are cut as prompts are
            return self.text.encode(list(captions)).cpu()


class Live:
    """A store that encodes what it is asked for, in the process that asks: nothing is kept on disk.

    Its readers must not be forked workers when the VAE is on a GPU (not run here).
    """

    def __init__(self, samples: Sequence[Sample], folder: Path, encoder: Encoder) -> None:
        self.samples, self.folder, self.encoder = samples, folder, encoder

    def read(self, index: int, caption: int) -> Content:
        sample = self.samples[index]
        _, words = sample.captions[caption]
        return self.encoder([sample], [pixels(sample, self.folder)], [[words]])[0]


class _Pixels(Dataset[Any]):
    """Number -> frames of a sample, or why there are none."""

    def __init__(self, samples: Sequence[Sample], folder: Path) -> None:
        self.samples, self.folder = samples, folder

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Frames | str:
        try:
            return pixels(self.samples[number], self.folder)
        except InputError as error:
            return str(error)


def encode(
    selection: Selection,
    folder: Path,
    output: Path,
    encoder: Encoder,
    source: Source,
    *,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
    done: Callable[[int], object] = lambda count: None,
) -> dict[str, str]:
    """Encode samples of a manifest in `folder` to `output`, from where an earlier call was stopped.

    Worker processes draw or decode, this one encodes; `done` hears of each shard's samples. With a `share`
    (k, n) of the shards, this is process k of n that write to the same folder: the first waits for the
    others. Returns what could not be read: id -> reason. InputError when `output` is another source's, or
    nothing can be read.
    """
    source.claim(output)
    samples = selection.samples
    shards = [samples[first : first + SHARD] for first in range(0, len(samples), SHARD)]
    files = [output / shard_name(shard) for shard in shards]
    own = slice(share[0], None, share[1])
    missing = [shard for shard, file in zip(shards[own], files[own], strict=True) if not file.exists()]
    if missing:  # the folder is no longer complete: its index may be that of a smaller manifest
        (output / INDEX).unlink(missing_ok=True)
    done(sum(map(len, shards[own])) - sum(map(len, missing)))
    todo = [sorted(shard, key=_size) for shard in missing]
    wanted = _Pixels([sample for shard in todo for sample in shard], folder)
    clips = iter(DataLoader(wanted, batch_size=None, num_workers=workers))
    for shard, ordered in zip(missing, todo, strict=True):
        contents: dict[str, Content] = {}
        reasons: dict[str, str] = {}
        for batch in _batches(ordered):
            read = list(zip(batch, itertools.islice(clips, len(batch)), strict=True))
            reasons |= {sample.id: clip for sample, clip in read if isinstance(clip, str)}
            good = [(sample, clip.numpy()) for sample, clip in read if not isinstance(clip, str)]
            if good:
                there, frames = zip(*good, strict=True)
                captions = [[words for _, words in sample.captions] for sample in there]
                made = encoder(there, frames, captions)
                contents |= {sample.id: content for sample, content in zip(there, made, strict=True)}
        write_shard(output, shard, contents, reasons)
        done(len(shard))
    if own.start:
        return {}
    while not all(file.exists() for file in files):  # torchrun ends all when one has failed
        time.sleep(POLL)
    if share[1] > 1:
        done(len(samples) - sum(map(len, shards[own])))
    return finish(output, [file.name for file in files])


def _size(sample: Sample) -> tuple[int, int, int]:
    return sample.frames, sample.height, sample.width


def _batches(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Runs of one shape that are not too large."""
    for size, run in itertools.groupby(samples, key=_size):
        same, most = list(run), max(1, BATCH // (3 * math.prod(size)))
        for first in range(0, len(same), most):
            yield same[first : first + most]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What `cogvideox train encode` is asked for; see its options."""

    manifest: Path
    model: str
    output: Path
    rules: tuple[Rule, ...]
    fps: float | None
    texts: bool
    seed: int
    workers: int
    device: str | None
    dtype: str | None


def encode_manifest(order: Order, say: Callable[[str], object]) -> str:
    """Carry out an order, telling the progress; returns the balance: nothing that came in is lost silently.

    InputError when the manifest, the model or what is in the output folder does not fit, or nothing is left.
    """
    rows, folder = read_manifest(order.manifest), resolve(order.model)
    spec, place = read_spec(folder), Place.pick(order.device, order.dtype)
    fps = order.fps or float(spec.fps)
    selection = select(rows, order.rules, spec.transformer.patch, fps)
    told = f"{len(rows)} rows in {len(order.rules)} shapes: "
    reasons = "; ".join(f"{count} times: {why}" for why, count in selection.left_out.most_common(5))
    left = f"{selection.left_out.total()} left out" + (f" ({reasons})" if reasons else "")
    if not selection.samples:
        raise InputError(f"{told}none can be used, {left}")
    say(f"{told}{len(selection.samples)} samples, {left}")
    vae = load_vae(folder / "vae", spec.vae, place.dtype, place.device)
    text = None
    if order.texts:
        text = load_text(folder / "text_encoder", folder / "tokenizer", spec, place.dtype, place.device)
    plan = {"rules": [asdict(rule) for rule in order.rules], "fps": fps, "seed": order.seed}
    source = Source(
        vae=vae_hash(folder / "vae", spec.vae),
        text=text_hash(folder / "text_encoder", spec) if order.texts else None,
        conditions=spec.image_conditioned,
        plan=plan,
    )
    count = 0

    def done(more: int) -> None:
        nonlocal count
        count += more
        say(f"{count} of {len(selection.samples)}")

    encoder = Encoder(spec, vae, text, order.seed)
    lost = encode(
        selection,
        order.manifest.parent,
        order.output,
        encoder,
        source,
        workers=order.workers,
        share=(launch.rank(), launch.processes()) if launch.processes() > 1 else (0, 1),
        done=done,
    )
    unreadable = f"{len(lost)} unreadable" + " (see unreadable.jsonl)" * bool(lost)
    return f"{told}{len(selection.samples) - len(lost)} encoded, {unreadable}, {left}"


def load_vae(folder: Path, spec: VAESpec, dtype: torch.dtype, device: torch.device) -> VAE:
    """The VAE of a model, from its folder of weights."""
    return build(lambda: VAE(spec), diffusers_vae(spec), Weights(folder), str(folder), dtype, device)


def vae_hash(folder: Path, spec: VAESpec) -> str:
    """What latents depend on: the stored weights and the scales."""
    return f"{fingerprint(Weights(folder))}/{spec.scale:g}/{spec.condition_scale:g}"


def text_hash(folder: Path, spec: ModelSpec) -> str:
    """What embeddings depend on: the stored weights and the number of tokens."""
    return f"{fingerprint(Weights(folder))}/{spec.transformer.text_length}"
