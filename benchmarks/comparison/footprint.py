"""Memory: each figure in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

import dn_core
from comparison.methods import camera, load_baselines
from comparison.processes import in_fresh_process, say, temporary_folder
from comparison.speed import Variant, engine_of, prepare, variants


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory; Linux only."""
    if not Path("/proc/self/status").exists():
        say("memory: measured on Linux only")
        return {}
    default = options.models[0]
    listed = [variant for variant in variants([default]) if variant.name == default] + [
        Variant(default, "torch")
    ]
    found: dict[str, Any] = {
        "model": default,
        "start": in_fresh_process(start_memory),
        "images": [],
    }
    for variant in listed:
        say(f"memory: {variant.key}")
        peaks = {
            str(side): in_fresh_process(image_memory, variant, options.baselines, side)
            for side in (512, 2048)
        }
        found["images"].append({"name": variant.name, "engine": engine_of(variant), "peaks": peaks})
    with temporary_folder() as folder:
        found["memmap"] = measure_memmap(
            folder, default, (4000, 2000) if options.quick else (20_000, 2000)
        )
        found["zarr"] = [
            measure_zarr(folder, default, planes, 60 if options.quick else 200)
            for planes in (120, 1280)
        ]
    return found


def megabytes(field: str) -> float:
    """A line of /proc/self/status.

    getrusage would count what the parent process had when it started this one.
    """
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(
        f"/proc/self/status has no line {field}; a Linux kernel that writes it is expected"
    )


def start_memory() -> dict[str, float]:
    """Resident memory of the interpreter with numpy, and with torch too."""
    numpy_only = megabytes("VmRSS")
    import torch  # noqa: F401

    return {"numpy": numpy_only, "torch": megabytes("VmRSS")}


def image_memory(variant: Variant, baselines_folder: Path, side: int) -> float:
    """Peak while one square 8-bit image is denoised."""
    image = camera(side)
    baselines = {} if variant.computed_by == "dn_core" else load_baselines(baselines_folder)
    prepare(variant, baselines, image.shape)(image)
    return megabytes("VmHWM")


def measure_memmap(folder: Path, model: str, shape: tuple[int, int]) -> dict[str, Any]:
    """A memory map denoised into another."""
    say(f"memory: {shape[0]} x {shape[1]} memory map")
    source = np.memmap(folder / "in.raw", np.uint16, "w+", shape=shape)
    generator = np.random.default_rng(0)
    for top in range(0, shape[0], 1000):
        source[top : top + 1000] = generator.poisson(1000, (min(1000, shape[0] - top), shape[1]))
    source.flush()
    del source
    return {"shape": shape, **in_fresh_process(memmap_memory, folder, model, shape)}


def memmap_memory(folder: Path, model: str, shape: tuple[int, int]) -> dict[str, float]:
    """Peak above the interpreter with torch and the library loaded.

    All of it, and without the pages of the two memory maps.
    """
    import torch  # noqa: F401

    from dn_core.inference import denoise  # noqa: F401

    before, before_own = megabytes("VmRSS"), megabytes("RssAnon")
    source = np.memmap(folder / "in.raw", np.uint16, "r", shape=shape)
    target = np.memmap(folder / "out.raw", np.uint16, "w+", shape=shape)
    own, tiles, began = 0.0, 0, time.perf_counter()
    for step in dn_core.denoise_steps(source, model, device="cpu", out=target):
        own, tiles = max(own, megabytes("RssAnon")), step.total
    seconds = time.perf_counter() - began
    return {
        "before": before,
        "peak": megabytes("VmHWM") - before,
        "own": own - before_own,
        "tiles": tiles,
        "seconds": seconds,
    }


def measure_zarr(folder: Path, model: str, planes: int, tiles: int) -> dict[str, Any]:
    """The first tiles of an OME-Zarr image that is sparse on disk."""
    import zarr

    shape = (planes, 2048, 2048)
    say(f"memory: OME-Zarr of {shape}")
    group = zarr.create_group(folder / f"in{planes}.zarr")
    group.create_array("0", shape=shape, chunks=(1, 512, 512), dtype=np.uint16, fill_value=100)
    axes = [
        {"name": "t", "type": "time"},
        {"name": "y", "type": "space"},
        {"name": "x", "type": "space"},
    ]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    found = in_fresh_process(zarr_memory, folder, model, planes, tiles)
    return {"shape": shape, "gigabytes": math.prod(shape) * 2 / 1e9, "tiles": tiles, **found}


ZARR_TILE = 216
"""Smaller than usual, so that some hundred tiles of several planes take seconds."""


def zarr_memory(folder: Path, model: str, planes: int, tiles: int) -> dict[str, float]:
    """Resident memory a quarter of the way and at the end, and the peak."""
    import zarr

    from dn_core.files import open_image

    with open_image(folder / f"in{planes}.zarr", missing="fill") as image:
        shape = image.shape
        target = zarr.create_array(
            folder / f"out{planes}.zarr", shape=shape, chunks=(1, 512, 512), dtype=image.dtype
        )
        found = {"start": megabytes("VmRSS")}
        steps = dn_core.denoise_steps(
            image.source, model, device="cpu", out=target, tile_size=ZARR_TILE
        )
        with contextlib.closing(steps):
            for step in steps:
                if step.done == tiles // 4:
                    found["quarter"] = megabytes("VmRSS")
                if step.done == tiles:
                    found["end"] = megabytes("VmRSS")
                    break
    return {**found, "peak": megabytes("VmHWM")}
