"""Training state: the file that a training run is resumed from, read, written and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core.errors import CheckpointError, OtherVersionError
from dn_core.tensor_files import read_tensors, write_tensors

__all__ = [
    "STATE_FORMAT",
    "check_format",
    "check_weights",
    "differences",
    "other_run_message",
    "read_state",
    "restore_optimizer",
    "tensors_under",
    "write_state",
]

STATE_KEY = "dn_resnet_training"
STATE_FORMAT = 2
"""Of training states and of ``stages.json``; it rises when names in them change."""
AFRESH = "Put back a copy, or remove it to start afresh."


def write_state(path: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Write the state of a run, whole or not at all.

    Parameters
    ----------
    path : Path
        The file.
    tensors : mapping of str to torch.Tensor
        Weights and the optimizers' memory.
    state : dict of str to object
        Which run it is, and its counters; plain data.
    """
    arrays = {
        name: value.detach().to("cpu", torch.float32).numpy() for name, value in tensors.items()
    }
    state = {**state, "format": STATE_FORMAT}
    metadata = {STATE_KEY: json.dumps({**state, "sha256": _hash(arrays, state)})}
    write_tensors(path, arrays, metadata)


def read_state(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Read what `write_state` wrote.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    tensors, state
        As `write_state` took them.

    Raises
    ------
    CheckpointError
        When it is damaged.
    ValueError
        When it is no training state; OtherVersionError when it is one of another format.
    """
    try:
        tensors, metadata = read_tensors(path)
        state = json.loads(metadata.get(STATE_KEY, "null"))
    except ValueError as error:
        reason = error if isinstance(error, CheckpointError) else f"{path} is damaged ({error})."
        raise CheckpointError(f"the training run cannot be resumed: {reason} {AFRESH}") from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} must be a training state, written by dn-resnet train, got another file. "
            "Choose another output folder."
        )
    written = state.pop("sha256", None)
    if written is not None and _hash(tensors, state) != written:
        raise CheckpointError(
            f"the training run cannot be resumed: {path} is damaged, its content is not what was "
            f"written. {AFRESH}"
        )
    check_format(path, state)
    del state["format"]
    return tensors, state


def check_format(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse a run that another version of this program has begun.

    Parameters
    ----------
    path : Path
        The file that the state was read from, for the message.
    state : mapping of str to object
        What it says, with its format number; the first format had none.

    Raises
    ------
    OtherVersionError
        When the format is another one.
    """
    found = state.get("format", 1)
    if type(found) is not int or found != STATE_FORMAT:
        raise OtherVersionError(
            f"{path} must be of format {STATE_FORMAT}, got format {found!r:.20}: another version "
            "began this training run, and it cannot be resumed. Choose another output folder, or "
            "remove this one."
        )


def differences(mine: dict[str, Any], theirs: dict[str, Any], allow: tuple[str, ...]) -> list[str]:
    """Say what keeps two training runs from being the same.

    Parameters
    ----------
    mine : dict of str to object
        What this run is, with its recipe's settings under ``"recipe"``.
    theirs : dict of str to object
        What the other one is.
    allow : tuple of str
        Settings, such as ``"recipe.phases"``, that may differ.

    Returns
    -------
    list of str
        A part of a sentence for each setting that differs; empty when the runs are the same.
    """
    flat_mine = {**mine, **{f"recipe.{key}": value for key, value in mine["recipe"].items()}}
    flat_theirs = {
        **theirs,
        **{f"recipe.{key}": value for key, value in theirs.get("recipe", {}).items()},
    }
    names = [
        *flat_mine,
        *(name for name in flat_theirs if name.startswith("recipe.") and name not in flat_mine),
    ]
    names = [
        name
        for name in names
        if name != "recipe" and name not in allow and flat_mine.get(name) != flat_theirs.get(name)
    ]
    return [_difference(name, flat_theirs.get(name), flat_mine.get(name)) for name in names]


def _difference(name: str, there: Any, here: Any) -> str:
    """How a setting differs; of tables only the keys that do."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        there, here = ({key: value.get(key) for key in keys} for value in (there, here))
    return f"{name}: {str(there)[:60]} there, {str(here)[:60]} here"


def other_run_message(path: Path, different: list[str]) -> str:
    """The message that a state in `path` is of another run, with what `differences` found."""
    names = tuple(text.split(":")[0] for text in different)
    return (
        f"{path} belongs to another training run ({'; '.join(different)}). Choose another output "
        f"folder, or use allow={names}."
    )


def check_weights(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse (ValueError) a state in `path` that lacks a weight or has one of another shape."""
    wrong = [
        name
        for name in {*found, *expected}
        if name not in found or name not in expected or found[name].shape != expected[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} must have weights of this network, got weights of another network "
            f"({', '.join(sorted(wrong)[:5])}). Choose another output folder."
        )


def tensors_under(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, values: dict[str, Tensor], device: torch.device
) -> None:
    """Put an optimizer's saved memory back, weight by weight.

    Refuses (ValueError) memory of another shape, which `load_state_dict` would take.

    Parameters
    ----------
    optimizer : Optimizer
        Of the same weights.
    values : dict of str to torch.Tensor
        Its memory: ``"<index of the weight>.<name>"`` to tensor.
    device : device
        Where the weights are.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in values.items():
        index, name = key.split(".", 1)
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(
                f"the state must be of this optimizer, got {key}, of a weight that is missing. "
                "Start afresh."
            )
        parameter = parameters[int(index)]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(
                f"{key} of the state must have shape {tuple(parameter.shape)}, got "
                f"{tuple(value.shape)}. Start afresh."
            )
        if value.ndim:
            value = value.to(device).contiguous(memory_format=torch.channels_last)
        optimizer.state[parameter][name] = value


def _hash(arrays: Mapping[str, NDArray[np.float32]], state: Mapping[str, Any]) -> str:
    """Of everything in a state except this hash."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
