"""The dock widget "Denoising models", with a real registry in a folder and on a web server."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dn_core
from dn_core.checkpoints import load_checkpoint, save_checkpoint
from dn_core.models import registry

NAME = "Denoising models"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A registry in a folder with one model: a bundled one, its last layer scaled."""
    folder = tmp_path / "lab"
    folder.mkdir()
    checkpoint = load_checkpoint(registry.resolve("dn-resnet-13"))
    weights = {
        **checkpoint.weights,
        "last.weight": checkpoint.weights["last.weight"] * np.float32(0.5),
    }
    card = type(checkpoint.card)(
        **{**vars_of(checkpoint.card), "name": "lab-half", "description": "half of the change"}
    )
    path = folder / "lab-half-1.safetensors"
    save_checkpoint(path, type(checkpoint)(checkpoint.config, weights, card))
    content = path.read_bytes()
    model = {
        "name": "lab-half",
        "version": 1,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (folder / "index.json").write_text(
        json.dumps({"format": 2, "sequence": 1, "models": [{**model, "noise": "the lab's"}]})
    )
    return folder


def vars_of(card: Any) -> dict[str, Any]:
    return {name: getattr(card, name) for name in card.__dataclass_fields__}


@pytest.fixture
def web(lab: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(lab))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def rows(widget: Any) -> list[tuple[str, str]]:
    return [
        (widget.table.item(row, 0).text(), widget.table.item(row, 3).text())
        for row in range(widget.table.rowCount())
    ]


def test_bundled_models_are_listed_with_their_cards(open_widget):
    widget = open_widget(NAME)
    assert rows(widget)[0] == ("dn-fast (default)", "bundled")
    widget.choose("dn-resnet-13")
    assert "13 layers" in widget.card.value
    assert "License: BSD-3-Clause" in widget.card.value
    assert not widget.delete.enabled


def test_terms_and_sources_are_shown(open_widget):
    widget = open_widget(NAME)
    widget.choose("dn-fast@1")
    assert "Model: dn-fast@1, bundled" in widget.card.value
    assert "ImageNet: non-commercial research only" in widget.card.value
    assert "Terms: For research." in widget.card.value
    assert widget.table.item(0, 4).text() == "1"


def test_an_older_version_stays_chosen_and_can_be_used(viewer, open_widget, wait, lab):
    path = next(lab.glob("*.safetensors"))
    registry.add(path)
    checkpoint = load_checkpoint(path)
    weights = {name: value * np.float32(0.9) for name, value in checkpoint.weights.items()}
    save_checkpoint(path, type(checkpoint)(checkpoint.config, weights, checkpoint.card))
    widget, denoise = open_widget(NAME), open_widget("Denoise layer")
    registry.add(path, replace=True)
    widget.refresh()
    denoise.model.reset_choices()
    assert rows(widget)[-2:] == [("lab-half", "own")] * 2
    assert denoise.model.choices[-2:] == ("lab-half", "lab-half@1")
    denoise.model.value = "lab-half@1"
    image = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    viewer.add_image(image, name="image")
    denoise.run.clicked.emit(True)
    wait(lambda: denoise.task is None)
    result = viewer.layers["image denoised"]
    assert np.array_equal(result.data, dn_core.denoise(image, "lab-half@1"))
    assert result.metadata["dnresnet"]["model"] == "lab-half@1"
    widget.choose("lab-half@1")
    assert widget.chosen.version == 1


@pytest.mark.parametrize("where", ["folder", "web"])
def test_a_model_is_downloaded_used_and_deleted(viewer, open_widget, wait, lab, web, where):
    widget, denoise = open_widget(NAME), open_widget("Denoise layer")
    widget.registry.value = str(lab) if where == "folder" else web
    widget.list.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert ("lab-half", "to download") in rows(widget), widget.status.value
    widget.choose("lab-half")
    widget.download.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert ("lab-half", "downloaded") in rows(widget), widget.status.value
    assert "lab-half" in denoise.model.choices
    image = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    viewer.add_image(image, name="image")
    denoise.model.value = "lab-half"
    denoise.run.clicked.emit(True)
    wait(lambda: denoise.task is None)
    assert np.array_equal(viewer.layers["image denoised"].data, dn_core.denoise(image, "lab-half"))
    widget.delete.clicked.emit(True)
    assert "lab-half" not in dn_core.model_names()
    assert "lab-half" not in denoise.model.choices


def test_a_wrong_file_is_refused_and_nothing_stays(open_widget, wait, lab, web, own_settings):
    path = lab / "lab-half-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    widget = open_widget(NAME)
    widget.registry.value = web
    widget.list.clicked.emit(True)
    wait(lambda: widget.task is None)
    widget.choose("lab-half")
    widget.download.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert "sha256" in widget.status.value
    assert "lab-half" not in dn_core.model_names()
    assert not list((own_settings / "models").glob("*.safetensors"))


def test_a_registry_that_is_not_there_is_explained(open_widget, wait, tmp_path):
    widget = open_widget(NAME)
    for address in (str(tmp_path / "nothing"), "http://127.0.0.1:9"):
        widget.registry.value = address
        widget.list.clicked.emit(True)
        wait(lambda: widget.task is None)
        assert address.rpartition("/")[2] in widget.status.value
    widget.registry.value = ""
    widget.list.clicked.emit(True)
    assert "Enter a registry above" in widget.status.value


def test_an_own_file_is_added_and_refused_when_it_is_none(open_widget, tmp_path, lab):
    widget = open_widget(NAME)
    widget.add_file(str(lab / "lab-half-1.safetensors"))
    assert ("lab-half", "own") in rows(widget)
    assert widget.chosen.name == "lab-half"
    assert "Added lab-half" in widget.status.value
    widget.delete.clicked.emit(True)
    assert "Press again" in widget.status.value
    assert widget.delete.text == "Really delete?"
    widget.choose("dn-fast")
    widget.choose("lab-half")
    assert widget.delete.text == "Delete"
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no model")
    widget.add_file(str(bad))
    assert "bad.safetensors" in widget.status.value
    assert len(rows(widget)) == len(dn_core.model_names())


def test_the_registry_is_remembered_in_the_preferences(open_widget, wait, lab):
    from napari_dnresnet.settings import preferences

    widget = open_widget(NAME)
    widget.registry.value = str(lab)
    widget.list.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert preferences().registry == str(lab)


def test_a_card_says_how_fast_its_model_is(viewer, open_widget, wait):
    widget, denoise = open_widget(NAME), open_widget("Denoise layer")
    widget.choose("dn-fast")
    assert (
        f"{registry.load('dn-fast').config.macs_per_pixel:,.0f} multiplications per pixel"
        in widget.card.value
    )
    for side, counted in ((64, False), (1024, True)):
        viewer.add_image(
            np.random.default_rng(0).integers(0, 255, (side, side)).astype(np.uint8), name="image"
        )
        denoise.run.clicked.emit(True)
        wait(lambda: denoise.task is None)
        assert (
            "megapixels per second here (last run: 1.05 megapixels, " in widget.card.value
        ) == counted, "a small run is mostly its start"
    widget.choose("dn-resnet-13")
    assert "149,344 multiplications per pixel" in widget.card.value
    assert "here" not in widget.card.value


def test_settings_are_kept_and_used(viewer, open_widget, own_settings, lab):
    from napari.settings import get_plugin_settings

    widget, denoise = open_widget(NAME), open_widget("Denoise layer")
    widget.device.value, widget.preview.value = "cpu", 128
    general = get_plugin_settings("napari-dnresnet").general
    assert (general.device, general.preview) == ("cpu", 128)
    assert denoise.denoise_options()["device"] == "cpu"
    usual = registry.models_folder()
    widget.folder.value = str(own_settings / "shared models")
    widget.folder.native.editingFinished.emit()
    assert registry.models_folder() == own_settings / "shared models"
    widget.add_file(str(lab / "lab-half-1.safetensors"))
    assert (own_settings / "shared models" / "index.json").exists()
    assert "lab-half" in denoise.model.choices
    general.models, general.device = "", "auto"  # as in File > Preferences
    assert registry.models_folder() == usual
    assert (widget.folder.value, widget.device.value) == ("", "auto")
    assert "lab-half" not in [name for name, _ in rows(widget)]
    assert "lab-half" not in denoise.model.choices
