"""A database that is being put back: emptied, filled by pg_restore, and made to forget what it must not know any more.

From the first change to the last there is a table in it that no server starts with (``epochs.UNFINISHED``). What breaks
off half-way leaves that, and is begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from models.backups import DATABASE, BackupError, Manifest, Tell
from models.backups.programs import find, run
from models.postgres import epochs
from models.postgres.cluster import connect
from models.postgres.identity import Identity, identify

_SCRATCH = "made for a moment by scripts.backup --verify"
LEAVING = 2.0  # seconds in which who was just stopped is gone
LOCK = 0x6D696D76  # of PostgreSQL's advisory locks; the one of migrations is one less

# All that isn't PostgreSQL's own or an extension's, and isn't our mark.
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
    """The database to restore into, for one who restores at a time. Raises BackupError."""
    patient = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0", "application_name": "mimu-restore"}
    connection = await connect(dsn, timeout=5, server_settings=patient)
    try:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
            raise BackupError("another restore into this database is under way")
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
        """Which database it is, and at which point of its life."""
        return await identify(self._connection)

    async def name(self) -> str:
        return await self._connection.fetchval("SELECT current_database()")  # type: ignore[no-any-return]

    async def schema(self) -> str:
        """The newest migration that it has."""
        newest: str = await self._connection.fetchval("SELECT max(version) FROM schema_migrations")
        return newest

    async def alone(self) -> None:
        """Raises BackupError when anybody else is connected, and stays: servers, most likely."""
        deadline = time.monotonic() + LEAVING
        while others := await self._connection.fetch(
            """SELECT DISTINCT coalesce(nullif(split_part(application_name, '/', 1), ''), 'a program without a name')
               FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
        ):
            if time.monotonic() > deadline:
                named = ", ".join(name for (name,) in others)
                raise BackupError(f"{named} is connected to the database: stop it first")
            await asyncio.sleep(0.1)

    async def holds(self) -> str | None:
        """What would be lost: None when there is nothing, or only what a restore that broke off has left."""
        if await self._connection.fetchval("SELECT to_regclass($1)", epochs.UNFINISHED) is not None:
            return None
        found = await self._connection.fetch(_OBJECTS, epochs.UNFINISHED)
        if not found:
            return None
        names = {row["relname"] for row in found if row["nspname"] == "public"}
        if {"users", "schema_migrations"} <= names:
            accounts: int = await self._connection.fetchval("SELECT count(*) FROM users")
            # Migrated, and nobody has used it yet: as compose leaves it.
            return f"{accounts} accounts" if accounts else None
        return f"{len(found)} tables and other things that are not Mimu's"

    @contextlib.asynccontextmanager
    async def closed(self, backup: str) -> AsyncIterator[None]:
        """No server starts on it from now on. If the block fails, which then has changed nothing, all is as it was."""
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
        """Drop what is in it, but for the mark."""
        async with self._connection.transaction():
            for (drop,) in await self._connection.fetch(_DROPS):
                await self._connection.execute(drop)

    async def fill(self, folder: Path, jobs: int, tell: Tell) -> None:
        """Put the dump of a backup back: in one transaction, or faster in several. Raises BackupError."""
        tell("restoring the database")
        how = ["--single-transaction"] if jobs == 1 else [f"--jobs={jobs}"]
        arguments = ["--no-owner", "--no-privileges", "--exit-on-error", *how, str(folder / DATABASE)]
        await run(await find("pg_restore", self.postgresql), *arguments, dsn=self._dsn)

    async def rows(self, tables: Sequence[str]) -> dict[str, int]:
        """How many rows tables have."""
        return {name: await self._connection.fetchval(f'SELECT count(*) FROM "{name}"') for name in tables}

    async def settle(self, *, keep_sessions: bool, without: Sequence[str] = ()) -> dict[str, Any]:
        """Begin a new epoch, end sessions, drop uploads that were not finished and files of which there are no bytes,
        and let servers start: all at once. What was done."""
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
        # As models/sessions.py ends one: servers refuse the access tokens of what is in ended_sessions.
        return await self._connection.fetchval(  # type: ignore[no-any-return]
            """WITH ended AS (
                   UPDATE sessions SET revoked_at = now() WHERE revoked_at IS NULL RETURNING id, user_id
               ), noted AS (
                   INSERT INTO ended_sessions (session_id, user_id) SELECT id, user_id FROM ended ON CONFLICT DO NOTHING
               )
               SELECT count(*) FROM ended"""
        )

    async def analyze(self) -> None:
        """Statistics are not in a dump, and without them queries are planned badly until autovacuum comes by."""
        await self._connection.execute("ANALYZE")


@contextlib.asynccontextmanager
async def scratch(dsn: str, name: str) -> AsyncIterator[None]:
    """A database of that name, made from nothing and dropped at the end. Raises BackupError when the role may make
    none."""
    connection = await connect(dsn, timeout=5)
    try:
        # What a run that was killed has left; while another one is at work in its own, that can't be dropped.
        for (left,) in await connection.fetch(
            "SELECT quote_ident(datname) FROM pg_database WHERE shobj_description(oid, 'pg_database') = $1", _SCRATCH
        ):
            with contextlib.suppress(asyncpg.ObjectInUseError):
                await connection.execute(f"DROP DATABASE IF EXISTS {left}")
        try:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        except asyncpg.InsufficientPrivilegeError as error:
            raise BackupError("to verify a backup a database is made for a moment; the role needs CREATEDB") from error
        try:
            await connection.execute(f"COMMENT ON DATABASE \"{name}\" IS '{_SCRATCH}'")
            yield
        finally:
            # Not WITH (FORCE): autovacuum, which is PostgreSQL's own, would be a reason to refuse. It leaves by itself.
            await asyncio.shield(connection.execute(f'DROP DATABASE IF EXISTS "{name}"'))
    finally:
        await connection.close()


async def proven(dsn: str, into: str, name: str, folder: Path, manifest: Manifest, tell: Tell) -> None:
    """Restore the dump of a backup into a database that is made for it, and compare what is there with what was
    counted. Raises BackupError."""
    async with scratch(dsn, name), target(into) as made:
        await made.fill(folder, 1, tell)
        tell("counting")
        found = await made.rows(list(manifest.rows))
    wrong = [table for table, number in manifest.rows.items() if found[table] != number]
    if wrong:
        raise BackupError(f"restored, {', '.join(wrong)} has other rows than were counted")
