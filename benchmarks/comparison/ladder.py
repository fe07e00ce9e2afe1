"""The ladder: what a method takes for an image against how well it denoises it, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw_ladder", "rungs"]

SCORED_AS = {"dncnn_s25": "DnCNN-S", "ffdnet_gray": "FFDNet"}
OURS, OTHERS = "#1f6f8b", "#9a8c7c"


def rungs(results: dict[str, Any], sigma: str = "25") -> list[tuple[str, float, float, bool]]:
    """Name, milliseconds, PSNR (dB) and whether it is ours, of all that was both timed and scored.

    Each method by its fastest engine.
    """
    scores = results["quality"]["set12"]
    own = set(results["quality"]["bfloat16"])
    fastest: dict[str, float] = {}
    for row in results["speed"]:
        name = SCORED_AS.get(row["name"], row["name"])
        if name in scores:
            fastest[name] = min(row["median_ms"], fastest.get(name, row["median_ms"]))
    return [
        (name, time, scores[name][sigma]["psnr"], name in own) for name, time in fastest.items()
    ]


def draw_ladder(results: dict[str, Any], path: Path) -> None:
    """A PNG with a point for each rung, times on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, time, psnr, own in rungs(results):
        colour = OURS if own else OTHERS
        axes.plot(time, psnr, "o", color=colour, markersize=8)
        axes.annotate(
            name,
            (time, psnr),
            xytext=(8, -3),
            textcoords="offset points",
            color=colour,
            weight="bold" if own else "normal",
        )
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.12)
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "125" else ""))
    axes.set_xlabel(
        f"ms for 512 x 512 pixels on {results['machine']['cores']} CPU cores, fastest engine"
    )
    axes.set_ylabel("PSNR (dB), Set12, sigma 25")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
