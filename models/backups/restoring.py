"""Restoring a database: empty it, fill it by pg_restore, and withdraw what must not be used again.

From the first change to the last it contains a table that keeps servers from starting (``epochs.UNFINISHED``). An
interrupted restore leaves that table, and has to be run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from models.backups import DATABASE, BackupError, Manifest, Report
from models.backups.programs import find, run
from models.postgres import epochs
from models.postgres.cluster import connect
from models.postgres.identity import Identity, identify

_SCRATCH = "made for a moment by scripts.backup --verify"
DISCONNECT_SECONDS = 2.0  # until the connections of servers that were just stopped are closed
LOCK = 0x6D696D76  # key of an advisory lock; the one of migrations is one less

# All objects except PostgreSQL's own, those of extensions, and our marker table.
_OBJECTS = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
  AND c.relname <> $1
  AND NOT EXISTS (
      SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
_DROPS = f"""
SELECT format('DROP TABLE IF EXISTS %s CASCADE', c.oid::regclass) FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> '{epochs.UNFINISHED}'
UNION ALL
SELECT format('DROP FUNCTION IF EXISTS %s CASCADE', p.oid::regprocedure) FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND NOT EXISTS (
    SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
UNION ALL
SELECT format('DROP TYPE IF EXISTS %s CASCADE', t.oid::regtype) FROM pg_type t
WHERE t.typnamespace = 'public'::regnamespace AND t.typtype IN ('e', 'd') AND NOT EXISTS (
    SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
"""


@contextlib.asynccontextmanager
async def target(dsn: str) -> AsyncIterator[Target]:
    """Open the database to restore into; only one restore may run at a time. Raises BackupError."""
    no_timeouts = {
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "application_name": "mimu-restore",
    }
    connection = await connect(dsn, timeout=5, server_settings=no_timeouts)
    try:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
            raise BackupError("another restore into this database is in progress")
        yield Target(connection, dsn)
    finally:
        await connection.close()


class Target:
    def __init__(self, connection: asyncpg.Connection, dsn: str) -> None:
        self._connection, self._dsn = connection, dsn

    @property
    def postgresql(self) -> int:
        return self._connection.get_server_version().major

    async def identity(self) -> Identity:
        """Return the identity of the database: its system, timeline and epoch."""
        return await identify(self._connection)

    async def name(self) -> str:
        return await self._connection.fetchval("SELECT current_database()")  # type: ignore[no-any-return]

    async def schema(self) -> str:
        """Return the newest migration that was applied."""
        newest: str = await self._connection.fetchval("SELECT max(version) FROM schema_migrations")
        return newest

    async def wait_until_alone(self) -> None:
        """Wait until no one else is connected. Raises BackupError if others stay: servers, most likely."""
        deadline = time.monotonic() + DISCONNECT_SECONDS
        while others := await self._connection.fetch(
            """SELECT DISTINCT coalesce(nullif(split_part(application_name, '/', 1), ''), 'a program without a name')
               FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
        ):
            if time.monotonic() > deadline:
                named = ", ".join(name for (name,) in others)
                raise BackupError(f"{named} is connected to the database: stop it first")
            await asyncio.sleep(0.1)

    async def contents(self) -> str | None:
        """Describe what would be lost; None if there is nothing, or only the rest of an interrupted restore."""
        if await self._connection.fetchval("SELECT to_regclass($1)", epochs.UNFINISHED) is not None:
            return None
        objects = await self._connection.fetch(_OBJECTS, epochs.UNFINISHED)
        if not objects:
            return None
        names = {row["relname"] for row in objects if row["nspname"] == "public"}
        if {"users", "schema_migrations"} <= names:
            accounts: int = await self._connection.fetchval("SELECT count(*) FROM users")
            # Migrated, but not used yet: as Docker Compose leaves it.
            return f"{accounts} accounts" if accounts else None
        return f"{len(objects)} tables and other objects that are not Mimu's"

    @contextlib.asynccontextmanager
    async def keep_servers_out(self, backup: str) -> AsyncIterator[None]:
        """Keep servers from starting on it from now on. Undone if the block fails, which must then have changed
        nothing."""
        before = await self._connection.fetchval("SELECT to_regclass($1)", epochs.UNFINISHED)
        await self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {epochs.UNFINISHED} (backup text NOT NULL, at timestamptz NOT NULL)"
        )
        await self._connection.execute(f"INSERT INTO {epochs.UNFINISHED} VALUES ($1, now())", backup)
        try:
            yield
        except BaseException:
            if before is None and not self._connection.is_closed():
                await self._connection.execute(f"DROP TABLE {epochs.UNFINISHED}")
            raise

    async def empty(self) -> None:
        """Drop everything in it except the marker table."""
        async with self._connection.transaction():
            for (drop,) in await self._connection.fetch(_DROPS):
                await self._connection.execute(drop)

    async def restore_dump(self, folder: Path, jobs: int, report: Report) -> None:
        """Restore the dump of a backup: in one transaction, or faster in several ``jobs``. Raises BackupError."""
        report("restoring the database")
        how = ["--single-transaction"] if jobs == 1 else [f"--jobs={jobs}"]
        arguments = ["--no-owner", "--no-privileges", "--exit-on-error", *how, str(folder / DATABASE)]
        await run(await find("pg_restore", self.postgresql), *arguments, dsn=self._dsn)

    async def rows(self, tables: Sequence[str]) -> dict[str, int]:
        """Count the rows of tables."""
        return {name: await self._connection.fetchval(f'SELECT count(*) FROM "{name}"') for name in tables}

    async def settle(self, *, keep_sessions: bool, without: Sequence[str] = ()) -> dict[str, Any]:
        """Begin a new epoch, end sessions, delete unfinished uploads and files without bytes, and let servers start, in
        one transaction. Returns what was done."""
        async with self._connection.transaction():
            withdrawn = await epochs.begin(self._connection)
            ended = 0 if keep_sessions else await self._end_sessions()
            lost = await self._connection.fetch(
                "DELETE FROM files WHERE state = 'uploading' OR storage_key = ANY ($1) RETURNING state::text", without
            )
            await self._connection.execute(f"DROP TABLE IF EXISTS {epochs.UNFINISHED}")
            epoch = await self._connection.fetchval("SELECT epoch FROM sync_epoch")
        files = sum(row["state"] == "complete" for row in lost)
        return {
            "epoch": str(epoch),
            "prekeys_withdrawn": withdrawn,
            "sessions_ended": ended,
            "files_forgotten": files,
            "uploads_forgotten": len(lost) - files,
        }

    async def _end_sessions(self) -> int:
        # As models/sessions.py ends them: servers reject the access tokens of sessions in ended_sessions.
        return await self._connection.fetchval(  # type: ignore[no-any-return]
            """WITH ended AS (
                   UPDATE sessions SET revoked_at = now() WHERE revoked_at IS NULL RETURNING id, user_id
               ), noted AS (
                   INSERT INTO ended_sessions (session_id, user_id) SELECT id, user_id FROM ended ON CONFLICT DO NOTHING
               )
               SELECT count(*) FROM ended"""
        )

    async def analyze(self) -> None:
        """Gather statistics: a dump has none, and without them queries are planned badly until autovacuum runs."""
        await self._connection.execute("ANALYZE")


@contextlib.asynccontextmanager
async def scratch(dsn: str, name: str) -> AsyncIterator[None]:
    """Create an empty database of that name, and drop it at the end. Raises BackupError if the role may not create
    one."""
    connection = await connect(dsn, timeout=5)
    try:
        # Drop the database of a killed run; the database of a running one can't be dropped.
        for (left,) in await connection.fetch(
            "SELECT quote_ident(datname) FROM pg_database WHERE shobj_description(oid, 'pg_database') = $1", _SCRATCH
        ):
            with contextlib.suppress(asyncpg.ObjectInUseError):
                await connection.execute(f"DROP DATABASE IF EXISTS {left}")
        try:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        except asyncpg.InsufficientPrivilegeError as error:
            raise BackupError("verifying a backup needs a temporary database; the role needs CREATEDB") from error
        try:
            await connection.execute(f"COMMENT ON DATABASE \"{name}\" IS '{_SCRATCH}'")
            yield
        finally:
            # Not WITH (FORCE): with autovacuum, which is PostgreSQL's own, it would fail. Autovacuum leaves by itself.
            await asyncio.shield(connection.execute(f'DROP DATABASE IF EXISTS "{name}"'))
    finally:
        await connection.close()


async def verify_by_restoring(dsn: str, into: str, name: str, folder: Path, manifest: Manifest, report: Report) -> None:
    """Restore the dump of a backup into a temporary database, and compare its row counts with the manifest's. Raises
    BackupError."""
    async with scratch(dsn, name), target(into) as temporary:
        await temporary.restore_dump(folder, 1, report)
        report("counting")
        counts = await temporary.rows(list(manifest.rows))
    wrong = [table for table, number in manifest.rows.items() if counts[table] != number]
    if wrong:
        raise BackupError(f"restored, {', '.join(wrong)} has another number of rows than in the backup")
