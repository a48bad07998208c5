"""The bus with a real Redis: its subscriptions match ours, even if thousands change at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from handlers.metrics import Metrics
from handlers.sockets.bus import Bus
from tests.running import Place, Services, place
from tests.waiting import WAIT, until

CHANNELS = [f"ws:user:{number}" for number in range(40_000)]  # enough to keep a loop busy for longer than its patience


@contextlib.asynccontextmanager
async def on(where: Place) -> AsyncIterator[tuple[Bus, Redis]]:
    async with Redis.from_url(where.redis) as redis, Redis.from_url(where.redis) as asking:
        bus = Bus(redis, uuid4(), Metrics())
        async with bus.running():
            await until(lambda: bus.up)
            yield bus, asking


async def heard(redis: Redis, expected: int) -> None:
    """Wait until Redis has so many subscriptions to users' channels."""
    async with asyncio.timeout(WAIT):
        while len(await redis.pubsub_channels("ws:user:*")) != expected:
            await asyncio.sleep(0.05)


def nothing(_: str, __: bytes) -> None:
    """A listener that ignores messages."""


def test_no_subscription_stays_behind_when_thousands_go_at_once(services: Services) -> None:
    async def come_and_go() -> None:
        async with place(services) as where, on(where) as (bus, redis):
            await asyncio.gather(*(bus.subscribe(channel, nothing) for channel in CHANNELS))
            await heard(redis, len(CHANNELS))
            for channel in CHANNELS:
                bus.unsubscribe(channel)
            await heard(redis, 0)

    asyncio.run(come_and_go())


def test_a_user_who_reconnects_at_once_is_subscribed(services: Services) -> None:
    async def come_and_go() -> None:
        async with place(services) as where, on(where) as (bus, redis):
            came: list[bytes] = []
            for number in range(50):
                await bus.subscribe("ws:user:one", lambda _, message: came.append(message))
                await redis.publish("ws:user:one", b"%d" % number)
                async with asyncio.timeout(WAIT):
                    while not came or came[-1] != b"%d" % number:
                        await asyncio.sleep(0.001)
                bus.unsubscribe("ws:user:one")
                if number % 3:  # let Redis hear of it, or not
                    await asyncio.sleep(0.001)
            await heard(redis, 0)

    asyncio.run(come_and_go())


def test_subscriptions_that_changed_while_redis_was_down_are_repaired(services: Services) -> None:
    async def come_and_go() -> None:
        async with place(services) as where, on(where) as (bus, redis):
            for channel in CHANNELS[:100]:
                await bus.subscribe(channel, nothing)
            own = next(client for client in await redis.client_list() if int(client["sub"]) > 0)
            await redis.client_kill(own["addr"])
            while bus.up:
                await asyncio.sleep(0.01)
            for channel in CHANNELS[:50]:
                bus.unsubscribe(channel)
            for channel in CHANNELS[100:200]:
                await bus.subscribe(channel, nothing)
            await heard(redis, 150)

    asyncio.run(come_and_go())


def test_of_more_messages_than_may_wait_the_oldest_are_dropped(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.sockets.bus.MAX_QUEUED", 2)

    async def flood() -> None:
        async with place(services) as where, on(where) as (bus, _):
            came: list[bytes] = []
            await bus.subscribe("ws:user:one", lambda _, message: came.append(message))
            counted = asyncio.create_task(bus.publish_counted("ws:user:one", b"0"))
            await asyncio.sleep(0)  # it waits in the queue, and nothing was sent yet
            for number in range(1, 4):
                bus.publish("ws:user:one", b"%d" % number)
            assert await counted == 0
            await until(lambda: len(came) >= 2)
            assert came == [b"2", b"3"]

    asyncio.run(flood())
