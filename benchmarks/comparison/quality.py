"""Quality: Set12 with Gaussian, Set14 with Poisson(-Gaussian) noise; cost of reduced precision."""

from __future__ import annotations

import argparse
import functools
import statistics
from typing import Any

import numpy as np

import dn_core
from comparison.methods import (
    MIXED,
    PEAKS,
    SIGMAS,
    Image,
    Level,
    Method,
    baseline_facts,
    behind_anscombe,
    gaussian_noise,
    load_baselines,
    non_local_means,
    ours,
    read_images,
    total_variation,
)
from comparison.processes import say
from dn_core.paper.baselines import Baseline, BaselineMethod
from dn_core.paper.protocol import in_threads, psnr, ssim

TOLERANCE = 0.03
"""dB by which a baseline may miss its published figure."""


def measure_quality(options: argparse.Namespace) -> dict[str, Any]:
    """Set12 with Gaussian noise, the loss by bfloat16 there, Set14 with the other noise."""
    from dn_core.memory import keep_freed_memory

    keep_freed_memory()
    set12 = read_images(options.data / "test" / "set12", options.limit)
    set14 = read_images(
        options.data / "test" / "set14", options.limit, 256 if options.quick else None
    )
    baselines = load_baselines(options.baselines)
    found = {
        "images": [len(set12), len(set14)],
        "set12": measure_set12(set12, options.models, baselines),
    }
    found["baselines"] = check_baselines(
        found["set12"], baseline_facts(options.baselines), len(set12)
    )
    found["bfloat16"] = {name: measure_bfloat16(set12, name) for name in options.models}
    found["given_sigma"] = [
        name for name in options.models if dn_core.load_model(name).config.noise_map
    ]
    found["engine"] = dn_core.engine_name(options.models[0], device="cpu", dtype=np.uint8)
    found["set14"] = measure_set14(set14, options.models, options.quick)
    return found


def measure_set12(
    images: list[Image], models: list[str], baselines: dict[str, Baseline]
) -> dict[str, Any]:
    """Mean PSNR and SSIM of each method, by sigma."""
    networks = {name: BaselineMethod(baseline) for name, baseline in baselines.items()}
    methods: dict[str, Method] = {name: ours(name) for name in models}
    methods["DnCNN-S"] = lambda image, sigma: networks[f"dncnn_s{round(sigma * 255)}"](image, sigma)
    methods |= {
        "DnCNN-B": networks["dncnn_b"],
        "FFDNet": networks["ffdnet_gray"],
        "DnCNN-3": networks["dncnn3"],
    }
    found: dict[str, Any] = {}
    for sigma in SIGMAS:
        noisy = gaussian_noise(images, sigma)
        results = {"noisy": noisy}
        for name, method in methods.items():
            say(f"Set12, sigma {sigma}: {name}")
            results[name] = [method(image, sigma / 255) for image in noisy]
        say(f"Set12, sigma {sigma}: NLM, TV, metrics")
        results["NLM"] = in_threads(functools.partial(non_local_means, sigma=sigma / 255), noisy)
        results["TV"] = in_threads(functools.partial(total_variation, sigma=sigma / 255), noisy)
        for name, clean in results.items():
            scores = {
                "psnr": in_threads(psnr, images, clean),
                "ssim": in_threads(ssim, images, clean),
            }
            found.setdefault(name, {})[str(sigma)] = {
                metric: statistics.fmean(values) for metric, values in scores.items()
            }
    # Without clipping, as papers give it.
    for sigma in SIGMAS:
        found["noisy"][str(sigma)]["psnr"] = statistics.fmean(
            map(plain_psnr, images, gaussian_noise(images, sigma))
        )
    return found


def plain_psnr(truth: Image, image: Image) -> float:
    """Peak signal-to-noise ratio without clipping: of noisy images."""
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(truth, image, data_range=1))


def check_baselines(
    set12: dict[str, Any], baselines: dict[str, dict[str, Any]], count: int
) -> list[dict[str, Any]]:
    """Each baseline's PSNR beside its published figure (all of Set12).

    Of a part of Set12, beside the images' own figures in peers.json.
    """
    columns = {"dncnn_b": "DnCNN-B", "ffdnet_gray": "FFDNet", "dncnn3": "DnCNN-3"}
    rows = []
    for name, listed in baselines.items():
        for sigma, facts in listed["set12"].items():
            whole = count == len(facts["per_image"])
            expected = (facts["published"] if whole else None) or statistics.fmean(
                facts["per_image"][:count]
            )
            source = "published" if whole and facts["published"] else "peers.json"
            measured = set12[columns.get(name, "DnCNN-S")][sigma]["psnr"]
            rows.append(
                {
                    "baseline": name,
                    "sigma": int(sigma),
                    "measured": measured,
                    "expected": expected,
                    "source": source,
                }
            )
    return rows


def measure_bfloat16(images: list[Image], name: str) -> dict[str, float]:
    """PSNR at sigma 25 of 8-bit images in the engine's default precision and in float32."""
    say(f"Set12, sigma 25, 8 bit: {name}")
    noisy = [
        np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
        for image in gaussian_noise(images, 25)
    ]
    model = dn_core.load_model(name)
    level = 25.0 if model.config.noise_map else None
    found = {}
    for label, precision in (("default", None), ("float32", "float32")):
        clean = [
            dn_core.denoise(image, model, device="cpu", sigma=level, precision=precision)
            for image in noisy
        ]
        found[label] = statistics.fmean(
            psnr(truth, image / np.float32(255)) for truth, image in zip(images, clean, strict=True)
        )
    return found


def measure_set14(images: list[Image], models: list[str], quick: bool) -> dict[str, Any]:
    """Mean PSNR of each method, by level."""
    poisson, mixed = [Level(peak) for peak in PEAKS], [Level(peak, sigma) for sigma, peak in MIXED]
    levels = [*poisson[::3], *mixed[::7]] if quick else [*poisson, *mixed]
    # Whole images: the same result as in tiles, and less to compute where the last tiles would
    # overlap much.
    methods = {name: ours(name, tile_size=1024) for name in models}
    found: dict[str, Any] = {}
    for level in levels:
        say(
            f"Set14, {'Poisson-Gaussian sigma/peak' if level.read_noise else 'Poisson peak'} "
            f"{level.name}"
        )
        noisy = level.noisy(images)
        results = {
            name: [method(image, std) for image, std in noisy] for name, method in methods.items()
        }
        for name, method in (
            ("NLM + Anscombe", non_local_means),
            ("TV + Anscombe", total_variation),
        ):
            inner = functools.partial(
                behind_anscombe, method, peak=level.peak, read_noise=level.read_noise
            )
            results[name] = in_threads(inner, [image for image, _ in noisy])
        found.setdefault("noisy", {})[level.name] = statistics.fmean(
            plain_psnr(truth, image) for truth, (image, _) in zip(images, noisy, strict=True)
        )
        for name, clean in results.items():
            found.setdefault(name, {})[level.name] = statistics.fmean(map(psnr, images, clean))
    return found
