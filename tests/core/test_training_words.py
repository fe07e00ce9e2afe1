"""Messages of `dn-resnet train` and `finetune`; what they refuse leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data
from small_models import small_model
from typer.testing import CliRunner

from dn_core.checkpoints import load_checkpoint, save_checkpoint
from dn_core.cli import app
from dn_core.cli.console import sentence
from dn_core.cli.train import _score_line
from dn_core.network_config import paper_config
from dn_core.noise import Gaussian
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.data.patches import FinetunePatches
from dn_core.training.events import TrainingEvent
from dn_core.training.finetuning import finetune_steps, images_from
from dn_core.training.recipes import Phase, Recipe
from dn_core.training.stages import train_stages
from dn_core.training.state import other_run_message

RECIPE = """
name = "tiny"
epoch = 10

[network]
family = "half-resolution"
channels = 8
blocks = 1

[[noise]]
kind = "gaussian"
sigma = 25

[[phase]]
steps = 25
batch = 1
patch = 16
"""
PICTURES = (data.camera, data.coins, data.moon, data.page)

pytestmark = pytest.mark.usefixtures("one_thread")


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def train_on(count, folder, *options):
    """Train on `count` images from the command line."""
    (folder / "images").mkdir()
    for picture in PICTURES[:count]:
        Image.fromarray(picture()[:48, :48]).save(folder / "images" / f"{picture.__name__}.png")
    (folder / "tiny.toml").write_text(RECIPE)
    return invoke(
        "train",
        folder / "tiny.toml",
        "--data",
        folder / "images",
        "--out",
        folder / "out",
        *options,
    )


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 0), (3, 0), (4, 1)])
def test_epochs_are_told_however_few_images_there_are(count, held_out, tmp_path):
    result = train_on(count, tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    start, *epochs, done = (event for event in events if event["kind"] != "step")
    assert (start["images"], start["held_out"]) == (count - held_out, held_out)
    assert [(event["kind"], event["step"], event["epoch"]) for event in epochs] == [
        ("epoch", 10, 1),
        ("epoch", 20, 2),
        ("epoch", 25, 3),
    ]
    assert [event["psnr"] is None for event in epochs] == [held_out == 0] * 3
    assert [event["fraction"] for event in epochs] == [0.4, 0.8, 1.0]
    assert load_checkpoint(done["path"]).card.data["held_out"] == held_out


@pytest.mark.parametrize("count", [1, 4])
def test_people_are_told_of_epochs_too(count, tmp_path):
    lines = train_on(count, tmp_path).stderr.splitlines()
    assert (
        lines[0]
        == f"tiny: {'1 image' if count == 1 else '3 images'}, {count // 4} held out, 0 files "
        "skipped, 25 steps"
    )
    assert [line.partition(":")[0] for line in lines[1:]] == ["epoch 1", "epoch 2", "epoch 3"]
    assert all(("held-out PSNR" in line) == (count == 4) for line in lines[1:])


def test_no_image_is_refused(tmp_path):
    result = train_on(0, tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["kind"] == "error"
    assert not (tmp_path / "out").exists()


def test_a_command_that_gained_nothing_says_so_and_leaves_no_model(tmp_path):
    """Pairs that teach nothing: the noisy image is the clean one, except for a few pixels."""
    clean = data.camera()[:128, 128:256].astype(np.float32)
    noisy = clean + np.where(np.random.default_rng(0).random(clean.shape) < 1e-3, 1, 0)
    for name, pixels in (("noisy", noisy), ("clean", clean)):
        np.save(tmp_path / f"{name}.npy", pixels.astype(np.float32))
    start = small_model("residual").checkpoint
    save_checkpoint(tmp_path / "start.safetensors", with_nothing_to_learn(start))
    arguments = (
        "--noisy",
        tmp_path / "noisy.npy",
        "--clean",
        tmp_path / "clean.npy",
        "--start",
        tmp_path / "start.safetensors",
    )
    result = invoke(
        "finetune", *arguments, "--out", tmp_path / "out", "--name", "own", "--steps", 10
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "no step scored better than the starting model" in result.stderr.splitlines()[-1]
    assert "no new model was saved" in result.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["own-training"]
    again = invoke(
        "finetune", *arguments, "--out", tmp_path / "out", "--name", "own", "--steps", 10, "--json"
    )
    done = json.loads(again.stdout.splitlines()[-1])
    assert (done["kind"], done["path"], done["kept_start"], done["stopped"]) == (
        "done",
        None,
        True,
        False,
    )


def with_nothing_to_learn(checkpoint):
    """A residual network that gives back what it gets."""
    weights = {
        name: np.zeros_like(value) if name == "last.weight" else value
        for name, value in checkpoint.weights.items()
    }
    return dataclasses.replace(checkpoint, weights=weights)


# What is refused leaves nothing


SCENE = data.camera()[:128, 128:256].astype(np.float32)
NOISY = SCENE + np.random.default_rng(0).normal(0, 9, SCENE.shape).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", 0],
        ["--minutes", 0],
        ["--name", "../x"],
        ["--start", "nothing"],
        ["--device", "abacus"],
        ["--repeats", "noisy.npy"],
        ["--noise-kind", "gaussian"],
        ["--noisy", "small.npy", "--clean", "small.npy"],
    ],
    ids=lambda options: " ".join(map(str, options[:2])),
)
def test_a_refused_command_leaves_nothing_behind(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, pixels in (("noisy", NOISY), ("clean", SCENE), ("small", SCENE[:20])):
        np.save(f"{name}.npy", pixels)
    save_checkpoint("start.safetensors", small_model("residual").checkpoint)
    before = sorted(tmp_path.rglob("*"))
    given = [
        "--noisy",
        "noisy.npy",
        "--clean",
        "clean.npy",
        "--start",
        "start.safetensors",
        "--steps",
        20,
        "--out",
        "out/models",
    ]
    result = invoke("finetune", *given, *options)
    assert result.exit_code in (1, 2)
    assert result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_training_that_ends_before_its_first_state_leaves_nothing(error, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "start.safetensors", small_model("residual").checkpoint)

    def fail(*_):
        raise error

    monkeypatch.setattr(FinetunePatches, "score", fail)
    monkeypatch.setattr("dn_core.training.state.write_tensors", fail)  # nor can it be saved
    steps = finetune_steps(
        images_from(clean=SCENE, noise=Gaussian(9)),
        tmp_path / "new" / "out",
        start=tmp_path / "start.safetensors",
    )
    with pytest.raises(error):
        next(steps)
    assert [path.name for path in tmp_path.iterdir()] == ["start.safetensors"]


def test_a_refused_training_leaves_a_folder_that_was_there(tmp_path):
    save_checkpoint(tmp_path / "start.safetensors", small_model("residual").checkpoint)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "own.safetensors").write_bytes(b"a model")
    images = images_from(clean=SCENE, noise=Gaussian(9))
    with pytest.raises(FileExistsError, match="a model of this name"):
        next(
            finetune_steps(
                images, tmp_path / "out", start=tmp_path / "start.safetensors", name="own"
            )
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["own.safetensors"]
    assert (tmp_path / "out" / "own.safetensors").read_bytes() == b"a model"


def test_recipes_that_are_refused_leave_nothing(tmp_path):
    dataset = CleanImageDataset(tuple(picture()[:48, :48] for picture in PICTURES))
    noise, phases = ({"kind": "gaussian", "sigma": 25},), (Phase(5, 1, 16),)
    save_checkpoint(tmp_path / "other.safetensors", small_model("residual").checkpoint)
    evolved = Recipe(
        "evolved",
        paper_config(5, block="separable"),
        noise,
        phases,
        plan="evolve",
        start=str(tmp_path / "other.safetensors"),
    )
    with pytest.raises(ValueError, match="a model of the recipe's network with full blocks"):
        next(train_stages(evolved, dataset, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"start, .* does not fit"):
        next(train_stages(dataclasses.replace(evolved, plan="once"), dataset, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_files_of_other_sizes_are_refused_before_anything_is_written(tmp_path):
    for folder, pixels in (("noisy", NOISY), ("clean", SCENE[:100])):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", pixels)
    result = invoke(
        "finetune",
        "--noisy",
        tmp_path / "noisy",
        "--clean",
        tmp_path / "clean",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert result.exit_code == 1
    assert "Crop them alike." in json.loads(result.stdout)["message"]
    assert not (tmp_path / "out").exists()


def test_a_name_that_cannot_be_one_is_refused_before_images_are_read(tmp_path):
    result = invoke("finetune", "--noisy", "nowhere", "--out", tmp_path, "--name", "My 3")
    assert result.exit_code == 1
    assert "--name must be text of letters, " in result.stderr
    assert result.stderr.endswith("got 'My 3'. Choose another --name.\n")


def test_noisy_images_alone_need_clean_ones(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", data.camera())
    result = invoke("finetune", "--noisy", tmp_path / "a.tif", "--out", tmp_path / "out")
    assert result.stderr.endswith("got noisy images alone. Add --clean.\n")


def test_a_time_that_is_unknown_is_left_out():
    event = TrainingEvent("epoch", step=10, total_steps=20, psnr=30.0, best_psnr=31.0)
    assert _score_line(event, estimated=False) == (
        "step 10 of 20: held-out PSNR 30.00 dB (best 31.00)"
    )
    timed = dataclasses.replace(event, seconds_left=90.0)
    assert _score_line(timed, estimated=False).endswith("(best 31.00), 1.5 min left")


def test_settings_that_may_differ_are_named_as_options():
    message = other_run_message(Path("state"), ["recipe.lr: 1 there, 2 here", "data: 3 there"])
    assert message.endswith("or use allow=('recipe.lr', 'data').")
    assert sentence(message).endswith("or use --allow recipe.lr --allow data.")
