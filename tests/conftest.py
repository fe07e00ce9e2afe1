"""What all tests share: the folder with test images, and how hard hypothesis tries."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# No deadline: how long an example takes says more about the machine than about the code.
examples = int(os.environ.get("DN_EXAMPLES", "100"))
settings.register_profile("project", max_examples=examples, deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def _no_models_of_the_developer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests see an empty models folder, whatever the one who runs them has downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DN_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.delenv("DN_REGISTRY", raising=False)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Test images that are too large for the repository: DN_DATA, or shared/data beside it."""
    folder = Path(os.environ.get("DN_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; set DN_DATA to the folder with the test images")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Train with one thread: the order in which threads add numbers changes the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
