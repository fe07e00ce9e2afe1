"""Adapting a trained model to a lab's own images, without ever ending up with a worse one.

The model one starts from is the first candidate: the file always holds the weights that did best on held-out parts of the images.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from dn_core.checkpoints import Card, Checkpoint, load_checkpoint, save_checkpoint
from dn_core.inference.engines import choose_device
from dn_core.inference.planes import ChannelAxis
from dn_core.models.registry import default_name, resolve
from dn_core.training import own_images
from dn_core.training.fit import STATE_FILE, TrainProgress, alone_in, resumed_steps
from dn_core.training.lessons import Lessons, Preview
from dn_core.training.own_images import OwnImages
from dn_core.training.recipes import Phase, Recipe
from dn_core.training.run import Run, arrays_of, read_state

__all__ = ["FinetuneProgress", "finetune", "finetune_steps", "images_from", "training_folder"]

STEPS = 1500
BATCH = 8
LR = 1e-3
FEWEST_STEPS, MOST_STEPS = 20, 10**6
SHORTEST_EPOCH, LONGEST_EPOCH = 10, 100
TRIAL_STEPS, TRIAL_SECONDS = 3, 2.0
REPORT_SECONDS = 0.5
TRAINING_PART = 0.85
"""Of the time, what is left for steps beside scores and saving."""


@dataclass(frozen=True, slots=True)
class FinetuneProgress:
    """Where it is: steps done of total, and how it goes.

    `path` is the file with the best weights so far, there from the first progress on. `psnr` is the last score (there at the start and
    at the end of each epoch, else None), `start_psnr` that of the model at the start, `best_psnr` and `best_step` belong to the file; all
    in dB on held-out parts, with 1 for white less black. `preview` comes with each new score.
    """

    done: int
    total: int
    loss: float
    lr: float
    megapixels_per_second: float
    seconds_left: float
    psnr: float | None
    start_psnr: float
    best_psnr: float
    best_step: int
    path: Path
    preview: Preview | None = None
    finished: bool = False


def finetune(
    out: str | Path,
    *,
    noisy: Any = None,
    clean: Any = None,
    repeats: Any = None,
    axis: int = 0,
    noise: Any = None,
    channel_axis: ChannelAxis = "auto",
    black: float | None = None,
    white: float | None = None,
    **options: Any,
) -> Path:
    """Adapt a model to own images and give the file of the best one, ``out/<name>.safetensors``.

    Give `noisy` and `clean` images of the same scenes, or `repeats` of a scene along `axis`, or `clean` images and their `noise`.

    Parameters
    ----------
    noisy, clean, repeats
        Arrays, files or folders; see `dn_core.training.own_images`.
    noise
        `Gaussian`, `Poisson` or `PoissonGaussian` of `dn_core.noise`; the sigma of Gaussian noise here in grey levels of the images.
    channel_axis
        The axis of channels, None when there are none, or ``"auto"``, as in `dn_core.denoise`.
    black, white
        Grey levels that are 0 and 1 in training.
    options
        Those of `finetune_steps`: `start`, `name`, `steps`, `minutes`, ...
    """
    path = Path(out)
    scale = {"black": black, "white": white}
    images = images_from(noisy=noisy, clean=clean, repeats=repeats, axis=axis, noise=noise, channel_axis=channel_axis, **scale)
    for progress in finetune_steps(images, out, **options):
        path = progress.path
    return path


def images_from(
    *,
    noisy: Any = None,
    clean: Any = None,
    repeats: Any = None,
    axis: int = 0,
    noise: Any = None,
    channel_axis: ChannelAxis = "auto",
    black: float | None = None,
    white: float | None = None,
) -> OwnImages:
    """The images that `finetune` learns from.

    Raises
    ------
    ValueError
        When they are not of one of the three kinds.
    """
    given = {name for name, value in (("noisy", noisy), ("clean", clean), ("repeats", repeats), ("noise", noise)) if value is not None}
    if given == {"noisy", "clean"}:
        return own_images.pairs(noisy, clean, channel_axis=channel_axis, black=black, white=white)
    if given == {"repeats"}:
        return own_images.repeats(repeats, axis, channel_axis=channel_axis, black=black, white=white)
    if given == {"clean", "noise"}:
        return own_images.clean_and_noise(clean, noise, channel_axis=channel_axis, black=black, white=white)
    raise ValueError(
        f"{' and '.join(sorted(given)) or 'nothing'} came; noisy and clean images, or repeats, or clean images and their noise are "
        "expected. Give one of these."
    )


def finetune_steps(
    images: OwnImages,
    out: str | Path,
    *,
    start: str | Path | None = None,
    name: str = "finetuned",
    steps: int | None = None,
    minutes: float | None = None,
    lr: float = LR,
    optimizer: str = "adamw",
    device: str = "cpu",
    precision: str = "auto",
    seed: int = 0,
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
) -> Generator[FinetuneProgress]:
    """Adapt a model step by step; closing the generator is stopping, and the best weights so far are in the file.

    What is needed to go on lies in ``out/<name>-training``; a run found there goes on where it was, as in `fit`.

    Parameters
    ----------
    start
        Name or file of the model to adapt, by default the default one.
    name
        The new model's name; its file is ``out/<name>.safetensors``.
    steps, minutes
        When to end; 1500 steps without either. Minutes become steps, once, by a trial of the machine's speed.
    allow
        As in `fit`; with ``"recipe.phases"`` a training can be made longer.

    Raises
    ------
    FileExistsError
        When there is a model of that name which is not of this training.
    ValueError
        When the model or the images do not fit, or another training with this name is found.
    BlockingIOError
        When a training with this name is running.
    """
    device = choose_device(device)
    path = resolve(default_name() if start is None else start)
    base = load_checkpoint(path)
    _check_base(base)
    base_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    lessons = Lessons(images, base.config)
    folder, model_path = training_folder(out, name), Path(out) / f"{name}.safetensors"
    state_path = folder / STATE_FILE
    recipe = _recipe(name, base, images, lessons.patch, lr, optimizer, seed)
    if model_path.exists() and not state_path.exists():
        raise FileExistsError(17, "there is a model of this name already; choose another name", str(model_path))
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        count = _steps_of(state_path, recipe, lessons, base, device, precision, steps, minutes)
        recipe = replace(recipe, phases=(replace(recipe.phases[0], steps=count),), epoch=_epoch(count))
        run = Run(recipe, lessons, device, precision, first=base.network(), keep_best=True)
        before = run.denoiser(base.network().state_dict())
        written = -1
        allow = (*allow, "recipe.epoch") if "recipe.phases" in allow else allow
        training = resumed_steps(run, state_path, save_seconds, allow=allow, report_seconds=REPORT_SECONDS)
        with contextlib.closing(training):  # before the lock is let go of
            for step in training:
                if written != run.best_step:
                    save_checkpoint(model_path, _checkpoint(run, lessons, base, base_sha256))
                    written = run.best_step
                preview = None if step.psnr is None else lessons.preview(before, run.denoiser(), run.device)
                yield _progress(run, step, model_path, preview)
        save_checkpoint(model_path, _checkpoint(run, lessons, base, base_sha256))
    yield replace(_progress(run, step, model_path, None), psnr=None, seconds_left=0.0, finished=True)


def training_folder(out: str | Path, name: str) -> Path:
    """Where the state of a training lies, from which it goes on."""
    return Path(out) / f"{name}-training"


def _check_base(base: Checkpoint) -> None:
    if base.config.planes_in != 1 or base.config.noise_map:
        what = "a noise map" if base.config.noise_map else f"{base.config.planes_in} planes at once"
        raise ValueError(f"the model {base.card.name} takes {what}; one that takes single planes alone is expected. Choose another start.")


def _recipe(name: str, base: Checkpoint, images: OwnImages, patch: int, lr: float, optimizer: str, seed: int) -> Recipe:
    return Recipe(
        name=name,
        network=base.config,
        noise=images.noise or ({"kind": images.kind},),
        noise_text=_noise_words(images),
        phases=(Phase(STEPS, BATCH, patch),),
        loss_weight="none",
        optimizer=optimizer,
        lr=lr,
        warm_up=50,
        ema=0.99,
        seed=seed,
    )


def _noise_words(images: OwnImages) -> str:
    if not images.noise:
        return "as in own images"
    values = dict(images.noise[0])
    kind = str(values.pop("kind"))
    if kind == "gaussian":
        return f"Gaussian, sigma {values['sigma'] * images.range / 255:g} grey levels"
    numbers = ", ".join(f"{name} {value:g} photons" for name, value in sorted(values.items()))
    return f"{'Poisson' if kind == 'poisson' else 'Poisson-Gaussian'}, {numbers}"


def _steps_of(
    state_path: Path,
    recipe: Recipe,
    lessons: Lessons,
    base: Checkpoint,
    device: str,
    precision: str,
    steps: int | None,
    minutes: float | None,
) -> int:
    """How many steps: as given, or what the minutes allow, found once for a training and its resumptions."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS):
        raise ValueError(f"steps is {steps!r}; a whole number in 1..{MOST_STEPS} is expected. Change steps.")
    if minutes is None:
        return STEPS if steps is None else steps
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not (math.isfinite(minutes) and minutes > 0):
        raise ValueError(f"minutes is {minutes!r}; a number above 0 is expected. Change minutes.")
    if (found := _steps_in(state_path)) is not None:
        return found
    trial = Run(recipe, lessons, device, precision, first=base.network())
    began = time.monotonic()
    while trial.step < TRIAL_STEPS or (time.monotonic() - began < TRIAL_SECONDS and trial.step < recipe.steps):
        trial.advance()
        if trial.step == TRIAL_STEPS:  # the first ones are slower
            began = time.monotonic()
    seconds = (time.monotonic() - began) / max(trial.step - TRIAL_STEPS, 1)
    count = int(min(max(minutes * 60 * TRAINING_PART / seconds, FEWEST_STEPS), MOST_STEPS))
    return count if steps is None else min(steps, count)


def _steps_in(state_path: Path) -> int | None:
    """The steps of the training whose state this is."""
    if not state_path.exists():
        return None
    _, state = read_state(state_path)
    phases = state.get("recipe", {}).get("phases", [])
    return sum(int(phase["steps"]) for phase in phases) or None


def _epoch(steps: int) -> int:
    """Steps between scores."""
    return min(max(steps // 15, SHORTEST_EPOCH), LONGEST_EPOCH)


def _progress(run: Run, step: TrainProgress, path: Path, preview: Preview | None) -> FinetuneProgress:
    return FinetuneProgress(
        done=step.done,
        total=step.total,
        loss=step.loss,
        lr=step.lr,
        megapixels_per_second=step.megapixels_per_second,
        seconds_left=step.seconds_left,
        psnr=step.psnr,
        start_psnr=run.start_psnr,
        best_psnr=run.best_psnr,
        best_step=run.best_step,
        path=path,
        preview=preview,
    )


def _checkpoint(run: Run, lessons: Lessons, base: Checkpoint, base_sha256: str) -> Checkpoint:
    """The best weights so far with a card that says where they come from and what they gained."""
    images, kept = lessons.images, run.best_step == 0
    what = {"pairs": "noisy and clean pairs", "repeats": "repeats (Noise2Noise)", "clean and noise": "clean images with noise put on"}
    outcome = "kept the starting weights, as nothing did better" if kept else f"best after {run.best_step} steps"
    card = Card(
        name=run.recipe.name,
        description=f"{base.card.name} adapted to own images from {what[images.kind]}; {outcome}.",
        noise=run.recipe.noise_text,
        licence=base.card.licence,
        recipe=run.recipe.as_dict(),
        data=images.describe(),
        training={
            **{"steps": run.step, "best_step": run.best_step, "kept_start": kept, "megapixels": round(run.megapixels, 1)},
            **{"base": {"name": base.card.name, "sha256": base_sha256}},
            **{"precision": run.precision, "torch": torch.__version__},
        },
        scores={"held_out_psnr_before": round(run.start_psnr, 3), "held_out_psnr": round(run.best_psnr, 3)},
    )
    weights: dict[str, NDArray[Any]] = base.weights if kept else arrays_of(run.best)
    return Checkpoint(base.config, weights, card)
