"""Errors of a folder that is synchronised with the storage, and of models in the storage."""

from __future__ import annotations

import pytest

from dn_cluster.storage import Storage
from dn_cluster.storage_sync import synced_folder
from dn_cluster.training_job import load_start_model
from dn_core.errors import CheckpointError
from dn_core.network_config import paper_config
from dn_core.training.recipes import Phase, Recipe


def test_errors_name_the_storage_and_not_a_temporary_folder(tmp_path):
    storage = Storage.at(str(tmp_path))
    pytest.importorskip(
        "pyarrow", reason="pyarrow is not installed; it comes with the extra 'cluster'"
    )
    with pytest.raises(OSError, match="cannot be used") as caught, synced_folder(storage) as sync:
        raise OSError(5, f"{sync.folder}/a cannot be used", f"{sync.folder}/b")
    assert (caught.value.strerror, caught.value.filename) == (
        f"{tmp_path}/a cannot be used",
        f"{tmp_path}/b",
    )
    noise, phases = ({"kind": "gaussian", "sigma": 25},), (Phase(1, batch=2, patch=16),)
    recipe = Recipe("toy", paper_config(3), noise, phases, start="run/toy.safetensors")
    storage.write(recipe.start, b"damaged")
    with pytest.raises(
        CheckpointError, match=f"^{tmp_path}/run/toy.safetensors is not a safetensors file"
    ):
        load_start_model(recipe, storage)
