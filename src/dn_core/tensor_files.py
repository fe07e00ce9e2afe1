"""Safetensors files: tensors and text, with the checks that the library leaves out.

In memory tensors are float32, in files float32 or of 16 bits.

No pickle is ever read. The safetensors library checks the container; sizes, names, duplicate keys,
dtypes and finite values are checked here.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from dn_core.errors import CheckpointError
from dn_core.safe_write import atomic_write
from dn_core.validation import parse_json

__all__ = [
    "MAX_FILE_BYTES",
    "Tensors",
    "read_file",
    "read_header",
    "read_json",
    "read_tensors",
    "tensors_from_bytes",
    "tensors_to_bytes",
    "write_file",
    "write_tensors",
]

MAX_FILE_BYTES = 512 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_NAME = 200
NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
FOREIGN = {
    b"\x80": "a pickle",
    b"PK": "a zip archive such as torch.save writes",
    b"\x89PNG": "a PNG",
    b"\x08": "an ONNX file",
}

Tensors = dict[str, NDArray[np.float32]]


def write_tensors(
    path: str | Path, tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]
) -> None:
    """Write a ``.safetensors`` file, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file to write; an existing one is replaced.
    tensors : mapping of str to ndarray
        float32 arrays by name.
    metadata : mapping of str to str
        Texts for the file's header.
    """
    write_file(path, tensors_to_bytes(tensors, metadata))


def tensors_to_bytes(
    tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str], *, half: bool = False
) -> bytes:
    """The content of a ``.safetensors`` file, float16 where `half`; see `write_tensors`."""
    # Copies in C order: safetensors 0.8 writes other layouts wrongly, without a word (safetensors
    # issue 825).
    dtype = "<f2" if half else "<f4"
    arrays = {
        name: np.array(value, dtype=dtype, order="C") for name, value in sorted(tensors.items())
    }
    return safetensors.numpy.save(arrays, dict(metadata))


def read_tensors(path: str | Path, sha256: str | None = None) -> tuple[Tensors, dict[str, str]]:
    """Read a ``.safetensors`` file, with every check that the library does not make.

    Parameters
    ----------
    path : str or Path
        The file.
    sha256 : str, optional
        The hash that the file must have, 64 hexadecimal digits. By default it is not checked.

    Returns
    -------
    tensors : dict of str to ndarray
        float32 arrays by name; 16-bit ones are widened.
    metadata : dict of str to str
        The texts in the file's header.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    CheckpointError
        When it is not a safetensors file, is damaged, is unsafe, or has another hash.
    """
    return tensors_from_bytes(read_file(path), source=str(path), sha256=sha256)


def tensors_from_bytes(
    content: bytes, *, source: str, sha256: str | None = None
) -> tuple[Tensors, dict[str, str]]:
    """As `read_tensors`, from a file's content; error messages call it `source`."""
    _check_size(source, len(content))
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise CheckpointError(
            f"{source} must have sha256 {sha256}, got {found}: it was changed or damaged. Get it "
            "again."
        )
    header = _check_header(source, content)
    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{source} must be a whole .safetensors file, got a damaged one ({error}). Get it "
            "again."
        ) from error
    tensors = {name: _decode(source, name, entry) for name, entry in entries}
    return tensors, header.get("__metadata__", {})


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(content)


def read_file(path: str | Path) -> bytes:
    """The content of a model file, when it is not larger than one can be."""
    if Path(path).is_dir():
        raise IsADirectoryError(
            errno.EISDIR,
            "a model must be a file, got a folder; name the .safetensors file in it",
            str(path),
        )
    _check_size(str(path), Path(path).stat().st_size)
    return Path(path).read_bytes()


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a file, checked; the tensors are not read."""
    with open(path, "rb") as file:
        start = file.read(8)
        content = start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES + 1))
    return _check_header(str(path), content)


def _check_size(source: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{source} must have at most {MAX_FILE_BYTES} bytes, got {size}. Is it the right file?"
        )


def _check_header(source: str, content: bytes) -> dict[str, Any]:
    """The header, after the checks that the library leaves out."""
    for magic, what in FOREIGN.items():
        if content.startswith(magic) and content[8:9] != b"{":
            raise CheckpointError(
                f"{source} must be a safetensors file, got {what}; pickles are "
                "never loaded. Name a .safetensors file."
            )
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or length > len(content) - 8:
        raise CheckpointError(
            f"{source} is not a safetensors file or is cut off ({len(content)} bytes). Get it "
            "again."
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{source} must have a header of at most {MAX_HEADER_BYTES} bytes, got {length}. Do "
            "not use this file."
        )
    if content[8:9] != b"{":
        raise CheckpointError(
            f"{source} is not a safetensors file: its header must begin with '{{', got "
            f"{content[8:9]!r}. Get it again."
        )
    header = read_json(content[8 : 8 + length], source)
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{source} is not a safetensors file: its header must be a JSON object. Get it again."
        )
    for name, entry in header.items():
        if name != "__metadata__":
            _check_entry(source, name, entry)
    return header


def _check_entry(source: str, name: str, entry: Any) -> None:
    """Refuse the description of a tensor that no file of ours has."""
    if len(name) > MAX_NAME or not NAME.fullmatch(name):
        raise CheckpointError(
            f"{source}: the name of a tensor must be up to {MAX_NAME} letters, digits, '_' and "
            f"'.', got {name[:80]!r}. Do not use this file."
        )
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("dtype"), str)
        or not isinstance(entry.get("shape"), list)
    ):
        raise CheckpointError(
            f"{source} is not a safetensors file: {name} must have a dtype and a shape. Get it "
            "again."
        )
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{source}: the dtype of {name} must be one of {sorted(DTYPES)}, got "
            f"{entry['dtype']!r}. Convert the file."
        )
    if 0 in entry["shape"]:
        raise CheckpointError(
            f"{source}: {name} must have a shape without zeros, got {entry['shape']}. Do not use "
            "this file."
        )


def read_json(content: str | bytes, source: str) -> Any:
    """JSON as Python objects; see `validation.parse_json`.

    Raises
    ------
    CheckpointError
        When it is not JSON, has duplicate keys or is nested too deep.
    """
    try:
        return parse_json(content)
    except ValueError as error:
        raise CheckpointError(
            f"{source} must be JSON with each key once, got something else ({error}). Get the "
            "file again."
        ) from error


def _decode(source: str, name: str, entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """A float32 copy of one tensor: a file that changes later cannot change a model in use."""
    raw: NDArray[Any] = np.frombuffer(entry["data"], DTYPES[str(entry["dtype"])]).reshape(
        entry["shape"]
    )
    if entry["dtype"] == "BF16":
        value: NDArray[np.float32] = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        value = raw.astype(np.float32)
    if not np.isfinite(value).all():
        raise CheckpointError(
            f"{source} must have finite weights, got numbers that are not finite in {name}. Get "
            "the file again."
        )
    return value
