"""Models of a family: which are trained, which are missing, and training of the missing ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from dn_cluster.driver import connect_to_ray, train_job, train_on_cluster
from dn_cluster.error_messages import first_line
from dn_cluster.preflight import check_nodes, request_nodes
from dn_cluster.training_job import TrainingJob
from dn_core.checkpoints import Checkpoint

__all__ = ["FamilyModel", "find_model", "status_table", "train_family"]


@dataclass(frozen=True, slots=True)
class FamilyModel:
    """One model of a family.

    Attributes
    ----------
    job : TrainingJob
        How it is trained.
    state : {"missing", "done", "failed"}, default "missing"
        ``"missing"``, ``"done"`` or ``"failed"``.
    note : str, default ""
        Its score, or why it failed.
    seconds : float, default 0.0
        How long its training took; 0: it was not trained now.
    """

    job: TrainingJob
    state: Literal["missing", "done", "failed"] = "missing"
    note: str = ""
    seconds: float = 0.0


def find_model(job: TrainingJob) -> FamilyModel:
    """Look for a job's model in the storage.

    Parameters
    ----------
    job : TrainingJob
        How the model is trained.

    Returns
    -------
    FamilyModel
        Failed where the job cannot be trained or its model is damaged.
    """
    try:
        job.check()
    except ValueError as error:
        return FamilyModel(job, "failed", str(error))
    content = job.run_storage.read(job.model_file)
    if content is None:
        return FamilyModel(job)
    address = f"{job.run_storage.address}/{job.model_file}"
    try:
        card = Checkpoint.from_bytes(content, source=address).card
    except ValueError as error:
        return FamilyModel(job, "failed", f"{error} Delete it to train it again.")
    score = card.scores.get("held_out_psnr")
    psnr = "" if score is None else f", held-out PSNR {score:.2f} dB"
    return FamilyModel(job, "done", f"{card.training['megapixels']} Mpx{psnr}")


def train_family(models: Iterable[FamilyModel], retries: int, wait: float) -> Iterator[FamilyModel]:
    """Train the missing models.

    Those with 0 workers are trained side by side, as one task each; then those with several
    workers, one after the other. A model that fails does not keep the others from being trained.

    Parameters
    ----------
    models : iterable of FamilyModel
        All models of the family.
    retries : int
        How often the task of a model is tried again after its worker was lost.
    wait : float
        Seconds to wait for nodes.

    Yields
    ------
    FamilyModel
        Each one as soon as it is done or has failed.
    """
    missing = [model for model in models if model.state == "missing"]
    if not missing:
        return
    connect_to_ray()
    yield from _train_small_models([one for one in missing if one.job.workers == 0], retries, wait)
    for model in missing:
        if model.job.workers:
            yield _train_large_model(model, wait)


def _train_large_model(model: FamilyModel, wait: float) -> FamilyModel:
    began = time.monotonic()
    try:
        train_on_cluster(model.job, wait)
    except (ValueError, RuntimeError, OSError) as error:
        seconds = time.monotonic() - began
        return replace(model, state="failed", note=first_line(error), seconds=seconds)
    return replace(find_model(model.job), seconds=time.monotonic() - began)


def _train_small_models(
    models: list[FamilyModel], retries: int, wait: float
) -> Iterator[FamilyModel]:
    if not models:
        return
    one_worker = replace(models[0].job, workers=1)
    with contextlib.ExitStack() as stack:
        try:
            nodes = stack.enter_context(request_nodes(one_worker, wait))
            check_nodes(one_worker, nodes)
        except ValueError as error:
            for model in models:
                yield replace(model, state="failed", note=str(error))
            return
        yield from _train_side_by_side(models, retries)


def _train_side_by_side(models: list[FamilyModel], retries: int) -> Iterator[FamilyModel]:
    import ray

    began = time.monotonic()
    task = ray.remote(train_job)
    running = {}
    for model in models:
        job = model.job
        options = task.options(
            name=job.name, num_cpus=job.cpus, num_gpus=job.gpus, max_retries=retries
        )
        running[options.remote(job)] = model
    while running:
        (reference,), _ = ray.wait(list(running), num_returns=1)
        model = running.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            seconds = time.monotonic() - began
            yield replace(model, state="failed", note=first_line(cause), seconds=seconds)
        else:
            yield replace(find_model(model.job), seconds=time.monotonic() - began)


def status_table(models: Iterable[FamilyModel]) -> str:
    """A table of the models' states.

    Parameters
    ----------
    models : iterable of FamilyModel
        The models, in the table's order.

    Returns
    -------
    str
        A line for each model: name, state, seconds, and score or error.
    """
    rows = [("model", "state", "time", "")]
    for model in models:
        seconds = f"{model.seconds:.0f} s" if model.seconds else ""
        rows.append((model.job.name, model.state, seconds, model.note))
    name, state, time_ = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [f"{row[0]:{name}}  {row[1]:{state}}  {row[2]:{time_}}  {row[3]}" for row in rows]
    return "\n".join(line.rstrip() for line in lines)
