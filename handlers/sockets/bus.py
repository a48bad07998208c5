"""The bus: Redis pub/sub between instances. A message is a knock, never the truth: losing one only costs time."""

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

from handlers.metrics import SECONDS, Metrics
from handlers.redis_service import REDIS_ERRORS
from handlers.tasks import Worker, ended

log = structlog.get_logger(__name__)

MessageListener = Callable[[str, bytes], None]  # channel, message

MAX_QUEUED = 20_000  # messages waiting for Redis, 20 MiB at 1 KiB each; beyond this the oldest are dropped
BATCH = 256  # messages in one pipeline
CHANNELS_PER_COMMAND = 1_000  # channels in one command
REDIS_TIMEOUT = 1.0  # seconds for one answer, after which Redis counts as down
PING_SECONDS = 1.0  # of silence before a ping; after three unanswered pings the connection is replaced
RETRY_SECONDS = 0.5  # between attempts to reconnect
ECHO_SECONDS = 5.0  # between messages to ourselves, which measure the latency through Redis


class Bus:
    """Publishes and subscribes. Callers never wait: ``publish`` queues, and one task sends."""

    def __init__(self, redis: Redis, instance_id: UUID, metrics: Metrics) -> None:
        self._redis = redis
        self._own = f"ws:instance:{instance_id}"
        self._listeners: dict[str, MessageListener] = {}
        # Subscriptions that Redis has not confirmed yet. A permanent Event for each would take 700 bytes a user.
        self._unconfirmed: dict[str, asyncio.Event] = {}
        self._queue: deque[tuple[str, bytes, asyncio.Future[int] | None]] = deque()
        self._sender = Worker("bus", self._send)
        self._pubsub: PubSub | None = None
        self._changed: dict[str, None] = {}  # channels to subscribe or unsubscribe at Redis
        self._subscriber = Worker("bus_subscriptions", self._update_subscriptions)
        self.up = False
        self._connections = self._published = self._dropped = 0
        self.on_return: list[Callable[[], None]] = []  # called when the subscriptions are restored after an outage
        self._publish_seconds, self._echo_seconds = self._register_metrics(metrics)

    def _register_metrics(self, metrics: Metrics) -> tuple[Histogram, Histogram]:
        """Register the metrics. Returns the histograms that we observe ourselves."""
        metrics.add_gauge("mimu_redis_up", "1 while the subscriptions to Redis are connected.", lambda: self.up)
        metrics.add_counter(
            "mimu_redis_reconnects_total",
            "Reconnections of the subscriptions to Redis.",
            lambda: max(self._connections - 1, 0),
        )
        metrics.add_gauge("mimu_bus_queue_messages", "Messages that wait for Redis.", lambda: len(self._queue))
        metrics.add_counter(
            "mimu_bus_messages_published_total", "Messages published to Redis.", lambda: self._published
        )
        metrics.add_counter(
            "mimu_bus_messages_dropped_total",
            "Messages that were dropped before Redis accepted them.",
            lambda: self._dropped,
        )
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
        """Send and receive until the block ends; queued messages are sent before."""
        tasks = [asyncio.create_task(work) for work in (self._listen(), self._echo())]
        try:
            async with self._subscriber.running(), self._sender.running():
                try:
                    yield
                finally:
                    await self._flush()
        finally:
            await ended(*tasks)

    async def _flush(self) -> None:
        """Wait until queued messages are sent, at most REDIS_TIMEOUT; don't wait if Redis is away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REDIS_TIMEOUT):
                while self._queue and self.up:
                    await asyncio.sleep(0.01)

    # Out ----------------------------------------------------------------------------------------------------------

    def publish(self, channel: str, message: bytes) -> None:
        """Queue a message. It is lost if Redis is down."""
        self._put(channel, message, None)

    async def publish_counted(self, channel: str, message: bytes) -> int:
        """Publish, and return how many instances received the message; 0 if Redis is down."""
        if not self.up:
            return 0
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._put(channel, message, answer)
        try:
            return await asyncio.wait_for(answer, REDIS_TIMEOUT)
        except TimeoutError:
            return 0

    async def count_subscribers(self, channels: Sequence[str]) -> list[int]:
        """Count the instances that subscribe to each channel. Raises RedisError, OSError, TimeoutError."""
        counts: list[int] = []
        for start in range(0, len(channels), CHANNELS_PER_COMMAND):
            async with asyncio.timeout(REDIS_TIMEOUT):
                answer = await self._redis.pubsub_numsub(*channels[start : start + CHANNELS_PER_COMMAND])
            counts += [int(count) for _, count in answer]
        return counts

    def _put(self, channel: str, message: bytes, answer: asyncio.Future[int] | None) -> None:
        if len(self._queue) >= MAX_QUEUED:
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
            except Exception as error:  # whatever the error, the next batch must be sent
                log.warning("bus_publish_failed", messages=len(batch), cause=type(error).__name__)
                for entry in batch:
                    self._drop(*entry)

    async def _echo(self) -> None:
        """Publish a timestamp to ourselves every ECHO_SECONDS. It takes the path of a frame to another instance, and
        both timestamps come from one clock."""
        while True:
            await asyncio.sleep(ECHO_SECONDS)
            if self.up:
                self.publish(self._own, str(time.monotonic()).encode())

    def _observe_echo(self, _: str, message: bytes) -> None:
        self._echo_seconds.observe(time.monotonic() - float(message))

    # In -----------------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: str, listener: MessageListener) -> None:
        """Subscribe to a channel. Returns when Redis has confirmed it, or at once while Redis is down; then the
        subscription is made when Redis returns."""
        is_subscribed = channel in self._listeners
        self._listeners[channel] = listener
        if not self.up:
            return
        confirmed = self._unconfirmed.get(channel)
        if confirmed is None:
            if is_subscribed:
                return
            confirmed = self._unconfirmed[channel] = asyncio.Event()
            self._mark_changed(channel)
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                await confirmed.wait()
        except TimeoutError:
            log.warning("bus_subscribe_failed")

    def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        self._listeners.pop(channel, None)
        self._unconfirmed.pop(channel, None)
        if self.up:
            self._mark_changed(channel)

    def _mark_changed(self, channel: str) -> None:
        self._changed[channel] = None
        self._subscriber.wake()

    async def _update_subscriptions(self) -> None:
        """Subscribe and unsubscribe at Redis, many channels at a time: thousands of sockets may open or close at once,
        and a subscription that is left over would count as an instance that does not answer."""
        while self._changed and self._pubsub is not None:
            channels = [self._changed.popitem()[0] for _ in range(min(CHANNELS_PER_COMMAND, len(self._changed)))]
            wanted = [channel for channel in channels if channel in self._listeners]
            unwanted = [channel for channel in channels if channel not in self._listeners]
            try:
                async with asyncio.timeout(REDIS_TIMEOUT):
                    if wanted:
                        await self._pubsub.subscribe(*wanted)
                    if unwanted:
                        await self._pubsub.unsubscribe(*unwanted)
            except Exception as error:  # whatever the error, retry
                log.warning("bus_subscriptions_failed", channels=len(channels), cause=type(error).__name__)
                self._changed.update(dict.fromkeys(channels))
                await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        while True:
            try:
                await self._receive()
            except REDIS_ERRORS as error:
                log.warning("bus_down", cause=type(error).__name__)
            except Exception:
                log.exception("bus_failed")
            self.up, self._pubsub = False, None
            await asyncio.sleep(RETRY_SECONDS)

    async def _receive(self) -> None:
        async with contextlib.aclosing(self._redis.pubsub()) as pubsub:
            async with asyncio.timeout(REDIS_TIMEOUT):
                # The first command of a PubSub connects it; two tasks doing so at once would lose messages.
                await pubsub.subscribe(self._own)
            async with asyncio.timeout(10 * REDIS_TIMEOUT):
                self._changed.clear()  # this connection has no subscriptions yet
                channels = list(self._listeners)
                for start in range(0, len(channels), CHANNELS_PER_COMMAND):
                    await pubsub.subscribe(*channels[start : start + CHANNELS_PER_COMMAND])
            self._pubsub, self.up = pubsub, True
            self._connections += 1
            # Channels that changed while the list above was being sent.
            for channel in self._listeners.keys() ^ set(channels):
                self._mark_changed(channel)
            log.info("bus_up", channels=len(channels))
            for callback in self.on_return:
                callback()
            silence = 0
            while True:
                message = await pubsub.get_message(timeout=PING_SECONDS)
                if message is None:
                    silence += 1
                    if silence > 3:
                        raise TimeoutError
                    async with asyncio.timeout(REDIS_TIMEOUT):
                        await pubsub.ping()
                    continue
                silence = 0
                self._dispatch(message)

    def _dispatch(self, message: dict[str, object]) -> None:
        channel = message["channel"]
        name = channel.decode() if isinstance(channel, bytes) else str(channel)
        if message["type"] == "subscribe":
            confirmed = self._unconfirmed.pop(name, None)
            if confirmed is not None:
                confirmed.set()
        elif message["type"] == "message":
            listener, data = self._observe_echo if name == self._own else self._listeners.get(name), message["data"]
            if listener is not None and isinstance(data, bytes):
                try:
                    listener(name, data)
                except Exception:
                    log.exception("bus_listener_failed")
