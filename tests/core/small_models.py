"""Small networks with random weights, for tests where only the handling of arrays matters."""

import functools

import torch

from dn_core.checkpoints import Card, Checkpoint
from dn_core.inference.model import Model
from dn_core.network_config import (
    NetworkConfig,
    half_resolution_config,
    levels_config,
    paper_config,
)
from dn_core.networks import DnResNet

CONFIGS = {
    "direct": NetworkConfig(entry=((3, 8),), blocks=("full", "separable"), last_kernel=3),
    "residual": half_resolution_config(8, 1),
    "noise map": half_resolution_config(8, 1, noise_map=True),
    "paper": paper_config(5),
    "levels": levels_config((8, 8, 8), (1, 0, 1), (1, 0)),
}


@functools.cache
def small_model(name: str = "residual") -> Model:
    """A model of `CONFIGS`, always with the same weights; output and input have one size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = DnResNet(CONFIGS[name])
    weights = {
        key: value.numpy() * (0.5 if key == "last.weight" else 1)
        for key, value in network.state_dict().items()
    }
    return Model(Checkpoint(CONFIGS[name], weights, Card(name=name.replace(" ", "-"))))
