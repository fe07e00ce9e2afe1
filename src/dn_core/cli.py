"""``dn-resnet``: the command line. Thin: it parses, draws bars and says what went wrong.

Exit codes: 0 all done, 1 some inputs failed (they are named), 2 wrong usage, 130 Ctrl-C, 143 SIGTERM or the end of standard input with
``--control``, 129 SIGHUP. A reader of the output that goes away, as ``head`` does, is no failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand

__all__ = ["app", "main"]

app = typer.Typer(
    name="dn-resnet",
    help="Denoise images with small residual networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# The base of all complaints about usage; typer has its own copy of click in new versions and none in old ones.
_USAGE_ERROR: type[Any] = typer.BadParameter.__bases__[0]
# What a bad file or a full machine raises; RuntimeError is how engines say that they cannot go on.
_FAILURES = (ValueError, TypeError, OSError, MemoryError, RuntimeError, ArithmeticError, ImportError)
_IMAGE_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".zarr")
_stopped_by: list[int] = []  # signals that have come
_WIDE = 250  # columns of a table that no terminal shows: nothing is wrapped


class _Messages(Console):
    """Messages on standard error. A reader who goes away does not end the work."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _TrainCommand(TyperCommand):
    """Its help ends with the recipes there are, which are looked up only then."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from dn_core.training.recipes import recipe_descriptions

        with formatter.section("Shipped recipes"):
            formatter.write_dl(sorted(recipe_descriptions().items()))
        super().format_epilog(ctx, formatter)


_console = _Messages(stderr=True, highlight=False)
_models_app = typer.Typer(name="models", invoke_without_command=True, rich_markup_mode=None)
app.add_typer(_models_app)


@dataclass(frozen=True, slots=True)
class _Job:
    """One input file and where its result goes."""

    source: Path
    target: Path


@app.command()
def denoise(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Images, folders, or glob patterns in quotes.")],
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
    from dn_core.inference.denoise import load_model

    with _explained(debug):
        sources, absent = _sources(inputs, output)
        several = len(sources) + len(absent) > 1
        if compare is not None and several:
            raise ValueError(f"--compare takes one picture, {len(sources) + len(absent)} inputs came. Name one input.")
        if absent and (debug or not several):
            raise absent[0]
        loaded = load_model(model)
        options = {"amount": amount, "noise": noise, "device": device, "tile": tile, "nonfinite": nonfinite}
        jobs = _jobs(sources, output, several=several)
        if compare is not None:
            _check_comparison(compare, jobs[0], overwrite)
    for problem in absent:
        _say(_sentence(problem))
    failed = len(absent)
    for job in jobs:
        try:
            with _bar(job.source.name) as advance:
                _denoise_file(job, loaded, options, channel_axis, missing, compare, overwrite, advance)
        except _FAILURES as error:
            _end_if_stopped()
            if debug:
                raise
            failed += 1
            _say(f"{job.source}: {_sentence(error)}")
    if failed:
        if several:
            total = len(jobs) + len(absent)
            _say(f"{total - failed} of {total} images denoised, {failed} failed (named above).")
        raise typer.Exit(1)


@_models_app.callback()
def models(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the models there are; get, add and remove some."""
    if context.invoked_subcommand is None:
        list_models(debug=debug)


@_models_app.command("list")
def list_models(
    address: Annotated[str | None, typer.Option("--registry", help="A folder or web address: list what it offers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the models on this machine, or those of a registry."""
    from dn_core.models import registry, remote

    with _explained(debug):
        listed = registry.entries() if address is None else remote.remote_entries(address)
        if as_json:
            typer.echo(json.dumps([dataclasses.asdict(entry) | {"location": entry.location} for entry in listed], indent=1))
            return
    _print_models(listed, registry.default_name(), debug)


@_models_app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'dn-resnet models list --registry ADDRESS' shows it.")],
    address: Annotated[str, typer.Option("--registry", envvar="DN_REGISTRY", help="A folder or web address.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Download a model from a registry; it is then known by its name."""
    from dn_core.models import remote

    with _explained(debug), _bar(name) as advance, contextlib.closing(remote.fetch_steps(name, address)) as steps:
        for step in steps:
            advance(step.done, step.total)
            if step.path is not None:
                typer.echo(step.path)


@_models_app.command("add")
def add_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model file, such as dn-resnet train writes.")],
    name: Annotated[str | None, typer.Option(help="What to call it; by default what its card says.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Copy a model of your own in; it is then known by its name."""
    from dn_core.models import registry

    with _explained(debug):
        typer.echo(registry.add(file, name).path)


@_models_app.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A downloaded model or one of your own.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Delete a downloaded model, or one of your own."""
    from dn_core.models import registry

    with _explained(debug):
        registry.remove(name)


_JSON = typer.Option("--json", help="Print progress as JSON lines: start, step, epoch, preview, done, error (see docs/training.md).")
_CONTROL = typer.Option(
    "--control",
    help="As --json, and obey lines on standard input: pause, resume, stop (done, exit code 0). When standard input ends, so does the "
    "training: its state is saved, exit code 143.",
)


@app.command(cls=_TrainCommand)
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (named below) or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Folder of clean images.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and the state to resume from.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Scale the recipe to this many steps.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one for each training is fastest.")] = 1,
    allow: Annotated[list[str] | None, typer.Option(help="A setting, such as recipe.phases, that may differ from the run resumed.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be used.")] = False,
    json_lines: Annotated[bool, _JSON] = False,
    control: Annotated[bool, _CONTROL] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a model; the same command again goes on where it was stopped."""
    with _explained(debug), _driven(json_lines, control, threads) as driver:
        from dn_core.training.bank import load_bank
        from dn_core.training.cascade import train_stages
        from dn_core.training.recipes import load_recipe

        loaded = load_recipe(recipe)
        loaded = loaded if steps is None else loaded.with_steps(steps)
        bank = load_bank(data, smallest=max(phase.patch for phase in loaded.phases), skip_bad=skip_bad)
        for item in bank.skipped:
            _say(f"skipped {item.path}: {item.reason}")
        _say(
            f"{loaded.name}: {len(bank.images)} images, {len(bank.held_out)} held out, "
            f"{len(bank.skipped)} files skipped, {loaded.steps} steps"
        )
        training = train_stages(loaded, bank, out, device=device, allow=tuple(allow or ()))
        if driver is not None:
            from dn_core.control import emit, train_events

            emit("start", name=loaded.name, total=loaded.steps, images=len(bank.images), held_out=len(bank.held_out))
            train_events(training, driver.control)
            return
        with _bar("training") as advance, contextlib.closing(training) as progress:
            for step in progress:
                advance(step.done, step.total)
                if step.path is None and (step.done % loaded.epoch == 0 or step.done == step.total):
                    score = "" if step.psnr is None else f"held-out PSNR at sigma 25 {step.psnr:.2f} dB, "
                    stage = f"stage {step.stage + 1} of {step.stages}, " if step.stages > 1 else ""
                    _say(
                        f"{stage}epoch {step.epoch}: loss {step.loss:.5f}, {score}{step.megapixels:.0f} Mpx, "
                        f"{step.megapixels_per_second:.2f} Mpx/s, {step.seconds_left / 60:.0f} min left"
                    )
                if step.path is not None:
                    typer.echo(step.path)


@app.command()
def finetune(
    out: Annotated[Path, typer.Option(help="Folder for the model and, in NAME-training, the state to go on from.")],
    noisy: Annotated[Path | None, typer.Option(help="Noisy images: a file, or a folder; --clean has those of the same names.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean images: a file, or a folder.")] = None,
    repeats: Annotated[Path | None, typer.Option(help="Repeats of a scene: a stack, or a folder of single images or of stacks.")] = None,
    axis: Annotated[int, typer.Option(help="Axis of the repeats in a stack.")] = 0,
    noise_kind: Annotated[str | None, typer.Option(help="Noise to put on --clean alone: gaussian, poisson or poisson-gaussian.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Of gaussian noise in grey levels, of poisson-gaussian in photons.")] = None,
    peak: Annotated[float | None, typer.Option(help="Mean count of photons at --white.")] = None,
    black: Annotated[float | None, typer.Option(help="Grey level without light; by default found from the images.")] = None,
    white: Annotated[float | None, typer.Option(help="Grey level of the brightest parts; by default found from the images.")] = None,
    start: Annotated[str | None, typer.Option(help="A name from 'dn-resnet models', or a model file, to adapt.")] = None,
    name: Annotated[str, typer.Option(help="Name of the new model.")] = "finetuned",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training; 1500 without --minutes.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="About how long to train.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one for each training is fastest.")] = 1,
    allow: Annotated[list[str] | None, typer.Option(help="A setting, such as recipe.phases, that may differ from the run resumed.")] = None,
    json_lines: Annotated[bool, _JSON] = False,
    control: Annotated[bool, _CONTROL] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Adapt a model to your own images: noisy and clean pairs, repeats of a scene, or clean images and their noise.

    The file holds the best weights so far at any time, those at the start included. The same command again goes on where it was stopped.
    """
    with _explained(debug), _driven(json_lines, control, threads) as driver:
        from dn_core.training.finetune import finetune_steps, images_from, training_folder

        noise = _noise_table(noise_kind, sigma, peak)
        images = images_from(noisy=noisy, clean=clean, repeats=repeats, axis=axis, noise=noise, black=black, white=white)
        options = {"start": start, "name": name, "steps": steps, "minutes": minutes, "device": device, "allow": tuple(allow or ())}
        training = finetune_steps(images, out, **options)  # type: ignore[arg-type]
        told = images.describe()
        if driver is not None:
            from dn_core.control import finetune_events

            finetune_events(training, training_folder(out, name), {"name": name, "images": told}, driver.control)
            return
        _say(f"{name}: {told['scenes']} scenes, {told['images']} images, black {images.black:g}, white {images.white:g} grey levels")
        with _bar("training") as advance, contextlib.closing(training) as progress:
            for step in progress:
                advance(step.done, step.total)
                if step.psnr is not None:
                    left = "" if step.done == 0 else f", {step.seconds_left / 60:.1f} min left"
                    _say(f"step {step.done} of {step.total}: held-out PSNR {step.psnr:.2f} dB (best {step.best_psnr:.2f}){left}")
        gain = step.best_psnr - step.start_psnr
        _say(f"{gain:+.2f} dB after {step.best_step} steps" if step.best_step else "kept the starting weights, as nothing did better")
        typer.echo(step.path)


def _noise_table(kind: str | None, sigma: float | None, peak: float | None) -> dict[str, Any] | None:
    """The noise that the options describe."""
    values = {name: value for name, value in (("sigma", sigma), ("peak", peak)) if value is not None}
    if kind is None:
        if values:
            raise ValueError(f"--{next(iter(values))} came without the kind of noise; one is expected. Add --noise-kind.")
        return None
    needed = {"gaussian": {"sigma"}, "poisson": {"peak"}, "poisson-gaussian": {"sigma", "peak"}}
    if kind not in needed:
        raise ValueError(f"--noise-kind is {kind!r}; one of {', '.join(needed)} is expected. Change it.")
    if needed[kind] != values.keys():
        wanted = " and ".join(f"--{name}" for name in sorted(needed[kind]))
        raise ValueError(f"{' and '.join(f'--{name}' for name in values) or 'nothing'} came for {kind} noise; {wanted} is expected.")
    return {"kind": kind, **values}


@dataclass(frozen=True, slots=True)
class _Driver:
    """Another program, which reads JSON lines and may have its say."""

    control: Any


@contextlib.contextmanager
def _driven(json_lines: bool, control: bool, threads: int) -> Iterator[_Driver | None]:
    """Prepare a training; where another program drives it, errors are told as events too."""
    from dn_core.control import Control, emit

    driver = _Driver(Control() if control else None) if json_lines or control else None
    try:
        import torch

        from dn_core.memory import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(threads)
        yield driver
    except Exception as error:
        if driver is not None and not isinstance(error, (BrokenPipeError, typer.Exit)):
            emit("error", message=_sentence(error))
        raise


@app.command()
def evaluate(
    data: Annotated[list[Path], typer.Option(help="Folder of clean test images; may be given several times.")],
    model: Annotated[list[str] | None, typer.Option(help="A name or a file; may be given several times. Default: all there are.")] = None,
    peer: Annotated[list[Path] | None, typer.Option(help="Weights of DnCNN or FFDNet (.safetensors) to measure beside them.")] = None,
    table: Annotated[int | None, typer.Option(min=1, max=5, help="A table of the paper to print ours beside.")] = None,
    level: Annotated[
        list[str] | None, typer.Option(help="A level, such as 'gaussian 25' or 'jpeg 10'; may be given several times.")
    ] = None,
    figure: Annotated[int | None, typer.Option(help="A figure of the paper to draw instead: 6 (crops) or 8 (compression).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images of each folder.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    speed: Annotated[bool, typer.Option("--speed", help="Also time each model.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the table as .md, .csv and .json, or for the figure.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure models as the paper does: PSNR and SSIM at its levels of noise, beside its own figures."""
    with _explained(debug):
        from dn_core.evaluation import measure, tables
        from dn_core.evaluation.peers import PeerMethod, load_peer
        from dn_core.models import registry

        levels = _levels(table, level)
        sets = {folder.name: measure.read_images(folder, limit) for folder in data}
        if len(sets) < len(data):
            raise ValueError("two folders of --data have the same name; different ones are expected, as tables name them so.")
        methods: list[Any] = [measure.OwnMethod(name) for name in model or [entry.name for entry in registry.entries()]]
        methods += [PeerMethod(load_peer(path)) for path in peer or ()]
        if len(names := {method.name for method in methods}) < len(methods):
            raise ValueError(
                f"two models have the same name (there are {', '.join(sorted(names))}); rename one's card, or measure it alone."
            )
        if figure is not None:
            _draw_figure(figure, methods, sets, levels if level else levels[-1:], seed, out)
            return
        costs = {method.name: tables.Cost.of(method, measure.milliseconds(method) if speed else None) for method in methods}
        scores: list[tuple[str, Any]] = []
        with _bar("measuring") as advance:
            for name, images in sets.items():
                for score in measure.evaluate(methods, images, levels, seed):
                    advance(len(scores) + 1, score.total * len(sets))
                    scores.append((name, score))
        found = tables.table_of(table, scores, costs)
        if out is not None:
            _write_table(out, f"table-{table}" if table else "scores", found)
        typer.echo(found.as_markdown(), nl=False)


def main() -> None:
    """Run the command line, with signals and pipes handled as a shell expects."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    warnings.showwarning = _show_warning
    _stop_on_signals()
    command = typer.main.get_command(app)
    try:
        # Not command(): that turns Ctrl-C and closed pipes into codes of its own.
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
        _end_if_stopped()
        if "--debug" in sys.argv:
            raise
        _say(f"{type(error).__name__}: {_sentence(error)} (--debug shows where)")
        sys.exit(1)


def _print_models(listed: Sequence[Any], default: str, debug: bool) -> None:
    """A table of models. A damaged one is named, the others are listed, and the exit code is 1."""
    from rich.table import Table

    from dn_core.checkpoints import load_checkpoint

    table, damaged = Table("model", "weights", "kB", "kind", "made for", "description", box=None), False
    for entry in listed:
        try:
            checkpoint = None if entry.kind == "remote" else load_checkpoint(entry.path, entry.sha256)
        except _FAILURES as error:
            if debug:
                raise
            damaged = True
            _say(f"{entry.name}: {_sentence(error)}")
            continue
        weights = f"{sum(value.size for value in checkpoint.weights.values()):,}" if checkpoint else ""
        card = checkpoint.card if checkpoint else entry.card()
        name = f"{entry.name} (default)" if (entry.name, entry.kind) == (default, "bundled") else entry.name
        kind = f"{entry.kind}, version {entry.version}" if entry.kind in ("downloaded", "remote") else entry.kind
        table.add_row(name, weights, f"{entry.bytes / 1000:.0f}", kind, card.noise, card.description)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    if damaged:
        raise typer.Exit(1)


def _levels(table: int | None, wanted: list[str] | None) -> list[Any]:
    """The levels of a table, or those wanted."""
    from dn_core.evaluation import measure, tables

    names = wanted or list(measure.paper_levels())
    if table == 5 and not wanted:
        names = list(dict.fromkeys(row.partition(": ")[2] for row in tables.paper_rows(5)))
    return [measure.level_named(name) for name in names]


def _write_table(folder: Path, name: str, table: Any) -> None:
    from dn_core.safe_write import replaced_file

    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in ((".md", table.as_markdown()), (".csv", table.as_csv()), (".json", table.as_json())):
        with replaced_file(folder / f"{name}{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")


def _draw_figure(number: int, methods: list[Any], sets: dict[str, Any], levels: list[Any], seed: int, out: Path | None) -> None:
    from dn_core.evaluation import figures
    from dn_core.safe_write import replaced_file

    if number not in (6, 8):
        raise ValueError(f"--figure is {number}; 6 or 8 is expected. Change it.")
    if out is None:
        raise ValueError("--figure needs a folder to draw to; --out is expected. Add it.")
    out.mkdir(parents=True, exist_ok=True)
    for name, images in sets.items():
        path = out / f"figure-{number}-{name}.png"
        if number == 6:
            figures.draw_crops(path, methods, images, levels, seed)
        else:
            total = sum(len(settings) for _, settings in figures.codecs().values())
            points = []
            with _bar(name) as advance:
                for point in figures.measure_curves(methods, images):
                    points.append(point)
                    advance(len(points), total)
            figures.draw_curves(path, points)
            with replaced_file(path.with_suffix(".csv")) as temporary:
                temporary.write_text(figures.curves_as_csv(points), encoding="utf-8", newline="")
        typer.echo(path)


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
        with files.create_image(job.target, image, overwrite=overwrite) as target:
            steps = denoise_steps(image.source, model, **image.channels(channel_axis), out=target, **options)
            with contextlib.closing(steps):
                for step in steps:
                    advance(step.done, step.total)
            if compare is not None:
                from dn_core.comparison import write_comparison

                write_comparison(compare, image.source, target, image.axes)


def _sources(inputs: list[str], output: Path) -> tuple[list[Path], list[OSError]]:
    """The images that the inputs stand for, and what is wrong with inputs that stand for none.

    Results of an earlier run, in an output folder inside an input folder, are no inputs.
    """
    from dn_core import files

    there, absent = [], []
    for given in inputs:
        try:
            files.image_paths([given])
        except OSError as error:
            absent.append(error)
        else:
            there.append(given)
    named = {Path(os.path.abspath(given)) for given in there}
    results = Path(os.path.abspath(output))
    paths = [(path, Path(os.path.abspath(path))) for path in files.image_paths(there)]
    return [path for path, whole in paths if whole in named or results in named or results not in whole.parents], absent


def _jobs(sources: list[Path], output: Path, *, several: bool) -> list[_Job]:
    """A file for one input; a folder, made if it is not there, for several or where a folder is named."""
    ending = output.suffix.lower()
    if not several and sources and (ending == ".zarr" or (ending and not output.is_dir())):
        return [_Job(sources[0], output)]
    if ending == ".zarr" or (ending in _IMAGE_ENDINGS and not output.is_dir()):
        raise ValueError(f"{len(sources)} inputs came, and {output} is a file name; a folder is expected for several. Name a folder.")
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several inputs are named {', '.join(twice[:5])}; their results would replace each other. Denoise their folders one by one."
        )
    output.mkdir(parents=True, exist_ok=True)
    return [_Job(source, output / source.name) for source in sources]


def _check_comparison(path: Path, job: _Job, overwrite: bool) -> None:
    """Refuse, before anything is computed, a before/after picture that cannot or must not be written."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--compare is {path}; a name that ends in .png is expected. Change it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "the folder of the before/after picture is missing; create it first", str(path.parent))
    taken = [Path(os.path.realpath(other)) for other in (job.source, job.target)]
    if Path(os.path.realpath(path)) in taken:
        raise ValueError(f"--compare is {path}, which is the input or the output; a file of its own is expected. Change it.")
    if path.exists() and not overwrite:
        raise FileExistsError(17, "the before/after picture exists; choose another name, or allow overwriting it", str(path))


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
    except typer.Exit:
        raise
    except _FAILURES as error:
        _end_if_stopped()
        if debug or isinstance(error, BrokenPipeError):
            raise
        _say(_sentence(error))
        raise typer.Exit(1) from None


def _sentence(error: BaseException) -> str:
    """The message, on one line, with options named as they are here and not as arguments of functions."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\b(nonfinite|missing|device)=(['\"])([\w:]+)\2", r"--\1 \3", text)


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        _console.print(text.encode("utf-8", "replace").decode(), markup=False, soft_wrap=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if category is not DeprecationWarning:
        _say(f"warning: {message}")


def _end_if_stopped() -> None:
    """Modules in C that are just being imported turn the end by a signal into an ImportError; it is an end all the same."""
    if _stopped_by:
        raise SystemExit(128 + _stopped_by[0])


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP end as an exception, so that half-written files are removed on the way out."""

    def stop(number: int, _: FrameType | None) -> None:
        _stopped_by.append(number)
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


if __name__ == "__main__":
    main()
