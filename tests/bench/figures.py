"""Figures: what is measured, and how ours and the yardstick take turns so that noise hits both alike."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from tests.bench.machine import Target, Use
from tests.bench.users import User
from tests.running import Services

OURS = "ours"
NOISE = 0.1  # share of either core that others may take before a measurement is made again


@dataclass
class Figure:
    """One line of the table. ``ours`` and ``yardstick`` have a value for each run."""

    name: str
    unit: str
    beside: str  # what the yardstick is
    goal: float | None  # what the ratio is to reach (``more``) or to stay within
    more: bool
    absolute: bool = False  # the goal is one for ours, not for the ratio
    ours: list[float] = field(default_factory=list)
    yardstick: list[float] = field(default_factory=list)
    use_ours: list[Use] = field(default_factory=list)
    use_yardstick: list[Use] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ours to the yardstick of the same run: what both lose to a busy machine cancels out."""
        return [ours / other for ours, other in zip(self.ours, self.yardstick, strict=False)]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def reached(self) -> bool | None:
        judged = self.ratio
        if self.absolute:
            judged = statistics.median(self.ours) if self.ours else None
        if self.goal is None or judged is None:
            return None
        return judged >= self.goal if self.more else judged <= self.goal


Measured = tuple[list[float], Use]


@dataclass
class Bench:
    """The two servers, accounts on ours, and how long (seconds) and how often to measure."""

    ours: Target
    bare: Target
    users: list[User]
    runs: int
    seconds: float
    warm_up: float
    attempts: int
    services: Services | None = None  # what ours uses, for further servers of ours

    async def take_turns(
        self, figures: list[Figure], measure: Callable[[bool], Awaitable[Measured]], *, timed: bool = True
    ) -> list[Figure]:
        """Yardstick, ours, yardstick, ours, … What is not ``timed`` others can't disturb, so it is measured once."""
        return await self.compare({"yardstick": figures}, lambda name: measure(name == OURS), timed=timed)

    async def compare(
        self,
        figures: Mapping[str, list[Figure]],
        measure: Callable[[str], Awaitable[Measured]],
        *,
        ours: bool = True,
        timed: bool = True,
    ) -> list[Figure]:
        """Every yardstick by its name, then OURS, which counts beside each of them; and again."""
        for _ in range(self.runs):
            for name in (*figures, OURS) if ours else figures:
                values, use = await self._quietly(partial(measure, name), self.attempts if timed else 1)
                for each in figures.values() if name == OURS else (figures[name],):
                    for figure, value in zip(each, values, strict=True):
                        (figure.ours if name == OURS else figure.yardstick).append(value)
                        (figure.use_ours if name == OURS else figure.use_yardstick).append(use)
        return [figure for each in figures.values() for figure in each]

    async def alone(self, figures: list[Figure], measure: Callable[[], Awaitable[Measured]]) -> list[Figure]:
        """Ours, beside nothing."""
        for _ in range(self.runs):
            values, use = await self._quietly(measure, self.attempts)
            for figure, value in zip(figures, values, strict=True):
                figure.ours.append(value)
                figure.use_ours.append(use)
        return figures

    async def _quietly(self, measure: Callable[[], Awaitable[Measured]], most: int) -> Measured:
        """Measure, and again while others take too much of a core; the quietest attempt counts, whatever it says."""
        attempts: list[Measured] = []
        while len(attempts) < most:
            gc.collect()  # now rather than in the middle: it is off otherwise
            attempts.append(await measure())
            if attempts[-1][1].noise <= NOISE:
                break
        return min(attempts, key=lambda attempt: attempt[1].noise)
