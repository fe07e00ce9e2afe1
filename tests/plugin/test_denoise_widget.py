"""The dock widget "Denoise layer", in a real window, as a user drives it."""

import copy
import gc
import itertools
import shlex
import subprocess
import sys
import textwrap
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from qtpy.QtWidgets import QApplication

import dn_core
from napari_dnresnet import large_results, request
from napari_dnresnet.results import METADATA

NAME = "Denoise layer"
KEPT = (
    "scale",
    "translate",
    "rotate",
    "shear",
    "axis_labels",
    "units",
    "gamma",
    "opacity",
    "blending",
    "contrast_limits",
)


def picture(shape: tuple[int, ...], dtype: str = "uint16") -> Any:
    rows, columns = np.mgrid[: shape[-2], : shape[-1]]
    clean = 120 + 60 * np.sin(rows / 9) * np.cos(columns / 7)
    noisy = clean + np.random.default_rng(0).normal(0, 15, shape)
    return (noisy / 255 if dtype.startswith("float") else np.clip(np.rint(noisy), 0, 255)).astype(
        dtype
    )


def run(widget: Any, wait: Any) -> Any:
    widget.run.clicked.emit(True)
    wait(lambda: widget.task is None)
    wait(lambda: widget.result is None or not widget.result.busy)
    return None if widget.result is None else widget.result.layer


def test_without_a_layer_it_says_what_to_do(viewer, open_widget):
    widget = open_widget(NAME)
    assert not widget.run.enabled
    assert "Open an image" in widget.axes.description.value
    widget.start()
    assert len(viewer.layers) == 0
    assert widget.task is None


def test_one_click_denoises_and_keeps_everything(viewer, open_widget, wait):
    image = picture((3, 80, 90))
    layer = viewer.add_image(
        image,
        name="cells",
        scale=(2, 0.5, 0.25),
        translate=(5, 6, 7),
        rotate=20,
        shear=(0.1, 0, 0),
        units=("um", "um", "um"),
        axis_labels=("z", "y", "x"),
        colormap="magenta",
        contrast_limits=(90, 200),
        gamma=0.8,
        opacity=0.7,
        blending="additive",
        metadata={"stage": 7},
    )
    layer.contrast_limits_range = (0, 4000)
    before = image.copy()
    result = run(open_widget(NAME), wait)
    assert result.name == "cells denoised"
    assert result.dtype == image.dtype
    assert result.data.shape == image.shape
    for name in KEPT:
        assert np.array_equal(
            np.asarray(getattr(result, name)), np.asarray(getattr(layer, name))
        ), name
    for point in ((0, 0, 0), (1, 20, 30)):
        assert np.allclose(result.data_to_world(point), layer.data_to_world(point))
    assert result.colormap.name == "magenta"
    assert result.contrast_limits_range == [0, 4000]
    assert result.metadata["stage"] == 7
    assert METADATA not in layer.metadata
    facts = result.metadata[METADATA]
    assert facts["model"] == "dn-fast@1"
    assert len(facts["model_sha256"]) == 64
    assert facts["axes"] == "ZYX"
    assert facts["amount"] == 1
    assert np.array_equal(result.data, dn_core.denoise(image))
    assert np.array_equal(image, before)


CASES = [
    ("numpy", (40, 50), "uint8"),
    ("numpy", (2, 40, 50), "float32"),
    ("dask", (40, 50), "uint16"),
    ("dask", (3, 40, 50), "uint8"),
    ("dask", (2, 2, 40, 50), "float32"),
    ("zarr", (40, 50), "float32"),
    ("zarr", (2, 40, 50), "uint16"),
    ("zarr", (2, 2, 2, 40, 50), "uint8"),
    ("numpy", (2, 2, 40, 50), "int16"),
    ("numpy", (1, 2, 2, 40, 50), "float64"),
    ("numpy", (5, 40, 3), "uint8"),  # three columns that are no colours
]


@pytest.mark.parametrize(("kind", "shape", "dtype"), CASES)
@pytest.mark.parametrize("large", [False, True])
def test_every_kind_of_array_gives_what_the_library_gives(
    viewer, open_widget, wait, monkeypatch, kind, shape, dtype, large
):
    monkeypatch.setattr(request, "LARGE_BYTES", 0 if large else 2**30)
    image = picture(shape, dtype)
    data = image
    if kind == "dask":
        data = da.from_array(image, chunks=(*[1] * (len(shape) - 2), 16, 16))
    if kind == "zarr":
        data = zarr.create_array(
            {}, shape=shape, dtype=dtype, chunks=(*[1] * (len(shape) - 2), 32, 32)
        )
        data[...] = image
    viewer.add_image(data, name="image", rgb=False, contrast_limits=(0, 255))
    result = run(open_widget(NAME), wait)
    expected = dn_core.denoise(image, channel_axis=None)
    assert result.data.shape == shape
    assert result.dtype == image.dtype
    assert not result.multiscale
    assert np.array_equal(np.asarray(result.data), expected)
    assert isinstance(result.data, zarr.Array if large else np.ndarray)


def in_zarr(image: Any) -> Any:
    array = zarr.create_array(
        {},
        shape=image.shape,
        dtype=image.dtype,
        chunks=(*[1] * (image.ndim - 2), *image.shape[-2:]),
    )
    array[...] = image
    return array


def pyramid(image: Any) -> Any:
    rows = image.ndim - 3 if image.shape[-1] == 3 else image.ndim - 2
    half = (*[slice(None)] * rows, slice(None, None, 2), slice(None, None, 2))
    return [image, image[half]]


KINDS = {
    "numpy": np.copy,
    "dask": lambda image: da.from_array(image, chunks="auto"),
    "zarr": in_zarr,
    "multiscale": pyramid,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_kept_of_every_kind_of_layer(own_settings, make_napari_viewer, wait, kind):
    viewer = make_napari_viewer()
    widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", NAME)[1]
    for ndim, pixels in itertools.product((2, 3, 4, 5), ("uint8", "uint16", "float32", "rgb")):
        rgb = pixels == "rgb"
        shape = (*[2] * (ndim - 2), 32, 48)
        image = np.stack([picture(shape, "uint8")] * 3, axis=-1) if rgb else picture(shape, pixels)
        affine = np.eye(ndim + 1)
        affine[:2, -1] = 3, 4
        look = {} if rgb else {"colormap": "magenta", "contrast_limits": (0.1, 200), "gamma": 0.8}
        layer = viewer.add_image(
            KINDS[kind](image),
            name=f"{ndim} {pixels}",
            rgb=rgb,
            multiscale=kind == "multiscale",
            scale=np.linspace(2, 0.25, ndim),
            translate=np.arange(ndim),
            rotate=20,
            shear=[0.1, *[0] * (ndim * (ndim - 1) // 2 - 1)],
            affine=affine,
            units=["um"] * ndim,
            axis_labels="qtzyx"[-ndim:],
            metadata={"stage": 7},
            **look,
        )
        result = run(widget, wait)
        expected = dn_core.denoise(image, channel_axis=-1 if rgb else None)
        assert result.name == f"{layer.name} denoised", widget.status.value
        assert (result.dtype, result.rgb, result.multiscale) == (image.dtype, rgb, False)
        assert np.array_equal(np.asarray(result.data), expected)
        for name in (*KEPT, "affine"):
            before, after = (np.asarray(getattr(which, name)) for which in (layer, result))
            assert np.array_equal(after, before), (name, layer.name)
        for point in (np.zeros(ndim), np.arange(ndim)):
            assert np.allclose(result.data_to_world(point), layer.data_to_world(point))
        assert rgb or result.colormap.name == "magenta"
        assert result.metadata["stage"] == 7


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_are_denoised_and_alpha_is_left_alone(viewer, open_widget, wait, channels):
    image = np.stack([picture((60, 70), "uint8")] * channels, axis=-1)
    image[..., -1] += np.uint8(channels == 4)
    viewer.add_image(image, name="image", rgb=True)
    widget = open_widget(NAME)
    assert widget.axes.letters.value == "YXS"
    assert ("alpha unchanged" in widget.axes.description.value) == (channels == 4)
    result = run(widget, wait)
    assert result.rgb
    assert np.array_equal(result.data, dn_core.denoise(image, channel_axis=-1, alpha=channels == 4))
    widget.residual.clicked.emit(True)
    assert viewer.layers["image residual"].data.shape == (60, 70)


def test_a_pyramid_gives_its_finest_level(viewer, open_widget, wait):
    image = picture((128, 128))
    viewer.add_image([image, image[::2, ::2]], name="image", multiscale=True)
    result = run(open_widget(NAME), wait)
    assert not result.multiscale
    assert np.array_equal(result.data, dn_core.denoise(image))


def test_the_axes_are_read_and_can_be_corrected(viewer, open_widget, wait):
    viewer.add_image(
        picture((4, 3, 40, 50)), name="image", axis_labels=("time", "channel", "y", "x")
    )
    widget = open_widget(NAME)
    assert widget.axes.letters.value == "TCYX"
    assert "T: 4 time points, each denoised on its own" in widget.axes.description.value
    assert "C: 3 channels" in widget.axes.description.value
    widget.axes.letters.value = "TCXX"
    assert "one Y (rows) and one X" in widget.axes.description.value
    widget.start()
    assert widget.task is None
    assert len(viewer.layers) == 1


def test_columns_may_come_before_rows(viewer, open_widget, wait):
    image = picture((3, 64, 128))
    viewer.add_image(image, name="image", axis_labels=("t", "x", "y"))
    widget = open_widget(NAME)
    assert widget.axes.letters.value == "TXY"
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    assert np.array_equal(widget.preview.layer.data, dn_core.denoise(image[1:2]))
    assert np.array_equal(run(widget, wait).data, dn_core.denoise(image))


def test_the_amount_is_a_blend_of_what_is_kept(viewer, open_widget, wait):
    image = picture((3, 60, 70))
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    widget.amount.value = 0.25
    result = run(widget, wait)
    assert np.array_equal(result.data, dn_core.denoise(image, amount=0.25))
    assert result.metadata[METADATA]["amount"] == 0.25
    for amount in (0.6, 0.0, 1.0):
        widget.amount.value = amount
        wait(lambda: not widget.result.busy)
        assert np.array_equal(result.data, dn_core.denoise(image, amount=amount))
    assert np.array_equal(widget.result.denoised, dn_core.denoise(image))


def test_the_last_amount_of_many_is_the_one(viewer, open_widget, wait, qtbot):
    image = picture((6, 500, 500), "float32")
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    result = run(widget, wait)
    for _ in range(5):
        for amount in (0.9, 0.2, 0.6, 0.3):
            widget.amount.value = amount
            qtbot.wait(4)
        wait(lambda: not widget.result.busy)
        assert np.array_equal(result.data, dn_core.blend(image, widget.result.denoised, 0.3))


def test_each_layer_has_its_own_result(viewer, open_widget, wait):
    images = {name: picture((40, 50)) + np.uint16(number) for number, name in enumerate("ab")}
    layers = {name: viewer.add_image(image, name=name) for name, image in images.items()}
    widget = open_widget(NAME)
    for name in "ab":
        widget.layer.value = layers[name]
        run(widget, wait)
    widget.layer.value = layers["a"]
    widget.amount.value = 0.5
    wait(lambda: not widget.result.busy)
    assert np.array_equal(
        viewer.layers["a denoised"].data, dn_core.denoise(images["a"], amount=0.5)
    )
    assert np.array_equal(viewer.layers["b denoised"].data, dn_core.denoise(images["b"]))
    assert "layers['a']" in widget.code("python")
    widget.layer.value = layers["b"]
    assert widget.amount.value == 1


def test_a_copy_of_a_result_on_disk_keeps_its_pixels(viewer, open_widget, wait, monkeypatch):
    monkeypatch.setattr(request, "LARGE_BYTES", 0)
    image = picture((2, 40, 50))
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    result = run(widget, wait)
    copied = copy.deepcopy(result.data)
    viewer.layers.remove(result)
    del result
    gc.collect()
    assert np.array_equal(copied[...], dn_core.denoise(image))


@pytest.mark.parametrize("dtype", ["float64", "uint32", "int64"])
def test_the_residual_of_large_values_is_exact(viewer, open_widget, wait, dtype):
    image = (picture((40, 50), "float64") * 20 + 2e9).astype(dtype)
    viewer.add_image(image, name="image", contrast_limits=(2e9, 2e9 + 1000))
    widget = open_widget(NAME)
    result = run(widget, wait)
    widget.residual.clicked.emit(True)
    expected = image.astype("f8") - np.asarray(result.data).astype("f8")
    assert expected.std() > 1
    assert np.allclose(viewer.layers["image residual"].data, expected)


def test_the_preview_follows_its_layer(viewer, open_widget, wait):
    layer, other = (viewer.add_image(picture((64, 64)), name=name) for name in ("a", "b"))
    widget = open_widget(NAME)
    widget.layer.value = layer
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    layer.data = layer.data + np.uint16(50)
    layer.scale = (2, 3)
    layer.contrast_limits = (10, 99)
    wait(lambda: not widget.preview.busy)
    shown = widget.preview.layer
    assert np.array_equal(shown.data, dn_core.denoise(layer.data))
    assert np.allclose(shown.data_to_world((1, 1)), (2, 3))
    assert tuple(shown.contrast_limits) == (10, 99)
    widget.layer.value = other
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    assert widget.preview.layer.name == "b preview"


def test_the_preview_computes_the_plane_on_screen_alone(viewer, open_widget, wait):
    computed = []

    def plane(block):
        if block.size:
            computed.append(1)
        return block

    data = da.from_array(picture((30, 64, 64)), chunks=(1, 64, 64)).map_blocks(
        plane, dtype="uint16", meta=np.empty((0, 0, 0), "uint16")
    )
    viewer.add_image(data, name="image", contrast_limits=(0, 255))
    computed.clear()
    widget = open_widget(NAME)
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    assert len(computed) < 5


def test_four_channels_are_no_colours_in_the_code_either(viewer, open_widget, wait):
    image = np.stack([picture((60, 70))] * 4, axis=-1)
    viewer.add_image(image, name="image", rgb=False, axis_labels=("y", "x", "c"))
    widget = open_widget(NAME)
    result = run(widget, wait)
    names: dict[str, Any] = {"viewer": viewer}
    exec(widget.code("python"), names)
    assert np.array_equal(names["clean"], result.data)
    assert "--channel-axis 2" in widget.code("command")


def test_channels_that_are_guessed_are_said_to_be_a_guess(viewer, open_widget, wait):
    image = np.stack([picture((60, 70))] * 5, axis=-1)
    viewer.add_image(image, name="image", rgb=False)
    widget = open_widget(NAME)
    assert widget.axes.letters.value == "YXC"
    assert "A guess from the shape" in widget.axes.description.value
    assert np.array_equal(run(widget, wait).data, dn_core.denoise(image, channel_axis=-1))
    viewer.layers.selection.active = viewer.layers["image"]
    widget.axes.letters.value = "ZYX"
    assert "guess" not in widget.axes.description.value


def test_the_command_says_when_the_layer_is_no_file(viewer, open_widget, tmp_path):
    np.save(tmp_path / "image.npy", picture((40, 50)))
    viewer.open(str(tmp_path / "image.npy"), plugin="napari")
    assert open_widget(NAME).code("command").startswith("# save the layer as ")


def test_a_missing_folder_for_large_results_is_explained(viewer, open_widget, monkeypatch):
    from napari.settings import get_plugin_settings

    monkeypatch.setattr(request, "LARGE_BYTES", 0)
    preferences = get_plugin_settings("napari-dnresnet").general
    preferences.folder = "/nope"
    viewer.add_image(picture((40, 50)), name="image")
    widget = open_widget(NAME)
    widget.start()
    preferences.folder = ""
    assert (
        widget.status.value
        == "The folder for large results is missing. Create it, or choose another one in the "
        "plugin's preferences: /nope"
    )


def test_the_amount_of_a_result_on_disk_is_applied_when_it_is_looked_at(
    viewer, open_widget, wait, monkeypatch
):
    monkeypatch.setattr(request, "LARGE_BYTES", 0)
    image = picture((3, 60, 70))
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    widget.amount.value = 0.5
    result = run(widget, wait)
    assert np.array_equal(np.asarray(result.data), dn_core.denoise(image, amount=0.5))
    widget.amount.value = 1
    assert np.array_equal(np.asarray(result.data), dn_core.denoise(image))


def test_python_and_command_make_the_same_pixels_again(viewer, open_widget, wait, tmp_path):
    import tifffile

    path = tmp_path / "my image.tif"
    tifffile.imwrite(path, picture((3, 60, 70)), photometric="minisblack")
    (layer,) = viewer.open(str(path), plugin="napari")
    widget = open_widget(NAME)
    widget.model.value, widget.amount.value = "dn-resnet-13", 0.7
    result = run(widget, wait)
    names: dict[str, Any] = {"viewer": viewer}
    exec(widget.code("python"), names)
    assert np.array_equal(names["clean"], result.data)
    command = [sys.executable, "-c", "import sys; from dn_core.cli import main; main()"]
    line = widget.code("command")
    assert line.startswith("dn-resnet denoise ")
    subprocess.run([*command, *shlex.split(line)[1:]], check=True, timeout=120)
    assert np.array_equal(tifffile.imread(tmp_path / "my image denoised.tif"), result.data)
    assert layer.name == "my image"
    widget.copy_python.clicked.emit(True)
    assert QApplication.clipboard().text() == widget.code("python")


def test_cancelling_leaves_nothing(viewer, open_widget, wait, slow):
    viewer.add_image(slow, name="slow", contrast_limits=(0, 255))
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    wait(lambda: widget.bar.value > 2)
    assert widget.stop.enabled
    assert "left" in widget.status.value
    widget.stop.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert [layer.name for layer in viewer.layers] == ["slow"]
    assert widget.run.enabled
    assert widget.status.value == "Cancelled."


def test_cancelling_a_result_on_disk_takes_its_layer_and_files_away(
    viewer, open_widget, wait, slow, monkeypatch, own_settings
):
    monkeypatch.setattr(request, "LARGE_BYTES", 0)
    monkeypatch.setattr(large_results.tempfile, "gettempdir", lambda: str(own_settings))
    viewer.add_image(slow, name="slow", contrast_limits=(0, 255))
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    wait(lambda: widget.bar.value > 2)
    assert "slow denoised" in viewer.layers
    assert list(own_settings.glob("dnresnet-*"))
    widget.stop.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert [layer.name for layer in viewer.layers] == ["slow"]
    wait(lambda: (gc.collect(), not list(own_settings.glob("dnresnet-*")))[1])


def test_the_input_may_go_while_it_is_denoised(viewer, open_widget, wait):
    image = picture((20, 64, 64))
    layer = viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    viewer.layers.remove(layer)
    wait(lambda: widget.task is None)
    assert np.array_equal(viewer.layers["image denoised"].data, dn_core.denoise(image))


def test_a_result_taken_away_is_forgotten(viewer, open_widget, wait):
    viewer.add_image(picture((40, 40)), name="image")
    widget = open_widget(NAME)
    viewer.layers.remove(run(widget, wait))
    assert widget.result is None
    assert not widget.residual.enabled
    widget.amount.value = 0.5
    assert run(widget, wait).name == "image denoised"


def test_closing_the_dock_stops_the_work(viewer, open_widget, wait, slow):
    viewer.add_image(slow, name="slow", contrast_limits=(0, 255))
    widget = open_widget(NAME)
    widget.preview_on.value = True
    widget.run.clicked.emit(True)
    wait(lambda: widget.bar.value > 2)
    job = widget.task
    viewer.window.remove_dock_widget(widget.native)
    wait(lambda: not job.running)
    assert job.cancelled
    assert [layer.name for layer in viewer.layers] == ["slow"]


@pytest.mark.parametrize("when", ["run", "preview"])
def test_closing_the_viewer_mid_run_is_quiet(viewer, open_widget, wait, slow, when):
    viewer.add_image(slow, name="slow", contrast_limits=(0, 255))
    widget = open_widget(NAME)
    if when == "preview":
        widget.preview_on.value = True
        wait(lambda: widget.preview._task is not None)
        return
    widget.run.clicked.emit(True)
    wait(lambda: widget.bar.value > 1)


def test_nan_is_explained_and_can_be_left_alone(viewer, open_widget, wait):
    image = picture((40, 50), "float32")
    image[3, 4] = np.nan
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    assert run(widget, wait) is None
    assert "NaN" in widget.status.value
    assert "(3, 4)" in widget.status.value
    assert len(viewer.layers) == 1
    widget.fill.value = True
    result = run(widget, wait)
    assert np.isnan(result.data[3, 4])
    assert np.isfinite(result.data).sum() == image.size - 1


def test_the_preview_follows_and_lies_exactly_over_the_layer(viewer, open_widget, wait):
    image = picture((4, 300, 320))
    layer = viewer.add_image(
        image, name="image", scale=(1, 0.5, 0.5), rotate=10, translate=(0, 30, 5)
    )
    widget = open_widget(NAME)
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    shown = widget.preview.layer
    viewer.dims.set_current_step(0, 2)
    wait(lambda: not widget.preview.busy and round(shown.data_to_world((0, 0, 0))[0]) == 2)
    corner = np.asarray(layer.world_to_data(shown.data_to_world((0, 0, 0))))
    begin = np.rint(corner).astype(int)
    assert np.allclose(corner, begin, atol=1e-6)
    height, width = shown.data.shape[1:]
    crop = image[begin[0] : begin[0] + 1, begin[1] : begin[1] + height, begin[2] : begin[2] + width]
    assert np.array_equal(shown.data, dn_core.denoise(crop))
    widget.amount.value = 0.5
    assert np.array_equal(shown.data, dn_core.denoise(crop, amount=0.5)), "the amount acts at once"
    assert "image preview" not in [name for name, _ in widget._layers()]
    widget.preview_on.value = False
    assert [layer.name for layer in viewer.layers] == ["image"]


def test_the_preview_says_why_there_is_none(viewer, open_widget, wait):
    viewer.add_image(picture((8, 64, 64)), name="image")
    widget = open_widget(NAME)
    viewer.dims.ndisplay = 3
    widget.preview_on.value = True
    wait(lambda: "3D" in widget.status.value)
    assert widget.preview.layer is None
    viewer.dims.ndisplay = 2
    wait(lambda: widget.preview.layer is not None)
    viewer.dims.roll()
    wait(lambda: "other axes" in widget.status.value)
    assert widget.preview.layer is None


def test_comparing_hides_and_shows_the_result(viewer, open_widget, wait, qtbot):
    viewer.add_image(picture((40, 40)), name="image")
    widget = open_widget(NAME)
    result = run(widget, wait)
    widget.before.native.pressed.emit()
    assert not result.visible
    widget.before.native.released.emit()
    assert result.visible
    widget.flicker.native.click()
    wait(lambda: not result.visible)
    wait(lambda: result.visible)
    widget.flicker.native.click()
    assert result.visible


@pytest.mark.parametrize("large", [False, True])
def test_the_residual_is_what_was_taken_away(large, viewer, open_widget, wait, monkeypatch):
    monkeypatch.setattr(request, "LARGE_BYTES", 0 if large else 2**30)
    image = picture((3, 40, 40))
    viewer.add_image(image, name="image", scale=(1, 2, 3))
    widget = open_widget(NAME)
    result = run(widget, wait)
    widget.residual.clicked.emit(True)
    layer = viewer.layers["image residual"]
    assert np.array_equal(
        np.asarray(layer.data), image.astype("f4") - np.asarray(result.data).astype("f4")
    )
    assert tuple(layer.scale) == (1, 2, 3)


def test_the_layer_that_is_selected_is_the_one(viewer, open_widget, wait):
    first, second = (viewer.add_image(picture((40, 40)), name=name) for name in ("a", "b"))
    widget = open_widget(NAME)
    assert widget.layer.value is second
    viewer.layers.selection.active = first
    assert widget.layer.value is first
    run(widget, wait)
    assert widget.layer.value is first, "the result, which napari selects, is not taken"


def test_a_full_disk_is_said_before_the_work(viewer, open_widget, wait, monkeypatch):
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(request, "LARGE_BYTES", 0)
    monkeypatch.setattr(large_results.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    viewer.add_image(picture((40, 40)), name="image")
    widget = open_widget(NAME)
    widget.start()
    assert widget.task is None
    assert "Free some space" in widget.status.value
    assert len(viewer.layers) == 1


def test_two_viewers_work_side_by_side(own_settings, make_napari_viewer, wait):
    viewers = [make_napari_viewer(), make_napari_viewer()]
    widgets = []
    for number, viewer in enumerate(viewers):
        viewer.add_image(picture((4, 64, 64)) + np.uint16(number), name="image")
        widgets.append(viewer.window.add_plugin_dock_widget("napari-dnresnet", NAME)[1])
    for widget in widgets:
        widget.run.clicked.emit(True)
    for number, (widget, viewer) in enumerate(zip(widgets, viewers, strict=True)):
        wait(lambda widget=widget: widget.task is None)
        assert np.array_equal(
            viewer.layers["image denoised"].data,
            dn_core.denoise(picture((4, 64, 64)) + np.uint16(number)),
        )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["viewer.close()", "app.quit()"])
def test_the_program_ends_cleanly_in_the_middle_of_a_run(tmp_path, how):
    script = textwrap.dedent(f"""
        import sys, time
        import dask.array as da
        import napari
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QApplication
        viewer = napari.Viewer(show=True)
        app = QApplication.instance()
        def plane(block):
            time.sleep(0.05)
            return block
        image = da.ones((500, 64, 64), chunks=(1, 64, 64)).map_blocks(plane)
        viewer.add_image(image, contrast_limits=(0, 1))
        widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", "Denoise layer")[1]
        widget.run.clicked.emit(True)
        def end():
            if widget.bar.value > 2:
                timer.stop()
                print("running", flush=True)
                {how}
        timer = QTimer()
        timer.timeout.connect(end)
        timer.start(50)
        napari.run()
        print("ended", flush=True)
    """)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "running" in ended.stdout
    assert "ended" in ended.stdout
    assert "Error" not in ended.stderr
