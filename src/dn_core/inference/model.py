"""Models: a network with its card, ready to denoise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from dn_core.checkpoints import Card, Checkpoint
from dn_core.inference.axes import ChannelAxis
from dn_core.inference.engines import Engine, Precision, choose_device
from dn_core.inference.hot_pixels import HotPixelAction
from dn_core.inference.loaded import LoadedNetwork, load_network
from dn_core.inference.options import DenoiseOptions
from dn_core.inference.pipeline import finish, plan_and_run
from dn_core.inference.plan import choose_engine
from dn_core.inference.planes import NonFinite
from dn_core.network_config import NetworkConfig

__all__ = ["Model", "engine_name", "load_model", "network_of"]

ArrayT = TypeVar("ArrayT")
"""An array type: who passes a dask array gets a dask array."""


class Model:
    """A network that is ready to denoise; call it like `denoise`.

    Parameters
    ----------
    checkpoint : Checkpoint
        Settings, weights and card.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.network = LoadedNetwork(checkpoint)
        """The network and its engines."""

    def __repr__(self) -> str:
        return f"Model({self.card.name!r})"

    @property
    def checkpoint(self) -> Checkpoint:
        """Settings, weights and card."""
        return self.network.checkpoint

    @property
    def card(self) -> Card:
        """What the model is and where it comes from."""
        return self.checkpoint.card

    @property
    def config(self) -> NetworkConfig:
        """Settings of the network."""
        return self.checkpoint.config

    def engine(self, device: str, precision: Precision) -> Engine:
        """The engine for a device, made when it is first used.

        Parameters
        ----------
        device : str
            ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        precision : str
            ``"float32"``, ``"bfloat16"`` or ``"float64"``.

        Returns
        -------
        Engine
            It computes tiles; several threads may use it at once.
        """
        return self.network.engine(device, precision)

    def __call__(
        self,
        image: ArrayT,
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
        """Denoise an image with this model.

        Parameters
        ----------
        image : array
            ``(..., height, width)``, or with channels: a numpy, dask or zarr array, a torch tensor,
            an xarray or a PIL image, of any integer or float type and in any units.
        channel_axis : int, None or "auto", optional
            The axis of colours or channels, all of which are denoised; None if there are none and
            the last two axes are planes. With ``"auto"`` (default) the axis names of an xarray
            count. Otherwise axes of length 1 at the end are ignored, and a last axis of at most 16,
            below an eighth of both axes before it, is taken as channels, the last of 4 as alpha,
            with a UserWarning.
        amount : float, optional
            0 returns the image, 1 (default) the denoised one, values in between blend the two (see
            `blend`).
        sigma : float, optional
            Standard deviation of the noise in image units, 0 or more, for models that need it
            (those with a noise map). Blind models take none.
        device : str, optional
            ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. The default is the best available.
        tile_size : int, optional
            Pixels on a side that are computed at once, without the halo: 1 to 16384. Smaller tiles
            need less memory and give the same result. By default they are as large as the device
            computes fastest; in any case they are reduced where memory would not suffice.
        precision : {"float32", "bfloat16", "float64"}, optional
            Precision of the computation. By default bfloat16 for 8-bit images where the hardware
            has it (it costs at most 0.02 dB), float32 otherwise. float64 is for checks.
        nonfinite : {"raise", "fill"}, optional
            ``"raise"`` (default) refuses NaN and infinity; ``"fill"`` denoises around such pixels
            and leaves them unchanged.
        alpha : bool, optional
            Whether the last channel is alpha, which passes through unchanged. By default only where
            `channel_axis` is ``"auto"`` and the image has 4 colours.
        hot_pixels : {"keep", "remove"}, optional
            What to do with single pixels that differ from their surroundings far beyond the noise,
            such as hot and dead pixels of cameras: ``"keep"`` (default) leaves them unchanged,
            ``"remove"`` gives them the value of their surroundings. Either way their neighbours are
            denoised as if they were not there, and they are reported (by `denoise_steps` in
            `Progress.notes`).
        out : array, optional
            A writable array of the image's shape and dtype for the result, such as a memory map or
            a zarr array on disk. By default a new one in memory.

        Returns
        -------
        array
            The denoised image: the same kind of array, shape and dtype. See `denoise`.
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
        result: ArrayT = finish(plan_and_run(image, self.network, options, out))
        return result


def load_model(name_or_path: str | Path | None = None) -> Model:
    """Load a model by name or file; an unchanged file is read once.

    Parameters
    ----------
    name_or_path : str or Path, optional
        A name from `model_names`, alone for its newest version or with one (``"dn-fast@1"``), or
        a ``.safetensors`` file. By default dn-fast.

    Returns
    -------
    Model
        The model, ready to denoise.

    Raises
    ------
    UnknownModelError
        If there is no such name or file.
    CheckpointError
        If the file is not a model, or damaged.

    Examples
    --------
    >>> load_model("dn-fast@1").card.name
    'dn-fast'
    """
    model = Model.__new__(Model)
    model.network = load_network(name_or_path)  # shared, with its engines, by all who load it
    return model


def engine_name(
    model: str | Path | Model | None = None,
    *,
    device: str | None = None,
    dtype: DTypeLike = np.uint8,
) -> str:
    """Library, device and precision that would compute an image, in words.

    Parameters
    ----------
    model : str, Path or Model, optional
        A name from `model_names`, alone for its newest version or with one (``"dn-fast@1"``), a
        file, or a loaded model. By default dn-fast.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. The default is the best available.
    dtype : dtype, optional
        Data type of the image, on which the precision depends. The default is uint8.

    Returns
    -------
    str
        For example ``"OpenVINO 2026.4.1, CPU, bfloat16"``.

    Raises
    ------
    ValueError
        If the device is unknown or not available, or the model is unknown or damaged.
    """
    given = network_of(model)
    network = given if isinstance(given, LoadedNetwork) else load_network(given)
    return choose_engine(network, choose_device(device), None, np.dtype(dtype))[0].name


def network_of(model: str | Path | Model | None) -> str | Path | LoadedNetwork | None:
    """The network of a model, or the name or file of one that is still to be loaded."""
    return model.network if isinstance(model, Model) else model
