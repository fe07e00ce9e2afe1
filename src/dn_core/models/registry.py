"""Which models there are: the bundled ones, listed in ``index.json`` beside them, and any model file by its path."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dn_core.errors import CheckpointError, UnknownModelError

__all__ = ["Entry", "default_name", "entries", "model_names", "resolve", "verify"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index: a name, its file, and the hash and size that the file must have."""

    name: str
    file: str
    sha256: str
    bytes: int

    @property
    def path(self) -> Path:
        """Where the file is."""
        return _folder() / self.file


def entries() -> tuple[Entry, ...]:
    """The bundled models; the default one first."""
    return _index()[1]


def default_name() -> str:
    """The model that `denoise` uses when none is named."""
    return _index()[0]


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
    text = str(name_or_path)
    for entry in entries():
        if entry.name == text:
            return entry.path
    path = Path(name_or_path)
    looks_like_path = isinstance(name_or_path, Path) or path.suffix == ".safetensors" or not NAME.fullmatch(text)
    if looks_like_path and "\0" not in text and path.is_file():
        return path
    near = difflib.get_close_matches(text, model_names(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {', '.join(model_names())}, or the path of a .safetensors file."
    raise UnknownModelError(f"there is no model {text!r}: it is neither a known name nor a file. {hint}")


def verify(entry: Entry) -> None:
    """Refuse a bundled file that is not the one the index names.

    Raises
    ------
    CheckpointError
        When its hash differs, with both hashes.
    """
    found = hashlib.sha256(entry.path.read_bytes()).hexdigest()
    if found != entry.sha256:
        raise CheckpointError(f"{entry.file} has sha256 {found}, {entry.sha256} is expected. Install napari-dnresnet again.")


@functools.cache
def _index() -> tuple[str, tuple[Entry, ...]]:
    content = json.loads((_folder() / "index.json").read_text("utf-8"))
    listed = tuple(Entry(**entry) for entry in content["models"])
    default = content["default"]
    return default, tuple(sorted(listed, key=lambda entry: (entry.name != default, entry.name)))


def _folder() -> Path:
    return Path(str(resources.files("dn_core.models")))
