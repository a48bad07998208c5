"""A trial: clients write through nginx while a scenario does its worst; then the history checker judges."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import users
from tests.history.checker import Checker
from tests.history.clients import Reader
from tests.history.ledger import Fault
from tests.history.run import Plan, Run, stored
from tests.nemesis.databases import note
from tests.nemesis.stage import Stage, stage
from tests.running import Place

GOAL = 5.0  # seconds of refusals after a primary accepts
CALM = 3.0  # seconds without a refusal, after which they are over
STARTED = 5.0  # seconds in which the last client has listed its chats
MOST = 60.0  # seconds that they may take before a trial gives up
VIEWS = ("order", "content", "leaked", "hidden", "membership", "marks", "unread", "frames")


@dataclass
class Figures:
    """One row of the table."""

    name: str
    refused: list[float] = field(default_factory=list)  # seconds, after each time that a primary accepted
    acknowledged: int = 0
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def count(self, *kinds: str) -> int:
        found = Counter(fault.kind for fault in self.faults)
        return sum(found[kind] for kind in kinds)

    @property
    def cells(self) -> tuple[str, ...]:
        named = ("lost", "doubled", "gap", *VIEWS)
        others = sum(fault.kind not in named for fault in self.faults)
        refused = f"{max(self.refused):.1f}" if self.refused else "-"
        return (
            self.name,
            refused,
            str(self.acknowledged),
            str(self.count("lost")),
            str(self.count("doubled")),
            str(self.count("gap")),
            str(self.count(*VIEWS)),
            str(others),
            f"{self.seconds:.0f}",
        )


HEAD = (
    "scenario",
    "refusals, s",
    "acknowledged",
    "lost",
    "doubled",
    "gaps",
    "divergent views",
    "other faults",
    "took, s",
)


def table(rows: Sequence[Figures]) -> str:
    """As Markdown, for people and for docs/performance.md."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


Scenario = Callable[["Trial"], Awaitable[None]]


class Trial(Run):
    """A run of the history checker whose disturbance is a scenario."""

    stage: Stage

    def __init__(self, plan: Plan, theatre: Stage, people: list[users.User], scenario: Scenario, figures: Figures):
        super().__init__(plan, theatre, people)
        self.ledger.renewable = True
        self._scenario, self.figures = scenario, figures

    async def disturb(self) -> None:
        await asyncio.sleep(STARTED)
        await self._scenario(self)
        await self.stage.whole()
        await asyncio.sleep(1)

    def expect(self, held: bool, text: str) -> None:
        """Note a fault unless it is so."""
        if not held:
            self.ledger.fault("nemesis", "", f"{self.figures.name}: {text}")

    async def calm(self, since: float) -> None:
        """Wait until no client has been refused for a while; ``since`` is when the primary accepted."""
        while time.monotonic() - max(self.ledger.last_lost, since) < CALM:
            if time.monotonic() - since > MOST:
                self.expect(False, "the refusals do not end")
                return
            await asyncio.sleep(0.1)
        seconds = max(0.0, self.ledger.last_lost - since)
        self.figures.refused.append(seconds)
        note(f"refusals for {seconds:.1f} s after the primary accepted")
        self.expect(seconds <= GOAL, f"refusals for {seconds:.1f} s after the primary accepted")


async def attempt(name: str, scenario: Scenario, folder: Path, *, seed: int, clients: int = 10) -> Figures:
    """Play a scenario, and judge what it left."""
    figures, began = Figures(name), time.monotonic()
    async with stage(folder) as theatre:
        primary = Place(theatre.databases.dsn_of(theatre.databases.primary), theatre.place.redis)
        people = await users.create(primary, clients, f"n{seed % 10_000}")
        trial = Trial(Plan(seed, clients=clients, pace=0.6), theatre, people, scenario, figures)
        try:
            await trial.play()
            await trial.reach()
            seen = await trial.look()
        finally:
            readers: list[Reader] = [*trial.clients, *trial.followers]
            await asyncio.gather(*(reader.line.close() for reader in readers))
        rows = await stored(theatre.databases.dsn_of(theatre.databases.primary))
    Checker(trial.ledger, rows, seen).check()
    figures.acknowledged, figures.faults = trial.ledger.counts["acked"], trial.ledger.faults
    figures.seconds = time.monotonic() - began
    return figures
