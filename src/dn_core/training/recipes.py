"""A recipe: a small TOML file that says how a model is trained. Shipped ones lie in ``recipes/``."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from dn_core.network_config import NetworkConfig, half_resolution_config, paper_config

__all__ = ["Phase", "Recipe", "load_recipe", "recipe_names"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training: `steps` of `batch` patches of `patch` x `patch` pixels."""

    steps: int
    batch: int = 8
    patch: int = 64

    def __post_init__(self) -> None:
        for name, high in (("steps", 10**9), ("batch", 4096), ("patch", 4096)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
                raise ValueError(f"{name} of a phase is {value!r}; a whole number in 1..{high} is expected. Change the recipe.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained; every field but `name`, `network` and `noise` has a default that trains well.

    Parameters
    ----------
    noise
        Tables for `dn_core.noise.noise_from_dict`.
    loss_weight
        ``"noise"`` divides each patch's squared error by ``sqrt(noise variance + (8/255)^2)``, so that noisy patches do not rule a
        mixture; ``"none"`` is plain mean squared error.
    optimizer
        ``"muon"`` or ``"adamw"``; the learning rate `lr` falls as a cosine to 1% after `warm_up` steps (``schedule = "cosine"``), or stays
        (``"constant"``).
    ema
        Decay of the average of weights that becomes the model; 0 for none.
    start
        Name or path of a model whose weights are the first ones; empty for random ones.
    epoch
        Steps between lines of the log.
    """

    name: str
    network: NetworkConfig
    noise: tuple[dict[str, Any], ...]
    phases: tuple[Phase, ...] = (Phase(20_000),)
    description: str = ""
    noise_text: str = ""
    loss_weight: str = "noise"
    optimizer: str = "muon"
    lr: float = 2e-3
    schedule: str = "cosine"
    warm_up: int = 100
    ema: float = 0.999
    start: str = ""
    epoch: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {"loss_weight": ("noise", "none"), "optimizer": ("muon", "adamw"), "schedule": ("cosine", "constant")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; one of {values} is expected. Change the recipe.")
        for name, low, high in (("lr", 1e-9, 1.0), ("ema", 0.0, 0.999999), ("warm_up", 0, 10**6), ("epoch", 1, 10**7), ("seed", 0, 2**32)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; a number in {low}..{high} is expected. Change the recipe.")
        if not self.noise or not self.phases:
            raise ValueError("the recipe has no noise or no phase; at least one [[noise]] and one [[phase]] are expected. Add them.")
        if not self.name or not all(letter.isalnum() or letter in "._-" for letter in self.name) or not self.name[0].isalnum():
            raise ValueError(f"name is {self.name!r}; letters, digits, '.', '_' and '-' are expected. Change the recipe.")

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that `step` (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for a card and to compare with on resuming."""
        return asdict(self)

    def with_steps(self, steps: int) -> Recipe:
        """The same recipe with its phases scaled to `steps` in all."""
        scaled = [replace(phase, steps=max(1, round(phase.steps * steps / self.steps))) for phase in self.phases]
        return replace(self, phases=tuple(scaled))


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    folder = resources.files("dn_core.training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name, or a TOML file.

    Raises
    ------
    FileNotFoundError
        When it is neither.
    ValueError
        When the file is not TOML, or a key or value is wrong.
    """
    shipped = resources.files("dn_core.training") / "recipes" / f"{name_or_path}.toml"
    if str(name_or_path) in recipe_names():
        text = shipped.read_text("utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text("utf-8")
    else:
        raise FileNotFoundError(2, f"no such recipe; a TOML file or one of {', '.join(recipe_names())} is expected", str(name_or_path))
    try:
        return _recipe_from(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"the recipe {name_or_path} cannot be read: {error}. See the shipped recipes for the form.") from error


def _recipe_from(values: dict[str, Any]) -> Recipe:
    table = dict(values)
    if phases := table.pop("phase", ()):
        table["phases"] = tuple(Phase(**phase) for phase in phases)
    network = _network_from(table.pop("network", {}))
    noise = tuple(table.pop("noise", ()))
    return Recipe(network=network, noise=noise, **table)


def _network_from(values: dict[str, Any]) -> NetworkConfig:
    """Either ``family = "paper"`` or ``"half-resolution"`` with that function's arguments, or every setting of `NetworkConfig`."""
    families = {"paper": paper_config, "half-resolution": half_resolution_config}
    table = dict(values)
    if "family" not in table:
        return NetworkConfig.from_dict(table)
    family = table.pop("family")
    if family not in families:
        raise ValueError(f"the network's family is {family!r}; one of {sorted(families)} is expected. Change the recipe.")
    return families[family](**table)  # type: ignore[operator,no-any-return]
