"""A request into a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cogvideox.data.video import Frames, write_video
from cogvideox.generation.media import LATENTS, Inputs, Latents
from cogvideox.generation.pipeline import Pipeline
from cogvideox.generation.request import Request
from cogvideox.generation.result import check_output
from cogvideox.generation.watch import Watch


def render(pipe: Pipeline, request: Request, inputs: Inputs, path: Path, watch: Watch) -> Latents:
    """Carry out a request into a file, which appears when it is complete.

    The latents are written before decoding begins and removed once the video is there: whatever stops the
    decoder, they are not lost (`keeps` says where they are). Of several processes the first one writes.
    """
    settings, _ = pipe.prepare(request, inputs)
    check_output(path, settings.shape.frames)
    made = pipe.latents(request, inputs, watch)
    if path.suffix == LATENTS:
        if pipe.first:
            made.save(path)
        return made
    kept = keeps(path)
    if pipe.first:
        made.save(kept)
    try:
        write(pipe, made, path, watch)
    except BaseException:
        watch.note(f"the latents are kept: cogvideox decode {kept}")
        raise
    if pipe.first:
        kept.unlink()
    return made


def write(pipe: Pipeline, latents: Latents, path: Path, watch: Watch) -> None:
    """Decode latents into a video file, chunk by chunk. Of several processes the first one writes."""

    def consume(chunks: Iterator[Frames]) -> int:
        if not pipe.first:
            return sum(len(chunk) for chunk in chunks)
        return write_video(path, chunks, latents.fps, dict(latents.metadata))

    pipe.decode_into(consume, latents, watch)


def keeps(path: Path) -> Path:
    """Where the latents of a result wait while it is decoded."""
    return path.with_name(path.name + LATENTS)
