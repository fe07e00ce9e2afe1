"""The OpenVINO graph, which is built without torch, computes what the torch module computes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from small_models import CONFIGS, small_model

import dn_core
from dn_core.checkpoints import Card, Checkpoint
from dn_core.inference.engines import choose_device
from dn_core.inference.engines.openvino import OpenVinoEngine
from dn_core.inference.engines.torch import TorchEngine
from dn_core.network_config import Level, NetworkConfig, levels_config
from dn_core.networks import DnResNet

openvino = pytest.importorskip("openvino")


def run(engine, array):
    return next(iter(engine.run([(0, array)], parallel=False)))[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_openvino_equals_torch(name):
    model = small_model(name)
    array = np.random.default_rng(0).random((model.config.inputs, 40, 48), "f4")
    expected = run(TorchEngine(model.checkpoint, "cpu", "float32"), array)
    np.testing.assert_allclose(
        run(OpenVinoEngine(model.checkpoint, "float32"), array), expected, atol=2e-5
    )


@pytest.mark.parametrize(
    "config",
    [
        levels_config(),
        levels_config((64, 128), (1, 3), (1,), shuffle=4),
        NetworkConfig(
            entry=((5, 6), (3, 8)),
            blocks=("separable",),
            levels=(
                Level(4, ("full",), ("separable", "full")),
                Level(12, (), ("full",)),
                Level(16, ("full", "separable")),
            ),
            blocks_up=("separable",),
        ),
    ],
    ids=["small", "entry at a quarter", "three levels, all kinds"],
)
def test_openvino_equals_torch_at_every_level_to_the_rounding_of_float32(config):
    network = DnResNet(config)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    checkpoint = Checkpoint(config, weights, Card("levels"))
    array = np.random.default_rng(0).standard_normal((1, 64, 96)).astype("f4")
    exact = run(TorchEngine(checkpoint, "cpu", "float64"), array.astype("f8"))
    for engine in (OpenVinoEngine, lambda *found: TorchEngine(found[0], "cpu", found[1])):
        error = run(engine(checkpoint, "float32"), array) - exact
        assert np.abs(error).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("name", dn_core.model_names())
def test_openvino_equals_torch_for_bundled_models(name):
    checkpoint = dn_core.load_model(name).checkpoint
    array = np.random.default_rng(0).random((1, 64, 64), "f4")
    expected = run(TorchEngine(checkpoint, "cpu", "float32"), array)
    np.testing.assert_allclose(
        run(OpenVinoEngine(checkpoint, "float32"), array), expected, atol=5e-5
    )


@pytest.mark.parametrize("name", dn_core.model_names())
def test_reduced_precision_costs_next_to_nothing_on_8_bit_images(name):
    from skimage import data
    from skimage.metrics import peak_signal_noise_ratio

    clean = data.camera()[100:356, 100:356]
    noisy = np.clip(
        np.rint(clean + np.random.default_rng(0).normal(0, 25, clean.shape)), 0, 255
    ).astype(np.uint8)
    full, reduced = (
        peak_signal_noise_ratio(clean, dn_core.denoise(noisy, name, precision=p))
        for p in ("float32", "bfloat16")
    )
    assert full - reduced < 0.02


def test_many_tiles_come_back_in_order_with_their_keys():
    engine = OpenVinoEngine(small_model().checkpoint, "float32")
    arrays = [np.full((1, 16, 16), index, "f4") + np.eye(16, dtype="f4") for index in range(20)]
    results = list(engine.run(enumerate(arrays), parallel=True))
    assert [key for key, _ in results] == list(range(20))
    for key, result in results:
        np.testing.assert_allclose(result, run(engine, arrays[key]), atol=1e-5)


def test_an_error_while_reading_tiles_comes_through():
    def tiles():
        yield 0, np.zeros((1, 16, 16), "f4")
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        list(OpenVinoEngine(small_model().checkpoint, "float32").run(tiles(), parallel=True))


def test_sixteen_bit_images_are_never_computed_in_reduced_precision():
    assert dn_core.engine_name(dtype=np.uint16, device="cpu").endswith("float32")
    assert dn_core.engine_name(dtype=np.float32, device="cpu").endswith("float32")


def test_devices_are_chosen_by_name():
    assert choose_device("cpu") == "cpu"
    assert choose_device(None).split(":")[0] in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("device", ["cpu:0", "cuda:", "cuda:x", "cuda:-1", "mps:1", 0])
def test_names_of_devices_that_mean_nothing_are_refused(device):
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda', 'cuda:N' or 'mps', got"):
        choose_device(device)


def test_the_number_of_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="must be one of 'cuda:0' to 'cuda:1', got 'cuda:2'"):
        choose_device("cuda:2")


def test_denoising_on_a_cpu_loads_no_torch():
    code = (
        "import sys, numpy as np, dn_core; dn_core.denoise(np.random.default_rng(0).random((32, "
        "32), 'f4'), device='cpu'); "
        "assert 'torch' not in sys.modules, 'torch'; assert 'skimage' not in sys.modules, 'skimage'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
