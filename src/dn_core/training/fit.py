"""One training run, as a generator of progress that can be killed at any moment and resumed with the same weights."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dn_core.checkpoints import Card, Checkpoint, save_checkpoint
from dn_core.inference.engines import choose_device
from dn_core.locks import locked
from dn_core.networks import DnResNet
from dn_core.noise import noise_from_dict
from dn_core.training.bank import Bank
from dn_core.training.material import CleanImages
from dn_core.training.recipes import Recipe
from dn_core.training.run import Run, arrays_of, check_steps
from dn_core.training.workers import ALONE, Workers

__all__ = ["REPORT_STEPS", "STATE_FILE", "TrainProgress", "alone_in", "check_trainable", "fit", "resumed_steps"]

STATE_FILE = "state.safetensors"
LOCK_FILE = "training.lock"
REPORT_STEPS = 20


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training is: steps done of total, and how it goes; in a training of several stages, in which stage (from 0).

    `part` is how much of the steps or of the minutes is over, 0..1; by the clock, `total` is an estimate, 0 before the first step.
    `loss` is a running mean, `epoch_loss` that of the last whole epoch. `psnr` (of held-out images with the recipe's noise, where there
    are some) is there at the end of an epoch, `path` (of the finished model) at the end.
    """

    done: int
    total: int
    epoch: int
    loss: float
    lr: float
    megapixels: float
    megapixels_per_second: float
    seconds_left: float
    psnr: float | None = None
    path: Path | None = None
    epoch_loss: float = math.nan
    stage: int = 0
    stages: int = 1
    part: float = 0.0
    epoch_ended: bool = False


def fit(
    recipe: Recipe,
    bank: Bank,
    out: str | Path,
    *,
    device: str = "cpu",
    precision: str = "auto",
    stage: int = 0,
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
    first: DnResNet | None = None,
    enough: float | None = None,
    workers: Workers = ALONE,
) -> Generator[TrainProgress]:
    """Train `recipe` on `bank`; the model appears as ``out/<recipe.name>.safetensors``.

    The state in ``out/state.safetensors`` is saved every `save_seconds`, at the end of each epoch and when the generator is closed or
    fails between two changes of the weights. A run found there goes on where it was; on the CPU with the same number of threads its
    weights are those of an uninterrupted one. A recipe with `minutes` is trained for so long, those before it was stopped included and
    those in which the caller holds the generator not; two such runs differ.

    Parameters
    ----------
    precision
        ``"bfloat16"`` computes the convolutions so (weights stay float32), ``"float32"`` does not, ``"auto"`` asks `bfloat16_helps`.
    allow
        Settings, such as ``"recipe.phases"``, in which the run found may differ from this one; it goes on with the new ones.
    first
        The network to start with instead of random weights or the recipe's `start`: of the recipe's settings, with as many blocks or
        fewer.
    enough
        End before the last step, after an epoch whose mean loss is at most this.
    workers
        The processes that train together, each with the same arguments but for `out`, a folder of its own. Each cuts its share of every
        batch; all have the same weights after each step, save at the end of each epoch and end at the same step.

    Raises
    ------
    ValueError
        When images are smaller than the recipe's patches, a batch cannot be shared by the workers, or `out` holds the state of another
        recipe, other data or another precision.
    BlockingIOError
        When another training is running in `out`.
    MemoryError
        When a step needs more memory than is free.
    FloatingPointError
        When the loss or its gradient is not finite for the second time; the last good state stays. The first time, the run goes on from
        there at half the learning rate, with a RuntimeWarning.
    """
    check_trainable(recipe, bank, device, workers)
    material = CleanImages(bank, noise_from_dict(recipe.noise))
    run = Run(recipe, material, device, precision, stage=stage, first=first, workers=workers)
    folder = Path(out)
    with alone_in(folder):
        with contextlib.closing(resumed_steps(run, folder / STATE_FILE, save_seconds, enough, allow)) as steps:
            for step in steps:
                with run.clock.paused():
                    yield step
        path, score = folder / f"{recipe.name}.safetensors", run.score()
        save_checkpoint(path, _checkpoint(run, material, score))
    yield replace(_progress(run, 0.0, score), lr=0.0, seconds_left=0.0, path=path, epoch_ended=False)


def check_trainable(recipe: Recipe, bank: Bank, device: str = "cpu", workers: Workers = ALONE) -> None:
    """Refuse what cannot be trained to its end, in any phase of any stage.

    Raises
    ------
    ValueError, MemoryError
        As `fit`.
    """
    choose_device(device)
    largest = recipe.largest_patch
    if (smallest := min(min(image.shape) for image in bank.images)) < largest:
        raise ValueError(
            f"the smallest image has a side of {smallest} pixels; at least the patch, {largest}, is expected. Use larger images."
        )
    if recipe.network.planes_in != 1:
        raise ValueError(f"the network takes {recipe.network.planes_in} planes; training takes single planes. Set planes_in to 1.")
    check_steps(recipe, workers, device)


def resumed_steps(
    run: Run,
    state_path: Path,
    save_seconds: float = 30.0,
    enough: float | None = None,
    allow: tuple[str, ...] = (),
    report_seconds: float = math.inf,
) -> Generator[TrainProgress]:
    """Go on from the state in `state_path`, if there is one, to the end of the recipe, and save the state there; see `fit`.

    A run that keeps the best weights scores its first ones, and tells of them before any step. Between scores it is told of every
    `REPORT_STEPS` steps, and after `report_seconds`. Whoever hands the progress on pauses the run's clock meanwhile.
    """
    run.resume(state_path, allow)
    try:
        yield from _steps(run, state_path, save_seconds, enough, allow, report_seconds)
    finally:
        # A signal may come amid a change of the weights; then what was saved before stays.
        if run.whole:
            run.save(state_path)


def _steps(
    run: Run, state_path: Path, save_seconds: float, enough: float | None, allow: tuple[str, ...], report_seconds: float
) -> Iterator[TrainProgress]:
    # A signal may have come after the last step of an epoch and before its score.
    if run.keep_best and (not run.best or (run.epoch_ended and run.scored_step != run.step)):
        run.score()
    if not state_path.exists():  # before the first progress: what is told of can be gone on with
        run.save(state_path)
    if run.keep_best:
        yield _progress(run, 0.0, run.psnr)
    began, begun = run.clock.seconds, run.megapixels
    saved = reported = time.monotonic()
    while not run.over and not (enough is not None and run.epoch_loss <= enough):
        try:
            run.advance()
        except FloatingPointError as error:
            run.go_back(state_path, error, allow)
            continue
        ended = run.epoch_ended
        score = run.score() if ended else None
        # Workers must all go back to the same step, if they have to.
        if ended or (run.workers.size == 1 and time.monotonic() - saved > save_seconds):
            run.save(state_path)
            saved = time.monotonic()
        if ended or run.step % REPORT_STEPS == 0 or time.monotonic() - reported > report_seconds:
            yield _progress(run, (run.megapixels - begun) / max(run.clock.seconds - began, 1e-9), score)
            reported = time.monotonic()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder, and keep a second training out of it; the system lets go of the lock when a process dies.

    A folder that was made here goes again where nothing has come into it.
    """
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK_FILE, 0, "another training is running in this folder; stop it, or choose another folder"):
            yield
    finally:
        if made and set(os.listdir(folder)) <= {LOCK_FILE}:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                for part in made:
                    part.rmdir()


def _progress(run: Run, speed: float, score: float | None) -> TrainProgress:
    return TrainProgress(
        run.step,
        run.total,
        run.epoch,
        run.loss,
        run.lr,
        run.megapixels,
        speed,
        run.seconds_left(speed),
        score,
        epoch_loss=run.epoch_loss,
        part=run.part,
        epoch_ended=run.epoch_ended,
    )


def _checkpoint(run: Run, material: CleanImages, score: float | None) -> Checkpoint:
    """The averaged weights with a card."""
    recipe = run.recipe
    together = {"workers": run.workers.size} if run.workers.size > 1 else {}
    timed = {"minutes": round(run.seconds / 60, 2)} if recipe.minutes else {}
    training = {"steps": run.step, "megapixels": round(run.megapixels, 1), "precision": run.precision, "torch": torch.__version__}
    card = Card(
        name=recipe.name,
        description=recipe.description,
        noise=recipe.noise_text,
        recipe=recipe.as_dict(),
        data=material.describe(),
        training={**training, **timed, **together},
        scores={} if score is None else {"held_out_psnr": round(score, 3)},
    )
    return Checkpoint(recipe.network, arrays_of(run.average), card)
