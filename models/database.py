"""The database: one asyncpg pool, spoken to by peewee-async models and by plain SQL in the same transactions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import peewee
from peewee_async.aio_model import AioModel
from peewee_async.connection import ConnectionContext, connection_context
from peewee_async.databases import AioPostgresDatabase

from models.postgres.cluster import Cluster, name_of
from models.postgres.outages import Unavailable as Unavailable
from models.postgres.outages import outages
from models.postgres.pool import COMMAND_SECONDS as COMMAND_SECONDS
from models.postgres.pool import Connection, Held, Pool, Usage
from models.postgres.statements import Watch, Watched

# For statements that run thousands of times a second: they are planned once, not for each set of parameters, and by
# index whatever the tables hold at that moment. A plan made while they are empty would else read all of them later.
_STEADY = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

Row = asyncpg.Record


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


class _Peewee(AioPostgresDatabase, peewee.PostgresqlDatabase):
    """What peewee-async needs to run queries on our pool."""

    pool_backend_cls = Pool


class _Transaction(ConnectionContext):
    """What peewee-async keeps of the transaction that is open, and what is done after its commit."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.transaction_is_opened = True
        self.after: list[Callable[[], Awaitable[None]]] = []


class Database:
    """One PostgreSQL. ``run`` takes a peewee query; ``fetch``, ``row``, ``value`` and ``execute`` take SQL with ``$1``.

    All of them join the transaction that is open around them, and raise Unavailable when the server is away.
    """

    def __init__(
        self,
        where: str | Cluster,
        max_connections: int = 20,
        settings: Mapping[str, str] | None = None,
        *,
        name: str = "mimu",
        watch: Watch | None = None,
    ) -> None:
        """``name`` is what PostgreSQL shows of us: ``pg_stat_activity.application_name``."""
        self.cluster = where if isinstance(where, Cluster) else Cluster(where)
        self._name, self._watch = name, watch or Watch()
        shown = {"application_name": name, **(settings or {})}
        pool = {"max_size": max_connections, "settings": shown, "cluster": self.cluster, "watch": self._watch}
        self._peewee = _Peewee(name_of(self.cluster.dsn), pool_params=pool)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        """Connect until the block ends."""
        if self.cluster.current is None and len(self.cluster.hosts) > 1:
            with outages():
                await self.cluster.elect()  # no request waits yet: all hosts have time to answer
        await self._peewee.aio_connect()
        try:
            yield self
        finally:
            await self._peewee.aio_close()

    def steady(self) -> Database:
        """The same database over one connection of its own, for the statements that everybody waits for: it waits for
        no other one, and plans each of them once."""
        watch = replace(self._watch, acquired=Watch().acquired)  # it is no one's pool
        return Database(self.cluster, 1, _STEADY, name=self._name, watch=watch)

    def usage(self) -> Usage:
        backend: Pool = self._peewee.pool_backend
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
        outer = connection_context.get()
        if isinstance(outer, _Transaction):
            earlier = len(outer.after)
            try:
                async with self._peewee.aio_atomic():  # a savepoint
                    yield
            except BaseException:
                del outer.after[earlier:]
                raise
            return
        async with self.connection() as raw:
            context = _Transaction(Connection(raw, self.cluster, self._watch))
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
        for work in context.after:
            await work()

    def after_commit(self, work: Callable[[], Awaitable[None]]) -> None:
        """Await ``work`` when the outermost transaction has committed and given its connection back; not at all when
        the transaction or savepoint that is open now is rolled back. What it raises reaches who opened the
        transaction."""
        context = connection_context.get()
        assert isinstance(context, _Transaction), "no transaction is open"
        context.after.append(work)

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            with Watched(self._watch, sql):
                return await connection.fetch(sql, *args)

    async def row(self, sql: str, *args: Any) -> asyncpg.Record | None:
        async with self.connection() as connection:
            with Watched(self._watch, sql):
                return await connection.fetchrow(sql, *args)

    async def value(self, sql: str, *args: Any) -> Any:
        async with self.connection() as connection:
            with Watched(self._watch, sql):
                return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> int:
        """Run a statement; the number of rows it changed."""
        async with self.connection() as connection:
            with Watched(self._watch, sql):
                status: str = await connection.execute(sql, *args)
        last = status.rpartition(" ")[2]
        return int(last) if last.isdecimal() else 0

    async def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row, in one round trip."""
        if rows:
            async with self.connection() as connection:
                with Watched(self._watch, sql):
                    await connection.executemany(sql, rows)

    async def replicated(self) -> None:
        """Wait until everything that was committed before is where commits have to be: with
        ``synchronous_standby_names`` on a standby, too. A statement that was given up while it waited for that is
        committed here all the same, and who finds its rows must not take them for safe."""
        await self.execute("SELECT pg_logical_emit_message(true, 'mimu', '')")

    def connection(self) -> Held:
        """The connection of the transaction we are in, else one of the pool's while the block lasts."""
        context = connection_context.get()
        backend: Pool = self._peewee.pool_backend
        return Held(backend, None if context is None else context.connection.raw)
