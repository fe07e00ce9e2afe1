"""Denoising: the public functions.

Each one turns its arguments into `DenoiseOptions`; `plan` decides what to do with the image, and
`run` does it. The package's docstring has the way that an image takes.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

from dn_core.inference.arrays import InputImage, check_out
from dn_core.inference.axes import ChannelAxis
from dn_core.inference.engines import Precision
from dn_core.inference.hot_pixels import HotPixelAction
from dn_core.inference.model import Model, network_of
from dn_core.inference.options import DenoiseOptions
from dn_core.inference.pipeline import finish, plan_and_run
from dn_core.inference.plan import DenoisePlan, make_plan
from dn_core.inference.planes import NonFinite
from dn_core.inference.run import Progress

__all__ = ["denoise", "denoise_steps", "plan_denoise"]

ArrayT = TypeVar("ArrayT")
"""An array type: who passes a dask array gets a dask array."""


def denoise(
    image: ArrayT,
    model: str | Path | Model | None = None,
    *,
    channel_axis: ChannelAxis = "auto",
    amount: float = 1.0,
    sigma: float | None = None,
    device: str | None = None,
    tile_size: int | None = None,
    precision: Precision | None = None,
    nonfinite: NonFinite = "raise",
    alpha: bool | None = None,
    hot_pixels: HotPixelAction = "keep",
    out: Any = None,
) -> ArrayT:
    """Denoise an image.

    Each plane (the last two axes, without channels) is denoised separately: time, depth and
    channels never mix.

    Parameters
    ----------
    image : array
        ``(..., height, width)``, or with channels: a numpy, dask or zarr array, a torch tensor, an
        xarray or a PIL image, of any integer or float type and in any units.
    model : str, Path or Model, optional
        A name from `model_names`, alone for its newest version or with one (``"dn-fast@1"``), a
        file, or a loaded model. By default dn-fast.
    channel_axis : int, None or "auto", optional
        The axis of colours or channels, all of which are denoised; None if there are none and the
        last two axes are planes. With ``"auto"`` (default) the axis names of an xarray count.
        Otherwise axes of length 1 at the end are ignored, and a last axis of at most 16, below an
        eighth of both axes before it, is taken as channels, the last of 4 as alpha, with a
        UserWarning.
    amount : float, optional
        0 returns the image, 1 (default) the denoised one, values in between blend the two (see
        `blend`).
    sigma : float, optional
        Standard deviation of the noise in image units, 0 or more, for models that need it (those
        with a noise map). Blind models take none.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. The default is the best available.
    tile_size : int, optional
        Pixels on a side that are computed at once, without the halo: 1 to 16384. Smaller tiles need
        less memory and give the same result. By default they are as large as the device computes
        fastest; in any case they are reduced where memory would not suffice.
    precision : {"float32", "bfloat16", "float64"}, optional
        Precision of the computation. By default bfloat16 for 8-bit images where the hardware has it
        (it costs at most 0.02 dB), float32 otherwise. float64 is for checks.
    nonfinite : {"raise", "fill"}, optional
        ``"raise"`` (default) refuses NaN and infinity; ``"fill"`` denoises around such pixels and
        leaves them unchanged.
    alpha : bool, optional
        Whether the last channel is alpha, which passes through unchanged. By default only where
        `channel_axis` is ``"auto"`` and the image has 4 colours.
    hot_pixels : {"keep", "remove"}, optional
        What to do with single pixels that differ from their surroundings far beyond the noise, such
        as hot and dead pixels of cameras: ``"keep"`` (default) leaves them unchanged, ``"remove"``
        gives them the value of their surroundings. Either way their neighbours are denoised as if
        they were not there, and they are reported (by `denoise_steps` in `Progress.notes`).
    out : array, optional
        A writable array of the image's shape and dtype for the result, such as a memory map or a
        zarr array on disk. By default a new one in memory.

    Returns
    -------
    array
        The denoised image: the same kind of array, shape and dtype. A dask array stays lazy; a zarr
        array becomes one in memory, or `out`; a PIL image or a list becomes a numpy array.

    Raises
    ------
    TypeError, ValueError, AxisError
        If the image or an option cannot be used; the message says what to do.
    UnknownModelError, CheckpointError
        If the model is unknown, or its file is damaged.
    MemoryError
        If the result, or even the smallest tile, does not fit into the available memory.

    Warns
    -----
    UserWarning
        If axes were guessed, chunks of a zarr array are missing, or hot pixels were found.
    RuntimeWarning
        If tiles had to be smaller than `tile_size`, or a device ran out of memory.

    See Also
    --------
    denoise_steps : The same with progress, and cancelling.
    plan_denoise : What will be done and why, without doing it.

    Notes
    -----
    The networks follow [1]_. Memory is bounded by the tiles being computed, not by the image. The
    input is never written to, and the output never shares memory with it. Missing chunks of a zarr
    array are read as its fill value; of a dask array, missing chunks cannot be counted.

    References
    ----------
    .. [1] H. Ren, M. El-khamy, J. Lee, "DN-ResNet: Efficient Deep Residual Network for Image
       Denoising".

    Examples
    --------
    >>> import numpy as np
    >>> noisy = np.random.default_rng(0).normal(100, 20, (64, 64)).astype(np.uint8)
    >>> clean = denoise(noisy)
    >>> clean.shape, clean.dtype, bool(clean.std() < noisy.std() / 2)
    ((64, 64), dtype('uint8'), True)
    """
    options = DenoiseOptions(
        channel_axis=channel_axis,
        amount=amount,
        sigma=sigma,
        device=device,
        tile_size=tile_size,
        precision=precision,
        nonfinite=nonfinite,
        alpha=alpha,
        hot_pixels=hot_pixels,
    )
    result: ArrayT = finish(plan_and_run(image, network_of(model), options, out))
    return result


def denoise_steps(
    image: Any,
    model: str | Path | Model | None = None,
    *,
    channel_axis: ChannelAxis = "auto",
    amount: float = 1.0,
    sigma: float | None = None,
    device: str | None = None,
    tile_size: int | None = None,
    precision: Precision | None = None,
    nonfinite: NonFinite = "raise",
    alpha: bool | None = None,
    hot_pixels: HotPixelAction = "keep",
    out: Any = None,
) -> Generator[Progress]:
    """Denoise an image step by step; closing the generator cancels within a tile.

    Parameters
    ----------
    image : array
        ``(..., height, width)``, or with channels: a numpy, dask or zarr array, a torch tensor, an
        xarray or a PIL image, of any integer or float type and in any units.
    model : str, Path or Model, optional
        A name from `model_names`, alone for its newest version or with one (``"dn-fast@1"``), a
        file, or a loaded model. By default dn-fast.
    channel_axis : int, None or "auto", optional
        The axis of colours or channels, all of which are denoised; None if there are none and the
        last two axes are planes. With ``"auto"`` (default) the axis names of an xarray count.
        Otherwise axes of length 1 at the end are ignored, and a last axis of at most 16, below an
        eighth of both axes before it, is taken as channels, the last of 4 as alpha, with a
        UserWarning.
    amount : float, optional
        0 returns the image, 1 (default) the denoised one, values in between blend the two (see
        `blend`).
    sigma : float, optional
        Standard deviation of the noise in image units, 0 or more, for models that need it (those
        with a noise map). Blind models take none.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. The default is the best available.
    tile_size : int, optional
        Pixels on a side that are computed at once, without the halo: 1 to 16384. Smaller tiles need
        less memory and give the same result. By default they are as large as the device computes
        fastest; in any case they are reduced where memory would not suffice.
    precision : {"float32", "bfloat16", "float64"}, optional
        Precision of the computation. By default bfloat16 for 8-bit images where the hardware has it
        (it costs at most 0.02 dB), float32 otherwise. float64 is for checks.
    nonfinite : {"raise", "fill"}, optional
        ``"raise"`` (default) refuses NaN and infinity; ``"fill"`` denoises around such pixels and
        leaves them unchanged.
    alpha : bool, optional
        Whether the last channel is alpha, which passes through unchanged. By default only where
        `channel_axis` is ``"auto"`` and the image has 4 colours.
    hot_pixels : {"keep", "remove"}, optional
        What to do with single pixels that differ from their surroundings far beyond the noise, such
        as hot and dead pixels of cameras: ``"keep"`` (default) leaves them unchanged, ``"remove"``
        gives them the value of their surroundings. Either way their neighbours are denoised as if
        they were not there, and they are reported (by `denoise_steps` in `Progress.notes`).
    out : array, optional
        A writable array of the image's shape and dtype for the result, such as a memory map or a
        zarr array on disk. By default a new one in memory.

    Yields
    ------
    Progress
        After each tile; the last one has the result, as `denoise` returns it.

    Raises
    ------
    TypeError, ValueError, AxisError
        If the image or an option cannot be used; the message says what to do.
    UnknownModelError, CheckpointError
        If the model is unknown, or its file is damaged.
    MemoryError
        If the result, or even the smallest tile, does not fit into the available memory.

    See Also
    --------
    denoise : The same without progress.
    """
    options = DenoiseOptions(
        channel_axis=channel_axis,
        amount=amount,
        sigma=sigma,
        device=device,
        tile_size=tile_size,
        precision=precision,
        nonfinite=nonfinite,
        alpha=alpha,
        hot_pixels=hot_pixels,
    )
    yield from plan_and_run(image, network_of(model), options, out)


def plan_denoise(
    image: Any,
    model: str | Path | Model | None = None,
    *,
    channel_axis: ChannelAxis = "auto",
    amount: float = 1.0,
    sigma: float | None = None,
    device: str | None = None,
    tile_size: int | None = None,
    precision: Precision | None = None,
    nonfinite: NonFinite = "raise",
    alpha: bool | None = None,
    hot_pixels: HotPixelAction = "keep",
    out: Any = None,
) -> DenoisePlan:
    """Decide how an image would be denoised, without reading its pixels.

    Parameters
    ----------
    image : array
        ``(..., height, width)``, or with channels: a numpy, dask or zarr array, a torch tensor, an
        xarray or a PIL image, of any integer or float type and in any units.
    model : str, Path or Model, optional
        A name from `model_names`, alone for its newest version or with one (``"dn-fast@1"``), a
        file, or a loaded model. By default dn-fast.
    channel_axis : int, None or "auto", optional
        The axis of colours or channels, all of which are denoised; None if there are none and the
        last two axes are planes. With ``"auto"`` (default) the axis names of an xarray count.
        Otherwise axes of length 1 at the end are ignored, and a last axis of at most 16, below an
        eighth of both axes before it, is taken as channels, the last of 4 as alpha, with a
        UserWarning.
    amount : float, optional
        0 returns the image, 1 (default) the denoised one, values in between blend the two (see
        `blend`).
    sigma : float, optional
        Standard deviation of the noise in image units, 0 or more, for models that need it (those
        with a noise map). Blind models take none.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. The default is the best available.
    tile_size : int, optional
        Pixels on a side that are computed at once, without the halo: 1 to 16384. Smaller tiles need
        less memory and give the same result. By default they are as large as the device computes
        fastest; in any case they are reduced where memory would not suffice.
    precision : {"float32", "bfloat16", "float64"}, optional
        Precision of the computation. By default bfloat16 for 8-bit images where the hardware has it
        (it costs at most 0.02 dB), float32 otherwise. float64 is for checks.
    nonfinite : {"raise", "fill"}, optional
        ``"raise"`` (default) refuses NaN and infinity; ``"fill"`` denoises around such pixels and
        leaves them unchanged.
    alpha : bool, optional
        Whether the last channel is alpha, which passes through unchanged. By default only where
        `channel_axis` is ``"auto"`` and the image has 4 colours.
    hot_pixels : {"keep", "remove"}, optional
        What to do with single pixels that differ from their surroundings far beyond the noise, such
        as hot and dead pixels of cameras: ``"keep"`` (default) leaves them unchanged, ``"remove"``
        gives them the value of their surroundings. Either way their neighbours are denoised as if
        they were not there, and they are reported (by `denoise_steps` in `Progress.notes`).
    out : array, optional
        A writable array of the image's shape and dtype for the result, such as a memory map or a
        zarr array on disk. By default a new one in memory.

    Returns
    -------
    DenoisePlan
        Axes, planes, model, device, precision, engine, tiles and memory, with the reasons;
        ``print(plan)`` shows them.

    Raises
    ------
    TypeError, ValueError, AxisError
        If the image or an option cannot be used; the message says what to do.
    UnknownModelError, CheckpointError
        If the model is unknown, or its file is damaged.
    MemoryError
        If the result, or even the smallest tile, does not fit into the available memory.

    See Also
    --------
    denoise : Do it.

    Examples
    --------
    >>> import numpy as np
    >>> plan = plan_denoise(np.zeros((3, 512, 512), np.uint16), "dn-fast", device="cpu")
    >>> plan.planes, plan.axes.spatial, plan.precision
    (3, (1, 2), 'float32')
    """
    options = DenoiseOptions(
        channel_axis=channel_axis,
        amount=amount,
        sigma=sigma,
        device=device,
        tile_size=tile_size,
        precision=precision,
        nonfinite=nonfinite,
        alpha=alpha,
        hot_pixels=hot_pixels,
    )
    given = InputImage.of(image)
    if out is not None:
        check_out(out, given)
    return make_plan(given, network_of(model), options, result_in_memory=out is None)
