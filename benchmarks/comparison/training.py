"""Training: how much of a step's time the network's own kernels take, by torch's profiler."""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np

from comparison.processes import in_fresh_process, say

RECIPES = ("dn-fast", "dn-resnet-13")
BATCH, PATCH, WARM_UP = 4, 96, 3
CONVOLUTIONS = ("aten::convolution_backward", "aten::mkldnn_convolution")
ACTIVATIONS = (
    "aten::clamp_min",
    "aten::threshold_backward",
    "aten::pixel_shuffle",
    "aten::pixel_unshuffle",
)


def measure_training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One thread, in a process of its own with the allocator that `dn-resnet train` sets."""
    steps = 3 if options.quick else 12
    return [in_fresh_process(profile_steps, name, steps) for name in RECIPES]


def profile_steps(name: str, steps: int) -> dict[str, Any]:
    """Shares of the time of `steps` steps: convolutions, activations, largest of the rest."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from dn_core.memory import keep_freed_memory
    from dn_core.noise import noise_from_dict
    from dn_core.training.data.clean_images import CleanImageDataset
    from dn_core.training.data.training_data import SyntheticNoiseData
    from dn_core.training.recipes import Phase, load_recipe
    from dn_core.training.trainer import Trainer

    say(f"training: {name}")
    keep_freed_memory()
    torch.set_num_threads(1)
    recipe = replace(load_recipe(name), start="", phases=(Phase(WARM_UP + steps, BATCH, PATCH),))
    rng = np.random.default_rng(0)
    dataset = CleanImageDataset(
        tuple(rng.integers(0, 256, (320, 480)).astype(np.uint8) for _ in range(20))
    )
    trainer = Trainer(recipe, SyntheticNoiseData(dataset, noise_from_dict(recipe.noise)), "cpu")
    for _ in range(WARM_UP):
        trainer.advance()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            trainer.advance()
        seconds = time.perf_counter() - began
    shares = {
        event.key: event.self_cpu_time_total / 1e6 / seconds for event in profiler.key_averages()
    }
    own = {*CONVOLUTIONS, *ACTIVATIONS}
    others = sorted(((share, key) for key, share in shares.items() if key not in own), reverse=True)
    return {
        "name": name,
        "precision": trainer.precision,
        "megapixels_per_second": steps * BATCH * PATCH**2 / 1e6 / seconds,
        "convolutions": sum(shares.get(key, 0.0) for key in CONVOLUTIONS),
        "activations": sum(shares.get(key, 0.0) for key in ACTIVATIONS),
        "others": [[key, share] for share, key in itertools.islice(others, 3)],
    }
