"""Speed, everything from an 8-bit image to an 8-bit image; and the cold start of the command."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import dn_core
from comparison.methods import (
    SPEED_SIDE,
    Image,
    Method,
    baseline_in_openvino,
    camera,
    load_baselines,
    non_local_means,
    ours,
    total_variation,
)
from comparison.processes import in_fresh_process, say, temporary_folder, timed_child

if TYPE_CHECKING:
    from dn_core.paper.baselines import Baseline


@dataclass(frozen=True)
class Variant:
    """A network or filter with what computes it.

    ``"dn_core"``, ``"torch"``, ``"OpenVINO"`` or ``"scikit-image"``.
    """

    name: str
    computed_by: str
    precision: str = "float32"

    @property
    def key(self) -> str:
        """Its name in results."""
        return f"{self.name} | {self.computed_by} | {self.precision}"


def variants(models: list[str]) -> list[Variant]:
    """What is timed."""
    reduced = dn_core.engine_name(models[0], device="cpu", dtype=np.uint8).endswith("bfloat16")
    found = [Variant(name, "dn_core", "default") for name in models]
    if reduced:
        found += [Variant(name, "dn_core") for name in models]
    found += [Variant("dncnn_s25", "torch"), Variant("dncnn_s25", "OpenVINO")]
    found += [Variant("dncnn_s25", "OpenVINO", "bfloat16")] if reduced else []
    found += [Variant("dn-resnet-13", "torch")] if "dn-resnet-13" in dn_core.model_names() else []
    found += [Variant("ffdnet_gray", "OpenVINO")]
    found += [Variant("ffdnet_gray", "OpenVINO", "bfloat16")] if reduced else []
    return [*found, Variant("NLM", "scikit-image"), Variant("TV", "scikit-image")]


def prepare(
    variant: Variant, baselines: dict[str, Baseline], shape: tuple[int, int]
) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """The variant ready to run on 8-bit images with Gaussian noise of sigma 25."""
    if variant.computed_by == "dn_core":
        own = ours(
            variant.name, precision=None if variant.precision == "default" else variant.precision
        )
        return lambda image: own(image, 25.0)
    if variant.computed_by == "scikit-image":
        method = {"NLM": non_local_means, "TV": total_variation}[variant.name]
    elif variant.computed_by == "OpenVINO":
        method = baseline_in_openvino(
            baselines[variant.name],
            shape,
            {"float32": "f32", "bfloat16": "bf16"}[variant.precision],
        )
    elif variant.name in baselines:
        from dn_core.paper.baselines import BaselineMethod

        method = BaselineMethod(baselines[variant.name], channels_last=False)
    else:
        method = own_in_torch(variant.name)

    def run(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        clean = method(image.astype(np.float32) / np.float32(255), 25 / 255)
        return np.rint(np.clip(clean, 0, 1) * 255).astype(np.uint8)

    return run


def own_in_torch(name: str) -> Method:
    """One of our networks in plain torch: float32, channels first."""
    import torch

    network = dn_core.load_model(name).checkpoint.network()

    def compute(image: Image, sigma: float) -> Image:
        planes = [image, np.full_like(image, sigma)] if network.config.noise_map else [image]
        with torch.inference_mode():
            return network(torch.from_numpy(np.stack(planes))[None])[0, 0].numpy()

    return compute


def measure_speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of each variant, interleaved.

    In a process of its own, so that torch has its usual allocator.
    """
    return in_fresh_process(
        time_variants, options.models, options.baselines, 3 if options.quick else 15
    )


def time_variants(models: list[str], baselines_folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Two rounds to warm up, then `rounds` of A B C, A B C."""
    baselines, image = load_baselines(baselines_folder), camera(SPEED_SIDE)
    listed = variants(models)
    runs = [prepare(variant, baselines, image.shape) for variant in listed]
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(2 + rounds):
        say(f"speed: round {number + 1} of {2 + rounds}")
        for run, times in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run(image)
            times.append(time.perf_counter() - began)
    return [
        {
            "key": variant.key,
            "name": variant.name,
            "engine": engine_of(variant),
            "median_ms": 1000 * statistics.median(times[2:]),
            "minimum_ms": 1000 * min(times[2:]),
            **cost(variant.name, baselines),
        }
        for variant, times in zip(listed, seconds, strict=True)
    ]


def engine_of(variant: Variant) -> str:
    """Who computes, in words."""
    if variant.computed_by == "dn_core":
        dtype = np.uint8 if variant.precision == "default" else np.float32
        return f"dn_core ({dn_core.engine_name(variant.name, device='cpu', dtype=dtype)})"
    return (
        variant.computed_by
        if variant.computed_by == "scikit-image"
        else f"{variant.computed_by}, {variant.precision}"
    )


def cost(name: str, baselines: dict[str, Baseline]) -> dict[str, float]:
    """Weights and multiplications per pixel of a network; nothing for a filter."""
    if name in baselines:
        return {
            "weights": baselines[name].parameters,
            "macs_per_pixel": baselines[name].macs_per_pixel,
        }
    if name in ("NLM", "TV"):
        return {}
    from dn_core.networks import count_macs, count_parameters

    network = dn_core.load_model(name).checkpoint.network()
    macs = count_macs(network, (SPEED_SIDE, SPEED_SIDE)) / SPEED_SIDE**2
    return {"weights": count_parameters(network), "macs_per_pixel": macs}


# Cold start

COMMAND = """
import sys
from dn_core.cli import main
main()
print("torch" in sys.modules)
"""
COMMAND_IN_PIECES = """
import json, sys, time
began = time.perf_counter()
laps = {}
def lap(name):
    global began
    now = time.perf_counter()
    laps[name], began = now - began, now
import dn_core.cli, dn_core.files.tiff, dn_core.inference.denoise
try:
    dn_core.inference.engines.import_openvino()
except ImportError:
    pass
lap("imports")
with dn_core.files.open_image(sys.argv[1]) as image:
    pixels = image.pixels
    lap("reading the file")
    model = dn_core.load_model()
    dn_core.denoise(pixels, model)
    lap("first")
    clean = dn_core.denoise(pixels, model)
    lap("denoising")
    with dn_core.files.create_image(sys.argv[2], image) as target:
        target[...] = clean
    lap("writing the file")
laps["model and engine"] = max(0.0, laps.pop("first") - laps["denoising"])
print(json.dumps(laps))
"""


def measure_cold(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the command in fresh processes, whole and in pieces; was torch imported."""
    import tifffile

    runs = 3 if options.quick else 5
    whole, interpreter, pieces, torch_seen = [], [], [], []
    with temporary_folder() as folder:
        tifffile.imwrite(folder / "small.tif", camera(SPEED_SIDE))
        for number in range(runs):
            say(f"cold start: run {number + 1} of {runs}")
            seconds, output = timed_child(
                COMMAND, "denoise", "small.tif", "-o", f"whole{number}.tif", folder=folder
            )
            whole.append(seconds)
            torch_seen.append(output.split()[-1] != "False")
            interpreter.append(timed_child("pass", folder=folder)[0])
            pieces.append(
                json.loads(
                    timed_child(
                        COMMAND_IN_PIECES, "small.tif", f"pieces{number}.tif", folder=folder
                    )[1]
                )
            )
    found = {name: statistics.median(piece[name] for piece in pieces) for name in pieces[0]}
    return {
        "runs": runs,
        "whole": statistics.median(whole),
        "pieces": {"interpreter": statistics.median(interpreter), **found},
        "torch_imported": any(torch_seen),
    }
