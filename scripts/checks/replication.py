"""Replication: whether synchronous standbys are there, and whether slots of others keep the log from being removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from config import reasons
from config.findings import Finding, good, weak, wrong

PART = "replication"
HELD = 1 << 30  # bytes of log; more than that is days of a quiet server, and a disk that fills
BEHIND = 256 << 20  # bytes of log that a standby has not got yet


async def looked_at(connection: Any) -> AsyncIterator[Finding]:
    """Findings for PART. What a standby is called and how far it is, only roles with pg_monitor see; that it is there,
    and slots, all do."""
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
            yield wrong(PART, "The synchronous standby is away, and nothing can be stored.", reasons.STANDBY_AWAY.do)
    for slot in await connection.fetch(
        """SELECT slot_name, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS held
           FROM pg_replication_slots
           WHERE NOT active AND NOT temporary AND (restart_lsn IS NOT NULL OR wal_status = 'lost')"""
    ):
        name = slot["slot_name"]
        do = f"Bring its standby back, or, if there is none any more: SELECT pg_drop_replication_slot('{name}');"
        if slot["wal_status"] == "lost":
            yield weak(PART, f"The slot {name} has lost what it was for: its standby must be made again.", do)
            continue
        says = f"The slot {name} is idle, and holds {slot['held'] >> 20} MiB of WAL, more and more: the disk fills."
        yield (wrong if slot["held"] > HELD else weak)(PART, says, do)
    for standby in await connection.fetch(
        """SELECT application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint AS behind
           FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn IS NOT NULL"""
    ):
        if standby["behind"] > BEHIND:
            says = f"The standby {standby['application_name']} is {standby['behind'] >> 20} MiB behind."
            yield weak(PART, says, "See what it waits for, and whether its disk and network are fast enough.")
