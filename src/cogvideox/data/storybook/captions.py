"""Captions from the state of a clip: a seeded grammar, so that the same state can be told in many ways.

Short captions say who does what and where. Dense ones add the look of the place, positions, the course of
events in order of time, the camera and the style. A still picture is told without words of motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cogvideox.core.rng import generator
from cogvideox.data.storybook.cast import Character, character
from cogvideox.data.storybook.motion import pose, view
from cogvideox.data.storybook.scenes import scene
from cogvideox.data.storybook.state import Actor, Move
from cogvideox.data.storybook.words import (
    CAMERA,
    EVENT,
    GAITS,
    IDLE,
    MOTION,
    MOVING_NOUNS,
    SETTING,
    SIDES,
    SPEED,
    STAY,
    STYLE,
    TURNS,
    article,
    base,
    gerund,
    plural,
    sentence,
)

if TYPE_CHECKING:
    from cogvideox.data.storybook.clip import Clip

LONGEST_DENSE = 52
"""Words of a dense caption beyond which details are left out."""
COUNTS = {1: "one", 2: "two", 3: "three"}


def caption(clip: Clip) -> str:
    """The clip's own caption, short or dense."""
    rng = generator(clip.seed, "storybook", "caption", clip.index)
    short, variant = rng.random() < 0.5, int(rng.integers(1 << 20))
    return short_caption(clip, variant) if short else dense_caption(clip, variant)


def short_caption(clip: Clip, variant: int = 0) -> str:
    """Who does what and where, in one or two sentences."""
    teller = Teller(clip, "short", variant)
    rng = teller.rng
    style = teller.style()
    if clip.relation is None and not clip.duration:
        text = f"{teller.name(0)} {teller.pick(('', 'is'))} {teller.place(0.25)} {style}"
    elif clip.relation is None and len(clip.actors[0].moves) == 1 and not clip.events and rng.random() < 0.3:
        does = teller.motion(clip.actors[0], clip.actors[0].moves[0], gerund)
        text = f"{teller.name(0)} {does} {teller.place(0.25)} {style}"
    else:
        text = f"{teller.main()} {teller.place(0.25)} {style}"
    parts = [sentence(text), *teller.course()]
    if clip.camera.kind != "static" and rng.random() < 0.6:
        parts.append(teller.camera())
    return " ".join(parts)


def dense_caption(clip: Clip, variant: int = 0) -> str:
    """Everything worth telling, in order of time."""
    teller = Teller(clip, "dense", variant)
    rng = teller.rng
    place = teller.place(0.85)
    opening = f"{teller.main()} {place}"
    if rng.random() < 0.2:
        bare = teller.still and clip.relation is None
        opening = f"{place}, there is {teller.name(0)}" if bare else f"{place}, {teller.main()}"
    needed = [sentence(opening)]
    setting, detail, moving = teller.setting()
    extras = [setting] if rng.random() < 0.6 else []
    course = teller.course()
    where = teller.position()
    tail = []
    if clip.camera.kind != "static" or (clip.duration and rng.random() < 0.25):
        tail.append(teller.camera())
    if clip.style:
        drawn = teller.pick(("everything is shown", "it is all drawn", "the picture is made"))
        tail.append(sentence(f"{drawn} {teller.style()}"))
    final = [detail if rng.random() < 0.5 or not moving else moving] if rng.random() < 0.6 else []
    parts = [p for p in (*needed, *extras, *where, *course, *final, *tail) if p]
    for spare in (final, extras, where):
        if sum(len(p.split()) for p in parts) > LONGEST_DENSE:
            parts = [p for p in parts if p not in spare]
    return " ".join(parts)


class Teller:
    """Chooses the words for one caption; names stay the same within it."""

    def __init__(self, clip: Clip, form: str, variant: int) -> None:
        self.clip = clip
        self.rng = generator(clip.seed, "storybook", form, clip.index, variant)
        self.still = clip.duration <= 0
        self.cast = [character(a.character) for a in clip.actors]
        self.nouns = [self._noun(who) for who in self.cast]

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def _noun(self, who: Character) -> str:
        if self.rng.random() < 0.45:
            return self._calm(who, who.nouns[:1])
        return self._calm(who, who.nouns)

    def _calm(self, who: Character, nouns: Sequence[str]) -> str:
        """A name; for a still picture one that says nothing of motion."""
        if self.still:
            nouns = [n for n in nouns if not MOVING_NOUNS & set(n.split())] or [n for n in who.nouns[:1]]
        return self.pick(nouns)

    def name(self, k: int) -> str:
        """The actor as it is first mentioned; groups are counted."""
        relation = self.clip.relation
        if relation and relation.kind == "together" and len({who.name for who in self.cast}) == 1:
            return f"{COUNTS[relation.count]} {plural(self.cast[0].nouns[0])}"
        return article(self.nouns[k])

    def it(self) -> str:
        """The actor, or the group, mentioned again."""
        if len(self.clip.actors) > 1:
            return "they"
        who = self.cast[0]
        return f"the {who.nouns[0]}" if who.kind == "person" else "it"

    # ---- motion ------------------------------------------------------------------------------------------

    def motion(self, actor: Actor, move: Move, form: object = None) -> str:
        """What an actor does, with its verb in the third person or in another form (`base`, `gerund`)."""
        verb, _, rest = self._phrase(actor, move).partition("|")
        if form is not None:
            assert callable(form)
            verb = form(verb)
        return f"{verb} {rest}"

    def _phrase(self, actor: Actor, move: Move) -> str:
        who, action = character(actor.character), move.action
        gait = GAITS[who.gait]
        if action == "stay":
            if self.still:
                return "is|"
            if who.name in IDLE and self.rng.random() < 0.7:
                return IDLE[who.name]
            return self.pick(STAY[actor.mode])
        kind, _, side = action.partition(" ")
        verb, adverb = self.pick(gait.verbs), ""
        if move.speed == "quickly" and self.rng.random() < 0.4:
            verb = self.pick(gait.quick)
        elif move.speed:
            adverb = self.pick(SPEED[move.speed])
        if kind == "move":
            text = f"{verb}|{self.pick(SIDES[side])}"
        else:
            if kind == "jump" and move.hops > 1:
                kind = "jumps"
            text = self.pick(MOTION[kind]).format(
                v=verb, edge=side, side=self.pick(SIDES[side][:1]) if side else ""
            )
        if not adverb:
            return text
        verb, _, rest = text.partition("|")
        if len(adverb.split()) > 1 or self.rng.random() < 0.3 or " " in verb:
            return f"{verb}|{rest} {adverb}"
        return f"{verb}|{adverb} {rest}"

    def main(self) -> str:
        """Who does what at first."""
        if self.clip.relation:
            return self._related(self.clip.relation.kind)
        actor = self.clip.actors[0]
        return f"{self.name(0)} {self.motion(actor, actor.moves[0])}"

    def _related(self, kind: str) -> str:
        a, b = self.name(0), self.name(min(1, len(self.cast) - 1))
        actor = self.clip.actors[0]
        move = actor.moves[0]
        side = move.action.split()[-1] if move.action.startswith("move") else ""
        if kind == "together":
            both = a if a.split()[0] in COUNTS.values() else f"{a} and {b}"
            text = "are|" if self.still else self._phrase(actor, move)
            verb, _, rest = text.partition("|")
            close = self.pick(("together", "side by side"))
            return f"{both} {'are' if self.still else base(verb)} {rest} {close}"
        if kind in ("left of", "right of"):
            return f"{a} {self.motion(actor, move)} {self.pick(('to the', 'on the'))} {kind} {b}"
        if kind in ("above", "in front of"):
            return f"{a} {self.motion(actor, move)} {kind} {b}"
        if kind == "chases":
            verb = self.pick(("chases", "runs after", "follows"))
            adverb = self.pick(SPEED["quickly"]) if move.speed == "quickly" else ""
            return f"{a} {verb} {b} {self.pick(SIDES[side][:1])} {adverb}"
        if kind == "meets":
            ways = (
                f"{a} from the {_other(side)} and {b} from the {side} meet in the middle",
                f"{a} meets {b}",
                f"{a} and {b} come together and meet",
            )
            return self.pick(ways)
        if kind == "passes":
            first = f"{a} going {side} passes {b} going {_other(side)}"
            return self.pick((first, f"{a} moves to the {side} and {b} moves to the {_other(side)}"))
        if kind == "jumps over":
            way = "right" if move.b.x > move.a.x else "left"
            return f"{a} {self.pick(('jumps over', 'leaps over'))} {b} {self.pick(('', f'to the {way}'))}"
        verb = self.pick(GAITS[self.cast[0].gait].verbs)
        return f"{a} {verb} {self.pick(('around', 'in circles around'))} {b}"

    # ---- the rest ----------------------------------------------------------------------------------------

    def place(self, look: float) -> str:
        """Where it is; with the scene's look at a given chance."""
        where = scene(self.clip.setting.scene)
        noun = where.nouns[0] if self.rng.random() < 0.4 else self.pick(where.nouns)
        phrase = dict(where.looks)[self.clip.setting.look]
        if self.still and phrase == "while snow is falling":
            phrase = "with white snowflakes"
        return f"{noun} {phrase}" if self.rng.random() < look else noun

    def style(self) -> str:
        """The style as a phrase, "" for none."""
        return self.pick(STYLE[self.clip.style]) if self.clip.style else ""

    def course(self) -> list[str]:
        """What happens after the first action, in order of time."""
        clip, said = self.clip, []
        actor = clip.actors[0]
        if clip.relation is None:
            for move in actor.moves[1:]:
                said.append(
                    sentence(
                        f"{self.pick(('then', 'after that', 'next'))} {self.it()} {self.motion(actor, move)}"
                    )
                )
        if actor.becomes:
            new = character(actor.becomes)
            turns = f"{self.pick(('then', 'suddenly'))} {self.it()} {self.pick(TURNS)}"
            said.append(sentence(f"{turns} {article(self._noun(new))}"))
        for event in clip.events:
            if event.kind in EVENT:
                said.append(
                    sentence(f"{self.pick(('', 'then', 'meanwhile'))} {self.pick(EVENT[event.kind])}")
                )
        return said

    def camera(self) -> str:
        """How the view moves."""
        who = "them" if len(self.clip.actors) > 1 else self.it()
        return sentence(self.pick(CAMERA[self.clip.camera.kind]).format(it=who))

    def setting(self) -> tuple[str, str, str]:
        """Sentences about the scene: general, detail, what moves ("" if nothing does or nothing may)."""
        general, more = SETTING[self.clip.setting.scene]
        detail, _, moving = more.partition("|")
        changed = any(e.kind in EVENT for e in self.clip.events)
        if self.clip.style in ("black and white", "sepia", "pencil sketch", "neon") or changed:
            return "", "", ""
        return general, detail, "" if self.still else moving

    def position(self) -> list[str]:
        """Where a single actor begins and ends, or which way it looks."""
        clip = self.clip
        if len(clip.actors) > 1:
            return []
        actor, move, it = clip.actors[0], clip.actors[0].moves[0], self.it()
        kind = move.action.split()[0]
        if kind in ("approach", "recede"):
            first, last = ("small", "large") if kind == "approach" else ("large", "small")
            return [sentence(f"{it} looks {first} at first and {last} at the end")]
        if kind in ("enter", "leave") and len(actor.moves) == 1:
            return [sentence("at first nobody is there" if kind == "enter" else "at the end nobody is there")]
        start, end = self._third(actor, 0.0), self._third(actor, clip.duration)
        if kind in ("move", "zigzag") and len(actor.moves) == 1 and clip.camera.kind == "static":
            if move.action in ("move up", "move down"):
                ends = ("near the bottom", "near the top")
                start, end = ends if move.action == "move up" else ends[::-1]
            return [sentence(f"{it} starts {start} and ends {end}")] if start != end else []
        if kind == "stay" and len(actor.moves) == 1 and clip.camera.kind == "static":
            facing = ""
            if self.cast[0].facing in ("left", "right"):
                facing = f"and faces {'right' if move.face > 0 else 'left'}"
            return [sentence(f"{it} is {start} of the picture {facing}")]
        return []

    def _third(self, actor: Actor, time: float) -> str:
        at = pose(actor, time, 1.0, 1.0)
        x = at.x - (0.0 if actor.rides else view(self.clip.camera, time, self.clip.duration).x)
        return "on the left side" if x < 0.38 else "on the right side" if x > 0.62 else "in the middle"


def _other(side: str) -> str:
    return "left" if side == "right" else "right"


__all__ = ["Teller", "caption", "dense_caption", "short_caption"]
