"""Hot and dead pixels: what is around them is denoised as without them."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
import tifffile
import torch
import zarr
from typer.testing import CliRunner

import dn_core
from dn_core.cli import app
from dn_core.inference.hot_pixels import find_hot_pixels

ROWS, COLUMNS = np.mgrid[:256, :256]
SCENE = 1000 + 500 * np.sin(COLUMNS / 9) * np.cos(ROWS / 11)
NOISY = SCENE + np.random.default_rng(1).normal(0, 60, SCENE.shape)
PLACE = (128, 128)
DISTANCE = np.hypot(ROWS - PLACE[0], COLUMNS - PLACE[1])


def with_hot_pixel(height, dtype="u2"):
    image = NOISY.astype(dtype)
    image[PLACE] = np.clip(SCENE[PLACE] + height, 0, 65535)
    return image


def rmse(result, low, high):
    part = (low <= DISTANCE) & (high > DISTANCE)
    return float(np.sqrt(np.mean((result.astype(float) - SCENE)[part] ** 2)))


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*arguments, **options)


@pytest.mark.parametrize("model", ["dn-fast", "dn-quality", "dn-resnet-13"])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_neighbours_of_a_hot_or_dead_pixel_are_denoised_as_without_it(model, dtype):
    clean = dn_core.denoise(with_hot_pixel(0, dtype), model)
    for height in (-1000, 300, 1000, 3000, 10000, 64000):
        result = quietly(dn_core.denoise, with_hot_pixel(height, dtype), model)
        for low, high in ((0.5, 3), (3, 8), (8, 20), (20, 40)):
            assert rmse(result, low, high) <= 1.1 * rmse(clean, low, high), (height, low)


def test_a_hot_pixel_is_kept_and_told():
    image = with_hot_pixel(10000)
    with pytest.warns(
        UserWarning,
        match=r"1 hot or dead pixel, at \(128, 128\), is kept, .* Use hot_pixels='remove'",
    ):
        result = dn_core.denoise(image)
    assert result[PLACE] == image[PLACE]


def test_it_is_removed_when_asked():
    with pytest.warns(UserWarning, match=r"1 hot or dead pixel, at \(128, 128\), is removed"):
        result = dn_core.denoise(with_hot_pixel(10000), hot_pixels="remove")
    assert abs(result[PLACE] - SCENE[PLACE]) < 60


def test_several_planes_are_told_once_with_their_number():
    stack = np.stack([with_hot_pixel(0), with_hot_pixel(5000), with_hot_pixel(9000)])
    with pytest.warns(
        UserWarning, match=r"2 hot or dead pixels, the first at \(1, 128, 128\), are kept"
    ) as told:
        dn_core.denoise(stack)
    assert len(told) == 1


def test_steps_tell_it_with_the_result_and_do_not_warn():
    *steps, last = dn_core.denoise_steps(with_hot_pixel(10000), tile_size=100)
    assert [step.notes for step in steps] == [()] * len(steps)
    assert last.notes[0].startswith("1 hot or dead pixel, at (128, 128), is kept")
    tensor = torch.from_numpy(with_hot_pixel(10000, "f4"))
    assert list(dn_core.denoise_steps(tensor))[-1].notes == last.notes


def test_noise_that_the_network_removes_is_neither_kept_nor_told():
    result = dn_core.denoise(with_hot_pixel(300))
    assert abs(result[PLACE] - SCENE[PLACE]) < 60


def test_no_image_of_plain_noise_has_one():
    rng = np.random.default_rng(2)
    for image in (
        rng.normal(100, 10, (512, 512)).astype("f4"),
        rng.poisson(30, (512, 512)).astype("u2"),
    ):
        assert not find_hot_pixels(image).reported.any()
        assert len(find_hot_pixels(image)) < 6


def test_a_point_of_light_is_none():
    rows, columns = np.mgrid[:64, :64]
    spot = np.exp(-((rows - 30) ** 2 + (columns - 33) ** 2) / (2 * 0.7**2))
    for image in (500 * spot, -500 * spot):
        noisy = 1000 + image + np.random.default_rng(0).normal(0, 5, spot.shape)
        assert not find_hot_pixels(noisy)


def test_single_photons_with_gain_are_the_image_and_none():
    rng = np.random.default_rng(0)
    photons = rng.poisson(0.02, (256, 256))
    counts = rng.gamma(np.maximum(photons, 1e-9), 100) * (photons > 0) + rng.normal(
        100, 3, photons.shape
    )
    assert len(find_hot_pixels(counts)) < 0.02 * np.count_nonzero(photons)


def test_where_nothing_differs_there_is_no_noise_to_go_by():
    image = np.zeros((40, 40))
    image[20, 20] = 1
    assert not find_hot_pixels(image)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_they_are_found_in_every_type(dtype):
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    image = np.random.default_rng(0).normal(100, 4, (40, 40)).astype(dtype)
    for height in (0, min(float(limits.max) * 0.9, 1e18)):
        image[11, 30] = height
        found = find_hot_pixels(image)
        assert (found.rows.tolist(), found.columns.tolist(), found.reported.tolist()) == (
            [11],
            [30],
            [True],
        )


@pytest.mark.parametrize("place", [(0, 0), (0, 50), (255, 255), (48, 0), (255, 3)])
def test_they_are_found_at_borders(place):
    image = NOISY.copy()
    image[place] += 5000
    found = find_hot_pixels(image)
    assert place in list(zip(found.rows.tolist(), found.columns.tolist(), strict=True))


def test_tiles_and_chunks_find_the_same():
    rng = np.random.default_rng(3)
    image = NOISY.astype("f4")
    for row, column in zip(rng.integers(0, 256, 30), rng.integers(0, 256, 30), strict=True):
        image[row, column] = rng.choice([0, 5000])
    whole = quietly(dn_core.denoise, image, precision="float64")
    assert (whole == image).sum() >= 20
    np.testing.assert_allclose(
        quietly(dn_core.denoise, image, precision="float64", tile_size=32), whole, rtol=1e-6
    )
    lazy = dn_core.denoise(da.from_array(image, chunks=(100, 90)), precision="float64")
    with pytest.warns(UserWarning, match="hot or dead pixels were kept"):
        np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), whole, rtol=1e-6)
    assert lazy.chunks == ((100, 100, 56), (90, 90, 76))
    stored = zarr.array(image, chunks=(100, 90))
    np.testing.assert_allclose(
        quietly(dn_core.denoise, stored, precision="float64")[:], whole, rtol=1e-6
    )


def test_an_amount_of_nothing_gives_the_image_back():
    image = with_hot_pixel(10000)
    np.testing.assert_array_equal(
        quietly(dn_core.denoise, image, amount=0, hot_pixels="remove"), image
    )


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="hot_pixels must be one of .*keep.*remove.*got 'drop'"):
        dn_core.denoise(NOISY, hot_pixels="drop")


def test_the_command_tells_it_of_each_file(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):  # by one camera
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", with_hot_pixel(10000))
    with pytest.warns(UserWarning, match="1 hot or dead pixel") as told:
        assert (
            CliRunner()
            .invoke(app, ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
            .exit_code
            == 0
        )
    assert [str(warning.message).split(":")[0] for warning in told] == ["one.tif", "two.tif"]


def test_the_command_tells_and_removes(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", with_hot_pixel(10000))
    for option, words in (("keep", "is kept"), ("remove", "is removed")):
        command = [
            "denoise",
            str(tmp_path / "in.tif"),
            "-o",
            str(tmp_path / f"{option}.tif"),
            "--hot-pixels",
            option,
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.warns(UserWarning, match=words):
                assert CliRunner().invoke(app, command).exit_code == 0
    kept, removed = (tifffile.imread(tmp_path / f"{name}.tif") for name in ("keep", "remove"))
    assert kept[PLACE] > 10000
    assert removed[PLACE] < 2000
