"""Calls under load: pairs that exchange candidates, and calls that begin to ring."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

import orjson

from tests.bench.load import PATIENCE, Clock, Socket, masked
from tests.bench.machine import Target
from tests.bench.users import User, payload

T = TypeVar("T")

WINDOW, BURST = 16, 8  # frames of a pair on their way; how many are sent when there is room for them
OPENING = 50  # sockets that are opened at a time
PAYLOAD = 300  # characters of encrypted_payload, what an ICE candidate makes


@contextlib.asynccontextmanager
async def sockets_of(target: Target, accounts: list[User]) -> AsyncIterator[list[Socket]]:
    """An open socket for each account; ours have received ``ready``."""
    sockets: list[Socket] = []
    try:
        for start in range(0, len(accounts), OPENING):
            # Ours greets with `ready` when all is in place; a bare socket has nothing to say.
            opening = [
                Socket.open(
                    target.host, target.port, target.socket_path(account.user_id), account.token, greeted=target.ours
                )
                for account in accounts[start : start + OPENING]
            ]
            sockets += await asyncio.gather(*opening)
        yield sockets
    finally:
        for socket in sockets:
            socket.close()


async def _expect(socket: Socket, part: bytes, send: bytes | None = None) -> None:
    """Wait for a frame that contains ``part``, after sending what is to bring it: again, as clients do, while the
    server can't take it."""
    loop = asyncio.get_running_loop()
    came = loop.create_future()

    def take(frame: bytes) -> None:
        if part in frame and not came.done():
            came.set_result(None)
        elif send is not None and b'"code":"unavailable"' in frame:
            loop.call_later(1, socket.send, send)

    socket.take = take
    if send is not None:
        socket.send(send)
    try:
        async with asyncio.timeout(PATIENCE):
            await came
    finally:
        socket.take = None


@dataclass
class Pair:
    """A caller and a callee in an answered call, and the frame that the caller sends."""

    caller: Socket
    callee: Socket
    candidate: bytes


@contextlib.asynccontextmanager
async def calls_of(target: Target, accounts: list[User], count: int) -> AsyncIterator[list[Pair]]:
    """Pairs in live calls, which are hung up at the end. The yardstick knows no calls and needs none."""
    accounts = accounts[: 2 * count]
    async with sockets_of(target, accounts) as sockets:
        pairs, hangups = [], []
        for (caller, callee), (a, b) in zip(_twos(accounts), _twos(sockets), strict=True):
            head = {"call_id": str(uuid4()), "from_user_id": caller.user_id, "to_user_id": callee.user_id}
            if target.ours:
                ack = b'"type":"ack"'
                offer = {"type": "call_offer", "call_type": "audio", "encrypted_payload": payload(PAYLOAD), "id": "o"}
                await _expect(a, ack, masked({**offer, **head}))
                answer = {"type": "call_answer", "encrypted_payload": payload(PAYLOAD), "id": "a"}
                await _expect(b, ack, masked({**head, **answer}))
                hangups.append((a, masked({"type": "call_hangup", "id": "h", **head})))
            candidate = {"type": "ice_candidate", **head, "encrypted_payload": payload(PAYLOAD)}
            pairs.append(Pair(a, b, masked(candidate)))
        yield pairs
        for socket, hangup in hangups:
            await _expect(socket, b'"type":"ack"', hangup)


def _twos(items: list[T]) -> list[tuple[T, T]]:
    return list(zip(items[::2], items[1::2], strict=True))


class Relay:
    """Keeps every pair's window full while it runs, and counts what arrives."""

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs
        self.arrived = 0
        self._running = False
        self.refusals: list[bytes] = []

    def start(self) -> None:
        self._running = True
        for pair in self._pairs:
            self._feed(pair)

    def _feed(self, pair: Pair) -> None:
        burst, under_way = pair.candidate * BURST, 0

        def counted(count: int) -> None:
            nonlocal under_way
            self.arrived += count
            under_way -= count
            if self._running and under_way <= WINDOW - BURST:
                pair.caller.send(burst)
                under_way += BURST

        pair.callee.counted, pair.caller.take = counted, self.refusals.append
        for _ in range(WINDOW // BURST):
            under_way += BURST
            pair.caller.send(burst)

    async def stop(self) -> None:
        """Let what is under way arrive."""
        self._running = False
        await asyncio.sleep(0.3)
        for pair in self._pairs:
            pair.callee.counted = pair.caller.take = None
        if self.refusals or any(pair.caller.lost or pair.callee.lost for pair in self._pairs):
            raise RuntimeError(f"frames were refused or sockets lost: {self.refusals[:1]}")


class Offer:
    """A call that is about to ring."""

    def __init__(self, caller: Socket, callee: Socket, who: User, peer: User) -> None:
        self.caller, self.callee = caller, callee
        self.call_id = str(uuid4())
        self._head = {"call_id": self.call_id, "from_user_id": who.user_id, "to_user_id": peer.user_id}
        offer = {"type": "call_offer", **self._head, "call_type": "audio", "encrypted_payload": payload(PAYLOAD)}
        self.frame = masked(offer)

    @property
    def hangup(self) -> bytes:
        return masked({"type": "call_hangup", **self._head})


async def settle(clock: Clock) -> None:
    async with asyncio.timeout(PATIENCE):
        while clock.missing:
            await asyncio.sleep(0.01)


async def hang_up(offers: list[Offer]) -> None:
    """End the calls before the server times each of them out, in the middle of another measurement."""
    clock = Clock()
    for number, ringing in enumerate(offers):
        ringing.callee.take = lambda frame: clock.came(call_id_of(frame))
        clock.sent(ringing.call_id)
        ringing.caller.send(ringing.hangup)
        if number % 50 == 49:
            await settle(clock)
    await settle(clock)


def call_id_of(frame: bytes) -> str:
    return str(orjson.loads(frame)["call_id"])
