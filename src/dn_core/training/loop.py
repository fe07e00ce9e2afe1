"""Training loop of one network: a generator of events that can be killed at any moment and resumed.

A resumed run ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dn_core.checkpoints import Card, Checkpoint, save_checkpoint
from dn_core.inference.engines import choose_device
from dn_core.locks import locked
from dn_core.messages import counted
from dn_core.networks import DnResNet
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.data.phantom_images import PHANTOM_SIZE
from dn_core.training.data.training_data import SyntheticNoiseData
from dn_core.training.events import EventKind, TrainingEvent
from dn_core.training.hardware import check_steps
from dn_core.training.process_group import ALONE, ProcessGroup
from dn_core.training.recipes import Recipe
from dn_core.training.trainer import Trainer, arrays_of

__all__ = [
    "REPORT_STEPS",
    "STATE_FILE",
    "check_trainable",
    "fit",
    "folder_lock",
    "resumed_steps",
]

STATE_FILE = "state.safetensors"
LOCK_FILE = "training.lock"
REPORT_STEPS = 20


def fit(
    recipe: Recipe,
    dataset: CleanImageDataset,
    out: str | Path,
    *,
    device: str = "cpu",
    precision: str = "auto",
    stage: int = 0,
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
    initial_network: DnResNet | None = None,
    target_loss: float | None = None,
    workers: ProcessGroup = ALONE,
) -> Generator[TrainingEvent]:
    """Train one network; the model appears as ``out/<recipe.name>.safetensors``.

    The state in ``out/state.safetensors`` is saved every `save_seconds`, at the end of each epoch
    and when the generator is closed or fails between two changes of the weights. A run found there
    is resumed; on the CPU with the same number of threads its weights are those of an uninterrupted
    one. A recipe with `minutes` is trained for so long, including the minutes before it was stopped
    and excluding the time in which the caller holds the generator; two such runs differ.

    Parameters
    ----------
    recipe : Recipe
        What to train, and how.
    dataset : CleanImageDataset
        Clean images, to which the recipe's noise is added.
    out : str or Path
        Folder of the model and of the state; made if it is missing.
    device : str, default "cpu"
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision : str, default "auto"
        ``"bfloat16"`` computes the convolutions in bfloat16 (weights stay float32), ``"float32"``
        computes everything in float32,
        ``"auto"`` asks `dn_core.training.hardware.bfloat16_helps`.
    stage : int, default 0
        The number of the stage in a run of several, one of the sources of random numbers.
    save_seconds : float, default 30.0
        How often the state is saved within an epoch, in seconds.
    allow : tuple of str, optional
        Settings, such as ``"recipe.phases"``, in which the run found may differ from this one; it
        is resumed with the new ones.
    initial_network : DnResNet, optional
        The network to start with instead of random weights, of the recipe's settings with as many
        blocks or fewer. A recipe with a `start` needs it: nothing is looked up here.
    target_loss : float, optional
        End before the last step, after an epoch whose mean loss is at most this.
    workers : ProcessGroup, default ALONE
        The processes that train together, each with the same arguments except `out`, a folder of
        its own. Each computes its share of every batch; all have the same weights after each step,
        save at the end of each epoch and end at the same step.

    Yields
    ------
    TrainingEvent
        ``"step"`` and ``"epoch"`` events, then one that is ``"done"``.

    Raises
    ------
    ValueError
        When images are smaller than the recipe's patches, a batch cannot be shared by the workers,
        or `out` holds the state of another recipe, other data or another precision.
    BlockingIOError
        When another training run is using `out`.
    MemoryError
        When a step needs more memory than is free.
    FloatingPointError
        When the loss or its gradient is not finite for the second time; the last good state stays.
        The first time, the run resumes from there at half the learning rate, with a RuntimeWarning.
    """
    check_trainable(recipe, dataset, device, workers)
    training_data = SyntheticNoiseData.of(recipe, dataset)
    trainer = Trainer(
        recipe,
        training_data,
        device,
        precision,
        stage=stage,
        initial_network=initial_network,
        workers=workers,
    )
    folder = Path(out)
    with folder_lock(folder):
        with contextlib.closing(
            resumed_steps(trainer, folder / STATE_FILE, save_seconds, target_loss, allow)
        ) as steps:
            for event in steps:
                with trainer.clock.paused():
                    yield event
        path, score = folder / f"{recipe.name}.safetensors", trainer.score()
        save_checkpoint(path, _checkpoint(trainer, training_data, score))
    reached = "" if score is None else f", held-out PSNR {score:.2f} dB"
    yield replace(
        _event("done", trainer, 0.0, score),
        seconds_left=0.0,
        path=path,
        outcome=f"{counted(trainer.step, 'step')}{reached}",
    )


def check_trainable(
    recipe: Recipe, dataset: CleanImageDataset, device: str = "cpu", workers: ProcessGroup = ALONE
) -> None:
    """Refuse what cannot be trained to its end, in any phase of any stage.

    Parameters
    ----------
    recipe, dataset, device, workers
        As for `fit`.

    Raises
    ------
    ValueError, MemoryError
        As `fit`.
    """
    choose_device(device)
    largest = recipe.largest_patch
    if (recipe.phantoms or dataset.made_up) and largest > PHANTOM_SIZE:
        raise ValueError(
            f"patches must be at most {PHANTOM_SIZE} pixels where images are made up, got "
            f"{largest}. Use smaller patches, or images from files alone (phantoms = 0)."
        )
    if (smallest := dataset.smallest_side) < largest:
        raise ValueError(
            f"images must have sides of at least {largest} pixels, the recipe's largest patch, got "
            f"{smallest}. Use larger images."
        )
    if recipe.network.planes_in != 1:
        raise ValueError(
            f"planes_in must be 1, as training takes single planes, got "
            f"{recipe.network.planes_in}. Change the recipe."
        )
    check_steps(recipe, workers, device)


def resumed_steps(
    trainer: Trainer,
    state_path: Path,
    save_seconds: float = 30.0,
    target_loss: float | None = None,
    allow: tuple[str, ...] = (),
    report_seconds: float = math.inf,
) -> Generator[TrainingEvent]:
    """Train to the end of the recipe, resuming from the state in `state_path` if there is one.

    A run that keeps the best weights scores its first ones, and yields that score before any step.
    Between scores it yields every `REPORT_STEPS` steps, and after `report_seconds`. Whoever passes
    the events on pauses the run's clock meanwhile.

    Parameters
    ----------
    trainer : Trainer
        The run.
    state_path : Path
        Where its state is and will be saved.
    save_seconds, target_loss, allow
        As for `fit`.
    report_seconds : float, default math.inf
        The longest time without an event, in seconds, if a step does not take longer.

    Yields
    ------
    TrainingEvent
        ``"step"`` and ``"epoch"`` events.
    """
    trainer.resume(state_path, allow)
    try:
        yield from _steps(trainer, state_path, save_seconds, target_loss, allow, report_seconds)
    finally:
        # A signal may come while a step changes the weights; then what was saved before stays.
        if trainer.whole:
            trainer.save(state_path)


def _steps(
    trainer: Trainer,
    state_path: Path,
    save_seconds: float,
    target_loss: float | None,
    allow: tuple[str, ...],
    report_seconds: float,
) -> Iterator[TrainingEvent]:
    # A signal may have come after the last step of an epoch and before its score.
    if trainer.keep_best and (
        not trainer.best or (trainer.epoch_ended and trainer.scored_step != trainer.step)
    ):
        trainer.score()
    if not state_path.exists():  # before the first event: a run that is reported can be resumed
        trainer.save(state_path)
    if trainer.keep_best:
        yield _event("epoch", trainer, 0.0, trainer.psnr)
    seconds, megapixels = trainer.clock.seconds, trainer.megapixels
    saved = reported = time.monotonic()
    while not trainer.over and not (target_loss is not None and trainer.epoch_loss <= target_loss):
        try:
            trainer.advance()
        except FloatingPointError as error:
            trainer.go_back(state_path, error, allow)
            continue
        ended = trainer.epoch_ended
        score = trainer.score() if ended else None
        # All processes save at the same steps, so that all can go back to the same one.
        if ended or (trainer.workers.size == 1 and time.monotonic() - saved > save_seconds):
            trainer.save(state_path)
            saved = time.monotonic()
        if (
            ended
            or trainer.step % REPORT_STEPS == 0
            or time.monotonic() - reported > report_seconds
        ):
            yield _event(
                "epoch" if ended else "step",
                trainer,
                (trainer.megapixels - megapixels) / max(trainer.clock.seconds - seconds, 1e-9),
                score,
            )
            reported = time.monotonic()


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Make a folder, and keep a second training run out of it.

    The system releases the lock when a process dies. A folder that was made here is removed again
    if nothing was written to it.

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    BlockingIOError
        When another run has the lock.
    """
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(
            folder / LOCK_FILE,
            0,
            "another training run is using this folder; stop it, or choose another folder",
        ):
            yield
    finally:
        if made and set(os.listdir(folder)) <= {LOCK_FILE}:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                for part in made:
                    part.rmdir()


def _event(kind: EventKind, trainer: Trainer, speed: float, score: float | None) -> TrainingEvent:
    keeps_best = trainer.keep_best
    return TrainingEvent(
        kind,
        step=trainer.step,
        total_steps=trainer.total,
        fraction=trainer.part,
        epoch=trainer.epoch,
        loss=trainer.loss,
        epoch_loss=trainer.epoch_loss,
        learning_rate=trainer.lr,
        megapixels=trainer.megapixels,
        megapixels_per_second=speed,
        seconds_left=trainer.seconds_left(speed),
        psnr=score,
        best_psnr=trainer.best_psnr if keeps_best else None,
        best_step=trainer.best_step if keeps_best else None,
        start_psnr=trainer.start_psnr if keeps_best else None,
    )


def _checkpoint(
    trainer: Trainer, training_data: SyntheticNoiseData, score: float | None
) -> Checkpoint:
    """The averaged weights with a card."""
    recipe = trainer.recipe
    training: dict[str, Any] = {
        "steps": trainer.step,
        "megapixels": round(trainer.megapixels, 1),
        "precision": trainer.precision,
        "torch": torch.__version__,
    }
    if recipe.minutes:
        training["minutes"] = round(trainer.seconds / 60, 2)
    if trainer.workers.size > 1:
        training["workers"] = trainer.workers.size
    card = Card(
        name=recipe.name,
        description=recipe.description,
        noise=recipe.noise_text,
        recipe=recipe.as_dict(),
        data=training_data.describe(),
        training=training,
        scores={} if score is None else {"held_out_psnr": round(score, 3)},
    )
    return Checkpoint(recipe.network, arrays_of(trainer.ema_weights), card)
