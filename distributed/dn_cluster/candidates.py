"""Candidates for publication: reading model files, scoring them, refusing those that are worse."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dn_cluster.registry_writer import Candidate
from dn_core.checkpoints import Checkpoint
from dn_core.inference.model import Model
from dn_core.models import registry
from dn_core.models.index import Entry, check_name
from dn_core.models.sources import read_whole
from dn_core.paper import protocol
from dn_core.paper.protocol import Image, Level

__all__ = ["QualityGate", "read_candidates", "regressions", "score_model"]


class NoisyImage:
    """The method that returns the noisy image: the baseline that every model must beat."""

    name = "noisy"
    parameters = 0
    macs_per_pixel = 0.0

    def __call__(self, image: Image, std: float) -> Image:
        """The image unchanged."""
        return image


def read_candidates(paths: Sequence[Path]) -> list[Candidate]:
    """Read model files, with all checks of the loader.

    Parameters
    ----------
    paths : sequence of Path
        The model files.

    Returns
    -------
    list of Candidate
        In the same order.

    Raises
    ------
    ValueError
        When a file is damaged, a name is not allowed or is a bundled model's, or two have the
        same name.
    """
    bundled: dict[str, set[str]] = {}
    for entry in registry.entries(older=True):
        if entry.kind == "bundled":
            bundled.setdefault(entry.name, set()).add(entry.sha256)
    candidates: dict[str, Candidate] = {}
    for path in paths:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        card = Checkpoint.from_bytes(content, source=str(path)).card
        name = check_name(card.name)
        if name in candidates:
            raise ValueError(f"models must have different names, got two named {name}. Rename one.")
        if digest not in bundled.get(name, {digest}):
            raise ValueError(
                f"{path} has {name}, the name of a bundled model, which users would get instead. "
                f"Make a copy with another name: dn-resnet models add {path} --name NAME"
            )
        candidates[name] = Candidate(name, content, digest, card)
    return list(candidates.values())


def score_model(
    content: bytes, source: str, images: Sequence[Image], levels: Sequence[Level]
) -> dict[str, float]:
    """Measure the PSNR of a model file.

    Parameters
    ----------
    content : bytes
        The model file's bytes.
    source : str
        What error messages call the file.
    images : sequence of Image
        Clean grey images, 0 to 1.
    levels : sequence of Level
        Noise levels.

    Returns
    -------
    dict of str to float
        PSNR in dB by the level's name.
    """
    model = Model(Checkpoint.from_bytes(content, source=source))
    scores = protocol.evaluate([protocol.ModelMethod(model)], images, levels)
    return {score.level: score.psnr for score in scores}


def regressions(new: dict[str, float], old: dict[str, float], tolerance: float) -> dict[str, float]:
    """By how much a model is worse than another.

    Parameters
    ----------
    new, old : dict of str to float
        PSNR in dB by noise level. NaN is worse than anything.
    tolerance : float
        Loss in dB that does not count.

    Returns
    -------
    dict of str to float
        Loss in dB, for the levels where it is above the tolerance.
    """
    return {
        level: round(old[level] - value, 4)
        for level, value in new.items()
        if not value >= old[level] - tolerance
    }


@dataclass(frozen=True, slots=True)
class QualityGate:
    """Scores models, and refuses those that are worse than the noisy image or what they replace.

    Attributes
    ----------
    images : sequence of Image
        Clean grey test images, 0 to 1.
    levels : sequence of Level
        Noise levels to score at; the same noise for all models.
    tolerance : float
        Loss in dB, against the version that a model replaces, that is accepted.
    reason : str
        Why worse models are accepted; empty: they are refused.
    """

    images: Sequence[Image]
    levels: Sequence[Level]
    tolerance: float
    reason: str

    def record(self, address: str, candidate: Candidate, old: Entry | None) -> dict[str, Any]:
        """Score a model beside the version that it replaces.

        Parameters
        ----------
        address : str
            The registry.
        candidate : Candidate
            The model.
        old : Entry or None
            The index's entry that it replaces; None: it is new.

        Returns
        -------
        dict
            The model's record in the index.

        Raises
        ------
        ValueError
            When the model is worse and no reason is given, or the old version's file is damaged.
        """
        noisy = self._noisy_scores()
        new = score_model(candidate.content, candidate.name, self.images, self.levels)
        before = self._scores_of(address, old) if old is not None else {}
        for level, value in new.items():
            beside = "" if old is None else f", version {old.version} {before[level]:.3f} dB"
            print(
                f"{candidate.name}: {level}: {value:.3f} dB{beside}, noisy {noisy[level]:.3f} dB",
                flush=True,
            )
        lost = regressions(new, noisy, 0.0)
        if before:
            lost |= regressions(new, before, self.tolerance)
        if lost and not self.reason:
            raise ValueError(self._refusal(candidate.name, old, lost))
        more: dict[str, Any] = {
            "scores": {level: round(value, 4) for level, value in new.items()},
            "test": self._describe(),
        }
        if old is not None:
            more["replaces"] = {"version": old.version, "sha256": old.sha256}
        if lost:
            more["accepted_worse"] = {"reason": self.reason, "by": lost}
        return candidate.record(1 if old is None else old.version + 1, more)

    def _noisy_scores(self) -> dict[str, float]:
        scores = protocol.evaluate([NoisyImage()], self.images, self.levels)
        return {score.level: score.psnr for score in scores}

    def _scores_of(self, address: str, old: Entry) -> dict[str, float]:
        content = read_whole(address, old.file, old.bytes)
        if hashlib.sha256(content).hexdigest() != old.sha256:
            raise ValueError(
                f"{old.location} is not the file that the index lists, so the new model cannot be "
                "compared with it. Restore the file, or delete it from the index."
            )
        return score_model(content, old.location, self.images, self.levels)

    def _refusal(self, name: str, old: Entry | None, lost: dict[str, float]) -> str:
        version = "" if old is None else f"version {old.version} or "
        losses = ", ".join(f"{value:.3f} dB at {level}" for level, value in lost.items())
        return (
            f"{name} is worse than {version}the noisy image by {losses}; at most "
            f"{self.tolerance:g} dB is allowed. Train it longer, or publish it with --accept-worse "
            "REASON, which the index will show."
        )

    def _describe(self) -> dict[str, Any]:
        """What the index says of the test images."""
        digest = hashlib.sha256(b"".join(image.tobytes() for image in self.images)).hexdigest()
        return {"images": len(self.images), "sha256": digest, "tolerance": self.tolerance}
