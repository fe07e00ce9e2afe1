"""Checks an installed wheel: npe2 finds the plugin, which opens and denoises a layer.

Run away from the sources: ``python installed.py FOLDER``, with the folder that the packages must
come from.
"""

import sys
import time
from pathlib import Path

import napari
import npe2
import numpy as np
from qtpy.QtWidgets import QApplication

import dn_core
import napari_dnresnet


def main(folder: Path) -> None:
    for package in (dn_core, napari_dnresnet):
        assert Path(package.__file__).resolve().is_relative_to(folder.resolve()), package.__file__
    manager = npe2.PluginManager.instance()
    manager.discover()
    manifest = manager.get_manifest("napari-dnresnet")
    assert manifest.package_version == dn_core.__version__
    viewer = napari.Viewer(show=False)
    image = np.random.default_rng(0).normal(100, 20, (2, 60, 70)).astype(np.uint8)
    viewer.add_image(image, name="image")
    _, widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", "Denoise layer")
    widget.run.clicked.emit(True)
    end = time.monotonic() + 120
    while widget.task is not None and time.monotonic() < end:
        QApplication.instance().processEvents()
    assert np.array_equal(viewer.layers["image denoised"].data, dn_core.denoise(image))
    viewer.close()
    print("installed, found, denoised")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
