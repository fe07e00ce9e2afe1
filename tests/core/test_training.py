"""Training from a folder of images, stopped at any moment and resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from typing import get_args

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data
from torch.optim.optimizer import register_optimizer_step_post_hook

from dn_core import denoise
from dn_core import train as front_door_train
from dn_core.checkpoints import load_checkpoint
from dn_core.errors import CheckpointError
from dn_core.files.grey import to_grey
from dn_core.inference.model import load_model
from dn_core.losses import EdgeKind
from dn_core.network_config import (
    Level,
    NetworkConfig,
    half_resolution_config,
    levels_config,
    paper_config,
)
from dn_core.networks import DnResNet
from dn_core.noise import noise_from_dict, paper_mixture
from dn_core.tensor_files import read_tensors, write_tensors
from dn_core.training import trainer as trainer_module
from dn_core.training.data.clean_images import CleanImageDataset, load_clean_images
from dn_core.training.hardware import bfloat16_helps
from dn_core.training.loop import fit
from dn_core.training.optimizers import Muon, build_optimizers
from dn_core.training.recipes import Phase, Recipe, load_recipe, recipe_descriptions, recipe_names
from dn_core.training.stages import train, train_stages
from dn_core.training.state import differences

GAUSSIAN = ({"kind": "gaussian", "sigma": 25},)
RECIPE = Recipe(
    name="tiny",
    network=half_resolution_config(8, 1),
    noise=GAUSSIAN,
    phases=(Phase(30, 2, 16), Phase(10, 1, 32)),
    warm_up=2,
    epoch=10,
)
TOML = """
name = "tiny"
warm_up = 2
epoch = 50

[network]
family = "half-resolution"
channels = 8
blocks = 1

[[noise]]
kind = "gaussian"
sigma = { uniform = [0, 50] }

[[noise]]
kind = "poisson-gaussian"
sigma = { log-uniform = [0.1, 12] }

[[phase]]
steps = 300
batch = 2
patch = 16
"""
SKIMAGE = (data.camera, data.coins, data.moon, data.page, data.text)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pictures():
    return [picture()[:160, :160] for picture in SKIMAGE]


@pytest.fixture(scope="module")
def dataset(pictures):
    return CleanImageDataset(tuple(pictures[:4]), tuple(pictures[4:]))


@pytest.fixture
def folder(tmp_path, pictures):
    images = tmp_path / "images"
    images.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(images / f"{index}.png")
    return images


def change(recipe=RECIPE, **settings):
    return dataclasses.replace(recipe, **settings)


def state_of(out):
    tensors, metadata = read_tensors(out / "state.safetensors")
    return tensors, json.loads(metadata["dn_resnet_training"])


def run_some(recipe, dataset, out, count, **options):
    """The first `count` reports of a run that is then closed."""
    steps = fit(recipe, dataset, out, **options)
    reports = list(itertools.islice(steps, count))
    steps.close()
    return reports


# The dataset


@pytest.mark.parametrize(
    ("dtype", "ending"),
    [(np.uint8, ".png"), (np.uint16, ".png"), (np.uint16, ".tif"), (np.uint8, ".tif")],
)
def test_images_are_held_as_the_8_or_16_bits_that_they_have(dtype, ending, tmp_path, pictures):
    expected = [
        picture.astype(dtype) * dtype(1 if dtype is np.uint8 else 257) for picture in pictures[:3]
    ]
    for index, image in enumerate(expected):
        if ending == ".tif":
            tifffile.imwrite(tmp_path / f"{index}.tif", image)
        else:
            Image.fromarray(image).save(tmp_path / f"{index}.png")
    dataset = load_clean_images(tmp_path, smallest=64)
    assert dataset.full_scale == np.iinfo(dtype).max
    assert not dataset.held_out
    for image, pixels in zip(dataset.images, expected, strict=True):
        assert image.dtype == dtype
        np.testing.assert_array_equal(image, pixels)


def test_grey_is_what_matlab_makes_of_rgb():
    colours = np.array(
        [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [12, 200, 77]]],
        np.uint8,
    )
    assert to_grey(colours).tolist() == [
        [76, 150, 29, 255, 0, 130]
    ]  # 0.2989 R + 0.5870 G + 0.1140 B, rounded
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    np.testing.assert_array_equal(to_grey(levels), levels[..., 0])
    assert to_grey(np.full((1, 1, 3), 65535, np.uint16))[0, 0] == 65535


def test_colours_are_made_grey_however_they_lie_in_the_file(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    alpha = np.full((40, 48, 1), 200, np.uint8)
    Image.fromarray(colours).save(tmp_path / "a_rgb.png")
    Image.fromarray(np.concatenate([colours, alpha], axis=2)).save(tmp_path / "b_rgba.png")
    tifffile.imwrite(
        tmp_path / "c_planar.tif",
        np.moveaxis(colours, 2, 0),
        photometric="rgb",
        planarconfig="separate",
    )
    with pytest.warns(
        UserWarning, match=r"\(40, 48, 4\): the last of its 4 samples is alpha, which is left alone"
    ):
        dataset = load_clean_images(tmp_path, smallest=32)
    assert len(dataset.images) == 3
    for image in dataset.images:
        np.testing.assert_array_equal(image, to_grey(colours))


def test_alpha_beside_grey_is_left_out(tmp_path, pictures):
    grey = pictures[0]
    Image.fromarray(np.stack([grey, np.full_like(grey, 9)], axis=2)).save(tmp_path / "la.png")
    with pytest.warns(UserWarning, match="the last of its 2 samples is alpha"):
        (image,) = load_clean_images(tmp_path).images
    np.testing.assert_array_equal(image, grey)


def test_stacks_and_channels_give_an_image_a_plane(tmp_path):
    stack = np.random.default_rng(0).integers(0, 999, (2, 3, 40, 48)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "stack.ome.tif", stack, metadata={"axes": "ZCYX"}, photometric="minisblack"
    )
    dataset = load_clean_images(tmp_path, smallest=40)
    np.testing.assert_array_equal(
        np.stack([*dataset.images, *dataset.held_out]), stack.reshape(6, 40, 48)
    )


def unusable(folder):
    """Files that cannot be trained on, by name, with what is said of them."""
    ramp = np.arange(160 * 160, dtype=np.uint16).reshape(160, 160)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "text.tif").write_text("no image")
    Image.fromarray(ramp[:10, :10].astype(np.uint8)).save(folder / "small.png")
    Image.fromarray(np.full((160, 160), 7, np.uint8)).save(folder / "constant.png")
    tifffile.imwrite(folder / "nan.tif", np.where(ramp == 5, np.nan, ramp).astype(np.float32))
    tifffile.imwrite(folder / "mask.tif", ramp > 100)
    return {
        "broken.png": "damaged",
        "text.tif": "not a TIFF",
        "small.png": "at least 32x32 pixels, got 10x10",
        "constant.png": "constant",
        "nan.tif": "uint8 or uint16, got float32",
        "mask.tif": "uint8 or uint16, got bool",
    }


def test_unusable_images_are_named_and_skipped_only_when_told(folder):
    bad = unusable(folder)
    with pytest.raises(ValueError, match="6 of 11 files") as caught:
        load_clean_images(folder, smallest=32)
    dataset = load_clean_images(folder, smallest=32, skip_bad=True)
    reasons = {item.path.name: item.reason for item in dataset.skipped}
    assert reasons.keys() == bad.keys()
    for name, words in bad.items():
        assert name in str(caught.value)
        assert words in reasons[name]
    assert len(dataset.images) + len(dataset.held_out) == 5


def test_very_many_bad_files_are_counted_and_the_first_named(folder):
    for index in range(30):
        (folder / f"bad{index:02}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"30 of 35 files.*bad00\.png.*bad19\.png.*and 10 more"):
        load_clean_images(folder)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no images here")
    with pytest.raises(FileNotFoundError, match="no images"):
        load_clean_images(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_clean_images(tmp_path / "missing")
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no images"):
        load_clean_images(tmp_path, skip_bad=True)


def test_images_of_several_kinds_are_refused(folder):
    tifffile.imwrite(folder / "deep.tif", np.arange(160 * 160, dtype=np.uint16).reshape(160, 160))
    with pytest.raises(ValueError, match="all uint8 or all uint16, got dtypes .*uint16.*uint8"):
        load_clean_images(folder)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((), "no images"),
        ((np.zeros((8, 8), np.float32),), "float32"),
        ((np.zeros((2, 8, 8), np.uint8),), "shape"),
    ],
)
def test_a_data_set_takes_planes_of_8_or_16_bits(images, message):
    with pytest.raises(ValueError, match=message):
        CleanImageDataset(images)


@pytest.mark.parametrize(
    ("count", "hold_out", "held"), [(3, 50, 0), (4, 50, 1), (12, 50, 1), (12, 3, 4), (12, 2, 6)]
)
def test_held_out_images_are_never_among_the_training_ones(count, hold_out, held, tmp_path):
    rng = np.random.default_rng(1)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8)).save(
            tmp_path / f"{index:02}.png"
        )
    dataset = load_clean_images(tmp_path, hold_out=hold_out)
    assert len(dataset.held_out) == held
    contents = [image.tobytes() for image in (*dataset.images, *dataset.held_out)]
    assert len(contents) == len(set(contents)) == count


@pytest.mark.parametrize("hold_out", [0, 1, -3, 2.0, True])
def test_holding_out_everything_or_nothing_is_refused(hold_out, folder):
    with pytest.raises(ValueError, match=r"hold_out.*2 or more"):
        load_clean_images(folder, hold_out=hold_out)


def test_equal_images_in_both_parts_are_refused(folder, pictures):
    tifffile.imwrite(
        folder / "zz_copy.tif", pictures[0]
    )  # the last is held out; other file, same pixels
    with pytest.raises(ValueError, match=r"zz_copy\.tif and 0\.png have the same pixels.*Remove"):
        load_clean_images(folder)
    with pytest.raises(ValueError, match="held-out image 1 equals training image 0"):
        CleanImageDataset((pictures[0],), (pictures[1], pictures[0].copy()))


def test_images_that_differ_in_one_pixel_are_not_equal(pictures):
    other = pictures[0].copy()
    other[1, 1] ^= 1
    assert len(CleanImageDataset((pictures[0],), (other,)).held_out) == 1


def test_the_fingerprint_is_that_of_the_pixels_and_their_order(pictures):
    one, two = (
        CleanImageDataset(tuple(pictures[:2])),
        CleanImageDataset(tuple(reversed(pictures[:2]))),
    )
    changed = pictures[0].copy()
    changed[0, 0] ^= 1
    prints = [
        one.fingerprint(),
        two.fingerprint(),
        CleanImageDataset((changed, pictures[1])).fingerprint(),
    ]
    assert len(set(prints)) == 3
    assert (
        one.fingerprint()
        == CleanImageDataset(tuple(picture.copy() for picture in pictures[:2])).fingerprint()
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_patches_are_pieces_of_the_images_in_all_eight_orientations(dtype):
    top = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, top, (16, 16), endpoint=True).astype(dtype)
    patches, means = CleanImageDataset((image,)).patches(200, 16, np.random.default_rng(0))
    assert patches.shape == (200, 1, 16, 16)
    assert patches.dtype == means.dtype == np.float32
    assert patches.min() >= 0
    assert patches.max() <= 1
    turned = [np.rot90(flipped, quarter) for flipped in (image, image.T) for quarter in range(4)]
    expected = {(one.astype(np.float32) / np.float32(top)).tobytes() for one in turned}
    assert {patch.tobytes() for patch in patches} == expected
    np.testing.assert_allclose(means, image.mean() / top, rtol=1e-6)


def test_patches_come_from_everywhere_in_every_image_with_that_images_mean():
    images = tuple(
        (np.arange(24 * 20, dtype=np.uint16) + 1000 * index).reshape(24, 20) for index in range(3)
    )
    patches, means = CleanImageDataset(images).patches(1500, 16, np.random.default_rng(0))
    values = np.rint(patches * 65535).astype(int)
    assert means.shape == (1500, 1, 1, 1)
    for index, image in enumerate(images):
        mine = values[:, 0].min(axis=(1, 2)) // 1000 == index
        np.testing.assert_allclose(means[mine], image.mean() / 65535, rtol=1e-6)
        corners = {
            (corner // 20, corner % 20) for corner in values[mine, 0].min(axis=(1, 2)) % 1000
        }
        assert corners == {(row, column) for row in range(9) for column in range(5)}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_patches_cut_on_a_device_are_those_cut_from_the_arrays(dtype):
    rng = np.random.default_rng(0)
    images = tuple(
        rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
        for shape in ((20, 33), (40, 17), (17, 17))
    )
    patches, means = CleanImageDataset(images).patches(300, 17, np.random.default_rng(1))
    there, their_means = CleanImageDataset(images).patches_on(
        torch.device("cpu"), 300, 17, np.random.default_rng(1)
    )
    assert there.dtype == their_means.dtype == torch.float32
    np.testing.assert_array_equal(there.numpy(), patches)
    np.testing.assert_array_equal(their_means.numpy(), means)


def test_the_same_random_numbers_give_the_same_patches(dataset):
    first, second = (dataset.patches(4, 32, np.random.default_rng((0, 0, 0, 7))) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(
        first[0], dataset.patches(4, 32, np.random.default_rng((0, 0, 0, 8)))[0]
    )


# Recipes


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name):
    recipe = load_recipe(name)
    assert name == recipe.name or name.startswith(f"{recipe.name}-"), (
        "a file is named after the model it makes"
    )
    assert recipe.description
    assert recipe.network.planes_in == 1
    json.dumps(recipe.as_dict())


def test_a_recipe_may_build_on_another(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "paper-edge-a"\nname = "mine"\n')
    expected = dataclasses.replace(load_recipe("paper-blind"), name="mine", loss="edge-a")
    assert load_recipe(path) == dataclasses.replace(
        expected, description=recipe_descriptions()["paper-edge-a"]
    )
    path.write_text('base = "no-such"\nname = "mine"\n')
    expected = "base must be a bundled recipe, one of dn-fast.*, got 'no-such'"
    with pytest.raises(ValueError, match=expected):
        load_recipe(path)


def test_the_papers_levels_are_there():
    names = [
        name for name in recipe_names() if name.startswith(("paper-gaussian-", "paper-poisson-"))
    ]
    noises = [noise_from_dict(load_recipe(name).noise) for name in names]
    mixture = paper_mixture()
    expected = [
        type(model)(level)
        for model in mixture.models
        for level in (getattr(model, "sigma", None) or model.peak).values
    ]
    assert sorted(map(repr, noises)) == sorted(map(repr, expected))


@pytest.mark.parametrize("loss", ["mse", *get_args(EdgeKind)])
def test_a_recipe_may_have_any_loss_there_is(loss):
    assert change(loss=loss).loss == loss


def test_there_are_recipes():
    assert {"dn-fast", "dn-resnet-13"} <= set(recipe_names())


def test_a_recipe_is_read_from_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(TOML)
    recipe = load_recipe(path)
    assert recipe.network == half_resolution_config(8, 1)
    assert recipe.phases == (Phase(300, 2, 16),)
    assert recipe.steps == 300
    assert recipe == load_recipe(str(path))


def test_a_network_can_be_given_setting_by_setting(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        TOML.replace(
            'family = "half-resolution"\nchannels = 8\nblocks = 1',
            'entry = [[3, 8]]\nblocks = ["separable"]',
        )
    )
    assert load_recipe(path).network == NetworkConfig(entry=((3, 8),), blocks=("separable",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("warm_up", "warmup", r"unknown setting 'warmup'. Did you mean 'warm_up'\? See"),
        ('name = "tiny"', "", r"\['name'\] is missing"),
        ('name = "tiny"', 'name = "../tiny"', "name must be text of letters, .*, got '../tiny'"),
        ('name = "tiny"', "name = 3", "name must be text .*, got 3"),
        ("warm_up = 2", "warm_up = 2.5", "warm_up must be a whole number in 0..1000000, got 2.5"),
        ("warm_up = 2", "warm_up = -1", "warm_up must be .*, got -1"),
        ("warm_up = 2", "lr = 3", "lr must be a number in 1e-09..1.0, got 3"),
        ("warm_up = 2", "lr = nan", "lr must be .*, got nan"),
        ("warm_up = 2", "lr = true", "lr must be .*, got True"),
        ("warm_up = 2", "ema = 1.0", "ema must be .*, got 1.0"),
        ("warm_up = 2", "seed = -1", "seed must be .*, got -1"),
        ("warm_up = 2", "description = 7", "description must be text, got 7"),
        ("warm_up = 2", 'optimizer = "sgd"', "optimizer must be 'muon' or 'adamw', got 'sgd'"),
        ("warm_up = 2", 'schedule = "step"', "schedule must be .*, got 'step'"),
        ("warm_up = 2", 'loss_weight = "edges"', "loss_weight must be .*, got 'edges'"),
        ("epoch = 50", "epoch = 0", "epoch must be .*, got 0"),
        (
            "channels = 8",
            "channels = 0",
            r"entry\[0\]\[1\] must be a whole number in 1..1024, got 0",
        ),
        ("channels = 8", "canals = 8", "canals"),
        ('"half-resolution"', '"u-net"', "family of the network must be one of .*, got 'u-net'"),
        ('kind = "gaussian"', 'kind = "cauchy"', "kind of noise must be one of .*, got 'cauchy'"),
        (
            "sigma = { uniform = [0, 50] }",
            "sigma = -3",
            "sigma must be a finite non-negative number, got -3",
        ),
        ("sigma = { uniform = [0, 50] }", "peak = 3", "'gaussian' has settings"),
        (
            "uniform = [0, 50]",
            "uniform = [0]",
            r"sigma.uniform must be a list of 2 values, got \[0\]",
        ),
        (
            "steps = 300",
            "steps = 0",
            r"steps of a \[\[phase\]\] must be a whole number in .*, got 0",
        ),
        ("steps = 300", "steps = 3.5", r"steps of a \[\[phase\]\] must be .*, got 3.5"),
        ("steps = 300", "", r"a \[\[phase\]\] lacks the settings \['steps'\]"),
        (
            "patch = 16",
            "size = 16",
            r"a \[\[phase\]\] has unknown settings \['size'\]; known are .*patch",
        ),
        ("patch = 16", "patch = true", r"patch of a \[\[phase\]\] must be .*, got True"),
        ("[[phase]]", "[phase]", r"phase must be a list of tables, each under a \[\[heading\]\]"),
        ("[network]", "[net]", "unknown settings"),
        ("[network]", "[[network]]", r"under \[network\]"),
        ('name = "tiny"', 'name = "tiny', "cannot be used"),
        (
            "[[phase]]",
            "[[last_phase]]\nsteps = 3\n[[phase]]",
            "left out with the plan 'once', which has one stage only",
        ),
    ],
)
def test_wrong_recipes_are_refused_with_a_sentence(old, new, message, tmp_path):
    path = tmp_path / "wrong.toml"
    assert old in TOML
    path.write_text(TOML.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert "wrong.toml" in str(caught.value)


LEVELS = 'family = "levels"\nchannels = [8, 12, 16]\nblocks = [1, 0, 1]\nblocks_up = [0, 1]'


def write_with_network(folder, network, patch=16):
    path = folder / "own.toml"
    half = 'family = "half-resolution"\nchannels = 8\nblocks = 1'
    assert half in TOML
    path.write_text(TOML.replace(half, network).replace("patch = 16", f"patch = {patch}"))
    return path


def test_a_network_with_levels_is_a_family_or_given_setting_by_setting(tmp_path):
    network = load_recipe(write_with_network(tmp_path, LEVELS)).network
    assert network == levels_config((8, 12, 16), (1, 0, 1), (0, 1))
    settings = """
entry = [[3, 8]]
blocks_up = ["full"]
[[network.levels]]
channels = 12
blocks = ["separable"]
"""
    network = load_recipe(write_with_network(tmp_path, settings)).network
    assert network == NetworkConfig(
        entry=((3, 8),), levels=(Level(12, ("separable",)),), blocks_up=("full",)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[8, 12, 16]", "8", "channels must be a list of 2..4 items, got 8"),
        ("[8, 12, 16]", "[8, 12]", "n, n and n - 1 numbers, got 2, 3 and 2"),
        ("[0, 1]", "[0.5, 1]", r"blocks_up\[0\] must be a whole number in 0..256, got 0.5"),
        ("[0, 1]", "[0, 1]\ndepth = 3", "depth"),
        (
            LEVELS,
            "blocks_up = []\n[[network.levels]]\nchannels = 8\nblocks = []\nwidth = 3",
            r"level 0 of the network has unknown settings \['width'\]",
        ),
        (
            LEVELS,
            "[[network.levels]]\nblocks = []",
            r"level 0 of the network lacks the settings \['channels'\]",
        ),
        (
            LEVELS,
            '[[network.levels]]\nchannels = 8\nblocks = []\nblocks_up = ["full"]',
            "blocks_up of the last level must be empty",
        ),
        (LEVELS, "[network.levels]\nchannels = 8\nblocks = []", "levels of the network must be"),
    ],
)
def test_levels_that_do_not_fit_together_are_refused_with_a_sentence(old, new, message, tmp_path):
    assert old in LEVELS
    path = write_with_network(tmp_path, LEVELS.replace(old, new))
    with pytest.raises(ValueError, match=f"own.toml cannot be used: .*{message}"):
        load_recipe(path)


def test_patches_must_be_whole_cells_of_the_coarsest_level(tmp_path):
    with pytest.raises(
        ValueError, match="patch of a phase must be a multiple of 8 pixels, .* got 20. Change patch"
    ):
        load_recipe(write_with_network(tmp_path, LEVELS, patch=20))
    assert load_recipe(write_with_network(tmp_path, LEVELS, patch=24)).largest_patch == 24


def test_one_table_of_noise_must_be_a_list_too(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(
        'name = "a"\n[network]\nfamily = "paper"\n[noise]\nkind = "poisson"\npeak = 3\n'
    )
    with pytest.raises(
        ValueError, match=r"noise must be a list of tables, each under a \[\[heading\]\]"
    ):
        load_recipe(path)


def test_what_is_no_text_is_no_recipe(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"wrong\.toml cannot be used"):
        load_recipe(path)


def test_an_unknown_recipe_is_answered_with_those_there_are():
    with pytest.raises(FileNotFoundError, match="dn-fast"):
        load_recipe("dn-slow")


def test_a_recipe_needs_noise_and_a_phase():
    with pytest.raises(ValueError, match="no noise or no phase"):
        change(noise=())
    with pytest.raises(ValueError, match="no noise or no phase"):
        change(phases=())


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100, 1001, 90_000])
def test_scaled_recipes_have_the_steps_asked_for_in_the_same_proportion(steps):
    recipe = change(phases=(Phase(300), Phase(300, 4), Phase(300, 2)))
    scaled = recipe.with_steps(steps)
    assert scaled.steps == steps
    assert scaled.network == recipe.network
    for phase in scaled.phases:
        assert phase.steps == pytest.approx(steps / 3, abs=1)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_a_recipe_is_scaled_to_a_whole_number_of_steps(steps):
    with pytest.raises(ValueError, match="steps must be a whole number in 1..1000000000, got"):
        RECIPE.with_steps(steps)


def test_each_step_belongs_to_one_phase():
    assert [RECIPE.phase_at(step).patch for step in (0, 29, 30, 39, 1000)] == [16, 16, 32, 32, 32]


# Optimizers


@pytest.mark.parametrize(
    "shape", [(8, 4, 3, 3), (64, 2, 3, 3), (8, 8, 1, 1), (64, 16, 1, 1), (5, 32, 5, 5)], ids=str
)
def test_muon_steps_have_equal_singular_values(shape):
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.5).step()
    rows, columns = shape[0], math.prod(shape[1:])
    values = torch.linalg.svdvals(weight.detach().flatten(1)) / (
        0.5 * 0.2 * max(rows, columns) ** 0.5
    )
    # The quintic iteration leaves them in about 0.7..1.2; a square matrix of random numbers has
    # some that are next to nothing.
    assert values[: math.ceil(0.7 * len(values))].min() > 0.6
    assert values.max() < 1.3


def test_the_size_of_muons_step_does_not_depend_on_that_of_the_gradient():
    steps = []
    for scale in (1e-3, 1.0, 1e3):
        weight = torch.nn.Parameter(torch.zeros(16, 8, 3, 3))
        weight.grad = scale * torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.01).step()
        steps.append(weight.detach())
        assert weight.detach().square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.15)
        assert (weight.detach() * weight.grad).sum() < 0  # downhill
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(steps[1], steps[2], rtol=1e-3, atol=1e-6)


def test_muon_changes_weights_together_as_it_would_alone():
    generator = torch.Generator().manual_seed(0)
    shapes = ((8, 4, 3, 3), (4, 4, 3, 3), (8, 4, 3, 3), (4, 8, 1, 1))
    first = [torch.randn(shape, generator=generator) for shape in shapes]
    together = [torch.nn.Parameter(value.clone()) for value in first]
    alone = [torch.nn.Parameter(value.clone()) for value in first]
    optimizers = [Muon(together, lr=0.1), *(Muon([weight], lr=0.1) for weight in alone)]
    for _ in range(2):
        for weight, other in zip(together, alone, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            other.grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for weight, other, value in zip(together, alone, first, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)
        assert (weight - value).abs().max() > 0.01


def test_muon_leaves_weights_without_gradient_alone():
    weight = torch.nn.Parameter(torch.ones(4, 4, 3, 3))
    Muon([weight], lr=1.0).step()
    assert (weight == 1).all()


def test_a_channel_that_died_leaves_no_denormal_numbers_in_muon():
    """Processors compute up to 36 times slower with them."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    muon = Muon([weight], lr=1e-3)
    for step in range(2000):
        weight.grad = 1e-4 * torch.randn(4, 3, 3, 3)
        if step:
            weight.grad[0] = 0
        muon.step()
    momentum = muon.state[weight]["momentum"]
    assert (momentum[0] == 0).all()
    assert (momentum[1:].abs() > torch.finfo(torch.float32).tiny).all()
    assert weight.isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        paper_config(5),
        paper_config(5, block="separable"),
        half_resolution_config(8, 1),
        paper_config(3),
    ],
)
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_weight_has_one_optimizer(config, kind):
    network = DnResNet(config)
    optimizers = build_optimizers(network, kind, 1e-3)
    found = [
        id(weight)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for weight in group["params"]
    ]
    assert sorted(found) == sorted(map(id, network.parameters()))
    inner = {id(weight) for weight in list(network.parameters())[1:-1] if weight.shape[1] > 1}
    muon = {
        id(w)
        for optimizer in optimizers
        if isinstance(optimizer, Muon)
        for w in optimizer.param_groups[0]["params"]
    }
    assert muon == (inner if kind == "muon" else set())


# One run


def test_training_makes_a_network_that_denoises(dataset, tmp_path):
    recipe = change(phases=(Phase(300, 4, 32),), epoch=50, ema=0.9)
    reports = list(fit(recipe, dataset, tmp_path, precision="float32"))
    assert reports[-1].psnr > 20.17 + 3  # 20.17 dB is the PSNR of noise of sigma 25
    assert reports[-1].psnr > reports[2].psnr
    assert reports[-1].loss < reports[0].loss
    clean = data.camera()[160:320, 160:320].astype(np.float32)
    noisy = clean + np.random.default_rng(0).normal(0, 25, clean.shape).astype(np.float32)
    result = denoise(noisy, load_model(reports[-1].path))
    assert np.square(result - clean).mean() < np.square(noisy - clean).mean() / 2


def test_reports_say_how_far_the_run_is(dataset, tmp_path):
    recipe = change(phases=(Phase(50, 2, 16),), epoch=30)
    reports = list(fit(recipe, dataset, tmp_path))
    assert [report.step for report in reports] == [20, 30, 40, 50, 50]
    assert [report.epoch for report in reports] == [1, 1, 2, 2, 2]
    assert [report.psnr is not None for report in reports] == [False, True, False, True, True]
    assert [report.path for report in reports] == [None] * 4 + [tmp_path / "tiny.safetensors"]
    assert {report.total_steps for report in reports} == {50}
    assert reports[-1].megapixels == pytest.approx(50 * 2 * 16 * 16 / 1e6)
    left = [report.seconds_left for report in reports]
    assert left[-1] == 0
    assert min(left) >= 0


def test_without_held_out_images_there_is_no_score(pictures, tmp_path):
    reports = list(fit(RECIPE, CleanImageDataset(tuple(pictures)), tmp_path))
    assert {report.psnr for report in reports} == {None}
    assert load_checkpoint(reports[-1].path).card.scores == {}


@pytest.mark.parametrize(
    "noise", [{"kind": "gaussian", "sigma": 40}, {"kind": "jpeg", "quality": 10}]
)
def test_the_score_is_that_of_held_out_images_with_the_recipes_noise(noise, dataset, tmp_path):
    path = train(
        change(noise=(noise,), phases=(Phase(1, 1, 16),)), dataset, tmp_path, precision="float32"
    )
    network, add_noise = load_checkpoint(path).network(), noise_from_dict([noise])
    generator, errors = torch.Generator().manual_seed(0), []
    for image in dataset.held_out:
        clean = torch.from_numpy(image[:256, :256] / np.float32(255))[None, None]
        with torch.no_grad():
            errors.append(
                float(
                    (network(add_noise(clean, generator).image).clamp(0, 1) - clean).square().mean()
                )
            )
    expected = np.mean([-10 * math.log10(error) for error in errors])
    assert load_checkpoint(path).card.scores["held_out_psnr"] == pytest.approx(expected, abs=2e-3)


def test_the_card_says_how_the_model_was_made(folder, tmp_path):
    recipe = change(description="for tests", noise_text="Gaussian 25")
    path = front_door_train(recipe, folder, tmp_path / "run", precision="float32")
    model = load_checkpoint(path)
    card, dataset = model.card, load_clean_images(folder, smallest=32)
    assert model.config == RECIPE.network
    assert (card.name, card.description, card.noise) == ("tiny", "for tests", "Gaussian 25")
    assert card.recipe == json.loads(json.dumps(recipe.as_dict()))
    assert card.data == {"images": 4, "held_out": 1, "sha256": dataset.fingerprint()}
    assert card.training["steps"] == 40
    assert card.training["precision"] == "float32"
    assert card.scores["held_out_psnr"] > 0
    assert str(tmp_path) not in json.dumps(dataclasses.asdict(card))


def test_a_shipped_recipe_trains_end_to_end(folder, tmp_path):
    recipe = load_recipe("dn-fast").with_steps(2)
    path = front_door_train(recipe, folder, tmp_path / "run")
    assert load_checkpoint(path).config == recipe.network


def test_a_network_with_a_noise_map_is_told_the_noise(dataset, tmp_path):
    noise = ({"kind": "gaussian", "sigma": {"uniform": [0, 50]}},)
    recipe = change(
        network=half_resolution_config(8, 1, noise_map=True),
        noise=noise,
        phases=(Phase(150, 4, 32),),
        ema=0.9,
        epoch=150,
    )
    path = train(recipe, dataset, tmp_path)
    image = data.camera()[:64, :64]
    weak, strong = (denoise(image, load_model(path), sigma=sigma) for sigma in (2, 50))
    assert np.abs(strong.astype(int) - image).mean() > np.abs(weak.astype(int) - image).mean()


@pytest.mark.parametrize(
    "network",
    [
        paper_config(5),
        paper_config(5, block="separable"),
        NetworkConfig(entry=((3, 8),), last_kernel=3),
    ],
)
def test_every_kind_of_network_trains(network, dataset, tmp_path):
    path = train(change(network=network, phases=(Phase(2, 1, 16),)), dataset, tmp_path)
    assert load_checkpoint(path).config == network


def test_training_can_start_from_a_model(dataset, tmp_path):
    first = train(RECIPE, dataset, tmp_path / "first")
    still = change(start=str(first), lr=1e-9, phases=(Phase(1, 1, 16),))
    second = train(still, dataset, tmp_path / "second", precision="float32")
    for name, value in load_checkpoint(second).weights.items():
        np.testing.assert_allclose(value, load_checkpoint(first).weights[name], atol=1e-7)
    with pytest.raises(ValueError, match=r"start, .* does not fit: .* Or change start"):
        next(
            train_stages(
                change(start=str(first), network=half_resolution_config(16, 1)),
                dataset,
                tmp_path / "third",
            )
        )


def test_a_start_with_fewer_blocks_is_grown_to_the_recipes(dataset, tmp_path):
    small = change(network=half_resolution_config(8, 1))
    first = train(small, dataset, tmp_path / "first")
    grown = change(
        start=str(first), lr=1e-9, network=half_resolution_config(8, 3), phases=(Phase(1, 1, 16),)
    )
    path = train(grown, dataset, tmp_path / "second", precision="float32")
    image = torch.rand(1, 1, 32, 32)
    before, after = (load_checkpoint(model).network() for model in (first, path))
    assert len(after.config.blocks) == 3
    torch.testing.assert_close(after(image), before(image), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"cannot become the one asked for"):
        next(
            train_stages(
                change(network=small.network, start=str(path)), dataset, tmp_path / "third"
            )
        )


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_learning_rate_follows_its_formula(schedule, dataset, tmp_path):
    recipe = change(phases=(Phase(30, 1, 16),), epoch=1, warm_up=8, lr=1e-3, schedule=schedule)
    rates = {
        report.step: report.learning_rate
        for report in fit(recipe, dataset, tmp_path)
        if report.path is None
    }
    for step, rate in rates.items():  # the rate of the step after the `step` done
        warm = min(1, (step + 1) / 8)
        shape = (
            1 if schedule == "constant" else 0.01 + 0.99 * (1 + math.cos(math.pi * step / 30)) / 2
        )
        assert rate == pytest.approx(1e-3 * warm * shape)
    assert len(rates) == 30


def test_the_rate_is_what_the_weights_move_by(dataset, tmp_path):
    recipe = change(
        phases=(Phase(2, 1, 16),),
        epoch=1,
        warm_up=10,
        lr=1e-3,
        optimizer="adamw",
        schedule="constant",
    )
    run_some(recipe, dataset, tmp_path, 1, precision="float32")
    torch.manual_seed(recipe.seed)
    start = DnResNet(recipe.network).state_dict()
    tensors, _ = state_of(tmp_path)
    for (
        name,
        value,
    ) in start.items():  # Adam's first step has the size of the rate, whatever the gradient
        assert np.abs(tensors[f"network.{name}"] - value.numpy()).max() == pytest.approx(
            1e-3 / 10, rel=0.02
        )


@pytest.mark.parametrize("ema", [0.0, 0.5, 0.999])
def test_the_model_is_the_average_that_its_formula_says(ema, dataset, tmp_path):
    recipe = change(phases=(Phase(12, 1, 16),), epoch=1, ema=ema)
    torch.manual_seed(recipe.seed)
    average = {name: value.numpy() for name, value in DnResNet(recipe.network).state_dict().items()}
    for step, _ in enumerate(itertools.islice(fit(recipe, dataset, tmp_path), 12)):
        tensors, state = state_of(tmp_path)
        assert state["step"] == step + 1
        decay = min(ema, (step + 1) / (step + 10))
        for name, value in average.items():
            average[name] = decay * value + (1 - decay) * tensors[f"network.{name}"]
            np.testing.assert_allclose(
                tensors[f"ema_weights.{name}"], average[name], rtol=1e-5, atol=1e-7
            )
    for name, value in load_checkpoint(train(recipe, dataset, tmp_path)).weights.items():
        np.testing.assert_array_equal(value, tensors[f"ema_weights.{name}"])


def test_the_seed_and_the_stage_choose_the_patches_and_the_noise(dataset, tmp_path):
    def loss(name, **options):
        seed = options.pop("seed", 0)
        return run_some(
            change(phases=(Phase(1, 1, 16),), seed=seed), dataset, tmp_path / name, 1, **options
        )[0].loss

    losses = [loss("a"), loss("b", seed=1), loss("c", stage=1)]
    assert len(set(losses)) == 3
    assert loss("again") == losses[0]


def test_training_leaves_the_random_numbers_of_others_alone(dataset, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(change(phases=(Phase(2, 1, 16),)), dataset, tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            change(phases=(Phase(1, 1, 500),)),
            {},
            "sides of at least 500 pixels, the recipe's largest patch, got 160",
        ),
        (
            change(network=dataclasses.replace(RECIPE.network, planes_in=3)),
            {},
            "planes_in must be 1, .*, got 3",
        ),
        (RECIPE, {"device": "abacus"}, "'mps', got 'abacus'"),
        (RECIPE, {"precision": "float8"}, "precision must be .*, got 'float8'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    recipe, options, message, dataset, tmp_path
):
    with pytest.raises(ValueError, match=message):
        next(fit(recipe, dataset, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


# Stopping and resuming


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_and_resumed_run_gives_the_same_weights(dataset, tmp_path, precision, optimizer):
    recipe = change(optimizer=optimizer)
    whole = train(recipe, dataset, tmp_path / "whole", precision=precision)
    for stop in (1, 1, 1):
        run_some(recipe, dataset, tmp_path / "parts", stop, precision=precision)
    assert state_of(tmp_path / "parts")[1]["step"] == 30
    resumed = train(recipe, dataset, tmp_path / "parts", precision=precision)
    assert resumed.read_bytes() == whole.read_bytes()
    assert (tmp_path / "parts" / "state.safetensors").read_bytes() == (
        tmp_path / "whole" / "state.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("loss", ["edge-a", "edge-b", "edge-a-linear"])
def test_the_loss_of_the_recipe_is_the_one_made_small(loss, dataset, tmp_path):
    """The same first batch, so the losses differ by the edges alone."""
    recipe = RECIPE.with_steps(1)
    plain = load_checkpoint(train(recipe, dataset, tmp_path / "mse")).weights
    edges = load_checkpoint(train(change(recipe, loss=loss), dataset, tmp_path / loss)).weights
    assert any((plain[name] != edges[name]).any() for name in plain)


def test_two_runs_in_one_folder_are_kept_apart(dataset, tmp_path):
    first = fit(RECIPE, dataset, tmp_path / "run")
    next(first)
    with pytest.raises(BlockingIOError, match="another training run is using this folder"):
        next(fit(RECIPE, dataset, tmp_path / "run"))
    first.close()
    assert next(fit(RECIPE, dataset, tmp_path / "run")).step > 0


def test_a_run_of_separable_blocks_resumes_too(dataset, tmp_path):
    recipe = change(network=paper_config(5, block="separable"), phases=(Phase(6, 1, 16),), epoch=2)
    whole = train(recipe, dataset, tmp_path / "whole", precision="float32")
    run_some(recipe, dataset, tmp_path / "parts", 1, precision="float32")
    assert (
        train(recipe, dataset, tmp_path / "parts", precision="float32").read_bytes()
        == whole.read_bytes()
    )


def test_a_finished_run_is_not_done_again(dataset, tmp_path):
    path = train(RECIPE, dataset, tmp_path)
    before = path.read_bytes()
    path.unlink()
    (report,) = fit(RECIPE, dataset, tmp_path)
    assert report.step == report.total_steps == 40
    assert path.read_bytes() == before


CHILD = """
import sys, torch
from dn_core.training.data.clean_images import load_clean_images
from dn_core.training.loop import fit
from dn_core.training.recipes import load_recipe
torch.set_num_threads(1)
recipe, folder, out, precision = sys.argv[1:]
dataset = load_clean_images(folder, smallest=16)
for step in fit(load_recipe(recipe), dataset, out, precision=precision, save_seconds=0):
    print(step.step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(precision, folder, tmp_path):
    if precision == "bfloat16" and not bfloat16_helps("cpu"):
        pytest.skip("bfloat16 is only emulated here")
    path, out, rng = tmp_path / "tiny.toml", tmp_path / "killed", random.Random(precision)
    path.write_text(
        TOML.replace("steps = 300", "steps = 600")
    )  # more than four short lives get through
    recipe = load_recipe(path)
    command = [sys.executable, "-c", CHILD, str(path), str(folder), str(out), precision]
    stopped = []
    for _ in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            seen = [int(child.stdout.readline()) for _ in range(rng.randint(1, 3))]
            time.sleep(rng.random() * 0.05)
            child.send_signal(signal.SIGKILL)
        _, state = state_of(out)  # whole, however the process ended
        assert (
            seen[-1] <= state["step"] < recipe.steps
        )  # saved every 0 seconds: nothing that was reported is lost
        stopped.append(state["step"])
    assert stopped == sorted(set(stopped))
    resumed = train(recipe, load_clean_images(folder, smallest=16), out, precision=precision)
    whole = train(
        recipe, load_clean_images(folder, smallest=16), tmp_path / "whole", precision=precision
    )
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_stop_amid_a_change_of_the_weights_keeps_what_was_saved_before(dataset, tmp_path):
    """Ctrl-C after one of the two optimizers has changed its weights.

    That half step must not become the state.
    """
    expected = train(RECIPE, dataset, tmp_path / "whole", precision="float32")
    run_some(RECIPE, dataset, tmp_path / "parts", 1, precision="float32")
    saved = (tmp_path / "parts" / "state.safetensors").read_bytes()
    steps_of_muon = 0

    def interrupt(optimizer, *_):
        nonlocal steps_of_muon
        steps_of_muon += isinstance(optimizer, Muon)
        if steps_of_muon == 3:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(fit(RECIPE, dataset, tmp_path / "parts", precision="float32"))
    finally:
        hook.remove()
    assert (tmp_path / "parts" / "state.safetensors").read_bytes() == saved
    assert (
        train(RECIPE, dataset, tmp_path / "parts", precision="float32").read_bytes()
        == expected.read_bytes()
    )


@pytest.mark.parametrize(("save_seconds", "saved"), [(0, 20), (3600, 0)])
def test_the_state_is_saved_as_often_as_asked(save_seconds, saved, dataset, tmp_path):
    steps = fit(change(epoch=1000), dataset, tmp_path, save_seconds=save_seconds)
    assert next(steps).step == 20
    assert state_of(tmp_path)[1]["step"] == saved
    steps.close()
    assert state_of(tmp_path)[1]["step"] == 20


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lr": 1e-3}, "recipe.lr"),
        ({"phases": (Phase(60, 2, 16),)}, "recipe.phases"),
        ({"noise": ({"kind": "gaussian", "sigma": 30},)}, "recipe.noise"),
        ({"optimizer": "adamw"}, "recipe.optimizer"),
        ({"seed": 4}, "recipe.seed"),
    ],
)
def test_a_run_of_another_recipe_is_refused_unless_allowed(settings, key, dataset, tmp_path):
    run_some(RECIPE, dataset, tmp_path, 1)
    other = change(**settings)
    with pytest.raises(ValueError, match=f"{key}: .* there, .* here"):
        next(fit(other, dataset, tmp_path))
    with pytest.raises(ValueError, match=key):
        next(fit(other, dataset, tmp_path, allow=("recipe.name",)))
    reports = list(fit(other, dataset, tmp_path, allow=(key,)))
    assert reports[0].step == 20
    assert reports[-1].step == other.steps


def test_every_key_that_differs_is_named(dataset, pictures, tmp_path):
    run_some(RECIPE, dataset, tmp_path, 1, precision="float32")
    before = (tmp_path / "state.safetensors").read_bytes()
    other = change(lr=1e-3, ema=0.5)
    with pytest.raises(ValueError, match="another training run") as caught:
        next(
            fit(
                other,
                CleanImageDataset(tuple(pictures[:2])),
                tmp_path,
                precision="bfloat16",
                stage=1,
            )
        )
    for key in ("recipe.lr", "recipe.ema", "data", "precision", "stage"):
        assert f"{key}: " in str(caught.value)
    assert "recipe.noise" not in str(caught.value)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_state_of_another_network_is_refused_even_if_allowed(dataset, tmp_path):
    run_some(RECIPE, dataset, tmp_path, 1)
    for network in (half_resolution_config(16, 1), half_resolution_config(8, 2)):
        with pytest.raises(ValueError, match="weights of another network"):
            next(fit(change(network=network), dataset, tmp_path, allow=("recipe.network",)))


@pytest.mark.parametrize(
    "name", ["optimizer0.0.momentum", "optimizer1.7.exp_avg", "optimizer1.x.exp_avg"]
)
def test_optimizer_state_that_does_not_fit_is_refused(name, dataset, tmp_path):
    run_some(RECIPE, dataset, tmp_path, 1)
    tensors, state = state_of(tmp_path)
    del state["sha256"]  # as of a version that wrote none
    metadata = {"dn_resnet_training": json.dumps(state)}
    write_tensors(
        tmp_path / "state.safetensors", {**tensors, name: np.zeros((3, 3), np.float32)}, metadata
    )
    message = (
        "(of the state must have shape|the state must be of this optimizer, got).*Start afresh"
    )
    with pytest.raises(ValueError, match=message):
        next(fit(RECIPE, dataset, tmp_path))


@pytest.mark.parametrize(("format", "found"), [(None, 1), (1, 1), (3, 3), (True, True)])
def test_a_state_of_another_format_is_refused_and_left(format, found, dataset, tmp_path):
    run_some(RECIPE, dataset, tmp_path, 1)
    tensors, state = state_of(tmp_path)
    del state["sha256"], state["format"]
    state |= {} if format is None else {"format": format}
    path = tmp_path / "state.safetensors"
    write_tensors(path, tensors, {"dn_resnet_training": json.dumps(state)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"must be of format 2, got format {found}: .*resumed"):
        next(fit(RECIPE, dataset, tmp_path))
    assert path.read_bytes() == before


def test_what_differs_in_a_table_is_named_by_its_keys():
    mine = {"recipe": {"network": {"blocks": 3, "entry": 9}}, "data": "a"}
    theirs = {"recipe": {"network": {"blocks": 5, "entry": 9}}, "data": "a"}
    assert differences(mine, theirs, ()) == [
        "recipe.network: {'blocks': 5} there, {'blocks': 3} here"
    ]


@pytest.mark.parametrize("where", ["weights", "numbers"])
def test_a_state_with_another_bit_than_was_written_is_refused_and_left(where, dataset, tmp_path):
    run_some(RECIPE, dataset, tmp_path, 1)
    path = tmp_path / "state.safetensors"
    content = bytearray(path.read_bytes())
    number = b'\\"step\\": '
    content[-1 if where == "weights" else content.index(number) + len(number)] = ord("9")
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError,
        match=f"{path} is damaged, its content is not what was written. .* remove it to start "
        "afresh",
    ):
        next(fit(RECIPE, dataset, tmp_path))
    assert path.read_bytes() == content


def test_what_is_no_state_is_refused(dataset, tmp_path):
    model = train(RECIPE, dataset, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "state.safetensors").write_bytes(model.read_bytes())
    with pytest.raises(ValueError, match="must be a training state"):
        next(fit(RECIPE, dataset, tmp_path / "other"))
    (tmp_path / "other" / "state.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="not a safetensors file"):
        next(fit(RECIPE, dataset, tmp_path / "other"))


@pytest.mark.parametrize(
    ("sigma", "what"),
    [
        (1e30, "the loss must be finite, got inf"),
        # Here the loss itself is still a number.
        (1e15, "the gradient's square must be finite, got inf"),
    ],
)
def test_what_is_not_finite_stops_the_run_with_the_last_good_state(sigma, what, dataset, tmp_path):
    recipe = change(loss_weight="none")
    run_some(recipe, dataset, tmp_path, 1, precision="float32")
    before, state = state_of(tmp_path)
    wild = change(recipe, noise=({"kind": "gaussian", "sigma": sigma},))
    with (
        pytest.warns(
            RuntimeWarning,
            match=f"{what} at step 10; resuming from step 10 at half the learning rate",
        ),
        pytest.raises(FloatingPointError, match=rf"{what} at step 10\. Lower lr"),
    ):
        list(fit(wild, dataset, tmp_path, precision="float32", allow=("recipe.noise",)))
    after, later = state_of(tmp_path)
    assert (state["step"], state["rate"]) == (10, 1.0)
    assert (later["step"], later["rate"]) == (10, 0.5)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert not (tmp_path / "tiny.safetensors").exists()


def test_one_bad_batch_halves_the_rate_and_the_run_ends(dataset, tmp_path, monkeypatch):
    """The loss of one step becomes NaN: the run resumes from what it saved and does not stop."""
    real, calls = trainer_module._loss, []

    def with_nan(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 15 else 1.0)

    monkeypatch.setattr(trainer_module, "_loss", with_nan)
    with pytest.warns(RuntimeWarning, match="at step 14; resuming from step 10 at half"):
        reports = list(fit(RECIPE, dataset, tmp_path, precision="float32"))
    assert reports[-1].path.exists()
    assert state_of(tmp_path)[1]["rate"] == 0.5
    assert len(calls) == RECIPE.steps + 5


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files")
def test_a_full_disk_leaves_the_previous_state_whole(folder, tmp_path):
    code = (
        "import os, resource, sys\n"
        "from dn_core.training.data.clean_images import load_clean_images\n"
        "from dn_core.training.loop import fit\n"
        "from dn_core.training.recipes import load_recipe\n"
        "recipe, folder, out = sys.argv[1:]\n"
        "dataset = load_clean_images(folder, smallest=16)\n"
        "steps = fit(load_recipe(recipe), dataset, out, save_seconds=0)\n"
        "next(steps)\n"
        "before = open(out + '/state.safetensors', 'rb').read()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try: next(steps)\n"
        "except OSError as error: print(error.errno)\n"
        "print(before == open(out + '/state.safetensors', 'rb').read(), sorted(os.listdir(out)))\n"
    )
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    command = [sys.executable, "-c", code, str(path), str(folder), str(tmp_path / "run")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.split("\n")[:2] == ["27", "True ['state.safetensors', 'training.lock']"], (
        done.stderr
    )  # 27: EFBIG
    resumed = train(load_recipe(path), load_clean_images(folder, smallest=16), tmp_path / "run")
    assert (
        resumed.read_bytes()
        == train(
            load_recipe(path), load_clean_images(folder, smallest=16), tmp_path / "whole"
        ).read_bytes()
    )


@pytest.mark.skipif(
    not os.path.exists("/proc/cpuinfo"), reason="the CPU's abilities are read from Linux"
)
def test_bfloat16_is_for_cpus_with_units_for_it():
    with open("/proc/cpuinfo") as file:
        abilities = {word for line in file if line.startswith("flags") for word in line.split()}
    assert bfloat16_helps("cpu") == bool(abilities & {"amx_tile", "avx512_bf16"})


def test_bfloat16_is_not_for_other_devices():
    assert not bfloat16_helps("mps")
