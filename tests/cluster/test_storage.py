"""Where runs are kept: files appear whole or not at all, also those that Ray writes, and a full disk is noticed before."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dn_cluster.storage import FullDiskError, Storage

pytest.importorskip("pyarrow", reason="pyarrow is not installed; it comes with the extra 'cluster'")


def test_what_ray_writes_to_a_folder_is_seen_when_it_is_whole(tmp_path):
    files, root = pickle.loads(pickle.dumps(Storage.at(str(tmp_path)).filesystem()))  # as nodes get it
    (tmp_path / "list.json").write_bytes(b"old")
    with files.open_output_stream(f"{root}/list.json") as stream:
        stream.write(b"new" * 10**6)
        assert (tmp_path / "list.json").read_bytes() == b"old"
    assert (tmp_path / "list.json").read_bytes() == b"new" * 10**6
    assert os.listdir(tmp_path) == ["list.json"]


# No file may be larger than so many bytes: writing then fails as on a full disk.
FULL = """
import resource, sys
from dn_cluster.storage import Storage
files, root = Storage.at(sys.argv[1]).filesystem()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with files.open_output_stream(f"{root}/list.json") as stream:
    stream.write(b"new" * 1000)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits as POSIX has them")
def test_what_ray_cannot_write_leaves_what_was_there(tmp_path):
    (tmp_path / "list.json").write_bytes(b"old")
    scripts = str(Path(__file__).parents[2] / "distributed")
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": scripts}, capture_output=True, text=True, timeout=120)
    assert "File too large" in done.stderr
    assert (tmp_path / "list.json").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["list.json"]


def test_a_disk_without_room_is_refused(tmp_path):
    storage = Storage.at(str(tmp_path))
    storage.check_room(1)
    with pytest.raises(FullDiskError, match=r"10+ bytes are needed, \d+ are free; make room and give the same command again") as caught:
        storage.check_room(10**18)
    assert caught.value.filename == str(tmp_path)
