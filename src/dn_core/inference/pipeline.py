"""The walk of an image from the public functions to its result: describe, plan, run."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from dn_core.inference.arrays import InputImage, check_out
from dn_core.inference.loaded import LoadedNetwork
from dn_core.inference.options import DenoiseOptions
from dn_core.inference.plan import make_plan
from dn_core.inference.run import Progress, run

__all__ = ["finish", "plan_and_run"]


def plan_and_run(
    image: Any, model: str | Path | LoadedNetwork | None, options: DenoiseOptions, out: Any
) -> Generator[Progress]:
    """Denoise an image step by step.

    Parameters
    ----------
    image, out : array
        As in `dn_core.denoise`.
    model, options
        As in `make_plan`.

    Yields
    ------
    Progress
        See `run`.
    """
    described = InputImage.of(image)
    if out is not None:
        check_out(out, described)
    plan = make_plan(described, model, options, result_in_memory=out is None)
    for warning in plan.warnings:
        warnings.warn(warning, stacklevel=4)
    yield from run(plan, described, out)


def finish(steps: Generator[Progress]) -> Any:
    """The result of all steps; its notes become warnings."""
    result, notes = None, tuple[str, ...]()
    for step in steps:
        result, notes = step.result, step.notes
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    return result
