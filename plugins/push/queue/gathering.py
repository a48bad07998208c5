"""Gathering: takes note of what features announce, and puts what concerns users who are away into the queue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from handlers.alerts import Listener
from handlers.sockets.hub import Hub, Peer
from handlers.tasks import Worker, ended
from models import calls, push
from models.database import Database, Unavailable
from plugins.push.queue.jobs import LIFE, Job
from plugins.push.queue.queue import Away, Queue, Raised

log = structlog.get_logger(__name__)

TOGETHER = 0.1  # seconds in which announcements are gathered into one step
CHATS = 20_000  # chats noted in one step; beyond it there are more messages than the journal can take
SLICE = 1_024  # users asked about in one statement, and looked at in one turn of the loop: the largest group
RARELY = 5.0  # seconds between two looks at who of a chat of more people than that is away
FEW = 4  # users looked after at a time whose sockets were lost: with an instance there may be thousands
LOST_WITHIN = 8  # seconds in which a silent socket is gone for good: a client has five to answer that it is closed
RETRY = 1.0  # seconds until what PostgreSQL or Redis did not take is tried again


class _Chat:
    """A chat in which something was posted: who is in it, by whom it was, and when the last one was."""

    __slots__ = ("members", "moment", "senders")

    def __init__(self, members: Collection[UUID], sender_id: UUID | None, moment: int) -> None:
        self.members, self.senders, self.moment = members, {sender_id}, moment


class Gathering(Listener):
    """Listens to alerts. A message costs a look into a dictionary; the rest is done a few times a second,
    by a task, for all messages of a chat at once."""

    def __init__(self, db: Database, hub: Hub, queue: Queue) -> None:
        self._db, self._hub, self._queue = db, hub, queue
        self._chats: dict[UUID, _Chat] = {}
        self._large: dict[UUID, float] = {}
        self._low: dict[UUID, int] = {}
        self._seen: dict[UUID, int] = {}
        self._opened: dict[UUID, int] = {}
        self._few = asyncio.Semaphore(FEW)
        self._writer = Worker("push_gathering", self._write, gather=TOGETHER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waking = False

    # What is announced ----------------------------------------------------------------------------------------------

    def message(self, chat_id: UUID, members: Collection[UUID], sender_id: UUID | None) -> None:
        noted = self._chats.get(chat_id)
        if noted is not None:
            noted.members, noted.moment = members, self._queue.now()
            noted.senders.add(sender_id)
        elif len(self._chats) < CHATS:
            self._chats[chat_id] = _Chat(members, sender_id, self._queue.now())
            self._writer.wake()
        else:
            self._queue.refused += 1

    def prekeys_low(self, user_id: UUID) -> None:
        self._low[user_id] = self._queue.now()
        self._writer.wake()

    def seen(self, user_id: UUID) -> None:
        self._seen[user_id] = self._queue.now()
        self._writer.wake()

    def watch(self, user_id: UUID, online: bool) -> None:
        """A user's first socket here opened: they see now what happened before. When the last one closes that says
        nothing: what was written to it while it closed reached nobody."""
        if online:
            self.seen(user_id)

    async def welcome(self, peer: Peer) -> None:
        """A socket opened: what its device would be told of a ring, it is told there."""
        self._opened[peer.session.session_id] = self._queue.now()
        self._writer.wake()

    def ring(self, call_id: UUID, callee_id: UUID, expires_at: datetime) -> None:
        job = Job("call_offer", callee_id, call_id, self._queue.now(), self._queue.at(expires_at))
        self._start(self._ring(job))

    def ring_over(self, call_id: UUID, session_id: UUID | None) -> None:
        if session_id is not None:
            self._opened[session_id] = self._queue.now()
        self._start(self._ring_over(call_id))

    def lost(self, user_id: UUID, seconds: float) -> None:
        self._start(self._lost(user_id, seconds))

    # Calls, at once -------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ring(self, job: Job) -> None:
        while self._queue.now() < job.expires:
            try:
                await self._queue.put(job)
                return
            except Away as error:
                log.warning("push_not_queued", cause=type(error).__name__)
                await asyncio.sleep(RETRY)

    async def _ring_over(self, call_id: UUID) -> None:
        for _ in range(10):
            try:
                await self._flush_seen()
                await self._queue.ring_over(call_id)
                return
            except Away as error:
                log.warning("push_not_queued", cause=type(error).__name__)
                await asyncio.sleep(RETRY)

    async def _lost(self, user_id: UUID, seconds: float) -> None:
        """A phone went into a tunnel, or to sleep, with its socket open: what it was told meanwhile it may not have
        heard. Whoever has another socket has."""
        began = time.monotonic()
        try:
            while True:
                await asyncio.sleep(1)
                passed = time.monotonic() - began
                async with self._few:
                    if await self._away([user_id]):
                        await self._missed(user_id, seconds + passed)
                        return
                if passed > LOST_WITHIN:
                    return
        except (Unavailable, *Away) as error:
            log.warning("push_not_queued", cause=type(error).__name__)

    async def _missed(self, user_id: UUID, seconds: float) -> None:
        moment = self._queue.now()
        for call_id, over in await calls.list_ringing(self._db, user_id):
            self.ring(call_id, user_id, over)
        missed = await push.missed(self._db, user_id, seconds)
        jobs = [Raised(self._job("message_new", user_id, chat_id, moment), chat_id) for chat_id in missed]
        await self._queue.wait(jobs)

    # The rest, together ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Put what was noted into the queue until the block ends; what is noted then goes first."""
        self._hub.watchers.append(self.watch)
        self._hub.silence_watchers.append(self.lost)
        try:
            async with self._writer.running():
                yield
        finally:
            self._hub.watchers.remove(self.watch)
            self._hub.silence_watchers.remove(self.lost)
            await ended(*self._tasks)
            with contextlib.suppress(Unavailable, *Away):
                await self._flush()

    async def _write(self) -> None:
        try:
            await self._flush()
        except (Unavailable, *Away) as error:
            log.warning("push_not_queued", cause=type(error).__name__)
            self._writer.wake()
            await asyncio.sleep(RETRY)
        except Exception:
            log.exception("push_gathering_failed")

    async def _flush_seen(self) -> None:
        seen, opened, self._seen, self._opened = self._seen, self._opened, {}, {}
        try:
            if seen or opened:
                await self._queue.seen(list(seen.items()), list(opened.items()))
        except Away:
            self._seen, self._opened = {**seen, **self._seen}, {**opened, **self._opened}
            raise

    async def _flush(self) -> None:
        """Whoever has looked first, then what happened: it is compared with that."""
        await self._flush_seen()
        low, self._low = self._low, {}
        try:
            if low:
                users = await self._away(low)
                await self._queue.wait([Raised(self._job("prekeys_low", u, None, low[u]), None) for u in users])
        except (Unavailable, *Away):
            self._low = {**low, **self._low}
            raise
        due = self._due()
        try:
            while due:
                await self._raise(due[-1])
                due.pop()
        finally:  # what was not done is noted still
            for chats in due:
                for chat_id in chats:
                    self._put_back(chat_id, chats[chat_id])

    def _due(self) -> list[dict[UUID, _Chat]]:
        """The chats that were noted, small ones together. A large one is looked at from time to time only, however much
        is posted there."""
        now = time.monotonic()
        noted, self._chats = self._chats, {}
        self._large = {chat_id: looked for chat_id, looked in self._large.items() if looked > now - RARELY}
        due: list[dict[UUID, _Chat]] = []
        people = SLICE
        for chat_id in list(noted):
            chat = noted[chat_id]
            size = len(chat.members)
            if size > SLICE and chat_id in self._large:
                self._put_back(chat_id, chat)
                continue
            if size > SLICE:
                self._large[chat_id] = now
            if people + size > SLICE:
                due.append({})
                people = 0
            due[-1][chat_id] = chat
            people += size
        if self._chats and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_later(RARELY, self._awake)
        return due

    def _awake(self) -> None:
        self._waking = False
        self._writer.wake()

    def _put_back(self, chat_id: UUID, chat: _Chat) -> None:
        newer = self._chats.setdefault(chat_id, chat)
        if newer is not chat:
            newer.senders |= chat.senders

    async def _raise(self, chats: dict[UUID, _Chat]) -> None:
        """What was posted in some chats, for those in them who are away and can be reached."""
        people: dict[UUID, list[UUID]] = {}
        for chat_id, chat in chats.items():
            for number, user_id in enumerate(chat.members):
                if not self._hub.is_here(user_id):
                    people.setdefault(user_id, []).append(chat_id)
                if number % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
        everybody = list(people)
        senders = list({sender for chat in chats.values() for sender in chat.senders if sender is not None})
        for start in range(0, len(everybody), SLICE):
            away = await self._away(everybody[start : start + SLICE])
            if not away:
                continue
            blocks = await push.blocks(self._db, away, senders)
            raised = []
            for user_id in away:
                for chat_id in people[user_id]:
                    chat = chats[chat_id]
                    if any(sender != user_id and (user_id, sender) not in blocks for sender in chat.senders):
                        raised.append(Raised(self._job("message_new", user_id, chat_id, chat.moment), chat_id))
            await self._queue.wait(raised)

    async def _away(self, users: Iterable[UUID]) -> list[UUID]:
        """Those who have a socket nowhere, and a token."""
        absent = await self._hub.absent(users)
        reachable = await push.reachable(self._db, absent) if absent else set()
        return [user_id for user_id in absent if user_id in reachable]

    @staticmethod
    def _job(kind: str, user_id: UUID, subject: UUID | None, moment: int) -> Job:
        return Job(kind, user_id, subject, moment, moment + LIFE)
