"""Replication: whether synchronous standbys are connected, and whether idle slots hold the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from config import reasons
from config.findings import Finding, good, weak, wrong

PART = "replication"
MAX_HELD = 1 << 30  # bytes of log: days of a quiet server; the disk fills up
MAX_BEHIND = 256 << 20  # bytes of log that a standby has not replayed yet


async def findings(connection: Any) -> AsyncIterator[Finding]:
    """Yield findings for PART. Every role sees slots, and that a standby exists; only roles with pg_monitor see its
    name and position."""
    found = [finding async for finding in _bad(connection)]
    for finding in found:
        yield finding
    if not found:
        number = await connection.fetchval("SELECT count(*) FROM pg_stat_replication")
        yield good(PART, f"{number} standby{'s are' if number != 1 else ' is'} connected, and no slot is idle.")


async def _bad(connection: Any) -> AsyncIterator[Finding]:
    if await connection.fetchval("SHOW synchronous_standby_names"):
        row = await connection.fetchrow(
            """SELECT count(*) AS all, count(sync_state) AS seen,
                      count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS sync FROM pg_stat_replication"""
        )
        if row["all"] == 0 or (row["seen"] and not row["sync"]):
            yield wrong(PART, "The synchronous standby is away, so nothing can be stored.", reasons.STANDBY_AWAY.do)
    for slot in await connection.fetch(
        """SELECT slot_name, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS held
           FROM pg_replication_slots
           WHERE NOT active AND NOT temporary AND (restart_lsn IS NOT NULL OR wal_status = 'lost')"""
    ):
        name = slot["slot_name"]
        do = f"Bring its standby back, or, if it no longer exists: SELECT pg_drop_replication_slot('{name}');"
        if slot["wal_status"] == "lost":
            yield weak(PART, f"The slot {name} has lost its WAL: create its standby again.", do)
            continue
        says = f"The slot {name} is idle, and holds {slot['held'] >> 20} MiB of WAL; this grows until the disk is full."
        yield (wrong if slot["held"] > MAX_HELD else weak)(PART, says, do)
    for standby in await connection.fetch(
        """SELECT application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint AS behind
           FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn IS NOT NULL"""
    ):
        if standby["behind"] > MAX_BEHIND:
            says = f"The standby {standby['application_name']} is {standby['behind'] >> 20} MiB behind."
            yield weak(PART, says, "Find out what it waits for, and check that its disk and network are fast enough.")
