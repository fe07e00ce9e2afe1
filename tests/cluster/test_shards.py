"""A bank in shards: every worker takes turns through all of them, and a resumed run sees the same."""

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
from dn_core.training.cascade import train, train_stages
from dn_core.training.recipes import Phase, Recipe

RECIPE = Recipe("toy", paper_config(3), ({"kind": "gaussian", "sigma": 25},), (Phase(12, batch=2, patch=16),), epoch=2)


@pytest.fixture
def place(tmp_path):
    """Five shards of two images, each shard with a grey level of its own."""
    place = Storage.at(str(tmp_path / "pack"))
    texture = data.brick()[:40, :40].astype(int) % 8
    shards = [
        write_shard(place, f"shard-{index}.safetensors", [(texture + 50 * index + more).astype(np.uint8) for more in (0, 10)])
        for index in range(5)
    ]
    held_out = write_shard(place, "held-out.safetensors", [data.coins()[:64, :64]])
    place.write(MANIFEST, json.dumps({"format": FORMAT, "held_out": held_out, "shards": shards}).encode())
    return place


def test_all_workers_together_go_through_all_shards(place):
    bank = load_pack(place, smallest=16, steps=3)
    assert bank.count == 10
    for turn in range(4):  # of five shards each, two workers take ten in five times
        taken = [bank.shard_at(3 * time, rank, 2) for time in range(5 * turn, 5 * turn + 5) for rank in (0, 1)]
        assert sorted(taken) == sorted([*range(5), *range(5)])
    assert len({bank.shard_at(step, 0, 1) for step in (0, 1, 2)}) == 1


def test_the_images_of_a_shard_are_those_packed(place):
    bank = load_pack(place, smallest=16, steps=3)
    for step in (0, 3, 6):
        index = bank.shard_at(step, 0, 1)
        assert {int(image.min()) // 50 for image in bank.at(step).images} == {index}


def test_a_resumed_run_has_the_weights_of_a_whole_one(place, tmp_path):
    def bank():
        return load_pack(place, smallest=16, steps=RECIPE.epoch)

    whole = train(RECIPE, bank(), tmp_path / "whole", precision="float32")
    steps = train_stages(RECIPE, bank(), tmp_path / "resumed", precision="float32")
    for _ in itertools.islice(steps, 3):
        pass
    steps.close()
    assert train(RECIPE, bank(), tmp_path / "resumed", precision="float32").read_bytes() == whole.read_bytes()


def test_what_is_wrong_with_a_pack_is_said(place):
    assert load_pack(place.within("elsewhere"), smallest=16, steps=1) is None
    with pytest.raises(ValueError, match="side of 40 pixels; at least 64 is expected"):
        load_pack(place, smallest=64, steps=1)
    bank = load_pack(place, smallest=16, steps=1)
    other = dataclasses.replace(bank, manifest={**bank.manifest, "shards": bank.manifest["shards"][:4]})
    assert other.fingerprint() != bank.fingerprint()
    place.write("shard-3.safetensors", b"something else")
    with pytest.raises(OSError, match="missing or not as it was packed"):
        [bank.at(step) for step in range(5)]
    place.write(MANIFEST, b"{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_pack(place, smallest=16, steps=1)
