"""Runs and viewers by the dozen: threads, memory and our own objects are the same afterwards."""

import gc
import threading
import weakref
from typing import Any

import numpy as np
import psutil
import pytest

NAMES = ("Denoise layer", "Train denoiser", "Denoising models")
EVER = {"_ModelList", "_Results"}
"""What there is one of as long as the program runs."""


def megabytes() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def own_objects() -> list[str]:
    gc.collect()
    modules = ((type(thing).__module__, type(thing).__qualname__) for thing in gc.get_objects())
    return [
        name
        for module, name in modules
        if str(module).startswith("napari_dnresnet") and name not in EVER
    ]


def noise(side: int) -> Any:
    return np.random.default_rng(0).normal(100, 20, (side, side))


def growth(act: Any, times: int) -> float:
    """Megabytes each time."""
    before = megabytes()
    for _ in range(times):
        act()
    return (megabytes() - before) / times


@pytest.mark.slow
def test_a_hundred_runs_leave_nothing(own_settings, make_napari_viewer, wait, qtbot):
    viewer, image = make_napari_viewer(), noise(256)
    viewer.add_image(image, name="image")
    widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", NAMES[0])[1]
    kept: list[Any] = []

    def run() -> None:
        widget.run.clicked.emit(True)
        wait(lambda: widget.task is None)
        result = widget.result
        kept.extend(map(weakref.ref, (result, result.denoised, result.layer)))
        viewer.layers.remove(result.layer)
        qtbot.wait(5)

    def add() -> None:
        viewer.layers.remove(viewer.add_image(image.copy(), contrast_limits=(0, 200)))
        qtbot.wait(5)

    for _ in range(3):
        run()
        add()
    objects, threads = sorted(own_objects()), threading.active_count()
    by_napari = growth(add, 30)  # napari itself does not give back all of a layer that was removed
    by_run = growth(run, 100)
    assert sorted(own_objects()) == objects
    assert [alive for ref in kept if (alive := ref()) is not None] == []
    assert threading.active_count() <= threads
    assert by_run - by_napari < image.nbytes / 2e6


@pytest.mark.slow
def test_thirty_viewers_leave_nothing(own_settings, make_napari_viewer, wait, qtbot):
    before, kept = own_objects(), list[Any]()

    def open_and_close(names: tuple[str, ...]) -> None:
        viewer = make_napari_viewer()
        layer = viewer.add_image(noise(64), name="image")
        widgets = [
            viewer.window.add_plugin_dock_widget("napari-dnresnet", name)[1] for name in names
        ]
        if widgets:
            widgets[0].run.clicked.emit(True)
            wait(lambda: widgets[0].task is None)
            kept.append(weakref.ref(widgets[0].result.denoised))
        else:
            viewer.add_image(noise(64), name="as a result")
        kept.extend(map(weakref.ref, (viewer, layer, layer.data)))
        viewer.close()
        qtbot.wait(20)

    for _ in range(5):
        open_and_close(NAMES)
    threads = threading.active_count()
    by_napari = growth(
        lambda: open_and_close(()), 15
    )  # napari itself does not give back all of a viewer
    ours = growth(lambda: open_and_close(NAMES), 25)
    print(f"megabytes a viewer: {by_napari:.2f} by napari alone, {ours:.2f} with our docks")
    assert own_objects() == before
    assert [alive for ref in kept if (alive := ref()) is not None] == []
    assert threading.active_count() <= threads
    assert ours - by_napari < 1
