"""Reading and writing images: TIFF, OME-TIFF, ImageJ TIFF, PNG, JPEG and OME-Zarr.

Reading refuses files that are damaged, cut off or implausibly large, and never guesses. Missing
chunks of sparse files are read as the fill value, with a note. Writing preserves the metadata of
the input (axes, pixel sizes, channel names, description, tags, colour profile, tiles, compression,
pyramid) or warns of what the format cannot hold. An output file is the old one, the complete new
one, or absent; never half-written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dn_core.errors import ImageFileError
from dn_core.files.discovery import (
    PNG_JPEG_ENDINGS,
    TIFF_ENDINGS,
    ZARR_ENDINGS,
    FoundImage,
    found_images,
    image_paths,
)
from dn_core.files.image import ImageFile, Target, printable
from dn_core.files.metadata_loss import metadata_warnings
from dn_core.files.orientation import DisplayTarget, display_image, needs_display_transform

__all__ = [
    "FoundImage",
    "ImageFile",
    "Target",
    "check_output",
    "create_image",
    "found_images",
    "image_paths",
    "open_image",
    "read_image",
    "writable_formats",
]

_MAGIC_NUMBERS = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"\x89HDF": "HDF5",
    b"PK\3\4": "a zip archive",
    b"%PDF": "PDF",
    b"\x1f\x8b": "gzip",
    b"RIFF": "WebP or AVI",
    b"\xd0\xcf\x11\xe0": "an Olympus OIB or old Office file",
    b"\0\0\0\x0cjP": "JPEG 2000",
}


def writable_formats() -> tuple[str, ...]:
    """The file name extensions that an output may have.

    Returns
    -------
    tuple of str
        Lower case, each with its dot, such as ``".ome.tif"``.
    """
    return (".tif", ".tiff", ".ome.tif", ".ome.tiff", *PNG_JPEG_ENDINGS, ".zarr", ".ome.zarr")


@contextlib.contextmanager
def open_image(
    path: str | Path, *, missing: Literal["fill", "refuse"] | None = None
) -> Iterator[ImageFile]:
    """Open an image; its ``source`` is read piece by piece while the ``with`` block lasts.

    Parameters
    ----------
    path : str or Path
        A TIFF, PNG or JPEG file or a zarr folder. The format of a file is recognised by its
        content; a TIFF may have any name.
    missing : {"fill", "refuse"}, optional
        What to do about data that the file leaves out. By default, missing chunks of zarr and
        missing tiles of sparse TIFFs are read as the fill value, as other programs do, and
        `ImageFile.missing` gives their number and share; an OME-TIFF without whole planes that it
        describes is refused. ``"fill"`` reads such planes as zeros too, ``"refuse"`` refuses all
        missing data. Damaged data are always refused.

    Yields
    ------
    ImageFile
        The image; of a pyramid level 0, of several images the first.

    Raises
    ------
    ImageFileError
        When the content cannot be read as an image: damaged, cut off, of another kind, or with
        colours other than grey and RGB.
    FileNotFoundError, PermissionError
        When the file cannot be opened.
    ValueError
        When `missing` is none of the choices.
    """
    if missing not in (None, "fill", "refuse"):
        raise ValueError(f'missing must be None, "fill" or "refuse", got {missing!r}.')
    path = Path(path)
    with contextlib.ExitStack() as stack:
        yield _opened(path, stack, missing)


def read_image(path: str | Path, *, missing: Literal["fill", "refuse"] | None = None) -> ImageFile:
    """Read an image into memory.

    Parameters
    ----------
    path : str or Path
        A TIFF, PNG or JPEG file or a zarr folder.
    missing : {"fill", "refuse"}, optional
        What to do about data that the file leaves out, as in `open_image`. Missing data that were
        filled are a `UserWarning` too, since the pixels do not show them.

    Returns
    -------
    ImageFile
        The image, with a numpy array as its ``source``; the file is closed.

    Raises
    ------
    ImageFileError, FileNotFoundError, PermissionError, ValueError
        As in `open_image`.
    """
    with open_image(path, missing=missing) as image:
        if image.missing:
            warnings.warn(f"{printable(image.path)}: {image.missing}", stacklevel=2)
        return dataclasses.replace(image, source=image.pixels)


def _opened(path: Path, stack: contextlib.ExitStack, missing: str | None) -> ImageFile:
    if not path.exists():
        raise FileNotFoundError(
            errno.ENOENT, f"there is no image '{printable(path)}'. Check the path."
        )
    suffix = path.suffix.lower()
    if path.is_dir():
        from dn_core.files.ome_zarr import is_zarr, open_zarr

        if not is_zarr(path):
            kind = "a zarr folder without metadata" if suffix in ZARR_ENDINGS else "a folder"
            raise ImageFileError(
                f"{printable(path)} must be an image file or a zarr image, got {kind}. Give the "
                "files in it."
            )
        return open_zarr(path, missing=missing)
    content = _content_type(path)
    if content == "TIFF" and suffix not in PNG_JPEG_ENDINGS:
        from dn_core.files.tiff import open_tiff

        return open_tiff(path, stack, missing=missing)
    if content in ("PNG", "JPEG") and suffix not in TIFF_ENDINGS:
        from dn_core.files.png_jpeg import open_png_jpeg

        return open_png_jpeg(path)
    expected = "TIFF, PNG, JPEG or zarr"
    if suffix in TIFF_ENDINGS:
        expected = "TIFF"
    elif suffix in PNG_JPEG_ENDINGS:
        expected = "PNG or JPEG"
    raise ImageFileError(
        f"{printable(path)} is not a {expected} file: it looks like {content}. Rename it to match "
        "its content, or export it again as TIFF."
    )


def _content_type(path: Path) -> str:
    """The type of a file by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "an empty file (0 bytes)"
    for magic, name in _MAGIC_NUMBERS.items():
        if start.startswith(magic):
            return name
    is_text = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start)
    return f"{'text' if is_text else 'an unknown format'} (first bytes {start[:8]!r})"


def check_output(path: str | Path, like: ImageFile, *, overwrite: bool = False) -> None:
    """Refuse, before anything is computed, an output that cannot or must not be written.

    Parameters
    ----------
    path : str or Path
        The output; its extension chooses the format (see `writable_formats`). A symbolic link is
        followed: its target is replaced.
    like : ImageFile
        The image that will be written: its shape, dtype, axes and path are checked.
    overwrite : bool, default False
        Whether the output may exist, or even be the input.

    Raises
    ------
    FileExistsError, FileNotFoundError, IsADirectoryError, PermissionError, OSError
        When the output exists, its folder is missing or not writable, or the disk is full.
    ValueError
        When the format cannot hold such an image.
    """
    path = Path(path)
    real = Path(os.path.realpath(path))
    suffix = path.suffix.lower()
    if suffix not in (*TIFF_ENDINGS, *PNG_JPEG_ENDINGS, *ZARR_ENDINGS):
        raise ValueError(
            f"the output must end in one of {', '.join(writable_formats())}, got "
            f"{printable(path)}. Change its name."
        )
    _check_location(real, like, overwrite, folder=suffix in ZARR_ENDINGS)
    if suffix in TIFF_ENDINGS:
        from dn_core.files.tiff_writer import check_tiff

        check_tiff(real.with_name(path.name), like)
    elif suffix in PNG_JPEG_ENDINGS:
        from dn_core.files.png_jpeg import check_png_jpeg

        check_png_jpeg(path, display_image(like))
    else:
        from dn_core.files.ome_zarr_writer import check_zarr

        check_zarr(real, display_image(like))


def _check_location(path: Path, like: ImageFile, overwrite: bool, *, folder: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the folder of the output is missing; create it first", str(path.parent)
        )
    if path.is_dir() and not folder:
        raise IsADirectoryError(
            errno.EISDIR, "the output must be a file, got a folder; add a file name", str(path)
        )
    origin = Path(os.path.realpath(like.path))
    if path in origin.parents or origin in path.parents:
        raise ValueError(
            f"the output {printable(path)} and the input {printable(origin)} must not contain "
            "each other. Choose another output."
        )
    if path.exists() and not overwrite:
        same = like.path.exists() and os.path.samefile(path, like.path)
        reason = "the output is the input" if same else "the output exists"
        raise FileExistsError(
            errno.EEXIST, f"{reason}; choose another name, or use overwrite=True", str(path)
        )
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(
            errno.EACCES,
            "the output is not writable; choose another folder or change its permissions",
            str(path),
        )


@contextlib.contextmanager
def create_image(path: str | Path, like: ImageFile, *, overwrite: bool = False) -> Iterator[Target]:
    """Create an image file in the shape, dtype and layout of another image, block by block.

    At the end of the ``with`` block the file is flushed, checked and renamed into place. On any
    exception the old file is unchanged. Metadata that the format cannot hold are a `UserWarning`.
    Formats without orientation and white-is-zero get the pixels as they are displayed.

    Parameters
    ----------
    path : str or Path
        The output; its extension chooses the format (see `writable_formats`).
    like : ImageFile
        The image whose shape, dtype, axes and metadata the new one gets; its pixels are not read.
    overwrite : bool, default False
        Whether the output may exist.

    Yields
    ------
    Target
        Takes the blocks: ``target[index] = block`` for any basic numpy index, in any order, in the
        axes of `like`.

    Raises
    ------
    OSError, ValueError
        As in `check_output`, before the ``with`` block is entered; and when the disk is full.
    """
    path = Path(path)
    check_output(path, like, overwrite=overwrite)
    suffix = path.suffix.lower()
    for sentence in metadata_warnings(like, _format_of(path, like)):
        warnings.warn(f"{printable(Path(path.name))}: {sentence}", stacklevel=3)
    if suffix in TIFF_ENDINGS:
        from dn_core.files.tiff_writer import create_tiff

        with create_tiff(path, like) as target:
            yield target
        return
    if suffix in PNG_JPEG_ENDINGS:
        from dn_core.files.png_jpeg import create_png_jpeg as create
    else:
        from dn_core.files.ome_zarr_writer import create_zarr as create
    with create(path, display_image(like)) as target:
        yield Target(DisplayTarget(target, like)) if needs_display_transform(like) else target


def _format_of(path: Path, like: ImageFile) -> str:
    """What a file of that name will be, one of `ImageFile.format`."""
    suffix = path.suffix.lower()
    if suffix in TIFF_ENDINGS:
        from dn_core.files.tiff_writer import tiff_kind

        return tiff_kind(path, like)
    if suffix in ZARR_ENDINGS:
        return "ome-zarr"
    return "png" if suffix == ".png" else "jpeg"
