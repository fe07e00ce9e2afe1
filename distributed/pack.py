"""Pack a folder of images to shards with Ray Data, for folders that do not fit into memory; training takes the pack's folder as --data.

ray job submit --working-dir . -- python distributed/pack.py /data/imagenet /data/imagenet-pack
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dn_cluster.command import app_of, explained
from dn_cluster.shards import FORMAT, MANIFEST, write_shard
from dn_cluster.storage import Storage
from dn_core import files
from dn_core.training.bank import NAMED, read_grey

HELD_OUT = 16


def main(
    images: Annotated[Path, typer.Argument(help="Folder of clean images, as all nodes see it.")],
    pack: Annotated[str, typer.Argument(help="Folder that all nodes share, or an address such as s3://bucket/pack.")],
    smallest: Annotated[int, typer.Option(min=8, help="Images with a smaller side cannot be used.")] = 128,
    shard: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the images.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be used.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write the shards, and then the list of them."""
    explained(lambda: pack_images(Path(os.path.abspath(images)), Storage.at(pack), smallest, shard, seed, skip_bad), debug)


def pack_images(images: Path, place: Storage, smallest: int, shard: int, seed: int, skip_bad: bool) -> str:
    """Pack; the address of the pack."""
    if place.exists(MANIFEST):
        raise ValueError(f"{place.address} is a pack already; a new folder is expected. Use it, or choose another folder.")
    paths = files.image_paths([images])
    order = np.random.default_rng(seed).permutation(len(paths))
    mixed = [str(paths[index]) for index in order]
    held = min(HELD_OUT, len(mixed) // 50) if len(mixed) >= 50 else int(len(mixed) >= 4)
    rest = mixed[held:]
    groups = [("held-out.safetensors", mixed[:held])]
    groups += [(f"shard-{start // shard:05d}.safetensors", rest[start : start + shard]) for start in range(0, len(rest), shard)]

    import ray.data

    from dn_cluster.driver import connect  # brings torch

    connect()

    ray.data.DataContext.get_current().enable_progress_bars = False
    jobs = [{"name": name, "paths": names, "place": place.address, "smallest": smallest} for name, names in groups]
    entries = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(write_group).take_all()
    entries = sorted((json.loads(entry["entry"]) for entry in entries), key=lambda entry: entry["name"])
    skipped = [reason for entry in entries for reason in entry.pop("skipped")]
    if skipped and not skip_bad:
        more = [f"and {len(skipped) - NAMED} more"] if len(skipped) > NAMED else []
        raise ValueError(
            f"{len(skipped)} of {len(paths)} files cannot be trained on ({'; '.join([*skipped[:NAMED], *more])}). Remove them, or skip "
            "them with --skip-bad."
        )
    shards = [entry for entry in entries if entry["name"] != groups[0][0] and entry["images"]]
    kinds = {kind for entry in entries for kind in entry["kinds"]}
    if len(kinds) != 1:
        raise ValueError(f"the images have dtypes {sorted(kinds)}; all uint8 or all uint16 is expected. Convert them to one kind.")
    (held_out,) = (entry for entry in entries if entry["name"] == groups[0][0])
    manifest = {"format": FORMAT, "source": str(images), "skipped": len(skipped), "held_out": held_out, "shards": shards}
    place.write(MANIFEST, json.dumps(manifest, indent=1).encode())
    print(f"{sum(entry['images'] for entry in shards)} images in {len(shards)} shards, {held_out['images']} held out", flush=True)
    return place.address


def write_group(job: dict[str, Any]) -> dict[str, str]:
    """Read some images and write them to one shard; what is to be said of it, as JSON."""
    images, skipped = [], []
    for path in map(Path, job["paths"]):
        try:
            images += read_grey(path, job["smallest"])
        except (ValueError, TypeError, OSError) as error:
            skipped.append(f"{path.name}: {error}")
    return {"entry": json.dumps({**write_shard(Storage(job["place"]), job["name"], images), "skipped": skipped})}


if __name__ == "__main__":
    app_of(main, __doc__)()
