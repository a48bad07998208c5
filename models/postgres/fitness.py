"""Fitness: whether PostgreSQL takes a write, and not only answers."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg

from config import reasons
from models.database import Database, Unavailable

PATIENCE = 1.2  # seconds; then a commit hangs, and the rest of two seconds is for finding out why


async def takes_writes(db: Database, instance_id: UUID) -> None:
    """Write this instance's own row as it is, or a line of the log while it has none, and wait for the commit. Raises
    Unavailable, TimeoutError."""
    try:
        async with asyncio.timeout(PATIENCE):
            written = await db.value("UPDATE instances SET beat_at = beat_at WHERE id = $1 RETURNING true", instance_id)
            if not written:
                await _log_line(db)
    except (TimeoutError, Unavailable) as error:
        if isinstance(error, TimeoutError) and await _waits_for_standby(db):
            raise Unavailable(reasons.STANDBY_AWAY.says) from error
        raise


async def _log_line(db: Database) -> None:
    try:
        await db.value("SELECT pg_logical_emit_message(true, 'mimu-health', '')")
    except asyncpg.InsufficientPrivilegeError:
        return  # the statement before has shown that it is not read-only


async def _waits_for_standby(db: Database) -> bool:
    try:
        async with asyncio.timeout(PATIENCE / 2):
            return bool(await db.value("SHOW synchronous_standby_names"))
    except (TimeoutError, Unavailable):
        return False
