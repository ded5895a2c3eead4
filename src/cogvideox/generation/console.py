"""What the terminal shows: the plan, progress with the time left, previews, the report. All on standard
error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cogvideox.data.video import Frames, write_image
from cogvideox.generation.plan import Plan, gib
from cogvideox.generation.watch import Advance, Watch

if TYPE_CHECKING:
    from cogvideox.generation.quality import Calibration
    from cogvideox.generation.request import Settings
    from cogvideox.generation.session import Planned, Session

PREVIEW_SECONDS = 4.0
_GIVEN = {"text": "text", "image": "text and image", "video": "text and clip", "extend": "text and beginning"}


class ConsoleWatch(Watch):
    """Shows stages with progress bars on a terminal, and one line for each note anywhere."""

    def __init__(self, console: Console | None = None, began: float | None = None) -> None:
        super().__init__(began)
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._preview: Path | None = None
        self._previewed = self._asked = time.monotonic()

    @contextlib.contextmanager
    def show(self, name: str, total: int) -> Iterator[Advance]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn() if total else TextColumn(""),
            TimeRemainingColumn() if total else TextColumn(""),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as progress:
            task = progress.add_task(name, total=total or None)
            yield lambda: progress.advance(task)

    def note(self, text: str) -> None:
        super().note(text)
        self.console.print(Text("note  ", style="yellow") + Text(text))

    def preview_to(self, path: Path) -> None:
        """Have previews, in this picture file; `end` removes it."""
        self._preview = path

    @property
    def wants_preview(self) -> bool:
        cost = self._previewed - self._asked  # never more than a tenth of the time
        if self._preview is None or time.monotonic() - self._previewed < max(PREVIEW_SECONDS, 10 * cost):
            return False
        self._asked = time.monotonic()
        return True

    def preview(self, frame: Frames) -> None:
        """Write the picture, and draw it in the terminal."""
        assert self._preview is not None
        write_image(self._preview, frame)
        if self.console.is_terminal:
            self.console.print(draw(frame, min(48, self.console.width)))
        self._previewed = time.monotonic()

    def end(self) -> None:
        """Remove the preview file."""
        if self._preview is not None:
            self._preview.unlink(missing_ok=True)


def draw(frame: Frames, columns: int) -> Text:
    """A picture in half blocks: two pixels a character."""
    height, width = frame.shape[:2]
    rows = max(1, round(height / width * columns / 2))
    small = Image.fromarray(frame).resize((columns, 2 * rows), Image.Resampling.BOX)
    text = Text()
    for row in range(rows):
        for column in range(columns):
            upper, lower = (
                "#{:02x}{:02x}{:02x}".format(*_rgb(small, column, 2 * row + half)) for half in (0, 1)
            )
            text.append("▀", style=f"{upper} on {lower}")
        text.append("\n")
    return text


def _rgb(picture: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    pixel = picture.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def plan_lines(session: Session, planned: Planned) -> list[str]:
    """What will be made, how, and what it takes."""
    settings, plan, shape = planned.settings, planned.plan, planned.settings.shape
    clip = f"{shape.width}x{shape.height}"
    if shape.frames == 1:
        clip = f"a picture of {clip}"
    else:
        clip = (
            f"{shape.frames} frames of {clip} at {settings.fps:g} fps = {shape.frames / settings.fps:.1f} s"
        )
    steps = f"{settings.steps - settings.start} steps of {settings.sampler}"
    windows = f" in {len(settings.windows)} windows" if len(settings.windows) > 1 else ""
    scale = f"guidance {settings.guidance:g} {settings.dynamic}" if settings.guided else "no guidance"
    where = f"{session.device.type} ({str(session.dtype).removeprefix('torch.')})"
    plan_line = [] if settings.plan is None else [quality_line(settings, session.calibration)]
    return [
        f"{session.model[0].name}: {_GIVEN[settings.task]} to {clip}",
        f"{steps}{windows}, {scale}, seed {settings.seed}, quality {settings.quality}",
        *plan_line,
        f"{plan.tokens:,} tokens; needs {gib(plan.peak)}, {gib(plan.free)} free; "
        f"about {duration(sum(planned.seconds.values()))} on {where}",
        *_savings(plan, session.device.type),
        *([] if session.world is None else [session.world.describe(settings.guided)]),
    ]


def _savings(plan: Plan, device: str) -> list[str]:
    """What is done because memory is short."""
    parts = (
        "the text encoder is freed before sampling" if device == "cpu" else "one part at a time on the device"
    )
    branches = "the branches of guidance run one after the other"
    ways = [way for way, needed in ((parts, plan.wait), (branches, plan.apart)) if needed]
    return ["to save memory, " + " and ".join(ways)] if ways else []


def quality_line(settings: Settings, calibration: Calibration | None) -> str:
    """What a step plan leaves out, and what that costs."""
    assert settings.plan is not None
    done = settings.plan.resolved(settings.start, settings.guided)
    blocks = f"{done.blocks.count('f')} of {len(done)} steps in full"
    guided = f", guidance in {len(done) - done.guidance.count('c')}" if settings.guided else ""
    price = "price not measured"
    if settings.price is not None and calibration is not None:
        price = f"measured: {settings.price} ({calibration.conditions})"
    return f"plan {settings.plan}: {blocks}{guided}; {price}"


def report_line(report: dict[str, float]) -> str:
    """How long everything took: the parts, then their sum."""
    parts = " + ".join(f"{name} {value:.1f}" for name, value in report.items())
    return f"{parts} = {sum(report.values()):.1f} s"


def duration(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
