"""Clean images held once in memory, and patches cut from them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core import files
from dn_core.inference.arrays import axes_of_file
from dn_core.memory import available_memory, check_memory

__all__ = ["Bank", "Cuts", "Skipped", "load_bank", "read_grey", "to_grey", "turned"]

# MATLAB's rgb2gray, the rule of the field's grey test sets; Pillow's "L" differs by one grey value here and there.
GREY = (0.298936, 0.587043, 0.114021)
NAMED = 20  # bad files named in a message
SPARE_BYTES = 2**28  # left free beside the images, for the training


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that cannot be trained on, and why."""

    path: Path
    reason: str


class Cuts(NamedTuple):
    """Where patches are cut: for each the number of its image, the row and column of its corner, and how it is turned (`turned`)."""

    image: NDArray[np.int64]
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    turn: NDArray[np.int64]


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
        if shapes := [image.shape for image in (*self.images, *self.held_out) if image.ndim != 2]:
            raise ValueError(f"an image has shape {shapes[0]}; (height, width) is expected. Give the planes of a stack one by one.")
        if pairs := _equal_pairs(self.held_out, self.images):
            raise ValueError(
                f"held-out image {pairs[0][0]} equals training image {pairs[0][1]}; none in both is expected. Remove one of the two."
            )

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        return np.array([float(image.mean()) for image in self.images])

    @property
    def count(self) -> int:
        """How many images there are to cut patches from."""
        return len(self.images)

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

    def at(self, step: int, rank: int = 0, size: int = 1) -> Bank:
        """The bank to cut from at a step of worker `rank` of `size`: this one. A bank that holds its images in turn gives those."""
        return self

    def cuts(self, count: int, size: int, rng: np.random.Generator) -> Cuts:
        """Random places for `count` patches of `size` x `size`: any image is as likely, then any place in it and any of eight turns."""
        chosen = rng.integers(len(self.images), size=count)
        places = rng.integers(self._shapes[chosen] - size + 1)
        return Cuts(chosen, places[:, 0], places[:, 1], rng.integers(8, size=count))

    def patches(self, count: int, size: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`count` random patches, turned and mirrored at random, and the mean of the image each was cut from.

        Returns
        -------
        patches
            ``(count, 1, size, size)``, 0..1.
        means
            ``(count, 1, 1, 1)``, 0..1: what a centred network takes away.
        """
        cuts = self.cuts(count, size, rng)
        patches = np.empty((count, 1, size, size), np.float32)
        for index, (image, top, left, turn) in enumerate(zip(*cuts, strict=True)):
            patches[index, 0] = turned(self.images[image][top : top + size, left : left + size], int(turn))
        return patches / np.float32(self.full_scale), self._means_of(cuts)

    def patches_on(self, device: torch.device, count: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """As `patches`, the same ones, cut on a device that holds all images."""
        cuts = self.cuts(count, size, rng)
        widths = self._shapes[cuts.image, 1]
        rows, columns = _walks(size)
        steps = rows[cuts.turn] * widths[:, None] + columns[cuts.turn]
        steps[:, 0] += self._begins[cuts.image] + cuts.top * widths + cuts.left
        first, down, right = torch.from_numpy(steps).to(device, non_blocking=True)[:, :, None, None].unbind(1)
        along = torch.arange(size, device=device)
        places = first + down * along[:, None] + right * along
        patches = self._pixels_on(device)[places].to(torch.float32)[:, None] % (self.full_scale + 1)
        return patches / self.full_scale, torch.from_numpy(self._means_of(cuts)).to(device, non_blocking=True)

    def _means_of(self, cuts: Cuts) -> NDArray[np.float32]:
        return (self._means[cuts.image] / self.full_scale).astype(np.float32)[:, None, None, None]

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

    def _pixels_on(self, device: torch.device) -> Tensor:
        """All pixels in a row; 16 bits as signed numbers, since torch cannot pick from unsigned ones."""
        if device not in self._on_devices:
            if device.type == "cuda":
                size, free = sum(image.nbytes for image in self.images), torch.cuda.mem_get_info(device)[0]
                check_memory("training with all images on the GPU", size, free, "Use fewer images, or pack them (distributed/pack.py).")
            kind = torch.int16 if self.images[0].dtype == np.uint16 else torch.uint8
            pixels = torch.empty(sum(image.size for image in self.images), dtype=kind, device=device)
            for begin, image in zip(self._begins, self.images, strict=True):
                flat = image.flatten()
                pixels[begin : begin + flat.size] = torch.from_numpy(flat.view(np.int16) if kind == torch.int16 else flat)
            self._on_devices[device] = pixels
        return self._on_devices[device]


def load_bank(folder: str | Path, *, smallest: int = 64, hold_out: int = 50, skip_bad: bool = False) -> Bank:
    """Read every image of a folder and the folders in it, as grey planes; stacks give one image a plane.

    Parameters
    ----------
    smallest
        Images with a side below this, the largest patch, cannot be used.
    hold_out
        Every `hold_out`-th image, 2 or more, is kept out of training (none where there are fewer than 4 images).
    skip_bad
        Whether to go on without unusable files, which are listed in `Bank.skipped`.

    Raises
    ------
    FileNotFoundError
        When there is no such folder or no image in it.
    ValueError
        When files are unusable (they are named) and `skip_bad` is false, when the images are of several kinds, or when a held-out image
        is also among the others.
    MemoryError
        When the images do not fit into memory.
    """
    if isinstance(hold_out, bool) or not isinstance(hold_out, int) or hold_out < 2:
        raise ValueError(f"hold_out is {hold_out!r}; a whole number of 2 or more is expected. Change hold_out.")
    root = Path(folder)
    paths = files.image_paths([root])
    images: list[NDArray[Any]] = []
    origins: list[Path] = []
    skipped: list[Skipped] = []
    for number, path in enumerate(paths, start=1):
        what = f"training on {root} from its file {number} of {len(paths)} on"
        check_memory(what, SPARE_BYTES, available_memory(), "Use fewer images.")
        try:
            planes = read_grey(path, smallest)
        except (ValueError, TypeError, OSError) as error:
            skipped.append(Skipped(path, str(error)))
        else:
            images.extend(planes)
            origins.extend([path] * len(planes))
    if skipped and not skip_bad:
        more = [f"and {len(skipped) - NAMED} more"] if len(skipped) > NAMED else []
        listed = "; ".join([*(f"{item.path.name}: {item.reason}" for item in skipped[:NAMED]), *more])
        raise ValueError(
            f"{len(skipped)} of {len(paths)} files in {root} cannot be trained on ({listed}). Remove them, or skip them with --skip-bad."
        )
    every = min(hold_out, len(images)) if len(images) >= 4 else len(images) + 1
    kept = [index for index in range(len(images)) if (index + 1) % every]
    held = range(every - 1, len(images), every)
    if pairs := _equal_pairs([images[index] for index in held], [images[index] for index in kept]):
        twins = f"{origins[held[pairs[0][0]]].name} and {origins[kept[pairs[0][1]]].name}"
        raise ValueError(
            f"{len(pairs)} held-out images are also among the training ones ({twins} have the same pixels); each is expected once. "
            "Remove the copies."
        )
    return Bank(tuple(images[index] for index in kept), tuple(images[index] for index in held), tuple(skipped))


def to_grey(image: NDArray[Any]) -> NDArray[Any]:
    """RGB ``(H, W, 3)`` to grey by the MATLAB rule, rounded, same dtype."""
    grey: NDArray[Any] = np.floor(image[..., :3] @ np.array(GREY) + 0.5).astype(image.dtype)
    return grey


def _equal_pairs(some: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]) -> list[tuple[int, int]]:
    """Indices of images of equal content; a few pixels are compared first, all of them only where those agree."""

    def digest(image: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
        return image.shape, image[::16, ::16].tobytes()

    if not some:
        return []
    found: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
    for index, image in enumerate(others):
        found.setdefault(digest(image), []).append(index)
    candidates = ((first, second) for first, image in enumerate(some) for second in found.get(digest(image), ()))
    return [(first, second) for first, second in candidates if np.array_equal(some[first], others[second])]


def read_grey(path: Path, smallest: int) -> list[NDArray[Any]]:
    """The grey planes of an image file, uint8 or uint16, at least `smallest` pixels a side; a ValueError says why there are none."""
    image = files.read_image(path)
    pixels = _grey_planes(image)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"it is {pixels.dtype}, uint8 or uint16 is expected")
    if min(pixels.shape[-2:]) < smallest:
        raise ValueError(f"it is {pixels.shape[-1]}x{pixels.shape[-2]} pixels, at least {smallest}x{smallest} is expected")
    planes = list(pixels.reshape(-1, *pixels.shape[-2:]))
    if any(plane.min() == plane.max() for plane in planes):
        raise ValueError("it has a constant plane, an image is expected")
    return planes


def _grey_planes(image: files.ImageFile) -> NDArray[Any]:
    """``(..., height, width)``: colours made grey, alpha left out, other samples and channels as planes of their own."""
    pixels, axes = image.pixels, axes_of_file(image)
    if axes.guess is not None:
        warnings.warn(f"{image.path.parent.name}: an image has shape {image.shape}: {axes.guess}.", UserWarning, stacklevel=4)
    if axes.alpha is not None:
        axis, last = axes.alpha
        pixels = pixels[(slice(None),) * axis + (slice(0, last),)]
    if image.rgb:
        samples = image.axes.index("S")
        if pixels.shape[samples] == 3:
            return to_grey(np.moveaxis(pixels, (*axes.spatial, samples), (-3, -2, -1)))
    return np.moveaxis(pixels, axes.spatial, (-2, -1))


@cache
def _walks(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How each of the eight turned squares goes through its image: rows and columns ``(8, 3)`` of its corner, a step down, a step right."""
    walks = []
    for axis in np.indices((2, 2)):  # what happens to a square of 2 x 2 says it for all
        corners = np.array([turned(axis, which).flat[:3] for which in range(8)])
        down, right = corners[:, 2] - corners[:, 0], corners[:, 1] - corners[:, 0]
        walks.append(np.stack([corners[:, 0] * (size - 1), down, right], axis=1))
    rows, columns = walks
    return rows, columns


def turned(patch: NDArray[Any], which: int) -> NDArray[Any]:
    """One of the eight rotations and reflections of a square."""
    rotated = np.rot90(patch, which % 4)
    return rotated.T if which >= 4 else rotated
