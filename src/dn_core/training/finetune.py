"""Adapting a trained model to a lab's own images, without ever ending up with a worse one.

The model one starts from is the first candidate. A file appears when weights do better than it on held-out parts of the images, and always
holds those that did best; where none do, there is no file.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dn_core.checkpoints import Card, Checkpoint, load_checkpoint, save_checkpoint
from dn_core.inference.engines import choose_device
from dn_core.inference.planes import ChannelAxis
from dn_core.models.registry import default_name, resolve
from dn_core.training import own_images
from dn_core.training.fit import STATE_FILE, TrainProgress, alone_in, resumed_steps
from dn_core.training.lessons import Lessons, Preview
from dn_core.training.own_images import OwnImages
from dn_core.training.recipes import Phase, Recipe
from dn_core.training.run import Run, arrays_of

__all__ = ["FinetuneProgress", "finetune", "finetune_steps", "images_from", "training_folder"]

STEPS = 1500
BATCH = 8
LR = 1e-3
MOST_STEPS, MOST_MINUTES = 10**6, 10**6
SHORTEST_EPOCH, LONGEST_EPOCH = 10, 100
REPORT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class FinetuneProgress:
    """Where it is: steps done of total, and how it goes.

    `part` is how much of the steps or of the minutes is over, 0..1; by the clock, `total` is an estimate, 0 before the first step.
    `path` is the file with the best weights so far, None as long as nothing did better than the model at the start. `psnr` is the last
    score (there at the start and at the end of each epoch, else None), `start_psnr` that of the model at the start, `best_psnr` the best
    one, after `best_step` steps; all in dB on held-out parts, with 1 for white less black. `preview` comes with each new score.
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
    path: Path | None
    preview: Preview | None = None
    finished: bool = False
    part: float = 0.0

    @property
    def outcome(self) -> str:
        """What came of it so far, in words."""
        if self.best_step:
            return f"{self.best_psnr - self.start_psnr:+.2f} dB after {self.best_step} steps"
        return (
            f"nothing did better than the model at the start ({self.start_psnr:.2f} dB) in {self.done} steps: there is no new model. Train "
            "for longer, or on more images."
        )


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
) -> Path | None:
    """Adapt a model to own images and give the file of the best one, ``out/<name>.safetensors``.

    Where nothing did better than the model at the start there is none: None, with a UserWarning.

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
    scale = {"black": black, "white": white}
    images = images_from(noisy=noisy, clean=clean, repeats=repeats, axis=axis, noise=noise, channel_axis=channel_axis, **scale)
    path, outcome = None, ""
    for progress in finetune_steps(images, out, **options):
        path, outcome = progress.path, progress.outcome
    if path is None:
        warnings.warn(outcome, UserWarning, stacklevel=2)
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
    """Adapt a model step by step; closing the generator is stopping, and the best weights so far are in the file, if any did better.

    What is needed to go on lies in ``out/<name>-training``; a run found there goes on where it was, as in `fit`. What is refused leaves
    nothing behind.

    Parameters
    ----------
    start
        Name or file of the model to adapt, by default the default one.
    name
        The new model's name; its file is ``out/<name>.safetensors``.
    steps, minutes
        When to end: whichever comes first, 1500 steps without either. Minutes are those of training, scores and saving included, but not
        of reading images, nor those in which the caller holds the generator; a training that was stopped goes on for what is left of
        them. Steps give the same model again, minutes do not.
    allow
        As in `fit`; with ``"recipe.phases"`` or ``"recipe.minutes"`` a training can be made longer.

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
    _check_length(steps, minutes)
    lessons = Lessons(images, base.config)
    folder, model_path = training_folder(out, name), Path(out) / f"{name}.safetensors"
    state_path = folder / STATE_FILE
    recipe = _recipe(name, base, images, lessons.patch, lr, optimizer, seed, steps, minutes)
    run = Run(recipe, lessons, device, precision, first=base.network(), keep_best=True)
    if not state_path.exists():
        _check_free(model_path)
    before = run.denoiser(base.network().state_dict())
    allow = (*allow, "recipe.epoch") if {"recipe.phases", "recipe.minutes"} & {*allow} else allow
    with alone_in(folder):
        written = 0
        training = resumed_steps(run, state_path, save_seconds, allow=allow, report_seconds=REPORT_SECONDS)
        with contextlib.closing(training):  # before the lock is let go of
            for step in training:
                if not run.best_step:
                    _check_free(model_path)
                if written != run.best_step:
                    save_checkpoint(model_path, _checkpoint(run, lessons, base, base_sha256))
                    written = run.best_step
                preview = None if step.psnr is None else lessons.preview(before, run.denoiser(), run.device)
                with run.clock.paused():
                    yield _progress(run, step, model_path, preview)
        if run.best_step:
            save_checkpoint(model_path, _checkpoint(run, lessons, base, base_sha256))
    yield replace(_progress(run, step, model_path, None), psnr=None, seconds_left=0.0, finished=True)


def training_folder(out: str | Path, name: str) -> Path:
    """Where the state of a training lies, from which it goes on."""
    return Path(out) / f"{name}-training"


def _check_base(base: Checkpoint) -> None:
    if base.config.planes_in != 1 or base.config.noise_map:
        what = "a noise map" if base.config.noise_map else f"{base.config.planes_in} planes at once"
        raise ValueError(f"the model {base.card.name} takes {what}; one that takes single planes alone is expected. Choose another start.")


def _check_free(path: Path) -> None:
    """Refuse a name whose model is not of this training."""
    if path.exists():
        raise FileExistsError(17, "there is a model of this name already; choose another name", str(path))


def _check_length(steps: int | None, minutes: float | None) -> None:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS):
        raise ValueError(f"steps is {steps!r}; a whole number in 1..{MOST_STEPS} is expected. Change steps.")
    real = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if minutes is not None and not (real and 0 < minutes <= MOST_MINUTES):
        raise ValueError(f"minutes is {minutes!r}; a number above 0, at most {MOST_MINUTES}, is expected. Change minutes.")


def _recipe(
    name: str,
    base: Checkpoint,
    images: OwnImages,
    patch: int,
    lr: float,
    optimizer: str,
    seed: int,
    steps: int | None,
    minutes: float | None,
) -> Recipe:
    """Of so many steps at most, and of so many minutes where they are given."""
    most = steps or (STEPS if minutes is None else MOST_STEPS)
    return Recipe(
        name=name,
        network=base.config,
        noise=images.noise or ({"kind": images.kind},),
        noise_text=_noise_words(images),
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


def _noise_words(images: OwnImages) -> str:
    if not images.noise:
        return "as in own images"
    values = dict(images.noise[0])
    kind = str(values.pop("kind"))
    if kind == "gaussian":
        return f"Gaussian, sigma {values['sigma'] * images.range / 255:g} grey levels"
    numbers = ", ".join(f"{name} {value:g} photons" for name, value in sorted(values.items()))
    return f"{'Poisson' if kind == 'poisson' else 'Poisson-Gaussian'}, {numbers}"


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
        path=path if run.best_step else None,
        preview=preview,
        part=step.part,
    )


def _checkpoint(run: Run, lessons: Lessons, base: Checkpoint, base_sha256: str) -> Checkpoint:
    """The best weights so far with a card that says where they come from and what they gained."""
    images = lessons.images
    what = {"pairs": "noisy and clean pairs", "repeats": "repeats (Noise2Noise)", "clean and noise": "clean images with noise put on"}
    timed = {"minutes": round(run.seconds / 60, 2)} if run.recipe.minutes else {}
    card = Card(
        name=run.recipe.name,
        description=f"{base.card.name} adapted to own images from {what[images.kind]}; best after {run.best_step} steps.",
        noise=run.recipe.noise_text,
        licence=base.card.licence,
        recipe=run.recipe.as_dict(),
        data=images.describe(),
        training={
            **{"steps": run.step, "best_step": run.best_step, "megapixels": round(run.megapixels, 1), **timed},
            **{"base": {"name": base.card.name, "sha256": base_sha256}},
            **{"precision": run.precision, "torch": torch.__version__},
        },
        scores={"held_out_psnr_before": round(run.start_psnr, 3), "held_out_psnr": round(run.best_psnr, 3)},
    )
    return Checkpoint(base.config, arrays_of(run.best), card)
