"""The scenarios: each measures one thing that users of a busy server feel, or its operator pays for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import orjson

from tests.bench import machine
from tests.bench.calls import Offer, Relay, call_id_of, calls_of, hang_up, settle, sockets_of
from tests.bench.figures import Bench, Figure, Measured
from tests.bench.load import Asker, Clock, paced
from tests.bench.machine import Meter, Target
from tests.client import Account

PAIRS = 50  # calls at once
QUIET = 5  # calls at once where latency is measured: 40 frames/s each, within what a client may send
CONNECTIONS = 32  # kept-alive HTTP connections
RATE = 200  # frames or offers a second, where latency is measured
CALLERS = 60  # and as many callees: 3,600 pairs, so that no pair is offered two calls in one measurement
LOGINS = 4  # connections that log in all the time: two are hashed, two wait
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


def _get(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def _asking(target: Target, requests: list[list[bytes]]) -> AsyncIterator[list[Asker]]:
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
        [_get(f"/users/{other.public_id}", user.token) for other in bench.users[:100]]
        for user in bench.users[:CONNECTIONS]
    ]

    async def measure(own: bool) -> Measured:
        target = bench.ours if own else bench.bare
        async with _asking(target, requests) as askers:
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
            async with _asking(bench.ours, [[login]] * LOGINS if busy else []) as askers:

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


Scenario = Callable[[Bench], Awaitable[list[Figure]]]
SCENARIOS: dict[str, Scenario] = {"ice": ice, "offer": offer, "profile": profile, "logins": logins, "idle": idle}
