"""Run the plugin's model widget: list the models of a registry, and download one.

``python download_in_plugin.py ADDRESS MODEL``, with a display.
"""

import sys
import time

import napari
from qtpy.QtWidgets import QApplication


def main(address: str, name: str) -> None:
    viewer = napari.Viewer(show=False)
    _, widget = viewer.window.add_plugin_dock_widget("napari-dnresnet", "Denoising models")

    def press(button):
        button.clicked.emit(True)
        end = time.monotonic() + 120
        while widget.busy and time.monotonic() < end:
            QApplication.instance().processEvents()
        print(widget.status.value, flush=True)

    widget.registry.value = address
    press(widget.list)
    widget.choose(name)
    press(widget.download)
    viewer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
