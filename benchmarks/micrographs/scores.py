"""Every method on every image: PSNR, SSIM, coherence beyond the truth's; and the time it takes."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from comparison.methods import SPEED_SIDE, camera, ours
from comparison.processes import in_fresh_process, say

import dn_core
from micrographs.cases import Case, Image
from micrographs.filters import Filter, filter_named
from micrographs.measures import measure
from micrographs.stabilise import estimate_noise
from micrographs.store import Store

__all__ = [
    "Scores",
    "denoised",
    "facts_of_models",
    "mean",
    "measure_speed",
    "score",
    "title_of",
]

Scores = dict[str, dict[str, Any]]
"""By collection: names of ``"images"`` and, for each method, a list of each measure."""
MEASURES = {"psnr": 3, "ssim": 4, "excess": 4}
"""Each with the digits that are kept."""
SLOW = {"bm3d": 3}
"""Methods that are timed fewer times than the others."""


def title_of(model: str) -> str:
    """A model's name, or its file's."""
    return Path(model).stem if model.endswith(".safetensors") else model


def facts_of_models(models: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the record says of each model: hash, weights, multiplications per pixel."""
    found = {}
    for name in models:
        model = dn_core.load_model(name)
        found[title_of(name)] = {
            "sha256": model.checkpoint.sha256,
            "weights": sum(int(value.size) for value in model.checkpoint.weights.values()),
            "macs_per_pixel": round(model.config.macs_per_pixel),
        }
    return found


def denoised(model: str, case: Case) -> Image:
    """A case denoised by one of our models, in float32 as the protocols ask for."""
    return denoiser(model)(case.noisy, deviation(case))


@functools.cache
def denoiser(model: str) -> Callable[[Image, float], Image]:
    """A model that is loaded once."""
    return ours(model)


def deviation(case: Case) -> float:
    """Standard deviation of the noise, for models that must be told."""
    slope, offset = case.noise or estimate_noise(case.noisy)
    return float(np.sqrt(max(slope * float(case.noisy.mean()) + offset, 0.0)))


def score(
    cases: list[Case], models: list[str], baselines: list[Filter], store: Store, threads: int = 1
) -> Scores:
    """Score the noisy images, the baselines and our models.

    Parameters
    ----------
    cases : list of Case
        The images.
    models : list of str
        Names or files of ours.
    baselines : list of Filter
        What they are compared with.
    store : Store
        Where results of baselines are kept.
    threads : int, default 1
        Baselines at a time; most use one core each.

    Returns
    -------
    Scores
        Of all of them.
    """
    found: Scores = {}
    for collection in dict.fromkeys(case.collection for case in cases):
        chosen = [case for case in cases if case.collection == collection]
        entry: dict[str, Any] = {"images": [case.name for case in chosen]}
        entry["noisy"] = listed([measure(case, case.noisy) for case in chosen])
        for model in models:
            say(f"{collection}: {title_of(model)}")
            results = [denoised(model, case) for case in chosen]
            entry[title_of(model)] = listed(in_pool(measure, chosen, results, threads=threads))
        for method in baselines:
            say(f"{collection}: {method.title}")
            kept = in_pool(functools.partial(store.best, method), chosen, threads=threads)
            images = [image for image, _ in kept]
            entry[method.name] = listed(in_pool(measure, chosen, images, threads=threads))
            if method.strengths:
                entry[method.name]["strength"] = [round(strength, 3) for _, strength in kept]
        found[collection] = entry
    return found


def in_pool(function: Callable[..., Any], *columns: Any, threads: int) -> list[Any]:
    """Map in threads: compiled filters let others go on."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, *columns))


def listed(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """A list for each measure, rounded."""
    return {name: [round(row[name], digits) for row in rows] for name, digits in MEASURES.items()}


def mean(scores: Scores, collection: str, method: str, measure: str = "psnr") -> float | None:
    """A method's mean over a collection; None where it was not measured."""
    values = scores.get(collection, {}).get(method, {}).get(measure)
    return statistics.fmean(values) if values else None


def measure_speed(models: list[str], baselines: list[Filter], rounds: int) -> list[dict[str, Any]]:
    """Seconds a megapixel, medians, all interleaved in one fresh process."""
    names = [method.name for method in baselines]
    found: list[dict[str, Any]] = in_fresh_process(time_methods, models, names, rounds)
    return found


def time_methods(models: list[str], baselines: list[str], rounds: int) -> list[dict[str, Any]]:
    """Two rounds to warm up (one for slow methods), then A B C, A B C."""
    image = camera(SPEED_SIDE)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name in models:
        method = ours(name)
        for bits, pixels, sigma in ((8, image, 25.0), (16, image.astype(np.uint16) * 257, 6425.0)):
            runs[title_of(name), f"{bits} bits"] = functools.partial(method, pixels, sigma)
    for name in baselines:
        runs[name, "any"] = functools.partial(filtered_8_bit, filter_named(name), image)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(2 + rounds):
        say(f"speed: round {number + 1} of {2 + rounds}")
        for key, run in runs.items():
            limit = SLOW.get(key[0], rounds)
            if len(seconds[key]) < 2 + limit:
                began = time.perf_counter()
                run()
                seconds[key].append(time.perf_counter() - began)
    megapixels = SPEED_SIDE**2 / 1e6
    return [
        {
            "method": name,
            "bits": bits,
            "seconds_a_megapixel": statistics.median(times[2:] or times) / megapixels,
        }
        for (name, bits), times in seconds.items()
    ]


def filtered_8_bit(method: Filter, image: Any) -> Any:
    """From 8 bits to 8 bits, the noise estimated; a strength that suits the picture."""
    noisy = image.astype(np.float32) / np.float32(255)
    strength = {"gaussian": 1.2, "nlm": 0.8, "tv": 0.8}.get(method.name, 1.0)
    result = method.apply(noisy, estimate_noise(noisy), strength)
    return np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8)
