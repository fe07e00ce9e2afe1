"""What a napari that was killed left on the disk goes when the next large result is made."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from napari_dnresnet.axes import LayerAxes
from napari_dnresnet.large_results import discard, empty_target
from napari_dnresnet.request import DenoiseRequest

REQUEST = DenoiseRequest(
    np.zeros((3, 64, 64), np.uint16), LayerAxes("QYX", (3, 64, 64)), {}, "image", {}, (0, 1), None
)
LARGE_RESULT = (
    "import sys; sys.path.insert(0, sys.argv[2]); from test_leftovers import *\n"
    "result = empty_target(REQUEST, sys.argv[1]); result[0] = 1; print('made', flush=True); "
    "sys.stdin.read()\n"
)


@pytest.mark.skipif(os.name == "nt", reason="as on POSIX")
def test_large_results_of_a_killed_napari_are_cleared_and_those_of_a_living_one_are_not(tmp_path):
    command = [sys.executable, "-c", LARGE_RESULT, str(tmp_path), os.path.dirname(__file__)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "made\n"
        (left,) = tmp_path.iterdir()
        assert left.name.startswith("dnresnet-")
        for path in (left, *left.rglob("*")):
            os.utime(path, (0, 0))  # looked at for long
        own = empty_target(REQUEST, str(tmp_path))
        assert left.exists()
        discard(own)
        child.kill()
    own = empty_target(REQUEST, str(tmp_path))
    assert not left.exists()
    discard(own)
    assert list(tmp_path.iterdir()) == []
