"""The manifest: valid, found without loading anything heavy, and with menus that napari accepts."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from npe2 import PluginManifest

ROOT = Path(__file__).resolve().parents[2]
MENUS = {
    "visualize",
    "annotate",
    "data",
    "metadata",
    "layer_type",
    "filter",
    "transform",
    "measure",
    "register",
    "project",
}


def test_the_manifest_at_the_root_is_that_of_the_package():
    assert (ROOT / "napari.yaml").read_text("utf-8") == (
        ROOT / "napari_dnresnet" / "napari.yaml"
    ).read_text("utf-8")


def test_it_is_valid_and_all_it_names_can_be_imported():
    manifest = PluginManifest.from_file(ROOT / "napari_dnresnet" / "napari.yaml")
    manifest.validate_imports()
    assert manifest.name == "napari-dnresnet"


def test_napari_knows_the_menus():
    """It drops others without a word."""
    contributions = yaml.safe_load((ROOT / "napari_dnresnet" / "napari.yaml").read_text("utf-8"))[
        "contributions"
    ]
    for menu in contributions["menus"]:
        assert menu.removeprefix("napari/layers/") in MENUS
    commands = {command["id"] for command in contributions["commands"]}
    used = [item["command"] for kind in ("widgets", "sample_data") for item in contributions[kind]]
    assert {
        *used,
        *(item["command"] for items in contributions["menus"].values() for item in items),
    } == commands


def test_the_plugin_is_found_without_loading_it():
    script = """
        import sys, npe2
        manager = npe2.PluginManager.instance()
        manager.discover()
        manifest = manager.get_manifest("napari-dnresnet")
        assert len(manifest.contributions.widgets) == 3
        for heavy in ("torch", "openvino", "dn_core", "napari_dnresnet.denoise", "napari"):
            assert heavy not in sys.modules, heavy
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_modules_of_the_widgets_load_no_torch():
    script = """
        import sys
        import napari_dnresnet.denoise, napari_dnresnet.train, napari_dnresnet.models
        assert "torch" not in sys.modules and "openvino" not in sys.modules
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["Denoise layer", "Train denoiser", "Denoising models"])
def test_every_widget_opens_without_and_with_a_layer(viewer, open_widget, name):
    import numpy as np

    open_widget(name)
    viewer.add_image(np.zeros((20, 20), np.uint8))
    viewer.layers.clear()


@pytest.mark.parametrize("sample", ["cells", "photograph", "time-lapse"])
def test_samples_are_noisy_and_have_their_truth(viewer, sample):
    import dn_core

    truth, noisy = viewer.open_sample("napari-dnresnet", sample)
    assert "noise" in noisy.metadata
    assert not truth.visible
    plane = (0,) * (noisy.ndim - 2)

    def error(image):
        return float(((image.astype("f8") - truth.data[plane].astype("f8")) ** 2).mean())

    assert error(dn_core.denoise(noisy.data[plane])) < 0.4 * error(noisy.data[plane])
