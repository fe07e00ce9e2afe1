"""What a node sees of a job. It runs on every node first, so it brings neither torch nor Ray."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dn_core
from dn_cluster.storage import Storage

__all__ = ["look", "missing_modules", "versions"]

PACKAGES = ("ray", "torch", "numpy", "safetensors")


def look(data: str, folder: Storage, marker: str, modules: Iterable[str]) -> dict[str, Any]:
    """What a node sees, as plain data."""
    try:
        storage = "" if folder.read(marker) == b"here" else "it does not see the file that the driver has just written there"
    except Exception as error:  # whatever keeps it from the storage is told to the user
        storage = f"{type(error).__name__}: {error}"
    return {
        "versions": versions(),
        "data": Storage.at(data).exists("pack.json") if "://" in data else Path(data).exists(),
        "storage": storage,
        "missing": missing_modules(modules),
    }


def missing_modules(names: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """Of what must be the same everywhere."""
    found = {"Python": platform.python_version().rpartition(".")[0], "dn_core": dn_core.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
