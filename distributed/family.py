"""Train a family of models on a cluster with Ray: all missing models, side by side.

ray job submit --working-dir . -- python distributed/family.py --data /data/images --storage
/data/runs --gpus 0.25

Without MODEL it trains all bundled recipes: the paper's 16 noise levels, blind, edge-aware,
depthwise-separable and JPEG models, and our own. Run it again to train what is still missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dn_cluster.command import (
    Cpus,
    Data,
    Debug,
    MaxFailures,
    Precision,
    SkipBad,
    Steps,
    StorageAddress,
    Wait,
    command_app,
    data_address,
    run_and_report,
)

if TYPE_CHECKING:
    from dn_cluster.training_job import TrainingJob

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="Bundled recipes or TOML files. Default: all."),
]
Large = Annotated[
    list[str] | None, typer.Option(help="A model to train with several workers. Repeatable.")
]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs per model; 0.25 puts four on each GPU.")]
Workers = Annotated[int, typer.Option(min=1, help="Workers of a large model.")]
LargeGpus = Annotated[float, typer.Option(min=0, help="GPUs per worker of a large model.")]
Status = Annotated[bool, typer.Option("--status", help="Only show which models are done.")]


def main(
    data: Data,
    storage: StorageAddress,
    model: Models = None,
    large: Large = None,
    steps: Steps = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    workers: Workers = 2,
    large_gpus: LargeGpus = 0,
    precision: Precision = "auto",
    max_failures: MaxFailures = 3,
    wait: Wait = 30,
    skip_bad: SkipBad = False,
    status: Status = False,
    debug: Debug = False,
) -> None:
    """Train the missing models and print a table of all."""

    def train() -> str:
        # These import torch, which --help does not need.
        from dn_cluster.storage import Storage
        from dn_cluster.training_job import TrainingJob, load_start_model
        from dn_core.training.recipes import load_recipe, recipe_names

        run_storage, bundled = Storage.at(storage), recipe_names()

        def job(name: str) -> TrainingJob:
            recipe = load_recipe(name)
            recipe = recipe if steps is None else recipe.with_steps(steps)
            is_large = name in (large or ())
            return TrainingJob(
                recipe,
                data=data_address(data),
                storage=run_storage,
                # Two bundled recipes may train the same model, as dn-fast and dn-fast-gpu do.
                name=name if name in bundled else recipe.name,
                workers=workers if is_large else 0,
                cpus=cpus,
                gpus=large_gpus if is_large else gpus,
                precision=precision,
                max_failures=max_failures,
                skip_bad=skip_bad,
                start=load_start_model(recipe, run_storage),
            )

        names = dict.fromkeys([*(model or bundled), *(large or ())])
        return train_models([job(name) for name in names], status, max_failures, wait)

    run_and_report(train, debug)


def train_models(
    jobs: Sequence[TrainingJob], status_only: bool, max_failures: int, wait: float
) -> str:
    """Train the models of jobs that are missing.

    Parameters
    ----------
    jobs : sequence of TrainingJob
        A job for each model of the family.
    status_only : bool
        Whether nothing is trained.
    max_failures : int
        How often lost workers are replaced.
    wait : float
        Seconds to wait for nodes.

    Returns
    -------
    str
        A table of the models' states.

    Raises
    ------
    ValueError
        When two jobs have the same name.
    RuntimeError
        When a model failed.
    """
    from dn_cluster.family_models import find_model, status_table, train_family

    counts = Counter(job.name for job in jobs)
    if duplicates := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(
            f"each model of a family must have its own name, got several recipes named "
            f"{duplicates[0]!r}. Rename one of them."
        )
    models = {job.name: find_model(job) for job in jobs}
    if not status_only:
        for model in train_family(list(models.values()), max_failures, wait):
            models[model.job.name] = model
            print(f"\n{status_table(models.values())}\n", flush=True)
    if failed := [name for name, model in models.items() if model.state == "failed"]:
        print(status_table(models.values()), flush=True)
        raise RuntimeError(
            f"{len(failed)} of {len(models)} models failed: {', '.join(failed)}. Run the same "
            "command again to train these."
        )
    return status_table(models.values())


if __name__ == "__main__":
    command_app(main, __doc__)()
