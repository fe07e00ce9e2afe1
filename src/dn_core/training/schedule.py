"""When a training ends, by steps or by the clock, and the learning rate on the way there. No other module decides either."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dn_core.training.recipes import Phase, Recipe

__all__ = ["Clock", "Schedule"]

LOWEST_RATE = 0.01
WARM_UP_PART = 0.1
"""By the clock, the rate is at its highest after this part of the time, however few steps that were."""
SCORES = 15
"""By the clock, epochs are so short that there are about so many, where each has fewer steps than the recipe says."""
TRAINING_PART = 4
"""By the clock, an epoch lasts at least so many times as long as what ends it: a score, and saving."""


class Clock:
    """Seconds of training, those of earlier processes included; it stands still until it is started and while it is paused."""

    def __init__(self) -> None:
        self._before, self._since = 0.0, math.nan

    @property
    def seconds(self) -> float:
        """How long training has lasted."""
        return self._before if math.isnan(self._since) else self._before + time.monotonic() - self._since

    def start(self, seconds: float = 0.0) -> None:
        """Go on, from `seconds`."""
        self._before, self._since = seconds, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still meanwhile."""
        self._before, self._since = self.seconds, math.nan
        try:
            yield
        finally:
            self.start(self._before)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The end of a stage of `recipe`: after its steps or, where it has `minutes`, after these, whichever comes first.

    How far it is, is a part, 0..1, of steps or of time, of which the larger counts: learning rate and phases follow it. So the rate has
    fallen to its end when the time is over, whatever else the machine had to do.
    """

    recipe: Recipe

    @property
    def seconds(self) -> float:
        """The time there is; 0 for a training by steps alone."""
        return self.recipe.minutes * 60

    def part(self, step: int, seconds: float, ending: float = 0.0) -> float:
        """How far it is after `step` steps in `seconds`; `ending` seconds are kept for what comes after the last step."""
        of_steps = min(1.0, step / self.recipe.steps)
        if not self.seconds:
            return of_steps
        return max(of_steps, min(1.0, seconds / max(self.seconds - ending, 1e-9)))

    def rate(self, step: int, part: float) -> float:
        """What the learning rate is multiplied with in `step`, that far on."""
        warm = min(1.0, (step + 1) / max(self.recipe.warm_up, 1))
        if self.seconds:
            warm = max(warm, min(1.0, part / WARM_UP_PART))
        if self.recipe.schedule == "constant":
            return warm
        return warm * (LOWEST_RATE + (1 - LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * part)))

    def phase(self, step: int, part: float) -> Phase:
        """What `step` learns from; by the clock, the steps of phases are their shares of the time."""
        return self.recipe.phase_at(max(step, int(part * self.recipe.steps)))

    def epoch_ends(self, steps: int, seconds: float, ending: float) -> bool:
        """Whether an epoch of so many steps, in so many seconds, is to be ended, which takes `ending` seconds."""
        enough = steps >= self.recipe.epoch
        if not self.seconds:
            return enough
        return (enough or seconds >= self.seconds / SCORES) and seconds >= TRAINING_PART * ending

    def total(self, step: int, part: float) -> int:
        """The number of steps; by the clock an estimate, 0 before the first step."""
        if not self.seconds:
            return self.recipe.steps
        return min(self.recipe.steps, max(step, round(step / part))) if step and part else 0
