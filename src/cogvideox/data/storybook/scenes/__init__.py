"""The scenes of Storybook: a table of places and the functions that paint them."""

from cogvideox.data.storybook.scenes.table import SCENES, Scene, scene

__all__ = ["SCENES", "Scene", "scene"]
