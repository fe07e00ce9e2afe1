"""The command line of the scripts that train one recipe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import typer

from dn_cluster.words import sentence

__all__ = ["app_of", "explained", "run_script"]


def run_script(description: str | None, plans: tuple[str, ...], other: str) -> None:
    """Read the command line and train; `other` is the script for recipes with other plans than these."""

    def main(
        recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a TOML file, as for dn-resnet train.")],
        data: Annotated[str, typer.Option(help="Folder of clean images, as all nodes see it.")],
        storage: Annotated[str, typer.Option(help="Folder that all nodes share, or an address such as s3://bucket/runs.")],
        name: Annotated[str, typer.Option(help="Of the run, a folder in the storage; default: the recipe's.")] = "",
        start: Annotated[str, typer.Option(help="Model to start from: a name, a file, or RUN/MODEL.safetensors in the storage.")] = "",
        steps: Annotated[
            int | None, typer.Option(min=1, help="Scale the recipe to this many steps a stage, a longer last one alike.")
        ] = None,
        workers: Annotated[int, typer.Option(min=0, help="Workers that share each batch; 0: in this process, without Ray.")] = 1,
        cpus: Annotated[float, typer.Option(min=1, help="CPUs of a worker.")] = 1,
        gpus: Annotated[float, typer.Option(min=0, help="GPUs of a worker.")] = 0,
        accelerator: Annotated[str | None, typer.Option(help="Only on nodes with this kind of GPU, such as H100.")] = None,
        precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
        max_failures: Annotated[int, typer.Option(min=0, help="How often lost workers are replaced.")] = 3,
        wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for nodes.")] = 30,
        allow: Annotated[list[str] | None, typer.Option(help="A setting that may differ from the run resumed.")] = None,
        tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write to RUN/tensorboard in the storage, a folder.")] = False,
        mlflow: Annotated[str, typer.Option(help="Address of an MLflow server to tell of each epoch.")] = "",
        skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be used.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        def train() -> str:
            from dn_cluster.driver import train_job  # brings torch, which the help does not need
            from dn_cluster.job import Job, load_start
            from dn_cluster.storage import Storage
            from dn_core.training.recipes import load_recipe

            loaded = load_recipe(recipe)
            if loaded.plan not in plans:
                raise ValueError(f"the plan of {recipe} is {loaded.plan!r}; one of {plans} is expected. Use {other} for it.")
            loaded = replace(loaded, start=start) if start else loaded
            loaded = loaded if steps is None else loaded.with_steps(steps)
            place = Storage.at(storage)
            job = Job(
                loaded,
                data=data if "://" in data else os.path.abspath(data),
                storage=place,
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
                start=load_start(loaded, place),
            )
            return train_job(job, wait=wait)

        explained(train, debug)

    app_of(main, description)()


def app_of(main: Callable[..., None], description: str | None) -> typer.Typer:
    """A script of one command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=description)(main)
    return app


def explained(action: Callable[[], str], debug: bool) -> None:
    """Do it and print its result; an error becomes one line, and exit code 1. A closed terminal ends it as Ctrl-C does."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # Ray does so for SIGTERM
        signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    try:
        print(action(), flush=True)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if debug:
            raise
        print(f"error: {sentence(error)}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from error
