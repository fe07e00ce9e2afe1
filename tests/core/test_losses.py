"""The losses against their formulas in numpy, Sobel by scikit-image, and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data, filters

from dn_core.losses import EdgeAwareLoss, edge_aware, edge_map, mse

KINDS = ("edge-a", "edge-b", "edge-a-linear")


@pytest.fixture(scope="module")
def clean():
    return torch.from_numpy(data.camera()[100:140, 200:260] / 255.0)[None, None]


@pytest.fixture(scope="module")
def denoised(clean):
    return clean + 0.05 * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(0), dtype=clean.dtype
    )


def test_mse_is_the_mean_of_squares(clean, denoised):
    assert mse(denoised, clean).item() == pytest.approx(
        np.mean((denoised.numpy() - clean.numpy()) ** 2), rel=1e-12
    )


def test_images_can_be_weighted(clean, denoised):
    both, pair = torch.cat([denoised, clean]), torch.cat([clean, clean])
    weight = torch.tensor([3.0, 100.0], dtype=clean.dtype).reshape(2, 1, 1, 1)
    assert mse(both, pair, weight).item() == pytest.approx(
        1.5 * mse(denoised, clean).item(), rel=1e-12
    )
    assert edge_aware(both, pair, patch_weight=weight).item() == pytest.approx(
        1.5 * edge_aware(denoised, clean).item(), rel=1e-12
    )


def test_the_edge_map_is_sobels_on_the_8_bit_scale(clean):
    image = clean[0, 0].numpy() * 255
    # scikit-image divides the kernels by 4 and takes the root of the mean of both squares.
    expected = np.sqrt((4 * filters.sobel_h(image)) ** 2 + (4 * filters.sobel_v(image)) ** 2)
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(
        edge_map(clean, "edge-a")[0, 0].numpy()[inner], expected[inner], rtol=1e-9, atol=1e-9
    )
    assert (edge_map(clean, "edge-b")[0, 0].numpy()[inner] == (expected[inner] > 150)).all()
    np.testing.assert_allclose(
        edge_map(clean, "edge-a-linear")[0, 0].numpy()[inner] ** 2,
        expected[inner],
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("kind", "w"), [("edge-a", 0.025), ("edge-b", 4.0), ("edge-a-linear", 0.025)]
)
def test_the_loss_is_equation_4(clean, denoised, kind, w):
    edges, error = edge_map(clean, kind).numpy(), denoised.numpy() - clean.numpy()
    expected = np.mean(error**2) + w * np.mean((error * edges) ** 2)
    assert edge_aware(denoised, clean, kind).item() == pytest.approx(expected, rel=1e-12)
    assert EdgeAwareLoss(kind)(denoised, clean).item() == pytest.approx(expected, rel=1e-12)
    assert edge_aware(denoised, clean, kind, w=0.0).item() == pytest.approx(
        mse(denoised, clean).item(), rel=1e-12
    )
    assert edge_map(clean, "edge-b").mean() > 0.05, (
        "the picture has edges, or this test shows nothing"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(clean, denoised, kind):
    small, truth = denoised[..., :6, :7].clone().requires_grad_(), clean[..., :6, :7]
    assert torch.autograd.gradcheck(lambda x: edge_aware(x, truth, kind), (small,))
    assert torch.autograd.gradcheck(lambda x: mse(x, truth), (small,))


def test_a_flat_image_has_no_edges_and_a_finite_gradient():
    flat = torch.full((1, 1, 8, 8), 0.5)
    noisy = (flat + 0.1).requires_grad_()
    edge_aware(noisy, flat).backward()
    assert noisy.grad.isfinite().all()
    assert not edge_map(flat, "edge-a").any()


def test_an_unknown_edge_map_is_refused():
    with pytest.raises(ValueError, match="must be one of 'edge-a', 'edge-b'.*, got 'edge-c'"):
        edge_map(torch.zeros(1, 1, 4, 4), "edge-c")
