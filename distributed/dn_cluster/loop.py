"""What each worker does: dn_core's stages, with a checkpoint for Ray at the end of each epoch."""

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
from typing import Any, TypeVar

import ray.train
import ray.train.torch
from torch import distributed

from dn_cluster.checkpoints import HASHES, seal, unpack
from dn_cluster.job import Job, describe, load_images
from dn_cluster.scratch import scratch_folder
from dn_cluster.storage import FullDiskError
from dn_cluster.track import tracked
from dn_cluster.words import named_after, sentence
from dn_core.memory import keep_freed_memory
from dn_core.training.bank import Bank
from dn_core.training.cascade import train_stages
from dn_core.training.fit import TrainProgress
from dn_core.training.workers import Workers

__all__ = ["Outcome", "train_worker"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker ended: with the finished model's name in the run's folder, or with what it refused to do, in a sentence."""

    model: str = ""
    refused: str = ""


def train_worker(settings: dict[str, Any]) -> Outcome:
    """Train from the last checkpoint to the end. An error that would come again on another try is not raised, or Ray would try again."""
    job: Job = settings["job"]
    logging.getLogger().setLevel(logging.WARNING)  # Ray tells of each report, in each worker
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    keep_freed_memory()
    workers = Workers.of_process_group()
    # A folder of its own: only what Ray takes of the first worker's to the storage counts.
    with scratch_folder() as scratch:
        folder = scratch / "training"
        folder.mkdir()
        name, trouble = _restore(job, settings["unlisted"], settings["goes_on"], folder, workers)
        if trouble:
            return Outcome(refused=trouble)
        bank, trouble = _load(job)
        if trouble := _trouble_of_any(bank, trouble, workers):
            return Outcome(refused=trouble)
        try:
            with named_after(f"{job.folder.address}/{name}".rstrip("/"), folder):
                _train(job, bank, folder, workers)
        except (ValueError, FloatingPointError, FullDiskError) as error:  # the same in all workers
            return Outcome(refused=sentence(error))
    return Outcome(model=job.model)


def _restore(job: Job, unlisted: Sequence[str], goes_on: bool, folder: Path, workers: Workers) -> tuple[str, str]:
    """Bring the newest checkpoint that is whole for all workers; its name, or what keeps the run from going on.

    Parameters
    ----------
    unlisted
        Checkpoints that Ray does not know of, older than those that it knows, the newest first.
    goes_on
        Whether the run has been further than its beginning, whatever Ray knows.
    """
    reported = ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
    names = [Path(one.checkpoint.path).name for one in reversed(reported)] + list(unlisted)
    older_version = bool(names) and not any(job.folder.exists(f"{name}/{HASHES}") for name in names)
    if reported and all(_of_all(older_version, workers)):
        reported[-1].checkpoint.to_directory(folder)
        if workers.rank == 0:
            print(f"{job.folder.address}/{names[0]} has no {HASHES}, as an older version left it; it is used unchecked", flush=True)
            print("resuming from", names[0], flush=True)
        return names[0], ""
    told, error = [], None
    for name in names:
        try:
            trouble = unpack(job.folder, name, folder)
        except OSError as caught:
            trouble, error = f"it cannot be read ({sentence(caught)})", caught
        found = sorted({text for text in _of_all(trouble, workers) if text})
        told += [f"{job.folder.address}/{name} is damaged: {text}" for text in found]
        if workers.rank == 0:
            print("\n".join([*told[len(told) - len(found) :], *([] if found else [f"resuming from {name}"])]), flush=True)
        if not found:
            return name, ""
    if error is not None:  # it may be there on another try
        raise error
    if reported or (names and goes_on):
        return "", f"no checkpoint of {job.name} is whole ({'; '.join(told)}). Put one back, or begin anew with another --name."
    shutil.rmtree(folder)
    folder.mkdir()
    return "", ""


def _of_all(mine: T, workers: Workers) -> list[T]:
    """What each of the workers has; all wait for each other."""
    found = [mine] * workers.size
    if workers.size > 1:
        distributed.all_gather_object(found, mine)
    return found


def _train(job: Job, bank: Bank | None, folder: Path, workers: Workers) -> None:
    assert bank is not None
    options = {"start": job.start, "device": str(ray.train.torch.get_device()), "precision": job.precision, "allow": job.allow}
    published: set[str] = set()
    stages = train_stages(job.recipe, bank, folder, workers=workers, **options)
    with contextlib.closing(stages) as steps, contextlib.ExitStack() as stack:
        tell = stack.enter_context(tracked(job, bank, folder)) if workers.rank == 0 else None
        for step in steps:
            finished = step.lr == 0  # a stage's last report, when its model is there, says nothing new
            if not (finished or step.epoch_ended):
                continue
            if tell is not None and not finished:
                print(describe(step), flush=True)
                tell(step)
            _check_room(job, folder, workers)
            if workers.rank == 0:
                _publish(folder, job, published)
            _report(folder, step, workers)


def _check_room(job: Job, folder: Path, workers: Workers) -> None:
    """End in all workers, with all that was saved as it is, rather than amid writing to a full disk."""
    trouble = None
    if workers.rank == 0:
        try:
            job.check_room(folder)
        except FullDiskError as error:
            trouble = error
    if not workers.all_true(trouble is None, ray.train.torch.get_device()):
        raise trouble or FullDiskError(errno.ENOSPC, "the first worker has no room for checkpoints", job.folder.address)


def _load(job: Job) -> tuple[Bank | None, str]:
    try:
        return load_images(job), ""
    except (ValueError, OSError, MemoryError) as error:
        return None, sentence(error)


def _trouble_of_any(bank: Bank | None, trouble: str, workers: Workers) -> str:
    """What keeps any of the workers from beginning; all learn of it, so that none waits for one that has given up."""
    found = _of_all((socket.gethostname(), "" if bank is None else bank.fingerprint(), trouble), workers)
    for rank, (host, _, text) in enumerate(found):
        if text:
            return f"worker {rank} on {host}: {text}"
    if len({data for _, data, _ in found}) > 1:
        hosts = ", ".join(sorted({host for host, _, _ in found}))
        return f"the workers on {hosts} read different images; the same are expected. Give all nodes the same data folder."
    if bank is not None and workers.rank == 0:
        print(f"{bank.count} images, {len(bank.held_out)} held out, {len(bank.skipped)} files skipped", flush=True)
        for item in bank.skipped:
            print(f"skipped {item.path}: {item.reason}", file=sys.stderr, flush=True)
    return ""


def _publish(folder: Path, job: Job, published: set[str]) -> None:
    """Put models of finished stages, and the last one, into the run's folder."""
    for path in sorted(folder.rglob(job.model)):
        name = job.model if path.parent == folder else f"{path.parent.name}.safetensors"
        if name not in published:
            job.folder.write(name, path.read_bytes())
            published.add(name)


def _report(folder: Path, step: TrainProgress, workers: Workers) -> None:
    """Tell Ray how far it is; the first worker gives its files along, and waits until a run that is resumed would go on from them."""
    metrics = {
        **{"stage": step.stage, "stages": step.stages, "epoch": step.epoch, "step": step.done, "loss": step.epoch_loss, "lr": step.lr},
        **{"psnr": step.psnr, "megapixels": step.megapixels, "megapixels_per_second": step.megapixels_per_second},
        **{"seconds_left": step.seconds_left},
    }
    if workers.rank != 0:
        ray.train.report(metrics)
        return
    for number in range(step.stage):  # of finished stages only the models are needed
        (folder / f"stage-{number}" / "state.safetensors").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock", ".part-*", HASHES))
        seal(Path(copy))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(copy))
    # Ray looks at reports when it likes; going on meanwhile, a short epoch more would be lost with a worker.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
