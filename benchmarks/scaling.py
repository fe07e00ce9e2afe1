"""The cost of a training step with one worker and with two: writes ``docs/scaling.md``.

``python benchmarks/scaling.py`` takes some minutes on two cores. Each worker is a process with one
thread; all variants take turns, so that other work on the machine meets all of them, and ratios are
of each variant's fastest steps.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing

from dn_core.networks import DnResNet, count_parameters
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.loop import REPORT_STEPS, fit
from dn_core.training.process_group import ProcessGroup
from dn_core.training.recipes import Phase, Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"
NETWORKS = ("paper-once", "dn-fast")
BATCHES = (8,)
PATCH = 64
LINKS = (("1 Gbit/s Ethernet", 1e9), ("10 Gbit/s Ethernet", 1e10), ("100 Gbit/s InfiniBand", 1e11))


@dataclass(frozen=True)
class Row:
    """One network and batch: milliseconds of a step, and of averaging the gradients alone."""

    network: str
    weights: int
    batch: int
    alone: float
    shared: float
    each: float
    reduce: float


def recipe_of(name: str, batch: int) -> Recipe:
    """A bundled recipe's network, with the paper's Gaussian noise so that all cost the same."""
    shipped = load_recipe(name)
    noise = ({"kind": "gaussian", "sigma": 25},)
    return Recipe(
        name,
        shipped.network,
        noise,
        (Phase(10**6, batch, PATCH),),
        optimizer=shipped.optimizer,
        epoch=10**6,
    )


def worker(rank: int, folder: Path, rounds: int) -> None:
    """Time everything in turns; the first process writes it down."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    pixels = np.random.default_rng(0).integers(0, 256, (4, 256, 256), dtype=np.uint8)
    dataset, together, rows = CleanImageDataset(tuple(pixels)), ProcessGroup.of_process_group(), []
    for name, batch in itertools.product(NETWORKS, BATCHES):
        runs = {
            key: fit(
                recipe_of(name, patches),
                dataset,
                folder / f"{name}-{batch}-{key}-{rank}",
                precision="float32",
                workers=workers,
            )
            for key, patches, workers in (
                ("alone", batch, ProcessGroup()),
                ("shared", batch, together),
                ("each", 2 * batch, together),
            )
        }
        weights = count_parameters(DnResNet(load_recipe(name).network))
        times: dict[str, list[float]] = {key: [] for key in (*runs, "reduce")}
        for _ in range(rounds):
            for key, run in runs.items():
                distributed.barrier()
                if key != "alone" or rank == 0:  # alone: the other one waits at the barrier
                    times[key].append(timed(lambda run=run: next(run)) / REPORT_STEPS)
            distributed.barrier()
            gradient = torch.zeros(weights)
            times["reduce"] += [
                timed(lambda gradient=gradient: distributed.all_reduce(gradient))
                for _ in range(REPORT_STEPS)
            ]
        if rank == 0:
            rows.append(
                Row(
                    name,
                    weights,
                    batch,
                    **{key: 1000 * typical(values) for key, values in times.items()},
                )
            )
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps([vars(row) for row in rows]))
    distributed.destroy_process_group()


def timed(action) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def typical(seconds: list[float]) -> float:
    """The median of the fastest quarter: what a step takes when nothing else runs."""
    return statistics.median(sorted(seconds)[: max(1, len(seconds) // 4)])


HEADING = """\
# Training with several workers

Made by `{command}` on {date:%Y-%m-%d}: {machine}.
Load average at the end: {load:.1f}; with more than {cores}, other programs took part of the cores,
and the speed-ups say little: measure again on an idle machine. GPUs and several machines were not
measured.

A step of patches of {patch}x{patch}, in milliseconds; *shared*: two workers divide the batch;
*twice*: each has a whole batch, so that a step sees twice the pixels. Speed-up is in pixels per
second against one worker.
"""

EXCHANGE = """
## What workers exchange

Each step averages the gradients: 4 bytes per weight, {traffic:.2f} MB for the paper's 13 layers, of
which each of N workers sends and receives 2 (N - 1) / N. There are 8 bytes more for the loss, and
once an epoch 24 bytes to decide whether to stop and to compare all weights. Computed, not measured,
for 8 workers:
"""

ADVICE = """
The latency of the ring's 2 (N - 1) messages adds to this.

## Where it stops scaling, and what to do then

A step takes `compute(batch / N) + all-reduce(N)`. The first part shrinks until a worker's share no
longer fills its device; the second grows with N. With batches of 8 small patches that is soon: a
GPU is idle long before. Do this, in this order:

1. Train several models side by side, one per GPU or four per GPU (`distributed/family.py --gpus
   0.25`): nothing is exchanged at all.
2. Raise `batch` or `patch` in a recipe of your own, so that each worker has the work of a whole
   batch (*twice* above).
3. Only then share one model's batch among more workers.

Data: a data set in memory takes one byte per pixel. A million photos of 500x375 are 190 GB, so they
are packed (`distributed/pack.py`); a worker holds one shard, 2000 photos or 0.4 GB, and reads the
next one after each epoch.
"""


def page(rows: list[Row], command: str) -> str:
    """The document."""
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, gloo, float32, "
        "one thread per worker"
    )
    heading = HEADING.format(
        command=command,
        date=datetime.date.today(),
        machine=machine,
        load=os.getloadavg()[0],
        cores=os.cpu_count(),
        patch=PATCH,
    )
    names = ("network", "weights", "gradients a step", "batch", "one worker", "shared", "speed-up")
    lines = [
        f"| {' | '.join(names)} | twice | speed-up | all-reduce alone |",
        f"|{' --- |' * 10}",
    ]
    for row in rows:
        lines.append(
            f"| {row.network} | {row.weights:,} | {4 * row.weights / 1000:.0f} kB | {row.batch} | "
            f"{row.alone:.0f} | {row.shared:.0f} | "
            f"{row.alone / row.shared:.2f} | {row.each:.0f} | {2 * row.alone / row.each:.2f} | "
            f"{row.reduce:.1f} |"
        )
    paper = next(row for row in rows if row.network == NETWORKS[0])
    traffic = 4 * paper.weights / 1e6
    lines += [
        EXCHANGE.format(traffic=traffic),
        "| link | time for a step's gradients |",
        "| --- | --- |",
    ]
    for name, speed in LINKS:
        lines.append(f"| {name} | {1000 * 2 * 7 / 8 * traffic * 8e6 / speed:.2f} ms |")
    return "\n".join([heading, *lines, ADVICE])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=4, help=f"turns of each variant, of {REPORT_STEPS} steps"
    )
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(worker, (Path(folder), options.rounds), nprocs=2)
        rows = [Row(**row) for row in json.loads(Path(folder, "rows.json").read_text())]
    command = f"python benchmarks/scaling.py --rounds {options.rounds}"
    options.output.write_text(page(rows, command))
    print(options.output)


if __name__ == "__main__":
    main()
