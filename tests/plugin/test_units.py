"""Layers in different units: preview, amount and results are where the layer is."""

import itertools
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel

import dn_core
from napari_dnresnet.axes import LayerAxes
from napari_dnresnet.view import shown_plane, visible_region

NAME = "Denoise layer"

pytestmark = pytest.mark.screen(False)


def stack(planes: int, seed: int = 0, side: int = 64) -> Any:
    return np.random.default_rng(seed).integers(50, 200, (planes, side, side)).astype(np.uint8)


def on_screen(layer: Any) -> Any:
    """The plane that napari shows."""
    return layer._slice.image.raw


@pytest.fixture
def micrometres(viewer):
    """Planes 1 um apart."""
    return viewer.add_image(stack(8), name="um", scale=(1, 0.1, 0.1), units=("um",) * 3)


@pytest.fixture
def nanometres(viewer, micrometres):
    """Planes 500 nm apart, beside planes 1 um apart: the sliders go in nanometres."""
    return viewer.add_image(stack(15, 1), name="nm", scale=(500, 100, 100), units=("nm",) * 3)


def previewed(widget: Any, wait: Any) -> Any:
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    return widget.preview.layer


@pytest.mark.screen(True)
def test_the_preview_shows_the_plane_on_screen(viewer, micrometres, nanometres, open_widget, wait):
    widget = open_widget(NAME)
    for step, layer in itertools.product((0, 3, 5, 13), (micrometres, nanometres)):
        viewer.dims.set_current_step(0, step)
        viewer.layers.selection.active = layer
        previewed(widget, wait)
        preview, expected = widget.preview.layer, dn_core.denoise(on_screen(layer)[None])
        assert preview.units == layer.units
        assert np.array_equal(preview.data, expected), (step, layer.name)
        assert np.array_equal(on_screen(preview), expected[0]), "and it is seen there"
        assert np.allclose(preview.data_to_world((0, 0, 0))[1:], layer.data_to_world((0, 0, 0))[1:])


def test_results_stay_where_the_layer_is(viewer, micrometres, nanometres, open_widget, wait):
    widget = open_widget(NAME)
    for layer, plane in ((micrometres, 3), (nanometres, 6)):
        viewer.layers.selection.active = layer
        widget.run.clicked.emit(True)
        wait(lambda: widget.task is None)
        result = viewer.layers[f"{layer.name} denoised"]
        assert result.units == layer.units
        assert np.array_equal(result.extent.world, layer.extent.world)
        widget.residual.clicked.emit(True)
        assert viewer.layers[f"{layer.name} residual"].units == layer.units
        viewer.dims.set_current_step(0, 6)
        assert widget._shown_plane(widget.result) == (plane,)
        assert np.array_equal(on_screen(result), result.data[plane])


@pytest.mark.parametrize(
    "names", [("um", "nm"), ("nm", "um"), ("mm", "um"), ("um", "pixel"), ("pixel", "um")]
)
@pytest.mark.parametrize("scale", [0.3, 1, 7])
def test_the_shown_plane_is_naparis(names, scale):
    """Other layers have planes at a half and a third of the first one's: some lie just between."""
    viewer = ViewerModel()
    layers = [
        viewer.add_image(stack(9, side=8), scale=(scale, 1, 1), units=(names[0], "pixel", "pixel"))
    ]
    per_unit = {"um": 1.0, "nm": 1e-3, "mm": 1e3}
    ratio = per_unit.get(names[0], 1) / per_unit.get(names[1], 1) if "pixel" not in names else 1
    layers += [
        viewer.add_image(
            stack(20, side=8),
            scale=(scale * ratio / part, 1, 1),
            units=(names[1], "pixel", "pixel"),
        )
        for part in (2, 3)
    ]
    axes = [LayerAxes("ZYX", layer.data.shape) for layer in layers]
    seen = set()
    for step in range(int(viewer.dims.nsteps[0])):
        viewer.dims.set_current_step(0, step)
        for layer, letters in zip(layers, axes, strict=True):
            if not layer._slice.empty:
                plane = shown_plane(layer, viewer.dims, letters)
                seen.add(plane)
                assert np.array_equal(layer.data[plane], on_screen(layer))
    assert len(seen) > 8


@pytest.mark.screen(True)
def test_the_preview_is_of_the_part_on_screen(viewer, micrometres, open_widget, wait, qtbot):
    from napari_dnresnet.view import camera

    large = viewer.add_image(
        stack(2, side=512), name="large", scale=(1, 0.1, 0.1), units=("um",) * 3
    )
    axes = LayerAxes("ZYX", large.data.shape)
    view = camera(viewer)
    regions = {}
    for units in ("um", "nm"):
        if units == "nm":
            viewer.add_image(stack(2), name="nm", scale=(1000, 100, 100), units=("nm",) * 3)
        factor = 1 if units == "um" else 1000
        view.center, view.zoom = (0, 20 * factor, 30 * factor), 50 / factor
        viewer.screenshot(flash=False)
        regions[units] = visible_region(viewer, large, axes, 4096, 1)
    for own, other in zip(regions["um"].index, regions["nm"].index, strict=True):
        assert abs(own.start - other.start) <= 1
        assert abs(own.stop - other.stop) <= 1
    rows, columns = regions["nm"].index[1:]
    assert 0 < rows.start < 200 < rows.stop < 512, "the middle is at 20 um"
    assert 0 < columns.start < 300 < columns.stop < 512


def test_another_layer_in_other_units_moves_the_preview(viewer, micrometres, open_widget, wait):
    viewer.dims.set_current_step(0, 5)
    widget = open_widget(NAME)
    previewed(widget, wait)
    viewer.add_image(stack(15, 1), name="nm", scale=(500, 100, 100), units=("nm",) * 3)
    viewer.layers.selection.active = micrometres
    wait(lambda: not widget.preview.busy)
    assert np.array_equal(widget.preview.layer.data, dn_core.denoise(on_screen(micrometres)[None]))
