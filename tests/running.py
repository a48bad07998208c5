"""Servers for tests: in this process, or as the real program; each with its own database if the test wants one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from redis.asyncio import Redis

import server
from handlers.reference.page import OpenApi
from models.postgres import migrations
from server import Server
from tests import canaries, conformance, connections
from tests.beside import turn
from tests.waiting import WAIT

ROOT = Path(__file__).resolve().parent.parent
_names = count()


@dataclass(frozen=True)
class Services:
    """A PostgreSQL whose database ``mimu`` may make others, and a Valkey with 16 numbered ones."""

    dsn: str
    redis: str


@dataclass(frozen=True)
class Place:
    """A migrated database and an empty Redis, which one or more servers share."""

    dsn: str
    redis: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.dsn,
            "REDIS_URL": self.redis,
            "MIMU_ENV": "development",
            "MIMU_DATA_DIR": tempfile.gettempdir() + "/mimu-tests",
            "HOST": "127.0.0.1",
            "PORT": "0",
            "RATE_LIMITS": "off",
            "SHUTDOWN_SECONDS": "0",
            "JWT_SECRET": "only-for-tests-0123456789abcdefghijklmnop",
            "TURN_SECRET": "only-for-tests-turn-0123456789abcdefghijk",
        }


def inherited(*names: str) -> dict[str, str]:
    """These variables of our environment, for a program of ours, and the one by which ``make coverage`` measures it."""
    return {name: os.environ[name] for name in (*names, "COVERAGE_PROCESS_CONFIG") if name in os.environ}


def _database(dsn: str, name: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path="/" + name))


def _forget_fence(place: Place, settings: Mapping[str, str]) -> None:
    """Tests share a data folder and names of databases, but no cluster: forget what an earlier test saw."""
    if "MIMU_DATA_DIR" not in settings:
        name = urlsplit(place.dsn).path.lstrip("/")
        (Path(place.environment["MIMU_DATA_DIR"]) / f"fence-{name}.json").unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def place(services: Services) -> AsyncIterator[Place]:
    """A fresh copy of the migrated template, dropped at the end."""
    number = next(_names)
    name = f"test_{os.getpid()}_{number}"
    admin = await asyncpg.connect(services.dsn)
    redis_url = urlunsplit(urlsplit(services.redis)._replace(path=f"/{1 + number % 15}"))
    redis = Redis.from_url(redis_url)
    try:
        if not await _has_template(admin):
            await _make_template(services, admin)
        # As files: through the WAL, which is the default, it takes PostgreSQL almost twice as long.
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template_mimu STRATEGY FILE_COPY")
        await redis.flushdb()
        yield Place(_database(services.dsn, name), redis_url)
    finally:
        await redis.aclose()
        await dropped(admin, name)
        await admin.close()


async def _has_template(admin: asyncpg.Connection) -> bool:
    return bool(await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = 'template_mimu'"))


async def _make_template(services: Services, admin: asyncpg.Connection) -> None:
    """Make the migrated template once, also when several ask for it at the same time: it gets its name at the end."""
    await admin.execute("SELECT pg_advisory_lock(1)")
    if not await _has_template(admin):
        await admin.execute("CREATE DATABASE unfinished_template")
        await migrations.migrate(_database(services.dsn, "unfinished_template"))
        await admin.execute("ALTER DATABASE unfinished_template RENAME TO template_mimu")
    await admin.execute("SELECT pg_advisory_unlock(1)")


async def dropped(admin: asyncpg.Connection, name: str) -> None:
    """Drop a database and disconnect its clients. Waits for a worker of autovacuum, which only PostgreSQL may end."""
    for _ in range(50):
        try:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            return
        except asyncpg.InsufficientPrivilegeError:
            await asyncio.sleep(0.1)
    raise AssertionError(f"autovacuum does not leave {name}")


@contextlib.asynccontextmanager
async def connected(place: Place) -> AsyncIterator[Any]:
    """A connection without the time limits of a server's pool. Prepare many rows by it, and no other way: a request has
    1.5 s for a statement, which 5,000 users with their triggers exceed on a busy machine."""
    connection = await asyncpg.connect(place.dsn)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def serving(place: Place, **settings: str) -> AsyncIterator[Server]:
    """A server in this process."""
    _forget_fence(place, settings)
    configuration = server.configure({**place.environment, **settings})
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(_forget_fence, place, settings)
        async with turn():
            running = await stack.enter_async_context(server.running(configuration))
        async with asyncio.timeout(WAIT):
            while not running.app.bus.up:
                await asyncio.sleep(0.01)
        async with connections.kept(running.url):
            with conformance.knowing(running.url, document_of(running)):
                yield running
        assert not canaries.escaped(" ".join(canaries.labels(running.app.metrics.registry))), "a metric has a secret"


def document_of(running: Server) -> bytes:
    """The OpenAPI document that a server in this process serves."""
    [kwargs] = [rule.target_kwargs for rule in running.site.wildcard_router.rules if rule.target is OpenApi]
    content: bytes = kwargs["document"].content
    return content


class Program:
    """``server.py`` as a separate process."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path, place: Place | None) -> None:
        self.process, self.url, self._log, self.place = process, url, log, place

    def log_text(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self._forget()
        self.process.kill()

    def _forget(self) -> None:
        kept = connections.pool(self.url)
        if kept is not None:
            kept.forget()

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self._forget()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 30)


@contextlib.asynccontextmanager
async def program(
    place: Place | None, folder: Path, *, started: Sequence[str] = (str(ROOT / "server.py"),), **settings: str
) -> AsyncIterator[Program]:
    """Run the real program, or ``started`` in its place, without variables of our environment that could change it."""
    environment = inherited("PATH", "HOME", "LANG", "TMPDIR") | {"PYTHONDONTWRITEBYTECODE": "1"}
    environment |= place.environment if place else {"HOST": "127.0.0.1", "PORT": "0", "SHUTDOWN_SECONDS": "0"}
    environment |= settings
    if place:
        _forget_fence(place, settings)
    log = folder / f"server-{next(_names)}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *started,
            env=environment,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        found = re.search(r"http://(?:\[\S+\]|[^\s:]+):\d+", line)
        assert found, f"the server did not start: {line!r} {log.read_text()}"
        running = Program(process, found.group(), log, place)
        with conformance.knowing(running.url, await conformance.fetched(running.url)):
            async with connections.kept(running.url):
                yield running
        await running.stop()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if place:
            _forget_fence(place, settings)


def json_lines(text: str) -> list[dict[str, object]]:
    """The log's lines, each of which must be one JSON object."""
    return [json.loads(line) for line in text.splitlines()]


def periodic(server: Server, name: str) -> Callable[[], Awaitable[object]]:
    """A periodic task of a server's, to be run when a test wants it."""
    return next(every.task for feature in server.features for every in feature.periodic if every.name == name)
