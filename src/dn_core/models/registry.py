"""The registry of models on this machine: bundled, downloaded and own ones, found by name or file.

Bundled models come with the package. Downloaded and own ones lie in the models folder, listed in an
``index.json`` of the same format. A name belongs to one model: neither `add` nor a download takes
one that another model has. ``dn-fast@1`` names one version of a model, which is the same file for
ever, ``dn-fast`` the newest that is here; a newer one leaves those before it where they are.
Nothing here touches the network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path

from dn_core.checkpoints import Checkpoint, load_checkpoint, read_card
from dn_core.errors import CheckpointError, UnknownModelError
from dn_core.messages import did_you_mean
from dn_core.models.folder import change_index, models_folder
from dn_core.models.index import (
    NAME,
    Entry,
    check_name,
    content_name,
    split_reference,
    versions_in_words,
)
from dn_core.models.lists import bundled, in_folder
from dn_core.models.placing import placed, present
from dn_core.tensor_files import read_file

__all__ = [
    "add",
    "default_name",
    "entries",
    "find",
    "load",
    "located",
    "model_names",
    "reference",
    "remove",
    "resolve",
    "verify",
]


def entries(*, older: bool = False) -> tuple[Entry, ...]:
    """All models on this machine.

    Parameters
    ----------
    older : bool, default False
        Whether older versions are listed too; by default the newest of each model.

    Returns
    -------
    tuple of Entry
        The default one first, then by name, newer versions before older ones.
    """
    taken, default = {entry.name for entry in bundled().entries}, default_name()
    found = [
        *bundled().versions,
        *(entry for entry in in_folder() if entry.name not in taken),
    ]
    found.sort(key=lambda entry: (entry.name != default, entry.name, -entry.version))
    if not older:
        found = list({entry.name: entry for entry in reversed(found)}.values())[::-1]
    return tuple(found)


def default_name() -> str:
    """The model that `denoise` uses when none is named.

    Returns
    -------
    str
        Its name.
    """
    return bundled().default


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
        A name that `model_names` lists, alone or with a version (``"dn-fast@1"``), or the path of
        a model file.

    Returns
    -------
    Path
        The ``.safetensors`` file.

    Raises
    ------
    UnknownModelError
        When it is neither a known name nor a file, with similar names, or the version is not here,
        with those that are.
    """
    found = _find(name_or_path)
    return found.path if isinstance(found, Entry) else found


def load(name_or_path: str | Path) -> Checkpoint:
    """Read a model; a file that an index lists must have the hash that it had there.

    Parameters
    ----------
    name_or_path : str or Path
        A name that `model_names` lists, alone or with a version (``"dn-fast@1"``), or the path of
        a model file.

    Returns
    -------
    Checkpoint
        Its network settings, weights and card.

    Raises
    ------
    UnknownModelError
        When it is neither a known name nor a file, with similar names, or the version is not here,
        with those that are.
    CheckpointError
        When the file is not a model, is damaged, or has another hash than it had.
    """
    found = _find(name_or_path)
    if isinstance(found, Entry):
        return load_checkpoint(found.path, found.sha256)
    listed = _listed(found)
    return load_checkpoint(found, listed.sha256 if listed else None)


def find(name: str) -> Entry:
    """The list's entry of a model on this machine.

    Parameters
    ----------
    name : str
        A name that `model_names` lists, alone for its newest version or with one
        (``"dn-fast@1"``), or the path of a file in the list.

    Returns
    -------
    Entry
        What the list says of it.

    Raises
    ------
    UnknownModelError
        As `resolve`, and when it is a file that is not in the list.
    """
    found = _find(name)
    entry = found if isinstance(found, Entry) else _listed(found)
    if entry is None:
        raise UnknownModelError(
            f"{name} is a file that is not in the list of models. Add it: dn-resnet models add "
            f"{name}"
        )
    return entry


def reference(name_or_path: str | Path) -> str:
    """The name by which results say what model made them: with its version.

    Parameters
    ----------
    name_or_path : str or Path
        As `load` takes it.

    Returns
    -------
    str
        Such as ``"dn-fast@1"``; of a file that is not one of the models here, its card's name.

    Raises
    ------
    UnknownModelError
        As `resolve`.
    CheckpointError
        When the file is not a model.

    Examples
    --------
    >>> reference("dn-fast@1")
    'dn-fast@1'
    """
    path, name = located(name_or_path)
    return name or read_card(path).name


def located(name_or_path: str | Path) -> tuple[Path, str]:
    """The file of a model, and the name of its version.

    Parameters
    ----------
    name_or_path : str or Path
        As `resolve` takes it.

    Returns
    -------
    path : Path
        The ``.safetensors`` file.
    reference : str
        Such as ``"dn-fast@1"``; empty for a file that is not one of the models here.

    Raises
    ------
    UnknownModelError
        As `resolve`.
    """
    found = _find(name_or_path)
    if isinstance(found, Entry):
        return found.path, found.reference
    listed = _listed(found)
    return found, listed.reference if listed else ""


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
        Whether it may take the name of another own model, as a newer version of it. The older ones
        stay to be had by their versions.

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
    newest = max((other.version for other in in_folder() if other.name == chosen), default=0)
    entry = Entry(
        name=chosen,
        file=content_name(chosen, digest),
        sha256=digest,
        bytes=len(content),
        version=newest + 1 if replace else 1,
        license=card.license,
        terms=card.terms,
        description=card.description,
        noise=card.noise,
        kind="own",
        home=str(models_folder()),
    )
    there = present(entry)
    if there is not None and (not replace or there.kind != "own" or there.version == newest):
        return there
    with placed(entry, replace=replace) as temporary:
        temporary.write_bytes(content)
    return entry


def remove(name: str) -> None:
    """Delete a downloaded or own model.

    Parameters
    ----------
    name : str
        Its name, for all versions that are here, or its name with one version (``"lab@1"``).

    Raises
    ------
    UnknownModelError
        When there is none of that name, or not this version.
    ValueError
        When it is a bundled one.
    """
    wanted, at, number = name.partition("@")

    def named(entry: Entry) -> bool:
        return entry.name == wanted and (not at or number == str(entry.version))

    here = in_folder()
    if not any(named(entry) for entry in here):
        if any(entry.name == wanted for entry in bundled().entries):
            raise ValueError(f"{name} comes with the package and cannot be removed.")
        others = [entry for entry in here if entry.name == wanted]
        hint = (
            f"It has {versions_in_words(others)}."
            if others
            else _hint(name, sorted({entry.name for entry in here}))
        )
        raise UnknownModelError(f"there is no downloaded or own model {name!r} to remove. {hint}")
    with change_index() as (index, write):
        gone = [entry for entry in index.versions if named(entry)]
        references = {entry.reference for entry in gone}
        kept = [
            record
            for record in index.records
            if f"{record['name']}@{record['version']}" not in references
        ]
        write(kept)
        used = {record["file"] for record in kept}
        for entry in gone:
            if entry.file not in used:
                entry.path.unlink(missing_ok=True)


def _listed(path: Path) -> Entry | None:
    """The model here whose file this is, the newest version where several have it."""
    here = path.resolve()
    for entry in entries(older=True):
        if entry.path.name == here.name and entry.path.resolve() == here:
            return entry
    return None


def _find(name_or_path: str | Path) -> Entry | Path:
    text = str(name_or_path)
    name, at, number = text.partition("@")
    versions = _versions_of(name)
    for entry in versions:
        if number == (str(entry.version) if at else ""):
            return entry
    path = Path(name_or_path)
    suffixed = path.suffix == ".safetensors"
    # A name with a version is no file of this folder either.
    named = NAME.fullmatch(text.replace("@", ""))
    looks_like_path = isinstance(name_or_path, Path) or suffixed or not named
    if looks_like_path and "\0" not in text and path.is_file():
        return path
    if versions and not suffixed:
        split_reference(text)  # what is no version is refused in words of its own
        raise UnknownModelError(
            f"there is no model {text!r}: {name} has {versions_in_words(versions)} here. Name "
            "one of them, or fetch it from a registry that has it."
        )
    raise UnknownModelError(
        f"there is no model {text!r}: it is neither a known name nor a file. "
        f"{_hint(name, model_names())}"
    )


def _versions_of(name: str) -> list[Entry]:
    """The versions of a model that are here, the newest first; bundled ones hide others."""
    found = [entry for entry in bundled().versions if entry.name == name]
    local = [entry for entry in in_folder() if entry.name == name]
    known = {entry.sha256 for entry in found}
    if found and (hidden := [entry for entry in local if entry.sha256 not in known]):
        warnings.warn(
            f"two models are named {name}: the one that comes with the package is used, not "
            f"{hidden[0].path}. "
            f"Give that path to use it, or remove it with: dn-resnet models remove {name}",
            stacklevel=4,
        )
    return sorted(found or local, key=lambda entry: -entry.version)


def _hint(text: str, names: list[str]) -> str:
    return did_you_mean(text, names) or (
        f"Use one of {', '.join(names)}, or the path of a .safetensors file."
        if names
        else "There are none yet."
    )
