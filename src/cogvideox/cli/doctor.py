"""`cogvideox doctor`: what this machine can run."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def doctor(
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; default: the best one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; default: the native one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show what this machine has, and which models fit at their native shape."""
    from rich.console import Console
    from rich.table import Table

    from cogvideox.generation.plan import gib
    from cogvideox.generation.survey import look

    found = look(device, dtype)
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = Console(highlight=False)
    facts = Table(show_header=False, box=None)
    rows: dict[str, Any] = {
        "device": f"{found['device']}: {found['hardware']}",
        "precision": f"{found['dtype']} ({'native' if found['native_bfloat16'] else 'no native bf16'})",
        "kernels": {
            "all": "ours, in C",
            "small operations": "PyTorch's, in training some of ours (the others need AVX-512 with bf16)",
            "none": "PyTorch's (ours need AVX-512 with bf16 and a C compiler)",
        }[found["kernels"]],
        "allocator": ": ".join(filter(None, (found["allocator"], found["faster_allocator"]))),
        "memory": f"{gib(found['free'])} free of {gib(found['total'])}",
        "speed": ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in found["speeds"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }
    for name, value in rows.items():
        facts.add_row(f"[dim]{name}", value)
    console.print(facts)
    table = Table("model", "native shape", "needs", "runs here", "time", box=None, header_style="bold")
    for row in found["models"]:
        table.add_row(row["model"], row["shape"], gib(row["needs"]), row["runs"], row["time"])
    console.print(table)
