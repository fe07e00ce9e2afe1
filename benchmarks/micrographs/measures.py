"""How good a result is: PSNR, SSIM, and how much more line-like it is than the truth."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dn_core.paper.protocol import psnr, ssim
from micrographs.cases import Case, Image

__all__ = ["coherence", "measure"]


def coherence(image: Image, scale: float = 1.0, window: float = 4.0) -> float:
    """How line-like an image's structure is: 0 for isotropic texture, 1 for stripes.

    The coherence of the structure tensor, weighted by the energy of the gradient: what paints
    fibres where there were dots raises it. It depends neither on gain nor on offset.

    Parameters
    ----------
    image : Image
        ``(height, width)``.
    scale, window : float, default 1 and 4
        Widths in pixels of the Gaussian filters before the gradient and of the tensor.

    Returns
    -------
    float
        Sum of the eigenvalues' differences over their sum; 0 for a constant image.
    """
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float64), scale)
    down, right = np.gradient(smooth)
    dd, rr, dr = (
        ndimage.gaussian_filter(product, window)
        for product in (down * down, right * right, down * right)
    )
    energy = float((dd + rr).sum())
    return float(np.sqrt((dd - rr) ** 2 + 4 * dr**2).sum()) / energy if energy > 0 else 0.0


def measure(case: Case, image: Image) -> dict[str, float]:
    """PSNR (dB), SSIM and coherence beyond the truth's of a result."""
    return {
        "psnr": psnr(case.truth, image),
        "ssim": ssim(case.truth, image),
        "excess": coherence(image) - coherence(case.truth),
    }
