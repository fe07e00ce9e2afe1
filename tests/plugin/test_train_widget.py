"""The dock widget "Train denoiser": real training runs in child processes."""

import json
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
from napari_dnresnet.image_copies import ImageCopies, remove_abandoned
from napari_dnresnet.train import CLEAN, PAIR, REPEATS
from napari_dnresnet.training_images import training_runs_folder

NAME = "Train denoiser"
MINUTES = 0.05


def picture() -> Any:
    return data.camera()[::2, ::2].astype(np.float32)


def noisy(clean: Any, seed: int = 0) -> Any:
    """Noise in stripes, which no bundled model was made for."""
    rng = np.random.default_rng(seed)
    return (
        clean
        + rng.normal(0, 12, (clean.shape[0], 1)).astype(np.float32)
        + rng.normal(0, 8, clean.shape).astype(np.float32)
    )


@pytest.fixture
def widget(viewer, open_widget):
    opened = open_widget(NAME)
    opened.minutes.value = MINUTES
    return opened


def begin(widget: Any, wait: Any, points: int = 1) -> None:
    widget.begin.clicked.emit(True)
    wait(lambda: len(widget.curve.points) >= points or not widget.busy)
    assert widget.busy, widget.status.value


def copies() -> list[str]:
    """Copies of images that lie on disk."""
    return [
        path.name
        for path in training_runs_folder().rglob("*")
        if path.suffix in (".npy", ".part") or path.name.endswith("-images")
    ]


def left() -> list[str]:
    """The files of training runs."""
    return sorted(path.name for path in training_runs_folder().glob("*"))


@pytest.mark.slow
def test_pairs_improve_the_model_which_is_then_used(viewer, widget, open_widget, wait):
    clean = picture()
    viewer.add_image(noisy(clean), name="noisy")
    viewer.add_image(clean, name="clean")
    widget.noisy.value, widget.clean.value = viewer.layers["noisy"], viewer.layers["clean"]
    widget.model_name.value, widget.minutes.value = "stripes", 0.25
    begin(widget, wait)
    wait(lambda: not widget.busy)
    (_, first), *_, (_, last) = widget.curve.points
    assert last > first + 0.3, widget.status.value
    assert left() == [], "neither images nor a state"
    assert widget.bar.value == widget.bar.max
    assert "stripes can be chosen in all lists" in widget.status.value
    assert {"noisy", "before", "now"} == set(widget.crops.crops)
    widget.use.clicked.emit(True)
    denoise = open_widget("Denoise layer")
    assert denoise.model.value == "stripes"
    denoise.layer.value = viewer.layers["noisy"]
    denoise.run.clicked.emit(True)
    wait(lambda: denoise.task is None)
    error = {
        name: np.square(dn_core.denoise(noisy(clean), name) - clean).mean()
        for name in ("stripes", "dn-fast")
    }
    assert error["stripes"] < 0.95 * error["dn-fast"]


def test_it_pauses_resumes_and_stops(viewer, widget, wait):
    viewer.add_image(noisy(picture()), name="noisy")
    viewer.add_image(picture(), name="clean")
    widget.noisy.value, widget.clean.value = viewer.layers["noisy"], viewer.layers["clean"]
    widget.minutes.value = 1
    begin(widget, wait, points=2)
    assert copies() != []
    widget.pause.clicked.emit(True)
    wait(lambda: widget.pause.text == "Resume")
    widget.pause.clicked.emit(True)
    wait(lambda: widget.pause.text == "Pause")
    widget.stop.clicked.emit(True)
    wait(lambda: not widget.busy)
    assert "my-noise" in dn_core.model_names(), widget.status.value
    assert widget.use.enabled
    assert copies() == [], "the layers are there"
    step = widget.curve.points[-1][0]
    begin(widget, wait)
    assert widget.curve.points[0][0] >= step, "it is resumed, not started again"
    widget.stop.clicked.emit(True)
    wait(lambda: not widget.busy)


def test_a_training_run_without_a_better_score_makes_no_model(viewer, widget, wait):
    """Stopped before it has learnt anything."""
    clean = np.tile(np.linspace(50, 200, 128, dtype=np.float32), (128, 1))
    viewer.add_image(
        clean + np.random.default_rng(0).normal(0, 12, clean.shape).astype(np.float32), name="noisy"
    )
    viewer.add_image(clean, name="clean")
    widget.noisy.value, widget.clean.value = viewer.layers["noisy"], viewer.layers["clean"]
    widget.minutes.value = 100
    begin(widget, wait)
    widget.stop.clicked.emit(True)
    wait(lambda: not widget.busy)
    assert (
        widget.status.value
        == "No new model: nothing has scored better than the initial model so far. Press Train to "
        "resume."
    )
    assert "my-noise" not in dn_core.model_names()
    assert not widget.use.enabled
    assert left() == ["my-noise-training"]


def test_the_end_of_a_training_run_without_a_better_score_is_reported(widget):
    """As the training run reports it."""
    (training_runs_folder() / "my-noise-training").mkdir(parents=True)
    widget._name = "my-noise"
    widget._receive(
        {
            "kind": "done",
            "path": None,
            "kept_start": True,
            "stopped": False,
            "best_psnr": 30.0,
            "start_psnr": 30.0,
        }
    )
    widget._ended(0, "")
    assert widget.status.value.startswith(
        "No new model: nothing scored better than the initial model."
    )
    assert not widget.use.enabled
    assert left() == []


@pytest.mark.parametrize("mode", [REPEATS, CLEAN])
def test_repeats_and_noise_models_train_too(viewer, widget, wait, mode):
    clean = picture()[:128, :128]
    widget.mode.value = mode
    if mode == REPEATS:
        viewer.add_image(np.stack([noisy(clean, seed) for seed in range(4)]), name="repeats")
        widget.noisy.value = viewer.layers["repeats"]
    else:
        viewer.add_image(clean, name="clean")
        widget.clean.value = viewer.layers["clean"]
        widget.kind.value, widget.peak.value = "poisson", 10
        assert not widget.sigma.visible
    begin(widget, wait)
    wait(lambda: not widget.busy)
    best = max(score for _, score in widget.curve.points)
    gained = best > widget.curve.points[0][1]
    assert ("my-noise" in dn_core.model_names()) == widget.use.enabled == gained, (
        widget.status.value
    )


def test_a_detector_is_asked_for_in_grey_levels(viewer, widget):
    assert not widget.gain.visible
    widget.mode.value, widget.kind.value = CLEAN, "detector"
    detector = (widget.gain, widget.read_noise, widget.offset, widget.correlation)
    assert all(setting.visible for setting in detector)
    assert not widget.sigma.visible
    assert not widget.peak.visible
    for setting, value in zip(detector, (2.1, 3.5, 100, 0.7), strict=True):
        setting.value = value
    options = " ".join(widget.arguments({}))
    assert "--noise-kind detector --gain 2.1 --read-noise 3.5 --offset 100" in options
    assert "--correlation 0.7" in options


def test_bad_training_images_are_explained(viewer, widget, wait):
    widget.start()
    assert "no noisy layer" in widget.status.value
    layer = viewer.add_image(picture(), name="a")
    widget.noisy.value = widget.clean.value = layer
    widget.start()
    assert "Choose two different layers" in widget.status.value
    viewer.add_image(picture()[:100], name="b")
    widget.clean.value = viewer.layers["b"]
    widget.start()
    assert (
        widget.status.value
        == "The noisy and the clean layer must have the same shape, got a (256, 256) and b (100, "
        "256). Crop them to the same size."
    )
    widget.model_name.value = "../x"
    widget.start()
    assert "../x" in widget.status.value
    assert left() == []


def refused_images(folder: Any) -> tuple[Any, str]:
    return picture()[:64, :64], "8192 pixels together, got 4096"


def refused_by_the_state(folder: Any, **more: Any) -> tuple[Any, str]:
    """There is the state of a training run with other images."""
    from dn_core.tensor_files import write_tensors

    (folder / "my-noise-training").mkdir(parents=True)
    state = {
        "format": 2,
        "recipe": {"name": "other"},
        "data": "other",
        "precision": "float32",
        "stage": 0,
        "start": "",
        "step": 0,
        **more,
    }
    path = folder / "my-noise-training" / "state.safetensors"
    write_tensors(
        path, {"network.a": np.zeros(1, np.float32)}, {"dn_resnet_training": json.dumps(state)}
    )
    return picture()[:128, :128], "unfinished training run my-noise with other images"


def refused_by_an_older_state(folder: Any) -> tuple[Any, str]:
    """There is a training run that another version of the program began."""
    clean, _ = refused_by_the_state(folder, format=1)
    return clean, "Another version of the plugin began the training run my-noise"


def refused_name(folder: Any) -> tuple[Any, str]:
    """There is a model of this name that nobody trained here."""
    folder.mkdir(parents=True)
    (folder / "my-noise.safetensors").write_bytes(b"a model")
    return picture()[:128, :128], "a model of this name"


@pytest.mark.parametrize(
    "why", [refused_images, refused_by_the_state, refused_by_an_older_state, refused_name]
)
def test_a_training_run_that_is_refused_leaves_no_copy_of_the_images(viewer, widget, wait, why):
    clean, words = why(training_runs_folder())
    before = left()
    viewer.add_image(clean + noisy(picture())[: len(clean), : len(clean)] % 7, name="noisy")
    viewer.add_image(clean, name="clean")
    widget.noisy.value, widget.clean.value = viewer.layers["noisy"], viewer.layers["clean"]
    widget.begin.clicked.emit(True)
    assert widget.busy
    wait(lambda: not widget.busy)
    assert words in widget.status.value
    assert left() == before


def test_a_copy_that_cannot_be_finished_is_removed(viewer, widget, wait, slow):
    viewer.add_image(slow, name="noisy")
    viewer.add_image(np.zeros(slow.shape, np.uint16), name="clean")
    widget.noisy.value, widget.clean.value = viewer.layers["noisy"], viewer.layers["clean"]
    widget.begin.clicked.emit(True)
    wait(lambda: any(name.startswith("noisy") for name in copies()))
    viewer.window.remove_dock_widget(widget.native)
    wait(lambda: widget.task is None and left() == [])


def test_copies_of_a_program_that_was_killed_are_removed_and_those_in_use_are_not(widget):
    script = textwrap.dedent("""
        import os, pathlib, sys
        from napari_dnresnet.image_copies import ImageCopies
        ImageCopies(pathlib.Path(sys.argv[1]), "dead")
        os._exit(9)
    """)
    subprocess.run(
        [sys.executable, "-c", script, str(training_runs_folder())], check=False, timeout=60
    )
    here = ImageCopies(training_runs_folder(), "alive")
    with pytest.raises(BlockingIOError, match="Another window is training alive"):
        ImageCopies(training_runs_folder(), "alive")
    assert left() == ["alive-images", "dead-images"]
    remove_abandoned(training_runs_folder())
    assert left() == ["alive-images"]
    here.remove()
    assert left() == []


def test_a_training_run_that_is_killed_is_reported_and_resumed(viewer, widget, wait):
    viewer.add_image(noisy(picture()), name="noisy")
    viewer.add_image(picture(), name="clean")
    widget.noisy.value, widget.clean.value, widget.minutes.value = (
        viewer.layers["noisy"],
        viewer.layers["clean"],
        1,
    )
    assert widget.mode.value == PAIR
    begin(widget, wait)
    os.kill(widget.child.process.processId(), signal.SIGKILL)
    wait(lambda: not widget.busy)
    assert "Press Train to resume" in widget.status.value
    assert copies() == []
    begin(widget, wait, points=2)
    widget.stop.clicked.emit(True)
    wait(lambda: not widget.busy)
    assert "my-noise" in dn_core.model_names()


@pytest.mark.parametrize("how", ["dock", "viewer"])
def test_closing_ends_the_child(viewer, widget, wait, how):
    viewer.add_image(noisy(picture()), name="noisy")
    viewer.add_image(picture(), name="clean")
    widget.noisy.value, widget.clean.value, widget.minutes.value = (
        viewer.layers["noisy"],
        viewer.layers["clean"],
        3,
    )
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
    assert left() == ["my-noise-training"]


@pytest.mark.slow
@pytest.mark.parametrize("dock", ["stays", "is removed"])
def test_the_program_ends_cleanly_after_a_training_run(dock):
    script = textwrap.dedent(f"""
        import napari, numpy as np
        from qtpy.QtWidgets import QApplication
        viewer = napari.Viewer(show=True)
        viewer.add_image(np.ones((64, 64)), name="noisy")
        viewer.add_image(np.ones((64, 64)), name="clean")
        widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", "Train denoiser")[1]
        widget.noisy.value, widget.clean.value = viewer.layers
        widget.begin.clicked.emit(True)
        assert widget.busy
        while widget.busy:
            QApplication.instance().processEvents()
        assert "pixels together" in widget.status.value, widget.status.value
        if {dock == "is removed"}:
            viewer.window.remove_dock_widget(widget.native)
        viewer.close()
        print("ended", flush=True)
    """)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "ended" in ended.stdout
    assert "Error" not in ended.stderr
