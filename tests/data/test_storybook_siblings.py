"""Families of clips that differ in one or two things."""

from itertools import combinations

import pytest

from cogvideox.data.storybook.siblings import siblings, story
from cogvideox.data.storybook.world import World

WORLD = World(3)


@pytest.fixture(scope="module")
def families():
    return [siblings(WORLD, index, 8) for index in range(60)]


def told(clip):
    """Actions, style, camera, events and relation of a clip."""
    acts = [(a.character, a.becomes, [(m.action, m.speed) for m in a.moves]) for a in clip.actors]
    events = [event.kind for event in clip.events]
    return str(acts), clip.style, clip.camera.kind, str(events), clip.relation and clip.relation.kind


def test_a_family_is_one_character_in_one_scene_in_one_look(families):
    for family in families:
        assert set.intersection(*({a.character for a in clip.actors} for clip in family))
        assert len({(clip.setting.scene, clip.setting.look, clip.duration) for clip in family}) == 1


def test_families_show_all_that_clips_can_show(families):
    clips = [clip for family in families for clip in family]
    assert {clip.duration for clip in clips} == {0.0, 2.0}
    assert {len(clip.actors) for clip in clips} == {1, 2, 3}
    kinds = {clip.relation.kind for clip in clips if clip.relation}
    assert {"left of", "together", "meets"} <= kinds
    assert {event.kind for clip in clips for event in clip.events} >= {"nightfall", "transform"}
    assert {clip.camera.kind for clip in clips} >= {"zoom in", "zoom out", "follow"}


def test_no_two_of_a_family_have_one_story(families):
    assert sum(len(family) == 8 for family in families) > 50
    for family in families:
        assert len({told(clip) for clip in family}) == len({story(clip) for clip in family}) == len(family)


def test_left_of_one_is_right_of_the_other():
    asked = [("cat", "left of", "dog"), ("dog", "right of", "cat"), ("dog", "left of", "cat")]
    one, same, other = (
        WORLD.describe(who, scene="meadow", relation=kind, other=mate, duration=0.0)
        for who, kind, mate in asked
    )
    assert story(one) == story(same) != story(other)


def test_pairs_differ_in_one_thing_alone(families):
    """Each of action, style, camera and event is all that tells some pair apart."""
    alone = set()
    for family in families:
        for one, other in combinations(map(told, family), 2):
            differ = [n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
            alone |= {differ[0]} if len(differ) == 1 else set()
    assert {0, 1, 2, 3} <= alone


def test_families_are_of_the_split_and_always_the_same(families):
    assert all(WORLD.belongs(clip) for family in families for clip in family)
    assert siblings(World(3), 7, 8) == families[7]
    assert siblings(World(4), 7, 8) != families[7]
