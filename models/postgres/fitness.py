"""Fitness: check that PostgreSQL accepts writes, not only that it answers."""

from __future__ import annotations

import asyncio
import contextlib
from uuid import UUID

import asyncpg

from config import reasons
from models.database import Database, Unavailable

# Even on a full disk a row fits into its old page, and the WAL into an existing segment. A sort of 200 KiB with 64 kB
# of memory writes a temporary file on the disk of the data.
SPACE_CHECK = """
SELECT count(line) FROM (SELECT set_config('work_mem', '64kB', true) AS memory OFFSET 0) AS small, LATERAL (
    SELECT repeat(md5(n::text), 32) || left(small.memory, 0) AS line FROM generate_series(1, 200) AS n
    ORDER BY 1 OFFSET 0) AS sorted
"""
COMMIT_TIMEOUT = 1.2  # seconds; after them a commit hangs, and the rest of two seconds serves to find out why


async def takes_writes(db: Database, instance_id: UUID) -> None:
    """Write this instance's row unchanged, or a WAL message while it has none, and wait for the commit; then check that
    the disk has space. Raises Unavailable, TimeoutError."""
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT):
            written = await db.value("UPDATE instances SET beat_at = beat_at WHERE id = $1 RETURNING true", instance_id)
            if not written:
                await _write_wal_message(db)
            with contextlib.suppress(asyncpg.ConfigurationLimitExceededError):  # temp_file_limit forbids such files
                await db.value(SPACE_CHECK)
    except (TimeoutError, Unavailable) as error:
        if isinstance(error, TimeoutError) and await _waits_for_standby(db):
            raise Unavailable(reasons.STANDBY_AWAY.says, reasons.STANDBY_AWAY) from error
        raise


async def _write_wal_message(db: Database) -> None:
    try:
        await db.value("SELECT pg_logical_emit_message(true, 'mimu-health', '')")
    except asyncpg.InsufficientPrivilegeError:
        return  # the statement before has shown that the server is not read-only


async def _waits_for_standby(db: Database) -> bool:
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT / 2):
            return bool(await db.value("SHOW synchronous_standby_names"))
    except (TimeoutError, Unavailable):
        return False
