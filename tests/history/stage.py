"""The services and servers of a run, each of which can be killed and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from unittest import mock
from urllib.parse import urlsplit

import asyncpg

from config import embedded
from models.postgres import migrations
from tests.running import Place, program

KILLED = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)  # PostgreSQL was, just now


class Killed:
    """Something that runs until it is killed, and then runs again."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.starts = 0
        self.away = 0.0  # seconds, of all the times it was gone
        self._wanted = asyncio.Event()

    async def kill(self) -> None:
        """Kill it, once it is up."""
        await self.up.wait()
        self.up.clear()
        self._wanted.set()

    async def _stays(self) -> None:
        # Until it shall be killed.
        self._wanted.clear()
        self.starts += 1
        self.up.set()
        await self._wanted.wait()


class Postgres(Killed):
    """PostgreSQL in a folder, at one port for the whole run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.dsn = ""

    async def be_lossy(self) -> None:
        """Let it acknowledge commits that are not on the disk yet."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute("ALTER ROLE mimu SET synchronous_commit = off")
        finally:
            await connection.close()

    async def run(self) -> None:
        # The embedded default restarts its own child, but waits ever longer when it dies again and again: here each
        # death is followed by a new start.
        while True:
            port = urlsplit(self.dsn).port
            same = (
                mock.patch("config.embedded.child._free_port", return_value=port) if port else contextlib.nullcontext()
            )
            gone = time.monotonic()
            with same:
                async with embedded.postgres(self._folder) as dsn:
                    if not port:
                        await migrations.migrate(dsn)
                    elif dsn != self.dsn:
                        raise RuntimeError("PostgreSQL came back elsewhere")
                    self.away += time.monotonic() - gone if port else 0
                    self.dsn = dsn
                    await self._stays()
                    pid = int((self._folder / "postgres/data/postmaster.pid").read_text().split()[0])
                    os.kill(pid, signal.SIGKILL)


class Instance(Killed):
    """A server; each time at another port."""

    def __init__(self, place: Place, folder: Path) -> None:
        super().__init__()
        self._place, self._folder = place, folder
        self.url = ""
        self.refusals = 0  # starts that failed, because PostgreSQL was away

    async def run(self) -> None:
        gone = time.monotonic()
        while True:
            try:
                async with program(self._place, self._folder) as running:
                    self.away += time.monotonic() - gone if self.starts else 0
                    self.url = running.url
                    ends = asyncio.create_task(running.process.wait())
                    stays = asyncio.create_task(self._stays())
                    try:
                        await asyncio.wait((ends, stays), return_when=asyncio.FIRST_COMPLETED)
                        if not stays.done():
                            raise RuntimeError(f"a server ended by itself: {running.log_text()[-2000:]}")
                        running.kill()
                        await ends
                    finally:
                        self.url = ""
                        ends.cancel()
                        stays.cancel()
                gone = time.monotonic()
            except AssertionError:  # it says that it did not start
                self.refusals += 1
                if self.refusals > 100:
                    raise
                await asyncio.sleep(0.2)


class Theatre(Protocol):
    """What clients need to know of the services and servers of a run."""

    def url(self, luck: random.Random) -> str | None:
        """A server that is up; None while there is none."""

    async def lasts(self) -> dict[str, int]:
        """The last_seq of every chat."""

    async def whole(self) -> None:
        """Until everything is up."""


class Stage:
    """One PostgreSQL, one Valkey, and servers that share them."""

    def __init__(self, postgres: Postgres, place: Place, instances: list[Instance]) -> None:
        self.postgres, self.place, self.instances = postgres, place, instances

    def url(self, luck: random.Random) -> str | None:
        """A server that is up; None while there is none."""
        urls = [instance.url for instance in self.instances if instance.url]
        return luck.choice(urls) if urls else None

    async def lasts(self) -> dict[str, int]:
        """The last_seq of every chat, as PostgreSQL has it, once it is up."""
        while True:
            await self.postgres.up.wait()
            try:
                connection = await asyncpg.connect(self.postgres.dsn)
                try:
                    return dict(await connection.fetch("SELECT id::text, last_seq FROM chat_threads"))
                finally:
                    await connection.close()
            except KILLED:
                await asyncio.sleep(0.1)

    async def whole(self) -> None:
        """Until everything is up."""
        for part in (self.postgres, *self.instances):
            await part.up.wait()


@contextlib.asynccontextmanager
async def stage(folder: Path, instances: int) -> AsyncIterator[Stage]:
    """Everything started; all of it is gone at the end. Raises ExceptionGroup when a part can't run any more."""
    logs = folder / "servers"
    logs.mkdir()
    async with embedded.valkey(folder) as redis, asyncio.TaskGroup() as group:
        postgres = Postgres(folder)
        tasks = [group.create_task(postgres.run(), name="PostgreSQL")]
        await postgres.up.wait()
        place = Place(postgres.dsn, redis)
        servers = [Instance(place, logs) for _ in range(instances)]
        tasks += [group.create_task(server.run(), name="a server") for server in servers]
        try:
            for server in servers:
                await server.up.wait()
            yield Stage(postgres, place, servers)
        finally:
            # The servers first: while they stop, they write.
            for task in reversed(tasks):
                task.cancel()
                await asyncio.wait([task])
