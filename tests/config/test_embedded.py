"""The embedded default: data outlives every kind of end, and nothing else does."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError
from structlog.testing import capture_logs

import config
from config import embedded
from config.embedded import child
from config.embedded.home import shipped
from tests.waiting import WAIT

ROOT = Path(config.__file__).parents[1]

# Prints its URLs, and does nothing until it is killed.
SERVER = """
import asyncio, sys
from pathlib import Path
from config import embedded
from config.embedded import child

async def main(folder):
    async with embedded.postgres(folder) as database, embedded.valkey(folder) as cache:
        print(database, cache, flush=True)
        await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: when the tests run as root, the user of PostgreSQL cannot enter its parents.
    path = Path(tempfile.mkdtemp(prefix="mimu-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def original() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mimu-"))

    async def make() -> None:
        async with embedded.postgres(path) as database, embedded.valkey(path) as cache:
            await write(database, cache)

    asyncio.run(make())
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def restored(folder: Path, original: Path) -> Path:
    """A folder with data that was copied from a backup, so it is root's when root copied it."""
    return Path(shutil.copytree(original, folder, dirs_exist_ok=True))


@pytest.fixture
def server(folder: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SERVER, str(folder)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def urls(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("postgresql://"):
            database, cache = line.split()
            return database, cache
    raise AssertionError("the server ended")


async def eventually(true: Callable[[], Awaitable[bool]], seconds: float = WAIT) -> None:
    until = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def write(database: str, cache: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("CREATE TABLE kept (word text); INSERT INTO kept VALUES ('Grüße')")
    await connection.close()
    async with Redis.from_url(cache) as client:
        await client.set("kept", "Grüße")


async def read(database: str, cache: str) -> tuple[Any, Any]:
    connection = await asyncpg.connect(database)
    word = await connection.fetchval("SELECT word FROM kept")
    await connection.close()
    async with Redis.from_url(cache, decode_responses=True) as client:
        return word, await client.get("kept")


async def start_and_read(folder: Path) -> tuple[Any, Any]:
    async with embedded.postgres(folder) as database, embedded.valkey(folder) as cache:
        return await read(database, cache)


def pid_of(folder: Path, name: str) -> int | None:
    file = {"postgres": "postmaster.pid", "valkey": "valkey.pid"}[name]
    try:
        return int((folder / name / "data" / file).read_text().split()[0])
    except (OSError, IndexError):
        return None


def test_data_outlives_a_restart_on_the_loop_of_production(folder: Path) -> None:
    async def first() -> None:
        async with embedded.postgres(folder) as database, embedded.valkey(folder) as cache:
            await write(database, cache)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(first())
        assert not [p for p in psutil.Process().children() if p.name() in ("postgres", "valkey-server")]
        assert runner.run(start_and_read(folder)) == ("Grüße", "Grüße")


def test_only_readers_of_the_password_files_can_connect(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", "for the server alone")

    async def scene() -> None:
        async with embedded.postgres(original) as database, embedded.valkey(original) as cache:
            passwords = [(original / name / "password").read_text() for name in ("postgres", "valkey")]
            for name in ("postgres/password", "valkey/password", "valkey/valkey.conf"):
                assert (original / name).stat().st_mode & 0o777 == 0o600
            processes = list(psutil.process_iter(["cmdline", "environ"]))
            for process in processes:
                shown = " ".join(process.info["cmdline"] or ()) + str(process.info["environ"] or "")
                assert not any(password in shown for password in passwords)
            for name in ("postgres", "valkey"):
                child = psutil.Process(pid_of(original, name))
                assert child.uids().real != 0
                assert "JWT_SECRET" not in child.environ()
                listening = [c.laddr.ip for c in child.net_connections() if c.status == psutil.CONN_LISTEN]
                assert listening == ["127.0.0.1"]
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(database.replace(passwords[0], "guessed"))
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(database.replace("//mimu:", "//postgres:"))
            with pytest.raises(AuthenticationError):
                async with Redis.from_url(cache.replace(passwords[1], "guessed")) as client:
                    await client.ping()

    asyncio.run(scene())


def test_postgres_stores_utf8_durably_and_lets_mimu_make_databases(original: Path) -> None:
    async def scene() -> None:
        async with embedded.postgres(original) as database:
            connection = await asyncpg.connect(database)
            assert connection.get_server_version().major == 16
            for name, value in {
                "server_encoding": "UTF8",
                "data_checksums": "on",
                "fsync": "on",
                "synchronous_commit": "on",
                "is_superuser": "off",
            }.items():
                assert await connection.fetchval("SELECT current_setting($1)", name) == value
            await connection.execute("CREATE DATABASE another")
            await connection.close()

    asyncio.run(scene())


def test_kill_9_leaves_no_child_and_loses_nothing(folder: Path, server: Callable[[], subprocess.Popen[str]]) -> None:
    process = server()
    database, cache = urls(process)
    asyncio.run(write(database, cache))
    for again in range(2):
        family = psutil.Process(process.pid).children(recursive=True)
        assert {"postgres", "valkey-server"} <= {child.name() for child in family}
        process.kill()
        process.wait()
        if not again:  # a start at once, which meets the children as they end
            process = server()
            assert asyncio.run(read(*urls(process))) == ("Grüße", "Grüße")
        if not again or sys.platform == "linux":
            assert not psutil.wait_procs(family, timeout=10)[1]


def test_kill_9_while_the_database_is_made_is_made_good(
    folder: Path, server: Callable[[], subprocess.Popen[str]]
) -> None:
    def half_made() -> bool:
        return any(folder.glob("postgres/new-*/data/PG_VERSION"))

    async def scene() -> None:
        async with embedded.postgres(folder) as database:
            await (await asyncpg.connect(database)).close()

    process = server()
    while not half_made():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (folder / "postgres" / "data").exists()
    asyncio.run(scene())
    assert not half_made()


def test_a_second_server_is_refused_with_the_pid_that_holds_the_folder(folder: Path) -> None:
    async def scene() -> None:
        async with embedded.valkey(folder) as cache:
            with pytest.raises(embedded.EmbeddedError, match=rf"{folder}.* in use .*\(process {os.getpid()}\)"):
                async with embedded.valkey(folder):
                    pass
            async with Redis.from_url(cache) as client:
                assert await client.ping()

    asyncio.run(scene())
    with (
        embedded.lock(folder),
        pytest.raises(embedded.EmbeddedError, match="another MIMU_DATA_DIR"),
        embedded.lock(folder),
    ):
        pass
    with embedded.lock(folder):
        pass


def test_servers_left_behind_are_replaced(restored: Path) -> None:
    async def commands() -> dict[str, list[str]]:
        async with embedded.postgres(restored), embedded.valkey(restored):
            return {name: psutil.Process(pid_of(restored, name)).cmdline() for name in ("postgres", "valkey")}

    def start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
        data = restored / name / "data"
        owner = data.stat()
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        return subprocess.Popen(command, cwd=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)

    async def scene(left: dict[str, subprocess.Popen[bytes]]) -> None:
        for name, process in left.items():

            async def started(name: str = name, pid: int = process.pid) -> bool:
                return pid_of(restored, name) == pid

            await eventually(started)
        assert await start_and_read(restored) == ("Grüße", "Grüße")

    left = {name: start(name, command) for name, command in asyncio.run(commands()).items()}
    asyncio.run(scene(left))
    assert [process.wait(5) for process in left.values()] == [0, 0]


def test_a_pid_file_that_names_another_process_ends_no_process(restored: Path) -> None:
    async def scene() -> None:
        async with embedded.postgres(restored) as database:
            await (await asyncpg.connect(database)).close()

    with subprocess.Popen(["sleep", "60"]) as bystander:
        (restored / "postgres" / "data" / "postmaster.pid").write_text(f"{bystander.pid}\n")
        asyncio.run(scene())
        assert bystander.poll() is None
        bystander.kill()


def test_a_child_that_dies_is_restarted_at_its_port(restored: Path) -> None:
    async def scene() -> None:
        async with embedded.postgres(restored) as database, embedded.valkey(restored) as cache:
            for name in ("postgres", "valkey"):
                for kill in (signal.SIGKILL, signal.SIGTERM):
                    pid = pid_of(restored, name)
                    assert pid is not None
                    os.kill(pid, kill)

                    async def replaced(name: str = name, pid: int = pid) -> bool:
                        try:
                            kept = await read(database, cache)
                        except (OSError, asyncpg.PostgresError, RedisError):
                            return False
                        return kept == ("Grüße", "Grüße") and pid_of(restored, name) not in (None, pid)

                    await eventually(replaced)

    with capture_logs() as logs:
        asyncio.run(scene())
    # A set: a process that dies again before its restart is seen to succeed is logged as a failed restart.
    died = {(log["event"], log["log_level"]) for log in logs if log["event"].endswith("_died")}
    assert died == {("embedded_postgres_died", "error"), ("embedded_valkey_died", "error")}


def taken(port: int) -> socket.socket:
    """Another program's socket on that port, when whoever had it is gone."""
    until = time.monotonic() + WAIT
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.005)


def test_a_restart_is_tried_until_the_port_is_free_again(restored: Path) -> None:
    async def scene() -> None:
        async with embedded.valkey(restored) as cache:
            pid, port = pid_of(restored, "valkey"), urlsplit(cache).port
            assert pid is not None and port is not None
            os.kill(pid, signal.SIGKILL)
            with taken(port):
                await eventually(failed)
            await eventually(lambda: answers(cache))

    async def failed() -> bool:
        return any(log["event"] == "embedded_valkey_restart_failed" for log in logs)

    async def answers(cache: str) -> bool:
        try:
            async with Redis.from_url(cache, decode_responses=True) as client:
                return await client.get("kept") == "Grüße"
        except (OSError, RedisError):
            return False

    with capture_logs() as logs:
        asyncio.run(scene())


def test_a_port_that_is_taken_before_the_start_is_left_for_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port, free_port = other.getsockname()[1], child._free_port
        ports = iter([port])
        monkeypatch.setattr(child, "_free_port", lambda: next(ports, None) or free_port())

        async def scene() -> None:
            async with embedded.valkey(folder) as cache, Redis.from_url(cache) as client:
                assert await client.ping()
                assert urlsplit(cache).port != port

        asyncio.run(scene())
        assert next(ports, None) is None, "the port was tried"


def test_a_child_that_cannot_start_shows_the_end_of_its_log(folder: Path) -> None:
    data = folder / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    (data / "postgresql.conf").write_text("no such = setting\n")

    async def scene() -> None:
        with pytest.raises(embedded.EmbeddedError, match=r"(?s)stopped as it started.*syntax error in file"):
            async with embedded.postgres(folder):
                pass

    asyncio.run(scene())


def test_data_of_another_major_version_is_left_alone(folder: Path) -> None:
    data = folder / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("15\n")

    async def scene() -> None:
        with pytest.raises(embedded.EmbeddedError, match="holds data of PostgreSQL 15; the embedded one is"):
            async with embedded.postgres(folder):
                pass

    asyncio.run(scene())


def test_a_password_that_is_not_the_data_s_is_named(restored: Path) -> None:
    async def scene() -> None:
        (restored / "postgres" / "password").unlink()
        with pytest.raises(embedded.EmbeddedError, match="postgres/password isn't the password of the data"):
            async with embedded.postgres(restored):
                pass

    asyncio.run(scene())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lends the data to another user")
def test_a_folder_closed_to_the_user_of_postgres_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    async def scene() -> None:
        with pytest.raises(embedded.EmbeddedError, match=r"is closed to the user .*chmod o\+x"):
            async with embedded.postgres(closed / "var"):
                pass

    asyncio.run(scene())


def test_a_missing_wheel_is_named_with_the_way_out() -> None:
    with pytest.raises(embedded.EmbeddedError, match="set REDIS_URL, or install the package no-such-wheel"):
        shipped("no_such_wheel", "bin/valkey-server", "REDIS_URL")


def test_the_log_is_bounded(folder: Path) -> None:
    async def scene() -> None:
        async with embedded.valkey(folder):
            pass
        log = folder / "valkey" / "log"
        log.write_bytes(b"x" * 6_000_000)
        async with embedded.valkey(folder):
            assert log.stat().st_size < 100_000
        assert (folder / "valkey" / "log.1").stat().st_size == 6_000_000

    asyncio.run(scene())
