"""A real turnserver with the shipped turnserver.conf, unlike the phones' coturn with all that it denies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from aioice.turn import TurnClientProtocol, TurnTransport, create_turn_endpoint

from config.keyring import Keyring
from plugins.turn import Settings, Turn
from tests.running import ROOT

SHIPPED = ROOT / "turnserver.conf"
PATIENCE = 10  # seconds to come up; it takes about 0.1


@dataclass(frozen=True)
class Relay:
    host: str
    port: int
    tls_port: int
    secret: str
    pid: int
    log: Path
    held: list[TurnTransport] = field(default_factory=list)

    def credentials(self, user_id: UUID, secret: str = "") -> tuple[str, str]:
        """Name and password, made by the server's own code."""
        settings = Settings(turn_host=self.host, turn_port=self.port)
        made = Turn(settings, Keyring([secret or self.secret])).credentials(user_id)
        return str(made["username"]), str(made["credential"])

    async def allocate(
        self, username: str, credential: str, transport: str = "udp", tls: ssl.SSLContext | None = None
    ) -> TurnTransport:
        """A TURN allocation. Raises aioice.stun.TransactionFailed."""
        address = (self.host, self.tls_port if tls else self.port)
        endpoint, _ = await create_turn_endpoint(
            asyncio.DatagramProtocol, address, username, credential, ssl=tls or False, transport=transport
        )
        self.held.append(endpoint)
        return endpoint

    async def free(self, *allocations: TurnTransport) -> None:
        """Release them (all, if none is named); coturn has confirmed it when this returns."""
        for allocation in allocations or tuple(self.held):
            await protocol(allocation).delete()
            self.held.remove(allocation)


def protocol(allocation: TurnTransport) -> TurnClientProtocol:
    """aioice's own side of it, which can also ask for what aioice never asks."""
    inner: TurnClientProtocol = allocation._TurnTransport__inner_protocol  # type: ignore[attr-defined]
    return inner


def turnserver() -> str:
    """Where the program is; skips the test when it is nowhere."""
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip(
            "NOT TESTED that coturn takes turnserver.conf: turnserver is not installed (Debian: apt install coturn)"
        )
    return program


def here(conf: str, host: str, port: int, tls_port: int) -> str:
    """``conf`` with nothing changed but where it listens, and one line that lets an IPv6 client relay IPv6."""
    conf = re.sub(r"(?m)^listening-port=.*$", f"listening-port={port}", conf)
    conf = re.sub(r"(?m)^tls-listening-port=.*$", f"tls-listening-port={tls_port}", conf)
    return f"{conf}\nlistening-ip={host}\nrelay-ip={host}\nallocation-default-address-family=keep\n"


@contextlib.asynccontextmanager
async def relaying(
    host: str = "127.0.0.1", *, conf: str = "", more: str = "", forgotten: bool = False
) -> AsyncIterator[Relay]:
    """turnserver with the shipped configuration on ``host``, its secret written where the file says, or forgotten; or
    with one that was rendered from it, and bears secrets already."""
    program = turnserver()
    secret = secrets.token_hex(32)
    with folder() as place:
        rendered, conf = bool(conf), conf or SHIPPED.read_text()
        if not (forgotten or rendered):
            conf, replaced = re.subn(r"(?m)^#static-auth-secret=.*$", f"static-auth-secret={secret}", conf)
            assert replaced == 1
        if not may_become_turnserver():
            conf = re.sub(r"(?m)^proc-(user|group)=.*$", "", conf)
        port, tls_port = free_port(host), free_port(host)
        path = place / "turnserver.conf"
        path.write_text(here(conf, host, port, tls_port) + f"userdb={place}/turndb\npidfile={place}/pid\n{more}")
        async with running([program, "-c", str(path)], host, port, place / "log") as pid:
            relay = Relay(host, port, tls_port, secret, pid, place / "log")
            try:
                yield relay
            finally:
                await relay.free()
                await asyncio.sleep(0.01)  # asyncio closes sockets in its next rounds


def may_become_turnserver() -> bool:
    """True if we are root on a machine with the account of Debian's package."""
    with contextlib.suppress(KeyError):
        return os.geteuid() == 0 and bool(pwd.getpwnam("turnserver"))
    return False


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that the user turnserver may write too, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="mimu-turn-") as name:
        place = Path(name)
        place.chmod(0o777)
        yield place


@contextlib.asynccontextmanager
async def running(
    command: list[str], host: str, port: int, log: Path, environment: dict[str, str] | None = None
) -> AsyncIterator[int]:
    """A turnserver that answers on ``port``; its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(_answers, host, port):
            assert process.poll() is None, f"turnserver ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"turnserver doesn't answer: {log.read_text()}"
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(host: str, port: int) -> bool:
    """True if a STUN binding request (RFC 8489) is answered."""
    request = bytes.fromhex("000100002112a442") + os.urandom(12)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as knock, contextlib.suppress(OSError):
        knock.settimeout(0.1)
        knock.connect((host, port))
        knock.send(request)
        return knock.recv(2048)[8:20] == request[8:20]
    time.sleep(0.02)  # refused at once
    return False


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free for UDP and TCP alike."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(50):
        with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            tcp.bind((host, 0))
            with contextlib.suppress(OSError):
                udp.bind((host, tcp.getsockname()[1]))
                return int(tcp.getsockname()[1])
    raise OSError("no port is free for UDP and TCP alike")


def ipv6_loopback() -> bool:
    """True if this machine has ::1; containers often don't."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as tried:
        tried.bind(("::1", 0))
        return True
    return False
