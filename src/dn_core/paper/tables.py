"""The paper's tables 1 to 5 beside our own figures, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from dn_core.messages import counted
from dn_core.paper.protocol import Method, Score

__all__ = ["TABLES", "Cost", "Table", "paper_columns", "paper_rows", "table_of"]

TABLES = (1, 2, 3, 4, 5)
SIZE_FOR_MACS = (480, 640)
"""Multiplications are counted for images of 640x480, as in the paper."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a method.

    Attributes
    ----------
    parameters : int
        Number of weights.
    macs : float
        Multiplications for 640x480 pixels.
    milliseconds : float, optional
        For 512x512 pixels on this machine; None: not measured.
    """

    parameters: int
    macs: float
    milliseconds: float | None = None

    @classmethod
    def of(cls, method: Method, milliseconds: float | None = None) -> Cost:
        """The cost of `method`."""
        return cls(
            method.parameters,
            method.macs_per_pixel * SIZE_FOR_MACS[0] * SIZE_FOR_MACS[1],
            milliseconds,
        )


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes
    ----------
    title : str
        Its title.
    header : tuple of str
        Names of the columns.
    rows : tuple of tuple of str
        Rows, each as long as the header.
    notes : tuple of str, optional
        Sentences under the table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def as_markdown(self) -> str:
        """For a document or a terminal."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"**{self.title}**", body, *self.notes]) + "\n"

    def as_csv(self) -> str:
        """Header and rows."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()

    def as_json(self) -> str:
        """Title, notes, and each row as an object."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return (
            json.dumps({"title": self.title, "rows": rows, "notes": list(self.notes)}, indent=1)
            + "\n"
        )


def paper_columns(number: int) -> list[str]:
    """The paper's networks in its table `number`."""
    return list(_paper()["tables"][str(number)]["columns"])


def paper_rows(number: int) -> dict[str, list[str]]:
    """The paper's figures by level; in table 5 by ``"set: level"``."""
    return dict(_paper()["tables"][str(number)]["levels"])


def table_of(
    number: int | None, scores: Sequence[tuple[str, Score]], costs: dict[str, Cost]
) -> Table:
    """Make a table of our scores beside the paper's.

    Parameters
    ----------
    number : int or None
        The paper's table, 1 to 5; None: ours alone.
    scores : sequence of tuple (str, Score)
        Our scores, each with the name of its image set.
    costs : dict of str to Cost
        What each method costs, by its name.

    Returns
    -------
    Table
        A row for each level, a column for each network of the paper and each method.

    Notes
    -----
    Figures are PSNR, in all tables but the first with SSIM. The paper's images of tables 1 to 4 are
    1,000 of PASCAL VOC 2010, so differences between columns count, not those between its columns
    and ours.
    """
    alone: dict[str, Any] = {
        "title": "PSNR (dB) / SSIM",
        "columns": [],
        "parameters": [],
        "levels": {},
    }
    paper: dict[str, Any] = _paper()["tables"][str(number)] if number else alone
    methods = list(costs)
    sets = list(dict.fromkeys(name for name, _ in scores))
    cells = {(name, score.level, score.method): _cell(score, number) for name, score in scores}
    header = ("", *(f"paper: {column}" for column in paper["columns"]), *methods)
    dashes = ["-"] * len(paper["columns"])
    sizes = [f"{size:,}" if size else "-" for size in paper["parameters"]]
    rows = [
        ("parameters", *sizes, *(f"{cost.parameters:,}" for cost in costs.values())),
        (
            "G multiplications, 640x480",
            *dashes,
            *(f"{cost.macs / 1e9:.1f}" for cost in costs.values()),
        ),
    ]
    if any(cost.milliseconds for cost in costs.values()):
        times = (
            f"{cost.milliseconds:.1f}" if cost.milliseconds else "-" for cost in costs.values()
        )
        rows.append(("ms, 512x512, here", *dashes, *times))
    for name in sets:
        for level in dict.fromkeys(score.level for given, score in scores if given == name):
            figures = paper["levels"].get(f"{name}: {level}" if number == 5 else level, dashes)
            label = level if len(sets) == 1 else f"{name}: {level}"
            rows.append(
                (label, *figures, *(cells.get((name, level, method), "-") for method in methods))
            )
    title = f"Table {number}: {paper['title']}" if number else paper["title"]
    counts = {name: score.images for name, score in reversed(scores)}
    images = ", ".join(f"{name} ({counted(counts[name], 'image')})" for name in sets)
    source = [_paper()["source"]] if number else []
    return Table(title, header, tuple(rows), (f"Ours on {images}.", *source))


def _cell(score: Score, number: int | None) -> str:
    return f"{score.psnr:.2f}" if number == 1 else f"{score.psnr:.2f}/{score.ssim:.4f}"


@functools.cache
def _paper() -> dict[str, Any]:
    content = (resources.files("dn_core.paper") / "paper.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(content)
    return loaded
