"""Labels of clips: what a judge is taught is what is drawn."""

import numpy as np
import pytest

from cogvideox.data.storybook import World
from cogvideox.data.storybook.labels import SHORTEST, UNSURE, cells, labels, vocabulary

WORLD = World(seed=3)
NAMES = vocabulary()["character"]


@pytest.mark.parametrize(("action", "sign"), [("move left", -1), ("move right", 1)])
def test_one_who_moves_left_is_said_to_and_seen_to(action, sign):
    clip = WORLD.describe("dog", action, "meadow")
    (asked,) = labels(clip, 17).questions
    assert (asked.character, asked.motion, asked.first, asked.last) == ("dog", action, 0, 17)
    classes, _ = cells(clip, 17, 8, 12, 12)
    columns = [np.nonzero(frame == NAMES.index("dog"))[1].mean() for frame in classes]
    assert sign * (columns[-1] - columns[0]) > 1


def test_all_that_is_told_is_labelled():
    clip = WORLD.describe("cat", "move right", "snow", style="comic", camera="follow")
    found = labels(clip, 17)
    assert (found.characters, found.count, found.scene) == ({"cat"}, 1, "snow")
    assert (found.style, found.camera, found.events) == ("comic", "follow", frozenset())
    night = labels(WORLD.describe("cat", "jump", "city", event="nightfall"), 17)
    assert (night.events, night.style, night.camera) == ({"nightfall"}, "none", "static")


def test_moves_of_a_sequence_are_asked_for_in_their_time():
    clip = WORLD.describe("dog", "jump", "meadow", then="move right")
    first, second = labels(clip, 17).questions
    assert [(q.motion, q.first, q.last) for q in (first, second)] == [("jump", 0, 9), ("move right", 8, 17)]


def test_a_pair_is_asked_about_each_and_about_both():
    clip = WORLD.describe("tiger", None, "meadow", relation="chases", other="mouse", duration=2)
    one, other, both = labels(clip, 17).questions
    assert {one.motion, other.motion} <= {"move left", "move right"}
    assert (one.character, one.other, other.character, other.other) == ("tiger", "mouse", "mouse", "tiger")
    assert (both.character, both.other, both.relation, both.motion) == ("tiger", "mouse", "chases", None)


def test_three_of_a_kind_are_one_character():
    found = labels(WORLD.describe("cow", "stay", "farm", count=3), 17)
    assert (found.characters, found.count) == ({"cow"}, 3)
    assert [(q.motion, q.relation) for q in found.questions] == [("stay", None), (None, "together")]
    assert {q.other for q in found.questions} == {None}


def test_who_turns_into_another_is_each_in_its_time():
    clip = WORLD.describe("dog", "stay", "meadow", becomes="cat")
    found = labels(clip, 17)
    assert (found.characters, found.count, found.events) == ({"dog", "cat"}, 1, {"transform"})
    classes, _ = cells(clip, 17, 8, 12, 12)
    dog, cat = NAMES.index("dog"), NAMES.index("cat")
    assert (dog in classes[0], cat in classes[0]) == (True, False)
    assert (dog in classes[-1], cat in classes[-1]) == (False, True)
    for frame in (0, 16):
        moment, _ = cells(clip, 1, 8, 12, 12, frame / 8)
        assert np.array_equal(moment[0], classes[frame])


def test_nothing_is_asked_about_what_is_too_short_to_see():
    assert not labels(World().clip(0, duration=(SHORTEST - 2) / 8), SHORTEST - 1).questions


def test_cells_name_the_box_around_them():
    for index in range(30):
        clip = WORLD.clip(index, 2.0)
        classes, targets = cells(clip, 17, 8, 12, 20)
        boxes = clip.truth(17, 8, 96, 160)["boxes"]
        seen = [actor.character for actor in clip.actors]
        if clip.actors[0].becomes or len(set(seen)) != len(seen):
            continue
        for frame, row, column in np.argwhere((classes >= 0) & (classes < len(NAMES)))[::7]:
            x0, y0, x1, y1 = boxes[seen.index(NAMES[classes[frame, row, column]])][frame]
            dx, dy, wide, high = targets[frame, row, column]
            middle = (column + 0.5) / 12 + dx, (row + 0.5) / 12 + dy
            assert middle == pytest.approx(((x0 + x1) / 2 * 20 / 12, (y0 + y1) / 2), abs=1e-5)
            assert np.exp([wide, high]) == pytest.approx([(x1 - x0) * 20 / 12, y1 - y0], rel=1e-4)
        assert (classes == UNSURE).any()
