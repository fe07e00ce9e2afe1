"""Driver of a training job: trains it in this process, or on a cluster with Ray Train."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dn_core
from dn_cluster.error_messages import last_line
from dn_cluster.run_checkpoints import LIST_FILE, find_unlisted_checkpoints
from dn_cluster.training_job import TrainingJob, epoch_message, load_dataset
from dn_core.memory import keep_freed_memory
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.stages import train_stages

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

__all__ = ["connect_to_ray", "train_in_process", "train_job", "train_on_cluster"]

RAY_ENVIRONMENT = {
    # Each report waits for the controller's next health check, by default for up to 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # workers' lines would come twice
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train page
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # nodes have their packages
}
"""Ray's settings, unless the environment has others."""
CHECKPOINTS_TO_KEEP = 3
"""So that a run can resume if its newest checkpoint is damaged, also while another is written."""
START_ATTEMPTS = 5
"""How often Ray Train tries to get all workers, for a minute each."""
PROCESS_GROUP_TIMEOUT_SECONDS = 600
"""A worker that waits longer for the others gives up; one may take longer to read its images."""


def train_job(job: TrainingJob, *, wait: float = 30) -> str:
    """Train a job, unless its model exists already.

    Parameters
    ----------
    job : TrainingJob
        What is to be trained; with 0 workers it is trained in this process.
    wait : float, default 30
        Seconds to wait for nodes.

    Returns
    -------
    str
        Path or address of the model.

    Raises
    ------
    ValueError
        When the job cannot be trained with these settings.
    RuntimeError
        When it failed more often than `TrainingJob.max_failures` allows.
    """
    job.check()
    if job.run_storage.exists(job.model_file):
        print(f"{job.name} is already trained", flush=True)
    elif job.workers == 0:
        train_in_process(job)
    else:
        train_on_cluster(job, wait)
    return f"{job.run_storage.address}/{job.model_file}"


def train_in_process(job: TrainingJob) -> None:
    """Train in this process, without Ray, like ``dn-resnet train``.

    The state is in the run's folder after each epoch; the same job resumes from there.

    Parameters
    ----------
    job : TrainingJob
        What is to be trained.
    """
    import torch

    keep_freed_memory()
    torch.set_num_threads(max(1, int(job.cpus)))
    dataset = load_dataset(job)
    job.save_settings()
    if job.storage.is_local:
        for _ in _epochs(job, dataset, Path(job.run_storage.address)):
            pass
        return
    from dn_cluster.storage_sync import synced_folder

    with synced_folder(job.run_storage) as sync:
        for _ in _epochs(job, dataset, sync.folder):
            sync.push()


def _epochs(job: TrainingJob, dataset: CleanImageDataset, folder: Path) -> Iterator[None]:
    """Train in a local folder; yield after each epoch and stage."""
    from dn_cluster.experiment_tracking import track_experiment

    training = train_stages(
        job.recipe,
        dataset,
        folder,
        start=job.start,
        device="cuda" if job.gpus else "cpu",
        precision=job.precision,
        allow=job.allow,
    )
    with contextlib.closing(training) as events, track_experiment(job, dataset, folder) as track:
        for event in events:
            if event.kind == "step":
                continue
            if event.kind == "epoch":
                print(epoch_message(event), flush=True)
                track(event)
            job.check_free_space(folder)
            yield


def connect_to_ray() -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start one on this machine.

    Ray copies this package and dn_core to all nodes.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # Before nodes get the code: one on this machine with the same temporary folder would unpack it
    # over what is imported here.
    from dn_cluster import preflight, worker  # noqa: F401

    if not ray.is_initialized():
        packages = [str(Path(__file__).parent), str(Path(dn_core.__file__).parent)]
        ray.init(runtime_env={"py_modules": packages}, log_to_driver=True)


def train_on_cluster(job: TrainingJob, wait: float) -> None:
    """Train with Ray Train; the same job resumes from its last checkpoint.

    Parameters
    ----------
    job : TrainingJob
        What is to be trained.
    wait : float
        Seconds to wait for nodes.

    Raises
    ------
    ValueError
        When the cluster is too small, a node fails a preflight check, or the job cannot be
        trained with these settings.
    RuntimeError
        When it failed more often than `TrainingJob.max_failures` allows.
    """
    connect_to_ray()
    from dn_cluster.preflight import check_nodes, request_nodes

    with request_nodes(job, wait) as nodes:
        check_nodes(job, nodes)
        job.save_settings()
        _fit(job)


def _fit(job: TrainingJob) -> None:
    import ray.train

    from dn_cluster.ray_api import TrainOutcome
    from dn_cluster.worker import WorkerResult

    trainer = _trainer(job)
    try:
        outcome = cast("TrainOutcome", trainer.fit())
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(
            f"{job.name} failed more than {job.max_failures} times, the last time with: "
            f"{last_line(error)}. See the lines above. Run the same command again to resume from "
            "the last checkpoint."
        ) from error
    except ray.exceptions.RayError as error:
        if "CheckpointManagerInitializationError" in str(error):
            raise ValueError(
                f"{job.run_storage.address}/{LIST_FILE} does not fit the checkpoints beside it "
                f"({last_line(error)}). Restore what is missing, or start a new run with another "
                "--name."
            ) from error
        raise RuntimeError(
            f"Ray could not train {job.name}: {last_line(error)}. Run the same command again to "
            "resume from the last checkpoint."
        ) from error
    result: WorkerResult = outcome.return_value
    if result.error:
        raise ValueError(result.error)


def _trainer(job: TrainingJob) -> TorchTrainer:
    """Ray Train's trainer with this job's placement, storage and failure settings."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from dn_cluster.ray_api import failure_config
    from dn_cluster.worker import WorkerSettings, train_worker

    unlisted = find_unlisted_checkpoints(job.run_storage)
    settings: WorkerSettings = {
        "job": job,
        "unlisted": unlisted.names,
        "must_resume": unlisted.must_resume,
    }
    train_function: Callable[[Any], Any] = train_worker
    resources = {"CPU": job.cpus, "GPU": job.gpus} if job.gpus else {"CPU": job.cpus}
    filesystem, path = job.storage.filesystem()
    return TorchTrainer(
        train_function,
        train_loop_config=dict(settings),
        torch_config=TorchConfig(timeout_s=PROCESS_GROUP_TIMEOUT_SECONDS),
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
            failure_config=failure_config(job.max_failures, START_ATTEMPTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=CHECKPOINTS_TO_KEEP),
        ),
    )
