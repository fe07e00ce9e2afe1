"""Our models beside published networks and classical filters: quality, speed, cold start and memory, in one run on a CPU.

``python benchmarks/compare.py --data DIR`` measures everything and writes ``docs/benchmarks.md``; see ``benchmarks/README.md``. It
reads top to bottom: the peers, the methods, the four parts, the page.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dn_core
from dn_core.evaluation.measure import in_threads, psnr, ssim
from dn_core.evaluation.peers import Peer, PeerMethod, load_peer

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("quality", "speed", "cold", "memory")

SIGMAS = (15, 25, 50)
PEAKS = (1, 2, 4, 8)
MIXED = ((0.1, 1), (0.2, 2), (0.5, 5), (1, 10), (2, 20), (3, 30), (6, 60), (12, 120))
PUBLISHED_BM3D = (32.37, 29.97, 26.72)
TOLERANCE = 0.03
"""dB by which a peer may miss its published figure."""

NLM = {"patch_size": 7, "patch_distance": 11, "fast_mode": True}
NLM_STRENGTH = 0.8
TV = {"eps": 1e-5, "max_num_iter": 200}
TV_STRENGTH = 0.8
"""TV's weight over the noise's standard deviation; between the optima (0.7, 0.9) on training photographs at sigma 15 and 50."""

SPEED_SIDE = 512
Image = NDArray[Any]
Method = Callable[[Image, float], Image]
"""A noisy image and the standard deviation of its noise, to a clean image."""


# The peers: published networks, from their weights


def load_peers(folder: Path) -> dict[str, Peer]:
    """The peers of a folder with peers.json, by name."""
    return {name: load_peer(folder / facts["file"]) for name, facts in peer_facts(folder).items()}


def peer_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What peers.json says of each peer: its file, and its scores on Set12."""
    return {facts["name"]: facts for facts in json.loads((folder / "peers.json").read_text("utf-8"))["peers"]}


def peer_in_openvino(peer: Peer, shape: tuple[int, int], precision: str) -> Method:
    """A peer in the engine of `dn_core`, compiled for one (even) shape, with `precision` ``"f32"`` or ``"bf16"``."""
    import openvino
    from openvino import opset13 as ops

    source = ops.parameter([1, 1, *shape], np.float32)
    level = ops.parameter([1, 1, 1, 1], np.float32)
    x = source
    if peer.takes_sigma:
        noise_map = ops.broadcast(level, ops.constant([1, 1, shape[0] // 2, shape[1] // 2]))
        x = ops.concat([ops.space_to_depth(source, "depth_first", 2), noise_map], 1)
    for index, (weight, bias) in enumerate(peer.convolutions):
        x = ops.convolution(x, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1])
        x = ops.add(x, ops.constant(bias.reshape(1, -1, 1, 1)))
        x = ops.relu(x) if index < len(peer.convolutions) - 1 else x
    x = ops.depth_to_space(x, "depth_first", 2) if peer.takes_sigma else x
    graph = openvino.Model([x], [source, level] if peer.takes_sigma else [source], peer.name)
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def compute(image: Image, sigma: float) -> Image:
        inputs = {0: np.asarray(image, np.float32)[None, None]}
        if peer.takes_sigma:
            return request.infer({**inputs, 1: np.full((1, 1, 1, 1), sigma, np.float32)})[0][0, 0].copy()
        return np.asarray(image, np.float32) - request.infer(inputs)[0][0, 0]

    return compute


# The other methods


def ours(name: str, **options: Any) -> Method:
    """One of our models; those with a noise map are told the standard deviation."""
    model = dn_core.load_model(name)

    def compute(image: Image, sigma: float) -> Image:
        return dn_core.denoise(image, model, device="cpu", noise=sigma if model.config.noise_map else None, **options)

    return compute


def non_local_means(image: Image, sigma: float) -> Image:
    """scikit-image's non-local means."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(image, h=NLM_STRENGTH * sigma, sigma=sigma, preserve_range=True, **NLM)


def total_variation(image: Image, sigma: float) -> Image:
    """scikit-image's total variation (Chambolle)."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(image, weight=TV_STRENGTH * sigma, **TV)


def anscombe(counts: Image, read_noise: float) -> Image:
    """Generalised Anscombe transform of photon counts with Gaussian `read_noise`, after which the noise has a variance near 1."""
    return 2 * np.sqrt(np.maximum(counts + 3 / 8 + read_noise**2, 0))


def inverse_anscombe(values: Image, read_noise: float) -> Image:
    """Closed-form approximation of the exact unbiased inverse (Mäkitalo and Foi, IEEE TIP 2011 and 2013)."""
    d = np.maximum(values, 2 * math.sqrt(3 / 8))
    root = math.sqrt(3 / 2)
    counts = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8 - read_noise**2
    return np.maximum(counts, 0)


def behind_anscombe(method: Method, image: Image, peak: float, read_noise: float) -> Image:
    """A method for white noise, used on Poisson or Poisson-Gaussian noise of known parameters."""
    stable = anscombe(image.astype(np.float64) * peak, read_noise)
    return inverse_anscombe(method(stable.astype(np.float32), 1.0), read_noise) / peak


# Quality


@dataclass(frozen=True)
class Level:
    """Poisson noise of a peak, with Gaussian read noise where `read_noise` (in photons) is not 0."""

    peak: float
    read_noise: float = 0.0

    @property
    def name(self) -> str:
        """As the tables have it."""
        return f"{self.read_noise:g}/{self.peak:g}" if self.read_noise else f"{self.peak:g}"

    def noisy(self, images: list[Image]) -> list[tuple[Image, float]]:
        """Noisy images, one generator for all, each with its root mean square noise."""
        import torch

        from dn_core.noise import Poisson, PoissonGaussian

        noise = PoissonGaussian(self.read_noise, self.peak) if self.read_noise else Poisson(self.peak)
        generator = torch.Generator().manual_seed(0)
        spoiled = [noise(torch.from_numpy(image)[None, None], generator) for image in images]
        return [(image[0, 0].numpy(), float(std.square().mean().sqrt())) for image, std in spoiled]


def read_images(folder: Path, limit: int | None, side: int | None = None) -> list[Image]:
    """Grey images in 0..1 (float32); colours become grey by MATLAB's rule; with `side` only the middle square."""
    from dn_core.files import read_image

    images = []
    for path in sorted(folder.glob("*.png"))[:limit]:
        pixels = read_image(path).pixels
        if pixels.ndim == 3:
            pixels = np.floor(pixels[..., :3] @ np.array([0.298936, 0.587043, 0.114021]) + 0.5)
        top, left = (max(0, extent - (side or extent)) // 2 for extent in pixels.shape)
        images.append((pixels[top : top + side, left : left + side] if side else pixels).astype(np.float32) / 255)
    if not images:
        raise FileNotFoundError(f"there are no PNG images in {folder}; give --data the folder that has test/set12 and test/set14")
    return images


def gaussian_noise(images: list[Image], sigma: float) -> list[Image]:
    """One generator for the whole set; neither clipped nor rounded."""
    generator = np.random.default_rng(0)
    return [(image + sigma / 255 * generator.standard_normal(image.shape)).astype(np.float32) for image in images]


def measure_quality(options: argparse.Namespace) -> dict[str, Any]:
    """Set12 with Gaussian noise, the loss of bfloat16 there, Set14 with Poisson and Poisson-Gaussian noise."""
    from dn_core.memory import keep_freed_memory

    keep_freed_memory()
    set12 = read_images(options.data / "test" / "set12", options.limit)
    set14 = read_images(options.data / "test" / "set14", options.limit, 256 if options.quick else None)
    peers = load_peers(options.peers)
    found = {"images": [len(set12), len(set14)], "set12": measure_set12(set12, options.models, peers)}
    found["peers"] = check_peers(found["set12"], peer_facts(options.peers), len(set12))
    found["bfloat16"] = {name: measure_bfloat16(set12, name) for name in options.models}
    found["told"] = [name for name in options.models if dn_core.load_model(name).config.noise_map]
    found["engine"] = dn_core.engine_name(options.models[0], "cpu", np.uint8)
    found["set14"] = measure_set14(set14, options.models, options.quick)
    return found


def measure_set12(images: list[Image], models: list[str], peers: dict[str, Peer]) -> dict[str, Any]:
    """Mean PSNR and SSIM of each method, by sigma."""
    networks = {name: PeerMethod(peer) for name, peer in peers.items()}
    methods: dict[str, Method] = {name: ours(name) for name in models}
    methods["DnCNN-S"] = lambda image, sigma: networks[f"dncnn_s{round(sigma * 255)}"](image, sigma)
    methods |= {"DnCNN-B": networks["dncnn_b"], "FFDNet": networks["ffdnet_gray"], "DnCNN-3": networks["dncnn3"]}
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
            scores = {"psnr": in_threads(psnr, images, clean), "ssim": in_threads(ssim, images, clean)}
            found.setdefault(name, {})[str(sigma)] = {metric: statistics.fmean(values) for metric, values in scores.items()}
    # Without clipping, as papers give it.
    for sigma in SIGMAS:
        found["noisy"][str(sigma)]["psnr"] = statistics.fmean(map(plain_psnr, images, gaussian_noise(images, sigma)))
    return found


def plain_psnr(truth: Image, image: Image) -> float:
    """Peak signal-to-noise ratio without clipping: of noisy images."""
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(truth, image, data_range=1))


def check_peers(set12: dict[str, Any], peers: dict[str, dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Each peer's PSNR beside its published figure (all of Set12), or beside the images' own figures in peers.json (a part of it)."""
    columns = {"dncnn_b": "DnCNN-B", "ffdnet_gray": "FFDNet", "dncnn3": "DnCNN-3"}
    rows = []
    for name, listed in peers.items():
        for sigma, facts in listed["set12"].items():
            whole = count == len(facts["per_image"])
            expected = (facts["published"] if whole else None) or statistics.fmean(facts["per_image"][:count])
            source = "published" if whole and facts["published"] else "peers.json"
            measured = set12[columns.get(name, "DnCNN-S")][sigma]["psnr"]
            rows.append({"peer": name, "sigma": int(sigma), "measured": measured, "expected": expected, "source": source})
    return rows


def measure_bfloat16(images: list[Image], name: str) -> dict[str, float]:
    """PSNR at sigma 25 of 8-bit images in the engine's default precision and in float32."""
    say(f"Set12, sigma 25, 8 bit: {name}")
    noisy = [np.clip(np.rint(image * 255), 0, 255).astype(np.uint8) for image in gaussian_noise(images, 25)]
    model = dn_core.load_model(name)
    level = 25.0 if model.config.noise_map else None
    found = {}
    for label, precision in (("default", None), ("float32", "float32")):
        clean = [dn_core.denoise(image, model, device="cpu", noise=level, precision=precision) for image in noisy]
        found[label] = statistics.fmean(psnr(truth, image / np.float32(255)) for truth, image in zip(images, clean, strict=True))
    return found


def measure_set14(images: list[Image], models: list[str], quick: bool) -> dict[str, Any]:
    """Mean PSNR of each method, by level."""
    poisson, mixed = [Level(peak) for peak in PEAKS], [Level(peak, sigma) for sigma, peak in MIXED]
    levels = [*poisson[::3], *mixed[::7]] if quick else [*poisson, *mixed]
    # Whole images: the same result as in tiles, and less to compute where the last tiles would overlap much.
    methods = {name: ours(name, tile=1024) for name in models}
    found: dict[str, Any] = {}
    for level in levels:
        say(f"Set14, {'Poisson-Gaussian sigma/peak' if level.read_noise else 'Poisson peak'} {level.name}")
        noisy = level.noisy(images)
        results = {name: [method(image, std) for image, std in noisy] for name, method in methods.items()}
        for name, method in (("NLM + Anscombe", non_local_means), ("TV + Anscombe", total_variation)):
            inner = functools.partial(behind_anscombe, method, peak=level.peak, read_noise=level.read_noise)
            results[name] = in_threads(inner, [image for image, _ in noisy])
        found.setdefault("noisy", {})[level.name] = statistics.fmean(
            plain_psnr(truth, image) for truth, (image, _) in zip(images, noisy, strict=True)
        )
        for name, clean in results.items():
            found.setdefault(name, {})[level.name] = statistics.fmean(map(psnr, images, clean))
    return found


# Speed: everything from an 8-bit image to an 8-bit image


@dataclass(frozen=True)
class Variant:
    """A network or filter with who computes it: ``"dn_core"``, ``"torch"``, ``"OpenVINO"`` or ``"scikit-image"``."""

    name: str
    computed_by: str
    precision: str = "float32"

    @property
    def key(self) -> str:
        """Its name in results."""
        return f"{self.name} | {self.computed_by} | {self.precision}"


def variants(models: list[str]) -> list[Variant]:
    """What is timed."""
    reduced = dn_core.engine_name(models[0], "cpu", np.uint8).endswith("bfloat16")
    found = [Variant(name, "dn_core", "default") for name in models]
    if reduced:
        found += [Variant(name, "dn_core") for name in models]
    found += [Variant("dncnn_s25", "torch"), Variant("dncnn_s25", "OpenVINO")]
    found += [Variant("dncnn_s25", "OpenVINO", "bfloat16")] if reduced else []
    found += [Variant("dn-resnet-13", "torch")] if "dn-resnet-13" in dn_core.model_names() else []
    found += [Variant("ffdnet_gray", "OpenVINO")]
    found += [Variant("ffdnet_gray", "OpenVINO", "bfloat16")] if reduced else []
    return [*found, Variant("NLM", "scikit-image"), Variant("TV", "scikit-image")]


def prepare(variant: Variant, peers: dict[str, Peer], shape: tuple[int, int]) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """The variant ready to run on 8-bit images with Gaussian noise of sigma 25."""
    if variant.computed_by == "dn_core":
        own = ours(variant.name, precision=None if variant.precision == "default" else variant.precision)
        return lambda image: own(image, 25.0)
    if variant.computed_by == "scikit-image":
        method = {"NLM": non_local_means, "TV": total_variation}[variant.name]
    elif variant.computed_by == "OpenVINO":
        method = peer_in_openvino(peers[variant.name], shape, {"float32": "f32", "bfloat16": "bf16"}[variant.precision])
    else:
        method = PeerMethod(peers[variant.name], channels_last=False) if variant.name in peers else own_in_torch(variant.name)

    def run(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        clean = method(image.astype(np.float32) / np.float32(255), 25 / 255)
        return np.rint(np.clip(clean, 0, 1) * 255).astype(np.uint8)

    return run


def own_in_torch(name: str) -> Method:
    """One of our networks in plain torch: float32, channels first."""
    import torch

    network = dn_core.load_model(name).checkpoint.network()

    def compute(image: Image, sigma: float) -> Image:
        planes = [image, np.full_like(image, sigma)] if network.config.noise_map else [image]
        with torch.inference_mode():
            return network(torch.from_numpy(np.stack(planes))[None])[0, 0].numpy()

    return compute


def camera(side: int) -> NDArray[np.uint8]:
    """scikit-image's camera, repeated to a square of `side`, with Gaussian noise of sigma 25."""
    from skimage import data

    truth = np.pad(data.camera(), (0, max(0, side - 512)), mode="symmetric")[:side, :side]
    noise = np.random.default_rng(0).normal(0, 25, truth.shape)
    return np.clip(np.rint(truth + noise), 0, 255).astype(np.uint8)


def measure_speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of each variant, interleaved, in a process of its own so that torch has its usual allocator."""
    return in_fresh_process(time_variants, options.models, options.peers, 3 if options.quick else 5)


def time_variants(models: list[str], peers_folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Two rounds to warm up, then `rounds` of A B C, A B C."""
    peers, image = load_peers(peers_folder), camera(SPEED_SIDE)
    listed = variants(models)
    runs = [prepare(variant, peers, image.shape) for variant in listed]
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(2 + rounds):
        say(f"speed: round {number + 1} of {2 + rounds}")
        for run, times in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run(image)
            times.append(time.perf_counter() - began)
    return [
        {
            "key": variant.key,
            "name": variant.name,
            "engine": engine_of(variant),
            "median_ms": 1000 * statistics.median(times[2:]),
            "minimum_ms": 1000 * min(times[2:]),
            **cost(variant.name, peers),
        }
        for variant, times in zip(listed, seconds, strict=True)
    ]


def engine_of(variant: Variant) -> str:
    """Who computes, in words."""
    if variant.computed_by == "dn_core":
        dtype = np.uint8 if variant.precision == "default" else np.float32
        return f"dn_core ({dn_core.engine_name(variant.name, 'cpu', dtype)})"
    return variant.computed_by if variant.computed_by == "scikit-image" else f"{variant.computed_by}, {variant.precision}"


def cost(name: str, peers: dict[str, Peer]) -> dict[str, float]:
    """Weights and multiplications per pixel of a network; nothing for a filter."""
    if name in peers:
        return {"weights": peers[name].parameters, "macs_per_pixel": peers[name].macs_per_pixel}
    if name in ("NLM", "TV"):
        return {}
    from dn_core.networks import count_macs, count_parameters

    network = dn_core.load_model(name).checkpoint.network()
    macs = count_macs(network, (SPEED_SIDE, SPEED_SIDE)) / SPEED_SIDE**2
    return {"weights": count_parameters(network), "macs_per_pixel": macs}


# Cold start

COMMAND = """
import sys
from dn_core.cli import main
main()
print("torch" in sys.modules)
"""
COMMAND_IN_PIECES = """
import json, sys, time
began = time.perf_counter()
laps = {}
def lap(name):
    global began
    now = time.perf_counter()
    laps[name], began = now - began, now
import dn_core.cli, dn_core.files.tiff, dn_core.inference.denoise
try:
    import openvino
except ImportError:
    pass
lap("imports")
with dn_core.files.open_image(sys.argv[1]) as image:
    pixels = image.pixels
    lap("reading the file")
    model = dn_core.load_model()
    dn_core.denoise(pixels, model)
    lap("first")
    clean = dn_core.denoise(pixels, model)
    lap("denoising")
    with dn_core.files.create_image(sys.argv[2], image) as target:
        target[...] = clean
    lap("writing the file")
laps["model and engine"] = max(0.0, laps.pop("first") - laps["denoising"])
print(json.dumps(laps))
"""


def measure_cold(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the command in fresh processes, whole and in pieces, and whether torch was imported."""
    import tifffile

    runs = 3 if options.quick else 5
    whole, interpreter, pieces, torch_seen = [], [], [], []
    with temporary_folder() as folder:
        tifffile.imwrite(folder / "small.tif", camera(SPEED_SIDE))
        for number in range(runs):
            say(f"cold start: run {number + 1} of {runs}")
            seconds, output = timed_child(COMMAND, "denoise", "small.tif", "-o", f"whole{number}.tif", folder=folder)
            whole.append(seconds)
            torch_seen.append(output.split()[-1] != "False")
            interpreter.append(timed_child("pass", folder=folder)[0])
            pieces.append(json.loads(timed_child(COMMAND_IN_PIECES, "small.tif", f"pieces{number}.tif", folder=folder)[1]))
    found = {name: statistics.median(piece[name] for piece in pieces) for name in pieces[0]}
    return {
        "runs": runs,
        "whole": statistics.median(whole),
        "pieces": {"interpreter": statistics.median(interpreter), **found},
        "torch_imported": any(torch_seen),
    }


def timed_child(code: str, *arguments: str, folder: Path) -> tuple[float, str]:
    """Seconds and output of a fresh interpreter that runs `code`."""
    sources = os.pathsep.join(str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry)
    environment = {**os.environ, "PYTHONPATH": sources} if sources else dict(os.environ)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"a child process failed with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return seconds, done.stdout


# Memory: each figure in a process of its own


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory; Linux only."""
    if not Path("/proc/self/status").exists():
        say("memory: measured on Linux only")
        return {}
    default = options.models[0]
    listed = [Variant(default, "dn_core", "default"), Variant(default, "dn_core"), Variant(default, "torch")]
    found: dict[str, Any] = {"model": default, "start": in_fresh_process(start_memory), "images": []}
    for variant in listed:
        say(f"memory: {variant.key}")
        peaks = {str(side): in_fresh_process(image_memory, variant, options.peers, side) for side in (512, 2048)}
        found["images"].append({"name": variant.name, "engine": engine_of(variant), "peaks": peaks})
    with temporary_folder() as folder:
        found["memmap"] = measure_memmap(folder, default, (4000, 2000) if options.quick else (20_000, 2000))
        found["zarr"] = [measure_zarr(folder, default, planes, 60 if options.quick else 200) for planes in (120, 1280)]
    return found


def megabytes(field: str) -> float:
    """A line of /proc/self/status. getrusage would count what the parent process had when it started this one."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no line {field}; a Linux kernel that writes it is expected")


def start_memory() -> dict[str, float]:
    """Resident memory of the interpreter with numpy, and with torch too."""
    numpy_only = megabytes("VmRSS")
    import torch  # noqa: F401

    return {"numpy": numpy_only, "torch": megabytes("VmRSS")}


def image_memory(variant: Variant, peers_folder: Path, side: int) -> float:
    """Peak while one square 8-bit image is denoised."""
    image = camera(side)
    prepare(variant, load_peers(peers_folder), image.shape)(image)
    return megabytes("VmHWM")


def measure_memmap(folder: Path, model: str, shape: tuple[int, int]) -> dict[str, Any]:
    """A memory map denoised into another."""
    say(f"memory: {shape[0]} x {shape[1]} memory map")
    source = np.memmap(folder / "in.raw", np.uint16, "w+", shape=shape)
    generator = np.random.default_rng(0)
    for top in range(0, shape[0], 1000):
        source[top : top + 1000] = generator.poisson(1000, (min(1000, shape[0] - top), shape[1]))
    source.flush()
    del source
    return {"shape": shape, **in_fresh_process(memmap_memory, folder, model, shape)}


def memmap_memory(folder: Path, model: str, shape: tuple[int, int]) -> dict[str, float]:
    """Peak above the interpreter with torch and the library loaded: all of it, and without the pages of the two maps."""
    import torch  # noqa: F401

    from dn_core.inference import denoise  # noqa: F401

    before, before_own = megabytes("VmRSS"), megabytes("RssAnon")
    source = np.memmap(folder / "in.raw", np.uint16, "r", shape=shape)
    target = np.memmap(folder / "out.raw", np.uint16, "w+", shape=shape)
    own, tiles, began = 0.0, 0, time.perf_counter()
    for step in dn_core.denoise_steps(source, model, device="cpu", out=target):
        own, tiles = max(own, megabytes("RssAnon")), step.total
    seconds = time.perf_counter() - began
    return {"before": before, "peak": megabytes("VmHWM") - before, "own": own - before_own, "tiles": tiles, "seconds": seconds}


def measure_zarr(folder: Path, model: str, planes: int, tiles: int) -> dict[str, Any]:
    """The first tiles of an OME-Zarr image that is sparse on disk."""
    import zarr

    shape = (planes, 2048, 2048)
    say(f"memory: OME-Zarr of {shape}")
    group = zarr.create_group(folder / f"in{planes}.zarr")
    group.create_array("0", shape=shape, chunks=(1, 512, 512), dtype=np.uint16, fill_value=100)
    axes = [{"name": "t", "type": "time"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    found = in_fresh_process(zarr_memory, folder, model, planes, tiles)
    return {"shape": shape, "gigabytes": math.prod(shape) * 2 / 1e9, "tiles": tiles, **found}


ZARR_TILE = 216
"""Smaller than usual, so that some hundred tiles of several planes take seconds."""


def zarr_memory(folder: Path, model: str, planes: int, tiles: int) -> dict[str, float]:
    """Resident memory a quarter of the way and at the end, and the peak."""
    import zarr

    from dn_core.files import open_image

    with open_image(folder / f"in{planes}.zarr", missing="fill") as image:
        shape = image.shape
        target = zarr.create_array(folder / f"out{planes}.zarr", shape=shape, chunks=(1, 512, 512), dtype=image.dtype)
        found = {"start": megabytes("VmRSS")}
        steps = dn_core.denoise_steps(image.source, model, device="cpu", out=target, tile=ZARR_TILE)
        with contextlib.closing(steps):
            for step in steps:
                if step.done == tiles // 4:
                    found["quarter"] = megabytes("VmRSS")
                if step.done == tiles:
                    found["end"] = megabytes("VmRSS")
                    break
    return {**found, "peak": megabytes("VmHWM")}


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed by an interpreter that has loaded nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes away, as a Path."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# The page

TRAINING = """\
## Optimizers

Measured once, by hand, while the recipes were made; the command above does not repeat it. Muon against AdamW in equal time: 150 s of one
core each (about 52 megapixels), half-resolution network with 64 channels and 4 blocks, Gaussian noise of sigma 0 to 70, validation on 16
held-out training photographs.

| optimizer, learning rate | PSNR at sigma 15 | 25 | 50 |
| --- | --- | --- | --- |
| AdamW 1e-3 | 31.34 | 29.17 | 26.29 |
| AdamW 2e-3 | 31.15 | 29.02 | 26.16 |
| Muon 1e-3 | 31.85 | 29.63 | 26.73 |
| Muon 3e-3 | 31.61 | 29.40 | 26.49 |
| Muon 2e-3 for the inner convolutions, AdamW 1e-3 for the first and last | **31.89** | **29.66** | **26.79** |

Muon, which makes each weight update nearly orthogonal, gained 0.5 dB over AdamW for the same time."""

GPU = """\
## GPU: not measured

Everything on this page was computed on a CPU."""


def write_page(results: dict[str, Any]) -> str:
    """The whole page."""
    sections = [heading(results)]
    builders = {"quality": quality_page, "speed": speed_page, "cold": cold_page, "memory": memory_page}
    sections += [build(results[part]) for part, build in builders.items() if results.get(part)]
    missing = [part for part in PARTS if not results.get(part)]
    sections += [f"Not part of this run: {', '.join(missing)}."] if missing else []
    return "\n\n".join([*sections, TRAINING, GPU, closing(results)]) + "\n"


def heading(results: dict[str, Any]) -> str:
    """Command, date and machine."""
    machine = results["machine"]
    return f"""\
# Benchmarks

Written by `{results["command"]}` (see `benchmarks/README.md`); not edited by hand.

* date: {results["date"]}, in {results["seconds"] / 60:.1f} minutes
* CPU: {machine["cpu"]}, {machine["cores"]} cores; flags that matter: {" ".join(machine["flags"]) or "none known"}
* load average of the last minute: {machine["load_before"]} before, {machine["load_after"]} after
* {machine["system"]}; {", ".join(f"{name} {version}" for name, version in machine["versions"].items())}

Times depend on the machine and on what else it does: read the ratios.{quick_note(results)}"""


def quick_note(results: dict[str, Any]) -> str:
    """A warning that a short run is one."""
    return " **A short run (`--quick` or `--limit`): fewer images and repeats, figures are rough.**" if results["short"] else ""


def quality_page(found: dict[str, Any]) -> str:
    """Tables of Set12 and Set14."""
    set12, set14 = found["set12"], found["set14"]
    rows = [[label(name), *(f"{s['psnr']:.2f} / {s['ssim']:.4f}" for s in by_sigma.values())] for name, by_sigma in set12.items()]
    rows += [["BM3D (published)", *(f"{value:.2f} / -" for value in PUBLISHED_BM3D)]]
    checks = [
        [row["peer"], str(row["sigma"]), f"{row['measured']:.3f}", f"{row['expected']:.3f} ({row['source']})", f"{difference(row):+.3f}"]
        for row in found["peers"]
    ]
    worst = max(abs(difference(row)) for row in found["peers"])
    verdict = "all are" if worst <= TOLERANCE else "**not all are**"
    losses = [
        f"{name} {scores['float32'] - scores['default']:.3f} dB ({scores['float32']:.2f} to {scores['default']:.2f})"
        for name, scores in found["bfloat16"].items()
    ]
    return f"""\
## Quality

Gaussian noise, Set12 ({found["images"][0]} images): y = x + sigma/255 * N(0, 1) from one `numpy.random.default_rng(0)` per sigma for
the whole set, y neither clipped nor rounded, result clipped to 0..1. PSNR (dB, peak 1) / SSIM (`structural_similarity`, Gaussian window
of sigma 1.5, population covariance), mean over images. Ours in float32.

{table(["method", *(f"sigma {sigma}" for sigma in SIGMAS)], rows)}

DnCNN-B and DnCNN-3 are blind{told(found["told"])}; DnCNN-S is a network for each sigma; FFDNet, NLM and TV are told sigma. NLM:
scikit-image, fast mode, patch 7, distance 11, h = {NLM_STRENGTH} sigma. TV: scikit-image, Chambolle, weight = {TV_STRENGTH} sigma (from
training photographs), eps {TV["eps"]:g}, at most {TV["max_num_iter"]} iterations. The noisy images are not clipped for PSNR.

The peers, rebuilt from their weights, beside their published figures (where there is none, or not all images were used: beside those in
their `peers.json`): {verdict} within {TOLERANCE} dB, the largest difference is {worst:.3f} dB.

{table(["peer", "sigma", "measured", "expected", "difference"], checks)}

Lost by the default precision for 8-bit images ({found["engine"]}) against float32, sigma 25, noisy images and results
rounded to 8 bits: {"; ".join(losses)}.

{set14_page(set14, found["images"][1])}"""


def told(models: list[str]) -> str:
    """Which of our models know the noise, if any."""
    return f", and so are our models but {', '.join(models)}" if models else ", and so are our models"


def set14_page(set14: dict[str, Any], count: int) -> str:
    """Poisson and Poisson-Gaussian noise."""
    text = f"""\
Poisson noise y = P(peak * x) / peak and Poisson-Gaussian noise y = (P(peak * x) + N(0, sigma^2)) / peak, Set14 ({count} images) in
grey, one `torch.Generator` with seed 0 per level: PSNR (dB), result clipped to 0..1, the noisy images not. NLM and TV stand behind the
generalised Anscombe transform with the closed-form approximation of its exact unbiased inverse, and are told peak and sigma. "Gain" is
against NLM."""
    for title, mixed in (("Poisson, peak", False), ("Poisson-Gaussian, sigma/peak", True)):
        levels = [level for level in set14["noisy"] if ("/" in level) == mixed]
        rows = [[name, *(f"{scores[level]:.2f}" for level in levels)] for name, scores in set14.items()]
        rows += [[f"gain of {name}", *(f"{gains[level]:+.2f}" for level in levels)] for name, gains in gains_over_nlm(set14).items()]
        text += f"\n\n{table([title, *levels], rows)}"
    return text


def gains_over_nlm(set14: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Differences of our models to NLM behind the Anscombe transform."""
    reference = set14["NLM + Anscombe"]
    names = [name for name in set14 if name not in ("noisy", "NLM + Anscombe", "TV + Anscombe")]
    return {name: {level: value - reference[level] for level, value in set14[name].items()} for name in names}


def speed_page(rows: list[dict[str, Any]]) -> str:
    """Times of one 512x512 image."""
    fastest = rows[0]["median_ms"]
    lines = [
        [
            label(row["name"]),
            row["engine"],
            f"{row['median_ms']:.1f}",
            f"{row['minimum_ms']:.1f}",
            f"{row['median_ms'] / fastest:.2f}",
            f"{row['macs_per_pixel']:,.0f}" if "macs_per_pixel" in row else "-",
            f"{row['weights']:,}" if "weights" in row else "-",
        ]
        for row in rows
    ]
    header = ["method", "computed by", "median ms", "minimum ms", f"times {rows[0]['name']}", "MAC per pixel", "weights"]
    return f"""\
## Speed

One {SPEED_SIDE} x {SPEED_SIDE} 8-bit image to an 8-bit image, all variants interleaved in one process, two rounds to warm up. torch means
plain torch: channels first, default allocator. OpenVINO means the peer's graph in the engine and with the settings that `dn_core` uses. NLM
and TV use one core.

{table(header, lines)}"""


def cold_page(found: dict[str, Any]) -> str:
    """Seconds of the first command."""
    rows = [[name, f"{1000 * seconds:.0f}"] for name, seconds in found["pieces"].items()]
    rows += [["sum of the pieces", f"{1000 * sum(found['pieces'].values()):.0f}"], ["**the command**", f"**{1000 * found['whole']:.0f}**"]]
    return f"""\
## Cold start

`dn-resnet denoise small.tif -o out.tif`, {SPEED_SIDE} x {SPEED_SIDE}, 8 bit, in a fresh process: median of {found["runs"]} runs, in ms.
The pieces come from a process that does the same step by step. "model and engine" is what the first image takes longer than the second.

{table(["piece", "ms"], rows)}

torch was {"**imported**" if found["torch_imported"] else "not imported"} by the command."""


def memory_page(found: dict[str, Any]) -> str:
    """Peaks in MB."""
    rows = [[label(row["name"]), row["engine"], *(f"{peak:,.0f}" for peak in row["peaks"].values())] for row in found["images"]]
    memmap = found["memmap"]
    lazy = [
        [f"{row['gigabytes']:.1f} GB {tuple(row['shape'])}", *(f"{row[name]:,.0f}" for name in ("start", "quarter", "end", "peak"))]
        for row in found["zarr"]
    ]
    height, width = memmap["shape"]
    start, tiles = found["start"], found["zarr"][0]["tiles"]
    return f"""\
## Memory

Peak resident memory (MB) of a process that denoises one 8-bit image. The interpreter with numpy alone has {start["numpy"]:.0f} MB, with
torch {start["torch"]:.0f} MB. `dn_core` cuts images into tiles; plain torch computes them whole.

{table(["method", "computed by", "512 x 512", "2048 x 2048"], rows)}

A {height:,} x {width:,} uint16 memory map denoised into another by {found["model"]} ({memmap["tiles"]} tiles, {memmap["seconds"]:.0f} s):
peak **{memmap["peak"]:.0f} MB** above the {memmap["before"]:.0f} MB of the interpreter with torch and the library loaded. Up to
{2 * 2 * height * width / 1e6:.0f} MB of that are pages of the two maps, which the system can take back; {memmap["own"]:.0f} MB are the
process's own.

OME-Zarr read lazily, the first {tiles} tiles of {ZARR_TILE} pixels through `denoise_steps` (uint16, chunks of 512 x 512, sparse on disk),
resident MB:

{table(["image", "before", "after a quarter of the tiles", "at the end", "peak"], lazy)}"""


def closing(results: dict[str, Any]) -> str:
    """The lines to quote."""
    lines = []
    if results.get("speed"):
        lines += speed_lines(results["speed"])
    if results.get("quality"):
        lines += quality_lines(results["quality"])
    if results.get("cold"):
        lines.append(f"Cold start to a denoised file: {results['cold']['whole']:.2f} s.")
    return "\n".join(["## In short", "", *(f"* {line}" for line in lines)])


def speed_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Ratios of medians."""
    times = {row["key"]: row["median_ms"] for row in rows}
    default = rows[0]["name"]
    reduced = rows[0]["engine"].endswith("bfloat16)")
    fast = times[f"{default} | dn_core | default"]
    pairs = [
        (f"{default} against DnCNN-S in torch float32", fast, times["dncnn_s25 | torch | float32"]),
        (
            f"{default} against DnCNN-S in the same engine, float32",
            times.get(f"{default} | dn_core | float32", fast),
            times["dncnn_s25 | OpenVINO | float32"],
        ),
    ]
    if reduced:
        pairs.append((f"{default} against DnCNN-S in the same engine, bfloat16", fast, times["dncnn_s25 | OpenVINO | bfloat16"]))
    slow, engine = "dn-resnet-13 | torch | float32", "dn-resnet-13 | dn_core | default"
    if slow in times and engine in times:
        pairs.append(("dn-resnet-13 in our engine against plain torch float32", times[engine], times[slow]))
    return [f"Speed, {what}: **{other / own:.1f} times** as fast ({own:.1f} and {other:.1f} ms)." for what, own, other in pairs]


def quality_lines(found: dict[str, Any]) -> list[str]:
    """Differences to the peers, and the smallest gain over NLM."""
    set12 = found["set12"]
    models = list(found["bfloat16"])
    lines = []
    for name in models:
        parts = []
        for peer in ("DnCNN-S", "DnCNN-B", "FFDNet"):
            gaps = [set12[name][str(sigma)]["psnr"] - set12[peer][str(sigma)]["psnr"] for sigma in SIGMAS]
            parts.append(f"{' / '.join(f'{gap:+.2f}' for gap in gaps)} dB against {peer}")
        lines.append(f"Set12 at sigma {' / '.join(map(str, SIGMAS))}, {name}: {', '.join(parts)}.")
    for name, gains in gains_over_nlm(found["set14"]).items():
        level = min(gains, key=gains.__getitem__)
        kind = "Poisson-Gaussian, sigma/peak" if "/" in level else "Poisson, peak"
        lines.append(f"Set14, {name}: smallest gain over NLM behind the Anscombe transform {gains[level]:+.2f} dB ({kind} {level}).")
    worst = max(abs(difference(row)) for row in found["peers"])
    verdict = "reproduced" if worst <= TOLERANCE else "**not** reproduced"
    return [*lines, f"The peers' figures are {verdict}: largest difference {worst:.3f} dB, {TOLERANCE} dB allowed."]


def difference(row: dict[str, Any]) -> float:
    """Measured less expected."""
    return float(row["measured"] - row["expected"])


def label(name: str) -> str:
    """A method's name as the field writes it."""
    labels = {"noisy": "noisy image", "dncnn_s25": "DnCNN-S", "ffdnet_gray": "FFDNet", "DnCNN-S": "DnCNN-S (one for each sigma)"}
    return labels.get(name, name)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


# The run


def describe_machine() -> dict[str, Any]:
    """CPU, system and versions; nothing that names the computer."""
    cpu, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            cpu = value.strip() if key.strip() == "model name" else cpu
            flags |= set(value.split()) if key.strip() in ("flags", "Features") else set()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16")
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
    """Of the last minute, where the system tells."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("DN_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=data, help="folder with test/set12, test/set14 and peers (default: DN_DATA)")
    parser.add_argument("--peers", type=Path, help="folder with peers.json (default: peers in --data)")
    parser.add_argument("--models", nargs="+", default=dn_core.model_names(), help="our models, the one to compare first")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page")
    parser.add_argument("--json", type=Path, help="also write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer images, levels and repeats: to try the script")
    parser.add_argument("--limit", type=int, help="only the first images of each set")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"--parts has {unknown}; some of {', '.join(PARTS)} are expected")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}; 1 or more is expected")
    options.peers = options.peers or options.data / "peers"
    if options.quick and options.limit is None:
        options.limit = 3
    return options


def command_of(options: argparse.Namespace) -> str:
    """The command that repeats this run, with DIR for folders."""
    command = "python benchmarks/compare.py --data DIR"
    if options.models != dn_core.model_names():
        command += f" --models {' '.join(Path(name).name for name in options.models)}"
    if options.parts != list(PARTS):
        command += f" --parts {','.join(options.parts)}"
    command += " --quick" if options.quick else ""
    return f"{command} --limit {options.limit}" if options.limit else command


def main(arguments: list[str] | None = None) -> int:
    """Measure, then write the page."""
    options = read_options(arguments)
    began = time.perf_counter()
    results: dict[str, Any] = {"command": command_of(options), "date": datetime.date.today().isoformat()}
    results["short"] = options.quick or options.limit is not None
    results["machine"] = {**describe_machine(), "load_before": load_average()}
    measure = {"speed": measure_speed, "cold": measure_cold, "memory": measure_memory, "quality": measure_quality}
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
    print(closing(results))
    say(f"wrote {options.output} in {results['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
