"""``dn-resnet evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dn_core.cli.console import Debug, bar, explained

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[list[Path], typer.Option(help="Folder of clean test images; may be given several times.")],
    model: Annotated[list[str] | None, typer.Option(help="A name or a file; may be given several times. Default: all there are.")] = None,
    peer: Annotated[list[Path] | None, typer.Option(help="Weights of DnCNN or FFDNet (.safetensors) to measure beside them.")] = None,
    table: Annotated[int | None, typer.Option(min=1, max=5, help="A table of the paper to print ours beside.")] = None,
    level: Annotated[
        list[str] | None, typer.Option(help="A level, such as 'gaussian 25' or 'jpeg 10'; may be given several times.")
    ] = None,
    figure: Annotated[int | None, typer.Option(help="A figure of the paper to draw instead: 6 (crops) or 8 (compression).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images of each folder.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    speed: Annotated[bool, typer.Option("--speed", help="Also time each model.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the table as .md, .csv and .json, or for the figure.")] = None,
    debug: Debug = False,
) -> None:
    """Measure models as the paper does: PSNR and SSIM at its levels of noise, beside its own figures."""
    with explained(debug):
        from dn_core.evaluation import measure, tables
        from dn_core.evaluation.peers import PeerMethod, load_peer
        from dn_core.models import registry

        levels = _levels(table, level)
        sets = {folder.name: measure.read_images(folder, limit) for folder in data}
        if len(sets) < len(data):
            raise ValueError("two folders of --data have the same name; different ones are expected, as tables name them so.")
        methods: list[Any] = [measure.OwnMethod(name) for name in model or [entry.name for entry in registry.entries()]]
        methods += [PeerMethod(load_peer(path)) for path in peer or ()]
        if len(names := {method.name for method in methods}) < len(methods):
            raise ValueError(
                f"two models have the same name (there are {', '.join(sorted(names))}); rename one's card, or measure it alone."
            )
        if figure is not None:
            _draw_figure(figure, methods, sets, levels if level else levels[-1:], seed, out)
            return
        costs = {method.name: tables.Cost.of(method, measure.milliseconds(method) if speed else None) for method in methods}
        scores: list[tuple[str, Any]] = []
        with bar("measuring") as advance:
            for name, images in sets.items():
                for score in measure.evaluate(methods, images, levels, seed):
                    advance(len(scores) + 1, score.total * len(sets))
                    scores.append((name, score))
        found = tables.table_of(table, scores, costs)
        if out is not None:
            _write_table(out, f"table-{table}" if table else "scores", found)
        typer.echo(found.as_markdown(), nl=False)


def _levels(table: int | None, wanted: list[str] | None) -> list[Any]:
    """The levels of a table, or those wanted."""
    from dn_core.evaluation import measure, tables

    names = wanted or list(measure.paper_levels())
    if table == 5 and not wanted:
        names = list(dict.fromkeys(row.partition(": ")[2] for row in tables.paper_rows(5)))
    return [measure.level_named(name) for name in names]


def _write_table(folder: Path, name: str, table: Any) -> None:
    from dn_core.safe_write import replaced_file

    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in ((".md", table.as_markdown()), (".csv", table.as_csv()), (".json", table.as_json())):
        with replaced_file(folder / f"{name}{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")


def _draw_figure(number: int, methods: list[Any], sets: dict[str, Any], levels: list[Any], seed: int, out: Path | None) -> None:
    from dn_core.evaluation import figures
    from dn_core.safe_write import replaced_file

    if number not in (6, 8):
        raise ValueError(f"--figure is {number}; 6 or 8 is expected. Change it.")
    if out is None:
        raise ValueError("--figure needs a folder to draw to; --out is expected. Add it.")
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
            with replaced_file(path.with_suffix(".csv")) as temporary:
                temporary.write_text(figures.curves_as_csv(points), encoding="utf-8", newline="")
        typer.echo(path)
