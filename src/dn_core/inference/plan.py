"""Planning: everything about a denoising that can be decided before the first pixel is read.

`make_plan` is a list of decisions, one function each, which returns what was decided and why. A
new decision (such as the noise level estimated from the image, or a model chosen by it) goes into
`choose_sigma` or `choose_model`, or becomes a function beside them. Planning needs shape, dtype and
axes of the image, not its pixels, and imports torch only where there may be a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dn_core.inference.arrays import InputImage, axes_of
from dn_core.inference.axes import Axes
from dn_core.inference.engines import Engine, Precision, choose_device
from dn_core.inference.loaded import LoadedNetwork, load_network
from dn_core.inference.options import DenoiseOptions
from dn_core.inference.tiling import TileGrid
from dn_core.memory import available_memory, check_memory
from dn_core.network_config import NetworkConfig

__all__ = [
    "DenoisePlan",
    "choose_axes",
    "choose_engine",
    "choose_model",
    "choose_sigma",
    "fit_tiles",
    "make_plan",
    "next_smaller_plan",
    "tiles_reduced_warning",
    "usual_tile_size",
]

# Pixels on a side that are computed at once, halo included: the flat optimum of CPU engines is 384
# to 512.
WINDOW = {"cpu": 512, "mps": 1024, "cuda": 1536}
SMALLEST_TILE = 32
SPARE_BYTES = 2**25
"""Left free in addition to what tiles need: for compiled networks and for reading blocks."""
KINDS = {
    "chunked": "array on disk",
    "dask": "dask array",
    "numpy": "numpy array",
    "torch": "torch tensor",
    "zarr": "zarr array",
}
_DEFAULTS = DenoiseOptions()


@dataclass(frozen=True, kw_only=True)
class DenoisePlan:
    """What denoising will do, and why; ``print(plan)`` shows it.

    Attributes
    ----------
    axes : Axes
        Shape of the image; which axes are rows, columns and alpha.
    dtype : dtype
        Data type of the image and of the result.
    kind : str
        Kind of array: ``"numpy"``, ``"zarr"``, ``"dask"``, ``"torch"``, or ``"chunked"`` for other
        arrays on disk.
    planes : int
        Number of planes to denoise.
    model : str
        Name of the model, with its version where it was found by name (``"dn-fast@1"``).
    sigma : float or None
        Standard deviation of the noise in image units that the model is given; None for models that
        take none.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    precision : Precision
        ``"float32"``, ``"bfloat16"`` or ``"float64"``.
    engine : str
        Library, device and precision in words.
    tiles : TileGrid
        How each plane is cut into tiles (of a dask array: each chunk): grid, size and halo.
    tile_bytes : int
        System memory that computing takes at most.
    result_bytes : int
        System memory that the result takes; 0 where it goes to an array that exists.
    available_bytes : int
        System memory that was available when the plan was made.
    reasons : tuple of str
        Why each decision was made, one sentence each.
    warnings : tuple of Warning, optional
        What `dn_core.denoise` warns about before it starts.
    options : DenoiseOptions, optional
        What the caller asked for.
    network : LoadedNetwork, optional
        The network and its engines.
    """

    axes: Axes
    dtype: np.dtype[Any]
    kind: str
    planes: int
    model: str
    sigma: float | None
    device: str
    precision: Precision
    engine: str
    tiles: TileGrid
    tile_bytes: int
    result_bytes: int
    available_bytes: int
    reasons: tuple[str, ...]
    warnings: tuple[Warning, ...] = field(default=(), compare=False)
    options: DenoiseOptions = field(default=_DEFAULTS, repr=False)
    network: LoadedNetwork = field(repr=False, compare=False)

    @property
    def memory_bytes(self) -> int:
        """System memory that tiles and result take at most."""
        return self.tile_bytes + self.result_bytes

    @property
    def total_tiles(self) -> int:
        """Number of tiles in all planes (of a dask array: in one chunk)."""
        return self.tiles.total * (1 if self.kind == "dask" else self.planes)

    @property
    def config(self) -> NetworkConfig:
        """Settings of the network."""
        return self.network.checkpoint.config

    def loaded_engine(self) -> Engine:
        """The engine, made when it is first used in this process.

        Returns
        -------
        Engine
            It computes tiles.
        """
        return self.network.engine(self.device, self.precision)

    def __str__(self) -> str:
        return "\n".join(
            [
                *(f"{name:<9} {text}" for name, text in self._rows()),
                "reasons",
                *(f"  - {reason}" for reason in self.reasons),
                *(f"  ! {warning}" for warning in self.warnings),
            ]
        )

    def _rows(self) -> list[tuple[str, str]]:
        height, width = self.axes.plane_shape
        rows, columns = self.axes.spatial
        down, across = self.tiles.counts
        each, size = "chunk" if self.kind == "dask" else "plane", self.tiles.step
        tiles = (
            f"1 tile per {each}"
            if self.tiles.total == 1
            else f"{down} x {across} tiles of {size} x {size} pixels per {each}, halo "
            f"{self.tiles.halo}"
        )
        if self.config.levels:
            tiles += f", at multiples of {self.tiles.multiple}"
        changed = [
            f"{item.name}={value!r}"
            for item in fields(self.options)
            if (value := getattr(self.options, item.name)) != getattr(_DEFAULTS, item.name)
        ]
        return [
            ("image", f"{self.dtype} {self.axes.shape}, {KINDS[self.kind]}"),
            ("planes", f"{self.planes} of {height} x {width} pixels, axes {rows} and {columns}"),
            ("model", self.model if self.sigma is None else f"{self.model}, sigma {self.sigma:g}"),
            ("device", self.device),
            ("precision", self.precision),
            ("engine", self.engine),
            ("tiles", f"{tiles}; {self.total_tiles} in total"),
            (
                "memory",
                f"{_megabytes(self.memory_bytes)} of {_megabytes(self.available_bytes)} available",
            ),
            ("options", ", ".join(changed) or "defaults"),
        ]


def make_plan(
    image: InputImage,
    model: str | Path | LoadedNetwork | None,
    options: DenoiseOptions,
    *,
    result_in_memory: bool,
) -> DenoisePlan:
    """Decide how an image is denoised.

    Parameters
    ----------
    image : InputImage
        The image.
    model : str, Path, LoadedNetwork or None
        A name, alone or with a version (``"dn-fast@1"``), a file, or a network that is loaded
        already; None for the default model.
    options : DenoiseOptions
        What the caller asked for.
    result_in_memory : bool
        Whether memory for the result is needed too, since it does not go to an array that exists.

    Raises
    ------
    TypeError, ValueError, AxisError
        If the image cannot be denoised with these options.
    MemoryError
        If the result, or even the smallest tile, does not fit into memory.
    """
    network, why_model = choose_model(model)
    sigma, why_sigma = choose_sigma(network, options.sigma)
    device, why_device = _choose_device(options.device)
    axes, why_axes = choose_axes(image, options)
    available = available_memory()
    result_bytes, why_result = _plan_result(image, result_in_memory, available)
    engine, why_engine = choose_engine(network, device, options.precision, image.dtype)
    tiles, why_tiles, warnings = _choose_tiles(
        engine, network.checkpoint.config, image, axes, options, device, available - result_bytes
    )
    return DenoisePlan(
        axes=axes,
        dtype=image.dtype,
        kind=image.kind,
        planes=axes.plane_count,
        model=network.reference,
        sigma=sigma,
        device=device,
        precision=engine.precision,
        engine=engine.name,
        tiles=tiles,
        tile_bytes=_bytes_of_tiles(engine, tiles, 1 if image.kind == "dask" else axes.plane_count),
        result_bytes=result_bytes,
        available_bytes=available,
        reasons=(why_axes, why_model, why_sigma, why_device, why_engine, why_tiles, why_result),
        warnings=(*([UserWarning(axes.note)] if axes.note else []), *warnings),
        options=options,
        network=network,
    )


def choose_model(model: str | Path | LoadedNetwork | None) -> tuple[LoadedNetwork, str]:
    """The network, and why."""
    network = model if isinstance(model, LoadedNetwork) else load_network(model)
    config, name = network.checkpoint.config, network.checkpoint.card.name
    if config.planes_in != 1:
        raise ValueError(
            f"model must take single planes, got {name}, which takes {config.planes_in} at once. "
            "Choose another."
        )
    return network, f"model: {name} {'is the default' if model is None else 'was given'}."


def choose_sigma(network: LoadedNetwork, sigma: float | None) -> tuple[float | None, str]:
    """The noise level that the network is given, and why."""
    config, name = network.checkpoint.config, network.checkpoint.card.name
    if config.noise_map and sigma is None:
        raise ValueError(
            f"sigma must be given for the model {name}, which needs the noise level. Give sigma, "
            "the standard deviation of the noise in image units."
        )
    if sigma is not None and not config.noise_map:
        raise ValueError(
            f"sigma must be left out for the model {name}, which is blind and takes no noise "
            f"level, got {sigma}. Leave out sigma, or choose a model with a noise map."
        )
    if sigma is None:
        return None, "sigma: the model is blind and needs no noise level."
    return sigma, "sigma: the model needs a noise level, and it was given."


def choose_axes(image: InputImage, options: DenoiseOptions) -> tuple[Axes, str]:
    """Rows, columns and alpha of the image, and why."""
    if image.kind == "dask":
        _check_dask(image, options)
    axes = axes_of(image.given, image.shape, options.channel_axis, options.alpha)
    if axes.note is not None:
        return axes, f"axes: {axes.guess}."
    if options.channel_axis != "auto":
        return axes, "axes: from channel_axis or from the file."
    return axes, "axes: from the axis names or the number of axes."


def choose_engine(
    network: LoadedNetwork, device: str, asked: Precision | None, dtype: np.dtype[Any]
) -> tuple[Engine, str]:
    """The engine for images of `dtype`, and why its precision is sufficient."""
    if asked is not None:
        precision, why = asked, f"precision: {asked} was requested."
    elif dtype.itemsize == 1:
        precision, why = "bfloat16", "precision: bfloat16 is sufficient for 8-bit images."
    else:
        precision, why = "float32", "precision: float32 is needed for more than 8 bits."
    engine = network.engine(device, precision)
    if engine.precision != precision:
        why = f"precision: this hardware would only emulate {precision}."
    return engine, why


def usual_tile_size(device: str, config: NetworkConfig) -> int:
    """Tile size without the halo where memory is sufficient."""
    # where the halo is wide the window grows with it, so that it has at most 3/4 of the pixels
    return max(SMALLEST_TILE, WINDOW[device.split(":")[0]] - 2 * config.halo, 2 * config.halo)


def fit_tiles(
    engine: Engine, config: NetworkConfig, shape: tuple[int, int], planes: int, size: int, free: int
) -> TileGrid:
    """Tiles of `size`, or half of it and so on, that fit into memory.

    Parameters
    ----------
    engine, config
        What computes them.
    shape : tuple (int, int)
        Height and width of a plane.
    planes : int
        Number of planes.
    size : int
        Tile size to begin with.
    free : int
        Bytes that tiles may take.

    Raises
    ------
    MemoryError
        If even the smallest ones do not fit.
    """
    while True:
        tiles = TileGrid(shape, size, config.halo, config.stride)
        needed = _bytes_of_tiles(engine, tiles, planes)
        if needed <= free:
            return tiles
        if size <= SMALLEST_TILE:
            check_memory(
                f"a tile of {size} pixels",
                needed,
                free,
                "Close other programs, or use a smaller model.",
            )
        size = max(SMALLEST_TILE, size // 2)


def tiles_reduced_warning(asked: int, size: int, free: int) -> RuntimeWarning:
    """The warning that tiles are smaller than the caller asked for."""
    return RuntimeWarning(
        f"tiles of {asked} pixels need more than the {free:,} bytes of memory that are available; "
        f"tiles of {size} pixels are used, with the same result."
    )


def next_smaller_plan(plan: DenoisePlan) -> DenoisePlan | None:
    """The plan to try after a device ran out of memory: tiles of half the size, then the CPU.

    Parameters
    ----------
    plan : DenoisePlan
        The plan that failed.

    Returns
    -------
    DenoisePlan or None
        None where nothing smaller is left.
    """
    failed = f"{plan.device} ran out of memory with tiles of {plan.tiles.size} pixels"
    size = plan.tiles.size // 2
    if size >= SMALLEST_TILE:
        tiles = replace(plan.tiles, size=size)
        return replace(
            plan,
            tiles=tiles,
            tile_bytes=_bytes_of_tiles(plan.loaded_engine(), tiles, plan.planes),
            reasons=(*plan.reasons, f"tiles: {failed}."),
        )
    if plan.device == "cpu":
        return None
    engine, why = choose_engine(plan.network, "cpu", plan.options.precision, plan.dtype)
    tiles = fit_tiles(
        engine,
        plan.config,
        plan.axes.plane_shape,
        plan.planes,
        usual_tile_size("cpu", plan.config),
        plan.available_bytes - plan.result_bytes,
    )
    return replace(
        plan,
        device="cpu",
        precision=engine.precision,
        engine=engine.name,
        tiles=tiles,
        tile_bytes=_bytes_of_tiles(engine, tiles, plan.planes),
        reasons=(*plan.reasons, f"device: {failed}.", why),
    )


def _choose_device(asked: str | None) -> tuple[str, str]:
    device = choose_device(asked)
    if asked not in (None, "auto"):
        return device, f"device: {device} was requested."
    found = "no GPU was found" if device == "cpu" else "it is the fastest available"
    return device, f"device: {device}, since {found}."


def _choose_tiles(
    engine: Engine,
    config: NetworkConfig,
    image: InputImage,
    axes: Axes,
    options: DenoiseOptions,
    device: str,
    free: int,
) -> tuple[TileGrid, str, tuple[Warning, ...]]:
    """The tiles, why they have this size, and a warning where the caller asked for larger ones."""
    usual = usual_tile_size(device, config)
    asked = usual if options.tile_size is None else int(options.tile_size)
    if image.kind == "dask":
        tiles = TileGrid(_largest_chunk(image, axes), asked, config.halo, config.stride)
        why = f"tiles: {asked} pixels, or fewer where memory requires it as a chunk is computed."
        return tiles, why, ()
    tiles = fit_tiles(engine, config, axes.plane_shape, axes.plane_count, asked, free)
    if tiles.size < asked:
        why = f"tiles: {tiles.size} pixels fit into memory, {asked} do not."
        warning = tiles_reduced_warning(asked, tiles.size, free)
        return tiles, why, (warning,) if options.tile_size is not None else ()
    if options.tile_size is not None:
        return tiles, f"tiles: {asked} pixels were requested.", ()
    return tiles, f"tiles: {asked} pixels are fastest on {device}.", ()


def _plan_result(image: InputImage, in_memory: bool, available: int) -> tuple[int, str]:
    """Bytes of memory that the result takes, and where it goes."""
    if image.kind == "dask":
        return 0, "result: a dask array, computed chunk by chunk when it is needed."
    if not in_memory:
        return 0, "result: written to the given output, tile by tile."
    check_memory(
        f"the result of shape {image.shape}",
        image.nbytes,
        available,
        "Give out=, a memory map or a zarr array on disk, or a dask array, or use the command "
        "dn-resnet denoise.",
    )
    return image.nbytes, f"result: {_megabytes(image.nbytes)} in memory."


def _check_dask(image: InputImage, options: DenoiseOptions) -> None:
    """Refuse what cannot be decided before a dask array is computed."""
    if any(math.isnan(size) for sizes in image.data.chunks for size in sizes):
        raise ValueError(
            "image must have known chunk sizes, got a dask array with unknown ones. Use "
            "image.compute_chunk_sizes()."
        )
    if options.nonfinite == "fill":
        raise ValueError(
            "nonfinite='fill' needs a numpy or zarr array, got a dask array. Use "
            "image.compute(), or fill it first."
        )


def _largest_chunk(image: InputImage, axes: Axes) -> tuple[int, int]:
    rows, columns = (max(image.data.chunks[axis]) for axis in axes.spatial)
    return rows, columns


def _bytes_of_tiles(engine: Engine, tiles: TileGrid, planes: int) -> int:
    needed = engine.memory(tiles.window_pixels, planes * tiles.total)
    return needed + SPARE_BYTES if needed else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
