"""One hostile client: the connections it opens, the requests and frames it sends, and how they were answered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson

from tests.bench.load import Socket, masked
from tests.bench.users import User, payload

Hand = Callable[[], Awaitable[None]]  # one thing that is done again and again until the attack is over
LOST = (OSError, EOFError, TimeoutError)  # what a connection may end with
TINY = 4096  # bytes that the kernel keeps for a client that reads nothing
PAUSE = 0.05  # seconds before a connection that was closed is opened again
BURST = 190  # frames that a socket may send at once
RATE = 58  # frames a second that it may send from then on


@dataclass
class Wire:
    """A kept-alive HTTP connection that is opened when it is first used."""

    enemy: Enemy
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """The status and the body of the answer. Raises one of LOST."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self.enemy.host, self.enemy.port)
            reader, writer = self._streams
            writer.write(self.enemy.request(method, path, body, **headers))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            at = head.find(b"content-length: ")
            size = int(head[at + 16 : head.index(b"\r", at)]) if at >= 0 else 0
            content = await reader.readexactly(size)
        except BaseException:
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        status = int(head[9:12])
        self.enemy.answers[str(status)] += 1
        return status, content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


@dataclass
class Enemy:
    """A hostile account, the other people's ids, and what the server answered."""

    host: str
    port: int
    user: User
    accomplice: User  # another account of the same person
    crowd: list[User]  # of them the first ones are honest and there, the others are away
    people: int  # in a large group
    notes: int  # that an attack leaves before it begins
    answers: Counter[str] = field(default_factory=Counter)

    def request(self, method: str, path: str, body: object = None, **headers: str) -> bytes:
        content = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        lines = {"Host": "localhost", "Authorization": f"Bearer {self.user.token}", "Content-Length": str(len(content))}
        if content:
            lines["Content-Type"] = "application/json"
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content

    def wire(self) -> Wire:
        return Wire(self)

    async def must(self, method: str, path: str, body: object = None) -> Any:
        """What prepares an attack has to succeed."""
        wire = self.wire()
        try:
            status, content = await wire.ask(method, path, body)
        finally:
            wire.close()
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {content[:300]!r}")
        return orjson.loads(content) if content else None

    async def chat(self, kind: str = "cloud", **fields: object) -> str:
        return str((await self.must("POST", "/chats", {"type": kind, **fields}))["id"])

    async def group(self) -> str:
        """A group as large as groups may be, with all the honest people in it."""
        names = [each.public_id for each in self.crowd[: self.people - 1]]
        return await self.chat("group", title="Everybody", participants=names)

    async def note(self, chat: str, size: int = 65_536) -> str:
        """A message of so many bytes; its id."""
        return str((await self.must("POST", f"/chats/{chat}/messages", message(size)))["id"])

    def asking(self, *requests: tuple[str, str, object], at_once: int) -> list[Hand]:
        """So many connections that send these requests, one after the other, as fast as they are answered."""
        return [self._asking(self.wire(), requests, number) for number in range(at_once)]

    def _asking(self, wire: Wire, requests: Sequence[tuple[str, str, object]], number: int) -> Hand:
        async def hand() -> None:
            nonlocal number
            number += 1
            method, path, body = requests[number % len(requests)]
            await wire.ask(method, path, body() if callable(body) else body)

        return hand

    def unread(self, paths: Sequence[str], at_once: int, seconds: float) -> list[Hand]:
        """So many connections that ask for all these paths, read nothing, and begin again after ``seconds``."""

        async def hand() -> None:
            ending = socket.socket()
            ending.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY)
            ending.setblocking(False)
            try:
                loop = asyncio.get_running_loop()
                await loop.sock_connect(ending, (self.host, self.port))
                await loop.sock_sendall(ending, b"".join(self.request("GET", path) for path in paths))
                self.answers["unread"] += len(paths)
                await asyncio.sleep(seconds)
            finally:
                ending.close()

        return [hand] * at_once

    @contextlib.asynccontextmanager
    async def socket(self) -> AsyncIterator[Socket]:
        """An open socket that counts what it receives. It is closed at the end."""
        opened = await Socket.open(self.host, self.port, "/ws", self.user.token, greeted=True)

        def take(frame: bytes) -> None:
            kind = str(orjson.loads(frame)["code"]) if b'"error"' in frame[:300] else "frames"
            self.answers[kind] += 1

        opened.take = take
        try:
            yield opened
        finally:
            opened.close()

    def sending(self, frames: Sequence[Callable[[], bytes]], at_once: int, *, paced: bool) -> list[Hand]:
        """So many sockets that send these frames in turn: as fast as a socket may, or faster until they are closed."""

        async def hand() -> None:
            async with self.socket() as opened:
                started, number = time.monotonic(), 0
                while not opened.lost:
                    opened.send(frames[number % len(frames)]())
                    number += 1
                    ahead = number - BURST - RATE * (time.monotonic() - started)
                    await asyncio.sleep(max(0.0, ahead / RATE) if paced else 0)
            self.answers[f"closed {opened.close_code}"] += 1

        return [hand] * at_once


def message(size: int) -> dict[str, object]:
    sent = {"client_id": str(uuid4()), "encrypted_payload": payload(size * 4 // 3), "message_type": "text"}
    return {**sent, "metadata": {"m": "m" * 4_000}}


def frame(kind: str, **fields: object) -> Callable[[], bytes]:
    """The same frame, each time."""
    made = masked({"type": kind, **fields})
    return lambda: made


async def run(hands: Sequence[Hand], seconds: float, answers: Counter[str]) -> None:
    """All of them at once, again and again, for so long."""

    async def repeat(hand: Hand) -> None:
        while True:
            try:
                await hand()
            except LOST:
                answers["connections lost"] += 1
                await asyncio.sleep(PAUSE)

    tasks = [asyncio.create_task(repeat(hand)) for hand in hands]
    done, _ = await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()  # a hand ends only by its own mistake
