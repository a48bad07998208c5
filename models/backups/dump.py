"""The database of a backup: a dump by pg_dump of one snapshot, without one-time prekeys.

A one-time prekey that is unused at the time of the backup may be handed out a minute later, and a restored server must
not hand it out again. So the dump contains none, but it contains their ids, so that they are still rejected
(``spent_prekeys``). pg_dump can exclude all rows of a table, but not some. Its directory format has a file for each
table, though, in the format of COPY: this module writes those of two tables again, from the same snapshot. The result
is an ordinary dump, which is also safe to restore by hand with pg_restore.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg

from models.backups import BackupError, Report
from models.backups.programs import find, run
from models.postgres.cluster import connect
from models.postgres.epochs import UNFINISHED

LEFT_OUT = "one_time_prekeys"
_KNOWN = "int8multirange(int8range(key_id, key_id, '[]'))"
REWRITTEN = {
    "spent_prekeys": f"""
        SELECT user_id, kind, range_agg(ids) AS key_ids FROM (
            SELECT user_id, kind, key_ids AS ids FROM spent_prekeys
            UNION ALL SELECT user_id, 'one_time', {_KNOWN} FROM one_time_prekeys
            UNION ALL SELECT user_id, 'kyber', {_KNOWN} FROM kyber_prekeys WHERE NOT last_resort
        ) AS known GROUP BY user_id, kind""",
    "kyber_prekeys": "SELECT * FROM kyber_prekeys WHERE last_resort",
}
_END = b"\\.\n\n\n"  # as pg_dump ends the rows of a table


class StoredFile(NamedTuple):
    """A complete file in the database."""

    key: str
    size: int
    sha256: bytes


def read_listing(listing: Path) -> Iterator[StoredFile]:
    """Yield the files in a listing, ordered by key."""
    with listing.open() as lines:
        for line in lines:
            key, size, sha256 = line.split()
            yield StoredFile(key, int(size), bytes.fromhex(sha256))


class Snapshot:
    """A snapshot of the database, for as long as the connection is open."""

    def __init__(self, connection: asyncpg.Connection, name: str) -> None:
        self._connection, self._name = connection, name

    @property
    def postgresql(self) -> int:
        """The server's major version."""
        return self._connection.get_server_version().major

    async def identity(self) -> tuple[str, str]:
        """Return the newest migration, and the epoch. Raises BackupError if it is not a database of Mimu, or a restore
        into it was interrupted."""
        if await self._connection.fetchval("SELECT to_regclass($1)", UNFINISHED) is not None:
            raise BackupError("a backup is being restored into this database, or a restore was interrupted")
        if await self._connection.fetchval("SELECT to_regclass('schema_floor')") is None:
            raise BackupError("the database has not been migrated to 0007 or later: python -m scripts.migrate")
        schema = await self._connection.fetchval("SELECT max(version) FROM schema_migrations")
        return schema, str(await self._connection.fetchval("SELECT epoch FROM sync_epoch"))

    async def rows(self) -> dict[str, int]:
        """Count the rows that each table has in the backup."""
        tables = await self._connection.fetch(
            """SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
               ORDER BY relname"""
        )
        counts = {}
        for (name,) in tables:
            rows = REWRITTEN.get(name, f'SELECT 1 FROM "{name}"')
            counts[name] = (
                0 if name == LEFT_OUT else await self._connection.fetchval(f"SELECT count(*) FROM ({rows}) t")
            )
        return counts

    async def files(self, listing: Path) -> int:
        """Write a listing of the files, for ``read_listing``, since memory may not hold them all. Returns how many."""
        count = 0
        with listing.open("x") as lines:
            async for key, size, sha256 in self._connection.cursor(
                "SELECT storage_key, size, sha256 FROM files WHERE state = 'complete' ORDER BY storage_key",
                prefetch=1000,
            ):
                lines.write(f"{key} {size} {sha256.hex()}\n")
                count += 1
        return count

    async def dump(self, dsn: str, folder: Path, report: Report) -> None:
        """Write the dump into ``folder``, which is created. Raises BackupError."""
        report("dumping the database")
        await run(
            await find("pg_dump", self.postgresql),
            "--format=directory",
            f"--file={folder}",
            f"--snapshot={self._name}",
            f"--exclude-table-data=public.{LEFT_OUT}",
            "--no-owner",
            "--no-privileges",
            "--compress=1",  # payloads are random bytes, but COPY writes them in hex
            "--lock-wait-timeout=60000",  # ms; no migration waits for a lock for longer
            dsn=dsn,
        )
        contents = await run(await find("pg_restore", self.postgresql), "--list", str(folder))
        for table, rows in REWRITTEN.items():
            report(f"dumping {table}")
            match = re.search(rf"^(\d+); .* TABLE DATA public {table} ", contents, re.MULTILINE)
            if match is None:
                raise BackupError(f"pg_dump has not written {table}")
            await self._rewrite(folder / f"{match[1]}.dat.gz", table, rows)

    async def _rewrite(self, path: Path, table: str, query: str) -> None:
        if not await asyncio.to_thread(path.exists):
            raise BackupError(f"pg_dump has not written {table}, or in an unknown format")
        # In the order of columns in the dump.
        columns = await self._connection.fetchval(
            """SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
               WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped""",
            table,
        )
        with gzip.open(path, "wb", compresslevel=1) as packed:

            async def write(rows: bytes) -> None:
                await asyncio.to_thread(packed.write, rows)

            await self._connection.copy_from_query(f"SELECT {columns} FROM ({query}) AS t", output=write)
            packed.write(_END)
        await asyncio.to_thread(_sync, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.asynccontextmanager
async def snapshot(dsn: str) -> AsyncIterator[Snapshot]:
    """Open a snapshot of the database. Writers continue; it does not contain their changes."""
    no_timeouts = {
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "application_name": "mimu-backup",
    }
    connection = await connect(dsn, timeout=5, server_settings=no_timeouts)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield Snapshot(connection, await connection.fetchval("SELECT pg_export_snapshot()"))
    finally:
        await connection.close()
