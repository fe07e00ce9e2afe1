"""The axes of a layer: one letter each, guessed from labels, units and shape. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_dnresnet.layers import highest_level

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["LayerAxes", "default_axes", "guess_message", "time_axes"]

PLURALS = {
    "T": "time points",
    "Z": "depths",
    "C": "channels",
    "Q": "planes",
    "Y": "rows",
    "X": "columns",
    "S": "colours",
}
"""What to call the elements along an axis."""


@dataclass(frozen=True, slots=True)
class LayerAxes:
    """The axes of a layer's array: ``Y`` and ``X`` span a plane; planes are denoised one by one.

    Parameters
    ----------
    letters : str
        One letter for each axis, such as ``"TCYX"``; ``"S"`` is the colours of an RGB(A) layer.
    shape : tuple of int
        Shape of the array.

    Raises
    ------
    ValueError
        When the letters do not fit the shape.
    """

    letters: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        letters = self.letters
        if len(letters) != len(self.shape):
            raise ValueError(
                f"Axes must have one letter for each of the {len(self.shape)} axes of the layer "
                f"{self.shape}, got {letters!r}. Change the axes."
            )
        if not letters.isalpha() or letters.count("Y") != 1 or letters.count("X") != 1:
            raise ValueError(
                "Axes must be letters with one Y (rows) and one X (columns), "
                f"got {letters!r}. Change the axes."
            )
        planes = letters[:-1] if letters[-1] in "CS" else letters
        if not planes.endswith(("YX", "XY")):
            raise ValueError(
                "Axes must end with Y and X, except for channels (C) or colours (S) after them, "
                f"got {letters!r}. Reorder the layer's axes first."
            )

    @property
    def channel_axis(self) -> int | None:
        """The argument of `dn_core.denoise`: the axis after the planes, None if there is none."""
        return None if self.letters[-1] in "YX" else len(self.shape) - 1

    @property
    def differs_from_default(self) -> bool:
        """Whether `dn_core.denoise` would guess, or choose other planes, without `channel_axis`."""
        from dn_core.inference.axes import find_axes

        found = find_axes(self.shape)
        return found.guess is not None or found.spatial != self.spatial

    @property
    def spatial(self) -> tuple[int, int]:
        """The two axes of a plane, rows and columns, in the order of the array."""
        first = min(self.letters.index("Y"), self.letters.index("X"))
        return first, first + 1

    @property
    def alpha(self) -> bool:
        """Whether the last colour is alpha, which is left unchanged."""
        return "S" in self.letters and self.shape[self.letters.index("S")] == 4

    def describe(self) -> str:
        """What is done along each axis, one per line, for the user to check."""
        lines = []
        for letter, extent in zip(self.letters, self.shape, strict=True):
            if letter not in "YX":
                unchanged = letter == "S" and self.alpha
                treatment = "alpha unchanged" if unchanged else "each denoised on its own"
                lines.append(f"{letter}: {extent} {PLURALS.get(letter, 'planes')}, {treatment}")
        first, last = self.spatial
        height, width = self.shape[first], self.shape[last]
        plane = f"{self.letters[first : last + 1]}: planes of {height} x {width} pixels"
        return "\n".join([*lines, plane])


def time_axes(layer: Image) -> tuple[int, ...]:
    """Axes of a layer that have a unit of time."""
    return tuple(
        axis for axis, unit in enumerate(layer.units) if unit.dimensionality == {"[time]": 1}
    )


def default_axes(
    labels: tuple[str, ...], shape: tuple[int, ...], rgb: bool, times: tuple[int, ...] = ()
) -> str:
    """Letters for a layer's axes: from its labels, otherwise ``TZYX`` from the right.

    Further axes are ``Q``. The last one is ``C`` where the library's rule for arrays finds channels
    there, or where it has length 1; see `guess_message`.

    Parameters
    ----------
    labels : tuple of str
        The layer's axis labels, without the colours of an RGB layer.
    shape : tuple of int
        Shape of the layer's array, with the colours of an RGB layer.
    rgb : bool
        Whether the layer is RGB(A).
    times : tuple of int, optional
        Axes with a unit of time; a single one becomes ``T``.

    Returns
    -------
    str
        One letter for each axis of `shape`.
    """
    count = len(shape) - rgb
    if _are_axis_names(labels, count):
        letters = "".join(label[:1].upper() for label in labels)
    else:
        channels_last = not rgb and _found(shape).spatial == (count - 3, count - 2)
        guess = ["Q"] * max(0, count - 4 - channels_last)
        guess += list("TZYX")[-(count - channels_last) :]
        guess += ["C"] * channels_last
        if len(times) == 1 and times[0] < count - 2 - channels_last:
            guess = ["Q" if letter == "T" else letter for letter in guess]
            guess[times[0]] = "T"
        letters = "".join(guess)
    return letters + "S" * rgb


def guess_message(layer: Image, letters: str) -> str:
    """What `default_axes` guessed about channels; empty if nothing, or if the user typed others."""
    labels, shape = tuple(map(str, layer.axis_labels)), tuple(highest_level(layer).shape)
    guess = None if layer.rgb or _are_axis_names(labels, len(shape)) else _found(shape).guess
    if guess is None or letters != default_axes(labels, shape, layer.rgb, time_axes(layer)):
        return ""
    return f"A guess from the shape {shape}: {guess}. Change the letters if it is wrong."


def _are_axis_names(labels: tuple[str, ...], count: int) -> bool:
    """Whether labels name all axes, rows and columns among them."""
    first = [label[:1].upper() for label in labels]
    return (
        len(set(first)) == count
        and {"Y", "X"} <= set(first)
        and all(letter.isalpha() for letter in first)
    )


def _found(shape: tuple[int, ...]) -> Any:
    """The library's axes for a layer that is not RGB(A): without alpha."""
    from dn_core.inference.axes import find_axes

    return find_axes(shape, "auto", alpha=False)
