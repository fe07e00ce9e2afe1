"""Model indexes: the ``index.json`` of a registry, of the models folder and of the wheel.

::

    {"format": 2, "sequence": 12,
     "models": [{"name": "lab-fast", "version": 3, "file": "lab-fast-0123456789abcdef.safetensors",
     "sha256": "...", "bytes": 1200840,
                 "license": "BSD-3-Clause", "terms": "...", "description": "...", "noise": "...",
                 "scores": {"gaussian 25": 29.8}}],
     "older": [{"name": "lab-fast", "version": 2, ...}]}

`sequence` grows with every change. ``models`` has the newest version of each model, ``older`` those
before it that are still there. Keys that are not known are kept and not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from dn_core.checkpoints import Card, read_card
from dn_core.errors import RegistryError
from dn_core.tensor_files import MAX_FILE_BYTES
from dn_core.validation import from_table, parse_json, read_value

__all__ = [
    "Entry",
    "Index",
    "check_name",
    "content_name",
    "index_bytes",
    "parse_index",
    "split_reference",
    "versions_in_words",
]

FORMAT = 2
FILE = "index.json"
MAX_INDEX_BYTES = 5 * 10**6
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
NUMBER = re.compile(r"[1-9][0-9]{0,14}")
ADVICE = "Restore it."

Kind = Literal["bundled", "downloaded", "own", "remote"]

# As they stand in an index. A file's path has up to five parts and no "..".
Counter = Annotated[int, Meta(ge=1, le=2**53 - 1)]
FileName = Annotated[
    str,
    Meta(
        pattern=r"\A(?!.*\.\.)([A-Za-z0-9][A-Za-z0-9._@-]{0,199}(/(?!\Z)|\Z)){1,5}\Z",
        description="with a relative path of letters, digits, '.', '_', '-' and '@'",
    ),
]
Records = Annotated[
    tuple[dict[str, Any], ...], Meta(max_length=MAX_INDEX_BYTES, description="of tables")
]
SequenceNumber = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="of 64 hexadecimal digits")]
Size = Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model as an index lists it: enough to show it, to find its file and to check it.

    Attributes
    ----------
    name : str
        Up to 100 lower-case letters, digits, ``.``, ``_`` and ``-``.
    file : str
        The path of the file, relative to `home`.
    sha256 : str
        The file's hash, 64 hexadecimal digits.
    bytes : int
        The file's size.
    version : int
        Grows with each file that a registry publishes under the name.
    license : str
        Of the weights, as an SPDX identifier.
    terms : str
        Under which terms the weights may be used, in words.
    description : str
        A sentence for lists.
    noise : str
        What noise the model was made for, in words.
    scores : dict
        PSNR in dB by level of noise, as the publisher measured it.
    kind : {"bundled", "downloaded", "own", "remote"}
        ``"bundled"`` comes with the package, ``"downloaded"`` and ``"own"`` lie in the models
        folder, ``"remote"`` is in a registry.
    home : str
        The folder or address that `file` is relative to.
    source : str
        The registry that a downloaded model came from.
    """

    name: str
    file: FileName
    sha256: Sha256
    bytes: Size
    version: Counter
    license: str = ""
    terms: str = ""
    description: str = ""
    noise: str = ""
    scores: dict[str, Any] = field(default_factory=dict, hash=False)
    kind: Kind = "bundled"
    home: str = ""
    source: str = ""

    @property
    def reference(self) -> str:
        """The name of this version, such as ``"dn-fast@1"``, which is this file for ever."""
        return f"{self.name}@{self.version}"

    @property
    def location(self) -> str:
        """The path or address of the file."""
        return (
            f"{self.home.rstrip('/')}/{self.file}"
            if self.kind == "remote"
            else str(Path(self.home) / self.file)
        )

    @property
    def path(self) -> Path:
        """Where the file is; only of models that are on this machine."""
        if self.kind == "remote":
            raise ValueError(
                f"{self.name} is in a registry ({self.location}); a model on this machine is "
                "expected. Fetch it first."
            )
        return Path(self.home) / self.file

    def card(self) -> Card:
        """What the model is, by its file's header; of a remote model what its registry says.

        Returns
        -------
        Card
            With the fields that are known.

        Raises
        ------
        CheckpointError
            When the file is damaged.
        """
        if self.kind == "remote":
            return Card(
                self.name,
                self.description,
                self.noise,
                self.license,
                self.terms,
                scores=self.scores,
            )
        return read_card(self.path)


@dataclass(frozen=True, slots=True)
class Index:
    """What an ``index.json`` says.

    Attributes
    ----------
    sequence : int
        Grows with every change.
    entries : tuple of Entry
        The models, each in its newest version.
    older : tuple of Entry
        The versions before.
    records : tuple of dict
        All versions as they stand there, with the keys that are not known here.
    default : str
        The model to use when none is named; only in the package's own index.
    """

    sequence: int
    entries: tuple[Entry, ...]
    records: tuple[dict[str, Any], ...]
    older: tuple[Entry, ...] = ()
    default: str = ""

    @property
    def versions(self) -> tuple[Entry, ...]:
        """All versions of all models."""
        return (*self.entries, *self.older)


def check_name(name: object) -> str:
    """The name, when a model may be called so.

    Raises
    ------
    ValueError
        When it is anything but lower-case letters, digits, ``.``, ``_`` and ``-``, begins with a
        sign, has ``..`` in it or is over 100 long.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"a model cannot be named {ascii(name)[:80]}: its name must be up to 100 small "
            "letters, digits, '-', '_' and single '.'. Rename it."
        )
    return name


def split_reference(text: str) -> tuple[str, int | None]:
    """The name and the version of a model that is named as ``"dn-fast"`` or ``"dn-fast@1"``.

    Parameters
    ----------
    text : str
        A name, or a name with a version.

    Returns
    -------
    name : str
        The name.
    version : int or None
        The version; None for the newest one.

    Raises
    ------
    ValueError
        When a model cannot be named so.

    Examples
    --------
    >>> split_reference("dn-fast@1")
    ('dn-fast', 1)
    """
    name, at, number = str(text).partition("@")
    check_name(name)
    if not at:
        return name, None
    if not NUMBER.fullmatch(number):
        raise ValueError(
            f"the version after {name}@ must be a whole number of at least 1, got "
            f"{ascii(number)[:40]}. Change it, or leave it out for the newest version."
        )
    return name, int(number)


def versions_in_words(found: Iterable[Entry]) -> str:
    """The versions of a model in words, such as ``"versions 1 and 3"``."""
    numbers = [str(number) for number in sorted({entry.version for entry in found})]
    if len(numbers) == 1:
        return f"version {numbers[0]}"
    return f"versions {', '.join(numbers[:-1])} and {numbers[-1]}"


def content_name(name: str, sha256: str) -> str:
    """The name of a model's file, which no other content has."""
    return f"{check_name(name)}-{sha256[:16]}.safetensors"


def index_bytes(sequence: int, records: Sequence[dict[str, Any]], default: str = "") -> bytes:
    """An index as it is stored: models in order of their names, older versions apart.

    Parameters
    ----------
    sequence : int
        Grows with every change.
    records : sequence of dict
        All versions of all models.
    default : str, default ""
        The model to use when none is named, in the package's own index.
    """
    newest: list[dict[str, Any]] = []
    older: list[dict[str, Any]] = []
    for name in sorted({str(record["name"]) for record in records}):
        versions = [record for record in records if str(record["name"]) == name]
        last, *before = sorted(versions, key=lambda record: record["version"], reverse=True)
        newest.append(last)
        older.extend(before)
    content = {
        "format": FORMAT,
        "sequence": sequence,
        **({"default": default} if default else {}),
        "models": newest,
        **({"older": older} if older else {}),
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def parse_index(content: bytes, home: str, kind: Kind | None = None, shown: str = "") -> Index:
    """Read an index, believing nothing.

    Parameters
    ----------
    content : bytes
        The file.
    home : str
        The folder or address that it is in.
    kind : Kind, optional
        Of all its models; without it each record says its own, as in the models folder.
    shown : str, default ""
        What messages call the index.

    Raises
    ------
    RegistryError
        When it is no index, is cut off, is of a newer format, or names anything that it may not.
    """
    where = shown or f"{home}/{FILE}"
    table = _parse(content, where)
    found = table.get("format")
    if found != FORMAT or type(found) is not int:
        older = type(found) is int and 0 < found < FORMAT
        advice = (
            "An older version wrote it: move it away and add its models again, or ask who runs "
            "the registry to publish them again"
            if older
            else "Upgrade napari-dnresnet"
        )
        raise RegistryError(f"{where} must have format {FORMAT}, got {found!r:.40}. {advice}.")
    try:
        sequence = read_value(table.get("sequence"), SequenceNumber, "sequence", ADVICE)
        records = read_value(table.get("models"), Records, "models", ADVICE)
        older = read_value(table.get("older", ()), Records, "older", ADVICE)
    except ValueError as error:
        raise RegistryError(f"{where} is not an index of models: {error}") from error
    entries = tuple(_entry(record, where, home, kind) for record in records)
    before = tuple(_entry(record, where, home, kind) for record in older)
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RegistryError(f"{where} must list each name once, got {twice[0]} twice. {ADVICE}")
    newest = {entry.name: entry.version for entry in entries}
    seen = set()
    for entry in before:
        if entry.version >= newest.get(entry.name, 0) or entry.reference in seen:
            raise RegistryError(
                f"{where} must list versions before the newest one as older, each once, got "
                f"{entry.reference}. {ADVICE}"
            )
        seen.add(entry.reference)
    default = str(table.get("default", ""))
    return Index(sequence, entries, (*records, *older), before, default)


def _parse(content: bytes, where: str) -> dict[str, Any]:
    if len(content) > MAX_INDEX_BYTES:
        raise RegistryError(
            f"{where} must have at most {MAX_INDEX_BYTES} bytes, got {len(content)}. Is it the "
            "right address?"
        )
    if content.lstrip()[:1] == b"<":
        raise RegistryError(
            f"{where} is a web page, not an index of models. Is it the right address, and does it "
            "ask for a login?"
        )
    try:
        table = parse_json(content)
    except ValueError as error:
        raise RegistryError(
            f"{where} must be JSON with each key once, got damaged or cut-off content ({error}). "
            f"{ADVICE}"
        ) from error
    if not isinstance(table, dict):
        raise RegistryError(
            f"{where} must be a JSON object, got {type(table).__name__}. Is it the right address?"
        )
    return table


def _entry(record: dict[str, Any], where: str, home: str, kind: Kind | None) -> Entry:
    """A model of an index; keys that are not known are left out."""
    known = Entry.__dataclass_fields__.keys() - {"home"}
    table = {key: value for key, value in record.items() if key in known}
    table |= {"home": home, "kind": kind or record.get("kind")}
    try:
        name = check_name(record.get("name"))
    except ValueError as error:
        raise RegistryError(f"{where}: {error}") from error
    try:
        return from_table(Entry, table, "the model", ADVICE)
    except ValueError as error:
        raise RegistryError(f"{where} lists {name} wrongly: {error}") from error
