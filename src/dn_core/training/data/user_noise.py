"""The noise of user images: given in their grey levels, kept on the scale of training, told again.

On that scale 0 is `black` and 255 is `white`, as noise models have it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

__all__ = ["NoiseTable", "noise_in_words", "noise_on_scale", "noise_table"]

NoiseTable = dict[str, Any]

IN_LEVELS = {
    "gaussian": ("sigma",),
    "detector": ("gain", "read_noise", "sigma", "pedestal", "row_noise", "column_noise", "step"),
}
"""Settings in grey levels; others are photons, shares or pixels."""
LEVELS = {"detector": ("offset", "black")}
"""Settings that are grey levels themselves: `black` counts for them."""
NAMES = {
    "gaussian": "Gaussian",
    "poisson": "Poisson",
    "poisson-gaussian": "Poisson-Gaussian",
    "detector": "detector",
}


def noise_table(noise: Any) -> NoiseTable:
    """A noise model, or the table of one, as a table of plain numbers.

    Parameters
    ----------
    noise : object
        As for `dn_core.training.finetuning.images_from`.

    Returns
    -------
    dict
        With a `kind`, and settings in the units in which they were given.

    Raises
    ------
    ValueError
        When it is another model, or its settings are distributions or not usable.
    """
    from dn_core.noise import Detector, Gaussian, Poisson, PoissonGaussian, noise_from_dict

    kinds: dict[Any, str] = {
        Gaussian: "gaussian",
        Poisson: "poisson",
        PoissonGaussian: "poisson-gaussian",
        Detector: "detector",
    }
    if type(noise) in kinds:
        given = {one.name: getattr(noise, one.name) for one in fields(noise)}
        defaults = {one.name: one.default for one in fields(noise)}
        noise = {
            "kind": kinds[type(noise)],
            **{name: value for name, value in given.items() if value != defaults[name]},
        }
    if not isinstance(noise, dict) or noise.get("kind") not in kinds.values():
        raise ValueError(
            "noise must be Gaussian, Poisson, PoissonGaussian or Detector of dn_core.noise, or a "
            f"table with one of the kinds {', '.join(kinds.values())}, got {noise!r}. Change noise."
        )
    for name, value in noise.items():
        if name in ("kind", "correlation_shape"):
            continue
        if name == "relative":
            raise ValueError(
                "relative of the noise must be left out, as one noise is put on all images, got "
                f"{value!r}. Give sigma in grey levels."
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(
                f"{name} of the noise must be a plain number, got {value!r}. Change {name}."
            )
    noise_from_dict([noise])
    return dict(noise)


def noise_on_scale(table: NoiseTable, black: float, white: float) -> NoiseTable:
    """A table in grey levels on the scale of training.

    Parameters
    ----------
    table : dict
        From `noise_table`.
    black, white : float
        The grey levels that are 0 and 255 there.

    Returns
    -------
    dict
        For `dn_core.noise.noise_from_dict`.

    Raises
    ------
    ValueError
        When all images are darker than a detector without light.
    """
    kind, factor = table["kind"], 255 / (white - black)
    offset = table.get("offset", 0.0)
    if kind == "detector" and offset - table.get("pedestal", 0.0) >= white:
        raise ValueError(
            f"offset of the detector must be below the images' grey levels, of which white is "
            f"{white:g}, got {offset:g}. Change offset."
        )
    if kind == "detector":
        table = {**table, "offset": offset}  # 0 grey levels are not 0 on the other scale
    return {
        name: value * factor
        if name in IN_LEVELS.get(kind, ())
        else (value - black) * factor
        if name in LEVELS.get(kind, ())
        else value
        for name, value in table.items()
    }


def noise_in_words(table: NoiseTable, black: float, white: float) -> str:
    """A table from `noise_on_scale` in words and grey levels, for a model's card.

    Parameters
    ----------
    table : dict
        The table.
    black, white : float
        As for `noise_on_scale`.

    Returns
    -------
    str
        Such as ``"detector, gain 2.1 grey levels, offset 100, read noise 3.5 grey levels"``.
    """
    values = dict(table)
    kind, unit = values.pop("kind"), (white - black) / 255
    values.pop("share", None)  # of a mixture, which one noise is not
    parts = []
    for name, value in sorted(values.items()):
        words = name.replace("_", " ")
        if name in IN_LEVELS.get(kind, ()):
            parts.append(f"{words} {value * unit:.5g} grey levels")
        elif name in LEVELS.get(kind, ()):
            parts.append(f"{words} {round(value * unit + black, 3):g}")
        elif name == "correlation":
            parts.append(f"{words} {value:g} pixels")
        elif kind == "detector":
            parts.append(f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}")
        else:
            parts.append(f"{name} {value:g} photons")
    return f"{NAMES[kind]}, {', '.join(parts)}"
