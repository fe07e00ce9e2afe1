"""Messages, progress bars and error reports of the commands."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dn_core.cli.signals import end_if_stopped
from dn_core.errors import error_message

__all__ = [
    "FAILURES",
    "ChannelAxis",
    "Debug",
    "bar",
    "explained",
    "open_closed_streams",
    "say",
    "sentence",
    "show_warning",
]

# Errors of damaged files and full machines; engines raise RuntimeError when they fail.
FAILURES = (ValueError, TypeError, OSError, MemoryError, RuntimeError, ArithmeticError, ImportError)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _channel_axis(text: str) -> str | int | None:
    word = text.strip().lower()
    if word in ("auto", "none"):
        return None if word == "none" else word
    try:
        return int(word)
    except ValueError:
        raise typer.BadParameter(
            f"it must be auto, none or the index of an axis, got {text!r}."
        ) from None


ChannelAxis = Annotated[
    Any,
    typer.Option(
        parser=_channel_axis,
        metavar="auto|none|INDEX",
        help="Axis of channels. none: every axis except the last two counts planes; auto: as the "
        "file describes it, otherwise a guess that is reported.",
    ),
]


class _Messages(Console):
    """Messages on standard error; closing it does not end the work."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


_console = _Messages(stderr=True, highlight=False)


def open_closed_streams() -> None:
    """Connect closed standard streams (``>&-``, programs without a console) to the null device.

    Otherwise the next file that is opened, perhaps the result, would get the descriptor of that
    stream.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # until the end


@contextlib.contextmanager
def bar(name: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar with the remaining time on a terminal; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=_console, transient=True, disable=not _console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def explained(debug: bool) -> Iterator[None]:
    """Report an error as one sentence, with exit code 1, instead of a traceback."""
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
    """The message of an error or a note, with arguments of functions as command-line options.

    Parameters
    ----------
    error : BaseException or str
        An exception, or a note of the library.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> sentence("Give channel_axis=None or hot_pixels='remove'.")
    'Give --channel-axis none or --hot-pixels remove.'
    """
    if (
        isinstance(error, FileNotFoundError)
        and error.strerror == os.strerror(errno.ENOENT)
        and error.filename is None
    ):  # raised by os.getcwd
        return (
            f"the working folder no longer exists ({error.strerror}). Change to another folder, or "
            "give absolute paths."
        )
    text = error if isinstance(error, str) else error_message(error)
    text = re.sub(
        r"\b(nonfinite|missing|device|hot_pixels)=(['\"])([\w:]+)\2",
        lambda found: f"--{found[1].replace('_', '-')} {found[3]}",
        " ".join(text.split()),
    )
    text = re.sub(
        r"\ballow=\(([^)]*)\)",
        lambda found: " ".join(f"--allow {name}" for name in re.findall(r"'([^']+)'", found[1])),
        text,
    ).replace("overwrite=True", "--overwrite")
    text = re.sub(r"\bthe argument (\w+)", r"--\1", text)
    return re.sub(
        r"\bchannel_axis=(None|-?\d+)", lambda found: f"--channel-axis {found[1].lower()}", text
    )


def say(text: str) -> None:
    """Print a message for the user; unprintable characters are replaced."""
    with contextlib.suppress(BrokenPipeError):
        _console.print(text.encode("utf-8", "replace").decode(), markup=False, soft_wrap=True)


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning as a message, in place of `warnings.showwarning`."""
    if category is not DeprecationWarning:
        say(f"warning: {sentence(str(message))}")
