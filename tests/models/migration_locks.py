"""What a migration locks, reads and rewrites, as PostgreSQL itself says: by pg_locks, its counters and file numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from tests.models.migration_rules import ONE_ROW, Statement, patience, waits

# Those that conflict with what INSERT, UPDATE and DELETE take; the last one, with what SELECT takes, too.
BLOCKING = ["ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"]

# Every table, and each index, by its own oid: what locks an index holds up who uses its table.
_TABLES = """
SELECT c.oid, coalesce(t.relname, c.relname) AS table, pg_relation_filenode(c.oid) AS file
FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = i.indrelid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'i', 'I', 'v', 'm')
"""
_LOCKED = """
SELECT relation AS oid FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted AND mode = ANY ($1)
"""
# Since the connection last reported them, which it does between transactions only.
_READ = "SELECT relid AS oid, seq_scan FROM pg_stat_xact_user_tables"


@dataclass(frozen=True)
class Effects:
    """Of one statement, on tables that were there before its file."""

    locked: set[str] = field(default_factory=set)  # against writers, or against everybody, from here on
    read: set[str] = field(default_factory=set)  # from one end to the other
    rewritten: set[str] = field(default_factory=set)


async def effects(connection: asyncpg.Connection, parts: Sequence[Statement]) -> list[Effects]:
    """Run statements in the transaction that the connection is in; what each has done."""
    before = {row["oid"]: (row["table"], row["file"]) for row in await connection.fetch(_TABLES)}
    found: list[Effects] = []
    locked: set[str] = set()
    scans = await _scans(connection)
    for part in parts:
        await connection.execute(part.sql)
        held = {before[row["oid"]][0] for row in await connection.fetch(_LOCKED, BLOCKING) if row["oid"] in before}
        counted = await _scans(connection)
        read = {before[oid][0] for oid in before.keys() & counted.keys() if counted[oid] > scans.get(oid, 0)}
        files = {row["oid"]: row["file"] for row in await connection.fetch(_TABLES)}
        changed = {table for oid, (table, file) in before.items() if files.get(oid, file) != file}
        found.append(Effects(held - locked, read, changed))
        before = {oid: (table, files.get(oid, file)) for oid, (table, file) in before.items()}
        locked, scans = locked | held, counted
    return found


async def _scans(connection: asyncpg.Connection) -> dict[int, int]:
    return {row["oid"]: row["seq_scan"] for row in await connection.fetch(_READ)}


async def faults(connection: asyncpg.Connection, parts: Sequence[Statement]) -> list[str]:
    """Run a file's statements in a transaction; what would hold others up for long. A statement that its comment
    excuses may."""
    found, locked, all_locked = [], set[str](), set[str]()
    for part, effect in zip(parts, await effects(connection, parts), strict=True):
        all_locked |= effect.locked
        if part.excused:
            continue
        locked |= effect.locked
        whole = sorted((effect.read | effect.rewritten) & all_locked - ONE_ROW)
        found += [
            f"reads or writes all of {table} under a lock that others wait for: {part.text[:60]}" for table in whole
        ]
    return [*found, *waits(locked, patience(parts))]
