"""A family of models: which are done, which are missing, and training those that are missing side by side."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dn_cluster.driver import connect, train_job, train_on_cluster
from dn_cluster.job import Job
from dn_cluster.preflight import check_nodes, room_for
from dn_cluster.words import first_line, named_after
from dn_core.checkpoints import load_checkpoint

__all__ = ["Member", "look_up", "status_table", "train_family"]


@dataclass(frozen=True, slots=True)
class Member:
    """One model of the family: how it is trained, and what is known of it (``"missing"``, ``"done"`` or ``"failed"``)."""

    job: Job
    state: str = "missing"
    note: str = ""
    seconds: float = 0.0


def look_up(job: Job) -> Member:
    """What the storage knows of a model."""
    try:
        job.check()
    except ValueError as error:
        return Member(job, "failed", str(error))
    content = job.folder.read(job.model)
    if content is None:
        return Member(job)
    try:
        return Member(job, "done", _scores(content, job))
    except ValueError as error:
        return Member(job, "failed", f"{error} Remove it to have it trained again.")


def train_family(members: Iterable[Member], retries: int, wait: float) -> Iterator[Member]:
    """Train what is missing: those of one worker (0 in their job) side by side, then those of several one after the other.

    Yields
    ------
    Member
        As soon as it is done or has failed; one that fails does not keep others from being trained.
    """
    missing = [member for member in members if member.state == "missing"]
    if not missing:
        return
    connect()
    small = [member for member in missing if member.job.workers == 0]
    large = [member for member in missing if member.job.workers]
    yield from _side_by_side(small, retries, wait)
    for member in large:
        began = time.monotonic()
        try:
            train_on_cluster(member.job, wait)
        except (ValueError, RuntimeError, OSError) as error:
            yield replace(member, state="failed", note=first_line(error), seconds=time.monotonic() - began)
        else:
            yield replace(look_up(member.job), seconds=time.monotonic() - began)


def _side_by_side(members: list[Member], retries: int, wait: float) -> Iterator[Member]:
    if not members:
        return
    one = replace(members[0].job, workers=1)
    with contextlib.ExitStack() as stack:
        try:
            check_nodes(one, stack.enter_context(room_for(one, wait)))
        except ValueError as error:
            yield from (replace(member, state="failed", note=str(error)) for member in members)
            return
        yield from _train_small(members, retries)


def _train_small(members: list[Member], retries: int) -> Iterator[Member]:
    import ray

    began = time.monotonic()
    task = ray.remote(train_job)
    running = {
        task.options(name=member.job.name, num_cpus=member.job.cpus, num_gpus=member.job.gpus, max_retries=retries).remote(
            member.job
        ): member
        for member in members
    }
    while running:
        (reference,), _ = ray.wait(list(running), num_returns=1)
        member = running.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            yield replace(member, state="failed", note=first_line(cause), seconds=time.monotonic() - began)
        else:
            yield replace(look_up(member.job), seconds=time.monotonic() - began)


def status_table(members: Iterable[Member]) -> str:
    """A line for each model."""
    rows = [("model", "state", "after", "")]
    rows += [(one.job.name, one.state, f"{one.seconds:.0f} s" if one.seconds else "", one.note) for one in members]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows)


def _scores(content: bytes, job: Job) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, job.model)
        path.write_bytes(content)
        with named_after(f"{job.folder.address}/{job.model}", path):
            card = load_checkpoint(path).card
    score = card.scores.get("held_out_psnr")
    return f"{card.training['megapixels']} Mpx" + ("" if score is None else f", held-out PSNR {score:.2f} dB")
