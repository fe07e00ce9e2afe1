"""A lab's own images as material for training: pairs of noisy and clean ones, repeats of a scene, or clean ones and a noise model.

Images keep their own type and units; one scale for all of them, `black`..`white`, says what 0..1 is in training.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import NDArray

from dn_core import files
from dn_core.files.raw import RawArray, open_npy
from dn_core.inference.arrays import as_array, axes_of, axes_of_file
from dn_core.inference.planes import Axes, ChannelAxis, check_dtype

__all__ = ["NoiseTable", "OwnImages", "Scene", "clean_and_noise", "pairs", "repeats"]

Kind = Literal["pairs", "repeats", "clean and noise"]
NoiseTable = dict[str, Any]
Pixels = NDArray[Any] | RawArray
"""In memory, or in a .npy file that is read where it is looked at."""

SMALLEST_SIDE = 32
FEWEST_PIXELS = 2**13
SAMPLE_PIXELS = 2**22
RANGE = (0.1, 99.9)
"""Percentiles that become 0 and 1, so that a few dead or hot pixels do not set the scale."""
MISMATCH = 0.02
"""Part of the squared difference of a pair that a gain and an offset explain, above which they are not chance."""
UNRELATED, FLAT = 0.05, 0.2
"""Correlation of noisy and clean below which no pair shows the same, or a pair shows too little to tell its gain."""
NAMED = 5  # names in a message


@dataclass(frozen=True, eq=False)
class Scene:
    """One plane of the world: noisy images of it, and a clean one where there is one; all ``(H, W)``.

    ``gain * clean + offset`` is the clean image in the grey levels of the noisy one.
    """

    noisy: tuple[Pixels, ...]
    clean: Pixels | None = None
    gain: float = 1.0
    offset: float = 0.0

    @property
    def planes(self) -> tuple[Pixels, ...]:
        """All images, the clean one last."""
        return self.noisy if self.clean is None else (*self.noisy, self.clean)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.planes[0].shape
        return height, width

    def target(self, window: tuple[slice, slice]) -> NDArray[Any]:
        """A part of the last image, a clean one in the grey levels of the noisy one."""
        part = self.planes[-1][window]
        return part if self.gain == 1.0 and self.offset == 0.0 else part * self.gain + self.offset


@dataclass(frozen=True, eq=False)
class OwnImages:
    """Checked images; made by `pairs`, `repeats` and `clean_and_noise`.

    Attributes
    ----------
    black, white
        The grey levels that are 0 and 1 in training, for all images.
    noise
        Tables for `dn_core.noise.noise_from_dict`, on that scale.
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
        """A hash of each scene's last plane: scenes with the same clean image are one scene to a network."""
        return tuple(_digest(scene.planes[-1]) for scene in self.scenes)

    def fingerprint(self) -> str:
        """A hash of all pixels, in order, and of what they are used for."""
        whole = hashlib.sha256(f"{self.kind} {self.black} {self.white} {self.noise}".encode())
        for scene, last in zip(self.scenes, self.digests, strict=True):
            for plane in scene.planes[:-1]:
                whole.update(_digest(plane).encode())
            whole.update(last.encode())
        return whole.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a card says of them: no names, no places."""
        return {
            **{"kind": self.kind, "scenes": len(self.scenes), "images": sum(len(scene.planes) for scene in self.scenes)},
            **{"dtype": str(self.scenes[0].planes[0].dtype), "black": self.black, "white": self.white},
            **{"noise": list(self.noise), "matched": sum(scene.gain != 1.0 for scene in self.scenes), "sha256": self.fingerprint()},
        }


def pairs(
    noisy: Any, clean: Any, *, channel_axis: ChannelAxis = "auto", black: float | None = None, white: float | None = None
) -> OwnImages:
    """Noisy and clean images of the same scenes.

    Parameters
    ----------
    noisy, clean
        Two arrays ``(..., height, width)`` of the same shape, two lists of such, two files (an image that can be read, or ``.npy``), or two
        folders whose files have the same names but for their endings. Planes are what `dn_core.denoise` would make of them. Clean images
        that differ from the noisy ones by a gain and an offset, scene by scene, are brought to their grey levels, with a UserWarning.
    channel_axis
        The axis of channels, None when there are none, or ``"auto"``: as a file says, otherwise found as `dn_core.denoise` does, with a
        UserWarning. Alpha is not learnt from.
    black, white
        Grey levels that are 0 and 1 in training; by default 0 and 255 for 8-bit images, else two percentiles of the clean ones.

    Raises
    ------
    ValueError
        When names or shapes do not match, or there is too little to learn from.
    """
    noisy_images, clean_images = _read(noisy, "noisy", channel_axis), _read(clean, "clean", channel_axis)
    if not isinstance(noisy, (str, Path)) or len(noisy_images) == len(clean_images) == 1:
        partners = [replace(image, name=other.name) for image, other in zip(clean_images, noisy_images, strict=False)]
        clean_images = [*partners, *clean_images[len(partners) :]]
    by_name = {image.name: image for image in clean_images}
    names = {image.name for image in noisy_images}
    if alone := sorted(names ^ by_name.keys()):
        more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
        raise ValueError(
            f"{len(noisy_images)} noisy and {len(clean_images)} clean images came, and {', '.join(alone[:NAMED])}{more} have no partner; a "
            "clean image for each noisy one, of the same name, is expected. Rename or remove them."
        )
    scenes = []
    for image in noisy_images:
        partner = by_name[image.name]
        if image.array.shape != partner.array.shape:
            raise ValueError(
                f"{image.name} has shape {image.array.shape} noisy and {partner.array.shape} clean; the same is expected. Cut them alike."
            )
        scenes += [Scene((first,), second) for first, second in zip(image.planes(), partner.planes(), strict=True)]
    _tell_axes([image.axes() for image in (*noisy_images, *clean_images)])
    _check(scenes)
    if max(_correlation(*_sampled(scene)) for scene in scenes) < UNRELATED:
        raise ValueError("the noisy and the clean images have nothing in common; the same scenes are expected. Check their order or names.")
    if all(np.array_equal(scene.noisy[0], scene.planes[-1]) for scene in scenes):
        raise ValueError("the noisy images are the clean ones; different ones are expected. Check what was given as noisy and clean.")
    matched = [_matched(scene) for scene in scenes]
    if changed := [scene for scene in matched if scene.gain != 1.0]:
        gains, offsets = zip(*((scene.gain, scene.offset) for scene in changed), strict=True)
        warnings.warn(
            f"{len(changed)} of {len(scenes)} clean images differ from their noisy ones by a gain ({min(gains):.3g} to {max(gains):.3g}) "
            f"and an offset ({min(offsets):.4g} to {max(offsets):.4g}); they are brought to the grey levels of the noisy ones.",
            UserWarning,
            stacklevel=2,
        )
    return _on_a_scale("pairs", matched, black, white)


def repeats(
    images: Any, axis: int = 0, *, channel_axis: ChannelAxis = "auto", black: float | None = None, white: float | None = None
) -> OwnImages:
    """Repeats of the same scenes, each with noise of its own (Noise2Noise).

    Parameters
    ----------
    images
        An array whose `axis` counts the repeats, a file with one, or a folder: of single planes, each a repeat of one scene, or of such
        stacks.
    """
    found = _read(images, "repeats", channel_axis)
    if len(found) > 1 and all(image.array.ndim == 2 for image in found):
        if len(shapes := {image.array.shape for image in found}) > 1:
            raise ValueError(f"the repeats have shapes {sorted(shapes)[:NAMED]}; one shape is expected. Cut them alike.")
        scenes = [Scene(tuple(image.array for image in found))]
    else:
        stacks = [_stack_of_repeats(image, axis) for image in found]
        _tell_axes([axes for axes, _ in stacks])
        scenes = [Scene(tuple(planes)) for axes, stack in stacks for planes in zip(*(_planes(one, axes) for one in stack), strict=True)]
    for scene in scenes:
        if len(scene.noisy) < 2:
            raise ValueError("a scene has 1 repeat; 2 or more are expected. Record it again, or choose another axis.")
        if any(np.array_equal(first, second) for first, second in itertools.pairwise(scene.noisy)):
            raise ValueError("two repeats have the same pixels; noise of its own in each is expected. Give repeats as they were recorded.")
    _check(scenes)
    return _on_a_scale("repeats", scenes, black, white)


def clean_and_noise(
    clean: Any, noise: Any, *, channel_axis: ChannelAxis = "auto", black: float | None = None, white: float | None = None
) -> OwnImages:
    """Clean images, and the noise that is put on them.

    Parameters
    ----------
    noise
        A `Gaussian`, `Poisson` or `PoissonGaussian` of `dn_core.noise` with plain numbers, or a table such as
        ``{"kind": "gaussian", "sigma": 40}``. The sigma of Gaussian noise is in grey levels of these images; a peak is the mean count of
        photons at `white`, none at `black`; the sigma of Poisson-Gaussian noise is in photons.
    """
    from dn_core.noise import noise_from_dict

    table = _noise_table(noise)
    noise_from_dict([table])
    images = _read(clean, "clean", channel_axis)
    _tell_axes([image.axes() for image in images])
    scenes = [Scene((), plane) for image in images for plane in image.planes()]
    _check(scenes)
    found = _on_a_scale("clean and noise", scenes, black, white)
    if table["kind"] == "gaussian":
        table["sigma"] = table["sigma"] * 255 / found.range
    return OwnImages(found.kind, found.scenes, found.black, found.white, (table,))


@dataclass(frozen=True)
class _Image:
    """An array, its name in messages, and what says its axes: the caller, or the file or array that it came as."""

    name: str
    array: Any
    channel_axis: ChannelAxis
    origin: Any

    def axes(self) -> Axes:
        if isinstance(self.origin, files.ImageFile):
            return axes_of_file(self.origin, self.channel_axis)
        return axes_of(self.origin, self.array.shape, self.channel_axis)

    def planes(self) -> list[Pixels]:
        return _planes(self.array, self.axes())


def _planes(array: Any, axes: Axes) -> list[Pixels]:
    return [_part(array, plane.index(slice(None), slice(None))) for plane in axes.planes()]


def _tell_axes(found: Sequence[Axes]) -> None:
    """Warn of what was guessed of axes, and of alpha that is not learnt from, once for images of one shape."""
    for note, count in Counter(axes.note for axes in found if axes.note is not None).items():
        warnings.warn(note if count == 1 else f"{count} images: {note}", UserWarning, stacklevel=3)


def _read(images: Any, what: str, channel_axis: ChannelAxis) -> list[_Image]:
    """Images from a path, an array or several arrays; .npy files stay on disk, as memory maps do."""
    if isinstance(images, (str, Path)):
        return [_read_file(path, name, channel_axis) for path, name in _paths(Path(images))]
    if isinstance(images, (list, tuple)) and not any(isinstance(image, (str, Path, int, float)) for image in images):
        found = [_Image(f"{what} {number}", np.asarray(as_array(image)), channel_axis, image) for number, image in enumerate(images)]
    else:
        found = [_Image(what, np.asarray(as_array(images)), channel_axis, images)]
    if not found:
        raise ValueError(f"{what} is empty; at least one image is expected. Give some.")
    return found


def _paths(root: Path) -> list[tuple[Path, str]]:
    """Files under a folder with their names in it, or the one file."""
    if root.suffix.lower() == ".npy":
        return [(root, root.stem)]
    paths = files.image_paths([root])
    if len(paths) == 1 and os.path.samefile(paths[0], root):
        return [(root, root.stem)]
    named = [(path, path.relative_to(root).with_suffix("").as_posix()) for path in paths]
    names = [name for _, name in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several files are named {twice[0]} but for their endings; one is expected. Move the others away.")
    return named


def _read_file(path: Path, name: str, channel_axis: ChannelAxis) -> _Image:
    if path.suffix.lower() == ".npy":
        try:
            array = open_npy(path)
        except ValueError as error:
            raise ValueError(f"{path} is not an array that can be read ({error}); one that numpy.save wrote is expected.") from error
        return _Image(name, as_array(array), channel_axis, array)
    image = files.read_image(path)
    check_dtype(image.dtype)
    return _Image(name, image.source, channel_axis, image)


def _stack_of_repeats(image: _Image, axis: int) -> tuple[Axes, list[Pixels]]:
    """The axes of one repeat, and the repeats of one image."""
    ndim = image.array.ndim
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis is {axis!r}; a whole number is expected. Give the index of the axis of repeats.")
    if not -ndim <= axis < ndim:
        raise AxisError(f"axis is {axis}, {image.name} has {ndim} axes {image.array.shape}; one of them is expected. Change axis.")
    if ndim < 3:
        raise ValueError(
            f"{image.name} has shape {image.array.shape}; (repeats, height, width) is expected. Stack the repeats, or give their folder."
        )
    axis = int(axis) % ndim
    before = (slice(None),) * axis
    found = [_part(image.array, (*before, number)) for number in range(image.array.shape[axis])]
    channel = image.channel_axis
    if isinstance(channel, int) and not isinstance(channel, bool) and -ndim <= channel < ndim:
        if channel % ndim == axis:
            raise ValueError(f"axis and channel_axis are both {axis} in {image.name}; different ones are expected. Change one.")
        channel = channel % ndim - (channel % ndim > axis)
    origin = image.origin
    if isinstance(origin, files.ImageFile):
        origin = replace(origin, source=found[0], axes=origin.axes[:axis] + origin.axes[axis + 1 :])
    elif hasattr(origin, "dims") and hasattr(origin, "isel"):  # an xarray, whose names stay
        origin = origin.isel({origin.dims[axis]: 0})
    return _Image(image.name, found[0], channel, origin).axes(), found


def _check(scenes: Sequence[Scene]) -> None:
    """Refuse what cannot be learnt from."""
    for scene in scenes:
        for plane in scene.planes:
            if plane.dtype.kind == "f" and (bad := plane.size - int(np.count_nonzero(np.isfinite(plane)))):
                raise ValueError(f"an image has {bad} pixels that are NaN or infinite; finite ones are expected. Replace or cut them away.")
        if min(scene.shape) < SMALLEST_SIDE:
            height, width = scene.shape
            raise ValueError(
                f"an image is {width}x{height} pixels; at least {SMALLEST_SIDE}x{SMALLEST_SIDE} is expected. Leave small ones out."
            )
    if (pixels := sum(math.prod(scene.shape) for scene in scenes)) < FEWEST_PIXELS:
        raise ValueError(f"the images have {pixels} pixels together; at least {FEWEST_PIXELS} are expected. Give more or larger images.")
    if len(kinds := {scene.planes[0].dtype.newbyteorder("=") for scene in scenes}) > 1:
        raise ValueError(f"the images have dtypes {sorted(map(str, kinds))}; one is expected, as one scale serves all. Convert them.")


def _on_a_scale(kind: Kind, scenes: Sequence[Scene], black: float | None, white: float | None) -> OwnImages:
    """With `black` and `white`, chosen where they are not given."""
    low, high = _range_of(scenes)
    found = low if black is None else float(black), high if white is None else float(white)
    if not (math.isfinite(found[0]) and math.isfinite(found[1])):
        raise ValueError(f"black is {black} and white {white}; finite grey levels are expected. Change them.")
    if found[0] >= found[1]:
        where = "the images go" if black is None and white is None else "black and white go"
        raise ValueError(f"{where} from {found[0]:g} to {found[1]:g}; a range of grey levels is expected. Give images with content.")
    return OwnImages(kind, tuple(scenes), *found)


def _range_of(scenes: Sequence[Scene]) -> tuple[float, float]:
    """Two percentiles of a sample of the pixels; the whole range for 8-bit images."""
    planes = [scene.planes[-1] for scene in scenes]
    if all(plane.dtype == np.uint8 for plane in planes):
        return 0.0, 255.0 if any(np.min(plane) != np.max(plane) for plane in planes) else 0.0
    step = max(1, math.ceil(math.sqrt(sum(plane.size for plane in planes) / SAMPLE_PIXELS)))
    every = slice(None, None, step)
    sample = np.concatenate([scene.target((every, every)).ravel() for scene in scenes])
    low, high = np.percentile(sample.astype(np.float64), RANGE)
    return float(low), float(high)


def _sampled(scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Some pixels of a pair."""
    step = max(1, math.ceil(math.sqrt(math.prod(scene.shape) / SAMPLE_PIXELS)))
    noisy, clean = (plane[::step, ::step].astype(np.float64) for plane in (scene.noisy[0], scene.planes[-1]))
    return noisy, clean


def _correlation(noisy: NDArray[np.float64], clean: NDArray[np.float64]) -> float:
    """0 where one of them has no content."""
    spread = math.sqrt(noisy.var() * clean.var())
    return float(((noisy - noisy.mean()) * (clean - clean.mean())).mean() / spread) if spread else 0.0


def _matched(scene: Scene) -> Scene:
    """The scene with its clean image in the grey levels of the noisy one, where they differ by more than the noise explains."""
    noisy, clean = _sampled(scene)
    if _correlation(noisy, clean) < FLAT:
        return scene
    gain = float(((noisy - noisy.mean()) * (clean - clean.mean())).mean() / clean.var())
    offset = float(noisy.mean() - gain * clean.mean())
    as_given, fitted = ((noisy - clean) ** 2).mean(), ((noisy - gain * clean - offset) ** 2).mean()
    if as_given - fitted <= MISMATCH * as_given:
        return scene
    return replace(scene, gain=gain, offset=offset)


def _noise_table(noise: Any) -> NoiseTable:
    from dn_core.noise import Gaussian, Poisson, PoissonGaussian

    kinds = {Gaussian: "gaussian", Poisson: "poisson", PoissonGaussian: "poisson-gaussian"}
    if type(noise) in kinds:
        names = ("sigma", "peak")
        given = {name: getattr(noise, name) for name in names if getattr(noise, name, None) is not None}
        noise = {"kind": kinds[type(noise)], **given}
    if not isinstance(noise, dict) or noise.get("kind") not in kinds.values():
        raise ValueError(
            f"noise is {noise!r}; Gaussian, Poisson or PoissonGaussian of dn_core.noise, or a table with one of the kinds "
            f"{', '.join(kinds.values())}, is expected. Change noise."
        )
    for name, value in noise.items():
        if name != "kind" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{name} of the noise is {value!r}; a plain number is expected. Change {name}.")
    return dict(noise)


def _part(array: Pixels, index: tuple[Any, ...]) -> Pixels:
    """A part of an array that is not read yet."""
    return array.view(index) if isinstance(array, RawArray) else array[index]


def _digest(plane: Pixels) -> str:
    return hashlib.sha256(f"{plane.shape}{plane.dtype.str}".encode() + np.ascontiguousarray(plane).tobytes()).hexdigest()
