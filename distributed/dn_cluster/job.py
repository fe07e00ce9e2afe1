"""What is to be trained, and how: the settings of one run, and which of them may not change while it lasts."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dn_cluster.look import missing_modules
from dn_cluster.shards import load_pack
from dn_cluster.storage import Storage
from dn_cluster.words import named_after
from dn_core.checkpoints import Checkpoint, load_checkpoint
from dn_core.models.registry import resolve
from dn_core.training.bank import Bank, load_bank
from dn_core.training.fit import TrainProgress
from dn_core.training.recipes import Recipe
from dn_core.training.run import differences
from dn_core.training.workers import Workers

__all__ = ["Job", "describe", "load_images", "load_start"]

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One training on a cluster.

    Attributes
    ----------
    data
        Folder of clean images, as every node sees it.
    storage, name
        The run lives in the folder `name` of the storage.
    workers, cpus, gpus
        How many workers; of what each takes how much. 0 workers: in this process, without Ray.
    max_failures
        How often lost workers and nodes are replaced.
    tensorboard
        Whether the first worker writes TensorBoard's files to the run's folder.
    mlflow
        Address of the MLflow server that the first worker tells of each epoch; empty: none.
    start
        The model that the recipe starts from.
    """

    recipe: Recipe
    data: str
    storage: Storage
    name: str
    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    accelerator: str | None = None
    precision: str = "auto"
    max_failures: int = 3
    skip_bad: bool = False
    allow: tuple[str, ...] = ()
    tensorboard: bool = False
    mlflow: str = ""
    start: Checkpoint | None = None

    @property
    def folder(self) -> Storage:
        """Where the run lives."""
        return self.storage.within(self.name)

    @property
    def model(self) -> str:
        """The finished model's file name."""
        return f"{self.recipe.name}.safetensors"

    @property
    def modules(self) -> tuple[str, ...]:
        """What the nodes need besides, for the options that ask for it."""
        return ("tensorboard",) * self.tensorboard + ("mlflow",) * bool(self.mlflow)

    def check(self) -> None:
        """Refuse what cannot be trained so, before anything is started.

        Raises
        ------
        ValueError
            When a batch cannot be shared by the workers, the folder holds a run with other settings, or a package is missing.
        """
        if absent := missing_modules(self.modules):
            raise ValueError(f"the package {absent[0]} is missing; --{absent[0]} needs it. pip install {absent[0]}, on all nodes.")
        if self.tensorboard and not self.storage.is_local:
            raise ValueError(f"storage is {self.storage.address!r}; with --tensorboard a folder is expected. Leave --tensorboard out.")
        for phase in self.recipe.all_phases:
            Workers(0, max(self.workers, 1)).share(phase.batch)
        if not self.name or self.name[0] == "." or not all(letter.isalnum() or letter in "._-" for letter in self.name):
            raise ValueError(f"name is {self.name!r}; letters, digits, '.', '_' and '-' are expected. Change --name.")
        found = self.folder.read(SETTINGS_FILE)
        if found is None:
            return
        try:
            there = json.loads(found)
            different = differences(self._settings(), there, self.allow)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{self.folder.address}/{SETTINGS_FILE} cannot be read ({error}). Choose another --name.") from error
        if different:
            raise ValueError(
                f"{self.folder.address} holds another training ({'; '.join(different)}); the same is expected. Choose another --name, or "
                "--allow these to differ."
            )

    def check_room(self, folder: Path) -> None:
        """Refuse to go on where another copy of what a training has in `folder`, and a finished model, would fill the storage's disk.

        Raises
        ------
        FullDiskError
            When there is no room.
        """
        self.folder.check_room(2 * sum(path.stat().st_size for path in folder.rglob("*.safetensors")))

    def remember(self) -> None:
        """Write the settings down, for `check`."""
        self.folder.write(SETTINGS_FILE, json.dumps(self._settings(), indent=1).encode())

    def _settings(self) -> dict[str, Any]:
        start = None if self.start is None else _digest(self.start)
        plain = {"recipe": self.recipe.as_dict(), "workers": max(self.workers, 1), "precision": self.precision, "start": start}
        settings: dict[str, Any] = json.loads(json.dumps(plain))
        return settings


def _digest(model: Checkpoint) -> str:
    return hashlib.sha256(b"".join(model.weights[name].tobytes() for name in sorted(model.weights))).hexdigest()


def load_start(recipe: Recipe, storage: Storage) -> Checkpoint | None:
    """The model that a recipe starts from, found here and now: nodes may not have its file.

    Its name is one of a shipped model, a path, or the name of a run in the storage with the model's file, as in
    ``my-cascade/paper-blind.safetensors``.
    """
    if not recipe.start:
        return None
    content = storage.read(recipe.start) if not Path(recipe.start).is_absolute() else None
    if content is None:
        return load_checkpoint(resolve(recipe.start))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "start.safetensors")
        path.write_bytes(content)
        with named_after(f"{storage.address}/{recipe.start}", path):
            return load_checkpoint(path)


def load_images(job: Job) -> Bank:
    """The images of its data folder, all in memory; of a pack, a shard at a time, for an epoch each."""
    smallest = job.recipe.largest_patch
    pack = load_pack(Storage.at(job.data), smallest=smallest, steps=job.recipe.epoch)
    return pack or load_bank(job.data, smallest=smallest, skip_bad=job.skip_bad)


def describe(step: TrainProgress) -> str:
    """A line for the log."""
    stage = f"stage {step.stage + 1} of {step.stages}, " if step.stages > 1 else ""
    score = "" if step.psnr is None else f"held-out PSNR {step.psnr:.2f} dB, "
    return (
        f"{stage}epoch {step.epoch}, step {step.done} of {step.total}: loss {step.epoch_loss:.5f}, {score}{step.megapixels:.1f} Mpx, "
        f"{step.megapixels_per_second:.2f} Mpx/s, stage's time left at most {step.seconds_left / 60:.0f} min"
    )
