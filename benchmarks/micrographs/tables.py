"""The page's tables, from a run's record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comparison.report import table

from micrographs.cases import COUNTS, FMD_KINDS, SIGMAS
from micrographs.filters import BASELINES
from micrographs.scores import Scores, mean

__all__ = ["blocks", "change_table", "quick_table"]

LEVELS = {
    "real images": ["W2S", "FMD 1", "FMD 2", "FMD 4"],
    "counts": [f"dsb2018 {count:g}" for count in COUNTS],
    "photographs": [f"Set12 {sigma}" for sigma in SIGMAS],
}
NOTICED = 0.05
"""dB; smaller differences are not put into words."""


def blocks(record: dict[str, Any]) -> dict[str, str]:
    """Every block of the page by the name of its marks.

    Parameters
    ----------
    record : dict
        What a run has measured.

    Returns
    -------
    dict
        Markdown by name; a block whose part was not measured says so.
    """
    scores = record["scores"]
    return {
        "run": run_block(record),
        "real": real_table(record),
        "kinds": kinds_table(record),
        "counts": means_table(record, LEVELS["counts"], "photons"),
        "photographs": means_table(record, LEVELS["photographs"], "sigma"),
        "speed": speed_table(record),
        "noise2void": noise2void_table(record),
        "short": "\n".join(f"* {line}" for line in in_short(scores, list(record["models"])))
        or "Not measured.",
    }


def run_block(record: dict[str, Any]) -> str:
    """Command, date, machine."""
    machine = record["machine"]
    versions = {**machine["versions"], **record["packages"]}
    parts: dict[str, list[str]] = {}
    for part, known in record["measured"].items():
        when = f"{known['date']}, load average {known['load_before']} to {known['load_after']}"
        parts.setdefault(when, []).append(part)
    return "\n".join(
        [
            f"`{record['command']}`",
            "",
            f"* {machine['cpu']}, {machine['cores']} cores, {machine['system']}",
            *(f"* {', '.join(names)}: {when}" for when, names in parts.items()),
            f"* {', '.join(f'{name} {version}' for name, version in versions.items())}",
        ]
    )


def methods_of(record: dict[str, Any]) -> dict[str, str]:
    """Titles of the table's rows by their names in the record."""
    baselines = {
        method.name: method.title for method in BASELINES if method.name in record["baselines"]
    }
    return {"noisy": "noisy image", **baselines, **{name: name for name in record["models"]}}


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def rows_with_best(titles: Iterable[str], columns: list[list[float | None]]) -> list[list[str]]:
    """Rows of a table of PSNR; the best of each column is bold."""
    rows = [[title] for title in titles]
    for column in columns:
        best = max((round(value, 2) for value in column if value is not None), default=None)
        for row, value in zip(rows, column, strict=True):
            text = number(value)
            row.append(f"**{text}**" if value is not None and round(value, 2) == best else text)
    return rows


def real_table(record: dict[str, Any]) -> str:
    """Real images: PSNR by collection, and coherence beyond the truth's and SSIM on W2S."""
    scores, methods = record["scores"], methods_of(record)
    columns = [[mean(scores, name, method) for method in methods] for name in LEVELS["real images"]]
    rows = rows_with_best(methods.values(), columns)
    for row, method in zip(rows, methods, strict=True):
        row.insert(2, number(mean(scores, "W2S", method, "ssim"), 3))
        row.insert(3, number(mean(scores, "W2S", method, "excess"), 3, sign=True))
    header = ["method", "W2S", "SSIM", "coherence excess", "FMD, 1 capture", "2", "4"]
    return table(header, rows)


def kinds_table(record: dict[str, Any]) -> str:
    """FMD's first captures by kind, and each model's difference to the best Gaussian filter."""
    scores, methods = record["scores"], methods_of(record)
    entry = scores.get("FMD 1")
    if not entry:
        return "Not measured."
    kinds = entry["images"]
    columns = [[entry[name]["psnr"][place] for name in methods] for place in range(len(kinds))]
    columns.append([mean(scores, "FMD 1", name) for name in methods])
    rows = rows_with_best(methods.values(), columns)
    for name in record["models"] if "gaussian" in entry else ():
        gains = [
            own - other
            for own, other in zip(entry[name]["psnr"], entry["gaussian"]["psnr"], strict=True)
        ]
        average = sum(gains) / len(gains)
        cells = [number(gain, sign=True) for gain in [*gains, average]]
        rows.append([f"{name} - best Gaussian", *cells])
    return table(["method", *kinds, "mean"], rows)


def means_table(record: dict[str, Any], collections: list[str], header: str) -> str:
    """PSNR by level."""
    scores, methods = record["scores"], methods_of(record)
    if not any(name in scores for name in collections):
        return "Not measured."
    columns = [[mean(scores, name, method) for method in methods] for name in collections]
    levels = [name.split()[1] for name in collections]
    first, *others = levels
    return table(
        ["method", f"{header} {first}", *others], rows_with_best(methods.values(), columns)
    )


def speed_table(record: dict[str, Any]) -> str:
    """Seconds a megapixel, and how many times the first model's."""
    if not record.get("speed"):
        return "Not measured."
    times: dict[str, dict[str, float]] = {}
    for row in record["speed"]:
        times.setdefault(row["method"], {})[row["bits"]] = row["seconds_a_megapixel"]
    titles = methods_of(record)
    fast = times[next(iter(record["models"]))]["8 bits"]
    rows = []
    for name, found in times.items():
        eight = found.get("8 bits", found.get("any", 0.0))
        sixteen = found.get("16 bits", eight)
        facts = record["models"].get(name, {})
        macs, weights = (
            f"{facts[key]:,}" if facts else "-" for key in ("macs_per_pixel", "weights")
        )
        cells = [seconds(eight), seconds(sixteen), f"{eight / fast:.1f}", macs, weights]
        rows.append([titles.get(name, name), *cells])
    first = next(iter(record["models"]))
    header = ["method", "s/Mpx, 8 bits", "s/Mpx, 16 bits", f"times {first}"]
    return table([*header, "MAC per pixel", "weights"], rows)


def seconds(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def noise2void_table(record: dict[str, Any]) -> str:
    """Noise2Void on the images that it was trained on, with all others beside it."""
    found = record.get("noise2void")
    if not found:
        return "Not measured: CAREamics was not installed."
    images = [(row["collection"], row["name"]) for row in found["images"]]
    methods = methods_of(record)
    columns = []
    for (collection, name), own in zip(images, found["images"], strict=True):
        entry = record["scores"][collection]
        place = entry["images"].index(name)
        column = [entry[method]["psnr"][place] for method in methods]
        columns.append([*column, own["psnr"]])
    rows = rows_with_best([*methods.values(), "Noise2Void"], columns)
    times = " and ".join(f"{row['seconds']:.0f}" for row in found["images"])
    header = ["method", *(f"{collection}, {name}" for collection, name in images)]
    note = f"Noise2Void took {times} s for an image of 512x512 pixels ({found['training']})."
    return f"{table(header, rows)}\n\n{note}"


def in_short(scores: Scores, models: list[str]) -> list[str]:
    """Where our models win and lose against the best Gaussian filter and BM3D, in sentences."""
    lines = []
    for model in models:
        worse = []
        entry = scores.get("FMD 1", {})
        for rival, title in (("gaussian", "the best Gaussian filter"), ("bm3d", "BM3D")):
            below = below_on(scores, model, rival)
            if below:
                worse.append(f"below {title} on {', '.join(below)}")
            elif rival in entry and model in entry:
                worse.append(f"nowhere below {title}")
        if worse:
            lines.append(f"{model}: {'; '.join(worse)}.")
    return lines


def below_on(scores: Scores, model: str, rival: str) -> list[str]:
    """Kinds and collections where a model's PSNR is 0.05 dB or more below a rival's."""
    found = []
    entry = scores.get("FMD 1", {})
    if rival in entry and model in entry:
        pairs = zip(entry["images"], entry[model]["psnr"], entry[rival]["psnr"], strict=True)
        found += [
            f"{kind} ({own - other:+.1f} dB)"
            for kind, own, other in pairs
            if other - own >= NOTICED
        ]
        found[:1] = [f"FMD {kind}" for kind in found[:1]]
    for collection in scores:
        if collection.startswith("FMD"):
            continue
        own, other = mean(scores, collection, model), mean(scores, collection, rival)
        if own is not None and other is not None and other - own >= NOTICED:
            found.append(f"{collection_in_words(collection)} ({own - other:+.1f} dB)")
    return found


def collection_in_words(collection: str) -> str:
    """A collection with its level: ``"Set12 15"`` is Set12 at sigma 15."""
    name, _, level = collection.partition(" ")
    if not level:
        return name
    return f"{name} at {level} photons" if name == "dsb2018" else f"{name} at sigma {level}"


def quick_table(scores: Scores, models: list[str]) -> str:
    """What counts, in a row for each model: FMD by kind, W2S, coherence, Set12."""
    kinds = scores.get("FMD 1", {}).get("images", [])
    header = ["model", *kinds, "FMD", "W2S", "excess", *(f"Set12 {sigma}" for sigma in SIGMAS)]
    rows = []
    for model in models:
        cells = [number(value) for value in scores.get("FMD 1", {}).get(model, {}).get("psnr", [])]
        cells += [number(mean(scores, name, model)) for name in ("FMD 1", "W2S")]
        cells.append(number(mean(scores, "W2S", model, "excess"), 3, sign=True))
        cells += [number(mean(scores, f"Set12 {sigma}", model)) for sigma in SIGMAS]
        rows.append([model, *cells])
    return table(header, rows)


def change_table(scores: Scores, before: str, after: str) -> str:
    """PSNR of a model before and after a change, by kind, and coherence beyond the truth's."""
    rows = []
    for collection, entry in scores.items():
        names: list[tuple[str, int | None]] = [(collection, None)]
        if collection == "FMD 1" and entry["images"] == list(FMD_KINDS.values()):
            names += [(f"FMD, {kind}", place) for place, kind in enumerate(entry["images"])]
        for title, place in names:
            old, new = (
                mean(scores, collection, name) if place is None else entry[name]["psnr"][place]
                for name in (before, after)
            )
            excess = [mean(scores, collection, name, "excess") for name in (before, after)]
            cells = [number(old), number(new), number(new - old, sign=True)]
            shown = [number(value, 3, sign=True) if place is None else "" for value in excess]
            rows.append([title, *cells, *shown])
    names_of = ["coherence excess before", "after"]
    return table(["images", f"before: {before}", f"after: {after}", "dB", *names_of], rows)
