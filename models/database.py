"""The database: one asyncpg pool, spoken to by peewee-async models and by plain SQL in the same transactions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import asyncpg
import orjson
import peewee
from asyncpg.pool import PoolConnectionProxy
from peewee_async.aio_model import AioModel
from peewee_async.connection import ConnectionContext, connection_context
from peewee_async.databases import AioPostgresDatabase
from peewee_async.pool import PoolBackend

from models.outages import AWAY, cause, outages
from models.outages import Unavailable as Unavailable
from models.statements import Watch, Watched

# A request may wait 3 s in all (contract section 1): this long for a connection, then this long for its answer.
ACQUIRE_SECONDS, COMMAND_SECONDS = 1.2, 1.5

_SESSION = {
    "timezone": "UTC",
    "statement_timeout": "10000",  # ms; a statement whose client gave up must not go on for ever
    "idle_in_transaction_session_timeout": "10000",  # ms; nor hold its locks when our process hangs
    # Where PostgreSQL can compile plans it does so by their estimated cost, which says nothing of ours: a statement of
    # half a millisecond took 660, each time, because _STEADY makes what it avoids look expensive.
    "jit": "off",
}

# For statements that run thousands of times a second: they are planned once, not for each set of parameters, and by
# index whatever the tables hold at that moment. A plan made while they are empty would else read all of them later.
_STEADY = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

Row = asyncpg.Record
Raw: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"


class JSONB(peewee.Field):
    """A JSON object or list; asyncpg's codec does the work, so the value passes through."""

    field_type = "JSONB"


class Enum(peewee.TextField):
    """A column of a PostgreSQL enum type called ``type_name``."""

    def __init__(self, type_name: str, **options: Any) -> None:
        super().__init__(**options)
        self.field_type = type_name  # type: ignore[misc]  # peewee's own way to name a column's type


class Table(AioModel):
    """A table. It is bound to no database: a query is run by the Database it is given to."""


@functools.lru_cache(maxsize=2048)
def _numbered(sql: str) -> str:
    """peewee's ``%s`` as PostgreSQL's ``$1, $2, …``."""
    parts = sql.split("%s")
    joined = "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]
    return joined.replace("%%", "%")


class _Cursor:
    """The cursor that peewee-async expects, over one asyncpg connection."""

    lastrowid = 0
    rowcount = 0
    description: Sequence[tuple[str]] | None = None

    def __init__(self, connection: Raw, watch: Watch) -> None:
        self._connection, self._watch = connection, watch
        self._rows: list[asyncpg.Record] = []

    async def __aenter__(self) -> _Cursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._rows = []

    async def execute(self, query: str, *args: Any, **_: Any) -> None:
        parameters = args[0] if args else ()
        sql = _numbered(query)
        with outages(), Watched(self._watch, sql):
            if "RETURNING" in sql or sql.startswith(("SELECT", "WITH", "(")):
                self._rows = await self._connection.fetch(sql, *parameters)  # hits asyncpg's statement cache
                self.rowcount = len(self._rows)
            else:
                status = await self._connection.execute(sql, *parameters)
                last = status.rpartition(" ")[2]
                self.rowcount = int(last) if last.isdecimal() else 0
        self.description = [(name,) for name in self._rows[0].keys()] if self._rows else []  # noqa: SIM118  # `in` gives values

    async def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    async def fetchmany(self, size: int) -> Sequence[Any]:
        taken, self._rows = self._rows[:size], self._rows[size:]
        return taken

    async def fetchall(self) -> Sequence[Any]:
        taken, self._rows = self._rows, []
        return taken


class _Connection:
    """A pooled asyncpg connection, as peewee-async's transactions and queries want it."""

    def __init__(self, raw: Raw, watch: Watch) -> None:
        self.raw, self._watch = raw, watch

    def cursor(self, **_: Any) -> _Cursor:
        return _Cursor(self.raw, self._watch)

    async def close(self) -> None:
        await self.raw.close()


async def _codecs(connection: asyncpg.Connection) -> None:
    # As binary: a JSONB value travels with its version byte, and orjson's bytes need no decoding.
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + orjson.dumps(value),
        decoder=lambda value: orjson.loads(value[1:]),
        format="binary",
    )


async def _keep(_: asyncpg.Connection) -> None:
    """Instead of asyncpg's reset, which costs a round trip for each release (5.7k against 16.8k queries/s). The price:
    no LISTEN, SET or session advisory lock on a pooled connection."""


class _Pool(PoolBackend):
    """peewee-async's pool, made of asyncpg's."""

    pool: asyncpg.Pool[asyncpg.Record] | None

    def __init__(self, *, watch: Watch, **options: Any) -> None:
        super().__init__(**options)
        self.watch = watch
        self.waiting = 0
        self._returning: set[asyncio.Task[None]] = set()

    async def create(self) -> None:
        options = dict(self.connect_params)
        with outages():
            self.pool = await asyncpg.create_pool(
                options.pop("dsn"),
                min_size=min(2, options["max_size"]),
                max_size=options.pop("max_size"),
                command_timeout=COMMAND_SECONDS,
                timeout=ACQUIRE_SECONDS,
                max_inactive_connection_lifetime=300,
                init=_codecs,
                reset=_keep,
                server_settings={**_SESSION, **options.pop("settings")},
            )

    @property
    def is_connected(self) -> bool:
        return self.pool is not None and not self.pool.is_closing()

    def has_acquired_connections(self) -> bool:
        return self.pool is not None and self.pool.get_idle_size() < self.pool.get_size()

    async def raw(self) -> Raw:
        """A connection, within ACQUIRE_SECONDS. Raises Unavailable."""
        began = time.perf_counter()
        self.waiting += 1
        try:
            with outages():
                if self.pool is None:
                    raise OSError("the pool is closed")
                connection: Raw = await self.pool.acquire(timeout=ACQUIRE_SECONDS)
                return connection
        except Unavailable as error:
            self.watch.failed(cause(error))
            raise
        finally:
            self.waiting -= 1
            self.watch.acquired(time.perf_counter() - began)

    async def give_back(self, raw: Raw) -> None:
        # Nothing resets a connection here, so one that comes back inside a transaction must not be used again.
        if raw.is_in_transaction():
            raw.terminate()
        if self.pool is not None:
            with contextlib.suppress(*AWAY):
                await self.pool.release(raw)

    def give_back_later(self, raw: Raw) -> None:
        task = asyncio.get_running_loop().create_task(self.give_back(raw))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def acquire(self) -> Any:
        return _Connection(await self.raw(), self.watch)

    async def release(self, conn: Any) -> None:
        await self.give_back(conn.raw)

    async def close(self) -> None:
        if self.pool is None:
            return
        try:
            await asyncio.wait_for(self.pool.close(), 5)
        except TimeoutError:
            self.pool.terminate()


class _Peewee(AioPostgresDatabase, peewee.PostgresqlDatabase):
    """What peewee-async needs to run queries on our pool."""

    pool_backend_cls = _Pool


class Usage(NamedTuple):
    """Of a pool: how many connections it may have, has, and has idle, and how many wait for one."""

    most: int
    size: int
    idle: int
    waiting: int


class Database:
    """One PostgreSQL. ``run`` takes a peewee query; ``fetch``, ``row``, ``value`` and ``execute`` take SQL with ``$1``.

    All of them join the transaction that is open around them, and raise Unavailable when the server is away.
    """

    def __init__(
        self,
        dsn: str,
        max_connections: int = 20,
        settings: Mapping[str, str] | None = None,
        *,
        name: str = "mimu",
        watch: Watch | None = None,
    ) -> None:
        """``name`` is what PostgreSQL shows of us: ``pg_stat_activity.application_name``."""
        self._dsn, self._name, self._watch = dsn, name, watch or Watch()
        shown = {"application_name": name, **(settings or {})}
        pool = {"dsn": dsn, "max_size": max_connections, "settings": shown, "watch": self._watch}
        self._peewee = _Peewee(unquote(urlsplit(dsn).path.lstrip("/")) or "mimu", pool_params=pool)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        """Connect until the block ends."""
        await self._peewee.aio_connect()
        try:
            yield self
        finally:
            await self._peewee.aio_close()

    def steady(self) -> Database:
        """The same database over one connection of its own, for the statements that everybody waits for: it waits for
        no other one, and plans each of them once."""
        watch = replace(self._watch, acquired=Watch().acquired)  # it is no one's pool
        return Database(self._dsn, 1, _STEADY, name=self._name, watch=watch)

    def usage(self) -> Usage:
        backend: _Pool = self._peewee.pool_backend
        pool = backend.pool
        if pool is None:
            return Usage(0, 0, 0, 0)
        return Usage(pool.get_max_size(), pool.get_size(), pool.get_idle_size(), backend.waiting)

    @property
    def pool(self) -> asyncpg.Pool[asyncpg.Record]:
        pool: asyncpg.Pool[asyncpg.Record] | None = self._peewee.pool_backend.pool
        assert pool is not None, "the database is not open"
        return pool

    async def run(self, query: Any) -> Any:
        """Execute a peewee query; rows, or the number of rows written."""
        return await self._peewee.aio_execute(query)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Everything in the block commits together, or not at all. Start no task inside: it would share the
        connection."""
        if connection_context.get() is not None:
            async with self._peewee.aio_atomic():  # a savepoint
                yield
            return
        async with self._connection() as raw:
            context = ConnectionContext(_Connection(raw, self._watch))
            context.transaction_is_opened = True
            token = connection_context.set(context)
            try:
                await self.execute("BEGIN")
                yield
                await self.execute("COMMIT")
            except Unavailable:
                raise  # the connection is given up with its transaction; asking it again would only take longer
            except BaseException:
                with contextlib.suppress(Unavailable):
                    await self.execute("ROLLBACK")
                raise
            finally:
                connection_context.reset(token)

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        async with self._connection() as connection:
            with Watched(self._watch, sql):
                return await connection.fetch(sql, *args)

    async def row(self, sql: str, *args: Any) -> asyncpg.Record | None:
        async with self._connection() as connection:
            with Watched(self._watch, sql):
                return await connection.fetchrow(sql, *args)

    async def value(self, sql: str, *args: Any) -> Any:
        async with self._connection() as connection:
            with Watched(self._watch, sql):
                return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> int:
        """Run a statement; the number of rows it changed."""
        async with self._connection() as connection:
            with Watched(self._watch, sql):
                status: str = await connection.execute(sql, *args)
        last = status.rpartition(" ")[2]
        return int(last) if last.isdecimal() else 0

    async def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row, in one round trip."""
        if rows:
            async with self._connection() as connection:
                with Watched(self._watch, sql):
                    await connection.executemany(sql, rows)

    def _connection(self) -> _Held:
        """The connection of the transaction we are in, else one of the pool's while the block lasts."""
        context = connection_context.get()
        backend: _Pool = self._peewee.pool_backend
        return _Held(backend, None if context is None else context.connection.raw)


class _Held:
    """A connection for one block, which waits for it and for its answers no longer than a request may."""

    __slots__ = ("_backend", "_own", "_raw")

    def __init__(self, backend: _Pool, raw: Raw | None) -> None:
        self._backend, self._raw, self._own = backend, raw, raw is None

    async def __aenter__(self) -> Raw:
        if self._raw is None:
            self._raw = await self._backend.raw()
        return self._raw

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._own and self._raw is not None:
            if error is None:
                await self._backend.give_back(self._raw)
            else:
                # After a timeout asyncpg waits here for its own cancelling; nobody else has to.
                self._backend.give_back_later(self._raw)
        if isinstance(error, AWAY):
            raise Unavailable(f"PostgreSQL is away ({type(error).__name__})") from error
