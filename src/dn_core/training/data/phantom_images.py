"""Made-up images as training data: a pool of them that is renewed as the training goes on."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core.training.data.clean_images import (
    CleanImageDataset,
    PatchLocations,
    load_clean_images,
)
from dn_core.training.phantoms import PHANTOMS, PHANTOMS_VERSION, phantom
from dn_core.training.recipes import Recipe

__all__ = ["PHANTOM_SIZE", "PhantomImages", "training_images"]

PHANTOM_SIZE = 256
POOL = 128
RENEWAL = 32
"""Steps until another image takes the place of the oldest. An image takes 40 ms of one core, and a
step from 20 ms, in large batches on a GPU, to 100 ms, in small ones on a core: 1 to 6 percent."""
HELD_OUT = 16
TRAINED_ON, SCORED = 0, 1  # the streams of random numbers


class _Made(NamedTuple):
    image: NDArray[np.uint16]
    mean: float


class _Uploaded(NamedTuple):
    """The pool on a device, and which image of which worker is at each place."""

    pixels: Tensor
    there: dict[int, tuple[int, int]]


@dataclass(frozen=True)
class PhantomImages(CleanImageDataset):
    """Images that are made up when they are needed.

    At each step there are `POOL` of them; every `steps` steps a new one takes the place of the
    oldest. Which they are depends on seed, worker and step alone, so that a resumed run uses the
    same ones. An image is made when the first patch is cut from it.

    Parameters
    ----------
    seed : int, default 0
        Seed of all images.
    steps : int, default 32
        Steps between new images.
    first : int, default 0
        Number of the oldest image of the pool.
    worker : int, default 0
        The process that trains on them; each has other images.
    """

    images: tuple[NDArray[Any], ...] = ()
    seed: int = 0
    steps: int = RENEWAL
    first: int = 0
    worker: int = 0
    _made: dict[tuple[int, int], _Made] = field(default_factory=dict, compare=False, repr=False)
    _uploaded: dict[torch.device, _Uploaded] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        """There is nothing to check: no image comes from outside."""

    @classmethod
    def of(cls, recipe: Recipe, *, held_out: bool) -> PhantomImages:
        """The images of a recipe.

        Parameters
        ----------
        recipe : Recipe
            Its seed is theirs.
        held_out : bool
            Whether others are made for the score.

        Returns
        -------
        PhantomImages
            Their pool at the first step.
        """
        scored = range(HELD_OUT if held_out else 0)
        return cls(
            seed=recipe.seed,
            held_out=tuple(_made_up((recipe.seed, SCORED, 0, number)) for number in scored),
        )

    @property
    def count(self) -> int:
        """Number of images from files."""
        return 0

    @property
    def in_words(self) -> str:
        """See `CleanImageDataset.in_words`."""
        return "made-up images"

    @property
    def made_up(self) -> bool:
        """See `CleanImageDataset.made_up`."""
        return True

    @property
    def smallest_side(self) -> int:
        """See `CleanImageDataset.smallest_side`."""
        return PHANTOM_SIZE

    @property
    def full_scale(self) -> float:
        """The value that stands for 1.0."""
        return 65535.0

    def fingerprint(self) -> str:
        """Hash of what the images depend on.

        Returns
        -------
        str
            A SHA-256, hexadecimal.
        """
        settings = (PHANTOMS, PHANTOMS_VERSION, self.seed, self.steps, POOL, PHANTOM_SIZE)
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def at(self, step: int, rank: int = 0, size: int = 1) -> PhantomImages:
        """The pool at a step.

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
        PhantomImages
            It shares with this one what has been made.
        """
        first = step // self.steps
        for worker, number in list(self._made):
            if not first <= number < first + POOL:
                del self._made[worker, number]
        return replace(self, first=first, worker=rank)

    def patch_locations(self, count: int, size: int, rng: np.random.Generator) -> PatchLocations:
        """See `CleanImageDataset.patch_locations`; images are numbered on and on."""
        places = rng.integers(PHANTOM_SIZE - size + 1, size=(count, 2))
        return PatchLocations(
            self.first + rng.integers(POOL, size=count),
            places[:, 0],
            places[:, 1],
            rng.integers(8, size=count),
        )

    def _image(self, index: int) -> NDArray[np.uint16]:
        return self._make(index).image

    def _make(self, index: int) -> _Made:
        key = (self.worker, int(index))
        if key not in self._made:
            image = _made_up((self.seed, TRAINED_ON, *key))
            self._made[key] = _Made(image, float(image.mean()))
        return self._made[key]

    def _means_of(self, locations: PatchLocations) -> NDArray[np.float32]:
        means = [self._make(number).mean / self.full_scale for number in locations.image]
        return np.array(means, np.float32)[:, None, None, None]

    def _layout(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return indices % POOL * PHANTOM_SIZE**2, np.full(len(indices), PHANTOM_SIZE)

    def _pixels_on(self, device: torch.device, indices: NDArray[np.int64]) -> Tensor:
        """The pool in a row, in which a new image takes the place of the oldest."""
        if device not in self._uploaded:
            empty = torch.zeros(POOL * PHANTOM_SIZE**2, dtype=torch.int16, device=device)
            self._uploaded[device] = _Uploaded(empty, {})
        pixels, there = self._uploaded[device]
        for number in map(int, np.unique(indices)):
            place, key = number % POOL, (self.worker, number)
            if there.get(place) != key:
                flat = torch.from_numpy(self._image(number).ravel().view(np.int16))
                pixels[place * PHANTOM_SIZE**2 : (place + 1) * PHANTOM_SIZE**2] = flat
                there[place] = key
        return pixels


def training_images(
    data: str | Path, recipe: Recipe, *, skip_bad: bool = False
) -> CleanImageDataset:
    """The images that a recipe is trained on.

    Parameters
    ----------
    data : str or Path
        A folder of clean images, or the text ``"phantoms"`` for made-up ones (``"./phantoms"`` is a
        folder of that name).
    recipe : Recipe
        What is trained.
    skip_bad : bool, default False
        As for `load_clean_images`.

    Returns
    -------
    CleanImageDataset
        The images.

    Raises
    ------
    FileNotFoundError, ValueError, MemoryError
        As `load_clean_images`.
    """
    if data != PHANTOMS:
        return load_clean_images(data, smallest=recipe.largest_patch, skip_bad=skip_bad)
    if os.path.isdir(PHANTOMS):
        warnings.warn(
            "training on made-up images; the folder phantoms is not read. Give ./phantoms to train "
            "on it.",
            UserWarning,
            stacklevel=2,
        )
    return PhantomImages.of(recipe, held_out=True)


def _made_up(seed: tuple[int, ...]) -> NDArray[np.uint16]:
    # Multiples of 1/65535, so that nothing is lost.
    return np.rint(phantom(PHANTOM_SIZE, seed=seed).astype(np.float64) * 65535).astype(np.uint16)
