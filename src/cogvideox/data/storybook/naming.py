"""From words to the names of the world: "walks to the right" is the action "move right"."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from cogvideox.core.errors import InputError
from cogvideox.data.storybook.state import ACTIONS
from cogvideox.data.storybook.words import GAITS, base

KINDS = {
    "stay": "stay stand stays stands wait waits hover hovers still idle",
    "jump": "jump jumps leap leaps",
    "bounce": "bounce bounces",
    "spin": "spin spins turn turns rotate rotates",
    "circle": "circle circles",
    "pace": "pace paces forth fro",
    "zigzag": "zigzag zigzags",
    "approach": "approach approaches closer",
    "recede": "recede recedes away",
    "enter": "enter enters in appears",
    "leave": "leave leaves out exits disappears",
    "move": "move moves go goes",
}
"""Words that name a kind of action."""


def unknown(kind: str, name: str, known: Sequence[str]) -> InputError:
    """The error for an unknown name."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)
    return InputError(f"unknown Storybook {kind} {name!r}; the nearest is {near[0]!r}")


def choose(kind: str, name: str, known: Sequence[str]) -> str:
    """`name` in its canonical spelling; ValueError names the nearest one."""
    wanted = " ".join(name.lower().replace("_", " ").split())
    if wanted not in known:
        raise unknown(kind, name, known)
    return wanted


def action_named(text: str) -> str:
    """The action that a phrase such as "walk right", "flies up and to the left" or "jumps" names."""
    wanted = " ".join(text.lower().replace("_", " ").split())
    if wanted in ACTIONS:
        return wanted
    tokens = wanted.replace("-", " ").split()
    verbs = {verb.split()[0] for gait in GAITS.values() for verb in (*gait.verbs, *gait.quick)}
    verbs |= {base(v) for v in verbs}
    upright = (
        "up"
        if {"up", "upward", "upwards"} & set(tokens)
        else "down"
        if {"down", "downward", "downwards"} & set(tokens)
        else ""
    )
    sideways = "left" if "left" in tokens else "right" if "right" in tokens else ""
    if "from" in tokens and "to" not in tokens:
        tokens = [t for t in tokens if t != "from"]
    if tokens[-3:-1] == ["right", "to"] or tokens[-3:-1] == ["left", "to"]:
        sideways = tokens[-1]
    kinds = [kind for kind, words in KINDS.items() if set(words.split()) & set(tokens)]
    if not kinds and verbs & set(tokens):
        kinds = ["move"]
    for kind in kinds:
        found = kind
        if kind in ("enter", "leave", "zigzag"):
            found = f"{kind} {sideways or 'right'}"
        elif kind == "move":
            found = "move " + "-".join(part for part in (upright, sideways) if part)
        if found in ACTIONS:
            return found
    raise unknown("action", text, ACTIONS)


def speed_named(text: str) -> str:
    """ "slowly", "quickly" or ""."""
    return choose("speed", text, ("", "slowly", "quickly"))
