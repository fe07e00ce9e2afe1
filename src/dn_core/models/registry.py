"""The registry of models on this machine: bundled, downloaded and own ones, found by name or file.

Bundled models come with the package. Downloaded and own ones lie in the models folder, listed in an
``index.json`` of the same format. A name belongs to one model: neither `add` nor a download takes
one that another model has. Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dn_core.checkpoints import Checkpoint, load_checkpoint
from dn_core.errors import CheckpointError, RegistryError, UnknownModelError
from dn_core.messages import did_you_mean
from dn_core.models.folder import (
    NoHomeError,
    change_index,
    models_folder,
    read_index,
    writable_models_folder,
)
from dn_core.models.index import (
    FILE,
    NAME,
    Entry,
    Index,
    check_name,
    content_name,
    parse_index,
)
from dn_core.safe_write import atomic_write
from dn_core.tensor_files import read_file

__all__ = [
    "add",
    "default_name",
    "entries",
    "load",
    "model_names",
    "placed",
    "present",
    "remove",
    "resolve",
    "verify",
]


def entries() -> tuple[Entry, ...]:
    """All models on this machine.

    Returns
    -------
    tuple of Entry
        The default one first, then by name.
    """
    bundled, default = _bundled().entries, default_name()
    taken = {entry.name for entry in bundled}
    own = [entry for entry in _in_folder() if entry.name not in taken]
    return tuple(sorted((*bundled, *own), key=lambda entry: (entry.name != default, entry.name)))


def default_name() -> str:
    """The model that `denoise` uses when none is named.

    Returns
    -------
    str
        Its name.
    """
    return _bundled().default


def model_names() -> list[str]:
    """The names that `denoise` and `load_model` take.

    Returns
    -------
    list of str
        The default one first, then by name.
    """
    return [entry.name for entry in entries()]


def resolve(name_or_path: str | Path) -> Path:
    """The file of a model; a name is never guessed.

    Parameters
    ----------
    name_or_path : str or Path
        A name that `model_names` lists, or the path of a model file.

    Returns
    -------
    Path
        The ``.safetensors`` file.

    Raises
    ------
    UnknownModelError
        When it is neither a known name nor a file; the message has similar names.
    """
    found = _find(name_or_path)
    return found.path if isinstance(found, Entry) else found


def load(name_or_path: str | Path) -> Checkpoint:
    """Read a model; a file that an index lists must have the hash that it had there.

    Parameters
    ----------
    name_or_path : str or Path
        A name that `model_names` lists, or the path of a model file.

    Returns
    -------
    Checkpoint
        Its network settings, weights and card.

    Raises
    ------
    UnknownModelError
        When it is neither a known name nor a file; the message has similar names.
    CheckpointError
        When the file is not a model, is damaged, or has another hash than it had.
    """
    found = _find(name_or_path)
    if isinstance(found, Entry):
        return load_checkpoint(found.path, found.sha256)
    here = found.resolve()
    listed = [
        entry.sha256
        for entry in entries()
        if entry.path.name == here.name and entry.path.resolve() == here
    ]
    return load_checkpoint(found, listed[0] if listed else None)


def verify(entry: Entry) -> None:
    """Refuse a model whose file is not the one that its index names.

    Parameters
    ----------
    entry : Entry
        A model on this machine, as `entries` gives it.

    Raises
    ------
    CheckpointError
        When its hash differs; the message has both.
    OSError
        When the file cannot be read.
    """
    found = hashlib.sha256(entry.path.read_bytes()).hexdigest()
    if found != entry.sha256:
        advice = (
            "Install napari-dnresnet again."
            if entry.kind == "bundled"
            else f"Remove {entry.name} and get it again."
        )
        raise CheckpointError(
            f"{entry.file} must have sha256 {entry.sha256}, got {found}. {advice}"
        )


def add(path: str | Path, name: str | None = None, *, replace: bool = False) -> Entry:
    """Copy a model file into the models folder, so that it is listed and found by name.

    Parameters
    ----------
    path : str or Path
        A model file. It is read and checked whole first.
    name : str, optional
        What to call it: up to 100 lower-case letters, digits, ``.``, ``_`` and ``-``. By default
        what its card says; with another name the card of the copy says so too.
    replace : bool, default False
        Whether it may take the place of an own model of that name.

    Returns
    -------
    Entry
        The model as it is listed from now on. Adding the same one again changes nothing.

    Raises
    ------
    ValueError
        When the name is not allowed, or belongs to another model.
    CheckpointError, OSError
        When the file cannot be used or the copy cannot be written; the models are then unchanged.
    """
    content = read_file(path)
    checkpoint = Checkpoint.from_bytes(content, source=str(path))
    card = checkpoint.card
    chosen = check_name(card.name if name is None else name)
    if chosen != card.name:
        renamed = dataclasses.replace(card, name=chosen)
        content = dataclasses.replace(checkpoint, card=renamed).to_bytes()
    digest = hashlib.sha256(content).hexdigest()
    entry = Entry(
        name=chosen,
        file=content_name(chosen, digest),
        sha256=digest,
        bytes=len(content),
        version=1,
        license=card.license,
        description=card.description,
        noise=card.noise,
        kind="own",
        home=str(models_folder()),
    )
    if there := present(entry):
        return there
    with placed(entry, replace=replace) as temporary:
        temporary.write_bytes(content)
    return entry


def remove(name: str) -> None:
    """Delete a downloaded or own model.

    Parameters
    ----------
    name : str
        Its name.

    Raises
    ------
    UnknownModelError
        When there is none of that name.
    ValueError
        When it is a bundled one.
    """
    if not any(entry.name == name for entry in _in_folder()):
        if any(entry.name == name for entry in _bundled().entries):
            raise ValueError(f"{name} comes with the package and cannot be removed.")
        raise UnknownModelError(
            f"there is no downloaded or own model {name!r} to remove. "
            f"{_hint(name, [e.name for e in _in_folder()])}"
        )
    with change_index() as (index, write):
        gone = [entry for entry in index.entries if entry.name == name]
        write([record for record in index.records if record["name"] != name])
        for entry in gone:
            entry.path.unlink(missing_ok=True)


def present(entry: Entry) -> Entry | None:
    """The model on this machine that has this one's name and content, its file checked."""
    for other in (*_bundled().entries, *_in_folder()):
        if (other.name, other.sha256) == (entry.name, entry.sha256):
            with contextlib.suppress(OSError, CheckpointError):
                verify(other)
                return other
    return None


@contextlib.contextmanager
def placed(entry: Entry, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary path for a new model's file; on success check, name and list it.

    Parameters
    ----------
    entry : Entry
        The model as it is to be listed.
    replace : bool, default False
        Whether an own model may take the place of another own one of its name.

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
    _check_free(entry, read_index(folder), replace)
    listed = False
    try:
        with atomic_write(entry.path, check=lambda path: _check_file(path, entry)) as temporary:
            yield temporary
        with change_index() as (index, write):
            _check_free(entry, index, replace)
            old = [other for other in index.entries if other.name == entry.name]
            write(
                [record for record in index.records if record["name"] != entry.name]
                + [_record(entry)]
            )
            listed = True
            for other in old:
                if other.file != entry.file:
                    other.path.unlink(missing_ok=True)
    finally:
        if not listed and entry.file not in {other.file for other in _in_folder()}:
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


def _check_free(entry: Entry, index: Index, replace: bool) -> None:
    """Refuse a model whose name belongs to another one; own ones may `replace` each other."""
    for other in (*_bundled().entries, *index.entries):
        if other.name != entry.name or other.sha256 == entry.sha256:
            continue
        if replace and other.kind == entry.kind == "own":
            continue
        if other.kind == "bundled":
            raise ValueError(
                f"the name {entry.name} belongs to a model that comes with the package. Choose "
                "another."
            )
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
        if other.version >= entry.version:
            raise RegistryError(
                f"{entry.name} must be newer than version {other.version}, which is here, got "
                f"version {entry.version} with other content. Ask who runs the registry; to take "
                "it all the same, remove the model first."
            )


def _find(name_or_path: str | Path) -> Entry | Path:
    text = str(name_or_path)
    local = {entry.name: entry for entry in _in_folder()}
    for entry in _bundled().entries:
        if entry.name == text:
            if text in local and local[text].sha256 != entry.sha256:
                warnings.warn(
                    f"two models are named {text}: the one that comes with the package is used, "
                    f"not {local[text].path}. "
                    f"Give that path to use it, or remove it with: dn-resnet models remove {text}",
                    stacklevel=3,
                )
            return entry
    if text in local:
        return local[text]
    path = Path(name_or_path)
    looks_like_path = (
        isinstance(name_or_path, Path) or path.suffix == ".safetensors" or not NAME.fullmatch(text)
    )
    if looks_like_path and "\0" not in text and path.is_file():
        return path
    raise UnknownModelError(
        f"there is no model {text!r}: it is neither a known name nor a file. "
        f"{_hint(text, model_names())}"
    )


def _hint(text: str, names: list[str]) -> str:
    return did_you_mean(text, names) or (
        f"Use one of {', '.join(names)}, or the path of a .safetensors file."
        if names
        else "There are none yet."
    )


@functools.cache
def _bundled() -> Index:
    folder = Path(__file__).parent
    return parse_index((folder / FILE).read_bytes(), str(folder), "bundled")


def _in_folder() -> tuple[Entry, ...]:
    """The models in the models folder; with a damaged index the bundled ones can still be used."""
    try:
        return read_index(models_folder()).entries
    except NoHomeError:
        return ()
    except (OSError, RegistryError) as error:
        warnings.warn(f"downloaded and own models are left out: {error}", stacklevel=4)
        return ()
