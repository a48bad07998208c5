"""The 1:1 load, the same for every server: 25 pairs who write to each other, as fast as it goes or at a fixed rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tests.bench.calls import settle
from tests.bench.figures import Bench, Measured
from tests.bench.load import Clock, paced
from tests.bench.machine import Meter, Target

USERS = 50  # in pairs; both users write
WINDOW = 4  # messages of a user on their way to the partner; each that arrives is followed by another
PAYLOAD = 300  # bytes of a message's content
DRAIN = 10  # seconds that what is on its way may take when nothing more is sent


class Talker(Protocol):
    """A user's connection to whatever server, and the partner they write to."""

    partner: Talker
    heard: Callable[[int], None] | None  # called with the number of the partner's messages of each read
    refusals: list[bytes]  # what the server said against a message
    lost: bool

    def say(self, count: int) -> None:
        """Send so many messages to the partner."""


class Exchange:
    """Keeps every user's window full while it runs, and counts what arrives at their partners."""

    def __init__(self, talkers: list[Talker], window: int = WINDOW) -> None:
        self._talkers, self._window = talkers, window
        self.arrived = self.sent = 0
        self._running = False

    def start(self) -> None:
        self._running = True
        for talker in self._talkers:
            talker.heard = partial(self._came, talker.partner)
        for talker in self._talkers:
            self._say(talker, self._window)

    def _say(self, talker: Talker, count: int) -> None:
        self.sent += count
        talker.say(count)

    def _came(self, writer: Talker, count: int) -> None:
        self.arrived += count
        if self._running:
            self._say(writer, count)

    async def stop(self) -> None:
        """Let what is on its way arrive. Raises RuntimeError when something doesn't, or was refused."""
        self._running = False
        try:
            async with asyncio.timeout(DRAIN):
                while self.arrived < self.sent:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise RuntimeError(f"{self.sent - self.arrived} of {self.sent} messages didn't arrive") from None
        finally:
            silence(self._talkers)


def silence(talkers: list[Talker]) -> None:
    """Listen no more. Raises RuntimeError when a message was refused or a connection lost."""
    for talker in talkers:
        talker.heard = None
        if talker.refusals or talker.lost:
            raise RuntimeError(f"messages were refused or connections lost: {talker.refusals[:1]}")


async def throughput(bench: Bench, target: Target, talkers: list[Talker]) -> Measured:
    """Messages that arrived each second."""
    exchange = Exchange(talkers)
    exchange.start()
    await asyncio.sleep(bench.warm_up)
    meter, before = Meter(target), exchange.arrived
    await asyncio.sleep(bench.seconds)
    rate, use = (exchange.arrived - before) / meter.seconds, meter.read()
    await exchange.stop()
    return [rate / use.left], use


async def latency(bench: Bench, target: Target, talkers: list[Talker], rate: float) -> Measured:
    """Milliseconds from a user to the partner at that rate of all of them together: p50, p99."""
    clock = Clock()
    for number, talker in enumerate(talkers):
        talker.partner.heard = partial(_heard, clock, number)

    def send(number: int) -> None:
        clock.sent(number % len(talkers))
        talkers[number % len(talkers)].say(1)

    await paced(rate, bench.warm_up, send)
    await settle(clock)
    clock.seconds.clear()
    meter = Meter(target)
    await paced(rate, bench.seconds, send)
    use = meter.read()
    await settle(clock)
    silence(talkers)
    return [clock.percentile(0.5), clock.percentile(0.99)], use


def _heard(clock: Clock, talker: int, count: int) -> None:
    for _ in range(count):
        clock.came(talker)
