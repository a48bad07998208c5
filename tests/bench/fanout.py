"""Fan-out: how many frames a second reach the members of one large chat."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from tests.bench import users
from tests.bench.chats import Post, large
from tests.bench.figures import Bench, Figure, Measured
from tests.bench.load import PATIENCE
from tests.bench.machine import Meter, Target
from tests.bench.users import User
from tests.bench.yardsticks import TO_ALL

GROUPS = {100: 1.6, 1_000: 2.3}  # members, and how many times the yardstick ours is to reach
CHANNEL = 10_000  # members; one of them posts
SENDERS = 10  # members of a group who post in turn: one alone would wait for each commit
WINDOW = {100: 32, 1_000: 8, CHANNEL: 2}  # messages that have not reached everybody yet
OPENING = 50  # sockets that are opened at a time
DRAIN = 10  # seconds that what is on its way may take when nothing more is sent
READ = 256 * 1024  # bytes at once
_NEW = b'"message_new"'
_KEPT = len(_NEW) - 1  # bytes of a read that may be the beginning of one
_PING, _PONG = b"\x89\x00", b"\x8a\x80\0\0\0\0"


class Members:
    """The sockets of a chat's members, read by a plain loop: asyncio takes longer for a frame than the server.

    It blocks, so it runs in a separate thread.
    """

    def __init__(self, target: Target, accounts: list[User], posts: list[Post]) -> None:
        self._target, self._accounts, self._posts = target, accounts, posts
        self._sockets: list[socket.socket] = []
        self._by_descriptor: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        self._poll = select.epoll()
        self._buffer = bytearray(_KEPT + READ)
        self._view = memoryview(self._buffer)
        self.delivered = self.sent = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        try:
            for start in range(0, len(self._accounts), OPENING):
                opening = [self._begin(account) for account in self._accounts[start : start + OPENING]]
                for each in opening:
                    self._finish(each)
            for each in self._sockets:
                self._by_descriptor[each.fileno()] = each
                self._tails[each.fileno()] = b""
                self._poll.register(each, select.EPOLLIN)
            yield
        finally:
            self._poll.close()
            for each in self._sockets:
                each.close()

    def _begin(self, account: User) -> socket.socket:
        each = socket.create_connection((self._target.host, self._target.port), PATIENCE)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.append(each)
        each.sendall(
            f"GET {self._target.socket_path(account.user_id)} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nAuthorization: Bearer {account.token}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: bWltdS1iZW5jaC1rZXkxMg==\r\n\r\n".encode()
        )
        return each

    def _finish(self, each: socket.socket) -> None:
        """Wait until the server has said that the socket is open, and ours that everything is in place."""
        came = b""
        while not (b"\r\n\r\n" in came and (b'"ready"' in came or not self._target.ours)):
            data = each.recv(READ)
            came += data
            if not data or not came.startswith(b"HTTP/1.1 101"[: len(came)]):
                raise ConnectionError(f"a member's socket was refused: {came[:300]!r}")

    def measure(self, seconds: float, warm_up: float, window: int) -> Measured:
        """Deliveries a second. Raises RuntimeError when some are missing."""
        each, meter, before = len(self._sockets) - 1, None, 0
        start = time.perf_counter()
        while True:
            now = time.perf_counter() - start
            if meter is None and now >= warm_up:
                meter, before = Meter(self._target), self.delivered
            if meter is not None and now >= warm_up + seconds:
                rate, use = (self.delivered - before) / meter.seconds, meter.read()
                break
            while self.sent - self.delivered // each < window:
                self._post()
            self._read()
        limit = time.perf_counter() + DRAIN
        while self.delivered < self.sent * each and time.perf_counter() < limit:
            self._read()
        if self.delivered != self.sent * each:
            raise RuntimeError(f"{self.delivered:,} frames came of {self.sent * each:,}")
        return [rate / use.left], use

    def _post(self) -> None:
        number = self.sent % len(self._posts)
        self._sockets[number].sendall(self._posts[number].frames(1))
        self.sent += 1

    def _read(self) -> None:
        for descriptor, _ in self._poll.poll(0.05):
            tail = self._tails[descriptor]  # a frame's type may come in two reads
            at = len(tail)
            self._buffer[:at] = tail
            size = self._by_descriptor[descriptor].recv_into(self._view[at:])
            if size == 0:
                raise RuntimeError("a member's socket was closed")
            end = at + size
            self.delivered += self._buffer.count(_NEW, 0, end)
            self._tails[descriptor] = bytes(self._view[max(0, end - _KEPT) : end])
            if self._buffer.find(_PING, at, end) >= 0:  # in text these two bytes are never neighbours
                self._by_descriptor[descriptor].sendall(_PONG)


async def _measure(bench: Bench, target: Target, accounts: list[User], posts: list[Post]) -> Measured:
    def work() -> Measured:
        members = Members(target, accounts, posts)
        with members.open():
            time.sleep(1)  # what arrival leaves to be done
            return members.measure(bench.seconds, bench.warm_up, WINDOW[len(accounts)])

    return await asyncio.to_thread(work)


async def _reach(bench: Bench, figure: Figure, kind: str, accounts: list[User], senders: int) -> list[Figure]:
    """Measure deliveries to all of a new chat of theirs, which the first of them makes."""
    chat_id = await large(bench.ours, accounts[0], kind, accounts[1:])
    posts = {True: [Post.to(chat_id)] * senders, False: [Post.relayed(TO_ALL)] * senders}

    async def measure(own: bool) -> Measured:
        return await _measure(bench, bench.ours if own else bench.bare, accounts, posts[own])

    return await bench.take_turns([figure], measure)


async def fanout(bench: Bench, members: int) -> list[Figure]:
    """Frames a second to the members of a group; ten of them post."""
    figure = Figure(f"fan-out to {members:,}", "frames/s", "bare write_message loop", GROUPS[members], True)
    return await _reach(bench, figure, "group", bench.users[:members], SENDERS)


async def channel(bench: Bench) -> list[Figure]:
    """Frames a second to the members of a channel, whose owner posts."""
    assert bench.ours.place is not None
    accounts = await users.create(bench.ours.place, CHANNEL, "reader")
    figure = Figure(f"channel of {CHANNEL:,}", "frames/s", "bare write_message loop", None, True)
    return await _reach(bench, figure, "channel", accounts, 1)


Scenario = Callable[[Bench], Awaitable[list[Figure]]]
SCENARIOS: dict[str, Scenario] = {
    **{f"fanout-{members}": partial(fanout, members=members) for members in GROUPS},
    "channel": channel,
}
