"""Fresh processes, for measurements that a used interpreter would distort."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from an interpreter that has loaded only the function's module."""
    with temporary_folder() as folder:
        (folder / "call").write_bytes(pickle.dumps((function, arguments)))
        subprocess.run([sys.executable, "-c", CALL, str(folder), *sys.path], check=True)
        return pickle.loads((folder / "result").read_bytes())


CALL = """
import pathlib, pickle, sys
folder, sys.path = pathlib.Path(sys.argv[1]), sys.argv[2:]
function, arguments = pickle.loads((folder / "call").read_bytes())
(folder / "result").write_bytes(pickle.dumps(function(*arguments)))
"""


def timed_child(code: str, *arguments: str, folder: Path) -> tuple[float, str]:
    """Seconds and output of a fresh interpreter that runs `code`."""
    sources = os.pathsep.join(
        str(Path(entry).resolve())
        for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if entry
    )
    environment = {**os.environ, "PYTHONPATH": sources} if sources else dict(os.environ)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(
            f"a child process failed with exit code {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return seconds, done.stdout


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes away, as a Path."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
