"""CogVideoX: text, image and video to video with a diffusion transformer, from a laptop CPU to a cluster.

    import cogvideox

    pipe = cogvideox.load("mini")
    pipe("a red racing car drives through the desert", seed=1).save("car.mp4")

Importing this package costs nothing: torch is loaded with the first attribute that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogvideox.core.errors import CheckpointError, InputError, NonFiniteError
    from cogvideox.generation.load import load
    from cogvideox.generation.pipeline import Pipeline
    from cogvideox.generation.result import Video

__version__ = "0.1.0"
__all__ = ["CheckpointError", "InputError", "NonFiniteError", "Pipeline", "Video", "__version__", "load"]

_HOMES = {
    "CheckpointError": "core.errors",
    "InputError": "core.errors",
    "NonFiniteError": "core.errors",
    "Pipeline": "generation.pipeline",
    "Video": "generation.result",
    "load": "generation.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cogvideox' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cogvideox.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
