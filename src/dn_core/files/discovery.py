"""Finding images: which ones files, folders and glob patterns stand for."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dn_core.files.image import printable
from dn_core.messages import counted

__all__ = [
    "PNG_JPEG_ENDINGS",
    "TIFF_ENDINGS",
    "ZARR_ENDINGS",
    "FoundImage",
    "found_images",
    "image_paths",
    "is_zarr_folder",
]

TIFF_ENDINGS = (".tif", ".tiff")
PNG_JPEG_ENDINGS = (".png", ".jpg", ".jpeg")
ZARR_ENDINGS = (".zarr",)
_OTHER_IMAGES = {
    ".bmp",
    ".czi",
    ".dcm",
    ".dm3",
    ".dm4",
    ".dv",
    ".gif",
    ".h5",
    ".heic",
    ".ims",
    ".jp2",
    ".lif",
    ".lsm",
    ".mrc",
    ".nd2",
    ".ndpi",
    ".oib",
    ".oif",
    ".oir",
    ".r3d",
    ".raw",
    ".scn",
    ".stk",
    ".svs",
    ".tf8",
    ".vsi",
    ".webp",
    ".zvi",
}
"""Extensions of images that cannot be read; that they are skipped in a folder is a warning."""


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image found in an input, with its relative path, which results keep in their folder.

    Attributes
    ----------
    path : Path
        The image.
    below : Path
        Its path below the given folder, or below the part of the pattern without wildcards.
    """

    path: Path
    below: Path


def image_paths(inputs: Iterable[str | Path]) -> list[Path]:
    """The images that files, folders and patterns stand for, in that order and each once.

    Folders are searched with all their subfolders, linked ones too, in sorted order; a ``.zarr``
    folder is one image. Hidden files are skipped. A file that several paths of a folder or pattern
    lead to by links appears once.

    Parameters
    ----------
    inputs : iterable of str or Path
        Files, folders and glob patterns (``*``, ``?``, ``[]``, ``**`` for any folders).

    Returns
    -------
    list of Path
        The images.

    Raises
    ------
    FileNotFoundError
        When an input does not exist, matches nothing or holds no images.
    """
    return [image.path for image in found_images(inputs)]


def found_images(inputs: Iterable[str | Path]) -> list[FoundImage]:
    """The images that files, folders and patterns stand for, with their relative paths.

    Parameters
    ----------
    inputs : iterable of str or Path
        Files, folders and glob patterns, as in `image_paths`.

    Returns
    -------
    list of FoundImage
        The images, in the order of `image_paths`.

    Raises
    ------
    FileNotFoundError
        When an input does not exist, matches nothing or holds no images.
    """
    found: dict[str, FoundImage] = {}
    for given in inputs:
        for image in _expanded(Path(given)):
            found.setdefault(os.path.abspath(image.path), image)
    return list(found.values())


def _expanded(given: Path) -> list[FoundImage]:
    if given.is_dir() and not is_zarr_folder(given):
        if not (paths := _each_once(_in_folder(given))):
            raise FileNotFoundError(
                errno.ENOENT,
                "no images (TIFF, PNG, JPEG, zarr) in this folder; choose another",
                str(given),
            )
        return [FoundImage(path, path.relative_to(given)) for path in paths]
    if given.exists():
        return [FoundImage(given, Path(given.name))]
    if not any(sign in str(given) for sign in "*?["):
        raise FileNotFoundError(
            errno.ENOENT, f"there is no image or folder '{printable(given)}'. Check the path."
        )
    fixed, rest = _fixed_part(given)
    paths = _matching(fixed, rest) or _matching(fixed, rest.replace("[", "[[]"))
    if not paths:
        raise FileNotFoundError(
            errno.ENOENT, f"no image matches the pattern '{printable(given)}'. Check it."
        )
    return [FoundImage(path, _below(path, fixed)) for path in paths]


def _fixed_part(pattern: Path) -> tuple[Path, str]:
    """The folder that a pattern begins with, even if its name has brackets, and the rest."""
    fixed, *parts = [Path(pattern.anchor), *pattern.parts[1 if pattern.anchor else 0 :]]
    while parts and (fixed / parts[0]).is_dir():
        fixed = fixed / parts.pop(0)
    return fixed, os.path.join(*parts)


def _matching(fixed: Path, rest: str) -> list[Path]:
    parts = Path(rest).parts
    if "**" in parts:  # not by glob, which follows circular links
        return _each_once(
            path for path in _in_folder(fixed) if _fits(path.relative_to(fixed).parts, parts)
        )
    paths = [Path(match) for match in glob.iglob(os.path.join(glob.escape(str(fixed)), rest))]
    return _each_once(
        path for path in paths if _is_image_name(path) and (path.is_file() or is_zarr_folder(path))
    )


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path fits a pattern in which ``**`` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[start:], pattern[1:] or ("*",)) for start in range(len(parts)))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _below(path: Path, fixed: Path) -> Path:
    below = path.relative_to(fixed)
    return Path(path.name) if ".." in below.parts else below


def _each_once(paths: Iterable[Path]) -> list[Path]:
    """One path for each real file, by preference one without links, sorted."""
    by_preference = sorted(
        (os.path.realpath(path) != os.path.abspath(path), len(path.parts), path) for path in paths
    )
    once: dict[str, Path] = {}
    for _, _, path in by_preference:
        once.setdefault(os.path.realpath(path), path)
    return sorted(once.values())


def _in_folder(folder: Path) -> Iterator[Path]:
    skipped: list[str] = []
    seen: set[str] = set()  # links may be circular

    def warn(error: OSError) -> None:
        warnings.warn(
            f"{error.filename} cannot be read ({error.strerror}); its images are skipped",
            stacklevel=2,
        )

    # Linked folders come last, so that files in the given folder are found by their own path.
    waiting = [folder]
    while waiting:
        for root, folders, names in os.walk(waiting.pop(0), onerror=warn):
            real = os.path.realpath(root)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            zarrs = [name for name in folders if Path(name).suffix.lower() in ZARR_ENDINGS]
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and name not in zarrs
            )
            waiting += [
                Path(root, name) for name in folders if os.path.islink(os.path.join(root, name))
            ]
            skipped += [
                name
                for name in names
                if Path(name).suffix.lower() in _OTHER_IMAGES and not name.startswith(".")
            ]
            yield from (
                path
                for path in (Path(root, name) for name in (*names, *zarrs))
                if _is_image_name(path)
            )
    if skipped:
        examples = ", ".join(sorted(skipped)[:3]) + (", ..." if len(skipped) > 3 else "")
        warnings.warn(
            f"{printable(folder)}: skipped {counted(len(skipped), 'file')} of other formats than "
            f"TIFF, PNG, JPEG and zarr ({examples})",
            stacklevel=2,
        )


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in (
        *TIFF_ENDINGS,
        *PNG_JPEG_ENDINGS,
        *ZARR_ENDINGS,
    ) and not path.name.startswith(".")


def is_zarr_folder(path: Path) -> bool:
    """Whether a path is a folder that is named ``.zarr`` or has zarr metadata."""
    return path.is_dir() and (
        path.suffix.lower() in ZARR_ENDINGS
        or any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))
    )
