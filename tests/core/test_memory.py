"""Memory is planned: what is free, tiles that fit into it, and a sentence where nothing does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_models import CONFIGS, small_model

import dn_core
from dn_core.checkpoints import Card, Checkpoint, save_checkpoint
from dn_core.inference import plan
from dn_core.inference.plan import SPARE_BYTES, fit_tiles, usual_tile_size
from dn_core.inference.tiling import TileGrid
from dn_core.memory import available_memory
from dn_core.network_config import levels_config
from dn_core.networks import DnResNet
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.loop import fit
from dn_core.training.recipes import Phase, load_recipe

GB = 10**9
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are of Linux")


def write(root, texts):
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def group(limit, used, cache):
    """A control group of version 2."""
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 5\ninactive_file {cache}\n",
    }


def inside(folder, files):
    return {f"{folder}/{name}": text for name, text in files.items()}


def run_child(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


LIMITED = """
import resource, sys, warnings
import numpy as np
import dn_core
from dn_core.inference.engines import TileTooLargeError
from dn_core.inference.engines.openvino import OpenVinoEngine
model = dn_core.load_model("dn-fast")
dn_core.denoise(np.random.default_rng(0).random((64, 64), "f4"), model, device="cpu")
def limit(free):
    status = open("/proc/self/status")
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
    status.close()
    resource.setrlimit(resource.RLIMIT_AS, (used + free,) * 2)
"""


# What is free


def test_the_system_is_asked(tmp_path):
    write(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  2000 kB\n"})
    assert available_memory(tmp_path) == 2000 * 1024


def test_a_container_may_allow_less(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": f"MemAvailable: {8 * GB // 1024} kB\n",
            **inside("sys/fs/cgroup", group(3 * GB, 2 * GB, GB)),
        },
    )
    assert available_memory(tmp_path) == 2 * GB
    write(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert available_memory(tmp_path) == 8 * GB // 1024 * 1024


@pytest.mark.parametrize("tightest", ["a/b", "a", "."])
def test_the_tightest_group_around_the_process_counts(tmp_path, tightest):
    write(
        tmp_path,
        {"proc/meminfo": f"MemAvailable: {8 * GB // 1024} kB\n", "proc/self/cgroup": "0::/a/b\n"},
    )
    for folder in ("a/b", "a", ".", "other"):
        limit = {tightest: 3 * GB, "other": GB}.get(folder, 5 * GB)
        write(tmp_path, inside(f"sys/fs/cgroup/{folder}", group(limit, GB, 0)))
    assert available_memory(tmp_path) == 2 * GB


def test_the_path_of_a_group_outside_the_container_does_no_harm(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": f"MemAvailable: {8 * GB // 1024} kB\n",
            "proc/self/cgroup": "0::/docker/0123\n",
        },
    )
    write(tmp_path, inside("sys/fs/cgroup", group(3 * GB, GB, 0)))
    assert available_memory(tmp_path) == 2 * GB


def test_groups_of_version_1_count_their_members_cache(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": f"MemAvailable: {8 * GB // 1024} kB\n",
            "proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/x\n0::/\n",
        },
    )
    write(
        tmp_path,
        inside(
            "sys/fs/cgroup/memory/a",
            {
                "memory.limit_in_bytes": f"{3 * GB}\n",
                "memory.usage_in_bytes": f"{2 * GB}\n",
                "memory.stat": f"inactive_file 0\ntotal_inactive_file {GB}\n",
            },
        ),
    )
    assert available_memory(tmp_path) == 2 * GB


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 2000 kB\n",
            **inside("sys/fs/cgroup", group(GB, 2 * GB, 0)),
        },
    )
    assert available_memory(tmp_path) == 0


def test_physical_memory_is_the_bound_where_the_system_does_not_say(tmp_path):
    expected = (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if hasattr(os, "sysconf")
        else sys.maxsize
    )
    assert available_memory(tmp_path) == expected


@linux
def test_a_limit_on_the_address_space_counts():
    code = """
import resource
from dn_core.memory import available_memory
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
print(available_memory())
"""
    assert 2**29 < int(run_child(code).stdout) < 2**30


# Tiles that fit


def usual_tile(name):
    return usual_tile_size("cpu", small_model(name).config)


def fitting_tile(name, shape, planes, available, tile=None, precision="float32"):
    """The size of tiles for so many planes, to begin with `tile` or the usual size."""
    model = small_model(name)
    size = usual_tile(name) if tile is None else tile
    engine = model.engine("cpu", precision)
    return fit_tiles(engine, model.config, shape, planes, size, available).size


def needed_for(name, shape, planes, tile, precision="float32"):
    model = small_model(name)
    tiles = TileGrid(shape, tile, model.config.halo, model.config.stride)
    engine = model.engine("cpu", precision)
    return engine.memory(tiles.window_pixels, planes * tiles.total) + SPARE_BYTES


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_largest_tile_that_fits_is_taken(name, precision):
    usual, shape, planes = usual_tile(name), (3000, 2000), 2
    assert fitting_tile(name, shape, planes, 100 * GB, precision=precision) == usual
    for tile in (usual // 2, usual // 4):
        available = needed_for(name, shape, planes, tile, precision)
        assert fitting_tile(name, shape, planes, available, precision=precision) == tile
        assert needed_for(name, shape, planes, 2 * tile, precision) > available


def test_an_image_smaller_than_the_tile_needs_little():
    assert fitting_tile("paper", (50, 60), 1, SPARE_BYTES + 4 * 10**6) == usual_tile("paper")


def with_memory(monkeypatch, available, **options):
    """Denoise 3000 x 3000 pixels where so much memory is left beside the result."""
    image = np.broadcast_to(np.uint8(3), (3000, 3000))
    monkeypatch.setattr(plan, "available_memory", lambda: available + image.size)
    return dn_core.plan_denoise(image, small_model("paper"), precision="float32", **options)


def test_a_tile_that_was_asked_for_and_does_not_fit_is_halved_with_a_warning(monkeypatch):
    available = needed_for("paper", (3000, 3000), 1, 1000)
    planned = with_memory(monkeypatch, available, tile_size=2000)
    (warning,) = planned.warnings
    assert isinstance(warning, RuntimeWarning)
    assert re.search(
        rf"tiles of 2000 pixels need more than the {available:,} bytes.*tiles of 1000 pixels",
        str(warning),
    )
    assert planned.tiles.size == 1000


@pytest.mark.parametrize("tile", [None, 2000, 20])
def test_where_no_tile_fits_the_numbers_are_told(tile):
    with pytest.raises(
        MemoryError,
        match=r"a tile of (32|20) pixels needs [\d,]+ bytes of memory, 1,000 are available. Close "
        r"other",
    ):
        fitting_tile("paper", (3000, 3000), 1, 1000, tile)


USED = """
import sys
import numpy as np
import dn_core
from dn_core.inference.tiling import TileGrid
name, side, tile, precision = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def kilobytes(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])
model = dn_core.load_model(name)
image = np.random.default_rng(0).integers(0, 255, (side, side), "u1")
out = np.ones_like(image)
dn_core.denoise(image[:160, :160], model, precision=precision, device="cpu")
before = kilobytes("VmRSS")
dn_core.denoise(image, model, precision=precision, device="cpu", tile_size=tile, out=out)
tiles = TileGrid(image.shape, tile, model.config.halo, model.config.stride)
planned = model.engine("cpu", precision).memory(tiles.window_pixels, tiles.total)
print((kilobytes("VmHWM") - before) * 1024, planned)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "tile", "precision"),
    [
        ("dn-fast", 900, 900, "float32"),
        ("dn-fast", 900, 300, "float32"),
        ("dn-fast", 500, 500, "float64"),
        ("dn-resnet-13", 900, 900, "float32"),
        ("dn-resnet-13", 900, 300, "float32"),
        ("dn-resnet-13", 300, 300, "float64"),
        ("levels", 904, 904, "float32"),
        ("levels", 904, 296, "float32"),
        ("levels", 504, 504, "float64"),
    ],
)
def test_tiles_take_no_more_memory_than_planned_and_not_much_less(
    name, side, tile, precision, tmp_path
):
    if name == "levels":
        name = tmp_path / "levels.safetensors"
        config = levels_config()
        weights = {key: value.numpy() for key, value in DnResNet(config).state_dict().items()}
        save_checkpoint(name, Checkpoint(config, weights, Card("levels")))
    done = run_child(USED, name, side, tile, precision)
    assert done.returncode == 0, done.stderr[-600:]
    used, planned = map(int, done.stdout.split())
    assert used < planned + SPARE_BYTES
    assert planned < 3 * used * max(
        1, (os.cpu_count() or 1) / 2
    )  # there may be fewer streams than cores


# Training


def test_a_step_of_training_beyond_memory_is_refused_before_it_is_begun(tmp_path):
    dataset = CleanImageDataset(
        (np.random.default_rng(0).integers(0, 255, (1030, 1030)).astype("u1"),)
    )
    recipe = replace(load_recipe("dn-fast"), phases=(Phase(10, 8, 64), Phase(10, 4096, 1024)))
    with pytest.raises(
        MemoryError,
        match=r"a step of 4096 patches of 1024 pixels needs [\d,]+ bytes of memory.*Use a smaller "
        r"batch",
    ):
        next(fit(recipe, dataset, tmp_path))
    assert not (tmp_path / "state.safetensors").exists()


@linux
def test_reading_images_stops_before_memory_is_full(tmp_path):
    row = np.arange(6000) % 251
    Image.fromarray((row[:, None] + row).astype("u1")).save(tmp_path / "00.png", compress_level=1)
    for number in range(1, 20):
        shutil.copy(tmp_path / "00.png", tmp_path / f"{number:02}.png")
    code = """
from dn_core.training.data.clean_images import load_clean_images
limit(2**29)
try:
    load_clean_images(sys.argv[1])
except MemoryError as error:
    print(error)
"""
    done = run_child(LIMITED + code, tmp_path)
    assert re.match(
        r"training on \S+ from its file ([4-9]|1\d) of 20 on needs 268,435,456 bytes of memory, "
        r"[\d,]+ are available. ",
        done.stdout,
    )


# Real limits


@linux
def test_with_little_memory_large_tiles_are_never_begun():
    code = """
image = np.random.default_rng(0).random((2600, 2600), "f4")
limit(900 * 2**20)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = dn_core.denoise(image, model, device="cpu", tile_size=2600)
print(result.shape, str(caught[0].message))
"""
    done = run_child(LIMITED + code)
    assert done.returncode == 0, done.stderr[-600:]
    assert done.stdout.startswith("(2600, 2600) tiles of 2600 pixels need more than the ")


@linux
def test_a_result_beyond_the_limit_is_refused_before_it_is_allocated():
    code = """
image = np.broadcast_to(np.float32(1), (20_000, 20_000))
limit(10**9)
try:
    dn_core.denoise(image, model, device="cpu")
except MemoryError as error:
    print(type(error).__name__, error)
"""
    assert run_child(LIMITED + code).stdout.startswith(
        "MemoryError the result of shape (20000, 20000) needs 1,600,000,000 bytes of memory, "
    )


@linux
def test_openvino_says_when_a_tile_does_not_fit():
    pytest.importorskip("openvino")
    code = """
engine = OpenVinoEngine(model.checkpoint, "float32")
tile = np.zeros((1, 2600, 2600), "f4")
limit(600 * 2**20)
try:
    list(engine.run([(0, tile)], parallel=False))
except TileTooLargeError as error:
    print(error)
"""
    assert (
        run_child(LIMITED + code).stdout
        == "a tile must fit into memory, got one that does not. Use a smaller tile_size.\n"
    )


def test_enough_memory_warns_of_nothing(monkeypatch):
    assert with_memory(monkeypatch, 100 * GB, tile_size=600).warnings == ()
