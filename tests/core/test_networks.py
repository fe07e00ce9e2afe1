import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dn_core.network_config import (
    Level,
    NetworkConfig,
    half_resolution_config,
    levels_config,
    paper_config,
)
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
    "levels": levels_config((8, 12, 16), (1, 1, 2), (1, 1)),
    "one level": levels_config((8, 12), (0, 1), (0,), shuffle=4, noise_map=True),
    "three levels, all kinds": NetworkConfig(
        entry=((5, 6), (3, 8)),
        blocks=("separable",),
        levels=(
            Level(4, ("full",), ("separable", "full")),
            Level(6, (), ("full",)),
            Level(8, ("full", "separable")),
        ),
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


@pytest.mark.parametrize(
    ("settings", "million_weights", "thousand_macs"),
    [
        (((48, 96, 128), (1, 1, 2), (1, 1)), 1.143168, 55.392),
        (((64, 96, 128), (2, 3, 4), (2, 3)), 2.62, 160.1),
        (((32, 64, 128), (1, 2, 2), (1, 2)), 1.01, 39.5),
        (((64, 128), (2, 4), (2,), 4), 1.56, 39.0),
        (((64, 128), (1, 3), (1,), 4), 1.12, 25.2),
    ],
)
def test_each_level_multiplies_at_its_own_resolution(settings, million_weights, thousand_macs):
    channels, blocks, blocks_up, *shuffle = settings
    config = levels_config(channels, blocks, blocks_up, shuffle=shuffle[0] if shuffle else 2)
    network = DnResNet(config)
    assert count_parameters(network) / 1e6 == pytest.approx(million_weights, abs=0.006)
    assert config.macs_per_pixel / 1000 == pytest.approx(thousand_macs, abs=0.06)
    assert count_macs(network, (512, 256)) == config.macs_per_pixel * 512 * 256
    # A plane is padded to whole cells of the coarsest level.
    stride = config.stride
    assert count_macs(network, (stride + 1, 1)) == count_macs(network, (2 * stride, stride))


def test_the_small_network_with_levels_has_just_so_many_weights_and_multiplications():
    assert count_parameters(DnResNet(levels_config())) == 1_143_168
    assert levels_config().macs_per_pixel == 55_392


def test_the_network_with_levels_reaches_64_pixels_in_steps_of_8():
    config = levels_config()
    assert (config.stride, config.halo, config.depth) == (8, 64, 18)
    assert config.block_names == (
        "blocks.0",
        "levels.0.blocks.0",
        "levels.1.blocks.0",
        "levels.1.blocks.1",
        "levels.0.blocks_up.0",
        "blocks_up.0",
    )


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


@pytest.mark.parametrize("config", [half_resolution_config(16, 1), NETWORKS["levels"]])
def test_networks_that_subtract_the_mean_ignore_an_offset(config):
    network = DnResNet(config).double()
    image = torch.rand(2, 1, 10, 11, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(image + 500), network(image) + 500, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["paper", "half resolution", "levels"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (16, 16), (13, 37)])
def test_any_size_comes_back(name, size):
    network = DnResNet(NETWORKS[name])
    assert network(torch.rand(2, 1, *size)).shape == (2, 1, *size)


def test_the_last_row_and_column_are_repeated_up_to_whole_cells_of_the_coarsest_level():
    network = DnResNet(NETWORKS["levels"]).double()
    image = torch.rand(1, 1, 13, 18, dtype=torch.float64)
    padded = torch.nn.functional.pad(image, (0, 6, 0, 3), mode="replicate")
    mean = image.mean(dim=(-2, -1), keepdim=True)
    with torch.no_grad():
        expected = image - network.body(padded - mean)[..., :13, :18]
        torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pixel_depends_on_no_more_than_the_halo(name):
    config = NETWORKS[name]
    network = DnResNet(config).double()
    reach = config.halo
    side = 2 * reach + 4 * config.stride
    middle = (side // 2) // config.stride * config.stride
    image = torch.rand(1, config.inputs, side, side, dtype=torch.float64, requires_grad=True)
    network.body(image)[0, 0, middle, middle].backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.min() >= middle - reach
    assert rows.max() <= middle + reach + config.stride - 1
    assert (
        rows.min() < middle - reach + config.stride
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


def test_a_block_is_inserted_at_a_level():
    """At the end of its way up; the last level has none, there it is the end of its blocks."""
    network = DnResNet(NETWORKS["levels"])
    image = torch.rand(1, 1, 24, 24)
    for level, name in enumerate(["blocks_up.1", "levels.0.blocks_up.1", "levels.1.blocks.2"]):
        grown = insert_block(network, level=level, start="identity")
        new = {key for key in grown.state_dict() if key not in network.state_dict()}
        assert new == {f"{name}.first.weight", f"{name}.second.weight"}
        torch.testing.assert_close(grown(image), network(image), rtol=0, atol=1e-5)
        grown(image).square().mean().backward()
        assert grown.get_submodule(name).second.weight.grad.abs().max() > 0
    for level in (-1, 3, 1.0):
        with pytest.raises(ValueError, match=rf"level must be in 0..2, .* 2 levels, got {level}"):
            insert_block(network, level=level)
    with pytest.raises(ValueError, match=r"level must be in 0..0, .* 0 levels, got 1"):
        insert_block(DnResNet(paper_config(5)), level=1)


def test_growing_at_levels_inserts_behind_the_blocks_that_are_there():
    small, large = (
        levels_config((8, 12, 16), blocks, blocks_up)
        for blocks, blocks_up in (((1, 0, 1), (0, 1)), ((1, 1, 2), (1, 1)))
    )
    network, image = DnResNet(small), torch.rand(1, 1, 24, 24)
    grown = grow(network, large, start="identity")
    assert grown.config == large
    torch.testing.assert_close(grown(image), network(image), rtol=0, atol=1e-5)
    for other in (
        small,
        levels_config((8, 12), (1, 1), (1,)),
        levels_config((8, 12, 32), (1, 1, 2), (1, 1)),
        half_resolution_config(8, 4),
    ):
        with pytest.raises(ValueError, match="cannot become the one asked for"):
            grow(grown, other, start="identity")


def test_a_replaced_block_is_counted_through_the_levels_in_the_order_of_computing():
    network = DnResNet(NETWORKS["levels"])
    for index, name in enumerate(network.config.block_names):
        evolved = replace_block(network, index)
        assert evolved.config.all_blocks[index] == "separable"
        assert evolved.config.all_blocks.count("separable") == 1
        lost = {key for key in network.state_dict() if key not in evolved.state_dict()}
        assert lost == {f"{name}.first.weight", f"{name}.second.weight"}
        kept = network.state_dict().keys() - lost
        assert all(torch.equal(evolved.state_dict()[k], network.state_dict()[k]) for k in kept)


def test_first_weights_on_the_way_down_and_up_keep_the_variance():
    """Each number that a transposed convolution gives comes from one place, not from four."""
    level = DnResNet(levels_config((64, 128), (0, 0), (0,))).levels[0]
    assert float(level.down.weight.detach().std()) == pytest.approx((64 * 4) ** -0.5, rel=0.03)
    assert float(level.up.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.03)
    image = torch.randn(1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(level.up(level.down(image)).std()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("config", [half_resolution_config(), levels_config()])
def test_a_new_network_that_predicts_the_noise_begins_near_the_identity(config):
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert 0.1 < DnResNet(config).body(noise).std() < 0.8


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
        ({"blocks_up": ("full",)}, "blocks_up must be empty without levels"),
        ({"levels": (Level(8, (), ("full",)),)}, "blocks_up of the last level must be empty"),
        ({"levels": (Level(8, ()),) * 4}, "0..3 items"),
        ({"levels": ({"channels": 8, "blocks": ()},)}, "must be of the class Level"),
        ({"levels": (Level(8, ()),) * 3, "shuffle": 8}, r"at most 32, got 8 \* 2\*\*3 = 64"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_built(settings, words):
    with pytest.raises(ValueError, match=words):
        NetworkConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"channels": 48}, "channels must be a list of 2..4 items, got 48"),
        ({"channels": (48,)}, "2..4 items"),
        ({"channels": (48, 0, 128)}, r"channels\[1\] must be a whole number in 1..1024, got 0"),
        ({"blocks": (1, 1)}, "n, n and n - 1 numbers, got 3, 2 and 2"),
        ({"blocks_up": (1, 1, 1)}, "n, n and n - 1 numbers, got 3, 3 and 3"),
        ({"blocks_up": (1, -1)}, r"blocks_up\[1\] must be a whole number in 0..256, got -1"),
        ({"shuffle": 16}, "shuffle must be a whole number in 1..8"),
    ],
)
def test_levels_that_do_not_fit_together_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        levels_config(**settings)
    with pytest.raises(ValueError, match="channels of a level must be a whole number in 1..1024"):
        Level(0, ())


def test_settings_survive_a_card():
    for config in NETWORKS.values():
        assert NetworkConfig.from_dict(config.as_dict()) == config
        assert NetworkConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(ValueError, match="unknown settings"):
        NetworkConfig.from_dict({"width": 3})
    with pytest.raises(ValueError, match="3, 5, 7"):
        paper_config(4)
