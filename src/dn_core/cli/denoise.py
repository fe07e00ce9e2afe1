"""Command line: ``dn-resnet denoise``."""

from __future__ import annotations

import contextlib
import errno
import os
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dn_core.cli.console import FAILURES, ChannelAxis, Debug, bar, explained, say, sentence
from dn_core.cli.signals import end_if_stopped
from dn_core.messages import counted

if TYPE_CHECKING:
    from dn_core.files import FoundImage, ImageFile
    from dn_core.inference.options import DenoiseOptions

__all__ = ["denoise"]

_IMAGE_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".zarr")


@dataclass(frozen=True, slots=True)
class _FileTask:
    """One input file, its output, and the folder that is created for it where it is missing."""

    source: Path
    target: Path
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class _Settings:
    """The options of the command that are the same for all files."""

    model: Any
    given_model: str | None
    channel_axis: Any
    amount: float
    sigma: float | None
    device: str | None
    tile_size: int | None
    nonfinite: Any
    hot_pixels: Any
    missing: Any
    compare: Path | None
    overwrite: bool
    dry_run: bool


def denoise(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Images, folders, or glob patterns in quotes."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file for one input; a folder for several.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="A name from 'dn-resnet models', one version of it (dn-fast@1), or a model file."
        ),
    ] = None,
    channel_axis: ChannelAxis = "auto",
    amount: Annotated[
        float, typer.Option(min=0, max=1, help="0 keeps the image, 1 denoises it fully.")
    ] = 1.0,
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the noise in grey levels, for models that need it."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps; by default the best available.")
    ] = None,
    tile_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels on a side computed at once; smaller needs less memory."),
    ] = None,
    nonfinite: Annotated[
        str, typer.Option(help="raise: refuse NaN and infinity; fill: leave them unchanged.")
    ] = "raise",
    hot_pixels: Annotated[
        str, typer.Option(help="Single pixels far beyond the noise: keep, or remove them.")
    ] = "keep",
    missing: Annotated[
        str | None,
        typer.Option(
            help="Missing chunks of zarr and missing tiles of TIFF are read as the fill value, "
            "and reported. refuse: refuse them; "
            "fill: also read whole planes that an OME-TIFF lacks as 0."
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Also write a before/after PNG (with one input).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done and why; write nothing."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Denoise images; shape, data type, axes, pixel size and channel names are unchanged."""
    from dn_core.inference.model import load_model

    with explained(debug):
        sources, absent = _sources(inputs, output)
        several = len(sources) + len(absent) > 1
        if compare is not None and several:
            raise ValueError(
                f"--compare takes one input, got {len(sources) + len(absent)}. Name one input."
            )
        if absent and (debug or not several):
            raise absent[0]
        settings = _Settings(
            model=load_model(model),
            given_model=model,
            channel_axis=channel_axis,
            amount=amount,
            sigma=sigma,
            device=device,
            tile_size=tile_size,
            nonfinite=nonfinite,
            hot_pixels=hot_pixels,
            missing=missing,
            compare=compare,
            overwrite=overwrite,
            dry_run=dry_run,
        )
        tasks = _tasks(sources, output, several=several, make_folders=not dry_run)
        if compare is not None:
            _check_comparison(compare, tasks[0], overwrite)
    for problem in absent:
        say(sentence(problem))
    failed = len(absent) + sum(not _succeeds(task, settings, debug) for task in tasks)
    if failed:
        if several:
            total = len(tasks) + len(absent)
            done = "planned" if settings.dry_run else "denoised"
            say(f"{total - failed} of {total} images {done}, {failed} failed (named above).")
        raise typer.Exit(1)


def _succeeds(task: _FileTask, settings: _Settings, debug: bool) -> bool:
    """Denoise one file; whether that succeeded. What failed is reported, or raised with `debug`."""
    try:
        with bar(task.source.name) as advance:
            _denoise_file(task, settings, advance)
    except FAILURES as error:
        end_if_stopped()
        if debug:
            raise
        say(f"{task.source}: {sentence(error)}")
        return False
    return True


def _denoise_file(
    task: _FileTask, settings: _Settings, advance: Callable[[int, int], None]
) -> None:
    """Denoise one file, or with ``--dry-run`` print the plan."""
    from dn_core import files
    from dn_core.inference.arrays import axes_of_file
    from dn_core.inference.options import DenoiseOptions

    with files.open_image(task.source, missing=settings.missing) as image:
        for note in image.notes:
            say(f"{task.source.name}: {note}")
        axes = axes_of_file(image, settings.channel_axis)
        if axes.note is not None:
            say(f"{task.source.name}: {sentence(axes.note)}")
        options = DenoiseOptions(
            **axes.options,
            amount=settings.amount,
            sigma=settings.sigma,
            device=settings.device,
            tile_size=settings.tile_size,
            nonfinite=settings.nonfinite,
            hot_pixels=settings.hot_pixels,
        )
        if settings.dry_run:
            _print_plan(task, image, options, settings)
            return
        if task.folder is not None:
            task.folder.mkdir(parents=True, exist_ok=True)
        files.check_output(task.target, image, overwrite=settings.overwrite)
        with files.create_image(task.target, image, overwrite=settings.overwrite) as target:
            _compute(task, image.source, target, options, settings, advance)
            if settings.compare is not None:
                from dn_core.comparison import write_comparison

                letters = axes.letters(image.axes)
                write_comparison(settings.compare, image.source, target, letters, **image.display)


def _compute(
    task: _FileTask,
    source: Any,
    target: Any,
    options: DenoiseOptions,
    settings: _Settings,
    advance: Callable[[int, int], None],
) -> None:
    from dn_core.inference.pipeline import plan_and_run

    steps = plan_and_run(source, settings.model.network, options, target)
    with contextlib.closing(steps):
        for step in steps:
            advance(step.done, step.total)
            for note in step.notes:  # with the name, as Python shows equal sentences only once
                warnings.warn(f"{task.source.name}: {note}", UserWarning, stacklevel=2)


def _print_plan(
    task: _FileTask, image: ImageFile, options: DenoiseOptions, settings: _Settings
) -> None:
    """What would be done with one file; what a run would refuse is refused here too."""
    from dn_core import files
    from dn_core.inference.arrays import InputImage
    from dn_core.inference.plan import make_plan

    if task.folder is not None and not task.folder.is_dir():  # a run makes it
        there = next(folder for folder in task.folder.parents if folder.exists())
        if not there.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, "the output folder must be in a folder, got a file", str(there)
            )
    else:
        files.check_output(task.target, image, overwrite=settings.overwrite)
    plan = make_plan(
        InputImage.of(image.source), settings.given_model, options, result_in_memory=False
    )
    typer.echo(f"{task.source} -> {task.target}\n{textwrap.indent(str(plan), '  ')}")


def _sources(inputs: list[str], output: Path) -> tuple[list[FoundImage], list[OSError]]:
    """The images that the inputs name, and errors for inputs that name none.

    Results of an earlier run, in an output folder inside an input folder, are not inputs.
    """
    from dn_core import files

    found: dict[str, FoundImage] = {}
    absent = []
    for given in inputs:
        try:
            for image in files.found_images([given]):
                found.setdefault(os.path.abspath(image.path), image)
        except OSError as error:
            absent.append(error)
    named = {os.path.abspath(given) for given in inputs}
    results = Path(os.path.realpath(output))
    sources = [
        image for path, image in found.items() if path in named or not _is_result(image, results)
    ]
    if len(sources) < len(found):
        say(
            f"left out {counted(len(found) - len(sources), 'image')} in {output}: results of an "
            "earlier run are not inputs."
        )
    return sources, absent


def _is_result(image: FoundImage, results: Path) -> bool:
    """Whether an image is in the output folder, and this inside the searched input folder."""
    searched = Path(os.path.realpath(image.path.parents[len(image.below.parts) - 1]))
    return searched in results.parents and results in Path(os.path.realpath(image.path)).parents


def _tasks(
    sources: list[FoundImage], output: Path, *, several: bool, make_folders: bool
) -> list[_FileTask]:
    """A file for one input; a folder for several inputs, or where a folder is named.

    Folders inside an input folder are repeated in the output.
    """
    ending = output.suffix.lower()
    if not several and sources and (ending == ".zarr" or (ending and not output.is_dir())):
        return [_FileTask(sources[0].path, output)]
    if ending == ".zarr" or (ending in _IMAGE_ENDINGS and not output.is_dir()):
        raise ValueError(
            f"--output must be a folder for several inputs, got the file name {output} for "
            f"{len(sources)} inputs. Name a folder."
        )
    places = [source.below for source in sources]
    if len(set(places)) < len(places):
        places = _places_below_common_folder([source.path for source in sources])
    if make_folders:
        output.mkdir(parents=True, exist_ok=True)
    return [
        _FileTask(source.path, output / place, (output / place).parent)
        for source, place in zip(sources, places, strict=True)
    ]


def _places_below_common_folder(paths: list[Path]) -> list[Path]:
    """Paths of results whose names, even with their folders below the inputs, are not unique."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    try:
        common = Path(os.path.commonpath([path.parent for path in whole]))
    except ValueError:  # on several drives
        raise ValueError(
            "inputs must have different names if they are on several drives, got equal ones. "
            "Denoise the drives one by one."
        ) from None
    say(f"several inputs have the same name: results go to the same folders as below {common}")
    return [path.relative_to(common) for path in whole]


def _check_comparison(path: Path, task: _FileTask, overwrite: bool) -> None:
    """Refuse, before anything is computed, a before/after picture that cannot be written."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--compare must end in .png, got {path}. Change it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            2,
            "the folder of the before/after picture is missing; create it first",
            str(path.parent),
        )
    taken = [Path(os.path.realpath(other)) for other in (task.source, task.target)]
    if Path(os.path.realpath(path)) in taken:
        raise ValueError(
            f"--compare must be a separate file, got {path}, which is the input or the output. "
            "Change it."
        )
    if path.exists() and not overwrite:
        raise FileExistsError(
            17,
            "the before/after picture exists; choose another name, or use --overwrite",
            str(path),
        )
