"""``dn-resnet evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dn_core.cli.console import Debug, bar, explained

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[
        list[Path], typer.Option(help="Folder of clean test images; may be given several times.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A name, one version (dn-fast@1) or a file; may be given several times. Default: "
            "the newest version of all models."
        ),
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(help="Weights of DnCNN or FFDNet (.safetensors) to measure beside them."),
    ] = None,
    table: Annotated[
        int | None, typer.Option(min=1, max=5, help="A table of the paper to compare with.")
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="A noise level, such as 'gaussian 25' or 'jpeg 10'; may be given several times."
        ),
    ] = None,
    figure: Annotated[
        int | None,
        typer.Option(help="A figure of the paper to draw instead: 6 (crops) or 8 (compression)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first images of each folder.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    speed: Annotated[bool, typer.Option("--speed", help="Also time each model.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the table as .md, .csv and .json, or for the figure."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure models as the paper does: PSNR and SSIM at its noise levels, beside its figures."""
    with explained(debug):
        from dn_core.models import registry
        from dn_core.paper import protocol, tables
        from dn_core.paper.baselines import BaselineMethod, load_baseline

        levels = _levels(table, level)
        sets = {folder.name: protocol.read_images(folder, limit) for folder in data}
        if len(sets) < len(data):
            raise ValueError(
                "the folders of --data must have different names, as tables show them, got two of "
                "the same name. Rename one."
            )
        methods: list[Any] = [
            protocol.ModelMethod(name)
            for name in model or [entry.name for entry in registry.entries()]
        ]
        methods += [BaselineMethod(load_baseline(path)) for path in baseline or ()]
        if len(names := {method.name for method in methods}) < len(methods):
            raise ValueError(
                f"models must have different names, got two of the same name (there are "
                f"{', '.join(sorted(names))}). Rename one's card, or measure it alone."
            )
        if figure is not None:
            _draw_figure(figure, methods, sets, levels if level else levels[-1:], seed, out)
            return
        costs = {
            method.name: tables.Cost.of(method, protocol.milliseconds(method) if speed else None)
            for method in methods
        }
        scores: list[tuple[str, Any]] = []
        with bar("measuring") as advance:
            for name, images in sets.items():
                for score in protocol.evaluate(methods, images, levels, seed):
                    advance(len(scores) + 1, score.total * len(sets))
                    scores.append((name, score))
        found = tables.table_of(table, scores, costs)
        if out is not None:
            _write_table(out, f"table-{table}" if table else "scores", found)
        typer.echo(found.as_markdown(), nl=False)


def _levels(table: int | None, wanted: list[str] | None) -> list[Any]:
    """The levels of a table, or those wanted."""
    from dn_core.paper import protocol, tables

    names = wanted or list(protocol.paper_levels())
    if table == 5 and not wanted:
        names = list(dict.fromkeys(row.partition(": ")[2] for row in tables.paper_rows(5)))
    return [protocol.level_named(name) for name in names]


def _write_table(folder: Path, name: str, table: Any) -> None:
    from dn_core.safe_write import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in (
        (".md", table.as_markdown()),
        (".csv", table.as_csv()),
        (".json", table.as_json()),
    ):
        with atomic_write(folder / f"{name}{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")


def _draw_figure(
    number: int,
    methods: list[Any],
    sets: dict[str, Any],
    levels: list[Any],
    seed: int,
    out: Path | None,
) -> None:
    from dn_core.paper import figures
    from dn_core.safe_write import atomic_write

    if number not in (6, 8):
        raise ValueError(f"--figure must be 6 or 8, got {number}. Change it.")
    if out is None:
        raise ValueError("--figure needs a folder to draw to, got none. Add --out.")
    out.mkdir(parents=True, exist_ok=True)
    for name, images in sets.items():
        path = out / f"figure-{number}-{name}.png"
        if number == 6:
            figures.draw_crops(path, methods, images, levels, seed)
        else:
            total = sum(len(settings) for _, settings in figures.codecs().values())
            points = []
            with bar(name) as advance:
                for point in figures.measure_curves(methods, images):
                    points.append(point)
                    advance(len(points), total)
            figures.draw_curves(path, points)
            with atomic_write(path.with_suffix(".csv")) as temporary:
                temporary.write_text(figures.curves_as_csv(points), encoding="utf-8", newline="")
        typer.echo(path)
