"""The database of a backup: what pg_dump writes, of one moment, without a single one-time prekey.

A one-time prekey that is unused at the moment of the backup may be handed out a minute later, and must not be handed
out again by who restores it. So the dump bears none; what it bears is their ids, so that they are refused as before
(``spent_prekeys``). pg_dump can leave a table's rows out and not some of them. Its directory format has a file for each
table, though, which is what COPY writes: those of two tables are written anew here, from the same snapshot. What comes
of it is a dump like any other, safe also for who takes it to pg_restore by hand.
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

from models.backups import BackupError, Tell
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
    """A file that the database has as complete."""

    key: str
    size: int
    sha256: bytes


def written_down(listing: Path) -> Iterator[StoredFile]:
    """The files in a listing, by their keys."""
    with listing.open() as lines:
        for line in lines:
            key, size, sha256 = line.split()
            yield StoredFile(key, int(size), bytes.fromhex(sha256))


class Snapshot:
    """The database at one moment, for as long as the connection lives."""

    def __init__(self, connection: asyncpg.Connection, name: str) -> None:
        self._connection, self._name = connection, name

    @property
    def postgresql(self) -> int:
        """The server's major version."""
        return self._connection.get_server_version().major

    async def identity(self) -> tuple[str, str]:
        """The newest migration, and the epoch. Raises BackupError when it is no database of ours, or half a one."""
        if await self._connection.fetchval("SELECT to_regclass($1)", UNFINISHED) is not None:
            raise BackupError("a backup is being restored into this database, or that broke off")
        if await self._connection.fetchval("SELECT to_regclass('schema_floor')") is None:
            raise BackupError("the database has not been migrated to 0007 or later: python -m scripts.migrate")
        schema = await self._connection.fetchval("SELECT max(version) FROM schema_migrations")
        return schema, str(await self._connection.fetchval("SELECT epoch FROM sync_epoch"))

    async def rows(self) -> dict[str, int]:
        """How many rows each table has in the backup."""
        tables = await self._connection.fetch(
            """SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
               ORDER BY relname"""
        )
        found = {}
        for (name,) in tables:
            what = REWRITTEN.get(name, f'SELECT 1 FROM "{name}"')
            found[name] = 0 if name == LEFT_OUT else await self._connection.fetchval(f"SELECT count(*) FROM ({what}) t")
        return found

    async def files(self, listing: Path) -> int:
        """Write down which files it has, for ``written_down``; how many. They may be more than memory has room for."""
        count = 0
        with listing.open("x") as lines:
            async for key, size, sha256 in self._connection.cursor(
                "SELECT storage_key, size, sha256 FROM files WHERE state = 'complete' ORDER BY storage_key",
                prefetch=1000,
            ):
                lines.write(f"{key} {size} {sha256.hex()}\n")
                count += 1
        return count

    async def dump(self, dsn: str, folder: Path, tell: Tell) -> None:
        """Write it into ``folder``, which is made. Raises BackupError."""
        tell("dumping the database")
        await run(
            await find("pg_dump", self.postgresql),
            "--format=directory",
            f"--file={folder}",
            f"--snapshot={self._name}",
            f"--exclude-table-data=public.{LEFT_OUT}",
            "--no-owner",
            "--no-privileges",
            "--compress=1",  # payloads are random, but COPY writes them in hex
            "--lock-wait-timeout=60000",  # ms; a migration waits for nobody for longer
            dsn=dsn,
        )
        contents = await run(await find("pg_restore", self.postgresql), "--list", str(folder))
        for table, what in REWRITTEN.items():
            tell(f"dumping {table}")
            found = re.search(rf"^(\d+); .* TABLE DATA public {table} ", contents, re.MULTILINE)
            if found is None:
                raise BackupError(f"pg_dump has not written {table}")
            await self._rewrite(folder / f"{found[1]}.dat.gz", table, what)

    async def _rewrite(self, path: Path, table: str, what: str) -> None:
        if not await asyncio.to_thread(path.exists):
            raise BackupError(f"pg_dump has not written {table}, or not in a form that is known here")
        # In the order that the dump says the columns are in.
        columns = await self._connection.fetchval(
            """SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
               WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped""",
            table,
        )
        with gzip.open(path, "wb", compresslevel=1) as packed:

            async def write(rows: bytes) -> None:
                await asyncio.to_thread(packed.write, rows)

            await self._connection.copy_from_query(f"SELECT {columns} FROM ({what}) AS t", output=write)
            packed.write(_END)
        await asyncio.to_thread(_sync, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.asynccontextmanager
async def snapshot(dsn: str) -> AsyncIterator[Snapshot]:
    """Hold a moment of the database. Writers go on; what they change is not in it."""
    patient = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0", "application_name": "mimu-backup"}
    connection = await connect(dsn, timeout=5, server_settings=patient)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield Snapshot(connection, await connection.fetchval("SELECT pg_export_snapshot()"))
    finally:
        await connection.close()
