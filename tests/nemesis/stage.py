"""The stage: databases, caches, two servers and nginx before them, each of which can be killed and frozen."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from tests.deploy.nginx import proxying
from tests.deploy.relay import free_port
from tests.nemesis import caches
from tests.nemesis.caches import Caches
from tests.nemesis.databases import AWAY, Databases, databases
from tests.running import Place, Program, program

STARTS = 60.0  # seconds in which a server starts again, when what it needs is there
# All clients come from one address here.
NGINX = {
    "limit_req zone=mimu_requests burst=400 nodelay": "limit_req zone=mimu_requests burst=40000 nodelay",
    "limit_conn mimu_connections 500": "limit_conn mimu_connections 5000",
}


class Instance:
    """A server at a port that stays, so that nginx finds it again."""

    def __init__(self, place: Place, folder: Path, **settings: str) -> None:
        self._place, self._folder, self._settings = place, folder, settings
        self.port = free_port()
        self._stack = contextlib.AsyncExitStack()
        self._program: Program | None = None
        folder.mkdir(exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it; again and again while what it needs is away."""
        settings = {
            "PORT": str(self.port),
            "MIMU_DATA_DIR": str(self._folder / "data"),
            "DATABASE_MAX_CONNECTIONS": "10",
            "LOG_LEVEL": "warning",
            **self._settings,
        }
        async with asyncio.timeout(STARTS):
            while True:
                try:
                    self._program = await self._stack.enter_async_context(
                        program(self._place, self._folder, **settings)
                    )
                    return
                except AssertionError:  # it says why it did not start
                    await asyncio.sleep(0.3)

    def freeze(self) -> None:
        assert self._program is not None
        self._program.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._program is not None and self._program.process.returncode is None:
            self._program.process.send_signal(signal.SIGCONT)

    async def stop(self, *, kill: bool = False) -> None:
        if self._program is not None:
            if kill:
                self._program.kill()
                await self._program.process.wait()
            self.thaw()
            self._program = None
            await self._stack.aclose()

    def connected_to(self, port: int) -> set[int]:
        """The ports from which it holds a connection to this one, as the kernel knows them."""
        if self._program is None:
            return set()
        held = psutil.Process(self._program.process.pid).net_connections("tcp")
        return {one.laddr.port for one in held if one.status == psutil.CONN_ESTABLISHED and one.raddr.port == port}

    def log_text(self) -> str:
        return "".join(path.read_text() for path in sorted(self._folder.glob("server-*.log")))


class Stage:
    """``url`` is what clients ask: nginx."""

    def __init__(self, folder: Path, databases: Databases, caches: Caches, place: Place, instances: list[Instance]):
        self.folder, self.databases, self.caches = folder, databases, caches
        self.place, self.instances = place, instances
        self.front = ""

    def url(self, _: random.Random) -> str:
        return self.front

    async def lasts(self) -> dict[str, int]:
        """The last_seq of every chat, as the primary has it."""
        while True:
            try:
                connection = await self.databases.primary.connect()
                try:
                    return dict(await connection.fetch("SELECT id::text, last_seq FROM chat_threads"))
                finally:
                    connection.terminate()
            except AWAY:
                await asyncio.sleep(0.1)

    async def whole(self) -> None:
        """Until the primary takes writes that are replicated."""
        await self.databases.accepts()

    @contextlib.asynccontextmanager
    async def beside(self, name: str, dsn: str, redis: str = "") -> AsyncIterator[Instance]:
        """One more instance, which has never run before, with other hosts."""
        instance = Instance(Place(dsn, redis or self.place.redis), self.folder / name)
        await instance.start()
        try:
            yield instance
        finally:
            await instance.stop()


@contextlib.asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """Everything started; all of it has ended with the block."""
    async with contextlib.AsyncExitStack() as stack:
        stored = await stack.enter_async_context(databases(folder / "postgres"))
        cached = caches.caches if caches.proxy() else caches.single
        kept = await stack.enter_async_context(cached(folder / "redis"))
        place = Place(stored.dsn, kept.url)
        instances = [Instance(place, folder / name) for name in ("one", "two")]
        for instance in instances:
            stack.push_async_callback(instance.stop)
        await asyncio.gather(*(instance.start() for instance in instances))
        made = Stage(folder, stored, kept, place, instances)
        authorities = [instance.authority for instance in instances]
        proxy = stack.enter_context(proxying(*authorities, changes=NGINX))
        made.front = proxy.url
        yield made
