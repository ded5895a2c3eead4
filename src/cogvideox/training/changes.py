"""`--set`: values of a recipe changed from the command line."""

from __future__ import annotations

from typing import Any

import yaml

from cogvideox.core.errors import InputError


def set_value(data: Any, change: str) -> None:
    """Set one value of nested dictionaries and lists in place, "optimizer.lr=1e-4" or "stages.0.steps=10".

    InputError for what is not KEY=VALUE, or is not there.
    """
    where, equals, value = change.partition("=")
    *parents, last = where.split(".")
    if not equals or not last:
        raise InputError(f"--set {change}: not KEY=VALUE, such as optimizer.lr=1e-4")
    node = data
    for part in parents:
        if isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            node = node[_place(node, part, change)]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {change}: {value!r} is not a YAML value") from None
    node[last if isinstance(node, dict) else _place(node, last, change)] = parsed


def _place(node: Any, part: str, change: str) -> int:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    have = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    raise InputError(f"--set {change}: there is no {part!r} in {have}")
