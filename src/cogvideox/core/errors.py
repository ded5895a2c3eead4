"""Errors that users meet: one line each, with the exit status the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The request cannot be carried out as asked: bad value, missing file, unknown name. Exit status 2."""

    exit_status = 2


class CheckpointError(InputError):
    """A checkpoint does not fit: unknown or missing keys, wrong shapes, wrong base. Names the keys. Exit
    status 2.
    """


class PeerError(RuntimeError):
    """Another process of the run ended or does not answer. Exit status 1."""

    exit_status = 1


class NonFiniteError(RuntimeError):
    """NaN or infinity appeared in a computation; the message names the stage and the step. Exit status 3."""

    exit_status = 3


class Note(UserWarning):
    """Something that the user should know, which a command tells in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' when `known` holds a close match of `name`, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(names)})"
