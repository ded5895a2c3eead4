"""Words of Storybook captions: how each gait is told, and synonyms. Short lists: the vocabulary stays small."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gait:
    """A way of moving. Verbs are in the third person."""

    verbs: tuple[str, ...]
    quick: tuple[str, ...]
    """Verbs that already say "quickly"."""
    air: bool = False
    """Moves through the air."""
    water: bool = False
    """Belongs on or in water."""
    bob: float = 0.0
    """Height of each step over the character's size."""
    rhythm: float = 2.0
    """Steps per second."""


GAITS = {
    "walk": Gait(("walks", "strolls", "wanders"), ("runs", "races")),
    "stroll": Gait(("walks", "strolls"), ("hurries", "rushes")),
    "run": Gait(("runs", "jogs"), ("sprints", "races")),
    "gallop": Gait(("trots", "gallops"), ("gallops", "races")),
    "scurry": Gait(("scurries", "runs"), ("dashes", "races")),
    "hop": Gait(("hops", "hops along"), ("bounds", "races"), bob=0.22, rhythm=2.2),
    "bounce": Gait(("hops", "bounces along"), ("bounds", "races"), bob=0.26, rhythm=1.8),
    "waddle": Gait(("waddles", "walks"), ("hurries", "runs")),
    "crawl": Gait(("crawls", "creeps"), ("scuttles", "hurries")),
    "slither": Gait(("slithers", "glides"), ("darts", "races")),
    "roll": Gait(("rolls", "glides"), ("races", "rushes")),
    "slide": Gait(("slides", "glides"), ("rushes", "races")),
    "twist": Gait(("whirls", "twists"), ("rushes", "races")),
    "tumble": Gait(("tumbles", "cartwheels"), ("rushes", "races")),
    "dance": Gait(("dances", "steps"), ("whirls", "rushes")),
    "drive": Gait(("drives", "rolls"), ("speeds", "races")),
    "cycle": Gait(("rides", "cycles"), ("speeds", "races")),
    "ski": Gait(("skis", "glides"), ("speeds", "races")),
    "swim": Gait(("swims", "glides"), ("darts", "races"), water=True),
    "paddle": Gait(("swims", "paddles"), ("rushes", "races"), water=True),
    "sail": Gait(("sails", "glides"), ("speeds", "races"), water=True),
    "surf": Gait(("surfs", "glides"), ("speeds", "races"), water=True),
    "fly": Gait(("flies", "soars"), ("darts", "races"), air=True),
    "flutter": Gait(("flutters", "flies"), ("darts", "races"), air=True),
    "hover": Gait(("glides", "floats"), ("darts", "races"), air=True),
    "drift": Gait(("drifts", "floats"), ("rushes", "races"), air=True),
    "blast": Gait(("flies", "zooms"), ("shoots", "blasts"), air=True),
    "float": Gait(("floats", "drifts"), ("rushes", "races"), air=True),
}
