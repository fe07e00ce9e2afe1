"""Speed of training and denoising on a GPU.

``python benchmarks/gpu.py --photos DIR`` prints two tables for ``docs/gpu.md``.

``--device cpu --quick`` tries the script without one.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import dn_core
from dn_core.checkpoints import load_checkpoint
from dn_core.models import registry
from dn_core.networks import DnResNet
from dn_core.noise import noise_from_dict
from dn_core.training.data.clean_images import CleanImageDataset, load_clean_images
from dn_core.training.data.training_data import SyntheticNoiseData
from dn_core.training.recipes import Phase, load_recipe
from dn_core.training.trainer import Trainer

RECIPES = ("dn-fast-gpu", "dn-quality", "dn-resnet-13-gpu", "ds-dn-resnet-13")
MODELS = ("dn-fast", "dn-quality", "dn-resnet-13")
WARM_UP = 8


class Clock:
    """Times work on a device, to its end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], object], repeats: int) -> float:
        """The median."""
        times = []
        for _ in range(repeats):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append((time.perf_counter() - began) * 1e3)
        return statistics.median(times)


def training_row(name: str, dataset: CleanImageDataset, device: str, quick: bool) -> str:
    """A recipe's first kind of step, whole and in its parts."""
    loaded = load_recipe(name)
    phase = replace(loaded.phases[0], batch=2 if quick else loaded.phases[0].batch, steps=10_000)
    recipe = replace(loaded, plan="once", start="", phases=(phase,), last_phases=())
    training_data = SyntheticNoiseData(dataset, noise_from_dict(recipe.noise))
    trainer = Trainer(recipe, training_data, device)
    repeats, clock = 3 if quick else 40, Clock(trainer.device)
    for _ in range(1 if quick else WARM_UP):
        trainer.advance()
    whole = clock.milliseconds(trainer.advance, repeats)
    rng = np.random.default_rng(0)
    data = clock.milliseconds(lambda: training_data.batch(phase, rng, trainer.device), repeats)
    network = clock.milliseconds(lambda: there_and_back(trainer, phase), repeats)
    optimizers = clock.milliseconds(
        lambda: [optimizer.step() for optimizer in trainer.optimizers], repeats
    )
    speed = phase.batch * phase.patch**2 / 1e3 / whole
    title = (
        f"{recipe.name}, {recipe.network.depth} layers, {phase.batch} x {phase.patch}x{phase.patch}"
    )
    return (
        f"| {title} | {speed:.1f} | {whole:.1f} | {data:.1f} | {network:.1f} | {optimizers:.1f} |"
    )


def there_and_back(trainer: Trainer, phase: Phase) -> None:
    """The network forward and backward."""
    noisy = torch.zeros(phase.batch, 1, phase.patch, phase.patch, device=trainer.device)
    with torch.autocast(
        trainer.device.type, torch.bfloat16, enabled=trainer.precision == "bfloat16"
    ):
        denoised = trainer.compute(noisy)
    denoised.square().mean().backward()


def denoising_rows(device: str, quick: bool) -> Iterator[str]:
    """From an array in memory to one in memory."""
    rng = np.random.default_rng(0)
    sizes = (
        [(64, np.uint8), (96, np.uint16)]
        if quick
        else [(512, np.uint8), (2048, np.uint16), (8192, np.uint16)]
    )
    for name in MODELS:
        for size, dtype in sizes:
            image = rng.integers(0, np.iinfo(dtype).max, (size, size)).astype(dtype)
            work = functools.partial(dn_core.denoise, image, name, device=device)
            work()
            took = Clock(torch.device(device)).milliseconds(work, 3 if size > 4096 else 9)
            speed, error = size * size / 1e3 / took, largest_error(image, name, device)
            what = f"{name} | {size} x {size}, {np.dtype(dtype)}"
            yield f"| {what} | {took:.1f} | {speed:.0f} | {error:.1f} |"


def largest_error(image: np.ndarray, name: str, device: str, side: int = 256) -> float:
    """The largest difference, in grey levels, of a corner's result from float64 on the CPU."""
    corner = image[:side, :side]
    scale = float(np.iinfo(corner.dtype).max)
    network: DnResNet = load_checkpoint(registry.resolve(name)).network().double()
    with torch.no_grad():
        exact = network(torch.from_numpy(corner / scale)[None, None]).numpy()[0, 0] * scale
    result = dn_core.denoise(corner, name, device=device).astype(float)
    return float(np.abs(result - np.clip(np.rint(exact), 0, scale)).max())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder of clean images to cut patches from"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="tiny batches and images, to try the script"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_clean_images(arguments.photos, smallest=96, skip_bad=True)
    machine = (
        torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    )
    print(f"{machine}, torch {torch.__version__}\n")
    print(
        "| step of | Mpx/s | whole, ms | data, ms | network, ms | optimizers, ms |\n"
        + "| --- " * 6
        + "|"
    )
    for name in RECIPES:
        print(training_row(name, dataset, arguments.device, arguments.quick), flush=True)
    print("\n| model | image | ms | Mpx/s | largest error, grey levels |\n" + "| --- " * 5 + "|")
    for row in denoising_rows(arguments.device, arguments.quick):
        print(row, flush=True)


if __name__ == "__main__":
    main()
