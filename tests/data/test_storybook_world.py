"""Storybook's states: purity, splits, motion, captions. No pixels."""

import re
from collections import Counter

import numpy as np
import pytest

from cogvideox.core.errors import InputError
from cogvideox.data.storybook import World
from cogvideox.data.storybook.cast import cast
from cogvideox.data.storybook.motion import pose
from cogvideox.data.storybook.naming import action_named
from cogvideox.data.storybook.scenes import SCENES
from cogvideox.data.storybook.state import ACTIONS, CAMERAS, EVENTS, RELATIONS, STYLES
from cogvideox.data.storybook.words import base, gerund, plural

FORBIDDEN = re.compile(r"\b(video|clip|footage|image|frame)s?\b", re.IGNORECASE)
MOTION = re.compile(
    r"\b(walks?|runs?|flies|fly|drives?|swims?|jumps?|bounces?|spins?|moves?|moving|then|camera|view|enters?|closer"
    r"|leaves to|starts|ends|drifts?|rising|falling|\w+ing (left|right|to|up|down|in|out))\b",
    re.IGNORECASE,
)
DURATIONS = (None, 0.0, 0.5, 2.0, 2.0, 6.0, 10.0)


@pytest.fixture(scope="module")
def clips():
    """Clips of every kind and duration."""
    world = World(seed=0)
    return [world.clip(i, duration=DURATIONS[i % len(DURATIONS)]) for i in range(4000)]


def test_the_cast_is_large_and_mixed():
    kinds = Counter(who.kind for who in cast().values())
    assert sum(kinds.values()) >= 96
    assert kinds["animal"] >= 48
    assert kinds["vehicle"] >= 20
    assert kinds["person"] >= 20
    assert kinds["thing"] >= 8
    nouns = [noun for who in cast().values() for noun in who.nouns]
    assert len(nouns) == len(set(nouns))
    assert len(SCENES) >= 16
    tags = {tag for where in SCENES.values() for tag in where.tags}
    assert all(who.home <= tags for who in cast().values())


def test_a_clip_is_a_pure_function_of_its_key():
    first, second = World(seed=3), World(seed=3)
    forward = [first.clip(i, duration=2.0) for i in range(20)]
    backward = [second.clip(i, duration=2.0) for i in reversed(range(20))][::-1]
    assert forward == backward
    assert [c.caption for c in forward] == [c.caption for c in backward]
    assert forward != [World(seed=4).clip(i, duration=2.0) for i in range(20)]
    assert len({c.caption for c in forward}) == 20


def test_training_never_shows_a_heldout_triple():
    world = World(seed=0)
    assert len(world.heldout) > 500
    seen = Counter(t for i in range(20_000) for t in world.clip(i, duration=2.0).triples())
    assert not world.heldout & set(seen)
    # Every character, action and scene of the held-out set is still seen, only not together.
    for axis in range(3):
        assert {t[axis] for t in world.heldout} <= {t[axis] for t in seen}


@pytest.mark.parametrize("level", ["single", "full"])
def test_every_heldout_clip_shows_a_heldout_triple(level):
    world = World(seed=0, split="heldout", level=level)
    shown = [set(world.clip(i).triples()) & world.heldout for i in range(300)]
    assert all(shown)
    assert len(set().union(*shown)) > 100


def test_the_heldout_set_does_not_depend_on_the_seed():
    assert World(seed=1).heldout == World(seed=2, split="heldout").heldout


def test_single_level_is_one_character_and_nothing_else():
    world = World(seed=0, level="single")
    for i in range(500):
        clip = world.clip(i)
        assert len(clip.actors) == 1
        assert len([m for m in clip.actors[0].moves if m.action != "stay"]) <= 1
        assert clip.camera.kind == "static"
        assert not clip.events
        assert clip.style is None
        assert clip.relation is None
        assert 1 <= clip.duration <= 6


def test_everything_is_reached(clips):
    assert {a.character for c in clips for a in c.actors} == set(cast())
    assert {c.setting.scene for c in clips} == set(SCENES)
    assert {(c.setting.scene, c.setting.look) for c in clips} == {
        (s.name, look) for s in SCENES.values() for look, _ in s.looks
    }
    assert {m.action for c in clips for a in c.actors for m in a.moves} == set(ACTIONS)
    assert {m.speed for c in clips for a in c.actors for m in a.moves} == {"", "slowly", "quickly"}
    assert len(STYLES) >= 6
    assert {c.style for c in clips} == {None, *STYLES}
    assert {c.camera.kind for c in clips} == set(CAMERAS)
    assert {e.kind for c in clips for e in c.events} == set(EVENTS)
    assert {c.relation.kind for c in clips if c.relation} == set(RELATIONS)
    assert any(len(a.moves) == 2 for c in clips for a in c.actors)


def test_most_clips_are_single_and_most_characters_are_at_home(clips):
    assert np.mean([len(c.actors) == 1 for c in clips]) > 0.6
    home = [bool(cast()[c.actors[0].character].home & SCENES[c.setting.scene].tags) for c in clips]
    assert 0.7 < np.mean(home) < 0.95


def test_motion_has_no_jumps(clips):
    """Positions are continuous, also where one action follows another."""
    for clip in clips[:600]:
        for actor in clip.actors:
            times = np.arange(0, clip.duration, 0.01)
            path = [pose(actor, float(t), 1.0, 1.0) for t in times]
            places = np.asarray([(p.x, p.y - p.lift, p.scale) for p in path]).reshape(-1, 3)
            steps = np.abs(np.diff(places, axis=0)).sum(-1) if len(places) > 1 else np.zeros(1)
            assert steps.max(initial=0.0) < 0.06, (clip.index, actor)


def _side(move):
    return -1 if move.action.endswith("left") else 1 if move.action.endswith("right") else 0


def test_characters_look_where_they_go(clips):
    checked = 0
    for clip in clips:
        for actor in clip.actors:
            who, move = cast()[actor.character], actor.moves[0]
            if (
                who.facing not in ("left", "right")
                or not move.action.startswith(("move", "zigzag"))
                or not _side(move)
            ):
                continue
            middle = pose(actor, (move.start + move.end) / 2, 1.0, 1.0)
            looks = {"left": -1, "right": 1}[who.facing] * (-1 if middle.flip else 1)
            assert looks == _side(move), (clip.index, actor)
            checked += 1
    assert checked > 300


def test_still_pictures_are_told_without_motion():
    world = World(seed=0)
    for i in range(600):
        clip = world.clip(i, duration=0.0)
        assert {m.action for a in clip.actors for m in a.moves} == {"stay"}
        for text in (clip.caption, clip.short_caption(i), clip.dense_caption(i)):
            assert not MOTION.search(text), text
    assert world.clip(0, duration=0.1).duration == 0.0


def test_captions_keep_their_rules(clips):
    words: Counter[str] = Counter()
    lengths = []
    for clip in clips:
        short, dense = clip.short_caption(1), clip.dense_caption(1)
        for text in (short, dense, clip.caption):
            assert not FORBIDDEN.search(text), text
            assert len(text.split()) <= 100
            assert re.fullmatch(r"[A-Z][a-z0-9 ,\-]*\.( [A-Z][a-z0-9 ,\-]*\.)*", text), text
            assert "  " not in text
            words.update(re.findall(r"[a-z\-]+", text.lower()))
        assert len(short.split()) <= 40
        lengths.append(len(dense.split()))
    assert len(words) < 900
    assert 20 <= np.median(lengths) <= 50
    assert max(lengths) <= 60


def test_captions_are_paraphrased():
    clip = World(seed=0).clip(1, duration=2.0)
    assert len({clip.short_caption(k) for k in range(30)}) > 8
    assert len({clip.dense_caption(k) for k in range(30)}) > 15
    assert clip.dense_caption(5) == clip.dense_caption(5)


def test_captions_name_the_action_the_style_and_the_event(clips):
    for clip in clips[:2000]:
        text = clip.short_caption() + clip.dense_caption()
        actor = clip.actors[0]
        if clip.relation is None and _side(actor.moves[0]):
            assert ("left" if _side(actor.moves[0]) < 0 else "right") in clip.short_caption()
        if clip.style:
            assert clip.style.split()[0] in clip.short_caption().lower()
        if any(e.kind == "rain" for e in clip.events):
            assert "rain" in text
        if actor.becomes:
            assert any(noun in clip.short_caption() for noun in cast()[actor.becomes].nouns)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("walk right", "move right"),
        ("walks to the right", "move right"),
        ("flies from right to left", "move left"),
        ("moves diagonally up to the left", "move up-left"),
        ("swim down", "move down"),
        ("jumps up and down", "jump"),
        ("comes closer", "approach"),
        ("runs away", "recede"),
        ("walks back and forth", "pace"),
        ("enters from the left", "enter left"),
        ("flies out to the right", "leave right"),
        ("spins around", "spin"),
        ("circle", "circle"),
        ("zigzag_left", "zigzag left"),
        ("stands still", "stay"),
    ],
)
def test_phrases_name_actions(text, action):
    assert action_named(text) == action


def test_clips_to_order():
    world = World()
    clip = world.describe("cat", action="walk right", scene="meadow", seed=5, duration=2.0, style="sepia")
    told = {"action": "walks to the right", "scene": "in a meadow", "style": "Sepia"}
    assert clip == world.describe("ginger cat", **told, seed=5, duration=2.0)
    assert clip.triples() == [("cat", "move right", "meadow")]
    assert clip.style == "sepia"
    assert world.describe("bunny", "jump", "snow", then="move left").triples()[1] == (
        "rabbit",
        "move left",
        "snow",
    )
    pair = world.describe("cat", None, "room", relation="chases", other="mouse")
    assert pair.relation is not None
    assert pair.relation.kind == "chases"
    assert len(world.describe("duck", "swim left", "sea", count=3).actors) == 3
    assert world.describe("frog", "stay", "forest", becomes="wizard").actors[0].becomes == "wizard"
    assert world.describe("horse", "move left", "meadow", event="nightfall").events[0].kind == "nightfall"
    assert world.describe("tiger", "walk right", "forest", camera="follow").camera.kind == "follow"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"character": "caat"}, "nearest is 'cat'"),
        ({"scene": "medow"}, "nearest is 'meadow'"),
        ({"action": "teleport"}, "unknown Storybook action"),
        ({"action": "fly up"}, "cannot 'move up'"),
        ({"style": "cubism"}, "unknown Storybook style"),
        ({"camera": "pan lft"}, "nearest is 'pan left'"),
        ({"event": "rain", "scene": "room"}, "open sky"),
        ({"relation": "chases"}, "second character"),
        ({"relation": "jumps over", "other": "bee"}, "cannot be"),
        ({"count": 9}, "1 to 3"),
        ({"duration": -1.0}, "duration"),
        ({"then": "jump", "event": "rain"}, "one story"),
        ({"camera": "follow"}, "does not suit"),
        ({"duration": 0.0, "event": "rain"}, "still picture"),
        ({"look": "blue flowers"}, "look of 'meadow'"),
    ],
)
def test_impossible_orders_are_refused_in_one_line(arguments, message):
    order = {"character": "cat", "action": "stay", "scene": "meadow"} | arguments
    with pytest.raises(InputError, match=re.escape(message)) as error:
        World().describe(**order)
    assert "\n" not in str(error.value)


def test_worlds_refuse_unknown_names():
    with pytest.raises(ValueError, match="train, heldout"):
        World(split="test")
    with pytest.raises(ValueError, match="single, full"):
        World(level="easy")
    with pytest.raises(ValueError, match="index"):
        World().clip(-1)
    with pytest.raises(ValueError, match="duration"):
        World().clip(0, duration=float("nan"))


@pytest.mark.parametrize(
    ("verb", "plain", "ing"),
    [
        ("flies", "fly", "flying"),
        ("runs", "run", "running"),
        ("dashes", "dash", "dashing"),
        ("skis", "ski", "skiing"),
        ("races", "race", "racing"),
        ("hops along", "hop along", "hopping along"),
    ],
)
def test_verbs(verb, plain, ing):
    assert base(verb) == plain
    assert gerund(verb) == ing


def test_plurals():
    assert [plural(n) for n in ("mouse", "walking man", "bus", "fairy", "monkey", "tropical fish")] == [
        "mice", "walking men", "buses", "fairies", "monkeys", "tropical fish"]  # fmt: skip
