"""The section "Plan" of the dock widget "Denoise layer"."""

from typing import Any

import numpy as np
import pytest

import dn_core
from napari_dnresnet import request

NAME = "Denoise layer"

pytestmark = pytest.mark.screen(False)


@pytest.fixture
def image(viewer) -> Any:
    pixels = np.random.default_rng(0).integers(0, 200, (3, 60, 70)).astype(np.uint8)
    viewer.add_image(pixels, name="image")
    return pixels


def shown(widget: Any) -> str:
    """The text of the section, without the spaces that make columns."""
    return single_spaced(widget.plan.text.toPlainText())


def single_spaced(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def without_memory(text: str) -> list[str]:
    """Lines of a plan, except the one that depends on what else is running."""
    lines = single_spaced(text).splitlines()
    return [line for line in lines if "memory" not in line and "bytes" not in line]


def opened(widget: Any, wait: Any) -> Any:
    widget.plan.button.click()
    assert widget.plan.busy, "the window is not blocked meanwhile"
    wait(lambda: not widget.plan.busy)
    return widget


def test_it_shows_the_plan_of_the_library(image, open_widget, wait):
    widget = open_widget(NAME)
    assert shown(widget) == ""
    assert not widget.plan.busy
    opened(widget, wait)
    plan = dn_core.plan_denoise(image, "dn-fast", channel_axis=None, alpha=False)
    assert without_memory(shown(widget)) == without_memory(str(plan))
    assert "model dn-fast" in shown(widget)
    assert "planes 3 of 60 x 70 pixels" in shown(widget)


def test_it_follows_the_settings_while_it_is_open(image, open_widget, wait):
    widget = opened(open_widget(NAME), wait)
    widget.model.value = "dn-resnet-13"
    wait(lambda: "model dn-resnet-13" in shown(widget))
    widget.axes.letters.value = "ZXX"
    wait(lambda: "one Y (rows) and one X" in shown(widget))
    widget.axes.letters.value = "ZYX"
    wait(lambda: "model dn-resnet-13" in shown(widget))
    widget.plan.button.click()
    widget.model.value = "dn-fast"
    assert not widget.plan.busy


def test_a_lazy_image_is_not_computed_for_it(viewer, open_widget, wait):
    import dask.array as da

    computed = []

    def plane(block: Any) -> Any:
        if block.size:
            computed.append(1)
        return block

    lazy = da.zeros((50, 64, 64), chunks=(1, 64, 64), dtype="uint16").map_blocks(
        plane, dtype="uint16", meta=np.empty((0, 0, 0), "uint16")
    )
    viewer.add_image(lazy, contrast_limits=(0, 255))
    widget = open_widget(NAME)
    computed.clear()
    opened(widget, wait)
    assert "planes 50 of 64 x 64 pixels" in shown(widget)
    assert computed == []


def test_a_large_result_is_planned_on_disk(image, open_widget, wait, monkeypatch):
    monkeypatch.setattr(request, "LARGE_BYTES", 0)
    widget = opened(open_widget(NAME), wait)
    plan = dn_core.plan_denoise(
        image, "dn-fast", channel_axis=None, alpha=False, out=np.empty_like(image)
    )
    assert without_memory(shown(widget)) == without_memory(str(plan))


def test_without_a_layer_it_says_so(viewer, open_widget, wait):
    widget = opened(open_widget(NAME), wait)
    assert shown(widget).startswith("There is no image layer.")
