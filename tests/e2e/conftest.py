"""The stage of a journey: a coturn, and one or more servers, each its own process, that share PostgreSQL and Redis."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.leaks import cache_text, database_text
from tests.phones.coturn import HOST, running_coturn
from tests.running import ROOT, Place, Program, Services, place, program

CONF = ROOT / "turnserver.conf"

StageOf = Callable[[int], contextlib.AbstractAsyncContextManager["Stage"]]


@dataclass(frozen=True)
class Stage:
    shared: Place
    servers: list[Program]

    @property
    def urls(self) -> list[str]:
        """The address of each server."""
        return [server.url for server in self.servers]

    async def everything_kept(self) -> dict[str, str]:
        """All that the servers hold, by place."""
        return {
            "database": await database_text(self.shared.dsn),
            "cache": await cache_text(self.shared.redis),
            "log": self.log_text(),
        }

    def log_text(self) -> str:
        """What all the servers have logged so far, down to debug."""
        return "".join(server.log_text() for server in self.servers)

    def complaints(self) -> str:
        """The lines of the log with a warning or an error, and those that are not JSON."""
        quiet = ('"level":"debug"', '"level":"info"')
        return "\n".join(line for line in self.log_text().splitlines() if not any(level in line for level in quiet))


@pytest.fixture
def stage(services: Services, tmp_path: Path) -> StageOf:
    """`async with stage(2) as ...`: two servers side by side, whose calls a real coturn relays."""

    @contextlib.asynccontextmanager
    async def set_up(count: int) -> AsyncIterator[Stage]:
        async with contextlib.AsyncExitStack() as stack:
            coturn = await stack.enter_async_context(running_coturn(base=CONF))
            shared = await stack.enter_async_context(place(services))
            settings = {
                "TURN_HOST": HOST,
                "TURN_PORT": str(coturn.port),
                "TURN_TLS_PORT": "0",
                "TURN_SECRET": coturn.secret,
                "LOG_LEVEL": "debug",
            }
            servers = [await stack.enter_async_context(program(shared, tmp_path, **settings)) for _ in range(count)]
            made = Stage(shared, servers)
            try:
                yield made
            except BaseException:
                print(made.complaints())  # pytest shows it with the failure
                raise

    return set_up
