"""Signals end the command by an exception, so that half-written files are removed."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["end_if_stopped", "stop_on_signals"]

_stopped_by: list[int] = []  # signals received so far


def end_if_stopped() -> None:
    """Exit if a signal has been received.

    Extension modules that are being imported turn the exception of a signal into an ImportError.
    """
    if _stopped_by:
        raise SystemExit(128 + _stopped_by[0])


def stop_on_signals() -> None:
    """Have SIGTERM and SIGHUP raise SystemExit, and note that SIGINT raises KeyboardInterrupt."""

    def stop(number: int, _: FrameType | None) -> None:
        _stopped_by.append(number)
        raise SystemExit(128 + number)

    def interrupt(number: int, _: FrameType | None) -> None:
        _stopped_by.append(number)
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, interrupt)
