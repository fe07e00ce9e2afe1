"""``dn-resnet train`` and ``dn-resnet finetune``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dn_core.cli.console import ChannelAxis, Debug, bar, explained, say, sentence

__all__ = ["TrainCommand", "finetune", "train"]

Device = Annotated[str, typer.Option(help="cpu, cuda or mps.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; one for each training is fastest.")]
Allow = Annotated[list[str] | None, typer.Option(help="A setting, such as recipe.phases, that may differ from the run resumed.")]
_JSON_HELP = "Print progress as JSON lines: start, step, epoch, preview, done, error (see docs/training.md)."
JsonLines = Annotated[bool, typer.Option("--json", help=_JSON_HELP)]
_CONTROL_HELP = (
    "As --json, and obey lines on standard input: pause, resume, stop (done, exit code 0). When standard input ends, so does the training: "
    "its state is saved, exit code 143."
)
Obey = Annotated[bool, typer.Option("--control", help=_CONTROL_HELP)]


class TrainCommand(TyperCommand):
    """Its help ends with the recipes there are, which are looked up only then."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the end of the help."""
        from dn_core.training.recipes import recipe_descriptions

        with formatter.section("Shipped recipes"):
            formatter.write_dl(sorted(recipe_descriptions().items()))
        super().format_epilog(ctx, formatter)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (named below) or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Folder of clean images.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and the state to resume from.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Scale the recipe to this many steps a stage, a longer last one alike.")] = None,
    start: Annotated[str | None, typer.Option(help="A model, by name or file, to begin with instead of the recipe's start.")] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    allow: Allow = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be used.")] = False,
    json_lines: JsonLines = False,
    control: Obey = False,
    debug: Debug = False,
) -> None:
    """Train a model; the same command again goes on where it was stopped."""
    with explained(debug), _driven(json_lines, control, threads) as driver:
        from dn_core.training.bank import load_bank
        from dn_core.training.cascade import train_stages
        from dn_core.training.recipes import load_recipe

        loaded = load_recipe(recipe)
        loaded = loaded if steps is None else loaded.with_steps(steps)
        loaded = loaded if start is None else replace(loaded, start=start)
        bank = load_bank(data, smallest=loaded.largest_patch, skip_bad=skip_bad)
        for item in bank.skipped:
            say(f"skipped {item.path}: {item.reason}")
        last = f", {sum(phase.steps for phase in loaded.last_phases)} in the last stage" if loaded.last_phases else ""
        last += f", at most {loaded.minutes:g} minutes a stage" if loaded.minutes else ""
        say(
            f"{loaded.name}: {len(bank.images)} images, {len(bank.held_out)} held out, "
            f"{len(bank.skipped)} files skipped, {loaded.steps} steps{last}"
        )
        training = train_stages(loaded, bank, out, device=device, allow=tuple(allow or ()))
        if driver is not None:
            from dn_core.control import emit, train_events

            emit("start", name=loaded.name, total=loaded.steps, images=len(bank.images), held_out=len(bank.held_out))
            train_events(training, driver.control)
            return
        with bar("training") as advance, contextlib.closing(training) as progress:
            for step in progress:
                advance(step.part, 1.0)
                if step.epoch_ended and step.path is None:
                    score = "" if step.psnr is None else f"held-out PSNR {step.psnr:.2f} dB, "
                    stage = f"stage {step.stage + 1} of {step.stages}, " if step.stages > 1 else ""
                    say(
                        f"{stage}epoch {step.epoch}: loss {step.loss:.5f}, {score}{step.megapixels:.0f} Mpx, "
                        f"{step.megapixels_per_second:.2f} Mpx/s, {step.seconds_left / 60:.0f} min left"
                    )
                if step.path is not None:
                    typer.echo(step.path)


def finetune(
    out: Annotated[Path, typer.Option(help="Folder for the model and, in NAME-training, the state to go on from.")],
    noisy: Annotated[Path | None, typer.Option(help="Noisy images: a file, or a folder; --clean has those of the same names.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean images: a file, or a folder.")] = None,
    repeats: Annotated[Path | None, typer.Option(help="Repeats of a scene: a stack, or a folder of single images or of stacks.")] = None,
    axis: Annotated[int, typer.Option(help="Axis of the repeats in a stack.")] = 0,
    channel_axis: ChannelAxis = "auto",
    noise_kind: Annotated[str | None, typer.Option(help="Noise to put on --clean alone: gaussian, poisson or poisson-gaussian.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Of gaussian noise in grey levels, of poisson-gaussian in photons.")] = None,
    peak: Annotated[float | None, typer.Option(help="Mean count of photons at --white.")] = None,
    black: Annotated[float | None, typer.Option(help="Grey level without light; by default found from the images.")] = None,
    white: Annotated[float | None, typer.Option(help="Grey level of the brightest parts; by default found from the images.")] = None,
    start: Annotated[str | None, typer.Option(help="A name from 'dn-resnet models', or a model file, to adapt.")] = None,
    name: Annotated[str, typer.Option(help="Name of the new model.")] = "finetuned",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training; 1500 without --minutes.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="How long to train; with --steps, whichever comes first.")] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    allow: Allow = None,
    json_lines: JsonLines = False,
    control: Obey = False,
    debug: Debug = False,
) -> None:
    """Adapt a model to your own images: noisy and clean pairs, repeats of a scene, or clean images and their noise.

    The file holds the best weights so far at any time; where nothing does better than the model at the start, there is no file. The same
    command again goes on where it was stopped, with --minutes for what is left of them.
    """
    with explained(debug), _driven(json_lines, control, threads) as driver:
        from dn_core.training.finetune import finetune_steps, images_from, training_folder

        noise = _noise_table(noise_kind, sigma, peak)
        axes = {"axis": axis, "channel_axis": channel_axis}
        images = images_from(noisy=noisy, clean=clean, repeats=repeats, noise=noise, black=black, white=white, **axes)
        options = {"start": start, "name": name, "steps": steps, "minutes": minutes, "device": device, "allow": tuple(allow or ())}
        training = finetune_steps(images, out, **options)  # type: ignore[arg-type]
        told = images.describe()
        if driver is not None:
            from dn_core.control import finetune_events

            finetune_events(training, training_folder(out, name), {"name": name, "images": told}, driver.control)
            return
        say(f"{name}: {told['scenes']} scenes, {told['images']} images, black {images.black:g}, white {images.white:g} grey levels")
        with bar("training") as advance, contextlib.closing(training) as progress:
            for step in progress:
                advance(step.part, 1.0)
                if step.psnr is not None:
                    of = f" of {'about ' * (minutes is not None)}{step.total}" if step.total else ""
                    left = "" if step.done == 0 else f", {step.seconds_left / 60:.1f} min left"
                    say(f"step {step.done}{of}: held-out PSNR {step.psnr:.2f} dB (best {step.best_psnr:.2f}){left}")
        say(step.outcome)
        if step.path is not None:
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
            emit("error", message=sentence(error))
        raise
