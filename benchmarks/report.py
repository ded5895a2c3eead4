"""The numbers of a run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("gemm", "convolution", "attention")


def against_roofline(result: dict[str, Any], peaks: Mapping[str, float], dtype: str) -> None:
    """Add to each side the least time that its work takes at the machine's peaks, and its share of the
    median: operations of each kind one after the other, or reading all weights once.
    """
    if result["flops"] is None or not sum(result["flops"].values()):
        return
    compute = sum(result["flops"][kind] / peaks[f"{kind} {dtype}"] for kind in KINDS)
    for side in result["sides"].values():
        side["floor"] = max(compute, side["weights"] / peaks["copy"])
        side["share"] = side["floor"] / side["median"]


def head(found: Mapping[str, Any]) -> str:
    """The conditions of all numbers."""
    machine, peaks = found["machine"], found["machine"]["peaks"]
    rates = [f"{kind} {peaks[kind + ' ' + found['dtype']] / 1e12:.2f}" for kind in KINDS]
    return (
        f"{machine['cpu']} ({' '.join(machine['flags'])}), load {machine['load']:.1f} before\n"
        f"{found['dtype']}, torch {machine['torch']}, commit {machine['commit'] or 'unknown'}, "
        f"malloc: {machine['allocator']}\n"
        f"peaks: {', '.join(rates)} TFLOP/s, copy {peaks['copy'] / 1e9:.1f} GB/s"
    )


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def lines(result: Mapping[str, Any]) -> str:
    """A case: a line of what it is, one for each side, and the ratio."""
    flops = result["flops"]
    work = f"{sum(flops.values()) / 1e12:.3g} TFLOP, " if flops and sum(flops.values()) else ""
    told = [f"\n{result['name']} ({work}load {result['load']:.1f})"]
    for label, side in result["sides"].items():
        count = sum(who == label for who, _ in result["runs"])
        spread = f"({seconds(side['low'])} .. {seconds(side['high'])}, {count} runs)"
        cells = [f"  {label:10} {seconds(side['median']):>8} {spread:34}"]
        cells.append(f"CPU {seconds(side['cpu'])}")
        cells.append(f"peak {side['peak'] / 1e6:.0f} MB (+{side['above'] / 1e6:.0f})")
        if side["amount"]:
            amount, unit = side["amount"]
            cells.append(f"{amount / side['median']:.4g} {unit}/s")
        if side["error"] is not None:
            cells.append(f"error {side['error']:.2e}")
        if "share" in side:
            cells.append(f"{100 * side['share']:.0f} % of the peaks")
        if result["scale"] != 1:
            cells.append(f"all layers {seconds(result['scale'] * side['median'])}")
        cells += [f"{name} {value:.4g}" for name, value in side["numbers"].items()]
        told.append("  ".join(cells))
    if "ratio" in result:
        told.append(f"  {result['ratio']:.2f} times as fast (median of the pairs)")
    return "\n".join(told)


def summary(found: Mapping[str, Any]) -> str:
    """All ratios, and how decoding grows."""
    told = []
    if compared := [case for case in found["cases"] if "ratio" in case]:
        told.append(f"\ntimes as fast as {found['against']}, and memory above the loaded model")
        for case in compared:
            ours, theirs = (side["above"] / 1e6 for side in case["sides"].values())
            told.append(f"  {case['ratio']:6.2f}   {ours:6.0f} / {theirs:6.0f} MB   {case['name']}")
    for axis, numbers in found["growth"].items():
        values = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
        told.append(f"decoding against {axis}: {values}")
    return "\n".join(told)
