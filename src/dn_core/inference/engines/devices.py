"""Compute devices: which one to use, found without importing torch where there is no GPU."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

__all__ = ["check_not_forked", "choose_device"]


def choose_device(device: str | None) -> str:
    """The device to compute on: the one asked for, or the best available.

    Parameters
    ----------
    device : str or None
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; None or ``"auto"`` for the best available.

    Returns
    -------
    str
        The device.

    Raises
    ------
    ValueError
        If the device is unknown or not available.
    RuntimeError
        If it is a GPU that cannot be used since this process was forked.
    """
    if device in (None, "auto"):
        return _best_device()
    if not isinstance(device, str) or not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ValueError(
            f"device must be 'cpu', 'cuda', 'cuda:N' or 'mps', got {device!r}. Leave it out to use "
            "the best one."
        )
    if device == "cpu":
        return device
    import torch

    check_not_forked(device)
    kind = device.split(":")[0]
    available = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if not available:
        raise ValueError(
            f"device {device!r} is not available: torch finds no such device here. Use "
            "device='cpu', or install a torch build for it."
        )
    if ":" in device and int(device.split(":")[1]) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"device must be one of 'cuda:0' to 'cuda:{count - 1}', got {device!r}. Use one of "
            "them."
        )
    return device


def check_not_forked(device: str) -> None:
    """Refuse a GPU that a process used before it forked: its driver does not work in the child."""
    import torch

    kind = device.split(":")[0]
    if kind != "cpu" and getattr(torch, kind)._is_in_bad_fork():
        raise RuntimeError(
            f"{kind} must be used in a process that was not forked from one that uses it, got a "
            "forked one. Use multiprocessing.get_context('spawn'), or device='cpu'."
        )


def _best_device() -> str:
    """A GPU if there is one.

    torch, which takes seconds to import, is asked only where there may be one.
    """
    if "torch" not in sys.modules and not _gpu_may_be_there():
        return "cpu"
    import torch

    for kind in ("cuda", "mps"):
        check_not_forked(kind)
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _gpu_may_be_there() -> bool:
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    if sys.platform == "win32":
        return (
            Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll"
        ).exists()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
