"""Temporary folders are removed, also those of killed processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dn_cluster.temporary_folders import temporary_folder

KILLED = """
import os, signal
from dn_cluster.temporary_folders import temporary_folder
with temporary_folder() as folder:
    (folder / "state").write_bytes(b"0")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_the_folder_of_a_killed_process_is_removed_by_the_next_process(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scripts = str(Path(__file__).parents[2] / "distributed")
    variables = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-c", KILLED], env=variables, timeout=120)
    (left,) = tmp_path.iterdir()
    assert (left / "state").exists()
    with temporary_folder() as mine:
        assert not left.exists()
        with temporary_folder():
            assert mine.is_dir()  # its process lives
    assert list(tmp_path.iterdir()) == []
