"""The peers that ours is measured against: ejabberd and prosody from apt, each as our child, with its own data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from config.embedded import launch
from tests.bench.machine import SERVER_CORE, Target, pinned
from tests.bench.xmpp import HOST, PASSWORD
from tests.running import Services

START = 60  # seconds for a server to take connections
PACKAGES = ("ejabberd", "erlang-p1-pgsql", "prosody", "lua-dbi-postgresql")
SCHEMA = Path("/usr/share/ejabberd/sql/pg.sql")

# Everything that costs a message something and isn't wanted for the load is off, and no limit is on. Every message is
# archived, for the sender and for the receiver, which is what the module does by default where it is on.
EJABBERD = """\
hosts: [{host}]
loglevel: error
listen:
  - {{port: {port}, ip: "127.0.0.1", module: ejabberd_c2s, shaper: none, access: all}}
auth_method: [sql]
auth_password_format: plain
default_db: sql
sql_type: pgsql
sql_server: "{server}"
sql_port: {sql_port}
sql_database: "{database}"
sql_username: "{user}"
sql_password: "{password}"
modules:
  mod_mam: {{db_type: sql, default: always, request_activates_archiving: false}}
"""
PROSODY = """\
run_as_root = true
pidfile = "{folder}/prosody.pid"
data_path = "{folder}"
log = {{ warn = "{folder}/prosody.log" }}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
c2s_direct_tls_ports = {{ }}
s2s_ports = {{ }}
http_ports = {{ }}
https_ports = {{ }}
modules_enabled = {{ "saslauth", "roster", "mam" }}
modules_disabled = {{ "s2s", "tls", "offline" }}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
authentication = "internal_plain"
default_archive_policy = true
-- By default an archive is cut at 10,000 messages: a long run would measure the cutting.
storage_archive_item_limit = 1000000
storage = {{ archive = "{storage}" }}
sql = {{ driver = "PostgreSQL", host = "{server}", port = {sql_port}, database = "{database}", username = "{user}",
    password = "{password}" }}
VirtualHost "{host}"
"""


class Missing(Exception):
    """A peer is not installed and can't be; the text says what to do."""


def install() -> None:
    """Install the peers when they are missing and we may; none of their services is started. Raises Missing."""
    if _installed():
        return
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing the peers (once): {' '.join(PACKAGES)} ...", file=sys.stderr)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for arguments in (["apt-get", "update", "-qq"], command):
            subprocess.run(arguments, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if not _installed():
        raise Missing(f"The peers are not installed. As root: {' '.join(command)}")


def _installed() -> bool:
    return bool(shutil.which("erl") and SCHEMA.exists() and _libraries() and shutil.which("prosody"))


def _libraries() -> Path | None:
    """The folder that ejabberd's own libraries are in, which its start script gives to Erlang."""
    found = next(Path("/usr/lib").glob("*/ejabberd-*/ebin/ejabberd.app"), None)
    return found.parents[2] if found else None


@dataclass(frozen=True)
class Rival:
    """A peer that runs. ``archived`` counts the messages in its archives, each of which is in two."""

    target: Target
    archived: Callable[[], Awaitable[int]]


@contextlib.asynccontextmanager
async def ejabberd(services: Services, beside: int, names: list[str]) -> AsyncIterator[Rival]:
    """ejabberd with mod_mam in its own PostgreSQL database."""
    async with _database(services, "ejabberd") as (address, connection):
        await connection.execute(SCHEMA.read_text())
        await connection.executemany(
            "INSERT INTO users (username, password) VALUES ($1, $2)", [(name, PASSWORD) for name in names]
        )
        await connection.execute("ANALYZE users")

        async def archived() -> int:
            return int(await connection.fetchval("SELECT count(*) FROM archive"))

        with _folder() as folder:
            port = _free_port()
            (folder / "ejabberd.yml").write_text(EJABBERD.format(host=HOST, port=port, **address))
            environment = {
                "ERL_LIBS": str(_libraries()),
                "EJABBERD_CONFIG_PATH": str(folder / "ejabberd.yml"),
                "EJABBERD_LOG_PATH": str(folder / "ejabberd.log"),
                "ERL_MAX_PORTS": "32000",  # what its start script sets, like the options below
            }
            # Without a node name it starts no port mapper, which would outlive it.
            erlang = [
                "+K",
                "true",
                "+P",
                "250000",
                "-noinput",
                "-mnesia",
                "dir",
                f'"{folder}/mnesia"',
                "-s",
                "ejabberd",
            ]
            async with _child(
                [shutil.which("erl") or "erl", *erlang, "-s", "ejabberd"], folder, environment, port
            ) as process:
                yield Rival(Target(False, "127.0.0.1", port, process.pid, beside), archived)


@contextlib.asynccontextmanager
async def prosody(services: Services, beside: int, names: list[str], storage: str) -> AsyncIterator[Rival]:
    """prosody with mod_mam in files (``storage`` is internal) or in its own PostgreSQL database (sql)."""
    async with _database(services, f"prosody_{storage}") as (address, connection):
        with _folder() as folder:
            accounts = folder / HOST / "accounts"
            accounts.mkdir(parents=True)
            for name in names:
                (accounts / f"{name}.dat").write_text(f'return {{ ["password"] = "{PASSWORD}"; }};\n')
            port = _free_port()
            conf = folder / "prosody.cfg.lua"
            conf.write_text(PROSODY.format(host=HOST, port=port, folder=folder, storage=storage, **address))

            async def archived() -> int:
                if storage == "sql":
                    return int(await connection.fetchval("SELECT count(*) FROM prosodyarchive"))
                lists = (folder / HOST / "archive").glob("*.list")
                return sum(kept.read_bytes().count(b"item({") for kept in lists)

            command = [shutil.which("prosody") or "prosody", "--config", str(conf), "-F"]
            async with _child(command, folder, {}, port) as process:
                yield Rival(Target(False, "127.0.0.1", port, process.pid, beside), archived)


@contextlib.asynccontextmanager
async def _database(services: Services, name: str) -> AsyncIterator[tuple[dict[str, str], asyncpg.Connection]]:
    """An empty database in our PostgreSQL, its address as configurations want it, and a connection to it."""
    admin = await asyncpg.connect(services.dsn)
    try:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {name}")
        parts = urlsplit(services.dsn)
        connection = await asyncpg.connect(urlunsplit(parts._replace(path="/" + name)))
        address = {
            "server": str(parts.hostname),
            "sql_port": str(parts.port),
            "database": name,
            "user": str(parts.username),
            "password": str(parts.password),
        }
        try:
            yield address, connection
        finally:
            await connection.close()
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await admin.close()


@contextlib.contextmanager
def _folder() -> object:
    folder = Path(tempfile.mkdtemp(prefix="mimu-bench-peer-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _child(
    command: list[str], folder: Path, environment: Mapping[str, str], port: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program on the servers' core, as an ordinary user when we are root, which takes connections; gone when we are.

    Raises RuntimeError with what it said when it doesn't start.
    """
    user = ""
    if os.geteuid() == 0:
        user = "nobody"
        entry = pwd.getpwnam(user)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, entry.pw_uid, entry.pw_gid)
    orphaned = str(int(signal.SIGTERM))
    starting = [sys.executable, launch.__file__, str(os.getpid()), orphaned, user, str(folder), *command]
    said = folder / "said.log"
    with said.open("wb") as log, pinned(SERVER_CORE):
        process = await asyncio.create_subprocess_exec(
            *starting,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        await _listening(process, port, said)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _listening(process: asyncio.subprocess.Process, port: int, said: Path) -> None:
    async with asyncio.timeout(START):
        while process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.1)
    logs = [path.read_text(errors="replace") for path in (said, *said.parent.glob("*.log"))]
    raise RuntimeError("the peer did not start:\n" + "\n".join(logs)[-3000:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
