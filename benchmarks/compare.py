"""Our models beside published networks and classical filters, in one run on a CPU.

Quality, speed, cold start, memory and training.

``python benchmarks/compare.py --data DIR`` measures everything and writes ``docs/benchmarks.md``
and ``docs/ladder.png``; see ``benchmarks/README.md``. What is compared and how it is measured lies
in ``comparison/``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison.footprint import measure_memory
from comparison.ladder import draw_ladder
from comparison.processes import say
from comparison.quality import measure_quality
from comparison.report import PARTS, closing, write_page
from comparison.speed import measure_cold, measure_speed
from comparison.training import measure_training

import dn_core

ROOT = Path(__file__).resolve().parent.parent


def describe_machine() -> dict[str, Any]:
    """CPU, system and versions; nothing that names the computer."""
    cpu, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            cpu = value.strip() if key.strip() == "model name" else cpu
            flags |= set(value.split()) if key.strip() in ("flags", "Features") else set()
    wanted = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
        "asimd",
        "bf16",
    )
    packages = ("numpy", "torch", "openvino", "scikit-image")
    versions = {"dn_core": dn_core.__version__, "Python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "flags": [flag for flag in wanted if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def load_average() -> str:
    """The load average of the last minute, where the system has one."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def noise_models() -> list[str]:
    """Our models but those for compression."""
    kinds = {
        name: {noise["kind"] for noise in dn_core.load_model(name).card.recipe["noise"]}
        for name in dn_core.model_names()
    }
    return [name for name in kinds if "gaussian" in kinds[name]]


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("DN_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--data",
        type=Path,
        default=data,
        help="folder with test/set12, test/set14 and peers (default: DN_DATA)",
    )
    parser.add_argument(
        "--baselines", type=Path, help="folder with peers.json (default: peers in --data)"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=noise_models(),
        help="our models, the one to compare first (default: all for noise)",
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page"
    )
    parser.add_argument(
        "--ladder",
        type=Path,
        default=ROOT / "docs" / "ladder.png",
        help="the picture of speed against quality",
    )
    parser.add_argument("--json", type=Path, help="also write the figures as JSON")
    parser.add_argument(
        "--earlier",
        type=Path,
        metavar="JSON",
        help="take other parts from an earlier run's figures, of the same machine",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer images, levels and repeats: to try the script"
    )
    parser.add_argument("--limit", type=int, help="only the first images of each set")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"--parts has {unknown}; some of {', '.join(PARTS)} are expected")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}; 1 or more is expected")
    options.baselines = options.baselines or options.data / "peers"
    if options.quick and options.limit is None:
        options.limit = 3
    return options


def command_of(options: argparse.Namespace) -> str:
    """The command that repeats this run, with DIR for folders."""
    command = "python benchmarks/compare.py --data DIR"
    if options.models != noise_models():
        command += f" --models {' '.join(Path(name).name for name in options.models)}"
    if options.parts != list(PARTS):
        command += f" --parts {','.join(options.parts)}"
    command += " --earlier JSON" if options.earlier else ""
    command += " --quick" if options.quick else ""
    return f"{command} --limit {options.limit}" if options.limit else command


def parts_of(earlier: Path, machine: dict[str, Any], measured: list[str]) -> dict[str, Any]:
    """Results of an earlier run for the parts that are not measured now.

    Only those of the same machine and versions.
    """
    found: dict[str, Any] = json.loads(earlier.read_text(encoding="utf-8"))
    for name in ("cpu", "cores", "system", "versions"):
        if found["machine"][name] != machine[name]:
            raise ValueError(
                f"{earlier} is of {name} {found['machine'][name]}; {machine[name]} is here. "
                "Measure all parts."
            )
    parts = [part for part in PARTS if found.get(part) and part not in measured]
    return {
        **{part: found[part] for part in parts},
        "earlier": {"date": found["date"], "parts": parts},
        "short": found["short"],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, then write the page."""
    options = read_options(arguments)
    began = time.perf_counter()
    results: dict[str, Any] = {
        "command": command_of(options),
        "date": datetime.date.today().isoformat(),
    }
    results["machine"] = {**describe_machine(), "load_before": load_average()}
    results |= (
        parts_of(options.earlier, results["machine"], options.parts) if options.earlier else {}
    )
    results["short"] = results.get("short", False) or options.quick or options.limit is not None
    measure: dict[str, Callable[[argparse.Namespace], Any]] = {
        "speed": measure_speed,
        "cold": measure_cold,
        "memory": measure_memory,
        "training": measure_training,
        "quality": measure_quality,
    }
    for part, function in measure.items():
        if part in options.parts:
            results[part] = function(options)
    results["machine"]["load_after"] = load_average()
    results["seconds"] = time.perf_counter() - began
    page = write_page(results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if results.get("quality") and results.get("speed"):
        draw_ladder(results, options.ladder)
    print(closing(results))
    say(f"wrote {options.output} in {results['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
