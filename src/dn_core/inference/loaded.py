"""Networks in memory, with the engines that compute them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from dn_core import processes
from dn_core.checkpoints import Checkpoint
from dn_core.inference.engines import Engine, Precision, build_engine
from dn_core.models import registry

__all__ = ["LoadedNetwork", "load_network"]


class LoadedNetwork:
    """A network and its engines, each made when it is first used.

    Copies, and other processes such as dask's workers, make engines of their own.

    Attributes
    ----------
    checkpoint : Checkpoint
        Settings, weights and card.
    reference : str
        What results call it: ``"dn-fast@1"`` where it was found by name, else its card's name.
    """

    def __init__(self, checkpoint: Checkpoint, reference: str = "") -> None:
        self.checkpoint = checkpoint
        self.reference = reference or checkpoint.card.name
        self._engines: dict[tuple[str, Precision], Engine] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return LoadedNetwork, (self.checkpoint, self.reference)

    def engine(self, device: str, precision: Precision) -> Engine:
        """The engine for a device, as `build_engine` makes it."""
        key = (device, precision)
        if key not in self._engines:
            with processes.fork_lock():
                if key not in self._engines:
                    engine = build_engine(self.checkpoint, device, precision)
                    # Where bfloat16 would be emulated this is the engine of float32, too.
                    self._engines.setdefault((device, engine.precision), engine)
                    self._engines[key] = self._engines[device, engine.precision]
        return self._engines[key]


def load_network(name_or_path: str | Path | None = None) -> LoadedNetwork:
    """Load a model by name or file; an unchanged file is read once.

    Parameters
    ----------
    name_or_path : str or Path, optional
        A name from `dn_core.model_names`, alone or with a version (``"dn-fast@1"``), or a file;
        None for the default model.

    Raises
    ------
    UnknownModelError
        If there is no such name or file.
    CheckpointError
        If the file is not a model, or damaged.
    """
    path, reference = registry.located(
        registry.default_name() if name_or_path is None else name_or_path
    )
    stat = path.stat()
    return _load_file(path.resolve(), stat.st_mtime_ns, stat.st_size, reference)


@functools.lru_cache(maxsize=8)
def _load_file(path: Path, modified: int, size: int, reference: str) -> LoadedNetwork:
    return LoadedNetwork(registry.load(path), reference)
