"""Models on this machine and registries, with a real web server that does everything wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import gzip
import hashlib
import importlib.util
import ipaddress
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from web_server import WebServer, begin, endless, record_of, redirect, slowly, status, write_model

import dn_core
from dn_core.checkpoints import load_checkpoint, read_card, save_checkpoint
from dn_core.cli import app
from dn_core.errors import CheckpointError, RegistryError, UnknownModelError
from dn_core.models import models_folder, registry, remote
from dn_core.models.facts import model_facts
from dn_core.models.index import index_bytes, parse_index
from dn_core.models.remote import Limits
from dn_core.models.sources import check_address

BUNDLED = [entry.name for entry in registry.entries() if entry.kind == "bundled"]
IMPATIENT = Limits(connect=2, read=0.6, patience=1, slowest=2000)
IMAGE = np.random.default_rng(0).normal(100, 20, (48, 48)).astype(np.float32)
posix = pytest.mark.skipif(os.name == "nt", reason="limits and users as POSIX has them")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The models folder of each test; it does not exist at first."""
    path = tmp_path / "models"
    monkeypatch.setenv("DN_MODELS", str(path))
    return path


@pytest.fixture
def server():
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def old(tmp_path):
    """Version 1 of the model that tests download."""
    return write_model(tmp_path / "old.safetensors", "lab").read_bytes()


@pytest.fixture
def new(tmp_path):
    """Version 2 of it."""
    return write_model(tmp_path / "new.safetensors", "lab", 0.9).read_bytes()


def invoke(*arguments, **options):
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


def python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **options
    )


def files_in(folder):
    """Names and contents of the models folder, except locks and sequence numbers seen."""
    return {
        path.name: path.read_bytes()
        for path in folder.glob("*")
        if path.is_file() and path.name != ".lock"
    }


# What is on this machine


def test_bundled_models_are_listed_without_a_folder(folder):
    assert registry.model_names() == dn_core.model_names() == BUNDLED
    assert {entry.kind for entry in registry.entries()} == {"bundled"}
    assert not folder.exists()


@posix
def test_models_lie_in_the_users_data_where_nothing_else_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("DN_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert models_folder().is_relative_to(tmp_path)
    assert models_folder().name == "models"
    assert [entry.name for entry in registry.entries()] == BUNDLED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: entry.name)
def test_the_wheels_index_says_what_its_files_are(entry):
    registry.verify(entry)
    card = entry.card()
    assert (card.name, card.license, card.description, card.noise) == (
        entry.name,
        entry.license,
        entry.description,
        entry.noise,
    )
    assert entry.bytes == entry.path.stat().st_size


def test_a_card_is_read_without_the_weights(tmp_path):
    path = write_model(tmp_path / "m.safetensors", "lab")
    card = load_checkpoint(path).card
    content = path.read_bytes()
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    assert read_card(path) == card


def test_an_own_model_is_found_by_its_name(tmp_path, folder):
    path = write_model(tmp_path / "m.safetensors", "my-model")
    entry = registry.add(path)
    assert entry in registry.entries()
    assert (entry.kind, entry.path.parent, entry.path.read_bytes()) == (
        "own",
        folder,
        path.read_bytes(),
    )
    assert registry.resolve("my-model") == entry.path
    assert dn_core.model_names() == [*BUNDLED, "my-model"]
    assert np.array_equal(dn_core.denoise(IMAGE, "my-model"), dn_core.denoise(IMAGE, path))


def test_adding_a_model_again_changes_nothing(tmp_path, folder):
    path = write_model(tmp_path / "m.safetensors", "my-model")
    first = registry.add(path)
    before = files_in(folder)
    assert registry.add(path) == first
    assert files_in(folder) == before


def test_a_model_can_be_added_under_another_name(tmp_path):
    path = write_model(tmp_path / "m.safetensors", "my-model")
    entry = registry.add(path, "nuclei-60x")
    assert entry.name == entry.card().name == "nuclei-60x"
    weights, expected = load_checkpoint(entry.path).weights, load_checkpoint(path).weights
    assert all(np.array_equal(weights[name], value) for name, value in expected.items())


def test_a_name_belongs_to_one_model(tmp_path, folder, server, old):
    server.serve(old)
    remote.fetch("lab", server.address)
    registry.add(write_model(tmp_path / "m.safetensors", "my-model"))
    before = files_in(folder)
    for name in ("dn-fast", "my-model", "lab"):
        with pytest.raises(
            ValueError,
            match=rf"{name}.*(comes with the package|your own|downloaded).*Choose another",
        ):
            registry.add(write_model(tmp_path / "other.safetensors", name, 0.7))
    for name in ("dn-fast", "my-model"):
        server.serve(
            write_model(tmp_path / "other.safetensors", name, 0.8).read_bytes(), name, sequence=2
        )
        with pytest.raises(ValueError, match=f"{name}.*Choose another"):
            remote.fetch(name, server.address)
    assert files_in(folder) == before


def test_a_bundled_model_never_hides_another_one_in_silence(tmp_path, folder):
    """As after an upgrade to a release that bundles a model of a name that was free before."""
    content = write_model(tmp_path / "m.safetensors", "dn-fast").read_bytes()
    record = record_of("dn-fast", content) | {"kind": "own"}
    folder.mkdir()
    (folder / record["file"]).write_bytes(content)
    (folder / "index.json").write_bytes(index_bytes(1, [record]))
    assert [entry.name for entry in registry.entries()] == BUNDLED
    with pytest.warns(
        UserWarning,
        match="two models are named dn-fast: the one that comes with the package is used",
    ):
        assert registry.resolve("dn-fast").parent != folder
    registry.remove("dn-fast")
    assert not list(folder.glob("*.safetensors"))


def test_removing_takes_own_and_downloaded_models_only(tmp_path, folder, server, old):
    server.serve(old)
    remote.fetch("lab", server.address)
    registry.add(write_model(tmp_path / "m.safetensors", "my-model"))
    for name in ("lab", "my-model"):
        registry.remove(name)
    assert list(files_in(folder)) == ["index.json"]
    with pytest.raises(ValueError, match="comes with the package"):
        registry.remove("dn-fast")
    with pytest.raises(UnknownModelError, match="no downloaded or own model 'lab'"):
        registry.remove("lab")


@pytest.mark.parametrize("kind", ["downloaded", "own"])
def test_a_file_that_was_changed_is_refused_when_it_is_loaded(kind, tmp_path, server, old):
    if kind == "own":
        registry.add(write_model(tmp_path / "m.safetensors", "lab"))
    else:
        server.serve(old)
        remote.fetch("lab", server.address)
    path = registry.resolve("lab")
    write_model(path, "lab", 0.5)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    for model in ("lab", path):  # by name, and by path
        with pytest.raises(
            CheckpointError, match=rf"sha256 {hashlib.sha256(old).hexdigest()}, got {found}"
        ):
            dn_core.load_model(model)


def test_fetching_mends_a_file_that_was_changed(server, old):
    server.serve(old)
    path = remote.fetch("lab", server.address)
    path.write_bytes(b"changed")
    assert remote.fetch("lab", server.address) == path
    assert path.read_bytes() == old


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 2, "sequence": 1, "models": [{"name": "x"}]}']
)
def test_a_damaged_list_leaves_the_bundled_models(content, tmp_path, folder):
    folder.mkdir()
    (folder / "index.json").write_bytes(content)
    with pytest.warns(UserWarning, match="downloaded and own models are left out"):
        assert dn_core.model_names() == BUNDLED
    with pytest.raises(RegistryError), pytest.warns(UserWarning, match="are left out"):
        registry.add(write_model(tmp_path / "m.safetensors", "my-model"))
    assert (folder / "index.json").read_bytes() == content  # for the user to mend


NAMES = [
    "",
    "../x",
    "/x",
    "C:\\x",
    "a\0b",
    "a" * 101,
    "-rf",
    ".hidden",
    "a..b",
    "a/b",
    "a\\b",
    "Ä",
    "A",
    "a b",
    "a\n",
    "con:",
    "$HOME",
    "%2e%2e",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_could_be_paths_are_refused(name, tmp_path, folder, server, old):
    with pytest.raises(ValueError, match="cannot be named .* Rename it"):
        registry.add(write_model(tmp_path / "m.safetensors", name))
    with pytest.raises(ValueError, match="cannot be named"):
        registry.add(write_model(tmp_path / "m.safetensors", "fine"), name)
    with pytest.raises(ValueError, match="cannot be named"):
        remote.fetch(name, server.address)
    with pytest.raises(RegistryError, match="cannot be named"):
        parse_index(index_bytes(1, [record_of("lab", old) | {"name": name}]), "registry", "remote")
    assert not folder.exists()
    assert server.requests == []


GOOD = record_of("lab", b"content")
BAD_INDEXES = {
    "empty": b"",
    "cut off": index_bytes(1, [GOOD])[:-20],
    "not a table": b"[]",
    "a web page": b"<!DOCTYPE html><html></html>",
    "another encoding": '{"format": 2}'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "no format": b'{"sequence": 1, "models": []}',
    "older format": b'{"format": 1, "sequence": 1, "models": []}',
    "newer format": b'{"format": 3, "sequence": 1, "models": []}',
    "no sequence": b'{"format": 2, "models": []}',
    "negative sequence": b'{"format": 2, "sequence": -1, "models": []}',
    "true as sequence": b'{"format": 2, "sequence": true, "models": []}',
    "no models": b'{"format": 2, "sequence": 1}',
    "a key twice": b'{"format": 2, "sequence": 1, "sequence": 2, "models": []}',
    "a name twice": index_bytes(1, [GOOD, GOOD]),
    "too large": index_bytes(1, [GOOD | {"description": "x" * 5_000_000}]),
}
BAD_VALUES = {
    "file": [
        None,
        1,
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a\\b",
        "C:x",
        "file:///x",
        "http://x/y",
        "a\0",
        "a//b",
        "x" * 300,
        "a?b",
        "a#b",
        "%2e",
    ],
    "sha256": [None, 1, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64],
    "bytes": [None, -1, 0, 1.5, True, "9", 2**40],
    "version": [None, 0, -1, 1.0, True, "1", 2**60],
    "license": [None, 1, []],
    "scores": [[], "28 dB"],
}


@pytest.mark.parametrize("content", BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_an_index_that_is_none_is_refused(content, server):
    server.answers["/models/index.json"] = content
    with pytest.raises(RegistryError, match=f"^{server.address}/index.json .*[.?]$"):
        remote.remote_entries(server.address)


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in BAD_VALUES.items() for value in values],
    ids=ascii,
)
def test_an_index_with_a_value_that_cannot_be_is_refused(key, value):
    with pytest.raises(
        RegistryError, match=f"lists lab wrongly: {key} of the model must be .*, got .* Restore it"
    ):
        parse_index(index_bytes(1, [GOOD | {key: value}]), "registry", "remote")


def test_keys_that_a_later_version_adds_are_no_error():
    index = parse_index(index_bytes(3, [GOOD | {"colour": "green"}]), "registry", "remote")
    assert (index.sequence, index.entries[0].name, index.records[0]["colour"]) == (
        3,
        "lab",
        "green",
    )


# Downloading


def test_a_model_is_downloaded_and_used(server, old, folder):
    record = server.serve(old)
    steps = list(remote.fetch_steps("lab", server.address))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert {step.total for step in steps} == {len(old)}
    assert (
        [step.path for step in steps if step.path] == [steps[-1].path] == [registry.resolve("lab")]
    )
    assert steps[-1].done == len(old)
    assert steps[-1].path.name == record["file"]
    entry = registry.entries()[-1]
    assert (entry.kind, entry.version, entry.source) == ("downloaded", 1, server.address)
    assert dn_core.denoise(IMAGE, "lab").shape == IMAGE.shape
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.requests)
    assert files_in(folder).keys() == {"index.json", record["file"]}


def test_what_a_registry_offers_is_listed_with_its_cards(server, old):
    server.offer(
        4,
        record_of(
            "lab",
            old,
            7,
            description="For nuclei",
            noise="Gaussian",
            license="CC0-1.0",
            scores={"gaussian 25": 29.5},
        ),
    )
    (entry,) = remote.remote_entries(server.address)
    card = entry.card()
    assert (entry.kind, entry.version, entry.location) == (
        "remote",
        7,
        f"{server.address}/{entry.file}",
    )
    assert (card.description, card.noise, card.license, card.scores) == (
        "For nuclei",
        "Gaussian",
        "CC0-1.0",
        {"gaussian 25": 29.5},
    )
    with pytest.raises(ValueError, match="Fetch it first"):
        _ = entry.path


def test_a_model_is_downloaded_once(server, old):
    record = server.serve(old)
    paths = {remote.fetch("lab", server.address) for _ in range(3)}
    assert len(paths) == 1
    assert [path for path, _ in server.requests].count(f"/models/{record['file']}") == 1


def test_a_newer_version_leaves_the_older_one_to_be_had_by_its_number(server, old, new, folder):
    server.serve(old)
    first = remote.fetch("lab", server.address)
    server.serve(new, version=2, sequence=2)
    path = remote.fetch("lab", server.address)
    assert path.read_bytes() == new
    assert files_in(folder).keys() == {"index.json", path.name, first.name}
    assert [entry.reference for entry in registry.entries() if entry.name == "lab"] == ["lab@2"]
    assert registry.resolve("lab") == registry.resolve("lab@2") == path
    assert registry.resolve("lab@1") == first
    listed = [entry.reference for entry in registry.entries(older=True)]
    assert listed == [*(f"{name}@1" for name in BUNDLED), "lab@2", "lab@1"]


def both_versions(server, old, new):
    """A registry that lists two versions, as the publisher leaves it."""
    records = [record_of("lab", content, number + 1) for number, content in enumerate((old, new))]
    server.offer(2, *records)
    for record, content in zip(records, (old, new), strict=True):
        server.answers[f"/models/{record['file']}"] = content


def test_an_older_version_is_fetched_by_its_number_before_or_after_the_newest(server, old, new):
    both_versions(server, old, new)
    assert [entry.version for entry in remote.remote_entries(server.address)] == [2]
    every = remote.remote_entries(server.address, older=True)
    assert [entry.reference for entry in every] == ["lab@2", "lab@1"]
    assert remote.fetch("lab@1", server.address).read_bytes() == old
    assert registry.reference("lab") == "lab@1"
    assert remote.fetch("lab", server.address).read_bytes() == new
    registry.remove("lab@1")
    assert [entry.reference for entry in registry.entries()][-1] == "lab@2"
    assert remote.fetch("lab@1", server.address).read_bytes() == old
    assert (registry.reference("lab"), registry.reference("lab@1")) == ("lab@2", "lab@1")
    assert registry.reference(registry.resolve("lab@1")) == "lab@1"
    with pytest.raises(UnknownModelError, match="no version 3 of lab .*it has versions 1 and 2"):
        remote.fetch("lab@3", server.address)


def test_a_version_can_be_named_wherever_a_model_can(server, old, new):
    both_versions(server, old, new)
    for name in ("lab@1", "lab"):
        remote.fetch(name, server.address)
    first, newest = (dn_core.denoise(IMAGE, name) for name in ("lab@1", "lab"))
    assert np.array_equal(first, dn_core.load_model("lab@1")(IMAGE))
    assert np.array_equal(newest, dn_core.denoise(IMAGE, "lab@2"))
    assert not np.array_equal(first, newest)
    assert dn_core.plan_denoise(IMAGE, "lab@1").model == "lab@1"
    assert dn_core.plan_denoise(IMAGE, "lab").model == "lab@2"
    assert dn_core.plan_denoise(IMAGE).model == "dn-fast@1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab@3", "lab has versions 1 and 2 here. Name one of them, or fetch it"),
        ("dn-fast@7", "dn-fast has version 1 here. Name"),
        ("lab@", "version after lab@ must be a whole number of at least 1, got ''"),
        ("lab@0", "must be a whole number of at least 1, got '0'"),
        ("lab@01", "must be a whole number of at least 1, got '01'"),
        ("lab@-1", "must be a whole number of at least 1, got '-1'"),
        ("lab@new", "must be a whole number of at least 1, got 'new'"),
        ("lba@1", "there is no model 'lba@1': it is neither a known name nor a file. Did you mean"),
        ("@1", "neither a known name nor a file"),
    ],
)
def test_a_version_that_is_not_here_is_refused_with_those_that_are(name, message, server, old, new):
    both_versions(server, old, new)
    for known in ("lab@1", "lab"):
        remote.fetch(known, server.address)
    with pytest.raises(ValueError, match=re.escape(message)):
        dn_core.load_model(name)


def test_a_file_with_a_sign_of_versions_in_its_name_is_still_a_file(tmp_path, monkeypatch):
    write_model(tmp_path / "lab@1.safetensors", "lab")
    monkeypatch.chdir(tmp_path)
    assert dn_core.load_model("lab@1.safetensors").card.name == "lab"
    assert registry.reference("lab@1.safetensors") == "lab"
    with pytest.raises(UnknownModelError, match="'dn-fast@1.safetensors': it is neither"):
        dn_core.load_model("dn-fast@1.safetensors")


@pytest.mark.parametrize("name", ["dn-fast@2", "lab@1", "dn-fast@01"])
def test_a_file_that_is_called_like_a_version_is_not_taken_for_one(name, tmp_path, monkeypatch):
    write_model(tmp_path / name, "lab")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"there is no model '{name}'|must be a whole number"):
        dn_core.load_model(name)
    assert dn_core.load_model(f"./{name}").card.name == "lab"
    assert dn_core.load_model(Path(name)).card.name == "lab"


@pytest.mark.parametrize("name", ["lab@", "lab@01", "lab@2", "lab@1@1"])
def test_removing_takes_no_version_that_was_not_named(name, tmp_path):
    registry.add(write_model(tmp_path / "m.safetensors", "lab"))
    with pytest.raises(UnknownModelError, match=f"'{name}' to remove. It has version 1"):
        registry.remove(name)
    assert registry.resolve("lab@1").is_file()


def test_one_content_under_two_versions_is_one_file(server, old, new):
    """As after a version that was taken back by publishing the one before it again."""
    records = [record_of("lab", content, n + 1) for n, content in enumerate((old, new, old))]
    server.offer(3, *records)
    for record, content in zip(records, (old, new, old), strict=True):
        server.answers[f"/models/{record['file']}"] = content
    paths = {name: remote.fetch(name, server.address) for name in ("lab@1", "lab@2", "lab")}
    assert paths["lab@1"] == paths["lab"] != paths["lab@2"]
    assert registry.reference("lab") == "lab@3"
    for name in ("lab@1", "lab@3"):
        assert dn_core.plan_denoise(IMAGE, name).model == name
    registry.remove("lab@3")
    assert dn_core.plan_denoise(IMAGE, "lab").model == "lab@2"
    registry.remove("lab@2")
    assert dn_core.plan_denoise(IMAGE, "lab").model == "lab@1"
    assert registry.resolve("lab@1").read_bytes() == old
    registry.remove("lab")
    assert not paths["lab"].exists()


def test_a_model_that_replaces_an_own_one_is_a_newer_version(tmp_path):
    for number, scale in enumerate((1, 0.9), 1):
        path = write_model(tmp_path / "m.safetensors", "my-model", scale)
        assert registry.add(path, replace=True).reference == f"my-model@{number}"
    assert registry.add(path, replace=True).reference == "my-model@2"
    first = write_model(tmp_path / "first.safetensors", "my-model", 1)
    assert registry.resolve("my-model@1").read_bytes() == first.read_bytes()
    assert registry.add(first, replace=True).reference == "my-model@3"


def test_a_version_that_is_listed_twice_is_refused(old, new):
    newest, first = record_of("lab", new, 2), record_of("lab", old, 1)
    table = {"format": 2, "sequence": 1, "models": [newest]}
    for older in ([first, first], [newest], [record_of("other", old)]):
        content = json.dumps(table | {"older": older}).encode()
        with pytest.raises(RegistryError, match="versions before the newest one as older"):
            parse_index(content, "registry", "remote")
    index = parse_index(json.dumps(table | {"older": [first]}).encode(), "registry", "remote")
    assert parse_index(index_bytes(1, index.records), "registry", "remote") == index


def test_weights_in_float16_stay_so_under_another_name(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint = load_checkpoint(write_model(path, "my-model"))
    save_checkpoint(path, checkpoint, half=True)
    entry = registry.add(path, "nuclei")
    assert entry.bytes < 0.6 * len(checkpoint.to_bytes()) + 2000
    found, expected = load_checkpoint(entry.path).weights, load_checkpoint(path).weights
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_what_a_model_is_and_its_terms_are_shown_in_a_shell(tmp_path, server, old):
    shown = invoke("models", "show", "dn-fast@1")
    assert shown.exit_code == 0, shown.output
    assert "dn-fast@1, bundled" in shown.stdout
    assert "Terms" in shown.stdout
    assert "set12 gaussian 25 30.21 dB" in shown.stdout
    server.offer(1, record_of("lab", old, 4, terms="Free for any use."))
    remote_text = invoke("models", "show", "lab", "--registry", server.address).stdout
    assert "lab@4, remote" in remote_text
    assert "Free for any use." in remote_text
    path = write_model(tmp_path / "m.safetensors", "my-model")
    assert "not in the list of models" in invoke("models", "show", path).stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"images": 0, "phantoms": 1.0}, "made-up images"),
        (
            {"images": 1200, "phantoms": 0.4},
            "1,200 images, and made-up ones for 40% of the patches",
        ),
        ({"images": 1200}, "1,200 images"),
    ],
)
def test_made_up_images_are_told_among_those_learnt_from(data, words, tmp_path):
    path = write_model(tmp_path / "m.safetensors", "lab")
    checkpoint = load_checkpoint(path)
    card = dataclasses.replace(checkpoint.card, data=data)
    save_checkpoint(path, dataclasses.replace(checkpoint, card=card))
    assert model_facts(registry.add(path))["Learnt from"] == words


def test_a_card_cannot_change_what_a_terminal_shows(server, old):
    server.offer(1, record_of("lab", old, 4, terms="Free.\x1b[1A\rµm"))
    shown = invoke("models", "show", "lab", "--registry", server.address).stdout
    assert "Free.\ufffd[1A\ufffdµm" in shown


def test_a_plain_folder_is_a_registry(tmp_path, old):
    record = record_of("lab", old)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / record["file"]).write_bytes(old)
    (tmp_path / "shared" / "index.json").write_bytes(index_bytes(1, [record]))
    assert [entry.name for entry in remote.remote_entries(tmp_path / "shared")] == ["lab"]
    assert remote.fetch("lab", tmp_path / "shared").read_bytes() == old


@posix
def test_a_link_out_of_a_folder_is_not_followed(tmp_path, old):
    record = record_of("lab", old)
    (tmp_path / "outside").write_bytes(old)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / record["file"]).symlink_to(tmp_path / "outside")
    (tmp_path / "shared" / "index.json").write_bytes(index_bytes(1, [record]))
    with pytest.raises(RegistryError, match="outside its registry"):
        remote.fetch("lab", tmp_path / "shared")


def test_an_unknown_name_comes_with_near_ones(server, old):
    server.serve(old)
    with pytest.raises(UnknownModelError, match=r"no model 'lap' in .* Did you mean lab\?"):
        remote.fetch("lap", server.address)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(code, server, old):
    record = server.serve(old)
    server.answers["/elsewhere"] = old
    server.answers[f"/models/{record['file']}"] = redirect("/elsewhere", code)
    assert remote.fetch("lab", server.address).read_bytes() == old


def pickle_of_nothing(length):
    return b"\x80\x04N." + b" " * (length - 4)


FAULTS = {
    "another content of the same size": (
        lambda s, c: c[:-1] + bytes([c[-1] ^ 1]),
        RegistryError,
        "must have sha256 [0-9a-f]{64}, got [0-9a-f]{64}",
    ),
    "shorter": (lambda s, c: c[:1000], ConnectionError, r"got 1000 of \d+ bytes; try again"),
    "nothing": (lambda s, c: b"", ConnectionError, r"got 0 of \d+ bytes"),
    "cut off": (
        lambda s, c: slowly(c[:1000], 500, 0, s.stopping, len(c)),
        ConnectionError,
        "ended the connection before the end",
    ),
    "longer": (lambda s, c: c + b"0", RegistryError, r"must have at most \d+ bytes, got more"),
    "endless": (
        lambda s, c: endless(s.stopping),
        RegistryError,
        r"must have at most \d+ bytes, got more",
    ),
    "stalled": (
        lambda s, c: slowly(c, 1000, 30, s.stopping, len(c)),
        TimeoutError,
        "no byte came for 0.6 s",
    ),
    "stalled before it began": (
        lambda s, c: lambda request: s.stopping.wait(30),
        TimeoutError,
        "did not answer in time",
    ),
    "one byte at a time": (
        lambda s, c: slowly(c, 1, 0.05, s.stopping, len(c)),
        TimeoutError,
        r"only \d+ bytes a second",
    ),
    "not there": (lambda s, c: None, FileNotFoundError, "no such file"),
    "login": (lambda s, c: status(403), PermissionError, "403; is a login needed"),
    "out of order": (lambda s, c: status(503), ConnectionError, "answered 503"),
    "no content": (
        lambda s, c: lambda request: begin(request, 0, 204),
        ConnectionError,
        "answered 204",
    ),
    "login page": (
        lambda s, c: b"<!DOCTYPE html><html>Log in</html>",
        RegistryError,
        "is a web page of 34 bytes.*login",
    ),
    "login page of the same size": (
        lambda s, c: b"<html>".ljust(len(c)),
        RegistryError,
        "is a web page",
    ),
    "compressed": (lambda s, c: lambda request: gzipped(request, c), RegistryError, "sha256"),
    "redirect to itself": (
        lambda s, c: lambda request: begin(request, 0, 302, Location=request.path),
        RegistryError,
        "after 5 redirects",
    ),
    "redirect to a file": (
        lambda s, c: redirect("file:///etc/passwd"),
        RegistryError,
        "redirects to 'file:///etc/passwd', where we do not go",
    ),
    "redirect to ftp": (
        lambda s, c: redirect("ftp://127.0.0.1/x"),
        RegistryError,
        "redirects to 'ftp://127.0.0.1/x'",
    ),
    "redirect to plain http": (
        lambda s, c: redirect("http://example.org/x"),
        RegistryError,
        "not encrypted",
    ),
    "redirect to nonsense": (
        lambda s, c: redirect("http://[::1/x"),
        RegistryError,
        "where we do not go|not an address",
    ),
}


def gzipped(request, content):
    packed = gzip.compress(content + b"0" * 10_000_000)[: len(content)].ljust(len(content), b"\0")
    begin(request, len(packed), Content_Encoding="gzip")
    request.wfile.write(packed)


@pytest.mark.parametrize(("answer", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_a_download_that_fails_leaves_the_old_model(
    answer, error, message, server, old, new, folder
):
    server.serve(old)
    remote.fetch("lab", server.address)
    before = files_in(folder)
    record = server.serve(new, version=2, sequence=2)
    server.answers[f"/models/{record['file']}"] = answer(server, new)
    with pytest.raises(error, match=message):
        remote.fetch("lab", server.address, IMPATIENT)
    assert files_in(folder) == before
    assert load_checkpoint(registry.resolve("lab"))
    server.answers[f"/models/{record['file']}"] = new
    assert (
        remote.fetch("lab", server.address).read_bytes() == new
    )  # nothing is in the way of the next attempt


NO_MODELS = {
    "a pickle": (pickle_of_nothing(5000), "got a pickle"),
    "a web page that the index names": (b"<html>", "not a safetensors file|is a web page"),
    "no safetensors file": (b"x" * 5000, "not a safetensors file"),
}


@pytest.mark.parametrize(("content", "message"), NO_MODELS.values(), ids=NO_MODELS)
def test_what_the_index_names_must_still_be_a_model(content, message, server, folder):
    server.serve(content)
    with pytest.raises(RegistryError, match=f"cannot be used, and was not kept: .*({message})"):
        remote.fetch("lab", server.address)
    assert files_in(folder) == {}


def test_a_file_under_the_name_of_another_model_is_refused(server, old, folder):
    server.serve(old, "other")
    with pytest.raises(RegistryError, match="names another model, 'lab'"):
        remote.fetch("other", server.address)
    assert files_in(folder) == {}


def test_the_index_itself_may_stall_and_be_endless(server, old):
    server.answers["/models/index.json"] = slowly(b"{" * 5000, 100, 30, server.stopping)
    with pytest.raises(TimeoutError, match="no byte came"):
        remote.remote_entries(server.address, IMPATIENT)
    server.answers["/models/index.json"] = endless(server.stopping)
    with pytest.raises(RegistryError, match="must have at most 5000000 bytes, got more"):
        remote.remote_entries(server.address)


@pytest.mark.parametrize("wait", [0, 2])
def test_closing_the_steps_cancels_the_download(wait, server, old, new, folder):
    server.serve(old)
    remote.fetch("lab", server.address)
    before = files_in(folder)
    record = server.serve(new, version=2, sequence=2)
    server.answers[f"/models/{record['file']}"] = slowly(new, 500, 0.05, server.stopping, len(new))
    steps = remote.fetch_steps("lab", server.address)
    while next(steps).done < wait * 500:
        pass
    assert any(name.startswith(".part-") for name in files_in(folder)) == (wait > 0)
    steps.close()
    assert files_in(folder) == before


def test_a_stalled_download_can_be_cancelled_before_its_time_is_out(server, old, folder):
    record = server.serve(old)
    server.answers[f"/models/{record['file']}"] = slowly(old, 500, 30, server.stopping, len(old))
    steps = remote.fetch_steps("lab", server.address)
    while next(steps).done < 500:
        pass
    assert [next(steps).done for _ in range(3)] == [500, 500, 500]  # still heard from
    steps.close()
    assert files_in(folder) == {}


def test_a_server_that_does_not_answer_can_be_cancelled_at_once(server, old, folder):
    record = server.serve(old)
    server.answers[f"/models/{record['file']}"] = lambda request: server.stopping.wait(30)
    steps = remote.fetch_steps("lab", server.address)
    assert [next(steps).done for _ in range(3)] == [0, 0, 0]
    began = time.monotonic()
    steps.close()
    assert time.monotonic() - began < 2
    assert files_in(folder) == {}


def test_cancelling_ends_the_transfer_at_once(server, old):
    """The server notices: what it sends no longer goes anywhere."""
    ended = threading.Event()

    def answer(request):
        begin(request)
        try:
            while not server.stopping.is_set():
                request.wfile.write(old[:100])
                time.sleep(0.01)
        except OSError:
            ended.set()

    record = server.serve(old)
    server.answers[f"/models/{record['file']}"] = answer
    steps = remote.fetch_steps("lab", server.address)
    while next(steps).done < 100:
        pass
    steps.close()
    assert ended.wait(5)
    assert not [one for one in threading.enumerate() if one.name == "dn_core download"]


def test_models_are_downloaded_where_an_event_loop_runs_already(server, old):
    """As in a notebook."""

    async def fetch():
        return remote.fetch("lab", server.address)

    server.serve(old)
    assert asyncio.run(fetch()).read_bytes() == old


def test_a_redirect_with_an_endless_page_is_followed_without_reading_it(server, old):
    def answer(request):
        begin(request, 10**12, 302, Location="/elsewhere")
        with contextlib.suppress(OSError):
            while not server.stopping.is_set():
                request.wfile.write(b"0" * 65536)

    record = server.serve(old)
    server.answers["/elsewhere"] = old
    server.answers[f"/models/{record['file']}"] = answer
    assert remote.fetch("lab", server.address).read_bytes() == old


def test_a_proxy_is_used_except_for_this_machine(server, old, monkeypatch):
    record = server.serve(old)
    for path in ("index.json", record["file"]):
        server.answers[f"http://example.org/models/{path}"] = server.answers[f"/models/{path}"]
    monkeypatch.setenv("DN_ALLOW_HTTP", "1")
    monkeypatch.setenv("HTTP_PROXY", server.address.removesuffix("/models"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert remote.fetch("lab", "http://example.org/models").read_bytes() == old
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # where nothing listens
    assert len(remote.remote_entries(server.address)) == 1
    proxies = {"nonsense://x": "Change it"}
    if importlib.util.find_spec("socksio") is None:
        proxies["socks5://127.0.0.1:9"] = "for a SOCKS proxy install socksio"
    for address, words in proxies.items():
        monkeypatch.setenv("HTTP_PROXY", address)
        with pytest.raises(RegistryError, match=f"HTTP_PROXY and ALL_PROXY must be .*{words}"):
            remote.remote_entries("http://example.org/models")


@pytest.mark.parametrize(
    ("format", "words"),
    [(1, "An older version wrote it"), (3, "Upgrade"), (True, "Upgrade"), (None, "Upgrade")],
)
def test_indexes_of_other_formats_are_refused_with_what_to_do(format, words):
    content = json.dumps({"format": format, "sequence": 1, "models": []}).encode()
    with pytest.raises(RegistryError, match=f"must have format 2, got {format}.*{words}"):
        parse_index(content, "lab")


FETCH = (
    "import sys; from dn_core.models import remote; "
    "print(remote.fetch('lab', sys.argv[1]).read_bytes()[:1])"
)


def test_several_processes_download_at_once(server, old, folder):
    record = server.serve(old)
    server.answers[f"/models/{record['file']}"] = slowly(old, 2000, 0.05, server.stopping, len(old))
    command = [sys.executable, "-c", FETCH, server.address]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    results = [(*child.communicate(timeout=120), child.returncode) for child in children]
    assert [code for _, _, code in results] == [0] * 4, results
    assert files_in(folder).keys() == {"index.json", record["file"]}
    assert registry.resolve("lab").read_bytes() == old


def test_several_processes_add_and_fetch_different_models_at_once(tmp_path, server, old):
    server.serve(old)
    paths = [
        write_model(tmp_path / f"{number}.safetensors", f"own-{number}", 1 + number / 10)
        for number in range(4)
    ]
    add = "import sys; from dn_core.models import registry; registry.add(sys.argv[1])"
    commands = [[sys.executable, "-c", add, str(path)] for path in paths] + [
        [sys.executable, "-c", FETCH, server.address]
    ]
    children = [subprocess.Popen(command) for command in commands]
    assert [child.wait(120) for child in children] == [0] * 5
    assert dn_core.model_names() == [*BUNDLED, "lab", *(f"own-{number}" for number in range(4))]


@posix
def test_a_killed_download_leaves_the_old_model(server, old, new, folder):
    server.serve(old)
    remote.fetch("lab", server.address)
    before = files_in(folder)
    record = server.serve(new, version=2, sequence=2)
    server.answers[f"/models/{record['file']}"] = slowly(new, 500, 0.2, server.stopping, len(new))
    with subprocess.Popen([sys.executable, "-c", FETCH, server.address]) as child:
        while not list(folder.glob(".part-*")):
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
    (part,) = folder.glob(".part-*")
    assert {
        name: content for name, content in files_in(folder).items() if name != part.name
    } == before
    server.answers[f"/models/{record['file']}"] = new
    os.utime(part, (0, 0))  # a day later
    assert remote.fetch("lab", server.address).read_bytes() == new
    assert not list(folder.glob(".part-*"))


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate for this machine, which only who is told to trusts, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = WebServer(context)
    yield server
    server.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_server, old, folder):
    tls_server.serve(old)
    with pytest.raises(ConnectionError, match="certificate verify failed"):
        remote.fetch("lab", tls_server.address)
    assert tls_server.requests == []
    assert not folder.exists()


def test_a_certificate_of_the_labs_own_is_accepted_when_named(tls_server, certificate, old):
    tls_server.serve(old)
    result = python(
        FETCH, tls_server.address, env={**os.environ, "SSL_CERT_FILE": str(certificate)}
    )
    assert result.returncode == 0, result.stderr
    assert registry.resolve("lab").read_bytes() == old


def test_a_redirect_never_leaves_tls(tls_server, server, certificate, old, folder):
    record = tls_server.serve(old)
    server.answers["/model"] = old
    tls_server.answers[f"/models/{record['file']}"] = redirect(
        server.address.replace("/models", "/model")
    )
    result = python(
        FETCH, tls_server.address, env={**os.environ, "SSL_CERT_FILE": str(certificate)}
    )
    assert "RegistryError" in result.stderr
    assert "where we do not go: from https to http" in result.stderr
    assert server.requests == []
    assert files_in(folder) == {}


# Old and wrong registries


def test_a_registry_never_goes_back(server, old, new):
    server.serve(new, version=2, sequence=5)
    remote.remote_entries(server.address)
    server.serve(old, version=1, sequence=4)
    with pytest.raises(RegistryError, match="sequence number of at least 5, as before, got 4"):
        remote.remote_entries(server.address)
    with pytest.raises(RegistryError, match="at least 5, as before, got 4"):
        remote.fetch("lab", server.address + "/")
    server.serve(old, version=1, sequence=5)
    assert len(remote.remote_entries(server.address)) == 1  # the same as before is as good


def test_a_newer_index_seen_by_another_reader_meanwhile_does_not_make_ours_old(server, old, new):
    """Two programs read while it is replaced: the one that was first is answered last."""

    def answer_late(request):
        server.serve(new, version=2, sequence=2)
        assert [entry.version for entry in remote.remote_entries(server.address)] == [2]
        begin(request, len(first))
        request.wfile.write(first)

    server.serve(old)
    first = server.answers["/models/index.json"]
    server.answers["/models/index.json"] = answer_late
    assert [entry.version for entry in remote.remote_entries(server.address)] == [1]
    server.answers["/models/index.json"] = first
    with pytest.raises(RegistryError, match="sequence number of at least 2, as before, got 1"):
        remote.remote_entries(server.address)


def test_each_registry_has_its_own_sequence(server, tmp_path, old):
    server.serve(old, sequence=5)
    remote.remote_entries(server.address)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "index.json").write_bytes(index_bytes(1, []))
    assert remote.remote_entries(tmp_path / "shared") == ()


def test_a_model_never_goes_back(server, old, new, folder):
    server.serve(new, version=2)
    remote.fetch("lab", server.address)
    before = files_in(folder)
    for version in (1, 2):
        server.serve(old, version=version, sequence=9)
        with pytest.raises(
            RegistryError,
            match=f"must be newer than version 2, which is here, got version {version} with other",
        ):
            remote.fetch("lab", server.address)
    assert files_in(folder) == before


def test_a_model_is_updated_from_where_it_came(server, tmp_path, old, new):
    server.serve(old)
    remote.fetch("lab", server.address)
    record = record_of("lab", new, 2)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / record["file"]).write_bytes(new)
    (tmp_path / "shared" / "index.json").write_bytes(index_bytes(1, [record]))
    with pytest.raises(RegistryError, match="lab is here from http.*Remove it first"):
        remote.fetch("lab", tmp_path / "shared")
    record = record_of("lab", old, 3)  # the same content does not make it the other's model
    (tmp_path / "shared" / record["file"]).write_bytes(old)
    (tmp_path / "shared" / "index.json").write_bytes(index_bytes(2, [record]))
    with pytest.raises(RegistryError, match="lab is here from http.*Remove it first"):
        remote.fetch("lab", tmp_path / "shared")


ADDRESSES = {
    "http://example.org/models": "must begin with https://, got .*, which is not encrypted",
    "http://10.0.0.1/models": "not encrypted",
    "http://localhost.example.org/models": "not encrypted",
    "ftp://example.org/models": "neither a folder nor",
    "file:///etc": "neither a folder nor",
    "https:///models": "neither a folder nor",
    "https://[::1/models": "not an address",
    "https://example.org/models?x=1": "has a '[?]'",
    "simplecache::https://example.org": "made of several",
    "gopher://x": "neither a folder nor",
}


@pytest.mark.parametrize(("address", "message"), ADDRESSES.items())
def test_addresses_that_are_not_read_from(address, message):
    with pytest.raises(RegistryError, match=message):
        remote.remote_entries(address)


def test_plain_http_can_be_allowed(monkeypatch):
    monkeypatch.setenv("DN_ALLOW_HTTP", "1")
    assert check_address("http://example.org/models") == "web"


def test_passwords_in_addresses_are_not_shown(server):
    with pytest.raises(FileNotFoundError) as caught:
        remote.remote_entries(server.address.replace("//", "//me:secret@"))
    assert server.requests[0][1]["Authorization"].startswith("Basic ")
    assert "secret" not in str(caught.value)


# A machine without network, without room, without permission


def test_nothing_touches_the_network_unasked(tmp_path, folder):
    registry.add(write_model(tmp_path / "m.safetensors", "my-model"))
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import dn_core, numpy\n"
        "from dn_core.models import registry, remote\n"
        "for entry in registry.entries(): entry.card()\n"
        "dn_core.denoise(numpy.ones((32, 32)), 'my-model')\n"
        "print(dn_core.model_names(), sorted({'fsspec', 'httpx', 'torch'} & sys.modules.keys()))"
    )
    result = python(code)
    assert result.stdout == f"{[*BUNDLED, 'my-model']} []\n", result.stderr


def test_a_server_that_is_not_there_is_named(server):
    server.server.server_close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        remote.remote_entries(server.address)


@posix
def test_a_full_disk_leaves_the_old_model(server, old, new, folder):
    server.serve(old)
    remote.fetch("lab", server.address)
    before = files_in(folder)
    server.serve(new, version=2, sequence=2)
    code = (
        "import sys; from dn_core.models import remote\n"
        "try: remote.fetch('lab', sys.argv[1])\n"
        "except OSError as error: print(error.errno, error.strerror)"
    )
    import resource

    limit = len(new) // 2  # no file may be larger: writing fails as on a full disk
    result = python(
        code,
        server.address,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "cannot be written" in result.stdout, result.stderr
    assert "make room" in result.stdout
    assert files_in(folder) == before


@posix
@pytest.mark.skipif(
    os.name != "nt" and os.geteuid() != 0, reason="only root may become another user"
)
def test_a_folder_that_may_not_be_written_to_is_explained(server, old):
    server.serve(old)
    code = (
        "import os, sys; from dn_core.models import registry, remote\n"
        "registry.model_names(), remote.remote_entries(sys.argv[1])\n"  # loads all there is to load
        "os.setuid(65534)\n"
        "try: remote.fetch('lab', sys.argv[1])\n"
        "except PermissionError as error: print(error.strerror)"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        result = python(code, server.address, env={**os.environ, "DN_MODELS": folder})
        assert "may not be written to" in result.stdout, result.stderr
        assert os.listdir(folder) == ["registries"]


def test_a_folder_that_cannot_be_made_is_explained(server, old, tmp_path, monkeypatch):
    server.serve(old)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DN_MODELS", str(tmp_path / "file" / "models"))
    with (
        pytest.warns(UserWarning, match="cannot be remembered"),
        pytest.raises(OSError, match="cannot be made.*DN_MODELS"),
    ):
        remote.fetch("lab", server.address)
    assert dn_core.model_names() == BUNDLED


# The command line


def test_models_are_fetched_listed_and_removed_in_a_shell(server, old, new):
    server.serve(old)
    offered = invoke("models", "list", "--registry", server.address)
    assert offered.exit_code == 0, offered.output
    assert "lab" in offered.stdout
    assert "remote, version 1" in offered.stdout
    assert offered.stdout.splitlines()[1].split()[:2] == ["lab", "-"]  # the index counts no weights
    fetched = invoke("models", "fetch", "lab", "--registry", server.address)
    assert fetched.exit_code == 0, fetched.output
    assert Path(fetched.stdout.strip()) == registry.resolve("lab")
    server.serve(new, version=2, sequence=2)
    assert invoke("models", "fetch", "lab", env={"DN_REGISTRY": server.address}).exit_code == 0
    assert "downloaded, version 2" in invoke("models").stdout
    listed = json.loads(invoke("models", "list", "--json").stdout)
    assert [(entry["name"], entry["kind"]) for entry in listed][-1] == ("lab", "downloaded")
    assert listed[-1]["location"] == str(registry.resolve("lab"))
    assert invoke("models", "remove", "lab").exit_code == 0
    assert "lab" not in invoke("models").stdout


def test_own_models_are_added_in_a_shell(tmp_path):
    path = write_model(tmp_path / "m.safetensors", "my-model")
    added = invoke("models", "add", path, "--name", "nuclei")
    assert added.exit_code == 0, added.output
    assert Path(added.stdout.strip()) == registry.resolve("nuclei")
    assert "nuclei" in invoke("models").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove", "dn-fast"], "comes with the package"),
        (["remove", "nothing"], "no downloaded or own model"),
        (["add", "missing.safetensors"], "No such file"),
        (["list", "--registry", "ftp://x"], "neither a folder"),
        (["fetch", "lab", "--registry", "nowhere"], "no such file in the registry"),
    ],
)
def test_what_cannot_be_done_is_explained_in_a_shell(arguments, message):
    result = invoke("models", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_damaged_model_does_not_hide_the_others(tmp_path):
    registry.add(write_model(tmp_path / "a.safetensors", "a-model"))
    registry.add(write_model(tmp_path / "b.safetensors", "b-model", 0.9))
    registry.resolve("a-model").write_bytes(b"damaged")
    result = invoke("models")
    assert result.exit_code == 1
    assert "b-model" in result.stdout
    assert "a-model" in result.stderr
