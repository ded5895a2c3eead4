"""From rows to samples: shapes from metadata, frames from files, every fault with its reason and its row."""

from dataclasses import replace

import numpy as np
import pytest

from cogvideox.core.errors import InputError
from cogvideox.data.manifest import Row
from cogvideox.data.mixture import Choice, held_out, repeats
from cogvideox.data.samples import Rule, pixels, select, subject
from cogvideox.data.storybook import World
from cogvideox.data.storybook.rows import Address, Part, rows
from cogvideox.data.video import write_video

PATCH = (1, 2, 2)


def row(name="a", frames=49, height=480, width=720, fps=16.0, source="a.mp4", **more):
    fps = fps if frames > 1 else None
    more = {"captions": {"short": (f"caption of {name}",)}} | more
    return Row(id=name, source=source, frames=frames, height=height, width=width, fps=fps, **more)


def sample(one, rule, fps=16.0):
    return Rule.parse(rule).apply(one, PATCH, fps)


@pytest.mark.parametrize(
    ("rule", "fps", "shape"),
    [
        ("49x256", 16, (49, 256, 384)),
        ("49x256", 8, (25, 256, 384)),  # 25 frames are seen at times 0, 1/8, ..., 3 s
        ("33", 16, (33, 480, 720)),
        ("17x128x128", 16, (17, 96, 144)),  # 128x192 has too many pixels, 104.5x156.8 sides that do not fit
        ("17x256x1000", 16, (17, 256, 384)),
        ("81x480", 16, (49, 480, 720)),  # nothing is repeated
        ("1x64", 16, (1, 64, 96)),
    ],
)
def test_shapes_are_planned_from_metadata(rule, fps, shape):
    found = sample(row(), rule, fps)
    assert (found.frames, found.height, found.width) == shape
    assert found.id == "a@{}x{}x{}".format(*shape)


@pytest.mark.parametrize(
    ("one", "rule", "fps", "reason"),
    [
        (row(frames=8), "49x256", 4, "has 2 frames at 4 per second, fewer than 5"),
        (row(height=240, width=320), "49x256", 16, "is 320x240, too small"),
        (row(height=15, width=320), "49", 16, "is 320x15, too small"),
        (row(rejected="text dominated"), "49", 16, "was rejected: text dominated"),
    ],
)
def test_what_is_left_out_is_counted_with_its_reason(one, rule, fps, reason):
    selection = select([one, row("b", source="b.mp4")], [Rule.parse(rule)], PATCH, fps if fps > 4 else 4.0)
    assert selection.left_out == {reason: 1}
    assert [s.row.id for s in selection.samples] == ["b"]


def test_rows_times_rules_are_samples_and_left_out():
    some = [row("a"), row("b", height=128, width=128), row("c", rejected="dull"), row("d", frames=1)]
    rules = [Rule.parse(text) for text in ("49x256", "17x64", "1x64")]
    selection = select(some, rules, PATCH, 16)
    assert len(some) * len(rules) == len(selection.samples) + selection.left_out.total()
    assert selection.left_out["is the same in two shapes"] == 1  # the picture, at 64, by two rules


@pytest.mark.parametrize("text", ["", "x", "49x", "0x64", "9x9x9x9", "-1", "49x256p"])
def test_wrong_rules_are_refused(text):
    with pytest.raises(InputError, match="a shape is FRAMES"):
        Rule.parse(text)


def counter(number, height=32, width=48):
    """A frame that shows its number in binary, in stripes wide enough to survive compression."""
    bits = [(number >> bit) & 1 for bit in range(6)]
    return np.repeat(np.array(bits, np.uint8) * 255, width // 6)[None, :, None].repeat(height, 0).repeat(3, 2)


def numbers(frames):
    bits = frames[:, 16, 4::8, 0] > 128
    return [sum(int(bit) << place for place, bit in enumerate(shown)) for shown in bits]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Good and faulty files with burnt-in frame numbers."""
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "good.mp4", [np.stack([counter(n) for n in range(40)])], 16)
    write_video(folder / "short.mp4", [np.stack([counter(n) for n in range(9)])], 16)
    write_video(folder / "fast.mp4", [np.stack([counter(n) for n in range(40)])], 32)
    (folder / "corrupt.mp4").write_bytes((folder / "good.mp4").read_bytes()[:200])
    (folder / "empty.mp4").touch()
    # A varying rate: frame 0 is shown for half a second, then 16 frames a second.
    durations = [500] + [62] * 39
    import PIL.Image

    stills = [PIL.Image.fromarray(counter(n)) for n in range(40)]
    stills[0].save(folder / "varying.webp", save_all=True, append_images=stills[1:], duration=durations,
                   lossless=True)  # fmt: skip
    return folder


def test_frames_are_those_seen_at_their_times(films):
    def seen(rule, fps, **more):
        one = row(frames=40, height=32, width=48, source="good.mp4", **more)
        return numbers(pixels(sample(one, rule, fps), films))

    assert seen("9", 16) == list(range(9))
    assert seen("9", 8) == list(range(0, 18, 2))
    assert seen("9", 8, span=(0.5, 2.5)) == list(range(8, 26, 2))
    assert seen("9", 16, span=(1.0, 2.0)) == list(range(16, 25))


def test_a_varying_rate_is_read_by_the_clock(films):
    one = row(frames=40, height=32, width=48, source="varying.webp", fps=40 / 2.918)
    seen = numbers(pixels(sample(one, "13", 8), films))
    assert seen[:5] == [0, 0, 0, 0, 1]  # 0, 1/8, 2/8, 3/8 and 4/8 s
    assert seen[5] == 3


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("short.mp4", "short.mp4 has 9 frames at 16 per second, its row promises 17"),
        ("corrupt.mp4", "cannot read"),
        ("empty.mp4", "cannot read"),
        ("none.mp4", "No such file"),
        ("fast.mp4", "fast.mp4 has 32 frames per second, its row says 16"),
    ],
)
def test_faulty_files_say_why(films, source, reason):
    with pytest.raises(InputError, match=reason):
        pixels(sample(row(frames=40, height=32, width=48, source=source), "17"), films)


def test_a_storybook_row_is_the_clip_at_its_address(tmp_path):
    part = Part(frames=9, height=32, width=48, clips=3, level="single")
    one = list(rows(part, seed=4))[2]
    clip = World(4, "train", "single").clip(2, duration=1.0)
    assert one.source == "storybook:1/4/train/single/2"
    assert one.captions["short"][0] == clip.short_caption(0)
    drawn = pixels(sample(one, "9", 8), tmp_path)
    np.testing.assert_array_equal(drawn, clip.render(frames=9, fps=8, height=32, width=48))
    shorter = pixels(sample(one, "5x64", 8), tmp_path)  # drawn at any size, the action as it was
    np.testing.assert_array_equal(shorter, clip.render(frames=5, fps=8, height=64, width=96))


@pytest.mark.parametrize(
    "source", ["storybook:0/4/train/single/2", "storybook:1/4/train/single", "storybook:1/4/train/single/2/x"]
)
def test_foreign_addresses_are_refused(source):
    with pytest.raises(InputError, match="storybook"):
        Address.of(source)


def test_the_subject_is_where_the_character_is_drawn(tmp_path):
    part = Part(frames=9, height=64, width=96, clips=8, level="single")
    for index, one in enumerate(rows(part, seed=4)):
        mask = subject(sample(one, "9", 8))
        assert mask.shape == (3, 8, 12)
        boxes = World(4, "train", "single").clip(index, duration=1.0).truth(9, 8, 64, 96)["boxes"][0]
        assert mask.any() == any(boxes)
        for frame, box in enumerate(boxes):
            if box:
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                assert mask[(frame + 3) // 4, int(y * 8), int(x * 12)]
        assert mask.mean() < 0.8


def test_a_closeup_is_a_part_of_a_larger_picture_with_the_character_in_its_middle(tmp_path):
    part = Part(frames=1, height=32, width=48, clips=5, level="single", closeup=True)
    for index, one in enumerate(rows(part, seed=0)):
        clip = World(0, "train", "single").clip(index, duration=0.0)
        whole = clip.render(frames=1, height=64, width=96)[0]
        shown = pixels(sample(one, "1", 8), tmp_path)[0]
        corners = [
            (y, x) for y in range(33) for x in range(49) if (whole[y : y + 32, x : x + 48] == shown).all()
        ]
        x0, y0, x1, y1 = clip.truth(frames=1, height=64, width=96)["boxes"][0][0]
        best = min(max(32 * (y0 + y1) - 16, 0), 32), min(max(48 * (x0 + x1) - 24, 0), 48)
        assert any(abs(y - best[0]) <= 1 and abs(x - best[1]) <= 1 for y, x in corners)


def test_the_subject_of_a_closeup_is_around_its_middle():
    part = Part(frames=1, height=64, width=128, clips=64, level="single", closeup=True)
    masks = np.stack([subject(sample(one, "1", 8))[0] for one in rows(part, seed=0)])
    assert masks[:, 3:5, 7:9].mean() > 0.9 > 0.8 > masks.mean() > 0.3


def test_a_closeup_of_a_clip_is_refused():
    with pytest.raises(InputError, match="of 1 frame and not 9"):
        Part(frames=9, height=32, width=32, clips=1, closeup=True)


# ------------------------------------------------------------------------------------------------ mixtures


def some_samples(count=40):
    made = [
        row(f"{n}", frames=1 if n % 4 == 0 else 33, labels=("odd",) if n % 2 else ("even",),
            scores={"look": float(n)}, source=f"{n // 2}.mp4")
        for n in range(count)
    ]  # fmt: skip
    return [sample(one, "33x256") for one in made]


def test_shares_are_those_of_an_epoch():
    samples = some_samples()
    wanted = repeats(samples, [Choice(share=3, label="odd"), Choice(share=1, frames=(1, 1))])
    pictures = sum(w for w, s in zip(wanted, samples, strict=True) if s.frames == 1)
    odd = sum(w for w, s in zip(wanted, samples, strict=True) if "odd" in s.row.labels)
    assert odd == pytest.approx(3 * pictures)
    assert max(wanted) == 1
    assert min(wanted) == 0


def test_thresholds_and_the_best():
    samples = some_samples()
    scores = [samples[i].row.scores["look"] for i in Choice(least={"look": 30}).of(samples)]
    assert scores == list(range(30, 40))
    best = Choice(label="even", best={"look": 0.2}).of(samples)
    assert [samples[i].row.scores["look"] for i in best] == [32, 34, 36, 38]
    samples[0] = replace(samples[0], row=replace(samples[0].row, scores={}))
    assert 0 not in Choice(least={"look": -1}).of(samples)


def test_pictures_need_no_score_of_motion():
    samples = some_samples()
    found = Choice(least={"look": 2, "motion": 0.1}).of(samples)
    assert found == [*range(4, 40, 4)]  # the pictures, for no clip has that score


def test_a_row_in_several_shapes_comes_in_the_largest_that_fits():
    rules = [Rule.parse(text) for text in ("33x64", "17x128", "33x256")]
    samples = select(
        [row("a"), row("b", height=720, width=480), row("c", frames=1)], rules, PATCH, 16
    ).samples
    taken = {
        largest: [samples[i].id for i in Choice(largest=largest).of(samples)]
        for largest in ((33, 64, 96), (17, 480, 720), (33, 256, 384), (81, 256, 256))
    }
    assert taken[33, 64, 96] == ["a@33x64x96", "b@33x96x64", "c@1x64x96"]
    assert taken[17, 480, 720] == ["a@17x128x192", "b@17x192x128", "c@1x256x384"]
    assert taken[33, 256, 384] == ["a@33x256x384", "b@33x384x256", "c@1x256x384"]
    assert taken[81, 256, 256] == ["a@17x128x192", "b@17x192x128", "c@1x128x192"]  # too many pixels


def test_choices_that_find_nothing_are_refused():
    with pytest.raises(InputError, match=r"label 'ood' .did you mean 'odd'"):
        repeats(some_samples(), [Choice(label="ood")])
    with pytest.raises(InputError, match="not there"):
        repeats(some_samples(), [Choice(frames=(100, 200))])


def test_held_out_sources_are_held_out_in_all_their_samples():
    samples = some_samples()
    kept = held_out(samples, 2)
    sources = {samples[i].row.source for i in kept}
    assert len(sources) == 2
    assert kept == [i for i, s in enumerate(samples) if s.row.source in sources]
    assert len({samples[i].row.source for i in held_out(samples, 1000)}) == 2  # one in ten of 20
    assert set(held_out(samples, 1)) < set(kept)


def test_rare_shapes_are_held_out_too():
    """20 clips among 2,000 images: by hash alone none of the clips would be expected among four."""
    shown = [(f"i{n}", 1) for n in range(2000)] + [(f"c{n}", 17) for n in range(20)] + [("lone", 81)]
    samples = [sample(row(name, frames=frames, source=name), "81x128") for name, frames in shown]
    kept = [samples[i].frames for i in held_out(samples, 4)]
    assert sorted(kept) == [1, 1, 17, 17]
    assert 17 in {samples[i].frames for i in held_out(samples, 2)}
