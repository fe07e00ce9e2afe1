"""``dn-resnet denoise``."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dn_core.cli.console import FAILURES, ChannelAxis, Debug, bar, explained, say, sentence
from dn_core.cli.signals import end_if_stopped

if TYPE_CHECKING:
    from dn_core.files import FoundImage

__all__ = ["denoise"]

_IMAGE_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".zarr")


@dataclass(frozen=True, slots=True)
class _Job:
    """One input file, where its result goes, and the folder that is made for it if there is none."""

    source: Path
    target: Path
    folder: Path | None = None


def denoise(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Images, folders, or glob patterns in quotes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file for one input; a folder for several.")],
    model: Annotated[str | None, typer.Option(help="A name from 'dn-resnet models', or a model file.")] = None,
    channel_axis: ChannelAxis = "auto",
    amount: Annotated[float, typer.Option(min=0, max=1, help="0 keeps the image, 1 denoises it fully.")] = 1.0,
    noise: Annotated[float | None, typer.Option(help="Standard deviation of the noise in grey levels, for models that take one.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Pixels on a side computed at once; smaller needs less memory.")] = None,
    nonfinite: Annotated[str, typer.Option(help="raise: refuse NaN and infinity; fill: leave them where they are.")] = "raise",
    hot_pixels: Annotated[str, typer.Option(help="Single pixels far beyond the noise: keep, or remove them.")] = "keep",
    missing: Annotated[
        str | None,
        typer.Option(
            help="Chunks of zarr and tiles of TIFF that are not there are read as the fill value, and told. refuse: refuse them; "
            "fill: read also whole planes that an OME-TIFF lacks as 0."
        ),
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="Also write a before/after PNG (with one input).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    debug: Debug = False,
) -> None:
    """Denoise images; shape, data type, axes, pixel size and channel names stay as they are."""
    from dn_core.inference.denoise import load_model

    with explained(debug):
        sources, absent = _sources(inputs, output)
        several = len(sources) + len(absent) > 1
        if compare is not None and several:
            raise ValueError(f"--compare takes one picture, {len(sources) + len(absent)} inputs came. Name one input.")
        if absent and (debug or not several):
            raise absent[0]
        loaded = load_model(model)
        options = {"amount": amount, "noise": noise, "device": device, "tile": tile, "nonfinite": nonfinite}
        options["hot_pixels"] = hot_pixels
        jobs = _jobs(sources, output, several=several)
        if compare is not None:
            _check_comparison(compare, jobs[0], overwrite)
    for problem in absent:
        say(sentence(problem))
    failed = len(absent)
    for job in jobs:
        try:
            with bar(job.source.name) as advance:
                _denoise_file(job, loaded, options, channel_axis, missing, compare, overwrite, advance)
        except FAILURES as error:
            end_if_stopped()
            if debug:
                raise
            failed += 1
            say(f"{job.source}: {sentence(error)}")
    if failed:
        if several:
            total = len(jobs) + len(absent)
            say(f"{total - failed} of {total} images denoised, {failed} failed (named above).")
        raise typer.Exit(1)


def _denoise_file(
    job: _Job,
    model: Any,
    options: dict[str, Any],
    channel_axis: Any,
    missing: str | None,
    compare: Path | None,
    overwrite: bool,
    advance: Callable[[int, int], None],
) -> None:
    from dn_core import files
    from dn_core.inference.arrays import axes_of_file
    from dn_core.inference.denoise import denoise_steps

    with files.open_image(job.source, missing=missing) as image:
        for note in image.notes:
            say(f"{job.source.name}: {note}")
        axes = axes_of_file(image, channel_axis)
        if axes.note is not None:
            say(f"{job.source.name}: {sentence(axes.note)}")
        if job.folder is not None:
            job.folder.mkdir(parents=True, exist_ok=True)
        files.check_output(job.target, image, overwrite=overwrite)
        with files.create_image(job.target, image, overwrite=overwrite) as target:
            steps = denoise_steps(image.source, model, **axes.options, out=target, **options)
            with contextlib.closing(steps):
                for step in steps:
                    advance(step.done, step.total)
                    for note in step.notes:  # by name, as Python says the same sentence only once
                        warnings.warn(f"{job.source.name}: {note}", UserWarning, stacklevel=2)
            if compare is not None:
                from dn_core.comparison import write_comparison

                write_comparison(compare, image.source, target, axes.letters(image.axes), **image.shown)


def _sources(inputs: list[str], output: Path) -> tuple[list[FoundImage], list[OSError]]:
    """The images that the inputs stand for, and what is wrong with inputs that stand for none.

    Results of an earlier run, in an output folder inside an input folder, are no inputs.
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
    sources = [image for path, image in found.items() if path in named or not _is_result(image, results)]
    if len(sources) < len(found):
        say(f"{len(found) - len(sources)} images in {output} are taken for results of an earlier run, not for inputs.")
    return sources, absent


def _is_result(image: FoundImage, results: Path) -> bool:
    """Whether an image lies in the output folder, and that inside the folder in which the image was looked for."""
    searched = Path(os.path.realpath(image.path.parents[len(image.below.parts) - 1]))
    return searched in results.parents and results in Path(os.path.realpath(image.path)).parents


def _jobs(sources: list[FoundImage], output: Path, *, several: bool) -> list[_Job]:
    """A file for one input; a folder, made if it is not there, for several or where a folder is named.

    Folders inside an input folder go to the same folders in the output.
    """
    ending = output.suffix.lower()
    if not several and sources and (ending == ".zarr" or (ending and not output.is_dir())):
        return [_Job(sources[0].path, output)]
    if ending == ".zarr" or (ending in _IMAGE_ENDINGS and not output.is_dir()):
        raise ValueError(f"{len(sources)} inputs came, and {output} is a file name; a folder is expected for several. Name a folder.")
    places = [source.below for source in sources]
    if len(set(places)) < len(places):
        places = _places_below_common_folder([source.path for source in sources])
    output.mkdir(parents=True, exist_ok=True)
    return [_Job(source.path, output / place, (output / place).parent) for source, place in zip(sources, places, strict=True)]


def _places_below_common_folder(paths: list[Path]) -> list[Path]:
    """Where results go whose names alone, or with their folders below the inputs, are not enough to tell them apart."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    try:
        common = Path(os.path.commonpath([path.parent for path in whole]))
    except ValueError:  # on several drives
        raise ValueError(
            "inputs on several drives have the same names; their results would replace each other. Denoise the drives one by one."
        ) from None
    say(f"several inputs have the same name: results go to folders as they lie below {common}")
    return [path.relative_to(common) for path in whole]


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
