"""Training events: what a run reports at steps, at the end of epochs and stages, and at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dn_core.training.data.patches import Preview

__all__ = ["EventKind", "TrainingEvent"]

EventKind = Literal["step", "epoch", "stage", "done"]


@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """Where a training run is and how it goes; yielded by `train_stages` and `finetune_steps`.

    Attributes
    ----------
    kind : {"step", "epoch", "stage", "done"}
        ``"step"``: some more steps are done. ``"epoch"``: an epoch has ended and, where images are
        held out, has been scored; `finetune_steps` begins with one that has the score of the model
        at the start, or the last score of the run that it resumes. ``"stage"``: a stage of a run of
        several has ended. ``"done"``: the run has ended; always the last event.
    step : int
        Steps done, in this stage.
    total_steps : int
        Steps of this stage; by the clock an estimate. 0: unknown, as before the first step of a run
        by the clock.
    fraction : float
        How much of the steps or of the minutes of this stage is over, 0 to 1.
    epoch : int
        The current epoch of this stage, from 1; 0 before the first step.
    stage, stages : int
        The stage, from 0, and how many there are.
    loss : float
        Running mean of the loss; NaN before the first step.
    epoch_loss : float
        Mean loss of the last whole epoch; NaN before there is one.
    learning_rate : float
        The learning rate of the next step.
    megapixels : float
        Millions of pixels trained on, in this stage; with the ``"done"`` of several stages, in all.
    megapixels_per_second : float
        Speed since the run was started or resumed; 0 where nothing has been measured.
    seconds_left : float
        Until the end of this stage, at this speed or by the clock; NaN: unknown.
    psnr : float or None
        Score in dB on held-out images, with a peak of 1; with ``"epoch"``, and with the ``"done"``
        of `train_stages`. None elsewhere, and where no images are held out.
    best_psnr, best_step : float or None, int or None
        `finetune_steps`: the best score so far and the steps after which it was reached, 0 for the
        model at the start.
    start_psnr : float or None
        `finetune_steps`: the score of the model at the start.
    preview : Preview or None
        `finetune_steps`: a held-out part as the model at the start and the one now denoise it, with
        each new score.
    path : pathlib.Path or None
        The model's file: with ``"done"``; of `finetune_steps` from when it is there. None as long
        as no step scored better than the starting model.
    outcome : str
        With ``"done"``: the outcome, a sentence.
    """

    kind: EventKind
    step: int
    total_steps: int = 0
    fraction: float = 0.0
    epoch: int = 0
    stage: int = 0
    stages: int = 1
    loss: float = math.nan
    epoch_loss: float = math.nan
    learning_rate: float = 0.0
    megapixels: float = 0.0
    megapixels_per_second: float = 0.0
    seconds_left: float = math.nan
    psnr: float | None = None
    best_psnr: float | None = None
    best_step: int | None = None
    start_psnr: float | None = None
    preview: Preview | None = None
    path: Path | None = None
    outcome: str = ""
