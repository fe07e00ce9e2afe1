"""``dn-resnet phantoms``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from dn_core.cli.console import Debug, bar, explained

__all__ = ["phantoms"]


def phantoms(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the images.")],
    count: Annotated[int, typer.Option(help="How many images.")] = 100,
    size: Annotated[int, typer.Option(help="Their side in pixels, 16 or more.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed: the same one gives the same images.")] = 0,
    kind: Annotated[
        str | None,
        typer.Option(
            help="nuclei, filaments, membranes, mitochondria, cytoplasm, puncta or haze; by "
            "default scene, which mixes them."
        ),
    ] = None,
    point_spread: Annotated[
        float | None,
        typer.Option(
            help="Full width at half maximum of the microscope's point spread in pixels, 1 to 3.5; "
            "by default another for each image."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make up fluorescence images without any noise, as 16-bit PNG files in a new folder.

    'dn-resnet train RECIPE --data phantoms' trains on such images without writing them.
    """
    with explained(debug):
        from dn_core.training.phantom_files import phantom_files

        writing = phantom_files(out, count, size, seed, kind=kind, point_spread=point_spread)
        with bar("making images") as advance, contextlib.closing(writing) as progress:
            for step in progress:
                advance(step.done, step.total)
        typer.echo(out)
