"""``dn-resnet``: the command line. Thin: it parses, draws bars and says what went wrong.

Exit codes: 0 all done, 1 some inputs failed (they are named), 2 wrong usage, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["app", "main"]

app = typer.Typer(
    name="dn-resnet",
    help="Denoise images with small residual networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class _Job:
    """One input file and where its result goes."""

    source: Path
    target: Path


@app.command()
def denoise(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders, or glob patterns in quotes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file for one input; a folder for several.")],
    model: Annotated[str | None, typer.Option(help="A name from 'dn-resnet models', or a model file.")] = None,
    channel_axis: Annotated[int | None, typer.Option(help="Axis of channels, where the file does not say.")] = None,
    amount: Annotated[float, typer.Option(min=0, max=1, help="0 keeps the image, 1 denoises it fully.")] = 1.0,
    noise: Annotated[float | None, typer.Option(help="Standard deviation of the noise in grey levels, for models that take one.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Pixels on a side computed at once; smaller needs less memory.")] = None,
    nonfinite: Annotated[str, typer.Option(help="raise: refuse NaN and infinity; fill: leave them where they are.")] = "raise",
    missing: Annotated[str, typer.Option(help="Missing zarr chunks: refuse, or fill with the fill value.")] = "refuse",
    compare: Annotated[Path | None, typer.Option(help="Also write a before/after PNG (with one input).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Denoise images; shape, data type, axes, pixel size and channel names stay as they are."""
    from dn_core import files
    from dn_core.inference.denoise import load_model

    with _explained(debug):
        jobs = _jobs(files.image_paths(inputs), output)
        if compare is not None and len(jobs) > 1:
            raise ValueError(f"--compare takes one picture, {len(jobs)} inputs came. Name one input.")
        loaded = load_model(model)
        options = {"amount": amount, "noise": noise, "device": device, "tile": tile, "nonfinite": nonfinite}
    failed = 0
    for job in jobs:
        try:
            with _bar(job.source.name) as advance:
                _denoise_file(job, loaded, options, channel_axis, missing, compare, overwrite, advance)
        except (ValueError, TypeError, OSError, MemoryError) as error:
            if debug:
                raise
            failed += 1
            _say(f"{job.source}: {_sentence(error)}")
    if failed:
        if len(jobs) > 1:
            _say(f"{len(jobs) - failed} of {len(jobs)} images denoised, {failed} failed (named above).")
        raise typer.Exit(1)


@app.command()
def models(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the models there are."""
    from rich.table import Table

    from dn_core.checkpoints import load_checkpoint
    from dn_core.models import registry

    table = Table("model", "weights", "kB", "made for", "description", box=None)
    with _explained(debug):
        for entry in registry.entries():
            registry.verify(entry)
            checkpoint = load_checkpoint(entry.path)
            weights = sum(value.size for value in checkpoint.weights.values())
            name = f"{entry.name} (default)" if entry.name == registry.default_name() else entry.name
            table.add_row(name, f"{weights:,}", f"{entry.bytes / 1000:.0f}", checkpoint.card.noise, checkpoint.card.description)
    Console().print(table)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see --help's end) or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Folder of clean images.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and the state to resume from.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Scale the recipe to this many steps.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one for each training is fastest.")] = 1,
    allow: Annotated[list[str] | None, typer.Option(help="A setting, such as recipe.phases, that may differ from the run resumed.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be used.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a model; the same command again goes on where it was stopped."""
    with _explained(debug):
        import torch

        from dn_core.memory import keep_freed_memory
        from dn_core.training.bank import load_bank
        from dn_core.training.fit import fit
        from dn_core.training.recipes import load_recipe

        keep_freed_memory()
        torch.set_num_threads(threads)
        loaded = load_recipe(recipe)
        loaded = loaded if steps is None else loaded.with_steps(steps)
        bank = load_bank(data, smallest=max(phase.patch for phase in loaded.phases), skip_bad=skip_bad)
        for item in bank.skipped:
            _say(f"skipped {item.path}: {item.reason}")
        _say(f"{loaded.name}: {len(bank.images)} images, {len(bank.held_out)} held out, {loaded.steps} steps")
        with _bar("training") as advance, contextlib.closing(fit(loaded, bank, out, device=device, allow=tuple(allow or ()))) as progress:
            for step in progress:
                advance(step.done, step.total)
                if step.psnr is not None and step.path is None:
                    _say(
                        f"epoch {step.epoch}: loss {step.loss:.5f}, held-out PSNR at sigma 25 {step.psnr:.2f} dB, "
                        f"{step.megapixels:.0f} Mpx, "
                        f"{step.megapixels_per_second:.2f} Mpx/s, {step.seconds_left / 60:.0f} min left"
                    )
                if step.path is not None:
                    typer.echo(step.path)


def main() -> None:
    """Run the command line, with signals and pipes handled as a shell expects."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="replace")  # type: ignore[union-attr]
    warnings.showwarning = _show_warning
    _stop_on_signals()
    try:
        app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _denoise_file(
    job: _Job,
    model: Any,
    options: dict[str, Any],
    channel_axis: int | None,
    missing: str,
    compare: Path | None,
    overwrite: bool,
    advance: Callable[[int, int], None],
) -> None:
    from dn_core import files
    from dn_core.inference.denoise import denoise_steps

    with files.open_image(job.source, missing=missing) as image:
        for note in image.notes:
            _say(f"{job.source.name}: {note}")
        files.check_output(job.target, image, overwrite=overwrite)
        axis = image.channel_axis if channel_axis is None else channel_axis
        with files.create_image(job.target, image, overwrite=overwrite) as target:
            steps = denoise_steps(image.source, model, channel_axis=axis, alpha=image.alpha, out=target, **options)
            with contextlib.closing(steps):
                for step in steps:
                    advance(step.done, step.total)
            if compare is not None:
                from dn_core.comparison import write_comparison

                write_comparison(compare, image.source, target, image.axes)


def _jobs(sources: list[Path], output: Path) -> list[_Job]:
    """A file for one input; a folder, made if it is not there, for several or where a folder is named."""
    if len(sources) == 1 and not output.is_dir() and output.suffix:
        return [_Job(sources[0], output)]
    if len(sources) == 1 and output.suffix == ".zarr":
        return [_Job(sources[0], output)]
    if output.suffix and not output.is_dir():
        raise ValueError(f"{len(sources)} inputs came, and {output} is a file name; a folder is expected for several. Name a folder.")
    output.mkdir(parents=True, exist_ok=True)
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several inputs are named {', '.join(twice[:5])}; their results would replace each other. Denoise their folders one by one."
        )
    return [_Job(source, output / source.name) for source in sources]


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the time left on a terminal; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def _explained(debug: bool) -> Iterator[None]:
    """An error as one sentence and exit code 1 (2 for a wrong use) instead of a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError, FloatingPointError) as error:
        if debug:
            raise
        _say(_sentence(error))
        raise typer.Exit(1) from None


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__


def _say(text: str) -> None:
    _console.print(text.encode("utf-8", "replace").decode(), markup=False, soft_wrap=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if category is not DeprecationWarning:
        _say(f"warning: {message}")


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP end as an exception, so that half-written files are removed on the way out."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


if __name__ == "__main__":
    main()
