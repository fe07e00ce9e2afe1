"""Noise models from the ``[[noise]]`` tables of recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from msgspec import Meta

from dn_core.noise.degradations import Bpg, Jpeg, Jpeg2000, SuperResolution
from dn_core.noise.detector import Detector
from dn_core.noise.models import Gaussian, Mixture, Noise, Poisson, PoissonGaussian, paper_mixture
from dn_core.noise.parameters import Choice, LogUniform, Parameter, Sometimes, Uniform
from dn_core.validation import read_value

__all__ = ["noise_from_dict", "parameter_from_table"]

KINDS: dict[str, Callable[..., Noise]] = {
    "gaussian": Gaussian,
    "poisson": Poisson,
    "poisson-gaussian": PoissonGaussian,
    "paper-mixture": paper_mixture,
    "detector": Detector,
    "jpeg": Jpeg,
    "jpeg2000": Jpeg2000,
    "bpg": Bpg,
    "super-resolution": SuperResolution,
}
PLAIN = {"correlation_shape", "relative"}
"""Settings that are words or yes and no; the model itself checks them."""
Share = Annotated[float, Meta(ge=0, le=sys.float_info.max, description="of 0 or more, finite")]
ADVICE = "Change the recipe."


def noise_from_dict(values: Sequence[dict[str, Any]]) -> Noise:
    """A noise model from the ``[[noise]]`` tables of a recipe.

    Parameters
    ----------
    values : sequence of dict
        Each with a `kind` (``"gaussian"``, ``"poisson"``, ``"poisson-gaussian"``,
        ``"paper-mixture"``, ``"detector"``, ``"jpeg"``, ``"jpeg2000"``, ``"bpg"`` or
        ``"super-resolution"``), that model's parameters, and a `share` of the mixture, by default
        1. A parameter is a number, ``{"uniform": [low, high]}``, ``{"log-uniform": [low, high]}``
        or ``{"choice": [..]}``. Beside it in braces ``"chance": 0.1`` says that only this share of
        the images has it, and the others have 0 (`Sometimes`).

    Returns
    -------
    Noise
        The model, or a `Mixture` where there are several.

    Raises
    ------
    ValueError
        When a kind or a parameter is unknown, missing or out of its range.

    Examples
    --------
    >>> noise_from_dict([{"kind": "gaussian", "sigma": {"uniform": [0, 75]}}])
    Gaussian(sigma=Uniform(low=0.0, high=75.0))
    """
    models, shares = [], []
    for table in values:
        parameters = dict(table)
        kind = parameters.pop("kind", None)
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(
                f"the kind of noise must be one of {sorted(KINDS)}, got {kind!r}. {ADVICE}"
            )
        share = parameters.pop("share", 1.0)
        shares.append(read_value(share, Share, f"the share of noise {kind!r}", ADVICE))
        try:
            model = KINDS[kind](
                **{
                    name: value if name in PLAIN else parameter_from_table(name, value)
                    for name, value in parameters.items()
                }
            )
        except TypeError as error:
            raise ValueError(
                f"noise {kind!r} has settings {sorted(parameters)}, which do not fit it ({error}). "
                f"{ADVICE}"
            ) from error
        models.append(model)
    return models[0] if len(models) == 1 else Mixture(tuple(models), tuple(shares))


def parameter_from_table(name: str, value: Any) -> Parameter:
    """A parameter from a recipe: a number, or a distribution that it is drawn from.

    Parameters
    ----------
    name : str
        What messages call it.
    value : object
        A number, ``{"uniform": [low, high]}``, ``{"log-uniform": [low, high]}`` or
        ``{"choice": [..]}``; beside one of the last three perhaps ``"chance": 0.1``.

    Returns
    -------
    float, Uniform, LogUniform, Choice or Sometimes
        The parameter.

    Raises
    ------
    ValueError
        When it is none of these.
    """
    if isinstance(value, dict) and len(value) == 2 and "chance" in value:
        chance = read_value(value["chance"], float, f"{name}.chance", ADVICE)
        drawn = parameter_from_table(name, {key: value[key] for key in value if key != "chance"})
        return Sometimes(drawn, chance)  # type: ignore[arg-type]  # one without a chance
    if isinstance(value, dict) and len(value) == 1:
        [(draw, numbers)] = value.items()
        if draw == "choice":
            return Choice(read_value(numbers, tuple[float, ...], f"{name}.choice", ADVICE))
        if draw in ("uniform", "log-uniform"):
            low, high = read_value(numbers, tuple[float, float], f"{name}.{draw}", ADVICE)
            return Uniform(low, high) if draw == "uniform" else LogUniform(low, high)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(read_value(value, float, name, ADVICE))
    raise ValueError(
        f"{name} must be a number, {{uniform = [a, b]}}, {{log-uniform = [a, b]}} or "
        f"{{choice = [..]}}, the last three perhaps with a chance, got {value!r}. {ADVICE}"
    )
