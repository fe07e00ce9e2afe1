"""Typed access to the parts of Ray's interface that have no types, or outdated ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypedDict

import ray
import ray.train

__all__ = ["NodeInfo", "TrainOutcome", "cluster_nodes", "failure_config", "total_resources"]


class NodeInfo(TypedDict):
    """What ``ray.nodes`` says of a node, as far as it is used here."""

    NodeID: str
    NodeManagerAddress: str
    Alive: bool
    Resources: dict[str, float]


class TrainOutcome(Protocol):
    """The result of a trainer's ``fit``; Ray's types lack `return_value`."""

    return_value: Any


def cluster_nodes() -> list[NodeInfo]:
    """All nodes of the cluster, also those that have died.

    Returns
    -------
    list of NodeInfo
        In the order of ``ray.nodes``.
    """
    nodes: list[NodeInfo] = ray.nodes()
    return nodes


def total_resources() -> dict[str, float]:
    """Resources of all nodes together, by name such as ``"CPU"``.

    Returns
    -------
    dict of str to float
        In use or not.
    """
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def failure_config(max_failures: int, controller_failure_limit: int) -> ray.train.FailureConfig:
    """Ray Train's failure settings; its types lack `controller_failure_limit`.

    Parameters
    ----------
    max_failures : int
        How often lost workers are replaced.
    controller_failure_limit : int
        How often Ray Train may try to get all workers at the start.

    Returns
    -------
    ray.train.FailureConfig
        For ``ray.train.RunConfig``.
    """
    create: Callable[..., ray.train.FailureConfig] = ray.train.FailureConfig
    return create(max_failures=max_failures, controller_failure_limit=controller_failure_limit)
