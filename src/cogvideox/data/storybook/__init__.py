"""Storybook: a synthetic world of animated characters, with exact captions and ground truth.

world = World(seed=0, split="train", level="full")
clip = world.clip(7, duration=2.0)
frames = clip.render(frames=17, fps=8, height=128, width=128)      # uint8 (T, H, W, 3)
print(clip.caption, clip.truth(frames=17)["boxes"])
"""

from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.world import World

__all__ = ["Clip", "World"]
