"""Epochs: the lives of a database. A new one begins when the database was reset to an earlier time.

Clients and servers may then have seen a later state. Cursors of ``/sync`` count transactions, whose numbers are used
again, so each cursor contains its epoch. One-time prekeys that are unused here may have been handed out since, so none
of them is ever handed out again: their ids move to ``spent_prekeys``, where they are still rejected, and their owners
upload new ones. Servers check with each new connection, before it is used, and every 15 seconds; until then the
statements that claim a prekey find none (models/prekeys.py).

``database_place()`` (migration 0007) detects it. A restored dump is in another cluster, another database or other
tables; a cluster that was recovered to a point in time is on a new timeline. So is one whose standby took over, and
rightly: transactions that the standby lacked are lost. A disk snapshot that replaces a later state looks like the
original; after that the operator runs ``scripts.restore --settle``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import asyncpg
import peewee
import structlog

from models.database import Database, Table
from models.postgres.cluster import Cluster
from models.postgres.fence import Mark
from models.postgres.hosts import Host, dial
from models.postgres.identity import Identity, identify
from models.postgres.outages import outages

log = structlog.get_logger(__name__)

BEGIN_SECONDS = 600.0  # for a statement that withdraws all prekeys
UNFINISHED = "restore_unfinished"  # a table that exists during a restore, and after one that was interrupted


class SyncEpoch(Table):
    """One row: the base of positions, and the epoch and place of the database."""

    single = peewee.BooleanField(primary_key=True, default=True)
    epoch = peewee.UUIDField()
    system_identifier = peewee.BigIntegerField()
    base = peewee.BigIntegerField()
    place = peewee.TextField(default="")

    class Meta:
        table_name = "sync_epoch"


# In the order of users, as the cleanup writes them, so that the two don't deadlock.
_FORGET = """
WITH gone AS (
    DELETE FROM {table} WHERE {which} RETURNING user_id, key_id
), noted AS (
    INSERT INTO spent_prekeys AS known (user_id, kind, key_ids)
    SELECT user_id, '{kind}', range_agg(int8range(key_id, key_id, '[]')) FROM gone GROUP BY user_id ORDER BY user_id
    ON CONFLICT (user_id, kind) DO UPDATE SET key_ids = known.key_ids + excluded.key_ids
)
SELECT count(*) FROM gone
"""
_FORGETS = (
    _FORGET.format(table="one_time_prekeys", which="true", kind="one_time"),
    _FORGET.format(table="kyber_prekeys", which="NOT last_resort", kind="kyber"),
)
# New positions of events stay above all present ones, whatever the next transaction id is.
_BEGIN = """
UPDATE sync_epoch SET epoch = gen_random_uuid(), place = database_place(),
    system_identifier = (SELECT system_identifier FROM pg_control_system()),
    base = greatest(base, (SELECT coalesce(max(last_position), 0) FROM chat_threads))
"""


# The lifetimes that servers stored since then are lost: 30 days is the longest that a setting allows.
_LIFETIMES = """
INSERT INTO token_lifetimes (seconds) VALUES (2592000) ON CONFLICT (seconds) DO UPDATE SET seen_at = now()
"""


async def begin(connection: asyncpg.Connection) -> int:
    """Begin a new epoch, in the caller's transaction. Returns how many one-time prekeys it withdraws."""
    # A backup of an older version lacks this table; the migration that creates it inserts the same row.
    if await connection.fetchval("SELECT to_regclass('token_lifetimes') IS NOT NULL"):
        await connection.execute(_LIFETIMES)
    withdrawn = [await connection.fetchval(sql) for sql in _FORGETS]
    await connection.execute(_BEGIN)
    return sum(withdrawn)


async def settle(where: str | Cluster) -> int | None:
    """Begin a new epoch if the database's place has changed. Returns the number of withdrawn prekeys; None if it has
    not changed. Uses a separate connection, without the time limits of requests."""
    cluster = where if isinstance(where, Cluster) else Cluster(where)
    host = cluster.current or await cluster.elect()
    return (await _settle(cluster, host))[0]


async def _settle(cluster: Cluster, host: Host) -> tuple[int | None, UUID, Identity]:
    """The same on one host; also returns the former epoch, and the new identity of the database."""
    connection = await dial(cluster.dsn, host, timeout=5, command_timeout=BEGIN_SECONDS)
    try:
        cluster.keep(connection, host, await identify(connection))  # it closes when another host comes into use
        withdrawn = None
        async with connection.transaction():
            # If several servers start, one does it, and the others find it done.
            row: Any = await connection.fetchrow("SELECT epoch, place = database_place() FROM sync_epoch FOR UPDATE")
            if not row[1]:
                withdrawn = await begin(connection)
        return withdrawn, row["epoch"], await identify(connection)
    finally:
        connection.terminate()


class Epoch:
    """The epoch of a server's database, as clients receive it.

    Before the first connection is used, and whenever a connection reaches a database whose place has changed, a new
    epoch begins. Until then the pool returns no connection, so nothing is stored under a former one.
    """

    def __init__(self, db: Database) -> None:
        self._db, self._cluster = db, db.cluster
        self._cluster.settle = self._begin
        self._cluster.fence.moved.append(self._moved)
        self.changed: list[Callable[[], None]] = []  # called when the epoch changes

    @property
    def id(self) -> UUID:
        mark = self._cluster.fence.mark
        return (mark and mark.epoch) or UUID(int=0)

    def shown(self) -> str:
        """Return the present epoch as clients receive it."""
        return str(self.id)

    async def look(self) -> None:
        """Begin a new epoch if necessary, and read the present one. Raises Unavailable."""
        async with self._db.connection() as connection:
            seen = await identify(connection)
        if not seen.settled:
            with outages():
                await self._cluster.begin()
        elif seen.epoch != self.id:  # the connection was accepted, so its epoch follows ours
            await self._cluster.fence.advance(seen, self.id)

    async def _begin(self, cluster: Cluster, host: Host) -> None:
        withdrawn, former, seen = await _settle(cluster, host)
        if withdrawn is not None:
            log.info("sync_epoch_begun", prekeys_withdrawn=withdrawn)
        await cluster.fence.advance(seen, former)

    def _moved(self, former: Mark | None, mark: Mark) -> None:
        if former is not None and former.epoch != mark.epoch:
            for changed in self.changed:
                changed()
