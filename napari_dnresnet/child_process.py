"""Child processes: ``dn-resnet`` commands that report progress as JSON lines."""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["ChildProcess"]

EXIT_SECONDS = 20.0
"""How long the interpreter waits at its end for processes that are saving."""
ERROR_LINES = 3
"""How many of the last lines on standard error are reported."""


class ChildProcess:
    """A ``dn-resnet`` command in a process of its own that prints JSON lines.

    If it crashes or runs out of memory, napari is not affected. It ends when its standard input is
    closed, so it never outlives napari, in whatever way napari ends.

    Attributes
    ----------
    running
        Whether the process is running. Qt's own object cannot be asked: at the end of the
        interpreter it may be gone before the docks are.

    Parameters
    ----------
    arguments : list of str
        Command line arguments of ``dn-resnet``.
    event : callable
        Called with each JSON line, as a dictionary.
    ended : callable
        Called with the exit code and the last lines on standard error when the process has ended.
    """

    def __init__(
        self,
        arguments: list[str],
        *,
        event: Callable[[dict[str, Any]], None],
        ended: Callable[[int, str], None],
    ) -> None:
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
        """Let it save and exit; nothing but `ended` is called from now on.

        The interpreter waits for it at its own end.
        """
        self._event, self._ended = lambda _: None, lambda _code, _text: ended()
        if self.running:
            _leaving.add(self)
            self.process.closeWriteChannel()

    def wait(self, seconds: float) -> None:
        """Wait at most this long for its end, then kill it."""
        if self.running and not self.process.waitForFinished(int(1000 * seconds)):
            self.process.kill()
            self.process.waitForFinished(1000)

    def _read(self) -> None:
        received = self._rest + self.process.readAllStandardOutput().data()
        *lines, self._rest = received.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # something that a library printed
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
        text = self.process.readAllStandardError().data().decode("utf-8", "replace")
        self._ended(code, "\n".join(text.strip().splitlines()[-ERROR_LINES:]))


_leaving: set[ChildProcess] = set()
"""Processes that are saving after their widget was closed."""


@atexit.register
def _wait_for_leaving_processes() -> None:
    for child in list(_leaving):
        child.wait(EXIT_SECONDS)
    _leaving.clear()
