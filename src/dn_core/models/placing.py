"""Placing models in the models folder: whole, checked, under a name that no other model has."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dn_core.checkpoints import Checkpoint
from dn_core.errors import CheckpointError, RegistryError
from dn_core.models.folder import change_index, read_index, writable_models_folder
from dn_core.models.index import Entry, Index
from dn_core.models.lists import bundled, in_folder
from dn_core.safe_write import atomic_write
from dn_core.tensor_files import read_file

__all__ = ["placed", "present"]


def present(entry: Entry) -> Entry | None:
    """The model on this machine that has this one's name and content, its file checked.

    A download must have its version too: the registry may list one content as several.
    """
    for other in (*bundled().versions, *in_folder()):
        if (other.name, other.sha256) != (entry.name, entry.sha256):
            continue
        if other.kind == entry.kind == "downloaded" and other.version != entry.version:
            continue
        with contextlib.suppress(OSError):
            if hashlib.sha256(other.path.read_bytes()).hexdigest() == other.sha256:
                return other
    return None


@contextlib.contextmanager
def placed(entry: Entry, *, replace: bool = False, any_version: bool = False) -> Iterator[Path]:
    """Give a temporary path for a new model's file; on success check, name and list it.

    Other versions of the model stay where they are.

    Parameters
    ----------
    entry : Entry
        The model as it is to be listed.
    replace : bool, default False
        Whether an own model may take the name of another own one, as a newer version.
    any_version : bool, default False
        Whether the version may be older than the newest one here, as when it was asked for.

    Yields
    ------
    Path
        Where to write the file, in the models folder.

    Raises
    ------
    ValueError
        When the name belongs to another model.
    RegistryError
        When a version that is not older is there already.
    CheckpointError
        When the file is not a model, or not the one that the entry names.
    OSError
        When it cannot be written. On any error the models are unchanged.
    """
    folder = writable_models_folder()
    if not entry.path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{entry.name} must be stored in {folder}, got {entry.path}. Rename it.")
    _check_free(entry, read_index(folder), replace, any_version)
    listed = False
    try:
        with atomic_write(entry.path, check=lambda path: _check_file(path, entry)) as temporary:
            yield temporary
        with change_index() as (index, write):
            _check_free(entry, index, replace, any_version)
            write(
                [record for record in index.records if not _same(record, entry)] + [_record(entry)]
            )
            listed = True
    finally:
        if not listed and entry.file not in {other.file for other in in_folder()}:
            entry.path.unlink(missing_ok=True)


def _check_file(path: Path, entry: Entry) -> None:
    card = Checkpoint.from_bytes(read_file(path), source=entry.file, sha256=entry.sha256).card
    if card.name != entry.name:
        raise CheckpointError(
            f"the card of {entry.name} must have its name, got one that names another model, "
            f"{card.name!r:.120}. Publish or add it again."
        )


def _record(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(entry).items() if key != "home"}


def _same(record: dict[str, Any], entry: Entry) -> bool:
    """Whether a record of the models folder gives way to a new one of this entry."""
    if record["name"] != entry.name:
        return False
    return record["version"] == entry.version or record.get("kind") != entry.kind


def _check_free(entry: Entry, index: Index, replace: bool, any_version: bool) -> None:
    """Refuse a model whose name belongs to another one, or whose version is not to be had."""
    for other in (*bundled().versions, *index.versions):
        same = other.sha256 == entry.sha256
        alike = other.source == entry.source or other.version == entry.version
        if other.name != entry.name or (same and alike):
            continue
        if other.kind == "bundled":
            how = ": dn-resnet models add FILE --name NAME." if entry.kind == "own" else "."
            raise ValueError(
                f"the name {entry.name} belongs to a model that comes with the package. Choose "
                f"another{how}"
            )
        if replace and other.kind == entry.kind == "own" and other.version != entry.version:
            continue
        if other.kind == "own" or entry.kind == "own":
            whose = "your own" if other.kind == "own" else "downloaded"
            raise ValueError(
                f"there is another model named {entry.name} ({whose}). Choose another name, or "
                "remove that one first."
            )
        if other.source != entry.source:
            raise RegistryError(
                f"{entry.name} is here from {other.source}, not from {entry.source}. Remove it "
                "first to take this one."
            )
        if other.version == entry.version or (other.version > entry.version and not any_version):
            raise RegistryError(
                f"{entry.name} must be newer than version {other.version}, which is here, got "
                f"version {entry.version} with other content. Ask who runs the registry; to take "
                "it all the same, remove the model first."
            )
