"""Ray Train worker: trains a job's stages and reports a checkpoint at the end of each epoch."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

import ray.train
import ray.train.torch
from torch import distributed

from dn_cluster.error_messages import replace_path_in_errors
from dn_cluster.experiment_tracking import track_experiment
from dn_cluster.run_checkpoints import HASHES_FILE, download_checkpoint, write_hashes
from dn_cluster.storage import FullDiskError
from dn_cluster.temporary_folders import temporary_folder
from dn_cluster.training_job import TrainingJob, epoch_message, load_dataset
from dn_core.errors import error_message
from dn_core.memory import keep_freed_memory
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.events import TrainingEvent
from dn_core.training.process_group import ProcessGroup
from dn_core.training.stages import train_stages

__all__ = ["WorkerResult", "WorkerSettings", "train_worker"]

T = TypeVar("T")


class WorkerSettings(TypedDict):
    """What the driver passes to each worker.

    Attributes
    ----------
    job : TrainingJob
        What is to be trained.
    unlisted : sequence of str
        Names of checkpoints that Ray does not know, the newest first.
    must_resume : bool
        Whether the run had checkpoints before, so that it must be resumed.
    """

    job: TrainingJob
    unlisted: Sequence[str]
    must_resume: bool


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """How a worker ended.

    Attributes
    ----------
    model : str, default ""
        The finished model's file name in the run's folder; empty where there is none.
    error : str, default ""
        Why the run cannot be trained, in a sentence; empty where it was.
    """

    model: str = ""
    error: str = ""


def train_worker(settings: WorkerSettings) -> WorkerResult:
    """Train from the last checkpoint to the end, in one process of the worker group.

    Errors that another attempt would meet again are returned: Ray retries after those raised.

    Parameters
    ----------
    settings : WorkerSettings
        The job and the checkpoints that Ray does not know.

    Returns
    -------
    WorkerResult
        The model, or why there is none.
    """
    job = settings["job"]
    logging.getLogger().setLevel(logging.WARNING)  # Ray logs each report, in each worker
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    keep_freed_memory()
    workers = ProcessGroup.of_process_group()
    # Each worker trains in a folder of its own; only the first worker's checkpoints are kept.
    with temporary_folder() as scratch:
        folder = scratch / "training"
        folder.mkdir()
        checkpoint, problem = _restore(settings, folder, workers)
        if problem:
            return WorkerResult(error=problem)
        dataset, problem = _load_dataset(job)
        if problem := _problem_of_any_worker(dataset, problem, workers):
            return WorkerResult(error=problem)
        assert dataset is not None
        address = f"{job.run_storage.address}/{checkpoint}".rstrip("/")
        try:
            with replace_path_in_errors(folder, address):
                _train(job, dataset, folder, workers)
        except (ValueError, FloatingPointError, FullDiskError) as error:  # the same in all workers
            return WorkerResult(error=error_message(error))
    return WorkerResult(model=job.model_file)


def _restore(settings: WorkerSettings, folder: Path, workers: ProcessGroup) -> tuple[str, str]:
    """Restore the newest checkpoint that is intact for all workers.

    Returns its name, and what keeps the run from being resumed; both are empty for a new run.
    """
    job = settings["job"]
    reported = ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
    names = [Path(one.checkpoint.path).name for one in reversed(reported)]
    names += settings["unlisted"]
    if reported and all(_gather(_lack_hashes(job, names), workers)):
        reported[-1].checkpoint.to_directory(folder)
        if workers.rank == 0:
            print(
                f"{job.run_storage.address}/{names[0]} has no {HASHES_FILE}, as an older version "
                "left it; it is used unchecked",
                flush=True,
            )
            print("resuming from", names[0], flush=True)
        return names[0], ""
    name, problems = _restore_newest_intact(job, names, folder, workers)
    if name:
        return name, ""
    if reported or (names and settings["must_resume"]):
        return "", (
            f"no checkpoint of {job.name} is intact ({'; '.join(problems)}). Restore one, or start "
            "a new run with another --name."
        )
    shutil.rmtree(folder)
    folder.mkdir()
    return "", ""


def _lack_hashes(job: TrainingJob, names: Sequence[str]) -> bool:
    """Whether an older version, which wrote no hashes, left the checkpoints."""
    return bool(names) and not any(
        job.run_storage.exists(f"{name}/{HASHES_FILE}") for name in names
    )


def _restore_newest_intact(
    job: TrainingJob, names: Sequence[str], folder: Path, workers: ProcessGroup
) -> tuple[str, list[str]]:
    """Restore the first of the checkpoints that is intact for all workers.

    Returns its name, or an empty one, and what is wrong with those before it.
    """
    all_problems: list[str] = []
    read_error = None
    for name in names:
        try:
            problem = download_checkpoint(job.run_storage, name, folder)
        except OSError as error:
            problem, read_error = f"it cannot be read ({error_message(error)})", error
        problems = [
            f"{job.run_storage.address}/{name} is damaged: {text}"
            for text in sorted({text for text in _gather(problem, workers) if text})
        ]
        if workers.rank == 0:
            print("\n".join(problems or [f"resuming from {name}"]), flush=True)
        if not problems:
            return name, all_problems
        all_problems += problems
    if read_error is not None:  # another attempt may succeed
        raise read_error
    return "", all_problems


def _gather(value: T, workers: ProcessGroup) -> list[T]:
    """The value of each worker, in all of them; all wait for each other."""
    values = [value] * workers.size
    if workers.size > 1:
        distributed.all_gather_object(values, value)
    return values


def _load_dataset(job: TrainingJob) -> tuple[CleanImageDataset | None, str]:
    try:
        return load_dataset(job), ""
    except (ValueError, OSError, MemoryError) as error:
        return None, error_message(error)


def _problem_of_any_worker(
    dataset: CleanImageDataset | None, problem: str, workers: ProcessGroup
) -> str:
    """What keeps any worker from starting; all learn of it, so that none waits for the others."""
    fingerprint = "" if dataset is None else dataset.fingerprint()
    reports = _gather((socket.gethostname(), fingerprint, problem), workers)
    for rank, (host, _, text) in enumerate(reports):
        if text:
            return f"worker {rank} on {host}: {text}"
    if len({data for _, data, _ in reports}) > 1:
        hosts = ", ".join(sorted({host for host, _, _ in reports}))
        return (
            f"all workers must read the same images, got different ones on {hosts}. Give all nodes "
            "the same data folder."
        )
    if dataset is not None and workers.rank == 0:
        print(
            f"{dataset.in_words}, {len(dataset.held_out)} held out, {len(dataset.skipped)} "
            "files skipped",
            flush=True,
        )
        for item in dataset.skipped:
            print(f"skipped {item.path}: {item.reason}", file=sys.stderr, flush=True)
    return ""


def _train(
    job: TrainingJob, dataset: CleanImageDataset, folder: Path, workers: ProcessGroup
) -> None:
    published: set[str] = set()
    with contextlib.ExitStack() as stack:
        events = stack.enter_context(
            contextlib.closing(
                train_stages(
                    job.recipe,
                    dataset,
                    folder,
                    start=job.start,
                    device=str(ray.train.torch.get_device()),
                    precision=job.precision,
                    allow=job.allow,
                    workers=workers,
                )
            )
        )
        is_first = workers.rank == 0
        track = stack.enter_context(track_experiment(job, dataset, folder)) if is_first else None
        for event in events:
            if event.kind == "step":
                continue
            if track is not None and event.kind == "epoch":
                print(epoch_message(event), flush=True)
                track(event)
            _check_free_space(job, folder, workers)
            if is_first:
                _publish_models(folder, job, published)
            _report(folder, event, workers)


def _check_free_space(job: TrainingJob, folder: Path, workers: ProcessGroup) -> None:
    """Stop all workers before the disk is full, rather than in the middle of a write."""
    error = None
    if workers.rank == 0:
        try:
            job.check_free_space(folder)
        except FullDiskError as caught:
            error = caught
    if not workers.all_true(error is None, ray.train.torch.get_device()):
        raise error or FullDiskError(
            errno.ENOSPC,
            "the first worker has no space for checkpoints",
            job.run_storage.address,
        )


def _publish_models(folder: Path, job: TrainingJob, published: set[str]) -> None:
    """Write the models of finished stages and the final one to the run's folder."""
    for path in sorted(folder.rglob(job.model_file)):
        name = job.model_file if path.parent == folder else f"{path.parent.name}.safetensors"
        if name not in published:
            job.run_storage.write(name, path.read_bytes())
            published.add(name)


def _report(folder: Path, event: TrainingEvent, workers: ProcessGroup) -> None:
    """Report metrics to Ray Train, from the first worker together with a checkpoint.

    The first worker waits until the checkpoint is committed: a resumed run would start from it.
    """
    metrics = {
        "stage": event.stage,
        "stages": event.stages,
        "epoch": event.epoch,
        "step": event.step,
        "loss": event.epoch_loss,
        "learning_rate": event.learning_rate,
        "psnr": event.psnr,
        "megapixels": event.megapixels,
        "megapixels_per_second": event.megapixels_per_second,
        "seconds_left": event.seconds_left,
    }
    if workers.rank != 0:
        ray.train.report(metrics)
        return
    for number in range(event.stage):  # finished stages are resumed from their models
        (folder / f"stage-{number}" / "state.safetensors").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        left_out = shutil.ignore_patterns("*.lock", ".part-*", HASHES_FILE)
        shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=left_out)
        write_hashes(Path(copy))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(copy))
    # Ray commits reports later, by itself: without waiting, losing a worker would cost another
    # short epoch.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
