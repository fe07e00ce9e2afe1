"""Makes the pictures of the plugin's pages in a real napari window.

``xvfb-run -s "-screen 0 1600x1200x24" python docs/screenshots.py``
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "plugin"
SIZE = (1200, 800)
WIDTH = 1000


def main() -> None:
    """One viewer after the other, as a user would use them."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DN_MODELS"] = f"{folder}/models"
        os.environ["NAPARI_CONFIG"] = f"{folder}/settings.yaml"
        FOLDER.mkdir(exist_ok=True)
        denoise_and_compare()
        train_and_models()


def opened(sample: str) -> Any:
    """A viewer with a sample."""
    import napari

    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(*SIZE)
    viewer.open_sample("napari-dnresnet", sample)
    return viewer


def widget(viewer: Any, name: str, **options: Any) -> Any:
    """A dock widget of the plugin."""
    return viewer.window.add_plugin_dock_widget("napari-dnresnet", name, **options)[1]


def wait(until: Callable[[], Any], limit: float = 300) -> None:
    """Let the window work until something is so."""
    from qtpy.QtWidgets import QApplication

    began = time.monotonic()
    while not until():
        QApplication.instance().processEvents()
        time.sleep(0.01)
        if time.monotonic() - began > limit:
            raise TimeoutError("the window did not get there")


def pause(seconds: float = 0.7) -> None:
    """Let the window draw."""
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)


def save(viewer: Any, name: str) -> None:
    """Take a picture of the whole window, with few colours: it is mostly grey."""
    pause()
    picture = Image.fromarray(
        np.asarray(viewer.screenshot(canvas_only=False, flash=False))[..., :3]
    )
    picture = picture.resize(
        (WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS
    )
    picture.quantize(192).save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}: {(FOLDER / f'{name}.png').stat().st_size / 1000:.0f} kB")


def denoise_and_compare() -> None:
    """The preview on half of what is seen, the plan with the result, and the residual."""
    from napari_dnresnet.view import camera

    viewer = opened("cells")
    denoise = widget(viewer, "Denoise layer")
    pause()
    view = camera(viewer)
    view.zoom *= 2
    view.center = (0, 32, 32)
    denoise.preview.limit = 128
    denoise.preview_on.value = True
    wait(lambda: denoise.preview.layer is not None and not denoise.preview.busy)
    save(viewer, "preview")
    denoise.plan.button.click()
    wait(lambda: not denoise.plan.busy)
    denoise.run.clicked.emit(True)
    wait(lambda: denoise.task is None)
    save(viewer, "denoise")
    denoise.plan.button.click()
    denoise.residual.clicked.emit(True)
    save(viewer, "residual")
    viewer.close()


def train_and_models() -> None:
    """A training run of four minutes, then the list of models."""
    viewer = opened("cells")
    train = widget(viewer, "Train denoiser")
    train.noisy.value = viewer.layers["nuclei"]
    train.clean.value = viewer.layers["nuclei ground truth"]
    train.minutes.value = 4
    train.begin.clicked.emit(True)
    wait(lambda: len(train.curve.points) > 10 or not train.busy)
    save(viewer, "train")
    wait(lambda: not train.busy)
    viewer.window.remove_dock_widget(train.native)
    widget(viewer, "Denoising models").choose("my-noise")
    save(viewer, "models")
    viewer.close()


if __name__ == "__main__":
    main()
