"""``dn-resnet train`` and ``dn-resnet finetune``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dn_core.cli.console import ChannelAxis, Debug, bar, explained, say, sentence
from dn_core.messages import counted

if TYPE_CHECKING:
    from dn_core.training.events import TrainingEvent

__all__ = ["TrainCommand", "finetune", "train"]

Device = Annotated[str, typer.Option(help="cpu, cuda or mps.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; 1 per training run is fastest.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="A setting, such as recipe.phases, that may differ from the run to resume."),
]
_JSON_HELP = (
    "Print progress as JSON lines of the kinds start, step, epoch, stage, preview, done and error "
    "(see docs/training.md)."
)
JsonLines = Annotated[bool, typer.Option("--json", help=_JSON_HELP)]
_CONTROL_HELP = (
    "As --json, and obey commands on standard input: pause, resume, stop (done, exit code 0). When "
    "standard input ends, the training run ends too: its state is saved, exit code 143."
)
Obey = Annotated[bool, typer.Option("--control", help=_CONTROL_HELP)]


class TrainCommand(TyperCommand):
    """A command whose help ends with the bundled recipes, which are looked up only then."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the end of the help."""
        from dn_core.training.recipes import recipe_descriptions

        with formatter.section("Bundled recipes"):
            formatter.write_dl(sorted(recipe_descriptions().items()))
        super().format_epilog(ctx, formatter)


def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A bundled recipe (listed below) or a TOML file."),
    ],
    data: Annotated[
        str, typer.Option(help="Folder of clean images, or 'phantoms': made-up ones, no files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model and the state to resume from.")],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Scale the recipe to this many steps per stage; a longer last stage is scaled in "
            "proportion.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="A model, by name, version (dn-fast@1) or file, to start from instead of the "
            "recipe's start."
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    allow: Allow = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.")
    ] = False,
    json_lines: JsonLines = False,
    control: Obey = False,
    debug: Debug = False,
) -> None:
    """Train a model; the same command again resumes a run that was stopped."""
    with explained(debug), _driven(json_lines, control, threads) as driver:
        from dn_core.training.data.phantom_images import HELD_OUT, training_images
        from dn_core.training.recipes import load_recipe
        from dn_core.training.stages import train_stages

        loaded = load_recipe(recipe)
        loaded = loaded if steps is None else loaded.with_steps(steps)
        loaded = loaded if start is None else replace(loaded, start=start)
        dataset = training_images(data, loaded, skip_bad=skip_bad)
        for item in dataset.skipped:
            say(f"skipped {item.path}: {item.reason}")
        last = (
            f", {sum(phase.steps for phase in loaded.last_phases)} in the last stage"
            if loaded.last_phases
            else ""
        )
        last += f", at most {loaded.minutes:g} minutes a stage" if loaded.minutes else ""
        mixed = loaded.phantoms and not dataset.made_up
        beside = f" (made-up ones for {loaded.phantoms:.0%} of the patches)" if mixed else ""
        held_out = len(dataset.held_out) or (HELD_OUT if mixed else 0)
        which = " made-up ones" if mixed and not dataset.held_out else ""
        say(
            f"{loaded.name}: {dataset.in_words}{beside}, {held_out}{which} held out, "
            f"{counted(len(dataset.skipped), 'file')} skipped, "
            f"{counted(loaded.steps, 'step')}{last}"
        )
        training = train_stages(loaded, dataset, out, device=device, allow=tuple(allow or ()))
        if driver is not None:
            from dn_core.json_lines import emit, train_events

            emit(
                "start",
                name=loaded.name,
                total_steps=loaded.steps,
                images=dataset.count,
                held_out=held_out,
            )
            train_events(training, driver.control)
            return
        with bar("training") as advance, contextlib.closing(training) as progress:
            for event in progress:
                advance(event.fraction, 1.0)
                if event.kind == "epoch":
                    say(_epoch_line(event))
                if event.kind == "done":
                    typer.echo(event.path)


def finetune(
    out: Annotated[
        Path,
        typer.Option(help="Folder for the model and, in NAME-training, the state to resume from."),
    ],
    noisy: Annotated[
        Path | None,
        typer.Option(
            help="Noisy images: a file, or a folder; --clean has images of the same names."
        ),
    ] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean images: a file, or a folder.")] = None,
    repeats: Annotated[
        Path | None,
        typer.Option(
            help="Repeats of a scene: a stack, or a folder of single images or of stacks."
        ),
    ] = None,
    axis: Annotated[int, typer.Option(help="Axis of the repeats in a stack.")] = 0,
    channel_axis: ChannelAxis = "auto",
    noise_kind: Annotated[
        str | None,
        typer.Option(
            help="Noise to add to --clean alone: detector (a camera's, with --gain and "
            "--read-noise), gaussian, poisson or poisson-gaussian."
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Sigma of gaussian noise in grey levels, of poisson-gaussian in photons."
        ),
    ] = None,
    peak: Annotated[float | None, typer.Option(help="Mean photon count at --white.")] = None,
    gain: Annotated[
        float | None, typer.Option(help="Of a detector: grey levels for each photoelectron.")
    ] = None,
    read_noise: Annotated[
        float | None, typer.Option(help="Of a detector: noise without light, in grey levels.")
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(help="Of a detector: the grey level without light; 0 by default."),
    ] = None,
    correlation: Annotated[
        float | None,
        typer.Option(help="Of a detector: width of the Gaussian that blurs its noise, in pixels."),
    ] = None,
    black: Annotated[
        float | None,
        typer.Option(help="Grey level of the darkest parts; by default estimated from the images."),
    ] = None,
    white: Annotated[
        float | None,
        typer.Option(
            help="Grey level of the brightest parts; by default estimated from the images."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="A name from 'dn-resnet models', one version of it (dn-fast@1), or a model file, "
            "to adapt."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the new model.")] = "finetuned",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; 1500 without --minutes.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Minutes to train; with --steps, whichever ends first."),
    ] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    allow: Allow = None,
    json_lines: JsonLines = False,
    control: Obey = False,
    debug: Debug = False,
) -> None:
    """Adapt a model to your own images.

    Give noisy and clean pairs, repeats of a scene, or clean images and their noise. The file has
    the best weights so far at any time; where nothing does better than the model at the start,
    there is no file. The same command again resumes a run that was stopped, for the rest of its
    --minutes.
    """
    with explained(debug), _driven(json_lines, control, threads) as driver:
        from dn_core.training.finetune_recipe import check_name
        from dn_core.training.finetuning import finetune_steps, images_from, training_folder

        check_name(name, "--name")
        noise = _noise_table(noise_kind, (sigma, peak, gain, read_noise, offset, correlation))
        images = images_from(
            noisy=noisy,
            clean=clean,
            repeats=repeats,
            axis=axis,
            noise=noise,
            channel_axis=channel_axis,
            black=black,
            white=white,
        )
        training = finetune_steps(
            images,
            out,
            start=start,
            name=name,
            steps=steps,
            minutes=minutes,
            device=device,
            allow=tuple(allow or ()),
        )
        described = images.describe()
        if driver is not None:
            from dn_core.json_lines import finetune_events

            finetune_events(
                training,
                training_folder(out, name),
                {"name": name, "images": described},
                driver.control,
            )
            return
        say(
            f"{name}: {counted(described['scenes'], 'scene')}, "
            f"{counted(described['images'], 'image')}, black {images.black:g}, white "
            f"{images.white:g} grey levels"
        )
        with bar("training") as advance, contextlib.closing(training) as progress:
            for event in progress:
                advance(event.fraction, 1.0)
                if event.kind == "epoch":
                    say(_score_line(event, estimated=minutes is not None))
        say(event.outcome)
        if event.path is not None:
            typer.echo(event.path)


def _epoch_line(event: TrainingEvent) -> str:
    """The line of ``train`` at the end of an epoch."""
    stage = f"stage {event.stage + 1} of {event.stages}, " if event.stages > 1 else ""
    score = "" if event.psnr is None else f"held-out PSNR {event.psnr:.2f} dB, "
    return (
        f"{stage}epoch {event.epoch}: loss {event.loss:.5f}, {score}{event.megapixels:.0f} Mpx, "
        f"{event.megapixels_per_second:.2f} Mpx/s{_time_left(event, 0)}"
    )


def _score_line(event: TrainingEvent, *, estimated: bool) -> str:
    """The line of ``finetune`` at the end of an epoch; the number of steps may be estimated."""
    of = f" of {'about ' * estimated}{event.total_steps}" if event.total_steps else ""
    left = "" if event.step == 0 else _time_left(event, 1)
    return (
        f"step {event.step}{of}: held-out PSNR {event.psnr:.2f} dB (best "
        f"{event.best_psnr:.2f}){left}"
    )


def _time_left(event: TrainingEvent, digits: int) -> str:
    """The end of a line; empty while the time is unknown, as when a run has just been resumed."""
    left = event.seconds_left / 60
    return "" if math.isnan(left) else f", {left:.{digits}f} min left"


NOISE_OPTIONS = ("sigma", "peak", "gain", "read_noise", "offset", "correlation")
NOISE_SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gaussian": (("sigma",), ()),
    "poisson": (("peak",), ()),
    "poisson-gaussian": (("peak", "sigma"), ()),
    "detector": (("gain", "read_noise"), ("offset", "correlation")),
}
"""For each kind of noise the settings that it needs, and those that it may have."""


def _noise_table(kind: str | None, settings: tuple[float | None, ...]) -> dict[str, Any] | None:
    """The noise that the options describe, as `images_from` takes it."""
    given = zip(NOISE_OPTIONS, settings, strict=True)
    values = {name: value for name, value in given if value is not None}
    if kind is None:
        if values:
            raise ValueError(f"{_options([*values][:1])} needs --noise-kind. Add it.")
        return None
    if kind not in NOISE_SETTINGS:
        raise ValueError(
            f"--noise-kind must be one of {', '.join(NOISE_SETTINGS)}, got {kind!r}. Change it."
        )
    needed, possible = NOISE_SETTINGS[kind]
    if not {*needed} <= values.keys() <= {*needed, *possible}:
        more = f" and may have {_options(possible)}" if possible else ""
        raise ValueError(
            f"{kind} noise needs {_options(needed)}{more}, got {_options(values) or 'nothing'}. "
            "Change the options."
        )
    return {"kind": kind, **values}


def _options(names: Iterable[str]) -> str:
    """Settings as the command line spells them."""
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


@dataclass(frozen=True, slots=True)
class _Driver:
    """Another program, which reads JSON lines and may send commands."""

    control: Any


@contextlib.contextmanager
def _driven(json_lines: bool, control: bool, threads: int) -> Iterator[_Driver | None]:
    """Prepare a training run; where another program drives it, errors are events too."""
    from dn_core.json_lines import Control, emit

    driver = _Driver(Control() if control else None) if json_lines or control else None
    try:
        import torch

        from dn_core.memory import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(threads)
        yield driver
    except Exception as error:
        if driver is not None and not isinstance(error, (BrokenPipeError, typer.Exit)):
            emit("error", message=sentence(error), type=type(error).__name__)
        raise
