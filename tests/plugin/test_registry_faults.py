"""Faults of a real web server while the dock widget "Denoising models" downloads from it."""

from typing import Any

import pytest
from web_server import WebServer, endless, redirect, slowly, status, write_model

import dn_core
from dn_core.models import registry
from napari_dnresnet.models import ModelsWidget

NAME = "lab"


@pytest.fixture
def server() -> Any:
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def contents(tmp_path: Any) -> list[bytes]:
    """Two versions of a model."""
    return [
        write_model(tmp_path / f"{scale}.safetensors", NAME, scale).read_bytes()
        for scale in (1.0, 0.9)
    ]


@pytest.fixture
def widget(open_widget: Any, wait: Any, server: Any, contents: Any) -> Any:
    """The widget, with the first version downloaded and the second one offered."""
    opened = open_widget("Denoising models")
    server.serve(contents[0])
    opened.registry.value = server.address
    list_models(opened, wait)
    download(opened)
    wait(lambda: opened.task is None)
    assert installed() == contents[0], opened.status.value
    server.record = server.serve(contents[1], version=2, sequence=2)
    list_models(opened, wait)
    return opened


def list_models(widget: Any, wait: Any) -> None:
    widget.list.clicked.emit(True)
    wait(lambda: widget.task is None)


def download(widget: Any) -> None:
    """Press Download on the row of what is offered."""
    (row,) = (
        row
        for row, entry in enumerate(widget._entries)
        if (entry.name, entry.kind) == (NAME, "remote")
    )
    widget.table.selectRow(row)
    assert widget.download.enabled
    widget.download.clicked.emit(True)
    assert widget.stop.enabled
    assert not widget.download.enabled


def installed() -> bytes:
    return registry.resolve(NAME).read_bytes()


def files() -> dict[str, bytes]:
    folder = registry.models_folder()
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != ".lock"
    }


def answer(server: Any, given: Any) -> None:
    server.answers[f"/models/{server.record['file']}"] = given


FAULTS = {
    "wrong hash": (lambda s, c: c[:-1] + bytes([c[-1] ^ 1]), "must have sha256 "),
    "truncated": (lambda s, c: c[:1000], "got 1000 of "),
    "cut off": (
        lambda s, c: slowly(c[:1000], 500, 0, s.stopping, len(c)),
        "ended the connection before the end",
    ),
    "endless": (lambda s, c: endless(s.stopping), ", got more"),
    "404": (lambda s, c: None, "no such file"),
    "out of order": (lambda s, c: status(503), "answered 503"),
    "login page": (lambda s, c: b"<html>Log in</html>", "is a web page"),
    "redirected to a file": (lambda s, c: redirect("file:///etc/passwd"), "where we do not go"),
    "redirected for ever": (
        lambda s, c: redirect(f"/models/{s.record['file']}"),
        "after 5 redirects",
    ),
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_reported_and_the_old_model_stays(widget, wait, server, contents, fault, words):
    before = files()
    answer(server, fault(server, contents[1]))
    download(widget)
    wait(lambda: widget.task is None)
    assert words.lower() in widget.status.value.lower()
    assert files() == before
    assert not widget.stop.enabled
    answer(server, contents[1])
    download(widget)
    wait(lambda: widget.task is None)
    assert installed() == contents[1], widget.status.value


@pytest.mark.parametrize(("piece", "pause"), [(1000, 30), (100, 0.02)], ids=["stalled", "slow"])
def test_a_download_that_is_cancelled_leaves_the_old_model(
    widget, wait, server, contents, piece, pause
):
    before = files()
    answer(server, slowly(contents[1], piece, pause, server.stopping, len(contents[1])))
    download(widget)
    wait(lambda: widget.bar.value >= piece)
    widget.stop.clicked.emit(True)
    wait(lambda: widget.task is None)
    assert widget.status.value == "Cancelled."
    assert files() == before
    answer(server, contents[1])
    download(widget)
    wait(lambda: widget.task is None)
    assert installed() == contents[1], widget.status.value


def test_a_redirect_within_the_server_is_followed(widget, wait, server, contents):
    server.answers["/elsewhere"] = contents[1]
    answer(server, redirect("/elsewhere"))
    download(widget)
    wait(lambda: widget.task is None)
    assert installed() == contents[1], widget.status.value


def test_two_downloads_at_once_give_one_model(widget, viewer, wait, server, contents):
    other = ModelsWidget(viewer)
    viewer.window.add_dock_widget(other, name="another window's")
    other.registry.value = server.address
    list_models(other, wait)
    before = files()
    answer(server, slowly(contents[1], 1000, 0.02, server.stopping, len(contents[1])))
    both = (widget, other)
    for one in both:
        download(one)
    for one in both:
        wait(lambda one=one: one.task is None)
        assert f"Downloaded {NAME}" in one.status.value
    assert installed() == contents[1]
    assert files().keys() == {*before, server.record["file"]}  # the version before stays


def test_closing_the_dock_ends_a_download(widget, viewer, wait, server, contents):
    before = files()
    answer(server, slowly(contents[1], 1000, 30, server.stopping, len(contents[1])))
    download(widget)
    wait(lambda: widget.bar.value >= 1000)
    job = widget.task
    viewer.window.remove_dock_widget(widget.native)
    wait(lambda: not job.running)
    assert files() == before
    assert NAME in dn_core.model_names()
