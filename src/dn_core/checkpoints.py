"""One ``.safetensors`` file is one network with its card: write it, read it, refuse what is wrong with it.

No pickle is ever read. The safetensors library checks the container; what it does not check is checked here, before any network
is made: sizes, names, duplicate keys, dtypes, finite values, and that weights and settings agree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from dn_core.errors import CheckpointError
from dn_core.network_config import NetworkConfig
from dn_core.safe_write import replaced_file

if TYPE_CHECKING:
    from dn_core.networks import DnResNet

__all__ = ["Card", "Checkpoint", "load_checkpoint", "read_card", "read_tensors", "save_checkpoint", "write_tensors"]

FORMAT = "dn-resnet"
VERSION = 1
KEY = "dn_resnet"

MAX_FILE_BYTES = 512 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_NAME = 200
NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
FOREIGN = {b"\x80": "a pickle", b"PK": "a zip archive such as torch.save writes", b"\x89PNG": "a PNG", b"\x08": "an ONNX file"}

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Card:
    """What a model is and where it comes from: plain text and numbers, stored in the file's header."""

    name: str
    description: str = ""
    noise: str = ""
    licence: str = "BSD-3-Clause"
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "description", "noise", "licence"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of the card is {getattr(self, name)!r}; a text is expected.")
        for name in ("recipe", "data", "training", "scores"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} of the card is {getattr(self, name)!r}; a table is expected.")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network's settings, its weights (float32 arrays by name) and its card."""

    config: NetworkConfig
    weights: Tensors
    card: Card

    def network(self) -> DnResNet:
        """The torch network with these weights, in evaluation mode."""
        import torch

        from dn_core.networks import DnResNet

        network = DnResNet(self.config)
        network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in self.weights.items()})
        return network.eval()


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write one file, whole or not at all; the same checkpoint gives the same bytes.

    Raises
    ------
    CheckpointError
        When weights and settings do not agree, or a weight is not finite.
    OSError
        When the file cannot be written; an older one is then untouched.
    """
    _check_weights(str(path), checkpoint.config, checkpoint.weights)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "network": checkpoint.config.as_dict(),
        "weights": sum(value.size for value in checkpoint.weights.values()),
        "card": asdict(checkpoint.card),
    }
    write_tensors(path, checkpoint.weights, {KEY: json.dumps(content, sort_keys=True)})


def load_checkpoint(path: str | Path, sha256: str | None = None) -> Checkpoint:
    """Read a model file; with `sha256`, only the one that has this hash.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    CheckpointError
        When it is not a model file, is damaged, is unsafe, was written by a newer version, or has another hash.
    """
    tensors, metadata = read_tensors(path, sha256)
    config, card, said = _describe(path, metadata)
    _check_weights(str(path), config, tensors)
    count = sum(value.size for value in tensors.values())
    if said != count:
        raise CheckpointError(f"{path} says it has {said} weights, it has {count}. Get the file again.")
    return Checkpoint(config, tensors, card)


def read_card(path: str | Path) -> Card:
    """The card alone, from the file's header; the weights are neither read nor checked.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As `load_checkpoint`, as far as the header shows.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        content = start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES + 1))
    return _describe(path, _check_header(str(path), content).get("__metadata__", {}))[1]


def _describe(path: str | Path, metadata: Any) -> tuple[NetworkConfig, Card, Any]:
    """The network's settings, its card, and the number of weights that the file says it has."""
    try:
        content = _parse_json(metadata[KEY])
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{path} holds tensors but no DN-ResNet card; one that dn-resnet train or finetune wrote is expected. Name another file."
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has an unknown card; one that dn-resnet train or finetune wrote is expected. Name another file.")
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise CheckpointError(
            f"{path} was written in format version {version}; this program reads up to {VERSION}. Upgrade napari-dnresnet."
        )
    try:
        if missing := sorted(set(NetworkConfig.__dataclass_fields__) - set(content["network"])):
            raise ValueError(f"the network lacks the settings {missing}")
        return NetworkConfig.from_dict(content["network"]), Card(**content["card"]), content.get("weights")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has a card that cannot be used: {error}") from error


def write_tensors(path: str | Path, tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> None:
    """Write float32 tensors and text, whole or not at all, with the ordinary permissions of a new file."""
    # Copies in C order: safetensors 0.8 writes other layouts wrongly, without a word (safetensors issue 825).
    arrays = {name: np.array(value, dtype="<f4", order="C") for name, value in sorted(tensors.items())}
    content = safetensors.numpy.save(arrays, dict(metadata))
    with replaced_file(Path(path)) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: str | Path, sha256: str | None = None) -> tuple[Tensors, dict[str, str]]:
    """Read float32 tensors (16-bit ones are widened) and text, after every check that the library does not make."""
    content = _read_bytes(Path(path))
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise CheckpointError(f"{path} has sha256 {found}, {sha256} is expected: it was changed or damaged. Get it again.")
    header = _check_header(str(path), content)
    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); a whole .safetensors file is expected. Get it again.") from error
    tensors = {name: _decode(str(path), name, entry) for name, entry in entries}
    return tensors, header.get("__metadata__", {})


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise IsADirectoryError(21, "a model file is expected, this is a folder; name the .safetensors file in it", str(path))
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size} bytes; a model of at most {MAX_FILE_BYTES} is expected. Is it the right file?")
    return path.read_bytes()


def _check_header(path: str, content: bytes) -> dict[str, Any]:
    """The header, after the checks that the library leaves out."""
    for magic, what in FOREIGN.items():
        if content.startswith(magic) and content[8:9] != b"{":
            raise CheckpointError(f"{path} is {what}, not a safetensors file; pickles are never loaded. Name a .safetensors file.")
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or length > len(content) - 8:
        raise CheckpointError(f"{path} is not a safetensors file or is cut off ({len(content)} bytes). Get it again.")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} has a header of {length} bytes; at most {MAX_HEADER_BYTES} is expected. Do not use this file.")
    if content[8:9] != b"{":
        raise CheckpointError(f"{path} has a header that does not begin with '{{'; it is not a safetensors file. Get it again.")
    header = _parse_json(content[8 : 8 + length], path)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a header that is not a table; it is not a safetensors file. Get it again.")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if len(name) > MAX_NAME or not NAME.fullmatch(name):
            raise CheckpointError(
                f"{path} has a tensor named {name[:80]!r}; names of letters, digits, _ and . are expected. Do not use this file."
            )
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or not isinstance(entry.get("shape"), list):
            raise CheckpointError(f"{path} describes {name} without dtype and shape; it is not a safetensors file. Get it again.")
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path} has {name} as {entry['dtype']!r}; one of {sorted(DTYPES)} is expected. Convert the file.")
        if 0 in entry["shape"]:
            raise CheckpointError(f"{path} has {name} with the empty shape {entry['shape']}; weights are expected. Do not use this file.")
    return header


def _parse_json(text: str | bytes, path: str = "the card") -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise CheckpointError(f"{path} names the same key twice; each is expected once. Do not use this file.")
        return table

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} has a header that is not JSON ({type(error).__name__}). Get the file again.") from error


def _decode(path: str, name: str, entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """A float32 copy of one tensor; a copy, so that a file changed later cannot change a model in use."""
    raw: NDArray[Any] = np.frombuffer(entry["data"], DTYPES[str(entry["dtype"])]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        value: NDArray[np.float32] = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        value = raw.astype(np.float32)
    if not np.isfinite(value).all():
        raise CheckpointError(f"{path} has numbers that are not finite in {name}; a trained network is expected. Get the file again.")
    return value


def _check_weights(path: str, config: NetworkConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
    expected, found = config.weight_shapes(), {name: value.shape for name, value in weights.items()}
    wrong = [
        f"{name}: settings {expected.get(name, 'none')}, file {found.get(name, 'none')}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{path} has weights that do not fit its settings ({'; '.join(wrong[:8])}). Get the file again.")
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise CheckpointError(f"{path} has numbers that are not finite in {name}; a trained network is expected. Train again.")
