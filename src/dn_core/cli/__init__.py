"""The command line, ``dn-resnet``: it parses options, draws progress bars and reports errors.

Exit codes: 0 all done, 1 some inputs failed (they are named), 2 wrong usage, 130 Ctrl-C, 143
SIGTERM or the end of standard input with ``--control``, 129 SIGHUP. A closed output pipe, as with
``head``, is not an error.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer

from dn_core.cli import denoise, evaluate, models, phantoms, train
from dn_core.cli.console import open_closed_streams, say, sentence, show_warning
from dn_core.cli.signals import end_if_stopped, stop_on_signals

__all__ = ["app", "main"]

app = typer.Typer(
    name="dn-resnet",
    help="Denoise images with small residual networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(denoise.denoise)
app.command(cls=train.TrainCommand)(train.train)
app.command()(train.finetune)
app.command()(phantoms.phantoms)
app.command()(evaluate.evaluate)
app.add_typer(models.models_app)

# The base class of usage errors; new versions of typer have their own copy of click, old ones not.
_USAGE_ERROR: type[Any] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; signals and closed pipes are handled as shells expect."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    warnings.showwarning = show_warning
    stop_on_signals()
    command = typer.main.get_command(app)
    try:
        # Not command(), which turns Ctrl-C and closed pipes into other exit codes.
        with command.make_context("dn-resnet", sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except _USAGE_ERROR as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        end_if_stopped()
        if "--debug" in sys.argv:
            raise
        say(f"{type(error).__name__}: {sentence(error)} (--debug shows the traceback)")
        sys.exit(1)
