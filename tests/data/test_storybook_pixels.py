"""Storybook's pixels: purity, sizes, ground truth, speed, and the command that writes clips."""

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cogvideox.cli.data import app
from cogvideox.data.manifest import read_manifest
from cogvideox.data.storybook import World, sprites
from cogvideox.data.storybook.cast import cast
from cogvideox.data.storybook.motion import view
from cogvideox.data.storybook.render import Renderer, place
from cogvideox.data.storybook.scenes import SCENES
from cogvideox.data.storybook.state import ACTIONS, AIR_ONLY, CAMERAS, RELATIONS, STYLES


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, float(np.mean((a.astype(float) - b.astype(float)) ** 2))))


def test_the_pack_holds_the_cast_within_16_megabytes():
    assert set(sprites.table()) == set(cast())
    files = list(sprites.PACK.iterdir())
    assert sum(len(f.read_bytes()) for f in files if f.is_file()) <= 16 * 2**20
    for name in cast():
        shape = sprites.sprite(name)
        assert max(shape.size) == 128
        assert shape.cells / shape.seconds == pytest.approx(16, rel=0.05)


def test_sprites_move():
    for name in ("cat", "bee", "fire", "taxi", "juggler"):
        shape, sheet = sprites.sprite(name), np.asarray(sprites.sheet(name), np.float32)
        cells = [
            sheet[y : y + shape.size[1], x : x + shape.size[0]]
            for x, y in map(shape.corner, range(shape.cells))
        ]
        assert np.mean([np.abs(a - b).mean() for a, b in itertools.pairwise(cells)]) > 0.5


def test_the_same_index_gives_the_same_pixels_in_any_order():
    world, again = World(seed=1), World(seed=1)
    forward = [world.clip(i, duration=2.0).render(3, 8, 48, 48) for i in range(6)]
    backward = [again.clip(i, duration=2.0).render(3, 8, 48, 48) for i in reversed(range(6))][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_part_of_a_clip_equals_the_whole():
    clip = World(seed=1).clip(3, duration=2.0)
    whole = clip.render(9, 8, 64, 64)
    np.testing.assert_array_equal(clip.render(4, 8, 64, 64, start=5 / 8), whole[5:])


def test_the_same_picture_at_every_resolution():
    world = World(seed=0)
    scores = []
    for i in range(24):
        clip = replace(world.clip(i, duration=2.0), style=None)
        large, small = clip.render(1, 8, 128, 128, start=1.0)[0], clip.render(1, 8, 64, 64, start=1.0)[0]
        scores.append(psnr(np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX)), small))
    assert min(scores) > 26
    assert np.median(scores) > 29


@pytest.mark.parametrize("style", STYLES)
def test_styles_change_the_picture_but_keep_it_at_every_resolution(style):
    clip = World().describe("cat", "walk right", "farm", seed=2, style=style)
    plain = replace(clip, style=None).render(1, 8, 128, 128, start=1.0)[0]
    large, small = clip.render(1, 8, 128, 128, start=1.0)[0], clip.render(1, 8, 64, 64, start=1.0)[0]
    assert psnr(plain, large) < 24
    assert psnr(np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX)), small) > 15


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_boxes_contain_the_sprite(angle):
    world = World(seed=0)
    for i in range(40):
        clip = world.clip(i, duration=2.0)
        actor = clip.actors[0]
        for moment in (0.3, 1.7):
            who = place(actor, moment, view(clip.camera, moment, 2.0), 128, 128)
            who = replace(who, angle=who.angle + angle)
            x, y, pixels = sprites.draw(
                who.name, who.cell, who.left, who.top, who.width, who.height, who.flip, who.angle
            )
            rows, columns = np.nonzero(pixels[..., 3] > 24)
            x0, y0, x1, y1 = who.box()
            assert x + columns.min() >= x0 - 1.5
            assert x + columns.max() + 1 <= x1 + 1.5
            assert y + rows.min() >= y0 - 1.5
            assert y + rows.max() + 1 <= y1 + 1.5
            if not who.angle:
                assert x + columns.min() <= x0 + 2.5
                assert y + rows.max() + 1 >= y1 - 2.5


def test_truth_is_plain_and_complete():
    clip = World(seed=0).clip(5, duration=2.0)
    truth = clip.truth(frames=5, fps=2, height=64, width=96)
    assert json.loads(json.dumps(truth)) == truth
    assert len(truth["boxes"]) == len(clip.actors) == len(truth["characters"]) == len(truth["speeds"])
    assert all(len(track) == 5 for track in truth["boxes"])
    for track in truth["boxes"]:
        for box in track:
            assert box is None or (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1)


def test_boxes_move_the_way_the_caption_says():
    world, checked = World(seed=0), 0
    for i in range(900):
        clip = world.clip(i, duration=2.0)
        move = clip.actors[0].moves[0]
        if clip.relation or not move.action.startswith(("move", "zigzag")) or len(clip.actors[0].moves) > 1:
            continue
        truth = clip.truth(frames=9, fps=4, height=64, width=64)
        vx, vy = truth["world_velocity"][0]
        where = move.action.split()[1]
        sideways = 0 if where in ("up", "down") else -1 if "left" in where else 1
        upright = -1 if "up" in where else 1 if "down" in where else 0
        assert sideways * vx > 0.02 or not sideways, (i, move)
        assert upright * vy > 0.02 or not upright, (i, move)
        caption = clip.short_caption()
        for word, wanted in (("left", sideways < 0), ("right", sideways > 0)):
            # "from left to right" names both sides; what counts is where it goes.
            told = caption.replace("from left to right", "right").replace("from right to left", "left")
            if clip.camera.kind == "static" and clip.actors[0].becomes is None:
                assert (word in told.split(".")[0].split()) == wanted or not sideways, caption
        checked += 1
    assert checked > 200


def test_speeds_match_their_words():
    world = World(seed=0, level="single")
    speeds = {"slowly": [], "": [], "quickly": []}
    for i in range(900):
        clip = world.clip(i, duration=2.0)
        move = clip.actors[0].moves[0]
        if move.action in ("move left", "move right"):
            speeds[move.speed].append(clip.truth(frames=9, fps=4, height=64, width=64)["speeds"][0])
    assert max(speeds["slowly"]) < min(speeds[""])
    assert max(speeds[""]) < min(speeds["quickly"])
    assert np.median(speeds["slowly"]) * 2 < np.median(speeds[""])
    assert np.median(speeds[""]) * 1.5 < np.median(speeds["quickly"])


def test_characters_are_large_and_in_the_picture():
    world = World(seed=0, level="single")
    sizes = []
    for i in range(400):
        clip = world.clip(i, duration=2.0)
        if clip.actors[0].moves[0].action.split()[0] in ("enter", "leave", "approach", "recede"):
            continue
        box = clip.truth(frames=3, fps=1, height=64, width=64)["boxes"][0][1]
        assert box is not None
        sizes.append(max(box[2] - box[0], box[3] - box[1]))
    assert np.median(sizes) > 0.38
    assert np.percentile(sizes, 2) > 0.2
    assert np.percentile(sizes, 98) < 0.85


@pytest.mark.parametrize("scene", list(SCENES))
def test_every_scene_has_texture_depth_and_variation(scene):
    clips = [World().describe("heart", "stay", scene, seed=s, duration=0.0) for s in range(2)]
    a, b = (replace(c, actors=()).render(1, 8, 64, 64)[0].astype(float) for c in clips)
    assert a.std() > 12
    assert np.abs(np.diff(a, axis=1)).mean() > 1.0
    assert np.abs(a - b).mean() > 1.5


def test_scenes_can_be_told_apart():
    means = {}
    for scene in SCENES:
        clip = World().describe("heart", "stay", scene, seed=1, duration=0.0)
        means[scene] = replace(clip, actors=()).render(1, 8, 32, 32)[0].astype(float)
    names = list(means)
    gaps = [np.abs(means[a] - means[b]).mean() for i, a in enumerate(names) for b in names[:i]]
    assert min(gaps) > 8


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_moves_as_named(action):
    who, where = ("fish", "underwater") if action in AIR_ONLY else ("cat", "meadow")
    clip = World().describe(who, action, where, seed=1, duration=2.0)
    frames = clip.render(9, 4, 48, 48)
    assert frames.shape == (9, 48, 48, 3)
    assert np.abs(frames[0].astype(int) - frames[4]).mean() > 0.3
    truth = clip.truth(9, 4, 48, 48)
    first, last = truth["boxes"][0][0], truth["boxes"][0][-1]
    if action.startswith("enter"):
        assert first is None
        assert last is not None
    if action.startswith("leave"):
        assert last is None
    if action in ("approach", "recede"):
        growth = (last[2] - last[0]) / (first[2] - first[0])
        assert growth > 1.8 if action == "approach" else growth < 0.6


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_renders_and_holds(relation):
    pair = ("bee", "cow") if relation == "above" else ("cat", "dog")
    clip = World().describe(pair[0], None, "meadow", relation=relation, other=pair[1], seed=4, duration=2.0)
    assert clip.render(3, 1.5, 48, 64).shape == (3, 48, 64, 3)
    truth = clip.truth(17, 8, 64, 64)
    a, b = (np.asarray([box or [np.nan] * 4 for box in track]) for track in truth["boxes"])
    x, y = (np.nanmean([t[:, 0] + t[:, 2], t[:, 1] + t[:, 3]], axis=1) / 2 for t in (a, b))
    if relation == "left of":
        assert x[0] < y[0]
    if relation == "right of":
        assert x[0] > y[0]
    if relation == "above":
        assert x[1] < y[1]
    if relation == "chases":
        way = np.sign(truth["world_velocity"][0][0])
        assert way * (y[0] - x[0]) > 0.1
        assert way == np.sign(truth["world_velocity"][1][0])
    if relation == "jumps over":
        assert a[:, 3].min() < b[8, 1] + 0.03
        assert np.sign(a[0, 0] - b[0, 0]) != np.sign(a[-1, 0] - b[-1, 0])


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_camera_renders(camera):
    action = "move right" if camera == "follow" else "stay"
    clip = World().describe("horse", action, "farm", camera=camera, seed=1, duration=2.0)
    frames = clip.render(3, 1.5, 48, 48).astype(int)
    moved = np.abs(frames[0] - frames[2]).mean()
    assert moved > 4 if camera != "static" else moved < 12


@pytest.mark.parametrize("event", ["nightfall", "rain", "snow"])
def test_every_event_shows(event):
    clip = World().describe("cow", "stay", "meadow", event=event, seed=1, duration=2.0)
    frames = clip.render(2, 0.5, 64, 64).astype(float)
    assert (
        frames[1].mean() < 0.65 * frames[0].mean()
        if event == "nightfall"
        else np.abs(frames[1] - frames[0]).mean() > 8
    )


def test_a_character_turns_into_another():
    clip = World().describe("cat", "stay", "room", becomes="dinosaur", seed=1, duration=2.0)
    frames = clip.render(2, 0.5, 64, 64).astype(int)
    green = frames[..., 1] - frames[..., 0]
    assert (green[1] > 60).sum() > (green[0] > 60).sum() + 40


@pytest.mark.parametrize(
    "size", [(16, 16), (64, 64), (128, 128), (48, 96), (96, 48), (480, 720), (270, 480), (65, 97)]
)
def test_all_sizes(size):
    clip = World(seed=0).clip(11, duration=1.0)
    assert clip.render(1, 8, *size).shape == (1, *size, 3)


@pytest.mark.parametrize(
    ("frames", "fps", "duration"), [(1, 8, 0.0), (5, 8, 0.5), (49, 8, 6.0), (81, 8, 10.0), (33, 30, 1.1)]
)
def test_all_durations(frames, fps, duration):
    clip = World(seed=0).clip(4, duration=duration)
    video = clip.render(frames, fps, 32, 32)
    assert video.shape == (frames, 32, 32, 3)
    assert video.dtype == np.uint8


@pytest.mark.parametrize(
    "arguments", [{"frames": 0}, {"fps": 0}, {"height": 8}, {"width": 9000}, {"start": -1.0}], ids=str
)
def test_illegal_pictures_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        World().clip(0).render(**arguments)


def test_the_action_is_complete_within_its_duration():
    """An actor that enters is inside at the end, for short and long clips."""
    for duration in (1.0, 2.0, 6.0):
        clip = World().describe("cat", "enter left", "meadow", duration=duration)
        boxes = clip.truth(frames=round(duration * 8) + 1, fps=8)["boxes"][0]
        assert boxes[0] is None
        assert boxes[-1] is not None
        assert boxes[-1][0] > 0.01


def test_rendering_is_fast():
    world = World(seed=0, level="single")
    clips = [world.clip(i, duration=2.0) for i in range(12)]
    for clip in clips:
        clip.render(1, 8, 64, 64)
    start = time.process_time()
    for clip in clips:
        clip.render(17, 8, 64, 64)
    assert 12 * 17 / (time.process_time() - start) > 150


def test_a_renderer_keeps_no_state():
    clip = World(seed=0).clip(8, duration=2.0)
    renderer = Renderer(clip, 48, 48)
    late = renderer.frame(1.5)
    renderer.frame(0.1)
    np.testing.assert_array_equal(renderer.frame(1.5), late)


def test_the_command_writes_clips_a_manifest_and_a_contact_sheet(tmp_path):
    out = tmp_path / "clips"
    command = [
        "storybook",
        "--count",
        "2",
        "--out",
        str(out),
        "--frames",
        "5",
        "--height",
        "48",
        "--width",
        "64",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    rows, clip = read_manifest(out / "manifest.jsonl"), World(seed=0).clip(0, duration=0.5)
    assert [row.source for row in rows] == ["000000.mp4", "000001.mp4"]
    assert all((out / row.source).stat().st_size > 0 for row in rows)
    assert rows[0].captions == {"short": (clip.short_caption(),), "dense": (clip.dense_caption(),)}
    assert rows[0].truth == json.loads(json.dumps(clip.truth(5, 8, 48, 64)))
    assert {p.name for p in out.iterdir()} == {
        "000000.mp4",
        "000001.mp4",
        "manifest.jsonl",
        "contact_sheet.png",
    }
    assert Image.open(out / "contact_sheet.png").size[0] > 500


def test_the_command_writes_pictures(tmp_path):
    done = CliRunner().invoke(app, ["storybook", "--count", "1", "--out", str(tmp_path), "--frames", "1"])
    assert done.exit_code == 0, done.output
    assert Image.open(tmp_path / "000000.png").size == (128, 128)
