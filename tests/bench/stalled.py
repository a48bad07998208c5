"""Connections that stall and sockets that read nothing, to see what they do to others, and to the server's memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import cast
from uuid import uuid4

import orjson

from tests.bench.calls import settle
from tests.bench.load import PATIENCE, Clock, Socket, masked
from tests.bench.machine import Target
from tests.bench.users import User, payload

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
)
BEGINNINGS = (  # of what never goes on
    b"",
    b"GET /users/",
    b"GET /users/me HTTP/1.1\r\nHost: localhost\r\nX-Drip: ",
    b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n{",
    HANDSHAKE.encode(),
)
OPENING = 100  # connections that are opened at a time
LARGE = 60_000  # characters of a frame to a slow reader, so that its queue is soon full
TINY = 4096  # bytes that the kernel keeps for a slow reader: what is beyond is the server's


class _Stalled(asyncio.Protocol):
    """A connection that begins something; the server ends it, and it comes back at once."""

    def __init__(self, crowd: Stalled, beginning: bytes) -> None:
        self._crowd, self._beginning = crowd, beginning

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._crowd.open.add(cast(asyncio.Transport, transport))
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._beginning)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.lost(self._transport, self._beginning)


class Stalled:
    """So many connections that stall, all the time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.open: set[asyncio.Transport] = set()
        self.dropped = 0  # by the server

    @classmethod
    @contextlib.asynccontextmanager
    async def crowd(cls, target: Target, count: int) -> AsyncIterator[Stalled]:
        crowd = cls(target)
        try:
            for start in range(0, count, OPENING):
                many = range(start, min(start + OPENING, count))
                await asyncio.gather(*(crowd._connect(BEGINNINGS[number % len(BEGINNINGS)]) for number in many))
            yield crowd
        finally:
            crowd._stopped = True
            for transport in list(crowd.open):
                transport.abort()
            await asyncio.gather(*crowd._tasks)

    async def _connect(self, beginning: bytes) -> None:
        make = partial(_Stalled, self, beginning)
        await asyncio.get_running_loop().create_connection(make, self._target.host, self._target.port)

    def lost(self, transport: asyncio.Transport, beginning: bytes) -> None:
        self.open.discard(transport)
        if not self._stopped:
            self.dropped += 1
            task = asyncio.get_running_loop().create_task(self._connect(beginning))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class SlowReaders:
    """Users in calls with one who sends them candidates that they never read."""

    def __init__(self, feeder: Socket, readers: list[Socket], frames: list[bytes]) -> None:
        self._feeder, self._readers, self._frames = feeder, readers, frames

    @classmethod
    @contextlib.asynccontextmanager
    async def calling(cls, target: Target, accounts: list[User]) -> AsyncIterator[SlowReaders]:
        """The first account calls all others, who answer and then stop reading."""
        loop = asyncio.get_running_loop()
        feeder = await Socket.open(target.host, target.port, "/ws", accounts[0].token, greeted=True)
        readers, frames = [], []
        try:
            for account in accounts[1:]:
                ending = socket.socket()
                ending.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY)
                ending.setblocking(False)
                await loop.sock_connect(ending, (target.host, target.port))
                make = partial(Socket, "/ws", account.token, True)
                _, reader = await loop.create_connection(make, sock=ending)
                readers.append(reader)
                await reader.opened()
                head = {"call_id": str(uuid4()), "to_user_id": account.user_id, "encrypted_payload": payload(300)}
                await acked(feeder, {"type": "call_offer", "call_type": "audio", **head})
                await acked(reader, {"type": "call_answer", **head})
                reader.pause()
                frames.append(masked({"type": "ice_candidate", **head, "encrypted_payload": payload(LARGE)}))
            yield cls(feeder, readers, frames)
        finally:
            for each in (feeder, *readers):
                each.close()

    async def feed(self, rate: float, seconds: float) -> None:
        """Send candidates at that rate, to each reader in turn."""
        started = time.monotonic()
        for number in range(int(rate * seconds)):
            pause = started + number / rate - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._feeder.send(self._frames[number % len(self._frames)])


async def acked(sender: Socket, frame: dict[str, object]) -> None:
    """Send a frame, and wait for its ack."""
    clock = Clock()

    def take(answer: bytes) -> None:
        if orjson.loads(answer).get("id") == "s":
            clock.came("s")

    sender.take = take
    clock.sent("s")
    sender.send(masked({**frame, "id": "s"}))
    async with asyncio.timeout(PATIENCE):
        await settle(clock)
    sender.take = None


class Prober(asyncio.Protocol):
    """A kept-alive connection that asks, is answered, waits a little, and asks again; and how long each answer took."""

    def __init__(self, requests: list[bytes], pause: float) -> None:
        self._requests, self._pause = requests, pause
        self._asked = 0.0
        self._rest = b""
        self._number = 0
        self._stopped = False
        self.seconds: list[float] = []
        self.failures: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        if not self._stopped:
            self._number += 1
            self._asked = time.perf_counter()
            self._transport.write(self._requests[self._number % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head = self._rest.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._rest.index(b"Content-Length: ") + 16
        if len(self._rest) < head + 4 + int(self._rest[at : self._rest.index(b"\r", at)]):
            return
        self.seconds.append(time.perf_counter() - self._asked)
        if not self._rest.startswith(b"HTTP/1.1 200"):
            self.failures.append(self._rest)
        self._rest = b""
        asyncio.get_running_loop().call_later(self._pause, self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopped:
            self.failures.append(b"connection lost")

    def stop(self) -> None:
        self._stopped = True
        self._transport.abort()
