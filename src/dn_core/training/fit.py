"""One training run, as a generator of progress that can be killed at any moment and resumed with the same weights.

Everything random in a step comes from (seed, stage, rank, step), so resuming needs no state of a random generator.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dn_core.checkpoints import Card, Checkpoint, load_checkpoint, read_tensors, save_checkpoint, write_tensors
from dn_core.inference.engines import choose_device
from dn_core.losses import edge_aware, mse
from dn_core.networks import DnResNet
from dn_core.noise import Noise, Noisy, noise_from_dict
from dn_core.training.bank import Bank
from dn_core.training.optimizers import build_optimizers
from dn_core.training.recipes import Phase, Recipe
from dn_core.training.workers import Workers

__all__ = ["TrainProgress", "bfloat16_helps", "differences", "fit"]

STATE_KEY = "dn_resnet_training"
STATE_FILE = "state.safetensors"
COUNTERS = ("step", "loss", "megapixels", "epoch_loss", "epoch_sum", "rate")
LOCK_FILE = "training.lock"
REPORT_STEPS = 20
WEIGHT_FLOOR = 8 / 255
SCORE_SIGMA = 25 / 255
SCORE_IMAGES, SCORE_SIZE = 16, 256
ALONE = Workers()


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training is: steps done of total, and how it goes; in a training of several stages, in which stage (from 0).

    `loss` is a running mean, `epoch_loss` that of the last whole epoch. `psnr` (of the held-out images at sigma 25) is there at the end
    of an epoch, `path` (of the finished model) at the end.
    """

    done: int
    total: int
    epoch: int
    loss: float
    lr: float
    megapixels: float
    megapixels_per_second: float
    seconds_left: float
    psnr: float | None = None
    path: Path | None = None
    epoch_loss: float = math.nan
    stage: int = 0
    stages: int = 1


def fit(
    recipe: Recipe,
    bank: Bank,
    out: str | Path,
    *,
    device: str = "cpu",
    precision: str = "auto",
    stage: int = 0,
    rank: int = 0,
    save_seconds: float = 30.0,
    allow: tuple[str, ...] = (),
    first: DnResNet | None = None,
    enough: float | None = None,
    workers: Workers = ALONE,
) -> Generator[TrainProgress]:
    """Train `recipe` on `bank`; the model appears as ``out/<recipe.name>.safetensors``.

    The state in ``out/state.safetensors`` is saved every `save_seconds`, at the end of each epoch and when the generator is closed or
    fails between two changes of the weights. A run found there goes on where it was; on the CPU with the same number of threads its
    weights are those of an uninterrupted one.

    Parameters
    ----------
    precision
        ``"bfloat16"`` computes the convolutions so (weights stay float32), ``"float32"`` does not, ``"auto"`` asks `bfloat16_helps`.

    allow
        Settings, such as ``"recipe.phases"``, in which the run found may differ from this one; it goes on with the new ones.
    first
        The network to start with, of the recipe's settings, instead of random weights or the recipe's `start`.
    enough
        End before the last step, after an epoch whose mean loss is at most this.
    workers
        The processes that train together, each with the same arguments but for `out`, a folder of its own. Each cuts its share of every
        batch; all have the same weights after each step, save at the end of each epoch and end at the same step.

    Raises
    ------
    ValueError
        When images are smaller than the recipe's patches, a batch cannot be shared by the workers, or `out` holds the state of another
        recipe, other data or another precision.
    BlockingIOError
        When another training is running in `out`.
    FloatingPointError
        When the loss or its gradient is not finite for the second time; the last good state stays. The first time, the run goes on from
        there at half the learning rate, with a RuntimeWarning.
    """
    choose_device(device)
    if precision not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"precision is {precision!r}; 'auto', 'bfloat16' or 'float32' is expected. Change precision.")
    largest = max(phase.patch for phase in recipe.phases)
    if (smallest := min(min(image.shape) for image in bank.images)) < largest:
        raise ValueError(
            f"the smallest image has a side of {smallest} pixels; at least the patch, {largest}, is expected. Use larger images."
        )
    for phase in recipe.phases:
        workers.share(phase.batch)
    if recipe.network.planes_in != 1:
        raise ValueError(f"the network takes {recipe.network.planes_in} planes; training takes single planes. Set planes_in to 1.")
    if precision == "auto":
        precision = "bfloat16" if workers.all_true(bfloat16_helps(device), torch.device(device)) else "float32"
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(recipe, bank, device, precision, stage, rank, first, workers)
    with _alone_in(folder):
        run.resume(folder / STATE_FILE, allow)
        try:
            yield from _steps(run, folder / STATE_FILE, save_seconds, enough, allow)
        finally:
            # A signal may come amid a change of the weights; then what was saved before stays.
            if run.whole:
                run.save(folder / STATE_FILE)
        path = folder / f"{recipe.name}.safetensors"
        save_checkpoint(path, run.checkpoint())
    yield TrainProgress(
        run.step, recipe.steps, run.epoch, run.loss, 0.0, run.megapixels, 0.0, 0.0, run.score(), path, epoch_loss=run.epoch_loss
    )


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


class _Run:
    """The moving parts of one training: network, average, optimizers, step."""

    def __init__(
        self,
        recipe: Recipe,
        bank: Bank,
        device: str,
        precision: str,
        stage: int,
        rank: int,
        first: DnResNet | None,
        workers: Workers,
    ) -> None:
        self.recipe, self.bank, self.precision, self.workers = recipe, bank, precision, workers
        self.device = torch.device(device)
        self.stage, self.rank, self.step, self.loss, self.megapixels = stage, rank, 0, math.nan, 0.0
        self.epoch_loss, self.epoch_sum, self.rate = math.nan, 0.0, 1.0
        self.network = _new_network(recipe)
        if first is not None or recipe.start:
            self.network.load_state_dict(_start_weights(recipe) if first is None else first.state_dict())
        self.start = _fingerprint(self.network) if first is not None or recipe.start else ""
        self.network = self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compute = workers.wrap(self.network)
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimizers = build_optimizers(self.network, recipe.optimizer, recipe.lr)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.noise: Noise = noise_from_dict(recipe.noise)
        self.data = bank.fingerprint()
        self.whole = True

    @property
    def epoch(self) -> int:
        return -(-self.step // self.recipe.epoch)

    def advance(self) -> float:
        """One step of the optimizers; the loss it saw."""
        phase = self.recipe.phase_at(self.step)
        clean, noisy, means = self._batch(phase)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            denoised = self.compute(self._with_map(noisy), means)
        loss = _loss(self.recipe, denoised, clean, noisy.std)
        value = self.workers.mean(float(loss.detach()), self.device)
        self._check_finite("loss", value)
        factor = self.rate * _rate_factor(self.recipe, self.step)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._check_finite("gradient's square", float(self._squared_gradient()))
        self.whole = False
        for optimizer in self.optimizers:
            optimizer.step()
        self._average_weights()
        self.step += 1
        self.megapixels += clean.numel() * self.workers.size / 1e6
        self.loss = value if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * value
        self.epoch_sum += value
        if self.step % self.recipe.epoch == 0 or self.step == self.recipe.steps:
            mean = self.epoch_sum / ((self.step - 1) % self.recipe.epoch + 1)
            self.epoch_loss, self.epoch_sum = self.workers.of_first(mean, self.device), 0.0
            self.workers.check_equal(self.network.state_dict().values(), self.device)
        self.whole = True
        return value

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {self.step}; a finite one is expected. Lower lr in the recipe; the last good state is kept."
            )

    def _squared_gradient(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        return torch.stack([gradient.square().sum() for gradient in gradients]).sum()

    def _batch(self, phase: Phase) -> tuple[Tensor, Noisy, Tensor]:
        rng = np.random.default_rng((self.recipe.seed, self.stage, self.rank + self.workers.rank, self.step))
        bank = self.bank.at(self.step, self.workers.rank, self.workers.size)
        patches, means = bank.patches(self.workers.share(phase.batch), phase.patch, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = torch.from_numpy(patches).to(self.device)
        return clean, self.noise(clean, generator), torch.from_numpy(means).to(self.device)

    def _with_map(self, noisy: Noisy) -> Tensor:
        planes = torch.cat(noisy, dim=1) if self.recipe.network.noise_map else noisy.image
        return planes.contiguous(memory_format=torch.channels_last)

    def _average_weights(self) -> None:
        decay = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        current = self.network.state_dict()
        for name, average in self.average.items():
            average.lerp_(current[name], 1 - decay)

    def score(self) -> float | None:
        """Mean PSNR of the averaged weights on held-out images at sigma 25, always with the same noise; None without such images."""
        if not self.bank.held_out:
            return None
        network = _new_network(self.recipe).to(self.device)
        network.load_state_dict(self.average)
        generator = torch.Generator().manual_seed(0)
        scores = []
        for image in self.bank.held_out[:SCORE_IMAGES]:
            crop = image[:SCORE_SIZE, :SCORE_SIZE].astype(np.float32) / np.float32(self.bank.full_scale)
            clean = torch.from_numpy(crop)[None, None].to(self.device)
            noisy = clean + SCORE_SIGMA * torch.randn(clean.shape, generator=generator).to(self.device)
            planes = self._with_map(Noisy(noisy, torch.full_like(noisy, SCORE_SIGMA)))
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                error = network(planes).clamp(0, 1) - clean
            scores.append(-10 * math.log10(float(error.square().mean()) + 1e-12))
        return sum(scores) / len(scores)

    def checkpoint(self) -> Checkpoint:
        """The averaged weights with a card."""
        recipe = self.recipe
        score = self.score()
        together = {"workers": self.workers.size} if self.workers.size > 1 else {}
        card = Card(
            name=recipe.name,
            description=recipe.description,
            noise=recipe.noise_text,
            recipe=recipe.as_dict(),
            data={"images": self.bank.count, "held_out": len(self.bank.held_out), "sha256": self.data},
            training={
                "steps": self.step,
                "megapixels": round(self.megapixels, 1),
                "precision": self.precision,
                "torch": torch.__version__,
                **together,
            },
            scores={} if score is None else {"held_out_sigma25_psnr": round(score, 3)},
        )
        weights = {name: value.to("cpu", torch.float32).contiguous().numpy() for name, value in self.average.items()}
        return Checkpoint(recipe.network, weights, card)

    def save(self, path: Path) -> None:
        """Write all that resuming needs, whole or not at all."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{number}.{index}.{name}": value for name, value in state.items()}
        arrays = {name: value.detach().to("cpu", torch.float32).numpy() for name, value in tensors.items()}
        write_tensors(path, arrays, {STATE_KEY: json.dumps({**self._identity(), **{name: getattr(self, name) for name in COUNTERS}})})

    def resume(self, path: Path, allow: tuple[str, ...]) -> None:
        """Go on from `path`, if it is there and of the same recipe, data and precision but for what is in `allow`."""
        if not path.exists():
            return
        tensors, metadata = read_tensors(path)
        if STATE_KEY not in metadata:
            raise ValueError(
                f"{path} is not the state of a training; one written by dn-resnet train is expected. Choose another output folder."
            )
        state = {"workers": 1, **json.loads(metadata[STATE_KEY])}
        if different := differences(self._identity(), state, allow):
            raise ValueError(
                f"{path} belongs to another training ({'; '.join(different)}); the same is expected. Choose another output folder, or "
                "allow these to differ."
            )
        values = {name: torch.from_numpy(array) for name, array in tensors.items()}
        for place in ("network.", "average."):
            found, expected = _under(place, values), self.average
            if wrong := [name for name in {*found, *expected} if name not in found or found[name].shape != expected[name].shape]:
                raise ValueError(f"{path} has weights of another network ({', '.join(sorted(wrong)[:5])}). Choose another output folder.")
        self.network.load_state_dict(_under("network.", values))
        for name, value in _under("average.", values).items():
            self.average[name].copy_(value)
        # Another optimizer, if allowed, begins without memory.
        for number, optimizer in enumerate(self.optimizers if state.get("recipe", {}).get("optimizer") == self.recipe.optimizer else ()):
            _restore(optimizer, _under(f"optimizer{number}.", values), self.device)
        for name in COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))

    def go_back(self, path: Path, error: FloatingPointError, allow: tuple[str, ...]) -> None:
        """Go on from the last state saved, at half the learning rate; the second time the error stands."""
        if self.rate < 1:
            raise error
        self.resume(path, allow)
        self.rate /= 2
        self.save(path)
        what = str(error).partition(";")[0]
        warnings.warn(f"{what}; going on from step {self.step} at half the learning rate.", RuntimeWarning, stacklevel=4)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run."""
        recipe = json.loads(json.dumps(self.recipe.as_dict()))
        return {
            **{"recipe": recipe, "data": self.data, "precision": self.precision},
            **{"stage": self.stage, "rank": self.rank, "start": self.start, "workers": self.workers.size},
        }


def _steps(run: _Run, state_path: Path, save_seconds: float, enough: float | None, allow: tuple[str, ...]) -> Iterator[TrainProgress]:
    total = run.recipe.steps
    began, begun, saved = time.monotonic(), run.megapixels, time.monotonic()
    if not state_path.exists():
        run.save(state_path)
    while run.step < total and not (enough is not None and run.epoch_loss <= enough):
        try:
            run.advance()
        except FloatingPointError as error:
            run.go_back(state_path, error, allow)
            continue
        end_of_epoch = run.step % run.recipe.epoch == 0 or run.step == total
        # Workers must all go back to the same step, if they have to.
        if end_of_epoch or (run.workers.size == 1 and time.monotonic() - saved > save_seconds):
            run.save(state_path)
            saved = time.monotonic()
        if end_of_epoch or run.step % REPORT_STEPS == 0:
            rate = (run.megapixels - begun) / max(time.monotonic() - began, 1e-9)
            left = _megapixels_left(run.recipe, run.step) / max(rate, 1e-9)
            lr = run.recipe.lr * run.rate * _rate_factor(run.recipe, run.step)
            score = run.score() if end_of_epoch else None
            yield TrainProgress(run.step, total, run.epoch, run.loss, lr, run.megapixels, rate, left, score, epoch_loss=run.epoch_loss)


def _loss(recipe: Recipe, denoised: Tensor, clean: Tensor, std: Tensor) -> Tensor:
    patch_weight = None
    if recipe.loss_weight == "noise":
        patch_weight = (std.square().mean(dim=(1, 2, 3), keepdim=True) + WEIGHT_FLOOR**2).rsqrt()
    if recipe.loss == "mse":
        return mse(denoised, clean, patch_weight)
    return edge_aware(denoised, clean, recipe.loss, patch_weight=patch_weight)  # type: ignore[arg-type]


def _rate_factor(recipe: Recipe, step: int) -> float:
    warm = min(1.0, (step + 1) / max(recipe.warm_up, 1))
    if recipe.schedule == "constant":
        return warm
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps))))


def _megapixels_left(recipe: Recipe, step: int) -> float:
    left = 0.0
    for phase in recipe.phases:
        left += max(phase.steps - max(step, 0), 0) * phase.batch * phase.patch**2 / 1e6
        step -= phase.steps
    return left


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep a second training out of the folder; the system lets go of the lock when a process dies."""
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(11, "another training is running in this folder; stop it, or choose another folder", str(folder)) from None
    try:
        yield
    finally:
        lock.release()


def _new_network(recipe: Recipe) -> DnResNet:
    """With the first weights that the seed gives; torch's random numbers of others stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return DnResNet(recipe.network)


def _start_weights(recipe: Recipe) -> dict[str, Tensor]:
    """The weights of the model that the recipe starts from."""
    from dn_core.models.registry import resolve

    checkpoint = load_checkpoint(resolve(recipe.start))
    if checkpoint.config != recipe.network:
        raise ValueError(f"start is {recipe.start!r}, a network with other settings than the recipe's. Change start or [network].")
    return {name: torch.from_numpy(value) for name, value in checkpoint.weights.items()}


def _fingerprint(network: DnResNet) -> str:
    return hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in network.state_dict().values())).hexdigest()


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


def differences(mine: dict[str, Any], theirs: dict[str, Any], allow: tuple[str, ...]) -> list[str]:
    """What keeps two trainings from being the same, in words, but for the settings named in `allow`."""
    flat_mine = {**mine, **{f"recipe.{key}": value for key, value in mine["recipe"].items()}}
    flat_theirs = {**theirs, **{f"recipe.{key}": value for key, value in theirs.get("recipe", {}).items()}}
    names = [name for name in flat_mine if name != "recipe" and name not in allow and flat_mine[name] != flat_theirs.get(name)]
    return [f"{name}: {str(flat_theirs.get(name))[:60]} there, {str(flat_mine[name])[:60]} here" for name in names]
