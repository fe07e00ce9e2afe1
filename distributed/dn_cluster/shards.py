"""Sharded image datasets, for folders of images that do not fit into memory.

``pack.py`` writes a *pack*: shards of many images each, as safetensors, and a manifest
``pack.json``, which is written last.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from dn_cluster.storage import Storage
from dn_core.training.data.clean_images import CleanImageDataset

__all__ = ["FORMAT", "MANIFEST", "ShardedImageDataset", "load_pack", "read_shard", "write_shard"]

MANIFEST = "pack.json"
FORMAT = "dn-resnet-pack"


def write_shard(storage: Storage, name: str, images: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Write images to a shard.

    Parameters
    ----------
    storage : Storage
        Where the pack is written.
    name : str
        The shard's file name.
    images : iterable of ndarray
        Grey images ``(H, W)`` of one dtype.

    Returns
    -------
    dict
        The shard's entry in the manifest: name, number of images, hash, dtypes and the smallest
        side in pixels.
    """
    arrays = {f"{index:06d}": np.ascontiguousarray(image) for index, image in enumerate(images)}
    content = safetensors.numpy.save(arrays)
    storage.write(name, content)
    return {
        "name": name,
        "images": len(arrays),
        "sha256": hashlib.sha256(content).hexdigest(),
        "kinds": sorted({str(image.dtype) for image in arrays.values()}),
        "smallest": min((min(image.shape) for image in arrays.values()), default=0),
    }


def read_shard(storage: Storage, entry: dict[str, Any]) -> tuple[NDArray[Any], ...]:
    """Read the images of a shard.

    Parameters
    ----------
    storage : Storage
        Where the pack is.
    entry : dict of str to object
        The shard's entry in the manifest.

    Returns
    -------
    tuple of numpy.ndarray
        Grey images ``(H, W)``, in the order in which they were packed.

    Raises
    ------
    OSError
        When the file is missing or has another hash. Perhaps only this worker sees it so, and
        another attempt may succeed.
    """
    content = storage.read(entry["name"])
    if content is None or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise OSError(
            errno.EIO,
            "the shard is missing or has changed since it was packed. Pack the images again",
            f"{storage.address}/{entry['name']}",
        )
    arrays = safetensors.numpy.load(content)
    return tuple(arrays[name] for name in sorted(arrays))


def load_pack(storage: Storage, *, smallest: int, steps: int) -> ShardedImageDataset | None:
    """Open a pack as a dataset.

    Parameters
    ----------
    storage : Storage
        The folder or address that may hold a pack.
    smallest : int
        The recipe's largest patch in pixels: no image may have a smaller side.
    steps : int
        How many steps each shard is used for before the next one.

    Returns
    -------
    ShardedImageDataset or None
        None where there is no ``pack.json``.

    Raises
    ------
    ValueError
        When the manifest cannot be read, or an image is too small.
    """
    content = storage.read(MANIFEST)
    if content is None:
        return None
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT or not manifest["shards"]:
            raise ValueError("the format is unknown or no shard is listed")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{storage.address}/{MANIFEST} cannot be read ({error}). Pack the images again."
        ) from error
    if (side := min(entry["smallest"] for entry in manifest["shards"])) < smallest:
        raise ValueError(
            f"images must have sides of at least {smallest} pixels, got a side of {side} pixels "
            f"in {storage.address}. Pack larger images."
        )
    has_held_out = manifest["held_out"]["images"]
    held_out = read_shard(storage, manifest["held_out"]) if has_held_out else ()
    first = read_shard(storage, manifest["shards"][0])
    return ShardedImageDataset(first, held_out, storage=storage, manifest=manifest, steps=steps)


@dataclass(frozen=True)
class ShardedImageDataset(CleanImageDataset):
    """A dataset that holds one shard in memory at a time.

    The shard depends on step and worker alone, so that a resumed run uses the same ones.

    Attributes
    ----------
    storage : Storage, optional
        Where the pack is.
    manifest : dict of str to object, optional
        Content of ``pack.json``.
    steps : int, default 1000
        How many steps each shard is used for.
    """

    storage: Storage = field(default_factory=lambda: Storage(""))
    manifest: dict[str, Any] = field(default_factory=dict)
    steps: int = 1000
    _loaded: dict[int, CleanImageDataset] = field(default_factory=dict, compare=False)

    @cached_property
    def count(self) -> int:
        """Number of images in all shards."""
        return sum(entry["images"] for entry in self.manifest["shards"])

    def fingerprint(self) -> str:
        """Hash of the hashes of all shards, in order."""
        entries = [*self.manifest["shards"], self.manifest["held_out"]]
        return hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()

    def at(self, step: int, rank: int = 0, size: int = 1) -> CleanImageDataset:
        """The shard that a worker uses at a step.

        Parameters
        ----------
        step : int
            Training step, from 0.
        rank, size
            The worker, from 0, and the number of workers.

        Returns
        -------
        CleanImageDataset
            Its images; they stay in memory until another shard is asked for.
        """
        index = self.shard_at(step, rank, size)
        if index not in self._loaded:
            self._loaded.clear()
            entry = self.manifest["shards"][index]
            self._loaded[index] = CleanImageDataset(read_shard(self.storage, entry))
        return self._loaded[index]

    def shard_at(self, step: int, rank: int, size: int) -> int:
        """Index of the shard that a worker uses at a step.

        The workers together go through all shards, each time in a new random order.

        Parameters
        ----------
        step : int
            Training step, from 0.
        rank, size : int
            The worker, from 0, and the number of workers.

        Returns
        -------
        int
            Index in the manifest's list of shards.
        """
        count = len(self.manifest["shards"])
        cycle, position = divmod(step // self.steps * size + rank, count)
        return int(np.random.default_rng(cycle).permutation(count)[position])
