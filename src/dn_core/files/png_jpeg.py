"""Reading and writing PNG and JPEG, in memory.

The EXIF orientation is applied to the pixels when reading, and removed from the metadata.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import ImageFileError
from dn_core.files.image import ImageFile, Target, check_written, printable, reading
from dn_core.files.orientation import oriented
from dn_core.files.png_checksums import check_png_checksums
from dn_core.files.png_jpeg_metadata import (
    chunks_of,
    density,
    exif_of_text,
    jpeg_segments,
    read_metadata,
    with_chunks,
    with_segments,
)
from dn_core.safe_write import atomic_write

__all__ = ["check_png_jpeg", "create_png_jpeg", "open_png_jpeg"]

JPEG_QUALITY = 95
"""Quality of JPEGs, unless the input had a higher one."""


def open_png_jpeg(path: Path) -> ImageFile:
    """Read a PNG or JPEG."""
    from PIL import Image

    with reading(path), Image.open(path, formats=("PNG", "JPEG", "MPO")) as picture:
        if picture.format == "PNG":
            check_png_checksums(path)
        if picture.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
            raise ImageFileError(
                f"{printable(path)} must be grey, RGB or RGBA, got {picture.mode} colours. Convert "
                "it to RGB first."
            )
        frames = getattr(picture, "n_frames", 1)
        notes = (f"{frames} images in the file; the first is used",) if frames > 1 else ()
        format_ = "png" if picture.format == "PNG" else "jpeg"
        picture.load()
        metadata = read_metadata(picture, path.read_bytes() if format_ == "png" else b"")
        orientation = dict(picture.getexif()).get(0x0112, 1)
        pixels = _deep_png(path) if format_ == "png" else None
        if pixels is None:
            pixels = _pixels(picture)
        pixels = np.ascontiguousarray(oriented(pixels, orientation))
        if orientation in (5, 6, 7, 8) and "dpi" in metadata:
            metadata["dpi"] = metadata["dpi"][::-1]
    return ImageFile(path, pixels, "YXS" if pixels.ndim == 3 else "YX", format_, metadata, notes)


def _pixels(picture: Any) -> NDArray[Any]:
    if picture.mode in ("P", "PA"):  # the values are indices of colours, not intensities
        alpha = picture.mode == "PA" or "transparency" in picture.info
        picture = picture.convert("RGBA" if alpha else "RGB")
    pixels = np.array(picture)
    return pixels.astype(np.uint16) if picture.mode == "I" else pixels


def _deep_png(path: Path) -> NDArray[Any] | None:
    """The pixels of a 16-bit PNG with several samples, which Pillow reads with 8 bits."""
    with open(path, "rb") as file:
        depth, colour = file.read(26)[24:]
    if depth != 16 or colour == 0:
        return None
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def check_png_jpeg(path: Path, like: ImageFile) -> None:
    """Refuse, before anything is computed, what PNG or JPEG cannot hold."""
    jpeg = path.suffix.lower() != ".png"
    name, dtypes = ("JPEG", ("uint8",)) if jpeg else ("PNG", ("bool", "uint8", "uint16"))
    if like.dtype.name not in dtypes:
        raise ValueError(
            f"{like.dtype} cannot be written as {name}; the dtype must be {' or '.join(dtypes)}. "
            "Choose a name that ends in .tif."
        )
    planes = math.prod(
        size for axis, size in zip(like.axes, like.shape, strict=True) if axis not in "YXS"
    )
    if planes != 1 or not {"Y", "X"} <= set(like.axes):
        raise ValueError(
            f"an image written as {name} must have one plane, got {planes} (axes {like.axes}). "
            "Choose a name that ends in .tif."
        )
    samples = like.shape[like.axes.index("S")] if like.rgb else 1
    if samples not in ((1, 3) if jpeg else (1, 2, 3, 4)) or (
        like.dtype.kind == "b" and samples != 1
    ):
        raise ValueError(
            f"{like.dtype} with {samples} samples cannot be written as {name}. Choose a name that "
            "ends in .png or .tif."
        )
    if samples in (2, 4) and not like.alpha:
        raise ValueError(
            f"{samples} samples, none of them alpha, cannot be written as {name}. Choose a name "
            "that ends in .tif."
        )


@contextlib.contextmanager
def create_png_jpeg(path: Path, like: ImageFile) -> Iterator[Target]:
    """Create a PNG or JPEG whose pixels are collected in memory and encoded at the end."""
    pixels = np.zeros(like.shape, like.dtype)
    laid = pixels.transpose(
        [i for i, axis in enumerate(like.axes) if axis not in "YXS"]
        + [like.axes.index(a) for a in "YXS" if a in like.axes]
    )
    shape = laid.shape[-3:] if like.rgb else laid.shape[-2:]
    if shape[-1] == 1 and like.rgb:
        shape = shape[:-1]

    def check(written: Path) -> None:
        check_written(written, open_png_jpeg(written), shape, like.dtype)

    target = Target(pixels)
    with atomic_write(path, check=check) as temporary:
        yield target
        _encode(
            temporary,
            np.ascontiguousarray(laid).reshape(shape),
            like.metadata,
            jpeg=path.suffix.lower() != ".png",
        )
        target.close()


def _encode(path: Path, pixels: NDArray[Any], metadata: dict[str, Any], *, jpeg: bool) -> None:
    from PIL import Image

    options: dict[str, Any] = {"dpi": density(metadata)} if density(metadata) else {}
    file = io.BytesIO()
    if jpeg:
        segments = metadata.get("jpeg_segments")
        if segments is None:
            segments = jpeg_segments(metadata)
            options.update(icc_profile=metadata.get("icc_profile"))
        Image.fromarray(pixels).save(
            file, format="JPEG", **options, **_quality(metadata.get("jpeg", {}))
        )
        path.write_bytes(with_segments(file.getvalue(), segments))
        return
    chunks = metadata.get("png_chunks")
    if chunks is None:
        exif = metadata.get("exif") or exif_of_text(metadata.get("words", {}))
        options.update(icc_profile=metadata.get("icc_profile"), exif=exif or None)
        comment = metadata.get("comment", b"").decode("utf-8", "replace")
        chunks = chunks_of(
            options, metadata.get("xmp", b""), {"Comment": comment} if comment else {}
        )
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        import imagecodecs

        file.write(imagecodecs.png_encode(pixels))
    else:
        Image.fromarray(pixels).save(file, format="PNG")
    path.write_bytes(with_chunks(file.getvalue(), chunks))


def _quality(known: dict[str, Any]) -> dict[str, Any]:
    """Pillow's options for the quality of a JPEG: that of the input, but at least 95."""
    from PIL import Image

    options: dict[str, Any] = {"subsampling": 0, "progressive": known.get("progressive", False)}
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="JPEG", quality=JPEG_QUALITY)
    with Image.open(file) as usual:
        tables = usual.quantization  # type: ignore[attr-defined]
    finer = known.get("tables") and sum(known["tables"][0]) < sum(tables[0])
    return (
        {**options, "qtables": known["tables"]} if finer else {**options, "quality": JPEG_QUALITY}
    )
