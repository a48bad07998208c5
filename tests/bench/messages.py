"""Scenarios of messages: what a pair of users feels alone, in a crowd, beside a flood and beside logins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import asyncpg
import orjson

from tests.bench import machine, users
from tests.bench.calls import sockets_of
from tests.bench.chats import audit, talking
from tests.bench.figures import OURS, Bench, Figure, Measured
from tests.bench.machine import Meter, Target
from tests.bench.pairs import USERS, latency, throughput
from tests.bench.scenarios import LOGINS, RATE, asking
from tests.client import Account
from tests.running import ROOT, Place

RATES = (1_000, 2_000)  # messages a second at which latency is measured as well, beside ours at RATE
CROWD = 9_000  # idle sockets
QUIET = 10  # users who write at RATE together beside a flood or logins: 20 messages a second each
FLOOD = 64  # messages of a flooding client on their way to be acknowledged


@dataclass(frozen=True)
class Way:
    """How ours is run."""

    started: tuple[str, ...] = (str(ROOT / "server.py"),)
    commits: bool = True  # waits until the disk has it


WAYS = {OURS: Way(), "no commit": Way(commits=False), "single": Way(("-m", "tests.bench.single"))}


async def messages(bench: Bench) -> list[Figure]:
    """Durable 1:1 messages that arrive each second, beside what it would be without this or that part of the work."""
    name, unit = "1:1 messages", "msg/s"
    figures = {
        "relay": [Figure(name, unit, "bare relay", None, True)],
        "no commit": [Figure(name, unit, "ours without waiting for the commit", 0.85, True)],
        "single": [Figure(name, unit, "ours with an insert for each message", 4.0, True)],
        "inserts": [Figure(name, unit, "raw inserts, 10 connections", None, True)],
    }
    async with _Inserts.of(bench) as inserts, talking(bench.bare, bench.users) as bare:

        async def measure(name: str) -> Measured:
            if name == "inserts":
                return await inserts.rate(bench)
            if name == "relay":
                return await throughput(bench, bench.bare, bare)
            # A fresh server and database each time, so that none has more rows than another.
            async with _ours(bench, WAYS[name]) as target:
                assert target.place is not None
                async with talking(target, await users.create(target.place, USERS, "bench")) as members:
                    measured = await throughput(bench, target, members)
                    await audit(target, members)
            return measured

        return await bench.compare(figures, measure)


@contextlib.asynccontextmanager
async def _ours(bench: Bench, way: Way, place: Place | None = None) -> AsyncIterator[Target]:
    """A further server of ours, on a new place unless one is given."""
    assert bench.services is not None
    async with contextlib.AsyncExitStack() as stack:
        if place is None:
            place = await stack.enter_async_context(machine.place(bench.services))
        if not way.commits:
            await _uncommitted(place)
        # All servers of a benchmark share 60 connections.
        settings = {"DATABASE_MAX_CONNECTIONS": "10"}
        server = machine.server(place, bench.ours.services, started=way.started, **settings)
        yield await stack.enter_async_context(server)


async def _uncommitted(place: Place) -> None:
    """Let the database acknowledge what is not yet on the disk."""
    connection = await asyncpg.connect(place.dsn)
    try:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    finally:
        await connection.close()


class _Inserts:
    """The program that inserts rows."""

    def __init__(self, process: asyncio.subprocess.Process, beside: int) -> None:
        self._process = process
        self._target = Target(False, "", 0, process.pid, beside)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, bench: Bench) -> AsyncIterator[_Inserts]:
        assert bench.services is not None
        async with (
            machine.place(bench.services) as place,
            machine.child("-m", "tests.bench.inserts", place.dsn) as (process, _),
        ):
            yield cls(process, bench.ours.services)

    async def rate(self, bench: Bench) -> Measured:
        self._tell(b"start")
        await asyncio.sleep(bench.warm_up)
        meter, before = Meter(self._target), await self._count()
        await asyncio.sleep(bench.seconds)
        rate, use = (await self._count() - before) / meter.seconds, meter.read()
        self._tell(b"stop")
        return [rate / use.left], use

    def _tell(self, word: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + b"\n")

    async def _count(self) -> int:
        assert self._process.stdout is not None
        self._tell(b"count")
        return int(await self._process.stdout.readline())


async def message_times(bench: Bench) -> list[Figure]:
    """Milliseconds from a user to the partner, at rates that a server has to bear without being felt."""
    ends = ("p50", "p99")
    figures = [Figure(f"message {end} at {RATE}/s", "ms", "bare relay", None, False) for end in ends]
    async with talking(bench.bare, bench.users) as bare, talking(bench.ours, bench.users) as ours:
        await bench.take_turns(
            figures,
            lambda own: latency(bench, bench.ours if own else bench.bare, ours if own else bare, RATE),
        )
        for rate in RATES:
            goals = (None, 1.3 if rate == RATES[-1] else None)
            more = [
                Figure(f"message {end} at {rate:,}/s", "ms", f"ours at {RATE}/s", goal, False)
                for end, goal in zip(ends, goals, strict=True)
            ]
            figures += await bench.take_turns(
                more, lambda fast, rate=rate: latency(bench, bench.ours, ours, rate if fast else RATE)
            )
    return figures


async def crowd(bench: Bench) -> list[Figure]:
    """Messages a second beside 9,000 sockets of users who only listen."""
    figure = Figure(f"1:1 messages beside {CROWD:,} idle sockets", "msg/s", "ours without them", 0.97, True)
    place = bench.ours.place
    assert place is not None
    idle = await users.create(place, CROWD, "crowd")
    async with talking(bench.ours, bench.users) as members:

        async def measure(crowded: bool) -> Measured:
            async with sockets_of(bench.ours, idle if crowded else []) as sockets:
                await machine.quiet(bench.ours)
                measured = await throughput(bench, bench.ours, members)
                if any(socket.lost for socket in sockets):
                    raise RuntimeError("idle sockets were lost")
            await machine.quiet(bench.ours)
            return measured

        return await bench.take_turns([figure], measure)


async def message_flood(bench: Bench) -> list[Figure]:
    """What one client that posts as fast as it is acknowledged does to the messages of others.

    Limits are off: else its socket would be closed after 200 frames.
    """
    figure = Figure(f"message p99 at {RATE}/s beside a flood of messages", "ms", "ours without it", 1.5, False)
    alone = Figure("messages of the flood", "1/s", "", None, True)
    async with (
        talking(bench.ours, bench.users, QUIET) as quiet,
        talking(bench.ours, bench.users[QUIET:], 2) as [flooder, _],
    ):

        async def measure(busy: bool) -> Measured:
            if busy:
                flooder.on_ack = lambda: flooder.say(1)
                flooder.say(FLOOD)
            before, started = flooder.acked, asyncio.get_running_loop().time()
            [_, p99], use = await latency(bench, bench.ours, quiet, RATE)
            rate = (flooder.acked - before) / (asyncio.get_running_loop().time() - started)
            flooder.on_ack = None
            await asyncio.sleep(0.2)  # until the last ones are acknowledged
            if flooder.refusals or flooder.lost:
                raise RuntimeError(f"the flood was refused or its connection lost: {flooder.refusals[:1]}")
            return [p99, rate], use

        await bench.take_turns([figure, alone], measure)
    alone.yardstick, alone.use_yardstick = [], []  # there was none
    return [figure, alone]


async def message_logins(bench: Bench) -> list[Figure]:
    """What logins do to the messages of others."""
    figure = Figure(f"message p99 at {RATE}/s during logins", "ms", "ours without logins", 4.0, False)
    alone = Figure("logins beside messages", "logins/s", "", None, True)
    account = await Account(one_time=0).register(bench.ours.url)
    body = orjson.dumps({"public_id": account.public_id, "password": account.password})
    head = "POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    login = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    async with talking(bench.ours, bench.users, QUIET) as members:

        async def measure(busy: bool) -> Measured:
            async with asking(bench.ours, [[login]] * LOGINS if busy else []) as askers:
                started = asyncio.get_running_loop().time()
                [_, p99], use = await latency(bench, bench.ours, members, RATE)
                seconds = asyncio.get_running_loop().time() - started
                return [p99, sum(asker.answers for asker in askers) / seconds], use

        await bench.take_turns([figure, alone], measure)
    alone.yardstick, alone.use_yardstick = [], []  # there were none
    return [figure, alone]


async def instances(bench: Bench) -> list[Figure]:
    """Two instances on the same core, and the two of each pair on different ones, so that all goes through Redis."""
    figure = Figure("1:1 messages between two instances", "msg/s", "ours, one instance", None, True)
    assert bench.services is not None
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(_ours(bench, WAYS[OURS]))
        alone = await stack.enter_async_context(talking(one, await users.create(one.place, USERS, "bench")))
        place = await stack.enter_async_context(machine.place(bench.services))
        first = await stack.enter_async_context(_ours(bench, WAYS[OURS], place))
        second = await stack.enter_async_context(_ours(bench, WAYS[OURS], place))
        accounts = await users.create(place, USERS, "bench")
        both = await stack.enter_async_context(talking(first, accounts, other=second))
        two = Target(True, first.host, first.port, first.pid, first.services, place, (second.pid,))
        return await bench.take_turns(
            [figure], lambda split: throughput(bench, two if split else one, both if split else alone)
        )


Scenario = Callable[[Bench], Awaitable[list[Figure]]]
SCENARIOS: dict[str, Scenario] = {
    "messages": messages,
    "message-times": message_times,
    "crowd": crowd,
    "message-flood": message_flood,
    "message-logins": message_logins,
    "instances": instances,
}
