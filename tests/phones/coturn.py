"""A real coturn on the loopback: the shipped configuration, less what forbids the loopback, as a child process."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import os
import random
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aioice.turn import TurnClientUdpProtocol

from tests.phones.signal_protocol import Json
from tests.waiting import WAIT

HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds to come up; it takes about 0.1
RELAY_PORTS = 200  # a call takes two, so this is room for a whole test run

# Lines of a base configuration about listeners, users and files: ours replace them.
REPLACED = re.compile(
    r"(alt-)?(tls-)?listening-(ip|port|device)|relay-(ip|device)|external-ip|(min|max)-port|no-(tls|dtls|udp|tcp|cli)"
    r"|cert|pkey(-pwd)?|dh-file|use-auth-secret|static-auth-secret|realm|(no|allow)-loopback-peers|cli-\w+"
    r"|log-file|syslog|simple-log|no-stdout-log|pidfile|(\w+-)?userdb|redis-statsdb|proc-(user|group)"
    r"|(prometheus|web-admin)(-[\w-]+)?"
)


@dataclass(frozen=True)
class Tls:
    """The port on which it speaks TLS, and the files with the certificate and its key."""

    port: int
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Coturn:
    """Where it listens (UDP and TCP on one port), and the secret that it shares with the server."""

    port: int
    secret: str
    pid: int
    log: Path = field(repr=False)

    @property
    def urls(self) -> list[str]:
        return [f"turn:{HOST}:{self.port}?transport={transport}" for transport in ("udp", "tcp")]

    def credentials(self, user_id: str, ttl: int = 3600) -> Json:
        """What `GET /calls/turn-credentials` gives, made here: coturn's REST API."""
        username = f"{int(time.time()) + ttl}:{user_id}"
        digest = hmac.new(self.secret.encode(), username.encode(), hashlib.sha1).digest()
        credential = base64.b64encode(digest).decode()
        return {"urls": self.urls, "username": username, "credential": credential, "ttl": ttl}

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


@contextlib.asynccontextmanager
async def running_coturn(
    secret: str | None = None, base: Path | None = None, *, loopback: bool = True, tls: Tls | None = None
) -> AsyncIterator[Coturn]:
    """Run turnserver with the lines of `base`; skip the test where there is no turnserver.

    With `loopback` it relays to this machine, as the phones need; without, `base` decides where it relays to.
    It speaks TLS only where `tls` says how.
    """
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip("NOT TESTED through a relay: turnserver is not installed (Debian's package is coturn)")
    shared = secret or secrets.token_hex(32)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="coturn-") as folder:
        conf, log = Path(folder, "turnserver.conf"), Path(folder, "log")
        given = base.read_text() if base else ""
        conf.write_text(configuration(given, port, shared, folder, loopback=loopback, tls=tls))
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                program, "-c", str(conf), cwd=folder, stdout=output, stderr=output, stdin=asyncio.subprocess.DEVNULL
            )
        try:
            await _answers(process, port, log)
            coturn = Coturn(port, shared, process.pid, log)
            await _settle(coturn)
            yield coturn
        finally:
            await _stop(process)


def configuration(
    base: str, port: int, secret: str, folder: str, *, loopback: bool = True, tls: Tls | None = None
) -> str:
    """The text of `base`, its own lines on listening, TLS, storage and (with `loopback`) the loopback replaced."""
    kept = [line for line in base.splitlines() if _stays(line, loopback=loopback)]
    first = random.randrange(61000, 65535 - RELAY_PORTS)  # above the ports that Linux hands out by itself
    ours = [
        f"listening-ip={HOST}",
        f"listening-port={port}",
        f"relay-ip={HOST}",
        f"min-port={first}",
        f"max-port={first + RELAY_PORTS}",
        *(["allow-loopback-peers"] if loopback else []),
        "use-auth-secret",
        f"static-auth-secret={secret}",
        "realm=mimu.test",
        *([f"tls-listening-port={tls.port}", f"cert={tls.certificate}", f"pkey={tls.key}"] if tls else ["no-tls"]),
        "no-dtls",
        "no-cli",
        "log-file=stdout",
        f"pidfile={folder}/pid",
        f"userdb={folder}/turndb",
    ]
    return "\n".join([*kept, *ours, ""])


def free_port() -> int:
    """A port that is free for UDP and TCP alike."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind((HOST, 0))
            port: int = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind((HOST, port))
                return port
    raise OSError("no port is free for UDP and TCP alike")


def _stays(line: str, *, loopback: bool) -> bool:
    text = line.split("#", 1)[0].strip()
    name, _, value = (part.strip() for part in text.partition("="))
    if name == "denied-peer-ip":
        return not (loopback and _covers_loopback(value))
    return bool(text) and REPLACED.fullmatch(name) is None


def _covers_loopback(peers: str) -> bool:
    """Whether an address, a range `a-b` or a network `a/n`, as coturn takes them, covers the loopback address."""
    if "/" in peers:
        return any(ipaddress.ip_address(home) in ipaddress.ip_network(peers, strict=False) for home in (HOST, "::1"))
    first, _, last = peers.partition("-")
    low, high = ipaddress.ip_address(first), ipaddress.ip_address(last or first)
    home = ipaddress.ip_address(HOST if low.version == 4 else "::1")
    return int(low) <= int(home) <= int(high)


async def _answers(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    """Wait for the 401 that an Allocate without credentials earns (RFC 8656)."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise RuntimeError(f"turnserver ended with {process.returncode}: {log.read_text(errors='replace')}")
        if await asyncio.to_thread(_allocate, port):
            return
        await asyncio.sleep(0.02)
    raise RuntimeError(f"turnserver didn't answer in {PATIENCE} s: {log.read_text(errors='replace')}")


def _allocate(port: int) -> bool:
    transaction = os.urandom(12)
    udp_transport = bytes.fromhex("0019000411000000")  # the attribute REQUESTED-TRANSPORT: 17, UDP
    request = bytes.fromhex("000300082112a442") + transaction + udp_transport
    with socket.socket(type=socket.SOCK_DGRAM) as knock:
        knock.settimeout(0.2)
        try:
            knock.connect((HOST, port))
            knock.send(request)
            answer = knock.recv(2048)
        except OSError:
            return False
    return answer[:2] == b"\x01\x13" and answer[8:20] == transaction


async def _settle(coturn: Coturn) -> None:
    """Allocate once as somebody: coturn creates its database for the first user and refuses others meanwhile."""
    server, turn = (HOST, coturn.port), coturn.credentials("somebody")
    transport, client = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: TurnClientUdpProtocol(server, turn["username"], turn["credential"], 60, 60), remote_addr=server
    )
    try:
        await client.connect()
        await client.delete()
    finally:
        transport.close()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), WAIT)
    except TimeoutError:
        process.kill()
        await process.wait()
