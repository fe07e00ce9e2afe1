"""Made-up fluorescence images without any noise, to train on where there are no clean images.

Dye is put into made-up cells (`fluorescent_structures`), and a microscope looks at it
(`field_of_view`): its optics blur everything to their point spread, and light from above and below
the focus adds haze.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dn_core.messages import did_you_mean
from dn_core.training.field_of_view import Draws, FieldOfView
from dn_core.training.fluorescent_structures import STRUCTURES

__all__ = ["PHANTOMS", "PHANTOMS_VERSION", "check_phantom", "phantom", "phantom_kinds"]

PHANTOMS = "phantoms"
"""What stands for made-up images in place of a folder."""
PHANTOMS_VERSION = 1
"""Raised when a seed gives other pixels than before: training runs are not resumed across it."""

SMALLEST, LARGEST = 16, 8192
SHARPEST, BLURRIEST = 1.0, 3.5
CARPETS = 0.4
"""Share of scenes with a carpet of puncta, which photographs have nothing like."""
LEVELS = 65535
"""Grey levels: pixels are multiples of 1/65535, as in 16-bit files. So the last digits, in which
processors differ, are rounded away."""

Image = NDArray[np.float64]


def phantom_kinds() -> tuple[str, ...]:
    """Name the kinds of made-up images.

    Returns
    -------
    tuple of str
        ``"nuclei"``, ``"filaments"`` (microtubules, actin), ``"membranes"`` (outlines of cells),
        ``"mitochondria"``, ``"cytoplasm"`` (bodies of cells), ``"puncta"`` (dense carpets of points
        at the limit of resolution), ``"haze"`` (light from out of focus) and ``"scene"``, which
        mixes them.

    Examples
    --------
    >>> "puncta" in phantom_kinds()
    True
    """
    return (*STRUCTURES, "haze", "scene")


def check_phantom(
    size: int,
    kind: str | None = None,
    point_spread: float | None = None,
    seed: int | tuple[int, ...] = 0,
) -> None:
    """Refuse settings of made-up images that are out of their range.

    Parameters
    ----------
    size, kind, point_spread, seed
        As for `phantom`.

    Raises
    ------
    TypeError, ValueError
        As `phantom`.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(f"size must be a whole number of pixels, got {size!r}. Change size.")
    if not SMALLEST <= size <= LARGEST:
        why = ": smaller made-up images show no structure" if size < SMALLEST else ""
        raise ValueError(
            f"size must be {SMALLEST}..{LARGEST} pixels, got {size}{why}. Change size."
        )
    if kind is not None and kind not in phantom_kinds():
        hint = did_you_mean(str(kind), phantom_kinds())
        raise ValueError(
            f"kind must be one of {', '.join(phantom_kinds())}, got {kind!r}. "
            f"{hint or 'Change kind.'}"
        )
    known = (int, float, np.integer, np.floating)
    if point_spread is not None and (
        isinstance(point_spread, bool) or not isinstance(point_spread, known)
    ):
        raise TypeError(
            f"point_spread must be a number of pixels, got {point_spread!r}. Change point_spread."
        )
    if point_spread is not None and not SHARPEST <= point_spread <= BLURRIEST:
        raise ValueError(
            f"point_spread must be {SHARPEST:g}..{BLURRIEST:g} pixels (full width at half "
            f"maximum), got {point_spread}. Change point_spread."
        )
    for number in seed if isinstance(seed, tuple) else (seed,):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise TypeError(f"seed must be a whole number, got {seed!r}. Change seed.")
        if number < 0:
            raise ValueError(f"seed must be 0 or more, got {seed!r}. Change seed.")


def phantom(
    size: int,
    *,
    seed: int | tuple[int, ...],
    kind: str | None = None,
    point_spread: float | None = None,
) -> NDArray[np.float32]:
    """Make up a fluorescence image without any noise.

    The same arguments give the same pixels on any machine, whatever was made before. The image
    continues periodically: its left edge fits its right one, and its top its bottom.

    Parameters
    ----------
    size : int
        Its side in pixels, 16 to 8192; any number, but products of small primes are fastest.
    seed : int or tuple of int
        Seed of all random numbers: one or more whole numbers of 0 or more.
    kind : str, optional
        One of `phantom_kinds`; by default ``"scene"``.
    point_spread : float, optional
        Full width at half maximum of the microscope's point spread (an Airy disk) in pixels, 1 to
        3.5; by default drawn. The camera's pixels come on top.

    Returns
    -------
    numpy.ndarray
        ``(size, size)``, float32, 0..1, the brightest pixel 1: multiples of 1/65535.

    Raises
    ------
    TypeError
        When size or seed is not a whole number, or point_spread not a number.
    ValueError
        When one of the settings is out of its range.

    Notes
    -----
    About 40 ms for 256x256 pixels on one core. Beyond the optics' cut-off frequency (1.029 /
    point_spread cycles a pixel, where that is below 0.5) there is nothing but the rounding to
    1/65535.

    Examples
    --------
    >>> image = phantom(64, seed=0, kind="puncta")
    >>> image.shape, float(image.max())
    ((64, 64), 1.0)
    """
    check_phantom(size, kind, point_spread, seed)
    draws = Draws(seed)
    drawn = draws.uniform(SHARPEST, BLURRIEST)
    view = FieldOfView(int(size), draws, drawn if point_spread is None else float(point_spread))
    image = _image(view, kind or "scene")
    image = image / max(float(image.max()), 1e-12)
    return (np.rint(image * LEVELS) / LEVELS).astype(np.float32)


def _image(view: FieldOfView, kind: str) -> Image:
    if kind == "scene":
        return _scene(view)
    if kind == "haze":
        return _haze(view, _scene(view))
    return _layer(view, kind) + view.draws.uniform(0, 0.05)


def _extent(view: FieldOfView) -> Image | float:
    """Where there is anything: everywhere, or on one side of a cell that is larger than the field.

    On the other side 1 percent is left.
    """
    if not view.draws.chance(0.35):
        return 1.0
    length, width = 0.25 * view.size, view.draws.log_uniform(1, 30)
    edge = view.smooth(length) + view.draws.uniform(-0.8, 1.2)
    extent: Image = np.clip(0.5 + edge * length / width, 0.01, 1)
    return extent


def _layer(view: FieldOfView, kind: str, extent: Image | float = 1.0) -> Image:
    """A structure as the microscope sees it, its bright parts 1."""
    draws = view.draws
    density = STRUCTURES[kind](view) * extent
    if draws.chance(0.35):  # parts of it lie above or below the focus
        focus = np.clip(0.5 + view.smooth(draws.uniform(0.1, 0.6) * view.cell), 0, 1)
        above = view.blurred(density * (1 - focus), draws.log_uniform(1, 8))
        density = density * focus + np.maximum(above, 0)
    image = view.seen(density)
    return image / max(float(np.quantile(image, 0.998)), 0.05 * float(image.max()), 1e-12)


def _haze(view: FieldOfView, image: Image) -> Image:
    """Light of an image from other depths, some of it nearer to the focus."""
    near = view.draws.log_uniform(1, min(30, view.size / 8))
    far = view.draws.log_uniform(near, min(60, view.size / 4))
    share = view.draws.uniform(0, 1)
    hazy: Image = share * view.blurred(image, near) + (1 - share) * view.blurred(image, far)
    return np.maximum(hazy, 0)


def _scene(view: FieldOfView) -> Image:
    """One to three structures in the same cells, the haze that they make, and a dark offset."""
    draws = view.draws
    kinds = sorted(STRUCTURES)
    if draws.chance(CARPETS):
        # Carpets mostly lie on a cell's own faint light.
        chosen = ["puncta", *(["cytoplasm"] if draws.chance(0.5) else [])]
        kinds = [kind for kind in kinds if kind not in chosen]
        more = draws.whole(0, 2 - len(chosen))
    else:
        chosen, more = [], draws.whole(1, 3)
    for _ in range(more):
        chosen.append(kinds.pop(draws.whole(0, len(kinds) - 1)))
    extent = _extent(view)
    total = np.zeros((view.size, view.size))
    for kind in chosen:
        total += _layer(view, kind, extent) * float(draws.brightnesses(0.6, 1)[0])
    if draws.chance(0.8):
        total += draws.uniform(0, 2.5) * _haze(view, total)
    if draws.chance(0.1):  # the whole lies above or below the focus
        total = np.maximum(view.blurred(total, draws.log_uniform(1, 6)), 0)
    return total + draws.uniform(0, 0.06) * float(total.max())
