"""The trainer: network, averaged weights, optimizers and counters of one training run.

Everything random in a step comes from (seed, stage, rank of the process, step), so a run is resumed
with the same weights without the state of a random generator.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core.errors import OtherRunError
from dn_core.losses import edge_aware, mse
from dn_core.networks import DnResNet, grow
from dn_core.noise import Noisy
from dn_core.training.data.training_data import Denoiser, TrainingData
from dn_core.training.hardware import check_steps, chosen_precision
from dn_core.training.optimizers import build_optimizers
from dn_core.training.process_group import ALONE, ProcessGroup
from dn_core.training.recipes import Recipe
from dn_core.training.schedule import Clock, Schedule
from dn_core.training.state import (
    check_weights,
    differences,
    other_run_message,
    read_state,
    restore_optimizer,
    tensors_under,
    write_state,
)

__all__ = ["Trainer", "arrays_of"]

COUNTERS = (
    "step",
    "loss",
    "megapixels",
    "epochs",
    "epoch_began",
    "epoch_loss",
    "epoch_sum",
    "rate",
)
TIMES = ("seconds", "ending", "epoch_began_at")
SCORES = ("psnr", "start_psnr", "best_psnr", "best_step", "scored_step")
WEIGHT_FLOOR = 8 / 255


class Trainer:
    """One training run: a step, a score, and the state that it is resumed from.

    Parameters
    ----------
    recipe : Recipe
        What to train, and how.
    training_data : TrainingData
        Where batches and scores come from.
    device : str
        A device of torch.
    precision : str, default "auto"
        ``"bfloat16"``, ``"float32"``, or ``"auto"`` to ask `bfloat16_helps`.
    stage : int, default 0
        The number of the stage, one of the sources of random numbers.
    initial_network : DnResNet, optional
        The network to start with, of the recipe's settings with as many blocks or fewer; None for
        random weights. A recipe with a `start` needs it.
    keep_best : bool, default False
        Whether to keep the weights of the best score.
    workers : ProcessGroup, default ALONE
        The processes that train together.

    Attributes
    ----------
    ema_weights
        The averaged weights, which become the model.
    best, best_psnr, best_step
        With `keep_best` the averaged weights of the highest score so far, which may be the first
        ones, the score, and the steps after which it was reached.
    psnr
        The last score.
    clock
        The seconds of training, of which `seconds` were over after the last step.
    part
        How much of the schedule is done, 0..1.
    whole
        Whether the state may be saved: False while a step changes the weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        training_data: TrainingData,
        device: str,
        precision: str = "auto",
        *,
        stage: int = 0,
        initial_network: DnResNet | None = None,
        keep_best: bool = False,
        workers: ProcessGroup = ALONE,
    ) -> None:
        check_steps(recipe, workers, device)
        self.recipe, self.training_data = recipe, training_data
        self.keep_best, self.workers, self.stage = keep_best, workers, stage
        self.device = torch.device(device)
        self.precision = chosen_precision(precision, device, workers)
        self.data = training_data.fingerprint()
        self._build(initial_network)
        # Counters; those named in COUNTERS, TIMES and SCORES are saved.
        self.step, self.loss, self.megapixels = 0, math.nan, 0.0
        self.epochs, self.epoch_began = 0, 0
        self.epoch_loss, self.epoch_sum = math.nan, 0.0
        self.rate = 1.0  # halved after a loss that is not finite
        self.schedule, self.clock, self.part = Schedule(recipe), Clock(), 0.0
        self.seconds, self.ending, self.epoch_began_at, self._scored = 0.0, 0.0, 0.0, False
        self.best: dict[str, Tensor] = {}
        self.psnr = self.start_psnr = self.best_psnr = math.nan
        self.best_step, self.scored_step = 0, -1
        self.whole = True

    def _build(self, initial_network: DnResNet | None) -> None:
        """Make network, averaged weights and optimizers."""
        recipe = self.recipe
        if initial_network is None and recipe.start:
            raise ValueError(
                f"initial_network must be the network of the recipe's start, {recipe.start!r}, got "
                "None. Load it, or train with dn_core.train, which does."
            )
        network = _new_network(recipe)
        if initial_network is not None:
            network.load_state_dict(_grown(initial_network, recipe).state_dict())
        self.start = _fingerprint(network) if initial_network is not None else ""
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compute = self.workers.wrap(self.network)
        self.ema_weights = {
            name: value.detach().clone() for name, value in self.network.state_dict().items()
        }
        self.optimizers = build_optimizers(self.network, recipe.optimizer, recipe.lr)
        self.rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers
        ]

    @property
    def epoch(self) -> int:
        """The current epoch, from 1; 0 before the first step."""
        return self.epochs + (self.step > self.epoch_began)

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step done was the last of its epoch."""
        return 0 < self.step == self.epoch_began

    @property
    def over(self) -> bool:
        """Whether the last step is done; by the clock there is at least one."""
        return self.step > 0 and self.part >= 1

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.recipe.lr * self.rate * self.schedule.rate(self.step, self.part)

    @property
    def total(self) -> int:
        """See `Schedule.total`."""
        return self.schedule.total(self.step, self.part)

    def seconds_left(self, megapixels_per_second: float) -> float:
        """Seconds until the last step or until the time is over; NaN where neither is known.

        Parameters
        ----------
        megapixels_per_second : float
            The speed; 0 where it is unknown.

        Returns
        -------
        float
            The smaller of the two.
        """
        by_steps = (
            self._megapixels_left / megapixels_per_second if megapixels_per_second > 0 else math.nan
        )
        if not self.schedule.seconds:
            return by_steps
        by_clock = 0.0 if self.over else max(0.0, self.schedule.seconds - self.clock.seconds)
        return by_clock if math.isnan(by_steps) else min(by_steps, by_clock)

    @property
    def _megapixels_left(self) -> float:
        """Megapixels of the steps to come."""
        left, step = 0.0, self.step
        for phase in self.recipe.phases:
            left += max(phase.steps - max(step, 0), 0) * phase.batch * phase.patch**2 / 1e6
            step -= phase.steps
        return left

    def advance(self) -> float:
        """Do one step of the optimizers.

        Returns
        -------
        float
            The loss of its batch.

        Raises
        ------
        FloatingPointError
            When the loss or its gradient is not finite; the weights are unchanged.
        """
        self._begin_step()
        denoised, target, noisy = self._forward()
        loss = _loss(self.recipe, denoised, target, noisy.std)
        factor = self.rate * self.schedule.rate(self.step, self.part)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        # Both are read together: one wait for a GPU.
        own_value, squared = torch.stack([loss.detach(), self._squared_gradient()]).tolist()
        value = self.workers.mean(own_value, self.device)
        self._check_finite("loss", value)
        self._check_finite("gradient's square", squared)
        self.whole = False
        for optimizer in self.optimizers:
            optimizer.step()
        self._average_weights()
        self.step += 1
        self.megapixels += target.numel() * self.workers.size / 1e6
        self._count_loss(value)
        self._end_step()
        self.whole = True
        return value

    def _forward(self) -> tuple[Tensor, Tensor, Noisy]:
        """A batch through the network: denoised patches, their targets and the noisy ones."""
        phase, workers = self.schedule.phase(self.step, self.part), self.workers
        rng = np.random.default_rng((self.recipe.seed, self.stage, workers.rank, self.step))
        training_data = self.training_data.at(self.step, workers.rank, workers.size)
        share = replace(phase, batch=workers.share(phase.batch))
        target, noisy, means = training_data.batch(share, rng, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            denoised: Tensor = self.compute(self._with_map(noisy), means)
        return denoised, target, noisy

    def _count_loss(self, value: float) -> None:
        """Take a loss into the running mean and into the epoch's sum."""
        # At first the mean of all steps, then a running one: a lucky first step would weigh for
        # long.
        weight = max(0.01, 1 / self.step)
        self.loss = value if math.isnan(self.loss) else self.loss + (value - self.loss) * weight
        self.epoch_sum += value

    def _begin_step(self) -> None:
        """Notice, by the clock, when an epoch begins and how long it took to end the one before."""
        if self.schedule.seconds and self.step == self.epoch_began:
            now = self._now()
            self.ending = now - self.seconds if self._scored else self.ending
            self.epoch_began_at, self._scored = now, False

    def _end_step(self) -> None:
        """See how far it is, and end the epoch if it is time."""
        if self.schedule.seconds:
            self.seconds = self._now()
        self.part = self.schedule.part(self.step, self.seconds, self.ending)
        steps = self.step - self.epoch_began
        if self.over or self.schedule.epoch_ends(
            steps, self.seconds - self.epoch_began_at, self.ending
        ):
            self.epoch_loss, self.epoch_sum = (
                self.workers.of_first(self.epoch_sum / steps, self.device),
                0.0,
            )
            self.epochs, self.epoch_began = self.epochs + 1, self.step
            self.workers.check_equal(self.network.state_dict().values(), self.device)

    def _now(self) -> float:
        """The first worker's clock: all decide by the same one."""
        return self.workers.of_first(self.clock.seconds, self.device)

    def _set_clock(self, seconds: float) -> None:
        """Start the clock at a number of seconds."""
        self.seconds = seconds
        self.part = self.schedule.part(self.step, seconds, self.ending)
        self.clock.start(seconds)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} must be finite, got {value} at step {self.step}. Lower lr in the "
                "recipe; the last good state is kept."
            )

    def _squared_gradient(self) -> Tensor:
        gradients = [
            parameter.grad for parameter in self.network.parameters() if parameter.grad is not None
        ]
        return torch.stack(torch._foreach_norm(gradients)).square().sum()

    def _with_map(self, noisy: Noisy) -> Tensor:
        planes = noisy.with_map() if self.recipe.network.noise_map else noisy.image
        return planes.contiguous(memory_format=torch.channels_last)

    def _average_weights(self) -> None:
        decay = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        current = self.network.state_dict()
        torch._foreach_lerp_(
            list(self.ema_weights.values()), [current[name] for name in self.ema_weights], 1 - decay
        )

    def denoiser(self, weights: dict[str, Tensor] | None = None) -> Denoiser:
        """The network to denoise with.

        Parameters
        ----------
        weights : dict of str to torch.Tensor, optional
            Its weights; by default the averaged ones as they are now.

        Returns
        -------
        Denoiser
            It keeps these weights while the training run changes its own.
        """
        network = _new_network(self.recipe).to(self.device)
        network.load_state_dict(self.ema_weights if weights is None else weights)

        def denoise(noisy: Noisy, means: Tensor | None = None, *, exact: bool = False) -> Tensor:
            reduced = self.precision == "bfloat16" and not exact
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
                denoised: Tensor = network(self._with_map(noisy), means)
            return denoised

        return denoise

    def score(self) -> float | None:
        """Score the averaged weights, and keep them if they are the best so far.

        Returns
        -------
        float or None
            PSNR in dB on held-out images; None where there are none.
        """
        score = self.training_data.score(self.denoiser(), self.device)
        self._scored = True
        if self.keep_best and score is not None:
            self.psnr, self.scored_step = score, self.step
            if not self.best:
                self.start_psnr = score
            if not self.best or score > self.best_psnr:
                self.best = {name: value.clone() for name, value in self.ema_weights.items()}
                self.best_psnr, self.best_step = score, self.step
        return score

    def save(self, path: Path) -> None:
        """Write all that resuming needs, whole or not at all."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"ema_weights.{name}": value for name, value in self.ema_weights.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer{number}.{index}.{name}": value for name, value in state.items()
                }
        write_state(path, tensors, {**self._identity(), **self._counters()})

    def resume(self, path: Path, allow: tuple[str, ...]) -> None:
        """Resume from the state in `path`, if there is one, and start the clock.

        Parameters
        ----------
        path : Path
            Where a state may be.
        allow : tuple of str
            Settings, such as ``"recipe.phases"``, that may differ from those of the state.

        Raises
        ------
        ValueError
            When the state is of another recipe, other data or another precision.
        """
        if not path.exists():
            self._set_clock(0.0)
            return
        tensors, found = read_state(path)
        state = {"workers": 1, **found}
        if different := differences(self._identity(), state, allow):
            raise OtherRunError(other_run_message(path, different))
        values = {name: torch.from_numpy(array) for name, array in tensors.items()}
        for place in ("network.", "ema_weights.", *(("best.",) if self.keep_best else ())):
            check_weights(path, tensors_under(place, values), self.ema_weights)
        self.network.load_state_dict(tensors_under("network.", values))
        for name, value in tensors_under("ema_weights.", values).items():
            self.ema_weights[name].copy_(value)
        self.best = {
            name: value.to(self.device) for name, value in tensors_under("best.", values).items()
        }
        # Another optimizer, if allowed, starts without memory.
        if state.get("recipe", {}).get("optimizer") == self.recipe.optimizer:
            for number, optimizer in enumerate(self.optimizers):
                memory = tensors_under(f"optimizer{number}.", values)
                restore_optimizer(optimizer, memory, self.device)
        for name in self._counters():
            setattr(self, name, state.get(name, getattr(self, name)))
        self._set_clock(self.seconds)

    def go_back(self, path: Path, error: FloatingPointError, allow: tuple[str, ...]) -> None:
        """Resume from the last saved state at half the learning rate, once; then raise `error`."""
        if self.rate < 1:
            raise error
        seconds = self.clock.seconds
        self.resume(path, allow)
        self._set_clock(seconds)  # the steps that are lost have taken their time
        self.rate /= 2
        self.save(path)
        what = str(error).partition(". ")[0]
        warnings.warn(
            f"{what}; resuming from step {self.step} at half the learning rate.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _counters(self) -> dict[str, Any]:
        names = [*COUNTERS, *(SCORES if self.keep_best else ())]
        if self.schedule.seconds:  # else a run would not give the same state twice
            names += TIMES
        counters = {name: getattr(self, name) for name in names}
        return counters | ({"seconds": self.clock.seconds} if self.schedule.seconds else {})

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a state to be of this run."""
        return {
            "recipe": json.loads(json.dumps(self.recipe.as_dict())),
            "data": self.data,
            "precision": self.precision,
            "stage": self.stage,
            "start": self.start,
            "workers": self.workers.size,
        }


def arrays_of(weights: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Weights as a model file has them."""
    return {
        name: value.to("cpu", torch.float32).contiguous().numpy() for name, value in weights.items()
    }


def _loss(recipe: Recipe, denoised: Tensor, target: Tensor, std: Tensor) -> Tensor:
    patch_weight = None
    if recipe.loss_weight == "noise":
        patch_weight = (std.square().mean(dim=(1, 2, 3), keepdim=True) + WEIGHT_FLOOR**2).rsqrt()
    if recipe.loss == "mse":
        return mse(denoised, target, patch_weight)
    return edge_aware(denoised, target, recipe.loss, patch_weight=patch_weight)


def _new_network(recipe: Recipe) -> DnResNet:
    """With the first weights that the seed gives; torch's own random generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return DnResNet(recipe.network)


def _grown(start: DnResNet, recipe: Recipe) -> DnResNet:
    """The network to start from, with the blocks that it lacks."""
    generator = torch.Generator().manual_seed(recipe.seed)
    try:
        return grow(start, recipe.network, start=recipe.new_blocks, generator=generator)
    except ValueError as error:
        raise ValueError(
            f"the recipe's start, {recipe.start!r}, does not fit: {error} Or change start."
        ) from error


def _fingerprint(network: DnResNet) -> str:
    return hashlib.sha256(
        b"".join(value.cpu().numpy().tobytes() for value in network.state_dict().values())
    ).hexdigest()
