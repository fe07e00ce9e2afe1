"""A plan is made before the first pixel is read, says why, and is what is then done."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import tifffile
import torch
import zarr
from small_models import small_model
from typer.testing import CliRunner

import dn_core
from dn_core import files
from dn_core.cli import app
from dn_core.inference import loaded, pipeline, plan
from dn_core.inference.arrays import InputImage
from dn_core.inference.engines import TileTooLargeError
from dn_core.inference.plan import next_smaller_plan
from dn_core.inference.run import run
from dn_core.network_config import levels_config

MODEL = small_model()
GREY = np.random.default_rng(0).normal(100, 10, (3, 90, 100)).astype("u2")


class Unread:
    """An array on disk that must not be read."""

    shape, dtype, chunks = (3, 90, 100), np.dtype("u2"), (1, 30, 30)

    def __getitem__(self, index):
        raise AssertionError("read")


def from_dask(array):
    def fail(block):
        raise AssertionError("computed")

    return da.from_array(array, chunks=(1, 50, 60)).map_blocks(fail, dtype=array.dtype, meta=array)


SOURCES = {
    "numpy": lambda: GREY,
    "chunked": Unread,
    "dask": lambda: from_dask(GREY),
    "zarr": lambda: zarr.array(GREY, chunks=(1, 30, 30)),
    "torch": lambda: torch.from_numpy(GREY.astype("i2")),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_arrays_of_every_kind_are_planned_without_reading_them(kind):
    planned = dn_core.plan_denoise(SOURCES[kind](), MODEL, device="cpu")
    assert planned.kind == kind
    assert planned.axes.spatial == (1, 2)
    assert (planned.planes, planned.model, planned.precision) == (3, "residual", "float32")
    assert (planned.tiles.halo, planned.tiles.counts) == (MODEL.config.halo, (1, 1))
    assert planned.tiles.shape == ((50, 60) if kind == "dask" else (90, 100))
    assert planned.memory_bytes < planned.available_bytes


def test_an_open_file_is_planned(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="minisblack")
    with files.open_image(tmp_path / "a.tif") as image:
        planned = dn_core.plan_denoise(image.source, MODEL)
    assert (planned.kind, planned.planes) == ("chunked", 3)


def test_a_tensor_of_bfloat16_is_planned_as_float32():
    tensor = torch.zeros(40, 50, dtype=torch.bfloat16, requires_grad=True)
    assert dn_core.plan_denoise(tensor, MODEL).dtype == np.float32


def test_a_plan_says_what_and_why():
    image = np.zeros((48, 50, 5), np.uint8)
    text = str(dn_core.plan_denoise(image, "dn-fast", device="cpu", tile_size=20))
    for words in (
        "image     uint8 (48, 50, 5), numpy array",
        "planes    5 of 48 x 50 pixels, axes 0 and 1",
        "model     dn-fast",
        "device    cpu",
        "options   device='cpu', tile_size=20",
        "its last axis, of 5, is taken as channels",
        "device: cpu was requested.",
        "sufficient for 8-bit images",
        "tiles: 20 pixels were requested.",
        "! image has shape (48, 50, 5)",
    ):
        assert words in text
    assert "chunk" in str(dn_core.plan_denoise(da.from_array(image), channel_axis=-1))


def test_a_plan_cannot_be_changed_and_does_not_warn():
    planned = dn_core.plan_denoise(np.zeros((48, 50, 5)), MODEL)
    assert [type(warning) for warning in planned.warnings] == [UserWarning]
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned.device = "cuda"


def test_the_default_model_is_a_reason():
    assert "model: dn-fast is the default." in dn_core.plan_denoise(GREY).reasons
    assert "model: residual was given." in dn_core.plan_denoise(GREY, MODEL).reasons


def test_a_given_noise_level_is_in_the_plan():
    planned = dn_core.plan_denoise(GREY, small_model("noise map"), sigma=7)
    assert planned.sigma == 7
    assert "noise-map, sigma 7" in str(planned)


def test_tiles_of_a_network_with_levels_are_whole_cells_of_its_coarsest_level():
    model, image = small_model("levels"), np.zeros((600, 700), np.float32)
    halo = model.config.halo
    text = str(dn_core.plan_denoise(image, model, device="cpu", tile_size=33))
    assert f"tiles of 40 x 40 pixels per plane, halo {halo}, at multiples of 8" in text
    assert "at multiples" not in str(dn_core.plan_denoise(image, MODEL, tile_size=33))


def test_a_wide_halo_makes_windows_wider():
    """Else most of what is computed would be thrown away."""
    assert plan.usual_tile_size("cpu", levels_config()) == 512 - 2 * 64
    wide = levels_config((32, 64, 96), (2, 4, 10), (2, 4))
    assert wide.halo == 256
    assert plan.usual_tile_size("cpu", wide) == 512
    assert plan.usual_tile_size("cuda", wide) == 1536 - 2 * 256


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_result_in_memory_counts(in_memory):
    out = None if in_memory else np.empty_like(GREY)
    planned = dn_core.plan_denoise(GREY, MODEL, out=out)
    assert planned.result_bytes == (GREY.nbytes if in_memory else 0)
    assert planned.memory_bytes == planned.tile_bytes + planned.result_bytes


def test_memory_decides_the_tiles(monkeypatch):
    image = np.broadcast_to(np.uint16(1), (4000, 4000))
    usual = dn_core.plan_denoise(image, "dn-fast", device="cpu")
    free = usual.result_bytes + usual.tile_bytes // 2
    monkeypatch.setattr(plan, "available_memory", lambda: free)
    planned = dn_core.plan_denoise(image, "dn-fast", device="cpu")
    assert planned.tiles.size < usual.tiles.size
    assert planned.memory_bytes <= free
    assert f"fit into memory, {usual.tiles.size} do not" in str(planned)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": 3}, "blind"),
        ({"tile_size": 0}, "tile_size must be"),
        ({"device": "tpu"}, "device must be"),
        ({"channel_axis": 5}, "channel_axis must be"),
        ({"out": np.empty((3, 90, 101), "u2")}, "out must be"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_plan(options, words):
    with pytest.raises(ValueError, match=words):
        dn_core.plan_denoise(GREY, MODEL, **options)


def test_what_is_done_is_what_was_planned(monkeypatch):
    made = []

    def recorded(*arguments, **options):
        made.append(plan.make_plan(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(pipeline, "make_plan", recorded)
    planned = dn_core.plan_denoise(GREY, MODEL, tile_size=32)
    *_, last = dn_core.denoise_steps(GREY, MODEL, tile_size=32)
    assert last.total == planned.total_tiles == 3 * planned.tiles.total
    assert dataclasses.replace(made[0], available_bytes=planned.available_bytes) == planned
    image = InputImage.of(GREY)
    *_, again = run(planned, image)
    np.testing.assert_array_equal(again.result, last.result)


def test_smaller_plans_end_on_the_cpu(monkeypatch):
    monkeypatch.setattr(plan, "choose_device", lambda device: "cuda")
    real = loaded.build_engine
    monkeypatch.setattr(loaded, "build_engine", lambda checkpoint, _, p: real(checkpoint, "cpu", p))
    planned, tried = dn_core.plan_denoise(GREY, dn_core.Model(MODEL.checkpoint)), []
    while planned is not None:
        tried.append((planned.device, planned.tiles.size))
        smaller = next_smaller_plan(planned)
        if smaller is not None:
            assert "ran out of memory" in "".join(smaller.reasons[len(planned.reasons) :])
        planned = smaller
    sizes = {
        device: [size for where, size in tried if where == device] for device in ("cuda", "cpu")
    }
    assert [where for where, _ in tried] == ["cuda"] * len(sizes["cuda"]) + ["cpu"] * len(
        sizes["cpu"]
    )
    for found in sizes.values():
        assert found == [found[0] // 2**power for power in range(len(found))]
        assert 32 <= found[-1] < 64


def test_running_out_of_memory_is_a_memory_error():
    assert issubclass(TileTooLargeError, MemoryError)


def test_planning_on_a_cpu_imports_no_torch():
    code = (
        "import sys, numpy as np, dn_core; "
        "print(dn_core.plan_denoise(np.zeros((2, 64, 64), 'u2'), device='cpu')); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The command


def dry_run(*arguments):
    return CliRunner().invoke(app, ["denoise", *map(str, arguments), "--dry-run"])


def test_a_dry_run_prints_the_plan_of_each_file_and_writes_nothing(tmp_path):
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", GREY, photometric="minisblack")
    result = dry_run(tmp_path, "-o", tmp_path / "out", "--tile-size", 40)
    assert result.exit_code == 0, result.stderr
    for name in ("a", "b"):
        assert f"{tmp_path / name}.tif -> {tmp_path / 'out' / name}.tif\n" in result.stdout
    assert result.stdout.count("tiles: 40 pixels were requested.") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_a_dry_run_without_a_model_names_the_default(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY[0])
    result = dry_run(tmp_path / "a.tif", "-o", tmp_path / "b.tif")
    assert "model: dn-fast is the default." in result.stdout
    assert "1 tile per plane; 1 in total" in result.stdout


def test_a_dry_run_refuses_what_a_run_would_refuse(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="minisblack")
    assert dry_run(tmp_path / "a.tif", "-o", tmp_path / "a.tif").exit_code == 1
    result = dry_run(tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--sigma", 3)
    assert result.exit_code == 1
    assert "is blind" in result.stderr
    result = dry_run(tmp_path / "a.tif", "-o", tmp_path / "none" / "b.tif")
    assert (result.exit_code, "the folder of the output is missing" in result.stderr) == (1, True)
    result = dry_run(tmp_path / "a.tif", tmp_path / "a.tif", "-o", tmp_path / "a.tif" / "out")
    assert result.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
