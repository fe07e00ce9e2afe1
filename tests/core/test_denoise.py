"""Arrays in, the same kind of array out: every row of the contract for bad and odd arrays."""

import copy
import hashlib
import itertools
import subprocess
import sys
import threading
import warnings
import weakref

import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.exceptions import AxisError
from small_models import CONFIGS, small_model

import dn_core
from dn_core.inference import loaded, plan, planes
from dn_core.inference.denoise import denoise, denoise_steps
from dn_core.inference.engines import TileTooLargeError
from dn_core.inference.hot_pixels import MARGIN

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
RESIDUAL = small_model()
DIRECT = small_model("direct")


def picture(shape=(40, 44), dtype="f4", seed=0):
    """A ramp with noise, in the middle of the dtype's range, at most 200 wide."""
    rng = np.random.default_rng(seed)
    values = np.broadcast_to(np.linspace(20, 90, shape[-1]), shape) + rng.normal(0, 8, shape)
    return np.clip(values, 0, 120).astype(dtype)


# Dtypes, byte orders and layouts


@pytest.mark.parametrize("model", [RESIDUAL, DIRECT], ids=["residual", "direct"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_gives_what_float32_gives_and_keeps_its_dtype(dtype, model):
    image = picture(dtype=dtype)
    result = denoise(image, model, precision="float32")
    expected = denoise(image.astype("f4"), model)
    assert result.dtype == image.dtype
    if image.dtype.kind in "iu":
        info = np.iinfo(dtype)
        # Half-way cases may round either way between float32 and float64: one grey value, and only
        # there.
        np.testing.assert_allclose(
            result,
            np.clip(np.rint(expected), info.min, info.max),
            atol=1 if image.itemsize > 2 else 0,
        )
    else:
        np.testing.assert_allclose(
            result, expected, rtol=2e-3 if dtype == "f2" else 1e-5, atol=1e-3
        )


LAYOUTS = {
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran": np.asfortranarray,
    "negative strides": lambda a: np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1],
    "every other pixel": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "unaligned field": lambda a: unaligned(a),
    "read-only": lambda a: frozen(a),
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape))[1],
    "sliding window": lambda a: np.lib.stride_tricks.sliding_window_view(
        np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 4)]), a.shape
    )[(0,) * a.ndim],
}


def windowed(array):
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 4)])
    return np.lib.stride_tricks.sliding_window_view(padded, array.shape)[(0,) * array.ndim]


def unaligned(array):
    record = np.zeros(array.shape, np.dtype([("pad", "u1"), ("value", array.dtype)]))
    record["value"] = array
    return record["value"]


def frozen(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    "shape",
    [(21, 30), (3, 21, 30), (2, 3, 21, 30), (2, 1, 2, 21, 30)],
    ids=["2d", "3d", "4d", "5d"],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dimensions_give_the_same_bits_as_a_plain_copy(layout, dtype, shape):
    plain = picture(shape, dtype)
    odd = LAYOUTS[layout](plain)
    digest = hashlib.sha256(np.ascontiguousarray(odd)).digest()
    result = denoise(odd, RESIDUAL)
    np.testing.assert_array_equal(result, denoise(plain, RESIDUAL))
    assert result.shape == odd.shape
    assert result.dtype == odd.dtype
    assert hashlib.sha256(np.ascontiguousarray(odd)).digest() == digest
    assert not np.may_share_memory(result, odd)


def test_integers_are_rounded_and_clipped():
    image = np.full((32, 32), 250, np.uint8)
    image[::2, ::2] = 255
    image[5:7, 5:7] = 0
    result = denoise(image, RESIDUAL, precision="float32").astype(int)
    exact = denoise(image.astype("f8"), RESIDUAL, precision="float64")
    assert exact.max() > 255
    np.testing.assert_array_equal(result, np.clip(np.rint(exact), 0, 255))


@pytest.mark.parametrize("dtype", ["u8", "i8", "u4", "i4"])
def test_the_ends_of_wide_integers_do_not_wrap(dtype):
    info = np.iinfo(dtype)
    image = np.full((16, 16), info.max, dtype)
    image[:8] = info.min
    with pytest.warns(UserWarning, match="wider than float32"):
        result = denoise(image, RESIDUAL)
    assert (
        np.abs(result[12:].astype(float) / info.max - 1).max() < 0.75
    )  # a wrap would turn it into the other end
    with pytest.warns(UserWarning, match="wider than float32"):
        assert denoise(image, RESIDUAL, amount=0)[0, 0] == info.min


def test_wide_integers_with_a_large_offset_keep_their_noise():
    image = picture(dtype="i8")
    offset = denoise(image + 2**40, RESIDUAL) - 2**40
    np.testing.assert_allclose(offset, denoise(image, RESIDUAL), atol=1)


@pytest.mark.parametrize("factor", [1e-44, 1e-38, 1e30, 1e37])
def test_extreme_float32_scales_come_out_right(factor):
    image = picture().astype("f8") / 128
    result = denoise((image * factor).astype("f4"), RESIDUAL)
    expected = denoise(image, RESIDUAL) * factor
    assert np.isfinite(result).all()
    np.testing.assert_allclose(
        result, expected, rtol=1e-3, atol=max(factor * 1e-3, 3e-45)
    )  # 1.4e-45 is the smallest float32


def test_the_whole_range_of_float64_is_taken():
    image = np.linspace(0, 1.7e308, 900).reshape(30, 30)
    result = denoise(image, RESIDUAL)
    np.testing.assert_allclose(
        result, denoise(image / 1e300, RESIDUAL) * 1e300, rtol=1e-3, atol=1e305
    )


@pytest.mark.parametrize("value", [2**62 + 1, 2**63 - 1])
def test_wide_integers_that_do_not_change_keep_every_digit(value):
    constant = np.full((8, 8), value, "i8")
    np.testing.assert_array_equal(denoise(constant, RESIDUAL), constant)
    image = constant - np.arange(64).reshape(8, 8)
    np.testing.assert_array_equal(denoise(image, RESIDUAL, amount=0), image)


def test_float64_beyond_float32_is_scaled():
    image = picture(dtype="f8") * 1e290
    np.testing.assert_allclose(
        denoise(image, RESIDUAL), denoise(image / 1e290, RESIDUAL) * 1e290, rtol=1e-3, atol=1e287
    )


# What is refused, and how

REFUSED = {
    "bool": (lambda: np.zeros((8, 8), bool), TypeError, "mask.*astype"),
    "complex": (
        lambda: np.zeros((8, 8), complex),
        TypeError,
        r"real intensities.*complex128.*image\.real",
    ),
    "object": (lambda: np.array([[None, 1], [2, 3]], object), TypeError, "dtype object"),
    "bytes": (lambda: np.zeros((8, 8), "S1"), TypeError, "integers or floats"),
    "datetime": (lambda: np.zeros((8, 8), "M8[s]"), TypeError, "integers or floats"),
    "structured": (lambda: np.zeros((8, 8), [("a", "f4")]), TypeError, "integers or floats"),
    "longdouble": (lambda: np.zeros((8, 8), np.longdouble), TypeError, "64 bits"),
    "None": (lambda: None, TypeError, "dtype object"),
    "file name": (lambda: "image.tif", TypeError, "got a str. For a file use"),
    "masked": (lambda: np.ma.masked_less(np.zeros((8, 8)), 1), TypeError, r"masked.*filled"),
    "ragged": (lambda: [[1, 2], [3]], ValueError, "rectangular.*equal length"),
    "scalar": (lambda: 3.0, ValueError, r"height, width.*got \(\).*Reshape"),
    "one row": (lambda: np.zeros(5), ValueError, r"got \(5,\).*Reshape"),
    "no columns": (lambda: np.zeros((5, 0)), ValueError, "axis 1 is empty"),
    "no planes": (lambda: np.zeros((0, 5, 5)), ValueError, "axis 0 is empty"),
    "too many axes": (lambda: np.zeros((1,) * 40), ValueError, "Reshape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_with_advice(name):
    make, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        denoise(make(), RESIDUAL)


@pytest.mark.parametrize(
    ("axis", "kind", "words"),
    [
        (3, AxisError, "channel_axis must be -3 to 2.*got 3"),
        (-4, AxisError, "channel_axis must be -3 to 2.*got -4"),
        (True, TypeError, "an integer"),
        (1.0, TypeError, "an integer"),
        ("c", TypeError, "an integer"),
    ],
)
def test_wrong_channel_axes_are_refused(axis, kind, words):
    with pytest.raises(kind, match=words):
        denoise(np.zeros((3, 20, 20)), RESIDUAL, channel_axis=axis)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amount": 1.5}, "amount must be .* 0 to 1, got 1.5"),
        ({"amount": float("nan")}, "amount must be .* got nan"),
        ({"amount": True}, "0 to 1"),
        ({"tile_size": 0}, "tile_size must be a whole number from 1 to 16384, got 0"),
        ({"tile_size": 2.5}, "whole number"),
        ({"precision": "half"}, "float32"),
        ({"nonfinite": "ignore"}, "fill"),
        ({"device": "tpu"}, "'cpu', 'cuda'"),
        ({"sigma": 3.0}, "is blind"),
        ({"model": "dn-fsat"}, "Did you mean dn-fast"),
        ({"out": np.zeros((3, 3), "f4")}, r"out must be .* got float32 \(3, 3\)"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        denoise(picture(), **{"model": RESIDUAL, **options})


def test_out_must_be_an_array_that_can_be_written_to():
    frozen = np.zeros_like(picture())
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
        denoise(picture(), RESIDUAL, out=frozen)
    with pytest.raises(TypeError, match="out must be an array to write to, got a list"):
        denoise(picture(), RESIDUAL, out=[])


def test_a_zarr_result_too_large_for_memory_is_refused():
    image = zarr.create_array({}, shape=(2**21, 2**21), dtype="u1", chunks=(512, 512))
    with pytest.raises(MemoryError, match=r"needs 4,398,046,511,104 bytes of memory.*Give out="):
        denoise(image, RESIDUAL)


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="'cuda' is not available: .* Use device='cpu'"):
        denoise(picture(), RESIDUAL, device="cuda")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused_with_count_and_place(value):
    image = picture((2, 30, 30))
    image[1, 7, 9] = image[1, 20, 3] = value
    with pytest.raises(
        ValueError, match=r"2 pixels that are NaN or infinite.*at \(1, 7, 9\).*nonfinite='fill'"
    ):
        denoise(image, RESIDUAL)


@pytest.mark.parametrize("model", [RESIDUAL, DIRECT], ids=["residual", "direct"])
@pytest.mark.parametrize("tile", [None, 16])
def test_filled_pixels_stay_and_spoil_no_others(model, tile):
    image = picture((50, 60))
    clean = denoise(image, model)
    image[10, 10], image[30, 20] = np.nan, np.inf
    result = denoise(image, model, nonfinite="fill", tile_size=tile)
    assert np.isnan(result[10, 10])
    assert np.isposinf(result[30, 20])
    assert np.isfinite(result).sum() == result.size - 2
    np.testing.assert_allclose(result[35:, 30:], clean[35:, 30:], atol=1e-1)
    np.testing.assert_allclose(result, denoise(image, model, nonfinite="fill"), atol=1e-3)


def test_a_plane_without_any_finite_pixel_can_be_filled():
    result = denoise(np.full((8, 8), np.nan, "f4"), RESIDUAL, nonfinite="fill")
    assert np.isnan(result).all()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value", [0, 1, 200])
def test_constant_images_stay(name, value):
    noise = 1.0 if name == "noise map" else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = denoise(np.full((20, 30), value, np.uint8), small_model(name), sigma=noise)
    assert (result == value).all()


def test_a_result_that_cannot_fit_is_refused_before_it_is_allocated():
    image = np.broadcast_to(np.float32(1), (2**21, 2**21))
    with pytest.raises(
        MemoryError,
        match=r"needs 17,592,186,044,416 bytes of memory, [\d,]+ are available.*memory map.*dask",
    ):
        denoise(image, RESIDUAL)


# Kinds of arrays


def test_an_output_in_the_same_store_as_the_image_is_refused(tmp_path):
    image = picture(dtype="u2")
    np.save(tmp_path / "a.npy", image)
    source, out = (
        np.load(tmp_path / "a.npy", mmap_mode="r"),
        np.load(tmp_path / "a.npy", mmap_mode="r+"),
    )
    with pytest.raises(ValueError, match="shares memory"):
        denoise(source, RESIDUAL, out=out)
    zarr.create_array(tmp_path / "a.zarr", shape=image.shape, dtype="u2", chunks=(16, 16))
    source, out = (
        zarr.open_array(tmp_path / "a.zarr", mode="r"),
        zarr.open_array(tmp_path / "a.zarr", mode="r+"),
    )
    for same in (source, out):
        with pytest.raises(ValueError, match="shares memory"):
            denoise(source, RESIDUAL, out=same)


def test_lists_are_taken():
    image = picture()
    np.testing.assert_array_equal(
        denoise(image.astype("f8").tolist(), RESIDUAL), denoise(image.astype("f8"), RESIDUAL)
    )


def test_a_matrix_gives_a_plain_array():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        result = denoise(np.matrix(picture()), RESIDUAL)
    assert type(result) is np.ndarray


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_tensors_come_back_as_tensors(dtype):
    tensor = torch.from_numpy(picture()).to(dtype).requires_grad_(dtype.is_floating_point)
    result = denoise(tensor, RESIDUAL)
    assert isinstance(result, torch.Tensor)
    assert (result.dtype, result.device, result.shape) == (
        tensor.dtype,
        tensor.device,
        tensor.shape,
    )
    assert not result.requires_grad


def test_memory_maps_are_not_written_to(tmp_path):
    np.save(tmp_path / "a.npy", picture(dtype="u2"))
    image = np.load(tmp_path / "a.npy", mmap_mode="r")
    before = (tmp_path / "a.npy").read_bytes()
    denoise(image, RESIDUAL)
    assert (tmp_path / "a.npy").read_bytes() == before


def test_out_receives_the_result(tmp_path):
    image = picture(dtype="u2")
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", image.dtype, image.shape)
    assert denoise(image, RESIDUAL, out=out) is out
    np.testing.assert_array_equal(out, denoise(image, RESIDUAL))
    with pytest.raises(ValueError, match="shares memory"):
        denoise(image, RESIDUAL, out=image)


@pytest.mark.parametrize("shape", [(60, 70), (3, 61, 71)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_zarr_gives_zarr(shape, dtype):
    image = picture(shape, dtype)
    source = zarr.create_array(
        {}, shape=shape, dtype=dtype, chunks=(*(1,) * (len(shape) - 2), 16, 32)
    )
    source[...] = image
    result = denoise(source, RESIDUAL, tile_size=32)
    assert isinstance(result, zarr.Array)
    assert result.chunks == source.chunks
    np.testing.assert_allclose(
        result[...], denoise(image, RESIDUAL, tile_size=32), atol=1 if dtype[0] == "u" else 1e-4
    )


class OnDisk:
    """An array on disk of some other library, such as h5py: only ever read in parts."""

    def __init__(self, array, chunks):
        self.array, self.chunks, self.largest = array, chunks, 0
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index):
        part = self.array[index]
        self.largest = max(self.largest, part.size)
        return part


def test_arrays_on_disk_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(planes, "BLOCK_PIXELS", 64 * 64)
    image = picture((2, 300, 310), "u2")
    source = OnDisk(image, (1, 64, 50))
    result = denoise(source, RESIDUAL, tile_size=40)
    np.testing.assert_array_equal(result, denoise(image, RESIDUAL, tile_size=40))
    assert (
        source.largest <= (60 + 2 * MARGIN) ** 2
    )  # a tile, its halo, and what tells hot pixels there


@pytest.mark.parametrize("model", [RESIDUAL, DIRECT], ids=["residual", "direct"])
@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((64, 81), (64, 81)),
        ((61, 80), (7, 13)),
        ((2, 75, 70), (1, 33, 50)),
        ((2, 3, 40, 41), (2, 1, 20, 41)),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8"])
def test_dask_stays_lazy_and_equals_numpy(model, shape, chunks, dtype):
    image = picture(shape, dtype)
    lazy = denoise(da.from_array(image, chunks=chunks), model)
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == image.dtype
    result = lazy.compute(scheduler="synchronous")
    difference = np.abs(result.astype("f8") - denoise(image, model).astype("f8"))
    assert difference.max() <= (1 if image.dtype.kind == "u" else 2e-3)
    assert (difference > 0.5).mean() < 0.01


@pytest.mark.parametrize("shape", [(1, 1), (10, 64), (2, 10, 50)])
def test_dask_images_smaller_than_the_halo_work(shape):
    image = picture(shape)
    np.testing.assert_allclose(denoise(da.from_array(image)).compute(), denoise(image), atol=1e-3)


def test_dask_computes_nothing_until_asked():
    def fail(block):
        raise AssertionError("computed")

    source = da.from_array(picture(), chunks=20).map_blocks(
        fail, dtype="f4", meta=np.empty((0, 0), "f4")
    )
    assert denoise(source, RESIDUAL).shape == (40, 44)


def test_dask_with_unknown_chunks_is_refused():
    image = da.from_array(picture(), chunks=20)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        denoise(image[image[:, 0] > 0], RESIDUAL)


@pytest.mark.parametrize("model", [RESIDUAL, DIRECT], ids=["residual", "direct"])
def test_dask_finds_pixels_that_are_not_finite_with_count_and_place(model):
    image = picture((2, 60, 60))
    image[1, 40, 50] = np.nan
    lazy = denoise(da.from_array(image, chunks=(1, 20, 20)), model)
    with pytest.raises(ValueError, match=r"1 pixel that is NaN or infinite.*at \(1, 40, 50\)"):
        lazy.compute(scheduler="synchronous")


def test_dask_holds_a_few_chunks_of_a_plane_at_a_time():
    alive = set()
    most = 0

    def block(block_id):
        nonlocal most
        pixels = picture((64, 64), seed=sum(block_id))
        alive.add(id(pixels))
        most = max(most, len(alive))
        weakref.finalize(pixels, alive.discard, id(pixels))
        return pixels

    source = da.map_blocks(
        lambda block_id=None: block(block_id),
        chunks=((64,) * 8, (64,) * 8),
        dtype="f4",
        meta=np.empty((0, 0), "f4"),
    )
    denoise(source, RESIDUAL).store(
        np.empty((512, 512), "f4"), scheduler="synchronous", return_stored=False
    )
    assert (
        most <= 24
    )  # of 64: three rows of chunks, since a chunk's halo lies in the rows above and below


@pytest.mark.parametrize("factor", [1e-60, 1e300])
def test_dask_scales_extreme_floats_as_numpy_does(factor):
    image = picture(dtype="f8") * factor
    result = denoise(da.from_array(image, chunks=20), RESIDUAL).compute()
    np.testing.assert_allclose(result, denoise(image, RESIDUAL), rtol=1e-3, atol=1e-3 * factor)


def test_dask_scales_the_noise_level_with_extreme_floats():
    image, model = picture((2, 40, 44), "f8") * 1e32, small_model("noise map")
    result = denoise(da.from_array(image, chunks=(1, 20, 22)), model, sigma=8e32).compute()
    np.testing.assert_allclose(result, denoise(image, model, sigma=8e32), rtol=1e-3, atol=1e29)


def test_dask_works_in_other_processes_with_a_model_in_use():
    image = picture()
    expected = denoise(image, RESIDUAL)
    again = copy.deepcopy(RESIDUAL)
    np.testing.assert_array_equal(denoise(image, again), expected)
    lazy = denoise(da.from_array(image, chunks=(20, 44)), RESIDUAL)
    np.testing.assert_allclose(
        lazy.compute(scheduler="processes", num_workers=1), expected, atol=1e-3
    )


def test_dask_takes_no_out():
    with pytest.raises(ValueError, match=r"stays lazy.*store\(out\)"):
        denoise(da.from_array(picture()), RESIDUAL, out=picture())


class OnGpu:
    """What a cupy array looks like from outside."""

    __cuda_array_interface__ = {"shape": (8, 8)}  # noqa: RUF012
    shape, dtype = (8, 8), np.dtype("f4")


def test_arrays_of_other_devices_are_refused():
    with pytest.raises(TypeError, match=r"Use image\.get\(\)"):
        denoise(OnGpu(), RESIDUAL)


# Axes


def test_planes_never_mix():
    stack = picture((3, 2, 30, 32))
    result = denoise(stack, RESIDUAL)
    for index in itertools.product(range(3), range(2)):
        np.testing.assert_array_equal(result[index], denoise(stack[index], RESIDUAL))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_channel_axis_may_stand_anywhere(axis):
    channels = picture((5, 24, 26))
    moved = np.moveaxis(channels, 0, axis)
    result = denoise(moved, RESIDUAL, channel_axis=axis)
    np.testing.assert_array_equal(np.moveaxis(result, axis, 0), denoise(channels, RESIDUAL))


@pytest.mark.parametrize(("shape", "axis"), [((24, 26, 1), -1), ((24, 26), None)])
def test_alpha_without_anything_beside_it_is_refused(shape, axis):
    with pytest.raises(ValueError, match="Leave out alpha"):
        denoise(picture(shape), RESIDUAL, channel_axis=axis, alpha=True)


@pytest.mark.parametrize("name", ["direct", "residual", "paper", "levels"])
def test_every_small_size_works(name):
    model = small_model(name)
    sizes = range(1, 71, 1 if name == "residual" else 9)
    for height, width in (
        [(size, 1) for size in sizes]
        + [(1, size) for size in sizes]
        + [(size, size) for size in sizes]
    ):
        result = denoise(np.random.default_rng(0).random((height, width), "f4"), model)
        assert result.shape == (height, width)
        assert np.isfinite(result).all()


# Options


def test_amount_blends():
    image = picture()
    half = denoise(image, RESIDUAL, amount=0.5)
    np.testing.assert_allclose(half, (image + denoise(image, RESIDUAL)) / 2, atol=1e-4)
    np.testing.assert_array_equal(denoise(image, RESIDUAL, amount=0), image)


def test_models_with_a_noise_map_need_the_noise_and_use_it():
    model = small_model("noise map")
    with pytest.raises(ValueError, match="needs the noise level. Give sigma"):
        denoise(picture(), model)
    weak, strong = (denoise(picture(), model, sigma=level) for level in (1.0, 30.0))
    assert np.abs(weak - strong).max() > 0.1


def test_steps_count_tiles_and_end_with_the_result():
    steps = list(denoise_steps(picture((2, 50, 50)), RESIDUAL, tile_size=25))
    assert [step.done for step in steps] == [0, 0, *range(1, 9)], "both planes are checked first"
    assert all(step.total == 8 for step in steps)
    assert all(step.result is None for step in steps[:-1])
    assert steps[-1].result.shape == (2, 50, 50)


def test_closing_the_steps_stops_the_work():
    out = np.zeros((50, 40, 40), "f4")
    steps = denoise_steps(picture((50, 40, 40)) + 1, RESIDUAL, out=out)
    assert next(step.done for step in steps if step.done) == 1
    steps.close()
    assert out[0].all()
    assert not out[1:].any()


@given(data=st.data())
def test_any_shape_and_tile_equals_the_whole(data):
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    planes = data.draw(st.integers(1, 2))
    tile = data.draw(st.integers(1, 100))
    model = small_model(data.draw(st.sampled_from(["direct", "residual"])))
    image = np.random.default_rng(height * 97 + width).random((planes, height, width)) * 100
    tiled = denoise(
        image, model, tile_size=max(tile, max(height, width) // 6 + 1), precision="float64"
    )
    np.testing.assert_allclose(
        tiled, denoise(image, model, tile_size=128, precision="float64"), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((1, 1), None),
        ((1, 97), 8),
        ((2, 211), 1),
        ((131, 149), 8),
        ((199, 113), 33),
        ((7, 5000), None),
        ((5000, 7), 64),
    ],
)
def test_a_network_with_levels_tiled_equals_the_whole(shape, tile):
    model = small_model("levels")
    image = np.random.default_rng(0).random(shape)
    options = {"tile_size": tile, "precision": "float64"}
    tiled = dn_core.plan_denoise(image, model, **options).tiles.total > 1
    assert tiled == (max(shape) > 1)
    network = model.checkpoint.network().double()
    with torch.no_grad():
        whole = network(torch.from_numpy(image)[None, None]).numpy()[0, 0]
    np.testing.assert_allclose(denoise(image, model, **options), whole, rtol=0, atol=1e-12)


def test_a_network_with_levels_works_in_dask_chunks_of_any_size():
    model, image = small_model("levels"), np.random.default_rng(0).random((150, 203))
    whole = denoise(image, model, precision="float64")
    for chunks in ((150, 203), (40, 50), (97, 31), (8, 203), (150, 201)):
        lazy = denoise(da.from_array(image, chunks=chunks), model, precision="float64")
        assert lazy.chunks == da.from_array(image, chunks=chunks).chunks
        result = lazy.compute(scheduler="synchronous")
        np.testing.assert_allclose(result, whole, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*hot or dead pixel")
@pytest.mark.parametrize("place", [(50, 20), (49, 51), (50, 51)])
def test_a_hot_pixel_at_the_end_is_not_repeated_where_the_plane_is_padded(place):
    """Beyond the image the network sees what it would see without the hot pixel."""
    image = picture((51, 52), "f8")
    hot = image.copy()
    hot[place] = 3000
    result = denoise(hot, small_model("levels"), precision="float64", hot_pixels="remove")
    expected = denoise(image, small_model("levels"), precision="float64")
    elsewhere = np.ones(image.shape, bool)
    elsewhere[place] = False
    np.testing.assert_allclose(result[elsewhere], expected[elsewhere], atol=12)  # of 3000
    lazy = denoise(
        da.from_array(hot), small_model("levels"), precision="float64", hot_pixels="remove"
    )
    np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), result, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", dn_core.model_names())
@pytest.mark.parametrize("tile", [33, 50, 128])
def test_bundled_networks_tiled_equal_the_whole(name, tile):
    image = np.random.default_rng(0).random((2, 131, 150))
    whole = denoise(image, name, tile_size=256, precision="float64")
    np.testing.assert_allclose(
        denoise(image, name, tile_size=tile, precision="float64"), whole, rtol=0, atol=1e-12
    )


# Memory and threads


class FullDevice:
    """An engine of a device that holds no more than `limit` pixels."""

    name, dtype, precision = "full", np.dtype("f4"), "float32"

    def __init__(self, engine, limit):
        self.engine, self.limit, self.memory = engine, limit, engine.memory

    def run(self, work, *, parallel):
        def checked():
            for key, array in work:
                if array[0].size > self.limit:
                    raise TileTooLargeError("full")
                yield key, array

        yield from self.engine.run(checked(), parallel=parallel)


@pytest.mark.parametrize("limit", [100**2, 1])
def test_out_of_memory_halves_the_tile_then_falls_back_to_the_cpu_with_one_warning(
    monkeypatch, limit
):
    image = picture((150, 160))
    expected = denoise(image, RESIDUAL)
    asked = []

    def engine(checkpoint, device, precision):
        asked.append(device)
        real = original(checkpoint, "cpu", precision)
        return FullDevice(real, limit) if device == "cuda" else real

    original = loaded.build_engine
    monkeypatch.setattr(loaded, "build_engine", engine)
    monkeypatch.setattr(plan, "choose_device", lambda device: device or "cuda")
    model = dn_core.Model(RESIDUAL.checkpoint)
    with pytest.warns(RuntimeWarning, match="ran out of memory") as caught:
        result = denoise(image, model)
    assert len(caught) == 1
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert asked == (["cuda", "cpu"] if limit == 1 else ["cuda"])


def test_the_cpu_without_memory_says_so(monkeypatch):
    original = loaded.build_engine
    monkeypatch.setattr(
        loaded, "build_engine", lambda *arguments: FullDevice(original(*arguments), 1)
    )
    with pytest.warns(RuntimeWarning, match="ran out of memory"), pytest.raises(MemoryError):
        denoise(picture(), dn_core.Model(RESIDUAL.checkpoint))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_torch_says_out_of_memory_in_several_ways(monkeypatch, error):
    engine = RESIDUAL.engine("cpu", "float64")
    monkeypatch.setattr(engine._network, "body", lambda tile: (_ for _ in ()).throw(error))
    with pytest.raises(TileTooLargeError, match="64x64 pixels"):
        list(engine.run([(0, np.zeros((1, 64, 64)))], parallel=False))


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(monkeypatch):
    engine = small_model("paper").engine("cpu", "float64")
    monkeypatch.setattr(
        engine._network, "body", lambda tile: (_ for _ in ()).throw(RuntimeError("bad kernel"))
    )
    with pytest.raises(RuntimeError, match="bad kernel"):
        list(engine.run([(0, np.zeros((1, 64, 64)))], parallel=False))


def test_threads_may_share_a_model():
    images = [picture((60, 64), seed=seed) for seed in range(8)]
    expected = [denoise(image, RESIDUAL) for image in images]
    failures = []

    def work(index):
        for _ in range(50):
            if not np.array_equal(denoise(images[index], RESIDUAL), expected[index]):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_thread_counts_are_left_alone():
    before = torch.get_num_threads()
    denoise(picture(), RESIDUAL, precision="float64")
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is needed")
def test_memory_does_not_grow_with_the_image(tmp_path):
    code = """
import sys
import numpy as np
import dn_core
shape = (int(sys.argv[1]), 1000)
image = np.lib.format.open_memmap(sys.argv[2], "w+", "u2", shape)
out = np.lib.format.open_memmap(sys.argv[3], "w+", "u2", shape)
rows = np.arange(1000, dtype="u2")
def peak():  # kB; not getrusage, which counts the memory of the parent process too
    status = open("/proc/self/status")
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1])
for top in range(0, shape[0], 500):
    image[top:top + 500] = rows + 100
    image.flush()
for step in dn_core.denoise_steps(image, out=out, tile_size=200, amount=0.5):
    if step.done == 40:
        start = peak()
grown = peak() - start
mapped = 2 * image.nbytes / 1024
print(grown, mapped)
"""
    output = subprocess.run(
        [sys.executable, "-c", code, "6000", tmp_path / "in.npy", tmp_path / "out.npy"],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, mapped = (float(value) for value in output.stdout.split())
    assert grown < mapped + 100_000  # kB: no more than the two files' own pages and 100 MB


def test_the_engine_has_a_name():
    assert "CPU" in dn_core.engine_name(device="cpu") or "cpu" in dn_core.engine_name(device="cpu")
    assert dn_core.engine_name(RESIDUAL, device="cpu", dtype=np.float32).endswith("float32")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_a_result_blended_afterwards_is_that_of_the_amount(dtype):
    image = picture((2, 60, 50)).astype(dtype)
    whole = denoise(image, RESIDUAL)
    lazy = da.from_array(image, chunks=(1, 30, 25))
    for amount in (0, 0.3, 1):
        expected = dn_core.blend(image, whole, amount)
        assert np.array_equal(denoise(image, RESIDUAL, amount=amount), expected)
        assert np.allclose(
            np.asarray(denoise(lazy, RESIDUAL, amount=amount), np.float64),
            expected,
            rtol=1e-6,
            atol=1,
        )
    assert np.array_equal(dn_core.blend(image, whole, 0), image)
