"""Queries of peewee, which peewee-async runs on the connections that SQL runs on.

peewee writes the statement, peewee-async runs it, and all else is ours: the connection of the transaction around it or
one of the pool's, its timeouts, what counts as an outage, who watches. So a peewee query and SQL differ in how they are
written, and in nothing that happens to them.

We rely on this, of peewee-async 2.1 and peewee 4.3. tests/models/test_orm.py checks each of them, and says which one a
new version lacks:

- ``PostgresqlDatabase.aio_execute(query, fetch_results)`` writes the statement, and calls ``aio_execute_sql``;
- ``aio_execute_sql`` takes the connection from ``aio_connection()``, which we override, runs the statement by
  ``connection.cursor().execute(sql, parameters)``, and returns what ``fetch_results(database, cursor)`` does;
- ``pool_backend_cls`` names the class of a pool that it makes by itself, and of which we never ask anything;
- ``peewee.PeeweeException.orig`` is the driver's error in place of which peewee raised its own;
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
    """peewee's ``%s`` as PostgreSQL's ``$1, $2, …``."""
    parts = sql.split("%s")
    joined = "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]
    return joined.replace("%%", "%")


class Cursor:
    """The cursor that peewee-async expects. ``rows`` are asyncpg's, ``rowcount`` is how many were read or changed."""

    def __init__(self, raw: Raw, watch: Watch) -> None:
        self._raw, self._watch = raw, watch
        self.rows: list[Row] = []
        self.rowcount = 0

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open: the rows are all here."""

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
    """How many rows a statement changed, by its status, such as ``UPDATE 2``."""
    number = status.rpartition(" ")[2]
    return int(number) if number.isdecimal() else 0


class _Lent:
    """A connection of ours as peewee-async wants one, for one statement."""

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
        assert self._raw is not None, "no connection was taken"
        return Cursor(self._raw, self._watch)


class _NoPool:
    """What peewee-async makes in place of a pool: it never asks it for anything."""

    def __init__(self, **_: Any) -> None:
        """The connections come from ``Orm.aio_connection``."""


class Orm(PostgresqlDatabase):
    """peewee-async's database, on connections that ``lend`` gives for one statement each."""

    pool_backend_cls = _NoPool

    def __init__(self, lend: Callable[[], AbstractAsyncContextManager[Raw]], watch: Watch) -> None:
        super().__init__("mimu")
        self._lend, self._watch = lend, watch

    def aio_connection(self) -> _Lent:
        return _Lent(self._lend(), self._watch)

    async def cursor_of(self, query: peewee.Query) -> Cursor:
        """Execute a query. Raises what asyncpg does, as SQL would, and Unavailable."""
        try:
            cursor: Cursor = await self.aio_execute(query, _cursor)
        except peewee.PeeweeException as error:
            raise getattr(error, "orig", error) from None
        return cursor


async def _cursor(_: Any, cursor: Cursor) -> Cursor:
    return cursor
