"""How a training goes, told to TensorBoard and to MLflow where that is asked for: numbers at the end of each epoch, and a picture."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dn_cluster.job import Job
from dn_core.checkpoints import Card, Checkpoint, read_tensors
from dn_core.noise import noise_from_dict
from dn_core.training.bank import Bank
from dn_core.training.cascade import plan_stages
from dn_core.training.fit import STATE_FILE, TrainProgress

__all__ = ["metrics", "picture", "tracked"]

SIDE = 128
AVERAGE = "average."


@contextlib.contextmanager
def tracked(job: Job, bank: Bank, folder: Path) -> Iterator[Callable[[TrainProgress], None]]:
    """What takes the end of an epoch; the training lives in `folder`."""
    with contextlib.ExitStack() as stack:
        takers = [stack.enter_context(_tensorboard(job, bank, folder))] if job.tensorboard else []
        takers += [stack.enter_context(_mlflow(job))] if job.mlflow else []

        def take(step: TrainProgress) -> None:
            for taker in takers:
                taker(step)

        yield take


def metrics(step: TrainProgress) -> dict[str, float]:
    """The numbers of an epoch that are there."""
    names = ("loss", "psnr", "lr", "megapixels_per_second")
    values = (step.epoch_loss, step.psnr, step.lr, step.megapixels_per_second)
    return {name: value for name, value in zip(names, values, strict=True) if value is not None and math.isfinite(value)}


def picture(job: Job, bank: Bank, folder: Path, stage: int) -> NDArray[np.float32]:
    """A corner of an image with the recipe's noise, what the network saved last makes of it, and clean: ``(H, 3 W)``, 0..1."""
    stages = plan_stages(job.recipe)
    tensors, _ = read_tensors((folder if job.recipe.plan == "once" else folder / f"stage-{stage}") / STATE_FILE)
    weights = {name.removeprefix(AVERAGE): value for name, value in tensors.items() if name.startswith(AVERAGE)}
    network = Checkpoint(stages[stage].network, weights, Card(job.recipe.name)).network()
    corner = (*bank.held_out, *bank.images)[0][:SIDE, :SIDE].astype(np.float32) / np.float32(bank.full_scale)
    clean = torch.from_numpy(corner)[None, None]
    noisy = noise_from_dict(job.recipe.noise)(clean, torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoised = network(torch.cat(noisy, dim=1) if job.recipe.network.noise_map else noisy.image)
    shown: NDArray[np.float32] = torch.cat([noisy.image, denoised, clean], dim=3)[0, 0].clamp(0, 1).numpy()
    return shown


def _step(job: Job, step: TrainProgress) -> int:
    """Steps done in all stages, each counted as if it had none left out."""
    return step.stage * job.recipe.steps + step.done


@contextlib.contextmanager
def _tensorboard(job: Job, bank: Bank, folder: Path) -> Iterator[Callable[[TrainProgress], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any
    with SummaryWriter(f"{job.folder.address}/tensorboard") as writer:

        def take(step: TrainProgress) -> None:
            done = _step(job, step)
            for name, value in metrics(step).items():
                writer.add_scalar(name, value, done)
            writer.add_image("noisy, denoised, clean", picture(job, bank, folder, step.stage), done, dataformats="HW")
            writer.flush()

        yield take


@contextlib.contextmanager
def _mlflow(job: Job) -> Iterator[Callable[[TrainProgress], None]]:
    from ray.air.integrations.mlflow import setup_mlflow

    settings = {name: str(value)[:500] for name, value in job.recipe.as_dict().items()}
    mlflow = setup_mlflow(
        {**settings, "workers": job.workers},
        tracking_uri=job.mlflow,
        experiment_name=job.recipe.name,
        run_name=job.name,
        create_experiment_if_not_exists=True,
    )
    try:
        yield lambda step: mlflow.log_metrics(metrics(step), step=_step(job, step))
    finally:
        mlflow.end_run()
