"""Step plans: which steps of a sampler do without part of the transformer's work, fixed before the first.

A plan is a list with one `Step` for each step of the sampler. A step says what happens to the block stack,

    f  full     run all blocks; keep their residual, what they add to the video rows
    r  reuse    add the residual of the last full step
    t  taylor   add the residual extrapolated along a line through the last two full steps

and to guidance, whose cost is a second branch,

    p  pair     run both branches
    h  held     run the conditional branch; the last difference between the branches stands for the other
    c  cond     run the conditional branch alone, without guidance

In text, runs of equal letters carry their length, first the blocks, then guidance: "f6rfrf21/p20h4c6". Both
are approximations with a price, to be measured (`cogvideox calibrate`). A step that lacks what it needs (the
first, which nothing precedes) is a full one, see `resolved`. Published caches that adapt to the content are
static for this model family or nearly so; the functions below make their plans from measured curves.

Sources: Liu et al. 2024 (TeaCache), Ma et al. 2025 (MagCache), ParaAttention's first-block cache, Gao et al.
2025 (LeMiCa: the best plan as a shortest path), Liu et al. 2025 (TaylorSeer), Kynkäänniemi et al. 2024
(guidance in an interval of noise levels), Lv et al. 2024 (FasterCache: one branch stands for the other).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from cogvideox.core.errors import InputError

BLOCKS, GUIDANCE = "frt", "phc"
_RUN = re.compile(r"([a-z])(\d{0,4})")  # no sampler takes more steps


@dataclass(frozen=True)
class StepPlan:
    """What each step of a sampler runs; see the top of the file."""

    blocks: str
    """One letter a step: f, r or t."""
    guidance: str
    """One letter a step: p, h or c."""

    def __post_init__(self) -> None:
        assert len(self.blocks) == len(self.guidance)
        assert not set(self.blocks) - set(BLOCKS)
        assert not set(self.guidance) - set(GUIDANCE)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The plan that `str` of it writes; guidance may be left out, every step is a pair then.

        InputError for other letters, for parts of different lengths, and for plans without steps.
        """
        head, slash, tail = text.partition("/")
        blocks = _expand(head, BLOCKS, text)
        guidance = _expand(tail, GUIDANCE, text) if slash else "p" * len(blocks)
        if len(blocks) != len(guidance):
            raise InputError(f"plan {text!r} has {len(blocks)} steps of blocks, {len(guidance)} of guidance")
        return cls(blocks, guidance)

    def __str__(self) -> str:
        guidance = "" if set(self.guidance) == {"p"} else f"/{_shorten(self.guidance)}"
        return _shorten(self.blocks) + guidance

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def exact(self) -> bool:
        """Nothing is left out."""
        return set(self.blocks + self.guidance) == {"f", "p"}

    def resolved(self, start: int = 0, guided: bool = True) -> Self:
        """The plan of a run that begins with step `start`, as it is carried out: steps that lack what they
        need become full or a pair. Without guidance every step runs the conditional branch alone.
        """
        blocks, guidance, seen = "", "", dict.fromkeys("uc", 0)  # full steps so far of either branch
        for block, guide in zip(self.blocks[start:], self.guidance[start:], strict=True):
            if not guided:
                guide = "c"
            elif guide == "h" and "p" not in guidance:
                guide = "p"
            branches = "uc" if guide == "p" else "c"
            if min(seen[branch] for branch in branches) < {"f": 0, "r": 1, "t": 2}[block]:
                block = "f"
            if block == "f":
                seen |= {branch: seen[branch] + 1 for branch in branches}
            blocks, guidance = blocks + block, guidance + guide
        return type(self)(blocks, guidance)

    @property
    def work(self) -> float:
        """Forward passes of one branch that the plan costs; steps that reuse are counted as free."""
        both = zip(self.blocks, self.guidance, strict=True)
        return sum((2 if guide == "p" else 1) for block, guide in both if block == "f")


def _expand(text: str, known: str, whole: str) -> str:
    runs = _RUN.findall(text)
    letters = "".join(letter * int(count or 1) for letter, count in runs)
    if "".join(a + b for a, b in runs) != text or not letters or set(letters) - set(known):
        raise InputError(
            f"plan {whole!r} is not one such as f6rfrf21/p20h4c6 (letters {', '.join(BLOCKS + GUIDANCE)})"
        )
    return letters


def _shorten(letters: str) -> str:
    runs = [(letter, len(list(run))) for letter, run in groupby(letters)]
    return "".join(letter + (str(count) if count > 1 else "") for letter, count in runs)


# ---------------------------------------------------------------------------------------- published schedules


def teacache(changes: Sequence[float], polynomial: Sequence[float], threshold: float) -> StepPlan:
    """TeaCache: reuse while the summed change since the last full step stays below `threshold`.

    `changes[k]` is the relative L1 change of the timestep embedding from step k - 1 to k (the first is not
    looked at); `polynomial`, highest power first, turns it into a change of the residual. First and last step
    are full.
    """
    blocks, total = "f", 0.0
    for change in changes[1:-1]:
        total += sum(c * change**power for power, c in enumerate(reversed(polynomial)))
        blocks += "r" if total < threshold else "f"
        total = total if total < threshold else 0.0
    return _plan(blocks + "f")


def magcache(ratios: Sequence[float], threshold: float, longest: int, retained: float = 0.2) -> StepPlan:
    """MagCache: reuse while the summed error of the residual's magnitude stays below `threshold`.

    `ratios[k]` is the magnitude of the residual at step k over that at k - 1. At most `longest` steps in a
    row reuse; the first part `retained` of the steps and the last step are full.
    """
    blocks, product, error, run = "", 1.0, 0.0, 0
    for k, ratio in enumerate(ratios):
        product, run = product * ratio, run + 1
        error += abs(1 - product)
        free = max(1, int(retained * len(ratios))) <= k < len(ratios) - 1
        blocks += "r" if free and error < threshold and run <= longest else "f"
        if blocks[-1] == "f":
            product, error, run = 1.0, 0.0, 0
    return _plan(blocks)


def first_block_cache(changes: Sequence[Sequence[float]], threshold: float) -> StepPlan:
    """First-block cache: reuse while the first block's residual stays near that of the last full step.

    `changes[i][k]` is its relative L1 change from step i to k, which must be below `threshold`. First and
    last step are full.
    """
    blocks, last = "f", 0
    for k in range(1, len(changes) - 1):
        blocks += "r" if changes[last][k] < threshold else "f"
        last = k if blocks[-1] == "f" else last
    return _plan(blocks + "f")


def cheapest(errors: Callable[[int | None, int, int], tuple[float, str]], steps: int, full: int) -> StepPlan:
    """The plan with `full` full steps, first and last among them, whose other steps err least in sum.

    `errors(before, last, k)` is the error of step k, and the letter r or t that reaches it, when the last two
    full steps are `before` (None: there is one only) and `last`. A shortest path over pairs of full steps.
    """
    assert 2 <= full <= steps
    paths: dict[tuple[int | None, int], tuple[float, str]] = {(None, 0): (0.0, "f")}
    for count in range(2, full + 1):
        longer: dict[tuple[int | None, int], tuple[float, str]] = {}
        for (before, last), (error, letters) in paths.items():
            # Every full step that is still to come needs a place; the last of them is the last step.
            ends = range(last + 1, steps - full + count) if count < full else (steps - 1,)
            found = error
            for end in range(last + 1, steps):
                if end in ends and found < longer.get((last, end), (float("inf"), ""))[0]:
                    longer[last, end] = (found, letters + "f")
                more, letter = errors(before, last, end)
                found, letters = found + more, letters + letter
        paths = longer
    return _plan(min(paths.values())[1])


# --------------------------------------------------------------------------------------------------- guidance


def guidance_interval(plan: StepPlan, timesteps: Sequence[int], low: int, high: int) -> StepPlan:
    """`plan` with guidance only at noise levels low <= t <= high; other steps run one branch."""
    letters = zip(plan.guidance, timesteps, strict=True)
    return StepPlan(plan.blocks, "".join(g if low <= t <= high else "c" for g, t in letters))


def guidance_every(plan: StepPlan, period: int, warm: int = 1) -> StepPlan:
    """`plan` whose pairs, after the first `warm` steps, become held except at each `period`-th full step."""
    guidance, full = "", 0
    for k, (block, guide) in enumerate(zip(plan.blocks, plan.guidance, strict=True)):
        late = k >= warm
        full += late and block == "f"
        held = guide == "p" and late and (block != "f" or full % period != 0)
        guidance += "h" if held else guide
    return StepPlan(plan.blocks, guidance)


def _plan(blocks: str) -> StepPlan:
    return StepPlan(blocks, "p" * len(blocks))
