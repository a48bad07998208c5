"""The pool: asyncpg's, with connections to the host in use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import asyncpg
import orjson
import structlog

from models.postgres.cluster import Cluster
from models.postgres.hosts import HostAway, HostRefused, describe
from models.postgres.identity import Raw
from models.postgres.outages import AWAY, Unavailable, cause, outages
from models.postgres.statements import Watch

log = structlog.get_logger(__name__)

# A request may wait 3 s in total (contract section 1): so long for a connection, then so long for the result.
ACQUIRE_SECONDS, COMMAND_SECONDS = 1.2, 1.5

_SESSION = {
    "timezone": "UTC",
    "statement_timeout": "10000",  # ms; a statement whose client timed out must not run for ever
    "idle_in_transaction_session_timeout": "10000",  # ms; nor hold its locks if our process hangs
    # PostgreSQL decides by the estimated cost if it compiles a plan, and _STEADY distorts these costs: a statement of
    # half a millisecond took 660 ms, each time.
    "jit": "off",
}

# The life of the database that this task (or request) had its last connection to: a cluster and a timeline, None when
# that has ended since, and empty before the first one.
last_life: ContextVar[tuple[int, ...] | None] = ContextVar("last_life", default=())

CANCEL_SECONDS = 0.5  # for PostgreSQL to cancel a statement that timed out; then the connection is closed


async def _codecs(connection: asyncpg.Connection) -> None:
    # In binary: a JSONB value is sent with its version byte, and orjson's bytes need no decoding.
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + orjson.dumps(value),
        decoder=lambda value: orjson.loads(value[1:]),
        format="binary",
    )


async def _keep(_: asyncpg.Connection) -> None:
    """Replace asyncpg's reset, which costs a round trip per release (5.7k against 16.8k queries/s). The price: no
    LISTEN, SET or session advisory lock on a pooled connection."""


@contextlib.contextmanager
def _connecting() -> Iterator[None]:
    """Raise HostAway for whatever prevents a connection: a wrong password, or a deadlock with another instance that
    begins the same epoch. A request that waits for a connection gets an outage for each of them; the others are
    logged."""
    try:
        yield
    except AWAY:
        raise
    except Exception as error:
        log.error("postgres_connection_failed", exc_info=error)
        raise HostAway(describe(error)) from error


class Pool:
    """The connections of a database, in a pool of asyncpg's."""

    def __init__(self, cluster: Cluster, watch: Watch, max_size: int, settings: Mapping[str, str]) -> None:
        self.cluster, self.watch = cluster, watch
        self.pool: asyncpg.Pool[asyncpg.Record] | None = None
        self.waiting = 0
        self._max_size, self._settings = max_size, settings
        self._returning: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect. Raises Unavailable."""
        with outages():
            self.pool = await asyncpg.create_pool(
                connect=self.cluster.pooled,
                min_size=min(2, self._max_size),
                max_size=self._max_size,
                command_timeout=COMMAND_SECONDS,
                timeout=ACQUIRE_SECONDS,
                max_inactive_connection_lifetime=300,
                init=_codecs,
                reset=_keep,
                server_settings={**_SESSION, **self._settings},
            )

    async def raw(self) -> Raw:
        """Acquire a connection within ACQUIRE_SECONDS. Raises Unavailable."""
        began = time.perf_counter()
        self.waiting += 1
        try:
            with outages(), _connecting():
                if self.pool is None:
                    raise OSError("the pool is closed")
                if self.cluster.held:
                    raise HostRefused("a new epoch begins")
                connection: Any = await self.pool.acquire(timeout=ACQUIRE_SECONDS)
                last_life.set(self.cluster.life(connection._con))
                raw: Raw = connection
            if len(self.cluster.hosts) > 1:
                await self._confirmed(raw)
            return raw
        except Unavailable as error:
            self.watch.failed(cause(error))
            raise
        finally:
            self.waiting -= 1
            self.watch.acquired(time.perf_counter() - began)

    async def _confirmed(self, raw: Raw) -> None:
        """Wait until no other server is known to use another host. If one does, the connection has ended."""
        try:
            await self.cluster.fence.fresh()
        except BaseException:
            self.give_back_later(raw)
            raise

    async def give_back(self, raw: Raw, seconds: float | None = None) -> None:
        """Return a connection to the pool. If its statement can't be cancelled within ``seconds``, it is closed."""
        with contextlib.suppress(*AWAY):  # it may have closed in the meantime, and left the pool
            # Connections are not reset, so one that comes back inside a transaction must not be used again.
            if raw.is_in_transaction():
                raw.terminate()
            if self.pool is not None:
                await self.pool.release(raw, timeout=seconds)

    def give_back_later(self, raw: Raw) -> None:
        task = asyncio.get_running_loop().create_task(self.give_back(raw, CANCEL_SECONDS))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def close(self) -> None:
        if self.pool is None:
            return
        try:
            await asyncio.wait_for(self.pool.close(), 5)
        except TimeoutError:
            self.pool.terminate()

    def usage(self) -> Usage:
        if self.pool is None:
            return Usage(0, 0, 0, 0)
        return Usage(self.pool.get_max_size(), self.pool.get_size(), self.pool.get_idle_size(), self.waiting)


class Usage(NamedTuple):
    """The use of a pool: maximum, open and idle connections, and how many callers wait for one."""

    most: int
    size: int
    idle: int
    waiting: int


class Held:
    """A connection for one block. It waits for the connection and for results no longer than a request may."""

    __slots__ = ("_own", "_pool", "_raw")

    def __init__(self, pool: Pool, raw: Raw | None) -> None:
        self._pool, self._raw, self._own = pool, raw, raw is None

    async def __aenter__(self) -> Raw:
        if self._raw is None:
            self._raw = await self._pool.raw()
        return self._raw

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._own and self._raw is not None:
            if error is None:
                self._pool.cluster.silences = 0
                await self._pool.give_back(self._raw)
            else:
                # After a timeout asyncpg waits here until the statement is cancelled; the request need not wait.
                self._pool.give_back_later(self._raw)
        if isinstance(error, AWAY):
            self._pool.cluster.failed(error)
            raise Unavailable(f"PostgreSQL is away ({describe(error)})") from error
