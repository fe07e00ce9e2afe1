"""Clean images held once in memory, and patches cut from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core import files

__all__ = ["Bank", "Skipped", "load_bank", "to_grey"]

# MATLAB's rgb2gray, the rule of the field's grey test sets; Pillow's "L" differs by one grey value here and there.
GREY = (0.298936, 0.587043, 0.114021)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that cannot be trained on, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Bank:
    """Grey images ``(H, W)`` as uint8 or uint16, all of one kind; 1.0 is the kind's largest value.

    Attributes
    ----------
    images
        To cut patches from.
    held_out
        Every so many images, never trained on, to measure with.
    skipped
        Files that could not be used.
    """

    images: tuple[NDArray[Any], ...]
    held_out: tuple[NDArray[Any], ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("the bank has no images; at least one is expected. Name a folder with images that can be read.")
        kinds = {image.dtype for image in (*self.images, *self.held_out)}
        if kinds - {np.dtype(np.uint8), np.dtype(np.uint16)} or len(kinds) > 1:
            raise ValueError(
                f"the images have dtypes {sorted(map(str, kinds))}; all uint8 or all uint16 is expected. Convert them to one kind."
            )

    @cached_property
    def _means(self) -> tuple[float, ...]:
        return tuple(float(image.mean()) for image in self.images)

    @property
    def full_scale(self) -> float:
        """The value that stands for 1.0."""
        return float(np.iinfo(self.images[0].dtype).max)

    def fingerprint(self) -> str:
        """A hash of all pixels, in order: a resumed run must find the same."""
        digest = hashlib.sha256()
        for image in (*self.images, *self.held_out):
            digest.update(f"{image.shape}{image.dtype}".encode())
            digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()

    def patches(self, count: int, size: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`count` random patches, turned and mirrored at random, and the mean of the image each was cut from.

        Returns
        -------
        patches
            ``(count, 1, size, size)``, 0..1.
        means
            ``(count, 1, 1, 1)``, 0..1: what a centred network takes away.
        """
        patches = np.empty((count, 1, size, size), np.float32)
        means = np.empty((count, 1, 1, 1), np.float32)
        for index in range(count):
            chosen = rng.integers(len(self.images))
            image = self.images[chosen]
            top, left = (rng.integers(extent - size + 1) for extent in image.shape)
            patches[index, 0] = _turned(image[top : top + size, left : left + size], int(rng.integers(8)))
            means[index] = self._means[chosen]
        return patches / np.float32(self.full_scale), means / np.float32(self.full_scale)


def load_bank(folder: str | Path, *, smallest: int = 64, hold_out: int = 50, skip_bad: bool = False) -> Bank:
    """Read every image of a folder and the folders in it, as grey planes; stacks give one image a plane.

    Parameters
    ----------
    smallest
        Images with a side below this, the largest patch, cannot be used.
    hold_out
        Every `hold_out`-th image is kept out of training (none where there are fewer than 4 images).
    skip_bad
        Whether to go on without unusable files, which are listed in `Bank.skipped`.

    Raises
    ------
    FileNotFoundError
        When there is no such folder or no image in it.
    ValueError
        When files are unusable (all are named) and `skip_bad` is false, or when the images are of several kinds.
    """
    root = Path(folder)
    paths = files.image_paths([root])
    images: list[NDArray[Any]] = []
    skipped: list[Skipped] = []
    for path in paths:
        try:
            planes = _usable_planes(path, smallest)
        except (ValueError, TypeError, OSError) as error:
            skipped.append(Skipped(path, str(error)))
        else:
            images.extend(planes)
    if skipped and not skip_bad:
        listed = "; ".join(f"{item.path.name}: {item.reason}" for item in skipped[:5])
        raise ValueError(
            f"{len(skipped)} of {len(paths)} files in {root} cannot be trained on ({listed}). Remove them, or skip them with --skip-bad."
        )
    every = min(hold_out, len(images)) if len(images) >= 4 else len(images) + 1
    kept = tuple(image for index, image in enumerate(images) if (index + 1) % every)
    return Bank(kept, tuple(images[every - 1 :: every]), tuple(skipped))


def to_grey(image: NDArray[Any]) -> NDArray[Any]:
    """RGB ``(H, W, 3)`` to grey by the MATLAB rule, rounded, same dtype."""
    grey: NDArray[Any] = np.floor(image[..., :3] @ np.array(GREY) + 0.5).astype(image.dtype)
    return grey


def _usable_planes(path: Path, smallest: int) -> list[NDArray[Any]]:
    image = files.read_image(path)
    pixels = to_grey(image.pixels) if image.rgb else image.pixels
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"it is {pixels.dtype}, uint8 or uint16 is expected")
    if min(pixels.shape[-2:]) < smallest:
        raise ValueError(f"it is {pixels.shape[-1]}x{pixels.shape[-2]} pixels, at least {smallest}x{smallest} is expected")
    planes = list(pixels.reshape(-1, *pixels.shape[-2:]))
    if any(plane.min() == plane.max() for plane in planes):
        raise ValueError("it has a constant plane, an image is expected")
    return planes


def _turned(patch: NDArray[Any], which: int) -> NDArray[Any]:
    """One of the eight rotations and reflections of a square."""
    turned = np.rot90(patch, which % 4)
    return turned.T if which >= 4 else turned
