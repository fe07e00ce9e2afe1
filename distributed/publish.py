"""Publish models to a registry, from which dn-resnet and the napari plugin download them.

    python distributed/publish.py MODEL.safetensors ... --to FOLDER_OR_ADDRESS --test DIR

The registry is a folder (shared, or served by a web server) or an object store of fsspec such as
``s3://bucket/models``. Each model is checked and scored on the images of DIR. It is refused if it
is worse than the noisy image, or worse by more than a tolerance than the version that it replaces,
measured on the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dn_cluster.candidates import QualityGate, read_candidates
from dn_cluster.command import Debug, command_app, run_and_report
from dn_cluster.registry_writer import (
    Release,
    open_registry,
    publish,
    read_index,
    write_model_file,
)
from dn_core.paper import protocol

DEFAULT_LEVELS = ("gaussian 10", "gaussian 25", "gaussian 50")
DEFAULT_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How models are tested before they are published.

    Attributes
    ----------
    images : Path
        Folder of clean test images.
    levels : sequence of str, default DEFAULT_LEVELS
        Names of the paper's noise levels to score at.
    limit : int, optional
        How many of the images are used, from the first; None: all.
    tolerance : float, default DEFAULT_TOLERANCE
        Loss in dB, against the version that a model replaces, that is accepted.
    reason : str, default ""
        Why worse models are published; empty: they are refused.
    """

    images: Path
    levels: Sequence[str] = DEFAULT_LEVELS
    limit: int | None = None
    tolerance: float = DEFAULT_TOLERANCE
    reason: str = ""

    def gate(self) -> QualityGate:
        """Read the images and make the gate that models must pass.

        Returns
        -------
        QualityGate
            With the images in memory.

        Raises
        ------
        ValueError
            When a level is not one of the paper's.
        """
        known = protocol.paper_levels()
        if unknown := [name for name in self.levels if name not in known]:
            raise ValueError(
                f"level must be one of {', '.join(known)}, got {unknown[0]!r}. Change --level."
            )
        images = protocol.read_images(self.images, self.limit)
        levels = [known[name] for name in self.levels]
        return QualityGate(images, levels, self.tolerance, self.reason)


def publish_models(paths: Sequence[Path], to: str, settings: ScoringSettings) -> str:
    """Read, score and publish models: all of them, or none where one is refused.

    Parameters
    ----------
    paths : sequence of Path
        Model files.
    to : str
        The registry: a folder, or an address of fsspec.
    settings : ScoringSettings
        How the models are tested.

    Returns
    -------
    str
        A line for each model.
    """
    address = open_registry(to)
    candidates = read_candidates(paths)
    gate = settings.gate()
    index = read_index(address)
    entries = {entry.name: entry for entry in index.entries}
    releases: list[Release] = []
    lines = []
    for candidate in candidates:
        old = entries.get(candidate.name)
        if old is not None and old.sha256 == candidate.sha256:
            write_model_file(address, old.file, candidate)
            lines.append(f"{candidate.name}: version {old.version} already has this content")
        else:
            releases.append((candidate, gate.record(address, candidate, old)))
    if releases:
        sequence = publish(address, releases, index)
        for _, record in releases:
            lines.append(
                f"{record['name']}: published version {record['version']} to {to} (sequence number "
                f"{sequence})"
            )
    return "\n".join(lines)


def main(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Model files.")],
    to: Annotated[
        str,
        typer.Option(help="The registry: a folder, or an fsspec address like s3://bucket/models."),
    ],
    test: Annotated[Path, typer.Option(help="Folder of clean test images.")],
    level: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Noise level to score at. Repeatable. Default: {', '.join(DEFAULT_LEVELS)}."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only this many of the images.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Loss in dB that a new version may have.")
    ] = DEFAULT_TOLERANCE,
    accept_worse: Annotated[
        str,
        typer.Option(metavar="REASON", help="Publish a worse model; the index shows the reason."),
    ] = "",
    debug: Debug = False,
) -> None:
    """Score models, refuse worse ones, publish the others."""
    settings = ScoringSettings(test, level or DEFAULT_LEVELS, limit, tolerance, accept_worse)
    run_and_report(lambda: publish_models(models, to, settings), debug)


app = command_app(
    main,
    "Score models, refuse those that are worse than what they replace, and publish the others to a "
    "registry.",
)

if __name__ == "__main__":
    app()
