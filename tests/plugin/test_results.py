"""Results belong to their layers: the selected one, without their dock or source, and copies."""

import gc
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
from napari.layers import Image
from napari.layers._layer_actions import _duplicate_layer

import dn_core
from napari_dnresnet import request
from napari_dnresnet.results import METADATA, results

NAME = "Denoise layer"

pytestmark = pytest.mark.screen(False)


def picture(shape: tuple[int, ...] = (40, 50), seed: int = 0) -> Any:
    rows, columns = np.mgrid[: shape[-2], : shape[-1]]
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    return (
        np.rint(120 + 60 * np.sin(rows / 9) * np.cos(columns / 7) + noise)
        .clip(0, 255)
        .astype(np.uint16)
    )


@pytest.fixture
def denoise(wait):
    """Presses the button; gives the new layer."""

    def denoised(widget: Any) -> Any:
        before = list(widget.viewer.layers)
        widget.run.clicked.emit(True)
        wait(lambda: widget.task is None)
        wait(lambda: widget.result is None or not widget.result.busy)
        return next((layer for layer in widget.viewer.layers if layer not in before), None)

    return denoised


def select(viewer: Any, layer: Any) -> None:
    viewer.layers.selection.active = layer


def duplicate(viewer: Any, layer: Any) -> Any:
    before = list(viewer.layers)
    select(viewer, layer)
    _duplicate_layer(viewer.layers)
    return next(layer for layer in viewer.layers if layer not in before)


def move_amount(widget: Any, amount: float, wait: Any) -> None:
    widget.amount.value = amount
    wait(lambda: not widget.result.busy)


def test_hot_pixels_are_reported_by_the_run_and_not_by_each_preview(
    viewer, open_widget, wait, denoise
):
    image = picture((64, 80))
    image[20, 30] = 60000
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    with warnings.catch_warnings(record=True) as warned:
        widget.preview_on.value = True
        wait(lambda: widget.preview.layer is not None)
        denoise(widget)
    assert not [warning for warning in warned if "hot or dead" in str(warning.message)]
    assert "1 hot or dead pixel, at (20, 30), is kept" in widget.status.value


def test_amount_acts_on_the_selected_result_of_one_source(viewer, open_widget, wait, denoise):
    image = picture()
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    first = denoise(widget)
    widget.model.value = "dn-resnet-13"
    second = denoise(widget)
    select(viewer, first)
    assert widget.description.value == "Result: image denoised, of image with dn-fast@1"
    move_amount(widget, 0.25, wait)
    assert np.array_equal(first.data, dn_core.denoise(image, amount=0.25))
    assert np.array_equal(second.data, dn_core.denoise(image, model="dn-resnet-13"))
    select(viewer, second)
    assert widget.amount.value == 1
    assert widget.description.value == "Result: image denoised [1], of image with dn-resnet-13@1"
    assert widget.status.value.startswith("dn-resnet-13@1 on ")
    assert "dn-resnet-13@1" in widget.code("python")
    select(viewer, first)
    assert widget.amount.value == 0.25
    assert widget.status.value.startswith("dn-fast@1 on ")
    assert "'dn-fast@1', amount=0.25" in widget.code("python")
    assert "dn-fast@1 --amount 0.25" in widget.code("command")


def test_residual_and_removal_are_of_the_selected_result(viewer, open_widget, denoise):
    images = {name: picture(seed=seed) for seed, name in enumerate("ab")}
    layers = {name: viewer.add_image(image, name=name) for name, image in images.items()}
    widget = open_widget(NAME)
    done = {}
    for name in "ab":
        select(viewer, layers[name])
        done[name] = denoise(widget)
    select(viewer, done["a"])
    assert widget.layer.value is layers["a"], (
        "what is denoised next is the source of the selected result"
    )
    widget.residual.clicked.emit(True)
    residual = viewer.layers["a residual"]
    assert np.array_equal(residual.data, images["a"].astype("f4") - done["a"].data.astype("f4"))
    assert viewer.layers.selection.active is done["a"], "the amount still acts on the result"
    select(viewer, residual)
    assert widget.layer.value is layers["a"], "nobody wants to denoise a residual"
    select(viewer, done["a"])
    widget.undo.clicked.emit(True)
    assert "a denoised" not in viewer.layers
    assert "b denoised" in viewer.layers
    assert viewer.layers.selection.active is layers["a"]
    assert widget.status.value == "Removed a denoised."
    assert not widget.undo.enabled


def test_without_a_selected_result_it_is_the_latest_of_the_chosen_layer(
    viewer, open_widget, wait, denoise
):
    image = picture()
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    first, second = denoise(widget), denoise(widget)
    viewer.add_points(np.zeros((1, 2)))
    move_amount(widget, 0.5, wait)
    assert np.array_equal(first.data, dn_core.denoise(image))
    assert np.array_equal(second.data, dn_core.denoise(image, amount=0.5))


def test_what_is_chosen_in_the_widget_is_not_overruled_by_the_selection(
    viewer, open_widget, denoise
):
    layers = [viewer.add_image(picture(seed=seed), name=name) for seed, name in enumerate("ab")]
    widget = open_widget(NAME)
    result = denoise(widget)
    assert viewer.layers.selection.active is result
    widget.layer.value = layers[0]
    assert widget.result is None
    assert viewer.layers.selection.active is layers[0]


def test_comparing_is_with_the_source_of_the_selected_result(viewer, open_widget, denoise):
    layer = viewer.add_image(picture(), name="image")
    widget = open_widget(NAME)
    first, second = denoise(widget), denoise(widget)
    select(viewer, first)
    widget.before.native.pressed.emit()
    assert [shown.visible for shown in (layer, first, second)] == [True, False, False], (
        "the other one would cover the original"
    )
    widget.before.native.released.emit()
    assert [shown.visible for shown in (layer, first, second)] == [True, True, True]


@pytest.mark.parametrize("large", [False, True])
def test_a_dock_opened_again_finds_its_results(
    large, viewer, open_widget, wait, denoise, monkeypatch
):
    monkeypatch.setattr(request, "LARGE_BYTES", 0 if large else 2**30)
    image = picture((3, 40, 50))
    layer = viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    widget.model.value = "dn-resnet-13"
    result = denoise(widget)
    move_amount(widget, 0.5, wait)
    viewer.window.remove_dock_widget(widget.native)
    layer.name = "renamed"
    result.name = "mine"
    again = open_widget(NAME)
    assert again is not widget
    assert again.description.value == "Result: mine, of renamed with dn-resnet-13@1"
    assert again.amount.value == 0.5
    assert again.layer.value is layer
    for amount in (0.25, 1.0):
        move_amount(again, amount, wait)
        assert np.array_equal(
            np.asarray(result.data), dn_core.denoise(image, model="dn-resnet-13", amount=amount)
        )
    assert "layers['renamed']" in again.code("python")
    again.residual.clicked.emit(True)
    assert np.array_equal(
        np.asarray(viewer.layers["image residual"].data),
        image.astype("f4") - np.asarray(result.data).astype("f4"),
    )


def test_two_docks_show_the_same_results(viewer, open_widget, wait, denoise):
    from napari_dnresnet.denoise import DenoiseWidget

    image = picture()
    viewer.add_image(image, name="image")
    first = open_widget(NAME)
    second = DenoiseWidget(viewer)
    viewer.window.add_dock_widget(second, name="second")
    result = denoise(first)
    assert second.description.value == first.description.value != ""
    move_amount(second, 0.5, wait)
    assert first.amount.value == 0.5
    move_amount(first, 0.25, wait)
    assert second.amount.value == 0.25
    assert np.array_equal(result.data, dn_core.denoise(image, amount=0.25))


@pytest.mark.parametrize("large", [False, True])
def test_a_copy_of_a_result_has_an_amount_of_its_own(
    large, viewer, open_widget, wait, denoise, monkeypatch
):
    monkeypatch.setattr(request, "LARGE_BYTES", 0 if large else 2**30)
    image = picture((2, 40, 50))
    viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    result = denoise(widget)
    move_amount(widget, 0.5, wait)
    copied = duplicate(viewer, result)
    select(viewer, copied)
    assert widget.description.value.startswith("Result: image denoised copy, of image")
    assert widget.amount.value == 0.5
    move_amount(widget, 0.25, wait)
    assert np.array_equal(np.asarray(result.data), dn_core.denoise(image, amount=0.5))
    assert np.array_equal(np.asarray(copied.data), dn_core.denoise(image, amount=0.25))
    ids = [layer.metadata[METADATA]["result"] for layer in (result, copied)]
    assert ids == [str(layer.unique_id) for layer in (result, copied)]
    viewer.layers.remove(result)
    select(viewer, copied)
    move_amount(widget, 1.0, wait)
    assert np.array_equal(np.asarray(copied.data), dn_core.denoise(image))


def test_a_copy_with_other_pixels_is_an_image_of_its_own(viewer, denoise, own_settings):
    from napari_dnresnet.denoise import DenoiseWidget

    viewer.add_image(picture(), name="image")
    widget = DenoiseWidget(viewer)
    result = denoise(widget)
    data, state, kind = result.as_layer_data_tuple()
    from napari.layers import Layer
    from napari.layers._source import layer_source

    with layer_source(parent=result):
        turned = Layer.create(data.max() - data, {**state, "name": "turned"}, kind)
    viewer.add_layer(turned)
    pixels = turned.data.copy()
    assert results.of(turned) is None
    assert widget.layer.value is turned, "it can be denoised as any other"
    widget.amount.value = 0.5
    assert np.array_equal(turned.data, pixels)
    widget.native.close()


def test_what_was_saved_and_opened_again_is_no_result(viewer, open_widget, denoise, tmp_path):
    viewer.add_image(picture(), name="image")
    widget = open_widget(NAME)
    result = denoise(widget)
    data, state, _ = result.as_layer_data_tuple()
    np.save(tmp_path / "saved.npy", data)
    (opened,) = viewer.open(str(tmp_path / "saved.npy"), plugin="napari")
    opened.metadata.update(state["metadata"])
    select(viewer, result)
    select(viewer, opened)
    assert results.of(opened) is None
    assert widget.layer.value is opened
    assert widget.description.value == ""


def test_a_result_lives_as_long_as_its_layer(viewer, open_widget, denoise, qtbot):
    viewer.add_image(picture((3, 100, 100)), name="image")
    widget = open_widget(NAME)
    denoise(widget)
    viewer.window.remove_dock_widget(widget.native)
    (result,) = results.within(viewer)
    kept = [weakref.ref(result), weakref.ref(result.denoised)]
    viewer.layers.remove(result.layer)
    del result
    qtbot.wait(10)
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_a_layer_renamed_while_it_is_denoised_names_its_result(viewer, open_widget, wait):
    image = picture((20, 64, 64))
    layer = viewer.add_image(image, name="image")
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    layer.name, layer.scale, layer.colormap = "cells", (1, 2, 3), "magenta"
    wait(lambda: widget.task is None)
    result = viewer.layers["cells denoised"]
    assert tuple(result.scale) == (1, 2, 3)
    assert result.colormap.name == "magenta"
    assert "layers['cells']" in widget.code("python")
    layer.name = "nuclei"
    assert "layers['nuclei']" in widget.code("python")


def test_a_layer_with_other_pixels_when_it_is_done_is_reported(viewer, open_widget, wait):
    image, other = picture((20, 64, 64)), picture((20, 64, 64), seed=1)
    layer = viewer.add_image(image, name="image", blending="additive")
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    layer.data = other
    wait(lambda: widget.task is None)
    result = viewer.layers["image denoised"]
    assert "The layer image has changed since" in widget.status.value
    assert np.array_equal(result.data, dn_core.denoise(image))
    assert layer.visible, "it is another image, and stays"
    assert widget.code("python").startswith("# the layer 'image' has changed since")
    move_amount(widget, 0.5, wait)
    assert np.array_equal(result.data, dn_core.denoise(image, amount=0.5))


def test_a_layer_that_is_gone_when_it_is_done_is_reported(viewer, open_widget, wait):
    image = picture((20, 64, 64))
    layer = viewer.add_image(image, name="image")
    viewer.add_image(picture(), name="other")
    select(viewer, layer)
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    viewer.layers.remove(layer)
    wait(lambda: widget.task is None)
    result = viewer.layers["image denoised"]
    assert "The layer image is gone" in widget.status.value
    select(viewer, result)
    assert widget.description.value.startswith("Result: image denoised, of image")
    move_amount(widget, 0.5, wait)
    assert np.array_equal(result.data, dn_core.denoise(image, amount=0.5))
    assert widget.code("python").startswith("# the layer 'image' is gone")


def test_a_run_that_ends_while_another_layer_is_looked_at_leaves_that_alone(
    viewer, open_widget, wait, denoise
):
    first, second = picture((20, 64, 64)), picture(seed=1)
    layers = [viewer.add_image(image, name=name) for image, name in ((first, "a"), (second, "b"))]
    widget = open_widget(NAME)
    of_second = denoise(widget)
    move_amount(widget, 0.25, wait)
    select(viewer, layers[0])
    widget.amount.value = 0.75
    widget.run.clicked.emit(True)
    select(viewer, of_second)
    assert widget.amount.value == 0.25
    wait(lambda: widget.task is None)
    assert viewer.layers.selection.active is of_second
    assert widget.layer.value is layers[1]
    assert widget.amount.value == 0.25
    result = results.of(viewer.layers["a denoised"])
    wait(lambda: not result.busy)
    assert np.array_equal(result.layer.data, dn_core.denoise(first, amount=0.75))
    assert np.array_equal(of_second.data, dn_core.denoise(second, amount=0.25))


def test_typed_axes_are_each_layers_own(viewer, open_widget):
    first = viewer.add_image(picture((3, 40, 50)), name="a")
    second = viewer.add_image(picture((3, 40, 50)), name="b")
    widget = open_widget(NAME)
    select(viewer, first)
    widget.axes.letters.value = "CYX"
    select(viewer, second)
    assert widget.axes.letters.value == "ZYX"
    select(viewer, first)
    assert widget.axes.letters.value == "CYX"
    first.data = picture((2, 3, 40, 50))
    assert widget.axes.letters.value == "TZYX", "what was typed does not fit any more"
    first.axis_labels = ("time", "channel", "y", "x")
    assert widget.axes.letters.value == "TCYX"
    assert "T: 2 time points" in widget.axes.description.value


def test_a_copy_of_a_preview_is_an_image(viewer, open_widget, wait):
    viewer.add_image(picture((64, 64)), name="image")
    widget = open_widget(NAME)
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    copied = duplicate(viewer, widget.preview.layer)
    assert isinstance(copied, Image)
    select(viewer, copied)
    assert widget.layer.value is copied
