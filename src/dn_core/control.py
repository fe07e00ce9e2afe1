"""A training as another program sees it: JSON lines on standard output, commands on standard input.

Each line is an object with an ``event``:

- ``start``: ``name``, ``step`` (from which it goes on), ``total``, and what it is trained on;
- ``step``: ``step``, ``total``, ``part`` (of the steps or the minutes, 0..1), ``loss``, ``psnr`` (the last score), ``best``,
  ``start_psnr``, ``seconds_left``, ``megapixels_per_second``;
- ``epoch``: the same at the end of an epoch, with a new score where images are held out;
- ``preview``: ``step`` and the ``path`` of an ``.npz`` file with the arrays ``noisy``, ``before``, ``now`` and ``reference``;
- ``paused`` and ``resumed``;
- ``done``: ``path`` of the model, ``stopped`` (whether before its end), and the scores; of `finetune` ``kept_start``: nothing did better
  than the model at the start, and ``path`` is null;
- ``error``: ``message``, a sentence.

What is not known is null. Of a training by the clock ``total`` is an estimate, and null before the first step; ``part`` and
``seconds_left`` follow the clock.

The commands are the lines ``pause``, ``resume`` and ``stop``; the end of standard input ends the program as SIGTERM does, so that a
training does not outlive the program that began it. A pause is not counted among the minutes of a training.
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

from dn_core.safe_write import replaced_file

if TYPE_CHECKING:
    from dn_core.training.finetune import FinetuneProgress
    from dn_core.training.fit import TrainProgress
    from dn_core.training.lessons import Preview

__all__ = ["PREVIEW_FILE", "Control", "emit", "finetune_events", "train_events"]

PREVIEW_FILE = "preview.npz"
LONGEST_COMMAND = 1000


class Control:
    """What has been said on standard input (or another file descriptor), read by a thread from now on."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._running, self._stopped = threading.Event(), threading.Event()
        self._running.set()
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def go_on(self) -> bool:
        """Whether to go on; waits while paused."""
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
            sys.stderr.write(f"{command[:80]!r} came; pause, resume or stop is expected.\n")


def emit(event: str, **values: Any) -> None:
    """Print one event as a line of JSON, at once; numbers that are not finite become null."""
    known = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}
    sys.stdout.write(json.dumps({"event": event, **known}, default=str, allow_nan=False) + "\n")
    sys.stdout.flush()


def train_events(steps: Generator[TrainProgress], control: Control | None) -> None:
    """Tell of a training by `dn_core.training.cascade.train_stages`; one that is stopped has no model, but goes on when called again."""
    psnr, path, stopped = None, None, False
    with contextlib.closing(steps):
        for step in steps:
            path, psnr = step.path, psnr if step.psnr is None else step.psnr
            if path is None:
                emit(
                    "epoch" if step.epoch_ended else "step",
                    **{"step": step.done, "total": step.total or None, "part": step.part, "epoch": step.epoch},
                    **{"loss": step.loss, "lr": step.lr, "psnr": psnr},
                    **{"best": None, "start_psnr": None, "stage": step.stage, "stages": step.stages},
                    **{"seconds_left": step.seconds_left, "megapixels_per_second": step.megapixels_per_second},
                )
                if control is not None and not control.go_on():
                    stopped = True
                    break
    emit("done", step=step.done, total=step.total or None, path=path, stopped=stopped, psnr=psnr)


def finetune_events(steps: Generator[FinetuneProgress], folder: Path, start: dict[str, Any], control: Control | None) -> None:
    """Tell of a training by `dn_core.training.finetune.finetune_steps`, with previews in `folder`; `start` is what is told first."""
    psnr, stopped, first = None, False, True
    with contextlib.closing(steps):
        for step in steps:
            scored = step.psnr is not None
            psnr = step.psnr if scored else psnr
            state = {"step": step.done, "total": step.total or None, "part": step.part, "psnr": psnr}
            state |= {"best": step.best_psnr, "best_step": step.best_step, "start_psnr": step.start_psnr}
            if first:
                emit("start", **start, **state)
            rates = {"seconds_left": step.seconds_left, "megapixels_per_second": step.megapixels_per_second}
            if not step.finished:
                emit("epoch" if scored else "step", **state, loss=step.loss, lr=step.lr, **rates)
            if step.preview is not None:
                emit("preview", step=step.done, psnr=psnr, path=_write_preview(folder / PREVIEW_FILE, step.preview))
            first = False
            if not step.finished and control is not None and not control.go_on():
                stopped = True
                break
    emit("done", **state, path=step.path, stopped=stopped, kept_start=step.path is None)


def _write_preview(path: Path, preview: Preview) -> Path:
    with replaced_file(path) as temporary:
        np.savez(temporary, noisy=preview.noisy, before=preview.before, now=preview.now, reference=preview.reference)
    return path
