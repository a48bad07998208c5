"""The bus: Redis pub/sub between instances. What is said on it is a knock, never the truth; losing it loses speed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from uuid import UUID

import structlog
from prometheus_client import Histogram
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from handlers.metrics import SECONDS, Metrics
from handlers.tasks import Worker, ended

log = structlog.get_logger(__name__)

Listener = Callable[[str, bytes], None]  # channel, message

QUEUE = 20_000  # messages waiting for Redis; at 1 KiB each that is 20 MiB, and beyond it the oldest are dropped
BATCH = 256  # messages in one pipeline
SUBSCRIPTIONS = 1_000  # channels in one command
REDIS_TIMEOUT = 1.0  # seconds Redis may take for one answer before it counts as away
PING = 1.0  # seconds of silence after which the subscription is probed; three of them and it is made anew
RETRY = 0.5  # seconds between attempts to come back
ECHO = 5.0  # seconds between messages to ourselves, by which the way over Redis is measured
_GONE = (RedisError, OSError, TimeoutError)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    """A client of Redis until the block ends; it connects when it is first asked, and again when it has to.

    No retries inside the client: whoever asks decides what a Redis that is away means. And no notifications of
    maintenance, which only Redis's own cloud sends: with them the client takes connections for good that a Redis closed
    when it died, and what is said first after its return is lost.
    """
    redis = Redis.from_url(
        url,
        socket_connect_timeout=1,
        socket_timeout=2,
        retry=Retry(NoBackoff(), 0),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    try:
        yield redis
    finally:
        await redis.aclose()


class Bus:
    """Publishes and subscribes. Local code never waits for it: publishing queues, and one task sends."""

    def __init__(self, redis: Redis, instance_id: UUID, metrics: Metrics) -> None:
        self._redis = redis
        self._own = f"ws:instance:{instance_id}"
        self._listeners: dict[str, Listener] = {}
        # Channels that were asked for and are not confirmed yet. An Event each for good would be 700 bytes a user.
        self._unconfirmed: dict[str, asyncio.Event] = {}
        self._queue: deque[tuple[str, bytes, asyncio.Future[int] | None]] = deque()
        self._sender = Worker("bus", self._send)
        self._pubsub: PubSub | None = None
        self._changed: dict[str, None] = {}  # channels of which Redis is to be told whether they are wanted
        self._speaker = Worker("bus_subscriptions", self._speak)
        self.up = False
        self._ups = self._published = self._dropped = 0
        self.on_return: list[Callable[[], None]] = []  # called when the subscriptions are back after an outage
        self._publish_seconds, self._echo_seconds = self._counted(metrics)

    def _counted(self, metrics: Metrics) -> tuple[Histogram, Histogram]:
        """Have counted what happens here; how long it takes is for us to observe."""
        metrics.shows("mimu_redis_up", "Whether the subscriptions to Redis stand.", lambda: self.up)
        metrics.counts("mimu_redis_reconnects_total", "Times they came back.", lambda: max(self._ups - 1, 0))
        metrics.shows("mimu_bus_queue_messages", "Messages that wait for Redis.", lambda: len(self._queue))
        metrics.counts("mimu_bus_messages_published_total", "Messages that Redis took.", lambda: self._published)
        metrics.counts("mimu_bus_messages_dropped_total", "Messages that Redis never got.", lambda: self._dropped)
        published = Histogram(
            "mimu_redis_publish_duration_seconds",
            "Time of one command to Redis, with up to 256 messages for other instances.",
            buckets=SECONDS,
            registry=metrics.registry,
        )
        echoed = Histogram(
            "mimu_bus_echo_duration_seconds",
            "Time of a message to ourselves over Redis, as other instances have to wait for one.",
            buckets=SECONDS,
            registry=metrics.registry,
        )
        return published, echoed

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep both directions going until the block ends; what is queued is sent first."""
        tasks = [asyncio.create_task(work) for work in (self._listen(), self._echo())]
        try:
            async with self._speaker.running(), self._sender.running():
                try:
                    yield
                finally:
                    await self._sent()
        finally:
            await ended(*tasks)

    async def _sent(self) -> None:
        """Give what is queued a moment to be sent, unless Redis is away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REDIS_TIMEOUT):
                while self._queue and self.up:
                    await asyncio.sleep(0.01)

    # Out ----------------------------------------------------------------------------------------------------------

    def publish(self, channel: str, message: bytes) -> None:
        """Queue a message; it is lost when Redis is away."""
        self._put(channel, message, None)

    async def publish_counted(self, channel: str, message: bytes) -> int:
        """Publish and say how many instances took it; 0 when Redis is away."""
        if not self.up:
            return 0
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._put(channel, message, answer)
        try:
            return await asyncio.wait_for(answer, REDIS_TIMEOUT)
        except TimeoutError:
            return 0

    async def subscribers(self, channels: Sequence[str]) -> list[int]:
        """How many instances hear each channel. Raises RedisError, OSError or TimeoutError when Redis is away."""
        counts: list[int] = []
        for start in range(0, len(channels), SUBSCRIPTIONS):
            async with asyncio.timeout(REDIS_TIMEOUT):
                answer = await self._redis.pubsub_numsub(*channels[start : start + SUBSCRIPTIONS])
            counts += [int(count) for _, count in answer]
        return counts

    def _put(self, channel: str, message: bytes, answer: asyncio.Future[int] | None) -> None:
        if len(self._queue) >= QUEUE:
            self._drop(*self._queue.popleft())
        self._queue.append((channel, message, answer))
        self._sender.wake()

    def _drop(self, _: str, __: bytes, answer: asyncio.Future[int] | None) -> None:
        self._dropped += 1
        if answer is not None and not answer.done():
            answer.set_result(0)

    async def _send(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            try:
                began = time.monotonic()
                pipeline = self._redis.pipeline(transaction=False)
                for channel, message, _ in batch:
                    pipeline.publish(channel, message)
                async with asyncio.timeout(REDIS_TIMEOUT):
                    counts = await pipeline.execute()
                self._publish_seconds.observe(time.monotonic() - began)
                self._published += len(batch)
                for (_, _, answer), count in zip(batch, counts, strict=True):
                    if answer is not None and not answer.done():
                        answer.set_result(int(count))
            except Exception as error:  # whatever it is, the next batch must go
                log.warning("bus_publish_failed", messages=len(batch), cause=type(error).__name__)
                for entry in batch:
                    self._drop(*entry)

    async def _echo(self) -> None:
        """Say something to ourselves from time to time. Its way is that of a frame to another instance, and its
        clock is one."""
        while True:
            await asyncio.sleep(ECHO)
            if self.up:
                self.publish(self._own, str(time.monotonic()).encode())

    def _echoed(self, _: str, message: bytes) -> None:
        self._echo_seconds.observe(time.monotonic() - float(message))

    # In -----------------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: str, listener: Listener) -> None:
        """Hear a channel. Returns when Redis has confirmed it, or at once while Redis is away: the subscription is
        then made when it returns."""
        known = channel in self._listeners
        self._listeners[channel] = listener
        if not self.up:
            return
        confirmed = self._unconfirmed.get(channel)
        if confirmed is None:
            if known:
                return
            confirmed = self._unconfirmed[channel] = asyncio.Event()
            self._change(channel)
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                await confirmed.wait()
        except TimeoutError:
            log.warning("bus_subscribe_failed")

    def unsubscribe(self, channel: str) -> None:
        """Hear a channel no more."""
        self._listeners.pop(channel, None)
        self._unconfirmed.pop(channel, None)
        if self.up:
            self._change(channel)

    def _change(self, channel: str) -> None:
        self._changed[channel] = None
        self._speaker.wake()

    async def _speak(self) -> None:
        """Tell Redis which channels are wanted and which are no more, many at a time: thousands of sockets may come or
        go at once, and a subscription that stayed behind would count as an instance that does not answer."""
        while self._changed and self._pubsub is not None:
            channels = [self._changed.popitem()[0] for _ in range(min(SUBSCRIPTIONS, len(self._changed)))]
            wanted = [channel for channel in channels if channel in self._listeners]
            unwanted = [channel for channel in channels if channel not in self._listeners]
            try:
                async with asyncio.timeout(REDIS_TIMEOUT):
                    if wanted:
                        await self._pubsub.subscribe(*wanted)
                    if unwanted:
                        await self._pubsub.unsubscribe(*unwanted)
            except Exception as error:  # whatever it is, they are tried again
                log.warning("bus_subscriptions_failed", channels=len(channels), cause=type(error).__name__)
                self._changed.update(dict.fromkeys(channels))
                await asyncio.sleep(RETRY)

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear()
            except _GONE as error:
                log.warning("bus_down", cause=type(error).__name__)
            except Exception:
                log.exception("bus_failed")
            self.up, self._pubsub = False, None
            await asyncio.sleep(RETRY)

    async def _hear(self) -> None:
        async with contextlib.aclosing(self._redis.pubsub()) as pubsub:
            async with asyncio.timeout(REDIS_TIMEOUT):
                # The first use of a PubSub makes its connection; a second task doing the same would lose frames.
                await pubsub.subscribe(self._own)
            async with asyncio.timeout(10 * REDIS_TIMEOUT):
                self._changed.clear()  # this connection has no subscriptions yet
                channels = list(self._listeners)
                for start in range(0, len(channels), SUBSCRIPTIONS):
                    await pubsub.subscribe(*channels[start : start + SUBSCRIPTIONS])
            self._pubsub, self.up = pubsub, True
            self._ups += 1
            # Who came or went while the list above was being sent.
            for channel in self._listeners.keys() ^ set(channels):
                self._change(channel)
            log.info("bus_up", channels=len(channels))
            for back in self.on_return:
                back()
            silence = 0
            while True:
                message = await pubsub.get_message(timeout=PING)
                if message is None:
                    silence += 1
                    if silence > 3:
                        raise TimeoutError
                    async with asyncio.timeout(REDIS_TIMEOUT):
                        await pubsub.ping()
                    continue
                silence = 0
                self._take(message)

    def _take(self, message: dict[str, object]) -> None:
        channel = message["channel"]
        name = channel.decode() if isinstance(channel, bytes) else str(channel)
        if message["type"] == "subscribe":
            confirmed = self._unconfirmed.pop(name, None)
            if confirmed is not None:
                confirmed.set()
        elif message["type"] == "message":
            listener, data = self._echoed if name == self._own else self._listeners.get(name), message["data"]
            if listener is not None and isinstance(data, bytes):
                try:
                    listener(name, data)
                except Exception:
                    log.exception("bus_listener_failed")
