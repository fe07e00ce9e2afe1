"""Our models on real microscope images, beside BM3D, Noise2Void, NLM, TV and a Gaussian filter.

``python benchmarks/microscopy.py`` measures everything and fills the tables of
``docs/microscopy.md``; ``--quick`` prints what counts of some models; ``--check`` says from the
last run which figures that must be reached are; ``--before`` and ``--after`` compare two models by
kind and in pictures. See ``benchmarks/README.md``; the parts lie in ``micrographs/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare import describe_machine, load_average
from comparison.processes import say
from micrographs.cases import Case, check_real_images, read_cases
from micrographs.filters import BASELINES, filter_named, installed_baselines
from micrographs.musts import check
from micrographs.noise2void import installed, measure_noise2void
from micrographs.pictures import Crop, extremes, write_sheet
from micrographs.scores import denoised, facts_of_models, measure_speed, score, title_of
from micrographs.store import Store
from micrographs.tables import blocks, change_table, quick_table
from page import put_into

import dn_core
from dn_core.safe_write import atomic_write

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("quality", "speed", "noise2void", "pictures")
QUICK = ("FMD 1", "W2S", "Set12 15", "Set12 25", "Set12 50")
SHOWN = ("W2S", "FMD 1", "dsb2018 10")
"""Collections of which the pictures have a row for the largest win and one for the largest loss."""
SENSOR_NOISE = {"gaussian", "poisson", "poisson-gaussian", "detector"}


def sensor_models() -> list[str]:
    """The bundled models but those for compression, the default one first."""
    found = []
    for name in dn_core.model_names():
        noise = dn_core.load_model(name).card.recipe.get("noise", [])
        kinds = {entry["kind"] for entry in noise}
        if kinds & SENSOR_NOISE or not kinds:
            found.append(name)
    default = dn_core.load_model().card.name
    return sorted(found, key=lambda name: name != default)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("DN_DATA") or ROOT.parent / "shared" / "data")
    add = parser.add_argument
    add("--data", type=Path, default=data, help="folder with test/w2s ... (default: DN_DATA)")
    ours = "our models (default: all bundled ones but those for JPEG)"
    add("--models", nargs="+", metavar="NAME_OR_FILE", help=ours)
    parts = (
        f"what to measure: some of {','.join(PARTS)} (default: all); the others stay as they are"
    )
    add("--parts", default=",".join(PARTS), help=parts)
    some = 'images to measure on, such as "W2S,FMD 1,dsb2018 10,Set12 25" (default: all)'
    add("--collections", default="", metavar="NAMES", help=some)
    quick = "only print PSNR of --models on FMD, W2S and Set12; the page stays as it is"
    add("--quick", action="store_true", help=quick)
    check = "print which of the required figures the last run reached; measure nothing"
    add("--check", action="store_true", help=check)
    add("--before", metavar="NAME_OR_FILE", help="a model before a change, to see beside --after")
    add("--after", metavar="NAME_OR_FILE", help="the model after the change")
    add("--sheet", type=Path, help="where pictures of --before and --after go (PNG)")
    add("--show", metavar="NAME", help="the model of the page's pictures")
    add("--cache", type=Path, help="folder that keeps results of the methods that are not ours")
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="how many images filters work on at a time",
    )
    add("--limit", type=int, help="only the first images of each collection")
    add("--page", type=Path, default=ROOT / "docs" / "microscopy.md", help="the page")
    add("--picture", type=Path, default=ROOT / "docs" / "microscopy.png", help="its picture")
    record = ROOT / "benchmarks" / "results" / "microscopy.json"
    add("--json", type=Path, default=record, help="the record of the figures")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"--parts has {unknown}; some of {', '.join(PARTS)} are expected")
    if bool(options.before) != bool(options.after):
        parser.error("--before and --after are given together: two models to compare")
    for name in ("threads", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; 1 or more is expected")
    options.collections = tuple(filter(None, options.collections.split(",")))
    options.models = options.models or sensor_models()
    return options


def quick(options: argparse.Namespace) -> int:
    """Print a row for each model."""
    cases = read_cases(options.data, QUICK, options.limit)
    scores = score(cases, options.models, [], Store(None), options.threads)
    print(quick_table(scores, [title_of(name) for name in options.models]))
    return 0


def compare_two(options: argparse.Namespace) -> int:
    """Print a table by kind of a model before and after a change, and draw a sheet."""
    cases = read_cases(options.data, options.collections, options.limit)
    models = [options.before, options.after]
    titles = ["before", "after"]
    if title_of(options.before) != title_of(options.after):
        titles = [title_of(name) for name in models]
    by_title: dict[str, dict[str, Any]] = {}
    for title, name in zip(titles, models, strict=True):
        for collection, entry in score(cases, [name], [], Store(None), options.threads).items():
            kept = {
                "images": entry["images"],
                "noisy": entry["noisy"],
                title: entry[title_of(name)],
            }
            by_title.setdefault(collection, {}).update(kept)
    print(change_table(by_title, *titles))
    if options.sheet:
        rows = []
        for collection in SHOWN:
            chosen = [case for case in cases if case.collection == collection]
            if chosen:
                results = {
                    title: [denoised(name, case) for case in chosen]
                    for title, name in zip(titles, models, strict=True)
                }
                rows += rows_of(chosen, results, titles[1], titles[0])
        write_sheet(options.sheet, rows)
        say(f"wrote {options.sheet}")
    return 0


def rows_of(
    cases: list[Case], results: dict[str, list[np.ndarray]], own: str, other: str
) -> list[tuple[str, Crop, dict[str, np.ndarray]]]:
    """Two rows of a sheet: where `own` is most ahead of `other`, and most behind."""
    rows = []
    for crop in extremes(cases, results[own], results[other]):
        place = cases.index(crop.case)
        images = {
            "noisy": crop.case.noisy,
            **{name: found[place] for name, found in results.items()},
        }
        text = (
            f"{crop.case.collection}, {crop.case.name}, row {crop.top}, column {crop.left}: "
            f"{own} {crop.difference:+.1f} dB against {other}"
        )
        rows.append((text, crop, images))
    return rows


def draw_page(options: argparse.Namespace, cases: list[Case], store: Store) -> None:
    """The page's picture: noisy, best Gaussian, BM3D, the default model, the shown one, truth."""
    shown = options.show or next(
        (name for name in options.models if title_of(name).startswith("dn-microscopy")),
        options.models[0],
    )
    models = list(dict.fromkeys([options.models[0], shown]))
    filters = [filter_named(name) for name in ("gaussian", "bm3d") if filter_named(name).installed]
    rows = []
    for collection in SHOWN:
        chosen = [case for case in cases if case.collection == collection]
        if chosen:
            say(f"pictures: {collection}")
            results = {
                method.title: [store.best(method, case)[0] for case in chosen] for method in filters
            }
            for name in models:
                results[title_of(name)] = [denoised(name, case) for case in chosen]
            rows += rows_of(chosen, results, title_of(shown), filter_named("gaussian").title)
    write_sheet(options.picture, rows)


def command_of(options: argparse.Namespace) -> str:
    """The command that repeats this run."""
    command = "python benchmarks/microscopy.py"
    if options.models != sensor_models():
        command += f" --models {' '.join(Path(name).name for name in options.models)}"
    command += f" --parts {','.join(options.parts)}" if options.parts != list(PARTS) else ""
    command += f' --collections "{",".join(options.collections)}"' if options.collections else ""
    return command + (f" --limit {options.limit}" if options.limit else "")


def last_record(options: argparse.Namespace) -> dict[str, Any]:
    """The record of the last run, of which other parts stay; of the same models only."""
    if set(options.parts) >= {"quality", "speed", "noise2void"} or not options.json.exists():
        return {}
    last: dict[str, Any] = json.loads(options.json.read_text("utf-8"))
    models = facts_of_models(options.models)
    if "quality" not in options.parts and last["models"] != models:
        raise ValueError(
            f"{options.json} must be of the same models to add parts to it, got "
            f"{', '.join(last['models'])} and now {', '.join(models)}, or another version of one. "
            "Measure the part quality as well."
        )
    if "quality" in options.parts and any(
        last["models"].get(name) not in (None, facts) for name, facts in models.items()
    ):
        last = {**last, "speed": None}  # times of a model that is another now
    return last


def measure_all(options: argparse.Namespace, store: Store) -> dict[str, Any]:
    """The record of a run; parts that are not measured now come from the last one."""
    last = last_record(options)
    missing = [method.name for method in BASELINES if not method.installed]
    if missing:
        say(f"left out, as their packages are not installed: {', '.join(missing)}")
    filters = installed_baselines()
    cases = read_cases(options.data, options.collections, options.limit)
    record: dict[str, Any] = {
        "command": command_of(options),
        "date": datetime.date.today().isoformat(),
        "machine": {**describe_machine(), "load_before": load_average()},
        "packages": dict(method.installed.split() for method in filters),
        "baselines": [method.name for method in filters],
        "models": facts_of_models(options.models),
        "scores": last.get("scores", {}),
        **{part: last.get(part) for part in ("speed", "noise2void")},
    }
    if version := installed():
        record["packages"]["careamics"] = version
    if "speed" in options.parts:
        record["speed"] = measure_speed(options.models, filters, min(5, options.limit or 5))
    if "quality" in options.parts:
        record["scores"] = score(cases, options.models, filters, store, options.threads)
        for sentence in misread(options.data, record["scores"]):
            say(f"NOT the listed image: {sentence}")
    if "noise2void" in options.parts:
        record["noise2void"] = measure_noise2void(cases) or record["noise2void"]
    if "pictures" in options.parts:
        draw_page(options, cases, store)
    record["machine"]["load_after"] = load_average()
    now = {
        "date": record["date"],
        **{f"load_{when}": record["machine"][f"load_{when}"] for when in ("before", "after")},
    }
    record["measured"] = {**last.get("measured", {}), **dict.fromkeys(options.parts, now)}
    return record


def misread(data: Path, scores: dict[str, Any]) -> list[str]:
    """See `check_real_images`."""
    noisy = {
        collection: dict(zip(entry["images"], entry["noisy"]["psnr"], strict=True))
        for collection, entry in scores.items()
        if collection.startswith(("W2S", "FMD"))
    }
    return check_real_images(data, noisy)


def print_check(record: dict[str, Any]) -> int:
    """Print the table of what must be reached; 1 where something is not."""
    text, missed = check(record)
    print(text)
    print("\n".join(["", *(f"Not reached: {sentence}" for sentence in missed)]))
    print(f"{len(missed)} not reached." if missed else "All is reached.")
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then fill the page; or one of the short ways."""
    options = read_options(arguments)
    if options.quick:
        return quick(options)
    if options.before:
        return compare_two(options)
    if options.check:
        if not options.json.exists():
            print(f"There is no record {options.json}. Run this without --check first.")
            return 1
        return print_check(json.loads(options.json.read_text("utf-8")))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = measure_all(options, Store(options.cache or Path(folder)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.json) as temporary:
        temporary.write_text(written(record), encoding="utf-8")
    for name, text in blocks(record).items():
        put_into(options.page, name, text)
    print_check(record)
    say(f"filled {options.page} in {time.perf_counter() - began:.0f} s")
    return 0


def written(record: dict[str, Any]) -> str:
    """JSON with a line for each list of figures, so that changes can be read."""
    text = json.dumps(record, indent=1)
    return (
        re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
