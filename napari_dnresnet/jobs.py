"""Work beside the window: generators in a thread, and child processes that speak JSON lines. One way for all widgets."""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Child", "Failure", "Job", "sentence", "time_left"]


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a job, as the last thing that it yields: workers' own errors are shown twice with one of the Qt bindings."""

    error: Exception


class Job:
    """A generator that runs in a thread. What it yields reaches `step` in the main thread; the end reaches `done` or `failed`.

    Parameters
    ----------
    steps
        Called in the thread; gives the generator. It is closed in the thread when the job is cancelled, after the step at hand.
    step, done, failed
        Called in the main thread with what was yielded, with nothing, with the error. None of them after `cancel`.
    stopped
        Called in the main thread when the thread has ended, however it did: only then does it write no more.
    name
        What napari says is running, when the window is closed meanwhile; empty to let it close without a question.
    """

    def __init__(
        self,
        steps: Callable[[], Iterator[Any]],
        *,
        step: Callable[[Any], None],
        done: Callable[[], None] = lambda: None,
        failed: Callable[[Exception], None],
        stopped: Callable[[], None] = lambda: None,
        name: str = "",
    ) -> None:
        self._cancelled = threading.Event()
        self._step, self._done, self._failed, self._stopped = step, done, failed, stopped
        self.running = True
        self._worker = _worker(_work(steps, self._cancelled), name)
        self._worker.yielded.connect(self._receive)
        self._worker.finished.connect(self._end)
        self._failure: Failure | None = None
        _running.add(self)
        self._worker.start()

    def cancel(self) -> None:
        """Ask the thread to stop after the step at hand; nothing is called any more but `stopped`."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def _receive(self, item: Any) -> None:
        if isinstance(item, Failure):
            self._failure = item
        elif not self.cancelled:
            self._step(item)

    def _end(self) -> None:
        _running.discard(self)
        self.running = False
        if not self.cancelled:
            if self._failure is not None:
                self._failed(self._failure.error)
            else:
                self._done()
        self._stopped()


_running: set[Job] = set()
"""Jobs whose threads have not ended, whatever became of their widgets."""


def _work(steps: Callable[[], Iterator[Any]], cancelled: threading.Event) -> Callable[[], Generator[Any]]:
    """What the thread does. napari keeps this function for good, and it keeps nothing."""
    waiting = [steps]

    def work() -> Generator[Any]:
        steps = waiting.pop()
        try:
            if cancelled.is_set():  # while it waited for a thread
                return
            iterator = steps()
            with contextlib.closing(iterator) if isinstance(iterator, Generator) else contextlib.nullcontext():
                for item in iterator:
                    if cancelled.is_set():
                        return
                    yield item
        except Exception as error:
            yield Failure(error)

    return work


def _nothing(*_: Any) -> None:
    pass


def _worker(work: Callable[[], Generator[Any]], name: str) -> Any:
    """napari's worker is listed as a task that closing the window asks about; superqt's is not."""
    if name:
        from napari.qt.threading import create_worker

        work.__name__ = work.__qualname__ = name
        return create_worker(work)
    from superqt.utils import create_worker as create_quiet_worker

    return create_quiet_worker(work)


def sentence(error: BaseException) -> str:
    """An error as a person should read it."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return text[0].upper() + text[1:]


def time_left(seconds: float) -> str:
    """Such as ``"2 min left"``; empty while it is not known.

    >>> time_left(150), time_left(4.2), time_left(float("nan"))
    ('2 min left', '4 s left', '')
    """
    if not seconds < float("inf"):
        return ""
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


class Child:
    """``dn-resnet`` in a process of its own that prints JSON lines: a crash there, or running out of memory, does not reach napari.

    It ends when its standard input does, so it never outlives napari, however that ends.

    Attributes
    ----------
    running
        Whether the process is there. Qt's own object cannot be asked: at the end of the interpreter it may be gone before the docks are.

    Parameters
    ----------
    arguments
        Of ``dn-resnet``.
    event
        Called with each JSON line, as a dictionary.
    ended
        Called with the exit code, and the last lines on standard error, when the process has ended.
    """

    def __init__(self, arguments: list[str], *, event: Callable[[dict[str, Any]], None], ended: Callable[[int, str], None]) -> None:
        from qtpy.QtCore import QProcess, QProcessEnvironment

        self._event, self._ended, self._rest = event, ended, b""
        self.running = True
        environment = QProcessEnvironment.systemEnvironment()
        environment.insert("PYTHONUNBUFFERED", "1")
        environment.insert("PYTHONIOENCODING", "utf-8")
        # No parent: a window that closes would kill it, and it could not save.
        self.process = QProcess()
        self.process.setProcessEnvironment(environment)
        self.process.readyReadStandardOutput.connect(self._read)
        self.process.finished.connect(self._end)
        self.process.errorOccurred.connect(self._fail)
        self.process.start(sys.executable, ["-m", "dn_core.cli", *arguments])

    def send(self, line: str) -> None:
        """Write a line to its standard input."""
        self.process.write(f"{line}\n".encode())

    def leave(self, ended: Callable[[], None] = lambda: None) -> None:
        """Let it save and end by itself; nothing is called any more but `ended`. The interpreter waits for it at its end."""
        self._event, self._ended = _nothing, lambda *_: ended()
        if self.running:
            _leaving.add(self)
            self.process.closeWriteChannel()

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most this long; then it is killed."""
        if self.running and not self.process.waitForFinished(int(1000 * seconds)):
            self.process.kill()
            self.process.waitForFinished(1000)

    def _read(self) -> None:
        *lines, self._rest = (self._rest + bytes(self.process.readAllStandardOutput())).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # a library's own words on standard output
                event = json.loads(line)
                if isinstance(event, dict):
                    self._event(event)

    def _fail(self, error: Any) -> None:
        from qtpy.QtCore import QProcess

        if error == QProcess.ProcessError.FailedToStart:  # other errors end in `finished`
            self.running = False
            self._ended(-1, self.process.errorString())

    def _end(self, code: int, *_: Any) -> None:
        self.running = False
        _leaving.discard(self)
        self._read()
        text = bytes(self.process.readAllStandardError()).decode("utf-8", "replace")
        self._ended(code, "\n".join(text.strip().splitlines()[-3:]))


_leaving: set[Child] = set()
"""Processes that are saving while their widget is gone."""
LEAVING_SECONDS = 20.0


@atexit.register
def _wait_for_the_leaving() -> None:
    for child in list(_leaving):
        child.wait(LEAVING_SECONDS)
    _leaving.clear()
