"""Loading a model for generation: where it computes, whether it fits, which adapters it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from cogvideox.checkpoints import lora as adapters
from cogvideox.checkpoints.configs import Compat, ImageScale
from cogvideox.checkpoints.folder import load_model, read_spec
from cogvideox.checkpoints.hub import resolve
from cogvideox.checkpoints.weights import Weights as WeightFiles
from cogvideox.core.device import memory
from cogvideox.core.errors import InputError, nearest
from cogvideox.generation.generate import Place
from cogvideox.generation.pipeline import Pipeline
from cogvideox.generation.plan import Weights, gib, weights_of
from cogvideox.generation.quality import FILE, Calibration
from cogvideox.models.specs import SPECS, ModelSpec, PositionPolicy, Unconditional
from cogvideox.models.text import TextEncoder
from cogvideox.parallel.mesh import World, connect
from cogvideox.parallel.sequence import share_attention

Offload = Literal["auto", "none", "cpu"]
Adapter = str | Path | tuple[str | Path, float]


def load(
    source: str | Path = "mini",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    compat: Compat | None = None,
    *,
    offload: Offload = "auto",
    lora: Sequence[Adapter] = (),
    allow_partial: bool = False,
    revision: str | None = None,
    image_scale: ImageScale | None = None,
    unconditional: Unconditional | None = None,
    position_policy: PositionPolicy | None = None,
    texts: Sequence[str] = (),
    calibration: str | Path | None = None,
    parallel: str | World | None = None,
) -> Pipeline:
    """A pipeline for "mini", a model folder, a released model ("5b") or a hub id.

    `dtype` and `device` default to the best that this machine has. `compat="diffusers"` follows its
    conventions where public implementations disagree, so that equal generators give equal videos.
    `offload="cpu"` keeps parts in the CPU's memory until their turn (on a CPU: frees the text encoder after
    use), "none" never does, "auto" does when memory is short. `lora` holds files, or pairs (file, weight);
    with `allow_partial` those layers of them that do not fit the model are left out.
    Single conventions can be chosen too: `image_scale` ("sat", "diffusers", "trainers") of the image
    condition, `unconditional` text ("zeros", "empty"), `position_policy` ("interpolate", "extrapolate").
    If the text encoder is to be freed after use and all `texts` that it will be asked for are given, it is
    gone before the other parts are read. `calibration` is a file of `cogvideox calibrate`, where the model
    comes without one or another is wanted.

    `parallel` shares the work among the processes that torchrun started, all of which make the same calls and
    get the same results: "auto", or what is to be divided, such as "cfg+sequence" (docs/guide.md); None
    leaves each process alone. Raises InputError when the model does not exist, is damaged or
    does not fit.
    """
    check_words(offload, compat)
    pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in lora]
    place = Place.pick(device, dtype)
    spec, weights = survey(source, place.dtype, revision)
    found = calibration_of(source, revision) if calibration is None else Calibration.read(Path(calibration))
    parts_wait = must_wait(spec, weights, place.device, offload)
    world = connect(parallel) if parallel is None or isinstance(parallel, str) else parallel
    loras = [(adapters.load_lora(file), weight) for file, weight in pairs]
    accelerator = place.device.type != "cpu"
    named = {"image_scale": image_scale, "unconditional": unconditional, "position_policy": position_policy}
    release_text = parts_wait and not accelerator

    def text_ready(text: TextEncoder) -> None:
        if release_text and texts:
            text.keep(texts)
            text.release()

    conventions: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    model = load_model(
        lasting(source),
        dtype=place.dtype,
        device=None if parts_wait or not accelerator else place.device,
        revision=revision,
        compat=compat,
        text_ready=text_ready,
        **conventions,
    )
    if loras:
        adapters.apply(model, loras, allow_partial=allow_partial)
    if world is not None:
        share_attention(model.transformer)
    return Pipeline(
        model,
        replace(place, offload=parts_wait and accelerator),
        compat,
        release_text=release_text,
        adapters=tuple((lasting(file), weight) for file, weight in pairs),
        allow_partial=allow_partial,
        revision=revision,
        conventions=conventions,
        calibration=found,
        world=world,
    )


def check_words(offload: str, compat: str | None) -> None:
    """InputError for an `offload` or a `compat` that `load` does not know."""
    if offload not in get_args(Offload):
        raise InputError(f"unknown offload {offload!r}{nearest(offload, get_args(Offload))}")
    if compat not in (None, *get_args(Compat)):
        raise InputError(f"unknown compat {compat!r}{nearest(str(compat), get_args(Compat))}")


def lasting(source: str | Path) -> str:
    """The name of a model or adapter that holds in any working folder: paths become absolute, names stay."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() and str(source) != "mini" else str(source)


def survey(source: str | Path, dtype: torch.dtype, revision: str | None = None) -> tuple[ModelSpec, Weights]:
    """Spec of a model and bytes of its parts, without loading anything; released models are not even
    fetched."""
    if str(source) in SPECS and not Path(source).is_dir():
        spec = SPECS[str(source)]
        return spec, weights_of(spec, dtype)
    folder = resolve(source, revision)
    spec, files = read_spec(folder), WeightFiles(folder / "text_encoder")
    skipped = ("decoder.", "lm_head.")
    count = sum(files[key].numel() for key in files if not key.startswith(skipped))
    return spec, weights_of(spec, dtype, count * dtype.itemsize)


def calibration_of(source: str | Path, revision: str | None = None) -> Calibration | None:
    """The calibration that comes with a model; None where there is none. Fetches nothing by a short name."""
    if str(source) in SPECS and not Path(source).is_dir():
        return None
    path = resolve(source, revision) / FILE
    return Calibration.read(path) if path.is_file() else None


def must_wait(spec: ModelSpec, weights: Weights, target: torch.device, offload: Offload) -> bool:
    """Whether parts have to wait for their turn. InputError when not even that fits."""
    free = memory(target).free
    waiting = max(weights.text, weights.transformer + weights.vae)
    if target.type != "cpu":
        waiting = max(weights.text, weights.transformer, weights.vae)
    if waiting > free:
        raise InputError(
            f"{spec.name} needs {gib(waiting)} for its weights, {gib(free)} are free: use a smaller one"
        )
    return offload == "cpu" or (offload == "auto" and weights.total > free)
