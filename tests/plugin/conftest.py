"""What all tests of the plugin share: a real window, and the widget in it."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari and a Qt")

WAIT = 60_000  # milliseconds: the machine may be busy


@pytest.fixture(scope="session", autouse=True)
def _on_a_real_screen(qapp: Any) -> None:
    if sys.platform == "linux":
        assert qapp.platformName() in ("xcb", "wayland"), (
            f"Qt draws to {qapp.platformName()}; run under xvfb-run: napari needs OpenGL"
        )


@pytest.fixture
def own_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Preferences and models of this test alone."""
    from napari.settings import get_plugin_settings

    from napari_dnresnet.settings import Preferences, use_models_folder

    monkeypatch.setenv("NAPARI_CONFIG", os.fspath(tmp_path / "settings.yaml"))
    monkeypatch.setenv("DN_MODELS", os.fspath(tmp_path / "models"))
    # napari keeps a plugin's preferences in one place, whatever NAPARI_CONFIG says: the user's come
    # back afterwards.
    general = get_plugin_settings("napari-dnresnet").general
    users = {name: getattr(general, name) for name in Preferences.__dataclass_fields__}
    for name, value in asdict(Preferences()).items():
        setattr(general, name, value)
    yield tmp_path
    for name, value in users.items():
        setattr(general, name, value)
    use_models_folder()


@pytest.fixture
def viewer(request: pytest.FixtureRequest, own_settings: Any, make_napari_viewer: Any) -> Any:
    """On the screen, which takes its time, unless the closest mark ``screen`` says no."""
    screen = request.node.get_closest_marker("screen")
    return make_napari_viewer(show=screen is None or screen.args[0])


@pytest.fixture
def open_widget(viewer: Any) -> Callable[[str], Any]:
    """Opens a dock widget of the plugin as the menu does."""

    def opened(name: str) -> Any:
        return viewer.window.add_plugin_dock_widget("napari-dnresnet", name)[1]

    return opened


@pytest.fixture
def wait(qtbot: Any) -> Callable[[Callable[[], Any]], None]:
    """Waits until something is so."""
    return lambda until: qtbot.waitUntil(lambda: bool(until()), timeout=WAIT)


class Slow:
    """A lazy image whose planes take their time, so that there is time to cancel."""

    def __init__(self, planes: int = 200, seconds: float = 0.05, dtype: str = "uint16") -> None:
        import dask.array as da
        import numpy as np

        pixels = np.random.default_rng(0).integers(100, 200, (64, 64)).astype(dtype)

        def plane(block: Any) -> Any:
            time.sleep(seconds)
            return block + pixels

        zeros = da.zeros((planes, 64, 64), chunks=(1, 64, 64), dtype=dtype)
        self.data = zeros.map_blocks(plane, dtype=dtype, meta=np.empty((0, 0, 0), dtype))


@pytest.fixture
def slow() -> Any:
    return Slow().data
