"""What torchrun tells the processes that it starts, in their environment. One alone is the first of one."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes share the run. Other launchers use the same names for other things."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """The number of this one among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def processes_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes() > 1 else 1


def rank_here() -> int:
    """The number of this one among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))
