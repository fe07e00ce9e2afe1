"""Checkpoints of a Ray Train run: their hashes, and the choice of the one to resume from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dn_cluster.run_checkpoints import (
    DAMAGED_LIST_FILE,
    HASHES_FILE,
    LIST_FILE,
    checkpoint_names,
    download_checkpoint,
    find_unlisted_checkpoints,
    write_hashes,
)
from dn_cluster.storage import Storage

FILES = {"stages.json": b"{}", "stage-0/state.safetensors": bytes(1000)}


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints and Ray's list of them."""
    names = [f"checkpoint_2026-11-2{day}" for day in (1, 2, 3)]
    for name in names:
        for file, content in FILES.items():
            path = tmp_path / "run" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_hashes(tmp_path / "run" / name)
    write_list(tmp_path / "run", names)
    return Storage.at(str(tmp_path / "run"))


def write_list(folder, names):
    (folder / LIST_FILE).write_text(
        json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})
    )


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_intact_checkpoint_is_downloaded(run, tmp_path):
    (tmp_path / "here" / "left").mkdir(parents=True)
    assert checkpoint_names(run)[0] == "checkpoint_2026-11-23"
    assert download_checkpoint(run, "checkpoint_2026-11-23", tmp_path / "here") == ""
    assert files_in(tmp_path / "here") == FILES
    assert not (tmp_path / "here" / "left").exists()


def flip_bit(folder):
    path = folder / "stage-0/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


DAMAGE = {
    "flipped bit": (
        flip_bit,
        r"^stage-0/state.safetensors must have sha256 [0-9a-f]{16}\.\.\., got "
        r"[0-9a-f]{16}\.\.\.$",
    ),
    "truncated file": (
        lambda folder: (folder / "stages.json").write_bytes(b""),
        "^stages.json must have sha256",
    ),
    "missing file": (lambda folder: (folder / "stages.json").unlink(), "^stages.json is missing$"),
    "missing hashes": (lambda folder: (folder / HASHES_FILE).unlink(), "^hashes.json is missing$"),
    "truncated hashes": (
        lambda folder: (folder / HASHES_FILE).write_text('{"stages.json"'),
        "^hashes.json cannot be read",
    ),
    "hashes of another type": (
        lambda folder: (folder / HASHES_FILE).write_text("[]"),
        "^hashes.json cannot be read",
    ),
    "name outside the folder": (
        lambda folder: (folder / HASHES_FILE).write_text('{"../../x": "0"}'),
        "^hashes.json names '../../x', which is outside the checkpoint$",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_to_a_checkpoint_is_reported(damage, message, run, tmp_path):
    damage(Path(run.address, "checkpoint_2026-11-23"))
    assert re.search(message, download_checkpoint(run, "checkpoint_2026-11-23", tmp_path / "here"))
    assert download_checkpoint(run, "checkpoint_2026-11-22", tmp_path / "here") == ""
    assert files_in(tmp_path / "here") == FILES


def test_an_intact_list_is_left_to_ray(run):
    assert find_unlisted_checkpoints(run) == ((), True)
    assert run.exists(LIST_FILE)


@pytest.mark.parametrize("damage", ["truncated", "missing checkpoint"])
def test_a_damaged_list_is_renamed(damage, run, capsys):
    folder = Path(run.address)
    if damage == "truncated":
        (folder / LIST_FILE).write_bytes((folder / LIST_FILE).read_bytes()[:50])
    else:
        write_list(folder, [*checkpoint_names(run), "checkpoint_2026-11-24"])
    before = (folder / LIST_FILE).read_bytes()
    expected = (tuple(checkpoint_names(run)), True)
    assert find_unlisted_checkpoints(run) == expected
    assert f"{folder}/{LIST_FILE} " in capsys.readouterr().out
    assert (folder / DAMAGED_LIST_FILE).read_bytes() == before
    assert not (folder / LIST_FILE).exists()
    assert (
        find_unlisted_checkpoints(run) == expected
    )  # as when the run is killed before there is another


def test_a_run_without_a_list_resumes_from_its_checkpoints(run, tmp_path):
    Path(run.address, LIST_FILE).unlink()
    assert find_unlisted_checkpoints(run) == (tuple(checkpoint_names(run)), False)
    assert find_unlisted_checkpoints(Storage.at(str(tmp_path / "new"))) == ((), False)


def test_a_damaged_list_without_checkpoints_is_refused_and_left(tmp_path):
    (tmp_path / LIST_FILE).write_text("{")
    with pytest.raises(
        ValueError,
        match=f"{tmp_path}/{LIST_FILE} cannot be read .*the run has no checkpoints. Restore them, "
        "or start a new run",
    ):
        find_unlisted_checkpoints(Storage.at(str(tmp_path)))
    assert (tmp_path / LIST_FILE).read_text() == "{"
