from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dn_core.network_config import NetworkConfig, half_resolution_config, paper_config
from dn_core.networks import (
    DnResNet,
    count_macs,
    count_parameters,
    grow,
    insert_block,
    replace_block,
)

SIZE = (480, 640)

NETWORKS = {
    "paper": paper_config(7),
    "separable": paper_config(7, block="separable"),
    "half resolution": half_resolution_config(16, 2),
    "noise map": half_resolution_config(16, 1, noise_map=True),
    "three planes": NetworkConfig(
        entry=((3, 8),), blocks=("full",), last_kernel=3, residual=True, planes_in=3
    ),
}


@pytest.mark.parametrize(
    ("layers", "weights"),
    [(3, 57_184), (5, 75_616), (7, 94_048), (9, 112_480), (11, 130_912), (13, 149_344)],
)
def test_paper_networks_have_the_papers_weights(layers, weights):
    network = DnResNet(paper_config(layers))
    assert count_parameters(network) == weights
    assert network.config.depth == layers


def test_paper_networks_have_the_papers_multiplications():
    full, separable = (DnResNet(paper_config(13, block=block)) for block in ("full", "separable"))
    assert round(count_macs(full, SIZE) / 1e9, 1) == 45.9
    assert round(count_macs(separable, SIZE) / 1e9, 1) == 19.6
    assert count_parameters(separable) == 63_744


def test_a_paper_network_that_predicts_the_noise_has_the_same_weights_and_work():
    plain, noise_out = (
        paper_config(13, residual=noise_out, subtract_mean=noise_out) for noise_out in (False, True)
    )
    assert plain.weight_shapes() == noise_out.weight_shapes()
    assert (noise_out.residual, noise_out.subtract_mean) == (True, True)
    assert (plain.residual, plain.subtract_mean) == (False, False)


def test_half_resolution_network_has_a_quarter_of_the_multiplications():
    network = DnResNet(half_resolution_config())
    assert count_parameters(network) == 299_520
    assert count_macs(network, (512, 512)) == 74_880 * 512 * 512
    assert network.config.halo == 20


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_shapes_of_the_settings_are_those_of_the_module(name):
    network = DnResNet(NETWORKS[name])
    assert NETWORKS[name].weight_shapes() == {
        key: tuple(value.shape) for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=20)
@given(scale=st.floats(1e-3, 1e4))
def test_results_scale_with_the_image(name, scale):
    network = DnResNet(NETWORKS[name]).double().eval()
    image = torch.rand(
        1,
        NETWORKS[name].inputs,
        12,
        14,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            network(scale * image), scale * network(image), rtol=1e-9, atol=1e-9 * scale
        )


def test_networks_that_subtract_the_mean_ignore_an_offset():
    network = DnResNet(half_resolution_config(16, 1)).double()
    image = torch.rand(2, 1, 10, 11, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(image + 500), network(image) + 500, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["paper", "half resolution"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (16, 16)])
def test_any_size_comes_back(name, size):
    network = DnResNet(NETWORKS[name])
    assert network(torch.rand(2, 1, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pixel_depends_on_no_more_than_the_halo(name):
    config = NETWORKS[name]
    network = DnResNet(config).double()
    reach = config.halo
    side = 2 * reach + 4 * config.shuffle
    middle = (side // 2) // config.shuffle * config.shuffle
    image = torch.rand(1, config.inputs, side, side, dtype=torch.float64, requires_grad=True)
    network.body(image)[0, 0, middle, middle].backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.min() >= middle - reach
    assert rows.max() <= middle + reach + config.shuffle - 1
    assert (
        rows.min() < middle - reach + config.shuffle
    )  # and on no less: the halo is not larger than needed


def test_inserted_block_inherits_everything_else():
    network = DnResNet(paper_config(5))
    grown = insert_block(network, generator=torch.Generator().manual_seed(1))
    assert grown.config == paper_config(7)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(grown.state_dict()[name], value, rtol=0, atol=0)
    assert 0 < grown.blocks[-1].first.weight.std() < 0.0012
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(grown(image), network(image), rtol=0.05, atol=0.05)


def test_replaced_block_inherits_everything_else():
    network = DnResNet(paper_config(9))
    evolved = replace_block(network, -1)
    assert evolved.config.blocks == ("full", "full", "separable")
    assert count_parameters(evolved) == count_parameters(network) - 2 * 9 * 32**2 + 9 * 32 + 32**2
    kept = [name for name in network.state_dict() if not name.startswith("blocks.2")]
    assert all(torch.equal(evolved.state_dict()[name], network.state_dict()[name]) for name in kept)


@pytest.mark.parametrize("config", [paper_config(5), half_resolution_config(8, 1)])
def test_an_inserted_identity_changes_nothing_yet_can_learn(config):
    network = DnResNet(config)
    grown = insert_block(network, start="identity")
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(grown(image), network(image), rtol=0, atol=1e-6)
    grown(image).square().mean().backward()
    assert grown.blocks[-1].second.weight.grad.abs().max() > 0


def test_growing_inserts_only_full_blocks():
    network = DnResNet(paper_config(5))
    assert grow(network, paper_config(5), start="identity") is network
    assert grow(network, paper_config(9), start="paper").config == paper_config(9)
    for config in (
        paper_config(3),
        half_resolution_config(32, 2),
        replace(paper_config(5), blocks=("full", "separable")),
    ):
        with pytest.raises(ValueError, match="cannot become the one asked for"):
            grow(network, config, start="identity")
    with pytest.raises(ValueError, match="start must be one of .*, got 'zero'"):
        insert_block(network, start="zero")


def test_growing_draws_only_from_the_generator_given():
    network = DnResNet(paper_config(5))
    before = torch.random.get_rng_state()
    grown = insert_block(network, generator=torch.Generator().manual_seed(3))
    evolved = replace_block(grown, 0, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert evolved.config.blocks == ("separable", "full")


def test_replacing_a_block_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match=r"index must be in -1..0, as the network has 1 blocks, got 5"
    ):
        replace_block(DnResNet(paper_config(5)), 5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"entry": ((4, 64),)}, "odd"),
        ({"entry": ((3, 2**20),)}, "1..1024"),
        ({"blocks": ("full",) * 1000}, "0..256"),
        ({"blocks": ("dense",)}, "'full' or 'separable'"),
        ({"shuffle": 0}, "1..8"),
        ({"residual": 1}, "true or false"),
        ({"planes_in": 2}, "odd"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_built(settings, words):
    with pytest.raises(ValueError, match=words):
        NetworkConfig(**settings)


def test_settings_survive_a_card():
    for config in NETWORKS.values():
        assert NetworkConfig.from_dict(config.as_dict()) == config
    with pytest.raises(ValueError, match="unknown settings"):
        NetworkConfig.from_dict({"width": 3})
    with pytest.raises(ValueError, match="3, 5, 7"):
        paper_config(4)
