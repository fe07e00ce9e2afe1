"""Finetuning: adapting a trained model to user images, without ever ending up with a worse one.

The model at the start is the first candidate. A file appears when weights do better than it on
held-out parts of the images, and always holds those that did best; where none do, there is no file.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from dn_core.checkpoints import Card, Checkpoint, save_checkpoint
from dn_core.inference.axes import ChannelAxis
from dn_core.inference.engines import choose_device
from dn_core.messages import counted
from dn_core.models.registry import default_name, located
from dn_core.training.data import user_images
from dn_core.training.data.patches import FinetunePatches
from dn_core.training.data.user_images import UserImages
from dn_core.training.events import TrainingEvent
from dn_core.training.finetune_recipe import LR, check_length, check_name, finetune_recipe
from dn_core.training.loop import STATE_FILE, folder_lock, resumed_steps
from dn_core.training.trainer import Trainer, arrays_of

__all__ = ["finetune", "finetune_steps", "images_from", "training_folder"]

REPORT_SECONDS = 0.5


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
    start: str | Path | None = None,
    name: str = "finetuned",
    steps: int | None = None,
    minutes: float | None = None,
    lr: float = LR,
    optimizer: Literal["adamw", "muon"] = "adamw",
    device: str = "cpu",
    precision: str = "auto",
    seed: int = 0,
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
) -> Path | None:
    """Adapt a model to your own images.

    Give `noisy` and `clean` images of the same scenes, or `repeats` of a scene along `axis`, or
    `clean` images and their `noise`. The model is scored on parts of the images that are held out,
    before the first step too: it never ends up worse than at the start.

    Parameters
    ----------
    out : str or Path
        Folder of the new model, ``out/<name>.safetensors``, and of the state to resume from,
        ``out/<name>-training``.
    noisy : array, optional
        Noisy images: an array ``(..., height, width)``, a list of such, a file (an image that can
        be read, or ``.npy``), or a folder. Their planes are those that `dn_core.denoise` takes.
    clean : array, optional
        Clean images: of the same scenes, in the same order and of the same shape as `noisy`, in
        folders under the same names except their endings; or with `noise` alone. Clean images that
        differ from the noisy ones by a gain and an offset, scene by scene, are scaled to their grey
        levels, with a UserWarning.
    repeats : array, optional
        Repeats of the same scenes, each with noise of its own (Noise2Noise): an array whose `axis`
        counts the repeats, a file with one, or a folder: of single planes, each a repeat of one
        scene, or of such stacks.
    axis : int, default 0
        The axis of `repeats` that counts them.
    noise : object, optional
        `Gaussian`, `Poisson`, `PoissonGaussian` or `Detector` of `dn_core.noise` with plain
        numbers, or a table such as ``{"kind": "gaussian", "sigma": 40}``, to be added to `clean`.
        The sigma of Gaussian noise and all strengths of a detector (gain, read noise, offset ...)
        are in grey levels of the images; a peak is the mean photon count at `white`, with none at
        `black`; the sigma of Poisson-Gaussian noise is in photons.
    channel_axis : int, None or "auto", default "auto"
        The axis of channels, None when there are none, or ``"auto"``: as a file says, otherwise
        found as `dn_core.denoise` does, with a UserWarning. Alpha is left out.
    black, white : float, optional
        Grey levels that are 0 and 1 in training; by default 0 and 255 for 8-bit images, else two
        percentiles of the clean ones.
    start : str or Path, optional
        Name, alone or with a version (``"dn-fast@1"``), or file of the model to adapt; by default
        the default model, dn-fast.
    name : str, default "finetuned"
        The new model's name.
    steps : int, optional
        When to end, 1 to a million steps. By default 1500, or no limit with `minutes`. Steps give
        the same model again, minutes do not.
    minutes : float, optional
        When to end by the clock, above 0 and at most a million; with `steps`, whichever comes
        first. They include scores and saving, but not reading images, nor the time in which the
        caller holds the generator; a run that was stopped resumes for the rest of them.
    lr : float, default 1e-3
        The highest learning rate.
    optimizer : {"adamw", "muon"}, default "adamw"
        ``"adamw"`` or ``"muon"``.
    device : str, default "cpu"
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision : str, default "auto"
        ``"bfloat16"`` computes the convolutions in bfloat16 (weights stay float32), ``"float32"``
        computes everything in float32,
        ``"auto"`` takes what is faster on the device.
    seed : int, default 0
        Seed of all random numbers.
    save_seconds : float, default 30.0
        How often the state is saved within an epoch, in seconds.
    allow : tuple of str, optional
        Settings, such as ``"recipe.phases"``, in which a run found in `out` may differ from this
        one. With ``"recipe.phases"`` or ``"recipe.minutes"`` a run can be made longer.

    Returns
    -------
    pathlib.Path or None
        The file of the best model; None, with a UserWarning, where no step scored better than
        the starting model.

    Raises
    ------
    FileExistsError
        When there is a model of that name which is not of this run.
    ValueError
        When the model, images or settings do not fit, or another run with this name is found.
    BlockingIOError
        When a training run with this name is running.
    """
    check_name(name)
    images = images_from(
        noisy=noisy,
        clean=clean,
        repeats=repeats,
        axis=axis,
        noise=noise,
        channel_axis=channel_axis,
        black=black,
        white=white,
    )
    path, outcome = None, ""
    for event in finetune_steps(
        images,
        out,
        start=start,
        name=name,
        steps=steps,
        minutes=minutes,
        lr=lr,
        optimizer=optimizer,
        device=device,
        precision=precision,
        seed=seed,
        save_seconds=save_seconds,
        allow=allow,
    ):
        path, outcome = event.path, event.outcome
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
) -> UserImages:
    """Open and check the images that `finetune_steps` learns from.

    Give `noisy` and `clean` images of the same scenes, or `repeats` of a scene along `axis`, or
    `clean` images and their `noise`.

    Parameters
    ----------
    noisy : array, optional
        Noisy images: an array ``(..., height, width)``, a list of such, a file (an image that can
        be read, or ``.npy``), or a folder. Their planes are those that `dn_core.denoise` takes.
    clean : array, optional
        Clean images: of the same scenes, in the same order and of the same shape as `noisy`, in
        folders under the same names except their endings; or with `noise` alone. Clean images that
        differ from the noisy ones by a gain and an offset, scene by scene, are scaled to their grey
        levels, with a UserWarning.
    repeats : array, optional
        Repeats of the same scenes, each with noise of its own (Noise2Noise): an array whose `axis`
        counts the repeats, a file with one, or a folder: of single planes, each a repeat of one
        scene, or of such stacks.
    axis : int, default 0
        The axis of `repeats` that counts them.
    noise : object, optional
        `Gaussian`, `Poisson`, `PoissonGaussian` or `Detector` of `dn_core.noise` with plain
        numbers, or a table such as ``{"kind": "gaussian", "sigma": 40}``, to be added to `clean`.
        The sigma of Gaussian noise and all strengths of a detector (gain, read noise, offset ...)
        are in grey levels of the images; a peak is the mean photon count at `white`, with none at
        `black`; the sigma of Poisson-Gaussian noise is in photons.
        Clean images of which much is darker than a detector's offset give a UserWarning.
    channel_axis : int, None or "auto", default "auto"
        The axis of channels, None when there are none, or ``"auto"``: as a file says, otherwise
        found as `dn_core.denoise` does, with a UserWarning. Alpha is left out.
    black, white : float, optional
        Grey levels that are 0 and 1 in training; by default 0 and 255 for 8-bit images, else two
        percentiles of the clean ones.

    Returns
    -------
    UserImages
        Images on disk as ``.npy`` are read piece by piece, when they are needed.

    Raises
    ------
    ValueError
        When the images are not of one of the three kinds, names or shapes do not match, or there
        is too little to learn from.
    """
    given = {
        name
        for name, value in (
            ("noisy", noisy),
            ("clean", clean),
            ("repeats", repeats),
            ("noise", noise),
        )
        if value is not None
    }
    if given == {"noisy", "clean"}:
        return user_images.pairs(noisy, clean, channel_axis=channel_axis, black=black, white=white)
    if given == {"repeats"}:
        return user_images.repeats(
            repeats, axis, channel_axis=channel_axis, black=black, white=white
        )
    if given == {"clean", "noise"}:
        return user_images.clean_and_noise(
            clean, noise, channel_axis=channel_axis, black=black, white=white
        )
    got = " and ".join(sorted(given)) or "nothing"
    if given == {"noisy"}:
        got = "noisy images alone. Add the argument clean"
    raise ValueError(
        f"give noisy and clean images, or repeats, or clean images and their noise, got {got}."
    )


def finetune_steps(
    images: UserImages,
    out: str | Path,
    *,
    start: str | Path | None = None,
    name: str = "finetuned",
    steps: int | None = None,
    minutes: float | None = None,
    lr: float = LR,
    optimizer: Literal["adamw", "muon"] = "adamw",
    device: str = "cpu",
    precision: str = "auto",
    seed: int = 0,
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
) -> Generator[TrainingEvent]:
    """Adapt a model event by event; closing the generator stops the run.

    The best weights so far are in the model's file at any time, if any did better than those at the
    start. A run found in ``out/<name>-training`` is resumed. What is refused leaves nothing behind.

    Parameters
    ----------
    images : UserImages
        From `images_from`.
    out : str or Path
        Folder of the new model, ``out/<name>.safetensors``, and of the state to resume from,
        ``out/<name>-training``.
    start : str or Path, optional
        Name, alone or with a version (``"dn-fast@1"``), or file of the model to adapt; by default
        the default model, dn-fast.
    name : str, default "finetuned"
        The new model's name.
    steps : int, optional
        When to end, 1 to a million steps. By default 1500, or no limit with `minutes`. Steps give
        the same model again, minutes do not.
    minutes : float, optional
        When to end by the clock, above 0 and at most a million; with `steps`, whichever comes
        first. They include scores and saving, but not reading images, nor the time in which the
        caller holds the generator; a run that was stopped resumes for the rest of them.
    lr : float, default 1e-3
        The highest learning rate.
    optimizer : {"adamw", "muon"}, default "adamw"
        ``"adamw"`` or ``"muon"``.
    device : str, default "cpu"
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision : str, default "auto"
        ``"bfloat16"`` computes the convolutions in bfloat16 (weights stay float32), ``"float32"``
        computes everything in float32,
        ``"auto"`` takes what is faster on the device.
    seed : int, default 0
        Seed of all random numbers.
    save_seconds : float, default 30.0
        How often the state is saved within an epoch, in seconds.
    allow : tuple of str, optional
        Settings, such as ``"recipe.phases"``, in which a run found in `out` may differ from this
        one. With ``"recipe.phases"`` or ``"recipe.minutes"`` a run can be made longer.

    Yields
    ------
    TrainingEvent
        An ``"epoch"`` with the score of the model at the start (of a resumed run, its last score),
        ``"step"`` and ``"epoch"`` events, then one that is ``"done"``.

    Raises
    ------
    FileExistsError
        When there is a model of that name which is not of this run.
    ValueError
        When the model or the images do not fit, or another run with this name is found.
    BlockingIOError
        When a training run with this name is running.
    """
    check_name(name)
    device = choose_device(device)
    base_path, reference = located(default_name() if start is None else start)
    content = base_path.read_bytes()
    base = Checkpoint.from_bytes(content, source=str(base_path))
    made_from = {
        "name": reference or base.card.name,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    _check_base(base)
    check_length(steps, minutes)
    patches = FinetunePatches(images, base.config)
    folder, model_path = training_folder(out, name), Path(out) / f"{name}.safetensors"
    state_path = folder / STATE_FILE
    recipe = finetune_recipe(name, base, images, patches.patch, lr, optimizer, seed, steps, minutes)
    trainer = Trainer(
        recipe, patches, device, precision, initial_network=base.network(), keep_best=True
    )
    if not state_path.exists():
        _check_free(model_path)
    before = trainer.denoiser(base.network().state_dict())
    allow = (*allow, "recipe.epoch") if {"recipe.phases", "recipe.minutes"} & {*allow} else allow
    with folder_lock(folder):
        written = 0
        training = resumed_steps(
            trainer, state_path, save_seconds, allow=allow, report_seconds=REPORT_SECONDS
        )
        with contextlib.closing(training):  # saves before the lock is released
            for event in training:
                if not trainer.best_step:
                    _check_free(model_path)
                if written != trainer.best_step:
                    save_checkpoint(model_path, _checkpoint(trainer, patches, base, made_from))
                    written = trainer.best_step
                preview = None
                if event.kind == "epoch":
                    preview = patches.preview(before, trainer.denoiser(), trainer.device)
                path = model_path if trainer.best_step else None
                with trainer.clock.paused():
                    yield replace(event, preview=preview, path=path)
        if trainer.best_step:
            save_checkpoint(model_path, _checkpoint(trainer, patches, base, made_from))
    yield replace(
        event,
        kind="done",
        psnr=None,
        seconds_left=0.0,
        path=model_path if trainer.best_step else None,
        outcome=_outcome(trainer),
    )


def training_folder(out: str | Path, name: str) -> Path:
    """The folder of a run's state, from which it is resumed."""
    return Path(out) / f"{name}-training"


def _check_base(base: Checkpoint) -> None:
    if base.config.planes_in != 1 or base.config.noise_map:
        what = "a noise map" if base.config.noise_map else f"{base.config.planes_in} planes at once"
        raise ValueError(
            f"start must be a model that takes single planes, got {base.card.name}, which takes "
            f"{what}. Choose another start."
        )


def _check_free(path: Path) -> None:
    """Refuse a name whose model is not of this run."""
    if path.exists():
        raise FileExistsError(
            17, "there is a model of this name already; choose another name", str(path)
        )


def _outcome(trainer: Trainer) -> str:
    """The outcome in words."""
    if trainer.best_step:
        gain = trainer.best_psnr - trainer.start_psnr
        return f"{gain:+.2f} dB after {counted(trainer.best_step, 'step')}"
    return (
        f"no step scored better than the starting model ({trainer.start_psnr:.2f} dB), so no new "
        "model was saved. Train for longer, or on more images."
    )


def _checkpoint(
    trainer: Trainer, patches: FinetunePatches, base: Checkpoint, made_from: dict[str, str]
) -> Checkpoint:
    """The best weights so far with a card that says where they come from and what they gained."""
    images = patches.images
    what = {
        "pairs": "noisy and clean pairs",
        "repeats": "repeats (Noise2Noise)",
        "clean and noise": "clean images with added noise",
    }
    training: dict[str, Any] = {
        "steps": trainer.step,
        "best_step": trainer.best_step,
        "megapixels": round(trainer.megapixels, 1),
        "base": made_from,
        "precision": trainer.precision,
        "torch": torch.__version__,
    }
    if trainer.recipe.minutes:
        training["minutes"] = round(trainer.seconds / 60, 2)
    card = Card(
        name=trainer.recipe.name,
        description=f"{base.card.name} adapted to user images from {what[images.kind]}; best after "
        f"{counted(trainer.best_step, 'step')}.",
        noise=trainer.recipe.noise_text,
        license=base.card.license,
        terms=base.card.terms,
        recipe=trainer.recipe.as_dict(),
        data=images.describe(),
        training=training,
        scores={
            "held_out_psnr_before": round(trainer.start_psnr, 3),
            "held_out_psnr": round(trainer.best_psnr, 3),
        },
    )
    return Checkpoint(base.config, arrays_of(trainer.best), card)
