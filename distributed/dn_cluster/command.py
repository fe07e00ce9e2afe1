"""Command line shared by the Ray scripts: options, error reports, and training of one recipe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from dn_core.errors import error_message

if TYPE_CHECKING:
    from dn_core.training.recipes import Recipe

__all__ = [
    "Cpus",
    "Data",
    "Debug",
    "MaxFailures",
    "Precision",
    "SkipBad",
    "Steps",
    "StorageAddress",
    "TrainingScript",
    "Wait",
    "command_app",
    "run_and_report",
    "run_training_script",
]

Data = Annotated[
    str,
    typer.Option(
        help="Folder of clean images, at the same path on all nodes, a pack, or 'phantoms' for "
        "made-up images."
    ),
]
StorageAddress = Annotated[
    str,
    typer.Option(help="Where runs are kept: a shared folder, or an address like s3://bucket/runs."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, help="Scale the recipe to this many steps per stage; a longer last stage scales too."
    ),
]
Cpus = Annotated[float, typer.Option(min=1, help="CPUs per worker.")]
Precision = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
MaxFailures = Annotated[int, typer.Option(min=0, help="How often lost workers are replaced.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for nodes.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip images that cannot be used.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name of a bundled recipe, or a TOML file, as for dn-resnet train."
    ),
]
Name = Annotated[
    str, typer.Option(help="The run's name, a folder in the storage. Default: the recipe's name.")
]
Start = Annotated[
    str,
    typer.Option(
        help="Model to start from: a name, a file, or RUN/MODEL.safetensors in the storage."
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=0, help="Workers that share each batch. 0: train in this process, without Ray."
    ),
]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs per worker.")]
Accelerator = Annotated[
    str | None, typer.Option(help="Use only nodes with this kind of GPU, such as H100.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        help="A setting that may differ from the resumed run, such as recipe.phases. Repeatable."
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write TensorBoard files to RUN/tensorboard; storage must be a folder.",
    ),
]
MLflow = Annotated[str, typer.Option(help="Address of an MLflow server to report each epoch to.")]


@dataclass(frozen=True, slots=True)
class TrainingScript:
    """A script that trains recipes of some plans.

    Attributes
    ----------
    plans : tuple of str
        The plans that it trains, such as ``"cascade"``.
    other : str
        The script for recipes with other plans.
    """

    plans: tuple[str, ...]
    other: str

    def load_recipe(self, name: str, start: str, steps: int | None) -> Recipe:
        """Load a recipe and apply the command line's changes.

        Parameters
        ----------
        name : str
            A bundled recipe's name, or the path of a TOML file.
        start : str
            The model to start from; empty: as the recipe says.
        steps : int or None
            Steps per stage; None: as the recipe says.

        Returns
        -------
        Recipe
            The changed recipe.

        Raises
        ------
        ValueError
            When the recipe's plan is one of the other script's.
        """
        from dn_core.training.recipes import load_recipe

        recipe = load_recipe(name)
        if recipe.plan not in self.plans:
            raise ValueError(
                f"the plan of {name} must be {' or '.join(self.plans)}, got {recipe.plan}. Use "
                f"{self.other}."
            )
        recipe = replace(recipe, start=start) if start else recipe
        return recipe if steps is None else recipe.with_steps(steps)


def run_training_script(description: str | None, script: TrainingScript) -> None:
    """Read the command line and train.

    Parameters
    ----------
    description : str or None
        Text of ``--help``.
    script : TrainingScript
        Which recipes it trains.
    """
    command_app(_train, description)(obj=script)


def _train(
    context: typer.Context,
    recipe: RecipeName,
    data: Data,
    storage: StorageAddress,
    name: Name = "",
    start: Start = "",
    steps: Steps = None,
    workers: Workers = 1,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    accelerator: Accelerator = None,
    precision: Precision = "auto",
    max_failures: MaxFailures = 3,
    wait: Wait = 30,
    allow: Allow = None,
    tensorboard: TensorBoard = False,
    mlflow: MLflow = "",
    skip_bad: SkipBad = False,
    debug: Debug = False,
) -> None:
    script: TrainingScript = context.obj

    def train() -> str:
        # These import torch, which --help does not need.
        from dn_cluster.driver import train_job
        from dn_cluster.storage import Storage
        from dn_cluster.training_job import TrainingJob, load_start_model

        loaded = script.load_recipe(recipe, start, steps)
        run_storage = Storage.at(storage)
        job = TrainingJob(
            loaded,
            data=data_address(data),
            storage=run_storage,
            name=name or loaded.name,
            workers=workers,
            cpus=cpus,
            gpus=gpus,
            accelerator=accelerator,
            precision=precision,
            max_failures=max_failures,
            skip_bad=skip_bad,
            tensorboard=tensorboard,
            mlflow=mlflow,
            allow=tuple(allow or ()),
            start=load_start_model(loaded, run_storage),
        )
        return train_job(job, wait=wait)

    run_and_report(train, debug)


def data_address(data: str) -> str:
    """Where a job's images are, as every node names it.

    Parameters
    ----------
    data : str
        What the command line says: a folder, an address, or ``"phantoms"`` for made-up images.

    Returns
    -------
    str
        Paths are absolute.
    """
    from dn_core.training.phantoms import PHANTOMS

    return data if "://" in data or data == PHANTOMS else os.path.abspath(data)


def command_app(main: Callable[..., None], description: str | None) -> typer.Typer:
    """Make a typer application of one command.

    Parameters
    ----------
    main : callable
        The command, with typer's arguments and options.
    description : str or None
        Text of ``--help``.

    Returns
    -------
    typer.Typer
        Call it to read the command line and run.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=description)(main)
    return app


def run_and_report(action: Callable[[], str], debug: bool) -> None:
    """Run an action and print its result, or its error in one line.

    A closed terminal ends it as Ctrl-C does.

    Parameters
    ----------
    action : callable
        What the script does.
    debug : bool
        Whether an error is raised instead, for its traceback.

    Raises
    ------
    typer.Exit
        With exit code 1, after an error.
    """
    # Ray handles SIGTERM so.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    try:
        print(action(), flush=True)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if debug:
            raise
        print(f"error: {error_message(error)}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from error
