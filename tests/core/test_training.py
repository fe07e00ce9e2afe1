"""Training from a folder of images, stopped and resumed."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dn_core.checkpoints import load_checkpoint
from dn_core.network_config import half_resolution_config
from dn_core.training.bank import load_bank
from dn_core.training.fit import fit, train
from dn_core.training.optimizers import Muon
from dn_core.training.recipes import Phase, Recipe, load_recipe, recipe_names

RECIPE = Recipe(
    name="tiny",
    network=half_resolution_config(8, 1),
    noise=({"kind": "gaussian", "sigma": 25},),
    phases=(Phase(30, 2, 16), Phase(10, 1, 32)),
    warm_up=2,
    epoch=10,
)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index, picture in enumerate((data.camera(), data.coins(), data.moon(), data.page(), data.text())):
        Image.fromarray(picture[:160, :160]).save(images / f"{index}.png")
    return images


def weights(path):
    return load_checkpoint(path).weights


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_and_resumed_run_gives_the_same_weights(folder, tmp_path, precision):
    torch.set_num_threads(1)
    bank = load_bank(folder, smallest=32)
    whole = train(RECIPE, bank, tmp_path / "whole", precision=precision)
    for stop in (1, 1):
        steps = fit(RECIPE, bank, tmp_path / "parts", precision=precision)
        list(itertools.islice(steps, stop))
        steps.close()
    resumed = train(RECIPE, bank, tmp_path / "parts", precision=precision)
    expected = weights(whole)
    assert all(np.array_equal(value, expected[name]) for name, value in weights(resumed).items())


def test_a_run_of_another_recipe_is_refused_unless_allowed(folder, tmp_path):
    bank = load_bank(folder, smallest=32)
    steps = fit(RECIPE, bank, tmp_path / "run")
    next(steps)
    steps.close()
    other = dataclasses.replace(RECIPE, lr=1e-3)
    with pytest.raises(ValueError, match=r"recipe\.lr"):
        next(fit(other, bank, tmp_path / "run"))
    assert train(other, bank, tmp_path / "run", allow=("recipe.lr",)).exists()


def test_the_card_says_how_the_model_was_made(folder, tmp_path):
    card = load_checkpoint(train(RECIPE, folder, tmp_path / "run")).card
    assert card.training["steps"] == RECIPE.steps
    assert card.recipe["name"] == "tiny"
    assert len(card.data["sha256"]) == 64


def test_unusable_images_are_named_and_skipped_only_when_told(folder):
    (folder / "broken.png").write_bytes(b"\x89PNG")
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(folder / "small.png")
    with pytest.raises(ValueError, match=r"broken\.png"):
        load_bank(folder, smallest=32)
    bank = load_bank(folder, smallest=32, skip_bad=True)
    assert {item.path.name for item in bank.skipped} == {"broken.png", "small.png"}


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (64, 2, 3, 3)])
def test_muon_steps_have_equal_singular_values(shape):
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0).step()
    values = torch.linalg.svdvals(weight.detach().flatten(1)) / (0.2 * max(shape[0], 9 * shape[1]) ** 0.5)
    assert values.min() > 0.6
    assert values.max() < 1.3
