"""The load generator: raw sockets and prebuilt bytes, so that what is measured is the server."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import orjson

PATIENCE = 30  # seconds for anything that is not the load itself


def masked(frame: dict[str, Any]) -> bytes:
    """A client's text frame (RFC 6455 section 5.2), ready to be sent any number of times."""
    payload = orjson.dumps(frame)
    size, mask = len(payload), os.urandom(4)
    long = (mask * (size // 4 + 1))[:size]
    body = (int.from_bytes(payload) ^ int.from_bytes(long)).to_bytes(size)
    if size < 126:
        length = bytes((0x80 | size,))
    else:
        length = b"\xfe" + size.to_bytes(2) if size <= 0xFFFF else b"\xff" + size.to_bytes(8)
    return b"\x81" + length + mask + body


class Socket(asyncio.Protocol):
    """A WebSocket client that finds frames by their headers alone.

    ``counted`` is called with the number of text frames of each read, ``take`` with the payload of each of them.
    """

    def __init__(self, path: str, token: str, greeted: bool) -> None:
        self._path, self._token, self._greeted = path, token, greeted
        self._rest = b""
        self._upgraded = False
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.counted: Callable[[int], None] | None = None
        self.take: Callable[[bytes], None] | None = None
        self.lost = False
        self.close_code: int | None = None  # what the server closed it with

    @classmethod
    async def open(cls, host: str, port: int, path: str, token: str, *, greeted: bool) -> Socket:
        """Connect and upgrade; a ``greeted`` socket is open when its first frame came.

        Raises ConnectionError when the server refuses.
        """
        _, socket = await asyncio.get_running_loop().create_connection(lambda: cls(path, token, greeted), host, port)
        await socket.opened()
        return socket

    async def opened(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, which is no subclass
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Authorization: Bearer {self._token}\r\nUser-Agent: bench\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self._open.done():
            self._open.set_exception(ConnectionError(f"closed before it was open: {self._rest!r} {exc!r}"))

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._upgraded:
            head = data.find(b"\r\n\r\n")
            if head < 0:
                self._rest = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                if not self._open.done():  # the head may come before the body
                    self._open.set_exception(ConnectionError(data[:head].decode()))
                return
            self._upgraded = True
            at = head + 4
        count, end = 0, len(data)
        while end - at >= 2:
            size, start = data[at + 1], at + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                size = int.from_bytes(data[at + 2 : start])
            following = start + size
            if following > end:
                break
            if data[at] == 0x81:
                count += 1
                if self.take is not None:
                    self.take(data[start:following])
            elif data[at] == 0x89:
                self._transport.write(b"\x8a\x80\0\0\0\0")
            elif data[at] == 0x88:
                self.close_code = int.from_bytes(data[start : start + 2])
                self._transport.close()
                return
            at = following
        self._rest = data[at:]
        if not self._open.done() and (count or not self._greeted):
            self._open.set_result(None)
        if count and self.counted is not None:
            self.counted(count)

    def send(self, frames: bytes) -> None:
        self._transport.write(frames)

    def pause(self) -> None:
        """Read nothing any more."""
        self._transport.pause_reading()

    def close(self) -> None:
        self._transport.abort()


class Asker(asyncio.Protocol):
    """A kept-alive HTTP connection in closed loop: each answer is followed by the next request at once."""

    def __init__(self, requests: Iterable[bytes]) -> None:
        self._requests = itertools.cycle(requests)
        self._rest = b""
        self._stopped = False
        self.answers = 0
        self.failures: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, which is no subclass
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            at = data.index(b"Content-Length: ") + 16
            if len(data) >= head + 4 + int(data[at : data.index(b"\r", at)]):
                if data.startswith(b"HTTP/1.1 200"):
                    self.answers += 1
                else:
                    self.failures.append(data)
                self._rest = b""
                if not self._stopped and len(self.failures) < 100:
                    self._transport.write(next(self._requests))
                return
        self._rest = data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopped:
            self.failures.append(b"connection lost")

    def stop(self) -> None:
        self._stopped = True
        self._transport.abort()


class Clock:
    """Latencies: ``sent`` when something leaves, ``came`` when it arrives. What has the same key arrives in order."""

    def __init__(self) -> None:
        self._sent: defaultdict[Any, deque[float]] = defaultdict(deque)
        self.seconds: list[float] = []

    def sent(self, key: Any) -> None:
        self._sent[key].append(time.perf_counter())

    def came(self, key: Any) -> None:
        if self._sent[key]:
            self.seconds.append(time.perf_counter() - self._sent[key].popleft())

    @property
    def missing(self) -> int:
        return sum(map(len, self._sent.values()))

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of them came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


async def paced(rate: float, seconds: float, send: Callable[[int], None]) -> None:
    """Call ``send`` with 0, 1, 2, … at that rate, whatever comes back (open loop)."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(int(rate * seconds)):
        pause = start + number / rate - loop.time()
        if pause > 0:
            await asyncio.sleep(pause)
        send(number)
