"""The pieces of benchmarks/compare.py, and a short run of it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "compare.py"


@pytest.fixture(scope="module")
def compare():
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of this source distribution")
    specification = importlib.util.spec_from_file_location("benchmarks_compare", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


@pytest.fixture(scope="module")
def peers(compare, data_folder):
    if not (data_folder / "peers" / "peers.json").exists():
        pytest.skip(f"no peers in {data_folder}")
    return compare.load_peers(data_folder / "peers")


@pytest.mark.parametrize("read_noise", [0.0, 1.0, 12.0])
def test_the_inverse_anscombe_transform_gives_high_counts_back(compare, read_noise):
    counts = np.linspace(500, 5000, 50)
    back = compare.inverse_anscombe(compare.anscombe(counts, read_noise), read_noise)
    # Unbiased for the mean of transformed noisy counts, so it lies a quarter above the count itself.
    np.testing.assert_allclose(back, counts + 0.25, atol=0.02)


def test_the_inverse_anscombe_transform_is_unbiased_at_low_counts(compare):
    generator = np.random.default_rng(0)
    for mean in (0.5, 1.0, 4.0):
        values = compare.anscombe(generator.poisson(mean, 400_000).astype(float), 0.0)
        assert float(compare.inverse_anscombe(values.mean(), 0.0)) == pytest.approx(mean, abs=0.03)


@pytest.mark.parametrize("read_noise", [0.0, 2.0])
def test_the_anscombe_transform_makes_the_noise_white(compare, read_noise):
    generator = np.random.default_rng(0)
    counts = generator.poisson(20, 100_000) + generator.normal(0, read_noise, 100_000)
    assert compare.anscombe(counts, read_noise).std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["dncnn_s25", "ffdnet_gray"])
def test_peers_are_the_same_in_torch_and_openvino(compare, peers, name):
    pytest.importorskip("openvino")
    noisy = np.random.default_rng(0).random((24, 32), np.float32)
    by_torch = compare.PeerMethod(peers[name])(noisy, 25 / 255)
    by_openvino = compare.peer_in_openvino(peers[name], noisy.shape, "f32")(noisy, 25 / 255)
    assert by_torch.shape == noisy.shape
    np.testing.assert_allclose(by_openvino, by_torch, atol=1e-4)


def test_peers_have_the_weights_that_their_list_says(compare, peers, data_folder):
    listed = compare.peer_facts(data_folder / "peers")
    assert {name: peer.parameters for name, peer in peers.items()} == {name: facts["params"] for name, facts in listed.items()}


def test_ffdnet_takes_odd_sides(compare, peers):
    noisy = np.random.default_rng(0).random((9, 11), np.float32)
    assert compare.PeerMethod(peers["ffdnet_gray"])(noisy, 0.1).shape == (9, 11)


def test_set14_noise_is_the_same_each_time(compare):
    images = [np.full((8, 8), 0.5, np.float32)] * 2
    level = compare.Level(10, 1)
    first, second = level.noisy(images), level.noisy(images)
    assert level.name == "1/10"
    np.testing.assert_array_equal(first[1][0], second[1][0])
    assert not np.array_equal(first[0][0], first[1][0])


@pytest.mark.slow
def test_a_short_run_writes_the_page(compare, peers, data_folder, tmp_path, capsys):
    page, figures = tmp_path / "docs" / "benchmarks.md", tmp_path / "figures.json"
    options = ["--data", str(data_folder), "--quick", "--parts", "quality", "--limit", "2", "--output", str(page), "--json", str(figures)]
    assert compare.main(options) == 0
    text = page.read_text("utf-8")
    found = json.loads(figures.read_text("utf-8"))["quality"]
    assert "| BM3D (published) | 32.37 / - |" in text
    assert "GPU: not measured" in text
    assert str(data_folder) not in text
    assert str(tmp_path) not in text
    for row in found["peers"]:
        assert row["measured"] == pytest.approx(row["expected"], abs=compare.TOLERANCE), row
    assert "figures are reproduced" in capsys.readouterr().out
