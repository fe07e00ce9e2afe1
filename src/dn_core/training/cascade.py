"""Training in stages (paper, sections 3.1 and 3.2): cascade grows a network block by block, evolution makes its blocks separable.

Each stage is one run of `fit` in a folder of its own, which starts from the weights of the stage before. Finished stages are written
down in ``stages.json`` and never done again; an unfinished one goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dn_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from dn_core.models import registry
from dn_core.network_config import BlockKind, NetworkConfig
from dn_core.networks import DnResNet, insert_block, replace_block
from dn_core.safe_write import replaced_file
from dn_core.training.bank import Bank, load_bank
from dn_core.training.fit import TrainProgress, check_trainable, fit
from dn_core.training.recipes import Recipe, load_recipe
from dn_core.training.run import differences
from dn_core.training.workers import ALONE

__all__ = ["Stage", "StageState", "plan_stages", "train", "train_stages"]

STATE_FILE = "stages.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: the network it trains, and the blocks (by index) that are new in it; none are where all weights are."""

    number: int
    network: NetworkConfig
    new_blocks: tuple[int, ...] = ()

    def first_network(self, previous: DnResNet | None, recipe: Recipe) -> DnResNet | None:
        """The network that the stage starts with; new weights come from (seed, stage) alone. None: as `fit` starts the recipe."""
        if previous is None:
            return None
        generator = torch.Generator().manual_seed(recipe.seed * 1009 + self.number)
        network = previous
        for index in self.new_blocks:
            grows = index >= len(network.config.blocks)
            if grows:
                network = insert_block(network, start=recipe.new_blocks, generator=generator)
            else:
                network = replace_block(network, index, start=recipe.new_blocks, generator=generator)
        return network

    def recipe(self, whole: Recipe, *, last: bool) -> Recipe:
        """What `fit` trains in this stage of `whole`."""
        phases = whole.last_phases if last and whole.last_phases else whole.phases
        return replace(whole, network=self.network, plan="once", start="", phases=phases, last_phases=())


@dataclass(frozen=True, slots=True)
class StageState:
    """What is known of finished stages, as plain data: for each its loss, steps, megapixels and the hash of its model."""

    recipe: dict[str, Any]
    data: str
    done: tuple[dict[str, Any], ...] = ()

    def enough(self, recipe: Recipe) -> float | None:
        """The loss at which the next stage may end: `recipe.drop` below that of the stage before (section 3.1)."""
        return self.done[-1]["loss"] * (1 - recipe.drop) if self.done and recipe.plan == "cascade" and recipe.drop else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in ``stages.json``."""
        return {"recipe": self.recipe, "data": self.data, "done": list(self.done)}


def plan_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe.

    ``"once"`` has one. ``"cascade"`` begins without blocks and inserts one a stage. ``"evolve"`` takes the trained network `start`, whose
    blocks are full, and makes one a stage separable, from the tail side; ``"evolve-once"`` makes all separable in one stage.
    """
    blocks = recipe.network.blocks
    if recipe.plan == "once":
        return (Stage(0, recipe.network),)
    if recipe.plan == "cascade":
        return tuple(
            Stage(count, replace(recipe.network, blocks=blocks[:count]), (count - 1,) * (count > 0)) for count in range(len(blocks) + 1)
        )
    separable = [index for index in reversed(range(len(blocks))) if blocks[index] == "separable"]
    if recipe.plan == "evolve-once":
        return (Stage(0, recipe.network, tuple(separable)),)
    stages, kinds = [], list[BlockKind](["full"] * len(blocks))
    for number, index in enumerate(separable):
        kinds[index] = "separable"
        stages.append(Stage(number, replace(recipe.network, blocks=tuple(kinds)), (index,)))
    return tuple(stages)


def train_stages(
    recipe: Recipe,
    bank: Bank,
    out: str | Path,
    *,
    start: Checkpoint | None = None,
    allow: tuple[str, ...] = (),
    **options: Any,
) -> Generator[TrainProgress]:
    """Train all stages of `recipe`; the model of the last one appears as ``out/<recipe.name>.safetensors``.

    A recipe of one stage (plan ``"once"``) is `fit` and has no folders of stages. Every stage has the recipe's phases as its budget, the
    last one its `last_phases` where there are some. In a cascade it ends before, after a whole epoch whose mean loss is `recipe.drop`
    below that of the last epoch of the stage before.
    `options` are those of `fit`.

    Parameters
    ----------
    start
        The model that `recipe.start` names, where it cannot be found by that name.

    Yields
    ------
    TrainProgress
        With `stage` of `stages`; `path` comes with the last one only.

    Raises
    ------
    ValueError
        As `fit`; and when `out` holds stages of another recipe or other data, or a finished stage's model has changed.
    """
    if recipe.plan == "once":
        yield from fit(recipe, bank, out, allow=allow, first=None if start is None else start.network(), **options)
        return
    check_trainable(recipe, bank, options.get("device", "cpu"), options.get("workers", ALONE))
    folder = Path(out)
    stages = plan_stages(recipe)
    state = _load_state(folder, recipe, bank, allow)
    previous = _start_network(recipe, start)
    for stage in stages:
        here = folder / f"stage-{stage.number}"
        if stage.number < len(state.done):
            previous = _finished(here, recipe, state.done[stage.number])
            continue
        run = fit(
            stage.recipe(recipe, last=stage is stages[-1]),
            bank,
            here,
            stage=stage.number,
            first=stage.first_network(previous, recipe),
            enough=state.enough(recipe),
            # To the last stage its phases are what `last_phases` are to the recipe.
            allow=(*allow, "recipe.phases") if "recipe.last_phases" in allow and stage is stages[-1] else allow,
            **options,
        )
        with contextlib.closing(run):
            for step in run:
                yield replace(step, stage=stage.number, stages=len(stages), path=None)
        path = here / f"{recipe.name}.safetensors"
        content = path.read_bytes()
        entry = {
            "stage": stage.number,
            "layers": stage.network.depth,
            "steps": step.done,
            "loss": step.epoch_loss,
            "megapixels": step.megapixels,
        }
        state = replace(state, done=(*state.done, {**entry, "sha256": hashlib.sha256(content).hexdigest()}))
        _save_state(folder, state)
        previous = load_checkpoint(path).network()
    path = folder / f"{recipe.name}.safetensors"
    last = load_checkpoint(folder / f"stage-{stages[-1].number}" / path.name)
    save_checkpoint(path, _with_history(last, recipe, state))
    total = sum(entry["megapixels"] for entry in state.done)
    steps = state.done[-1]["steps"]
    yield TrainProgress(
        steps, steps, 0, state.done[-1]["loss"], 0.0, total, 0.0, 0.0, path=path, stage=stages[-1].number, stages=len(stages), part=1.0
    )


def train(recipe: str | Path | Recipe, images: str | Path | Bank, out: str | Path, **options: Any) -> Path:
    """Train to the end and give the model's file; `train_stages` is the generator under it, with the same `options`.

    Parameters
    ----------
    recipe
        The name of a shipped recipe, a TOML file, or a `Recipe`.
    images
        A folder of clean images, or a `Bank`.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    bank = images if isinstance(images, Bank) else load_bank(images, smallest=loaded.largest_patch)
    path = Path(out)
    for step in train_stages(loaded, bank, out, **options):
        path = step.path or path
    return path


def _start_network(recipe: Recipe, start: Checkpoint | None) -> DnResNet | None:
    """The trained network that evolution begins with."""
    if not recipe.plan.startswith("evolve"):
        return None
    checkpoint = start or registry.load(recipe.start)
    full: BlockKind = "full"
    expected = replace(recipe.network, blocks=(full,) * len(recipe.network.blocks))
    if checkpoint.config != expected:
        raise ValueError(
            f"start is {recipe.start!r}, a network of {checkpoint.config.depth} layers; to evolve, the recipe's network with full blocks "
            f"({expected.depth} layers) is expected. Change start or [network]."
        )
    return checkpoint.network()


def _finished(folder: Path, recipe: Recipe, entry: dict[str, Any]) -> DnResNet:
    path = folder / f"{recipe.name}.safetensors"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path} is missing or not as its stage left it. Put it back, or choose another output folder.")
    return load_checkpoint(path).network()


def _load_state(folder: Path, recipe: Recipe, bank: Bank, allow: tuple[str, ...]) -> StageState:
    here = StageState(json.loads(json.dumps(recipe.as_dict())), bank.fingerprint())
    path = folder / STATE_FILE
    if not path.exists():
        return here
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        there = StageState(found["recipe"], found["data"], tuple(found["done"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Choose another output folder.") from error
    if different := differences({"recipe": here.recipe, "data": here.data}, {"recipe": there.recipe, "data": there.data}, allow):
        raise ValueError(
            f"{path} belongs to another training ({'; '.join(different)}); the same is expected. Choose another output folder, or allow "
            "these to differ."
        )
    return replace(here, done=there.done)


def _save_state(folder: Path, state: StageState) -> None:
    with replaced_file(folder / STATE_FILE) as temporary:
        temporary.write_text(json.dumps(state.as_dict(), indent=1), encoding="utf-8")


def _with_history(last: Checkpoint, recipe: Recipe, state: StageState) -> Checkpoint:
    """The last stage's model with a card that tells of all stages."""
    training = {
        **last.card.training,
        "steps": sum(entry["steps"] for entry in state.done),
        "megapixels": round(sum(entry["megapixels"] for entry in state.done), 1),
        "stages": [dict(entry) for entry in state.done],
    }
    return replace(last, card=replace(last.card, recipe=recipe.as_dict(), training=training))
