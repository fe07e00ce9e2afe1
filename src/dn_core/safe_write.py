"""Files appear whole or not at all: written beside their target under a temporary name, flushed, renamed.

A temporary name says which process writes there: ``.part-MACHINE-START-SPACE-PID-RANDOM.name``. What a killed one left is cleared by the
next writer of the same target; what a living one has there, or a machine that cannot be asked, is not touched.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["clear_leftovers", "free_bytes", "named_by_process", "replaced_file", "replaced_folder", "scratch_file"]

STALE_SECONDS = 24 * 3600.0
"""Temporary files of a process that cannot be asked (on another machine, in another container) are left over when untouched for so long."""
TRIES = 6
"""How often a target that another program holds for a moment (a virus scanner, an indexer) is tried to be replaced: for 3 seconds."""

# What drives say that cannot flush a file or a folder (SMB, VirtualBox, FUSE); other errors mean that data are lost.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EACCES, errno.EPERM, errno.EBADF}
_CANNOT_FLUSH |= {errno.EISDIR}
_HELD = {errno.EACCES, errno.EBUSY, errno.ETXTBSY}
_OWNER = re.compile(r"\.?[a-z]+-([0-9a-f]{6})-([0-9a-f]{4})-([0-9a-f]{4})-(\d+)-[0-9a-f]{8}\.")

_seen: dict[Path, tuple[int, list[Path]]] = {}
"""Folders with their time of change after this process last wrote there, and the temporary names that it had found: a folder of many
thousand results, perhaps on a slow drive, is not listed again for each of them, unless somebody else was there."""


@contextlib.contextmanager
def replaced_file(target: Path, *, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Give a temporary path in the target's folder; on success flush it, `check` it and rename it to `target`.

    The temporary name keeps all extensions (``.part-XXXX.name.ome.tif``), as writers decide by them. A link is followed: what it
    points to is replaced, and keeps its permissions and, where that is allowed, its owner. On any exception, KeyboardInterrupt included,
    the temporary file is removed and the target is as before.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        When the target cannot be written, before anything is computed.
    """
    target = _writable(target)
    found = _clear_before(target)
    temporary = _beside(target, "part")
    try:
        with _errors_about(target):
            with contextlib.suppress(FileNotFoundError):  # never to be read by those who may not read the target
                temporary.touch(stat.S_IMODE(target.stat().st_mode) | 0o600)
            yield temporary
            _flush_file(temporary)
            if check is not None:
                check(temporary)
            _keep_permissions(target, temporary)
            _replace(temporary, target)
            _flush_folder(target.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        _remember(target.parent, found)


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """As `replaced_file`, for a folder such as an OME-Zarr."""
    target = _writable(target, folder=True)
    found = _clear_before(target)
    temporary, old = _beside(target, "part"), _beside(target, "old")
    try:
        with _errors_about(target):
            with contextlib.suppress(FileNotFoundError):
                temporary.mkdir(stat.S_IMODE(target.stat().st_mode) | 0o700)
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _flush_file(path)
                _keep_permissions(target / path.relative_to(temporary), path)
            _keep_permissions(target, temporary)
            _swap(temporary, target, old)
            _flush_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():  # interrupted between the two renames
            _replace(old, target)
        _remember(target.parent, found)


@contextlib.contextmanager
def scratch_file(target: Path) -> Iterator[Path]:
    """Give a path beside the target for what is needed while it is written, and remove what is there at the end."""
    temporary = _beside(Path(os.path.realpath(target)), "part")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def clear_leftovers(folder: Path, start: str = ".part", *, aged: bool = True) -> None:
    """Remove what killed processes left under names by `named_by_process` in a folder, whatever it was to become.

    With `aged` also what nobody wrote to for a day, of processes that cannot be asked whether they live.
    """
    for path in _temporary_names(folder, start):
        if _is_left_over(path, aged=aged):
            _remove(path)


def named_by_process(folder: Path, start: str, ending: str) -> Path:
    """A new name in a folder that says which process it is of."""
    return folder / f"{start}-{_machine()}-{_start()}-{_process_space()}-{os.getpid()}-{secrets.token_hex(4)}.{ending}"


def free_bytes(folder: Path) -> int:
    """The room on a drive; without bound where the drive does not say (as some FUSE ones, which claim to have no bytes at all)."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else sys.maxsize


def _writable(target: Path, *, folder: bool = False) -> Path:
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, f"the folder of the output is missing; create it first: {target.parent}", str(target))
    if target.is_dir() and not folder:
        raise IsADirectoryError(21, "the output is a folder, a file name is expected; add a file name", str(target))
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise PermissionError(13, "the output may not be written; choose another place or change its permissions", str(target))
    return target


def _beside(target: Path, word: str) -> Path:
    """A hidden name in the target's folder with the target's extensions, at most 255 bytes long as file systems ask."""
    return named_by_process(target.parent, f".{word}", _ending(target))


def _ending(target: Path) -> str:
    return os.fsencode(target.name)[-200:].decode(errors="ignore")


@contextlib.contextmanager
def _errors_about(target: Path) -> Iterator[None]:
    """Let errors name the output instead of a temporary name beside it, which is gone by then."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and error.filename.startswith(str(target.parent / ".part-")):
            error.filename = str(target)
        raise


# Leftovers


def _clear_before(target: Path) -> list[Path]:
    """Clear what killed writers of this target left, and give all temporary names in its folder.

    An old folder whose new one never came gets its place back.
    """
    folder, ending = target.parent, _ending(target)
    changed, found = _seen.get(folder, (None, []))
    with contextlib.suppress(OSError):
        if folder.stat().st_mtime_ns != changed:
            found = _temporary_names(folder, ".part", ".old")
        for path in found:
            if path.name.split(".", 2)[2:] != [ending] or not _is_left_over(path):
                continue
            if path.name.startswith(".old-") and not target.exists():
                os.replace(path, target)
            else:
                _remove(path)
    return found


def _remember(folder: Path, found: list[Path]) -> None:
    with contextlib.suppress(OSError):
        _seen[folder] = folder.stat().st_mtime_ns, [path for path in found if path.exists()]


def _temporary_names(folder: Path, *starts: str) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.name.startswith(tuple(f"{start}-" for start in starts))]
    return []


def _is_left_over(path: Path, *, aged: bool = True) -> bool:
    """Whether the process that a temporary name speaks of is gone, or cannot be asked and has written nothing there for a day."""
    found = _OWNER.match(path.name)
    if found and found[1] == _machine() and os.name != "nt":  # on Windows os.kill would end it
        if found[2] != _start():  # from before the machine was started
            return True
        if found[3] == _process_space():
            return not _is_alive(int(found[4]))
    return aged and _untouched(path)


def _untouched(path: Path) -> bool:
    """Whether it and all in it were last written a day ago or earlier."""
    oldest = time.time() - STALE_SECONDS
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime < oldest and all(inner.lstat().st_mtime < oldest for inner in path.rglob("*"))
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@functools.cache
def _machine() -> str:
    """Which machine this is, as others on a shared drive would tell it from theirs."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):
        known.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:6]


@functools.cache
def _start() -> str:
    """Which start of the machine this is; always the same one where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:4]
    return "0000"


@functools.cache
def _process_space() -> str:
    """Whose process numbers are ours: containers have their own."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(os.readlink("/proc/self/ns/pid").encode()).hexdigest()[:4]
    return "0000"


# Renaming and permissions


def _replace(source: Path, target: Path) -> None:
    """`os.replace`, again and again where another program holds the target for a moment, which Windows and SMB do not allow."""
    for number in range(TRIES):
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno not in _HELD or number == TRIES - 1:
                raise
            time.sleep(0.1 * 2**number)
        else:
            return


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put a folder in the place of another one, which is put back when that fails; no system call does it at once."""
    while True:
        if target.exists():
            _replace(target, old)
        try:
            _replace(new, target)
        except BaseException as error:
            taken = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.exists()
            if not taken:
                if old.exists():
                    _replace(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)  # another process has put its result there in between: the last one stays
        else:
            return


def _keep_permissions(old: Path, new: Path) -> None:
    """Give a new file or folder the permissions, access lists and owner of the one whose place it takes, as far as that is allowed."""
    try:
        before, now = old.stat(), new.stat()
    except OSError:
        return
    if stat.S_IFMT(before.st_mode) != stat.S_IFMT(now.st_mode):
        return
    mode = stat.S_IMODE(before.st_mode)
    for change in _changes(old, new, before, mode):
        with contextlib.suppress(OSError):
            change()
    if (new.stat().st_mode ^ mode) & 0o777:
        warnings.warn(f"the permissions of {old} ({mode:o}) could not be kept; it has those of a new file.", RuntimeWarning, stacklevel=6)


def _changes(old: Path, new: Path, before: os.stat_result, mode: int) -> Iterator[Callable[[], None]]:
    if hasattr(os, "chown"):
        yield lambda: os.chown(new, -1, before.st_gid)
        yield lambda: os.chown(new, before.st_uid, -1)
    if hasattr(os, "listxattr"):
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = os.listxattr(old)
        for name in names:
            if name.startswith("user.") or name == "system.posix_acl_access":
                yield functools.partial(_copy_attribute, old, new, name)
    yield lambda: os.chmod(new, mode)


def _copy_attribute(old: Path, new: Path, name: str) -> None:
    os.setxattr(new, name, os.getxattr(old, name))


# Flushing


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as file:
        _flush(file.fileno(), path)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # such as a folder that one may write to and not read
        return
    try:
        _flush(descriptor, folder)
    finally:
        os.close(descriptor)


def _flush(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise OSError(error.errno, error.strerror, str(path)) from error
