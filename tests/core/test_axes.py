"""Which axes are planes, channels and alpha.

A guess never overrides the caller or the file, and it is reported.
"""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
import tifffile
import torch
import zarr
from numpy.exceptions import AxisError
from PIL import Image
from small_models import small_model
from typer.testing import CliRunner

from dn_core import files
from dn_core.checkpoints import save_checkpoint
from dn_core.cli import app
from dn_core.files.grey import read_grey
from dn_core.inference.arrays import axes_of_file
from dn_core.inference.axes import find_axes
from dn_core.inference.denoise import denoise
from dn_core.training.data.user_images import clean_and_noise, pairs, repeats

MODEL = small_model()
GREY = np.random.default_rng(0).normal(100, 10, (48, 56)).astype(np.float32)
GUESSED = r"its last axis, of \d+, is taken as channels.*channel_axis=-1.*channel_axis=None"


def channels(count, shape=(48, 56), dtype="f4"):
    """Different noise in each channel, which comes last."""
    return np.random.default_rng(count).normal(100, 10, (*shape, count)).astype(dtype)


def one_by_one(image, axis=-1):
    """What each channel is denoised to on its own."""
    return np.stack([denoise(plane, MODEL) for plane in np.moveaxis(image, axis, 0)], axis=axis)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_checkpoint(path, MODEL.checkpoint)
    return path


@pytest.fixture
def command(tmp_path, model):
    """Denoise pixels that are in a file; gives the result and what was said."""

    def run(path, *options, output=None):
        target = output or tmp_path / f"out{path.suffix}"
        arguments = ["denoise", path, "-o", target, "--model", model, "--overwrite", *options]
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.stderr
        return files.read_image(target).pixels, result.stderr

    return run


# The rule


@pytest.mark.parametrize(
    ("shape", "spatial"),
    [
        ((30, 40), (0, 1)),
        ((3, 30, 40), (1, 2)),
        ((4, 300, 400), (1, 2)),
        ((30, 40, 1), (0, 1)),
        ((30, 40, 1, 1), (0, 1)),
        ((5, 30, 40, 1), (1, 2)),
        ((1, 1, 1), (0, 1)),
        ((300, 400, 17), (1, 2)),
        ((129, 128, 16), (1, 2)),
        ((41, 40, 5), (1, 2)),
    ],
)
def test_planes_that_are_not_guessed(shape, spatial):
    axes = find_axes(shape)
    assert (axes.spatial, axes.alpha, axes.guess) == (spatial, None, None)


@pytest.mark.parametrize(
    ("shape", "spatial"),
    [
        ((129, 130, 16), (0, 1)),
        ((17, 18, 2), (0, 1)),
        ((25, 26, 3), (0, 1)),
        ((41, 42, 5), (0, 1)),
        ((7, 41, 42, 5), (1, 2)),
        ((41, 42, 5, 1), (0, 1)),
    ],
)
def test_channels_at_the_end_are_guessed_and_said(shape, spatial):
    axes = find_axes(shape)
    assert (axes.spatial, axes.alpha) == (spatial, None)
    assert "is taken as channels" in axes.guess
    for given in ({"channel_axis": axes.spatial[1] + 1}, {"channel_axis": None}):
        assert find_axes(shape, **given).guess is None


def test_alpha_is_guessed_of_four_at_the_end_only():
    axes = find_axes((40, 50, 4))
    assert axes.alpha == (2, 3)
    assert "the last of them as alpha" in axes.guess
    for said in (
        {"channel_axis": -1},
        {"channel_axis": None},
        {"channel_axis": 2, "alpha": False},
        {"channel_axis": 0},
    ):
        assert find_axes((40, 50, 4), **said).alpha is None
    assert find_axes((40, 50, 4), alpha=False).alpha is None
    assert find_axes((48, 50, 5), alpha=True).alpha == (2, 4)
    assert find_axes((40, 50, 2), channel_axis=-1, alpha=True).alpha == (2, 1)


def test_a_picture_too_small_to_be_told_from_planes_is_said():
    axes = find_axes((20, 24, 3))
    assert axes.spatial == (1, 2)
    assert "planes of 24 x 3 pixels are taken" in axes.guess
    assert find_axes((20, 24, 3), None).guess is None


def test_the_caller_is_taken_by_the_word():
    assert find_axes((300, 400, 5), None).spatial == (1, 2)
    assert find_axes((30, 40, 1), None).spatial == (1, 2)
    assert find_axes((300, 400, 5), 0).spatial == (1, 2)
    assert find_axes((3, 30, 40, 1), 0).spatial == (1, 2)  # one at the end is nobody's plane
    assert find_axes((30, 3, 40), 1).spatial == (0, 2)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 40, 50),
        (40, 50, 4),
        (2, 40, 50, 5),
        (40, 50, 3, 1),
        (40, 50, 1),
        (6, 40, 1),
        (20, 24, 3),
    ],
)
def test_what_was_found_can_be_said(shape):
    found = find_axes(shape)
    said = find_axes(shape, **found.options)
    assert (said.spatial, said.alpha, said.guess) == (found.spatial, found.alpha, None)


@pytest.mark.parametrize("word", ["Auto", "none", "-1", 1.0, True, np.array(1)])
def test_what_is_no_axis_is_refused(word):
    with pytest.raises(TypeError, match='must be "auto", an integer or None, got'):
        find_axes((3, 40, 50), word)
    with pytest.raises(AxisError, match="must be -3 to 2"):
        find_axes((3, 40, 50), 3)


# Arrays


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask", "torch"])
def test_channels_of_every_kind_of_array_are_found_with_a_warning(kind, count):
    image = channels(count)
    given = {
        "numpy": np.asarray,
        "zarr": lambda a: zarr.array(a, chunks=(16, 16, count)),
        "dask": da.from_array,
        "torch": torch.from_numpy,
    }
    with pytest.warns(UserWarning, match=GUESSED):
        result = denoise(given[kind](image), MODEL)
    assert tuple(result.shape) == image.shape
    np.testing.assert_allclose(np.asarray(result[...]), one_by_one(image), rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(denoise(given[kind](image), MODEL, channel_axis=-1)[...]),
        one_by_one(image),
        rtol=1e-5,
    )


@pytest.mark.parametrize("options", [{}, {"channel_axis": -1}])
@pytest.mark.parametrize("kind", [np.asarray, da.from_array, torch.from_numpy])
def test_one_at_the_end_is_put_back(kind, options):
    for image in (GREY[..., None], np.stack([GREY, GREY])[..., None]):
        result = denoise(kind(image), MODEL, **options)
        assert tuple(result.shape) == image.shape
        np.testing.assert_allclose(
            np.asarray(result)[..., 0].reshape(-1, *GREY.shape)[0], denoise(GREY, MODEL), rtol=1e-5
        )


@pytest.mark.parametrize("kind", [np.asarray, da.from_array])
def test_four_channels_are_all_denoised_when_the_caller_says_so(kind):
    image = channels(4)
    np.testing.assert_allclose(
        np.asarray(denoise(kind(image), MODEL, channel_axis=-1)), one_by_one(image), rtol=1e-5
    )
    with pytest.warns(
        UserWarning, match="the last of them as alpha, which is left alone. Give channel_axis=-1"
    ):
        guessed = np.asarray(denoise(kind(image), MODEL))
    asked = np.asarray(denoise(kind(image), MODEL, channel_axis=-1, alpha=True))
    for result in (guessed, asked):
        np.testing.assert_array_equal(result[..., 3], image[..., 3])
        np.testing.assert_allclose(result[..., :3], one_by_one(image[..., :3]), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "names", "spatial", "alpha"),
    [
        ((40, 50, 4), ("y", "x", "c"), (0, 1), None),
        ((4, 40, 50), ("band", "lat", "lon"), (1, 2), None),
        ((40, 50, 4), ("z", "y", "x"), (1, 2), None),
        ((40, 50, 60), ("x", "y", "z"), (0, 1), None),
        ((40, 9, 50), ("row", "plane", "col"), (0, 2), None),
        ((40, 50, 9), ("dim_0", "dim_1", "Channel"), (0, 1), None),
        ((40, 50, 4), ("y", "x", "rgba"), (0, 1), (2, 3)),
        ((4, 40, 50), ("sample", "y", "x"), (1, 2), None),
    ],
)
def test_named_axes_are_no_guess(shape, names, spatial, alpha):
    axes = find_axes(shape, names=names)
    assert (axes.spatial, axes.alpha) == (spatial, alpha)
    assert (axes.guess is None) == (alpha is None)
    assert find_axes(shape, None, names=names).spatial == (1, 2)


def test_names_that_say_nothing_do_not_count():
    assert find_axes((48, 50, 5), names=("dim_0", "dim_1", "dim_2")) == find_axes((48, 50, 5))


def test_the_names_of_an_xarray_are_no_guess():
    xarray = pytest.importorskip("xarray")
    for dims, image, axis in [
        (("y", "x", "c"), channels(5), -1),
        (("row", "col", "band"), channels(4), -1),
        (("channel", "y", "x"), np.moveaxis(channels(4), -1, 0), 0),
        (("x", "y", "z"), channels(6), -1),
        (("plane", "y", "x"), np.moveaxis(channels(6), -1, 1).swapaxes(0, 1), 0),
    ]:
        result = denoise(xarray.DataArray(image, dims=dims), MODEL)
        assert result.dims == dims
        np.testing.assert_allclose(result.data, one_by_one(image, axis), rtol=1e-5)
    with pytest.warns(UserWarning, match="the last of them as alpha"):
        result = denoise(xarray.DataArray(channels(4), dims=("y", "x", "rgba")), MODEL)
    np.testing.assert_array_equal(result.data[..., 3], channels(4)[..., 3])
    with pytest.warns(UserWarning, match=GUESSED):
        denoise(xarray.DataArray(channels(5)), MODEL)


@pytest.mark.parametrize(
    ("mode", "advice"),
    [("P", "RGB"), ("CMYK", "RGB"), ("1", "L"), ("PA", "RGBA"), ("YCbCr", "RGB"), ("LAB", "RGB")],
)
def test_pictures_whose_numbers_are_no_intensities_are_refused(mode, advice):
    with pytest.raises(
        TypeError, match=rf"PIL image of mode {mode}. .*image\.convert\('{advice}'\)"
    ):
        denoise(Image.new(mode, (40, 40)), MODEL)


def test_pictures_say_what_their_samples_are():
    colours = channels(3, dtype="u1")
    np.testing.assert_array_equal(
        denoise(Image.fromarray(colours), MODEL), denoise(colours, MODEL, channel_axis=-1)
    )
    for image in (channels(4, dtype="u1"), channels(2, dtype="u1")):
        with pytest.warns(
            UserWarning, match="samples is alpha, which is left alone. Give channel_axis=-1"
        ):
            result = denoise(Image.fromarray(image), MODEL)
        np.testing.assert_array_equal(result, denoise(image, MODEL, channel_axis=-1, alpha=True))
        np.testing.assert_array_equal(
            denoise(Image.fromarray(image), MODEL, channel_axis=-1),
            denoise(image, MODEL, channel_axis=-1),
        )


# Files


WRITERS = {
    "by tifffile": {},
    "compressed": {"compression": "zlib"},
    "tiles": {"tile": (16, 16)},
    "without a description": {"metadata": None},
    "bytes": {"dtype": "u1"},
    "floats": {"dtype": "f4"},
}


@pytest.mark.parametrize(
    ("writer", "front"),
    [*((name, ()) for name in WRITERS), ("by tifffile", (2,)), ("compressed", (2,))],
)
def test_four_separate_planes_that_a_writer_took_for_rgb_and_alpha_are_planes(
    writer, front, tmp_path, command
):
    stack = (
        np.random.default_rng(1)
        .normal(100, 10, (*front, 4, 48, 56))
        .astype(WRITERS[writer].get("dtype", "u2"))
    )
    path = tmp_path / "stack.tif"
    with warnings.catch_warnings(action="ignore"):  # tifffile itself says that this guess will go
        tifffile.imwrite(
            path, stack, **{key: value for key, value in WRITERS[writer].items() if key != "dtype"}
        )
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages[0].photometric, tif.pages[0].planarconfig, tif.pages[0].extrasamples
    assert (tags[0].name, int(tags[1]), int(tags[2][0])) == ("RGB", 2, 2)
    result, message = command(path)
    np.testing.assert_array_equal(result, denoise(stack, MODEL, channel_axis=None))
    assert message.count("\n") == 1
    assert "4 samples in separate planes; each is a plane of the image, none is alpha" in message
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert (
            tif.pages[0].photometric,
            tif.pages[0].planarconfig,
            tif.pages[0].extrasamples,
        ) == tags
        assert tif.series[0].shape == stack.shape


def test_four_separate_planes_do_not_become_a_picture_with_alpha(tmp_path, model):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((4, 48, 56), np.uint8),
        photometric="rgb",
        planarconfig="separate",
    )
    result = CliRunner().invoke(
        app,
        ["denoise", str(tmp_path / "a.tif"), "-o", str(tmp_path / "a.png"), "--model", str(model)],
    )
    assert result.exit_code == 1
    assert "4 samples, none of them alpha, cannot be written as PNG" in result.stderr


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((48, 56, 1), {}),
        ((48, 56, 1), {"compression": "zlib"}),
        ((48, 56, 1), {"metadata": None}),
        ((48, 56, 1), {"metadata": {"axes": "YXC"}}),
        ((3, 48, 56, 1), {}),
        ((3, 48, 56, 1), {"metadata": {"axes": "ZYXC"}}),
        ((48, 56, 1, 1), {}),
    ],
)
def test_one_at_the_end_of_a_tiff_is_put_back(shape, options, tmp_path, command):
    image = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", **options)
    result, message = command(tmp_path / "a.tif")
    assert message == ""
    assert result.shape == shape
    np.testing.assert_array_equal(result, denoise(image, MODEL))


@pytest.mark.parametrize("name", ["out.ome.tif", "out.ome.zarr", "out.png"])
def test_one_at_the_end_is_left_out_where_a_format_has_no_place_for_it(name, tmp_path, command):
    image = channels(1, dtype="u2")
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    result, _ = command(tmp_path / "a.tif", output=tmp_path / name)
    np.testing.assert_array_equal(result.reshape(image.shape), denoise(image, MODEL))


def in_tiff(path, image):
    tifffile.imwrite(path.with_suffix(".tif"), image, photometric="minisblack")
    return path.with_suffix(".tif")


def in_zarr(path, image):
    array = zarr.create_array(
        path.with_suffix(".zarr"),
        shape=image.shape,
        dtype=image.dtype,
        chunks=(16, 16, image.shape[2]),
    )
    array[...] = image
    return path.with_suffix(".zarr")


@pytest.mark.parametrize("save", [in_tiff, in_zarr])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_channels_of_files_that_do_not_say_are_found_and_told(save, count, tmp_path, command):
    image = channels(count)
    path = save(tmp_path / "a", image)
    result, message = command(path)
    np.testing.assert_allclose(result, one_by_one(image), rtol=1e-5)
    assert message == (
        f"{path.name}: image has shape {image.shape}: its last axis, of {count}, is taken as "
        "channels. "
        "Give --channel-axis -1 to say so, or --channel-axis none if the last two axes are "
        "planes.\n"
    )
    result, message = command(path, "--channel-axis", -1)
    np.testing.assert_allclose(result, one_by_one(image), rtol=1e-5)
    assert message == ""
    result, message = command(path, "--channel-axis", "none")
    np.testing.assert_allclose(result, denoise(image, MODEL, channel_axis=None), rtol=1e-5)
    assert message == ""


def test_four_channels_of_a_file_that_does_not_say_are_alpha_only_as_a_guess(tmp_path, command):
    image = channels(4)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    result, message = command(tmp_path / "a.tif")
    np.testing.assert_array_equal(result[..., 3], image[..., 3])
    assert "as alpha, which is left alone. Give --channel-axis -1" in message
    result, message = command(tmp_path / "a.tif", "--channel-axis", "-1")
    np.testing.assert_allclose(result, one_by_one(image), rtol=1e-5)
    assert message == ""


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_of_a_picture_is_left_alone_and_told_unless_the_caller_wants_it(
    mode, tmp_path, command
):
    image = channels(len(mode), dtype="u1")
    Image.fromarray(image, mode).save(tmp_path / "a.png")
    result, message = command(tmp_path / "a.png")
    np.testing.assert_array_equal(result[..., -1], image[..., -1])
    assert message == (
        f"a.png: image has shape {image.shape}: the last of its {len(mode)} samples is alpha, "
        "which is left alone. "
        "Give --channel-axis -1 if it is a channel like the others.\n"
    )
    result, message = command(tmp_path / "a.png", "--channel-axis", -1)
    np.testing.assert_array_equal(result, denoise(image, MODEL, channel_axis=-1))
    assert message == ""


@pytest.mark.parametrize(
    ("samples", "options", "alpha"),
    [
        (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, True),
        (4, {"photometric": "rgb", "extrasamples": ["assocalpha"]}, True),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}, False),
        (5, {"photometric": "rgb", "extrasamples": ["unspecified", "unassalpha"]}, True),
        (2, {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, True),
        (2, {"photometric": "minisblack", "extrasamples": ["unspecified"]}, False),
        (3, {"photometric": "rgb"}, False),
    ],
)
def test_interleaved_samples_are_what_the_file_says(samples, options, alpha, tmp_path, command):
    image = channels(samples, dtype="u1")
    tifffile.imwrite(tmp_path / "a.tif", image, planarconfig="contig", **options)
    result, message = command(tmp_path / "a.tif")
    assert ("is alpha, which is left alone" in message) == alpha
    np.testing.assert_array_equal(result, denoise(image, MODEL, channel_axis=-1, alpha=alpha))


def test_a_file_that_says_its_axes_is_no_guess(tmp_path, command):
    narrow = np.random.default_rng(0).normal(100, 10, (40, 48, 4)).astype(np.float32)
    tifffile.imwrite(
        tmp_path / "a.ome.tif", narrow, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    result, message = command(tmp_path / "a.ome.tif", output=tmp_path / "out.ome.tif")
    np.testing.assert_allclose(result, denoise(narrow, MODEL, channel_axis=None), rtol=1e-5)
    assert message == ""
    array = zarr.create_array(
        tmp_path / "xyz.zarr",
        shape=narrow.shape,
        dtype="f4",
        chunks=(40, 48, 1),
        dimension_names=("x", "y", "z"),
    )
    array[...] = narrow
    result, message = command(tmp_path / "xyz.zarr", output=tmp_path / "zyx.zarr")
    np.testing.assert_allclose(result.T, one_by_one(narrow), rtol=1e-4)
    assert message == ""


def test_planes_of_one_column_are_told_though_the_file_says_so(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.ome.tif", np.zeros((5, 40, 1), np.uint8), ome=True, metadata={"axes": "ZYX"}
    )
    axes = axes_of_file(files.read_image(tmp_path / "a.ome.tif"))
    assert axes.spatial == (1, 2)
    assert axes.note == (
        "image has shape (5, 40, 1): planes of 40 x 1 pixels are taken, as its axes ZYX say. "
        "Give channel_axis=-1 if the last axis is one channel."
    )


def test_palettes_become_colours_and_cmyk_is_refused(tmp_path, model, command):
    indices = np.random.default_rng(0).integers(0, 256, (40, 44)).astype(np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "p.tif", indices, photometric="palette", colormap=palette)
    colours = np.moveaxis(palette[:, indices] // 257, 0, -1).astype(np.uint8)
    np.testing.assert_array_equal(
        command(tmp_path / "p.tif")[0], denoise(colours, MODEL, channel_axis=-1)
    )
    tifffile.imwrite(tmp_path / "c.tif", channels(4, dtype="u1"), photometric="separated")
    Image.new("CMYK", (40, 40)).save(tmp_path / "c.jpg")
    for name in ("c.tif", "c.jpg"):
        result = CliRunner().invoke(
            app,
            ["denoise", str(tmp_path / name), "-o", str(tmp_path / "out"), "--model", str(model)],
        )
        assert result.exit_code == 1
        assert "must be grey, RGB or RGBA, got CMYK colours. Convert it to RGB" in result.stderr


@pytest.mark.parametrize("word", ["last", "1.0", ""])
def test_a_word_that_is_no_channel_axis_is_a_wrong_use(word, tmp_path):
    result = CliRunner().invoke(
        app, ["denoise", "a.tif", "-o", str(tmp_path), "--channel-axis", word]
    )
    assert result.exit_code == 2
    assert "auto, none or the index of an axis" in " ".join(result.stderr.replace("│", " ").split())


# Training


def test_own_images_have_planes_by_the_same_rule():
    image = channels(5, (96, 100))
    with pytest.warns(UserWarning, match=GUESSED):
        found = clean_and_noise(image, {"kind": "gaussian", "sigma": 5})
    assert [scene.shape for scene in found.scenes] == [(96, 100)] * 5
    assert (
        len(clean_and_noise(image, {"kind": "gaussian", "sigma": 5}, channel_axis=-1).scenes) == 5
    )
    assert (
        len(clean_and_noise(GREY[..., None].repeat(4, 0), {"kind": "gaussian", "sigma": 5}).scenes)
        == 1
    )
    noisy = image + np.random.default_rng(9).normal(0, 3, image.shape).astype("f4")
    assert [scene.shape for scene in pairs(noisy, image, channel_axis=-1).scenes] == [(96, 100)] * 5


def test_the_axis_of_repeats_beats_a_guess():
    image = channels(5, (96, 100))
    (scene,) = repeats(image, -1).scenes
    assert [plane.shape for plane in scene.noisy] == [(96, 100)] * 5
    stack = np.stack(
        [channels(3, (96, 100)), channels(3, (96, 100)) + channels(6, (96, 100))[..., :3]]
    )
    with pytest.warns(UserWarning, match=r"shape \(96, 100, 3\)"):
        assert len(repeats(stack).scenes) == 3
    assert len(repeats(stack, channel_axis=-1).scenes) == 3
    with pytest.raises(ValueError, match="axis and channel_axis must be different, got 0 for both"):
        repeats(stack, 0, channel_axis=0)


def test_alpha_is_not_learnt_from_and_told(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(channels(4, (96, 100), "u1")).save(tmp_path / f"{name}.png")
    with pytest.warns(
        UserWarning,
        match=r"2 images: image has shape \(96, 100, 4\): the last of its 4 samples is alpha",
    ):
        found = clean_and_noise(tmp_path, {"kind": "gaussian", "sigma": 5})
    assert len(found.scenes) == 6


def test_clean_images_have_planes_by_the_same_rule(tmp_path):
    image = channels(5, dtype="u1")
    path = in_tiff(tmp_path / "a", image)
    with pytest.warns(
        UserWarning,
        match=r"an image has shape \(48, 56, 5\): its last axis, of 5, is taken as channels",
    ):
        planes = read_grey(path, 32)
    np.testing.assert_array_equal(np.stack(planes, axis=-1), image)
    (plane,) = read_grey(in_tiff(tmp_path / "b", image[..., :1]), 32)
    np.testing.assert_array_equal(plane, image[..., 0])
