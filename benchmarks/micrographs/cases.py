"""Noisy images with their truth: real pairs, and clean images with seeded noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from comparison.methods import Level, gaussian_noise, read_images
from comparison.processes import say
from numpy.typing import NDArray

__all__ = [
    "COUNTS",
    "FMD_KINDS",
    "READ_NOISE",
    "SIGMAS",
    "Case",
    "check_real_images",
    "read_cases",
]

Image = NDArray[np.float32]

FMD_KINDS = {
    "WideField_BPAE_B": "widefield B",
    "WideField_BPAE_G": "widefield G",
    "WideField_BPAE_R": "widefield R",
    "Confocal_BPAE_B": "confocal B",
    "Confocal_BPAE_G": "confocal G",
    "Confocal_BPAE_R": "confocal R",
    "Confocal_FISH": "fish",
}
COUNTS = (0.5, 1, 2, 5, 10, 30, 100, 300, 1000)
"""Photons at the brightest pixel of a clean image."""
READ_NOISE = 0.5
"""Photons."""
SYNTHETIC_IMAGES, SYNTHETIC_SIDE = 12, 256
SIGMAS = (15, 25, 50)


@dataclass(frozen=True)
class Case:
    """A noisy image with its truth, both with 1 for white.

    Attributes
    ----------
    collection : str
        Such as ``"W2S"``, ``"FMD 1"`` (captures averaged), ``"dsb2018 10"`` (photons) or
        ``"Set12 25"`` (sigma).
    name : str
        Of the image.
    noisy, truth : Image
        ``(height, width)``.
    noise : tuple of float, optional
        ``(slope, offset)`` of the noise's variance, slope * brightness + offset, where it is known.
    """

    collection: str
    name: str
    noisy: Image
    truth: Image
    noise: tuple[float, float] | None = None


def grey(path: Path) -> Image:
    """An 8-bit image of one channel, 1 for white."""
    from dn_core.files import read_image

    pixels = read_image(path).pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(
            f"{path} must be an 8-bit image of one channel, got {pixels.dtype} and shape "
            f"{pixels.shape}. Fetch the test images again."
        )
    return pixels.astype(np.float32) / np.float32(255)


def facts(path: Path) -> dict[str, Any]:
    """What is known of each image of a folder, by name."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found.get("images_here") or found["configs"]


def w2s_cases(folder: Path) -> Iterator[Case]:
    """W2S: one camera frame and the mean of 400, brought to the frame's gain and offset."""
    for name, known in facts(folder / "w2s.json").items():
        truth = known["gain"] * grey(folder / f"{name}_avg400.png") + known["offset"] / 255
        yield Case("W2S", name, grey(folder / f"{name}_avg1.png"), truth.astype(np.float32))


def fmd_cases(folder: Path, captures: int) -> Iterator[Case]:
    """FMD: one capture, or the average of 2 (different ones) or 4, and the mean of 50."""
    known = facts(folder / "fmd.json")
    for name, kind in FMD_KINDS.items():
        numbers = {1: [1], 2: known[name]["avg2_captures"], 4: [1, 2, 3, 4]}[captures]
        noisy = np.mean([grey(folder / f"{name}_raw{number}.png") for number in numbers], axis=0)
        yield Case(
            f"FMD {captures}", kind, noisy.astype(np.float32), grey(folder / f"{name}_gt.png")
        )


def synthetic_cases(folder: Path, count: float) -> Iterator[Case]:
    """Nuclei, 1 for the brightest pixel: `count` photons there, read noise of `READ_NOISE`."""
    names = [path.stem for path in sorted(folder.glob("*.png"))][:SYNTHETIC_IMAGES]
    images = [
        image / image.max() for image in read_images(folder, SYNTHETIC_IMAGES, SYNTHETIC_SIDE)
    ]
    noise = (1 / count, (READ_NOISE / count) ** 2)
    for name, truth, (noisy, _) in zip(
        names, images, Level(count, READ_NOISE).noisy(images), strict=True
    ):
        yield Case(f"dsb2018 {count:g}", name, noisy, truth, noise)


def photograph_cases(folder: Path, sigma: float) -> Iterator[Case]:
    """Set12 with Gaussian noise, as in benchmarks.md."""
    names, images = [path.stem for path in sorted(folder.glob("*.png"))], read_images(folder, None)
    for name, truth, noisy in zip(names, images, gaussian_noise(images, sigma), strict=True):
        yield Case(f"Set12 {sigma:g}", name, noisy, truth, (0.0, (sigma / 255) ** 2))


def collections(test: Path) -> dict[str, Callable[[], Iterator[Case]]]:
    """What there may be, by name."""
    found: dict[str, Callable[[], Iterator[Case]]] = {"W2S": partial(w2s_cases, test / "w2s")}
    for captures in (1, 2, 4):
        found[f"FMD {captures}"] = partial(fmd_cases, test / "fmd", captures)
    for count in COUNTS:
        found[f"dsb2018 {count:g}"] = partial(synthetic_cases, test / "dsb2018", count)
    for sigma in SIGMAS:
        found[f"Set12 {sigma}"] = partial(photograph_cases, test / "set12", sigma)
    return found


def read_cases(data: Path, wanted: tuple[str, ...] = (), limit: int | None = None) -> list[Case]:
    """All images of the collections that there are.

    Parameters
    ----------
    data : Path
        The folder with ``test/w2s``, ``test/fmd``, ``test/dsb2018`` and ``test/set12``; what lacks
        is said in a line and left out.
    wanted : tuple of str, optional
        Names of collections; all by default.
    limit : int, optional
        Only the first images of each collection.

    Returns
    -------
    list of Case
        In order.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When `wanted` has a name that is none of a collection.
    """
    cases: list[Case] = []
    missing = set()
    known = collections(data / "test")
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(
            f"collections must be some of {', '.join(known)}, got {', '.join(unknown)}. Correct "
            "--collections."
        )
    for name, read in known.items():
        folder = data / "test" / name.split()[0].lower()
        if wanted and name not in wanted:
            continue
        if not folder.is_dir():
            missing.add(folder.name)
            continue
        cases += list(read())[:limit]
    if not cases:
        raise FileNotFoundError(
            f"{data} must have test/w2s, test/fmd, test/dsb2018 or test/set12, got none of them. "
            "Give the folder with --data, or set DN_DATA."
        )
    if missing:
        say(f"left out, as {data / 'test'} lacks them: {', '.join(sorted(missing))}")
    return cases


def check_real_images(data: Path, found: dict[str, dict[str, float]]) -> list[str]:
    """Sentences on noisy images whose PSNR is not the one in their lists: other files, or misread.

    Parameters
    ----------
    data : Path
        As in `read_cases`.
    found : dict
        PSNR of the noisy images by collection and name.

    Returns
    -------
    list of str
        Empty where all is well.
    """
    kinds = {kind: name for name, kind in FMD_KINDS.items()}
    wrong = []
    for collection, images in found.items():
        folder = collection.split()[0].lower()
        known = facts(data / "test" / folder / f"{folder}.json")
        for name, measured in images.items():
            if collection == "W2S":
                expected = known[name]["psnr_input_matched"]
            elif collection == "FMD 1":
                expected = known[kinds[name]]["psnr_raw"][0]
            else:
                expected = known[kinds[name]][f"psnr_avg{collection.split()[1]}"]
            if abs(measured - expected) > 0.01:
                wrong.append(f"{collection}, {name}: {measured:.3f} dB, {expected:.3f} are listed")
    return wrong
