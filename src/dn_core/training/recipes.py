"""A recipe: a small TOML file that says how a model is trained. Shipped ones lie in ``recipes/``."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, get_args

from dn_core.network_config import BlockStart, NetworkConfig, half_resolution_config, paper_config

__all__ = ["Phase", "Recipe", "load_recipe", "recipe_descriptions", "recipe_names"]


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

    A file may begin with ``base = "another"``, a shipped recipe whose settings it has but for those that it names.

    Parameters
    ----------
    noise
        Tables for `dn_core.noise.noise_from_dict`.
    loss
        ``"mse"``, or the edge-aware loss with the edge map ``"edge-a"``, ``"edge-b"`` or ``"edge-a-linear"`` (`dn_core.losses`).
    loss_weight
        ``"noise"`` divides each patch's squared error by ``sqrt(noise variance + (8/255)^2)``, so that noisy patches do not rule a
        mixture; ``"none"`` is plain mean squared error.
    optimizer
        ``"muon"`` or ``"adamw"``; the learning rate `lr` falls as a cosine to 1% after `warm_up` steps (``schedule = "cosine"``), or stays
        (``"constant"``).
    ema
        Decay of the average of weights that becomes the model; 0 for none.
    start
        Name or path of a model whose weights are the first ones; empty for random ones. Blocks that it lacks are inserted before its
        last layer, as in a cascade.
    plan
        ``"once"`` trains the network as it is; ``"cascade"``, ``"evolve"`` and ``"evolve-once"`` train it in stages, each with all `phases`
        as its budget (`dn_core.training.cascade`).
    last_phases
        The budget of the last of several stages, where it is another one.
    drop
        By which part a cascade's stage must bring the loss below the stage before it to end before its budget; 0 for never.
    new_blocks
        First weights of blocks that are inserted: ``"identity"`` leaves the network computing what it did, ``"paper"`` draws
        N(0, 0.001).
    epoch
        Steps between lines of the log.
    minutes
        Where it is not 0, a stage ends after so many minutes if its steps have not ended it before; learning rate and phases follow the
        clock then (`dn_core.training.schedule`), and no two runs have the same weights.
    """

    name: str
    network: NetworkConfig
    noise: tuple[dict[str, Any], ...]
    phases: tuple[Phase, ...] = (Phase(20_000),)
    last_phases: tuple[Phase, ...] = ()
    description: str = ""
    noise_text: str = ""
    loss: str = "mse"
    loss_weight: str = "noise"
    optimizer: str = "muon"
    lr: float = 2e-3
    schedule: str = "cosine"
    warm_up: int = 100
    ema: float = 0.999
    start: str = ""
    plan: str = "once"
    drop: float = 0.03
    new_blocks: BlockStart = "identity"
    epoch: int = 1000
    seed: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        allowed = {
            "loss": ("mse", "edge-a", "edge-b", "edge-a-linear"),
            "loss_weight": ("noise", "none"),
            "optimizer": ("muon", "adamw"),
            "schedule": ("cosine", "constant"),
            "plan": ("once", "cascade", "evolve", "evolve-once"),
            "new_blocks": get_args(BlockStart),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; one of {values} is expected. Change the recipe.")
        for name in ("name", "description", "noise_text", "start"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}; a text is expected. Change the recipe.")
        reals = (("lr", 1e-9, 1.0), ("ema", 0.0, 0.999999), ("drop", 0.0, 0.99), ("minutes", 0.0, 1e6))
        for name, low, high in (*reals, ("warm_up", 0, 10**6), ("epoch", 1, 10**7), ("seed", 0, 2**32)):
            value, whole = getattr(self, name), isinstance(high, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; a {'whole ' * whole}number in {low}..{high} is expected. Change the recipe.")
        if not self.noise or not self.phases:
            raise ValueError("the recipe has no noise or no phase; at least one [[noise]] and one [[phase]] are expected. Add them.")
        self._check_plan()
        if not self.name or not all(letter.isalnum() or letter in "._-" for letter in self.name) or not self.name[0].isalnum():
            raise ValueError(f"name is {self.name!r}; letters, digits, '.', '_' and '-' are expected. Change the recipe.")

    def _check_plan(self) -> None:
        separable = "separable" in self.network.blocks
        if self.last_phases and self.plan == "once":
            raise ValueError("the plan is 'once', which has no other last stage; no [[last_phase]] is expected. Change plan, or remove it.")
        if self.plan == "cascade" and (self.start or separable or not self.network.blocks):
            raise ValueError(
                "the plan is 'cascade', which begins without blocks and inserts full ones; a network of full blocks and no start are "
                "expected. Change [network], start or plan."
            )
        if self.plan.startswith("evolve") and not (self.start and separable):
            raise ValueError(
                f"the plan is {self.plan!r}, which makes blocks of a trained network separable; start (a model) and separable blocks are "
                "expected. Change start, [network] or plan."
            )

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """Those of every stage."""
        return (*self.phases, *self.last_phases)

    @property
    def largest_patch(self) -> int:
        """The side that images must have at least."""
        return max(phase.patch for phase in self.all_phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that `step` (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for a card and to compare with on resuming."""
        unset = {name for name in ("last_phases", "minutes") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in unset}

    def with_steps(self, steps: int) -> Recipe:
        """The same recipe with its phases scaled to `steps` in all, and `last_phases` alike; phases that would get none are left out.

        >>> recipe = Recipe("a", NetworkConfig(), ({"kind": "poisson", "peak": 4},), (Phase(300), Phase(300), Phase(300)))
        >>> [phase.steps for phase in recipe.with_steps(100).phases]
        [33, 34, 33]
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps is {steps!r}; a whole number of 1 or more is expected. Change steps.")
        factor = steps / self.steps
        last = _scaled(self.last_phases, factor) or tuple(replace(phase, steps=1) for phase in self.last_phases[:1])
        return replace(self, phases=_scaled(self.phases, factor), last_phases=last)


def _scaled(phases: tuple[Phase, ...], factor: float) -> tuple[Phase, ...]:
    ends = [round(end * factor) for end in accumulate(phase.steps for phase in phases)]
    lengths = [end - begin for begin, end in pairwise([0, *ends])]
    return tuple(replace(phase, steps=new) for phase, new in zip(phases, lengths, strict=True) if new)


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    folder = resources.files("dn_core.training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def recipe_descriptions() -> dict[str, str]:
    """What each shipped recipe is for, in a sentence."""
    return {name: str(_with_base(tomllib.loads(_content(name).decode("utf-8")))["description"]) for name in recipe_names()}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name, or a TOML file.

    Raises
    ------
    FileNotFoundError
        When it is neither.
    ValueError
        When the file is not TOML, or a key or value is wrong.
    """
    from dn_core.noise import noise_from_dict  # brings torch, which the names of recipes do not need

    content = _content(name_or_path)
    try:
        recipe = _recipe_from(_with_base(tomllib.loads(content.decode("utf-8"))))
        noise_from_dict(recipe.noise)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the recipe {name_or_path} cannot be used: {error}. See the shipped recipes for the form.") from error
    return recipe


def _content(name_or_path: str | Path) -> bytes:
    if str(name_or_path) in recipe_names():
        return (resources.files("dn_core.training") / "recipes" / f"{name_or_path}.toml").read_bytes()
    if Path(name_or_path).is_file():
        return Path(name_or_path).read_bytes()
    raise FileNotFoundError(2, f"no such recipe; a TOML file or one of {', '.join(recipe_names())} is expected", str(name_or_path))


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe with ``base = "another"`` has all of that one's settings but those that it names itself."""
    own = dict(values)
    if "base" not in own:
        return own
    base = own.pop("base")
    if base not in recipe_names():
        raise ValueError(f"base is {base!r}; a shipped recipe, one of {', '.join(recipe_names())}, is expected")
    return {**_with_base(tomllib.loads(_content(base).decode("utf-8"))), **own}


def _recipe_from(values: dict[str, Any]) -> Recipe:
    table = dict(values)
    tables = {"phase": "phases", "last_phase": "last_phases"}
    known = {*tables, *(field.name for field in fields(Recipe))} - set(tables.values())
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"it has unknown settings {unknown}; known are {sorted(known)}")
    if absent := sorted({"name", "network", "noise"} - table.keys()):
        raise ValueError(f"it lacks {absent}; a name, [network] and [[noise]] are expected")
    for name in (*tables, "noise"):
        if not isinstance(table.get(name, []), list) or not all(isinstance(entry, dict) for entry in table.get(name, [])):
            raise ValueError(f"{name} is {table[name]!r}; tables are expected, each under [[{name}]]")
    if not isinstance(table["network"], dict):
        raise ValueError(f"network is {table['network']!r}; a table is expected, under [network]")
    for name in tables.keys() & table.keys():
        table[tables[name]] = tuple(_phase_from(name, phase) for phase in table.pop(name))
    network = _network_from(table.pop("network"))
    noise = tuple(table.pop("noise"))
    return Recipe(network=network, noise=noise, **table)


def _phase_from(name: str, values: dict[str, Any]) -> Phase:
    known = {field.name for field in fields(Phase)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"a [[{name}]] has unknown settings {unknown}; known are {sorted(known)}")
    if "steps" not in values:
        raise ValueError(f"a [[{name}]] lacks its number of steps")
    return Phase(**values)


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
