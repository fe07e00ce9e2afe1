"""Training runs, in one stage or several: cascade and evolution (paper, sections 3.1 and 3.2).

Cascade grows a network block by block, evolution makes its blocks separable. Each stage is one run
of `fit` in a folder of its own, which starts from the weights of the stage before. Finished stages
are recorded in ``stages.json`` and never done again; an unfinished one is resumed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dn_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from dn_core.errors import OtherRunError
from dn_core.messages import counted
from dn_core.models import registry
from dn_core.network_config import BlockKind
from dn_core.networks import DnResNet
from dn_core.safe_write import atomic_write
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.data.phantom_images import training_images
from dn_core.training.events import TrainingEvent
from dn_core.training.loop import check_trainable, fit
from dn_core.training.process_group import ALONE, ProcessGroup
from dn_core.training.recipes import Recipe, load_recipe
from dn_core.training.stage_plan import Stage, plan_stages
from dn_core.training.state import (
    STATE_FORMAT,
    check_format,
    differences,
    other_run_message,
)

__all__ = ["StageState", "train", "train_stages"]

STATE_FILE = "stages.json"


@dataclass(frozen=True, slots=True)
class StageState:
    """What is known of finished stages, as plain data.

    Attributes
    ----------
    recipe, data
        The run's recipe, and the hash of its images.
    done : tuple of dict of str to object, optional
        For each finished stage its loss, steps, megapixels and the hash of its model.
    """

    recipe: dict[str, Any]
    data: str
    done: tuple[dict[str, Any], ...] = ()

    def target_loss(self, recipe: Recipe) -> float | None:
        """The loss at which the next stage may end (section 3.1).

        It is `recipe.drop` below that of the stage before; None where there is none.
        """
        return (
            self.done[-1]["loss"] * (1 - recipe.drop)
            if self.done and recipe.plan == "cascade" and recipe.drop
            else None
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in ``stages.json``."""
        return {
            "format": STATE_FORMAT,
            "recipe": self.recipe,
            "data": self.data,
            "done": list(self.done),
        }


def train_stages(
    recipe: Recipe,
    dataset: CleanImageDataset,
    out: str | Path,
    *,
    start: Checkpoint | None = None,
    device: str = "cpu",
    precision: str = "auto",
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
    workers: ProcessGroup = ALONE,
) -> Generator[TrainingEvent]:
    """Train all stages of a recipe, event by event; closing the generator stops the run.

    The model of the last stage appears as ``out/<recipe.name>.safetensors``. What is needed to
    resume lies in `out` too: the same call again resumes a stopped run, on the CPU with the same
    weights in the end.

    A recipe of one stage (plan ``"once"``) has no folders of stages. Every stage has the recipe's
    phases as its budget, the last one its `last_phases` where there are some. In a cascade it ends
    earlier, after a whole epoch whose mean loss is `recipe.drop` below that of the last epoch of
    the stage before. With `minutes` in the recipe, each stage ends by the clock.

    Parameters
    ----------
    recipe : Recipe
        What to train, and how.
    dataset : CleanImageDataset
        Clean images, to which the recipe's noise is added.
    out : str or Path
        Folder of the model and of the state; made if it is missing.
    start : Checkpoint, optional
        The model that the recipe's `start` names; by default it is found by that name or path.
    device : str, default "cpu"
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision : str, default "auto"
        ``"bfloat16"`` computes the convolutions in bfloat16 (weights stay float32), ``"float32"``
        computes everything in float32,
        ``"auto"`` takes what is faster on the device.
    save_seconds : float, default 30.0
        How often the state is saved within an epoch, in seconds.
    allow : tuple of str, optional
        Settings, such as ``"recipe.phases"``, in which the run found in `out` may differ from this
        one; it is resumed with the new ones.
    workers : ProcessGroup, default ALONE
        The processes that train together, each with the same arguments except `out`, a folder of
        its own.

    Yields
    ------
    TrainingEvent
        ``"step"``, ``"epoch"`` and, with several stages, ``"stage"`` events; then one that is
        ``"done"``, with the model's `path`.

    Raises
    ------
    ValueError
        When images are smaller than the recipe's patches, a batch cannot be shared by the workers,
        `out` holds a run of another recipe, other data or another precision, or a finished stage's
        model has changed.
    BlockingIOError
        When another training run is using `out`.
    MemoryError
        When a step needs more memory than is free.
    FloatingPointError
        When the loss or its gradient is not finite for the second time; the last good state stays.
    """
    fit_one = functools.partial(
        fit,
        dataset=dataset,
        device=device,
        precision=precision,
        save_seconds=save_seconds,
        workers=workers,
    )
    folder, stages = Path(out), plan_stages(recipe)
    if recipe.plan == "once":
        network = _start_network(recipe, start)
        yield from fit_one(recipe, out=folder, allow=allow, initial_network=network)
        return
    check_trainable(recipe, dataset, device, workers)
    state = _load_state(folder, recipe, dataset, allow)
    previous = _start_network(recipe, start)
    last_event = None
    for stage in stages:
        here, last = folder / f"stage-{stage.number}", stage is stages[-1]
        if stage.number < len(state.done):
            previous = _finished(here, recipe, state.done[stage.number])
            continue
        # To the last stage its phases are what `last_phases` are to the recipe.
        more = ("recipe.phases",) if last and "recipe.last_phases" in allow else ()
        run = fit_one(
            stage.recipe(recipe, last=last),
            out=here,
            stage=stage.number,
            allow=(*allow, *more),
            initial_network=stage.initial_network(previous, recipe),
            target_loss=state.target_loss(recipe),
        )
        with contextlib.closing(run):
            for event in run:
                event = replace(event, stage=stage.number, stages=len(stages))
                if event.kind != "done":
                    yield event
        state = _record(folder, state, stage, event)
        previous = load_checkpoint(here / f"{recipe.name}.safetensors").network()
        last_event = replace(event, kind="stage", path=None, outcome="")
        yield last_event
    yield _finish(folder, recipe, state, last_event)


def train(
    recipe: str | Path | Recipe,
    images: str | Path | CleanImageDataset,
    out: str | Path,
    *,
    start: Checkpoint | None = None,
    device: str = "cpu",
    precision: str = "auto",
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
    workers: ProcessGroup = ALONE,
) -> Path:
    """Train a model to the end; `train_stages` is the generator under it.

    The same call again resumes a run that was stopped.

    Parameters
    ----------
    recipe : str, Path or Recipe
        The name of a bundled recipe, a TOML file, or a `Recipe`.
    images : str, Path or CleanImageDataset
        A folder of clean images of 8 or 16 bits, ``"phantoms"`` for made-up ones, or a
        `CleanImageDataset`.
    out : str or Path
        Folder of the model and of the state to resume from; made if it is missing.
    start : Checkpoint, optional
        The model that the recipe's `start` names; by default it is found by that name or path.
    device : str, default "cpu"
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision : str, default "auto"
        ``"bfloat16"`` computes the convolutions in bfloat16 (weights stay float32), ``"float32"``
        computes everything in float32,
        ``"auto"`` takes what is faster on the device.
    save_seconds : float, default 30.0
        How often the state is saved within an epoch, in seconds.
    allow : tuple of str, optional
        Settings, such as ``"recipe.phases"``, in which a run found in `out` may differ from this
        one; it is resumed with the new ones.
    workers : ProcessGroup, default ALONE
        The processes that train together, each with the same arguments except `out`, a folder of
        its own.

    Returns
    -------
    pathlib.Path
        The model's file, ``out/<recipe.name>.safetensors``.

    Raises
    ------
    FileNotFoundError
        When there is no such recipe or folder, or no image in it.
    ValueError
        When the recipe or images cannot be used, or `out` holds another run.
    BlockingIOError
        When another training run is using `out`.
    MemoryError
        When the images or a step need more memory than is free.
    FloatingPointError
        When the loss or its gradient is not finite for the second time; the last good state stays.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    dataset = images if isinstance(images, CleanImageDataset) else training_images(images, loaded)
    path = Path(out)
    for event in train_stages(
        loaded,
        dataset,
        out,
        start=start,
        device=device,
        precision=precision,
        save_seconds=save_seconds,
        allow=allow,
        workers=workers,
    ):
        path = event.path or path
    return path


def _start_network(recipe: Recipe, start: Checkpoint | None) -> DnResNet | None:
    """The trained network that the recipe starts from; None for random weights."""
    if start is None and not recipe.start:
        return None
    checkpoint = start or registry.load(recipe.start)
    if recipe.plan.startswith("evolve"):
        full: BlockKind = "full"
        expected = recipe.network.with_blocks((full,) * len(recipe.network.all_blocks))
        if checkpoint.config != expected:
            raise ValueError(
                "start must be a model of the recipe's network with full blocks "
                f"({expected.depth} layers), got {recipe.start!r}, a network of "
                f"{checkpoint.config.depth} layers. Change start or [network]."
            )
    return checkpoint.network()


def _record(folder: Path, state: StageState, stage: Stage, done: TrainingEvent) -> StageState:
    """Write down that a stage is finished, with its last event."""
    assert done.path is not None
    entry = {
        "stage": stage.number,
        "layers": stage.network.depth,
        "steps": done.step,
        "loss": done.epoch_loss,
        "megapixels": done.megapixels,
        "sha256": hashlib.sha256(done.path.read_bytes()).hexdigest(),
    }
    state = replace(state, done=(*state.done, entry))
    with atomic_write(folder / STATE_FILE) as temporary:
        temporary.write_text(json.dumps(state.as_dict(), indent=1), encoding="utf-8")
    return state


def _finish(
    folder: Path, recipe: Recipe, state: StageState, last_event: TrainingEvent | None
) -> TrainingEvent:
    """Write the last stage's model as that of the run.

    Epoch and learning rate are those of `last_event`; 0 when all stages were finished before.
    """
    number, count = len(state.done) - 1, len(state.done)
    path = folder / f"{recipe.name}.safetensors"
    last = load_checkpoint(folder / f"stage-{number}" / path.name)
    save_checkpoint(path, _with_history(last, recipe, state))
    steps, loss = state.done[-1]["steps"], state.done[-1]["loss"]
    score = last.card.scores.get("held_out_psnr")
    reached = "" if score is None else f", held-out PSNR {score:.2f} dB"
    return TrainingEvent(
        "done",
        step=steps,
        total_steps=steps,
        fraction=1.0,
        epoch=0 if last_event is None else last_event.epoch,
        learning_rate=0.0 if last_event is None else last_event.learning_rate,
        stage=number,
        stages=count,
        loss=loss,
        epoch_loss=loss,
        megapixels=sum(entry["megapixels"] for entry in state.done),
        seconds_left=0.0,
        psnr=score,
        path=path,
        outcome=f"{counted(count, 'stage')}{reached}",
    )


def _finished(folder: Path, recipe: Recipe, entry: dict[str, Any]) -> DnResNet:
    path = folder / f"{recipe.name}.safetensors"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(
            f"{path} must be as its stage left it, but it is missing or has changed. Put it back, "
            "or choose another output folder."
        )
    return Checkpoint.from_bytes(content, source=str(path)).network()


def _load_state(
    folder: Path, recipe: Recipe, dataset: CleanImageDataset, allow: tuple[str, ...]
) -> StageState:
    here = StageState(json.loads(json.dumps(recipe.as_dict())), dataset.fingerprint())
    path = folder / STATE_FILE
    if not path.exists():
        return here
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        there = StageState(found["recipe"], found["data"], tuple(found["done"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Choose another output folder."
        ) from error
    check_format(path, found)
    if different := differences(
        {"recipe": here.recipe, "data": here.data},
        {"recipe": there.recipe, "data": there.data},
        allow,
    ):
        raise OtherRunError(other_run_message(path, different))
    return replace(here, done=there.done)


def _with_history(last: Checkpoint, recipe: Recipe, state: StageState) -> Checkpoint:
    """The last stage's model with a card that lists all stages."""
    training = {
        **last.card.training,
        "steps": sum(entry["steps"] for entry in state.done),
        "megapixels": round(sum(entry["megapixels"] for entry in state.done), 1),
        "stages": [dict(entry) for entry in state.done],
    }
    return replace(last, card=replace(last.card, recipe=recipe.as_dict(), training=training))
