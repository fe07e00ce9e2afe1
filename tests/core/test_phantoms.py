"""Made-up fluorescence images: what they are, and training on them with or without other images."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import j1
from typer.testing import CliRunner

from dn_core import train
from dn_core.checkpoints import load_checkpoint
from dn_core.cli import app
from dn_core.network_config import half_resolution_config
from dn_core.noise.parameters import Uniform
from dn_core.training import phantom, phantom_kinds, write_phantoms
from dn_core.training.data.clean_images import CleanImageDataset, load_clean_images
from dn_core.training.data.phantom_images import POOL, PhantomImages
from dn_core.training.data.target_blur import blurred_targets
from dn_core.training.data.training_data import SyntheticNoiseData
from dn_core.training.field_of_view import Draws, FieldOfView, point_spread_cutoff
from dn_core.training.phantom_files import phantom_files
from dn_core.training.recipes import Phase, Recipe, load_recipe
from dn_core.training.stages import train_stages

RECIPE = Recipe(
    "made-up",
    half_resolution_config(8, 1),
    ({"kind": "gaussian", "sigma": 25},),
    (Phase(6, 2, 16), Phase(4, 1, 32)),
    warm_up=1,
    epoch=5,
)
ROUNDING = 1 / 65535 / math.sqrt(12)  # standard deviation of what rounding to 16 bits adds
TOML = """
name = "made-up"
phantoms = {phantoms}
target_blur = {target_blur}

[network]
family = "half-resolution"
channels = 8
blocks = 1

[[noise]]
kind = "gaussian"
sigma = 25

[[phase]]
steps = 2
batch = 2
patch = 16
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def sha256(*images):
    pixels = [np.rint(image.astype(np.float64) * 65535).astype("<u2").tobytes() for image in images]
    return hashlib.sha256(b"".join(pixels)).hexdigest()


def files_dataset(held_out=True, value=77):
    """Flat images, so that patches from them can be told from made-up ones."""
    flat = [np.full((64, 64), value + number, np.uint8) for number in range(3)]
    return CleanImageDataset(tuple(flat[:2]), (flat[2],) if held_out else ())


def weights(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", phantom_kinds())
@pytest.mark.parametrize("size", [16, 17, 61, 128])
def test_each_kind_fills_0_to_1_at_any_size(kind, size):
    for seed in range(3):
        image = phantom(size, seed=seed, kind=kind)
        assert image.shape == (size, size)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() == 1
        assert image.std() > 1e-3


@pytest.mark.parametrize("kind", phantom_kinds())
@pytest.mark.parametrize("point_spread", [2.1, 3.5])
def test_there_is_no_noise_beyond_the_optical_cutoff(kind, point_spread):
    size = 128
    image = phantom(size, seed=5, kind=kind, point_spread=point_spread).astype(np.float64)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    beyond = frequency > point_spread_cutoff(point_spread)
    left = np.fft.ifft2(np.where(beyond, np.fft.fft2(image), 0)).real.std()
    assert left < 1.1 * ROUNDING * math.sqrt(beyond.mean())


@pytest.mark.parametrize("point_spread", [1.0, 2.0, 3.5])
def test_a_point_looks_like_an_airy_disk_of_the_stated_width(point_spread):
    view = FieldOfView(64, Draws(0), point_spread)
    point = np.zeros((64, 64))
    point[32, 32] = 1
    seen = view.seen(point)[32, 32:48]
    # (2 J1(x) / x)^2 has half its maximum at x = 1.61634.
    x = 1.61634 * 2 * np.arange(1, 16) / point_spread
    expected = np.concatenate([[1.0], (2 * j1(x) / x) ** 2])
    np.testing.assert_allclose(seen / seen[0], expected, atol=6e-3)


def test_dye_is_neither_lost_nor_made():
    view = FieldOfView(32, Draws(1), 1.5)
    rows, columns = np.array([-0.3, 31.9, 5.5]), np.array([40.2, 0.0, 7.25])
    density = view.deposited(rows, columns, np.array([1.0, 2.0, 3.0]))
    assert density.sum() == pytest.approx(6)
    assert view.blurred(density, 3.0).sum() == pytest.approx(6)
    centre = (density[4:8, 5:10] * np.arange(5, 10)).sum() / 3
    assert centre == pytest.approx(7.25)


@pytest.mark.parametrize("kind", phantom_kinds())
def test_no_edge_shows_where_an_image_continues(kind):
    inside, across = [], []
    for seed in range(8):
        image = phantom(96, seed=seed, kind=kind, point_spread=3.0)
        for turned in (image, image.T):
            inside.append(np.abs(np.diff(turned, axis=0)).mean())
            across.append(np.abs(turned[0] - turned[-1]).mean())
    assert np.mean(across) < 1.6 * np.mean(inside)


def test_the_same_seed_gives_the_same_pixels_everywhere():
    """Whatever was made before, in any process, on any machine and with any version of numpy."""
    code = (
        "import hashlib, numpy as np\n"
        "from dn_core.training.phantoms import phantom, phantom_kinds\n"
        "phantom(40, seed=99)\n"
        "made = [phantom(48, seed=7, kind=kind) for kind in reversed(phantom_kinds())][::-1]\n"
        "made = [np.rint(a.astype(np.float64) * 65535).astype('<u2').tobytes() for a in made]\n"
        "print(hashlib.sha256(b''.join(made)).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    here = sha256(*(phantom(48, seed=7, kind=kind) for kind in phantom_kinds()))
    assert there == here
    # A change of these pixels needs another PHANTOMS_VERSION.
    assert here == "4298a235ea4aee298e5c7fb5c089d06e39519b7eb7b052aa469c35408e85919d"


def test_kinds_and_seeds_differ():
    images = [phantom(32, seed=seed, kind=kind) for seed in (0, 1) for kind in phantom_kinds()]
    images.append(phantom(32, seed=(0, 1), kind="scene"))
    assert all(not np.array_equal(one, two) for one, two in itertools.combinations(images, 2))
    assert np.array_equal(phantom(32, seed=0), phantom(32, seed=0, kind="scene"))


def test_carpets_of_points_have_no_direction_and_fibres_have_one():
    """The coherence of the structure tensor, weighted by gradient energy."""
    from scipy import ndimage

    def coherence(image):
        rows, columns = (ndimage.sobel(ndimage.gaussian_filter(image, 1), axis) for axis in (0, 1))
        rr, cc, rc = (
            ndimage.gaussian_filter(product, 4)
            for product in (rows * rows, columns * columns, rows * columns)
        )
        return np.sqrt((rr - cc) ** 2 + 4 * rc**2).sum() / (rr + cc).sum()

    found = {
        kind: np.mean(
            [coherence(phantom(128, seed=seed, kind=kind).astype(float)) for seed in range(8)]
        )
        for kind in ("puncta", "filaments")
    }
    assert found["puncta"] < 0.45 < 0.6 < found["filaments"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": 0}, ValueError, r"size must be 16\.\.8192 pixels, got 0: .* Change size\."),
        ({"size": 15}, ValueError, "got 15: smaller made-up images show no structure"),
        ({"size": 8193}, ValueError, r"size must be 16\.\.8192 pixels, got 8193\. Change size\."),
        ({"size": 64.0}, TypeError, "size must be a whole number of pixels, got 64.0"),
        ({"kind": "nuclie"}, ValueError, "kind must be one of .*got 'nuclie'. Did you mean nuclei"),
        ({"point_spread": 0.5}, ValueError, r"must be 1\.\.3\.5 pixels .*, got 0\.5"),
        ({"point_spread": math.nan}, ValueError, "got nan"),
        ({"point_spread": "2"}, TypeError, "point_spread must be a number of pixels, got '2'"),
        ({"point_spread": True}, TypeError, "point_spread must be a number of pixels, got True"),
        ({"seed": -1}, ValueError, "seed must be 0 or more, got -1"),
        ({"seed": (1, 2.0)}, TypeError, r"seed must be a whole number, got \(1, 2.0\)"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(settings, error, message):
    with pytest.raises(error, match=message):
        phantom(**{"size": 32, "seed": 0} | settings)


# Files


def test_files_have_the_same_pixels_and_say_kind_and_seed(tmp_path):
    result = invoke(
        "phantoms", tmp_path / "out", "--count", 4, "--size", 40, "--seed", 3, "--kind", "puncta"
    )
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "phantoms.json").read_text())
    assert [entry["kind"] for entry in manifest["images"]] == ["puncta"] * 4
    for entry in manifest["images"]:
        pixels = np.asarray(Image.open(tmp_path / "out" / entry["file"]))
        expected = phantom(40, seed=tuple(entry["seed"]), kind=entry["kind"])
        assert np.array_equal(pixels, np.rint(expected.astype(np.float64) * 65535))
    assert "anybody may use them" in (tmp_path / "out" / "README.md").read_text()
    assert load_clean_images(tmp_path / "out", smallest=40).count == 3


def test_settings_may_be_numbers_of_numpy(tmp_path):
    plain = write_phantoms(tmp_path / "plain", 1, 16, 3, point_spread=2.0)
    numpy = write_phantoms(
        tmp_path / "numpy", np.int64(1), np.uint8(16), np.int64(3), point_spread=np.float32(2)
    )
    for file in plain.iterdir():
        assert (numpy / file.name).read_bytes() == file.read_bytes()


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    writing = phantom_files(tmp_path / "out", 5, 32)
    next(writing)
    writing.close()
    assert os.listdir(tmp_path) == []


def test_files_that_come_while_it_writes_are_kept(tmp_path):
    writing = phantom_files(tmp_path / "out", 1, 32)
    next(writing)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="the folder must be new or empty"):
        list(writing)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_a_folder_with_files_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = invoke("phantoms", tmp_path, "--count", 1, "--size", 32)
    assert result.exit_code == 1
    assert "the folder must be new or empty. Choose another one" in result.stderr
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--count", 0), "count must be 1..100000 images, got 0. Change count."),
        (("--size", 0), "size must be 16..8192 pixels, got 0"),
        (("--kind", "mitocondria"), "Did you mean mitochondria?"),
    ],
)
def test_the_command_refuses_in_words_before_it_writes(tmp_path, options, message):
    result = invoke("phantoms", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert os.listdir(tmp_path) == []


def test_an_image_that_memory_cannot_hold_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("dn_core.training.phantom_files.available_memory", lambda: 10**9)
    with pytest.raises(MemoryError, match=r"an image of 4096 pixels needs .* Use a smaller size\."):
        write_phantoms(tmp_path / "out", 1, 4096)
    assert os.listdir(tmp_path) == []


def test_count_and_seed_must_be_whole_numbers(tmp_path):
    with pytest.raises(TypeError, match=r"count must be a whole number, got 2\.5"):
        write_phantoms(tmp_path / "out", 2.5)
    with pytest.raises(TypeError, match=r"one whole number, got \(1, 2\)"):
        write_phantoms(tmp_path / "out", 2, seed=(1, 2))


# The pool


def test_new_images_take_the_place_of_the_oldest_and_resuming_finds_the_same():
    walked = PhantomImages(seed=4, steps=2)
    for step in range(6):
        last = walked.at(step)
        patches = last.patches(3, 24, np.random.default_rng(step))
    fresh = PhantomImages(seed=4, steps=2).at(5).patches(3, 24, np.random.default_rng(5))
    assert last.first == 2
    for one, two in zip(patches, fresh, strict=True):
        assert np.array_equal(one, two)
    numbers = last.patch_locations(2000, 24, np.random.default_rng(0)).image
    assert set(numbers) == set(range(2, 2 + POOL))


def test_each_worker_has_images_of_its_own():
    images = PhantomImages(seed=4, steps=1000)
    patches = [
        images.at(3, rank, 2).patches(2, 24, np.random.default_rng(0))[0] for rank in (0, 1, 0)
    ]
    assert np.array_equal(patches[0], patches[2])
    assert not np.array_equal(patches[0], patches[1])


def test_patches_cut_on_a_device_are_the_same():
    device = torch.device("cpu")
    images = PhantomImages(seed=1, steps=1)
    for step in (0, 1, POOL, 0):  # at step POOL all places have other images
        at = images.at(step)
        here = at.patches(3, 16, np.random.default_rng(step))
        there = at.patches_on(device, 3, 16, np.random.default_rng(step))
        for one, two in zip(here, there, strict=True):
            np.testing.assert_allclose(one, two.numpy(), atol=1e-7)


def test_the_mean_is_that_of_the_image():
    patches, means = PhantomImages(seed=2).patches(2, 256, np.random.default_rng(0))
    np.testing.assert_allclose(means[:, 0, 0, 0], patches.mean(axis=(1, 2, 3)), rtol=1e-5)


# Mixing


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_made_up_patches_is_that_of_the_recipe(share):
    recipe = dataclasses.replace(RECIPE, phantoms=share)
    training_data, phase = SyntheticNoiseData.of(recipe, files_dataset()), Phase(1, 5, 16)
    counts = []
    for step in range(40):
        at = training_data.at(step, 0, 1)
        batch = at.batch(phase, np.random.default_rng(step), torch.device("cpu"))
        assert batch.target.shape == batch.noisy.image.shape == (5, 1, 16, 16)
        assert batch.means.shape == (5, 1, 1, 1)
        counts.append(int((batch.target.std(dim=(1, 2, 3)) > 0).sum()))
    assert np.mean(counts) == pytest.approx(5 * share, abs=0.25)


def test_the_score_is_from_real_images_where_there_are_some():
    recipe = dataclasses.replace(RECIPE, phantoms=0.5)
    real = SyntheticNoiseData.of(recipe, files_dataset())
    assert real.held_out is real.dataset.held_out
    made_up = SyntheticNoiseData.of(recipe, files_dataset(held_out=False)).held_out
    assert len(made_up) == 16
    assert made_up[0].shape == (256, 256)
    training = {PhantomImages.of(recipe, held_out=False)._image(0).tobytes()}
    assert not training & {image.tobytes() for image in made_up}


def test_the_hash_of_the_data_tells_made_up_images():
    plain = SyntheticNoiseData.of(RECIPE, files_dataset())
    mixed = SyntheticNoiseData.of(dataclasses.replace(RECIPE, phantoms=0.5), files_dataset())
    assert plain.fingerprint() == plain.dataset.fingerprint() != mixed.fingerprint()
    assert PhantomImages(seed=0).fingerprint() != PhantomImages(seed=1).fingerprint()
    assert mixed.describe()["phantoms"] == 0.5
    assert "phantoms" not in plain.describe()


def test_a_recipe_without_the_keys_has_the_settings_of_before():
    assert not {"phantoms", "target_blur"} & RECIPE.as_dict().keys()
    keys = dataclasses.replace(RECIPE, phantoms=0.5, target_blur={"uniform": [0.7, 1.5]}).as_dict()
    assert keys["phantoms"] == 0.5
    assert keys["target_blur"] == {"uniform": [0.7, 1.5]}


# Blur of targets


def test_blur_leaves_the_noise_that_a_gaussian_leaves():
    noise = torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for width in (0.7, 1.5):
        inner = blurred_targets(noise, width, torch.Generator().manual_seed(0))[..., 8:-8, 8:-8]
        squares = np.exp(-(np.arange(-20, 21) ** 2) / (2 * width**2))
        expected = ((squares / squares.sum()) ** 2).sum()  # of one axis; of two it is squared
        assert inner.std().item() == pytest.approx(expected, rel=0.02)


def test_each_patch_has_a_blur_of_its_own_and_none_leaves_it_as_it_is():
    patches = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blurred_targets(patches, 0.0, torch.Generator()), patches)
    same = torch.cat([patches[:1]] * 4)
    found = blurred_targets(same, Uniform(0.5, 1.5), torch.Generator().manual_seed(1))
    assert all(not torch.equal(found[0], other) for other in found[1:])
    assert torch.allclose(found.mean(dim=(1, 2, 3)), same.mean(dim=(1, 2, 3)), atol=0.01)


def test_only_patches_from_files_are_blurred():
    random = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    dataset, phase, cpu = CleanImageDataset((random,)), Phase(1, 4, 16), torch.device("cpu")
    blurry = dataclasses.replace(RECIPE, target_blur=1.0)
    plain, less = (
        SyntheticNoiseData.of(recipe, dataset).batch(phase, np.random.default_rng(0), cpu)
        for recipe in (RECIPE, blurry)
    )
    assert less.target.std() < 0.4 * plain.target.std()
    alone = [
        SyntheticNoiseData.of(recipe, PhantomImages(seed=1))
        .batch(phase, np.random.default_rng(0), cpu)
        .target
        for recipe in (RECIPE, blurry)
    ]
    assert torch.equal(*alone)


@pytest.mark.parametrize(
    ("phantoms", "target_blur", "message"),
    [
        ("1.5", "0", r"phantoms must be a number in 0\.0\.\.1\.0, got 1\.5"),
        ('"half"', "0", "phantoms must be a number .*, got 'half'"),
        ("0", "5", r"target_blur must be in 0\.\.4, got 5"),
        ("0", "-1", "target_blur must be a finite non-negative number, got -1"),
        ("0", "{ uniform = [2, 1] }", "target_blur must have low <= high"),
        ("0", "{ normal = [0, 1] }", "target_blur must be a number, {uniform"),
        ("0", '"much"', "target_blur must be a table or a number of pixels, got 'much'"),
    ],
)
def test_recipes_with_such_keys_out_of_range_are_refused(tmp_path, phantoms, target_blur, message):
    path = tmp_path / "made-up.toml"
    path.write_text(TOML.format(phantoms=phantoms, target_blur=target_blur))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_patches_larger_than_made_up_images_are_refused():
    recipe = dataclasses.replace(RECIPE, phases=(Phase(1, 1, 300),))
    message = "patches must be at most 256 pixels where images are made up, got 300"
    with pytest.raises(ValueError, match=message):
        train(recipe, "phantoms", "unused")
    large = CleanImageDataset((np.zeros((400, 400), np.uint8),))
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(recipe, phantoms=0.5), large, "unused")


# Training


def test_training_without_any_data_and_resuming_give_the_same_model(tmp_path):
    whole = train(RECIPE, "phantoms", tmp_path / "whole", precision="float32")
    images = PhantomImages.of(RECIPE, held_out=True)
    steps = train_stages(RECIPE, images, tmp_path / "parts", precision="float32", save_seconds=0)
    next(steps)
    steps.close()
    parts = train(RECIPE, "phantoms", tmp_path / "parts", precision="float32")
    assert weights(whole) == weights(parts)
    card = load_checkpoint(whole).card
    assert card.data["phantoms"] == 1.0
    assert card.data["images"] == 0
    assert card.data["held_out"] == 16
    assert card.scores["held_out_psnr"] > 10


def test_training_on_a_mixture_and_resuming_give_the_same_model(tmp_path):
    recipe = dataclasses.replace(RECIPE, phantoms=0.5, target_blur={"uniform": [0.7, 1.5]})
    dataset = files_dataset()
    whole = train(recipe, dataset, tmp_path / "whole", precision="float32")
    steps = train_stages(recipe, dataset, tmp_path / "parts", precision="float32")
    next(steps)
    steps.close()
    assert weights(whole) == weights(
        train(recipe, dataset, tmp_path / "parts", precision="float32")
    )


def test_another_seed_is_another_run(tmp_path):
    train(RECIPE, "phantoms", tmp_path, precision="float32")
    other = PhantomImages.of(dataclasses.replace(RECIPE, seed=1), held_out=True)
    with pytest.raises(ValueError, match="another"):
        train(RECIPE, other, tmp_path, precision="float32")


def test_the_command_trains_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made-up.toml").write_text(TOML.format(phantoms="0", target_blur="0"))
    result = invoke("train", "made-up.toml", "--data", "phantoms", "--out", "models")
    assert result.exit_code == 0, result.stderr
    assert "made-up: made-up images, 16 held out" in result.stderr
    assert (tmp_path / "models" / "made-up.safetensors").is_file()


def test_the_command_says_that_made_up_images_are_scored_where_no_others_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_phantoms("clean", 3, 32)
    (tmp_path / "mixed.toml").write_text(TOML.format(phantoms="0.4", target_blur="0"))
    result = invoke("train", "mixed.toml", "--data", "clean", "--out", "models")
    assert result.exit_code == 0, result.stderr
    said = "3 images (made-up ones for 40% of the patches), 16 made-up ones held out"
    assert said in result.stderr


def test_a_folder_of_that_name_is_told_from_made_up_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_phantoms("phantoms", 2, 32)
    with pytest.warns(UserWarning, match="the folder phantoms is not read. Give ./phantoms"):
        train(RECIPE, "phantoms", "made-up", precision="float32")
    path = train(RECIPE, "./phantoms", "files", precision="float32")
    assert load_checkpoint(path).card.data["images"] == 2
