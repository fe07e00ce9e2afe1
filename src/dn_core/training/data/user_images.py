"""User images to finetune on: noisy and clean pairs, repeats, or clean ones and a noise model.

Images keep their dtype and units; one scale for all of them, `black` to `white`, says what 0 to 1
is in training.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dn_core.inference.axes import ChannelAxis
from dn_core.messages import counted
from dn_core.training.data.image_sources import (
    Pixels,
    SourceImage,
    planes_of,
    read_sources,
    split_repeats,
    warn_of_axes,
)
from dn_core.training.data.scenes import (
    SAMPLE_PIXELS,
    UNRELATED,
    Scene,
    correlation,
    matched,
    sampled_pair,
)
from dn_core.training.data.user_noise import NoiseTable, noise_on_scale, noise_table

__all__ = ["UserImages", "clean_and_noise", "pairs", "repeats"]

Kind = Literal["pairs", "repeats", "clean and noise"]
SMALLEST_SIDE = 32
FEWEST_PIXELS = 2**13
RANGE = (0.1, 99.9)
"""Percentiles that become 0 and 1, so that a few dead or hot pixels do not set the scale."""
DARKER, MOST_DARKER = 3, 0.05
"""Pixels are too dark for a detector by so many times its read noise; a share of them is normal."""
NAMED = 5  # names in a message


@dataclass(frozen=True, eq=False)
class UserImages:
    """Images to finetune on, checked; made by `images_from`.

    Attributes
    ----------
    kind : {"pairs", "repeats", "clean and noise"}
        What there is to learn from.
    scenes : tuple of Scene
        The images of each scene.
    black, white : float
        The grey levels that are 0 and 1 in training, for all images.
    noise : tuple of dict
        Tables for `dn_core.noise.noise_from_dict`, on that scale; empty without a noise model.
    """

    kind: Kind
    scenes: tuple[Scene, ...]
    black: float
    white: float
    noise: tuple[NoiseTable, ...] = ()

    @property
    def range(self) -> float:
        """Grey levels from black to white."""
        return self.white - self.black

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """A hash of each scene's last plane: equal clean images are one scene."""
        return tuple(_digest(scene.planes[-1]) for scene in self.scenes)

    def fingerprint(self) -> str:
        """Hash all pixels, in order, and what they are used for.

        Returns
        -------
        str
            A SHA-256, hexadecimal.
        """
        whole = hashlib.sha256(f"{self.kind} {self.black} {self.white} {self.noise}".encode())
        for scene, last in zip(self.scenes, self.digests, strict=True):
            for plane in scene.planes[:-1]:
                whole.update(_digest(plane).encode())
            whole.update(last.encode())
        return whole.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a model's card says of them: no names and no places of files.

        Returns
        -------
        dict
            Their kind, numbers, dtype, scale and hash.
        """
        return {
            "kind": self.kind,
            "scenes": len(self.scenes),
            "images": sum(len(scene.planes) for scene in self.scenes),
            "dtype": str(self.scenes[0].planes[0].dtype),
            "black": self.black,
            "white": self.white,
            "noise": list(self.noise),
            "matched": sum(scene.gain != 1.0 for scene in self.scenes),
            "sha256": self.fingerprint(),
        }


def pairs(
    noisy: Any,
    clean: Any,
    *,
    channel_axis: ChannelAxis = "auto",
    black: float | None = None,
    white: float | None = None,
) -> UserImages:
    """Noisy and clean images of the same scenes.

    Clean images that differ from the noisy ones by a gain and an offset, scene by scene, are scaled
    to their grey levels, with a UserWarning. Parameters are those of
    `dn_core.training.finetuning.images_from`.

    Raises
    ------
    ValueError
        When names or shapes do not match, or there is too little to learn from.
    """
    noisy_images = read_sources(noisy, "noisy", channel_axis)
    clean_images = read_sources(clean, "clean", channel_axis)
    if not isinstance(noisy, (str, Path)) or len(noisy_images) == len(clean_images) == 1:
        partners = [
            replace(image, name=other.name)
            for image, other in zip(clean_images, noisy_images, strict=False)
        ]
        clean_images = [*partners, *clean_images[len(partners) :]]
    scenes = _paired(noisy_images, clean_images)
    warn_of_axes([image.axes() for image in (*noisy_images, *clean_images)])
    _check(scenes)
    if max(correlation(*sampled_pair(scene)) for scene in scenes) < UNRELATED:
        raise ValueError(
            "the noisy and the clean images must show the same scenes, got ones that have nothing "
            "in common. Check their order or names."
        )
    if all(np.array_equal(scene.noisy[0], scene.planes[-1]) for scene in scenes):
        raise ValueError(
            "the noisy images must differ from the clean ones, got the same images. Check what was "
            "given as noisy and clean."
        )
    fitted = [matched(scene) for scene in scenes]
    if changed := [scene for scene in fitted if scene.gain != 1.0]:
        gains, offsets = zip(*((scene.gain, scene.offset) for scene in changed), strict=True)
        warnings.warn(
            f"{len(changed)} of {len(scenes)} clean images differ from their noisy ones by a gain "
            f"({min(gains):.3g} to {max(gains):.3g}) and an offset ({min(offsets):.4g} to "
            f"{max(offsets):.4g}); they are scaled to the grey levels of the noisy ones.",
            UserWarning,
            stacklevel=2,
        )
    return _on_a_scale("pairs", fitted, black, white)


def repeats(
    images: Any,
    axis: int = 0,
    *,
    channel_axis: ChannelAxis = "auto",
    black: float | None = None,
    white: float | None = None,
) -> UserImages:
    """Repeats of the same scenes, each with noise of its own (Noise2Noise).

    Parameters are those of `dn_core.training.finetuning.images_from`; `images` are its `repeats`.

    Raises
    ------
    ValueError
        When there are fewer than two repeats of a scene, or two are the same.
    """
    found = read_sources(images, "repeats", channel_axis)
    if len(found) > 1 and all(image.array.ndim == 2 for image in found):
        if len(shapes := {image.array.shape for image in found}) > 1:
            raise ValueError(
                f"the repeats must have one shape, got {sorted(shapes)[:NAMED]}. Crop them alike."
            )
        scenes = [Scene(tuple(image.array for image in found))]
    else:
        stacks = [split_repeats(image, axis) for image in found]
        warn_of_axes([axes for axes, _ in stacks])
        scenes = [
            Scene(tuple(planes))
            for axes, stack in stacks
            for planes in zip(*(planes_of(one, axes) for one in stack), strict=True)
        ]
    for scene in scenes:
        if len(scene.noisy) < 2:
            raise ValueError(
                "a scene must have 2 repeats or more, got 1. Record it again, or choose another "
                "axis."
            )
        if any(np.array_equal(first, second) for first, second in itertools.pairwise(scene.noisy)):
            raise ValueError(
                "each repeat must have noise of its own, got two repeats with the same pixels. "
                "Give repeats as they were recorded."
            )
    _check(scenes)
    return _on_a_scale("repeats", scenes, black, white)


def clean_and_noise(
    clean: Any,
    noise: Any,
    *,
    channel_axis: ChannelAxis = "auto",
    black: float | None = None,
    white: float | None = None,
) -> UserImages:
    """Clean images, and a noise model by which noise is added to them.

    Parameters are those of `dn_core.training.finetuning.images_from`.

    Raises
    ------
    ValueError
        When the noise is of another kind, or there is too little to learn from.
    """
    table = noise_table(noise)
    images = read_sources(clean, "clean", channel_axis)
    warn_of_axes([image.axes() for image in images])
    scenes = [Scene((), plane) for image in images for plane in image.planes()]
    _check(scenes)
    found = _on_a_scale("clean and noise", scenes, black, white)
    on_scale = noise_on_scale(table, found.black, found.white)
    _warn_of_offset(table, scenes)
    return replace(found, noise=(on_scale,))


def _paired(
    noisy_images: Sequence[SourceImage], clean_images: Sequence[SourceImage]
) -> list[Scene]:
    """The planes of noisy and clean images of the same names."""
    by_name = {image.name: image for image in clean_images}
    names = {image.name for image in noisy_images}
    if alone := sorted(names ^ by_name.keys()):
        more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
        raise ValueError(
            f"each noisy image must have a clean one of the same name, got {len(noisy_images)} "
            f"noisy and {len(clean_images)} clean. "
            f"{counted(len(alone), 'image has', 'images have')} no partner: "
            f"{', '.join(alone[:NAMED])}{more}. Rename or remove them."
        )
    scenes = []
    for image in noisy_images:
        partner = by_name[image.name]
        if image.array.shape != partner.array.shape:
            raise ValueError(
                f"{image.name} must have the same shape noisy and clean, got {image.array.shape} "
                f"and {partner.array.shape}. Crop them alike."
            )
        scenes += [
            Scene((first,), second)
            for first, second in zip(image.planes(), partner.planes(), strict=True)
        ]
    return scenes


def _check(scenes: Sequence[Scene]) -> None:
    """Refuse scenes that cannot be trained on."""
    for scene in scenes:
        for plane in scene.planes:
            if plane.dtype.kind == "f" and (
                bad := plane.size - int(np.count_nonzero(np.isfinite(plane)))
            ):
                raise ValueError(
                    "images must be finite, got "
                    f"{counted(bad, 'pixel that is', 'pixels that are')} NaN or infinite. Replace "
                    "them, or crop them away."
                )
        if min(scene.shape) < SMALLEST_SIDE:
            height, width = scene.shape
            raise ValueError(
                f"images must be at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, got "
                f"{width}x{height}. Leave small ones out."
            )
    if (pixels := sum(math.prod(scene.shape) for scene in scenes)) < FEWEST_PIXELS:
        raise ValueError(
            f"the images must have at least {FEWEST_PIXELS} pixels together, got {pixels}. Give "
            "more or larger images."
        )
    if len(kinds := {scene.planes[0].dtype.newbyteorder("=") for scene in scenes}) > 1:
        raise ValueError(
            f"the images must have one dtype, as one scale is used for all, got "
            f"{sorted(map(str, kinds))}. Convert them."
        )


def _on_a_scale(
    kind: Kind, scenes: Sequence[Scene], black: float | None, white: float | None
) -> UserImages:
    """With `black` and `white`, chosen where they are not given."""
    low, high = _range_of(scenes)
    low, high = low if black is None else float(black), high if white is None else float(white)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"black and white must be finite grey levels, got {black} and {white}. Change them."
        )
    if low >= high and black is None and white is None:
        raise ValueError(
            f"the images must have a range of grey levels, got {low:g} to {high:g}. Give images "
            "with content."
        )
    if low >= high:
        raise ValueError(
            f"black must be below white, got {low:g} and {high:g}. Change black or white."
        )
    return UserImages(kind, tuple(scenes), low, high)


def _range_of(scenes: Sequence[Scene]) -> tuple[float, float]:
    """Two percentiles of a sample of the pixels; the whole range for 8-bit images."""
    planes = [scene.planes[-1] for scene in scenes]
    if all(plane.dtype == np.uint8 for plane in planes):
        return 0.0, 255.0 if any(np.min(plane) != np.max(plane) for plane in planes) else 0.0
    low, high = np.percentile(_sample(scenes), RANGE)
    return float(low), float(high)


def _sample(scenes: Sequence[Scene]) -> NDArray[np.float64]:
    """Some of the pixels of what is learnt from."""
    pixels = sum(math.prod(scene.shape) for scene in scenes)
    every = slice(None, None, max(1, math.ceil(math.sqrt(pixels / SAMPLE_PIXELS))))
    sample = np.concatenate([scene.target((every, every)).ravel() for scene in scenes])
    return sample.astype(np.float64)


def _warn_of_offset(table: NoiseTable, scenes: Sequence[Scene]) -> None:
    """Say that much of the images is darker than a detector without light."""
    if table["kind"] != "detector" or not table.get("offset"):
        return
    read_noise = table.get("read_noise", 0.0)
    dark = table["offset"] - table.get("pedestal", 0.0)
    share = float(np.mean(_sample(scenes) < dark - DARKER * read_noise))
    if share > MOST_DARKER:
        warnings.warn(
            f"{share:.0%} of the pixels are darker than the detector without light (grey level "
            f"{dark:g}) and get no shot noise. Check offset, and whether the images are raw.",
            UserWarning,
            stacklevel=3,
        )


def _digest(plane: Pixels) -> str:
    return hashlib.sha256(
        f"{plane.shape}{plane.dtype.str}".encode() + np.ascontiguousarray(plane).tobytes()
    ).hexdigest()
