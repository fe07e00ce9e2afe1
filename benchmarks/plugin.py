"""Responsiveness of the plugin: preview latency, and stalls of the window during denoising.

``xvfb-run -a -s "-screen 0 1400x1000x24" python benchmarks/plugin.py`` prints its figures in a
minute or two. A stall is the longest time between two ticks of a timer of 5 ms in the window's
event loop, in milliseconds. In turns it is taken of a run until its layer is added, of the moment
when napari adds it, of napari adding another layer of that size by itself, and of the idle window
for as long as the run.
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
LIMIT = 60.0
"""Seconds after which something that was waited for is given up."""
SIDE, SECONDS, MOST_PLANES = 512, 4.0, 60
"""The stack has as many planes of `SIDE` as take about `SECONDS` here."""
REST = 1.0
"""Seconds until napari has drawn a layer that came or went."""


class Stalls:
    """The longest gap between the ticks of a timer, in milliseconds."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(TICK)
        self._timer.timeout.connect(self.now)
        self._timer.start()
        self.begin()

    def begin(self) -> None:
        """Forget what was."""
        self._last, self.longest = time.perf_counter(), 0.0

    def now(self) -> float:
        """The longest gap since the beginning, the one that ends now among them."""
        now = time.perf_counter()
        self.longest = max(self.longest, 1000 * (now - self._last))
        self._last = now
        return self.longest

    def until(self, so: Callable[[], Any]) -> float:
        """The longest gap since the beginning, when something is so."""
        wait(so)
        return self.now()


def wait(until: Callable[[], Any]) -> float:
    """Run the event loop until something is so, but not for ever; the seconds that it took."""
    from qtpy.QtCore import QEventLoop, QTimer

    began, loop, timer, so = time.perf_counter(), QEventLoop(), QTimer(), False

    def look() -> None:
        nonlocal so
        so = bool(until())
        if so or time.perf_counter() - began > LIMIT:
            loop.quit()

    timer.timeout.connect(look)
    timer.start(TICK)
    loop.exec()
    timer.stop()
    if not so:
        raise TimeoutError(
            f"what was waited for did not come in {LIMIT:g} s; the machine is too busy for this. "
            "Try again later."
        )
    return time.perf_counter() - began


def sleep(seconds: float) -> Callable[[], bool]:
    """True when a time is over."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def preview_latency(viewer: Any, widget: Any, rounds: int) -> list[float]:
    """Milliseconds from a change (another plane of 256x256 pixels) to its preview.

    The delay of 60 ms is included.
    """
    widget.preview_on.value = True
    wait(lambda: widget.preview.layer is not None and not widget.preview.busy)
    times = []
    for plane in range(1, 1 + rounds):
        viewer.dims.set_current_step(0, plane)

        def shown(plane=plane):
            place = widget.preview.layer.data_to_world((0, 0, 0))
            return not widget.preview.busy and round(place[0]) == plane

        times.append(1000 * wait(shown))
    widget.preview_on.value = False
    wait(sleep(REST))
    return times


def denoise(viewer: Any, widget: Any, watch: Stalls) -> tuple[float, float, float]:
    """Seconds of a run until its layer is added, its longest stall until then, and the one then."""
    before: list[float] = []

    def added(event: Any) -> None:
        before.extend((time.perf_counter() - began, watch.now()))
        watch.begin()

    viewer.layers.events.inserting.connect(added)
    began = time.perf_counter()
    watch.begin()
    widget.run.clicked.emit(True)
    end = watch.until(lambda: before and widget.task is None)
    viewer.layers.events.inserting.disconnect(added)
    return before[0], before[1], end


def stalls(viewer: Any, widget: Any, rounds: int) -> dict[str, list[float]]:
    """The longest stalls of each round, after a run to warm up."""
    found: dict[str, list[float]] = {
        "denoising": [],
        "its end": [],
        "napari adds a layer": [],
        "idle": [],
    }
    watch = Stalls()
    stack = noisy(2, SIDE)
    viewer.add_image(stack, name="large")
    wait(sleep(REST))
    rate = len(stack) / denoise(viewer, widget, watch)[0]
    wait(sleep(REST))
    stack = noisy(min(max(2, round(rate * SECONDS)), MOST_PLANES), SIDE)
    viewer.add_image(stack, name="large")
    wait(sleep(REST))
    print(
        f"longest stall in ms, {' x '.join(map(str, stack.shape))} pixels of 16 bits, {rounds} "
        "rounds:"
    )
    for _ in range(rounds):
        seconds, *values = denoise(viewer, widget, watch)
        viewer.layers.remove(widget.result.layer)
        wait(sleep(REST))
        watch.begin()
        layer = viewer.add_image(stack.copy(), name="copy", contrast_limits=(0, 1000))
        values.append(watch.until(sleep(REST)))
        viewer.layers.remove(layer)
        wait(sleep(REST))
        watch.begin()
        values.append(watch.until(sleep(seconds)))
        for of, value in zip(found.values(), values, strict=True):
            of.append(value)
    return found


def noisy(planes: int, side: int) -> Any:
    """A stack of noise."""
    return np.random.default_rng(0).integers(0, 1000, (planes, side, side)).astype(np.uint16)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each thing is measured")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_CONFIG"] = f"{folder}/settings.yaml"
        import napari
        from qtpy.QtCore import QThreadPool

        viewer = napari.Viewer(show=True)
        viewer.add_image(noisy(30, 256), name="small")
        widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", "Denoise layer")[1]
        try:
            print(f"napari {napari.__version__}, {os.cpu_count()} cores{load()}")
            latencies = preview_latency(viewer, widget, rounds)
            print(
                f"preview of 256 x 256 after a change: median {statistics.median(latencies):.0f} "
                f"ms, longest {max(latencies):.0f} ms"
            )
            for what, values in stalls(viewer, widget, rounds).items():
                print(
                    f"  {what}: median {statistics.median(values):.0f} "
                    f"({', '.join(f'{value:.0f}' for value in values)})"
                )
            print(f"at the end{load()}")
        finally:
            widget.cancel()
            viewer.close()
            QThreadPool.globalInstance().waitForDone()


def load() -> str:
    """How busy the machine is, where it says so."""
    return f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


if __name__ == "__main__":
    main()
