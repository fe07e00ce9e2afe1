"""JSON lines: the progress of a training run on standard output, commands on standard input.

Each line is an object with a ``kind``:

- ``start``: ``name``, ``total_steps``, and what it is trained on; of `finetune` also ``step``, from
  which the run is resumed, and the scores;
- ``step``: some more steps are done. ``step``, ``total_steps``, ``fraction`` (of the steps or the
  minutes, 0..1), ``epoch``, ``stage``, ``stages``, ``loss``, ``epoch_loss``, ``learning_rate``,
  ``psnr`` (the last score), ``best_psnr``, ``best_step``, ``start_psnr``, ``megapixels``,
  ``megapixels_per_second``, ``seconds_left``;
- ``epoch``: the same at the end of an epoch, with a new score where images are held out;
- ``stage``: the same at the end of a stage of several;
- ``preview``: ``step``, ``psnr`` and the ``path`` of an ``.npz`` file with the arrays ``noisy``,
  ``before``, ``now`` and ``reference``;
- ``paused`` and ``resumed``;
- ``done``: as ``step``, with the ``path`` of the model, ``stopped`` (whether before its end) and,
  where the run has ended, ``outcome``, a sentence; of `finetune` ``kept_start``: no step scored
  better than the starting model, and ``path`` is null;
- ``error``: ``message``, a sentence, and ``type``, the name of the exception's class: with
  ``OtherRunError`` the folder holds a run with other images or settings, with ``OtherVersionError``
  one that another version of this program began (see `dn_core.errors`).

Names and meanings are those of `dn_core.training.events.TrainingEvent`. Unknown values are null. In
a run by the clock ``total_steps`` is an estimate, and null before the first step; ``fraction`` and
``seconds_left`` follow the clock.

The commands are the lines ``pause``, ``resume`` and ``stop``; the end of standard input ends the
program as SIGTERM does, so that a training run does not outlive the program that started it. A
pause does not count towards the minutes of a run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dn_core.safe_write import atomic_write

if TYPE_CHECKING:
    from dn_core.training.data.patches import Preview
    from dn_core.training.events import TrainingEvent

__all__ = ["PREVIEW_FILE", "Control", "emit", "finetune_events", "train_events"]

PREVIEW_FILE = "preview.npz"
LONGEST_COMMAND = 1000


class Control:
    """Commands on standard input (or another file descriptor), read by a thread from now on."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._running, self._stopped = threading.Event(), threading.Event()
        self._running.set()
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def goes_on(self) -> bool:
        """Whether the run is not stopped; waits while paused."""
        if not self._running.is_set() and not self._stopped.is_set():
            emit("paused")
            while not self._running.wait(0.1):  # in short turns, so that signals are heard
                pass
            emit("resumed")
        return not self._stopped.is_set()

    def _listen(self) -> None:
        # Not sys.stdin, whose lock a thread that waits for a line would hold when the program ends.
        text = b""
        while received := os.read(self._descriptor, 4096):
            *lines, text = (text + received).split(b"\n")
            text = text[-LONGEST_COMMAND:]
            for line in lines:
                self._obey(line.strip().decode("utf-8", "replace"))
        signal.raise_signal(signal.SIGTERM)

    def _obey(self, command: str) -> None:
        if command == "pause":
            self._running.clear()
        elif command == "resume":
            self._running.set()
        elif command == "stop":
            self._stopped.set()
            self._running.set()
        elif command:
            sys.stderr.write(f"a command must be pause, resume or stop, got {command[:80]!r}.\n")


def emit(kind: str, **values: Any) -> None:
    """Print one event as a line of JSON, at once; numbers that are not finite become null."""
    known = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    sys.stdout.write(json.dumps({"kind": kind, **known}, default=str, allow_nan=False) + "\n")
    sys.stdout.flush()


def train_events(events: Generator[TrainingEvent], control: Control | None) -> None:
    """Print the events of `dn_core.training.stages.train_stages`.

    A run that is stopped has no model, but is resumed when the same command is called again.
    """
    psnr, stopped = None, False
    with contextlib.closing(events):
        for event in events:
            psnr = psnr if event.psnr is None else event.psnr
            if event.kind == "done":
                break
            emit(event.kind, **_values(event, psnr))
            if control is not None and not control.goes_on():
                stopped = True
                break
    outcome = event.outcome or None
    emit("done", **_values(event, psnr), path=event.path, stopped=stopped, outcome=outcome)


def finetune_events(
    events: Generator[TrainingEvent], folder: Path, start: dict[str, Any], control: Control | None
) -> None:
    """Print the events of `dn_core.training.finetuning.finetune_steps`.

    Parameters
    ----------
    events : generator of TrainingEvent
        The run.
    folder : Path
        Where the file of previews is written.
    start : dict of str to object
        Values of the ``start`` event: what the run is, and what it is trained on.
    control : Control or None
        Whom the run obeys; None: nobody.
    """
    psnr, stopped, first = None, False, True
    with contextlib.closing(events):
        for event in events:
            psnr = psnr if event.psnr is None else event.psnr
            if first:
                emit("start", **start, **_values(event, psnr))
                first = False
            if event.kind == "done":
                break
            emit(event.kind, **_values(event, psnr))
            if event.preview is not None:
                path = _write_preview(folder / PREVIEW_FILE, event.preview)
                emit("preview", step=event.step, psnr=psnr, path=path)
            if control is not None and not control.goes_on():
                stopped = True
                break
    kept_start = event.path is None
    outcome = event.outcome or None
    values = _values(event, psnr)
    emit("done", **values, path=event.path, stopped=stopped, kept_start=kept_start, outcome=outcome)


def _values(event: TrainingEvent, psnr: float | None) -> dict[str, Any]:
    """What every event of a run says, with the last score that there was."""
    return {
        "step": event.step,
        "total_steps": event.total_steps or None,
        "fraction": event.fraction,
        "epoch": event.epoch,
        "stage": event.stage,
        "stages": event.stages,
        "loss": event.loss,
        "epoch_loss": event.epoch_loss,
        "learning_rate": event.learning_rate,
        "psnr": psnr,
        "best_psnr": event.best_psnr,
        "best_step": event.best_step,
        "start_psnr": event.start_psnr,
        "megapixels": event.megapixels,
        "megapixels_per_second": event.megapixels_per_second,
        "seconds_left": event.seconds_left,
    }


def _write_preview(path: Path, preview: Preview) -> Path:
    with atomic_write(path) as temporary:
        np.savez(
            temporary,
            noisy=preview.noisy,
            before=preview.before,
            now=preview.now,
            reference=preview.reference,
        )
    return path
