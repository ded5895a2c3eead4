"""Presets: what a step plan and a step count cost in likeness and gain in time, as measured for one model.

`quality.json` in a model folder, or the file of `cogvideox calibrate`, holds the measurements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cogvideox.core.errors import InputError
from cogvideox.core.files import write_text

QUALITIES = ("exact", "high", "fast")
FILE = "quality.json"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Price(_Strict):
    """Decoded video against that of the exact way, over the prompts of a calibration."""

    psnr: float
    """Mean, in dB."""
    worst: float
    """PSNR of the worst clip."""
    ssim: float
    features: float
    """Distance of gradients at several scales (`data.metrics`), 0 for equal videos."""
    seconds: float
    """To sample and decode one clip."""
    faster: float
    """Seconds of the exact way over these."""

    def __str__(self) -> str:
        return (
            f"{self.faster:.1f}x as fast, PSNR {self.psnr:.1f} dB (worst {self.worst:.1f}), "
            f"SSIM {self.ssim:.3f} to exact"
        )


class Way(_Strict):
    """One way to sample, and its price."""

    name: str
    steps: int
    plan: str
    """A `StepPlan` in text."""
    price: Price


class Calibration(_Strict):
    """What `cogvideox calibrate` found for one model, sampler and step count."""

    model: str
    fingerprint: str
    """Of the transformer's weights."""
    sampler: str
    steps: int
    """Of the exact way."""
    guidance: float
    shape: str
    clips: int
    """How many tell the prices of the presets; none of them had a part in choosing."""
    machine: str
    presets: dict[str, Way]
    table: tuple[Way, ...]
    """All ways that were measured, on the clips that chose among them."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a JSON file; InputError when it is none of `cogvideox calibrate`."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read the plan file {path}: {error.strerror}") from None
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InputError(f"{path} is no file of `cogvideox calibrate`: {where or 'not JSON'}") from None

    def write(self, path: Path) -> None:
        """As JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def price(self, steps: int, sampler: str, plan: str) -> Price | None:
        """What was measured for that way; None if it was not."""
        ways = (*self.presets.values(), *self.table)
        known = (way.price for way in ways if (way.steps, self.sampler, way.plan) == (steps, sampler, plan))
        return next(known, None)

    @property
    def conditions(self) -> str:
        """What the prices hold for."""
        return f"{self.shape}, guidance {self.guidance:g}, {self.clips} clips, {self.machine}"
