"""What our models must reach, and whether they do: a check for those who release them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comparison.report import table

from micrographs.cases import COUNTS, SIGMAS
from micrographs.scores import Scores, mean

__all__ = ["MUSTS", "Must", "check"]

AGAINST = ("gaussian", "nlm", "bm3d")
"""What synthetic noise must be removed better than."""


@dataclass(frozen=True)
class Must:
    """A figure that a model must reach.

    Attributes
    ----------
    title : str
        As the table has it.
    limit : float
        The least (or, with `at_most`, the largest) that passes, at two digits (three for
        coherence).
    figure : callable
        Takes the scores and a model; None where it was not measured.
    at_most : bool, default False
        Whether less is better.
    model : str, optional
        The model that it is asked of; any by default.
    """

    title: str
    limit: float
    figure: Callable[[Scores, str], float | None]
    at_most: bool = False
    model: str = ""

    @property
    def digits(self) -> int:
        """Digits that count."""
        return 3 if self.at_most else 2

    def passed(self, figure: float) -> bool:
        """Whether a figure, rounded, is good enough."""
        rounded = round(figure, self.digits)
        return rounded <= self.limit if self.at_most else rounded >= self.limit


def worst_kind(scores: Scores, model: str) -> float | None:
    """The smallest difference to the best Gaussian filter among FMD's kinds, dB."""
    entry = scores.get("FMD 1", {})
    if model not in entry or "gaussian" not in entry:
        return None
    pairs = zip(entry[model]["psnr"], entry["gaussian"]["psnr"], strict=True)
    return min(own - other for own, other in pairs)


def worst_count(scores: Scores, model: str) -> float | None:
    """The smallest lead over the best of transform + BM3D, NLM and Gaussian filter, dB."""
    leads = []
    for count in COUNTS:
        own = mean(scores, f"dsb2018 {count:g}", model)
        others = [mean(scores, f"dsb2018 {count:g}", name) for name in AGAINST]
        if own is None or None in others:
            return None
        leads.append(own - max(other for other in others if other is not None))
    return min(leads)


def of(collection: str, measure: str = "psnr") -> Callable[[Scores, str], float | None]:
    """The mean of a measure over a collection."""
    return lambda scores, model: mean(scores, collection, model, measure)


PHOTOGRAPHS = {"dn-fast": (32.47, 30.21, 27.08), "dn-quality": (32.76, 30.49, 27.41)}
MUSTS = (
    Must("FMD, 7 first captures", 34.9, of("FMD 1")),
    Must("worst FMD kind against its Gaussian", -0.3, worst_kind),
    Must("W2S", 34.6, of("W2S")),
    Must("W2S, coherence excess", 0.085, of("W2S", "excess"), at_most=True),
    Must("dsb2018, worst lead over BM3D, NLM, Gaussian", 0.0, worst_count),
    *(
        Must(f"Set12, {sigma}", limit, of(f"Set12 {sigma}"), model=model)
        for model, limits in PHOTOGRAPHS.items()
        for sigma, limit in zip(SIGMAS, limits, strict=True)
    ),
)


def check(record: dict[str, Any]) -> tuple[str, list[str]]:
    """A table with a row for each model, and what no model reaches.

    Parameters
    ----------
    record : dict
        Of a run: ``"scores"`` and ``"models"``.

    Returns
    -------
    tuple
        The Markdown table, and a sentence for each figure that no model has reached or that was
        not measured.
    """
    scores, models = record["scores"], list(record["models"])
    shared = [must for must in MUSTS if not must.model]
    header = ["model", *(f"{must.title} ({_limit(must)})" for must in shared), "Set12 as before"]
    rows = []
    for model in models:
        own = [must for must in MUSTS if must.model == model]
        photographs = [_cell(must, scores, model) for must in own]
        cells = [_cell(must, scores, model) for must in shared]
        rows.append([model, *cells, "; ".join(photographs) or "-"])
    missed = []
    for must in MUSTS:
        asked = [must.model] if must.model else models
        figures = [figure for model in asked if (figure := must.figure(scores, model)) is not None]
        if not any(map(must.passed, figures)):
            best = (min if must.at_most else max)(figures, default=None)
            got = f"the best is {best:.{must.digits}f}" if best is not None else "not measured"
            whose = f" of {must.model}" if must.model else ""
            missed.append(f"{must.title}{whose} must be {_limit(must)}: {got}.")
    return table(header, rows), missed


def _limit(must: Must) -> str:
    return f"{'at most' if must.at_most else 'at least'} {must.limit:g}"


def _cell(must: Must, scores: Scores, model: str) -> str:
    figure = must.figure(scores, model)
    if figure is None:
        return "not measured"
    verdict = "pass" if must.passed(figure) else "FAIL"
    return f"{figure:.{must.digits}f} {verdict}"
