"""Sharded datasets: the workers use all shards in turn, and a resumed run uses the same ones."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from skimage import data

from dn_cluster.shards import FORMAT, MANIFEST, load_pack, write_shard
from dn_cluster.storage import Storage
from dn_core.network_config import paper_config
from dn_core.training.recipes import Phase, Recipe
from dn_core.training.stages import train, train_stages

RECIPE = Recipe(
    "toy",
    paper_config(3),
    ({"kind": "gaussian", "sigma": 25},),
    (Phase(12, batch=2, patch=16),),
    epoch=2,
)


@pytest.fixture
def storage(tmp_path):
    """Five shards of two images, each shard with a grey level of its own."""
    storage = Storage.at(str(tmp_path / "pack"))
    texture = data.brick()[:40, :40].astype(int) % 8
    shards = [
        write_shard(
            storage,
            f"shard-{index}.safetensors",
            [(texture + 50 * index + more).astype(np.uint8) for more in (0, 10)],
        )
        for index in range(5)
    ]
    held_out = write_shard(storage, "held-out.safetensors", [data.coins()[:64, :64]])
    storage.write(
        MANIFEST, json.dumps({"format": FORMAT, "held_out": held_out, "shards": shards}).encode()
    )
    return storage


def test_the_workers_together_use_all_shards_in_turn(storage):
    dataset = load_pack(storage, smallest=16, steps=3)
    assert dataset.count == 10
    for turn in range(4):  # of five shards each, two workers take ten in five times
        taken = [
            dataset.shard_at(3 * time, rank, 2)
            for time in range(5 * turn, 5 * turn + 5)
            for rank in (0, 1)
        ]
        assert sorted(taken) == sorted([*range(5), *range(5)])
    assert len({dataset.shard_at(step, 0, 1) for step in (0, 1, 2)}) == 1


def test_a_shard_has_the_images_that_were_packed(storage):
    dataset = load_pack(storage, smallest=16, steps=3)
    for step in (0, 3, 6):
        index = dataset.shard_at(step, 0, 1)
        assert {int(image.min()) // 50 for image in dataset.at(step).images} == {index}


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_run(storage, tmp_path):
    def dataset():
        return load_pack(storage, smallest=16, steps=RECIPE.epoch)

    whole = train(RECIPE, dataset(), tmp_path / "whole", precision="float32")
    steps = train_stages(RECIPE, dataset(), tmp_path / "resumed", precision="float32")
    for _ in itertools.islice(steps, 3):
        pass
    steps.close()
    assert (
        train(RECIPE, dataset(), tmp_path / "resumed", precision="float32").read_bytes()
        == whole.read_bytes()
    )


def test_damage_to_a_pack_is_reported(storage):
    assert load_pack(storage.subfolder("elsewhere"), smallest=16, steps=1) is None
    with pytest.raises(ValueError, match="at least 64 pixels, got a side of 40 pixels"):
        load_pack(storage, smallest=64, steps=1)
    dataset = load_pack(storage, smallest=16, steps=1)
    other = dataclasses.replace(
        dataset, manifest={**dataset.manifest, "shards": dataset.manifest["shards"][:4]}
    )
    assert other.fingerprint() != dataset.fingerprint()
    storage.write("shard-3.safetensors", b"something else")
    with pytest.raises(OSError, match="missing or has changed since it was packed"):
        [dataset.at(step) for step in range(5)]
    storage.write(MANIFEST, b"{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_pack(storage, smallest=16, steps=1)


def test_made_up_images_and_a_pack_train_together_and_resume_alike(storage, tmp_path):
    recipe = dataclasses.replace(RECIPE, phantoms=0.5, target_blur=1.0)

    def dataset():
        return load_pack(storage, smallest=16, steps=2)

    whole = train(recipe, dataset(), tmp_path / "whole", precision="float32")
    steps = train_stages(recipe, dataset(), tmp_path / "parts", precision="float32")
    for _ in itertools.islice(steps, 2):
        pass
    steps.close()
    parts = train(recipe, dataset(), tmp_path / "parts", precision="float32")
    assert whole.read_bytes() == parts.read_bytes()


def test_every_node_has_made_up_images(tmp_path):
    from dn_cluster.command import data_address
    from dn_cluster.node_probe import probe_node

    assert data_address("phantoms") == "phantoms"
    assert data_address("some/folder").endswith("/some/folder")
    storage = Storage.at(str(tmp_path))
    assert probe_node("phantoms", storage, "marker", ())["data"]
    assert not probe_node(str(tmp_path / "missing"), storage, "marker", ())["data"]
