"""A store of samples in memory, for tests of the loader and the objective."""

from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.core.shapes import latent_frames
from cogvideox.data.encoded import Content
from cogvideox.data.manifest import Row
from cogvideox.data.samples import Sample
from tests.tiny import prompt


def sample(name, frames=9, height=32, width=48, captions=None, **more):
    row = Row(
        id=name,
        source=f"{name}.mp4",
        frames=frames,
        height=height,
        width=width,
        fps=8.0 if frames > 1 else None,
        captions=captions or {"short": (prompt(5, seed=len(name)),)},
        **more,
    )
    return Sample(row, frames, height, width, 8.0)


class Shelf:
    """Contents are functions of the sample's name; `broken` names cannot be read."""

    def __init__(self, samples, *, channels=4, broken=(), texts=None, conditions=0):
        self.samples, self.channels, self.broken = tuple(samples), channels, set(broken)
        self.texts, self.conditions = texts, conditions

    def read(self, index, caption):
        one = self.samples[index]
        if one.row.id in self.broken:
            raise InputError(f"{one.row.source} is damaged")
        shape = self.channels, latent_frames(one.frames), one.height // 8, one.width // 8
        mean = rng.normal(shape, 0, "mean", one.id)
        images = rng.normal((self.conditions, shape[0], *shape[2:]), 0, "image", one.id)
        return Content(
            mean_CTHW=mean,
            std_CTHW=0.1 + 0 * mean,
            subject_THW=mean[0] > 0.5,
            conditions=images if self.conditions else None,
            texts=None if self.texts is None else rng.normal((1, *self.texts), 0, "text", one.id, caption),
        )


def mixed(count=60):
    """Images and clips of several shapes."""
    draw = rng.generator(0, "shapes")
    made = []
    for n in range(count):
        frames = 1 if draw.random() < 0.3 else int(draw.choice([5, 9, 17]))
        height, width = draw.choice([(32, 48), (48, 32), (32, 32), (64, 48)])
        labels = ("image",) if frames == 1 else ("clip",)
        made.append(sample(f"s{n}", frames, int(height), int(width), labels=labels))
    return made
