"""Model files: a ``.safetensors`` file is one network with its weights and its card.

A file is checked whole before any network is made: what `tensor_files` checks, the card, and that
weights and settings agree.

In memory weights are float32, in a file float32 or float16. Nothing has to remember which: weights
that are all float16 numbers are written in float16, which loses nothing, so that a file that was
read is written with the same content.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import CheckpointError
from dn_core.network_config import NetworkConfig
from dn_core.tensor_files import (
    Tensors,
    read_file,
    read_header,
    read_json,
    tensors_from_bytes,
    tensors_to_bytes,
    write_file,
)
from dn_core.validation import check_fields, from_table

if TYPE_CHECKING:
    from dn_core.networks import DnResNet

__all__ = [
    "Card",
    "Checkpoint",
    "load_checkpoint",
    "read_card",
    "save_checkpoint",
]

FORMAT = "dn-resnet"
VERSION = 3
OLDEST_VERSION = 2
SINCE_VERSION_3 = ("levels", "blocks_up")
"""Settings of networks that version 2 does not have."""
KEY = "dn_resnet"
MAX_HALF_ERROR = 2.0**-11
"""Root mean square of what rounding to float16 may change of a tensor, relative to the tensor's.

It is the largest relative change of a single weight that is not too small for float16."""

ADVICE = "Get the file again, or upgrade napari-dnresnet."


@dataclass(frozen=True, slots=True)
class Card:
    """What a model is and where it comes from: plain text and numbers, stored in the file's header.

    Parameters
    ----------
    name : str
        What the model is called.
    description : str
        A sentence for lists.
    noise : str
        What noise it was made for, in words.
    license : str
        Of the weights, as an SPDX identifier.
    terms : str
        Under which terms the weights may be used, given what they learnt from, in a sentence or
        two; empty: not stated.
    recipe : dict
        How it was trained: `Recipe.as_dict`.
    data : dict
        What it was trained on; under ``"sources"`` a list of texts, one a source, with its terms.
    training : dict
        How the training run went: steps, minutes, megapixels, stages.
    scores : dict
        PSNR in dB by test set or noise level.

    Raises
    ------
    ValueError
        When a field is of another type.
    """

    name: str
    description: str = ""
    noise: str = ""
    license: str = "BSD-3-Clause"
    terms: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "Change it.", "the card")


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights and its card: what one model file holds.

    Attributes
    ----------
    config : NetworkConfig
        The network's settings.
    weights : dict of str to ndarray
        The weights by name, float32. Do not change them in place.
    card : Card
        What the model is and where it comes from.
    """

    config: NetworkConfig
    weights: Tensors
    card: Card

    @classmethod
    def from_bytes(
        cls, content: bytes, *, source: str = "checkpoint", sha256: str | None = None
    ) -> Checkpoint:
        """Read the content of a model file.

        Parameters
        ----------
        content : bytes
            A whole ``.safetensors`` file.
        source : str, default "checkpoint"
            What error messages call it: a path or an address.
        sha256 : str, optional
            The hash that the content must have, 64 hexadecimal digits. By default unchecked.

        Returns
        -------
        Checkpoint
            With weights of its own.

        Raises
        ------
        CheckpointError
            When it is not a model file, is damaged, is unsafe, is of another format version, or
            has another hash.
        """
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"content must be bytes, got {type(content).__name__}. For a file use "
                "load_checkpoint."
            )
        tensors, metadata = tensors_from_bytes(bytes(content), source=source, sha256=sha256)
        config, card, stated = _describe(source, metadata)
        _check_weights(source, config, tensors)
        count = sum(value.size for value in tensors.values())
        if stated != count:
            raise CheckpointError(
                f"{source} must have {stated} weights, as its card says, got {count}. Get the "
                "file again."
            )
        checkpoint = cls(config, tensors, card)
        # Set as the cached property would: the bytes of a file of an older version, or of one
        # that another program wrote, are not those of `to_bytes`.
        checkpoint.__dict__["sha256"] = sha256 or hashlib.sha256(content).hexdigest()
        return checkpoint

    def to_bytes(self, half: bool = False) -> bytes:
        """The content of a model file; equal checkpoints give equal bytes.

        Parameters
        ----------
        half : bool, default False
            Whether weights are rounded to float16, which halves the file and changes the model a
            little. Weights that are all float16 numbers already, as those read from such a file
            are, are written in float16 in any case: this loses nothing.

        Returns
        -------
        bytes
            A whole ``.safetensors`` file.

        Raises
        ------
        CheckpointError
            When weights and settings do not agree, a weight is not finite, the card cannot be
            written as JSON, or `half` would lose more of a weight than rounding does.
        """
        name = f"the checkpoint {self.card.name!r}"
        _check_weights(name, self.config, self.weights)
        if half:
            _check_half(name, self.weights)
        half = half or all(_is_half(value) for value in self.weights.values())
        try:
            content = {
                "format": FORMAT,
                "version": VERSION,
                "network": self.config.as_dict(),
                "weights": sum(value.size for value in self.weights.values()),
                "card": asdict(self.card),
            }
            text = json.dumps(content, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"the card of {self.card.name!r} must be plain text and finite numbers, a few "
                f"levels deep, got something else ({error}). Change the card."
            ) from error
        return tensors_to_bytes(self.weights, {KEY: text}, half=half)

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 hash, 64 hexadecimal digits, of the bytes that it was read from.

        Of a checkpoint that was not read, of `to_bytes`; computed once.
        """
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def network(self) -> DnResNet:
        """The torch network with these weights, in evaluation mode.

        Returns
        -------
        DnResNet
            On the CPU, with copies of the weights.
        """
        import torch

        from dn_core.networks import DnResNet

        network = DnResNet(self.config)
        network.load_state_dict(
            {name: torch.from_numpy(value.copy()) for name, value in self.weights.items()}
        )
        return network.eval()


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, half: bool = False) -> None:
    """Write a model file, whole or not at all; equal checkpoints give equal files.

    Parameters
    ----------
    path : str or Path
        The file to write, by convention ``*.safetensors``; an existing one is replaced.
    checkpoint : Checkpoint
        What to write.
    half : bool, default False
        Whether weights are rounded to float16; see `Checkpoint.to_bytes`.

    Raises
    ------
    CheckpointError
        When weights and settings do not agree, a weight is not finite, or `half` would lose more
        of a weight than rounding does.
    OSError
        When the file cannot be written; an older one is then untouched.
    """
    write_file(path, checkpoint.to_bytes(half))


def load_checkpoint(path: str | Path, sha256: str | None = None) -> Checkpoint:
    """Read a model file.

    Parameters
    ----------
    path : str or Path
        The file.
    sha256 : str, optional
        The hash that the file must have, 64 hexadecimal digits. By default it is not checked.

    Returns
    -------
    Checkpoint
        With weights of its own: changing the file later does not change them.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    CheckpointError
        When it is not a model file, is damaged, is unsafe, is of another format version, or has
        another hash.
    """
    return Checkpoint.from_bytes(read_file(path), source=str(path), sha256=sha256)


def read_card(path: str | Path) -> Card:
    """The card of a model file, from its header; the weights are neither read nor checked.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Card
        What the model is and where it comes from.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    CheckpointError
        When it is not a model file, is damaged, is unsafe or is of another format version, as far
        as the header shows.
    """
    return _describe(str(path), read_header(path).get("__metadata__", {}))[1]


def _describe(source: str, metadata: Any) -> tuple[NetworkConfig, Card, Any]:
    """The network's settings, its card, and the number of weights that the file says it has."""
    try:
        content = read_json(metadata[KEY], f"the card of {source}")
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{source} must have a DN-ResNet card, got tensors without one. Name a file that "
            "dn-resnet train or finetune wrote."
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{source} must have a DN-ResNet card, got an unknown one. Name a file that dn-resnet "
            "train or finetune wrote."
        )
    version = content.get("version")
    if type(version) is not int or not OLDEST_VERSION <= version <= VERSION:
        older = type(version) is int and version < VERSION
        advice = "Train it again, or get a new copy" if older else "Upgrade napari-dnresnet"
        raise CheckpointError(
            f"{source} must be in format version {OLDEST_VERSION} or {VERSION}, got version "
            f"{version}. {advice}."
        )
    network = content.get("network", {})
    if version == OLDEST_VERSION and isinstance(network, dict):
        for name in SINCE_VERSION_3:
            if network.setdefault(name, []) != []:
                raise CheckpointError(
                    f"{source} must have no {name} in format version {OLDEST_VERSION}, which does "
                    f"not know them, got {network[name]!r:.60}. {ADVICE}"
                )
    try:
        return (
            NetworkConfig.from_dict(network, whole=True),
            from_table(Card, content.get("card", {}), "the card", ADVICE),
            content.get("weights"),
        )
    except ValueError as error:
        raise CheckpointError(f"{source} has a card that cannot be used: {error}") from error


def _check_weights(
    source: str, config: NetworkConfig, weights: Mapping[str, NDArray[np.float32]]
) -> None:
    expected, found = config.weight_shapes(), {name: value.shape for name, value in weights.items()}
    wrong = [
        f"{name}: settings {expected.get(name, 'none')}, file {found.get(name, 'none')}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"{source} has weights that do not fit its settings ({'; '.join(wrong[:8])}). Get the "
            "file again."
        )
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"{source} must have finite weights, got numbers that are not finite in {name}. "
                "Train again."
            )


def _is_half(value: NDArray[np.float32]) -> bool:
    """Whether all numbers are float16 numbers."""
    with np.errstate(over="ignore"):
        return np.array_equal(value.astype(np.float16).astype(np.float32), value)


def _check_half(source: str, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse weights that float16 cannot hold.

    Rounding changes a weight by at most 1/2048 of it, but above 65504 there is nothing, and below
    6e-5 the steps stay 6e-8: a tensor of such small weights loses digits, and so does the network.
    """
    for name, value in weights.items():
        with np.errstate(over="ignore"):
            rounded = value.astype(np.float16).astype(np.float64)
        if not np.isfinite(rounded).all():
            raise CheckpointError(
                f"{source} cannot be written in float16: weights must be at most 65504, got "
                f"{np.abs(value).max():g} in {name}. Write it in float32."
            )
        whole = float(np.linalg.norm(value))
        lost = float(np.linalg.norm(rounded - value)) / whole if whole else 0.0
        if lost > MAX_HALF_ERROR:
            raise CheckpointError(
                f"{source} cannot be written in float16: at most {MAX_HALF_ERROR:.1e} of a "
                f"tensor may be lost by rounding, got {lost:.1e} of {name}, whose weights are too "
                "small. Write it in float32."
            )
