"""Lossy codecs for grey 8-bit images: the image after JPEG, JPEG 2000 or BPG, and its bytes.

JPEG and JPEG 2000 come from Pillow. BPG is HEVC's intra coding in a small container: ``bpgenc`` and
``bpgdec`` are used where they are installed, else x265 by way of pillow-heif, at the same
quantisation parameter; `hevc_name` says which.
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

MAX_QP = 51
INSTALL_HEVC = "Install bpgenc (libbpg), or: pip install pillow-heif"

Grey = NDArray[np.uint8]


class Compressed(NamedTuple):
    """An image after a codec.

    Attributes
    ----------
    image : ndarray
        ``(height, width)``, uint8.
    bytes : int
        How many it took when compressed.
    """

    image: Grey
    bytes: int


def jpeg(image: Grey, quality: int) -> Compressed:
    """Baseline JPEG with the tables of the Independent JPEG Group.

    Parameters
    ----------
    image : ndarray
        ``(height, width)``, uint8.
    quality : int
        1 (worst) to 100.

    Returns
    -------
    Compressed
        The image after the codec, and its bytes.

    Raises
    ------
    ValueError
        When the image is of another kind, or `quality` is out of its range.
    """
    _check("quality", quality, 1, 100)
    return _by_pillow(image, "JPEG", quality=int(quality))


def jpeg2000(image: Grey, ratio: float) -> Compressed:
    """JPEG 2000 with the 9/7 wavelet.

    Parameters
    ----------
    image : ndarray
        ``(height, width)``, uint8.
    ratio : float
        How many times fewer bytes than pixels, 1 to 1000.

    Returns
    -------
    Compressed
        The image after the codec, and its bytes.

    Raises
    ------
    ValueError
        When the image is of another kind, or `ratio` is out of its range.
    """
    _check("ratio", ratio, 1, 1000)
    return _by_pillow(
        image, "JPEG2000", quality_mode="rates", quality_layers=[float(ratio)], irreversible=True
    )


def bpg(image: Grey, qp: int) -> Compressed:
    """BPG, or HEVC intra coding by x265 where there is no ``bpgenc``.

    Parameters
    ----------
    image : ndarray
        ``(height, width)``, uint8.
    qp : int
        Quantization parameter, 0 (best) to 51.

    Returns
    -------
    Compressed
        The image after the codec, and its bytes.

    Raises
    ------
    ValueError
        When the image is of another kind, or `qp` is out of its range.
    ImportError
        When there is neither.
    """
    _check("qp", qp, 0, MAX_QP)
    return _by_bpgenc(image, int(qp)) if _has_bpgenc() else _by_heif(image, int(qp))


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


def _by_heif(image: Grey, qp: int) -> Compressed:
    from PIL import Image

    heif, buffer = _heif(), io.BytesIO()
    # HEVC codes whole blocks of 8; what is added is cut off again.
    rows, columns = _checked(image).shape
    padded = np.pad(image, ((0, -rows % 8), (0, -columns % 8)), mode="edge")
    heif.from_pillow(Image.fromarray(padded)).save(
        buffer, quality=50, enc_params={"x265:qp": str(qp)}
    )
    decoded = np.asarray(heif.open_heif(io.BytesIO(buffer.getvalue())).to_pillow().convert("L"))
    return Compressed(decoded[:rows, :columns], len(buffer.getvalue()))


def _by_bpgenc(image: Grey, qp: int) -> Compressed:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        source, coded, decoded = (
            Path(folder) / name for name in ("source.png", "coded.bpg", "decoded.png")
        )
        Image.fromarray(_checked(image)).save(source)
        for command in (
            ["bpgenc", "-q", str(qp), "-f", "444", "-o", str(coded), str(source)],
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
        raise ImportError(
            f"an HEVC encoder, bpgenc or pillow-heif, must be installed, got none. {INSTALL_HEVC}."
        ) from None
    return pillow_heif


def _checked(image: Grey) -> Grey:
    if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise ValueError(
            f"the image must be uint8 (height, width), got {image.dtype} {image.shape}. Convert it."
        )
    return np.ascontiguousarray(image)


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a number in {low}..{high}, got {value!r}. Change {name}.")
