"""The command line, run as a user runs it."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile


def dn_resnet(*arguments):
    command = [sys.executable, "-m", "dn_core.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.ome.tif"
    pixels = np.random.default_rng(0).normal(300, 30, (2, 3, 40, 44)).clip(0).astype(np.uint16)
    metadata = {"axes": "ZCYX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2, "Channel": {"Name": ["a", "b", "c"]}}
    tifffile.imwrite(path, pixels, metadata=metadata, ome=True)
    return path


def test_a_stack_is_denoised_and_keeps_its_axes_type_and_names(noisy, tmp_path):
    result = dn_resnet("denoise", noisy, "-o", tmp_path / "clean.ome.tif", "--compare", tmp_path / "compare.png")
    assert result.returncode == 0, result.stderr
    with tifffile.TiffFile(tmp_path / "clean.ome.tif") as file:
        assert file.series[0].axes == "ZCYX"
        assert 'PhysicalSizeX="0.2"' in file.ome_metadata
        assert 'Name="b"' in file.ome_metadata
        clean = file.asarray()
    assert clean.dtype == np.uint16
    assert clean.std() < tifffile.imread(noisy).std() / 2
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_an_existing_output_is_replaced_only_when_told(noisy, tmp_path):
    target = tmp_path / "clean.ome.tif"
    target.write_bytes(b"old")
    refused = dn_resnet("denoise", noisy, "-o", target)
    assert refused.returncode == 1
    assert target.read_bytes() == b"old"
    assert "Traceback" not in refused.stderr
    assert dn_resnet("denoise", noisy, "-o", target, "--overwrite").returncode == 0
    assert target.read_bytes() != b"old"


def test_bad_files_of_a_batch_are_named_and_the_others_done(noisy, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.ome.tif").write_bytes(noisy.read_bytes())
    (folder / "b.tif").write_bytes(b"no image")
    (folder / "c.ome.tif").write_bytes(noisy.read_bytes())
    result = dn_resnet("denoise", folder, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert "b.tif" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.ome.tif", "c.ome.tif"]


def test_an_unknown_model_is_never_replaced_by_another(noisy, tmp_path):
    result = dn_resnet("denoise", noisy, "-o", tmp_path / "clean.ome.tif", "--model", "dn-fsat")
    assert result.returncode == 1
    assert "dn-fast" in result.stderr
    assert not (tmp_path / "clean.ome.tif").exists()


def test_a_wrong_option_is_a_usage_error(noisy):
    assert dn_resnet("denoise", noisy, "--colour").returncode == 2


def test_the_models_are_listed():
    result = dn_resnet("models")
    assert result.returncode == 0
    assert "dn-fast" in result.stdout
    assert "dn-resnet-13" in result.stdout
