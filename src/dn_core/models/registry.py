"""Which models there are on this machine: bundled, downloaded and own ones, and any model file by its path.

Bundled models come with the package. Downloaded and own ones lie in the models folder, listed in an ``index.json`` of the same format.
A name belongs to one model: neither `add` nor a download takes one that another model has. Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from dn_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from dn_core.errors import CheckpointError, RegistryError, UnknownModelError
from dn_core.models.index import FILE, NAME, Entry, Index, check_name, content_name, index_bytes, parse_index
from dn_core.safe_write import clear_leftovers, replaced_file

__all__ = [
    "Entry",
    "add",
    "default_name",
    "entries",
    "load",
    "model_names",
    "models_folder",
    "placed",
    "present",
    "remove",
    "resolve",
    "verify",
    "writable_models_folder",
]

LOCK_FILE = ".lock"
LOCK_SECONDS = 60.0
"""How long to wait for another process that changes the models folder; each change takes milliseconds."""


class _NoHomeError(FileNotFoundError):
    """Who runs this has no home folder and so no own models: an unknown user number in a container, for one."""


def models_folder() -> Path:
    """Where downloaded and own models lie: ``DN_MODELS``, or a folder in the user's data. It need not exist.

    Raises
    ------
    OSError
        When there is no such folder, as for a user without a home folder.
    """
    import platformdirs

    named = os.environ.get("DN_MODELS")
    try:
        if named:
            return Path(named).expanduser().absolute()
        folder = platformdirs.user_data_path("napari-dnresnet", appauthor=False) / "models"
        if folder.is_absolute():  # older versions of platformdirs give "~/..." where there is no home folder
            return folder
    except (OSError, RuntimeError) as error:  # what is relative to a home or working folder that is not there
        if named:
            raise FileNotFoundError(2, f"DN_MODELS cannot be followed ({error}); name a folder by its whole path", named) from error
    raise _NoHomeError(2, "there is no home folder to keep models in; set HOME to one, or name a folder in DN_MODELS", "~")


def entries() -> tuple[Entry, ...]:
    """All models on this machine; the default one first, then by name."""
    bundled, default = _bundled().entries, default_name()
    taken = {entry.name for entry in bundled}
    own = [entry for entry in _in_folder() if entry.name not in taken]
    return tuple(sorted((*bundled, *own), key=lambda entry: (entry.name != default, entry.name)))


def default_name() -> str:
    """The model that `denoise` uses when none is named."""
    return _bundled().default


def model_names() -> list[str]:
    """Names that `denoise` and `load_model` take; the default one first."""
    return [entry.name for entry in entries()]


def resolve(name_or_path: str | Path) -> Path:
    """The file of a model given by name or path; a name is never guessed.

    Raises
    ------
    UnknownModelError
        When it is neither a known name nor a file, with the names that come near.
    """
    found = _find(name_or_path)
    return found.path if isinstance(found, Entry) else found


def load(name_or_path: str | Path) -> Checkpoint:
    """The model given by name or path, read; one that an index lists is refused when its file has another hash than it had there.

    Raises
    ------
    UnknownModelError, CheckpointError
        As `resolve` and `load_checkpoint`.
    """
    found = _find(name_or_path)
    if isinstance(found, Entry):
        return load_checkpoint(found.path, found.sha256)
    here = found.resolve()
    listed = [entry.sha256 for entry in entries() if entry.path.name == here.name and entry.path.resolve() == here]
    return load_checkpoint(found, listed[0] if listed else None)


def verify(entry: Entry) -> None:
    """Refuse a model whose file is not the one that its index names.

    Raises
    ------
    CheckpointError
        When its hash differs, with both hashes.
    """
    found = hashlib.sha256(entry.path.read_bytes()).hexdigest()
    if found != entry.sha256:
        advice = "Install napari-dnresnet again." if entry.kind == "bundled" else f"Remove {entry.name} and get it again."
        raise CheckpointError(f"{entry.file} has sha256 {found}, {entry.sha256} is expected. {advice}")


def add(path: str | Path, name: str | None = None, *, replace: bool = False) -> Entry:
    """Copy a model file into the models folder, so that it is listed and found by name.

    Parameters
    ----------
    path
        A model file. It is read and checked whole first.
    name
        What to call it; by default what its card says. With another name the card of the copy says so too.
    replace
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
        When the file cannot be used or the copy cannot be written; the models are then as before.
    """
    checkpoint = load_checkpoint(path)
    card = checkpoint.card
    chosen = check_name(card.name if name is None else name)
    content = Path(path).read_bytes() if chosen == card.name else _renamed(checkpoint, chosen)
    digest = hashlib.sha256(content).hexdigest()
    entry = Entry(
        name=chosen,
        file=content_name(chosen, digest),
        sha256=digest,
        bytes=len(content),
        licence=card.licence,
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

    Raises
    ------
    UnknownModelError
        When there is none of that name.
    ValueError
        When it is a bundled one.
    """
    if not any(entry.name == name for entry in _in_folder()):
        if any(entry.name == name for entry in _bundled().entries):
            raise ValueError(f"{name} comes with the package; a downloaded or own model is expected. It cannot be removed.")
        raise UnknownModelError(f"there is no downloaded or own model {name!r} to remove. {_hint(name, [e.name for e in _in_folder()])}")
    with _changing() as (index, write):
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
    """Give a temporary path for the file of a new model in the models folder; on success check it, name it and list it.

    With `replace` an own model takes the place of another own one of its name.

    Raises
    ------
    ValueError
        When the name belongs to another model.
    RegistryError
        When a version that is not older is there already.
    CheckpointError
        When the file is not a model, or not the one that the entry names.
    OSError
        When it cannot be written. On any error the models are as before.
    """
    folder = writable_models_folder()
    if not entry.path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{entry.name} would be stored at {entry.path}; a place in {folder} is expected. Rename it.")
    _check_free(entry, _read(folder), replace)
    listed = False
    try:
        with replaced_file(entry.path, check=lambda path: _check_file(path, entry)) as temporary:
            yield temporary
        with _changing() as (index, write):
            _check_free(entry, index, replace)
            old = [other for other in index.entries if other.name == entry.name]
            write([record for record in index.records if record["name"] != entry.name] + [_record(entry)])
            listed = True
            for other in old:
                if other.file != entry.file:
                    other.path.unlink(missing_ok=True)
    finally:
        if not listed and entry.file not in {other.file for other in _in_folder()}:
            entry.path.unlink(missing_ok=True)


def _renamed(checkpoint: Checkpoint, name: str) -> bytes:
    """The content of a model file with another name on its card."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.safetensors"
        save_checkpoint(copy, dataclasses.replace(checkpoint, card=dataclasses.replace(checkpoint.card, name=name)))
        return copy.read_bytes()


def _check_file(path: Path, entry: Entry) -> None:
    card = load_checkpoint(path, entry.sha256).card
    if card.name != entry.name:
        raise CheckpointError(f"the card in the file of {entry.name} names another model, {card.name!r:.120}. Publish or add it again.")


def _record(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(entry).items() if key != "home"}


def _check_free(entry: Entry, index: Index, replace: bool) -> None:
    """Refuse a model whose name belongs to another one; `replace` lets an own one take the place of an own one."""
    for other in (*_bundled().entries, *index.entries):
        if other.name != entry.name or other.sha256 == entry.sha256:
            continue
        if replace and other.kind == entry.kind == "own":
            continue
        if other.kind == "bundled":
            raise ValueError(
                f"the name {entry.name} belongs to a model that comes with the package; a new name is expected. Choose another."
            )
        if other.kind == "own" or entry.kind == "own":
            whose = "your own" if other.kind == "own" else "downloaded"
            raise ValueError(f"there is another model named {entry.name} ({whose}). Choose another name, or remove that one first.")
        if other.source != entry.source:
            raise RegistryError(f"{entry.name} is here from {other.source}, not from {entry.source}. Remove it first to take this one.")
        if other.version >= entry.version:
            raise RegistryError(
                f"{entry.name} is here in version {other.version}, and version {entry.version} with other content is offered; a newer one "
                "is expected. Ask who runs the registry; to take it all the same, remove the model first."
            )


def writable_models_folder() -> Path:
    """The models folder, made when it is not there, without what killed processes left in it.

    Raises
    ------
    OSError
        When it cannot be made or written to.
    """
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "make it, or name another one in DN_MODELS"
        raise type(error)(error.errno, f"the models folder cannot be made ({error.strerror}); {advice}", str(folder)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            13, "the models folder may not be written to; change its permissions, or name another in DN_MODELS", str(folder)
        )
    clear_leftovers(folder)
    return folder


@contextlib.contextmanager
def _changing() -> Iterator[tuple[Index, Callable[[list[dict[str, Any]]], None]]]:
    """The models folder's index, with no other process changing it, and a function that replaces it."""
    from dn_core.locks import locked

    folder = writable_models_folder()
    with locked(folder / LOCK_FILE, LOCK_SECONDS, "another process has kept the models folder locked; wait for it or stop it"):
        index = _read(folder)

        def write(records: list[dict[str, Any]]) -> None:
            with replaced_file(folder / FILE) as temporary:
                temporary.write_bytes(index_bytes(index.sequence + 1, records))

        yield index, write


def _find(name_or_path: str | Path) -> Entry | Path:
    text = str(name_or_path)
    local = {entry.name: entry for entry in _in_folder()}
    for entry in _bundled().entries:
        if entry.name == text:
            if text in local and local[text].sha256 != entry.sha256:
                warnings.warn(
                    f"two models are named {text}: the one that comes with the package is used, not {local[text].path}. "
                    f"Give that path to use it, or remove it with: dn-resnet models remove {text}",
                    stacklevel=3,
                )
            return entry
    if text in local:
        return local[text]
    path = Path(name_or_path)
    looks_like_path = isinstance(name_or_path, Path) or path.suffix == ".safetensors" or not NAME.fullmatch(text)
    if looks_like_path and "\0" not in text and path.is_file():
        return path
    raise UnknownModelError(f"there is no model {text!r}: it is neither a known name nor a file. {_hint(text, model_names())}")


def _hint(text: str, names: list[str]) -> str:
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Use one of {', '.join(names)}, or the path of a .safetensors file." if names else "There are none yet."


@functools.cache
def _bundled() -> Index:
    folder = Path(str(resources.files("dn_core.models")))
    return parse_index((folder / FILE).read_bytes(), str(folder), "bundled")


def _in_folder() -> tuple[Entry, ...]:
    """The models in the models folder. A damaged list does not keep the bundled ones from being used."""
    try:
        return _read(models_folder()).entries
    except _NoHomeError:
        return ()
    except (OSError, RegistryError) as error:
        warnings.warn(f"downloaded and own models are left out: {error}", stacklevel=4)
        return ()


def _read(folder: Path) -> Index:
    try:
        content = (folder / FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Index(0, (), ())
    return parse_index(content, str(folder))
