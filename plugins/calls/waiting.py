"""What waits for a callee who is away: the offer and the caller's candidates, in Redis for the rest of the ring."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from handlers.hub import Peer
from handlers.shapes import encode
from models import calls
from models.database import Database

log = structlog.get_logger(__name__)

PATIENCE = 1.0  # seconds; a Redis that needs longer counts as away, and then nothing waits
_AWAY = (RedisError, OSError, TimeoutError)


class Waiting:
    """A list of frames for each ringing call, which ends with the ring. Each frame has a key, by which a socket that
    gets it in two ways shows it once."""

    def __init__(self, db: Database, redis: Redis) -> None:
        self._db, self._redis = db, redis

    @staticmethod
    def _list(call_id: UUID) -> str:
        return f"call:waiting:{call_id}"

    async def begin(self, call_id: UUID, key: str, offer: Mapping[str, Any]) -> None:
        """Keep the offer until its ring is over."""
        try:
            async with asyncio.timeout(PATIENCE):
                pipeline = self._redis.pipeline(transaction=True)
                pipeline.rpush(self._list(call_id), _entry(key, offer))
                pipeline.expire(self._list(call_id), calls.RING_SECONDS)
                await pipeline.execute()
        except _AWAY as error:
            log.warning("offer_not_kept", cause=type(error).__name__)

    async def add(self, call_id: UUID, key: str, candidate: Mapping[str, Any]) -> None:
        """Keep a candidate behind its offer; where no offer waits (any more) nothing is kept."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._redis.rpushx(self._list(call_id), _entry(key, candidate))  # type: ignore[arg-type]  # str in its stubs
        except _AWAY as error:
            log.warning("candidate_not_kept", cause=type(error).__name__)

    async def end(self, call_id: UUID) -> None:
        """Drop what waits: the call was answered, or is over."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._redis.delete(self._list(call_id))
        except _AWAY as error:
            log.warning("waiting_not_dropped", cause=type(error).__name__)  # it ends with the ring

    async def greet(self, peer: Peer) -> None:
        """Ring a socket that its user has opened in time: the offers, each with its candidates in order."""
        for call_id in await calls.ringing_for(self._db, peer.session.user_id):
            async with asyncio.timeout(PATIENCE):
                kept: list[bytes] = await self._redis.lrange(self._list(call_id), 0, -1)  # type: ignore[assignment]
            for entry in kept:
                key, _, frame = entry.partition(b"\n")
                peer.send(orjson.loads(frame), key.decode())


def _entry(key: str, frame: Mapping[str, Any]) -> bytes:
    return key.encode() + b"\n" + encode(frame)
