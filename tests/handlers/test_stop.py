"""A server that stops: it answers accepted requests, and closes connections with an announcement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from config import supervisor
from tests.deploy.relay import ipv6_loopback
from tests.running import ROOT, Services, inherited, json_lines, place, program, serving
from tests.waiting import WAIT, until

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /auth/logout HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
CALLERS = 8


class Callers:
    """Threads that open a connection for each request, as fast as possible, until they are refused."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self.ends: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        end = "answered"
        while end == "answered":
            end = self._once()
            self.ends[end] += 1

    def _once(self) -> str:
        with socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET) as line:
            line.settimeout(5)
            try:
                line.connect(self._address)
            except OSError:
                return "refused"
            try:
                line.sendall(POST)
                return "answered" if line.recv(9) == b"HTTP/1.1 " else "lost"
            except OSError:
                return "lost"

    async def ended(self) -> Counter[str]:
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()
        return self.ends


@pytest.mark.gen_test(timeout=60)
async def test_no_connection_is_reset_that_the_kernel_had_taken(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        for host in ("127.0.0.1", "::1") if ipv6_loopback() else ("127.0.0.1",) * 2:
            async with program(shared, tmp_path, HOST=host) as running:
                callers = Callers(host, urlsplit(running.url).port or 0)
                await until(lambda callers=callers: callers.ends["answered"] > 100)
                assert await running.stop() == 0
                ends = await callers.ended()
                assert ends == {"answered": ends["answered"], "refused": CALLERS}


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head


@pytest.mark.gen_test
async def test_kept_connections_serve_one_more_request_and_the_client_closes_idle_ones(services: Services) -> None:
    async with place(services) as shared, contextlib.AsyncExitStack() as lines:
        stop = asyncio.Event()
        serves = asyncio.Event()
        port = 0

        async def serve() -> None:
            nonlocal port
            async with serving(shared, SHUTDOWN_SECONDS="3") as server:
                port = server.port
                serves.set()
                await stop.wait()

        task = asyncio.ensure_future(serve())
        await serves.wait()
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in pairs:
            lines.callback(writer.close)
            writer.write(LIVE)
            assert b"onnection: close" not in await answer(reader)
        (used, asking), (idle, _), (leaving, closing) = pairs
        began = time.monotonic()
        stop.set()
        await asyncio.sleep(0.5)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        asking.write(LIVE)
        head = await answer(used)
        assert head.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in head
        assert await asyncio.wait_for(used.read(), WAIT) == b""
        closing.close()
        assert await asyncio.wait_for(leaving.read(), WAIT) == b""
        assert not task.done()
        assert await asyncio.wait_for(idle.read(), WAIT) == b""
        assert time.monotonic() - began > 2.5
        await asyncio.wait_for(task, WAIT)


@pytest.mark.gen_test(timeout=60)
async def test_a_supervisor_is_notified_when_the_server_serves_and_stops(services: Services, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    for name in (str(tmp_path / "notify"), f"@mimu-test-{tmp_path.name}-{time.time_ns()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
            heard.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
            heard.setblocking(False)
            async with place(services) as shared, program(shared, tmp_path, NOTIFY_SOCKET=name) as running:
                assert await asyncio.wait_for(loop.sock_recv(heard, 100), WAIT) == b"READY=1"
                running.process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(loop.sock_recv(heard, 100), WAIT) == b"STOPPING=1"
                assert await running.stop() == 0


@pytest.mark.gen_test(timeout=60)
async def test_a_server_that_still_starts_is_stopped_too(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        db = await asyncpg.connect(shared.dsn)
        await db.execute("UPDATE sync_epoch SET place = 'elsewhere'")
        await db.execute("BEGIN")
        await db.execute("LOCK TABLE sync_epoch IN EXCLUSIVE MODE")  # as another server does that settles the database
        settings = {**inherited("PATH"), **shared.environment, "MIMU_DATA_DIR": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "server.py", "--env-file", os.devnull),
            cwd=ROOT,
            env=settings,
            stderr=asyncio.subprocess.PIPE,
        )
        waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with asyncio.timeout(20):
            while not await db.fetchval(waits):
                await asyncio.sleep(0.05)
                await db.execute("SELECT pg_stat_clear_snapshot()")
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), WAIT)
        await db.close()
    assert process.returncode == 0
    assert json_lines(err.decode())[-1]["event"] == "stopped_while_starting"


@pytest.mark.gen_test(timeout=60)
async def test_a_hanging_loop_sends_nothing_to_the_supervisor(services: Services, tmp_path: Path) -> None:
    loop, name = asyncio.get_running_loop(), str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name)
        heard.setblocking(False)
        given = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000"}
        async with place(services) as shared, program(shared, tmp_path, **given) as running:
            assert await asyncio.wait_for(loop.sock_recv(heard, 100), WAIT) == b"READY=1"
            for _ in range(3):
                assert await asyncio.wait_for(loop.sock_recv(heard, 100), WAIT) == b"WATCHDOG=1"
            running.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.1)
            with contextlib.suppress(BlockingIOError):
                while heard.recv(100):  # what it had sent before
                    continue
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(heard, 100), 1)
            running.process.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(loop.sock_recv(heard, 100), WAIT) == b"WATCHDOG=1"
            assert await running.stop() == 0


@pytest.mark.gen_test
async def test_a_loop_that_is_blocked_does_not_feed_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name)
        heard.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "150000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

        def lines() -> list[bytes]:
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(heard.recv(100))
            return found

        async with supervisor.serving():
            said = lines()
            assert said[0] == b"READY=1"
            async with asyncio.timeout(WAIT):
                while said.count(b"WATCHDOG=1") < 2:
                    await asyncio.sleep(0.05)
                    said += lines()
            time.sleep(0.4)  # the loop hangs
            assert lines() == []
        assert lines()[-1] == b"STOPPING=1"
        monkeypatch.setenv("WATCHDOG_PID", "1")  # another process is watched
        assert supervisor.watchdog_seconds() is None
