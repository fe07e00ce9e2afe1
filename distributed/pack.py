"""Pack a folder of images into shards with Ray Data, for folders that do not fit into memory.

The training scripts take the pack's folder as --data.

ray job submit --working-dir . -- python distributed/pack.py /data/imagenet /data/imagenet-pack
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dn_cluster.command import Debug, SkipBad, command_app, run_and_report
from dn_cluster.shards import FORMAT, MANIFEST, write_shard
from dn_cluster.storage import Storage
from dn_core import files
from dn_core.files.grey import read_grey
from dn_core.training.data.clean_images import NAMED

MAX_HELD_OUT = 16
HELD_OUT_FILE = "held-out.safetensors"


def main(
    images: Annotated[
        Path, typer.Argument(help="Folder of clean images, at the same path on all nodes.")
    ],
    pack: Annotated[
        str,
        typer.Argument(
            help="New folder that all nodes share, or an address like s3://bucket/pack."
        ),
    ],
    smallest: Annotated[
        int, typer.Option(min=8, help="Smallest side in pixels that an image must have.")
    ] = 128,
    shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random order of the images.")] = 0,
    skip_bad: SkipBad = False,
    debug: Debug = False,
) -> None:
    """Write the shards, and then the manifest that lists them."""
    folder, storage = Path(os.path.abspath(images)), Storage.at(pack)
    run_and_report(lambda: pack_images(folder, storage, smallest, shard, seed, skip_bad), debug)


def pack_images(
    images: Path, storage: Storage, smallest: int, shard: int, seed: int, skip_bad: bool
) -> str:
    """Pack a folder of images.

    Parameters
    ----------
    images : Path
        Folder of clean images.
    storage : Storage
        Where the pack is written.
    smallest : int
        Smallest side in pixels that an image must have.
    shard : int
        Images per shard.
    seed : int
        Seed of the random order of the images.
    skip_bad : bool
        Whether images that cannot be used are skipped.

    Returns
    -------
    str
        Path or address of the pack.

    Raises
    ------
    ValueError
        When there is a pack already, images cannot be used, or they have several dtypes.
    """
    if storage.exists(MANIFEST):
        raise ValueError(
            f"pack must be a new folder, got {storage.address}, which has a pack already. Use it, "
            "or choose another folder."
        )
    paths = files.image_paths([images])
    groups = _groups(paths, shard, seed)
    entries = _write_groups(groups, storage, smallest)
    skipped = [reason for entry in entries for reason in entry.pop("skipped")]
    if skipped and not skip_bad:
        more = [f"and {len(skipped) - NAMED} more"] if len(skipped) > NAMED else []
        raise ValueError(
            f"{len(skipped)} of {len(paths)} files cannot be used for training "
            f"({'; '.join([*skipped[:NAMED], *more])}). Remove them, or skip them with --skip-bad."
        )
    dtypes = {dtype for entry in entries for dtype in entry["kinds"]}
    if len(dtypes) != 1:
        raise ValueError(
            f"images must be all uint8 or all uint16, got {sorted(dtypes)}. Convert them to one "
            "dtype."
        )
    (held_out,) = (entry for entry in entries if entry["name"] == HELD_OUT_FILE)
    shards = [entry for entry in entries if entry["name"] != HELD_OUT_FILE and entry["images"]]
    manifest = {
        "format": FORMAT,
        "source": str(images),
        "skipped": len(skipped),
        "held_out": held_out,
        "shards": shards,
    }
    storage.write(MANIFEST, json.dumps(manifest, indent=1).encode())
    count = sum(entry["images"] for entry in shards)
    print(f"{count} images in {len(shards)} shards, {held_out['images']} held out", flush=True)
    return storage.address


def _groups(paths: Sequence[Path], shard: int, seed: int) -> list[tuple[str, list[str]]]:
    """File name and images of the held-out images and of each shard, in random order."""
    order = np.random.default_rng(seed).permutation(len(paths))
    shuffled = [str(paths[index]) for index in order]
    if len(shuffled) >= 50:
        held_out = min(MAX_HELD_OUT, len(shuffled) // 50)
    else:
        held_out = int(len(shuffled) >= 4)
    groups = [(HELD_OUT_FILE, shuffled[:held_out])]
    rest = shuffled[held_out:]
    for start in range(0, len(rest), shard):
        groups.append((f"shard-{start // shard:05d}.safetensors", rest[start : start + shard]))
    return groups


def _write_groups(
    groups: Sequence[tuple[str, list[str]]], storage: Storage, smallest: int
) -> list[dict[str, Any]]:
    """Write all shards with Ray Data; their entries in the manifest, in order of their names."""
    import ray.data

    from dn_cluster.driver import connect_to_ray  # imports torch

    connect_to_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    tasks = [
        {"name": name, "paths": paths, "storage": storage.address, "smallest": smallest}
        for name, paths in groups
    ]
    rows = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(write_group).take_all()
    entries: list[dict[str, Any]] = [json.loads(row["entry"]) for row in rows]
    return sorted(entries, key=lambda entry: str(entry["name"]))


def write_group(task: dict[str, Any]) -> dict[str, str]:
    """Read some images and write them to one shard; runs on a node.

    Parameters
    ----------
    task : dict of str to object
        The shard's ``name``, the images' ``paths``, the ``storage``, and the ``smallest`` side in
        pixels.

    Returns
    -------
    dict of str to str
        ``entry``: the shard's entry in the manifest with the files that were skipped, as JSON.
    """
    images, skipped = [], []
    for path in map(Path, task["paths"]):
        try:
            images += read_grey(path, task["smallest"])
        except (ValueError, TypeError, OSError) as error:
            skipped.append(f"{path.name}: {error}")
    entry = write_shard(Storage(task["storage"]), task["name"], images)
    return {"entry": json.dumps({**entry, "skipped": skipped})}


if __name__ == "__main__":
    command_app(main, __doc__)()
