"""The dock widget "Train denoiser": real trainings in child processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import numpy as np
import pytest
from skimage import data

import dn_core
from napari_dnresnet.train import CLEAN, PAIR, REPEATS

NAME = "Train denoiser"
MINUTES = 0.05


def picture() -> Any:
    return data.camera()[::2, ::2].astype(np.float32)


def noisy(clean: Any, seed: int = 0) -> Any:
    """Noise in stripes, which no bundled model was made for."""
    rng = np.random.default_rng(seed)
    return clean + rng.normal(0, 12, (clean.shape[0], 1)).astype(np.float32) + rng.normal(0, 8, clean.shape).astype(np.float32)


@pytest.fixture
def widget(viewer, open_widget):
    opened = open_widget(NAME)
    opened.minutes.value = MINUTES
    return opened


def begin(widget: Any, wait: Any, points: int = 1) -> None:
    widget.begin.clicked.emit(True)
    wait(lambda: len(widget.curve.points) >= points or not widget.busy)
    assert widget.busy, widget.status.value


@pytest.mark.slow
def test_pairs_improve_the_model_which_is_then_used(viewer, widget, open_widget, wait):
    clean = picture()
    viewer.add_image(noisy(clean), name="noisy")
    viewer.add_image(clean, name="clean")
    widget.noisy.value, widget.clean.value = viewer.layers["noisy"], viewer.layers["clean"]
    widget.model_name.value, widget.minutes.value = "stripes", 0.5
    begin(widget, wait)
    wait(lambda: not widget.busy)
    (_, first), *_, (_, last) = widget.curve.points
    assert last > first + 0.3, widget.status.value
    assert "stripes is in every list" in widget.status.value
    assert {"noisy", "before", "now"} == set(widget.crops.crops)
    widget.use.clicked.emit(True)
    denoise = open_widget("Denoise layer")
    assert denoise.model.value == "stripes"
    denoise.layer.value = viewer.layers["noisy"]
    denoise.run.clicked.emit(True)
    wait(lambda: denoise.job is None)
    error = {name: np.square(dn_core.denoise(noisy(clean), name) - clean).mean() for name in ("stripes", "dn-fast")}
    assert error["stripes"] < 0.95 * error["dn-fast"]


def test_it_pauses_goes_on_stops_and_resumes(viewer, widget, wait):
    viewer.add_image(noisy(picture()), name="noisy")
    viewer.add_image(picture(), name="clean")
    widget.noisy.value, widget.clean.value = viewer.layers["noisy"], viewer.layers["clean"]
    widget.minutes.value = 3
    begin(widget, wait)
    widget.pause.clicked.emit(True)
    wait(lambda: widget.pause.text == "Go on")
    widget.pause.clicked.emit(True)
    wait(lambda: widget.pause.text == "Pause")
    widget.stop.clicked.emit(True)
    wait(lambda: not widget.busy)
    assert "my-noise" in dn_core.model_names(), widget.status.value
    assert widget.use.enabled
    step = widget.bar.value
    begin(widget, wait)
    assert widget.curve.points[0][0] >= step - 1, "it goes on where it was"
    widget.stop.clicked.emit(True)
    wait(lambda: not widget.busy)


@pytest.mark.parametrize("way", [REPEATS, CLEAN])
def test_repeats_and_noise_models_train_too(viewer, widget, wait, way):
    clean = picture()[:128, :128]
    widget.way.value = way
    if way == REPEATS:
        viewer.add_image(np.stack([noisy(clean, seed) for seed in range(4)]), name="repeats")
        widget.noisy.value = viewer.layers["repeats"]
    else:
        viewer.add_image(clean, name="clean")
        widget.clean.value = viewer.layers["clean"]
        widget.kind.value, widget.peak.value = "poisson", 10
        assert not widget.sigma.visible
    begin(widget, wait)
    wait(lambda: not widget.busy)
    assert "my-noise" in dn_core.model_names(), widget.status.value


def test_bad_material_is_explained(viewer, widget, wait):
    widget.start()
    assert "no noisy layer" in widget.status.value
    layer = viewer.add_image(picture(), name="a")
    widget.noisy.value = widget.clean.value = layer
    widget.start()
    assert "chosen twice" in widget.status.value
    viewer.add_image(picture()[:100], name="b")
    widget.clean.value = viewer.layers["b"]
    widget.begin.clicked.emit(True)
    wait(lambda: not widget.busy)
    assert "shape" in widget.status.value
    widget.model_name.value = "../x"
    widget.start()
    assert "../x" in widget.status.value


def test_a_training_that_is_killed_is_told_and_goes_on(viewer, widget, wait):
    viewer.add_image(noisy(picture()), name="noisy")
    viewer.add_image(picture(), name="clean")
    widget.noisy.value, widget.clean.value, widget.minutes.value = viewer.layers["noisy"], viewer.layers["clean"], 3
    assert widget.way.value == PAIR
    begin(widget, wait)
    os.kill(widget.child.process.processId(), signal.SIGKILL)
    wait(lambda: not widget.busy)
    assert "press Train to go on" in widget.status.value
    begin(widget, wait)
    widget.stop.clicked.emit(True)
    wait(lambda: not widget.busy)
    assert "my-noise" in dn_core.model_names()


@pytest.mark.parametrize("how", ["dock", "viewer"])
def test_closing_ends_the_child(viewer, widget, wait, how):
    viewer.add_image(noisy(picture()), name="noisy")
    viewer.add_image(picture(), name="clean")
    widget.noisy.value, widget.clean.value, widget.minutes.value = viewer.layers["noisy"], viewer.layers["clean"], 3
    begin(widget, wait)
    child = widget.child
    process = child.process.processId()
    if how == "dock":
        viewer.window.remove_dock_widget(widget.native)
    else:
        viewer.close()
    wait(lambda: not child.running)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{process}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{process}")


@pytest.mark.slow
@pytest.mark.parametrize("dock", ["stays", "is removed"])
def test_the_program_ends_cleanly_after_a_training(dock):
    script = textwrap.dedent(f"""
        import napari, numpy as np
        from qtpy.QtWidgets import QApplication
        viewer = napari.Viewer(show=True)
        viewer.add_image(np.ones((64, 64)), name="noisy")
        viewer.add_image(np.ones((32, 32)), name="clean")
        widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", "Train denoiser")[1]
        widget.noisy.value, widget.clean.value = viewer.layers
        widget.begin.clicked.emit(True)
        assert widget.busy
        while widget.busy:
            QApplication.instance().processEvents()
        assert "shape" in widget.status.value, widget.status.value
        if {dock == "is removed"}:
            viewer.window.remove_dock_widget(widget.native)
        viewer.close()
        print("ended", flush=True)
    """)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "ended" in ended.stdout
    assert "Error" not in ended.stderr
