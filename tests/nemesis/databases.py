"""Three PostgreSQL with synchronous replication, and what an operator (or Patroni) does with them in a failover."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from models.postgres import migrations
from tests.replication import Machine, Machines, machines

NAMES = ("first", "second", "third")
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def note(text: str) -> None:
    """Print a line with the time, by which the logs of PostgreSQL and of the servers can be read."""
    print(f"  {datetime.now(UTC):%H:%M:%S.%f} {text}", flush=True)


def _shown(received: dict[Machine, tuple[int, int]]) -> str:
    return ", ".join(f"{machine.name} at {timeline}/{lsn:X}" for machine, (timeline, lsn) in received.items())


def _quorum(primary: Machine) -> str:
    others = ", ".join(f'"{name}"' for name in NAMES if name != primary.name)
    return f"ANY 1 ({others})"


class Databases:
    """The machines; ``primary`` is the one that was promoted last."""

    def __init__(self, made: Machines, primary: Machine) -> None:
        self._made, self.primary = made, primary

    @property
    def all(self) -> list[Machine]:
        return self._made.all

    @property
    def standbys(self) -> list[Machine]:
        return [machine for machine in self.all if machine is not self.primary and machine.running]

    @property
    def dsn(self) -> str:
        """The URL of all of them, as a server has it."""
        return self._made.dsn()

    def dsn_of(self, *machines: Machine) -> str:
        return self._made.dsn(*machines)

    async def fail_over(self) -> float:
        """Promote the standby that has received most, and let the other one follow it. The primary is dead or frozen.

        In the order of docs/operations.md. First no standby may receive more: what one takes from a frozen primary
        after they were compared is acknowledged when that thaws. And the new primary waits for a standby from its
        first commit on.

        Returns when the new primary has taken a write that is on a standby, too, by the monotonic clock.
        """
        standbys = self.standbys
        for machine in standbys:
            await machine.cut_off()
        received = {machine: await machine.received() for machine in standbys}
        chosen = max(received, key=lambda machine: received[machine])
        note(f"{self.primary.name} is replaced; of {_shown(received)} {chosen.name} is promoted")
        await chosen.set("synchronous_standby_names", _quorum(chosen))
        await chosen.promote()
        self.primary = chosen
        for other in received:
            if other is not chosen:
                await other.follow(chosen)
        return await self.accepts()

    async def accepts(self, seconds: float = 60) -> float:
        """Wait until the primary takes a write that is replicated; when that was."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(*AWAY):
                    connection = await self.primary.connect()
                    try:
                        await connection.execute("SELECT pg_logical_emit_message(true, 'nemesis', '')", timeout=1)
                        return time.monotonic()
                    finally:
                        connection.terminate()
                await asyncio.sleep(0.02)

    async def rejoin(self, machine: Machine) -> None:
        """Make a former primary a standby of the present one."""
        machine.kill()
        await self._made.copy(self.primary, machine)
        await machine.caught_up(self.primary)

    async def whole(self) -> None:
        """Wait until all standbys have what the primary has."""
        for machine in self.standbys:
            await machine.caught_up(self.primary)


@contextlib.asynccontextmanager
async def databases(folder: Path) -> AsyncIterator[Databases]:
    """A migrated primary with two standbys, one of which has to have what is acknowledged."""
    folder.mkdir()
    async with machines(folder) as made:
        primary = await made.primary(NAMES[0])
        await migrations.migrate(made.dsn())
        await primary.set("synchronous_standby_names", _quorum(primary))
        for name in NAMES[1:]:
            await made.standby(primary, name)
        one = Databases(made, primary)
        await one.accepts()
        yield one
