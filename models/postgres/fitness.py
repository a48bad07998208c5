"""Fitness: whether PostgreSQL takes a write, and not only answers."""

from __future__ import annotations

import asyncio
import contextlib
from uuid import UUID

import asyncpg

from config import reasons
from models.database import Database, Unavailable

# A row finds room in its old page, and the log in a segment that is there already, when a disk has no byte left. A sort
# of 200 KiB within 64 writes a temporary file where the data are.
ROOM = """
SELECT count(line) FROM (SELECT set_config('work_mem', '64kB', true) AS memory OFFSET 0) AS small, LATERAL (
    SELECT repeat(md5(n::text), 32) || left(small.memory, 0) AS line FROM generate_series(1, 200) AS n
    ORDER BY 1 OFFSET 0) AS sorted
"""
COMMIT_TIMEOUT = 1.2  # seconds; then a commit hangs, and the rest of two seconds is for finding out why


async def takes_writes(db: Database, instance_id: UUID) -> None:
    """Write this instance's own row as it is, or a line of the log while it has none, and wait for the commit; then see
    that the disk has room for more. Raises Unavailable, TimeoutError."""
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT):
            written = await db.value("UPDATE instances SET beat_at = beat_at WHERE id = $1 RETURNING true", instance_id)
            if not written:
                await _log_line(db)
            with contextlib.suppress(asyncpg.ConfigurationLimitExceededError):  # temp_file_limit forbids such files
                await db.value(ROOM)
    except (TimeoutError, Unavailable) as error:
        if isinstance(error, TimeoutError) and await _waits_for_standby(db):
            raise Unavailable(reasons.STANDBY_AWAY.says, reasons.STANDBY_AWAY) from error
        raise


async def _log_line(db: Database) -> None:
    try:
        await db.value("SELECT pg_logical_emit_message(true, 'mimu-health', '')")
    except asyncpg.InsufficientPrivilegeError:
        return  # the statement before has shown that it is not read-only


async def _waits_for_standby(db: Database) -> bool:
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT / 2):
            return bool(await db.value("SHOW synchronous_standby_names"))
    except (TimeoutError, Unavailable):
        return False
