"""Residuals: what denoising removed, as a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_dnresnet.layers import layer_settings, readable
from napari_dnresnet.results import METADATA, Result

__all__ = ["is_residual", "residual", "residual_settings"]

SMALL_BYTES = 2**25
"""Residuals of results below this are computed at once."""
SPREADS = 3
"""The contrast limits, in standard deviations of the residual."""


def residual(result: Result) -> Any:
    """What was removed: original minus result, as float32; of colours their mean.

    Lazy if it is large.
    """
    import dask.array as da

    request, pixels = result.request, result.layer.data
    planes = tuple(1 for _ in result.stack_shape)
    chunks = getattr(pixels, "chunks", (*planes, *request.axes.shape[len(planes) :]))
    after = (
        pixels if isinstance(pixels, da.Array) else da.from_array(pixels, chunks=chunks, name=False)
    )
    before = (
        request.data
        if isinstance(request.data, da.Array)
        else da.from_array(readable(request.data), chunks=after.chunks, name=False)
    )
    narrow = after.dtype.itemsize <= 2 or after.dtype == np.float32
    wide = np.float32 if narrow else np.float64
    difference = before.rechunk(after.chunks).astype(wide) - after.astype(wide)
    difference = difference.astype(np.float32)
    if result.layer.rgb:
        difference = difference[..., :3].mean(axis=-1)
    return np.asarray(difference) if request.nbytes < SMALL_BYTES else difference


def residual_settings(result: Result, pixels: Any) -> dict[str, Any]:
    """Settings of a residual's layer: at the place of the result, grey around zero.

    The contrast limits come from the middle plane.
    """
    settings = {
        key: value
        for key, value in layer_settings(result.layer).items()
        if key not in ("contrast_limits", "colormap", "gamma")
    }
    middle = tuple(extent // 2 for extent in result.stack_shape)
    plane = np.asarray(pixels[middle], np.float32)
    spread = float(np.std(plane[np.isfinite(plane)])) if np.isfinite(plane).any() else 0.0
    limit = SPREADS * spread or 1.0
    facts = {
        key: value
        for key, value in result.layer.metadata[METADATA].items()
        if key not in ("result", "amount")
    }
    return {
        **settings,
        "metadata": {**settings["metadata"], METADATA: {**facts, "residual_of": result.layer.name}},
        "name": f"{result.request.name} residual",
        "contrast_limits": (-limit, limit),
        "colormap": "gray",
        "rgb": False,
        "blending": "translucent",
        "visible": True,
    }


def is_residual(layer: Any) -> bool:
    """Whether a layer is a residual, which nobody wants to denoise."""
    facts = layer.metadata.get(METADATA)
    return isinstance(facts, dict) and "residual_of" in facts
