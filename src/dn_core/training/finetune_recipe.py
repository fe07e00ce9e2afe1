"""The recipe of a finetuning run: its budget, batches and noise."""

from __future__ import annotations

from typing import Literal

from dn_core.checkpoints import Checkpoint
from dn_core.training.data.user_images import UserImages
from dn_core.training.data.user_noise import noise_in_words
from dn_core.training.recipes import Name, Phase, Recipe
from dn_core.validation import read_value

__all__ = ["LR", "check_length", "check_name", "finetune_recipe"]

STEPS = 1500
BATCH = 8
LR = 1e-3
MOST_STEPS, MOST_MINUTES = 10**6, 10**6
SHORTEST_EPOCH, LONGEST_EPOCH = 10, 100


def check_length(steps: int | None, minutes: float | None) -> None:
    """Refuse (ValueError) a budget that is not one: of steps, or of minutes."""
    if steps is not None and (
        isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS
    ):
        raise ValueError(
            f"steps must be a whole number in 1..{MOST_STEPS}, got {steps!r}. Change steps."
        )
    real = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if minutes is not None and not (real and 0 < minutes <= MOST_MINUTES):
        raise ValueError(
            f"minutes must be a number above 0, at most {MOST_MINUTES}, got {minutes!r}. Change "
            "minutes."
        )


def check_name(name: str, argument: str = "name") -> None:
    """Refuse (ValueError) a model's name that cannot be one; `argument` is where it was given."""
    read_value(name, Name, argument, f"Choose another {argument}.")


def finetune_recipe(
    name: str,
    base: Checkpoint,
    images: UserImages,
    patch: int,
    lr: float,
    optimizer: Literal["adamw", "muon"],
    seed: int,
    steps: int | None,
    minutes: float | None,
) -> Recipe:
    """The recipe of at most `steps` steps, and of `minutes` minutes where they are given."""
    most = steps or (STEPS if minutes is None else MOST_STEPS)
    return Recipe(
        name=name,
        network=base.config,
        noise=images.noise or ({"kind": images.kind},),
        noise_text=(
            noise_in_words(images.noise[0], images.black, images.white)
            if images.noise
            else "as in the user's images"
        ),
        phases=(Phase(most, BATCH, patch),),
        loss_weight="none",
        optimizer=optimizer,
        lr=lr,
        warm_up=50,
        ema=0.99,
        epoch=min(max(most // 15, SHORTEST_EPOCH), LONGEST_EPOCH),
        seed=seed,
        minutes=minutes or 0.0,
    )
