"""The queue: push jobs in Redis, so that they outlive this process and only one instance sends each.

A job waits in a sorted set until it is due, under its key. Then it passes through streams, which the instances read as
one group: first to the judge, and from there to the provider of each device. If an instance reads an entry and does not
finish it, another one claims it.
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
from redis.exceptions import ResponseError

from config import channels
from config.reasons import redis_code
from handlers.redis_service import REDIS_ERRORS
from handlers.tasks import Worker, ended
from plugins.push.queue import scripts
from plugins.push.queue.jobs import Job

log = structlog.get_logger(__name__)

GROUP = "push"
LATER, JOBS, POISON = "push:later", "push:later:jobs", "push:poison"
JUDGE, JUDGE_NOW = "push:judge", channels.PUSH_NOW
MAX_JOBS = 50_000  # jobs that wait, and in each stream; a job has at most 512 bytes (scripts.py), so that is 25 MB
MAX_USER_JOBS = 500  # jobs of one user that wait: one for each chat, and for each device those to be retried
MAX_POISONED = 1_000  # entries that are kept for an operator to look at
DELAY, FREE_PUSHES, MAX_DELAY = 1_000, 5, 600_000  # ms a message waits; pushes before the wait grows; ms at most
LIFE = 25 * 3600  # seconds for which a user's state is kept; a job lives for 24 hours
RING_LIFE = 180  # seconds for which a ring's state is kept; it rings for 60, and its pushes may come 60 later
DUE_BATCH = 500  # jobs that become due in one step
SETTLE_BATCH = 64  # entries that are outcome in one step
BLOCK = 1_000  # ms that a read waits for an entry; less than the client's timeout
REDIS_TIMEOUT = 1.0  # seconds after which Redis counts as away


class Entry(NamedTuple):
    """An entry read from a stream."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]


class Occurrence(NamedTuple):
    """An event for a user, in a chat or in none."""

    job: Job
    chat_id: UUID | None


class Decision(NamedTuple):
    """The decision to push the messages of a chat up to a seq to a user, or not to."""

    user_id: UUID
    chat_id: UUID
    seq: int
    pushed: bool


class Outcome(NamedTuple):
    """The result of an entry: jobs for streams, jobs that are due later (at which ms), and decisions about chats."""

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


def _rung_devices(call_id: UUID) -> str:
    return f"push:told:{call_id}"


class Queue:
    def __init__(self, redis: Redis, consumer: str) -> None:
        self._redis, self._consumer = redis, consumer
        self._raise, self._due = redis.register_script(scripts.RAISE), redis.register_script(scripts.DUE)
        self._settle, self._seen = redis.register_script(scripts.SETTLE), redis.register_script(scripts.SEEN)
        self._rang, self._ring_over = redis.register_script(scripts.RANG), redis.register_script(scripts.RING_OVER)
        self._clock_offset = 0.0  # ms by which Redis's clock is ahead of ours
        self._sooner = asyncio.Event()
        self._outcomes: deque[tuple[Outcome, asyncio.Future[None]]] = deque()
        self._outcome_writer = Worker("push_queue", self._write_outcomes)
        self.refused = 0  # jobs for which there was no room

    def now(self) -> int:
        """Return the milliseconds of Redis's clock, which all instances use."""
        return int(time.time() * 1000 + self._clock_offset)

    def at(self, moment: datetime) -> int:
        """Return the milliseconds of a time of PostgreSQL's."""
        return int(moment.timestamp() * 1000)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Move due jobs to the judge, and write outcomes, until the block ends."""
        with contextlib.suppress(*REDIS_ERRORS):
            await self._move_due()
        clock = asyncio.create_task(self._clock())
        try:
            async with self._outcome_writer.running():
                yield
        finally:
            await ended(clock)
            with contextlib.suppress(*REDIS_ERRORS):
                while self._outcomes:
                    await self._write_batch()

    # Events ---------------------------------------------------------------------------------------------------------

    async def put(self, job: Job) -> None:
        """Queue a job to be judged immediately. Raises one of REDIS_ERRORS."""
        async with asyncio.timeout(REDIS_TIMEOUT):
            await self._redis.xadd(JUDGE_NOW, {"job": job.encode()})

    async def wait(self, occurrences: Sequence[Occurrence]) -> None:
        """Queue jobs to be judged in a second, or later for users who received many pushes since they were last online.
        Jobs of one user and chat are merged. Raises one of REDIS_ERRORS."""
        for start in range(0, len(occurrences), DUE_BATCH):
            arguments: list[Any] = [MAX_JOBS, DELAY, FREE_PUSHES, MAX_DELAY, MAX_USER_JOBS, LIFE]
            for job, chat_id in occurrences[start : start + DUE_BATCH]:
                arguments += [job.key, job.encode(), job.raised, pace(job.user_id), str(chat_id or job.kind)]
            async with asyncio.timeout(REDIS_TIMEOUT):
                self.refused += await self._raise([LATER, JOBS], arguments)
        self._sooner.set()

    async def seen(self, users: Sequence[tuple[UUID, int]], sessions: Sequence[tuple[UUID, int]]) -> None:
        """Store when users were online, and when sessions opened a socket, in ms. Raises one of REDIS_ERRORS."""
        async with asyncio.timeout(REDIS_TIMEOUT):
            if users:
                marks: list[Any] = [LIFE]
                for user_id, moment in users:
                    marks += [pace(user_id), moment]
                await self._seen([], marks)
            if sessions:
                pipeline = self._redis.pipeline(transaction=False)
                for session_id, moment in sessions:
                    pipeline.set(f"push:session:{session_id}", moment, ex=RING_LIFE)
                await pipeline.execute()

    async def remember_hangup(self, hangup: Job) -> None:
        """Store the ``hangup`` to send to a device that rings when the ring ends; queue it now if the ring has ended.
        Raises one of REDIS_ERRORS."""
        assert hangup.subject is not None
        keys = [_over(hangup.subject), _rung_devices(hangup.subject), JUDGE_NOW]
        async with asyncio.timeout(REDIS_TIMEOUT):
            await self._rang(keys, [hangup.encode(), RING_LIFE])

    async def ring_over(self, call_id: UUID) -> None:
        """End a ring: queue the hangups of the devices that ring. Raises one of REDIS_ERRORS."""
        async with asyncio.timeout(REDIS_TIMEOUT):
            await self._ring_over([_over(call_id), _rung_devices(call_id), JUDGE_NOW], [RING_LIFE])

    # State ----------------------------------------------------------------------------------------------------------

    async def seen_at(self, users: Sequence[UUID]) -> list[int]:
        """Return when each user was last online, in ms; 0 if that is long ago. Raises one of REDIS_ERRORS."""
        pipeline = self._redis.pipeline(transaction=False)
        for user_id in users:
            pipeline.hget(pace(user_id), "seen")
        return await self._numbers(pipeline)

    async def decided_upto(self, chats: Sequence[tuple[UUID, UUID]]) -> list[int]:
        """Return up to which seq the judge decided for each user and chat; 0 if that is long ago, or the user was
        online since. Raises one of REDIS_ERRORS."""
        pipeline = self._redis.pipeline(transaction=False)
        for user_id, chat_id in chats:
            pipeline.hget(pace(user_id), f"upto:{chat_id}")
        return await self._numbers(pipeline)

    async def opened_at(self, sessions: Sequence[UUID]) -> list[int]:
        """Return when each session last opened a socket, in ms; 0 if that is long ago. Raises one of REDIS_ERRORS."""
        pipeline = self._redis.pipeline(transaction=False)
        for session_id in sessions:
            pipeline.get(f"push:session:{session_id}")
        return await self._numbers(pipeline)

    async def over(self, calls: Sequence[UUID]) -> set[UUID]:
        """Return those of the calls that no longer ring. Raises one of REDIS_ERRORS."""
        pipeline = self._redis.pipeline(transaction=False)
        for call_id in calls:
            pipeline.exists(_over(call_id))
        return {call_id for call_id, over in zip(calls, await self._numbers(pipeline), strict=True) if over}

    async def _numbers(self, pipeline: Any) -> list[int]:
        async with asyncio.timeout(REDIS_TIMEOUT):
            return [int(value or 0) for value in await pipeline.execute()]

    async def depth(self, streams: Sequence[str]) -> dict[str, int]:
        """Return how many jobs wait, and how many are in each stream. Raises one of REDIS_ERRORS."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zcard(LATER)
        for name in streams:
            pipeline.xlen(name)
        return dict(zip((LATER, *streams), await self._numbers(pipeline), strict=True))

    # Streams --------------------------------------------------------------------------------------------------------

    async def open(self, name: str) -> None:
        """Create a stream and its group if they don't exist. Raises one of REDIS_ERRORS."""
        try:
            await self._redis.xgroup_create(name, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if redis_code(error) != "BUSYGROUP":
                raise

    async def read(self, name: str, most: int) -> list[Entry]:
        """Read the next entries of a stream; none after a second without any. Raises one of REDIS_ERRORS."""
        answer: Any = await self._redis.xreadgroup(GROUP, self._consumer, {name: ">"}, count=most, block=BLOCK)
        return [Entry(name, id_, fields) for _, entries in answer for id_, fields in entries]

    async def claim(self, name: str, most: int, idle: float) -> list[tuple[Entry, int]]:
        """Claim entries that an instance read and did not finish for ``idle`` seconds. Returns them with how often each
        was delivered. Raises one of REDIS_ERRORS."""
        answer: Any = await self._redis.xautoclaim(name, GROUP, self._consumer, int(idle * 1000), "0-0", count=most)
        claimed = [Entry(name, id_, fields) for id_, fields in answer[1] if fields]
        entries = []
        for entry in claimed:
            [pending] = await self._redis.xpending_range(name, GROUP, entry.id, entry.id, 1)
            entries.append((entry, int(pending["times_delivered"])))
        return entries

    async def set_aside(self, entry: Entry) -> None:
        """Move an entry that can't be finished to where an operator can look at it. Raises one of REDIS_ERRORS."""
        pipeline = self._redis.pipeline(transaction=True)
        fields: Any = {"stream": entry.stream, **entry.fields}
        pipeline.xadd(POISON, fields, maxlen=MAX_POISONED)
        pipeline.xack(entry.stream, GROUP, entry.id)
        pipeline.xdel(entry.stream, entry.id)
        await pipeline.execute()

    async def forget_dead(self, name: str, idle: float) -> None:
        """Delete consumers of a stream that were silent for ``idle`` seconds and have no pending entries. Raises one of
        REDIS_ERRORS."""
        for consumer in await self._redis.xinfo_consumers(name, GROUP):
            if consumer["pending"] == 0 and consumer["idle"] > idle * 1000:
                await self._redis.xgroup_delconsumer(name, GROUP, consumer["name"])

    async def settle(self, outcome: Outcome) -> None:
        """Acknowledge an entry and queue the jobs of its outcome, in one step. Raises one of REDIS_ERRORS: then the
        entry will be claimed again."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outcomes.append((outcome, done))
        self._outcome_writer.wake()
        await done

    async def _write_outcomes(self) -> None:
        while self._outcomes:
            with contextlib.suppress(*REDIS_ERRORS):
                await self._write_batch()

    async def _write_batch(self) -> None:
        batch = [self._outcomes.popleft() for _ in range(min(SETTLE_BATCH, len(self._outcomes)))]
        pipeline = self._redis.pipeline(transaction=False)
        try:
            for outcome, _ in batch:
                arguments = self._arguments(outcome)
                await self._settle([outcome.entry.stream, LATER, JOBS], arguments, client=pipeline)
            async with asyncio.timeout(REDIS_TIMEOUT):
                refused = await pipeline.execute()
        except BaseException as error:
            for _, done in batch:
                if not done.done():
                    done.set_exception(error if isinstance(error, Exception) else TimeoutError())
            raise
        self.refused += sum(map(int, refused))
        for outcome, done in batch:
            if outcome.later:
                self._sooner.set()
            if not done.done():
                done.set_result(None)

    def _arguments(self, outcome: Outcome) -> list[Any]:
        counts = [len(outcome.puts), len(outcome.later), len(outcome.decided)]
        arguments: list[Any] = [GROUP, outcome.entry.id, MAX_JOBS, LIFE, *counts, MAX_USER_JOBS]
        full = self.now() + 30_000  # a full stream takes a while to drain
        for name, job in outcome.puts:
            arguments += [name, job.encode(), job.key, full]
        for due, job in outcome.later:
            arguments += [job.key, job.encode(), due]
        for user_id, chat_id, seq, pushed in outcome.decided:
            arguments += [pace(user_id), str(chat_id), seq, int(pushed)]
        return arguments

    # Time -----------------------------------------------------------------------------------------------------------

    async def _clock(self) -> None:
        while True:
            try:
                pause = await self._move_due()
            except REDIS_ERRORS as error:
                log.warning("push_queue_away", cause=type(error).__name__)
                pause = 1.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._sooner.wait()
            self._sooner.clear()

    async def _move_due(self) -> float:
        """Move due jobs to the judge, and measure Redis's clock. Returns the seconds until there is more to do."""
        began = time.time()
        async with asyncio.timeout(REDIS_TIMEOUT):
            now, moved, following = await self._due([LATER, JOBS, JUDGE, JUDGE_NOW], [DUE_BATCH])
        self._clock_offset = now - (began + time.time()) / 2 * 1000
        if moved == DUE_BATCH:
            return 0.0
        return 1.0 if following < 0 else min(max((following - now) / 1000, 0.005), 1.0)
