"""What waits for a user who is away: an offer and its candidates while it rings, an answer and its candidates for a
minute; in Redis, bounded in bytes."""

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
from redis.exceptions import NoScriptError, RedisError

from handlers.sockets.hub import Hub, Peer
from handlers.tasks import Worker
from handlers.wire.shapes import encode
from models import calls
from models.database import Database

log = structlog.get_logger(__name__)

REDIS_TIMEOUT = 1.0  # seconds; a Redis that needs longer counts as away, and then nothing waits
QUEUE, QUEUE_BYTES = 5_000, 16 << 20  # changes not written yet, and their bytes; beyond it the oldest are dropped
BATCH, BATCH_BYTES = 256, 1 << 20  # changes in one pipeline
_AWAY = (RedisError, OSError, TimeoutError)

# What one ring, one user and all users together may let wait. What a frame needs besides its payload is some 400 bytes.
RING_BYTES = 256 * 1024  # payloads of a ring; an offer of 10 KiB and 100 candidates of 600 bytes are 70 KiB
_LIST_BYTES = RING_BYTES + calls.CANDIDATES * 400
SENDER_BYTES = 1 << 20  # of one user's frames, in a minute: a dozen usual rings, or three that are full
STRANGER_BYTES = 1 << 20  # for one user, in a minute: what strangers let wait ...
RECEIVER_BYTES = 2 << 20  # ... and with contacts, who find room when strangers have used up theirs
WINDOW = 60  # seconds; no list lives longer, so that never more waits than what two windows let in
RINGS = 32  # that greet a socket; contacts' come first
GREETING_BYTES = 1 << 20  # that greet a socket; as much as it may have queued

# KEYS: the list, then counters of bytes. ARGV: the frame, the list's time to live (0: only behind what waits already),
# the counters' window, their bounds. Counters only grow, and vanish with their window: what has a bound is how much
# begins to wait within a window, so no end of a call that gets lost can leave one too high.
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
_KEEP_SHA = hashlib.sha1(_KEEP.encode(), usedforsecurity=False).hexdigest()  # by which Redis knows a script


class _Ring(NamedTuple):
    """A list that began here."""

    receiver_bytes: int  # that may wait for its user, this list's among them
    until: float  # monotonic; it is over then at the latest


class _Change(NamedTuple):
    """The begin of a list (``ends`` is its time to live), one more frame of it, or its end (no frame)."""

    name: str
    user_id: UUID | None = None
    key: str = ""
    frame: Mapping[str, Any] | None = None
    ends: int = 0
    size: int = 0


class PendingOffers:
    """Two lists of frames for each call: what rings for its callee, and the answer for its caller.

    Nothing waits for Redis here: what is to be kept is queued, and one task writes it in order. Each frame has a key,
    by which a socket shows it once, whichever way it comes. When a frame is kept it is sent once more, for a socket
    that opened too late for the first time and looked at the list too early.
    """

    def __init__(self, db: Database, redis: Redis, hub: Hub, all_bytes: int) -> None:
        self._db, self._redis, self._hub, self._all_bytes = db, redis, hub, all_bytes
        self._changes: deque[_Change] = deque()
        self._bytes = 0
        self._writer = Worker("calls_waiting", self._write)
        self._rings: dict[str, _Ring] = {}  # lists that began here, and may be there still

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write until the block ends; what is queued then is written first."""
        try:
            async with self._writer.running():
                yield
        finally:
            await self._write()

    def begin(self, call_id: UUID, callee_id: UUID, offer: Mapping[str, Any], *, known: bool) -> None:
        """Keep the offer until its ring is over. ``known`` callers are contacts of the callee."""
        bound = RECEIVER_BYTES if known else STRANGER_BYTES
        self._begin(_offer(call_id), callee_id, bound, calls.RING_SECONDS, str(call_id), offer)

    def begin_answer(self, call_id: UUID, caller_id: UUID, answer: Mapping[str, Any]) -> None:
        """Keep the answer for the caller's sockets that open in the next minute: the one that was open may be of a
        network that has just gone."""
        self._begin(_answer(call_id), caller_id, RECEIVER_BYTES, calls.ANSWER_SECONDS, answer_key(call_id), answer)

    def _begin(self, name: str, user_id: UUID, bound: int, seconds: int, key: str, frame: Mapping[str, Any]) -> None:
        self._rings[name] = _Ring(bound, time.monotonic() + seconds)
        self._put(_Change(name, user_id, key, frame, seconds, _size(frame)))

    def add(self, call_id: UUID, callee_id: UUID, key: str, candidate: Mapping[str, Any]) -> None:
        """Keep a candidate behind its offer; where no offer waits (any more) nothing is kept."""
        self._put(_Change(_offer(call_id), callee_id, key, candidate, size=_size(candidate)))

    def add_to_answer(self, call_id: UUID, caller_id: UUID, key: str, candidate: Mapping[str, Any]) -> None:
        """Keep a candidate behind the answer."""
        self._put(_Change(_answer(call_id), caller_id, key, candidate, size=_size(candidate)))

    def end_ring(self, call_id: UUID) -> None:
        """Drop what rings: the call was answered, or is over."""
        self._end(_offer(call_id))

    def end_answer(self, call_id: UUID) -> None:
        """Drop the answer: the caller has it, or the call is over."""
        self._end(_answer(call_id))

    def ended_elsewhere(self, call_id: UUID, *, answered: bool) -> None:
        """Another instance has dropped what waits. Of a list that began here something may not have been written yet:
        it is dropped after that once more."""
        for name in (_offer(call_id),) if answered else (_offer(call_id), _answer(call_id)):
            if name in self._rings:
                self._end(name)

    def _end(self, name: str) -> None:
        self._rings.pop(name, None)
        self._put(_Change(name))

    def forget_silent(self) -> None:
        """Forget lists whose end nobody told us."""
        now = time.monotonic()
        for name in [name for name, ring in self._rings.items() if ring.until < now]:
            del self._rings[name]

    async def greet(self, peer: Peer) -> None:
        """Send a socket that has opened in time what waits for its user: answers to their own calls, then the offers,
        each with its candidates in order; no faster than the client reads."""
        room = GREETING_BYTES
        for call_id, offer in await calls.waiting_for(self._db, peer.session.user_id, RINGS):
            name = _offer(call_id) if offer else _answer(call_id)
            try:
                async with asyncio.timeout(REDIS_TIMEOUT):
                    kept: list[bytes] = await self._redis.lrange(name, 0, -1)  # type: ignore[assignment]
            except _AWAY as error:
                log.warning("waiting_not_read", cause=type(error).__name__)
                return
            for entry in kept:
                room -= len(entry)
                if room < 0 or not await peer.wait_until_drained():
                    return
                key, _, frame = entry.partition(b"\n")
                peer.send(orjson.loads(frame), key.decode())

    def _put(self, change: _Change) -> None:
        self._changes.append(change)
        self._bytes += change.size
        while len(self._changes) > QUEUE or self._bytes > QUEUE_BYTES:
            self._next()
            log.warning("waiting_dropped")
        self._writer.wake()

    def _next(self) -> _Change:
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
        except Exception as error:  # whatever it is, the next batch must go
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

    async def _keep(self, batch: Sequence[_Change]) -> list[Any]:
        """Have Redis make the changes; its answer to each, 1 for a frame that it keeps."""
        for _ in range(2):
            pipeline = self._redis.pipeline(transaction=False)
            for change in batch:
                if change.frame is None:
                    pipeline.delete(change.name)
                    continue
                entry: Any = change.key.encode() + b"\n" + encode(change.frame)  # redis-py's stubs know only str
                counters = self._counters(change)
                names, bounds = [change.name, *counters], counters.values()
                pipeline.evalsha(_KEEP_SHA, len(names), *names, entry, change.ends, WINDOW, *bounds)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            if not any(isinstance(answer, NoScriptError) for answer in answers):
                break
            await self._redis.script_load(_KEEP)  # Redis has started anew; nothing was kept
        return answers

    def _counters(self, change: _Change) -> dict[str, int]:
        """The counters that a frame goes into, with the bound of each. Who is a contact is known where the ring began;
        a candidate that came to another instance counts as a stranger's."""
        assert change.frame is not None
        ring = self._rings.get(change.name)
        return {
            f"call:bytes:{change.name}": _LIST_BYTES,
            f"call:bytes:from:{change.frame['from_user_id']}": SENDER_BYTES,
            f"call:bytes:for:{change.user_id}": ring.receiver_bytes if ring else STRANGER_BYTES,
            "call:bytes": self._all_bytes,
        }


def _size(frame: Mapping[str, Any]) -> int:
    return len(frame["encrypted_payload"]) + 400


def answer_key(call_id: UUID) -> str:
    """The key by which a socket gets an answer once."""
    return f"{call_id}/answer"


def _offer(call_id: UUID) -> str:
    return f"call:waiting:{call_id}"


def _answer(call_id: UUID) -> str:
    return f"call:answer:{call_id}"
