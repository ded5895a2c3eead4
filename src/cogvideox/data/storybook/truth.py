"""Ground truth of a clip: what is where in each frame, from the same geometry that draws it."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from cogvideox.data.storybook.cast import character
from cogvideox.data.storybook.motion import track, view
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


def _motion(
    clip: Clip, actor: Actor, times: list[float], height: float, width: float
) -> tuple[float, list[float]]:
    """Mean speed and velocity over the ground in short sides per second, without camera, hops and bobbing."""
    path = []
    for time in times:
        (x, y), seen = track(actor, time, width, height), view(clip.camera, time, clip.duration)
        path.append((x + seen.x * width * actor.rides, y + seen.y * height * actor.rides))
    if len(path) < 2:
        return 0.0, [0.0, 0.0]
    seconds = times[-1] - times[0]
    length = sum(math.dist(a, b) for a, b in itertools.pairwise(path))
    return length / seconds, [(b - a) / seconds for a, b in zip(path[0], path[-1], strict=True)]


def truth(clip: Clip, frames: int, fps: float, height: int, width: int, start: float = 0.0) -> dict[str, Any]:
    """Everything that is known about a rendering of a clip, as plain JSON values.

    `characters`: for each actor its name, kind and, after a transformation, `becomes`; `actions`: for each
    actor its list of {action, speed, start, end}; `boxes[actor][frame]`: [x0, y0, x1, y1] in fractions of
    the frame, clipped to it, or None outside; `speeds[actor]` and `world_velocity[actor]` (x, y; y down):
    mean over the ground in short sides per second, without the camera's movement; `velocity[actor]`: mean
    on the screen; then `camera`, `scene`, `look`, `events`, `style`, `relation`, `duration`, `captions`.
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
        seconds = max(1, frames - 1) / fps * unit
        velocities.append([(b - a) / seconds for a, b in zip(middles[0], middles[-1], strict=True)])
        speed, velocity = _motion(clip, actor, times, height / unit, width / unit)
        speeds.append(speed)
        worlds.append(velocity)
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
