"""What benchmarks/structure.py measures, of a small package and of our own code."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_BODY = 50  # lines

FRONT = """
from ._inner import blur, Kernel

__all__ = ["Kernel", "blur"]
"""
INNER = '''
import small.other

def blur(image, width, *, _hidden=0):
    """Blur.

    Parameters
    ----------
    image : array
        The image.
    """
    first = image
    return first

class Kernel:
    """A kernel.

    Parameters
    ----------
    width, height : int
        In pixels.
    """

    def __init__(self, width, height):
        self.width, self.height = width, height

    def apply(self, image, mode):
        """Apply it.

        Args:
            image (array): The image.
        """

    def _private(self, unseen):
        pass
'''
OTHER = "def later():\n    from small._inner import blur\n    return blur\n"


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    path = ROOT / "benchmarks" / "structure.py"
    if not path.exists():
        pytest.skip("the benchmarks are not part of this source distribution")
    spec = importlib.util.spec_from_file_location("structure", path)
    module = sys.modules["structure"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_small_package_is_measured(structure, tmp_path) -> None:
    folder = tmp_path / "small"
    (folder / "tests").mkdir(parents=True)
    for name, content in (
        ("__init__", FRONT),
        ("_inner", INNER),
        ("other", OTHER),
        ("tests/test_blur", "def test(a, b):\n    pass\n"),
    ):
        (folder / f"{name}.py").write_text(content)
    found = structure.measure("small", folder, [])
    assert (found.files, found.long_files) == (3, 0)
    assert found.bodies == [0, 1, 1, 2, 2]
    # Described: image, width and height of Kernel, image of apply; not: width of blur, mode.
    assert (found.described, found.parameters) == (4, 6)
    assert found.circles == (0, 0, 1)


OURS = {
    "src/dn_core": ["noise", "networks"],
    "napari_dnresnet": [],
    "distributed": [],
}


@pytest.mark.parametrize("folder", OURS)
def test_our_functions_are_short_and_imports_make_no_circle(structure, folder) -> None:
    found = structure.measure(folder, ROOT / folder, OURS[folder])
    assert found.bodies[-1] <= LONGEST_BODY
    assert found.circles == (0, 0, 0)


def test_all_parameters_of_the_public_api_are_described(structure) -> None:
    found = structure.measure("dn_core", ROOT / "src" / "dn_core", OURS["src/dn_core"])
    assert found.described == found.parameters > 0
