"""Identity: which database a connection has reached, and in which state."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Raw: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"


class Identity(NamedTuple):
    """The database that a connection has reached.

    ``system`` is the cluster's identifier, which its physical copies share. ``timeline`` counts its promotions; it is
    that of the log position, since the last checkpoint's is older for a while after a promotion. ``database`` has the
    object ids of the database and of ``sync_epoch``: copies share them, too, but a database that was created again has
    others. ``settled`` is True if the epoch began here, after the last promotion or restore
    (models/postgres/epochs.py). ``started`` is when the server started: if it changes, the server was away.
    A standby has timeline 0.
    """

    system: int
    timeline: int
    standby: bool
    database: str
    epoch: UUID | None
    settled: bool
    started: datetime


_WHO = """
SELECT cluster.system_identifier AS system, pg_is_in_recovery() AS standby,
    CASE WHEN pg_is_in_recovery() THEN NULL ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END AS timeline,
    concat_ws('/', (SELECT oid FROM pg_database WHERE datname = current_database()),
              to_regclass('sync_epoch')::oid) AS database,
    pg_postmaster_start_time() AS started,
    to_regclass('sync_epoch') IS NOT NULL AND to_regprocedure('database_place()') IS NOT NULL AS migrated
FROM pg_control_system() AS cluster
"""
# database_place() fails on a standby, which writes no log.
_EPOCH = """
SELECT epoch, CASE WHEN pg_is_in_recovery() THEN true ELSE place = database_place() END AS settled FROM sync_epoch
"""


async def identify(connection: asyncpg.Connection | Raw) -> Identity:
    """Query the identity of the database that a connection has reached."""
    who: Any = await connection.fetchrow(_WHO)
    life: Any = await connection.fetchrow(_EPOCH) if who["migrated"] else None
    return Identity(
        who["system"],
        int(who["timeline"], 16) if who["timeline"] else 0,
        who["standby"],
        who["database"],
        life and life["epoch"],
        life is None or life["settled"],
        who["started"],
    )
