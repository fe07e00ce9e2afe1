"""A training run of seconds: its recipe, real images, and its TensorBoard files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

PICTURES = (
    data.camera,
    data.coins,
    data.moon,
    data.page,
    data.text,
    data.clock,
    data.brick,
    data.grass,
)


def write_recipe(
    path: Path,
    *,
    steps: int,
    batch: int = 4,
    patch: int = 32,
    block: str = "full",
    name: str = "toy",
    more: str = "",
) -> Path:
    """Write a recipe: a cascade of two stages of `steps` steps, four per epoch.

    `more` has further lines before the tables, such as a plan.
    """
    path.write_text(
        f'base = "paper-blind"\nname = "{name}"\nepoch = 4\ndrop = 0\n{more}\n'
        f'[network]\nfamily = "paper"\nlayers = 5\nblock = "{block}"\n\n[[phase]]\nsteps = '
        f"{steps}\nbatch = {batch}\npatch = {patch}\n"
    )
    return path


def write_images(folder: Path, count: int, side: int) -> Path:
    """A folder with the first `count` pictures, cut to squares."""
    folder.mkdir()
    for picture in PICTURES[:count]:
        Image.fromarray(picture()[:side, :side]).save(folder / f"{picture.__name__}.png")
    return folder


def events(folder: Path) -> Any:
    """All events that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"images": 0, "scalars": 0})
    found.Reload()
    return found
