"""The models that come with the package: what their cards say, their weights, their sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from small_models import small_model

from dn_core.checkpoints import Card, load_checkpoint, save_checkpoint
from dn_core.models import registry
from dn_core.models.facts import _learnt_from, model_facts
from dn_core.models.index import parse_index
from dn_core.paper.protocol import level_named

BUNDLED = [entry for entry in registry.entries(older=True) if entry.kind == "bundled"]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bundle.py"
IMAGES = [data.camera()[:96, :96].astype(np.float32) / 255]
LEVELS = [level_named("gaussian 25")]
CARD = Card(
    "lab-model",
    description="A model",
    noise="Gaussian",
    terms="Free for any use.",
    data={"images": 3, "sources": ["3 images of ours, CC0"]},
    scores={"set12 gaussian 25": 20.0},
)
WEIGHTS = {
    "dn-fast@1": "3de53382fd245eca9a40d969c5c5c3d9fe4b0198c8285ef27a2fad0b6e587443",
    "dn-jpeg@1": "f6502424fa53910d0b55cc73e6f47aa5b816e6e58bba132cbe8fd97fff65b01b",
    "dn-microscopy-free@1": "c2dd36d2b060e55402cce474cdf524759bb38be153cd99e8305b3193712f44f2",
    "dn-microscopy@1": "3f375a18d34df467660ba50ad9542ae4af86288eb4e7f0b9b271f1039a87936d",
    "dn-quality@1": "ce472e6ea9fdecea269656671d08d63e7a717e57b0bdb042877f95008927608f",
    "dn-resnet-13@1": "1db71f30195950ba7e30ea84f9e813eb4f7cd1a8d2a3b89d1e84a0324b90847d",
    "ds-dn-resnet-13@1": "f071e66768c268444abfd29122210c626bebecaa0e943976b3f43f70e9857d7f",
}
"""Hashes of the weights of versions that were bundled: a version keeps its weights for ever."""


def weights_hash(entry):
    digest = hashlib.sha256()
    for name, value in sorted(load_checkpoint(entry.path).weights.items()):
        digest.update(name.encode() + value.astype("<f4").tobytes())
    return digest.hexdigest()


@pytest.fixture
def bundling():
    """The script that bundles models, as a module."""
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of this source distribution")
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return importlib.import_module("bundle")
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder of bundled models."""
    home = Path(BUNDLED[0].home)
    for path in (home / "index.json", *home.glob("*.safetensors")):
        shutil.copy(path, tmp_path)
    return tmp_path


def lab_model(scale=1.0, **changes):
    checkpoint = small_model().checkpoint
    weights = {name: value * np.float32(scale) for name, value in checkpoint.weights.items()}
    return dataclasses.replace(
        checkpoint, weights=weights, card=dataclasses.replace(CARD, **changes)
    )


@pytest.mark.parametrize("entry", BUNDLED, ids=lambda entry: entry.reference)
def test_a_card_says_what_the_model_learnt_from_and_under_which_terms_it_may_be_used(entry):
    card = entry.card()
    assert all(isinstance(source, str) and source for source in card.data["sources"])
    assert card.data["sources"]
    assert card.terms == entry.terms != ""
    assert card.scores
    facts = model_facts(entry)
    assert facts["Terms"] == card.terms
    assert all(source in facts["Learnt from"] for source in card.data["sources"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"images": 784, "held_out": 15}, "784 images, and 15 for its score"),
        ({"images": 3, "held_out": 0}, "3 images"),
        (
            {"images": 3, "held_out": 16, "phantoms": 0.4},
            "3 images, and made-up ones for 40% of the patches",
        ),
        ({"images": 0, "held_out": 16, "phantoms": 1.0}, "made-up images"),
        ({}, ""),
    ],
)
def test_a_model_says_how_many_images_it_learnt_from(data, words):
    entry = next(one for one in BUNDLED if one.name == "dn-fast")
    card = dataclasses.replace(entry.card(), data=data)
    assert _learnt_from(card) == words


@pytest.mark.parametrize("entry", BUNDLED, ids=lambda entry: entry.reference)
def test_a_version_keeps_its_weights(entry):
    if entry.reference in WEIGHTS:
        assert weights_hash(entry) == WEIGHTS[entry.reference]


def test_no_version_that_was_bundled_is_gone():
    assert WEIGHTS.keys() <= {entry.reference for entry in BUNDLED}


def test_all_files_are_in_the_index_and_small_together():
    files = {path.name for path in Path(BUNDLED[0].home).glob("*.safetensors")}
    assert files == {entry.file for entry in BUNDLED}
    assert sum(entry.bytes for entry in BUNDLED) < 20_000_000


def test_the_page_says_what_the_cards_say(bundling):
    page = bundling.PAGE.read_text(encoding="utf-8")
    assert all(text in page for text in bundling.tables(Path(BUNDLED[0].home)))


def test_a_new_version_is_bundled_beside_the_one_before(bundling, folder):
    first = bundling.bundle(lab_model(), folder, IMAGES, LEVELS)
    second = bundling.bundle(lab_model(0.5), folder, IMAGES, LEVELS)
    assert (first.entry.reference, second.entry.reference) == ("lab-model@1", "lab-model@2")
    index = parse_index((folder / "index.json").read_bytes(), str(folder), "bundled")
    assert index.default == "dn-fast"
    assert {entry.reference for entry in index.versions} == {
        *(entry.reference for entry in BUNDLED),
        "lab-model@1",
        "lab-model@2",
    }
    assert [entry.version for entry in index.older if entry.name == "lab-model"] == [1]
    for entry in index.versions:
        registry.verify(entry)
    again = bundling.bundle(lab_model(0.5), folder, IMAGES, LEVELS)
    assert "already" in again.note
    third = bundling.bundle(lab_model(0.6), folder, IMAGES, LEVELS, in_place=True)
    assert third.entry.reference == "lab-model@2"


def test_weights_are_bundled_in_float16_where_that_costs_almost_nothing(bundling, folder):
    done = bundling.bundle(lab_model(), folder, IMAGES, LEVELS)
    assert done.half
    assert done.cost.keys() == {"gaussian 25"}
    assert max(done.cost.values()) < bundling.MOST_DECIBELS
    assert done.entry.bytes < 0.7 * len(lab_model().to_bytes())
    assert "float16 costs" in str(done)


def test_weights_that_float16_cannot_hold_are_bundled_in_float32(bundling, folder):
    done = bundling.bundle(lab_model(1e-7), folder, IMAGES, LEVELS)
    assert not done.half
    assert "too small" in done.note
    found = load_checkpoint(done.entry.path).weights
    assert all(np.array_equal(found[name], v) for name, v in lab_model(1e-7).weights.items())


@pytest.mark.parametrize(
    "changes", [{"terms": ""}, {"scores": {}}, {"data": {"images": 3}}, {"noise": ""}]
)
def test_a_card_that_says_too_little_is_not_bundled(bundling, folder, changes):
    before = (folder / "index.json").read_bytes()
    with pytest.raises(ValueError, match="card of lab-model must have .*Add them"):
        bundling.bundle(lab_model(**changes), folder, IMAGES, LEVELS)
    assert (folder / "index.json").read_bytes() == before


def test_models_that_are_too_large_together_are_not_bundled(bundling, folder, monkeypatch):
    monkeypatch.setattr(bundling, "MOST_BYTES", sum(entry.bytes for entry in BUNDLED))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match="at most .* bytes together, got"):
        bundling.bundle(lab_model(), folder, IMAGES, LEVELS)
    assert {path.name for path in folder.iterdir()} == before


def test_bundling_is_one_command(bundling, folder, tmp_path):
    save_checkpoint(tmp_path / "own.safetensors", lab_model(terms=""))
    (tmp_path / "card.json").write_text(json.dumps({"terms": "Free.", "data": {"images": 4}}))
    (tmp_path / "images").mkdir()
    Image.fromarray(data.camera()[:64, :64]).save(tmp_path / "images" / "a.png")
    options = [tmp_path / "own.safetensors", "--card", tmp_path / "card.json", "--folder", folder]
    options += ["--images", tmp_path / "images", "--levels", "gaussian 25"]
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    refused = [*command[:3], *command[5:]]  # without --card
    done = subprocess.run(refused, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("bundle.py: the card of lab-model must have")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lab-model@1: " in done.stdout
    card = load_checkpoint(folder / "lab-model@1.safetensors").card
    assert (card.terms, card.data) == ("Free.", {"images": 4, "sources": CARD.data["sources"]})
