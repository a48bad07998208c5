"""Queries of peewee, which peewee-async runs on the same connections as SQL.

peewee writes the statement, peewee-async runs it, and the rest is ours: the connection (of the surrounding transaction
or the pool), its timeouts, outages, metrics and traces. So a peewee query and SQL differ only in how they are written.

We rely on these features of peewee-async 2.1 and peewee 4.3. tests/models/test_orm.py checks each of them, and shows
which one a new version lacks:

- ``PostgresqlDatabase.aio_execute(query, fetch_results)`` writes the statement, and calls ``aio_execute_sql``;
- ``aio_execute_sql`` gets the connection from ``aio_connection()``, which we override, runs the statement by
  ``connection.cursor().execute(sql, parameters)``, and returns the result of ``fetch_results(database, cursor)``;
- ``pool_backend_cls`` names the class of the pool that it creates itself, which we never use;
- ``peewee.PeeweeException.orig`` is the driver's error that peewee replaced with its own;
- a field's ``db_value`` may return a piece of SQL, and an INSERT of a model without a database returns nothing.

All of these are public names; ``connection_context``, ``PoolBackend`` and transactions of peewee-async are not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import asyncpg
import peewee
from peewee_async import PostgresqlDatabase

from models.postgres.identity import Raw
from models.postgres.statements import Watch, Watched

Row = asyncpg.Record
_READS = ("SELECT", "WITH", "(")


@functools.lru_cache(maxsize=2048)
def numbered(sql: str) -> str:
    """Replace peewee's ``%s`` by PostgreSQL's ``$1, $2, …``."""
    parts = sql.split("%s")
    joined = "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]
    return joined.replace("%%", "%")


class Cursor:
    """The cursor that peewee-async expects. ``rows`` are asyncpg's, ``rowcount`` is the number of rows read or
    changed."""

    def __init__(self, raw: Raw, watch: Watch) -> None:
        self._raw, self._watch = raw, watch
        self.rows: list[Row] = []
        self.rowcount = 0

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close: all rows are read."""

    async def execute(self, query: str, parameters: Sequence[Any]) -> None:
        sql = numbered(query)
        with Watched(self._watch, sql):
            if sql.startswith(_READS) or " RETURNING " in sql:
                self.rows = await self._raw.fetch(sql, *parameters)  # asyncpg keeps the statement prepared
                self.rowcount = len(self.rows)
            else:
                status = await self._raw.execute(sql, *parameters)
                self.rowcount = changed(status)


def changed(status: str) -> int:
    """Return how many rows a statement changed, from its status, such as ``UPDATE 2``."""
    number = status.rpartition(" ")[2]
    return int(number) if number.isdecimal() else 0


class _Lent:
    """One of our connections in the form that peewee-async needs, for one statement."""

    def __init__(self, held: AbstractAsyncContextManager[Raw], watch: Watch) -> None:
        self._held, self._watch = held, watch
        self._raw: Raw | None = None

    async def __aenter__(self) -> _Lent:
        self._raw = await self._held.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.__aexit__(kind, error, trace)

    def cursor(self) -> Cursor:
        assert self._raw is not None, "no connection was acquired"
        return Cursor(self._raw, self._watch)


class _NoPool:
    """A stand-in for the pool that peewee-async creates and never uses here."""

    def __init__(self, **_: Any) -> None:
        """Connections come from ``Orm.aio_connection``."""


class Orm(PostgresqlDatabase):
    """peewee-async's database, on connections from ``lend``, one per statement."""

    pool_backend_cls = _NoPool

    def __init__(self, lend: Callable[[], AbstractAsyncContextManager[Raw]], watch: Watch) -> None:
        super().__init__("mimu")
        self._lend, self._watch = lend, watch

    def aio_connection(self) -> _Lent:
        return _Lent(self._lend(), self._watch)

    async def cursor_of(self, query: peewee.Query) -> Cursor:
        """Execute a query. Raises asyncpg's errors, like SQL, and Unavailable."""
        try:
            cursor: Cursor = await self.aio_execute(query, _cursor)
        except peewee.PeeweeException as error:
            raise getattr(error, "orig", error) from None
        return cursor


async def _cursor(_: Any, cursor: Cursor) -> Cursor:
    return cursor
