"""Background tasks: generators that run in a thread while the window stays responsive."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["BackgroundTask", "Failure", "time_left"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as the last item of a task: some Qt bindings show workers' own errors twice."""

    error: Exception


class BackgroundTask:
    """A generator that runs in a thread and delivers its items in the main thread.

    Parameters
    ----------
    steps : callable
        Called in the thread; returns the iterator. A generator is closed in the thread when the
        task is cancelled, after the current step.
    step : callable
        Called in the main thread with each item, unless `cancel` was called.
    done : callable, default lambda: None
        Called in the main thread after the last item, unless `cancel` was called.
    failed : callable
        Called in the main thread with an error, unless `cancel` was called.
    stopped : callable, default lambda: None
        Called in the main thread when the thread has ended in whatever way: only from then on does
        it write nothing.
    name : str, default ""
        The name under which napari lists the task when the window is closed meanwhile. Empty to
        close the window without a question.
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
        self._worker = _worker(_thread_function(steps, self._cancelled), name)
        self._worker.yielded.connect(self._receive)
        self._worker.finished.connect(self._end)
        self._failure: Failure | None = None
        _running.add(self)
        self._worker.start()

    def cancel(self) -> None:
        """Stop the thread after the current step; only `stopped` is called from now on."""
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


_running: set[BackgroundTask] = set()
"""Tasks whose threads have not ended; kept alive even if their widgets are gone."""


def _thread_function(
    steps: Callable[[], Iterator[Any]], cancelled: threading.Event
) -> Callable[[], Generator[Any]]:
    """The function for napari's worker.

    napari never releases this function, so `steps`, with all that it refers to, is taken out of a
    list when the thread begins and not kept by the closure.
    """
    waiting = [steps]

    def work() -> Generator[Any]:
        steps = waiting.pop()
        try:
            if cancelled.is_set():  # while it waited for a thread
                return
            iterator = steps()
            with (
                contextlib.closing(iterator)
                if isinstance(iterator, Generator)
                else contextlib.nullcontext()
            ):
                for item in iterator:
                    if cancelled.is_set():
                        return
                    yield item
        except Exception as error:
            yield Failure(error)

    return work


class _Worker(Protocol):
    """The part of napari's and superqt's workers that is used here."""

    yielded: Any
    finished: Any

    def start(self) -> None: ...


def _worker(work: Any, name: str) -> _Worker:
    """A worker of napari, which asks before closing the window, or of superqt, which does not."""
    if name:
        from napari.qt.threading import create_worker

        work.__name__ = work.__qualname__ = name
        worker: _Worker = create_worker(work)
        return worker
    from superqt.utils import create_worker as create_quiet_worker

    quiet_worker: _Worker = create_quiet_worker(work)
    return quiet_worker


def time_left(seconds: float | None) -> str:
    """Such as ``"2 min left"``; empty if unknown.

    >>> time_left(150), time_left(4.2), time_left(float("nan")), time_left(None)
    ('2 min left', '4 s left', '', '')
    """
    if seconds is None or not seconds < float("inf"):
        return ""
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
