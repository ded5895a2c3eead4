"""What a run trains on: Storybook's clips encoded in place, an encoded folder, or a manifest as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cogvideox.core.files import write_text
from cogvideox.data.encoded import Encoded, Source, Store
from cogvideox.data.manifest import Row, read_manifest, write_manifest
from cogvideox.data.samples import Rule, select
from cogvideox.data.storybook.rows import Part, rows
from cogvideox.data.storybook.world import VERSION
from cogvideox.training.encode import Encoder, Live, encode


def storybook_rows(parts: Sequence[Part], seed: int, folder: Path) -> list[Row]:
    """The rows of all parts, kept in `folder/manifest.jsonl` for as long as the parts stay the same."""
    manifest, made_of = folder / "manifest.jsonl", folder / "parts.json"
    told = json.dumps({"world": VERSION, "seed": seed, "parts": [asdict(part) for part in parts]})
    if not manifest.exists() or not made_of.exists() or made_of.read_text(encoding="utf-8") != told:
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, (row for part in parts for row in rows(part, seed)))
        write_text(made_of, told)
    return read_manifest(manifest)


def encode_storybook(
    parts: Sequence[Part], folder: Path, encoder: Encoder, vae_hash: str, *, workers: int
) -> Encoded:
    """The clips of all parts in `folder`; those that it does not hold yet are drawn and encoded first.

    InputError when the folder was made with another VAE, world or seed.
    """
    source = Source(vae=vae_hash, text=None, plan={"world": VERSION, "seed": encoder.seed})
    source.claim(folder)
    spec = encoder.spec
    longest = Rule(max(part.frames for part in parts))
    made = storybook_rows(parts, encoder.seed, folder)
    selection = select(made, [longest], spec.transformer.patch, float(spec.fps))
    encode(selection, folder, folder, encoder, source, workers=workers)
    return Encoded(folder, vae=vae_hash)


def live(manifest: Path, largest: Sequence[tuple[int, int, int]], encoder: Encoder) -> Store:
    """A manifest's samples, encoded whenever they are needed, in the shapes of the stages: (frames, height,
    width). A row comes in each that it is large enough for.
    """
    spec = encoder.spec
    rules = [Rule.within(*shape) for shape in dict.fromkeys(largest)]
    selection = select(read_manifest(manifest), rules, spec.transformer.patch, float(spec.fps))
    return Live(selection.samples, manifest.parent, encoder)
