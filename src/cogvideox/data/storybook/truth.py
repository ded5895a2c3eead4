"""Ground truth of a clip: what is where in each frame, from the same geometry that draws it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from cogvideox.data.storybook.cast import character
from cogvideox.data.storybook.motion import pose, view
from cogvideox.data.storybook.render import Placed, place
from cogvideox.data.storybook.scenes import scene
from cogvideox.data.storybook.state import Actor

if TYPE_CHECKING:
    from cogvideox.data.storybook.clip import Clip


def _normal(who: Placed, height: int, width: int) -> list[float] | None:
    """Visible part of a box in fractions of the frame (x0, y0, x1, y1), None outside the frame."""
    x0, y0, x1, y1 = who.box()
    box = [max(0.0, x0 / width), max(0.0, y0 / height), min(1.0, x1 / width), min(1.0, y1 / height)]
    return box if box[0] < box[2] and box[1] < box[3] else None


def _world_velocity(clip: Clip, actor: Actor, times: list[float], height: float, width: float) -> list[float]:
    """Mean velocity over the ground in short sides per second, without the camera's movement."""
    if len(times) < 2:
        return [0.0, 0.0]
    ends = []
    for time in (times[0], times[-1]):
        at, seen = pose(actor, time, width, height), view(clip.camera, time, clip.duration)
        ends.append((at.x + seen.x * width * actor.rides, at.y + seen.y * height * actor.rides))
    seconds = times[-1] - times[0]
    return [(b - a) / seconds for a, b in zip(*ends, strict=True)]


def truth(clip: Clip, frames: int, fps: float, height: int, width: int, start: float = 0.0) -> dict[str, Any]:
    """Everything that is known about a rendering of a clip, as plain JSON values.

    `characters`: for each actor its name, kind and, after a transformation, `becomes`; `actions`: for each
    actor its list of {action, speed, start, end}; `boxes[actor][frame]`: [x0, y0, x1, y1] in fractions of the
    frame, clipped to it, or None outside; `speeds[actor]`: mean speed of the box centre in short sides per
    second, with `velocity` (x, y; y down); then `camera`, `scene`, `look`, `events`, `style`, `relation`,
    `duration` and `captions`.
    """
    times = [start + k / fps for k in range(frames)]
    views = [view(clip.camera, t, clip.duration) for t in times]
    unit = min(height, width)
    characters, actions, boxes, speeds, velocities, worlds = [], [], [], [], [], []
    for actor in clip.actors:
        placed = [place(actor, t, v, height, width) for t, v in zip(times, views, strict=True)]
        characters.append(
            {"name": actor.character, "kind": character(actor.character).kind, "becomes": actor.becomes}
        )
        actions.append(
            [{"action": m.action, "speed": m.speed, "start": m.start, "end": m.end} for m in actor.moves]
        )
        boxes.append([_normal(p, height, width) for p in placed])
        middles = [(p.left + p.width / 2, p.top + p.height / 2) for p in placed]
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(middles)]
        seconds = max(1, len(steps)) / fps * unit
        speeds.append(sum((dx * dx + dy * dy) ** 0.5 for dx, dy in steps) / seconds)
        velocities.append([sum(s[0] for s in steps) / seconds, sum(s[1] for s in steps) / seconds])
        worlds.append(_world_velocity(clip, actor, times, height / unit, width / unit))
    where = scene(clip.setting.scene)
    return {
        "characters": characters,
        "actions": actions,
        "boxes": boxes,
        "speeds": speeds,
        "velocity": velocities,
        "world_velocity": worlds,
        "camera": {"kind": clip.camera.kind, "amount": clip.camera.amount},
        "scene": where.name,
        "look": dict(where.looks)[clip.setting.look],
        "events": [{"kind": e.kind, "start": e.start, "end": e.end} for e in clip.events],
        "style": clip.style,
        "relation": clip.relation.kind if clip.relation else None,
        "duration": clip.duration,
        "captions": {"short": clip.short_caption(), "dense": clip.dense_caption()},
    }
