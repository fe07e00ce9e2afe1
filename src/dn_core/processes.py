"""Fork safety: threads, locks and engines in forked processes.

A fork copies the memory of a process, but only the thread that forks. In the child, everything that
waits for another thread waits forever: a compiled network whose threads are gone (even when it is
only destroyed), the thread pool of a library, a lock that was held. Therefore:

- Before a fork, engines that are being made are finished (`fork_lock`), and computations are waited
  for (`ThreadOwner.finish`).
- In the child, objects that own threads are never destroyed, and are made again when needed
  (`ThreadOwner.abandon`, `never_destroy`); `forked_with` says which libraries lost their threads.

The hooks are registered when `dn_core` is imported, and do almost nothing in programs that have not
denoised.
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

__all__ = [
    "ThreadOwner",
    "add_owner",
    "fork_lock",
    "forked_with",
    "limit_torch_after_fork",
    "never_destroy",
    "warn_one_thread",
]

LONGEST_WAIT = 60.0
"""Seconds that a fork waits for `fork_lock`; networks are compiled in a fraction of one."""
LIBRARIES = ("openvino", "torch")
"""Libraries that keep thread pools."""


class ThreadOwner(Protocol):
    """Something that has threads of its own."""

    def finish(self) -> None:
        """Wait for running computations: this process is about to fork."""
        ...

    def abandon(self) -> None:
        """Forget objects that own threads, without destroying them: this is the child."""
        ...


_lock = threading.RLock()
_owners: weakref.WeakSet[ThreadOwner] = weakref.WeakSet()
_lost: set[str] = set()


@contextlib.contextmanager
def fork_lock() -> Iterator[None]:
    """Hold the lock that lets one thread in at a time, and never while this process forks."""
    with _lock:
        yield


def add_owner(owner: ThreadOwner) -> None:
    """Notify `owner` of forks, as long as it lives."""
    _owners.add(owner)


def never_destroy(*things: object) -> None:
    """Never destroy these objects, not even when Python exits."""
    import ctypes

    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def forked_with(library: str) -> bool:
    """Whether the threads of `library` are lost here.

    That is so if this process, or an ancestor, was forked from one that had imported it.

    Parameters
    ----------
    library : str
        One of `LIBRARIES`.
    """
    return library in _lost


def warn_one_thread(library: str) -> None:
    """Warn, once per process, that it computes with one thread since `library` lost the others."""
    _warn_once(library, os.getpid())


def limit_torch_after_fork() -> None:
    """Make torch compute with one thread in a process that was forked from one with torch.

    GNU OpenMP takes the threads of the parent's pool as its own and would wait for them forever.
    The number is not restored: no higher one works in this process.
    """
    if not forked_with("torch"):
        return
    import torch

    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warn_one_thread("torch")


@functools.cache
def _warn_once(library: str, _process: int) -> None:
    warnings.warn(
        f"this process was forked from one that had loaded {library}, whose threads do not exist "
        "in it: it computes with one thread, with the same result. Use "
        "multiprocessing.get_context('spawn') to compute with all.",
        RuntimeWarning,
        stacklevel=3,
    )


def _before_fork() -> None:
    if _lock.acquire(timeout=LONGEST_WAIT):
        for owner in list(_owners):
            owner.finish()


def _after_fork_in_parent() -> None:
    with contextlib.suppress(RuntimeError):  # not acquired: the wait timed out
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _lost.update(library for library in LIBRARIES if library in sys.modules)
    for owner in list(_owners):
        owner.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
