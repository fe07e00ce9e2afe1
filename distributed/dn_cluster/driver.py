"""What the scripts do with a job: train it in this process, or on a cluster by Ray Train."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import dn_core
from dn_cluster.checkpoints import LIST, unlisted
from dn_cluster.job import Job, describe, load_images
from dn_cluster.words import last_line
from dn_core.memory import keep_freed_memory
from dn_core.training.bank import Bank
from dn_core.training.cascade import train_stages

__all__ = ["connect", "train_here", "train_job", "train_on_cluster"]

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # each report waits for the controller's next look, by default 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or lines of workers come twice
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's page of trainings
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # nodes have their packages
}
KEPT = 3  # checkpoints: should the newest be damaged, there is one to go on from, and still when the next one is there
STARTS = 5  # tries to get all workers, of a minute each
TALK_SECONDS = 600  # a worker that does not hear of the others for so long gives up; one may read images longer than the others


def train_job(job: Job, *, wait: float = 30) -> str:
    """Train, or find it trained; the address of the model.

    Raises
    ------
    ValueError
        When the job cannot be done as it is, in a sentence.
    RuntimeError
        When it failed more often than it may.
    """
    job.check()
    address = f"{job.folder.address}/{job.model}"
    if job.folder.exists(job.model):
        print(f"{job.name} is already done", flush=True)
        return address
    if job.workers == 0:
        train_here(job)
    else:
        train_on_cluster(job, wait)
    return address


def train_here(job: Job) -> None:
    """Train in this process, without Ray, as ``dn-resnet train`` does; its state is in the run's folder after each epoch."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(max(1, int(job.cpus)))
    bank = load_images(job)
    job.remember()
    if job.storage.is_local:
        for _ in _steps_here(job, bank, Path(job.folder.address)):
            pass
        return
    from dn_cluster.mirror import mirrored

    with mirrored(job.folder) as mirror:
        for _ in _steps_here(job, bank, mirror.folder):
            mirror.push()


def _steps_here(job: Job, bank: Bank, folder: Path) -> Iterator[None]:
    """Train; a line and a pause at the end of each epoch and stage."""
    from dn_cluster.track import tracked

    options = {"start": job.start, "device": "cuda" if job.gpus else "cpu", "precision": job.precision, "allow": job.allow}
    stages = train_stages(job.recipe, bank, folder, **options)
    with contextlib.closing(stages) as steps, tracked(job, bank, folder) as tell:
        for step in steps:
            if step.epoch_ended or not step.lr:
                if step.lr:  # the last report of a stage says nothing new
                    print(describe(step), flush=True)
                    tell(step)
                job.check_room(folder)
                yield


def connect() -> None:
    """Join the cluster that the environment names, or start one on this machine; our code goes to all its nodes."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    # Before nodes get the code: one on this machine with the same temporary folder would unpack it over what is imported here.
    from dn_cluster import loop, preflight  # noqa: F401

    if not ray.is_initialized():
        carried = [Path(__file__).parent, Path(dn_core.__file__).parent]
        ray.init(runtime_env={"py_modules": [str(folder) for folder in carried]}, log_to_driver=True)


def train_on_cluster(job: Job, wait: float) -> None:
    """Train by Ray Train; the same job again goes on from its last checkpoint."""
    connect()
    from dn_cluster.preflight import check_nodes, room_for

    with room_for(job, wait) as nodes:
        check_nodes(job, nodes)
        job.remember()
        _fit(job)


def _fit(job: Job) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from dn_cluster.loop import train_worker

    names, goes_on = unlisted(job.folder)
    filesystem, path = job.storage.filesystem()
    resources = {"CPU": job.cpus, **({"GPU": job.gpus} if job.gpus else {})}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "unlisted": names, "goes_on": goes_on},
        torch_config=TorchConfig(timeout_s=TALK_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.workers,
            use_gpu=job.gpus > 0,
            resources_per_worker=resources,
            accelerator_type=job.accelerator,
            placement_strategy="SPREAD" if job.gpus == 0 else "PACK",
        ),
        run_config=ray.train.RunConfig(
            name=job.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=job.max_failures, controller_failure_limit=STARTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT),
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(
            f"{job.name} failed more than {job.max_failures} times, the last time with: {last_line(error)}. See the lines above; the same "
            "command goes on from the last checkpoint."
        ) from error
    except ray.exceptions.RayError as error:
        if "CheckpointManagerInitializationError" in str(error):
            raise ValueError(
                f"{job.folder.address}/{LIST} and the checkpoints that it should list do not fit together "
                f"({last_line(error)}). Put back what is missing, or begin anew with another --name."
            ) from error
        raise RuntimeError(
            f"Ray could not train {job.name}: {last_line(error)}. The same command goes on from the last checkpoint."
        ) from error
    if outcome.refused:
        raise ValueError(outcome.refused)
