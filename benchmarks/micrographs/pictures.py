"""Sheets of crops where a method wins most and loses most, chosen by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dn_core.paper.protocol import psnr
from dn_core.safe_write import atomic_write
from micrographs.cases import Case, Image

__all__ = ["Crop", "extremes", "write_sheet"]

SIDE, SCALE = 88, 2
GAP, LINE = 4, 15


@dataclass(frozen=True)
class Crop:
    """A square of a case.

    Attributes
    ----------
    case : Case
        The image.
    top, left : int
        The first row and column.
    difference : float
        How much better the one method is than the other there, in dB.
    """

    case: Case
    top: int
    left: int
    difference: float

    def of(self, image: Image) -> Image:
        """The square of an image."""
        return image[self.top : self.top + SIDE, self.left : self.left + SIDE]


def extremes(
    cases: Sequence[Case], ours: Sequence[Image], others: Sequence[Image]
) -> tuple[Crop, Crop]:
    """The crops where our result is most ahead of another one, and most behind.

    Parameters
    ----------
    cases : sequence of Case
        The images.
    ours, others : sequence of Image
        Two results for each.

    Returns
    -------
    tuple of Crop
        The largest win and the largest loss in dB of a crop's mean squared error, among crops
        whose truth is no darker than its image on average: elsewhere there is nothing to see.
    """
    best: Crop | None = None
    worst: Crop | None = None
    for case, own, other in zip(cases, ours, others, strict=True):
        errors = [in_squares((np.clip(image, 0, 1) - case.truth) ** 2) for image in (own, other)]
        lead = 10 * np.log10((errors[1] + 1e-9) / (errors[0] + 1e-9))
        lead[in_squares(case.truth) < case.truth.mean()] = np.nan
        if np.isnan(lead).all():
            continue
        for sign in (1, -1):
            place = np.unravel_index(np.nanargmax(sign * lead), lead.shape)
            crop = Crop(case, int(place[0]), int(place[1]), float(lead[place]))
            if sign > 0 and (best is None or crop.difference > best.difference):
                best = crop
            if sign < 0 and (worst is None or crop.difference < worst.difference):
                worst = crop
    if best is None or worst is None:
        raise ValueError(
            f"a picture needs images of at least {SIDE}x{SIDE} pixels, got "
            f"{sorted({case.truth.shape for case in cases})}. Choose others."
        )
    return best, worst


def in_squares(values: Image) -> NDArray[np.float64]:
    """The mean over each square of `SIDE` pixels that lies within, by its first row and column."""
    height, width = (max(0, side - SIDE + 1) for side in values.shape)
    means = ndimage.uniform_filter(
        values.astype(np.float64), SIDE, origin=-(SIDE // 2), mode="nearest"
    )
    return means[:height, :width]


def write_sheet(path: Path, rows: Sequence[tuple[str, Crop, Mapping[str, Image]]]) -> None:
    """Write a PNG with a row of crops for each case.

    Parameters
    ----------
    path : Path
        The PNG.
    rows : sequence of tuple
        A line of text, the crop and, by title, whole images; the truth comes last by itself.
        Contrast is the same within a row, from the truth's darkest to its brightest.
    """
    from PIL import Image as Picture
    from PIL import ImageDraw

    columns = 1 + max(len(images) for _, _, images in rows)
    size = SIDE * SCALE
    sheet = Picture.new(
        "L", (columns * (size + GAP) - GAP, len(rows) * (size + 2 * LINE + GAP)), 255
    )
    draw = ImageDraw.Draw(sheet)
    for number, (text, crop, images) in enumerate(rows):
        top = number * (size + 2 * LINE + GAP)
        draw.text((2, top), text, fill=0)
        truth = crop.of(crop.case.truth)
        low, high = np.percentile(truth, (0.2, 99.8))
        for column, (title, image) in enumerate([*images.items(), ("truth", crop.case.truth)]):
            left = column * (size + GAP)
            piece = crop.of(image)
            label = title if title == "truth" else f"{title} {psnr(truth, piece):.1f}"
            draw.text((left + 2, top + LINE), label, fill=0)
            grey = np.clip((piece - low) / max(float(high - low), 1e-6), 0, 1) * 255
            pixels = np.rint(grey).astype(np.uint8).repeat(SCALE, 0).repeat(SCALE, 1)
            sheet.paste(Picture.fromarray(pixels), (left, top + 2 * LINE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        sheet.quantize(64).save(temporary, format="PNG", optimize=True)
