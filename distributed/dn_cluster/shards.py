"""Images in shards, for folders that do not fit into memory: a pack is shards of many images each, and `pack.json`, written last."""

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
from dn_core.training.bank import Bank

__all__ = ["MANIFEST", "ShardedBank", "load_pack", "read_shard", "write_shard"]

MANIFEST = "pack.json"
FORMAT = "dn-resnet-pack"


def write_shard(place: Storage, name: str, images: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Write grey images ``(H, W)`` of one kind to a shard; what the manifest says of it."""
    arrays = {f"{index:06d}": np.ascontiguousarray(image) for index, image in enumerate(images)}
    content = safetensors.numpy.save(arrays)
    place.write(name, content)
    return {
        "name": name,
        "images": len(arrays),
        "sha256": hashlib.sha256(content).hexdigest(),
        "kinds": sorted({str(image.dtype) for image in arrays.values()}),
        "smallest": min((min(image.shape) for image in arrays.values()), default=0),
    }


def read_shard(place: Storage, entry: dict[str, Any]) -> tuple[NDArray[Any], ...]:
    """The images of a shard.

    Raises
    ------
    OSError
        When it is missing or not as the manifest says; perhaps in this worker only, so that another try may help.
    """
    content = place.read(entry["name"])
    if content is None or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise OSError(errno.EIO, "the shard is missing or not as it was packed; pack the images again", f"{place.address}/{entry['name']}")
    arrays = safetensors.numpy.load(content)
    return tuple(arrays[name] for name in sorted(arrays))


def load_pack(place: Storage, *, smallest: int, steps: int) -> ShardedBank | None:
    """The bank in a pack; None where the folder is no pack.

    Parameters
    ----------
    smallest
        The largest patch: no image may be smaller.
    steps
        For how many steps a shard is used before the next one.

    Raises
    ------
    ValueError
        When the manifest cannot be read, or an image is too small.
    """
    content = place.read(MANIFEST)
    if content is None:
        return None
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT or not manifest["shards"]:
            raise ValueError("it is of another format or empty")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place.address}/{MANIFEST} cannot be read ({error}). Pack the images again.") from error
    if (found := min(entry["smallest"] for entry in manifest["shards"])) < smallest:
        raise ValueError(f"{place.address} has an image with a side of {found} pixels; at least {smallest} is expected. Pack larger ones.")
    held_out = read_shard(place, manifest["held_out"]) if manifest["held_out"]["images"] else ()
    first = read_shard(place, manifest["shards"][0])
    return ShardedBank(first, held_out, place=place, manifest=manifest, steps=steps)


@dataclass(frozen=True)
class ShardedBank(Bank):
    """A bank that holds one shard at a time. Which one is a function of step and worker alone, so that a resumed run sees the same."""

    place: Storage = field(default_factory=lambda: Storage(""))
    manifest: dict[str, Any] = field(default_factory=dict)
    steps: int = 1000
    _held: dict[int, Bank] = field(default_factory=dict, compare=False)

    @cached_property
    def count(self) -> int:
        """Images in all shards."""
        return sum(entry["images"] for entry in self.manifest["shards"])

    def fingerprint(self) -> str:
        """A hash of the hashes of all shards, in order."""
        entries = [*self.manifest["shards"], self.manifest["held_out"]]
        return hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()

    def at(self, step: int, rank: int = 0, size: int = 1) -> Bank:
        """The shard of this step and worker: all take turns through all shards, in an order that is new each time."""
        index = self.shard_at(step, rank, size)
        if index not in self._held:
            self._held.clear()
            self._held[index] = Bank(read_shard(self.place, self.manifest["shards"][index]))
        return self._held[index]

    def shard_at(self, step: int, rank: int, size: int) -> int:
        """The number of that shard."""
        count = len(self.manifest["shards"])
        turn, place = divmod(step // self.steps * size + rank, count)
        return int(np.random.default_rng(turn).permutation(count)[place])
