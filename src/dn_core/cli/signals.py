"""Signals end the command as an exception does, so that half-written files are removed on the way out."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["end_if_stopped", "stop_on_signals"]

_stopped_by: list[int] = []  # signals that have come


def end_if_stopped() -> None:
    """Modules in C that are just being imported turn the end by a signal into an ImportError; it is an end all the same."""
    if _stopped_by:
        raise SystemExit(128 + _stopped_by[0])


def stop_on_signals() -> None:
    """SIGTERM and SIGHUP end as an exception, so that half-written files are removed on the way out."""

    def stop(number: int, _: FrameType | None) -> None:
        _stopped_by.append(number)
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
