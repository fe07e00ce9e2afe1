"""Made-up fluorescence images as files, to look at, to test with or to train on elsewhere."""

from __future__ import annotations

import errno
import json
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dn_core import files
from dn_core.memory import available_memory, check_memory
from dn_core.safe_write import atomic_folder
from dn_core.training.phantoms import PHANTOMS_VERSION, check_phantom, phantom

__all__ = ["PhantomProgress", "phantom_files", "write_phantoms"]

MANIFEST = "phantoms.json"
MOST = 100_000
BYTES_PER_PIXEL = 120
"""In memory while an image is made: up to 15 images of float64, as measured."""
README = """# Made-up fluorescence images without noise

{count} images of {size}x{size} pixels, 16-bit grey PNG, made by `dn-resnet phantoms` with
seed {seed}. phantoms.json says the kind and the seed of each. Nothing in them was recorded:
anybody may use them for anything.
"""


class PhantomProgress(NamedTuple):
    """How far the writing is.

    Attributes
    ----------
    done, total : int
        Images written, and all.
    """

    done: int
    total: int


def write_phantoms(
    folder: str | Path,
    count: int,
    size: int = 256,
    seed: int = 0,
    *,
    kind: str | None = None,
    point_spread: float | None = None,
) -> Path:
    """Write made-up images to a new folder, as 16-bit PNG files with a list of kinds and seeds.

    The folder appears whole or not at all. Image `n` is
    ``phantom(size, seed=(seed, n), kind=kind)`` times 65535.

    Parameters
    ----------
    folder : str or Path
        The folder, which must not exist or be empty.
    count : int
        How many images, 1 to 100000.
    size : int, default 256
        Their side in pixels, 16 to 8192.
    seed : int, default 0
        Seed of all random numbers, 0 or more.
    kind : str, optional
        One of `phantom_kinds`; by default ``"scene"``.
    point_spread : float, optional
        Full width at half maximum of the microscope's point spread in pixels, 1 to 3.5; by default
        another for each image.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    TypeError, ValueError
        When a setting is out of its range.
    MemoryError
        When an image needs more memory than is free.
    OSError
        When the folder has files before or after the writing, or cannot be written.
    """
    for _ in phantom_files(folder, count, size, seed, kind=kind, point_spread=point_spread):
        pass
    return Path(folder)


def phantom_files(
    folder: str | Path,
    count: int,
    size: int = 256,
    seed: int = 0,
    *,
    kind: str | None = None,
    point_spread: float | None = None,
) -> Generator[PhantomProgress]:
    """Write made-up images one by one; closing the generator before the end leaves nothing.

    Parameters
    ----------
    folder, count, size, seed, kind, point_spread
        As for `write_phantoms`.

    Yields
    ------
    PhantomProgress
        After each image.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise TypeError(f"count must be a whole number, got {count!r}. Change count.")
    if not 1 <= count <= MOST:
        raise ValueError(f"count must be 1..{MOST} images, got {count}. Change count.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed of files must be one whole number, got {seed!r}. Change seed.")
    check_phantom(size, kind, point_spread, seed)
    # The list is JSON, which knows no numbers of numpy.
    count, size, seed = int(count), int(size), int(seed)
    point_spread = None if point_spread is None else float(point_spread)
    needed = BYTES_PER_PIXEL * size**2
    check_memory(f"an image of {size} pixels", needed, available_memory(), "Use a smaller size.")
    target = Path(folder)
    _check_free(target)
    with atomic_folder(target) as temporary:
        temporary.mkdir(exist_ok=True)
        entries = []
        for number in range(count):
            image = phantom(size, seed=(seed, number), kind=kind, point_spread=point_spread)
            name = f"{number:05d}.png"
            pixels = np.rint(image.astype(np.float64) * 65535).astype(np.uint16)
            like = files.ImageFile(temporary / name, pixels, "YX", "png")
            with files.create_image(temporary / name, like) as written:
                written[...] = pixels
            entries.append({"file": name, "kind": kind or "scene", "seed": [seed, number]})
            yield PhantomProgress(number + 1, count)
        manifest = {
            "format": "dn-resnet-phantoms",
            "version": PHANTOMS_VERSION,
            "size": size,
            "point_spread": point_spread,
            "images": entries,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        readme = README.format(count=count, size=size, seed=seed)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        _check_free(target)  # again: somebody may have put files there meanwhile


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            errno.EEXIST, "the folder must be new or empty. Choose another one", str(target)
        )
