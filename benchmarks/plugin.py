"""How the plugin feels: preview latency, and how long the window stands still while an image is denoised.

``xvfb-run -s "-screen 0 1400x1000x24" python benchmarks/plugin.py`` prints its figures. A stall is the longest time between two ticks
of a timer of 5 ms in the event loop of the window; it is compared with that of the idle window, measured in turns with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

TICK = 5  # milliseconds
IDLE_SECONDS = 3.0
ROUNDS = 5


class Stalls:
    """The longest gap between the ticks of a timer, in milliseconds."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self._timer = QTimer()
        self._timer.setInterval(TICK)
        self._timer.timeout.connect(self._tick)
        self._timer.start()
        self.begin()

    def begin(self) -> None:
        """Forget what was."""
        self._last, self.longest = time.perf_counter(), 0.0

    def _tick(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, 1000 * (now - self._last))
        self._last = now


def wait(until: Callable[[], bool]) -> float:
    """Run the event loop until something is so; the milliseconds that it took."""
    from qtpy.QtCore import QEventLoop
    from qtpy.QtWidgets import QApplication

    began = time.perf_counter()
    while not until():
        QApplication.instance().processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 2)
    return 1000 * (time.perf_counter() - began)


def sleep(seconds: float) -> None:
    """Run the event loop for a time."""
    end = time.perf_counter() + seconds
    wait(lambda: time.perf_counter() > end)


def preview_latency(viewer: Any, widget: Any) -> list[float]:
    """From a change (another plane of 256x256 pixels) to its denoised picture, the delay of 60 ms included."""
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    times = []
    for plane in range(1, 1 + ROUNDS):
        viewer.dims.set_current_step(0, plane)
        times.append(wait(lambda plane=plane: not widget.preview.busy and round(widget.preview.layer.data_to_world((0, 0, 0))[0]) == plane))
    widget.preview_on.value = False
    return times


def stalls(viewer: Any, widget: Any) -> tuple[list[float], list[float]]:
    """The longest stalls of the idle window and during runs, in turns; of a run without the moment at its end when the layer is added."""
    watch, idle, busy = Stalls(), [], []
    for _ in range(ROUNDS):
        watch.begin()
        sleep(IDLE_SECONDS)
        idle.append(watch.longest)
        watch.begin()
        widget.run.clicked.emit(True)
        wait(lambda: (widget.result is not None and widget.job is None) or widget.bar.value >= widget.bar.max - 1)
        busy.append(watch.longest)
        wait(lambda: widget.job is None)
        viewer.layers.remove(widget.result.layer)
    return idle, busy


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_CONFIG"] = f"{folder}/settings.yaml"
        import napari

        viewer = napari.Viewer(show=True)
        image = np.random.default_rng(0).integers(0, 1000, (30, 256, 256)).astype(np.uint16)
        viewer.add_image(image, name="small")
        widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", "Denoise layer")[1]
        sleep(1)
        latencies = preview_latency(viewer, widget)
        print(f"preview of 256x256: median {statistics.median(latencies):.0f} ms, longest {max(latencies):.0f} ms")
        viewer.layers.clear()
        viewer.add_image(np.random.default_rng(0).integers(0, 1000, (24, 1024, 1024)).astype(np.uint16), name="large")
        widget.run.clicked.emit(True)
        wait(lambda: widget.job is None)  # to warm up
        viewer.layers.remove(widget.result.layer)
        idle, busy = stalls(viewer, widget)
        for what, values in (("idle", idle), ("denoising 24 x 1024 x 1024", busy)):
            print(f"longest stall, {what}: median {statistics.median(values):.0f} ms ({', '.join(f'{value:.0f}' for value in values)})")
        viewer.close()


if __name__ == "__main__":
    main()
