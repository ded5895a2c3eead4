"""Training of the judge of Storybook videos, and how right it is.

First its eye learns from stills, then what reads over time learns from clips, more than once from each: the
eye is fixed by then, so that what it makes of a clip is kept.

Shape legend: B clips, T frames, C channels, H W pixels or cells, K characters, Q questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import cogvideox
from cogvideox.checkpoints.folder import write_json
from cogvideox.checkpoints.settings import read_json
from cogvideox.checkpoints.weights import Weights, write_weights
from cogvideox.core import rng
from cogvideox.core.errors import CheckpointError
from cogvideox.core.files import atomic_path
from cogvideox.data.storybook import Clip, World
from cogvideox.data.storybook.labels import vocabulary
from cogvideox.data.storybook.world import VERSION
from cogvideox.generation.generate import Place
from cogvideox.models.judge.eye import JudgeSpec
from cogvideox.models.judge.model import JudgeNet, Look
from cogvideox.training.lessons import SEVERAL, JudgeBatches, JudgeStage, Kept, Shown, Truth, moved, show
from cogvideox.training.task import Loss, Metrics, Phase

SHIPPED = Path(cogvideox.__file__).parent / "assets" / "judge"
LEARNS = {
    "eye": {"cell": 5.0, "box": 1.0, "characters": 0.02, "scene": 1.0, "style": 1.0},
    "time": {"characters": 0.2, "motion": 1.0, "relation": 1.0, "event": 1.0, "camera": 1.0, "count": 1.0},
}
"""What the two parts of the judge learn, and the weights of its losses. Who is where is learned slowest, and
all else follows from it; who is there at all, a sum over the whole cast, would drown it (docs/log.md); what
is left of that sum when the eye has learned would not."""
ALIKE = 0.04
"""Share of the clips with two characters in which they are of one kind."""
DOUBT = 0.03
"""Added to the chance of each number of kinds: who is not seen is not there, and who is clearly seen is."""
TESTS = 96
"""Held-out clips of each validation."""


def look_at(net: JudgeNet, shown: Shown) -> Look:
    """Clips as the network takes them."""
    return net(shown.video_BTCHW.float() / 127.5 - 1)


@torch.no_grad()
def keep(net: JudgeNet, shown: Shown) -> Kept:
    """Look, and keep what is needed to answer."""
    look = look_at(net, shown)
    suspects = net.suspects(look.gist, shown.truth.first, shown.truth.last)
    tracks = net.tracks(look, suspects), net.tracks(look, shown.truth.asked)
    return moved(Kept(look.gist, suspects, *tracks, shown.truth), torch.float16)


def answer(net: JudgeNet, kept: Kept) -> dict[str, Tensor]:
    """Logits of the answers to everything that the answers are known of."""
    gist, truth = kept.gist, kept.truth
    motion, relation, _ = net.time.follow(gist, truth.asked, kept.tracks_QTD)
    characters = net.time.present(gist, kept.suspects, kept.suspects_QTD, truth.first, truth.last)
    return net.time.whole(gist) | {"characters": characters, "motion": motion, "relation": relation}


def settled(present_BK: Tensor, whole: Mapping[str, Tensor]) -> Tensor:
    """Presence in whole clips, moved so that those above 0 are the likeliest set, given what is said of count
    and events: two characters are of two kinds as a rule, three of one, and a transformation adds one.
    """
    none, one, two, three = whole["count"].softmax(1).unbind(1)
    kinds_BN = torch.stack([none, one + ALIKE * two + three, (1 - ALIKE) * two], dim=1)
    changed_B1 = whole["event"][:, vocabulary()["event"].index("transform"), None].sigmoid()
    kinds_BN = F.pad((1 - changed_B1) * kinds_BN, (0, 1)) + F.pad(changed_B1 * kinds_BN, (1, 0)) + DOUBT
    first_BN = present_BK.topk(kinds_BN.shape[1], dim=1).values
    likely_BN = F.pad(first_BN[:, :-1].cumsum(1), (1, 0)) + kinds_BN.log()
    above_BN = torch.cat([first_BN[:, :1] + 1, (first_BN[:, :-1] + first_BN[:, 1:]) / 2], dim=1)
    return present_BK - above_BN.gather(1, likely_BN.argmax(1, keepdim=True))


def sight_losses(look: Look, shown: Shown) -> dict[str, Tensor]:
    """How wrong the eye is about who is in each cell, and where."""
    logits_BTPK, classes_BTP = look.logits_BTPK, shown.classes_BTP
    nobody = logits_BTPK.shape[-1] - 1
    error_BTP = F.cross_entropy(logits_BTPK.flatten(0, 2), classes_BTP.flatten(), reduction="none")
    error_BTP, seen_BTP = error_BTP.view_as(classes_BTP), (classes_BTP >= 0) & (classes_BTP < nobody)
    scale = look.boxes_BTP4.new_tensor([4.0, 4.0, 1.0, 1.0])
    return {
        "cell": _mean(error_BTP[seen_BTP]) + _mean(error_BTP[classes_BTP == nobody]),
        "box": _mean(((look.boxes_BTP4 - shown.targets_BTP4)[seen_BTP] * scale).abs()),
    }


def losses(said: dict[str, Tensor], truth: Truth) -> dict[str, Tensor]:
    """The loss of each kind of answer, a mean over what it is asked of."""
    found = {}
    for name, logits in said.items():
        true = truth.answers[name]
        if name in SEVERAL:
            wrong = F.binary_cross_entropy_with_logits(logits, true.float(), reduction="none")
            found[name] = wrong.sum(1).mean()
        else:
            found[name] = F.cross_entropy(logits, true, reduction="sum") / max(1, int((true >= 0).sum()))
    return found


def _mean(x: Tensor) -> Tensor:
    return x.sum() / max(1, len(x))


@torch.no_grad()
def right(said: dict[str, Tensor], truth: Truth) -> Metrics:
    """How many answers of each kind are right, and how many were asked: sets count when all of one are."""
    found = {}
    for name, logits in said.items():
        true = truth.answers[name]
        if name in SEVERAL:
            hits = ((logits > 0) == (true > 0)).all(1)
        else:
            hits = (logits.argmax(1) == true)[true >= 0]
        found[name] = float(hits.sum()), float(len(hits))
    return found


def judge_spec() -> JudgeSpec:
    """The judge that knows the words of this Storybook."""
    return JudgeSpec(answers={name: len(words) for name, words in vocabulary().items()})


class JudgeTask:
    """The answers that a phase `LEARNS`; every frame counts the same."""

    def __init__(
        self,
        spec: JudgeSpec,
        stages: tuple[JudgeStage, ...],
        place: Place,
        *,
        seed: int,
        tests: int = TESTS,
        folder: Path | None = None,
    ) -> None:
        """`folder` is where what the eye makes of clips may be kept."""
        torch.manual_seed(seed)
        self.spec, self.place, self.seed, self.tests = spec, place, seed, tests
        self.model = JudgeNet(spec).arrange(place.device, place.dtype)
        self._batches = JudgeBatches(stages, spec, seed, folder)
        self.turn = sum(stage.steps for stage in stages if stage.stills)
        """The first step of what reads over time."""

    def batches(self) -> JudgeBatches:
        return self._batches

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The eye in the stages with stills, which come first; then what reads over time."""
        return (
            Phase("eye", self.model.eye, matrix_blocks=matrix_blocks, ends=self.turn),
            Phase("time", self.model.time, matrix_blocks=matrix_blocks, begins=self.turn),
        )

    def loss(self, phase: str, micro: Shown | Kept, step: int) -> Loss:
        micro = moved(micro, self.place.device)
        if phase == "eye":
            assert isinstance(micro, Shown)
            look = look_at(self.model, micro)
            said = self.model.whole(look) | {"characters": self.model.time.counted(look.gist)}
            parts = sight_losses(look, micro)
        else:
            kept, parts = self._keep(micro, step), {}
            said = answer(self.model, kept)
        said = {name: logits for name, logits in said.items() if name in LEARNS[phase]}
        parts |= losses(said, micro.truth)
        total = torch.stack([LEARNS[phase][name] * part for name, part in parts.items()]).sum()
        frames = float(micro.frames)
        means = {f"loss_{name}": (part.item() * frames, frames) for name, part in parts.items()}
        return Loss(total * frames, frames, {**means, **right(said, micro.truth)})

    def _keep(self, micro: Shown | Kept, step: int) -> Kept:
        if isinstance(micro, Kept):
            return micro
        kept = keep(self.model, micro)
        if path := self._batches.path(step):
            moved(kept, torch.device("cpu")).write(path)
        return kept

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        """Shares of right answers about held-out clips of 17 frames of 128x128, as they are and worn."""
        net = JudgeNet(self.spec).arrange(self.place.device, self.place.dtype).eval()
        self.load(net, weights)
        clean, rough = (ceiling(net, seed=self.seed, clips=self.tests, wear=wear) for wear in (False, True))
        return {f"eval_{n}": v for n, v in clean.items()} | {f"worn_{n}": v for n, v in rough.items()}

    @staticmethod
    def load(net: JudgeNet, weights: Mapping[str, dict[str, Tensor]]) -> None:
        """Those of both phases."""
        net.eye.load_state_dict(weights["eye"])
        net.time.load_state_dict(weights["time"])


@torch.no_grad()
def ceiling(
    net: JudgeNet, *, seed: int, clips: int, frames: int = 17, side: int = 128, wear: bool = False
) -> dict[str, float]:
    """Shares of right answers about renders, half of them of compositions that training never shows."""
    sums: dict[str, tuple[float, float]] = {}
    for index in range(0, clips, 8):
        some = _tests(seed, index, min(8, clips - index), frames)
        tests = [(clip, clip.render(frames, 8, side, side), 0.0) for clip in some]
        rough = {k: rng.generator(seed, "wear-test", index, k) for k in range(len(tests) * wear)}
        shown = moved(show(tests, net.spec, rough), net.time.presence.device)
        said = answer(net, keep(net, shown))
        said["characters"] = settled(said["characters"], said)
        for name, (hits, asked) in right(said, shown.truth).items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + hits, before[1] + asked
    return {name: round(hits / asked, 4) for name, (hits, asked) in sums.items() if asked}


def _tests(seed: int, first: int, count: int, frames: int) -> Iterator[Clip]:
    for index in range(first, first + count):
        world = World(seed=seed + 1, split=("train", "heldout")[index % 2])
        yield world.clip(index, (frames - 1) / 8)


def write_judge(net: JudgeNet, folder: Path, seed: int, clips: int = 500) -> None:
    """The judge as `evaluation.judge` reads it, with its ceiling: how right it is about real renders."""
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)  # as it will be read
    with atomic_path(folder) as partial:
        write_weights(net.state_dict().items(), partial, "model", dtype=torch.bfloat16)
        found = ceiling(net, seed=seed, clips=clips)
        config = {"world": VERSION, "spec": asdict(net.spec), "seed": seed, "clips": clips, "ceiling": found}
        write_json(partial / "config.json", config)


def read_judge(folder: Path = SHIPPED) -> tuple[JudgeNet, dict[str, float]]:
    """What `write_judge` wrote: the network and its ceiling. CheckpointError when it is damaged, or was
    trained on another version of the world.
    """
    config = read_json(folder / "config.json")
    spec = judge_spec()
    if config["world"] != VERSION or config["spec"]["answers"] != spec.answers:
        raise CheckpointError(f"the judge in {folder} was trained on another version of Storybook")
    channels = tuple(config["spec"].pop("channels"))
    net = JudgeNet(JudgeSpec(**config["spec"], channels=channels))
    try:
        net.load_state_dict(dict(Weights(folder)))
    except RuntimeError:
        raise CheckpointError(f"the judge in {folder} is of another version: train it again") from None
    return net, config["ceiling"]


def matrix_blocks(name: str, parameter: Tensor) -> int:
    if parameter.ndim < 2 or name.startswith(("stem.0", "name", "box", "about")) or ".leave" in name:
        return 0
    return 3 if "in_proj" in name else 1
