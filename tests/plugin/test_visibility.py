"""A see-through layer is hidden while its result or preview is shown: both are too bright."""

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers._layer_actions import _duplicate_layer
from napari.utils import Colormap

import dn_core
from napari_dnresnet.view import canvas
from napari_dnresnet.visibility import is_see_through

NAME = "Denoise layer"

pytestmark = pytest.mark.screen(False)


def channel(seed: int, shape: tuple[int, ...] = (60, 70)) -> Any:
    return np.random.default_rng(seed).normal(60, 10, shape).clip(0, 255).astype(np.uint8)


@pytest.fixture
def channels(viewer):
    """Two channels, added to each other."""
    names = ["green", "red"]
    return viewer.add_image(
        np.stack([channel(0), channel(1)]),
        channel_axis=0,
        name=names,
        colormap=["green", "red"],
        contrast_limits=[(0, 255)] * 2,
        blending="additive",
    )


@pytest.fixture
def widget(viewer, channels, open_widget):
    viewer.layers.selection.active = channels[0]
    return open_widget(NAME)


def denoise(widget: Any, wait: Any) -> Any:
    before = list(widget.viewer.layers)
    widget.run.clicked.emit(True)
    wait(lambda: widget.task is None)
    return next(layer for layer in widget.viewer.layers if layer not in before)


def previewed(widget: Any, wait: Any, limit: int = 512) -> Any:
    widget.preview_on.value = True
    widget.preview.limit = limit
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    return widget.preview.layer


def shown(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers if layer.visible]


def names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


def brightness(viewer: Any) -> Any:
    """Of green, and of red: the mean of what is on screen."""
    picture = np.asarray(viewer.screenshot(flash=False))[..., :2].astype(float)
    return picture.mean(axis=(0, 1))


@pytest.mark.screen(True)
def test_preview_and_result_are_as_bright_as_the_channel(viewer, channels, widget, wait):
    before = brightness(viewer)
    assert min(before) > 10
    previewed(widget, wait)
    assert shown(viewer) == ["green preview", "red"]
    assert np.allclose(brightness(viewer), before, rtol=0.1)
    denoise(widget, wait)
    assert shown(viewer) == ["green denoised", "red"]
    assert np.allclose(brightness(viewer), before, rtol=0.1)


def test_it_lies_right_above_its_source(viewer, channels, widget, wait):
    previewed(widget, wait)
    assert names(viewer) == ["green", "green preview", "red"]
    widget.preview_on.value = False
    denoise(widget, wait)
    viewer.layers.selection.active = channels[0]
    denoise(widget, wait)
    assert names(viewer) == ["green", "green denoised", "green denoised [1]", "red"]
    assert shown(viewer) == ["green denoised [1]", "red"], (
        "two results are as bright as two channels"
    )


def test_one_click_takes_it_back(viewer, channels, widget, wait):
    denoise(widget, wait)
    widget.undo.clicked.emit(True)
    assert names(viewer) == shown(viewer) == ["green", "red"]


def test_removing_the_layer_brings_its_source_back(viewer, channels, widget, wait):
    first, second = denoise(widget, wait), denoise(widget, wait)
    viewer.layers.remove(second)
    assert shown(viewer) == ["green denoised", "red"]
    viewer.layers.remove(first)
    assert shown(viewer) == ["green", "red"]


def test_the_source_comes_back_though_the_dock_is_closed(viewer, channels, widget, wait):
    result = denoise(widget, wait)
    viewer.window.remove_dock_widget(widget.native)
    viewer.layers.remove(result)
    assert shown(viewer) == ["green", "red"]


def test_closing_the_dock_takes_the_preview_away_and_shows_the_source(
    viewer, channels, widget, wait
):
    previewed(widget, wait)
    viewer.window.remove_dock_widget(widget.native)
    assert names(viewer) == shown(viewer) == ["green", "red"]


def test_the_eye_of_the_result_turns_it_and_the_source_over(viewer, channels, widget, wait):
    result = denoise(widget, wait)
    result.visible = False
    assert shown(viewer) == ["green", "red"]
    result.visible = True
    assert shown(viewer) == ["green denoised", "red"]


def test_a_layer_shown_or_hidden_by_hand_is_left_alone(viewer, channels, widget, wait):
    source, _ = channels
    result = denoise(widget, wait)
    source.visible = True
    assert shown(viewer) == ["green", "green denoised", "red"]
    result.visible = False
    result.visible = True
    assert shown(viewer) == ["green", "green denoised", "red"]
    source.visible = False
    viewer.layers.remove(result)
    assert shown(viewer) == ["red"]
    denoise(widget, wait)
    widget.undo.clicked.emit(True)
    assert shown(viewer) == ["red"], "it was hidden before the run"


@pytest.mark.parametrize("what", ["result", "preview"])
def test_comparing_swaps_it_with_its_source(viewer, channels, widget, wait, what):
    layer = denoise(widget, wait) if what == "result" else previewed(widget, wait)
    widget.before.native.pressed.emit()
    assert shown(viewer) == ["green", "red"]
    widget.before.native.released.emit()
    assert shown(viewer) == [layer.name, "red"]
    widget.flicker.native.click()
    wait(lambda: shown(viewer) == ["green", "red"])
    wait(lambda: shown(viewer) == [layer.name, "red"])
    widget.flicker.native.click()
    assert shown(viewer) == [layer.name, "red"]


def test_removing_the_result_while_it_flickers_shows_the_source(viewer, channels, widget, wait):
    result = denoise(widget, wait)
    widget.flicker.native.click()
    wait(lambda: shown(viewer) == ["green", "red"])
    viewer.layers.remove(result)
    assert shown(viewer) == ["green", "red"]
    assert not widget.flicker.native.isChecked()


def test_cancelling_a_large_result_shows_the_source(viewer, open_widget, wait, slow, monkeypatch):
    from napari_dnresnet import request

    monkeypatch.setattr(request, "LARGE_BYTES", 0)
    viewer.add_image(slow, name="slow", contrast_limits=(0, 255), blending="additive")
    widget = open_widget(NAME)
    widget.run.clicked.emit(True)
    wait(lambda: widget.bar.value > 2)
    assert shown(viewer) == ["slow denoised"]
    widget.stop.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert names(viewer) == shown(viewer) == ["slow"]


def test_around_a_small_preview_the_channel_is_seen(viewer, channels, widget, wait):
    source, _ = channels
    layer = previewed(widget, wait, limit=16)
    assert layer.data.shape == source.data.shape
    changed = np.argwhere(layer.data != source.data)
    low, high = changed.min(axis=0), changed.max(axis=0) + 1
    assert tuple(high - low) == (16, 16)
    part = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    assert np.array_equal(layer.data[part], dn_core.denoise(source.data[part]))
    widget.amount.value = 0.5
    assert np.array_equal(layer.data[part], dn_core.denoise(source.data[part], amount=0.5))


def test_more_than_can_be_shown_around_a_preview_is_reported(
    viewer, open_widget, wait, monkeypatch
):
    from napari_dnresnet import preview

    monkeypatch.setattr(preview, "SURROUNDINGS", 32)
    viewer.add_image(channel(0, (64, 64)), name="image", blending="additive")
    widget = open_widget(NAME)
    layer = previewed(widget, wait, limit=16)
    assert layer.data.shape == (32, 32)
    assert (
        widget.status.value
        == "The preview shows the middle 32 pixels of what is on screen. Zoom in to see all of it."
    )


def test_the_source_is_seen_until_the_preview_of_another_plane_is_there(viewer, open_widget, wait):
    stack = channel(0, (5, 64, 64))
    viewer.add_image(stack, name="stack", blending="additive")
    widget = open_widget(NAME)
    layer = previewed(widget, wait)
    assert shown(viewer) == ["stack preview"]
    viewer.dims.set_current_step(0, 4)
    assert shown(viewer) == ["stack"]
    wait(lambda: not widget.preview.busy)
    assert shown(viewer) == ["stack preview"]
    assert np.array_equal(layer.data, dn_core.denoise(stack[4:5]))


LOOKS = [
    ({"blending": "additive"}, True),
    ({"blending": "minimum"}, True),
    ({"opacity": 0.5}, True),
    ({"colormap": [[0, 0, 0, 0], [1, 0, 0, 1]]}, True),
    ({}, False),
    ({"blending": "opaque"}, False),
]


@pytest.mark.parametrize(("looks", "through"), LOOKS)
def test_what_lies_under_a_layer_is_seen_through_it_or_not(looks, through):
    looks = {
        name: Colormap(value) if name == "colormap" else value for name, value in looks.items()
    }
    viewer = ViewerModel()
    assert is_see_through(viewer, viewer.add_image(channel(0), **looks)) == through


@pytest.mark.parametrize("samples", [3, 4])
def test_an_image_with_alpha_is_seen_through(samples):
    viewer = ViewerModel()
    assert is_see_through(
        viewer, viewer.add_image(np.zeros((8, 9, samples), np.uint8), rgb=True)
    ) == (samples == 4)


def test_a_source_that_is_covered_is_not_hidden(viewer, open_widget, wait):
    viewer.add_image(channel(0), name="image")
    widget = open_widget(NAME)
    denoise(widget, wait)
    previewed(widget, wait)
    assert shown(viewer) == ["image", "image denoised", "image preview"]


def test_pictures_side_by_side_are_not_hidden(viewer, channels, widget, wait):
    canvas(viewer).grid.enabled = True
    denoise(widget, wait)
    assert shown(viewer) == ["green", "green denoised", "red"]


def test_a_copy_of_a_result_hides_the_source_too(viewer, channels, widget, wait):
    result = denoise(widget, wait)
    viewer.layers.selection.active = result
    _duplicate_layer(viewer.layers)
    viewer.layers.remove(result)
    assert shown(viewer) == ["green denoised copy", "red"]
    viewer.layers["green denoised copy"].visible = False
    assert shown(viewer) == ["green", "red"]


@pytest.mark.parametrize("slicing", ["synchronous", "asynchronous"])
def test_closing_the_viewer_with_hidden_layers_is_quiet(
    viewer, channels, widget, wait, monkeypatch, slicing
):
    from napari.settings import get_settings

    monkeypatch.setattr(get_settings().experimental, "async_", slicing == "asynchronous")
    denoise(widget, wait)
    previewed(widget, wait)
    assert shown(viewer) == ["green preview", "red"]
