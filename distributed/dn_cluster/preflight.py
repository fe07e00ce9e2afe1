"""Preflight checks of a cluster: enough nodes, equal versions, images and storage within reach.

Whatever is missing is reported in one sentence before a run starts, instead of a hang.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dn_cluster.error_messages import first_line
from dn_cluster.node_probe import MARKER_CONTENT, NodeReport, package_versions, probe_node
from dn_cluster.ray_api import NodeInfo, cluster_nodes, total_resources
from dn_cluster.training_job import TrainingJob

__all__ = ["check_nodes", "request_nodes", "workers_per_node"]

REQUEST_SECONDS = 10
"""The autoscaler keeps one request only: other jobs, and Ray Train every 20 s, replace ours."""
PROBE_TIMEOUT_SECONDS = 90
"""A node receives the code with its first task, which takes a while where disks are slow."""


def workers_per_node(job: TrainingJob, nodes: Sequence[NodeInfo]) -> dict[str, int]:
    """How many workers each node can hold.

    Parameters
    ----------
    job : TrainingJob
        Its CPUs, GPUs and kind of GPU for each worker.
    nodes : sequence of NodeInfo
        What Ray says of the nodes.

    Returns
    -------
    dict of str to int
        Number of workers by the node's id; nodes that can hold none are left out.
    """
    slots = {}
    for node in nodes:
        resources = node["Resources"]
        counts = [int(resources.get("CPU", 0) // job.cpus)] if job.cpus else []
        counts += [int(resources.get("GPU", 0) / job.gpus + 1e-9)] if job.gpus else []
        fits = job.accelerator is None or f"accelerator_type:{job.accelerator}" in resources
        if node["Alive"] and fits and counts and min(counts) > 0:
            slots[node["NodeID"]] = min(counts)
    return slots


@contextlib.contextmanager
def request_nodes(job: TrainingJob, timeout: float) -> Iterator[dict[str, int]]:
    """Wait until the cluster can hold all workers; ask the autoscaler for nodes where it cannot.

    The request to the autoscaler is withdrawn when the block ends.

    Parameters
    ----------
    job : TrainingJob
        What is to be trained.
    timeout : float
        Seconds to wait.

    Yields
    ------
    dict of str to int
        Number of workers that a node can hold, by the node's id.

    Raises
    ------
    ValueError
        When the cluster is still too small after `timeout`.
    """
    with contextlib.ExitStack() as stack:
        yield _wait_for_nodes(job, timeout, stack)


def _wait_for_nodes(
    job: TrainingJob, timeout: float, stack: contextlib.ExitStack
) -> dict[str, int]:
    end = time.monotonic() + timeout
    last_request = -math.inf
    while True:
        slots = workers_per_node(job, cluster_nodes())
        if sum(slots.values()) >= job.workers:
            return slots
        if time.monotonic() > end:
            raise ValueError(_too_small(job, sum(slots.values())))
        if time.monotonic() - last_request > REQUEST_SECONDS:
            if math.isinf(last_request):
                stack.callback(_withdraw_request)
            _request_resources(job)
            last_request = time.monotonic()
        time.sleep(0.5)


def _too_small(job: TrainingJob, slots: int) -> str:
    total, alive = total_resources(), sum(node["Alive"] for node in cluster_nodes())
    kind = f" on {job.accelerator}" if job.accelerator else ""
    return (
        f"the cluster must have room for {job.workers} workers of {job.cpus:g} CPUs and "
        f"{job.gpus:g} GPUs{kind}, got {alive} nodes with {total.get('CPU', 0):g} CPUs and "
        f"{total.get('GPU', 0):g} GPUs, room for {slots} workers. Use fewer or smaller workers, "
        "add nodes, or wait longer with --wait."
    )


def _request_resources(job: TrainingJob) -> None:
    """Ask the autoscaler for room for all workers.

    Ray keeps the request until it is changed, even when this process has ended.
    """
    from ray.autoscaler.sdk import request_resources

    bundle = {name: amount for name, amount in (("CPU", job.cpus), ("GPU", job.gpus)) if amount}
    request_resources(bundles=[bundle] * job.workers)


def _withdraw_request() -> None:
    """Ask the autoscaler for nothing; nodes in use stay for what runs on them."""
    from ray.autoscaler.sdk import request_resources

    try:
        request_resources(bundles=[])
    except Exception as error:  # whatever it is, the run's own error must not be hidden by it
        print(
            f"the autoscaler request could not be withdrawn ({error}). See `ray status`.",
            file=sys.stderr,
            flush=True,
        )


def check_nodes(job: TrainingJob, nodes: Mapping[str, int]) -> None:
    """Probe every node that may get a worker.

    Parameters
    ----------
    job : TrainingJob
        What is to be trained.
    nodes : mapping of str to int
        The nodes' ids, as `request_nodes` gives them.

    Raises
    ------
    ValueError
        When a node has other versions, lacks images, storage or a package, or does not answer.
    """
    marker = f".preflight-{secrets.token_hex(4)}"
    job.run_storage.write(marker, MARKER_CONTENT)
    try:
        for node, report in _probe_nodes(job, nodes, marker):
            _check_report(_address(node), report, job)
    finally:
        job.run_storage.delete(marker)


def _probe_nodes(
    job: TrainingJob, nodes: Mapping[str, int], marker: str
) -> Iterator[tuple[str, NodeReport]]:
    """Yield the report of each node by its id; nodes that die meanwhile are left out."""
    task = ray.remote(num_cpus=0, max_retries=0)(probe_node)
    pending = {}
    for node in nodes:
        placement = NodeAffinitySchedulingStrategy(node, soft=False)
        on_node = task.options(scheduling_strategy=placement)
        pending[on_node.remote(job.data, job.run_storage, marker, job.required_modules)] = node
    answered, late = ray.wait(
        list(pending), num_returns=len(pending), timeout=PROBE_TIMEOUT_SECONDS
    )
    if late:
        names = ", ".join(_address(pending[reference]) for reference in late)
        raise ValueError(
            f"every node must answer within {PROBE_TIMEOUT_SECONDS} s, got no answer from "
            f"{names}. See `ray status`."
        )
    for reference in answered:
        node = pending[reference]
        try:
            yield node, ray.get(reference)
        except ray.exceptions.RayError as error:
            if not _is_alive(node):  # Ray Train uses other nodes, or waits for one
                continue
            raise ValueError(
                f"node {_address(node)} cannot run our code ({first_line(error)}). Use the same "
                "image on all nodes."
            ) from error


def _check_report(name: str, report: NodeReport, job: TrainingJob) -> None:
    there = report["versions"]
    different = [
        f"{package} {there.get(package)} there, {version} here"
        for package, version in package_versions().items()
        if there.get(package) != version
    ]
    if different:
        raise ValueError(
            f"node {name} must have the driver's versions, got {'; '.join(different)}. Use the "
            "same image on all nodes."
        )
    if report["missing"]:
        module = report["missing"][0]
        raise ValueError(
            f"node {name} is missing {module}, which --{module} needs on every node. Install it "
            "there."
        )
    if not report["data"]:
        raise ValueError(
            f"node {name} is missing {job.data}; every node must have the folder of images. "
            "Mount it there, or change --data."
        )
    if report["storage"]:
        raise ValueError(
            f"node {name} cannot use the storage {job.run_storage.address} ({report['storage']}); "
            "all nodes must share it. Mount it there, or change --storage."
        )


def _is_alive(node_id: str) -> bool:
    return any(node["Alive"] for node in cluster_nodes() if node["NodeID"] == node_id)


def _address(node_id: str) -> str:
    for node in cluster_nodes():
        if node["NodeID"] == node_id:
            return node["NodeManagerAddress"]
    return node_id
