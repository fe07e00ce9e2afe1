"""The wheel, built from the sdist and installed apart from the sources."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 10 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="building needs hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_has_what_it_needs_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "napari_dnresnet/napari.yaml",
        "dn_core/models/index.json",
        "dn_core/models/dn-fast@1.safetensors",
        "dn_core/__init__.pyi",
        "dn_core/models/__init__.pyi",
        "dn_core/noise/__init__.pyi",
        "dn_core/paper/paper.json",
        "dn_core/paper/recipes/paper-blind.toml",
        "dn_core/training/__init__.pyi",
        "dn_core/training/recipes/dn-fast.toml",
        "dn_core/py.typed",
    ):
        assert wanted in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "dn_core",
        "napari_dnresnet",
    }
    assert wheel.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_what_is_installed_from_it_works(wheel, tmp_path):
    place = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(place),
        str(wheel),
    ]
    ended = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    if ended.returncode and "No module named pip" in ended.stderr:
        pytest.skip("there is no pip in this environment")
    assert ended.returncode == 0, ended.stderr
    variables = {
        **os.environ,
        "PYTHONPATH": str(place),
        "DN_MODELS": str(tmp_path / "models"),
        "NAPARI_CONFIG": str(tmp_path / "settings.yaml"),
    }
    script = [sys.executable, str(Path(__file__).with_name("installed.py")), str(place)]
    ended = subprocess.run(
        script,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env=variables,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "installed, found, denoised" in ended.stdout
