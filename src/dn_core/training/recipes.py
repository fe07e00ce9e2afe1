"""Training recipes: TOML files that say how a model is trained, and those that are bundled."""

from __future__ import annotations

import errno
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from dn_core.messages import did_you_mean, unknown_settings
from dn_core.network_config import (
    BlockStart,
    NetworkConfig,
    half_resolution_config,
    levels_config,
    paper_config,
)
from dn_core.validation import check_fields, from_table, read_value

__all__ = ["Phase", "Recipe", "load_recipe", "recipe_descriptions", "recipe_names"]

RECIPE_FOLDERS = (("training", "recipes"), ("paper", "recipes"))
"""Where bundled recipes are in the package: those of bundled models, and those of the paper."""

ADVICE = "Change the recipe."
OPTIONAL = ("last_phases", "minutes", "phantoms", "target_blur")
"""Settings that cards and states of training runs have only where they are given."""

Name = Annotated[
    str,
    Meta(
        pattern=r"\A[^\W_][\w.-]*\Z",
        description="of letters, digits, '.', '_' and '-' that begins with a letter or digit",
    ),
]
OptimizerName = Literal["muon", "adamw"]
Blur = Annotated[
    float | dict[str, Any],
    Meta(description="or a number of pixels"),
]
Tables = Annotated[
    tuple[dict[str, Any], ...],
    Meta(max_length=10**6, description="of tables, each under a [[heading]]"),
]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with one batch size and one patch size.

    Parameters
    ----------
    steps : int
        How many steps.
    batch : int
        Patches in a batch, 1 to 4096.
    patch : int
        Side of the square patches in pixels, 1 to 4096.

    Raises
    ------
    ValueError
        When one of them is out of its range.
    """

    steps: Annotated[int, Meta(ge=1, le=10**9)]
    batch: Annotated[int, Meta(ge=1, le=4096)] = 8
    patch: Annotated[int, Meta(ge=1, le=4096)] = 64

    def __post_init__(self) -> None:
        check_fields(self, ADVICE, "a phase")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained.

    Every field except `name`, `network` and `noise` has a default that trains well. A file may
    begin with ``base = "another"``, a bundled recipe: it has all settings of that one except those
    that it names itself.

    Parameters
    ----------
    name : str
        The model's name and that of its file: letters, digits, ``.``, ``_`` and ``-``.
    network : NetworkConfig
        The network.
    noise : tuple of dict
        Tables for `dn_core.noise.noise_from_dict`: the noise that is added to clean images.
    phases : tuple of Phase
        Steps, batch and patch size, in order; in stages, the budget of each.
    last_phases : tuple of Phase
        The budget of the last of several stages, where it differs.
    description : str
        A sentence for the model's card.
    noise_text : str
        The noise in words, for the card.
    loss : {"mse", "edge-a", "edge-b", "edge-a-linear"}
        Mean squared error, or the edge-aware loss with one of the edge maps of `dn_core.losses`.
    loss_weight : {"noise", "none"}
        ``"noise"`` divides each patch's squared error by ``sqrt(noise variance + (8/255)^2)``, so
        that noisy patches do not dominate a mixture; ``"none"`` is the plain loss.
    optimizer : {"muon", "adamw"}
        See `dn_core.training.optimizers`.
    lr : float
        The highest learning rate, 1e-9 to 1.
    schedule : {"cosine", "constant"}
        ``"cosine"``: after `warm_up` steps, `lr` falls as a cosine to 1%; ``"constant"``: it stays.
    warm_up : int
        Steps in which the learning rate rises linearly from 0.
    ema : float
        Decay of the exponential moving average of the weights, which becomes the model; 0 for none,
        below 1.
    start : str
        Name, alone or with a version (``"dn-fast@1"``), or path of a model whose weights are the
        first ones; empty for random ones. Blocks that it lacks are inserted behind its own, as in a
        cascade.
    plan : {"once", "cascade", "evolve", "evolve-once"}
        ``"once"`` trains the network as it is; the others train it in stages
        (`dn_core.training.stages`).
    drop : float
        The fraction by which a cascade's stage must bring the loss below that of the stage before
        it to end before its budget; 0 for never.
    new_blocks : {"identity", "paper"}
        First weights of inserted blocks: ``"identity"`` leaves the network's output unchanged,
        ``"paper"`` draws N(0, 0.001).
    epoch : int
        Steps between scores and lines of the log.
    seed : int
        Seed of all random numbers.
    phantoms : float
        Share of the patches that is cut from made-up fluorescence images
        (`dn_core.training.phantoms`), 0 to 1; the others are cut from files.
    target_blur : float or dict
        Standard deviation in pixels, 0 to 4, of a Gaussian by which patches from files are blurred
        before noise is added, so that a network does not learn the noise that they have themselves:
        a number, or a distribution as in a noise table; 0 for none.
    minutes : float
        Schedule and budget by the clock: where it is not 0, a stage ends after this many minutes,
        or after its steps if they end before. Learning rate and phases follow the elapsed time
        (`dn_core.training.schedule`): the cosine is at its end when the time is over. Two such runs
        differ.

    Raises
    ------
    ValueError
        When a setting is out of its range, or settings do not fit together.
    """

    name: Name
    network: NetworkConfig
    noise: tuple[dict[str, Any], ...]
    phases: tuple[Phase, ...] = (Phase(20_000),)
    last_phases: tuple[Phase, ...] = ()
    description: str = ""
    noise_text: str = ""
    loss: Literal["mse", "edge-a", "edge-b", "edge-a-linear"] = "mse"
    loss_weight: Literal["noise", "none"] = "noise"
    optimizer: OptimizerName = "muon"
    lr: Annotated[float, Meta(ge=1e-9, le=1.0)] = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: Annotated[int, Meta(ge=0, le=10**6)] = 100
    ema: Annotated[float, Meta(ge=0.0, le=0.999999)] = 0.999
    start: str = ""
    plan: Literal["once", "cascade", "evolve", "evolve-once"] = "once"
    drop: Annotated[float, Meta(ge=0.0, le=0.99)] = 0.03
    new_blocks: BlockStart = "identity"
    epoch: Annotated[int, Meta(ge=1, le=10**7)] = 1000
    seed: Annotated[int, Meta(ge=0, le=2**32)] = 0
    minutes: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    phantoms: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    target_blur: Blur = 0.0

    def __post_init__(self) -> None:
        check_fields(self, ADVICE)
        if not self.noise or not self.phases:
            raise ValueError(
                "the recipe must have at least one [[noise]] and one [[phase]], got no noise or no "
                "phase. Add them."
            )
        self._check_plan()
        self._check_patches()

    def _check_plan(self) -> None:
        separable = "separable" in self.network.all_blocks
        if self.last_phases and self.plan == "once":
            raise ValueError(
                "[[last_phase]] must be left out with the plan 'once', which has one stage only. "
                "Change plan, or remove it."
            )
        if self.plan == "cascade" and (self.start or separable or not self.network.all_blocks):
            raise ValueError(
                "the plan 'cascade', which starts without blocks and inserts full ones, needs a "
                "network of full blocks and no start. Change [network], start or plan."
            )
        if self.plan.startswith("evolve") and not (self.start and separable):
            raise ValueError(
                f"the plan {self.plan!r}, which makes blocks of a trained network separable, needs "
                "start (a model) and separable blocks. Change start, [network] or plan."
            )

    def _check_patches(self) -> None:
        stride = self.network.stride
        for phase in self.all_phases if self.network.levels else ():
            if phase.patch % stride:
                raise ValueError(
                    f"patch of a phase must be a multiple of {stride} pixels, as the network's "
                    f"coarsest level computes at 1/{stride} of the resolution, got {phase.patch}. "
                    "Change patch or [network]."
                )

    @property
    def steps(self) -> int:
        """Steps of all phases, without those of a longer last stage."""
        return sum(phase.steps for phase in self.phases)

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """The phases of every stage."""
        return (*self.phases, *self.last_phases)

    @property
    def largest_patch(self) -> int:
        """The largest patch, which images must have as sides at least, in pixels."""
        return max(phase.patch for phase in self.all_phases)

    def phase_at(self, step: int) -> Phase:
        """The phase of a step.

        Parameters
        ----------
        step : int
            From 0; steps after the last one belong to the last phase.

        Returns
        -------
        Phase
            Its phase.
        """
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for a model's card and to compare with when resuming.

        Returns
        -------
        dict
            Every setting by name; those in `OPTIONAL` only where they are given.
        """
        unset = {name for name in OPTIONAL if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in unset}

    def with_steps(self, steps: int) -> Recipe:
        """Scale the recipe to another number of steps.

        Parameters
        ----------
        steps : int
            The new number of steps of all phases; `last_phases` are scaled in proportion.
            Phases that would get none are left out.

        Returns
        -------
        Recipe
            The same recipe otherwise.

        Raises
        ------
        ValueError
            When it is not a whole number of 1 or more.

        Examples
        --------
        >>> noise = ({"kind": "poisson", "peak": 4},)
        >>> recipe = Recipe("a", NetworkConfig(), noise, (Phase(300), Phase(300), Phase(300)))
        >>> [phase.steps for phase in recipe.with_steps(100).phases]
        [33, 34, 33]
        """
        read_value(steps, Annotated[int, Meta(ge=1, le=10**9)], "steps", "Change steps.")
        factor = steps / self.steps
        last = _scaled(self.last_phases, factor) or tuple(
            replace(phase, steps=1) for phase in self.last_phases[:1]
        )
        return replace(self, phases=_scaled(self.phases, factor), last_phases=last)


def _scaled(phases: tuple[Phase, ...], factor: float) -> tuple[Phase, ...]:
    ends = [round(end * factor) for end in accumulate(phase.steps for phase in phases)]
    lengths = [end - begin for begin, end in pairwise([0, *ends])]
    return tuple(
        replace(phase, steps=new) for phase, new in zip(phases, lengths, strict=True) if new
    )


def recipe_names() -> list[str]:
    """List the bundled recipes.

    Returns
    -------
    list of str
        Their names, sorted.
    """
    return sorted(_bundled())


def recipe_descriptions() -> dict[str, str]:
    """Say what each bundled recipe is for.

    Returns
    -------
    dict
        A sentence for each name.
    """
    return {
        name: str(_with_base(tomllib.loads(_content(name).decode("utf-8")))["description"])
        for name in recipe_names()
    }


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a bundled recipe by name, or a TOML file.

    Parameters
    ----------
    name_or_path : str or Path
        One of `recipe_names`, or a file.

    Returns
    -------
    Recipe
        The recipe, checked.

    Raises
    ------
    FileNotFoundError
        When it is neither.
    ValueError
        When the file is not TOML, or a key or value is wrong.
    """
    # These bring torch, which listing recipes does not need.
    from dn_core.noise import noise_from_dict
    from dn_core.training.data.target_blur import blur_from

    content = _content(name_or_path)
    try:
        recipe = _recipe_from(_with_base(tomllib.loads(content.decode("utf-8"))))
        noise_from_dict(recipe.noise)
        blur_from(recipe.target_blur)
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error) if str(error).endswith((".", "?")) else f"{error}."
        raise ValueError(
            f"the recipe {name_or_path} cannot be used: {reason} See the bundled recipes for the "
            "form."
        ) from error
    return recipe


def _bundled() -> dict[str, Traversable]:
    """The files of all bundled recipes by name."""
    package = resources.files("dn_core")
    return {
        entry.name.removesuffix(".toml"): entry
        for folder in RECIPE_FOLDERS
        for entry in package.joinpath(*folder).iterdir()
        if entry.name.endswith(".toml")
    }


def _content(name_or_path: str | Path) -> bytes:
    bundled = _bundled()
    if str(name_or_path) in bundled:
        return bundled[str(name_or_path)].read_bytes()
    if Path(name_or_path).is_file():
        return Path(name_or_path).read_bytes()
    hint = did_you_mean(str(name_or_path), bundled) or (
        f"Give a TOML file or one of {', '.join(recipe_names())}."
    )
    raise FileNotFoundError(errno.ENOENT, f"there is no recipe {str(name_or_path)!r}. {hint}")


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, with those of its base that it does not name itself."""
    own = dict(values)
    if "base" not in own:
        return own
    base = own.pop("base")
    if base not in recipe_names():
        raise ValueError(
            f"base must be a bundled recipe, one of {', '.join(recipe_names())}, got {base!r}"
        )
    return {**_with_base(tomllib.loads(_content(base).decode("utf-8"))), **own}


def _recipe_from(values: dict[str, Any]) -> Recipe:
    table = dict(values)
    tables = {"phase": "phases", "last_phase": "last_phases"}
    known = {*tables, *(field.name for field in fields(Recipe))} - set(tables.values())
    if unknown := sorted(table.keys() - known):
        raise ValueError(unknown_settings(unknown, known))
    if absent := sorted({"name", "network", "noise"} - table.keys()):
        raise ValueError(f"it must have a name, [network] and [[noise]], {absent} is missing")
    for name in (*tables, "noise"):
        table[name] = read_value(table.get(name, []), Tables, name, ADVICE)
    for name, field_name in tables.items():
        phases = table.pop(name)
        if name in values:
            table[field_name] = tuple(
                from_table(Phase, phase, f"a [[{name}]]", ADVICE) for phase in phases
            )
    if not isinstance(table["network"], dict):
        raise ValueError(f"network must be a table, under [network], got {table['network']!r}")
    return Recipe(**table | {"network": _network_from(table["network"])})


def _network_from(values: dict[str, Any]) -> NetworkConfig:
    """A network from its table.

    Either ``family = "paper"``, ``"half-resolution"`` or ``"levels"`` with that function's
    arguments, or every setting of `NetworkConfig`.
    """
    families = {
        "paper": paper_config,
        "half-resolution": half_resolution_config,
        "levels": levels_config,
    }
    table = dict(values)
    if "family" not in table:
        return NetworkConfig.from_dict(table)
    family = table.pop("family")
    if family not in families:
        raise ValueError(
            f"family of the network must be one of {sorted(families)}, got {family!r}. Change the "
            "recipe."
        )
    return families[family](**table)  # type: ignore[operator,no-any-return]
