"""Families of clips that differ in one or two things."""

from itertools import combinations

import pytest

from cogvideox.data.storybook.siblings import siblings
from cogvideox.data.storybook.world import World

WORLD = World(3)
FAMILIES = [siblings(WORLD, index, 8) for index in range(40)]


def told(clip):
    """What a clip tells: actions, style, camera, events, relation."""
    acts = [(a.character, a.becomes, [(m.action, m.speed) for m in a.moves]) for a in clip.actors]
    events = [event.kind for event in clip.events]
    return str(acts), clip.style, clip.camera.kind, str(events), clip.relation and clip.relation.kind


def test_a_family_is_one_character_in_one_scene():
    for family in FAMILIES:
        (who,) = set.intersection(*({a.character for a in clip.actors} for clip in family))
        assert len({clip.setting.scene for clip in family}) == 1
        assert any(len(clip.actors) == 1 for clip in family), who


def test_no_two_of_a_family_tell_the_same():
    for family in FAMILIES:
        assert len({told(clip) for clip in family}) == len(family) == 8


def test_many_pairs_differ_in_one_thing_alone():
    """Each of style, camera, action and event is all that tells some pair apart."""
    alone = set()
    for family in FAMILIES:
        for one, other in combinations(map(told, family), 2):
            if len(differ := [n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]) == 1:
                alone.add(differ[0])
    assert {0, 1} <= alone


def test_families_are_of_the_split_and_always_the_same():
    assert all(WORLD.belongs(clip) for family in FAMILIES for clip in family)
    assert siblings(World(3), 7, 8) == FAMILIES[7]
    assert siblings(World(4), 7, 8) != FAMILIES[7]


@pytest.mark.parametrize("index", range(3))
def test_captions_of_a_family_differ(index):
    captions = [clip.short_caption(0) for clip in FAMILIES[index]]
    assert len(set(captions)) == len(captions)
