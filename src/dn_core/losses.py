"""Training losses: mean squared error, and the paper's edge-aware loss (section 3.3, Eq. 4).

The paper's constants (w = 0.025 and 4, threshold 150) belong to images on the 0..255 scale, and to
Sobel's kernels as Sobel wrote them, with weights 1, 2, 1. Images here are in 0..1; the edge map is
taken on the 0..255 scale all the same, the error stays in 0..1.

Eq. 4 as printed squares the edge map. With edge-a an edge of magnitude 150 then counts 0.025 *
150^2 = 562 times as much as a flat region, but with edge-b only 4 times. If the map is not squared
it is 0.025 * 150 = 3.75 times, close to edge-b's 4, so this may be what the authors computed:
``"edge-a-linear"``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EdgeAwareLoss", "EdgeKind", "edge_aware", "edge_map", "mse"]

EdgeKind = Literal["edge-a", "edge-b", "edge-a-linear"]

PAPER_WEIGHT = {"edge-a": 0.025, "edge-b": 4.0, "edge-a-linear": 0.025}
EDGE_THRESHOLD = 150.0
"""Sobel gradient magnitude, on the 0..255 scale, above which edge-b sees an edge."""


def mse(denoised: Tensor, clean: Tensor, patch_weight: Tensor | None = None) -> Tensor:
    """Mean squared error over all pixels.

    Parameters
    ----------
    denoised, clean : torch.Tensor
        ``(N, 1, H, W)`` each.
    patch_weight : torch.Tensor, optional
        ``(N, 1, 1, 1)``; the squared errors of each image are multiplied by it.

    Returns
    -------
    torch.Tensor
        One number.
    """
    squared = (denoised - clean).square()
    return (squared if patch_weight is None else squared * patch_weight).mean()


def edge_map(clean: Tensor, kind: EdgeKind) -> Tensor:
    """Edge map M of Eq. 4; the image is mirrored at its edges.

    Parameters
    ----------
    clean : torch.Tensor
        ``(N, 1, H, W)``, 0..1.
    kind : EdgeKind
        ``"edge-a"`` is the magnitude of Sobel's gradient on the 0..255 scale, ``"edge-b"`` is 1
        where that is above 150 and 0 elsewhere, ``"edge-a-linear"`` is the root of edge-a.

    Returns
    -------
    torch.Tensor
        ``(N, 1, H, W)``.

    Raises
    ------
    ValueError
        When there is no such kind.
    """
    if kind not in get_args(EdgeKind):
        raise ValueError(
            f"the edge map must be one of {', '.join(map(repr, get_args(EdgeKind)))}, got "
            f"{kind!r}. Change it."
        )
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(clean)
    padded = functional.pad(clean * 255, (1, 1, 1, 1), mode="reflect")
    gradient = functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    magnitude = gradient.square().sum(dim=1, keepdim=True).sqrt()
    if kind == "edge-b":
        return (magnitude > EDGE_THRESHOLD).to(clean)
    return magnitude if kind == "edge-a" else magnitude.sqrt()


def edge_aware(
    denoised: Tensor,
    clean: Tensor,
    kind: EdgeKind = "edge-a",
    *,
    w: float | None = None,
    patch_weight: Tensor | None = None,
) -> Tensor:
    """Edge-aware loss (Eq. 4).

    The mean squared error plus `w` times that of the images multiplied by the edge map.

    Parameters
    ----------
    denoised, clean : torch.Tensor
        ``(N, 1, H, W)`` each, 0..1.
    kind : EdgeKind, default "edge-a"
        The edge map, see `edge_map`.
    w : float, optional
        The trade between edges and the rest; by default the paper's, 0.025 for edge-a (and
        edge-a-linear) and 4 for edge-b.
    patch_weight : torch.Tensor, optional
        As for `mse`, on both terms.

    Returns
    -------
    torch.Tensor
        One number.
    """
    edges = edge_map(clean, kind)
    weight = PAPER_WEIGHT[kind] if w is None else w
    return mse(denoised, clean, patch_weight) + weight * mse(
        denoised * edges, clean * edges, patch_weight
    )


class EdgeAwareLoss(nn.Module):
    """The edge-aware loss as a module.

    Parameters
    ----------
    kind, w
        As for `edge_aware`.
    """

    def __init__(self, kind: EdgeKind = "edge-a", w: float | None = None) -> None:
        super().__init__()
        self.kind: EdgeKind = kind
        self.w = w

    def forward(self, denoised: Tensor, clean: Tensor) -> Tensor:
        """``(N, 1, H, W)`` twice, to one number."""
        return edge_aware(denoised, clean, self.kind, w=self.w)
