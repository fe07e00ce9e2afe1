"""Bundle models: check their cards, measure what float16 costs, and put them into the package.

``python benchmarks/bundle.py MODEL.safetensors ...`` writes each model into ``src/dn_core/models``
and its index. A name that is there already gets a new version; the one before stays to be had, as
``dn-fast@1``. ``--in-place`` takes the place of the newest version instead, for one that was never
released.

Weights are stored in float16 where that costs less than 0.002 dB on every level of noise, measured
on images that are not for testing. A card must say what the model learnt from (``data`` with
``sources``), its ``terms``, ``noise``, ``description`` and ``scores``; ``--card FILE`` adds fields
from a JSON file. All bundled models together stay under 20 MB, else nothing is changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import put_into

from dn_core.checkpoints import Card, Checkpoint, load_checkpoint
from dn_core.errors import CheckpointError, error_message
from dn_core.inference.model import Model
from dn_core.models.index import FILE, Entry, Index, check_name, index_bytes, parse_index
from dn_core.paper import protocol
from dn_core.paper.protocol import Image, Level
from dn_core.safe_write import atomic_write
from dn_core.tensor_files import write_file

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
MODELS = ROOT / "src" / "dn_core" / "models"
DATA = Path(os.environ.get("DN_DATA") or ROOT.parent / "shared" / "data")
IMAGES = (DATA / "train" / "photos", DATA / "train" / "microscopy" / "clean")
LEVELS = ("gaussian 15", "gaussian 25", "gaussian 50")
LIMIT = 4
MOST_DECIBELS = 0.002
"""What float16 may cost at any level of noise, in PSNR."""
MOST_BYTES = 20_000_000
"""Of all bundled models together: every user downloads them with every release."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """What has become of a model.

    Attributes
    ----------
    entry : Entry
        As the index lists it.
    cost : dict of str to float
        What float16 costs in dB of PSNR, by level of noise.
    half : bool
        Whether its weights are in float16.
    note : str
        Why not, or that nothing has changed.
    """

    entry: Entry
    cost: dict[str, float]
    half: bool
    note: str = ""

    def __str__(self) -> str:
        cost = ", ".join(f"{value:+.4f} dB at {level}" for level, value in self.cost.items())
        kind = "float16" if self.half else "float32"
        words = [f"{self.entry.reference}: {self.entry.bytes:,} bytes, {kind}"]
        return "; ".join(
            [*words, *([f"float16 costs {cost}"] if cost else []), *filter(None, [self.note])]
        )


def cost_of_half(
    checkpoint: Checkpoint, images: Sequence[Image], levels: Sequence[Level]
) -> dict[str, float]:
    """What float16 costs in dB of PSNR, by level of noise; the same noise with both.

    Raises
    ------
    CheckpointError
        When float16 cannot hold the weights.
    """
    half = Checkpoint.from_bytes(checkpoint.to_bytes(half=True))
    methods = [protocol.ModelMethod(Model(one)) for one in (checkpoint, half)]
    found: dict[str, list[float]] = {}
    for score in protocol.evaluate(methods, images, levels):
        found.setdefault(score.level, []).append(score.psnr)
    return {level: whole - rounded for level, (whole, rounded) in found.items()}


def check_card(card: Card) -> None:
    """Refuse a card that does not say what a user must know.

    Raises
    ------
    ValueError
        Naming what it lacks.
    """
    check_name(card.name)
    said = {
        "description": card.description,
        "noise": card.noise,
        "license": card.license,
        "terms": card.terms,
        "data.sources": card.data.get("sources"),
        "scores": card.scores,
    }
    if lacking := [name for name, value in said.items() if not value]:
        raise ValueError(
            f"the card of {card.name} must have {', '.join(said)}, got none of "
            f"{', '.join(lacking)}. Add them in a JSON file with --card."
        )


def bundle(
    checkpoint: Checkpoint,
    folder: Path,
    images: Sequence[Image],
    levels: Sequence[Level],
    *,
    in_place: bool = False,
) -> Bundled:
    """Put one model into the folder of bundled models and its index.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model, with its card.
    folder : Path
        Where the bundled models and their index are.
    images : sequence of Image
        Clean images, 0..1, on which the cost of float16 is measured.
    levels : sequence of Level
        The noise at which it is measured.
    in_place : bool, default False
        Whether it takes the place of the newest version, which was never released.

    Raises
    ------
    ValueError
        When the card lacks something, or all models together would be too large.
    """
    check_card(checkpoint.card)
    half, cost, note = True, {}, ""
    try:
        cost = cost_of_half(checkpoint, images, levels)
        if max(cost.values()) >= MOST_DECIBELS:
            half, note = False, f"float16 may cost less than {MOST_DECIBELS} dB only"
    except CheckpointError as error:
        half, note = False, str(error)
    content = checkpoint.to_bytes(half)
    index = parse_index((folder / FILE).read_bytes(), str(folder), "bundled")
    record = _record(checkpoint.card, content, index, in_place)
    for entry in index.versions:
        if (entry.name, entry.sha256) == (record["name"], record["sha256"]):
            return Bundled(entry, cost, half, "it is there already, nothing is changed")
    _write(folder, index, record, content)
    entry = next(
        one
        for one in parse_index((folder / FILE).read_bytes(), str(folder), "bundled").versions
        if one.sha256 == record["sha256"]
    )
    return Bundled(entry, cost, half, note)


def _record(card: Card, content: bytes, index: Index, in_place: bool) -> dict[str, Any]:
    """The model's line in the index."""
    newest = max((entry.version for entry in index.versions if entry.name == card.name), default=0)
    version = max(newest, 1) if in_place else newest + 1
    return {
        "name": card.name,
        "version": version,
        "file": f"{card.name}@{version}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "license": card.license,
        "terms": card.terms,
        "description": card.description,
        "noise": card.noise,
    }


def _write(folder: Path, index: Index, record: dict[str, Any], content: bytes) -> None:
    """The model's file, then the index."""
    this = (record["name"], record["version"])
    others = [one for one in index.records if (one["name"], one["version"]) != this]
    total = sum(one["bytes"] for one in others) + len(content)
    if total > MOST_BYTES:
        raise ValueError(
            f"all bundled models must have at most {MOST_BYTES:,} bytes together, got {total:,} "
            f"with {record['name']}. Make it smaller, or take an older version out."
        )
    write_file(folder / record["file"], content)
    with atomic_write(folder / FILE) as temporary:
        temporary.write_bytes(index_bytes(index.sequence + 1, [*others, record], index.default))


def with_fields(checkpoint: Checkpoint, fields: dict[str, Any]) -> Checkpoint:
    """A checkpoint whose card has these fields; tables are added to, not replaced."""
    merged = {
        name: getattr(checkpoint.card, name) | value if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return dataclasses.replace(checkpoint, card=dataclasses.replace(checkpoint.card, **merged))


def tables(folder: Path) -> tuple[str, str]:
    """Two tables in Markdown: which models there are, and what they learnt from and their terms."""
    index = parse_index((folder / FILE).read_bytes(), str(folder), "bundled")
    which = ["| model | made for | what it is | kB |", "| --- | --- | --- | --- |"]
    terms: dict[tuple[str, ...], list[str]] = {}
    ordered = sorted(
        index.versions, key=lambda one: (one.name != index.default, one.name, -one.version)
    )
    for entry in ordered:
        card = entry.card()
        default = entry.name == index.default and entry in index.entries
        shown = f"`{entry.reference}`" + (" (default)" if default else "")
        which.append(f"| {shown} | {card.noise} | {card.description} | {entry.bytes / 1000:,.0f} |")
        terms.setdefault((card.terms, *card.data["sources"]), []).append(f"`{entry.reference}`")
    parts = []
    for (term, *sources), names in terms.items():
        lines = [f"**{', '.join(names)}.** {term}", "", *(f"* {source}" for source in sources)]
        parts.append("\n".join(lines))
    return "\n".join(which), "\n\n".join(parts)


def main() -> None:
    """Bundle, and print a line for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--card", type=Path, help="JSON file with fields for the models' cards")
    parser.add_argument(
        "--images", type=Path, nargs="+", default=IMAGES, help="folders to measure on"
    )
    parser.add_argument("--limit", type=int, default=LIMIT, help="images of each folder")
    parser.add_argument("--levels", nargs="+", default=LEVELS, help="noise to measure at")
    parser.add_argument("--in-place", action="store_true", help="replace the newest version")
    parser.add_argument("--folder", type=Path, default=MODELS, help="the bundled models")
    arguments = parser.parse_args()
    images = [
        one for path in arguments.images for one in protocol.read_images(path, arguments.limit)
    ]
    levels = [protocol.level_named(name) for name in arguments.levels]
    fields = json.loads(arguments.card.read_text("utf-8")) if arguments.card else {}
    try:
        checkpoints = [with_fields(load_checkpoint(path), fields) for path in arguments.models]
        for checkpoint in checkpoints:
            check_card(checkpoint.card)  # of all, before the first is written
    except (ValueError, OSError) as error:
        sys.exit(f"bundle.py: {error_message(error)}")
    for checkpoint in checkpoints:
        done = bundle(checkpoint, arguments.folder, images, levels, in_place=arguments.in_place)
        print(done, flush=True)
    if arguments.folder == MODELS:
        for name, text in zip(("models", "terms"), tables(MODELS), strict=True):
            put_into(PAGE, name, text)
    total = sum(path.stat().st_size for path in arguments.folder.glob("*.safetensors"))
    print(f"all bundled models: {total:,} bytes")


if __name__ == "__main__":
    main()
