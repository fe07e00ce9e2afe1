"""Train a family of models on a cluster with Ray: what is missing of it, side by side; run again, it goes on.

ray job submit --working-dir . -- python distributed/family.py --data /data/images --storage /data/runs --gpus 0.25

Without MODEL it is all shipped recipes: the paper's 16 levels of noise, blind, edge-aware, depthwise-separable, JPEG, and our own.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from dn_cluster.command import app_of, explained


def main(
    data: Annotated[str, typer.Option(help="Folder of clean images, as all nodes see it.")],
    storage: Annotated[str, typer.Option(help="Folder that all nodes share, or an address such as s3://bucket/runs.")],
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Shipped recipes or TOML files; default: all.")] = None,
    large: Annotated[list[str] | None, typer.Option(help="A model to train by several workers; may be given several times.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Scale the recipes to this many steps a stage, a longer last one alike.")] = None,
    cpus: Annotated[float, typer.Option(min=1, help="CPUs of a model or worker.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a model; 0.25 puts four on each.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Workers of a large model.")] = 2,
    large_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker of a large model.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    max_failures: Annotated[int, typer.Option(min=0, help="How often a model's lost workers are replaced.")] = 3,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for nodes.")] = 30,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be used.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only say what is done.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train what is missing of the models; their table is printed."""

    def train() -> str:
        from dn_cluster.job import Job, load_start  # these bring torch, which the help does not need
        from dn_cluster.members import look_up, status_table, train_family
        from dn_cluster.storage import Storage
        from dn_core.training.recipes import load_recipe, recipe_names

        place, shipped = Storage.at(storage), recipe_names()

        def job(name: str) -> Job:
            recipe = load_recipe(name)
            recipe = recipe if steps is None else recipe.with_steps(steps)
            many = name in (large or ())
            return Job(
                recipe,
                data=Storage.at(data).address,
                storage=place,
                name=name if name in shipped else recipe.name,  # of two shipped recipes for one model, such as dn-fast and dn-fast-gpu
                workers=workers if many else 0,
                cpus=cpus,
                gpus=large_gpus if many else gpus,
                precision=precision,
                max_failures=max_failures,
                skip_bad=skip_bad,
                start=load_start(recipe, place),
            )

        jobs = list(map(job, dict.fromkeys([*(model or shipped), *(large or ())])))
        if twice := sorted(name for name, count in Counter(one.name for one in jobs).items() if count > 1):
            raise ValueError(f"several recipes have the name {twice[0]!r}; each model of a family needs its own. Change one of them.")
        members = {member.job.name: member for member in map(look_up, jobs)}
        if not status:
            for member in train_family(list(members.values()), max_failures, wait):
                members[member.job.name] = member
                print(f"\n{status_table(members.values())}\n", flush=True)
        if failed := [name for name, member in members.items() if member.state == "failed"]:
            print(status_table(members.values()), flush=True)
            raise RuntimeError(f"{len(failed)} of {len(members)} models failed: {', '.join(failed)}. Run it again for these.")
        return status_table(members.values())

    explained(train, debug)


if __name__ == "__main__":
    app_of(main, __doc__)()
