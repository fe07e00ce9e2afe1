"""Run storage: files appear complete or not at all, also Ray's; a full disk is noticed early."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dn_cluster.storage import FullDiskError, Storage

pytest.importorskip("pyarrow", reason="pyarrow is not installed; it comes with the extra 'cluster'")


def test_a_file_written_by_ray_appears_when_it_is_complete(tmp_path):
    files, root = pickle.loads(
        pickle.dumps(Storage.at(str(tmp_path)).filesystem())
    )  # as nodes get it
    (tmp_path / "list.json").write_bytes(b"old")
    with files.open_output_stream(f"{root}/list.json") as stream:
        stream.write(b"new" * 10**6)
        assert (tmp_path / "list.json").read_bytes() == b"old"
    assert (tmp_path / "list.json").read_bytes() == b"new" * 10**6
    assert os.listdir(tmp_path) == ["list.json"]


# No file may be larger than this many bytes: writing then fails as on a full disk.
FULL = """
import resource, sys
from dn_cluster.storage import Storage
files, root = Storage.at(sys.argv[1]).filesystem()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with files.open_output_stream(f"{root}/list.json") as stream:
    stream.write(b"new" * 1000)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits as POSIX has them")
def test_a_file_that_ray_cannot_write_keeps_its_old_content(tmp_path):
    (tmp_path / "list.json").write_bytes(b"old")
    scripts = str(Path(__file__).parents[2] / "distributed")
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": scripts},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "File too large" in done.stderr
    assert (tmp_path / "list.json").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["list.json"]


def test_a_disk_without_free_space_is_refused(tmp_path):
    storage = Storage.at(str(tmp_path))
    storage.check_free_space(1)
    with pytest.raises(
        FullDiskError,
        match=r"must have 10+ bytes free, got \d+. Free disk space and run the same command again",
    ) as caught:
        storage.check_free_space(10**18)
    assert caught.value.filename == str(tmp_path)
