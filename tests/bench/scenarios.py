"""The scenarios: each measures one thing that users of a busy server feel, or its operator pays for."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import orjson

from tests.bench import machine
from tests.bench.calls import Offer, Relay, call_id_of, calls_of, hang_up, settle, sockets_of
from tests.bench.figures import Bench, Figure, Measured
from tests.bench.load import Asker, Clock, masked, paced
from tests.bench.machine import Meter, Target
from tests.bench.stalled import Prober, SlowReaders, Stalled
from tests.client import Account, ask

PAIRS = 50  # calls at once
QUIET = 5  # calls at once where latency is measured: 40 frames/s each, within what a client may send
CONNECTIONS = 32  # kept-alive HTTP connections
RATE = 200  # frames or offers a second, where latency is measured
CALLERS = 60  # and as many callees: 3,600 pairs, so that no pair is offered two calls in one measurement
LOGINS = 4  # connections that log in all the time: two are hashed, two wait
STALLED, SLOW = 8_000, 1_000  # connections that never go on; sockets that read nothing
STALL_TIMES = 4  # as long as other measurements: longer than a connection may stall
FED = 1_500  # frames of 60 KB a second to those who read nothing: 90 MB/s, 1.8 MB for each in 20 s
MEMORY = 1_280  # MiB: each slow reader may have 1 MiB waiting, and the rest is 9,000 connections and the process
FLOOD = 64  # frames that a flooding client sends at a time
IDLE, IDLE_WARM = 2_000, 100  # sockets; those that come before, so that first-use costs of a process don't count


async def ice(bench: Bench) -> list[Figure]:
    """ICE candidates a second between pairs in live calls."""
    figure = Figure("ice relay", "msg/s", "bare relay", 0.7, True)
    async with calls_of(bench.bare, bench.users, PAIRS) as bare, calls_of(bench.ours, bench.users, PAIRS) as ours:

        async def measure(own: bool) -> Measured:
            relay = Relay(ours if own else bare)
            relay.start()
            await asyncio.sleep(bench.warm_up)
            meter, before = Meter(bench.ours if own else bench.bare), relay.arrived
            await asyncio.sleep(bench.seconds)
            rate, use = (relay.arrived - before) / meter.seconds, meter.read()
            await relay.stop()
            return [rate / use.left], use

        return await bench.take_turns([figure], measure)


async def offer(bench: Bench) -> list[Figure]:
    """Milliseconds from a caller's offer to the callee, at a fixed rate of offers."""
    figures = [
        Figure(f"call_offer p50 at {RATE}/s", "ms", "bare relay", None, False),
        Figure(f"call_offer p99 at {RATE}/s", "ms", "bare relay", None, False),
    ]
    accounts = bench.users[: 2 * CALLERS]
    async with sockets_of(bench.bare, accounts) as bare, sockets_of(bench.ours, accounts) as ours:

        async def measure(own: bool) -> Measured:
            sockets = ours if own else bare
            count = min(int(RATE * (bench.seconds + bench.warm_up)), CALLERS * CALLERS)
            offers = []
            for number in range(count):
                # Every caller in turn, each with another callee in every round.
                one, two = number % CALLERS, CALLERS + (number + number // CALLERS) % CALLERS
                offers.append(Offer(sockets[one], sockets[two], accounts[one], accounts[two]))
            clock = Clock()
            for socket in sockets[CALLERS:]:
                socket.take = lambda frame: clock.came(call_id_of(frame))
            early = int(RATE * bench.warm_up)

            def send(number: int) -> None:
                clock.sent(offers[number].call_id)
                offers[number].caller.send(offers[number].frame)

            await paced(RATE, early / RATE, send)
            meter = Meter(bench.ours if own else bench.bare)
            clock.seconds.clear()
            await paced(RATE, (count - early) / RATE, lambda number: send(early + number))
            use = meter.read()
            await settle(clock)
            if own:
                await hang_up(offers)
            for socket in sockets:
                socket.take = None
            return [clock.percentile(0.5), clock.percentile(0.99)], use

        return await bench.take_turns(figures, measure)


def get(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def asking(target: Target, requests: list[list[bytes]]) -> AsyncIterator[list[Asker]]:
    """A connection in closed loop for each list of requests."""
    loop, askers = asyncio.get_running_loop(), []
    try:
        for own in requests:
            _, asker = await loop.create_connection(partial(Asker, own), target.host, target.port)
            askers.append(asker)
        yield askers
        failures = [failure for asker in askers for failure in asker.failures]
        if failures:
            raise RuntimeError(f"{len(failures)} requests failed: {failures[0]!r}")
    finally:
        for asker in askers:
            asker.stop()


async def profile(bench: Bench) -> list[Figure]:
    """Authenticated GET /users/{public_id} a second."""
    figure = Figure("profile", "req/s", "bare JSON handler", 0.5, True)
    requests = [
        [get(f"/users/{other.public_id}", user.token) for other in bench.users[:100]]
        for user in bench.users[:CONNECTIONS]
    ]

    async def measure(own: bool) -> Measured:
        target = bench.ours if own else bench.bare
        async with asking(target, requests) as askers:
            await asyncio.sleep(bench.warm_up)
            meter, before = Meter(target), sum(asker.answers for asker in askers)
            await asyncio.sleep(bench.seconds)
            rate, use = (sum(asker.answers for asker in askers) - before) / meter.seconds, meter.read()
            return [rate / use.left], use

    return await bench.take_turns([figure], measure)


async def logins(bench: Bench) -> list[Figure]:
    """What logins do to the frames of others: the yardstick is the same server without logins."""
    frames = Figure(f"frame p99 at {RATE}/s during logins", "ms", "ours without logins", 4.0, False)
    alone = Figure("logins meanwhile", "logins/s", "", None, True)
    account = await Account(one_time=0).register(bench.ours.url)
    body = orjson.dumps({"public_id": account.public_id, "password": account.password})
    head = "POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    login = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    async with calls_of(bench.ours, bench.users, QUIET) as pairs:

        async def measure(busy: bool) -> Measured:
            clock = Clock()
            for number, pair in enumerate(pairs):
                pair.callee.take = partial(_came, clock, number)
            async with asking(bench.ours, [[login]] * LOGINS if busy else []) as askers:

                def send(number: int) -> None:
                    clock.sent(number % QUIET)
                    pair = pairs[number % QUIET]
                    pair.caller.send(pair.candidate)

                await paced(RATE, bench.warm_up, send)
                await settle(clock)
                clock.seconds.clear()
                meter, before = Meter(bench.ours), sum(asker.answers for asker in askers)
                await paced(RATE, bench.seconds, send)
                rate, use = (sum(asker.answers for asker in askers) - before) / meter.seconds, meter.read()
                await settle(clock)
            for pair in pairs:
                pair.callee.take = None
            return [clock.percentile(0.99), rate], use

        await bench.take_turns([frames, alone], measure)
    alone.yardstick, alone.use_yardstick = [], []  # there were none
    return [frames, alone]


def _came(clock: Clock, pair: int, _: bytes) -> None:
    clock.came(pair)


async def idle(bench: Bench) -> list[Figure]:
    """Resident memory of the server process for each idle socket."""
    figure = Figure(f"idle socket, of {IDLE}", "KiB", "bare socket", 1.1, False)

    async def measure(own: bool) -> Measured:
        # A fresh process each time: memory once taken is not given back.
        place = bench.ours.place
        assert place is not None
        async with (
            machine.server(place, bench.bare.services) if own else machine.yardstick(bench.bare.services) as target
        ):
            async with sockets_of(target, bench.users[:IDLE_WARM]):
                await asyncio.sleep(1)
                meter, before = Meter(target), target.rss()
                async with sockets_of(target, bench.users[IDLE_WARM : IDLE_WARM + IDLE]) as sockets:
                    await asyncio.sleep(2)  # what arrival leaves to be done
                    use, grown = meter.read(), target.rss() - before
                    if any(socket.lost for socket in sockets):
                        raise RuntimeError("idle sockets were lost")
            return [grown / IDLE], use

    return await bench.take_turns([figure], measure, timed=False)


async def stalled(bench: Bench) -> list[Figure]:
    """What 8,000 connections that stall and 1,000 sockets that read nothing do to requests, frames and memory."""
    figures = [
        Figure("request p99 beside stalled ones", "ms", "ours without them", 250, False, absolute=True),
        Figure(f"frame p99 at {RATE}/s beside stalled ones", "ms", "ours without them", 250, False, absolute=True),
        Figure("memory beside stalled ones", "MiB", "ours without them", MEMORY, False, absolute=True),
        Figure("slow readers that were closed", "", "", None, True),
        Figure("stalled connections that were dropped", "", "", None, True),
    ]
    place = bench.ours.place
    assert place is not None
    accounts = bench.users[2 * QUIET : 2 * QUIET + 1 + SLOW]
    requests = [get(f"/users/{other.public_id}", bench.users[0].token) for other in bench.users[:100]]

    async def measure(busy: bool) -> Measured:
        # A fresh process each time: memory once taken is not given back.
        async with (
            machine.server(place, bench.ours.services) as target,
            calls_of(target, bench.users, QUIET) as pairs,
            contextlib.AsyncExitStack() as crowd,
        ):
            stalled = None
            if busy:
                readers = await crowd.enter_async_context(SlowReaders.calling(target, accounts))
                stalled = await crowd.enter_async_context(Stalled.crowd(target, STALLED))
            clock = Clock()
            for number, pair in enumerate(pairs):
                pair.callee.take = partial(_came, clock, number)

            def send(number: int) -> None:
                clock.sent(number % QUIET)
                pairs[number % QUIET].caller.send(pairs[number % QUIET].candidate)

            loop, seconds = asyncio.get_running_loop(), STALL_TIMES * bench.seconds
            _, prober = await loop.create_connection(partial(Prober, requests, 0.005), target.host, target.port)
            feeding = loop.create_task(readers.feed(FED, seconds)) if busy else None
            meter = Meter(target)
            await paced(RATE, seconds, send)
            use = meter.read()
            if feeding is not None:
                await feeding
            await settle(clock)
            prober.stop()
            if prober.failures:
                raise RuntimeError(f"requests failed: {prober.failures[0]!r}")
            took = sorted(prober.seconds)
            values = [took[int(len(took) * 0.99)] * 1e3, clock.percentile(0.99), target.peak() / 1024]
            return [*values, await _closed(target), stalled.dropped if stalled else 0], use

    await bench.take_turns(figures, measure)
    for figure in figures[3:]:
        figure.yardstick, figure.use_yardstick = [], []  # there were none
    return figures


async def _closed(target: Target) -> float:
    """How many sockets were closed with 4408, by the server's own count."""
    answer = await ask(target.url, "GET", "/metrics")
    found = re.search(r'^mimu_websocket_closed_total\{code="4408"\} (\S+)$', answer.text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


async def flood(bench: Bench) -> list[Figure]:
    """What one client that sends as fast as it is answered does to the frames of others.

    Limits are off: else its socket would be closed after 200 frames.
    """
    figure = Figure(f"frame p99 at {RATE}/s beside a flood", "ms", "ours without it", 1.5, False)
    alone = Figure("frames of the flood", "1/s", "", None, True)
    frames = masked({"type": "flood", "id": "f"}) * FLOOD
    async with (
        calls_of(bench.ours, bench.users, QUIET) as pairs,
        sockets_of(bench.ours, bench.users[2 * QUIET : 2 * QUIET + 1]) as [flooder],
    ):

        async def measure(busy: bool) -> Measured:
            clock, answered, running = Clock(), 0, busy
            for number, pair in enumerate(pairs):
                pair.callee.take = partial(_came, clock, number)

            def counted(count: int) -> None:
                nonlocal answered
                answered += count
                if running and answered % FLOOD < count:
                    flooder.send(frames)

            def send(number: int) -> None:
                clock.sent(number % QUIET)
                pairs[number % QUIET].caller.send(pairs[number % QUIET].candidate)

            flooder.counted = counted
            if busy:
                flooder.send(frames * 2)  # so that some are always on their way
            await paced(RATE, bench.warm_up, send)
            await settle(clock)
            clock.seconds.clear()
            meter, before = Meter(bench.ours), answered
            await paced(RATE, bench.seconds, send)
            rate, use = (answered - before) / meter.seconds, meter.read()
            running = False
            await settle(clock)
            await asyncio.sleep(0.2)
            return [clock.percentile(0.99), rate], use

        await bench.take_turns([figure, alone], measure)
    alone.yardstick, alone.use_yardstick = [], []  # there was none
    return [figure, alone]


Scenario = Callable[[Bench], Awaitable[list[Figure]]]
SCENARIOS: dict[str, Scenario] = {
    "ice": ice,
    "offer": offer,
    "profile": profile,
    "logins": logins,
    "idle": idle,
    "stalled": stalled,
    "flood": flood,
}
