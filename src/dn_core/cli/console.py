"""What the commands share: messages, bars, and errors as one sentence."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dn_core.cli.signals import end_if_stopped

__all__ = ["FAILURES", "ChannelAxis", "Debug", "bar", "explained", "open_closed_streams", "say", "sentence", "show_warning"]

# What a bad file or a full machine raises; RuntimeError is how engines say that they cannot go on.
FAILURES = (ValueError, TypeError, OSError, MemoryError, RuntimeError, ArithmeticError, ImportError)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _channel_axis(text: str) -> str | int | None:
    word = text.strip().lower()
    if word in ("auto", "none"):
        return None if word == "none" else word
    try:
        return int(word)
    except ValueError:
        raise typer.BadParameter(f"it is {text!r}; auto, none or the index of an axis is expected.") from None


ChannelAxis = Annotated[
    Any,
    typer.Option(
        parser=_channel_axis,
        metavar="auto|none|INDEX",
        help="Axis of channels; none: the last two axes are planes; auto: as the file says, else a guess that is told.",
    ),
]


class _Messages(Console):
    """Messages on standard error. A reader who goes away does not end the work."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


_console = _Messages(stderr=True, highlight=False)


def open_closed_streams() -> None:
    """Have a standard stream that is closed (``>&-``; a program without a console) take all and give nothing.

    Otherwise the next file that is opened, perhaps the result, would be what the system takes for that stream.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # until the end


@contextlib.contextmanager
def bar(name: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar with the time left on a terminal; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def explained(debug: bool) -> Iterator[None]:
    """An error as one sentence and exit code 1 (2 for a wrong use) instead of a traceback."""
    try:
        yield
    except typer.Exit:
        raise
    except FAILURES as error:
        end_if_stopped()
        if debug or isinstance(error, BrokenPipeError):
            raise
        say(sentence(error))
        raise typer.Exit(1) from None


def sentence(error: BaseException | str) -> str:
    """The message, on one line, with options named as they are here and not as arguments of functions."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, FileNotFoundError) and error.strerror and error.filename is None:  # of os.getcwd
        return f"the working folder is gone ({error.strerror}). Change to one that is there, or give whole paths."
    return _as_options(" ".join(str(error).split()) or type(error).__name__)


def _as_options(text: str) -> str:
    def option(found: re.Match[str]) -> str:
        return f"--{found[1].replace('_', '-')} {found[3]}"

    text = re.sub(r"\b(nonfinite|missing|device|hot_pixels)=(['\"])([\w:]+)\2", option, text)
    return re.sub(r"\bchannel_axis=(None|-?\d+)", lambda found: f"--channel-axis {found[1].lower()}", text)


def say(text: str) -> None:
    """A message for the user; characters that cannot be printed do no harm."""
    with contextlib.suppress(BrokenPipeError):
        _console.print(text.encode("utf-8", "replace").decode(), markup=False, soft_wrap=True)


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as a message, in place of `warnings.showwarning`."""
    if category is not DeprecationWarning:
        say(f"warning: {_as_options(str(message))}")
