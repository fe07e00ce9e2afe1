"""Fluorescent structures of made-up cells: densities of dye before the microscope sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dn_core.training.field_of_view import FieldOfView

__all__ = ["STRUCTURES"]

Image = NDArray[np.float64]


class _Curves(NamedTuple):
    """Points along curves.

    Attributes
    ----------
    rows, columns : ndarray
        ``(points, count)``, about a pixel from one to the next.
    """

    rows: Image
    columns: Image


def _nuclei(view: FieldOfView) -> Image:
    """Nuclei of cells: ellipses with a wavy outline, chromatin and darker nucleoli."""
    draws, cells = view.draws, view.cells
    share, spread = draws.uniform(0.2, 0.42), draws.uniform(0.05, 0.6)
    chromatin = np.exp(draws.uniform(0.05, 0.6) * view.texture(0.8, 0.3 * view.cell))
    edge, nucleoli = draws.uniform(0.6, 2.5), draws.chance(0.6)
    total = np.zeros((view.size, view.size))
    living = np.maximum(cells.bodies, 0) > 0
    for row, column in zip(cells.rows, cells.columns, strict=True):
        if not living[int(row) % view.size, int(column) % view.size]:
            continue
        radius = min(share * view.cell * draws.log_uniform(0.75, 1.25), view.size / 4)
        window, down, right = view.around(row, column, 1.6 * radius + 3)
        depth = _ellipse(view, down, right, radius)
        inside = np.clip(depth / edge + 0.5, 0, 1)
        for _ in range(draws.whole(1, 4) if nucleoli else 0):
            away, angle = radius * draws.uniform(0, 0.6), draws.uniform(0, 2 * math.pi)
            hole = _ellipse(
                view,
                down - away * math.sin(angle),
                right - away * math.cos(angle),
                radius * draws.uniform(0.1, 0.28),
            )
            inside = inside * (1 - draws.uniform(0.2, 0.8) * np.clip(hole / edge + 0.5, 0, 1))
        level = float(draws.brightnesses(spread, 1)[0])
        total[window] = np.maximum(total[window], level * inside)
    return total * chromatin


def _ellipse(view: FieldOfView, down: Image, right: Image, radius: float) -> Image:
    """How deep pixels lie in a wavy ellipse, in pixels, by their distance from its centre.

    Negative outside.
    """
    draws = view.draws
    turn, longer = draws.uniform(0, math.pi), draws.uniform(1.0, 1.35)
    along = (down * math.sin(turn) + right * math.cos(turn)) / longer
    across = (down * math.cos(turn) - right * math.sin(turn)) * longer
    angle = np.arctan2(across, along)
    outline = 1 + sum(
        draws.uniform(0, height) * np.cos(waves * angle + draws.uniform(0, 6.3))
        for waves, height in ((2, 0.06), (3, 0.06), (5, 0.03))
    )
    depth: Image = radius * outline - np.hypot(along, across)
    return depth


def _cytoplasm(view: FieldOfView) -> Image:
    """Bodies of cells with a texture, and often with a dark nucleus."""
    draws, cells = view.draws, view.cells
    texture = view.texture(draws.log_uniform(0.8, 3), draws.uniform(0.1, 0.5) * view.cell)
    body = cells.bodies ** draws.uniform(0.5, 1.5) * np.exp(draws.uniform(0.1, 0.6) * texture)
    levels = draws.brightnesses(draws.uniform(0.05, 0.5), len(cells.rows))
    body = body * levels[cells.index]
    if draws.chance(0.6):
        hole = np.clip((draws.uniform(0.15, 0.3) * view.cell - cells.first) / 2 + 0.5, 0, 1)
        body = body * (1 - draws.uniform(0.3, 1) * hole)
    return body


def _membranes(view: FieldOfView) -> Image:
    """Outlines of cells, where neighbours touch and where a cell ends."""
    draws, cells = view.draws, view.cells
    width = draws.uniform(0.4, 1.6)
    touching = np.exp(-(((cells.second - cells.first) / (2 * width)) ** 2))
    radius = draws.uniform(0.42, 0.62) * view.cell
    ending = np.exp(-(((cells.first - radius) / width) ** 2)) * (cells.second > cells.first + 2)
    outline = touching if draws.chance(0.6) else np.maximum(ending, draws.uniform(0, 1) * touching)
    levels = draws.brightnesses(draws.uniform(0.1, 0.5), len(cells.rows))
    along = np.exp(draws.uniform(0.1, 0.6) * view.texture(1.0, 0.5 * view.cell))
    inside = draws.uniform(0, 0.25) * (cells.first < radius)
    image: Image = (outline + inside) * levels[cells.index] * along
    return image


def _filaments(view: FieldOfView) -> Image:
    """Microtubules, which wander, or actin in bundles that lie side by side."""
    draws = view.draws
    length = int(min(view.cell, view.size) * draws.uniform(0.5, 1.6)) + 4
    count = _number(view, draws.log_uniform(0.03, 0.9) * view.size**2 / length, 600_000 // length)
    actin = draws.chance(0.5)
    curves = _curves(view, count, length, draws.log_uniform(0.002, 0.03), aligned=actin)
    amounts = draws.brightnesses(draws.uniform(0.2, 0.8), 1, count) * _beads(view, length, count)
    image = view.deposited(*curves, amounts)
    if actin:
        strands = draws.uniform(0.6, 3)
        image = image + draws.uniform(0.5, 2) * view.blurred(
            image * np.exp(draws.uniform(0.2, 1.2) * view.smooth(0.4 * view.cell)), strands
        )
    if draws.chance(0.5):
        image = image * (0.03 + view.cells.bodies)
    return np.maximum(image, 0)


def _mitochondria(view: FieldOfView) -> Image:
    """Short thick rods that bend, or long ones that make a network."""
    draws = view.draws
    thick = draws.log_uniform(0.5, 2)
    network = draws.chance(0.5)
    length = draws.whole(40, 140) if network else draws.whole(5, 36)
    covered = draws.log_uniform(0.1, 0.9) if network else draws.log_uniform(0.04, 0.5)
    count = _number(view, covered * view.size**2 / (3 * thick * length), 600_000 // length)
    where, bend = _around_nuclei(view), draws.uniform(0.02, 0.16)
    curves = _curves(view, count, length, bend, aligned=draws.chance(0.3), within=where)
    amounts = draws.brightnesses(draws.uniform(0.1, 0.6), 1, count) * _beads(view, length, count)
    return np.maximum(view.blurred(view.deposited(*curves, amounts), thick), 0)


def _puncta(view: FieldOfView) -> Image:
    """Carpets of points at the limit of resolution, on cells or in rows along their fibres."""
    draws, size = view.draws, view.size
    where = _carpet(view)
    density = draws.log_uniform(0.03, 1.0) / (0.5 + view.point_spread**2)  # a resolved area has one
    count = _number(view, density * where.sum() / float(np.quantile(where, 0.95)), 200_000)
    if draws.chance(0.3):
        length = int(0.6 * min(view.cell, size)) + 4
        fibres = max(1, round(count / (draws.uniform(0.1, 0.5) * length)))
        curves = _curves(view, fibres, length, 0.01, aligned=True, within=where)
        kept = draws.uniforms(length, fibres) < count / (length * fibres)
        rows, columns = curves.rows[kept], curves.columns[kept]
    else:
        rows, columns = view.points_in(where, count)
    amounts = draws.brightnesses(draws.uniform(0.1, 0.9), rows.size)
    points = view.deposited(rows, columns, amounts)
    if draws.chance(0.3):  # vesicles, which are larger than the point spread
        points = np.maximum(view.blurred(points, draws.uniform(0.5, 1.5)), 0)
    strays = _number(view, draws.log_uniform(1e-5, 1e-3) * size**2, 10_000)
    rows, columns = size * draws.uniforms(2, strays)
    points = points + view.deposited(rows, columns, draws.brightnesses(0.5, strays))
    # The light between them: of points that are too dense to be told apart.
    between: Image = draws.uniform(0, 1.5) * points.mean() / where.mean() * where
    return points + between


def _carpet(view: FieldOfView) -> Image:
    """Where points lie: all over, in patches, or in cells, more or less densely."""
    draws = view.draws
    kind = draws.whole(0, 2)
    if kind == 0:
        where = np.ones((view.size, view.size))
    elif kind == 1:
        where = np.clip(
            view.smooth(draws.log_uniform(0.1, 0.5) * view.cell) + draws.uniform(-1, 1.2), 0, 1
        )
    else:
        where = view.cells.bodies ** draws.uniform(0.3, 1.5)
    if draws.chance(0.7):
        where = where * np.exp(draws.uniform(0.2, 0.9) * view.texture(2, 0.5 * view.cell))
    return where + 1e-9


def _around_nuclei(view: FieldOfView) -> Image:
    """Cytoplasm, most of it near the nucleus and none in it."""
    nucleus = view.draws.uniform(0.15, 0.3) * view.cell
    return (
        view.cells.bodies * (view.cells.first > nucleus) * np.exp(-view.cells.first / view.cell)
        + 1e-9
    )


def _number(view: FieldOfView, expected: float, most: int) -> int:
    """A number of objects near the expected one, at least 1."""
    return min(max(1, round(expected * view.draws.uniform(0.8, 1.2))), most)


def _beads(view: FieldOfView, length: int, count: int) -> Image:
    """Dye along curves: even, or gathered in beads."""
    draws = view.draws
    every = draws.log_uniform(2, 20)
    phase = 2 * np.pi * draws.uniforms(1, count)
    drift = 0.5 * np.cumsum(draws.normals(length, count), axis=0)
    waves = np.cos(
        2 * np.pi * np.arange(length)[:, None] / every + phase + drift / math.sqrt(every)
    )
    return np.exp(draws.uniform(0, 0.7) ** 2 * 2 * waves)


def _curves(
    view: FieldOfView,
    count: int,
    length: int,
    bend: float,
    *,
    aligned: bool = False,
    within: Image | None = None,
) -> _Curves:
    """_Curves that bend at random, by `bend` radians a pixel.

    They begin anywhere, or `within` where a field is high; `aligned` ones follow a common
    direction, which changes slowly over the field.
    """
    draws, size = view.draws, view.size
    if within is None:
        row, column = size * draws.uniforms(count), size * draws.uniforms(count)
    else:
        row, column = view.points_in(within, count)
    angle = 2 * np.pi * draws.uniforms(count)
    turns = bend * draws.normals(length, count)
    direction = None
    if aligned:
        waviness = draws.uniform(0.1, 0.6)
        direction = draws.uniform(0, np.pi) + waviness * view.smooth(0.4 * view.cell)
        angle = direction[row.astype(int) % size, column.astype(int) % size] + 0.1 * (angle - np.pi)
    curvature = np.zeros(count)
    rows, columns = np.empty((2, length, count))
    for step in range(length):
        rows[step], columns[step] = row, column
        curvature = 0.6 * curvature + turns[step]
        angle = angle + curvature
        if direction is not None:
            there = direction[row.astype(np.int64) % size, column.astype(np.int64) % size]
            angle = angle + 0.1 * np.sin(2 * (there - angle))
        row, column = row + np.sin(angle), column + np.cos(angle)
    return _Curves(rows, columns)


STRUCTURES: dict[str, Callable[[FieldOfView], Image]] = {
    "nuclei": _nuclei,
    "filaments": _filaments,
    "membranes": _membranes,
    "mitochondria": _mitochondria,
    "cytoplasm": _cytoplasm,
    "puncta": _puncta,
}
"""Each makes a density of dye, ``(size, size)``, 0 or more."""
