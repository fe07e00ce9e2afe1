"""The demo of ``python3 dev.py run``: denoise an image, print measurements, write before/after."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import error_message

__all__ = ["main"]

SIGMA = 25


def main(arguments: list[str] | None = None) -> int:
    """Denoise an image file, or by default a sample of scikit-image with added noise.

    Parameters
    ----------
    arguments : list of str, optional
        Command line arguments; by default those of the process.

    Returns
    -------
    int
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="dev.py run", description=__doc__)
    parser.add_argument("image", nargs="?", type=Path, help="an image to denoise")
    parser.add_argument("--gui", action="store_true", help="open the images in napari")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("before-after.png"),
        help="the before/after picture (default: before-after.png)",
    )
    options = parser.parse_args(arguments)
    try:
        _run(options.image, options.output, options.gui)
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
        print(f"{options.image or 'demo'}: {error_message(error)}", file=sys.stderr)
        return 1
    return 0


def _run(path: Path | None, output: Path, gui: bool) -> None:
    from dn_core.comparison import write_comparison
    from dn_core.inference.denoise import denoise
    from dn_core.inference.model import engine_name, load_model

    noisy, axes, options, truth = _example() if path is None else _opened(path)
    model = load_model()
    began = time.perf_counter()
    clean = denoise(noisy, model, **options)
    first = time.perf_counter() - began
    began = time.perf_counter()
    denoise(noisy, model, **options)
    seconds = time.perf_counter() - began
    write_comparison(output, noisy, clean, axes)
    print(
        f"image     {path or f'scikit-image camera with Gaussian noise of sigma {SIGMA}'}: "
        f"{noisy.dtype} {noisy.shape}, axes {axes}"
    )
    if truth is not None:
        print(
            f"PSNR      noisy {_psnr(noisy, truth):.2f} dB, denoised {_psnr(clean, truth):.2f} dB"
        )
    print(f"model     {model.card.name}: {model.card.description}")
    print(f"engine    {engine_name(model, dtype=noisy.dtype)}")
    print(
        f"speed     {noisy.size / seconds / 1e6:.1f} megapixels per second (first run, including "
        f"start-up: {first:.2f} s)"
    )
    print(f"picture   {output.resolve()} (before | after)")
    if gui:
        layers = {"truth": truth, "noisy": noisy, "denoised": clean}
        _open_napari({name: layer for name, layer in layers.items() if layer is not None}, axes)


def _example() -> tuple[NDArray[Any], str, dict[str, Any], NDArray[Any] | None]:
    from skimage import data

    truth = data.camera()
    noisy = truth + np.random.default_rng(0).normal(0, SIGMA, truth.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), "YX", {}, truth


def _opened(path: Path) -> tuple[NDArray[Any], str, dict[str, Any], NDArray[Any] | None]:
    from dn_core import files
    from dn_core.inference.arrays import axes_of_file

    with files.open_image(path) as image:
        axes = axes_of_file(image)
        for note in filter(None, (*image.notes, axes.note)):
            print(f"note      {note}")
        return image.pixels, axes.letters(image.axes), axes.options, None


def _psnr(image: NDArray[Any], truth: NDArray[Any]) -> float:
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(truth, image, data_range=255))


def _open_napari(layers: dict[str, NDArray[Any]], axes: str) -> None:
    """Open the arrays and the plugin in a new napari process; dn_core does not import napari."""
    import tifffile

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.tif" for name in layers]
        for path, layer in zip(paths, layers.values(), strict=True):
            rgb = axes.endswith("S") and layer.shape[-1] in (3, 4)
            tifffile.imwrite(path, layer, photometric="rgb" if rgb else "minisblack")
        command = [sys.executable, "-m", "napari", *map(str, paths)]
        subprocess.run([*command, "--with", "napari-dnresnet", "Denoise layer"], check=False)


if __name__ == "__main__":
    sys.exit(main())
