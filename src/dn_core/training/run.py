"""The moving parts of one training: a step, a score, the state that it can be resumed from with the same weights.

Everything random in a step comes from (seed, stage, rank of the worker, step), so resuming needs no state of a random generator.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core.checkpoints import read_tensors, write_tensors
from dn_core.errors import CheckpointError
from dn_core.losses import edge_aware, mse
from dn_core.memory import available_memory, check_memory
from dn_core.models import registry
from dn_core.networks import DnResNet, grow
from dn_core.noise import Noisy
from dn_core.training.material import Denoiser, Material
from dn_core.training.optimizers import build_optimizers
from dn_core.training.recipes import Recipe
from dn_core.training.schedule import Clock, Schedule
from dn_core.training.workers import ALONE, Workers

__all__ = ["Run", "arrays_of", "bfloat16_helps", "check_steps", "differences", "read_state"]

STATE_KEY = "dn_resnet_training"
COUNTERS = ("step", "loss", "megapixels", "epochs", "epoch_began", "epoch_loss", "epoch_sum", "rate")
TIMES = ("seconds", "ending", "epoch_began_at")
SCORES = ("psnr", "start_psnr", "best_psnr", "best_step", "scored_step")
WEIGHT_FLOOR = 8 / 255
AFRESH = "Put back a copy, or remove it to begin afresh."


class Run:
    """The moving parts of one training: network, average, optimizers, step.

    Attributes
    ----------
    average
        The averaged weights, which become the model.
    best, best_psnr, best_step
        With `keep_best` the averaged weights of the highest score so far, which may be the first ones, and when it was.
    psnr
        The last score.
    clock
        The seconds of training, of which `seconds` were over after the last step.
    part
        How much of the schedule is done, 0..1.
    """

    def __init__(
        self,
        recipe: Recipe,
        material: Material,
        device: str,
        precision: str = "auto",
        *,
        stage: int = 0,
        first: DnResNet | None = None,
        keep_best: bool = False,
        workers: Workers = ALONE,
    ) -> None:
        if precision not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"precision is {precision!r}; 'auto', 'bfloat16' or 'float32' is expected. Change precision.")
        if precision == "auto":
            precision = "bfloat16" if workers.all_true(bfloat16_helps(device), torch.device(device)) else "float32"
        check_steps(recipe, workers, device)
        self.recipe, self.material, self.precision, self.keep_best, self.workers = recipe, material, precision, keep_best, workers
        self.device = torch.device(device)
        self.stage, self.step, self.loss, self.megapixels = stage, 0, math.nan, 0.0
        self.epochs, self.epoch_began, self.epoch_loss, self.epoch_sum, self.rate = 0, 0, math.nan, 0.0, 1.0
        self.schedule, self.clock, self.part = Schedule(recipe), Clock(), 0.0
        self.seconds, self.ending, self.epoch_began_at, self._scored = 0.0, 0.0, 0.0, False
        self.network = _new_network(recipe)
        if first is None and recipe.start:
            first = registry.load(recipe.start).network()
        if first is not None:
            self.network.load_state_dict(_grown(first, recipe).state_dict())
        self.start = _fingerprint(self.network) if first is not None else ""
        self.network = self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compute = workers.wrap(self.network)
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimizers = build_optimizers(self.network, recipe.optimizer, recipe.lr)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.data = material.fingerprint()
        self.best: dict[str, Tensor] = {}
        self.psnr, self.start_psnr, self.best_psnr, self.best_step, self.scored_step = math.nan, math.nan, math.nan, 0, -1
        self.whole = True

    @property
    def epoch(self) -> int:
        """Epochs begun."""
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
        """Until the last step at this speed, or until the time is over; NaN where neither is known."""
        by_steps = self._megapixels_left / megapixels_per_second if megapixels_per_second > 0 else math.nan
        if not self.schedule.seconds:
            return by_steps
        by_clock = 0.0 if self.over else max(0.0, self.schedule.seconds - self.clock.seconds)
        return by_clock if math.isnan(by_steps) else min(by_steps, by_clock)

    @property
    def _megapixels_left(self) -> float:
        """What the steps to come will have learnt from."""
        left, step = 0.0, self.step
        for phase in self.recipe.phases:
            left += max(phase.steps - max(step, 0), 0) * phase.batch * phase.patch**2 / 1e6
            step -= phase.steps
        return left

    def advance(self) -> float:
        """One step of the optimizers; the loss it saw."""
        self._begin_step()
        phase = self.schedule.phase(self.step, self.part)
        workers = self.workers
        rng = np.random.default_rng((self.recipe.seed, self.stage, workers.rank, self.step))
        material = self.material.at(self.step, workers.rank, workers.size)
        clean, noisy, means = material.batch(replace(phase, batch=workers.share(phase.batch)), rng, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            denoised = self.compute(self._with_map(noisy), means)
        loss = _loss(self.recipe, denoised, clean, noisy.std)
        factor = self.rate * self.schedule.rate(self.step, self.part)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        # Both looked at together: one wait for a GPU.
        own_value, squared = torch.stack([loss.detach(), self._squared_gradient()]).tolist()
        value = self.workers.mean(own_value, self.device)
        self._check_finite("loss", value)
        self._check_finite("gradient's square", squared)
        self.whole = False
        for optimizer in self.optimizers:
            optimizer.step()
        self._average_weights()
        self.step += 1
        self.megapixels += clean.numel() * self.workers.size / 1e6
        # At first the mean of all steps, then a running one: a lucky first step would weigh for long.
        self.loss = value if math.isnan(self.loss) else self.loss + (value - self.loss) * max(0.01, 1 / self.step)
        self.epoch_sum += value
        self._end_step()
        self.whole = True
        return value

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
        if self.over or self.schedule.epoch_ends(steps, self.seconds - self.epoch_began_at, self.ending):
            self.epoch_loss, self.epoch_sum = self.workers.of_first(self.epoch_sum / steps, self.device), 0.0
            self.epochs, self.epoch_began = self.epochs + 1, self.step
            self.workers.check_equal(self.network.state_dict().values(), self.device)

    def _now(self) -> float:
        """The first worker's clock: all decide by the same one."""
        return self.workers.of_first(self.clock.seconds, self.device)

    def _go_on_from(self, seconds: float) -> None:
        """Set the clock."""
        self.seconds = seconds
        self.part = self.schedule.part(self.step, seconds, self.ending)
        self.clock.start(seconds)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {self.step}; a finite one is expected. Lower lr in the recipe; the last good state is kept."
            )

    def _squared_gradient(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).square().sum()

    def _with_map(self, noisy: Noisy) -> Tensor:
        planes = torch.cat(noisy, dim=1) if self.recipe.network.noise_map else noisy.image
        return planes.contiguous(memory_format=torch.channels_last)

    def _average_weights(self) -> None:
        decay = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        current = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[name] for name in self.average], 1 - decay)

    def denoiser(self, weights: dict[str, Tensor] | None = None) -> Denoiser:
        """The network with other weights, by default the averaged ones, to denoise with."""
        network = _new_network(self.recipe).to(self.device)
        network.load_state_dict(self.average if weights is None else weights)

        def denoise(noisy: Noisy, means: Tensor | None = None, *, exact: bool = False) -> Tensor:
            reduced = self.precision == "bfloat16" and not exact
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
                denoised: Tensor = network(self._with_map(noisy), means)
            return denoised

        return denoise

    def score(self) -> float | None:
        """The score of the averaged weights, remembered if they are the best so far; None without held-out images."""
        score = self.material.score(self.denoiser(), self.device)
        self._scored = True
        if self.keep_best and score is not None:
            self.psnr, self.scored_step = score, self.step
            if not self.best:
                self.start_psnr = score
            if not self.best or score > self.best_psnr:
                self.best = {name: value.clone() for name, value in self.average.items()}
                self.best_psnr, self.best_step = score, self.step
        return score

    def save(self, path: Path) -> None:
        """Write all that resuming needs, whole or not at all."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{number}.{index}.{name}": value for name, value in state.items()}
        arrays = {name: value.detach().to("cpu", torch.float32).numpy() for name, value in tensors.items()}
        state = {**self._identity(), **self._counters()}
        write_tensors(path, arrays, {STATE_KEY: json.dumps({**state, "sha256": _hash(arrays, state)})})

    def resume(self, path: Path, allow: tuple[str, ...]) -> None:
        """Go on from `path`, if it is there and of the same recipe, data and precision but for what is in `allow`; the clock starts."""
        if not path.exists():
            self._go_on_from(0.0)
            return
        tensors, found = read_state(path)
        state = {"workers": 1, **found}
        if different := differences(self._identity(), state, allow):
            raise ValueError(
                f"{path} belongs to another training ({'; '.join(different)}); the same is expected. Choose another output folder, or "
                "allow these to differ."
            )
        values = {name: torch.from_numpy(array) for name, array in tensors.items()}
        for place in ("network.", "average.", *(("best.",) if self.keep_best else ())):
            found, expected = _under(place, values), self.average
            if wrong := [name for name in {*found, *expected} if name not in found or found[name].shape != expected[name].shape]:
                raise ValueError(f"{path} has weights of another network ({', '.join(sorted(wrong)[:5])}). Choose another output folder.")
        self.network.load_state_dict(_under("network.", values))
        for name, value in _under("average.", values).items():
            self.average[name].copy_(value)
        self.best = {name: value.to(self.device) for name, value in _under("best.", values).items()}
        # Another optimizer, if allowed, begins without memory.
        for number, optimizer in enumerate(self.optimizers if state.get("recipe", {}).get("optimizer") == self.recipe.optimizer else ()):
            _restore(optimizer, _under(f"optimizer{number}.", values), self.device)
        for name in self._counters():
            setattr(self, name, state.get(name, getattr(self, name)))
        self._go_on_from(self.seconds)

    def go_back(self, path: Path, error: FloatingPointError, allow: tuple[str, ...]) -> None:
        """Go on from the last state saved, at half the learning rate; the second time the error stands."""
        if self.rate < 1:
            raise error
        seconds = self.clock.seconds
        self.resume(path, allow)
        self._go_on_from(seconds)  # what is lost has taken its time
        self.rate /= 2
        self.save(path)
        what = str(error).partition(";")[0]
        warnings.warn(f"{what}; going on from step {self.step} at half the learning rate.", RuntimeWarning, stacklevel=4)

    def _counters(self) -> dict[str, Any]:
        counters = {name: getattr(self, name) for name in (*COUNTERS, *(SCORES if self.keep_best else ()))}
        if self.schedule.seconds:  # else the same run would never give the same state
            counters |= {name: getattr(self, name) for name in TIMES} | {"seconds": self.clock.seconds}
        return counters

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run."""
        recipe = json.loads(json.dumps(self.recipe.as_dict()))
        return {
            **{"recipe": recipe, "data": self.data, "precision": self.precision},
            **{"stage": self.stage, "start": self.start, "workers": self.workers.size},
        }


def read_state(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """What `Run.save` wrote: weights and the like, and which training it belongs to.

    Raises
    ------
    CheckpointError
        When it is damaged.
    ValueError
        When it is no state of a training.
    """
    try:
        tensors, metadata = read_tensors(path)
        state = json.loads(metadata.get(STATE_KEY, "null"))
    except ValueError as error:
        reason = error if isinstance(error, CheckpointError) else f"{path} is damaged ({error})."
        raise CheckpointError(f"a training cannot go on: {reason} {AFRESH}") from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} is not the state of a training; one written by dn-resnet train is expected. Choose another output folder."
        )
    written = state.pop("sha256", None)  # older versions wrote none
    if written is not None and _hash(tensors, state) != written:
        raise CheckpointError(f"a training cannot go on: {path} is damaged, it is not the state that was written. {AFRESH}")
    return tensors, state


def bfloat16_helps(device: str) -> bool:
    """Whether bfloat16 convolutions are faster than float32 here: matrix or dot-product units on a CPU, or a GPU that has them.

    Measured: 4x with AMX, 2x on an AMD EPYC with avx512_bf16; a loss on CPUs that only emulate it.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(check() for check in checks if check is not None)


def arrays_of(weights: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Weights as they are kept in a model file."""
    return {name: value.to("cpu", torch.float32).contiguous().numpy() for name, value in weights.items()}


def check_steps(recipe: Recipe, workers: Workers, device: str) -> None:
    """Refuse batches that the workers cannot share evenly (ValueError), and steps that do not fit into memory (MemoryError)."""
    for phase in recipe.all_phases:
        share = workers.share(phase.batch)
        if not device.startswith("cuda"):  # torch says by itself when a GPU is full
            values = share * phase.patch**2 * recipe.network.training_values
            what = f"a step of {phase.batch} patches of {phase.patch} pixels"
            check_memory(what, 4 * values, available_memory(), "Use a smaller batch or patch in the recipe, or more workers.")


def differences(mine: dict[str, Any], theirs: dict[str, Any], allow: tuple[str, ...]) -> list[str]:
    """What keeps two trainings from being the same, in words, but for the settings named in `allow`."""
    flat_mine = {**mine, **{f"recipe.{key}": value for key, value in mine["recipe"].items()}}
    flat_theirs = {**theirs, **{f"recipe.{key}": value for key, value in theirs.get("recipe", {}).items()}}
    names = [*flat_mine, *(name for name in flat_theirs if name.startswith("recipe.") and name not in flat_mine)]
    names = [name for name in names if name != "recipe" and name not in allow and flat_mine.get(name) != flat_theirs.get(name)]
    return [f"{name}: {str(flat_theirs.get(name))[:60]} there, {str(flat_mine.get(name))[:60]} here" for name in names]


def _loss(recipe: Recipe, denoised: Tensor, clean: Tensor, std: Tensor) -> Tensor:
    patch_weight = None
    if recipe.loss_weight == "noise":
        patch_weight = (std.square().mean(dim=(1, 2, 3), keepdim=True) + WEIGHT_FLOOR**2).rsqrt()
    if recipe.loss == "mse":
        return mse(denoised, clean, patch_weight)
    return edge_aware(denoised, clean, recipe.loss, patch_weight=patch_weight)  # type: ignore[arg-type]


def _new_network(recipe: Recipe) -> DnResNet:
    """With the first weights that the seed gives; torch's random numbers of others stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return DnResNet(recipe.network)


def _grown(start: DnResNet, recipe: Recipe) -> DnResNet:
    """The network to start from, with the blocks that it lacks."""
    generator = torch.Generator().manual_seed(recipe.seed)
    try:
        return grow(start, recipe.network, start=recipe.new_blocks, generator=generator)
    except ValueError as error:
        raise ValueError(f"the recipe's start, {recipe.start!r}, does not fit: {error} Or change start.") from error


def _fingerprint(network: DnResNet) -> str:
    return hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in network.state_dict().values())).hexdigest()


def _hash(arrays: Mapping[str, NDArray[np.float32]], state: Mapping[str, Any]) -> str:
    """Of all that a state says, but for this."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _under(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _restore(optimizer: torch.optim.Optimizer, values: dict[str, Tensor], device: torch.device) -> None:
    """Put saved state back, weight by weight, refusing what has another shape (load_state_dict does not)."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in values.items():
        index, name = key.split(".", 1)
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"the state has {key}, of a weight that is not there. Start afresh.")
        parameter = parameters[int(index)]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"the state has {key} of shape {tuple(value.shape)}; {tuple(parameter.shape)} is expected. Start afresh.")
        if value.ndim:
            value = value.to(device).contiguous(memory_format=torch.channels_last)
        optimizer.state[parameter][name] = value
