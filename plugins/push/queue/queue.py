"""The queue: what is to be pushed, in Redis, so that it outlives this process and is sent by one instance only.

What happened waits in a sorted set until it is due, each thing under its key. Then it goes through streams, which
instances read as one group: to be judged, and from there to the provider of each device. An entry that an instance took
and did not finish is taken over by another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from config import channels
from config.reasons import redis_code
from handlers.tasks import Worker, ended
from plugins.push.queue import scripts
from plugins.push.queue.jobs import Job

log = structlog.get_logger(__name__)

GROUP = "push"
LATER, JOBS, POISON = "push:later", "push:later:jobs", "push:poison"
JUDGE, JUDGE_NOW = "push:judge", channels.PUSH_NOW
MOST = 50_000  # jobs that wait, and in each stream; a job has at most 512 bytes (scripts.py), so that is 25 MB
OF_USER = 500  # jobs of one user that wait: one for each chat, and for a device what its provider didn't take
POISONED = 1_000  # entries that are kept for somebody to look at
DELAY, CALM, LONGEST = 1_000, 5, 600_000  # ms a message waits; pushes before it waits longer; ms it waits at most
LIFE = 25 * 3600  # seconds that is remembered of a user; a job lives for 24 hours
RING = 180  # seconds that is remembered of a ring; it lasts for 60, and may be told of 60 later
DUE = 500  # jobs that come due in one step
BATCH = 64  # entries that are ended in one step
BLOCK = 1_000  # ms that a read waits for an entry; less than the client's timeout
REDIS_TIMEOUT = 1.0  # seconds after which Redis counts as away

Away = (RedisError, OSError, TimeoutError)


class Entry(NamedTuple):
    """What was read from a stream."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]


class Raised(NamedTuple):
    """Something that happened in a chat (or in none) to a user."""

    job: Job
    chat_id: UUID | None


class Decision(NamedTuple):
    """That a user is pushed, or not, of the messages of a chat up to a seq."""

    user_id: UUID
    chat_id: UUID
    seq: int
    pushed: bool


class Settled(NamedTuple):
    """What follows from an entry: jobs for streams, jobs that are due at some ms, and what was decided of a chat."""

    entry: Entry
    puts: Sequence[tuple[str, Job]] = ()
    later: Sequence[tuple[int, Job]] = ()
    decided: Sequence[Decision] = ()


def stream(provider: str, *, now: bool = False) -> str:
    return f"push:{provider.partition('_')[0]}{'.now' if now else ''}"


def pace(user_id: UUID) -> str:
    return f"push:user:{user_id}"


def _over(call_id: UUID) -> str:
    return f"push:over:{call_id}"


def _told(call_id: UUID) -> str:
    return f"push:told:{call_id}"


class Queue:
    def __init__(self, redis: Redis, consumer: str) -> None:
        self._redis, self._consumer = redis, consumer
        self._raise, self._due = redis.register_script(scripts.RAISE), redis.register_script(scripts.DUE)
        self._settle, self._seen = redis.register_script(scripts.SETTLE), redis.register_script(scripts.SEEN)
        self._rang, self._ring_over = redis.register_script(scripts.RANG), redis.register_script(scripts.RING_OVER)
        self._ahead = 0.0  # ms by which Redis's clock is ahead of ours
        self._sooner = asyncio.Event()
        self._ending: deque[tuple[Settled, asyncio.Future[None]]] = deque()
        self._ender = Worker("push_queue", self._end)
        self.refused = 0  # jobs for which there was no room

    def now(self) -> int:
        """Milliseconds by Redis's clock, which all instances go by."""
        return int(time.time() * 1000 + self._ahead)

    def at(self, moment: datetime) -> int:
        """The same of a moment of PostgreSQL's."""
        return int(moment.timestamp() * 1000)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let come due what waits, and end what is finished, until the block ends."""
        with contextlib.suppress(*Away):
            await self._turn()
        clock = asyncio.create_task(self._clock())
        try:
            async with self._ender.running():
                yield
        finally:
            await ended(clock)
            with contextlib.suppress(*Away):
                while self._ending:
                    await self._end_some()

    # What happened --------------------------------------------------------------------------------------------------

    async def put(self, job: Job) -> None:
        """Have a job judged at once. Raises one of Away."""
        async with asyncio.timeout(REDIS_TIMEOUT):
            await self._redis.xadd(JUDGE_NOW, {"job": job.encode()})

    async def wait(self, raised: Sequence[Raised]) -> None:
        """Have jobs judged in a second, or later for who was pushed to much since they last looked; those of one user
        and chat become one. Raises one of Away."""
        for start in range(0, len(raised), DUE):
            arguments: list[Any] = [MOST, DELAY, CALM, LONGEST, OF_USER, LIFE]
            for job, chat_id in raised[start : start + DUE]:
                arguments += [job.key, job.encode(), job.raised, pace(job.user_id), str(chat_id or job.kind)]
            async with asyncio.timeout(REDIS_TIMEOUT):
                self.refused += await self._raise([LATER, JOBS], arguments)
        self._sooner.set()

    async def seen(self, users: Sequence[tuple[UUID, int]], sessions: Sequence[tuple[UUID, int]]) -> None:
        """Users have looked, on these sessions' sockets or elsewhere, at these ms. Raises one of Away."""
        async with asyncio.timeout(REDIS_TIMEOUT):
            if users:
                marks: list[Any] = [LIFE]
                for user_id, moment in users:
                    marks += [pace(user_id), moment]
                await self._seen([], marks)
            if sessions:
                pipeline = self._redis.pipeline(transaction=False)
                for session_id, moment in sessions:
                    pipeline.set(f"push:session:{session_id}", moment, ex=RING)
                await pipeline.execute()

    async def rang(self, hangup: Job) -> None:
        """A device was told of a ring; ``hangup`` is what it will be told at its end. Raises one of Away."""
        assert hangup.subject is not None
        keys = [_over(hangup.subject), _told(hangup.subject), JUDGE_NOW]
        async with asyncio.timeout(REDIS_TIMEOUT):
            await self._rang(keys, [hangup.encode(), RING])

    async def ring_over(self, call_id: UUID) -> None:
        """A ring is over: who was told of it is told so. Raises one of Away."""
        async with asyncio.timeout(REDIS_TIMEOUT):
            await self._ring_over([_over(call_id), _told(call_id), JUDGE_NOW], [RING])

    # What is known --------------------------------------------------------------------------------------------------

    async def seen_at(self, users: Sequence[UUID]) -> list[int]:
        """When each user last looked, in ms; 0 when that is long ago. Raises one of Away."""
        pipeline = self._redis.pipeline(transaction=False)
        for user_id in users:
            pipeline.hget(pace(user_id), "seen")
        return await self._numbers(pipeline)

    async def decided_upto(self, chats: Sequence[tuple[UUID, UUID]]) -> list[int]:
        """Up to which seq it was decided of each user and chat whether they are pushed; 0 when that is long ago, or the
        user has looked since. Raises one of Away."""
        pipeline = self._redis.pipeline(transaction=False)
        for user_id, chat_id in chats:
            pipeline.hget(pace(user_id), f"upto:{chat_id}")
        return await self._numbers(pipeline)

    async def opened_at(self, sessions: Sequence[UUID]) -> list[int]:
        """When each session last opened a socket, in ms; 0 when that is long ago. Raises one of Away."""
        pipeline = self._redis.pipeline(transaction=False)
        for session_id in sessions:
            pipeline.get(f"push:session:{session_id}")
        return await self._numbers(pipeline)

    async def over(self, calls: Sequence[UUID]) -> set[UUID]:
        """Those of the calls that ring no more. Raises one of Away."""
        pipeline = self._redis.pipeline(transaction=False)
        for call_id in calls:
            pipeline.exists(_over(call_id))
        return {call_id for call_id, over in zip(calls, await self._numbers(pipeline), strict=True) if over}

    async def _numbers(self, pipeline: Any) -> list[int]:
        async with asyncio.timeout(REDIS_TIMEOUT):
            return [int(found or 0) for found in await pipeline.execute()]

    async def depth(self, streams: Sequence[str]) -> dict[str, int]:
        """How many wait, and how many are in each stream. Raises one of Away."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zcard(LATER)
        for name in streams:
            pipeline.xlen(name)
        return dict(zip((LATER, *streams), await self._numbers(pipeline), strict=True))

    # Streams --------------------------------------------------------------------------------------------------------

    async def open(self, name: str) -> None:
        """Make a stream and its group, if they aren't there. Raises one of Away."""
        try:
            await self._redis.xgroup_create(name, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if redis_code(error) != "BUSYGROUP":
                raise

    async def read(self, name: str, most: int) -> list[Entry]:
        """The next entries of a stream; none after a second without any. Raises one of Away."""
        found: Any = await self._redis.xreadgroup(GROUP, self._consumer, {name: ">"}, count=most, block=BLOCK)
        return [Entry(name, id_, fields) for _, entries in found for id_, fields in entries]

    async def claim(self, name: str, most: int, idle: float) -> list[tuple[Entry, int]]:
        """Entries that somebody took and did not finish for ``idle`` seconds, each with how often it was taken: they
        are ours now. Raises one of Away."""
        answer: Any = await self._redis.xautoclaim(name, GROUP, self._consumer, int(idle * 1000), "0-0", count=most)
        claimed = [Entry(name, id_, fields) for id_, fields in answer[1] if fields]
        taken = []
        for entry in claimed:
            [about] = await self._redis.xpending_range(name, GROUP, entry.id, entry.id, 1)
            taken.append((entry, int(about["times_delivered"])))
        return taken

    async def set_aside(self, entry: Entry) -> None:
        """Keep an entry that nobody can finish where somebody may look at it. Raises one of Away."""
        pipeline = self._redis.pipeline(transaction=True)
        fields: Any = {"stream": entry.stream, **entry.fields}
        pipeline.xadd(POISON, fields, maxlen=POISONED)
        pipeline.xack(entry.stream, GROUP, entry.id)
        pipeline.xdel(entry.stream, entry.id)
        await pipeline.execute()

    async def forget_dead(self, name: str, idle: float) -> None:
        """Forget consumers of a stream that were silent for ``idle`` seconds and have left nothing. Raises one of
        Away."""
        for consumer in await self._redis.xinfo_consumers(name, GROUP):
            if consumer["pending"] == 0 and consumer["idle"] > idle * 1000:
                await self._redis.xgroup_delconsumer(name, GROUP, consumer["name"])

    async def settle(self, settled: Settled) -> None:
        """End an entry, with what follows from it, in one step. Raises one of Away: then it will be taken again."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ending.append((settled, done))
        self._ender.wake()
        await done

    async def _end(self) -> None:
        while self._ending:
            with contextlib.suppress(*Away):
                await self._end_some()

    async def _end_some(self) -> None:
        batch = [self._ending.popleft() for _ in range(min(BATCH, len(self._ending)))]
        pipeline = self._redis.pipeline(transaction=False)
        try:
            for settled, _ in batch:
                arguments = self._arguments(settled)
                await self._settle([settled.entry.stream, LATER, JOBS], arguments, client=pipeline)
            async with asyncio.timeout(REDIS_TIMEOUT):
                refused = await pipeline.execute()
        except BaseException as error:
            for _, done in batch:
                if not done.done():
                    done.set_exception(error if isinstance(error, Exception) else TimeoutError())
            raise
        self.refused += sum(map(int, refused))
        for settled, done in batch:
            if settled.later:
                self._sooner.set()
            if not done.done():
                done.set_result(None)

    def _arguments(self, settled: Settled) -> list[Any]:
        counts = [len(settled.puts), len(settled.later), len(settled.decided)]
        arguments: list[Any] = [GROUP, settled.entry.id, MOST, LIFE, *counts, OF_USER]
        full = self.now() + 30_000  # a stream that is full will not be empty in a moment
        for name, job in settled.puts:
            arguments += [name, job.encode(), job.key, full]
        for due, job in settled.later:
            arguments += [job.key, job.encode(), due]
        for user_id, chat_id, seq, pushed in settled.decided:
            arguments += [pace(user_id), str(chat_id), seq, int(pushed)]
        return arguments

    # Time -----------------------------------------------------------------------------------------------------------

    async def _clock(self) -> None:
        while True:
            try:
                pause = await self._turn()
            except Away as error:
                log.warning("push_queue_away", cause=type(error).__name__)
                pause = 1.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._sooner.wait()
            self._sooner.clear()

    async def _turn(self) -> float:
        """Let come due what is, and measure Redis's clock; the seconds until there is more to do."""
        asked = time.time()
        async with asyncio.timeout(REDIS_TIMEOUT):
            now, moved, following = await self._due([LATER, JOBS, JUDGE, JUDGE_NOW], [DUE])
        self._ahead = now - (asked + time.time()) / 2 * 1000
        if moved == DUE:
            return 0.0
        return 1.0 if following < 0 else min(max((following - now) / 1000, 0.005), 1.0)
