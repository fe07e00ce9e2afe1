"""Makes the picture of made-up images in docs/training.md: ``python docs/phantoms.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dn_core.training import phantom, phantom_kinds

TARGET = Path(__file__).resolve().parent / "phantoms.png"
SIZE, BORDER, COLUMNS = 150, 2, 4
SEEDS = {"nuclei": 3, "filaments": 5, "mitochondria": 8, "puncta": 8, "haze": 4}
SHADES = 64  # few enough for a small file


def main() -> None:
    """A tile for each kind, in the order of `phantom_kinds`."""
    tiles = [tile(kind) for kind in phantom_kinds()]
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    Image.fromarray(np.vstack(rows)).save(TARGET, optimize=True)


def tile(kind: str) -> np.ndarray:
    """A made-up image with its brightest pixels cut off, so that faint parts show."""
    image = phantom(256, seed=SEEDS.get(kind, 0), kind=kind, point_spread=2.5)[:SIZE, :SIZE]
    shown = np.clip(image / np.quantile(image, 0.998), 0, 1)
    shades = np.round(shown * (SHADES - 1)) * (255 / (SHADES - 1))
    return np.pad(shades.astype(np.uint8), BORDER)


if __name__ == "__main__":
    main()
