"""Forks: nothing that owns threads is used, or even destroyed, in a process that has not got these threads.

A fork copies the memory of a process, and of its threads only the one that forks. In the child all that waits for another thread waits
for ever: a compiled network whose threads are gone, also when it is only destroyed, a thread pool of a library, a lock that was held.
So, where a process forks,

- before it, what is being made is finished (`alone`) and what is being computed is waited for (`ThreadOwner.finish`);
- in the child, what owns threads is kept for ever and made anew (`ThreadOwner.leave_behind`, `keep_for_ever`), and `forked_with` says
  whose thread pools are lost there.

The hooks are there once `dn_core` is imported, and do next to nothing in programs that have not denoised.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Protocol

__all__ = ["ThreadOwner", "add_owner", "alone", "forked_with", "keep_for_ever", "limit_torch_after_fork", "say_one_thread"]

LONGEST_WAIT = 60.0
"""Seconds that a fork waits for what is being made; networks are compiled in a fraction of one."""
LIBRARIES = ("openvino", "torch")
"""Those that keep pools of threads."""


class ThreadOwner(Protocol):
    """Something that has threads of its own."""

    def finish(self) -> None:
        """Wait for what is being computed: this process is about to fork."""
        ...

    def leave_behind(self) -> None:
        """Keep for ever what has threads, and forget it: this is the child."""
        ...


_lock = threading.RLock()
_owners: weakref.WeakSet[ThreadOwner] = weakref.WeakSet()
_lost: set[str] = set()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One thread at a time, and never while this process forks."""
    with _lock:
        yield


def add_owner(owner: ThreadOwner) -> None:
    """Have `owner` told of forks, as long as it lives."""
    _owners.add(owner)


def keep_for_ever(*things: object) -> None:
    """Never destroy these, not even when Python ends."""
    import ctypes

    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def forked_with(library: str) -> bool:
    """Whether this process was forked, itself or an ancestor, from one that had imported `library`, whose threads are then lost."""
    return library in _lost


def say_one_thread(library: str) -> None:
    """Warn, once in a process, that it computes with one thread since `library` has lost its others."""
    _say_once(library, os.getpid())


def limit_torch_after_fork() -> None:
    """Have torch compute with one thread in a process that was forked from one with torch.

    Its OpenMP (GNU's) takes the threads of the parent's pool for its own and would wait for them for ever. The number is not set back: no
    higher one works in this process.
    """
    if not forked_with("torch"):
        return
    import torch

    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        say_one_thread("torch")


@functools.cache
def _say_once(library: str, _process: int) -> None:
    warnings.warn(
        f"this process was forked from one that had loaded {library}, whose threads a fork leaves behind: it computes with one thread, "
        "with the same result. Processes started by multiprocessing.get_context('spawn') compute with all.",
        RuntimeWarning,
        stacklevel=3,
    )


def _before_fork() -> None:
    if _lock.acquire(timeout=LONGEST_WAIT):
        for owner in list(_owners):
            owner.finish()


def _after_fork_in_parent() -> None:
    with contextlib.suppress(RuntimeError):  # not taken, as the wait was too long
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _lost.update(library for library in LIBRARIES if library in sys.modules)
    for owner in list(_owners):
        owner.leave_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
