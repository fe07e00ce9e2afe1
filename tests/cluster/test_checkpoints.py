"""What a run goes on from, without a cluster: checkpoints that say what is in them, and folders that do not stay behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dn_cluster.checkpoints import HASHES, LIST, OLD_LIST, checkpoint_names, seal, unlisted, unpack
from dn_cluster.job import load_start
from dn_cluster.mirror import mirrored
from dn_cluster.scratch import scratch_folder
from dn_cluster.storage import Storage
from dn_core.errors import CheckpointError
from dn_core.network_config import paper_config
from dn_core.training.recipes import Phase, Recipe

FILES = {"stages.json": b"{}", "stage-0/state.safetensors": bytes(1000)}


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints that Ray has a list of."""
    names = [f"checkpoint_2026-11-2{day}" for day in (1, 2, 3)]
    for name in names:
        for file, content in FILES.items():
            path = tmp_path / "run" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        seal(tmp_path / "run" / name)
    write_list(tmp_path / "run", names)
    return Storage.at(str(tmp_path / "run"))


def write_list(folder, names):
    (folder / LIST).write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}))


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_checkpoint_is_brought(run, tmp_path):
    (tmp_path / "here" / "left").mkdir(parents=True)
    assert checkpoint_names(run)[0] == "checkpoint_2026-11-23"
    assert unpack(run, "checkpoint_2026-11-23", tmp_path / "here") == ""
    assert files_in(tmp_path / "here") == FILES
    assert not (tmp_path / "here" / "left").exists()


def flipped(folder):
    path = folder / "stage-0/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


DAMAGE = {
    "a bit": (flipped, r"^stage-0/state.safetensors has sha256 [0-9a-f]{16}\.\.\., [0-9a-f]{16}\.\.\. was written$"),
    "cut off": (lambda folder: (folder / "stages.json").write_bytes(b""), "^stages.json has sha256"),
    "a file gone": (lambda folder: (folder / "stages.json").unlink(), "^stages.json is missing$"),
    "hashes gone": (lambda folder: (folder / HASHES).unlink(), "^hashes.json is missing$"),
    "hashes cut off": (lambda folder: (folder / HASHES).write_text('{"stages.json"'), "^hashes.json cannot be read"),
    "no hashes": (lambda folder: (folder / HASHES).write_text("[]"), "^hashes.json cannot be read"),
    "a name outside": (lambda folder: (folder / HASHES).write_text('{"../../x": "0"}'), "^hashes.json names '../../x', which is outside$"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_wrong_with_a_checkpoint_is_said(damage, message, run, tmp_path):
    damage(Path(run.address, "checkpoint_2026-11-23"))
    assert re.search(message, unpack(run, "checkpoint_2026-11-23", tmp_path / "here"))
    assert unpack(run, "checkpoint_2026-11-22", tmp_path / "here") == ""
    assert files_in(tmp_path / "here") == FILES


def test_a_list_that_fits_is_left_to_ray(run):
    assert unlisted(run) == ((), True)
    assert run.exists(LIST)


@pytest.mark.parametrize("damage", ["cut off", "a checkpoint gone"])
def test_a_list_that_does_not_fit_is_put_aside(damage, run, capsys):
    folder = Path(run.address)
    if damage == "cut off":
        (folder / LIST).write_bytes((folder / LIST).read_bytes()[:50])
    else:
        write_list(folder, [*checkpoint_names(run), "checkpoint_2026-11-24"])
    before = (folder / LIST).read_bytes()
    expected = (tuple(checkpoint_names(run)), True)
    assert unlisted(run) == expected
    assert f"{folder}/{LIST} " in capsys.readouterr().out
    assert (folder / OLD_LIST).read_bytes() == before
    assert not (folder / LIST).exists()
    assert unlisted(run) == expected  # as when the run is killed before there is another


def test_a_run_without_a_list_goes_on_from_what_is_there(run, tmp_path):
    Path(run.address, LIST).unlink()
    assert unlisted(run) == (tuple(checkpoint_names(run)), False)
    assert unlisted(Storage.at(str(tmp_path / "new"))) == ((), False)


def test_a_list_without_any_checkpoint_is_refused_and_left(tmp_path):
    (tmp_path / LIST).write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}/{LIST} cannot be read .*no checkpoint is there. Put them back, or begin anew"):
        unlisted(Storage.at(str(tmp_path)))
    assert (tmp_path / LIST).read_text() == "{"


# What errors name


def test_errors_name_the_storage_and_not_a_temporary_folder(tmp_path):
    storage = Storage.at(str(tmp_path))
    pytest.importorskip("pyarrow", reason="pyarrow is not installed; it comes with the extra 'cluster'")
    with pytest.raises(OSError, match="cannot be used") as caught, mirrored(storage) as mirror:
        raise OSError(5, f"{mirror.folder}/a cannot be used", f"{mirror.folder}/b")
    assert (caught.value.strerror, caught.value.filename) == (f"{tmp_path}/a cannot be used", f"{tmp_path}/b")
    noise, phases = ({"kind": "gaussian", "sigma": 25},), (Phase(1, batch=2, patch=16),)
    recipe = Recipe("toy", paper_config(3), noise, phases, start="run/toy.safetensors")
    storage.write(recipe.start, b"damaged")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/run/toy.safetensors is not a safetensors file"):
        load_start(recipe, storage)


# What stays behind

KILLED = """
import os, signal
from dn_cluster.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "state").write_bytes(b"0")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_folder_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scripts = str(Path(__file__).parents[2] / "distributed")
    variables = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", KILLED], env=variables, timeout=120)
    (left,) = tmp_path.iterdir()
    assert (left / "state").exists()
    with scratch_folder() as mine:
        assert not left.exists()
        with scratch_folder():
            assert mine.is_dir()  # its process lives
    assert list(tmp_path.iterdir()) == []
