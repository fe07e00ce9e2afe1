"""Hardware limits of training: the precision that is fastest, and steps that fit into memory."""

from __future__ import annotations

import torch

from dn_core.memory import available_memory, check_memory
from dn_core.training.process_group import ProcessGroup
from dn_core.training.recipes import Recipe

__all__ = ["bfloat16_helps", "check_steps", "chosen_precision"]


def bfloat16_helps(device: str) -> bool:
    """Whether bfloat16 convolutions are faster than float32 on a device.

    Measured: 4x with AMX, 2x on an AMD EPYC with avx512_bf16; slower on CPUs that only emulate it.

    Parameters
    ----------
    device : str
        ``"cpu"``, or a device of torch.

    Returns
    -------
    bool
        True for a CPU with matrix or dot-product units for bfloat16, and a GPU that has them.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    checks = (
        getattr(torch.cpu, name, None)
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return any(check() for check in checks if check is not None)


def chosen_precision(precision: str, device: str, workers: ProcessGroup) -> str:
    """The precision to compute in; all processes choose the same."""
    if precision not in ("auto", "bfloat16", "float32"):
        raise ValueError(
            f"precision must be 'auto', 'bfloat16' or 'float32', got {precision!r}. Change "
            "precision."
        )
    if precision != "auto":
        return precision
    helps = workers.all_true(bfloat16_helps(device), torch.device(device))
    return "bfloat16" if helps else "float32"


def check_steps(recipe: Recipe, workers: ProcessGroup, device: str) -> None:
    """Refuse batches that cannot be shared evenly, and steps that do not fit into memory.

    Parameters
    ----------
    recipe : Recipe
        Whose phases to check, those of every stage.
    workers : ProcessGroup
        The processes that train together.
    device : str
        Where they train; only the memory of a CPU is checked.

    Raises
    ------
    ValueError
        When a batch is no multiple of the number of processes.
    MemoryError
        When a step needs more memory than is free.
    """
    for phase in recipe.all_phases:
        share = workers.share(phase.batch)
        if not device.startswith("cuda"):  # torch says by itself when a GPU is full
            values = share * phase.patch**2 * recipe.network.training_values
            what = f"a step of {phase.batch} patches of {phase.patch} pixels"
            check_memory(
                what,
                4 * values,
                available_memory(),
                "Use a smaller batch or patch in the recipe, or more workers.",
            )
