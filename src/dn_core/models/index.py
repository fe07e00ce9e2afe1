"""``index.json``: the list of models in a registry, in the models folder and in the wheel; its format, and what is refused in it.

::

    {"format": 1, "sequence": 12,
     "models": [{"name": "lab-fast", "version": 3, "file": "lab-fast-0123456789abcdef.safetensors", "sha256": "...", "bytes": 1200840,
                 "licence": "BSD-3-Clause", "description": "...", "noise": "...", "scores": {"gaussian 25": 29.8}}]}

`sequence` grows with every change. Keys that are not known are kept and not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dn_core.checkpoints import MAX_FILE_BYTES, Card, read_card
from dn_core.errors import RegistryError

__all__ = ["Entry", "Index", "check_name", "content_name", "index_bytes", "parse_index"]

FORMAT = 1
FILE = "index.json"
MAX_INDEX_BYTES = 5 * 10**6
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
FILE_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,199}/){0,4}[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
TEXTS = ("licence", "description", "noise", "source")
SHA256 = re.compile(r"[0-9a-f]{64}")

Kind = Literal["bundled", "downloaded", "own", "remote"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model as an index lists it: enough to show it, to find its file, and to tell whether the file is the right one.

    Attributes
    ----------
    kind
        ``"bundled"`` comes with the package, ``"downloaded"`` and ``"own"`` lie in the models folder, ``"remote"`` is in a registry.
    home
        The folder or address that `file` is relative to.
    version
        Grows with each file that a registry publishes under the name.
    scores
        PSNR in dB by level of noise, as the publisher measured it.
    source
        The registry that a downloaded model came from.
    """

    name: str
    file: str
    sha256: str
    bytes: int
    version: int = 1
    licence: str = ""
    description: str = ""
    noise: str = ""
    scores: dict[str, Any] = field(default_factory=dict, hash=False)
    kind: Kind = "bundled"
    home: str = ""
    source: str = ""

    @property
    def location(self) -> str:
        """The path or address of the file."""
        return f"{self.home.rstrip('/')}/{self.file}" if self.kind == "remote" else str(Path(self.home) / self.file)

    @property
    def path(self) -> Path:
        """Where the file is; only of models that are on this machine."""
        if self.kind == "remote":
            raise ValueError(f"{self.name} is in a registry ({self.location}); a model on this machine is expected. Fetch it first.")
        return Path(self.home) / self.file

    def card(self) -> Card:
        """What the model is: from the file's header, without its weights; of a remote model what the registry says about it."""
        if self.kind == "remote":
            return Card(self.name, self.description, self.noise, self.licence, scores=self.scores)
        return read_card(self.path)


@dataclass(frozen=True, slots=True)
class Index:
    """What an ``index.json`` says; `records` are its models as they stand there, with the keys that are not known here."""

    sequence: int
    entries: tuple[Entry, ...]
    records: tuple[dict[str, Any], ...]
    default: str = ""


def check_name(name: object) -> str:
    """The name, when a model may be called so.

    Raises
    ------
    ValueError
        When it is anything but small letters, digits, ``.``, ``_`` and ``-``, begins with a sign, has ``..`` in it or is over 100 long.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"a model cannot be named {ascii(name)[:80]}; up to 100 small letters, digits, '-', '_' and single '.' are expected. Rename it."
        )
    return name


def content_name(name: str, sha256: str) -> str:
    """The name of a model's file, which no other content has."""
    return f"{check_name(name)}-{sha256[:16]}.safetensors"


def index_bytes(sequence: int, records: Sequence[dict[str, Any]]) -> bytes:
    """An index as it is stored; models in order of their names."""
    ordered = sorted(records, key=lambda record: str(record["name"]))
    return (json.dumps({"format": FORMAT, "sequence": sequence, "models": ordered}, indent=1, ensure_ascii=False) + "\n").encode()


def parse_index(content: bytes, home: str, kind: Kind | None = None, shown: str = "") -> Index:
    """Read an index, believing nothing.

    Parameters
    ----------
    home, kind
        Of the entries; without a kind each record says its own, as in the models folder.
    shown
        What messages call the index.

    Raises
    ------
    RegistryError
        When it is no index, is cut off, is of a newer format, or names anything that it may not.
    """
    where = shown or f"{home}/{FILE}"
    table = _parse(content, where)
    if table.get("format") != FORMAT:
        raise RegistryError(f"{where} has format {table.get('format')!r:.40}; {FORMAT} is expected. Upgrade napari-dnresnet.")
    sequence, records = table.get("sequence"), table.get("models")
    if type(sequence) is not int or not 0 <= sequence < 2**53:
        raise RegistryError(f"{where} has the sequence number {sequence!r:.40}; a whole number is expected. Restore it.")
    if not isinstance(records, list):
        raise RegistryError(f"{where} has no list of models. Restore it.")
    entries = tuple(_entry(record, where, home, kind) for record in records)
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RegistryError(f"{where} lists {twice[0]} twice; each name is expected once. Restore it.")
    return Index(sequence, entries, tuple(records), str(table.get("default", "")))


def _parse(content: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(table := dict(pairs)) != len(pairs):
            raise ValueError("a key stands there twice")
        return table

    if len(content) > MAX_INDEX_BYTES:
        raise RegistryError(f"{where} has {len(content)} bytes; at most {MAX_INDEX_BYTES} are expected. Is it the right address?")
    if content.lstrip()[:1] == b"<":
        raise RegistryError(f"{where} is a web page, not an index of models. Is it the right address, and does it ask for a login?")
    try:
        table = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{where} is damaged or cut off ({type(error).__name__}: {error}); JSON is expected. Restore it.") from error
    if not isinstance(table, dict):
        raise RegistryError(f"{where} is not an index of models: a JSON object is expected. Is it the right address?")
    return table


def _entry(record: Any, where: str, home: str, kind: Kind | None) -> Entry:
    if not isinstance(record, dict):
        raise RegistryError(f"{where} lists {record!r:.60} as a model; a table is expected. Restore it.")
    try:
        name = check_name(record.get("name"))
    except ValueError as error:
        raise RegistryError(f"{where}: {error}") from error
    file, digest, size, version = (record.get(key) for key in ("file", "sha256", "bytes", "version"))
    wrong = {
        "file": not isinstance(file, str) or not FILE_NAME.fullmatch(file) or ".." in file,
        "sha256": not isinstance(digest, str) or not SHA256.fullmatch(digest),
        "bytes": type(size) is not int or not 0 < size <= MAX_FILE_BYTES,
        "version": type(version) is not int or not 0 < version < 2**53,
        "kind": kind is None and record.get("kind") not in get_args(Kind),
        "scores": not isinstance(record.get("scores", {}), dict),
        **{key: not isinstance(record.get(key, ""), str) for key in TEXTS},
    }
    if bad := [key for key, is_wrong in wrong.items() if is_wrong]:
        raise RegistryError(f"{where} lists {name} with the {bad[0]} {ascii(record.get(bad[0]))[:80]}, which cannot be. Restore it.")
    texts = {key: record.get(key, "") for key in TEXTS}
    return Entry(
        name=name,
        file=str(file),
        sha256=str(digest),
        bytes=int(size or 0),
        version=int(version or 0),
        **texts,
        scores=record.get("scores", {}),
        kind=kind or record["kind"],
        home=home,
    )
