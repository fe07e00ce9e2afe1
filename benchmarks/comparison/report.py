"""The benchmark page: results as Markdown."""

from __future__ import annotations

from typing import Any

from comparison.footprint import ZARR_TILE
from comparison.methods import NLM_STRENGTH, SIGMAS, SPEED_SIDE, TV, TV_STRENGTH
from comparison.quality import TOLERANCE
from comparison.training import BATCH, PATCH

PARTS = ("quality", "speed", "cold", "memory", "training")
PUBLISHED_BM3D = (32.37, 29.97, 26.72)

TRAINING = """\
## Optimizers

Measured once, by hand, while the recipes were made; the command above does not repeat it. Muon
against AdamW in equal time: 150 s of one core each (about 52 megapixels), half-resolution network
with 64 channels and 4 blocks, Gaussian noise of sigma 0 to 70, validation on 16 held-out training
photographs.

| optimizer, learning rate | PSNR at sigma 15 | 25 | 50 |
| --- | --- | --- | --- |
| AdamW 1e-3 | 31.34 | 29.17 | 26.29 |
| AdamW 2e-3 | 31.15 | 29.02 | 26.16 |
| Muon 1e-3 | 31.85 | 29.63 | 26.73 |
| Muon 3e-3 | 31.61 | 29.40 | 26.49 |
| Muon 2e-3 inside, AdamW 1e-3 for the first and last layer | **31.89** | **29.66** | **26.79** |

Muon, which makes each weight update nearly orthogonal, gained 0.5 dB over AdamW for the same
time."""

GPU = """\
## GPU

Everything on this page was computed on a CPU; [GPUs](gpu.md) have a page of their own."""


def write_page(results: dict[str, Any]) -> str:
    """The whole page."""
    sections = [heading(results)]
    builders = {
        "quality": quality_page,
        "speed": speed_page,
        "cold": cold_page,
        "memory": memory_page,
        "training": training_page,
    }
    sections += [build(results[part]) for part, build in builders.items() if results.get(part)]
    missing = [part for part in PARTS if not results.get(part)]
    sections += [f"Not part of this run: {', '.join(missing)}."] if missing else []
    return "\n\n".join([*sections, TRAINING, GPU, closing(results)]) + "\n"


def heading(results: dict[str, Any]) -> str:
    """Command, date and machine."""
    machine = results["machine"]
    flags = " ".join(machine["flags"]) or "none known"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"""\
# Benchmarks

Written by `{results["command"]}` (see `benchmarks/README.md`); not edited by hand.

* date: {results["date"]}, in {results["seconds"] / 60:.1f} minutes
* CPU: {machine["cpu"]}, {machine["cores"]} cores; flags that matter: {flags}
* load average of the last minute: {machine["load_before"]} before, {machine["load_after"]} after
* {machine["system"]}; {versions}{earlier_note(results)}

Times depend on the machine and on what else it does: read the ratios.{quick_note(results)}"""


def earlier_note(results: dict[str, Any]) -> str:
    """Which parts are not of this run."""
    earlier = results.get("earlier")
    return (
        f"\n* from a run before, {earlier['date']}, on the same machine: "
        f"{', '.join(earlier['parts'])}"
        if earlier
        else ""
    )


def quick_note(results: dict[str, Any]) -> str:
    """A warning that a short run is one."""
    return (
        " **A short run (`--quick` or `--limit`): fewer images and repeats, figures are rough.**"
        if results["short"]
        else ""
    )


def quality_page(found: dict[str, Any]) -> str:
    """Tables of Set12 and Set14."""
    set12, set14 = found["set12"], found["set14"]
    rows = [
        [label(name), *(f"{s['psnr']:.2f} / {s['ssim']:.4f}" for s in by_sigma.values())]
        for name, by_sigma in set12.items()
    ]
    rows += [["BM3D (published)", *(f"{value:.2f} / -" for value in PUBLISHED_BM3D)]]
    checks = [
        [
            row["baseline"],
            str(row["sigma"]),
            f"{row['measured']:.3f}",
            f"{row['expected']:.3f} ({row['source']})",
            f"{difference(row):+.3f}",
        ]
        for row in found["baselines"]
    ]
    worst = max(abs(difference(row)) for row in found["baselines"])
    verdict = "all are" if worst <= TOLERANCE else "**not all are**"
    losses = [
        f"{name} {scores['float32'] - scores['default']:.3f} dB ({scores['float32']:.2f} to "
        f"{scores['default']:.2f})"
        for name, scores in found["bfloat16"].items()
    ]
    return f"""\
## Quality

Gaussian noise, Set12 ({found["images"][0]} images): y = x + sigma/255 * N(0, 1) from one
`numpy.random.default_rng(0)` per sigma for the whole set, y neither clipped nor rounded, result
clipped to 0..1. PSNR (dB, peak 1) / SSIM (`structural_similarity`, Gaussian window of sigma 1.5,
population covariance), mean over images. Ours in float32.

{table(["method", *(f"sigma {sigma}" for sigma in SIGMAS)], rows)}

DnCNN-B and DnCNN-3 are blind{given_sigma(found["given_sigma"])}; DnCNN-S is a network for each
sigma; FFDNet, NLM and TV are given sigma. NLM: scikit-image, fast mode, patch 7, distance 11,
h = {NLM_STRENGTH} sigma. TV: scikit-image, Chambolle, weight = {TV_STRENGTH} sigma (from training
photographs), eps {TV["eps"]:g}, at most {TV["max_num_iter"]} iterations. The noisy images are not
clipped for PSNR.

The baselines, rebuilt from their weights, against their published figures (where there is none, or
not all images were used: against those in their `peers.json`): {verdict} within {TOLERANCE} dB, the
largest difference is {worst:.3f} dB.

{table(["baseline", "sigma", "measured", "expected", "difference"], checks)}

Lost by the default precision for 8-bit images ({found["engine"]}) against float32, sigma 25, noisy
images and results rounded to 8 bits: {"; ".join(losses)}.

{set14_page(set14, found["images"][1])}"""


def given_sigma(models: list[str]) -> str:
    """Which of our models are given the noise level, if any."""
    return (
        f", and so are our models except {', '.join(models)}"
        if models
        else ", and so are our models"
    )


def set14_page(set14: dict[str, Any], count: int) -> str:
    """Poisson and Poisson-Gaussian noise."""
    text = f"""\
Poisson noise y = P(peak * x) / peak and Poisson-Gaussian noise y = (P(peak * x) + N(0, sigma^2)) /
peak, Set14 ({count} images) in grey, one `torch.Generator` with seed 0 per level: PSNR (dB), result
clipped to 0..1, the noisy images not. NLM and TV are applied after the generalised Anscombe
transform, with the closed-form approximation of its exact unbiased inverse, and are given peak and
sigma. "Gain" is against NLM."""
    for title, mixed in (("Poisson, peak", False), ("Poisson-Gaussian, sigma/peak", True)):
        levels = [level for level in set14["noisy"] if ("/" in level) == mixed]
        rows = [
            [name, *(f"{scores[level]:.2f}" for level in levels)] for name, scores in set14.items()
        ]
        rows += [
            [f"gain of {name}", *(f"{gains[level]:+.2f}" for level in levels)]
            for name, gains in gains_over_nlm(set14).items()
        ]
        text += f"\n\n{table([title, *levels], rows)}"
    return text


def gains_over_nlm(set14: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Differences of our models to NLM after the Anscombe transform."""
    reference = set14["NLM + Anscombe"]
    names = [name for name in set14 if name not in ("noisy", "NLM + Anscombe", "TV + Anscombe")]
    return {
        name: {level: value - reference[level] for level, value in set14[name].items()}
        for name in names
    }


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
    header = [
        "method",
        "computed by",
        "median ms",
        "minimum ms",
        f"times {rows[0]['name']}",
        "MAC per pixel",
        "weights",
    ]
    return f"""\
## Speed

One {SPEED_SIDE} x {SPEED_SIDE} 8-bit image to an 8-bit image, all variants interleaved in one
process, two rounds to warm up. torch means plain torch: channels first, default allocator. OpenVINO
means the baseline's graph in the engine and with the settings that `dn_core` uses. NLM and TV use
one core.

{table(header, lines)}"""


def cold_page(found: dict[str, Any]) -> str:
    """Seconds of the first command."""
    rows = [[name, f"{1000 * seconds:.0f}"] for name, seconds in found["pieces"].items()]
    rows += [
        ["sum of the pieces", f"{1000 * sum(found['pieces'].values()):.0f}"],
        ["**the command**", f"**{1000 * found['whole']:.0f}**"],
    ]
    return f"""\
## Cold start

`dn-resnet denoise small.tif -o out.tif`, {SPEED_SIDE} x {SPEED_SIDE}, 8 bit, in a fresh process:
median of {found["runs"]} runs, in ms. The pieces come from a process that does the same step by
step. "model and engine" is what the first image takes longer than the second.

{table(["piece", "ms"], rows)}

torch was {"**imported**" if found["torch_imported"] else "not imported"} by the command."""


def memory_page(found: dict[str, Any]) -> str:
    """Peaks in MB."""
    rows = [
        [label(row["name"]), row["engine"], *(f"{peak:,.0f}" for peak in row["peaks"].values())]
        for row in found["images"]
    ]
    memmap = found["memmap"]
    lazy = [
        [
            f"{row['gigabytes']:.1f} GB {tuple(row['shape'])}",
            *(f"{row[name]:,.0f}" for name in ("start", "quarter", "end", "peak")),
        ]
        for row in found["zarr"]
    ]
    height, width = memmap["shape"]
    start, tiles = found["start"], found["zarr"][0]["tiles"]
    return f"""\
## Memory

Peak resident memory (MB) of a process that denoises one 8-bit image. The interpreter with numpy
alone has {start["numpy"]:.0f} MB, with torch {start["torch"]:.0f} MB. `dn_core` cuts images into
tiles; plain torch computes them whole.

{table(["method", "computed by", "512 x 512", "2048 x 2048"], rows)}

A {height:,} x {width:,} uint16 memory map denoised into another by {found["model"]}
({memmap["tiles"]} tiles, {memmap["seconds"]:.0f} s): peak **{memmap["peak"]:.0f} MB** above the
{memmap["before"]:.0f} MB of the interpreter with torch and the library loaded. Up to
{2 * 2 * height * width / 1e6:.0f} MB of that are pages of the two maps, which the system can take
back; {memmap["own"]:.0f} MB are the process's own.

OME-Zarr read lazily, the first {tiles} tiles of {ZARR_TILE} pixels through `denoise_steps` (uint16,
chunks of 512 x 512, sparse on disk), resident MB:

{table(["image", "before", "after a quarter of the tiles", "at the end", "peak"], lazy)}"""


def training_page(rows: list[dict[str, Any]]) -> str:
    """Where the time of a step goes."""
    lines = [
        [
            row["name"],
            row["precision"],
            f"{row['megapixels_per_second']:.2f}",
            f"{row['convolutions']:.1%}",
            f"{row['convolutions'] + row['activations']:.1%}",
            ", ".join(f"{key} {share:.1%}" for key, share in row["others"]),
        ]
        for row in rows
    ]
    header = [
        "recipe",
        "precision",
        "Mpx/s",
        "convolutions",
        "the network's kernels",
        "largest of the rest",
    ]
    return f"""\
## Training

Steps of {BATCH} patches of {PATCH} x {PATCH} pixels with one thread, from cutting patches to
averaging weights, by torch's profiler: shares of the time that passed. The network's kernels are
convolutions, activations and the change of resolution, forward and backward.

{table(header, lines)}"""


def closing(results: dict[str, Any]) -> str:
    """The lines to quote."""
    lines = []
    if results.get("speed"):
        lines += speed_lines(results["speed"])
    if results.get("quality"):
        lines += quality_lines(results["quality"])
    if results.get("training"):
        least = min(row["convolutions"] + row["activations"] for row in results["training"])
        lines.append(
            f"Training: at least {least:.0%} of a step's time is spent in the network's own "
            "kernels."
        )
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
        pairs.append(
            (
                f"{default} against DnCNN-S in the same engine, bfloat16",
                fast,
                times["dncnn_s25 | OpenVINO | bfloat16"],
            )
        )
    slow, engine = "dn-resnet-13 | torch | float32", "dn-resnet-13 | dn_core | default"
    if slow in times and engine in times:
        pairs.append(
            ("dn-resnet-13 in our engine against plain torch float32", times[engine], times[slow])
        )
    return [
        f"Speed, {what}: **{other / own:.1f} times** as fast ({own:.1f} and {other:.1f} ms)."
        for what, own, other in pairs
    ]


def quality_lines(found: dict[str, Any]) -> list[str]:
    """Differences to the baselines, and the smallest gain over NLM."""
    set12 = found["set12"]
    models = list(found["bfloat16"])
    lines = []
    for name in models:
        parts = []
        for baseline in ("DnCNN-S", "DnCNN-B", "FFDNet"):
            gaps = [
                set12[name][str(sigma)]["psnr"] - set12[baseline][str(sigma)]["psnr"]
                for sigma in SIGMAS
            ]
            parts.append(f"{' / '.join(f'{gap:+.2f}' for gap in gaps)} dB against {baseline}")
        lines.append(f"Set12 at sigma {' / '.join(map(str, SIGMAS))}, {name}: {', '.join(parts)}.")
    for name, gains in gains_over_nlm(found["set14"]).items():
        level = min(gains, key=gains.__getitem__)
        kind = "Poisson-Gaussian, sigma/peak" if "/" in level else "Poisson, peak"
        lines.append(
            f"Set14, {name}: smallest gain over NLM after the Anscombe transform "
            f"{gains[level]:+.2f} dB ({kind} {level})."
        )
    worst = max(abs(difference(row)) for row in found["baselines"])
    verdict = "reproduced" if worst <= TOLERANCE else "**not** reproduced"
    return [
        *lines,
        f"The baselines' figures are {verdict}: largest difference {worst:.3f} dB, {TOLERANCE} dB "
        "allowed.",
    ]


def difference(row: dict[str, Any]) -> float:
    """Measured less expected."""
    return float(row["measured"] - row["expected"])


def label(name: str) -> str:
    """A method's name as the field writes it."""
    labels = {
        "noisy": "noisy image",
        "dncnn_s25": "DnCNN-S",
        "ffdnet_gray": "FFDNet",
        "DnCNN-S": "DnCNN-S (one for each sigma)",
    }
    return labels.get(name, name)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])
