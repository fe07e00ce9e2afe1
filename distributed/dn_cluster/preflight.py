"""Checks before a run is started: enough nodes, the same versions, data and storage in reach. Each ends in a sentence, not in a hang."""

from __future__ import annotations

import contextlib
import math
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dn_cluster.job import Job
from dn_cluster.look import look, versions
from dn_cluster.words import first_line

__all__ = ["check_nodes", "places", "room_for"]

ASK_SECONDS = 10
"""The autoscaler keeps one request only: other jobs, and Ray Train every 20 s, put theirs in the place of ours."""
ANSWER_SECONDS = 90
"""A node's first task comes with the code, which takes a while where disks are slow."""


def places(job: Job, nodes: list[Mapping[str, Any]]) -> dict[str, int]:
    """How many workers each node can hold, by its id."""
    found = {}
    for node in nodes:
        has = node["Resources"]
        counts = [int(has.get("CPU", 0) // job.cpus)] if job.cpus else []
        counts += [int(has.get("GPU", 0) / job.gpus + 1e-9)] if job.gpus else []
        suits = job.accelerator is None or f"accelerator_type:{job.accelerator}" in has
        if node["Alive"] and suits and counts and min(counts) > 0:
            found[node["NodeID"]] = min(counts)
    return found


@contextlib.contextmanager
def room_for(job: Job, seconds: float) -> Iterator[dict[str, int]]:
    """Wait until the cluster can hold all workers; an autoscaler is told what is wanted, until the block ends.

    Raises
    ------
    ValueError
        When it still cannot after so many seconds.
    """
    with contextlib.ExitStack() as stack:
        yield _wait_for_places(job, seconds, stack)


def _wait_for_places(job: Job, seconds: float, stack: contextlib.ExitStack) -> dict[str, int]:
    end = time.monotonic() + seconds
    asked = -math.inf
    while True:
        found = places(job, ray.nodes())
        if sum(found.values()) >= job.workers:
            return found
        if time.monotonic() > end:
            break
        if time.monotonic() - asked > ASK_SECONDS:
            if math.isinf(asked):
                stack.callback(_take_back)
            _ask_autoscaler(job)
            asked = time.monotonic()
        time.sleep(0.5)
    total, alive = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    kind = f" on {job.accelerator}" if job.accelerator else ""
    raise ValueError(
        f"{job.workers} workers of {job.cpus:g} CPUs and {job.gpus:g} GPUs{kind} are asked for; the cluster has {alive} nodes "
        f"with {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs, room for {sum(found.values())} of them. Ask for fewer or "
        "smaller workers, add nodes, or --wait for them."
    )


def check_nodes(job: Job, nodes: Mapping[str, int]) -> None:
    """Look at every node that may get a worker: its versions, the data folder, the storage.

    Raises
    ------
    ValueError
        When a node differs, lacks something, or does not answer.
    """
    marker = f".preflight-{secrets.token_hex(4)}"
    job.folder.write(marker, b"here")
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(look)
        tasks = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                job.data, job.folder, marker, job.modules
            ): node
            for node in nodes
        }
        ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_SECONDS)
        if late:
            names = ", ".join(_address(tasks[task]) for task in late)
            raise ValueError(f"{names} did not answer within {ANSWER_SECONDS} s; every node is expected to. See `ray status`.")
        here = versions()
        for task in ready:
            name = _address(tasks[task])
            try:
                seen = ray.get(task)
            except ray.exceptions.RayError as error:
                if not _is_alive(tasks[task]):  # it died meanwhile; Ray Train takes other nodes, or waits for one
                    continue
                raise ValueError(f"node {name} cannot run our code ({first_line(error)}); give all nodes the same image.") from error
            _judge(name, seen, here, job)
    finally:
        job.folder.remove(marker)


def _judge(name: str, seen: Mapping[str, Any], here: Mapping[str, str], job: Job) -> None:
    there = seen["versions"]
    if different := [f"{what} {there.get(what)} there, {version} here" for what, version in here.items() if there.get(what) != version]:
        raise ValueError(f"node {name} has other versions ({'; '.join(different)}); the same are expected. Give all nodes the same image.")
    if seen["missing"]:
        raise ValueError(f"node {name} has no {seen['missing'][0]}; --{seen['missing'][0]} needs it on every node. Install it there.")
    if not seen["data"]:
        raise ValueError(
            f"node {name} has no {job.data}; the folder of images is expected on every node. Mount it there, or change --data."
        )
    if seen["storage"]:
        raise ValueError(
            f"node {name} cannot use the storage {job.folder.address} ({seen['storage']}); a place that all nodes share is expected. "
            "Mount it there, or change --storage."
        )


def _ask_autoscaler(job: Job) -> None:
    """Ask for room for all workers. Ray keeps what was asked for until it is told otherwise, also when this process has ended."""
    from ray.autoscaler.sdk import request_resources

    bundle = {name: amount for name, amount in (("CPU", job.cpus), ("GPU", job.gpus)) if amount}
    request_resources(bundles=[bundle] * job.workers)


def _take_back() -> None:
    """Ask for nothing; the nodes that are used stay, by what runs on them."""
    from ray.autoscaler.sdk import request_resources

    try:
        request_resources(bundles=[])
    except Exception as error:  # whatever keeps it from the cluster, it is not what the run ended with
        print(f"what was asked of the autoscaler could not be taken back ({error}); see `ray status`", file=sys.stderr, flush=True)


def _is_alive(node_id: str) -> bool:
    return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id)


def _address(node_id: str) -> str:
    return next((str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == node_id), node_id)
