"""All kinds of faults at random, for the given number of minutes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tests.nemesis import instances, primaries
from tests.nemesis.databases import note
from tests.nemesis.trial import Scenario, Trial

PAUSE = (2.0, 6.0)  # seconds between two faults


async def standbys_away(trial: Trial) -> None:
    """No standby answers for some seconds."""
    held = list(trial.stage.databases.standbys)
    for standby in held:
        standby.freeze()
    try:
        await asyncio.sleep(trial.luck.uniform(2, 8))
    finally:
        for standby in held:
            standby.thaw()
    await trial.calm(await trial.stage.databases.accepts())


async def killed_primary(trial: Trial) -> None:
    """A primary is killed, and another one promoted; half of the times the former one starts first."""
    databases = trial.stage.databases
    former = databases.primary
    former.kill()
    accepted = await databases.fail_over()
    if trial.luck.random() < 0.5:
        former.stand_alone()
        await former.start()
    await trial.calm(accepted)
    await databases.rejoin(former)


async def thawed_primary(trial: Trial) -> None:
    """A primary freezes, and thaws after the promotion."""
    databases = trial.stage.databases
    former = databases.primary
    former.freeze()
    try:
        accepted = await databases.fail_over()
    finally:
        former.thaw()
    await trial.calm(accepted)
    await databases.rejoin(former)


async def restarted_primary(trial: Trial) -> None:
    """A primary is killed, and comes back as the primary: no new epoch, nothing lost."""
    databases = trial.stage.databases
    databases.primary.kill()
    await asyncio.sleep(trial.luck.uniform(0, 2))
    await databases.primary.start()
    await trial.calm(await databases.accepts())


FAULTS: tuple[Scenario, ...] = (
    killed_primary,
    thawed_primary,
    restarted_primary,
    standbys_away,
    primaries.silent,
    instances.killed,
    instances.watchdog,
    instances.cache,
    instances.silent_cache,
)


def mixed(minutes: float) -> Scenario:
    """Cause faults for so many minutes, every kind before any repeats, and finish the last one."""

    async def scenario(trial: Trial) -> None:
        ends, done, left = time.monotonic() + 60 * minutes, Counter[str](), list[Scenario]()
        while time.monotonic() < ends:
            if not left:
                left = list(FAULTS)
                trial.luck.shuffle(left)
            fault = left.pop()
            note(f"{fault.__name__} ({len(trial.ledger.faults)} faults so far)")
            await fault(trial)
            await trial.stage.databases.whole()
            done[fault.__name__] += 1
            await asyncio.sleep(trial.luck.uniform(*PAUSE))
        trial.figures.notes.append(", ".join(f"{times} {name}" for name, times in sorted(done.items())))

    return scenario
