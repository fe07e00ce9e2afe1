"""Checkpoints of a Ray Train run: file hashes, and the choice of the checkpoint to resume from.

A run resumes from its newest checkpoint whose files all have the hashes that were recorded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from dn_cluster.storage import Storage

__all__ = [
    "DAMAGED_LIST_FILE",
    "HASHES_FILE",
    "LIST_FILE",
    "UnlistedCheckpoints",
    "checkpoint_names",
    "download_checkpoint",
    "find_unlisted_checkpoints",
    "write_hashes",
]

HASHES_FILE = "hashes.json"
LIST_FILE = "checkpoint_manager_snapshot.json"
"""Ray's list of a run's checkpoints. Without it Ray starts a new run; it fails on a damaged one."""
DAMAGED_LIST_FILE = "checkpoint_manager_snapshot.damaged.json"
PREFIX = "checkpoint_"


def write_hashes(folder: Path) -> None:
    """Write the SHA-256 of all files in a folder to ``hashes.json`` in it.

    Parameters
    ----------
    folder : Path
        A checkpoint's folder.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    (folder / HASHES_FILE).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def checkpoint_names(run_storage: Storage) -> list[str]:
    """Names of a run's checkpoint folders.

    Parameters
    ----------
    run_storage : Storage
        The run's folder in the storage.

    Returns
    -------
    list of str
        The newest first; damaged ones included.
    """
    names = [name for name in run_storage.list_folders() if name.startswith(PREFIX)]
    return sorted(names, reverse=True)


def download_checkpoint(run_storage: Storage, name: str, folder: Path) -> str:
    """Download a checkpoint and compare its files with their hashes.

    Parameters
    ----------
    run_storage : Storage
        The run's folder in the storage.
    name : str
        The checkpoint's name.
    folder : Path
        Where its files go; what is there is deleted first.

    Returns
    -------
    str
        What is wrong with the checkpoint; empty where it is complete.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = run_storage.read(f"{name}/{HASHES_FILE}")
    if content is None:
        return f"{HASHES_FILE} is missing"
    try:
        hashes = {str(file): str(digest) for file, digest in json.loads(content).items()}
    except (ValueError, AttributeError) as error:
        return f"{HASHES_FILE} cannot be read ({error})"
    for file, expected in hashes.items():
        path = folder / file
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{HASHES_FILE} names {file!r}, which is outside the checkpoint"
        content = run_storage.read(f"{name}/{file}")
        if content is None:
            return f"{file} is missing"
        if (found := hashlib.sha256(content).hexdigest()) != expected:
            return f"{file} must have sha256 {expected[:16]}..., got {found[:16]}..."
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return ""


class UnlistedCheckpoints(NamedTuple):
    """Checkpoints that Ray's list lacks.

    Attributes
    ----------
    names : tuple of str
        The newest first; empty where Ray's list is intact.
    must_resume : bool
        Whether the run had a list of checkpoints before, so that it must be resumed.
    """

    names: tuple[str, ...]
    must_resume: bool


def find_unlisted_checkpoints(run_storage: Storage) -> UnlistedCheckpoints:
    """Find the checkpoints that Ray will not know when it starts the run.

    A list that cannot be read, or that names missing checkpoints, is renamed, as Ray would not
    start with it.

    Parameters
    ----------
    run_storage : Storage
        The run's folder in the storage.

    Returns
    -------
    UnlistedCheckpoints
        All checkpoints where Ray has no usable list of them, else none.

    Raises
    ------
    ValueError
        When there is a damaged list, but no checkpoint.
    """
    names = tuple(checkpoint_names(run_storage))
    content = run_storage.read(LIST_FILE)
    if content is None:
        return UnlistedCheckpoints(names, run_storage.exists(DAMAGED_LIST_FILE))
    problem = _list_problem(content, names)
    if not problem:
        return UnlistedCheckpoints((), True)
    if not names:
        raise ValueError(
            f"{run_storage.address}/{LIST_FILE} {problem}, and the run has no checkpoints. "
            "Restore them, or start a new run with another --name."
        )
    run_storage.write(DAMAGED_LIST_FILE, content)
    run_storage.delete(LIST_FILE)
    print(
        f"{run_storage.address}/{LIST_FILE} {problem}; it was renamed to {DAMAGED_LIST_FILE}, and "
        "the run resumes from the remaining checkpoints",
        flush=True,
    )
    return UnlistedCheckpoints(names, True)


def _list_problem(content: bytes, names: tuple[str, ...]) -> str:
    """What is wrong with Ray's list of checkpoints; empty: nothing."""
    try:
        entries = json.loads(content)["checkpoint_results"]
        listed = {str(entry["checkpoint_dir_name"]) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({error})"
    missing = sorted(listed.difference(names))
    return f"lists {missing[-1]}, which is missing" if missing else ""
