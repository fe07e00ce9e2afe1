"""Training schedule: the end of a run, by steps or by the clock, and the learning rate on the way.

No other module decides either.
"""

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
"""By the clock, the rate is at its highest after this part of the time, however few the steps."""
SCORES = 15
"""By the clock, epochs end early so that there are about this many, if steps are slow."""
TRAINING_PART = 4
"""By the clock, an epoch takes at least this many times as long as its score and saving."""


class Clock:
    """Seconds of training, including those of earlier processes.

    It stands still until it is started, and while it is paused.
    """

    def __init__(self) -> None:
        self._before, self._since = 0.0, math.nan

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return (
            self._before
            if math.isnan(self._since)
            else self._before + time.monotonic() - self._since
        )

    def start(self, seconds: float = 0.0) -> None:
        """Start at a number of seconds."""
        self._before, self._since = seconds, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still while the ``with`` block lasts."""
        self._before, self._since = self.seconds, math.nan
        try:
            yield
        finally:
            self.start(self._before)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Budget and learning rate of a stage, by steps or by the clock.

    A stage ends after the recipe's steps or, where it has `minutes`, after these, whichever comes
    first. The part that is done, 0..1, is that of the steps or that of the time, whichever is
    larger; learning rate and phases follow it. So the rate has fallen to its end when the time is
    over, whatever else the machine had to do.

    Parameters
    ----------
    recipe : Recipe
        The recipe of the stage.
    """

    recipe: Recipe

    @property
    def seconds(self) -> float:
        """The budget in seconds; 0 for a run by steps alone."""
        return self.recipe.minutes * 60

    def part(self, step: int, seconds: float, ending: float = 0.0) -> float:
        """The part that is done, 0..1.

        Parameters
        ----------
        step : int
            Steps done.
        seconds : float
            Seconds of training so far.
        ending : float, default 0.0
            Seconds that are kept for what comes after the last step: a score, and saving.

        Returns
        -------
        float
            1 at the end.
        """
        of_steps = min(1.0, step / self.recipe.steps)
        if not self.seconds:
            return of_steps
        return max(of_steps, min(1.0, seconds / max(self.seconds - ending, 1e-9)))

    def rate(self, step: int, part: float) -> float:
        """The factor of the learning rate.

        Parameters
        ----------
        step : int
            The step, from 0.
        part : float
            The part that is done.

        Returns
        -------
        float
            0..1.
        """
        warm = min(1.0, (step + 1) / max(self.recipe.warm_up, 1))
        if self.seconds:
            warm = max(warm, min(1.0, part / WARM_UP_PART))
        if self.recipe.schedule == "constant":
            return warm
        return warm * (LOWEST_RATE + (1 - LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * part)))

    def phase(self, step: int, part: float) -> Phase:
        """The phase of a step; by the clock, the steps of phases are their shares of the time."""
        return self.recipe.phase_at(max(step, int(part * self.recipe.steps)))

    def epoch_ends(self, steps: int, seconds: float, ending: float) -> bool:
        """Whether an epoch of `steps` and `seconds` ends now, which takes `ending` seconds."""
        enough = steps >= self.recipe.epoch
        if not self.seconds:
            return enough
        return (enough or seconds >= self.seconds / SCORES) and seconds >= TRAINING_PART * ending

    def total(self, step: int, part: float) -> int:
        """The number of steps; by the clock an estimate, 0 before the first step."""
        if not self.seconds:
            return self.recipe.steps
        return min(self.recipe.steps, max(step, round(step / part))) if step and part else 0
