"""Lossy codecs for grey 8-bit images: what an image looks like after each, and how many bytes it takes.

JPEG and JPEG 2000 come from Pillow. BPG is HEVC's intra coding in a small container: ``bpgenc`` and ``bpgdec`` are used where they are
installed, else x265 by way of pillow-heif, at the same quantiser; `hevc_name` says which.
"""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Compressed", "bpg", "hevc_name", "jpeg", "jpeg2000"]

MAX_QUANTISER = 51
INSTALL_HEVC = "Install bpgenc (libbpg), or: pip install pillow-heif"

Grey = NDArray[np.uint8]


class Compressed(NamedTuple):
    """An image after a codec, ``(height, width)`` uint8, and the bytes that it took."""

    image: Grey
    bytes: int


def jpeg(image: Grey, quality: int) -> Compressed:
    """Baseline JPEG with the tables of the Independent JPEG Group; `quality` 1..100."""
    _check("quality", quality, 1, 100)
    return _by_pillow(image, "JPEG", quality=int(quality))


def jpeg2000(image: Grey, ratio: float) -> Compressed:
    """JPEG 2000 (9/7 wavelet) at `ratio` times fewer bytes than one a pixel, 1..1000."""
    _check("ratio", ratio, 1, 1000)
    return _by_pillow(image, "JPEG2000", quality_mode="rates", quality_layers=[float(ratio)], irreversible=True)


def bpg(image: Grey, quantiser: int) -> Compressed:
    """BPG, or HEVC's intra coding by x265 where there is no ``bpgenc``; `quantiser` 0 (best)..51.

    Raises
    ------
    ImportError
        When there is neither.
    """
    _check("quantiser", quantiser, 0, MAX_QUANTISER)
    return _by_bpgenc(image, int(quantiser)) if _has_bpgenc() else _by_heif(image, int(quantiser))


def hevc_name() -> str:
    """What `bpg` uses here, for tables and pictures."""
    if _has_bpgenc():
        return "BPG (bpgenc)"
    heif = _heif()
    return f"HEVC intra (x265 by pillow-heif {heif.__version__})"


def _by_pillow(image: Grey, kind: str, **options: Any) -> Compressed:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_checked(image)).save(buffer, kind, **options)
    return Compressed(np.asarray(Image.open(buffer)), len(buffer.getvalue()))


def _by_heif(image: Grey, quantiser: int) -> Compressed:
    from PIL import Image

    heif, buffer = _heif(), io.BytesIO()
    # HEVC codes whole blocks of 8; what is added is cut off again.
    rows, columns = _checked(image).shape
    padded = np.pad(image, ((0, -rows % 8), (0, -columns % 8)), mode="edge")
    heif.from_pillow(Image.fromarray(padded)).save(buffer, quality=50, enc_params={"x265:qp": str(quantiser)})
    decoded = np.asarray(heif.open_heif(io.BytesIO(buffer.getvalue())).to_pillow().convert("L"))
    return Compressed(decoded[:rows, :columns], len(buffer.getvalue()))


def _by_bpgenc(image: Grey, quantiser: int) -> Compressed:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        source, coded, decoded = (Path(folder) / name for name in ("source.png", "coded.bpg", "decoded.png"))
        Image.fromarray(_checked(image)).save(source)
        for command in (
            ["bpgenc", "-q", str(quantiser), "-f", "444", "-o", str(coded), str(source)],
            ["bpgdec", "-o", str(decoded), str(coded)],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        return Compressed(np.asarray(Image.open(decoded).convert("L")), coded.stat().st_size)


@functools.cache
def _has_bpgenc() -> bool:
    return all(shutil.which(name) for name in ("bpgenc", "bpgdec"))


def _heif() -> Any:
    try:
        import pillow_heif
    except ImportError:
        raise ImportError(f"there is no HEVC encoder; bpgenc or pillow-heif is expected. {INSTALL_HEVC}.") from None
    return pillow_heif


def _checked(image: Grey) -> Grey:
    if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise ValueError(f"the image is {image.dtype} {image.shape}; uint8 (height, width) is expected. Convert it.")
    return np.ascontiguousarray(image)


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; a number in {low}..{high} is expected. Change {name}.")
