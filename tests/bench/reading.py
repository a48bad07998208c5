"""Reading: what a phone waits for that comes back, its missed events and its list of chats."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import quote

import orjson

from tests.bench.calls import sockets_of
from tests.bench.chats import Member, Post, chat
from tests.bench.figures import Bench, Figure, Measured
from tests.bench.load import PATIENCE
from tests.bench.machine import Meter, Target
from tests.bench.scenarios import get
from tests.bench.stalled import Prober
from tests.bench.users import User
from tests.client import ask

MISSED, WRITERS = 10_000, 25  # events, in as many chats
PAGE = 1_000  # events
CHATS = 500
LINE = 16 * 1024 * 1024  # bytes that a page may have


async def _post_all(members: list[Member], count: int) -> None:
    """Let each post so many messages, and wait until all are acknowledged."""
    for member in members:
        member.say(count)
    async with asyncio.timeout(PATIENCE):
        while sum(member.acked for member in members) < count * len(members):
            if any(member.refusals or member.lost for member in members):
                raise RuntimeError(f"messages were refused: {[member.refusals[:1] for member in members]}")
            await asyncio.sleep(0.01)


class Syncer:
    """A connection that reads all pages since a cursor, one after the other, as a client must."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader, self._writer, self._token = reader, writer, token

    @classmethod
    async def open(cls, target: Target, token: str) -> Syncer:
        return cls(*await asyncio.open_connection(target.host, target.port, limit=LINE), token)

    async def read(self, cursor: str) -> int:
        """How many events there were. Raises RuntimeError."""
        count, more = 0, True
        while more:
            self._writer.write(get(f"/sync?limit={PAGE}&cursor={quote(cursor, safe='')}", self._token))
            head = await self._reader.readuntil(b"\r\n\r\n")
            at = head.lower().index(b"content-length: ") + 16
            body = await self._reader.readexactly(int(head[at : head.index(b"\r", at)]))
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"no page: {body[:300]!r}")
            page = orjson.loads(body)
            count, cursor, more = count + len(page["events"]), page["cursor"], page["has_more"]
        return count

    def close(self) -> None:
        self._writer.close()


async def sync(bench: Bench) -> list[Figure]:
    """Milliseconds for 10,000 events that a user has missed, in pages of 1,000; and as a rate."""
    beside = "bare JSON handler of such pages"
    figures = [
        Figure(f"sync of {MISSED:,} events", "ms", beside, None, False),
        Figure(f"sync of {MISSED:,} events", "events/s", beside, None, True),
    ]
    phone, writers = bench.users[0], bench.users[1 : 1 + WRITERS]
    chats = [await chat(bench.ours, writer, "direct", [phone]) for writer in writers]
    answer = await ask(bench.ours.url, "GET", "/sync", token=phone.token)
    cursor = str(answer.json["cursor"])
    async with sockets_of(bench.ours, writers) as sockets:
        await _post_all(
            [Member(socket, Post.to(each)) for socket, each in zip(sockets, chats, strict=True)], MISSED // WRITERS
        )

    async def measure(own: bool) -> Measured:
        target = bench.ours if own else bench.bare
        syncer = await Syncer.open(target, phone.token)
        taken: list[float] = []
        try:
            meter = Meter(target)
            while not taken or meter.seconds < bench.seconds:
                started = time.perf_counter()
                count = await syncer.read(cursor if own else str(MISSED))
                taken.append(time.perf_counter() - started)
                if count != MISSED:
                    raise RuntimeError(f"{count} events came of {MISSED}")
            use = meter.read()
        finally:
            syncer.close()
        middle = statistics.median(taken)
        return [middle * 1e3, MISSED / middle], use

    return await bench.take_turns(figures, measure)


async def chat_list(bench: Bench) -> list[Figure]:
    """Milliseconds for GET /chats with 500 chats, each with its last message and its unread count."""
    ends = ("p50", "p99")
    figures = [Figure(f"list of {CHATS} chats, {end}", "ms", "bare JSON handler", None, False) for end in ends]
    phone, others = bench.users[0], bench.users[1 : 1 + CHATS]
    await _converse(bench.ours, phone, others)

    async def measure(own: bool) -> Measured:
        target = bench.ours if own else bench.bare
        make = partial(Prober, [get(f"/chats?limit={CHATS}", phone.token)], 0)
        _, prober = await asyncio.get_running_loop().create_connection(make, target.host, target.port)
        await asyncio.sleep(bench.warm_up)
        prober.seconds.clear()
        meter = Meter(target)
        await asyncio.sleep(bench.seconds)
        taken, use = sorted(prober.seconds), meter.read()
        prober.stop()
        if prober.failures or not taken:
            raise RuntimeError(f"requests failed: {prober.failures[:1]}")
        return [taken[len(taken) // 2] * 1e3, taken[int(len(taken) * 0.99)] * 1e3], use

    return await bench.take_turns(figures, measure)


async def _converse(target: Target, phone: User, others: list[User]) -> None:
    """A direct chat with each of them, who has written once."""
    chats = [await chat(target, phone, "direct", [other]) for other in others]
    async with sockets_of(target, others) as sockets:
        await _post_all([Member(socket, Post.to(each)) for socket, each in zip(sockets, chats, strict=True)], 1)
    answer = await ask(target.url, "GET", f"/chats?limit={CHATS}", token=phone.token)
    if answer.status != 200 or len(answer.json) != CHATS:
        raise RuntimeError(f"the list is not as it should be: {answer.status} {answer.text[:300]}")


Scenario = Callable[[Bench], Awaitable[list[Figure]]]
SCENARIOS: dict[str, Scenario] = {"sync": sync, "chats": chat_list}
