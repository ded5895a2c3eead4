"""The benchmark: a tiny pair has plausible numbers, growth is fitted, mistakes are one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.case import SUITES, cases_of
from benchmarks.cases import packing
from benchmarks.cases.growth import LENGTH, SIZE, SIZES, exponent, growth, name
from cogvideox.checkpoints.folder import read_spec
from cogvideox.checkpoints.hub import MINI
from cogvideox.cli import bench

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What a run writes and prints."""
    file = tmp_path_factory.mktemp("bench") / "pair.json"
    done = run("--quick", "--only", "tiny vae decode", "--against", "diffusers", "--json", file)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_both_sides_run_in_turn_on_the_same_work(pair):
    found, _ = pair
    (case,) = found["cases"]
    assert [label for label, _ in case["runs"]] == ["ours", "diffusers"]
    assert all(seconds > 0 for _, seconds in case["runs"])
    assert all(side["cpu"] > 0 for side in case["sides"].values())
    ours, theirs = case["sides"]["ours"], case["sides"]["diffusers"]
    assert case["ratio"] == pytest.approx(theirs["median"] / ours["median"])
    assert ours["weights"] == theirs["weights"] > 0


def test_errors_and_memory_are_plausible(pair):
    """Wrong weights or inputs on a side would make its error about 1."""
    found, _ = pair
    for side in found["cases"][0]["sides"].values():
        assert 0 <= side["error"] < 0.1
        assert side["peak"] > side["loaded"] > side["weights"]
        assert 0 <= side["above"] < side["peak"]
        assert 0 < side["share"] < 1.5


def test_operations_are_counted(pair):
    """9x32x32 from a VAE whose convolutions are all known: at least those of the last level's kernels."""
    found, _ = pair
    flops = found["cases"][0]["flops"]
    assert flops["convolution"] > 4 * 2 * 27 * 16**2 * 9 * 32**2
    assert flops["attention"] == 0


def test_conditions_are_told(pair):
    found, text = pair
    machine = found["machine"]
    assert machine["threads"] >= 1
    assert all(speed > 0 for speed in machine["peaks"].values())
    for word in (machine["torch"], machine["allocator"], found["dtype"], "tiny vae decode 9x32x32", "times"):
        assert word in text


def test_packs_do_half_as_much_again_as_batches_of_one_size():
    """By costs from metadata alone; beside the strongest buckets it is 1.3 times (docs/packing.md)."""
    found = [
        packing.planned(loader, read_spec(MINI).transformer, 2000) for loader in packing.LOADERS.values()
    ]
    packed, strongest, buckets, padded = (one["useful tokens by cost"] for one in found)
    assert packed > 1.2 * strongest
    assert packed > 1.5 * max(buckets, padded)
    assert found[0]["fill"] > 0.98
    assert found[0]["imbalance over 8 ranks"] < 0.05


def test_exponents_are_those_of_a_power():
    amounts = [9, 17, 65, 161]
    assert exponent(amounts, [3 * a**1.5 for a in amounts]) == pytest.approx(1.5)
    assert exponent(amounts, [7.0] * 4) == pytest.approx(0, abs=1e-9)


def test_growth_is_told_for_whole_axes_only():
    found = {
        name(LENGTH, side): {"median": side**2, "above": 5.0 * side, "peak": 100 + side} for side in SIZES
    }
    assert growth(found) == {
        "pixels": {
            "time exponent": pytest.approx(1),
            "memory exponent": pytest.approx(0.5),
            "peak by that of 17x256x256": (100 + SIZES[-1]) / (100 + SIZE),
        }
    }


@pytest.mark.parametrize("quick", [True, False])
def test_names_of_cases_are_unique_and_suites_have_some(quick):
    names = [case.name for suite in SUITES for case in cases_of(suite, quick)]
    assert len(names) == len(set(names))
    assert all(cases_of(suite, quick) for suite in SUITES)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--suite", "vea"), "'vae'"),
        (("--only", "tiny vae dekode", "--quick"), "decode"),
        (("--against", "no-such-commit", "--quick", "--suite", "data"), "no-such-commit"),
        (("--json", "no-such-folder/x.json", "--quick", "--suite", "data"), "no-such-folder"),
    ],
)
def test_mistakes_are_one_line(arguments, word):
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr


def test_without_the_repository_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="clone"):
        bench.bench()


def test_the_command_hands_on_what_looks_like_an_option(monkeypatch):
    calls = []
    monkeypatch.setattr(bench.os, "execve", lambda *call: calls.append(call[1]))
    bench.bench(suite=["vae"], against="-x", json=Path("-y"))
    assert calls[0][1:] == ["-m", "benchmarks.run", "--suite=vae", "--against=-x", "--json=-y"]
