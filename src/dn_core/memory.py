"""Memory: how much is available, refusing what does not fit, and settings of the allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory", "check_memory", "keep_freed_memory"]

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD = -3, -1, -2


def keep_freed_memory() -> bool:
    """Make glibc keep large freed blocks, which makes torch on a CPU up to twice as fast.

    By default glibc returns blocks above 32 MB to the system immediately, and each new activation
    then costs page faults (40% of the time of a float32 forward pass). With this setting the
    process keeps its peak memory. For programs, not for libraries.

    Returns
    -------
    bool
        Whether the allocator accepted the settings; false except on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)


def check_memory(what: str, needed: int, available: int, advice: str) -> None:
    """Refuse, before it starts, what does not fit into memory.

    The system would let it start, and then kill the process.

    Parameters
    ----------
    what : str
        What needs the memory, for the message.
    needed, available : int
        Bytes.
    advice : str
        What the user can do, for the message.

    Raises
    ------
    MemoryError
        If more bytes are needed than available.
    """
    if needed > available:
        raise MemoryError(
            f"{what} needs {needed:,} bytes of memory, {available:,} are available. {advice}"
        )


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that new allocations may take.

    The least of what the system reports, and what the control groups and the limits of this process
    allow. Where the system does not report it (macOS), all physical memory; on Windows, which
    refuses what does not fit, no bound.

    Parameters
    ----------
    root : Path, optional
        Folder with ``proc`` and ``sys``.

    Returns
    -------
    int
        Bytes, 0 or more.
    """
    return max(0, min([_system_memory(root), *_group_memory(root), *_address_space(root)]))


def _system_memory(root: Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


def _group_memory(root: Path) -> Iterator[int]:
    """What the limits of the control groups of this process (version 2 and 1) leave.

    Inactive file cache counts as free.
    """
    own = {}
    with contextlib.suppress(OSError, ValueError):
        own = dict(
            line.split(":", 2)[1:]
            for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        )
    for controller, mount, limit, used in (
        ("", "sys/fs/cgroup", "memory.max", "memory.current"),
        ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        group = Path(own.get(controller, "/").lstrip("/"))
        # A container may see its own group as the root, but its path as it is outside.
        for folder in (root / mount / part for part in (group, *group.parents)):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
                free = int((folder / limit).read_text(encoding="ascii")) - int(
                    (folder / used).read_text(encoding="ascii")
                )
                counts = dict(
                    line.split()
                    for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                )
                yield free + int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _address_space(root: Path) -> Iterator[int]:
    """What the limit of the address space (``ulimit -v``) leaves."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int((root / "proc/self/statm").read_text(encoding="ascii").split()[0])
            yield limit - pages * resource.getpagesize()
