"""The judge's network: shapes, lengths, and answers that depend only on what they are asked of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cogvideox.models.judge import model as module
from cogvideox.models.judge.eye import JudgeSpec, fit, flow
from cogvideox.models.judge.model import JudgeNet
from cogvideox.models.judge.timeline import OverTime, Questions

ANSWERS = {"character": 5, "scene": 3, "style": 2, "camera": 4, "event": 2, "count": 4}
SPEC = JudgeSpec(
    answers=ANSWERS | {"motion": 6, "relation": 3},
    side=32,
    channels=(8, 8, 16, 16),
    blocks=1,
    width=16,
    time_width=16,
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return JudgeNet(SPEC).eval()


class Says(torch.nn.Module):
    """A last layer that has its mind made up."""

    def __init__(self, cells_PD, side):
        super().__init__()
        self.maps, self.weight = cells_PD.T.unflatten(1, (side, side))[None], torch.zeros(1)

    def forward(self, x):
        return self.maps


def ask(*rows):
    return Questions(*torch.tensor(rows).unbind(1))


def video(frames, height=32, width=32, clips=1, seed=0):
    made = np.random.default_rng(seed).standard_normal((clips, frames, 3, height, width))
    return torch.from_numpy(made.astype(np.float32)).clamp(-1, 1)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_any_length_and_shape_is_answered(net, frames):
    look = net(video(frames, 32, 64, clips=2))
    assert look.logits_BTPK.shape == (2, frames, 4 * 8, 6)
    assert net.present(look).shape == (2, 5)
    assert {name: logits.shape for name, logits in net.whole(look).items()} == {
        name: (2, n) for name, n in ANSWERS.items() if name != "character"
    }
    motion, relation = net.motion(look, ask((0, 1, 2, 0, frames), (1, 4, -1, 0, 1)))
    assert (motion.shape, relation.shape) == ((2, 6), (2, 3))


@torch.no_grad()
@pytest.mark.parametrize("size", [0.25, 0.7])
def test_characters_are_counted_whatever_their_size(size):
    """By a network that has learned: in its inner cells somebody of that size is seen, elsewhere nobody."""
    net, picture, side = JudgeNet(SPEC).eval(), video(1, 128, 128), 16
    inner = (net(picture).grid_P2.abs() <= 0.3 * size).all(-1)
    taken = float(inner.sum()) / (0.6 * size * side) ** 2
    assert 0.6 < taken < 1.2
    logits = torch.where(inner[:, None], torch.tensor([0, 0, 20.0, 0, 0, 0]), torch.tensor([0.0] * 5 + [20]))
    net.eye.name, net.eye.box = Says(logits, side), Says(torch.full((side**2, 4), size).log(), side)
    number = net(picture).gist.number_BTK[0, 0]
    assert number[2] == pytest.approx(taken, rel=1e-3)
    assert number[[0, 1, 3, 4]].max() < 1e-3


@torch.no_grad()
def test_who_is_there_for_a_moment_is_there_and_who_is_mistaken_for_another_is_not(net):
    number = torch.zeros(1, 17, 5)
    number[:, :, 0] = 1.0  # all the time
    number[:, :, 1] = 0.1  # a part of somebody looks like it
    number[:, 4:7, 2] = 1.0  # comes and goes
    number[:, 9, 3] = 1.0  # one frame's mistake
    look = net(video(17))
    look = replace(look, gist=replace(look.gist, number_BTK=number))
    assert (net.present(look) > 0).tolist() == [[True, False, True, False, False]]
    assert (net.present(look, 8, 17) > 0).tolist() == [[True, False, False, False, False]]
    assert (net.present(look, 5, 7) > 0).tolist() == [[True, False, True, False, False]]
    number[:, 10:, 0] = 0.0  # when it has left, the part is no more than it was
    assert not (net.present(look, 11, 17) > 0).any()


@torch.no_grad()
def test_tracks_have_a_say_in_who_is_there(monkeypatch):
    monkeypatch.setattr(module, "SUSPECTS", 2)
    net = JudgeNet(SPEC).eval()
    number = torch.zeros(2, 9, 5)
    number[0, :, 3], number[0, 2:5, 1], number[1, :, 0], number[1, 0, 4] = 1.0, 0.5, 1.0, 0.2
    look = net(video(9, clips=2))
    look = replace(look, gist=replace(look.gist, number_BTK=number))
    asked = net.suspects(look.gist)
    rows = torch.stack([asked.clip_Q, asked.who_Q, asked.other_Q, asked.first_Q, asked.last_Q], dim=1)
    assert rows.tolist() == [[0, 3, 1, 0, 9], [0, 1, 3, 0, 9], [1, 0, 4, 0, 9], [1, 4, 0, 0, 9]]
    assert set(net.suspects(look.gist, 3, 6).first_Q.tolist()) == {3}
    assert torch.equal(net.present(look), net.time.counted(look.gist))  # as long as nothing is learned
    net.time.tracks.leave.bias[-1] = 3.0
    raised = net.present(look) - net.time.counted(look.gist)
    want = torch.tensor([[0.0, 3, 0, 3, 0], [3, 0, 0, 0, 3]])
    torch.testing.assert_close(raised, want)
    torch.nn.init.normal_(net.time.tracks.leave.weight)
    for row in range(4):
        one = Questions(*(x[row : row + 1] for x in vars(asked).values()))
        alone = net.time.follow(look.gist, one, net.tracks(look, one))[2]
        raised = (net.present(look) - net.time.counted(look.gist))[one.clip_Q, one.who_Q]
        torch.testing.assert_close(raised, alone)
    assert torch.equal(net.present(look, 7, 9), net.time.counted(look.gist, 7, 9)), "too short for a track"


@torch.no_grad()
def test_a_question_is_answered_alone_as_among_longer_ones(net):
    look = net(video(17, clips=2))
    both = net.motion(look, ask((1, 2, 0, 3, 9), (0, 1, -1, 0, 17)))[0]
    alone = net.motion(look, ask((1, 2, 0, 3, 9)))[0]
    torch.testing.assert_close(both[:1], alone)


@torch.no_grad()
def test_clips_do_not_see_each_other(net):
    one, other = video(9), video(9, seed=1)
    both, alone = net(torch.cat([other, one])), net(one)
    torch.testing.assert_close(both.gist.frames_BTG[1:], alone.gist.frames_BTG)
    for name, logits in net.whole(alone).items():
        torch.testing.assert_close(net.whole(both)[name][1:], logits)


@torch.no_grad()
def test_the_order_of_frames_matters_to_motion_and_whole_clips(net):
    clip = video(9)
    looks = net(clip), net(clip.flip(1))
    motions = [net.motion(look, ask((0, 1, -1, 0, 9)))[0] for look in looks]
    cameras = [net.whole(look)["camera"] for look in looks]
    assert not torch.allclose(*motions, atol=1e-4)
    assert not torch.allclose(*cameras, atol=1e-4)


@torch.no_grad()
def test_a_character_that_moves_right_has_a_track_to_the_right(net):
    """The first numbers of a track are those of the cells which show the character."""

    def follow(look):
        shares, frames = look.logits_BTPK.softmax(-1), torch.tensor([[0, 1, 2]])
        return module._track(look, shares, torch.tensor([[0]]), frames, torch.tensor([2]))

    look = net(video(3))
    logits = torch.zeros(1, 3, 16, 6)
    logits[0, range(3), [4, 5, 6], 2] = 20.0  # row 1, columns 0, 1, 2 of 4
    look = replace(look, logits_BTPK=logits, boxes_BTP4=torch.zeros(1, 3, 16, 4))
    track, weights = follow(look)
    want = torch.tensor([[-0.375, -0.125], [-0.125, -0.125], [0.125, -0.125]])
    # The other cells show it with a chance of a sixth each.
    assert (track[0, 1:, 0] > track[0, :-1, 0]).all()
    assert torch.equal(weights[0].argmax(1), torch.tensor([4, 5, 6]))
    logits[..., 5] = 20.0  # now they show nobody
    logits[0, range(3), [4, 5, 6], 2] = 40.0
    track, _ = follow(look)
    torch.testing.assert_close(track[0, :, :2] / 4, want, atol=1e-3, rtol=0)


def test_videos_are_brought_to_one_size():
    spec = JudgeSpec(answers=SPEC.answers)
    for height, width, want in ((128, 128, (96, 96)), (64, 112, (96, 176)), (224, 128, (176, 96))):
        frames = np.full((2, height, width, 3), 255, np.uint8)
        assert fit(frames, spec).shape == (2, 3, *want), (height, width)
        assert fit(frames, spec).min() == pytest.approx(1)


@torch.no_grad()
def test_when_something_happens_matters():
    torch.manual_seed(0)
    over, real = OverTime(4, 16, 3).eval(), torch.ones(1, 17, dtype=torch.bool)
    early, late = torch.zeros(1, 17, 4), torch.zeros(1, 17, 4)
    early[:, 5], late[:, 11] = 1.0, 1.0
    assert not torch.allclose(over(early, real), over(late, real), atol=1e-4)


def test_a_place_that_moves_is_seen_to():
    wide = np.random.default_rng(0).standard_normal((3, 40, 60)).astype(np.float32)
    wide = torch.nn.functional.avg_pool2d(torch.from_numpy(wide), 5, 1, 2)
    pan = torch.stack([wide[:, 4:36, 4 * k : 4 * k + 32] for k in range(4)])[None]  # the view goes right
    still = flow(pan[:, :1].expand(-1, 4, -1, -1, -1))
    moved = flow(pan).unflatten(2, (3, 3, 2))
    assert still.abs().max() < 0.3
    assert moved[:, 0].abs().max() < 0.3  # there is no frame before
    assert moved[:, 1:, :, 1, 0].mean() == pytest.approx(-2, abs=0.3)  # 4 pixels are 2 of half size
    assert moved[:, 1:, :, 1, 1].abs().mean() < 0.3
