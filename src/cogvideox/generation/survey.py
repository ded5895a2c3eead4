"""What a machine can run: devices, precisions, memory, and every model's native shape against them."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import av
import torch
import transformers

import cogvideox
from cogvideox.checkpoints import hub
from cogvideox.checkpoints.folder import read_spec
from cogvideox.core.device import Memory, describe, memory, native_bfloat16, pick_device, pick_dtype
from cogvideox.core.errors import InputError
from cogvideox.core.heap import allocator, faster_allocator
from cogvideox.core.shapes import ClipShape, latent_frames
from cogvideox.generation.console import duration
from cogvideox.generation.load import survey
from cogvideox.generation.plan import Plan, Speeds, Weights, check, make_plan, measure, seconds_of
from cogvideox.generation.request import Request, decide
from cogvideox.models.specs import SPECS, ModelSpec
from cogvideox.models.transformer.kernels import ROWS
from cogvideox.models.vae.kernels import KERNELS


def look(device_name: str | None = None, dtype_name: str | None = None) -> dict[str, Any]:
    """Facts about this machine and what it can run, as plain values."""
    device = pick_device(device_name)
    dtype = pick_dtype(dtype_name, device)
    there, speeds = memory(device), measure(device, dtype)
    return {
        "device": device.type,
        "hardware": describe(device),
        "dtype": str(dtype).removeprefix("torch."),
        "native_bfloat16": native_bfloat16(device),
        "allocator": allocator(),
        "faster_allocator": faster_allocator(),
        "kernels": _kernels(device, dtype),
        "total": there.total,
        "free": there.free,
        "speeds": asdict(speeds),
        "versions": {
            "cogvideox": cogvideox.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "av": av.__version__,
        },
        "models": [
            _row(name, *survey(name, dtype), dtype, there, speeds, device.type != "cpu") for name in known()
        ],
    }


def _kernels(device: torch.device, dtype: torch.dtype) -> str:
    """Which work is done by kernels of this package: "all", "small operations" or "none"."""
    if device.type != "cpu" or dtype not in ROWS or ROWS[dtype].loaded is None:
        return "none"
    return "all" if dtype == KERNELS.dtype and KERNELS.loaded is not None else "small operations"


def known() -> dict[str, ModelSpec]:
    """The models with a short name; mini only where its weights are installed."""
    mini = {"mini": read_spec(hub.MINI)} if (hub.MINI / "model_index.json").is_file() else {}
    return mini | SPECS


def _row(
    name: str,
    spec: ModelSpec,
    weights: Weights,
    dtype: torch.dtype,
    there: Memory,
    speeds: Speeds,
    accelerator: bool,
) -> dict[str, Any]:
    """How one model fares at its native shape."""
    values = {"prompt": "-"} | ({"image": "-"} if spec.image_conditioned else {})
    settings = decide(Request.parse(values), spec)

    def make(shape: ClipShape) -> Plan:
        return make_plan(
            spec,
            shape,
            latent_frames(shape.frames),
            guided=settings.guided,
            encoded=settings.encoded(shape),
            dtype=dtype,
            memory=there,
            weights=weights,
            accelerator=accelerator,
        )

    plan = make(settings.shape)
    runs = "yes, one part after the other" if plan.wait else "yes"
    try:
        check(plan, spec, make)
    except InputError as error:
        runs = "no: " + str(error).partition("; ")[2]
    time = duration(sum(seconds_of(spec, settings, weights, dtype, speeds).values()))
    shape = settings.shape
    return {
        "model": name,
        "shape": f"{shape.frames} frames of {shape.width}x{shape.height}",
        "needs": plan.peak,
        "runs": runs,
        "time": f"about {time}" if plan.fits else "",
    }
