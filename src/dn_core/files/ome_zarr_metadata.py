"""OME-Zarr metadata (NGFF 0.4 and 0.5): axes, scales, units and channel names."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.files.image import SYMBOLS, ImageFile

__all__ = ["axis_letters", "axis_names", "image_metadata", "ome_attributes"]

MAX_SIDE = 1024
"""Rows and columns of a plane that are read for a channel's display range."""

_UNIT_NAMES = {symbol: name for name, symbol in SYMBOLS.items()}
_AXIS_TYPES = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}


def axis_letters(names: Any) -> str:
    """A letter for each axis; Q for axes other than time, channel and space, or repeated ones."""
    words = {"TIME": "T", "CHANNEL": "C", "SAMPLE": "S", "SAMPLES": "S"}
    letters = ""
    for name in names:
        word = str(name or "").upper()
        letter = words.get(word, word)
        letters += letter if letter in tuple("TCZYXS") and letter not in letters else "Q"
    return letters


def image_metadata(
    multiscale: dict[str, Any], axes: list[Any], ome: dict[str, Any]
) -> dict[str, Any]:
    """Pixel sizes, time increment and channel names, as `ImageFile.metadata` has them.

    Parameters
    ----------
    multiscale : dict of str to object
        The image among the ``multiscales``.
    axes : list of object
        Its axes: a dictionary with name and unit each, or, before version 0.4, a name.
    ome : dict of str to object
        All OME attributes.
    """
    metadata: dict[str, Any] = {}
    scale = np.ones(len(axes))
    for holder in (multiscale["datasets"][0], multiscale):
        for transformation in holder.get("coordinateTransformations") or ():
            if transformation.get("type") == "scale" and "scale" in transformation:
                scale = scale * np.asarray(transformation["scale"], float)
    named = [
        (axis["name"].upper(), axis.get("unit")) if isinstance(axis, dict) else (axis.upper(), None)
        for axis in axes
    ]
    units = {name: SYMBOLS.get(unit, unit) for name, unit in named if unit}
    sizes = {name: float(size) for (name, _), size in zip(named, scale, strict=True)}
    if spatial := {name: sizes[name] for name in "XYZ" if name in sizes and name in units}:
        metadata["pixel_size"] = spatial
        metadata["pixel_unit"] = {name: units[name] for name in spatial}
    if "T" in units:
        metadata["time_increment"], metadata["time_unit"] = sizes["T"], units["T"]
    labels = [channel.get("label") for channel in (ome.get("omero") or {}).get("channels") or ()]
    if labels and all(labels):
        metadata["channel_names"] = labels
    return metadata


def ome_attributes(
    like: ImageFile, factors: dict[str, tuple[int, ...]], version2: bool, smallest: Any
) -> dict[str, Any]:
    """The attributes of a written image: those of the input if it had the same version, or new.

    Parameters
    ----------
    like : ImageFile
        The input.
    factors : dict of str to tuple of int
        The levels, each with its downsampling factor along each axis.
    version2 : bool
        Whether zarr format 2 and so OME-Zarr 0.4 is written, else zarr format 3 and OME-Zarr 0.5.
    smallest : object
        The array of the smallest level, for the display ranges of named channels.
    """
    attributes = dict(like.metadata.get("attributes", {}))
    old = dict(attributes.get("ome", attributes))
    old.pop("version", None)
    multiscale = _new_multiscale(like, factors)
    if "omero" not in old and (channels := _channels(like, smallest)):
        old["omero"] = {"channels": channels}
    if version2:
        return {**old, "multiscales": [{**multiscale, "version": "0.4"}]}
    multiscale.pop("version", None)
    if "ome" not in attributes and attributes:  # of OME-Zarr 0.4: only the display settings fit
        old = {"omero": old["omero"]} if "omero" in old else {}
    others = {
        key: value
        for key, value in attributes.items()
        if key not in ("ome", "multiscales", "omero")
    }
    return {**others, "ome": {**old, "version": "0.5", "multiscales": [multiscale]}}


def _new_multiscale(like: ImageFile, factors: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    multiscale, same_version = _old_multiscale(like)
    if same_version:
        old = {dataset["path"]: dataset for dataset in multiscale["datasets"]}
        return {**multiscale, "datasets": [old[name] for name in factors]}
    sizes = {**like.metadata.get("pixel_size", {}), "T": like.metadata.get("time_increment", 1.0)}
    scale = [float(sizes.get(letter, 1.0)) for letter in like.axes]
    datasets = [
        {
            "path": name,
            "coordinateTransformations": [
                {"type": "scale", "scale": [s * f for s, f in zip(scale, factor, strict=True)]}
            ],
        }
        for name, factor in factors.items()
    ]
    name = multiscale.get("name", like.path.name)
    return {"name": name, "axes": _axes(like), "datasets": datasets}


def _old_multiscale(like: ImageFile) -> tuple[dict[str, Any], bool]:
    """The multiscale of the input, and whether it has the version that is written."""
    attributes = like.metadata.get("attributes", {})
    ome = dict(attributes.get("ome", attributes))
    multiscale = dict((ome.get("multiscales") or [{}])[0])
    version = "0.4" if like.metadata.get("zarr_format") == 2 else "0.5"
    return multiscale, like.metadata.get("version") == version


def _channels(like: ImageFile, smallest: Any) -> list[dict[str, Any]]:
    """The named channels with colour and display range, which the specification demands."""
    names = like.metadata.get("channel_names", ())
    if "C" not in like.axes or len(names) != like.shape[like.axes.index("C")]:
        return []
    known = like.metadata.get("channels", ())
    known = known if len(known) == len(names) else [{}] * len(names)
    channels = []
    for number, (name, settings) in enumerate(zip(names, known, strict=True)):
        rgba = int(settings.get("Color", -1)) & 0xFFFFFFFF  # OME-XML has a signed number; -1: white
        window = _display_range(_middle_plane(smallest, like.axes, number))
        channels.append({"label": name, "color": f"{rgba >> 8:06X}", "window": window})
    return channels


def _middle_plane(array: Any, axes: str, channel: int) -> NDArray[Any]:
    """A channel's middle plane, of which at most 1024 x 1024 pixels from the middle."""
    index: list[Any] = []
    for axis, size in zip(axes, array.shape, strict=True):
        if axis in "YX":
            start = max(0, (size - MAX_SIDE) // 2)
            index.append(slice(start, start + MAX_SIDE))
        else:
            index.append(channel if axis == "C" else size // 2)
    return np.asarray(array[tuple(index)])


def _display_range(plane: NDArray[Any]) -> dict[str, float]:
    """Extremes of the pixels (start, end) and of their data type (min, max)."""
    if plane.dtype.kind == "c":
        plane = np.abs(plane)
    finite = plane[np.isfinite(plane)]
    start, end = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if start == end:  # viewers need a range
        start, end = (0.0, 1.0) if 0 <= start <= 1 else (start, start + max(1.0, abs(start)))
    lowest, highest = (0.0, 1.0) if plane.dtype.kind == "b" else (start, end)
    if plane.dtype.kind in "iu":
        lowest, highest = float(np.iinfo(plane.dtype).min), float(np.iinfo(plane.dtype).max)
    return {"min": lowest, "max": highest, "start": start, "end": end}


def axis_names(like: ImageFile) -> list[str]:
    """The names of the axes in the metadata that will be written."""
    multiscale, same_version = _old_multiscale(like)
    return [axis["name"] for axis in (same_version and multiscale.get("axes")) or _axes(like)]


def _axes(like: ImageFile) -> list[dict[str, str]]:
    units = {**like.metadata.get("pixel_unit", {}), "T": like.metadata.get("time_unit")}
    axes = []
    for letter in like.axes:
        axis = {"name": letter.lower()}
        if letter in _AXIS_TYPES:
            axis["type"] = _AXIS_TYPES[letter]
        if units.get(letter) in _UNIT_NAMES:
            axis["unit"] = _UNIT_NAMES[units[letter]]
        axes.append(axis)
    return axes
