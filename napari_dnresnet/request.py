"""Requests: all that is needed to denoise a layer, and the code that does the same."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_dnresnet.axes import LayerAxes
from napari_dnresnet.layers import highest_level, layer_settings

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["DenoiseRequest"]

LARGE_BYTES = 2**29
"""Results above this, or above a quarter of the free memory, go to a zarr array on disk."""


@dataclass(frozen=True)
class DenoiseRequest:
    """A layer to denoise; everything is taken from the layer at once, which may then change or go.

    Attributes
    ----------
    data : array
        The layer's array, of a multiscale layer the finest level.
    axes : LayerAxes
        Its axes.
    options : dict of str to object
        Keywords of `dn_core.denoise_steps`, except the axes and the amount.
    name : str
        The layer's name.
    settings : dict of str to object
        The layer's settings, see `napari_dnresnet.layers.layer_settings`.
    limits_range : tuple (float, float)
        The range of the layer's contrast slider.
    path : str or None
        The file that the layer was opened from.
    multiscale : bool, default False
        Whether the layer is multiscale.
    """

    data: Any
    axes: LayerAxes
    options: dict[str, Any]
    name: str
    settings: dict[str, Any]
    limits_range: tuple[float, float]
    path: str | None
    multiscale: bool = False

    @classmethod
    def of(cls, layer: Image, axes: LayerAxes, options: dict[str, Any]) -> DenoiseRequest:
        """The request for a layer as it is now.

        Parameters
        ----------
        layer : Image
            The layer.
        axes : LayerAxes
            Its axes.
        options : dict of str to object
            Keywords of `dn_core.denoise_steps`, except the axes and the amount.
        """
        low, high = layer.contrast_limits_range
        return cls(
            highest_level(layer),
            axes,
            options,
            layer.name,
            layer_settings(layer),
            (low, high),
            layer.source.path,
            layer.multiscale,
        )

    def is_of(self, layer: Image | None) -> bool:
        """Whether a layer still has the pixels of this request."""
        return layer is not None and highest_level(layer) is self.data

    def updated(self, layer: Image | None) -> DenoiseRequest:
        """With the current name and settings of the layer, if it still has the same pixels."""
        if layer is None or not self.is_of(layer):
            return self
        return DenoiseRequest.of(layer, self.axes, self.options)

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return math.prod(self.axes.shape) * int(np.dtype(self.data.dtype).itemsize)

    @property
    def is_large(self) -> bool:
        """Whether the result goes to disk."""
        from dn_core.memory import available_memory

        return self.nbytes > LARGE_BYTES or 4 * self.nbytes > available_memory()

    def all_options(self) -> dict[str, Any]:
        """Keywords of `dn_core.denoise_steps` with the axes."""
        return {**self.options, "channel_axis": self.axes.channel_axis, "alpha": self.axes.alpha}

    def as_python(self, amount: float, note: str = "") -> str:
        """Python code that gives the same pixels, with `note` as a comment in the first line."""
        image = f"viewer.layers[{self.name!r}].data{'[0]' if self.multiscale else ''}"
        shown = self._options_to_write()
        if self.axes.differs_from_default:
            shown["channel_axis"] = self.axes.channel_axis
        if self.axes.alpha:
            shown["alpha"] = True
        if amount != 1:
            shown["amount"] = amount
        arguments = "".join(f", {key}={value!r}" for key, value in shown.items())
        comment = f"# {note}\n" if note else ""
        return (
            f"{comment}import dn_core\n\n"
            f"image = {image}\n"
            f"clean = dn_core.denoise(image{arguments})\n"
        )

    def as_command(self, amount: float) -> str:
        """A shell command that makes the result from the layer's file.

        If the layer is not a file, a comment in the first line says to save it.
        """
        path = self._file()
        source = path or f"{self.name}.tif"
        target = Path(source).with_name(f"{Path(source).name.split('.')[0]} denoised.tif")
        words = ["dn-resnet", "denoise", source, "-o", str(target)]
        for option, value in self._options_to_write().items():
            words += [f"--{option.replace('_', '-')}", str(value)]
        if amount != 1:
            words += ["--amount", str(amount)]
        if self.axes.differs_from_default and "S" not in self.axes.letters:
            words += ["--channel-axis", str(self.axes.channel_axis).lower()]
        comment = "" if path else f"# save the layer as {shlex.quote(source)} first\n"
        return f"{comment}{shlex.join(words)}\n"

    def _options_to_write(self) -> dict[str, Any]:
        """The options that are not the library's defaults."""
        return {
            key: value
            for key, value in self.options.items()
            if value is not None and (key, value) != ("nonfinite", "raise")
        }

    def missing_message(self) -> str:
        """What the layer's file lacks and was read as a fill value; dask and napari do not say."""
        from dn_core import files

        if (path := self._file()) is None:
            return ""
        with files.open_image(path) as image:
            return image.missing

    def _file(self) -> str | None:
        """The layer's file, if the command would read the same pixels from it."""
        from dn_core import files

        if self.path is None:
            return None
        try:
            with files.open_image(self.path) as image:
                same = (
                    tuple(image.shape) == self.axes.shape and image.source.dtype == self.data.dtype
                )
        except (ValueError, OSError, ImportError):
            return None
        return self.path if same else None
