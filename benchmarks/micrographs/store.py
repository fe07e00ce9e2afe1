"""Results of slow methods, kept in a folder: the same method on the same image is not run twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dn_core.safe_write import atomic_write
from micrographs.cases import Case, Image
from micrographs.filters import Filter

__all__ = ["Store"]


@dataclass(frozen=True)
class Store:
    """A folder of results, or None to keep nothing.

    Attributes
    ----------
    folder : Path, optional
        Made when the first result is kept.
    """

    folder: Path | None

    def best(self, method: Filter, case: Case) -> tuple[Image, float]:
        """`Filter.best`, from the folder where it is there."""
        if self.folder is None:
            return method.best(case)
        path = self.folder / f"{method.name}-{self._key(method, case)}.npz"
        if path.exists():
            with np.load(path) as kept:
                return kept["image"], float(kept["strength"])
        image, strength = method.best(case)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, image=image, strength=strength)
        return image, strength

    def _key(self, method: Filter, case: Case) -> str:
        """A hash of all that the result depends on."""
        parts = [f"{method.version} {method.installed} {case.noise}".encode(), case.noisy.tobytes()]
        if method.strengths is not None:
            parts.append(case.truth.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
