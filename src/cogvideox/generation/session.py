"""A batch of jobs for one model: all of them decided, checked and planned before the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch

from cogvideox.checkpoints.lora import load_lora
from cogvideox.core.device import memory, pick_device, pick_dtype
from cogvideox.core.shapes import ClipShape
from cogvideox.generation.jobs import Job, check_inputs
from cogvideox.generation.load import calibration_of, check_words, load, survey
from cogvideox.generation.media import Inputs
from cogvideox.generation.pipeline import Pipeline
from cogvideox.generation.plan import Plan, Weights, check, make_plan, measure, seconds_of
from cogvideox.generation.quality import Calibration
from cogvideox.generation.request import Settings, decide
from cogvideox.generation.result import check_output
from cogvideox.generation.watch import Watch
from cogvideox.models.specs import ModelSpec
from cogvideox.parallel.mesh import World, connect


@dataclass(frozen=True)
class Planned:
    """A job that can be carried out, and what it will cost."""

    job: Job
    inputs: Inputs
    settings: Settings
    plan: Plan
    seconds: dict[str, float]
    """Estimated, by stage."""

    def facts(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "file": str(self.job.output),
            "request": self.settings.complete(self.job.request).brief(),
            "shape": asdict(self.settings.shape),
            "tokens": self.plan.tokens,
            "needs": self.plan.peak,
            "free": self.plan.free,
            "text_encoder_released": self.plan.wait,
            "branches_apart": self.plan.apart,
            "seconds": self.seconds,
            "quality": self.settings.quality_facts,
            "notes": list(self.settings.notes),
        }


@dataclass(frozen=True)
class Session:
    """How a model is to be loaded, and the record of a finished file when it is to be made again."""

    loading: Mapping[str, Any]
    """Arguments of `load`."""
    record: Mapping[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any], record: Mapping[str, Any], offload: str) -> Self:
        """From what is `given` now, else what is in `record`, else the defaults. None means not given."""
        known = record.get("model", {})
        lora = given["lora"]
        same_model = given["model"] is None
        found = {name: given[name] or known.get(name) for name in ("dtype", "device", "compat")}
        if same_model and given["compat"] is None:
            found |= known.get("conventions", {})
        found |= {
            "source": known.get("source", "mini") if same_model else given["model"],
            "revision": given["revision"] or (known.get("revision") if same_model else None),
            "lora": [tuple(p) for p in known.get("lora", [])] if lora is None else [adapter(x) for x in lora],
            "allow_partial": given.get("allow_partial")
            or (same_model and lora is None and known.get("allow_partial", False)),
            "offload": offload,
            "calibration": given.get("calibration"),
            "parallel": connect(given.get("parallel")),
        }
        check_words(offload, found["compat"])
        return cls(found, record)

    @property
    def world(self) -> World | None:
        """The processes that share the work, if there are several."""
        return self.loading["parallel"]

    @property
    def device(self) -> torch.device:
        return pick_device(self.loading["device"])

    @property
    def dtype(self) -> torch.dtype:
        return pick_dtype(self.loading["dtype"], self.device)

    @cached_property
    def model(self) -> tuple[ModelSpec, Weights]:
        """Spec and size of the model, which is not loaded for that."""
        return survey(self.loading["source"], self.dtype, self.loading["revision"])

    @cached_property
    def calibration(self) -> Calibration | None:
        """What the presets of `quality` mean for the model."""
        file = self.loading["calibration"]
        if file is not None:
            return Calibration.read(Path(file))
        return calibration_of(self.loading["source"], self.loading["revision"])

    def plan(self, jobs: Sequence[Job], accepted: Mapping[str, Any]) -> list[Planned]:
        """Plan all jobs. InputError if any of them is illegal or does not fit, or an adapter is damaged.

        Files that the record names must be as they were, except those that are `accepted` as given now.
        """
        speeds = measure(self.device, self.dtype)
        spec, weights = self.model
        for file, _ in self.loading["lora"]:
            load_lora(file)
        planned = []
        for job in jobs:
            inputs = Inputs.of(job.request)
            if self.record:
                check_inputs(self.record, inputs.digests(), accepted)
            settings = decide(job.request, spec, inputs.given, self.loading["compat"], self.calibration)
            check_output(job.output, settings.shape.frames)
            if self.world is not None:
                self.world.check(settings.guided, spec.transformer.heads, settings.shape.latents[1])
            plan = self._plan(settings, settings.shape)
            check(plan, spec, partial(self._plan, settings))
            seconds = seconds_of(spec, settings, weights, self.dtype, speeds)
            if self.world is not None:
                size = self.world.everyone.size
                seconds = {stage: s if stage == "text" else s / size for stage, s in seconds.items()}
            planned.append(Planned(job, inputs, settings, plan, seconds))
        return planned

    def _plan(self, settings: Settings, shape: ClipShape) -> Plan:
        spec, weights = self.model
        return make_plan(
            spec,
            shape,
            settings.longest(shape),
            guided=settings.guided,
            encoded=settings.encoded(shape),
            kept=settings.plan is not None,
            dtype=self.dtype,
            memory=memory(self.device),
            weights=weights,
            wait={"none": False, "cpu": True}.get(self.loading["offload"]),
            accelerator=self.device.type != "cpu",
            world=self.world,
        )

    def open(self, planned: Sequence[Planned], watch: Watch) -> Pipeline:
        """Load the model, as it was when the record was made; encode all prompts if the encoder must go."""
        torch.set_num_threads(self.record.get("threads", torch.get_num_threads()))
        waits = any(one.plan.wait for one in planned)
        requests = [one.job.request for one in planned]
        texts = [text for r in requests for text in (r.prompt, r.negative)]
        pipe = load(**{**self.loading, "offload": "cpu" if waits else self.loading["offload"]}, texts=texts)
        if self.record and self.record["model"].get("fingerprint") != pipe.model.fingerprint:
            watch.note("the model has other weights than the one that made the file: frames will differ")
        return pipe


def adapter(text: str) -> tuple[str, float]:
    """FILE[:weight]"""
    file, colon, weight = text.rpartition(":")
    try:
        return (file, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0
