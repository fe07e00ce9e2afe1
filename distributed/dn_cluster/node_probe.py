"""Node probe: what a node has of versions, packages, images and storage.

It runs on every node before anything else, so it imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import dn_core
from dn_cluster.storage import Storage
from dn_core.training.phantoms import PHANTOMS

__all__ = ["MARKER_CONTENT", "NodeReport", "missing_modules", "package_versions", "probe_node"]

PACKAGES = ("ray", "torch", "numpy", "safetensors")
MARKER_CONTENT = b"here"
"""Content of the file that the driver writes to the storage, for the nodes to read."""


class NodeReport(TypedDict):
    """What a node has.

    Attributes
    ----------
    versions : dict of str to str
        Versions of Python, dn_core and the packages that must agree on all nodes.
    data : bool
        Whether the images are there.
    storage : str
        Why the storage cannot be used; empty where it can.
    missing : list of str
        Modules that are not installed.
    """

    versions: dict[str, str]
    data: bool
    storage: str
    missing: list[str]


def probe_node(data: str, run_storage: Storage, marker: str, modules: Iterable[str]) -> NodeReport:
    """Report what this node has.

    Parameters
    ----------
    data : str
        Folder of images, or address of a pack.
    run_storage : Storage
        The run's folder in the storage.
    marker : str
        Name of a file with `MARKER_CONTENT` that the driver has written there.
    modules : iterable of str
        Modules that the job needs besides.

    Returns
    -------
    NodeReport
        Plain data, for the driver.
    """
    try:
        found = run_storage.read(marker) == MARKER_CONTENT
        storage = "" if found else "a file that the driver has just written is missing"
    except Exception as error:  # whatever keeps the node from the storage is reported
        storage = f"{type(error).__name__}: {error}"
    return {
        "versions": package_versions(),
        "data": _has_data(data),
        "storage": storage,
        "missing": missing_modules(modules),
    }


def _has_data(data: str) -> bool:
    """Whether the node sees the images; made-up ones are made there."""
    if "://" in data:
        return Storage.at(data).exists("pack.json")
    return data == PHANTOMS or Path(data).exists()


def missing_modules(names: Iterable[str]) -> list[str]:
    """Find modules that are not installed.

    Parameters
    ----------
    names : iterable of str
        Names of modules to look for.

    Returns
    -------
    list of str
        Those that are missing.
    """
    return [name for name in names if importlib.util.find_spec(name) is None]


def package_versions() -> dict[str, str]:
    """Versions that must agree on all nodes.

    Returns
    -------
    dict of str to str
        By name: Python's (without the last number), dn_core's and those of the packages;
        ``"missing"`` where one is not installed.
    """
    python = platform.python_version().rpartition(".")[0]
    versions = {"Python": python, "dn_core": dn_core.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions
