"""Clean training images: a data set held in memory, and random patches cut from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core import files
from dn_core.errors import error_message
from dn_core.files.grey import read_grey
from dn_core.memory import available_memory, check_memory
from dn_core.messages import counted
from dn_core.training.data.augmentation import dihedral, dihedral_walks

__all__ = [
    "CleanImageDataset",
    "PatchLocations",
    "SkippedFile",
    "load_clean_images",
]

NAMED = 20  # bad files named in a message
SPARE_BYTES = 2**28  # left free beside the images, for the training


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that cannot be trained on.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    reason : str
        Why it cannot be used.
    """

    path: Path
    reason: str


class PatchLocations(NamedTuple):
    """Where patches are cut: for each its image, the row and column of its corner, and its turn.

    Attributes
    ----------
    image : ndarray of int64
        Index of the image.
    top, left : ndarray of int64
        Row and column of the square's upper left corner.
    turn : ndarray of int64
        0 to 7, which of the eight rotations and reflections (`dihedral`).
    """

    image: NDArray[np.int64]
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    turn: NDArray[np.int64]


@dataclass(frozen=True)
class CleanImageDataset:
    """Clean grey images to train on, in memory.

    The largest value of their dtype stands for 1.0 in training.

    Parameters
    ----------
    images : tuple of numpy.ndarray
        ``(height, width)`` each, all uint8 or all uint16, to cut patches from; at least one.
    held_out : tuple of numpy.ndarray
        Images of the same dtype that are never trained on, for the score; may be empty. None of
        them may equal one of `images`.
    skipped : tuple of SkippedFile
        Files that could not be used.

    Raises
    ------
    ValueError
        When there are no images, they are not of one of the two dtypes, they are not planes, or a
        held-out one equals one to train on.
    """

    images: tuple[NDArray[Any], ...]
    held_out: tuple[NDArray[Any], ...] = ()
    skipped: tuple[SkippedFile, ...] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError(
                "the data set must have at least one image, got no images. Name a folder with "
                "images that can be read."
            )
        kinds = {image.dtype for image in (*self.images, *self.held_out)}
        if kinds - {np.dtype(np.uint8), np.dtype(np.uint16)} or len(kinds) > 1:
            raise ValueError(
                "the images must be all uint8 or all uint16, got dtypes "
                f"{sorted(map(str, kinds))}. Convert them to one dtype."
            )
        if shapes := [image.shape for image in (*self.images, *self.held_out) if image.ndim != 2]:
            raise ValueError(
                f"images must have shape (height, width), got shape {shapes[0]}. Give the planes "
                "of a stack one by one."
            )
        if pairs := _equal_pairs(self.held_out, self.images):
            raise ValueError(
                "no image may be held out and trained on, but held-out image "
                f"{pairs[0][0]} equals training image {pairs[0][1]}. Remove one of the two."
            )

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        return np.array([float(image.mean()) for image in self.images])

    @property
    def count(self) -> int:
        """Number of images to train on."""
        return len(self.images)

    @property
    def in_words(self) -> str:
        """What there is to train on, for messages."""
        return counted(self.count, "image")

    @property
    def made_up(self) -> bool:
        """Whether the images are made up, and so have no noise of their own."""
        return False

    @property
    def smallest_side(self) -> int:
        """The smallest side of the images to train on, in pixels."""
        return int(self._shapes.min())

    @property
    def full_scale(self) -> float:
        """The value that stands for 1.0."""
        return float(np.iinfo(self.images[0].dtype).max)

    def fingerprint(self) -> str:
        """Hash all pixels, in order: a resumed run must find the same.

        Returns
        -------
        str
            A SHA-256, hexadecimal.
        """
        digest = hashlib.sha256()
        for image in (*self.images, *self.held_out):
            digest.update(f"{image.shape}{image.dtype}".encode())
            digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()

    def at(self, step: int, rank: int = 0, size: int = 1) -> CleanImageDataset:
        """The data set to cut patches from at a step: this one.

        One that holds a part of its images at a time gives that part.

        Parameters
        ----------
        step : int
            Steps done before, from 0.
        rank : int, default 0
            Which of the processes that train together asks, from 0.
        size : int, default 1
            How many processes train together.

        Returns
        -------
        CleanImageDataset
            This one, or a part of its images.
        """
        return self

    def patch_locations(self, count: int, size: int, rng: np.random.Generator) -> PatchLocations:
        """Draw random places for patches: each image is equally likely, then each place and turn.

        Parameters
        ----------
        count : int
            Number of patches.
        size : int
            Their side in pixels, at most the smallest side of the images.
        rng : Generator
            Seed of all random numbers.

        Returns
        -------
        PatchLocations
            `count` places.
        """
        chosen = rng.integers(len(self.images), size=count)
        places = rng.integers(self._shapes[chosen] - size + 1)
        return PatchLocations(chosen, places[:, 0], places[:, 1], rng.integers(8, size=count))

    def patches(
        self, count: int, size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cut random patches, rotated and reflected at random.

        Parameters
        ----------
        count : int
            Number of patches.
        size : int
            Their side in pixels, at most the smallest side of the images.
        rng : Generator
            Seed of all random numbers.

        Returns
        -------
        patches : numpy.ndarray
            ``(count, 1, size, size)``, float32, 0..1.
        means : numpy.ndarray
            ``(count, 1, 1, 1)``, float32, 0..1: the mean of the image that each was cut from, which
            a network with `subtract_mean` takes away.
        """
        locations = self.patch_locations(count, size, rng)
        patches = np.empty((count, 1, size, size), np.float32)
        for index, (image, top, left, turn) in enumerate(zip(*locations, strict=True)):
            patches[index, 0] = dihedral(
                self._image(image)[top : top + size, left : left + size], int(turn)
            )
        return patches / np.float32(self.full_scale), self._means_of(locations)

    def patches_on(
        self, device: torch.device, count: int, size: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cut the same patches as `patches` does, on a device that holds all images.

        All images lie on the device one after the other in one row of pixels. A patch is gathered
        from it by index: its first pixel, plus a step in that row for each of its rows, plus
        another for each of its columns. The steps depend on the image's width and the turn
        (`dihedral_walks`), so one gather makes all patches of a batch, already turned.

        Parameters
        ----------
        device : device
            Where the images are kept and the patches made.
        count : int
            Number of patches.
        size : int
            Their side in pixels, at most the smallest side of the images.
        rng : Generator
            Seed of all random numbers.

        Returns
        -------
        patches : torch.Tensor
            ``(count, 1, size, size)``, float32, 0..1.
        means : torch.Tensor
            ``(count, 1, 1, 1)``, float32, 0..1.

        Raises
        ------
        MemoryError
            When the images do not fit on the device.
        """
        locations = self.patch_locations(count, size, rng)
        begins, widths = self._layout(locations.image)
        rows, columns = dihedral_walks(size)
        # (count, 3): offset of the first pixel, step of a row, step of a column.
        walks = rows[locations.turn] * widths[:, None] + columns[locations.turn]
        walks[:, 0] += begins + locations.top * widths + locations.left
        # The three numbers of each patch travel, not its size * size indices.
        walks_there = torch.from_numpy(walks).to(device, non_blocking=True)
        first, down, right = walks_there[:, :, None, None].unbind(1)
        along = torch.arange(size, device=device)
        places = first + down * along[:, None] + right * along
        # Pixels of 16 bits are stored as signed numbers: the remainder makes them positive again.
        pixels = self._pixels_on(device, locations.image)
        patches = pixels[places].to(torch.float32)[:, None] % (self.full_scale + 1)
        means = torch.from_numpy(self._means_of(locations)).to(device, non_blocking=True)
        return patches / self.full_scale, means

    def _means_of(self, locations: PatchLocations) -> NDArray[np.float32]:
        return (self._means[locations.image] / self.full_scale).astype(np.float32)[
            :, None, None, None
        ]

    def _image(self, index: int) -> NDArray[Any]:
        """An image by the index that `patch_locations` gives it."""
        return self.images[index]

    def _layout(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where images begin in the row of all pixels on a device, and their widths."""
        return self._begins[indices], self._shapes[indices, 1]

    @cached_property
    def _shapes(self) -> NDArray[np.int64]:
        return np.array([image.shape for image in self.images])

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        """Where each image begins when all lie one after the other."""
        return np.cumsum([0, *(image.size for image in self.images[:-1])])

    @cached_property
    def _on_devices(self) -> dict[torch.device, Tensor]:
        return {}

    def _pixels_on(self, device: torch.device, indices: NDArray[np.int64]) -> Tensor:
        """All pixels in a row, those of the images `indices` at least.

        16 bits are stored as signed numbers: torch cannot index unsigned ones.
        """
        if device not in self._on_devices:
            if device.type == "cuda":
                check_memory(
                    "training with all images on the GPU",
                    sum(image.nbytes for image in self.images),
                    torch.cuda.mem_get_info(device)[0],
                    "Use fewer images, or pack them (distributed/pack.py).",
                )
            kind = torch.int16 if self.images[0].dtype == np.uint16 else torch.uint8
            count = sum(image.size for image in self.images)
            pixels = torch.empty(count, dtype=kind, device=device)
            for begin, image in zip(self._begins, self.images, strict=True):
                flat = image.flatten()
                pixels[begin : begin + flat.size] = torch.from_numpy(
                    flat.view(np.int16) if kind == torch.int16 else flat
                )
            self._on_devices[device] = pixels
        return self._on_devices[device]


def load_clean_images(
    folder: str | Path, *, smallest: int = 64, hold_out: int = 50, skip_bad: bool = False
) -> CleanImageDataset:
    """Read every image of a folder and the folders in it, as grey planes.

    Stacks and channels give an image a plane; colours become grey.

    Parameters
    ----------
    folder : str or Path
        Where the images are; files of 8 or 16 bits.
    smallest : int, default 64
        Images with a side of fewer pixels, which is that of the largest patch, cannot be used.
    hold_out : int, default 50
        Every `hold_out`-th image, 2 or more, is kept out of training (none where there are fewer
        than 4 images).
    skip_bad : bool, default False
        Whether to leave out unusable files, which are then listed in `CleanImageDataset.skipped`.

    Returns
    -------
    CleanImageDataset
        The images, in the order of their names.

    Raises
    ------
    FileNotFoundError
        When there is no such folder or no image in it.
    ValueError
        When files are unusable (they are named) and `skip_bad` is false, when the images are of
        several dtypes, or when a held-out image is also among the others.
    MemoryError
        When the images do not fit into memory.
    """
    if isinstance(hold_out, bool) or not isinstance(hold_out, int) or hold_out < 2:
        raise ValueError(
            f"hold_out must be a whole number of 2 or more, got {hold_out!r}. Change hold_out."
        )
    root = Path(folder)
    paths = files.image_paths([root])
    images: list[NDArray[Any]] = []
    origins: list[Path] = []
    skipped: list[SkippedFile] = []
    for number, path in enumerate(paths, start=1):
        what = f"training on {root} from its file {number} of {len(paths)} on"
        check_memory(what, SPARE_BYTES, available_memory(), "Use fewer images.")
        try:
            planes = read_grey(path, smallest)
        except (ValueError, TypeError, OSError) as error:
            skipped.append(SkippedFile(path, error_message(error)))
        else:
            images.extend(planes)
            origins.extend([path] * len(planes))
    if skipped and not skip_bad:
        more = [f"and {len(skipped) - NAMED} more"] if len(skipped) > NAMED else []
        listed = "; ".join(
            [*(f"{item.path.name}: {item.reason}" for item in skipped[:NAMED]), *more]
        )
        raise ValueError(
            f"{len(skipped)} of {len(paths)} files in {root} cannot be trained on ({listed}). "
            "Remove them, or skip them with --skip-bad."
        )
    every = min(hold_out, len(images)) if len(images) >= 4 else len(images) + 1
    kept = [index for index in range(len(images)) if (index + 1) % every]
    held = range(every - 1, len(images), every)
    if pairs := _equal_pairs([images[index] for index in held], [images[index] for index in kept]):
        twins = f"{origins[held[pairs[0][0]]].name} and {origins[kept[pairs[0][1]]].name}"
        raise ValueError(
            f"each image must be there once, got {len(pairs)} held-out images that are also among "
            f"the training images ({twins} have the same pixels). Remove the copies."
        )
    return CleanImageDataset(
        tuple(images[index] for index in kept),
        tuple(images[index] for index in held),
        tuple(skipped),
    )


def _equal_pairs(
    some: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]
) -> list[tuple[int, int]]:
    """Indices of images of equal content.

    A few pixels are compared first, all of them only where those agree.
    """

    def digest(image: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
        return image.shape, image[::16, ::16].tobytes()

    if not some:
        return []
    found: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
    for index, image in enumerate(others):
        found.setdefault(digest(image), []).append(index)
    candidates = (
        (first, second)
        for first, image in enumerate(some)
        for second in found.get(digest(image), ())
    )
    return [
        (first, second)
        for first, second in candidates
        if np.array_equal(some[first], others[second])
    ]
