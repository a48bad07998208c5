"""People who behave: each has a socket, writes to one other, and asks for what phones ask for. All of it is timed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import uuid4

import orjson

from tests.bench.calls import sockets_of
from tests.bench.enemy import LOST, Enemy, Wire
from tests.bench.load import PATIENCE, Socket, masked
from tests.bench.machine import Target
from tests.bench.users import User, payload

SIZE = 400  # characters of a message
POSTS = 4.0  # messages a second of each
REQUESTS = 2.0  # requests a second of each
AGAIN = 0.2  # seconds before a socket that was closed is opened again, at most
OVERDUE = 10.0  # seconds without an ack


@dataclass
class Times:
    """Seconds that acks and answers took in a phase, and what went wrong in it."""

    acks: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    closed: Counter[int] = field(default_factory=Counter)  # sockets, by their codes; 0 where there was none


class Person:
    """One of them, with a chat of two."""

    def __init__(self, enemy: Enemy, socket: Socket, crowd: Honest) -> None:
        self.wire, self._socket, self._crowd = Wire(enemy), socket, crowd
        self.chat, self.cursor, self.seq = "", "", 0
        self._sent: dict[str, tuple[float, bytes]] = {}  # when, and what: it is sent again by the next socket
        socket.take = self._take

    def _take(self, frame: bytes) -> None:
        head = frame[:400]
        if b'"ack"' not in head and b'"error"' not in head:
            return
        answer = orjson.loads(frame)
        sent = self._sent.pop(answer.get("id", ""), None)
        if sent is None:
            return
        if answer["type"] == "ack":
            self.seq = answer["seq"]
            self._crowd.times.acks.append(time.perf_counter() - sent[0])
        else:
            self._crowd.times.failures.append(f"message: {answer['code']}")

    def post(self) -> None:
        number = str(uuid4())
        body = {"client_id": number, "encrypted_payload": payload(SIZE), "message_type": "text"}
        frame = masked({"type": "message_send", "id": number, "chat_id": self.chat, **body})
        self._sent[number] = time.perf_counter(), frame
        if not self._socket.lost:
            self._socket.send(frame)

    async def come_back(self) -> None:
        """Open another socket when this one was closed, and send again what was not acknowledged, as phones do."""
        if self._socket.lost:
            self._crowd.times.closed[self._socket.close_code or 0] += 1
            enemy = self.wire.enemy
            self._socket = await Socket.open(enemy.host, enemy.port, "/ws", enemy.user.token, greeted=True)
            self._socket.take = self._take
            for _, frame in self._sent.values():
                self._socket.send(frame)

    def close(self) -> None:
        self.wire.close()
        self._socket.close()

    def overdue(self) -> int:
        """How many messages have waited for too long."""
        now = time.perf_counter()
        return sum(now - at > OVERDUE for at, _ in self._sent.values())

    async def ask(self, number: int) -> None:
        """A receipt, a page of /sync, or the chats."""
        method, path, body = (
            ("POST", f"/chats/{self.chat}/receipts", {"read_seq": self.seq}),
            ("GET", f"/sync?cursor={self.cursor}", None),
            ("POST", f"/chats/{self.chat}/receipts", {"delivered_seq": self.seq}),
            ("GET", "/chats?limit=20", None),
        )[number % 4]
        times, started = self._crowd.times, time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                status, content = await self.wire.ask(method, path, body)
        except LOST as mistake:
            times.failures.append(f"{method} {path.partition('?')[0][:6]}: {type(mistake).__name__}")
            return
        times.requests.append(time.perf_counter() - started)
        if status >= 300:
            times.failures.append(f"{method} {path.partition('?')[0][:6]}: {status} {content[:100]!r}")
        elif path.startswith("/sync"):
            self.cursor = orjson.loads(content)["cursor"]


class Honest:
    """All of them. ``times`` is what the present phase fills."""

    def __init__(self) -> None:
        self.people: list[Person] = []
        self.times = Times()

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, target: Target, users: list[User]) -> AsyncIterator[Honest]:
        """They have met, and talk until the block ends."""
        honest = cls()
        async with sockets_of(target, users) as sockets:
            for user, socket in zip(users, sockets, strict=True):
                asker = Enemy(target.host, target.port, user, user, [], 0, 0, Counter())
                honest.people.append(Person(asker, socket, honest))
            for one, two, user in zip(honest.people[::2], honest.people[1::2], users[1::2], strict=True):
                chat = await one.wire.enemy.chat("direct", participants=[user.public_id])
                for person in (one, two):
                    person.chat, person.cursor = chat, (await person.wire.enemy.must("GET", "/sync"))["cursor"]
            tasks = [asyncio.create_task(work(person)) for person in honest.people for work in (_write, _ask, _stay)]
            try:
                yield honest
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for person in honest.people:
                    person.close()
            for task in tasks:
                if not task.cancelled():
                    task.result()

    async def phase(self, seconds: float) -> Times:
        """What they feel in so many seconds. What is sent at the end is waited for."""
        self.times = times = Times()
        await asyncio.sleep(seconds)
        return times

    def overdue(self) -> int:
        return sum(person.overdue() for person in self.people)


async def _write(person: Person) -> None:
    """In open loop: an answer that is late delays no message."""
    loop = asyncio.get_running_loop()
    at = loop.time() + random.random() / POSTS
    while True:
        await asyncio.sleep(max(0.0, at - loop.time()))
        person.post()
        at += 1 / POSTS


async def _ask(person: Person) -> None:
    number = random.randrange(4)
    while True:
        await asyncio.sleep(random.uniform(0.5, 1.5) / REQUESTS)
        await person.ask(number)
        number += 1


async def _stay(person: Person) -> None:
    while True:
        await asyncio.sleep(AGAIN * random.random())
        await person.come_back()
