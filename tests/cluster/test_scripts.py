"""The scripts without a cluster: `--workers 0`, and what they refuse before Ray starts."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import PICTURES, events, write_images, write_recipe

from dn_core.checkpoints import load_checkpoint
from dn_core.training.recipes import recipe_names

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    write_images(place / "images", 5, 96)
    write_recipe(place / "toy.toml", steps=8, batch=2)
    return place


def run(*command: object, code: int = 0, **environment: str) -> str:
    """Run a command from outside the checkout and without PYTHONPATH, as a user may."""
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=variables,
        cwd=ROOT.parent,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def script(name: str, place: Path, *more: object, code: int = 0) -> str:
    command = (
        ROOT / "distributed" / f"{name}.py",
        place / "toy.toml",
        "--data",
        place / "images",
        "--storage",
        place / "runs",
    )
    return run(*command, "--workers", 0, *more, code=code)


def test_the_folder_is_no_package_and_never_imports_napari():
    """A package `distributed` would shadow Dask's."""
    assert not (ROOT / "distributed" / "__init__.py").exists()
    for path in (ROOT / "distributed").rglob("*.py"):
        assert not re.search(
            r"^\s*(import|from) (napari|qtpy|magicgui|PyQt)", path.read_text(), re.MULTILINE
        ), path


@pytest.fixture(scope="module")
def here(place):
    return script("cascade", place, "--name", "here")


def test_training_without_workers_gives_the_weights_of_dn_resnet_train(here, place):
    command = (
        "-m",
        "dn_core.cli",
        "train",
        place / "toy.toml",
        "--data",
        place / "images",
        "--out",
        place / "plain",
    )
    run(*command, PYTHONPATH=str(ROOT / "src"))
    assert (place / "runs" / "here" / "toy.safetensors").read_bytes() == (
        place / "plain" / "toy.safetensors"
    ).read_bytes()


def test_made_up_images_need_no_folder_on_any_node(place):
    command = (ROOT / "distributed" / "cascade.py", place / "toy.toml", "--data", "phantoms")
    run(*command, "--storage", place / "runs", "--workers", 0, "--name", "made-up")
    command = ("-m", "dn_core.cli", "train", place / "toy.toml", "--data", "phantoms")
    run(*command, "--out", place / "plain-made-up", PYTHONPATH=str(ROOT / "src"))
    assert (place / "runs" / "made-up" / "toy.safetensors").read_bytes() == (
        place / "plain-made-up" / "toy.safetensors"
    ).read_bytes()


def test_each_epoch_has_a_line(here):
    lines = [line.partition(": loss")[0] for line in here.splitlines() if ": loss" in line]
    expected = [
        f"stage {stage} of 2, epoch {epoch}, step {4 * epoch} of 8"
        for stage in (1, 2)
        for epoch in (1, 2)
    ]
    assert lines == expected


def test_a_cascade_of_a_network_with_levels_has_a_stage_for_each_block(place):
    levels = """[network]
family = "levels"
channels = [8, 8, 8]
blocks = [0, 0, 1]
blocks_up = [1, 0]
"""
    text = (place / "toy.toml").read_text()
    before, after = text.index("[network]"), text.index("[[phase]]")
    (place / "wide.toml").write_text(text[:before] + levels + text[after:])
    command = (ROOT / "distributed" / "cascade.py", place / "wide.toml", "--workers", 0)
    folders = ("--data", place / "images", "--storage", place / "runs", "--name", "wide")
    said = run(*command, *folders)
    assert [f"stage {number} of 3, epoch 2" in said for number in (1, 2, 3)] == [True] * 3
    chains = load_checkpoint(place / "runs" / "wide" / "toy.safetensors").config.chains
    assert {name: len(kinds) for name, kinds in chains.items()} == {
        "blocks": 0,
        "levels.0.blocks": 0,
        "levels.1.blocks": 1,
        "levels.0.blocks_up": 0,
        "blocks_up": 1,
    }


def test_a_finished_run_is_not_trained_again(here, place):
    assert "here is already trained" in script("cascade", place, "--name", "here")


def test_another_recipe_under_the_name_of_a_run_is_refused(here, place):
    said = script("cascade", place, "--name", "here", "--steps", 16, code=1)
    assert "holds another training run (recipe.phases: " in said
    assert "Choose another --name" in said


def test_a_recipe_of_the_other_script_is_refused(place):
    assert "error: the plan of" in (said := script("evolve", place, code=1))
    assert "Use cascade.py." in said


def test_a_family_has_all_bundled_recipes_each_with_its_own_run(place):
    command = (
        ROOT / "distributed" / "family.py",
        "--data",
        place / "images",
        "--storage",
        place / "family",
        "--status",
    )
    lines = [line.split() for line in run(*command).splitlines()]
    assert [line[:2] for line in lines[1:]] == [[name, "missing"] for name in recipe_names()]


def test_a_missing_folder_is_named(place):
    said = script("cascade", place, "--name", "missing", "--data", place / "nowhere", code=1)
    assert said.startswith("error: ")
    assert "nowhere" in said


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "a/b"])
def test_a_name_must_not_be_a_path(name, place):
    assert "must have letters, digits" in script("cascade", place, "--name", name, code=1)
    assert not (place / "elsewhere").exists()


def test_a_batch_must_divide_by_the_workers(place):
    """It is refused before Ray starts."""
    assert "got 2 patches for 3 workers" in script("cascade", place, "--workers", 3, code=1)


def test_tensorboard_gets_metrics_and_an_example_image_of_each_epoch(place):
    pytest.importorskip(
        "tensorboard", reason="tensorboard is not installed; it comes with the extra 'cluster'"
    )
    script("cascade", place, "--name", "reported", "--tensorboard")
    found = events(place / "runs" / "reported" / "tensorboard")
    for name in ("loss", "psnr", "learning_rate", "megapixels_per_second"):
        assert [event.step for event in found.Scalars(name)] == [4, 8, 12, 16], name
    pictures = found.Images("noisy, denoised, clean")
    assert [event.step for event in pictures] == [4, 8, 12, 16]
    shown = [
        np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"), float)
        for event in pictures
    ]
    assert {picture.shape for picture in shown} == {(96, 3 * 96)}
    np.testing.assert_allclose(
        shown[0][:, 192:], PICTURES[4]()[:96, :96], atol=1
    )  # the fifth image is held out
    assert shown[0][:, 96:192].std() > 0
    assert np.abs(shown[0][:, :96] - shown[0][:, 192:]).mean() > 1
    assert not np.array_equal(shown[0][:, 96:192], shown[1][:, 96:192])
    np.testing.assert_array_equal(shown[0][:, :96], shown[1][:, :96])


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="MLflow is installed")
def test_a_missing_mlflow_is_reported_before_training_starts(place):
    said = script("cascade", place, "--name", "mlflow", "--mlflow", "http://127.0.0.1:5000", code=1)
    assert (
        said
        == "error: the package mlflow is missing, which --mlflow needs. Run pip install mlflow on "
        "all nodes.\n"
    )
    assert not (place / "runs" / "mlflow").exists()
