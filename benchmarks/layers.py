"""What each ResBlock gains, and what blind denoising costs: tables 1 and 2 at one noise level.

``python benchmarks/layers.py --photos DIR --test DIR --out DIR`` trains a cascade from 3 to 13
layers for Gaussian noise of sigma 25 and at the same cost 13 layers in one shot, for that noise and
blind; it resumes where it was stopped, and puts the table into ``docs/paper.md``. Cost is counted
as multiplications: the weights of the network in training, times the pixels it saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from claims import PAGE, PATCH, weights
from page import put_into

from dn_core.paper.protocol import ModelMethod, evaluate, paper_levels, read_images
from dn_core.paper.tables import paper_rows
from dn_core.training.data.clean_images import load_clean_images
from dn_core.training.recipes import Phase, Recipe, load_recipe
from dn_core.training.stages import plan_stages, train

LEVEL = "gaussian 25"
BATCH = 8
NAMES = {"cascade": "paper-gaussian-25", "once": "paper-gaussian-25", "blind": "paper-blind"}
"""What is trained, and the recipe that has its noise."""


def recipe_for(kind: str, steps: int) -> Recipe:
    """A cascade of `steps` steps a stage, or one training that costs as much."""
    settled = {
        "optimizer": "muon",
        "lr": 2e-3,
        "schedule": "cosine",
        "warm_up": 50,
        "drop": 0.0,
        "new_blocks": "identity",
    }
    cascade = replace(
        load_recipe(NAMES[kind]),
        name=kind,
        plan="cascade",
        phases=(Phase(steps, BATCH, PATCH),),
        **settled,
    )
    if kind == "cascade":
        return cascade
    cost = sum(weights(stage.network) for stage in plan_stages(cascade)) / weights(cascade.network)
    return replace(cascade, plan="once", phases=(Phase(round(steps * cost), BATCH, PATCH),))


def train_kind(kind: str, photos: Path, folder: Path, steps: int) -> None:
    """Train, with one thread."""
    torch.set_num_threads(1)
    train(
        recipe_for(kind, steps),
        load_clean_images(photos, smallest=PATCH, skip_bad=True),
        folder / kind,
    )


def trained(folder: Path, steps: int) -> Iterator[tuple[str, Path]]:
    """What a row is called, and its model."""
    for stage in plan_stages(recipe_for("cascade", steps)):
        yield (
            f"{stage.network.depth} layers",
            folder / "cascade" / f"stage-{stage.number}" / "cascade.safetensors",
        )
    yield "13 layers, one-shot", folder / "once" / "once.safetensors"
    yield "13 layers, one-shot, blind", folder / "blind" / "blind.safetensors"


def table(folder: Path, test: Path, steps: int) -> str:
    """Markdown."""
    images, level = read_images(test), paper_levels()[LEVEL]
    blind = paper_rows(2)[LEVEL][1].partition("/")[0]
    lines = ["| network | weights | PSNR, dB | the paper's, on other images |", "| --- " * 4 + "|"]
    for (title, path), published in zip(
        trained(folder, steps), [*paper_rows(1)[LEVEL], blind], strict=True
    ):
        (score,) = evaluate([ModelMethod(path)], images, [level])
        lines.append(
            f"| {title} | {ModelMethod(path).parameters:,} | {score.psnr:.2f} | {published} |"
        )
    once = recipe_for("once", steps).phases[0].steps
    size = BATCH * PATCH**2 / 1e6
    note = (
        f"Gaussian noise of sigma 25, on the {len(images)} images of {test.name}. One seed; "
        f"{steps * size:.0f} Mpx a stage of the cascade, "
        f"{once * size:.0f} Mpx ({once} steps of {BATCH} patches of {PATCH}x{PATCH}) in one shot, "
        "the same cost as the cascade's."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    """Train side by side, score, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder of clean images to train on"
    )
    parser.add_argument("--test", type=Path, required=True, help="folder of test images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--steps", type=int, default=600, help="of a stage")
    parser.add_argument(
        "--processes", type=int, default=2, help="training runs at once, each with one thread"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    with get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
        jobs = [(kind, arguments.photos, arguments.out, arguments.steps) for kind in NAMES]
        pool.starmap(train_kind, jobs, chunksize=1)
    put_into(arguments.page, "layers", table(arguments.out, arguments.test, arguments.steps))


if __name__ == "__main__":
    main()
