"""Training jobs: the settings of one training run on a cluster, and their checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dn_cluster.node_probe import missing_modules
from dn_cluster.shards import load_pack
from dn_cluster.storage import Storage
from dn_core.checkpoints import Checkpoint, load_checkpoint
from dn_core.models.registry import resolve
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.data.phantom_images import training_images
from dn_core.training.events import TrainingEvent
from dn_core.training.phantoms import PHANTOMS
from dn_core.training.process_group import ProcessGroup
from dn_core.training.recipes import Recipe
from dn_core.training.state import differences

__all__ = ["TrainingJob", "epoch_message", "load_dataset", "load_start_model"]

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training run on a cluster.

    Attributes
    ----------
    recipe : Recipe
        How the model is trained.
    data : str
        Folder of clean images, as every node sees it, folder or address of a pack, or
        ``"phantoms"`` for made-up images.
    storage : Storage
        Where all runs are kept.
    name : str
        The run's name, a folder in the storage: letters, digits, ``.``, ``_`` and ``-``.
    workers : int, default 1
        Number of workers that share each batch; 0: train in this process, without Ray.
    cpus, gpus
        CPUs and GPUs of a worker.
    accelerator : str, optional
        Kind of GPU that a node must have, such as ``"H100"``; None: any.
    precision : str, default "auto"
        ``"auto"``, ``"bfloat16"`` or ``"float32"``.
    max_failures : int, default 3
        How often lost workers and nodes are replaced.
    skip_bad : bool, default False
        Whether images that cannot be used are skipped.
    allow : tuple of str, optional
        Settings in which the run may differ from the one that it resumes, such as
        ``"recipe.phases"``.
    tensorboard : bool, default False
        Whether the first worker writes TensorBoard files to the run's folder.
    mlflow : str, default ""
        Address of the MLflow server that the first worker reports to; empty: none.
    start : Checkpoint, optional
        The model that the recipe starts from; None: random weights.
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
    def run_storage(self) -> Storage:
        """The run's folder in the storage."""
        return self.storage.subfolder(self.name)

    @property
    def model_file(self) -> str:
        """File name of the finished model in the run's folder."""
        return f"{self.recipe.name}.safetensors"

    @property
    def required_modules(self) -> tuple[str, ...]:
        """Modules that the experiment trackers of this job need on all nodes."""
        return ("tensorboard",) * self.tensorboard + ("mlflow",) * bool(self.mlflow)

    def check(self) -> None:
        """Refuse a job that cannot be trained, before anything is started.

        Raises
        ------
        ValueError
            When the workers cannot share a batch, the folder holds a run with other settings, a
            package is missing, or the name is not allowed.
        """
        if missing := missing_modules(self.required_modules):
            raise ValueError(
                f"the package {missing[0]} is missing, which --{missing[0]} needs. Run pip install "
                f"{missing[0]} on all nodes."
            )
        if self.tensorboard and not self.storage.is_local:
            raise ValueError(
                f"storage must be a folder with --tensorboard, got {self.storage.address!r}. Leave "
                "--tensorboard out, or change --storage."
            )
        for phase in self.recipe.all_phases:
            ProcessGroup(0, max(self.workers, 1)).share(phase.batch)
        allowed = all(letter.isalnum() or letter in "._-" for letter in self.name)
        if not self.name or self.name[0] == "." or not allowed:
            raise ValueError(
                "name must have letters, digits, '.', '_' and '-' only and not begin with '.', got "
                f"{self.name!r}. Change --name."
            )
        self._check_settings()

    def _check_settings(self) -> None:
        """Compare this job with the settings of the run that it would resume."""
        content = self.run_storage.read(SETTINGS_FILE)
        if content is None:
            return
        try:
            different = differences(self._settings(), json.loads(content), self.allow)
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{self.run_storage.address}/{SETTINGS_FILE} cannot be read ({error}). Choose "
                "another --name."
            ) from error
        if different:
            raise ValueError(
                f"{self.run_storage.address} holds another training run ({'; '.join(different)}). "
                "Choose another --name, or --allow these settings to differ."
            )

    def check_free_space(self, folder: Path) -> None:
        """Refuse to continue when the next checkpoint and a finished model would fill the disk.

        Parameters
        ----------
        folder : Path
            The run's local folder, whose files are copied to the storage.

        Raises
        ------
        FullDiskError
            When the storage's disk has too little free space.
        """
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        self.run_storage.check_free_space(2 * size)

    def save_settings(self) -> None:
        """Write the settings to the run's folder, for later calls of `check`."""
        self.run_storage.write(SETTINGS_FILE, json.dumps(self._settings(), indent=1).encode())

    def _settings(self) -> dict[str, Any]:
        """What may not change when the run is resumed, as it is read back from JSON."""
        plain = {
            "recipe": self.recipe.as_dict(),
            "workers": max(self.workers, 1),
            "precision": self.precision,
            "start": None if self.start is None else self.start.sha256,
        }
        settings: dict[str, Any] = json.loads(json.dumps(plain))
        return settings


def load_start_model(recipe: Recipe, storage: Storage) -> Checkpoint | None:
    """Load the model that a recipe starts from, on the driver: nodes may not have its file.

    Parameters
    ----------
    recipe : Recipe
        Its `start` is a bundled model's name, a path, or a run's name and a file in the storage,
        such as ``my-cascade/paper-blind.safetensors``.
    storage : Storage
        Where all runs are kept.

    Returns
    -------
    Checkpoint or None
        None where the recipe starts with random weights.
    """
    if not recipe.start:
        return None
    content = None if Path(recipe.start).is_absolute() else storage.read(recipe.start)
    if content is None:
        return load_checkpoint(resolve(recipe.start))
    return Checkpoint.from_bytes(content, source=f"{storage.address}/{recipe.start}")


def load_dataset(job: TrainingJob) -> CleanImageDataset:
    """Load a job's images.

    Parameters
    ----------
    job : TrainingJob
        Its `data` is a folder of images, all of which are kept in memory; a pack, of which each
        worker keeps one shard, for an epoch each; or ``"phantoms"``.

    Returns
    -------
    CleanImageDataset
        A `ShardedImageDataset` for a pack.
    """
    pack = None
    if job.data != PHANTOMS:
        smallest = job.recipe.largest_patch
        pack = load_pack(Storage.at(job.data), smallest=smallest, steps=job.recipe.epoch)
    return pack or training_images(job.data, job.recipe, skip_bad=job.skip_bad)


def epoch_message(event: TrainingEvent) -> str:
    """The log's line for the end of an epoch.

    Parameters
    ----------
    event : TrainingEvent
        An event of kind ``"epoch"``.

    Returns
    -------
    str
        Stage, epoch, step, loss, PSNR, speed and time left.
    """
    stage = f"stage {event.stage + 1} of {event.stages}, " if event.stages > 1 else ""
    score = "" if event.psnr is None else f"held-out PSNR {event.psnr:.2f} dB, "
    return (
        f"{stage}epoch {event.epoch}, step {event.step} of {event.total_steps}: loss "
        f"{event.epoch_loss:.5f}, {score}{event.megapixels:.1f} Mpx, "
        f"{event.megapixels_per_second:.2f} Mpx/s, at most {event.seconds_left / 60:.0f} min left "
        "in this stage"
    )
