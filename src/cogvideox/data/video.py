"""Reading and writing of video and images: exact size and rate, every frame, metadata inside the file.

Frames are uint8 RGB arrays: (H, W, 3) for one, (T, H, W, 3) for a clip or a chunk of it. Writers take an
iterator of chunks, so that only GIF and WebP hold a clip whole (Pillow cannot do otherwise); files appear
under their name only when complete.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path

Frames = NDArray[np.uint8]
Metadata = dict[str, Any]
Size = tuple[int, int]
Writer = Callable[[Path, Iterator[Frames], float, str], int]

KEY = "cogvideox"  # name of the PNG text chunk
LONGEST_NAME = 200  # bytes; the files beside a result that is being made have longer names
_EXIF_DESCRIPTION, _EXIF_ORIENTATION = 0x010E, 0x0112
_BT601, _BT709, _LIMITED = 6, 1, 1  # codes of H.273
_UNREADABLE = (OSError, av.FFmpegError, SyntaxError, ValueError, StopIteration, Image.DecompressionBombError)
_PICTURES = (".gif", ".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Info:
    """What a file holds."""

    frames: int
    height: int
    width: int
    fps: float | None
    """Frames per second on average; None for single pictures and folders that do not say."""


@dataclass(frozen=True)
class Clip:
    """Frames as read from a file."""

    frames: Frames
    """(T, H, W, 3)"""
    fps: float | None
    """Frames per second; None when the source does not say."""


# ------------------------------------------------------------------------------------------------- pictures


def cover_crop(frame: Frames, height: int, width: int) -> Frames:
    """Resize to cover (bicubic) and cut out the centre: never stretched, no bars."""
    if frame.shape[:2] == (height, width):
        return frame
    fitted = ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def is_picture(path: str | Path) -> bool:
    """Whether the name is that of a picture file, animated or not."""
    return Path(path).suffix.lower() in _PICTURES


def read_image(path: str | Path) -> Frames:
    """A picture file as (H, W, 3), turned as its EXIF says. InputError when it is missing or no picture."""
    with _reading(path), Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def write_image(path: str | Path, frame: Frames, metadata: Metadata | None = None) -> None:
    """Write one frame as PNG, atomically."""
    with atomic_path(path) as partial:
        Image.fromarray(frame).save(partial, "PNG", pnginfo=_png_info(metadata))


# -------------------------------------------------------------------------------------------------- reading


def probe(path: str | Path) -> Info:
    """Frames, size and rate of anything `read_video` takes, without decoding. InputError: it holds no
    picture."""
    path = Path(path)
    with _reading(path):
        if path.is_dir():
            files = sorted(path.glob("*.png"))
            if not files:
                raise InputError(f"cannot read {path}: it holds no .png frames")
            height, width = read_image(files[0]).shape[:2]
            return Info(len(files), height, width, (read_metadata(path) or {}).get("fps"))
        if is_picture(path):
            with Image.open(path) as picture:
                count = getattr(picture, "n_frames", 1)
                length = sum(time for time, _ in _durations_of(picture))
                rate = (read_metadata(path) or {}).get("fps", count / length if length else None)
                height, width = picture.height, picture.width
                if picture.getexif().get(_EXIF_ORIENTATION, 1) > 4:  # lying on its side
                    height, width = width, height
                return Info(count, height, width, rate if count > 1 else None)
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"cannot read {path}: it has no video stream")
            stream = container.streams.video[0]
            turned = round(next(container.decode(stream)).rotation / 90) % 2
            container.seek(0)
            count = sum(packet.size > 0 for packet in container.demux(stream))
            rate = float(stream.average_rate) if stream.average_rate and count > 1 else None
            height, width = (stream.width, stream.height) if turned else (stream.height, stream.width)
            return Info(count, height, width, rate)


def read_video(
    path: str | Path,
    *,
    fps: float | None = None,
    limit: int | None = None,
    size: Size | None = None,
    start: float = 0.0,
) -> Clip:
    """A clip from a video file, an animated GIF or WebP, a picture, or a folder of PNG frames.

    It begins with the first frame that is `start` seconds after the file's first, or later. `fps` picks the
    frames that are seen at times 0, 1/fps, 2/fps, ...; `limit` stops after so many frames, and no more are
    decoded; `size` (height, width) passes every frame through `cover_crop`. InputError when
    the file is missing or holds no picture.
    """
    path = Path(path)
    source = probe(path).fps
    with _reading(path):
        timed = _timed_frames(path, source, start)
        frames: Iterator[Frames] = (frame for _, frame in timed)
        if fps is None or source is None:
            fps = source
        else:
            frames = retime(timed, fps)
        if size is not None:
            frames = (cover_crop(frame, *size) for frame in frames)
        picked = list(itertools.islice(frames, limit))
        if len({frame.shape for frame in picked}) != 1:
            raise InputError(f"cannot read {path}: its frames differ in size")
        return Clip(np.stack(picked), fps)


def _timed_frames(path: Path, fps: float | None, start: float) -> Iterator[tuple[float, Frames]]:
    """(time in seconds, frame) of every frame from `start` on, decoded one by one."""
    start -= 1e-6  # times of files are rounded
    if path.is_dir():
        for index, file in enumerate(sorted(path.glob("*.png"))):
            if index / (fps or 1) >= start:
                yield index / (fps or 1), read_image(file)
    elif is_picture(path):
        with Image.open(path) as picture:
            time = 0.0
            for duration, frame in _durations_of(picture):
                if time >= start:
                    yield time, np.asarray(frame.convert("RGB"))
                time += duration
    else:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            begin = float((stream.start_time or 0) * (stream.time_base or 0)) + start
            if start > 0:
                container.seek(int(begin * av.time_base))  # to the key frame before
            for decoded in container.decode(stream):
                if decoded.time is not None and decoded.time < begin:
                    continue
                turns = round(decoded.rotation / 90)
                pixels = np.asarray(decoded.to_ndarray(format="rgb24"), np.uint8)
                yield decoded.time or 0.0, np.rot90(pixels, turns) if turns else pixels


def _durations_of(picture: Image.Image) -> Iterator[tuple[float, Image.Image]]:
    """(seconds shown, picture at that frame) of an animation."""
    for index in range(getattr(picture, "n_frames", 1)):
        picture.seek(index)
        picture.load()  # WebP tells the duration only then
        yield float(picture.info.get("duration", 0)) / 1000, picture


def retime(timed: Iterable[tuple[float, Frames]], fps: float) -> Iterator[Frames]:
    """Of (time in seconds, frame) pairs, the frame seen at each multiple of 1/fps, from the first one on.

    Works for varying frame rates too.
    """
    start, count, gap = 0.0, 0, 1 / fps
    shown: tuple[float, Frames] | None = None
    for time, frame in timed:
        if shown is None:
            start = time
        else:
            gap = time - shown[0]
            while count / fps < time - start - 1e-6:
                yield shown[1]
                count += 1
        shown = time, frame
    # The last frame lasts like the one before.
    while shown is not None and count / fps < shown[0] + gap - start - 1e-6:
        yield shown[1]
        count += 1


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turns what libraries raise on missing, broken and foreign files into one line."""
    try:
        yield
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot read {path}: {reason}") from None


# ------------------------------------------------------------------------------------------------- metadata


def read_metadata(path: str | Path) -> Metadata | None:
    """What a writer of this module put into a file, None if nothing. InputError for unreadable files."""
    path = Path(path)
    if path.is_dir():
        file = next(iter(sorted(path.glob("*.png"))), None)
        return None if file is None else read_metadata(file)
    with _reading(path):
        return _parse(_embedded(path))


def _embedded(path: Path) -> str | bytes | None:
    if is_picture(path):
        with Image.open(path) as picture:
            if picture.format == "WEBP":
                return picture.getexif().get(_EXIF_DESCRIPTION)
            return picture.info.get("comment" if picture.format == "GIF" else KEY)
    with av.open(str(path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
        return tags.get("comment")


def _parse(text: str | bytes | None) -> Metadata | None:
    try:
        value = json.loads(text) if text else None
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


# -------------------------------------------------------------------------------------------------- writing


def write_video(
    path: str | Path, chunks: Iterable[Frames], fps: float, metadata: Metadata | None = None
) -> int:
    """Write chunks (t, H, W, 3) of one clip to `path` as they come; returns the number of frames.

    The suffix chooses the form (`WRITERS`). Luma stays above 40 dB PSNR, but for GIF with its 256 colours a
    frame; PNG is exact. Sizes are kept, odd ones too (4:4:4 then). GIF counts in 1/100 s and stores equal
    neighbours once, with their times added up. The file appears when it is complete; if `chunks` raises,
    nothing is left. InputError for unknown suffixes, before the first chunk is asked for.
    """
    path = Path(path)
    writer = WRITERS[check_target(path)]
    text = json.dumps({"fps": fps} | (metadata or {}))
    with atomic_path(path) as partial:
        return writer(partial, (frame for chunk in chunks for frame in chunk), fps, text)


def check_target(path: str | Path, frames: int = 1) -> str:
    """The suffix of a file that can be written there and holds so many frames. InputError: there is none."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise InputError(f"cannot write {path.name!r}: its suffix is none of {', '.join(WRITERS)}")
    if suffix == ".png" and frames > 1:
        raise InputError(f"{path.name} would hold one frame of {frames}; use .png-folder, or a video file")
    check_place(path, folder=suffix == ".png-folder")
    return suffix


def check_place(path: Path, *, folder: bool = False) -> None:
    """InputError unless a file (or a `folder`) can be put there, in place of what may be there already."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"the output folder {path.parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"the output folder {path.parent} cannot be written to")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"the file name {path.name[:20]}... is longer than {LONGEST_NAME} bytes")
    if path.exists() and path.is_dir() != folder:
        raise InputError(f"cannot write {path}: there is a {'file' if folder else 'folder'} of that name")


def _write_stream(codec: str, options: dict[str, str]) -> Writer:
    def write(path: Path, frames: Iterator[Frames], fps: float, text: str) -> int:
        flags = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
        with av.open(str(path), "w", options=flags) as container:
            container.metadata["comment"] = text
            stream, count = None, 0
            for frame in frames:
                stream = stream or _open_stream(container, codec, options, fps, frame.shape)
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(_yuv(picture, stream.pix_fmt)))
                count += 1
            if stream is not None:
                container.mux(stream.encode())
        return count

    return write


def _open_stream(
    container: Any, codec: str, options: dict[str, str], fps: float, shape: tuple[int, ...]
) -> Any:
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv444p" if shape[0] % 2 or shape[1] % 2 else "yuv420p"
    context = stream.codec_context
    context.colorspace, context.color_range = _BT601, _LIMITED
    context.color_primaries = context.color_trc = _BT709
    return stream


def _yuv(picture: av.VideoFrame, form: str) -> av.VideoFrame:
    return picture.reformat(format=form, dst_colorspace="ITU601", dst_color_range="MPEG")


def _write_gif(path: Path, frames: Iterator[Frames], fps: float, text: str) -> int:
    pictures = [Image.fromarray(frame).quantize(256) for frame in frames]
    times = _durations(len(pictures), fps, 100)
    pictures[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[10 * time for time in times],
        loop=0,
        comment=text.encode(),
        disposal=1,
    )
    return len(pictures)


def _write_webp(path: Path, frames: Iterator[Frames], fps: float, text: str) -> int:
    pictures = [Image.fromarray(frame) for frame in frames]
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = text
    pictures[0].save(
        path,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=_durations(len(pictures), fps, 1000),
        loop=0,
        quality=95,
        exif=exif,
    )
    return len(pictures)


def _durations(count: int, fps: float, units: int) -> list[int]:
    """Whole numbers of 1/units s that add up to the exact time, to the unit, after every frame."""
    ends = [round(index * units / fps) for index in range(count + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _write_folder(path: Path, frames: Iterator[Frames], fps: float, text: str) -> int:
    path.mkdir()
    count = 0
    for frame in frames:
        Image.fromarray(frame).save(path / f"{count:05d}.png", pnginfo=_png_info(json.loads(text)))
        count += 1
    return count


def _write_still(path: Path, frames: Iterator[Frames], fps: float, text: str) -> int:
    picture = next(frames)
    if next(frames, None) is not None:
        raise InputError(".png holds one frame; use .png-folder for a clip")
    Image.fromarray(picture).save(path, "PNG", pnginfo=_png_info(json.loads(text)))
    return 1


def _png_info(metadata: Metadata | None) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if metadata is not None:
        info.add_text(KEY, json.dumps(metadata))
    return info


# H.264 at a constant quantiser: luma above 42 dB whatever the content, noise included.
WRITERS: dict[str, Writer] = {
    ".mp4": _write_stream("libx264", {"qp": "12"}),
    ".webm": _write_stream("libvpx-vp9", {"crf": "6", "b": "0", "cpu-used": "4", "row-mt": "1"}),
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".png-folder": _write_folder,
    ".png": _write_still,
}
