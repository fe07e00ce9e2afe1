import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dn_core.compression import bpg, jpeg, jpeg2000
from dn_core.noise import (
    Bpg,
    Choice,
    Gaussian,
    Jpeg,
    Jpeg2000,
    LogUniform,
    Mixture,
    Poisson,
    PoissonGaussian,
    SuperResolution,
    Uniform,
    noise_from_dict,
    paper_mixture,
)

LEVEL = 0.3
PIXELS = 400_000


def flat(level: float = LEVEL, count: int = 1) -> torch.Tensor:
    return torch.full((count, 1, 1, PIXELS // count), level)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("noise", "variance"),
    [
        (Gaussian(25), (25 / 255) ** 2),
        (Poisson(4), LEVEL / 4),
        (Poisson(60), LEVEL / 60),
        (PoissonGaussian(2, 20), LEVEL / 20 + (2 / 20) ** 2),
        (PoissonGaussian(0.5), LEVEL / 5 + (0.5 / 5) ** 2),
    ],
)
def test_mean_and_variance_follow_the_formulas(noise, variance):
    noisy = noise(flat(), seeded())
    # Standard errors over 400,000 pixels: of the mean 0.001, of the variance 0.3 to 0.5%; four of
    # them are allowed.
    assert noisy.image.mean().item() == pytest.approx(LEVEL, abs=4 * (variance / PIXELS) ** 0.5)
    assert noisy.image.var().item() == pytest.approx(variance, rel=0.02)
    assert noisy.std.square().mean().item() == pytest.approx(variance, rel=1e-5)


def test_poisson_values_are_whole_photons():
    counts = Poisson(8)(flat(), seeded()).image * 8
    torch.testing.assert_close(counts, counts.round())
    assert counts.min() >= 0


@pytest.mark.parametrize("noise", [Gaussian(25), Poisson(4), PoissonGaussian(1), paper_mixture()])
def test_the_generator_decides_alone(noise):
    clean = torch.rand(6, 1, 8, 8, generator=seeded(3))
    torch.manual_seed(1)
    first = noise(clean, seeded(5))
    torch.manual_seed(2)
    again, other = noise(clean, seeded(5)), noise(clean, seeded(6))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)
    assert first.image.shape == first.std.shape == clean.shape


def test_the_clean_image_is_not_touched():
    clean = torch.rand(4, 1, 8, 8)
    before = clean.clone()
    paper_mixture()(clean, seeded())
    assert torch.equal(clean, before)


def test_each_image_of_a_batch_has_a_level_of_its_own():
    std = Gaussian(Uniform(0, 75))(torch.zeros(500, 1, 1, 1), seeded()).std.flatten() * 255
    assert std.min() >= 0
    assert std.max() <= 75
    assert std.mean().item() == pytest.approx(37.5, abs=4)
    assert len(std.unique()) > 400


def test_log_uniform_is_even_in_octaves():
    peaks = LogUniform(1, 64).draw(6000, seeded())
    octaves = torch.histc(peaks.log2(), bins=6, min=0, max=6)
    assert octaves.min() > 850  # 1000 expected, standard deviation 29


def test_papers_mixture_has_its_sixteen_levels():
    mixture = paper_mixture()
    noisy = mixture(torch.ones(4000, 1, 1, 1), seeded())
    # At full brightness each level has its own standard deviation: 4 Gaussian, 4 Poisson, 8
    # Poisson-Gaussian ones.
    levels = noisy.std.flatten().mul(1e5).round().unique()
    assert len(levels) == 16


def test_shares_are_kept():
    mixture = Mixture((Gaussian(10), Gaussian(50)), (3, 1))
    std = mixture(torch.zeros(4000, 1, 1, 1), seeded()).std * 255
    assert (std < 20).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_recipe_tables_give_noise():
    tables = [
        {"kind": "gaussian", "sigma": {"uniform": [0, 75]}, "share": 2},
        {"kind": "poisson", "peak": {"log-uniform": [1, 60]}},
        {"kind": "poisson-gaussian", "sigma": {"choice": [1, 2]}, "peak": 30},
    ]
    expected = Mixture(
        (
            Gaussian(Uniform(0, 75)),
            Poisson(LogUniform(1, 60)),
            PoissonGaussian(Choice((1.0, 2.0)), 30.0),
        ),
        (2.0, 1.0, 1.0),
    )
    assert noise_from_dict(tables) == expected
    assert noise_from_dict([{"kind": "paper-mixture"}]) == paper_mixture()


PHOTO = torch.from_numpy(data.camera()[None, None, 100:164, 100:180] / 255.0).float()


@pytest.mark.parametrize(
    ("noise", "codec"),
    [
        (Jpeg(20), lambda image: jpeg(image, 20)),
        (Jpeg2000(15), lambda image: jpeg2000(image, 15)),
        (Bpg(35), lambda image: bpg(image, 35)),
    ],
)
def test_compression_is_that_of_the_codec(noise, codec):
    pair = torch.cat([PHOTO, PHOTO.flip(-1)])
    noisy = noise(pair, torch.Generator().manual_seed(0))
    for image, clean, std in zip(noisy.image, pair, noisy.std, strict=True):
        expected = codec((clean[0].numpy() * 255).round().astype(np.uint8)).image
        assert ((image[0].numpy() * 255).round() == expected).all()
        assert std.unique().item() == pytest.approx(
            (image - clean).square().mean().sqrt().item(), rel=1e-5
        )


def test_qualities_are_drawn_for_each_image():
    many = PHOTO.expand(16, 1, 64, 80)
    noisy = Jpeg(Uniform(5, 95))(many, torch.Generator().manual_seed(0))
    assert len(set(noisy.std[:, 0, 0, 0].tolist())) > 8
    again = Jpeg(Uniform(5, 95))(many, torch.Generator().manual_seed(0))
    assert torch.equal(noisy.image, again.image)


def test_super_resolution_is_bicubic_down_and_up():
    for factor, size in ((2, (32, 40)), (3, (22, 27)), (4, (16, 20))):
        noisy = SuperResolution(factor)(PHOTO, torch.Generator().manual_seed(0))
        picture = Image.fromarray(PHOTO[0, 0].numpy())
        small = picture.resize(size[::-1], Image.Resampling.BICUBIC)
        # Pillow's cubic has a = -0.5, torch's without antialiasing -0.75: the way up is close, not
        # equal.
        expected = np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC))
        assert np.abs(noisy.image[0, 0].numpy() - expected)[8:-8, 8:-8].mean() < 0.01
        assert noisy.image.shape == PHOTO.shape
    flat = torch.full((1, 1, 30, 30), 0.3)
    torch.testing.assert_close(SuperResolution(3)(flat, torch.Generator()).image, flat)


def test_compression_can_be_mixed_and_read_from_a_recipe():
    tables = [
        {"kind": "jpeg", "quality": {"uniform": [5, 95]}},
        {"kind": "super-resolution", "factor": {"choice": [2, 3, 4]}, "share": 2},
    ]
    assert noise_from_dict(tables) == Mixture(
        (Jpeg(Uniform(5, 95)), SuperResolution(Choice((2, 3, 4)))), (1.0, 2.0)
    )
    assert noise_from_dict(
        [{"kind": "jpeg2000", "ratio": 20}, {"kind": "bpg", "qp": 30}]
    ) == Mixture((Jpeg2000(20), Bpg(30)), (1, 1))
    noisy = noise_from_dict(tables)(PHOTO.expand(6, 1, 64, 80), torch.Generator().manual_seed(1))
    assert noisy.image.isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gaussian(-1), "non-negative"),
        (lambda: Gaussian(float("nan")), "non-negative"),
        (lambda: Poisson(0), "positive"),
        (lambda: Gaussian(True), "non-negative"),
        (lambda: Gaussian("a"), "non-negative"),
        (lambda: Gaussian(Uniform(0, float("inf"))), "finite"),
        (lambda: Gaussian(Choice((1, float("nan")))), "finite"),
        (lambda: Gaussian(Uniform(50, 10)), "low <= high"),
        (lambda: Poisson(Uniform(1, float("nan"))), "finite"),
        (lambda: Mixture((Gaussian(1), Gaussian(2)), (1, float("nan"))), "one share"),
        (lambda: PoissonGaussian(0), "positive"),
        (lambda: LogUniform(0, 3), "0 < low"),
        (lambda: Choice(()), "at least one"),
        (lambda: Mixture(()), "at least one"),
        (lambda: Mixture((Gaussian(1),), (1, 2)), "one share"),
        (lambda: noise_from_dict([{"kind": "snow"}]), "gaussian"),
        (lambda: Jpeg(101), "in 0..100"),
        (lambda: Jpeg2000(0.5), "in 1..1000"),
        (lambda: Bpg(Uniform(20, 60)), "in 0..51"),
        (lambda: SuperResolution(0), "positive"),
        (lambda: noise_from_dict([{"kind": ["gaussian"]}]), "kind of noise must be one of"),
        (
            lambda: noise_from_dict([{"kind": "gaussian", "sigma": 1, "share": "x"}]),
            "share of noise 'gaussian' must be a number of 0 or more, finite, got 'x'",
        ),
        (lambda: noise_from_dict([{"kind": "gaussian", "sigma": 1, "share": -1}]), "0 or more"),
        (lambda: noise_from_dict([{"kind": "gaussian", "peak": 3}]), "do not fit"),
        (lambda: noise_from_dict([{"kind": "gaussian", "sigma": "much"}]), "uniform"),
    ],
)
def test_impossible_settings_are_refused_with_what_is_expected(make, words):
    with pytest.raises(ValueError, match=words):
        make()
