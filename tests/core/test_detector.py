"""The noise of detectors has the statistics that its formulas say."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, poisson

from dn_core.noise import (
    Choice,
    Detector,
    Gaussian,
    LogUniform,
    Mixture,
    Poisson,
    PoissonGaussian,
    Sometimes,
    Uniform,
    noise_from_dict,
)
from dn_core.noise.detector import MANY_PHOTONS, _excess_photons
from dn_core.noise.parameters import draw
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.data.training_data import SyntheticNoiseData
from dn_core.training.recipes import Phase, load_recipe

SIDE = 600
EVERYTHING = Detector(
    sigma=LogUniform(2.55, 408),
    relative=True,
    shot=Uniform(0, 1),
    pedestal=Sometimes(Uniform(0, 25), 0.3),
    correlation=Sometimes(Uniform(0.35, 1.5), 0.5),
    correlation_shape="any",
    row_noise=Sometimes(Uniform(0.05, 0.6), 0.5),
    column_noise=Sometimes(Uniform(0.05, 0.6), 0.5),
    hot_pixels=Sometimes(LogUniform(3e-5, 2e-3), 0.5),
    dead_pixels=1e-4,
    step=Sometimes(Uniform(0.3, 2), 0.5),
    black=Sometimes(Uniform(-1, 0.5), 0.5),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(level: float, side: int = SIDE) -> torch.Tensor:
    """A plane of one grey level, 0..255."""
    return torch.full((1, 1, side, side), level / 255)


def noise_of(detector: Detector, level: float = 128, side: int = SIDE) -> torch.Tensor:
    """What it adds to a plane of one level, in grey levels."""
    clean = flat(level, side)
    return 255 * (detector(clean, seeded()).image - clean)


def lag(noise: torch.Tensor, dim: int) -> float:
    """The correlation of neighbours down columns (2) or along rows (3)."""
    size = noise.shape[dim] - 1
    pairs = noise.narrow(dim, 0, size) * noise.narrow(dim, 1, size)
    return float(pairs.mean() / noise.square().mean())


# How strong it is


def test_variance_against_level_is_the_photon_transfer_curve():
    """A straight line: its slope is the gain, its height without light the read noise's square."""
    detector = Detector(gain=3, read_noise=12, offset=20, pedestal=5)
    levels = torch.tensor([20.0, 60, 120, 180, 250])
    images = (levels / 255).reshape(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    noisy = detector(images, seeded())
    noise = 255 * (noisy.image - images)
    variance = noise.var(dim=(1, 2, 3))
    slope, height = np.polyfit(levels.numpy() - 15, variance.numpy(), 1)
    # Standard error of a variance over 360,000 pixels: 0.24 %.
    assert slope == pytest.approx(3, rel=0.02)
    assert height == pytest.approx(144, abs=4)
    torch.testing.assert_close(variance, 3 * (levels - 15) + 144, rtol=0.01, atol=0)
    torch.testing.assert_close(
        (255 * noisy.std[:, 0, 0, 0]).square(), 3 * (levels - 15) + 144, rtol=1e-4, atol=0
    )
    assert noise.mean(dim=(1, 2, 3)).abs().max() < 4 * math.sqrt(variance.max() / SIDE**2)


def test_below_the_level_without_light_there_is_only_read_noise():
    noisy = Detector(gain=3, read_noise=12, offset=100)(flat(60), seeded())
    assert 255 * noisy.std.max() == pytest.approx(12, rel=1e-4)
    assert Detector(gain=3, offset=100)(flat(60), seeded()).image.unique().numel() == 1


def test_readings_without_read_noise_are_whole_photons():
    photons = 255 * Detector(gain=40)(flat(120), seeded()).image / 40
    torch.testing.assert_close(photons, photons.round(), atol=1e-4, rtol=0)
    assert photons.min() > -1e-4


@pytest.mark.parametrize("shot", [0, 0.3, 1])
def test_sigma_is_the_noise_at_white_and_shot_the_share_that_light_makes(shot):
    detector = Detector(sigma=20, shot=shot, pedestal=15)
    for level in (255, 60):
        expected = 20**2 * ((1 - shot) + shot * (level + 15) / (255 + 15))
        assert float(noise_of(detector, level).var()) == pytest.approx(expected, rel=0.01)


def test_relative_noise_follows_each_images_bright_level():
    """95 % of the pixels are below it; the brightest twentieth of them is not."""
    clean = (
        torch.rand(40, 1, 64, 64, generator=seeded(1))
        * torch.linspace(0.2, 1, 40)[:, None, None, None]
    )
    noisy = Detector(sigma=25.5, relative=True)(clean, seeded())
    bright = clean.flatten(1).quantile(0.95, dim=1)
    torch.testing.assert_close(noisy.std[:, 0, 0, 0], 0.1 * bright, rtol=0.08, atol=0)
    dark = Detector(sigma=25.5, relative=True)(torch.zeros(1, 1, 64, 64), seeded())
    assert float(dark.std.max()) == pytest.approx(0.1 * 0.05)  # as if a twentieth of white


@pytest.mark.parametrize("count", [0.2, 3.0, MANY_PHOTONS, 60.0, 1000.0])
def test_photons_have_the_moments_of_their_distribution(count):
    """Few are drawn from it; many by an expansion, which has its mean, variance and skewness."""
    excess = _excess_photons(torch.full((2_000_000,), count), seeded()).double()
    assert float(excess.mean()) == pytest.approx(0, abs=4 * math.sqrt(count / 2e6))
    assert float(excess.var()) == pytest.approx(count, rel=0.01)
    skewness = float(excess.pow(3).mean() / excess.var() ** 1.5)
    assert skewness == pytest.approx(1 / math.sqrt(count), rel=0.03, abs=0.01)


def test_many_photons_are_distributed_as_they_should_be():
    excess = _excess_photons(torch.full((1_000_000,), 30.0), seeded()).numpy() + 30
    counts = np.arange(5, 60)
    share = np.searchsorted(np.sort(excess), counts + 0.5) / len(excess)
    assert np.abs(share - poisson.cdf(counts, 30)).max() < 0.003


# Correlation


@pytest.mark.parametrize("width", [0.4, 0.7, 1.0, 2.0])
@pytest.mark.parametrize(
    ("shape", "down", "right"),
    [("isotropic", True, True), ("rows", False, True), ("columns", True, False)],
)
def test_noise_is_correlated_as_a_gaussian_of_that_width_does(width, shape, down, right):
    noise = noise_of(Detector(sigma=20, correlation=width, correlation_shape=shape))
    expected = math.exp(-1 / (4 * width**2))
    # Of 360,000 pixels 360,000 / (4 pi width^2) are independent: 0.01 is more than 4 errors.
    assert lag(noise, 2) == pytest.approx(expected if down else 0, abs=0.012)
    assert lag(noise, 3) == pytest.approx(expected if right else 0, abs=0.012)
    assert float(noise.std()) == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("side", [2, 3, 4, 7])
def test_noise_is_correlated_as_a_box_does(side):
    noise = noise_of(Detector(sigma=20, correlation=side, correlation_shape="box"))
    for dim in (2, 3):
        assert lag(noise, dim) == pytest.approx((side - 1) / side, abs=0.015)
    assert float(noise.std()) == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("shift", [0.2, 0.5, 0.9])
def test_noise_is_correlated_as_interpolation_does(shift):
    noise = noise_of(Detector(sigma=20, correlation=shift, correlation_shape="bilinear"))
    t = min(shift, 0.5)
    for dim in (2, 3):
        assert lag(noise, dim) == pytest.approx(t * (1 - t) / (t**2 + (1 - t) ** 2), abs=0.01)
    assert float(noise.std()) == pytest.approx(20, rel=0.02)


def test_correlated_shot_noise_keeps_the_variance_of_each_level():
    """Blurred is the noise, not the image; the standard deviation is that of the blurred noise."""
    clean = torch.full((1, 1, SIDE, SIDE), 0.2)
    clean[..., SIDE // 2 :] = 0.8
    noisy = Detector(gain=4, read_noise=5, correlation=0.8)(clean, seeded())
    noise = noisy.image - clean
    for part, level in ((slice(0, 290), 51), (slice(310, None), 204)):
        expected = math.sqrt(4 * level + 25) / 255
        assert float(noise[..., part].std()) == pytest.approx(expected, rel=0.02)
        torch.testing.assert_close(
            noisy.std[..., part], torch.full_like(noisy.std[..., part], expected), rtol=1e-3, atol=0
        )
    edge = slice(SIDE // 2 - 2, SIDE // 2 + 2)
    torch.testing.assert_close(
        noise[..., edge].std(dim=(0, 1, 2)), noisy.std[0, 0, 0, edge], rtol=0.15, atol=0
    )


@pytest.mark.parametrize("shape", ["isotropic", "box", "any"])
def test_correlation_makes_no_edges(shape):
    """At the borders the noise is as strong and as correlated as in the middle."""
    clean = torch.full((4000, 1, 16, 16), 0.5)
    detector = Detector(gain=4, correlation=2, correlation_shape=shape)
    noise = detector(clean, seeded()).image - clean
    strength = noise.square().mean(dim=(0, 1)).sqrt() * 255
    torch.testing.assert_close(
        strength, torch.full_like(strength, math.sqrt(4 * 127.5)), rtol=0.06, atol=0
    )


def test_any_shape_is_one_of_all_and_white_where_there_is_no_correlation():
    clean = torch.full((600, 1, 48, 48), 0.5)
    detector = Detector(sigma=20, correlation=1.0, correlation_shape="any")
    noise = detector(clean, seeded()).image - clean
    down, right = (
        (noise.narrow(dim, 0, 47) * noise.narrow(dim, 1, 47)).mean(dim=(1, 2, 3))
        / noise.square().mean(dim=(1, 2, 3))
        for dim in (2, 3)
    )
    lines = (down - right).abs() > 0.55
    assert float(lines.float().mean()) == pytest.approx(0.2, abs=0.06)
    assert float((noise * 255).std()) == pytest.approx(20, rel=0.02)
    sometimes = Detector(
        sigma=20, correlation=Sometimes(1.0, 0.25), correlation_shape="any", relative=True
    )
    noise = sometimes(clean, seeded()).image - clean
    along = (noise[..., 1:] * noise[..., :-1]).mean(dim=(1, 2, 3))
    down = (noise[..., 1:, :] * noise[..., :-1, :]).mean(dim=(1, 2, 3))
    white = (along + down) / noise.square().mean(dim=(1, 2, 3)) < 0.12
    assert float(white.float().mean()) == pytest.approx(0.76, abs=0.06)


# Rows, columns and bad pixels


@pytest.mark.parametrize(("name", "across"), [("row_noise", 3), ("column_noise", 2)])
def test_whole_rows_and_columns_are_shifted(name, across):
    detector = Detector(sigma=20, **{name: 12})
    clean = flat(128)
    noisy = detector(clean, seeded())
    means = 255 * (noisy.image - clean).mean(dim=across)
    # 600 lines: standard error 2.9 %; the white noise adds 20 / sqrt(600) to them.
    assert float(means.std()) == pytest.approx(math.hypot(12, 20 / math.sqrt(SIDE)), rel=0.12)
    assert 255 * float(noisy.std.max()) == pytest.approx(math.hypot(12, 20), rel=1e-4)


def test_shares_of_hot_and_dead_pixels():
    noise = noise_of(Detector(sigma=5, hot_pixels=0.002, dead_pixels=0.001))
    pixels = SIDE**2
    # Dead pixels read 0; hot ones are 3 to 30 times 5 too bright, nearly all above 5 sigma.
    dead = int((noise == -128).sum())
    assert dead == pytest.approx(0.001 * pixels, abs=4 * math.sqrt(0.001 * pixels))
    hot = noise[noise > 25]
    assert len(hot) == pytest.approx(0.002 * pixels * 25 / 27, abs=4 * math.sqrt(0.002 * pixels))
    assert float(hot.max()) < 5 * (30 + 5)
    rest = noise[(noise <= 25) & (noise > -128)]
    assert float(rest.std()) == pytest.approx(5, rel=0.02)


# Quantisation and clipping


def test_quantisation_adds_a_twelfth_of_the_steps_square():
    clean = (torch.rand(1, 1, SIDE, SIDE, generator=seeded(3)) * 200 + 30) / 255
    noisy = Detector(sigma=0, step=16)(clean, seeded())
    error = 255 * (noisy.image - clean)
    assert float(error.var()) == pytest.approx(16**2 / 12, rel=0.01)
    assert float(error.abs().max()) <= 8 + 1e-3
    assert float(noisy.std.max() * 255) == pytest.approx(16 / math.sqrt(12), rel=1e-4)
    levels = (noisy.image * 255 / 16).flatten()
    assert len((levels - levels[0]).round(decimals=3).unique()) <= 230 / 16 + 2
    both = 255 * (Detector(sigma=20, step=16)(clean, seeded()).image - clean)
    assert float(both.var()) == pytest.approx(20**2 + 16**2 / 12, rel=0.01)


@pytest.mark.parametrize("step", [0, 15])
def test_the_target_of_clipped_readings_is_their_mean(step):
    """Gaussian noise: black + (x - black) Phi(z) + s phi(z), z = (x - black) / s.

    Rounding to steps from black on lowers it as if the variance were less by step^2 / 12.
    """
    s, black = 30.0, 40.0
    spread = math.sqrt(s**2 - step**2 / 12)
    for level in (10.0, 40.0, 60.0, 100.0, 200.0):
        clean = flat(level)
        noisy = Detector(sigma=s, black=black, step=step)(clean, seeded())
        z = (level - black) / spread
        expected = black + (level - black) * norm.cdf(z) + spread * norm.pdf(z)
        assert 255 * float(noisy.target.mean()) == pytest.approx(expected, abs=0.05)
        assert 255 * float(noisy.target.std()) < 1e-3
        assert 255 * float(noisy.image.mean()) == pytest.approx(expected, abs=0.25)
        assert 255 * float(noisy.image.min()) > black - 1e-3
        assert float(noisy.image.std()) == pytest.approx(float(noisy.std.mean()), rel=0.03)
        torch.testing.assert_close(noisy.wanted(clean), noisy.target)


@pytest.mark.parametrize("gain", [5.0, 20.0, 60.0])
@pytest.mark.parametrize("read_noise", [0.0, 2.0, 10.0, 40.0])
@pytest.mark.parametrize("black", [-20.0, 0.0, 5.0, 30.0, 100.0])
def test_the_target_of_few_photons_is_exact(gain, read_noise, black):
    """Summed over the photons in float64; off by at most 0.5 % of the noise, all from tables."""
    clean = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
    noisy = Detector(gain=gain, read_noise=read_noise, black=black)(clean, seeded())
    level = clean.double().numpy().ravel() * 255
    photons = np.arange(160)
    chance = poisson.pmf(photons, level[:, None] / gain)
    above = gain * photons - black
    z = above / max(read_noise, 1e-9)
    mean = chance @ (above * norm.cdf(z) + read_noise * norm.pdf(z))
    noise = np.sqrt(gain * level + read_noise**2).clip(1)
    error = noisy.target.double().numpy().ravel() * 255 - (black + mean)
    assert (np.abs(error) / noise).max() < 0.005


@pytest.mark.parametrize("gain", [10.0, 60.0])
def test_the_target_of_correlated_shot_noise_is_close(gain):
    """Taken as that of photons with the same variance and skewness: within 3 % of the noise."""
    for level in (10.0, 40.0, 120.0):
        noisy = Detector(gain=gain, correlation=0.7, black=level - 10)(flat(level), seeded())
        off = float((noisy.image - noisy.target).mean() / noisy.std.mean())
        assert abs(off) < 0.03


def test_only_some_images_may_be_clipped():
    clean = torch.full((200, 1, 16, 16), 0.1)
    noisy = Detector(sigma=50, black=Sometimes(0, 0.4))(clean, seeded())
    clipped = noisy.image.amin(dim=(1, 2, 3)) >= 0
    assert float(clipped.float().mean()) == pytest.approx(0.4, abs=0.12)
    assert torch.equal(noisy.target[~clipped], clean[~clipped])
    assert (noisy.target[clipped] > 0.1 + 0.02).all()


def test_without_clipping_the_clean_image_is_the_target():
    noisy = Detector(gain=2, read_noise=3)(flat(100), seeded())
    assert noisy.target is None
    assert torch.equal(noisy.wanted(flat(100)), flat(100))


def test_a_mixture_keeps_the_targets_of_its_models():
    clean = torch.full((64, 1, 16, 16), 0.1)
    noisy = Mixture((Gaussian(25), Detector(sigma=50, black=0)))(clean, seeded())
    clipped = noisy.image.amin(dim=(1, 2, 3)) >= 0
    assert 16 < int(clipped.sum()) < 48
    assert torch.equal(noisy.target[~clipped], clean[~clipped])
    assert (noisy.target[clipped] > 0.11).all()
    assert Mixture((Gaussian(25), Poisson(4)))(clean, seeded()).target is None


# In training


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 1, 40), (2, 1, 5, 3), (8, 1, 128, 128)])
def test_everything_at_once_is_finite_and_decided_by_the_generator(shape):
    clean = torch.rand(shape, generator=seeded(3))
    before = clean.clone()
    torch.manual_seed(1)
    first = EVERYTHING(clean, seeded(5))
    torch.manual_seed(2)
    again, other = EVERYTHING(clean, seeded(5)), EVERYTHING(clean, seeded(6))
    assert torch.equal(clean, before)
    for part, same in zip(first, again, strict=True):
        assert part.shape == clean.shape
        assert part.isfinite().all()
        assert torch.equal(part, same)
    assert not torch.equal(first.image, other.image)


def test_black_and_dark_images_are_finite():
    for level in (0.0, 255.0):
        for detector in (
            EVERYTHING,
            Detector(gain=1),
            Detector(sigma=0, shot=1, black=0),
            Detector(sigma=0, relative=True, step=1, black=Sometimes(0, 0.5)),
        ):
            for part in detector(flat(level, 32).expand(16, 1, 32, 32), seeded()):
                assert part is None or part.isfinite().all()


def test_training_learns_and_scores_the_mean_of_clipped_readings():
    """A denoiser that gives this mean has no error, and the plane's mean is that of readings."""
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 60, (64, 64)).astype(np.uint8) for _ in range(3))
    training_data = SyntheticNoiseData(
        CleanImageDataset(images[:2], images[2:]), Detector(sigma=60, black=0)
    )
    phase = Phase(1, 300, 32)
    target, noisy, means = training_data.batch(phase, rng, torch.device("cpu"))
    assert torch.equal(target, noisy.target)
    assert float((noisy.image - target).mean()) == pytest.approx(0, abs=0.002)
    assert float((means - noisy.image.mean(dim=(1, 2, 3), keepdim=True)).abs().max()) < 0.03

    def perfect(noisy, means=None, *, exact=False):
        return noisy.target

    assert training_data.score(perfect, torch.device("cpu")) == pytest.approx(120)


def test_sometimes_is_nothing_in_the_other_images():
    values = draw(Sometimes(Uniform(2, 3), 0.1), torch.zeros(5000, 1, 1, 1), seeded()).flatten()
    assert float((values > 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert (values[values > 0] >= 2).all()
    assert (draw(Sometimes(7.0, 1.0), torch.zeros(9, 1, 1, 1), seeded()) == 7).all()


def test_a_recipe_says_what_a_detector_is_like():
    table = {
        "kind": "detector",
        "sigma": {"log-uniform": [2.55, 408]},
        "relative": True,
        "shot": {"choice": [0, 0.5, 1]},
        "correlation": {"uniform": [0.35, 1.5], "chance": 0.35},
        "correlation_shape": "any",
        "black": {"uniform": [-1, 0.5], "chance": 0.1},
        "step": {"choice": [0.5], "chance": 0.1},
    }
    assert noise_from_dict([table]) == Detector(
        sigma=LogUniform(2.55, 408),
        relative=True,
        shot=Choice((0.0, 0.5, 1.0)),
        correlation=Sometimes(Uniform(0.35, 1.5), 0.35),
        correlation_shape="any",
        black=Sometimes(Uniform(-1, 0.5), 0.1),
        step=Sometimes(Choice((0.5,)), 0.1),
    )


def test_the_recipe_for_microscopy_knows_what_detectors_do():
    """Three quarters detectors, from 1 to 160 % of the bright level; two fifths correlated."""
    mixture = noise_from_dict(load_recipe("dn-microscopy").noise)
    assert [type(model) for model in mixture.models] == [
        Detector,
        Gaussian,
        Poisson,
        PoissonGaussian,
    ]
    assert mixture.shares[0] == pytest.approx(0.75 * sum(mixture.shares))
    clean = torch.full((400, 1, 48, 48), 0.5)
    noisy = mixture.models[0](clean, seeded())
    std = noisy.std.mean(dim=(1, 2, 3)) / 0.5
    assert 0.005 < float(std.min()) < 0.015
    assert 1.2 < float(std.max()) < 2
    assert float(std.median()) == pytest.approx(math.sqrt(0.01 * 1.6), rel=0.4)
    clipped = noisy.target.mean(dim=(1, 2, 3)) > 0.5
    assert float(clipped.float().mean()) == pytest.approx(0.12, abs=0.06)
    noise = noisy.image - noisy.target
    pairs = (noise[..., 1:] * noise[..., :-1]).mean(dim=(1, 2, 3))
    correlated = pairs / noise.square().mean(dim=(1, 2, 3)) > 0.12
    assert float(correlated.float().mean()) == pytest.approx(0.36, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "must have either gain and read_noise, or sigma, got none of them. Give one"),
        ({"gain": 1, "sigma": 5}, "got sigma and gain. Leave one out"),
        ({"gain": -1}, "gain must be a finite non-negative number, got -1"),
        ({"gain": float("nan")}, "gain must be a finite"),
        ({"gain": True}, "gain must be a finite"),
        ({"gain": 10**400}, "gain must be a finite"),
        ({"gain": 1, "read_noise": "low"}, "read_noise must be a finite"),
        ({"sigma": 1e10}, "sigma must be in 0..1e[+]09, got 10000000000.0"),
        ({"sigma": 5, "shot": 1.5}, "shot must be in 0..1, got 1.5"),
        ({"gain": 1, "shot": 0.5}, "shot of a detector must come with sigma, got it with gain"),
        ({"gain": 1, "relative": True}, "relative of a detector must come with sigma"),
        ({"sigma": 5, "relative": "yes"}, "relative must be true or false, got 'yes'"),
        ({"sigma": 5, "correlation": 17}, "correlation must be in 0..16, got 17"),
        ({"sigma": 5, "correlation": Uniform(2, 1)}, "correlation must have low <= high"),
        ({"sigma": 5, "correlation_shape": "round"}, "one of isotropic, .*, got 'round'"),
        ({"sigma": 5, "correlation_shape": ["box"]}, "correlation_shape must be one of"),
        ({"sigma": 5, "hot_pixels": 2}, "hot_pixels must be in 0..1, got 2"),
        ({"sigma": 5, "step": -1}, "step must be a finite non-negative number"),
        ({"sigma": 5, "black": float("-inf")}, "black must be a finite number, got -inf"),
        ({"sigma": 5, "pedestal": Sometimes(-3, 0.5)}, "pedestal must be a finite non-negative"),
    ],
)
def test_settings_out_of_range_are_refused_in_a_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        Detector(**settings)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"gain": 10**400}, "gain must be a number, got 1000"),
        ({"sigma": {"uniform": [0, 1], "chance": 2}}, "chance must be in 0..1, got 2"),
        ({"sigma": {"uniform": [0, 1], "chance": "x"}}, "sigma.chance must be a number"),
        ({"sigma": {"chance": 0.5}}, "sigma must be a number, .*perhaps with a chance"),
        ({"sigma": 1, "noise": 2}, "noise 'detector' has settings .*which do not fit it"),
        ({"sigma": 1, "relative": 1}, "relative must be true or false, got 1"),
    ],
)
def test_recipes_with_impossible_detectors_are_refused_in_a_sentence(table, words):
    with pytest.raises(ValueError, match=words):
        noise_from_dict([{"kind": "detector", **table}])
