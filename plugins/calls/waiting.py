"""What waits for a callee who is away: the offer and the caller's candidates, in Redis for the rest of the ring."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from handlers.hub import Hub, Peer
from handlers.shapes import encode
from handlers.tasks import ended
from models import calls
from models.database import Database

log = structlog.get_logger(__name__)

PATIENCE = 1.0  # seconds; a Redis that needs longer counts as away, and then nothing waits
QUEUE = 5_000  # changes not written yet; at 4 KiB each that is 20 MiB, and beyond it the oldest are dropped
BATCH = 256  # changes in one pipeline
_AWAY = (RedisError, OSError, TimeoutError)


class _Change(NamedTuple):
    """The begin of a list (``ends`` is its time to live), one more frame of it, or its end (no frame)."""

    call_id: UUID
    user_id: UUID | None = None
    key: str = ""
    frame: Mapping[str, Any] | None = None
    ends: int | None = None


class Waiting:
    """A list of frames for each ringing call, which ends with the ring.

    Nobody waits for Redis here: what is to be kept is queued, and one task writes it in order. Each frame has a key, by
    which a socket shows it once, whichever way it comes. When a frame is kept it is sent once more, for a socket that
    opened too late for the first time and looked at the list too early.
    """

    def __init__(self, db: Database, redis: Redis, hub: Hub) -> None:
        self._db, self._redis, self._hub = db, redis, hub
        self._changes: deque[_Change] = deque()
        self._wake = asyncio.Event()
        self._rings: dict[
            UUID, float
        ] = {}  # the calls that began here and ring still; until when at the most, monotonic

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write until the block ends; what is queued then is written first."""
        writer = asyncio.create_task(self._write())
        try:
            yield
        finally:
            await ended(writer)
            while self._changes:
                await self._flush()

    def begin(self, call_id: UUID, callee_id: UUID, offer: Mapping[str, Any]) -> None:
        """Keep the offer until its ring is over."""
        self._rings[call_id] = time.monotonic() + calls.RING_SECONDS
        self._put(_Change(call_id, callee_id, str(call_id), offer, calls.RING_SECONDS))

    def add(self, call_id: UUID, callee_id: UUID, key: str, candidate: Mapping[str, Any]) -> None:
        """Keep a candidate behind its offer; where no offer waits (any more) nothing is kept."""
        self._put(_Change(call_id, callee_id, key, candidate))

    def end(self, call_id: UUID) -> None:
        """Drop what waits: the call was answered, or is over."""
        self._rings.pop(call_id, None)
        self._put(_Change(call_id))

    def ended_elsewhere(self, call_id: UUID) -> None:
        """Another instance has dropped what waits. Of a call that began here something may not have been written yet:
        it is dropped after that once more."""
        if call_id in self._rings:
            self.end(call_id)

    def forget_silent(self) -> None:
        """Forget rings whose end nobody told us."""
        now = time.monotonic()
        for call_id in [call_id for call_id, until in self._rings.items() if until < now]:
            del self._rings[call_id]

    async def greet(self, peer: Peer) -> None:
        """Ring a socket that its user has opened in time: the offers, each with its candidates in order."""
        for call_id in await calls.ringing_for(self._db, peer.session.user_id):
            try:
                async with asyncio.timeout(PATIENCE):
                    kept: list[bytes] = await self._redis.lrange(_list(call_id), 0, -1)  # type: ignore[assignment]
            except _AWAY as error:
                log.warning("waiting_not_read", cause=type(error).__name__)
                return
            for entry in kept:
                key, _, frame = entry.partition(b"\n")
                peer.send(orjson.loads(frame), key.decode())

    def _put(self, change: _Change) -> None:
        if len(self._changes) >= QUEUE:
            self._changes.popleft()
            log.warning("waiting_dropped")
        self._changes.append(change)
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changes:
                await self._flush()

    async def _flush(self) -> None:
        batch = [self._changes.popleft() for _ in range(min(BATCH, len(self._changes)))]
        pipeline = self._redis.pipeline(transaction=False)
        for change in batch:
            _write(pipeline, change)
        try:
            async with asyncio.timeout(PATIENCE):
                await pipeline.execute()
        except Exception as error:  # whatever it is, the next batch must go
            log.warning("waiting_not_kept", changes=len(batch), cause=type(error).__name__)
            return
        for change in batch:
            if change.call_id in self._rings and change.user_id is not None and change.frame is not None:
                self._hub.send(change.user_id, change.frame, key=change.key)


def _write(pipeline: Pipeline, change: _Change) -> None:
    name = _list(change.call_id)
    if change.frame is None:
        pipeline.delete(name)
        return
    entry: Any = change.key.encode() + b"\n" + encode(change.frame)  # redis-py's stubs know only str
    if change.ends is None:
        pipeline.rpushx(name, entry)
    else:
        pipeline.rpush(name, entry)
        pipeline.expire(name, change.ends)


def _list(call_id: UUID) -> str:
    return f"call:waiting:{call_id}"
