"""Methods to compare: published networks, classical filters, our models; test images and noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import dn_core
from dn_core.inference.engines import import_openvino

if TYPE_CHECKING:
    from dn_core.paper.baselines import Baseline

SIGMAS = (15, 25, 50)
PEAKS = (1, 2, 4, 8)
MIXED = ((0.1, 1), (0.2, 2), (0.5, 5), (1, 10), (2, 20), (3, 30), (6, 60), (12, 120))

NLM = {"patch_size": 7, "patch_distance": 11, "fast_mode": True}
NLM_STRENGTH = 0.8
TV = {"eps": 1e-5, "max_num_iter": 200}
TV_STRENGTH = 0.8
"""TV's weight over the noise's standard deviation.

Between the optima (0.7, 0.9) on training photographs at sigma 15 and 50.
"""

SPEED_SIDE = 512

Image = NDArray[Any]
Method = Callable[[Image, float], Image]
"""A noisy image and the standard deviation of its noise, to a clean image."""


def load_baselines(folder: Path) -> dict[str, Baseline]:
    """The baselines of a folder with peers.json, by name."""
    from dn_core.paper.baselines import (
        load_baseline,  # brings torch, which our own models do not need
    )

    return {
        name: load_baseline(folder / facts["file"])
        for name, facts in baseline_facts(folder).items()
    }


def baseline_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What peers.json says of each baseline: its file, and its scores on Set12."""
    return {
        facts["name"]: facts
        for facts in json.loads((folder / "peers.json").read_text("utf-8"))["peers"]
    }


def baseline_in_openvino(baseline: Baseline, shape: tuple[int, int], precision: str) -> Method:
    """A baseline in the engine of `dn_core`, compiled for one (even) shape.

    `precision` is ``"f32"`` or ``"bf16"``.
    """
    openvino = import_openvino()
    ops = openvino.opset13
    source = ops.parameter([1, 1, *shape], np.float32)
    level = ops.parameter([1, 1, 1, 1], np.float32)
    x = source
    if baseline.takes_sigma:
        noise_map = ops.broadcast(level, ops.constant([1, 1, shape[0] // 2, shape[1] // 2]))
        x = ops.concat([ops.space_to_depth(source, "depth_first", 2), noise_map], 1)
    for index, (weight, bias) in enumerate(baseline.convolutions):
        x = ops.convolution(x, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1])
        x = ops.add(x, ops.constant(bias.reshape(1, -1, 1, 1)))
        x = ops.relu(x) if index < len(baseline.convolutions) - 1 else x
    x = ops.depth_to_space(x, "depth_first", 2) if baseline.takes_sigma else x
    graph = openvino.Model(
        [x], [source, level] if baseline.takes_sigma else [source], baseline.name
    )
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def compute(image: Image, sigma: float) -> Image:
        inputs = {0: np.asarray(image, np.float32)[None, None]}
        if baseline.takes_sigma:
            return request.infer({**inputs, 1: np.full((1, 1, 1, 1), sigma, np.float32)})[0][
                0, 0
            ].copy()
        return np.asarray(image, np.float32) - request.infer(inputs)[0][0, 0]

    return compute


def ours(name: str, **options: Any) -> Method:
    """One of our models; those with a noise map get the standard deviation."""
    model = dn_core.load_model(name)

    def compute(image: Image, sigma: float) -> Image:
        return dn_core.denoise(
            image, model, device="cpu", sigma=sigma if model.config.noise_map else None, **options
        )

    return compute


def non_local_means(image: Image, sigma: float) -> Image:
    """scikit-image's non-local means."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(image, h=NLM_STRENGTH * sigma, sigma=sigma, preserve_range=True, **NLM)


def total_variation(image: Image, sigma: float) -> Image:
    """scikit-image's total variation (Chambolle)."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(image, weight=TV_STRENGTH * sigma, **TV)


def anscombe(counts: Image, read_noise: float) -> Image:
    """Generalised Anscombe transform of photon counts with Gaussian `read_noise`.

    After it the noise has a variance near 1.
    """
    return 2 * np.sqrt(np.maximum(counts + 3 / 8 + read_noise**2, 0))


def inverse_anscombe(values: Image, read_noise: float) -> Image:
    """Closed-form approximation of the exact unbiased inverse.

    Mäkitalo and Foi, IEEE TIP 2011 and 2013.
    """
    d = np.maximum(values, 2 * math.sqrt(3 / 8))
    root = math.sqrt(3 / 2)
    counts = (
        d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8 - read_noise**2
    )
    return np.maximum(counts, 0)


def behind_anscombe(method: Method, image: Image, peak: float, read_noise: float) -> Image:
    """A method for white noise, used on Poisson or Poisson-Gaussian noise of known parameters."""
    stable = anscombe(image.astype(np.float64) * peak, read_noise)
    return inverse_anscombe(method(stable.astype(np.float32), 1.0), read_noise) / peak


@dataclass(frozen=True)
class Level:
    """Poisson noise of a peak, with Gaussian read noise if `read_noise` (in photons) is not 0."""

    peak: float
    read_noise: float = 0.0

    @property
    def name(self) -> str:
        """As the tables have it."""
        return f"{self.read_noise:g}/{self.peak:g}" if self.read_noise else f"{self.peak:g}"

    def noisy(self, images: list[Image]) -> list[tuple[Image, float]]:
        """Noisy images, one generator for all, each with its root mean square noise."""
        import torch

        from dn_core.noise import Poisson, PoissonGaussian

        noise = (
            PoissonGaussian(self.read_noise, self.peak) if self.read_noise else Poisson(self.peak)
        )
        generator = torch.Generator().manual_seed(0)
        found = [noise(torch.from_numpy(image)[None, None], generator) for image in images]
        return [
            (noisy.image[0, 0].numpy(), float(noisy.std.square().mean().sqrt())) for noisy in found
        ]


def read_images(folder: Path, limit: int | None, side: int | None = None) -> list[Image]:
    """Grey images in 0..1 (float32); colours become grey by MATLAB's rule.

    With `side` only the middle square.
    """
    from dn_core.files import read_image

    images = []
    for path in sorted(folder.glob("*.png"))[:limit]:
        pixels = read_image(path).pixels
        if pixels.ndim == 3:
            pixels = np.floor(pixels[..., :3] @ np.array([0.298936, 0.587043, 0.114021]) + 0.5)
        top, left = (max(0, extent - (side or extent)) // 2 for extent in pixels.shape)
        images.append(
            (pixels[top : top + side, left : left + side] if side else pixels).astype(np.float32)
            / 255
        )
    if not images:
        raise FileNotFoundError(
            f"there are no PNG images in {folder}; give --data the folder that has test/set12 and "
            "test/set14"
        )
    return images


def gaussian_noise(images: list[Image], sigma: float) -> list[Image]:
    """One generator for the whole set; neither clipped nor rounded."""
    generator = np.random.default_rng(0)
    return [
        (image + sigma / 255 * generator.standard_normal(image.shape)).astype(np.float32)
        for image in images
    ]


def camera(side: int) -> NDArray[np.uint8]:
    """scikit-image's camera, repeated to a square of `side`, with Gaussian noise of sigma 25."""
    from skimage import data

    truth = np.pad(data.camera(), (0, max(0, side - 512)), mode="symmetric")[:side, :side]
    noise = np.random.default_rng(0).normal(0, 25, truth.shape)
    return np.clip(np.rint(truth + noise), 0, 255).astype(np.uint8)
