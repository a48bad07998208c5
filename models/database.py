"""The database: one asyncpg pool, on which both peewee's queries and plain SQL run, in the same transactions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import asyncpg
import peewee
from peewee import SQL, fn
from peewee_async import AioModel

from models.postgres.cluster import Cluster
from models.postgres.identity import Raw
from models.postgres.orm import Orm, changed
from models.postgres.orm import Row as Row
from models.postgres.outages import Unavailable as Unavailable
from models.postgres.outages import outages
from models.postgres.pool import COMMAND_SECONDS as COMMAND_SECONDS
from models.postgres.pool import Held, Pool, Usage, last_life
from models.postgres.statements import Watch, Watched

# For statements that run thousands of times a second: PostgreSQL plans them once, not for each set of parameters, and
# uses indexes however small the tables are then. A plan made for empty tables would read all rows later.
_STEADY = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

_BACK_TO_SAVEPOINT = "ROLLBACK TO SAVEPOINT nested; RELEASE SAVEPOINT nested"
_LABEL = re.compile(r"[a-z][a-z0-9_]*")


class JSONB(peewee.Field):
    """A JSON object or list; asyncpg's codec does the work, so the value passes through."""

    field_type = "JSONB"


class Special(peewee.Field):
    """A column of a type that peewee has no field for; the value passes through."""

    def __init__(self, type_name: str, **options: Any) -> None:
        super().__init__(**options)
        self.field_type = type_name  # type: ignore[misc]  # peewee's way to name a column's type


class Enum(Special):
    """A column of a PostgreSQL enum type.

    A label is written into the statement, and read as text (``Call.status.label``): for a parameter or a column of an
    enum asyncpg would look up its type on each connection, and no partial index would match a parameter.
    """

    def db_value(self, value: str | None) -> SQL:
        if value is None:
            return SQL("NULL")
        if not _LABEL.fullmatch(value):
            raise ValueError(f"not a label of {self.field_type}: {value!r}")
        return SQL(f"'{value}'")

    @property
    def label(self) -> peewee.Cast:
        """The value as text, for the columns that a query returns."""
        return self.cast("text")


class Table(AioModel):
    """A table. It is bound to no database: the Database that gets a query runs it."""


def returned(*fields: peewee.Field) -> list[peewee.Node]:
    """Return the columns of a query's result, those of enums as text."""
    return [field.label if isinstance(field, Enum) else field for field in fields]


def in_sql(fields: Iterable[peewee.Field], alias: str) -> str:
    """Return the same columns as SQL: ``f.id, f.state::text``."""
    return ", ".join(f"{alias}.{field.column_name}" + "::text" * isinstance(field, Enum) for field in fields)


def any_of(field: peewee.Node, values: Iterable[object]) -> peewee.Expression:
    """``field = ANY (values)``: one statement for all lengths, where ``IN`` would be one for each length."""
    return field == fn.ANY(peewee.Value(list(values), converter=False, unpack=False))


def interval(text: str) -> SQL:
    """An interval with a constant text, such as ``30 days``."""
    return SQL(f"interval '{text}'")


class _Transaction:
    """An open transaction: its connection, and the work to do after its commit."""

    def __init__(self, pool: Pool, raw: Raw) -> None:
        self.pool, self.raw = pool, raw
        self.after: list[Callable[[], Awaitable[None]]] = []


_transaction: ContextVar[_Transaction | None] = ContextVar("transaction", default=None)


class Database:
    """One PostgreSQL. ``rows``, ``one``, ``scalar``, ``exists`` and ``do`` take a peewee query; ``fetch``, ``row``,
    ``value``, ``execute`` and ``many`` take SQL with ``$1`` (docs/decisions/0002 has the line between the two).

    All of them join the surrounding transaction, return asyncpg's rows, and raise asyncpg's errors, or Unavailable if
    the server is away.
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
        """``name`` is shown in ``pg_stat_activity.application_name``."""
        self.cluster = where if isinstance(where, Cluster) else Cluster(where)
        self._name, self._watch = name, watch or Watch()
        shown = {"application_name": name, **(settings or {})}
        self._pool = Pool(self.cluster, self._watch, max_connections, shown)
        self._orm = Orm(self.connection, self._watch)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        """Connect until the block ends."""
        if self.cluster.current is None and len(self.cluster.hosts) > 1:
            with outages():
                await self.cluster.elect()  # no request waits yet, so all hosts have time to answer
        await self._pool.open()
        try:
            yield self
        finally:
            await self._pool.close()

    def steady(self) -> Database:
        """Return the same database over one separate connection, for the statements that all users wait for: they don't
        queue behind others, and are planned once."""
        watch = replace(self._watch, acquired=Watch().acquired)  # one connection is no pool to measure
        return Database(self.cluster, 1, _STEADY, name=self._name, watch=watch)

    def usage(self) -> Usage:
        return self._pool.usage()

    @property
    def pool(self) -> asyncpg.Pool[asyncpg.Record]:
        assert self._pool.pool is not None, "the database is not open"
        return self._pool.pool

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Commit everything in the block together, or roll it back. Start no task inside: it would share the
        connection."""
        outer = self._current()
        if outer is not None:
            earlier = len(outer.after)
            try:
                async with self._between("SAVEPOINT nested", "RELEASE SAVEPOINT nested", _BACK_TO_SAVEPOINT):
                    yield
            except BaseException:
                del outer.after[earlier:]
                raise
            return
        async with self.connection() as raw:
            current = _Transaction(self._pool, raw)
            token = _transaction.set(current)
            try:
                async with self._between("BEGIN", "COMMIT", "ROLLBACK"):
                    yield
            finally:
                _transaction.reset(token)
        for work in current.after:
            await work()

    @contextlib.asynccontextmanager
    async def _between(self, begin: str, commit: str, roll_back: str) -> AsyncIterator[None]:
        try:
            await self.execute(begin)
            yield
            await self.execute(commit)
        except Unavailable:
            raise  # the connection is closed with its transaction; a ROLLBACK on it would only take longer
        except BaseException:
            with contextlib.suppress(Unavailable):
                await self.execute(roll_back)
            raise

    def after_commit(self, work: Callable[[], Awaitable[None]]) -> None:
        """Await ``work`` after the outermost transaction has committed and released its connection; not if the present
        transaction or savepoint is rolled back. Its errors are raised from the outermost ``transaction`` block."""
        current = self._current()
        assert current is not None, "no transaction is open"
        current.after.append(work)

    # peewee's queries -------------------------------------------------------------------------------------------------

    async def rows(self, query: peewee.Query) -> list[Row]:
        """Return all rows of a query."""
        return (await self._orm.cursor_of(query)).rows

    async def one(self, query: peewee.Query) -> Row | None:
        """Return the first row of a query; None if there is none."""
        rows = await self.rows(query)
        return rows[0] if rows else None

    async def scalar(self, query: peewee.Query) -> Any:
        """Return the first column of the first row; None if there is no row."""
        rows = await self.rows(query)
        return rows[0][0] if rows else None

    async def exists(self, query: Any) -> bool:
        """True if a SELECT finds a row."""
        return bool(await self.rows(query.columns(SQL("1")).limit(1)))

    async def do(self, query: peewee.Query) -> int:
        """Run an INSERT, UPDATE or DELETE. Returns the number of changed rows."""
        return (await self._orm.cursor_of(query)).rowcount

    # SQL --------------------------------------------------------------------------------------------------------------

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
        """Run a statement. Returns the number of changed rows."""
        async with self.connection() as connection:
            with Watched(self._watch, sql):
                status: str = await connection.execute(sql, *args)
        return changed(status)

    async def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row, in one round trip."""
        if rows:
            async with self.connection() as connection:
                with Watched(self._watch, sql):
                    await connection.executemany(sql, rows)

    async def replicated(self) -> None:
        """Wait until everything that was committed before is replicated as commits have to be: with
        ``synchronous_standby_names`` also on a standby. A statement that timed out while it waited for that is still
        committed here, and a reader of its rows must not treat them as safe. Raises Unavailable also if another host
        came into use since the previous statement, which read them: it need not have them."""
        before, sql = last_life.get(), "SELECT pg_logical_emit_message(true, 'mimu', '')"
        async with self.connection() as connection:
            if before not in ((), last_life.get()):
                raise Unavailable("the database was replaced meanwhile")
            with Watched(self._watch, sql):
                await connection.execute(sql)

    def connection(self) -> Held:
        """Return the connection of the surrounding transaction, else one of the pool's for the block."""
        return Held(self._pool, self._joined())

    def _joined(self) -> Raw | None:
        """Return the connection of the surrounding transaction, if any."""
        current = self._current()
        return None if current is None else current.raw

    def _current(self) -> _Transaction | None:
        """Return the surrounding transaction of this database, if any."""
        current = _transaction.get()
        return current if current is not None and current.pool is self._pool else None
