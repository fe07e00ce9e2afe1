"""Stage plans: the networks that a recipe trains one after the other, and their first weights.

Paper, sections 3.1 (cascade) and 3.2 (evolution).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dn_core.network_config import BlockKind, NetworkConfig
from dn_core.networks import DnResNet, grow, replace_block
from dn_core.training.recipes import Recipe

__all__ = ["Stage", "plan_stages"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training.

    Attributes
    ----------
    number : int
        From 0.
    network : NetworkConfig
        The network that it trains.
    new_blocks : tuple of int, optional
        Indices of the blocks that are new in it, in the order of computing
        (`NetworkConfig.block_names`); none where all weights are new, or none is.
    """

    number: int
    network: NetworkConfig
    new_blocks: tuple[int, ...] = ()

    def initial_network(self, previous: DnResNet | None, recipe: Recipe) -> DnResNet | None:
        """The network that the stage starts with.

        Parameters
        ----------
        previous : DnResNet or None
            The trained network of the stage before; None for none.
        recipe : Recipe
            The whole recipe. New weights come from its seed and the stage alone.

        Returns
        -------
        DnResNet or None
            None without a previous one: random weights.
        """
        if previous is None:
            return None
        generator = torch.Generator().manual_seed(recipe.seed * 1009 + self.number)
        if len(self.network.all_blocks) > len(previous.config.all_blocks):
            return grow(previous, self.network, start=recipe.new_blocks, generator=generator)
        network = previous
        for index in self.new_blocks:
            network = replace_block(network, index, start=recipe.new_blocks, generator=generator)
        return network

    def recipe(self, whole: Recipe, *, last: bool) -> Recipe:
        """The recipe of this stage of `whole`, for `fit`."""
        phases = whole.last_phases if last and whole.last_phases else whole.phases
        return replace(
            whole, network=self.network, plan="once", start="", phases=phases, last_phases=()
        )


def plan_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """List the stages of a recipe.

    ``"once"`` has one. ``"cascade"`` starts without blocks and inserts one a stage, behind those
    that are there; a network with levels has all of its levels from the start. ``"evolve"`` takes
    the trained network `start`, whose blocks are full, and makes one a stage separable, from the
    tail side; ``"evolve-once"`` makes all separable in one stage.

    Parameters
    ----------
    recipe : Recipe
        The recipe.

    Returns
    -------
    tuple of Stage
        In order.
    """
    network, blocks = recipe.network, recipe.network.all_blocks
    if recipe.plan == "once":
        return (Stage(0, network),)
    if recipe.plan == "cascade":
        return tuple(
            Stage(count, network.with_blocks(blocks[:count]), (count - 1,) * (count > 0))
            for count in range(len(blocks) + 1)
        )
    separable = [index for index in reversed(range(len(blocks))) if blocks[index] == "separable"]
    if recipe.plan == "evolve-once":
        return (Stage(0, network, tuple(separable)),)
    stages, kinds = [], list[BlockKind](["full"] * len(blocks))
    for number, index in enumerate(separable):
        kinds[index] = "separable"
        stages.append(Stage(number, network.with_blocks(tuple(kinds)), (index,)))
    return tuple(stages)
