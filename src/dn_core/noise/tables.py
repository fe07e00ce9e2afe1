"""Noise models from the ``[[noise]]`` tables of recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from msgspec import Meta

from dn_core.noise.degradations import Bpg, Jpeg, Jpeg2000, SuperResolution
from dn_core.noise.models import Gaussian, Mixture, Noise, Poisson, PoissonGaussian, paper_mixture
from dn_core.noise.parameters import Choice, LogUniform, Parameter, Uniform
from dn_core.validation import read_value

__all__ = ["noise_from_dict"]

KINDS: dict[str, Callable[..., Noise]] = {
    "gaussian": Gaussian,
    "poisson": Poisson,
    "poisson-gaussian": PoissonGaussian,
    "paper-mixture": paper_mixture,
    "jpeg": Jpeg,
    "jpeg2000": Jpeg2000,
    "bpg": Bpg,
    "super-resolution": SuperResolution,
}
Share = Annotated[float, Meta(ge=0, le=sys.float_info.max, description="of 0 or more, finite")]
ADVICE = "Change the recipe."


def noise_from_dict(values: Sequence[dict[str, Any]]) -> Noise:
    """A noise model from the ``[[noise]]`` tables of a recipe.

    Parameters
    ----------
    values : sequence of dict
        Each with a `kind` (``"gaussian"``, ``"poisson"``, ``"poisson-gaussian"``,
        ``"paper-mixture"``, ``"jpeg"``, ``"jpeg2000"``, ``"bpg"`` or ``"super-resolution"``), that
        model's parameters, and a `share` of the mixture, by default 1. A parameter is a number,
        ``{"uniform": [low, high]}``, ``{"log-uniform": [low, high]}`` or ``{"choice": [..]}``.

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
                **{name: _parameter_from(name, value) for name, value in parameters.items()}
            )
        except TypeError as error:
            raise ValueError(
                f"noise {kind!r} has settings {sorted(parameters)}, which do not fit it ({error}). "
                f"{ADVICE}"
            ) from error
        models.append(model)
    return models[0] if len(models) == 1 else Mixture(tuple(models), tuple(shares))


def _parameter_from(name: str, value: Any) -> Parameter:
    if isinstance(value, dict) and len(value) == 1:
        [(draw, numbers)] = value.items()
        if draw == "choice":
            return Choice(read_value(numbers, tuple[float, ...], f"{name}.choice", ADVICE))
        if draw in ("uniform", "log-uniform"):
            low, high = read_value(numbers, tuple[float, float], f"{name}.{draw}", ADVICE)
            return Uniform(low, high) if draw == "uniform" else LogUniform(low, high)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError(
        f"{name} must be a number, {{uniform = [a, b]}}, {{log-uniform = [a, b]}} or "
        f"{{choice = [..]}}, got {value!r}. {ADVICE}"
    )
