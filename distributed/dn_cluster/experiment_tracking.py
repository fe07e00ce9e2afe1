"""Experiment tracking: metrics and example images of each epoch, for TensorBoard and MLflow."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dn_cluster.training_job import TrainingJob
from dn_core.checkpoints import Card, Checkpoint
from dn_core.noise import noise_from_dict
from dn_core.tensor_files import read_tensors
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.events import TrainingEvent
from dn_core.training.loop import STATE_FILE
from dn_core.training.stage_plan import plan_stages

__all__ = ["Tracker", "epoch_metrics", "example_image", "track_experiment"]

EXAMPLE_SIDE = 128
EMA_PREFIX = "ema_weights."

Tracker = Callable[[TrainingEvent], None]
"""Takes events of kind ``"epoch"``."""


@contextlib.contextmanager
def track_experiment(
    job: TrainingJob, dataset: CleanImageDataset, folder: Path
) -> Iterator[Tracker]:
    """Open the experiment trackers that a job asks for, and close them at the end.

    Parameters
    ----------
    job : TrainingJob
        Its `tensorboard` and `mlflow` say which trackers.
    dataset : CleanImageDataset
        The images, for the example image.
    folder : Path
        The run's local folder, which has the state that was saved last.

    Yields
    ------
    Tracker
        Reports an epoch to all of them.
    """
    with contextlib.ExitStack() as stack:
        trackers: list[Tracker] = []
        if job.tensorboard:
            trackers.append(stack.enter_context(_tensorboard(job, dataset, folder)))
        if job.mlflow:
            trackers.append(stack.enter_context(_mlflow(job)))

        def report(event: TrainingEvent) -> None:
            for tracker in trackers:
                tracker(event)

        yield report


def epoch_metrics(event: TrainingEvent) -> dict[str, float]:
    """The numbers that an epoch has.

    Parameters
    ----------
    event : TrainingEvent
        An event of kind ``"epoch"``.

    Returns
    -------
    dict of str to float
        Finite ones of ``loss``, ``psnr``, ``learning_rate`` and ``megapixels_per_second``.
    """
    metrics = {
        "loss": event.epoch_loss,
        "psnr": event.psnr,
        "learning_rate": event.learning_rate,
        "megapixels_per_second": event.megapixels_per_second,
    }
    return {
        name: value for name, value in metrics.items() if value is not None and math.isfinite(value)
    }


def example_image(
    job: TrainingJob, dataset: CleanImageDataset, folder: Path, stage: int
) -> NDArray[np.float32]:
    """Noisy, denoised and clean corner of an image, by the network that was saved last.

    Parameters
    ----------
    job : TrainingJob
        Its recipe has the noise.
    dataset : CleanImageDataset
        The images; the first held-out one is used, or else the first one.
    folder : Path
        The run's local folder.
    stage : int
        The stage that is being trained, from 0.

    Returns
    -------
    numpy.ndarray
        ``(H, 3 W)``, 0 to 1: noisy, denoised, clean.
    """
    recipe = job.recipe
    state = (folder if recipe.plan == "once" else folder / f"stage-{stage}") / STATE_FILE
    tensors, _ = read_tensors(state)
    weights = {
        name.removeprefix(EMA_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(EMA_PREFIX)
    }
    config = plan_stages(recipe)[stage].network
    network = Checkpoint(config, weights, Card(recipe.name)).network()
    image = (*dataset.held_out, *dataset.images)[0][:EXAMPLE_SIDE, :EXAMPLE_SIDE]
    corner = image.astype(np.float32) / np.float32(dataset.full_scale)
    clean = torch.from_numpy(corner)[None, None]
    noisy = noise_from_dict(recipe.noise)(clean, torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoised = network(noisy.with_map() if recipe.network.noise_map else noisy.image)
    beside = torch.cat([noisy.image, denoised, noisy.wanted(clean)], dim=3)[0, 0].clamp(0, 1)
    shown: NDArray[np.float32] = beside.numpy()
    return shown


def _global_step(job: TrainingJob, event: TrainingEvent) -> int:
    """Steps of all stages, as if no stage before had ended early."""
    return event.stage * job.recipe.steps + event.step


@contextlib.contextmanager
def _tensorboard(job: TrainingJob, dataset: CleanImageDataset, folder: Path) -> Iterator[Tracker]:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any
    with SummaryWriter(f"{job.run_storage.address}/tensorboard") as writer:

        def report(event: TrainingEvent) -> None:
            step = _global_step(job, event)
            for name, value in epoch_metrics(event).items():
                writer.add_scalar(name, value, step)
            image = example_image(job, dataset, folder, event.stage)
            writer.add_image("noisy, denoised, clean", image, step, dataformats="HW")
            writer.flush()

        yield report


@contextlib.contextmanager
def _mlflow(job: TrainingJob) -> Iterator[Tracker]:
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
        yield lambda event: mlflow.log_metrics(epoch_metrics(event), step=_global_step(job, event))
    finally:
        mlflow.end_run()
