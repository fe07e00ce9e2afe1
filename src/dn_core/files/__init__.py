"""Reading and writing images: TIFF, OME-TIFF, ImageJ TIFF, PNG, JPEG and OME-Zarr.

Reading refuses what is damaged, cut off or larger than it can honestly be, and never guesses. What a sparse file leaves out is read as its
fill value, and told. Writing keeps what the input said of itself (axes, pixel sizes, channel names, description, tags, colour profile,
tiles, compression, pyramid) or says what it does not keep, and a named output is the old file, the new whole file, or absent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from dn_core.errors import ImageFileError
from dn_core.files.finding import PICTURE_ENDINGS, TIFF_ENDINGS, ZARR_ENDINGS, FoundImage, found_images, image_paths
from dn_core.files.image import ImageFile, Target, printable
from dn_core.files.kept import said_of_writing
from dn_core.files.shown import AsShown, as_shown, is_turned_or_inverted

__all__ = [
    "FoundImage", "ImageFile", "Target", "check_output", "create_image", "found_images", "image_paths", "open_image", "read_image",
    "writable_formats",
]  # fmt: skip

_TIFF, _PICTURES, _ZARR = TIFF_ENDINGS, PICTURE_ENDINGS, ZARR_ENDINGS
_MAGIC = {
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF", b"BM": "BMP", b"\x89HDF": "HDF5", b"PK\3\4": "a zip archive", b"%PDF": "PDF", b"\x1f\x8b": "gzip",
    b"RIFF": "WebP or AVI", b"\xd0\xcf\x11\xe0": "an Olympus OIB or old Office file", b"\0\0\0\x0cjP": "JPEG 2000",
}  # fmt: skip


def writable_formats() -> tuple[str, ...]:
    """The endings that an output may have."""
    return (".tif", ".tiff", ".ome.tif", ".ome.tiff", *_PICTURES, ".zarr", ".ome.zarr")


@contextlib.contextmanager
def open_image(path: str | Path, *, missing: str | None = None) -> Iterator[ImageFile]:
    """Open an image; its ``source`` is read piece by piece while the ``with`` block lasts.

    Parameters
    ----------
    path
        A TIFF, PNG or JPEG file or a zarr folder. TIFFs need not be named so.
    missing
        By default chunks of zarr and tiles of sparse TIFFs that are not there are read as the fill value, as every program does, and
        `ImageFile.missing` has their number and share; an OME-TIFF that lacks whole planes which it promises is refused. ``"fill"`` takes
        such planes as zeros too, ``"refuse"`` refuses them all. What is there and damaged is always refused.

    Raises
    ------
    ImageFileError
        When the content cannot be read as an image: damaged, cut off, of another kind, with colours that are no RGB.
    FileNotFoundError, PermissionError
        When the file cannot be opened.
    """
    if missing not in (None, "fill", "refuse"):
        raise ValueError(f'missing is {missing!r}; "fill" or "refuse" is expected. Change missing, or leave it out.')
    path = Path(path)
    with contextlib.ExitStack() as stack:
        yield _opened(path, stack, missing)


def read_image(path: str | Path, *, missing: str | None = None) -> ImageFile:
    """As `open_image`, with all pixels in memory and the file closed.

    What is missing and was filled is a `UserWarning` too: of the pixels alone nobody can tell.
    """
    with open_image(path, missing=missing) as image:
        if image.missing:
            warnings.warn(f"{printable(image.path)}: {image.missing}", stacklevel=2)
        return dataclasses.replace(image, source=image.pixels)


def _opened(path: Path, stack: contextlib.ExitStack, missing: str | None) -> ImageFile:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such image; check the path", str(path))
    if path.is_dir():
        from dn_core.files import zarrs

        if not zarrs.is_zarr(path):
            what = "a zarr folder without metadata" if path.suffix.lower() in _ZARR else "a folder"
            raise ImageFileError(f"{printable(path)} is {what}; an image file or a zarr image is expected. Give the files in it.")
        return zarrs.open_zarr(path, missing=missing)
    content = _looks_like(path)
    suffix = path.suffix.lower()
    if content == "TIFF" and suffix not in _PICTURES:
        from dn_core.files import tiff

        return tiff.open_tiff(path, stack, missing=missing)
    if content in ("PNG", "JPEG") and suffix not in _TIFF:
        from dn_core.files import pictures

        return pictures.open_picture(path)
    expected = "TIFF" if suffix in _TIFF else "PNG or JPEG" if suffix in _PICTURES else "TIFF, PNG, JPEG or zarr"
    raise ImageFileError(
        f"{printable(path)} is not a {expected} file: it looks like {content}. Give it its right name, or export it again as TIFF."
    )


def _looks_like(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "an empty file (0 bytes)"
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    kind = "text" if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start) else "nothing known"
    return f"{kind} (first bytes {start[:8]!r})"


def check_output(path: str | Path, like: ImageFile, *, overwrite: bool = False) -> None:
    """Refuse, before anything is computed, an output that cannot or must not be written.

    Parameters
    ----------
    path
        The output; its ending chooses the format (`writable_formats`). A link is followed: what it points to is replaced.
    like
        The image that will be written: shape, dtype, axes, and the input's path.
    overwrite
        Whether the output may exist, or even be the input.

    Raises
    ------
    FileExistsError, FileNotFoundError, IsADirectoryError, PermissionError, OSError
        When the output exists, its folder is missing or may not be written, or the disk is full.
    ValueError
        When the format cannot hold such an image.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*_TIFF, *_PICTURES, *_ZARR):
        raise ValueError(f"the output {printable(path)} has no known ending; one of {', '.join(writable_formats())} is expected")
    _check_place(Path(os.path.realpath(path)), like, overwrite, folder=suffix in _ZARR)
    if suffix not in _TIFF:
        like = as_shown(like)
    real = Path(os.path.realpath(path))
    if suffix in _TIFF:
        from dn_core.files import tiff

        tiff.check_tiff(real.with_name(path.name), like)
    elif suffix in _PICTURES:
        from dn_core.files import pictures

        pictures.check_picture(path, like)
    else:
        from dn_core.files import zarrs

        zarrs.check_zarr(real, like)


def _check_place(path: Path, like: ImageFile, overwrite: bool, *, folder: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder of the output is missing; create it first", str(path.parent))
    if path.is_dir() and not folder:
        raise IsADirectoryError(errno.EISDIR, "the output is a folder, a file name is expected; add a file name", str(path))
    origin = Path(os.path.realpath(like.path))
    if path in origin.parents or origin in path.parents:
        raise ValueError(f"the output {printable(path)} and the input {printable(origin)} lie in each other; choose another place")
    if path.exists():
        same = like.path.exists() and os.path.samefile(path, like.path)
        if not overwrite:
            what = "the output is the input" if same else "the output exists"
            raise FileExistsError(errno.EEXIST, f"{what}; choose another name, or allow overwriting it", str(path))
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(errno.EACCES, "the output may not be written; choose another place or change its permissions", str(path))


@contextlib.contextmanager
def create_image(path: str | Path, like: ImageFile, *, overwrite: bool = False) -> Iterator[Target]:
    """Give a `Target` whose blocks become the image at `path`, in the shape, dtype and layout of `like`.

    At the end of the ``with`` block the file is flushed, checked and renamed into place. On any exception the old file is as
    before. Errors are those of `check_output`. What the format cannot hold of the image's description is a `UserWarning`. Formats that
    cannot say that an image is turned, or that 0 is white, get its pixels as they are shown.
    """
    path = Path(path)
    check_output(path, like, overwrite=overwrite)
    suffix = path.suffix.lower()
    for sentence in said_of_writing(like, _kind(path, like)):
        warnings.warn(f"{printable(Path(path.name))}: {sentence}", stacklevel=3)
    if suffix in _TIFF:
        from dn_core.files.tiff import create_tiff

        with create_tiff(path, like) as target:
            yield target
        return
    if suffix in _PICTURES:
        from dn_core.files.pictures import create_picture as create
    else:
        from dn_core.files.zarrs import create_zarr as create
    with create(path, as_shown(like)) as target:
        yield Target(AsShown(target, like)) if is_turned_or_inverted(like) else target


def _kind(path: Path, like: ImageFile) -> str:
    """What a file of that name will be, one of `ImageFile.format`."""
    if path.suffix.lower() in _TIFF:
        from dn_core.files.tiff import tiff_kind

        return tiff_kind(path, like)
    return "ome-zarr" if path.suffix.lower() in _ZARR else "png" if path.suffix.lower() == ".png" else "jpeg"
