"""Patches of user images to finetune on, and held-out parts of them for the score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core.network_config import NetworkConfig
from dn_core.noise import Noisy, noise_from_dict
from dn_core.training.data.augmentation import dihedral
from dn_core.training.data.image_sources import Pixels
from dn_core.training.data.scenes import Scene
from dn_core.training.data.training_data import Batch, Denoiser, raised
from dn_core.training.data.user_images import SMALLEST_SIDE, UserImages
from dn_core.training.recipes import Phase

__all__ = ["FinetunePatches", "Preview"]

FEW_SCENES = 4
HOLD_OUT = 10
CROPS, CROP_SIZE = 8, 256
LARGEST_PATCH = 64

Window = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Preview:
    """A held-out part of the images before and after denoising, in their grey levels.

    Attributes
    ----------
    noisy : numpy.ndarray
        ``(height, width)``: the part as it is.
    before, now : numpy.ndarray
        As the model at the start and the one now denoise it.
    reference : numpy.ndarray
        The clean image, or the mean of the other repeats.
    """

    noisy: NDArray[np.float32]
    before: NDArray[np.float32]
    now: NDArray[np.float32]
    reference: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Crop:
    """A held-out part with the pixels around it that its result depends on.

    `core` is the part itself.
    """

    noisy: Noisy
    mean: Tensor
    core: Window
    reference: Tensor

    def error(self, denoise: Denoiser) -> tuple[Tensor, float]:
        """The result and its mean squared error."""
        result = denoise(self.noisy, self.mean, exact=True)[..., *self.core]
        return result, float((result - self.reference).square().mean(dtype=torch.float64))


class FinetunePatches:
    """Batches and score for one network from user images.

    A `dn_core.training.data.training_data.TrainingData`. Where there are four different scenes or
    more, every tenth (at least one) is held out; where there are fewer, the last quarter of each
    along its longer side.

    Images become ``(grey levels - black) / (white - black)``. A network that does not subtract the
    mean depends on an offset: for it only the scale changes, ``grey levels / (white - black)``, so
    that what it learns is what `dn_core.denoise` will have it do.

    Parameters
    ----------
    images : UserImages
        The images, checked.
    config : NetworkConfig
        The network's settings.
    """

    def __init__(self, images: UserImages, config: NetworkConfig) -> None:
        self.images, self.config = images, config
        self.shift = 0.0 if config.subtract_mean else images.black / images.range
        self.noise = noise_from_dict(images.noise) if images.noise else None
        self.regions, held = _split(images)
        # A scene on disk is read whole once, for the means; afterwards only patches are read.
        self.means = {
            id(plane): self._scaled(np.float64(_mean(plane)))
            for scene in images.scenes
            for plane in scene.planes
        }
        self.crops = [
            self._crop(scene, window, number)
            for number, (scene, window) in enumerate(_chosen(held))
        ]
        self.shown = max(
            range(len(self.crops)), key=lambda index: float(self.crops[index].reference.std())
        )

    @property
    def patch(self) -> int:
        """The side of patches that fits all images, with levels a whole number of windows."""
        side = min(
            min(rows.stop - rows.start, columns.stop - columns.start)
            for _, (rows, columns) in self.regions
        )
        patch = LARGEST_PATCH if side >= LARGEST_PATCH else SMALLEST_SIDE
        return patch - patch % self.config.stride if self.config.levels else patch

    def fingerprint(self) -> str:
        """See `TrainingData.fingerprint`."""
        return self.images.fingerprint()

    def at(self, step: int, rank: int, size: int) -> FinetunePatches:
        """See `TrainingData.at`."""
        return self

    def batch(self, phase: Phase, rng: np.random.Generator, device: torch.device) -> Batch:
        """Random patches, rotated and reflected at random.

        Of repeats two different ones are drawn: the second is to be predicted from the first.
        """
        shape = (phase.batch, 1, phase.patch, phase.patch)
        inputs, targets = np.empty(shape, np.float32), np.empty(shape, np.float32)
        means = np.empty((phase.batch, 1, 1, 1), np.float32)
        for index in range(phase.batch):
            scene, region = self.regions[rng.integers(len(self.regions))]
            source, target = (
                self._chosen_repeats(scene, rng)
                if self.images.kind == "repeats"
                else (scene.planes[0], None)
            )
            tops = [int(rng.integers(part.start, part.stop - phase.patch + 1)) for part in region]
            window = (slice(tops[0], tops[0] + phase.patch), slice(tops[1], tops[1] + phase.patch))
            wanted = scene.target(window) if target is None else target[window]
            turn = int(rng.integers(8))
            inputs[index, 0], targets[index, 0] = (
                dihedral(self._scaled(part), turn) for part in (source[window], wanted)
            )
            means[index] = self.means[id(source)]
        target_patches, plane_means = (
            torch.from_numpy(part).to(device) for part in (targets, means)
        )
        if self.noise is not None:
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            noisy = self._with_noise(target_patches, generator)
            plane_means = raised(plane_means, target_patches, noisy)
            return Batch(noisy.wanted(target_patches), noisy, plane_means)
        patches = torch.from_numpy(inputs).to(device)
        std = (patches - target_patches).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        std = std / math.sqrt(2) if self.images.kind == "repeats" else std
        return Batch(target_patches, Noisy(patches, std.expand_as(patches)), plane_means)

    def score(self, denoise: Denoiser, device: torch.device) -> float:
        """Mean PSNR of the held-out parts against the clean image or the mean of the other repeats.

        The peak is 1, which is white minus black.
        """
        errors = [crop.error(_on(denoise, device))[1] for crop in self.crops]
        return sum(-10 * math.log10(error + 1e-12) for error in errors) / len(errors)

    def preview(self, before: Denoiser, now: Denoiser, device: torch.device) -> Preview:
        """The held-out part with the highest contrast."""
        crop = self.crops[self.shown]
        results = [crop.error(_on(denoise, device))[0] for denoise in (before, now)]
        noisy, first, second, reference = (
            self._grey_levels(image)
            for image in (crop.noisy.image[..., *crop.core], *results, crop.reference)
        )
        return Preview(noisy, first, second, reference)

    def _chosen_repeats(self, scene: Scene, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        first, second = rng.choice(len(scene.noisy), 2, replace=False)
        return scene.noisy[first], scene.noisy[second]

    def _scaled(self, pixels: NDArray[np.generic] | np.float64) -> NDArray[np.float32]:
        values = (
            np.asarray(pixels, np.float64) - self.images.black
        ) / self.images.range + self.shift
        return np.asarray(values, np.float32)

    def _grey_levels(self, image: Tensor) -> NDArray[np.float32]:
        values: NDArray[Any] = (
            image.double().cpu().numpy()[0, 0] - self.shift
        ) * self.images.range + self.images.black
        return values.astype(np.float32)

    def _with_noise(self, clean: Tensor, generator: torch.Generator) -> Noisy:
        assert self.noise is not None
        noisy = self.noise(clean - self.shift, generator)
        target = None if noisy.target is None else noisy.target + self.shift
        return Noisy(noisy.image + self.shift, noisy.std, target)

    def _crop(self, scene: Scene, core: Window, number: int) -> _Crop:
        window, inner = _with_margin(core, scene.shape, self.config)
        if self.images.kind == "repeats":
            chosen = number % len(scene.noisy)
            source = scene.noisy[chosen]
            others = [
                self._scaled(plane[core]).astype(np.float64)
                for index, plane in enumerate(scene.noisy)
                if index != chosen
            ]
            reference = np.mean(others, axis=0).astype(np.float32)
        else:
            source, reference = scene.planes[0], self._scaled(scene.target(core))
        image = torch.from_numpy(self._scaled(source[window]))[None, None]
        wanted = torch.from_numpy(reference)[None, None]
        mean = torch.from_numpy(np.asarray(self.means[id(source)], np.float32).reshape(1, 1, 1, 1))
        if self.noise is None:
            return _Crop(Noisy(image, torch.zeros_like(image)), mean, inner, wanted)
        noisy = self._with_noise(image, torch.Generator().manual_seed(number))
        wanted = wanted if noisy.target is None else noisy.target[..., *inner]
        return _Crop(noisy, raised(mean, image, noisy), inner, wanted)


def _on(denoise: Denoiser, device: torch.device) -> Denoiser:
    """The same from and to the CPU."""

    def moved(noisy: Noisy, means: Tensor | None = None, *, exact: bool = False) -> Tensor:
        on_device = Noisy(noisy.image.to(device), noisy.std.to(device))
        return denoise(on_device, None if means is None else means.to(device), exact=exact).cpu()

    return moved


def _split(images: UserImages) -> tuple[list[tuple[Scene, Window]], list[tuple[Scene, Window]]]:
    """Where to cut patches, and what is held out; scenes of one clean image stay together."""
    groups = list(dict.fromkeys(images.digests))
    if len(groups) >= FEW_SCENES:
        every = min(HOLD_OUT, len(groups))
        held = {group for index, group in enumerate(groups) if (index + 1) % every == 0}
        whole = [
            (scene, (slice(0, scene.shape[0]), slice(0, scene.shape[1]))) for scene in images.scenes
        ]
        return (
            [item for item, group in zip(whole, images.digests, strict=True) if group not in held],
            [item for item, group in zip(whole, images.digests, strict=True) if group in held],
        )
    training, held_out = [], []
    for scene in images.scenes:
        height, width = scene.shape
        longer = max(height, width)
        edge = longer - max(longer // 4, SMALLEST_SIDE)
        if edge < SMALLEST_SIDE:
            raise ValueError(
                f"with fewer than {FEW_SCENES} scenes, of each of which a quarter is held out, one "
                f"side must have at least {2 * SMALLEST_SIDE} pixels, got an image of "
                f"{width}x{height}. Give larger images or more of them."
            )
        if height >= width:
            training.append((scene, (slice(0, edge), slice(0, width))))
            held_out.append((scene, (slice(edge, height), slice(0, width))))
        else:
            training.append((scene, (slice(0, height), slice(0, edge))))
            held_out.append((scene, (slice(0, height), slice(edge, width))))
    return training, held_out


def _chosen(held: list[tuple[Scene, Window]]) -> list[tuple[Scene, Window]]:
    """The middles of some held-out parts, evenly spread.

    Of few scenes with several repeats, each repeat in turn.
    """
    count = min(CROPS, len(held))
    chosen = [held[index * len(held) // count] for index in range(count)]
    rounds = min(CROPS // count, max(len(scene.noisy) for scene, _ in chosen))
    middles = [(scene, (_middle(rows), _middle(columns))) for scene, (rows, columns) in chosen]
    return [(scene, window) for _ in range(max(rounds, 1)) for scene, window in middles]


def _middle(part: slice) -> slice:
    length = part.stop - part.start
    start = part.start + max(0, length - CROP_SIZE) // 2
    return slice(start, start + min(length, CROP_SIZE))


def _with_margin(
    core: Window, shape: tuple[int, int], config: NetworkConfig
) -> tuple[Window, Window]:
    """The core with the network's halo around it, aligned to its stride; and its place in that."""
    window, inner = [], []
    for part, extent in zip(core, shape, strict=True):
        start = max(0, part.start - config.halo) // config.stride * config.stride
        window.append(slice(start, min(extent, part.stop + config.halo + config.stride)))
        inner.append(slice(part.start - start, part.stop - start))
    return (window[0], window[1]), (inner[0], inner[1])


def _mean(plane: Pixels) -> float:
    return float(np.mean(plane, dtype=np.float64))
