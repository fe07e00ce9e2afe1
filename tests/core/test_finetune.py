"""A model adapted to user images: better on parts never trained on, or the one it was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from skimage import data
from small_models import small_model
from typer.testing import CliRunner

import dn_core
from dn_core.checkpoints import Card, Checkpoint, load_checkpoint, save_checkpoint
from dn_core.cli import app
from dn_core.inference.model import load_model
from dn_core.models import registry
from dn_core.network_config import levels_config
from dn_core.networks import DnResNet
from dn_core.noise import Detector, Gaussian, Jpeg, Poisson, PoissonGaussian, Uniform
from dn_core.training.data.patches import FinetunePatches
from dn_core.training.finetuning import finetune_steps, images_from
from dn_core.training.recipes import Phase
from dn_core.training.trainer import arrays_of

OFFSET, GAIN, SIGMA = 1000, 10, 150.0
WIDE = (slice(100, 180), slice(100, 228))
QUICK = {"steps": 60, "lr": 1e-2}
posix = pytest.mark.skipif(os.name == "nt", reason="signals and pipes as POSIX has them")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clean():
    """16-bit counts with an offset, as a camera gives them."""
    pictures = (data.camera, data.coins, data.moon, data.camera)
    parts = (WIDE, WIDE, WIDE, (slice(200, 280), slice(200, 328)))
    return np.stack(
        [
            picture()[part].astype(np.uint16) * GAIN + OFFSET
            for picture, part in zip(pictures, parts, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def recorded(clean):
    """Four recordings of each scene."""
    rng = np.random.default_rng(1)
    return np.stack(
        [
            (clean + rng.normal(0, SIGMA, clean.shape)).round().clip(0).astype(np.uint16)
            for _ in range(4)
        ]
    )


@pytest.fixture
def start(tmp_path):
    return saved_model(tmp_path)


def saved_model(folder, kind="residual"):
    """A small network with random weights: a poor denoiser."""
    path = folder / f"{kind.replace(' ', '-')}.safetensors"
    save_checkpoint(path, small_model(kind).checkpoint)
    return path


def psnr(image, reference, white):
    return -10 * np.log10(
        np.mean((np.asarray(image, np.float64) - reference) ** 2)
    ) + 20 * np.log10(white)


def card_of(path):
    return load_checkpoint(path).card


def run_some(images, out, stop_at, **options):
    """A training closed once it has done `stop_at` steps."""
    steps = finetune_steps(images, out, **options)
    for step in steps:
        if step.step >= stop_at:
            steps.close()
    return step


# What it learns from


@pytest.mark.parametrize("kind", ["pairs", "repeats", "noise model"])
def test_each_material_makes_a_poor_model_better(kind, clean, recorded, start, tmp_path):
    training_data = {
        "pairs": {"noisy": recorded[0], "clean": clean},
        "repeats": {"repeats": recorded},
        "noise model": {"clean": clean, "noise": Gaussian(SIGMA)},
    }[kind]
    path = dn_core.finetune(tmp_path, **training_data, start=start, name="own", **QUICK)
    scores = card_of(path).scores
    assert path == tmp_path / "own.safetensors"
    assert scores["held_out_psnr"] > scores["held_out_psnr_before"] + 1
    new = np.random.default_rng(2).normal(clean[1], SIGMA).astype(np.float32)
    before, after = (
        psnr(dn_core.denoise(new, model=model), clean[1], 2550) for model in (start, path)
    )
    assert after > max(before, psnr(new, clean[1], 2550)) + 1


def test_repeats_may_lie_along_any_axis_or_in_a_folder(recorded, tmp_path):
    one_scene = recorded[:, 0]
    for index, repeat in enumerate(one_scene):
        tifffile.imwrite(tmp_path / f"{index}.tif", repeat)
    np.save(tmp_path / "stack.npy", np.moveaxis(one_scene, 0, 2))
    expected = images_from(repeats=one_scene).fingerprint()
    assert images_from(repeats=np.moveaxis(one_scene, 0, 1), axis=1).fingerprint() == expected
    assert images_from(repeats=tmp_path).fingerprint() == expected
    assert images_from(repeats=tmp_path / "stack.npy", axis=-1).fingerprint() == expected


def test_pairs_in_folders_are_matched_by_name(clean, recorded, tmp_path):
    for folder, stack in (("noisy", recorded[0]), ("clean", clean)):
        (tmp_path / folder).mkdir()
        for index, plane in enumerate(stack):
            tifffile.imwrite(
                tmp_path / folder / f"scene {index}.{'tif' if folder == 'noisy' else 'tiff'}", plane
            )
    found = images_from(noisy=tmp_path / "noisy", clean=tmp_path / "clean")
    assert found.fingerprint() == images_from(noisy=recorded[0], clean=clean).fingerprint()


def test_a_clean_image_of_another_scale_is_brought_to_the_noisy_ones(clean, recorded):
    brighter = clean.astype(np.float32) * 2 + 300
    with pytest.warns(
        UserWarning,
        match=r"4 of 4 clean images differ .* gain \(0\.\d+ to 0\.\d+\) and an offset \(-.*\)",
    ):
        found = images_from(noisy=recorded[0], clean=brighter)
    whole = (slice(None), slice(None))
    for scene, expected in zip(found.scenes, clean, strict=True):
        np.testing.assert_allclose(scene.target(whole), expected, atol=60)
    assert found.describe()["matched"] == 4


@pytest.mark.parametrize(
    ("noise", "std"),
    [
        (Gaussian(SIGMA), lambda photons: np.full_like(photons, SIGMA)),
        (Poisson(50), lambda photons: np.sqrt(photons / 50) * 2000),
        (
            {"kind": "poisson-gaussian", "sigma": 3, "peak": 50},
            lambda photons: np.sqrt(photons / 50 + (3 / 50) ** 2) * 2000,
        ),
        (PoissonGaussian(3, 50), lambda photons: np.sqrt(photons / 50 + (3 / 50) ** 2) * 2000),
        (
            Detector(gain=21, read_noise=35, offset=950),
            lambda white: np.sqrt(21 * (white * 2000 + 50) + 35**2),
        ),
        (
            {"kind": "detector", "gain": 21, "read_noise": 35, "row_noise": 20, "step": 50},
            lambda white: np.sqrt(21 * (white * 2000 + 1000) + 35**2 + 20**2 + 50**2 / 12),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["residual", "direct"])
def test_noise_is_put_on_in_the_images_own_units(noise, std, kind, clean):
    """Sigma and a detector in grey levels; a peak is the count at white (3000), none at black.

    For networks that subtract the mean, and others.
    """
    images = images_from(clean=clean, noise=noise, black=1000, white=3000)
    lessons = FinetunePatches(images, small_model(kind).config)
    target, noisy, _ = lessons.batch(
        Phase(1, 400, 32), np.random.default_rng(0), torch.device("cpu")
    )
    grey = (target.numpy() - lessons.shift) * 2000 + 1000
    assert grey.min() > 999
    expected = std((grey - 1000) / 2000)
    found = (noisy.image - target).numpy() * 2000
    assert found.std() == pytest.approx(np.sqrt((expected**2).mean()), rel=0.02)
    np.testing.assert_allclose(
        noisy.std.expand_as(target).numpy() * 2000, expected, rtol=1e-3, atol=1e-2
    )


def test_images_darker_than_a_detector_without_light_are_reported(clean):
    detector = Detector(gain=2, read_noise=3, offset=100)
    dark = clean.astype(np.float32) / 25  # grey levels 40 to 142
    with pytest.warns(UserWarning, match=r"\d+% of the pixels are darker .*level 100\).*offset"):
        images_from(clean=dark, noise=detector)
    images_from(clean=dark + 100, noise=detector)  # without a warning


@pytest.mark.parametrize("kind", ["residual", "direct"])
def test_a_detector_that_clips_is_learnt_and_scored_against_the_mean_of_its_readings(kind, clean):
    """Readings cannot be below 1200 grey levels, where a third of each image is."""
    detector = Detector(sigma=300, black=1200)
    images = images_from(clean=clean, noise=detector, black=1000, white=3000)
    lessons = FinetunePatches(images, small_model(kind).config)
    target, noisy, means = lessons.batch(
        Phase(1, 200, 32), np.random.default_rng(0), torch.device("cpu")
    )
    readings, wanted = (
        (part.numpy() - lessons.shift) * 2000 + 1000 for part in (noisy.image, target)
    )
    assert readings.min() == pytest.approx(1200, abs=0.1)
    assert wanted.min() > 1200
    assert float((noisy.image - target).mean()) == pytest.approx(0, abs=0.002)
    clean_means = [lessons.means[id(scene.planes[0])] for scene in images.scenes]
    assert float(means.min()) > min(clean_means)
    for crop in lessons.crops:
        result = crop.noisy.target[..., *crop.core]
        assert torch.equal(result, crop.reference)


@pytest.mark.parametrize("count", [1, 4])
def test_what_is_held_out_is_never_trained_on(count, recorded, clean):
    """One scene: its last quarter; four: the last one. There the images are marked."""
    marked = [
        np.stack([plane.astype(np.float32) for plane in stack[:count]])
        for stack in (recorded[0], clean)
    ]
    for stack in marked:
        if count == 1:
            stack[..., 96:] += 1e6
        else:
            stack[-1] += 1e6
    lessons = FinetunePatches(
        images_from(noisy=marked[0], clean=marked[1], black=0, white=1), small_model().config
    )
    for step in range(30):
        target, noisy, _ = lessons.batch(
            Phase(1, 8, lessons.patch), np.random.default_rng(step), torch.device("cpu")
        )
        assert target.max() < 1e5
        assert noisy.image.max() < 1e5
    assert all(crop.reference.min() > 1e5 for crop in lessons.crops)


def test_scenes_with_the_same_clean_image_are_not_torn_apart(clean, recorded):
    """Four recordings of three scenes are three scenes: a quarter of each is held out."""
    noisy = np.concatenate([repeat[:3] for repeat in recorded])
    lessons = FinetunePatches(
        images_from(noisy=noisy, clean=np.concatenate([clean[:3]] * 4)), small_model().config
    )
    assert all(region == (slice(0, 80), slice(0, 96)) for _, region in lessons.regions)


@pytest.mark.parametrize(("shuffle", "patches"), [(2, (64, 32)), (3, (60, 24)), (5, (60, 20))])
def test_patches_are_whole_windows_of_a_network_with_levels(shuffle, patches, clean, tmp_path):
    config = levels_config((4, 4, 4), (1, 1, 1), (0, 0), shuffle=shuffle)
    for images, patch in zip((clean, clean[:, :40, :60]), patches, strict=True):
        lessons = FinetunePatches(images_from(clean=images, noise=Gaussian(150)), config)
        assert lessons.patch == patch
    path = tmp_path / "levels.safetensors"
    weights = DnResNet(config).state_dict()
    save_checkpoint(path, Checkpoint(config, arrays_of(weights), Card("levels")))
    steps = list(
        finetune_steps(
            images_from(clean=images, noise=Gaussian(150)), tmp_path / "out", start=path, steps=1
        )
    )
    assert steps[-1].kind == "done"


# What comes out


@pytest.mark.parametrize("kind", ["residual", "direct", "levels"])
@pytest.mark.parametrize("scenes", [1, 4])
def test_denoising_the_raw_images_gives_the_psnr_that_training_told(
    kind, scenes, clean, recorded, tmp_path
):
    """On counts with an offset: training is in the units of denoising.

    For networks that subtract the mean, and others.
    """
    images = images_from(noisy=recorded[0][:scenes], clean=clean[:scenes])
    path = dn_core.finetune(
        tmp_path,
        noisy=recorded[0][:scenes],
        clean=clean[:scenes],
        start=saved_model(tmp_path, kind),
        steps=20,
        lr=1e-3,
        name="own",
    )
    # As 16-bit counts and, with a network so poor that they would be clipped, as floats.
    denoised = dn_core.denoise(
        recorded[0][:scenes].astype(np.float32 if kind == "direct" else np.uint16), model=path
    )
    held_out = (-1, slice(None), slice(None)) if scenes == 4 else (0, slice(None), slice(96, None))
    assert psnr(denoised[held_out], clean[:scenes][held_out], images.range) == pytest.approx(
        card_of(path).scores["held_out_psnr"], abs=0.02
    )


def test_where_nothing_does_better_there_is_no_model(clean, recorded, tmp_path):
    """A model made for this noise, and steps far too large; it can be resumed all the same."""
    save_checkpoint(tmp_path / "good.safetensors", load_model().checkpoint)
    options = {"start": tmp_path / "good.safetensors", "name": "own", "lr": 0.1}
    with pytest.warns(
        UserWarning,
        match=r"no step scored better than the starting model \(\d+\.\d\d dB\), so "
        r"no new model was saved",
    ):
        assert (
            dn_core.finetune(tmp_path / "out", noisy=recorded[0], clean=clean, steps=10, **options)
            is None
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["own-training"]
    images = images_from(noisy=recorded[0], clean=clean)
    steps = list(
        finetune_steps(images, tmp_path / "out", steps=20, allow=("recipe.phases",), **options)
    )
    assert [step.step for step in steps if step.psnr is not None] == [10, 20]
    assert {step.path for step in steps} == {None}
    assert "no new model was saved" in steps[-1].outcome


def test_a_training_that_gained_nothing_leaves_a_model_of_its_name_as_it_was(
    clean, recorded, tmp_path
):
    """Such as one that came into the folder when it was being trained."""
    save_checkpoint(tmp_path / "good.safetensors", load_model().checkpoint)
    images, options = (
        images_from(noisy=recorded[0], clean=clean),
        {"start": tmp_path / "good.safetensors", "name": "own", "lr": 0.1},
    )
    run_some(images, tmp_path, 0, steps=10, **options)
    (tmp_path / "own.safetensors").write_bytes(b"another model")
    with pytest.raises(FileExistsError, match="a model of this name"):
        run_some(images, tmp_path, 10, steps=10, **options)
    assert (tmp_path / "own.safetensors").read_bytes() == b"another model"


def test_the_card_says_where_the_model_comes_from_and_names_no_places(clean, start, tmp_path):
    np.save(tmp_path / "secret.npy", clean)
    path = dn_core.finetune(
        tmp_path / "out",
        clean=tmp_path / "secret.npy",
        noise=Gaussian(SIGMA),
        start=start,
        name="own",
        steps=10,
    )
    card = card_of(path)
    assert card.name == "own"
    assert card.training["base"] == {
        "name": "residual",
        "sha256": hashlib.sha256(start.read_bytes()).hexdigest(),
    }
    assert card.noise == "Gaussian, sigma 150 grey levels"
    assert card.data["kind"] == "clean and noise"
    assert card.data["scenes"] == 4
    assert "secret" not in path.read_bytes().decode("latin-1")
    assert str(tmp_path) not in path.read_bytes().decode("latin-1")


def test_a_start_by_name_is_recorded_with_its_version_and_its_terms_pass_on(
    clean, start, tmp_path, monkeypatch
):
    monkeypatch.setenv("DN_MODELS", str(tmp_path / "models"))
    checkpoint = load_checkpoint(start)
    card = replace(checkpoint.card, terms="Research only.")
    save_checkpoint(start, replace(checkpoint, card=card))
    registry.add(start)
    save_checkpoint(start, replace(checkpoint, card=replace(card, terms="Free for any use.")))
    registry.add(start, replace=True)
    for name, version, terms in (
        ("residual@1", 1, "Research only."),
        ("residual", 2, "Free for any use."),
    ):
        path = dn_core.finetune(
            tmp_path / name, clean=clean, noise=Gaussian(SIGMA), start=name, steps=10
        )
        card = card_of(path)
        assert card.training["base"]["name"] == f"residual@{version}"
        assert card.terms == terms


def test_the_best_model_is_there_from_the_first_score_on_and_previews_show_it(
    clean, recorded, start, tmp_path
):
    steps = finetune_steps(
        images_from(noisy=recorded[0], clean=clean), tmp_path, start=start, name="own", **QUICK
    )
    first = next(steps)
    assert (first.step, first.total_steps) == (0, 60)
    assert first.psnr == first.best_psnr == first.start_psnr
    assert first.path is None
    np.testing.assert_allclose(first.preview.noisy, recorded[0][3], atol=0.01)
    np.testing.assert_allclose(first.preview.reference, clean[3], atol=0.01)
    np.testing.assert_array_equal(first.preview.before, first.preview.now)
    scored = [step for step in steps if step.preview is not None]
    assert [step.step for step in scored] == [10, 20, 30, 40, 50, 60]
    last = scored[-1]
    np.testing.assert_array_equal(last.preview.before, first.preview.before)
    assert psnr(
        last.preview.now, clean[3], images_from(noisy=recorded[0], clean=clean).range
    ) == pytest.approx(last.psnr, abs=0.01)
    np.testing.assert_allclose(
        last.preview.now,
        dn_core.denoise(recorded[0][3].astype(np.float32), model=last.path),
        atol=1,
    )


# Stopping and going on


def test_a_stopped_training_that_goes_on_ends_with_the_same_model(clean, recorded, start, tmp_path):
    images = images_from(repeats=recorded)
    options = {"start": start, "name": "own", **QUICK}
    run_some(images, tmp_path / "whole", 60, **options)
    assert run_some(images, tmp_path / "parts", 0, **options).path is None
    for stop_at in (20, 35, 50):
        assert run_some(images, tmp_path / "parts", stop_at, **options).path.exists()
    last = run_some(images, tmp_path / "parts", 60, **options)
    whole, parts = (
        (tmp_path / place / "own.safetensors").read_bytes() for place in ("whole", "parts")
    )
    assert parts == whole
    assert last.best_psnr > last.start_psnr


def test_a_stop_between_a_step_and_its_score_loses_no_candidate(
    clean, recorded, start, tmp_path, monkeypatch
):
    images, options = (
        images_from(noisy=recorded[0], clean=clean),
        {"start": start, "name": "own", "steps": 20, "lr": 3e-3},
    )
    run_some(images, tmp_path / "whole", 20, **options)
    scored = FinetunePatches.score

    def interrupted(self, *arguments):
        if interrupted.calls == 1:
            interrupted.calls = 2
            raise KeyboardInterrupt
        interrupted.calls += 1
        return scored(self, *arguments)

    interrupted.calls = 0
    monkeypatch.setattr(FinetunePatches, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_some(images, tmp_path / "parts", 20, **options)
    run_some(images, tmp_path / "parts", 20, **options)
    assert (tmp_path / "parts" / "own.safetensors").read_bytes() == (
        tmp_path / "whole" / "own.safetensors"
    ).read_bytes()


def test_a_finished_training_can_be_made_longer(clean, recorded, start, tmp_path):
    images = images_from(noisy=recorded[0], clean=clean)
    run_some(images, tmp_path, 20, start=start, name="own", steps=20)
    with pytest.raises(ValueError, match="recipe.phases: .* there, .* here"):
        run_some(images, tmp_path, 20, start=start, name="own", steps=200)
    last = run_some(
        images, tmp_path, 40, start=start, name="own", steps=200, allow=("recipe.phases",)
    )
    assert (last.step, last.total_steps) == (40, 200)


def test_another_training_or_model_of_the_name_is_left_alone(clean, recorded, start, tmp_path):
    images = images_from(noisy=recorded[0], clean=clean)
    run_some(images, tmp_path, 20, start=start, name="own", steps=20)
    before = (tmp_path / "own.safetensors").read_bytes()
    with pytest.raises(ValueError, match="another training run.*data: .* there, .* here"):
        run_some(
            images_from(repeats=recorded),
            tmp_path,
            0,
            start=start,
            name="own",
            steps=20,
            allow=("recipe.noise", "recipe.noise_text"),
        )
    with pytest.raises(FileExistsError, match="a model of this name"):
        run_some(images, tmp_path, 0, start=start, name="residual", steps=20)
    assert (tmp_path / "own.safetensors").read_bytes() == before


# What cannot be


RNG = np.random.default_rng(3)
OTHER = data.camera()[:128, 128:256].astype(np.uint16) * 4
SCENE = RNG.poisson(OTHER).astype(np.uint16)
SHUFFLED = RNG.permutation(SCENE.ravel()).reshape(SCENE.shape)
WITH_NAN = SCENE.astype(np.float32)
WITH_NAN[3, 4] = np.nan
GOOD = {"noisy": SCENE, "clean": OTHER}


@pytest.mark.parametrize(
    ("training_data", "error", "message"),
    [
        (
            {},
            ValueError,
            "give noisy and clean images, or repeats, or clean images and their noise, got nothing",
        ),
        (
            {"noisy": SCENE},
            ValueError,
            "got noisy images alone. Add the argument clean",
        ),
        ({**GOOD, "noise": Gaussian(5)}, ValueError, "got clean and noise and noisy"),
        (
            {"noisy": SCENE, "clean": OTHER[:100]},
            ValueError,
            r"the same shape noisy and clean, got \(128, 128\) and \(100, 128\)",
        ),
        (
            {"noisy": [SCENE, SCENE], "clean": [OTHER]},
            ValueError,
            "got 2 noisy and 1 clean. 1 image has no partner: noisy 1",
        ),
        (
            {"noisy": SCENE, "clean": SCENE},
            ValueError,
            "the noisy images must differ from the clean ones, got the same",
        ),
        (
            {"noisy": SHUFFLED, "clean": OTHER},
            ValueError,
            "must show the same scenes, got ones that have nothing in common",
        ),
        ({"noisy": WITH_NAN, "clean": OTHER}, ValueError, "1 pixel that is NaN or infinite"),
        ({"noisy": SCENE > 5, "clean": OTHER}, TypeError, "got dtype bool. A mask"),
        ({"noisy": "nowhere", "clean": OTHER}, FileNotFoundError, "there is no image or folder"),
        (
            {"noisy": SCENE[:20], "clean": OTHER[:20]},
            ValueError,
            "at least 32x32 pixels, got 128x20",
        ),
        (
            {"noisy": SCENE[:64, :64], "clean": OTHER[:64, :64]},
            ValueError,
            "at least 8192 pixels together, got 4096",
        ),
        (
            {"repeats": SCENE},
            ValueError,
            r"must have shape \(repeats, height, width\), got \(128, 128\)",
        ),
        ({"repeats": SCENE[None]}, ValueError, "a scene must have 2 repeats or more, got 1"),
        (
            {"repeats": np.stack([SCENE, SCENE])},
            ValueError,
            "noise of its own, got two repeats with the same pixels",
        ),
        (
            {"repeats": np.stack([SCENE, OTHER]), "axis": 5},
            np.exceptions.AxisError,
            "one of the 3 axes of repeats, .*, got 5",
        ),
        (
            {"clean": np.full((128, 128), 7, np.uint16), "noise": Gaussian(5)},
            ValueError,
            "a range of grey levels, got 7 to 7",
        ),
        (
            {"clean": SCENE, "noise": Gaussian(5), "black": 9, "white": 3},
            ValueError,
            "black must be below white, got 9 and 3",
        ),
        (
            {"clean": [SCENE, SCENE.astype(np.float32)], "noise": Gaussian(5)},
            ValueError,
            "one dtype, .*, got .*float32.*uint16",
        ),
        ({"clean": SCENE, "noise": Jpeg(50)}, ValueError, "PoissonGaussian or Detector"),
        (
            {"clean": SCENE, "noise": Detector(gain=Uniform(1, 2))},
            ValueError,
            r"gain of the noise must be a plain number, got Uniform\(.*\). Change gain",
        ),
        (
            {"clean": SCENE, "noise": Detector(sigma=9, relative=True)},
            ValueError,
            "relative of the noise must be left out, .* Give sigma in grey levels",
        ),
        (
            {"clean": SCENE, "noise": Detector(gain=1, offset=70000)},
            ValueError,
            "offset of the detector must be below the images' grey levels, .*got 70000",
        ),
        (
            {"clean": SCENE, "noise": {"kind": "detector", "read_noise": -2}},
            ValueError,
            "read_noise must be a finite non-negative number, got -2",
        ),
        (
            {"clean": SCENE, "noise": {"kind": "poisson", "peak": "many"}},
            ValueError,
            "peak of the noise must be a plain number, got 'many'",
        ),
        (
            {"clean": SCENE, "noise": {"kind": "gaussian", "sigma": -1}},
            ValueError,
            "sigma must be a finite non-negative number, got -1",
        ),
    ],
)
def test_images_that_cannot_be_trained_on_are_refused_in_a_sentence(
    training_data, error, message, tmp_path
):
    with pytest.raises(error, match=message):
        dn_core.finetune(tmp_path / "out", **training_data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"start": "noise map"},
            ValueError,
            "takes single planes, got noise-map, which takes a noise map",
        ),
        ({"start": "nothing"}, ValueError, "there is no model 'nothing'"),
        ({"steps": 0}, ValueError, "steps must be a whole number in 1..1000000, got 0"),
        ({"minutes": -1}, ValueError, "minutes must be a number above 0, .*, got -1"),
        ({"minutes": True}, ValueError, "minutes must be .*, got True"),
        ({"minutes": float("nan")}, ValueError, "minutes must be .*, got nan"),
        (
            {"minutes": 1e9},
            ValueError,
            "a number above 0, at most 1000000, got 1000000000.0",
        ),
        ({"name": "a/b"}, ValueError, "name must be text of letters, .*, got 'a/b'"),
        ({"lr": 5.0}, ValueError, "lr must be a number in 1e-09..1.0, got 5.0"),
        ({"device": "abacus"}, ValueError, "'mps', got 'abacus'"),
        ({"precision": "float8"}, ValueError, "precision must be .*, got 'float8'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(options, error, message, tmp_path):
    start = options.pop("start", "residual")
    options = {**options, "start": start if start == "nothing" else saved_model(tmp_path, start)}
    with pytest.raises(error, match=message):
        dn_core.finetune(tmp_path / "out", **GOOD, **{"steps": 20, **options})
    assert not (tmp_path / "out").exists()


# The command line


def command(*arguments):
    return [sys.executable, "-m", "dn_core.cli", *map(str, arguments)]


def events_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def given(clean, recorded, start, tmp_path):
    """Arguments of a training, its images in files."""
    np.save(tmp_path / "noisy.npy", recorded[0])
    tifffile.imwrite(
        tmp_path / "clean.tif", clean, metadata={"axes": "TYX"}, photometric="minisblack"
    )
    return [
        "--noisy",
        tmp_path / "noisy.npy",
        "--clean",
        tmp_path / "clean.tif",
        "--start",
        start,
        "--name",
        "own",
    ]


def test_the_command_trains_and_tells_people_what_it_gained(given, tmp_path):
    result = CliRunner().invoke(
        app, list(map(str, ["finetune", *given, "--out", tmp_path / "out", "--steps", 60]))
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'out' / 'own.safetensors'}\n"
    lines = result.stderr.splitlines()
    assert lines[0].startswith("own: 4 scenes, 8 images, black ")
    assert lines[1].startswith("step 0 of 60: held-out PSNR ")
    assert lines[-1].endswith(" steps")
    assert lines[-1].startswith("+")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sigma", "5"], "--sigma needs --noise-kind"),
        (
            ["--noise-kind", "snow"],
            "--noise-kind must be one of gaussian, poisson, poisson-gaussian, detector, got 'snow'",
        ),
        (
            ["--noise-kind", "poisson", "--sigma", "5"],
            "poisson noise needs --peak, got --sigma",
        ),
        (["--read-noise", "5"], "--read-noise needs --noise-kind"),
        (
            ["--noise-kind", "detector", "--gain", "2", "--peak", "5"],
            "detector noise needs --gain and --read-noise and may have --offset and --correlation, "
            "got --peak and --gain",
        ),
        (
            ["--noise-kind", "detector", "--gain", "-2", "--read-noise", "5"],
            "gain must be a finite non-negative number, got -2.0",
        ),
        (
            ["--noise-kind", "detector", "--gain", "2", "--read-noise", "5", "--correlation", "99"],
            "correlation must be in 0..16, got 99.0",
        ),
    ],
)
def test_noise_that_is_not_described_is_explained(options, message, tmp_path):
    np.save(tmp_path / "clean.npy", SCENE)
    arguments = ["finetune", "--clean", tmp_path / "clean.npy", "--out", tmp_path / "out", *options]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_detector_is_given_in_grey_levels_and_the_card_says_so(clean, start, tmp_path):
    np.save(tmp_path / "clean.npy", clean)
    detector = {"gain": 2.1, "read-noise": 150, "offset": 990, "correlation": 0.7}
    options = [part for name, value in detector.items() for part in (f"--{name}", value)]
    arguments = ["finetune", "--clean", tmp_path / "clean.npy", "--noise-kind", "detector"]
    arguments += [*options, "--out", tmp_path, "--start", start, "--name", "own", "--steps", 60]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    card = card_of(tmp_path / "own.safetensors")
    assert card.noise == (
        "detector, correlation 0.7 pixels, gain 2.1 grey levels, offset 990, "
        "read noise 150 grey levels"
    )
    assert card.data["noise"][0]["kind"] == "detector"


def test_errors_are_events_too(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"rubbish")
    arguments = ["finetune", "--json", "--repeats", tmp_path / "bad.npy", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 1
    (event,) = events_of(result.stdout)
    assert (event["kind"], event["type"]) == ("error", "ValueError")
    assert "bad.npy is not an array that can be read" in event["message"]


@pytest.mark.slow
def test_json_lines_tell_all_of_a_training(given, tmp_path):
    arguments = ["finetune", *given, "--out", tmp_path / "out", "--steps", 20, "--json"]
    done = subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = events_of(done.stdout)
    kinds = [event["kind"] for event in events if event["kind"] != "step"]
    assert kinds == ["start", "epoch", "preview", "epoch", "preview", "epoch", "preview", "done"]
    assert events[0]["images"]["scenes"] == 4
    epochs = [event for event in events if event["kind"] == "epoch"]
    assert [event["step"] for event in epochs] == [0, 10, 20]
    assert {
        "total_steps",
        "loss",
        "psnr",
        "best_psnr",
        "start_psnr",
        "seconds_left",
        "megapixels_per_second",
    } <= epochs[-1].keys()
    assert epochs[0]["loss"] is None
    assert events[-1]["best_psnr"] == max(event["psnr"] for event in epochs)
    assert card_of(events[-1]["path"]).name == "own"
    with np.load(
        [event for event in events if event["kind"] == "preview"][-1]["path"], allow_pickle=False
    ) as shown:
        assert sorted(shown) == ["before", "noisy", "now", "reference"]
        assert {shown[name].shape for name in shown} == {(80, 128)}


@posix
@pytest.mark.slow
def test_another_program_pauses_resumes_and_stops_a_training(given, tmp_path):
    arguments = ["finetune", *given, "--out", tmp_path / "out", "--steps", 100_000, "--control"]
    with subprocess.Popen(
        command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        said = {"epoch": "pause\n", "paused": "resume\n", "resumed": "stop\n"}
        events = []
        for line in child.stdout:
            events.append(json.loads(line))
            child.stdin.write(said.pop(events[-1]["kind"], ""))
            child.stdin.flush()
    assert child.returncode == 0
    kinds = [event["kind"] for event in events]
    assert kinds.index("paused") < kinds.index("resumed") < kinds.index("done") == len(kinds) - 1
    assert events[-1]["stopped"] is True
    gained = events[-1]["best_psnr"] > events[-1]["start_psnr"]
    assert (events[-1]["path"] is not None, events[-1]["kept_start"]) == (gained, not gained)


@posix
@pytest.mark.slow
def test_a_training_ends_with_the_program_that_began_it_and_goes_on_later(given, tmp_path):
    arguments = ["finetune", *given, "--steps", 150]
    with subprocess.Popen(
        command(*arguments, "--out", tmp_path / "out", "--control"),
        stdin=-1,
        stdout=-1,
        stderr=-1,
        text=True,
    ) as child:
        while json.loads(child.stdout.readline()).get("step", 0) < 20:
            assert child.poll() is None
        child.stdin.close()
        child.stdout.read()
        assert child.stderr.read() == ""
    assert child.returncode == 143
    assert card_of(tmp_path / "out" / "own.safetensors").training["steps"] < 150
    child = subprocess.Popen(
        command(*arguments, "--out", tmp_path / "out", "--json"), stdout=subprocess.PIPE, text=True
    )
    with child:
        assert json.loads(child.stdout.readline())["step"] >= 20
        while json.loads(child.stdout.readline()).get("step", 0) < 60:
            assert child.poll() is None
        child.kill()
    for out in ("out", "whole"):
        assert (
            CliRunner()
            .invoke(
                app, list(map(str, ["finetune", *given, "--steps", 150, "--out", tmp_path / out]))
            )
            .exit_code
            == 0
        )
    assert (tmp_path / "out" / "own.safetensors").read_bytes() == (
        tmp_path / "whole" / "own.safetensors"
    ).read_bytes()


@pytest.fixture
def from_scratch(tmp_path):
    """Arguments of a training of 30 steps."""
    (tmp_path / "images").mkdir()
    for index in range(4):
        tifffile.imwrite(
            tmp_path / "images" / f"{index}.tif", RNG.integers(0, 256, (40, 44)).astype(np.uint8)
        )
    (tmp_path / "own.toml").write_text(
        'name = "own"\nepoch = 20\n[network]\nfamily = "half-resolution"\nchannels = 8\nblocks = '
        "1\n"
        '[[noise]]\nkind = "gaussian"\nsigma = 25\n[[phase]]\nsteps = 30\nbatch = 1\npatch = 16\n'
    )
    return list(
        map(
            str,
            [
                "train",
                tmp_path / "own.toml",
                "--data",
                tmp_path / "images",
                "--out",
                tmp_path / "run",
            ],
        )
    )


def test_training_from_scratch_speaks_json_too(from_scratch):
    result = CliRunner().invoke(app, [*from_scratch, "--json"])
    assert result.exit_code == 0, result.stderr
    events = events_of(result.stdout)
    assert [(event["kind"], event.get("step")) for event in events] == [
        ("start", None),
        ("epoch", 20),
        ("epoch", 30),
        ("done", 30),
    ]
    assert card_of(events[-1]["path"]).training["steps"] == 30


@pytest.mark.slow
def test_training_from_scratch_can_be_stopped_and_goes_on(from_scratch):
    with subprocess.Popen(
        command(*from_scratch, "--control"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        child.stdin.write("no such word\nstop\n")
        child.stdin.flush()
        events = events_of(child.stdout.read())
    assert child.returncode == 0
    assert [(event["kind"], event.get("step")) for event in events] == [
        ("start", None),
        ("epoch", 20),
        ("done", 20),
    ]
    assert (events[-1]["stopped"], events[-1]["path"]) == (True, None)
    result = CliRunner().invoke(app, from_scratch)
    assert card_of(result.stdout.strip()).training["steps"] == 30
