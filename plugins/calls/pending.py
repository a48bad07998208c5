"""Pending call frames in Redis for users without an open socket: an offer with its candidates while it rings, an answer
with its candidates for a minute. Bounded in bytes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from handlers.redis_service import REDIS_ERRORS
from handlers.sockets.hub import Hub, Peer
from handlers.tasks import Worker
from handlers.wire.shapes import encode
from models import calls
from models.database import Database

log = structlog.get_logger(__name__)

REDIS_TIMEOUT = 1.0  # seconds; a slower Redis counts as away, and then no frames are stored
QUEUE, QUEUE_BYTES = (
    5_000,
    16 << 20,
)  # changes that are not written yet, and their bytes; the oldest beyond it are dropped
BATCH, BATCH_BYTES = 256, 1 << 20  # changes in one pipeline

# Bytes that one ring, one user and all users together may store. A frame takes some 400 bytes besides its payload.
RING_BYTES = 256 * 1024  # payloads of a ring; an offer of 10 KiB and 100 candidates of 600 bytes are 70 KiB
MAX_LIST_BYTES = RING_BYTES + calls.MAX_CANDIDATES * 400
SENDER_BYTES = 1 << 20  # from one user, in a minute: a dozen usual rings, or three that are full
STRANGER_BYTES = 1 << 20  # for one user, in a minute, from strangers ...
RECEIVER_BYTES = 2 << 20  # ... and with contacts, who still have room when strangers have used up theirs
WINDOW_SECONDS = 60  # no list lives longer, so at most the bytes of two windows are stored
MAX_RINGS = 32  # sent to a new socket; those of contacts come first
GREETING_BYTES = 1 << 20  # sent to a new socket; as much as its queue holds

# KEYS: the list, then counters of bytes. ARGV: the frame, the list's time to live (0: only append to an existing list),
# the counters' window, their bounds. Counters only grow, and expire with their window: they bound the bytes that are
# added within a window, so a lost end of a call can't leave a counter too high.
_KEEP = """
local size, ends = #ARGV[1], tonumber(ARGV[2])
if ends == 0 and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for n = 2, #KEYS do
  if tonumber(redis.call('GET', KEYS[n]) or 0) + size > tonumber(ARGV[n + 2]) then return 0 end
end
for n = 2, #KEYS do
  if redis.call('INCRBY', KEYS[n], size) == size then redis.call('EXPIRE', KEYS[n], ARGV[3]) end
end
redis.call('RPUSH', KEYS[1], ARGV[1])
if ends > 0 then redis.call('EXPIRE', KEYS[1], ends) end
return 1
"""
_KEEP_SHA = hashlib.sha1(_KEEP.encode(), usedforsecurity=False).hexdigest()  # the name of the script in Redis


class _OpenList(NamedTuple):
    """A list that this instance has begun."""

    receiver_bytes: int  # bound of the bytes for its user, including this list
    until: float  # monotonic; its latest end


class _ListChange(NamedTuple):
    """The begin of a list (``ends`` is its time to live in seconds), one more frame of it, or its end (no frame)."""

    name: str
    user_id: UUID | None = None
    key: str = ""
    frame: Mapping[str, Any] | None = None
    ends: int = 0
    size: int = 0


class PendingOffers:
    """Stores two lists of frames for each call: the offer for its callee, and the answer for its caller.

    Callers don't wait for Redis: changes are queued, and one task writes them in order. Each frame has a key, so that a
    socket sends it only once. A stored frame is sent again, for a socket that opened after the first time and read the
    list too early.
    """

    def __init__(self, db: Database, redis: Redis, hub: Hub, all_bytes: int) -> None:
        self._db, self._redis, self._hub, self._all_bytes = db, redis, hub, all_bytes
        self._changes: deque[_ListChange] = deque()
        self._bytes = 0
        self._writer = Worker("calls_waiting", self._write)
        self._rings: dict[str, _OpenList] = {}  # lists that this instance has begun, and that may still exist

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write until the block ends; then write the rest of the queue."""
        try:
            async with self._writer.running():
                yield
        finally:
            await self._write()

    def begin(self, call_id: UUID, callee_id: UUID, offer: Mapping[str, Any], *, contact: bool) -> None:
        """Store an offer until its ring is over. ``contact``: the caller is a contact of the callee."""
        bound = RECEIVER_BYTES if contact else STRANGER_BYTES
        self._begin(_offer(call_id), callee_id, bound, calls.RING_SECONDS, str(call_id), offer)

    def begin_answer(self, call_id: UUID, caller_id: UUID, answer: Mapping[str, Any]) -> None:
        """Store an answer for sockets of the caller that open in the next minute: the open one may belong to a network
        that has just gone."""
        self._begin(_answer(call_id), caller_id, RECEIVER_BYTES, calls.ANSWER_SECONDS, answer_key(call_id), answer)

    def _begin(self, name: str, user_id: UUID, bound: int, seconds: int, key: str, frame: Mapping[str, Any]) -> None:
        self._rings[name] = _OpenList(bound, time.monotonic() + seconds)
        self._put(_ListChange(name, user_id, key, frame, seconds, _size(frame)))

    def add(self, call_id: UUID, callee_id: UUID, key: str, candidate: Mapping[str, Any]) -> None:
        """Store a candidate after its offer; does nothing if the offer is not stored (any more)."""
        self._put(_ListChange(_offer(call_id), callee_id, key, candidate, size=_size(candidate)))

    def add_to_answer(self, call_id: UUID, caller_id: UUID, key: str, candidate: Mapping[str, Any]) -> None:
        """Store a candidate after the answer."""
        self._put(_ListChange(_answer(call_id), caller_id, key, candidate, size=_size(candidate)))

    def end_ring(self, call_id: UUID) -> None:
        """Drop the offer: the call was answered or has ended."""
        self._end(_offer(call_id))

    def end_answer(self, call_id: UUID) -> None:
        """Drop the answer: the caller has it, or the call has ended."""
        self._end(_answer(call_id))

    def ended_elsewhere(self, call_id: UUID, *, answered: bool) -> None:
        """Drop lists that another instance has dropped, if they began here: their frames may still be in this
        instance's queue, and be written after that."""
        for name in (_offer(call_id),) if answered else (_offer(call_id), _answer(call_id)):
            if name in self._rings:
                self._end(name)

    def _end(self, name: str) -> None:
        self._rings.pop(name, None)
        self._put(_ListChange(name))

    def forget_stale(self) -> None:
        """Forget lists that have expired."""
        now = time.monotonic()
        for name in [name for name, ring in self._rings.items() if ring.until < now]:
            del self._rings[name]

    async def greet(self, peer: Peer) -> None:
        """Send a new socket the frames that wait for its user: answers to their own calls, then offers, each with its
        candidates in order, no faster than the client reads."""
        room = GREETING_BYTES
        for call_id, offer in await calls.list_pending(self._db, peer.session.user_id, MAX_RINGS):
            name = _offer(call_id) if offer else _answer(call_id)
            try:
                async with asyncio.timeout(REDIS_TIMEOUT):
                    kept: list[bytes] = await self._redis.lrange(name, 0, -1)  # type: ignore[assignment]
            except REDIS_ERRORS as error:
                log.warning("waiting_not_read", cause=type(error).__name__)
                return
            for entry in kept:
                room -= len(entry)
                if room < 0 or not await peer.wait_until_drained():
                    return
                key, _, frame = entry.partition(b"\n")
                peer.send(orjson.loads(frame), key.decode())

    def _put(self, change: _ListChange) -> None:
        self._changes.append(change)
        self._bytes += change.size
        while len(self._changes) > QUEUE or self._bytes > QUEUE_BYTES:
            self._next()
            log.warning("waiting_dropped")
        self._writer.wake()

    def _next(self) -> _ListChange:
        change = self._changes.popleft()
        self._bytes -= change.size
        return change

    async def _write(self) -> None:
        while self._changes:
            await self._flush()

    async def _flush(self) -> None:
        batch, size = [self._next()], 0
        while self._changes and len(batch) < BATCH and size + self._changes[0].size <= BATCH_BYTES:
            batch.append(self._next())
            size += batch[-1].size
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                answers = await self._keep(batch)
        except Exception as error:  # any error: the next batch must be written
            log.warning("waiting_not_kept", changes=len(batch), cause=type(error).__name__)
            return
        refused = 0
        for change, answer in zip(batch, answers, strict=True):
            if change.frame is None or change.user_id is None:
                continue
            refused += isinstance(answer, Exception)
            if answer == 1 and change.name in self._rings:
                self._hub.send(change.user_id, change.frame, key=change.key)
        if refused:
            log.warning("waiting_not_kept", changes=refused, cause="refused")

    async def _keep(self, batch: Sequence[_ListChange]) -> list[Any]:
        """Write changes to Redis. Returns its reply to each, 1 for a frame that it has stored."""
        for _ in range(2):
            pipeline = self._redis.pipeline(transaction=False)
            for change in batch:
                if change.frame is None:
                    pipeline.delete(change.name)
                    continue
                entry: Any = change.key.encode() + b"\n" + encode(change.frame)  # redis-py's stubs know only str
                counters = self._counters(change)
                names, bounds = [change.name, *counters], counters.values()
                pipeline.evalsha(_KEEP_SHA, len(names), *names, entry, change.ends, WINDOW_SECONDS, *bounds)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            if not any(isinstance(answer, NoScriptError) for answer in answers):
                break
            await self._redis.script_load(_KEEP)  # Redis has restarted; no frame was stored
        return answers

    def _counters(self, change: _ListChange) -> dict[str, int]:
        """The counters of a frame, each with its bound. Only the instance where the ring began knows if the caller is a
        contact; candidates on other instances count as a stranger's."""
        assert change.frame is not None
        ring = self._rings.get(change.name)
        return {
            f"call:bytes:{change.name}": MAX_LIST_BYTES,
            f"call:bytes:from:{change.frame['from_user_id']}": SENDER_BYTES,
            f"call:bytes:for:{change.user_id}": ring.receiver_bytes if ring else STRANGER_BYTES,
            "call:bytes": self._all_bytes,
        }


def _size(frame: Mapping[str, Any]) -> int:
    return len(frame["encrypted_payload"]) + 400


def answer_key(call_id: UUID) -> str:
    """The key of an answer, so that a socket sends it only once."""
    return f"{call_id}/answer"


def _offer(call_id: UUID) -> str:
    return f"call:waiting:{call_id}"


def _answer(call_id: UUID) -> str:
    return f"call:answer:{call_id}"
