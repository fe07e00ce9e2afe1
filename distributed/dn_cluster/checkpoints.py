"""A run's checkpoints in its storage: each has the hashes of its files, and the run goes on from the newest one that is whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from dn_cluster.storage import Storage

__all__ = ["HASHES", "LIST", "checkpoint_names", "seal", "unlisted", "unpack"]

HASHES = "hashes.json"
LIST = "checkpoint_manager_snapshot.json"
"""Ray's list of the checkpoints that a run has; without it Ray would begin anew, with a wrong one not at all."""
OLD_LIST = "checkpoint_manager_snapshot.damaged.json"
PREFIX = "checkpoint_"


def seal(folder: Path) -> None:
    """Write down the hashes of all files in the folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def checkpoint_names(run: Storage) -> list[str]:
    """The names of the checkpoints that are there, whole or not, the newest first."""
    return sorted((name for name in run.folders() if name.startswith(PREFIX)), reverse=True)


def unpack(run: Storage, name: str, folder: Path) -> str:
    """Bring a checkpoint's files to a folder, in place of what is there; what is wrong with them, or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = run.read(f"{name}/{HASHES}")
    if content is None:
        return f"{HASHES} is missing"
    try:
        hashes = {str(file): str(digest) for file, digest in json.loads(content).items()}
    except (ValueError, AttributeError) as error:
        return f"{HASHES} cannot be read ({error})"
    for file, digest in hashes.items():
        path = folder / file
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{HASHES} names {file!r}, which is outside"
        content = run.read(f"{name}/{file}")
        if content is None:
            return f"{file} is missing"
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            return f"{file} has sha256 {found[:16]}..., {digest[:16]}... was written"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return ""


def unlisted(run: Storage) -> tuple[tuple[str, ...], bool]:
    """The checkpoints that Ray is not told of, the newest first, and whether the run must go on from one of them.

    A list that cannot be read, or names checkpoints that are gone, is put aside, as Ray would not begin with it.

    Raises
    ------
    ValueError
        When there is such a list, but no checkpoint.
    """
    names = tuple(checkpoint_names(run))
    content = run.read(LIST)
    if content is None:
        return names, run.exists(OLD_LIST)
    try:
        listed = {str(entry["checkpoint_dir_name"]) for entry in json.loads(content)["checkpoint_results"]}
    except (ValueError, KeyError, TypeError) as error:
        trouble = f"cannot be read ({error})"
    else:
        if not (gone := sorted(listed.difference(names))):
            return (), True
        trouble = f"names {gone[-1]}, which is missing"
    if not names:
        raise ValueError(f"{run.address}/{LIST} {trouble}, and no checkpoint is there. Put them back, or begin anew with another --name.")
    run.write(OLD_LIST, content)
    run.remove(LIST)
    print(f"{run.address}/{LIST} {trouble}; it is put aside as {OLD_LIST}, the run goes on from the checkpoints that are there", flush=True)
    return names, True
