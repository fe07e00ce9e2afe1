"""Atomic writes: a file is written beside its target under a temporary name, flushed, renamed.

The temporary name identifies the writing process: ``.part-MACHINE-BOOT-NAMESPACE-PID-RANDOM.name``.
The next writer of the same target removes what a killed process left; files of live processes, or
of processes on other machines, are not touched.
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

__all__ = [
    "atomic_folder",
    "atomic_write",
    "clear_leftovers",
    "free_bytes",
    "named_by_process",
    "scratch_file",
]

STALE_SECONDS = 24 * 3600.0
"""When temporary files of unreachable processes (other machines, containers) become stale."""
TRIES = 6
"""Attempts to replace a target held by another program (virus scanner, indexer), in 3 seconds."""

# Errors of drives that cannot flush a file or a folder (SMB, VirtualBox, FUSE); others mean that
# data are lost.
_CANNOT_FLUSH = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.EACCES,
    errno.EPERM,
    errno.EBADF,
    errno.EISDIR,
}
_HELD = {errno.EACCES, errno.EBUSY, errno.ETXTBSY}
_OWNER = re.compile(r"\.?[a-z]+-([0-9a-f]{6})-([0-9a-f]{4})-([0-9a-f]{4})-(\d+)-[0-9a-f]{8}\.")

_seen: dict[Path, tuple[int, list[Path]]] = {}
"""Folders with their modification time after this process last wrote there, and the temporary names
found then. So a folder of many thousand results, perhaps on a slow drive, is not listed again for
each of them, unless another process has changed it."""


@contextlib.contextmanager
def atomic_write(target: Path, *, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Write a file completely or not at all.

    A symbolic link is followed: its target is replaced, and keeps its permissions and, if allowed,
    its owner. On any exception, KeyboardInterrupt included, the temporary file is removed and the
    target is unchanged.

    Parameters
    ----------
    target : Path
        The file.
    check : callable, optional
        Called with the complete temporary file before it is renamed; raises to keep the old file.

    Yields
    ------
    Path
        A temporary path in the target's folder to write to. It keeps all extensions of the target
        (``.part-XXXX.name.ome.tif``), since writers choose formats by them.

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
            # Unreadable from the start for those who may not read the target.
            with contextlib.suppress(FileNotFoundError):
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
def atomic_folder(target: Path) -> Iterator[Path]:
    """Write a folder, such as an OME-Zarr, completely or not at all; as `atomic_write`."""
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
    """A temporary path beside the target for scratch data, which are removed at the end."""
    temporary = _beside(Path(os.path.realpath(target)), "part")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def clear_leftovers(folder: Path, start: str = ".part", *, aged: bool = True) -> None:
    """Remove the temporary files and folders of killed processes from a folder.

    Parameters
    ----------
    folder : Path
        Where they are.
    start : str, default ".part"
        How their names begin, as given to `named_by_process`.
    aged : bool, default True
        Whether to remove those of unreachable processes too, once unchanged for a day.
    """
    for path in _temporary_names(folder, start):
        if _is_left_over(path, aged=aged):
            _remove(path)


def named_by_process(folder: Path, start: str, ending: str) -> Path:
    """A new path in a folder whose name identifies the current process."""
    process = f"{_machine()}-{_boot()}-{_pid_namespace()}-{os.getpid()}"
    return folder / f"{start}-{process}-{secrets.token_hex(4)}.{ending}"


def free_bytes(folder: Path) -> int:
    """Free bytes on a drive; unlimited if unknown (some FUSE drives claim to have 0 in all)."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else sys.maxsize


def _writable(target: Path, *, folder: bool = False) -> Path:
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the folder of the output is missing; create it first", str(target.parent)
        )
    if target.is_dir() and not folder:
        raise IsADirectoryError(
            errno.EISDIR, "the output must be a file, got a folder; add a file name", str(target)
        )
    if not os.access(target.parent, os.W_OK) or (
        target.exists() and not os.access(target, os.W_OK)
    ):
        raise PermissionError(
            errno.EACCES,
            "the output is not writable; choose another folder or change its permissions",
            str(target),
        )
    return target


def _beside(target: Path, word: str) -> Path:
    """A hidden path in the target's folder with its extensions, at most 255 bytes long."""
    return named_by_process(target.parent, f".{word}", _ending(target))


def _ending(target: Path) -> str:
    return os.fsencode(target.name)[-200:].decode(errors="ignore")


@contextlib.contextmanager
def _errors_about(target: Path) -> Iterator[None]:
    """Have errors name the output instead of its temporary file, which is removed by then."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and error.filename.startswith(
            str(target.parent / ".part-")
        ):
            error.filename = str(target)
        raise


# Leftovers


def _clear_before(target: Path) -> list[Path]:
    """Remove what killed writers of this target left, and list all temporary names in its folder.

    An old folder whose replacement was never put in place is restored.
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
        return [
            folder / entry.name
            for entry in entries
            if entry.name.startswith(tuple(f"{start}-" for start in starts))
        ]
    return []


def _is_left_over(path: Path, *, aged: bool = True) -> bool:
    """Whether the process in a temporary name has ended, or is unreachable and idle for a day."""
    found = _OWNER.match(path.name)
    if found and found[1] == _machine() and os.name != "nt":  # on Windows os.kill would end it
        if found[2] != _boot():  # from before the machine was rebooted
            return True
        if found[3] == _pid_namespace():
            return not _is_alive(int(found[4]))
    return aged and _untouched(path)


def _untouched(path: Path) -> bool:
    """Whether it and all in it have not been written for a day."""
    oldest = time.time() - STALE_SECONDS
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime < oldest and all(
            inner.lstat().st_mtime < oldest for inner in path.rglob("*")
        )
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
    except OSError:  # of another user
        return True
    return True


@functools.cache
def _machine() -> str:
    """An identifier of this machine among those that share a drive."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):
        known.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:6]


@functools.cache
def _boot() -> str:
    """An identifier of this boot of the machine; constant where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:4]
    return "0000"


@functools.cache
def _pid_namespace() -> str:
    """An identifier of the PID namespace: containers have their own process numbers."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(os.readlink("/proc/self/ns/pid").encode()).hexdigest()[:4]
    return "0000"


# Renaming and permissions


def _replace(source: Path, target: Path) -> None:
    """`os.replace`, retried while another program holds the target, as on Windows and SMB."""
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
    """Replace a folder by another, and restore it on failure; no system call does it at once."""
    while True:
        if target.exists():
            _replace(target, old)
        try:
            _replace(new, target)
        except BaseException as error:
            taken = (
                isinstance(error, OSError)
                and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
                and target.exists()
            )
            if not taken:
                if old.exists():
                    _replace(old, target)
                raise
            # Another process has put its result there in between: the last one stays.
            shutil.rmtree(old, ignore_errors=True)
        else:
            return


def _keep_permissions(old: Path, new: Path) -> None:
    """Give a new file or folder the permissions, ACLs and owner of the old one, if allowed."""
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
        warnings.warn(
            f"the permissions of {old} ({mode:o}) could not be kept; it has those of a new file.",
            RuntimeWarning,
            stacklevel=6,
        )


def _changes(
    old: Path, new: Path, before: os.stat_result, mode: int
) -> Iterator[Callable[[], None]]:
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
