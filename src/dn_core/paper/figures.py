"""The paper's figures with our models: 6, example crops; 8, rate-distortion curves of codecs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dn_core.compression import Compressed, bpg, hevc_name, jpeg, jpeg2000
from dn_core.paper.protocol import Image, Level, Method, psnr
from dn_core.safe_write import atomic_write

__all__ = ["CurvePoint", "codecs", "curves_as_csv", "draw_crops", "draw_curves", "measure_curves"]

CROP = 128
SETTINGS = {
    "JPEG": (5, 10, 20, 30, 40, 60, 80),
    "JPEG 2000": (80, 50, 30, 20, 12, 8),
    "HEVC": (45, 41, 37, 33, 29, 25),
}
INSTALL = (
    "matplotlib, which draws figures, is missing. Install it: "
    "pip install 'napari-dnresnet[figures]'"
)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Means over images at one setting of a codec.

    Attributes
    ----------
    codec : str
        Its name.
    setting : float
        Its quality or rate.
    bits_per_pixel : float
        Size of the compressed image.
    decoded : float
        PSNR (dB) of the decoded image.
    restored : dict of str to float
        PSNR (dB) after each method, by its name.
    """

    codec: str
    setting: float
    bits_per_pixel: float
    decoded: float
    restored: dict[str, float]


def codecs() -> dict[str, tuple[Callable[[Any, Any], Compressed], tuple[int, ...]]]:
    """Each codec with its settings from strong to weak compression, by its name in the figure."""
    return {
        "JPEG": (jpeg, SETTINGS["JPEG"]),
        "JPEG 2000": (jpeg2000, SETTINGS["JPEG 2000"]),
        hevc_name(): (bpg, SETTINGS["HEVC"]),
    }


def measure_curves(methods: Sequence[Method], images: Sequence[Image]) -> Generator[CurvePoint]:
    """Measure figure 8: compress all images at every setting of every codec and restore them.

    Parameters
    ----------
    methods : sequence of Method
        What restores them; results are rounded to 8 bits.
    images : sequence of Image
        Clean images, 0..1.

    Yields
    ------
    CurvePoint
        One for each setting.
    """
    grey = [np.rint(image * 255).astype(np.uint8) for image in images]
    for name, (codec, settings) in codecs().items():
        for setting in settings:
            coded = [codec(image, setting) for image in grey]
            decoded = [result.image.astype(np.float32) / np.float32(255) for result in coded]
            rate = statistics.fmean(
                8 * result.bytes / image.size for result, image in zip(coded, grey, strict=True)
            )
            restored = {method.name: _restored(method, images, decoded) for method in methods}
            yield CurvePoint(
                name, setting, rate, statistics.fmean(map(psnr, images, decoded)), restored
            )


def curves_as_csv(points: Sequence[CurvePoint]) -> str:
    """A line for each setting of each codec."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = list(points[0].restored)
    writer.writerow(
        ["codec", "setting", "bits_per_pixel", "psnr_decoded", *(f"psnr_{name}" for name in names)]
    )
    for point in points:
        scores = (point.decoded, *(point.restored[name] for name in names))
        writer.writerow(
            [
                point.codec,
                point.setting,
                f"{point.bits_per_pixel:.4f}",
                *(f"{score:.3f}" for score in scores),
            ]
        )
    return buffer.getvalue()


def draw_curves(path: str | Path, points: Sequence[CurvePoint]) -> None:
    """Write figure 8 as a PNG: a panel for each codec."""
    names = list(dict.fromkeys(point.codec for point in points))
    figure, panels = _new_figure(len(names), 1, (5, 4))
    for panel, codec in zip(panels.flat, names, strict=True):
        mine = [point for point in points if point.codec == codec]
        rates = [point.bits_per_pixel for point in mine]
        panel.plot(rates, [point.decoded for point in mine], "o--", color="0.5", label="decoded")
        for name in mine[0].restored:
            panel.plot(rates, [point.restored[name] for point in mine], "o-", label=name)
        panel.set(title=codec, xlabel="bits per pixel", ylabel="PSNR (dB)")
        panel.grid(alpha=0.3)
        panel.legend()
    _write(path, figure)


def draw_crops(
    path: str | Path,
    methods: Sequence[Method],
    images: Sequence[Image],
    levels: Sequence[Level],
    seed: int = 0,
) -> None:
    """Write figure 6 as a PNG: a row for each level and image.

    It shows the middle crop noisy, as each method denoises it, and clean.

    Parameters
    ----------
    path : str or Path
        The file.
    methods : sequence of Method
        What denoises.
    images : sequence of Image
        Clean images, 0..1.
    levels : sequence of Level
        The noise.
    seed : int, default 0
        Of the noise.
    """
    titles = ["noisy", *(method.name for method in methods), "clean"]
    figure, panels = _new_figure(len(titles), len(levels) * len(images), (2.2, 2.4))
    row = 0
    for level in levels:
        for (noisy, std), clean in zip(level.add_noise(images, seed), images, strict=True):
            pictures = [noisy, *(method(noisy, std) for method in methods), clean]
            for panel, picture, title in zip(panels[row], pictures, titles, strict=True):
                score = level.name if picture is clean else f"{psnr(clean, picture):.2f} dB"
                panel.imshow(_crop(picture), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                panel.set_title(f"{title}\n{score}", fontsize=7)
                panel.axis("off")
            row += 1
    _write(path, figure)


def _restored(method: Method, images: Sequence[Image], decoded: Sequence[Image]) -> float:
    scores = []
    for image, noisy in zip(images, decoded, strict=True):
        std = float(np.sqrt(np.mean((noisy - image) ** 2)))
        result = np.rint(np.clip(method(noisy, std), 0, 1) * 255).astype(np.float32) / np.float32(
            255
        )
        scores.append(psnr(image, result))
    return statistics.fmean(scores)


def _crop(image: Image) -> Image:
    top, left = (max(0, extent - CROP) // 2 for extent in image.shape)
    return image[top : top + CROP, left : left + CROP]


def _new_figure(columns: int, rows: int, size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(INSTALL) from None
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _write(path: str | Path, figure: Any) -> None:
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
