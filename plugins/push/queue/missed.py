"""Missed activity: collects the events that features announce, and queues pushes for users who are away."""

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
from handlers.redis_service import REDIS_ERRORS
from handlers.sockets.hub import Hub, Peer
from handlers.tasks import Worker, ended
from models import calls, push
from models.database import Database, Unavailable
from plugins.push.queue.jobs import LIFE, Job
from plugins.push.queue.queue import Occurrence, Queue

log = structlog.get_logger(__name__)

FLUSH_DELAY = 0.1  # seconds in which announcements are collected into one step
MAX_CHATS = 20_000  # chats collected in one step; more would be more messages than the journal can write
SLICE = 1_024  # users looked up in one statement, and checked in one turn of the loop: the largest group
LARGE_CHAT_INTERVAL = 5.0  # seconds between two checks of a chat with more people than that
MAX_LOST_CHECKS = 4  # checks of users with lost sockets in progress: a lost instance may lose thousands
LOST_WITHIN = 8  # seconds until a silent socket is surely closed: a client has five to answer the close
RETRY = 1.0  # seconds until a failed write to PostgreSQL or Redis is tried again


class _Chat:
    """A chat with new messages: its members, their senders, and the time of the last one in ms."""

    __slots__ = ("members", "moment", "senders")

    def __init__(self, members: Collection[UUID], sender_id: UUID | None, moment: int) -> None:
        self.members, self.senders, self.moment = members, {sender_id}, moment


class MissedActivity(Listener):
    """Listens to alerts. A message costs one dictionary look-up; a task does the rest a few times a second, for all
    messages of a chat at once."""

    def __init__(self, db: Database, hub: Hub, queue: Queue) -> None:
        self._db, self._hub, self._queue = db, hub, queue
        self._chats: dict[UUID, _Chat] = {}
        self._large: dict[UUID, float] = {}
        self._low: dict[UUID, int] = {}
        self._seen: dict[UUID, int] = {}
        self._opened: dict[UUID, int] = {}
        self._lost_checks = asyncio.Semaphore(MAX_LOST_CHECKS)
        self._writer = Worker("push_gathering", self._write, gather=FLUSH_DELAY)
        self._tasks: set[asyncio.Task[None]] = set()
        self._retrying = False

    # Announcements --------------------------------------------------------------------------------------------------

    def message(self, chat_id: UUID, members: Collection[UUID], sender_id: UUID | None) -> None:
        chat = self._chats.get(chat_id)
        if chat is not None:
            chat.members, chat.moment = members, self._queue.now()
            chat.senders.add(sender_id)
        elif len(self._chats) < MAX_CHATS:
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
        """A user's first socket on this instance opened: they see now what happened before. The close of the last one
        proves nothing: frames written to it while it closed were not received."""
        if online:
            self.seen(user_id)

    async def welcome(self, peer: Peer) -> None:
        """A socket opened: its device receives the frames of a ring there, not as pushes."""
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
        self._start(self._check_lost(user_id, seconds))

    # Calls, immediately ---------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ring(self, job: Job) -> None:
        while self._queue.now() < job.expires:
            try:
                await self._queue.put(job)
                return
            except REDIS_ERRORS as error:
                log.warning("push_not_queued", cause=type(error).__name__)
                await asyncio.sleep(RETRY)

    async def _ring_over(self, call_id: UUID) -> None:
        for _ in range(10):
            try:
                await self._flush_seen()
                await self._queue.ring_over(call_id)
                return
            except REDIS_ERRORS as error:
                log.warning("push_not_queued", cause=type(error).__name__)
                await asyncio.sleep(RETRY)

    async def _check_lost(self, user_id: UUID, seconds: float) -> None:
        """Queue what a user may have missed who lost a socket, for example a phone in a tunnel or asleep. Users with
        another open socket have missed nothing."""
        began = time.monotonic()
        try:
            while True:
                await asyncio.sleep(1)
                elapsed = time.monotonic() - began
                async with self._lost_checks:
                    if await self._reachable([user_id]):
                        await self._queue_missed(user_id, seconds + elapsed)
                        return
                if elapsed > LOST_WITHIN:
                    return
        except (Unavailable, *REDIS_ERRORS) as error:
            log.warning("push_not_queued", cause=type(error).__name__)

    async def _queue_missed(self, user_id: UUID, seconds: float) -> None:
        moment = self._queue.now()
        for call_id, over in await calls.list_ringing(self._db, user_id):
            self.ring(call_id, user_id, over)
        missed = await push.missed(self._db, user_id, seconds)
        jobs = [Occurrence(self._job("message_new", user_id, chat_id, moment), chat_id) for chat_id in missed]
        await self._queue.wait(jobs)

    # The rest, in batches -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Queue the collected events until the block ends; then queue the rest first."""
        self._hub.watchers.append(self.watch)
        self._hub.silence_watchers.append(self.lost)
        try:
            async with self._writer.running():
                yield
        finally:
            self._hub.watchers.remove(self.watch)
            self._hub.silence_watchers.remove(self.lost)
            await ended(*self._tasks)
            with contextlib.suppress(Unavailable, *REDIS_ERRORS):
                await self._flush()

    async def _write(self) -> None:
        try:
            await self._flush()
        except (Unavailable, *REDIS_ERRORS) as error:
            log.warning("push_not_queued", cause=type(error).__name__)
            self._writer.wake()
            await asyncio.sleep(RETRY)

    async def _flush_seen(self) -> None:
        seen, opened, self._seen, self._opened = self._seen, self._opened, {}, {}
        try:
            if seen or opened:
                await self._queue.seen(list(seen.items()), list(opened.items()))
        except REDIS_ERRORS:
            self._seen, self._opened = {**seen, **self._seen}, {**opened, **self._opened}
            raise

    async def _flush(self) -> None:
        """Write who was online first, then the events: those are compared with it."""
        await self._flush_seen()
        low, self._low = self._low, {}
        try:
            if low:
                users = await self._reachable(low)
                await self._queue.wait([Occurrence(self._job("prekeys_low", u, None, low[u]), None) for u in users])
        except (Unavailable, *REDIS_ERRORS):
            self._low = {**low, **self._low}
            raise
        due = self._due()
        try:
            while due:
                await self._queue_chats(due[-1])
                due.pop()
        finally:  # keep what was not queued
            for chats in due:
                for chat_id in chats:
                    self._put_back(chat_id, chats[chat_id])

    def _due(self) -> list[dict[UUID, _Chat]]:
        """Take the collected chats, in groups of small ones. A large one is checked once in LARGE_CHAT_INTERVAL,
        however many messages are posted there."""
        now = time.monotonic()
        chats, self._chats = self._chats, {}
        self._large = {id_: checked for id_, checked in self._large.items() if checked > now - LARGE_CHAT_INTERVAL}
        due: list[dict[UUID, _Chat]] = []
        people = SLICE
        for chat_id in list(chats):
            chat = chats[chat_id]
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
        if self._chats and not self._retrying:
            self._retrying = True
            asyncio.get_running_loop().call_later(LARGE_CHAT_INTERVAL, self._retry_large)
        return due

    def _retry_large(self) -> None:
        self._retrying = False
        self._writer.wake()

    def _put_back(self, chat_id: UUID, chat: _Chat) -> None:
        newer = self._chats.setdefault(chat_id, chat)
        if newer is not chat:
            newer.senders |= chat.senders

    async def _queue_chats(self, chats: dict[UUID, _Chat]) -> None:
        """Queue the new messages of some chats, for members who are away and have a token."""
        people: dict[UUID, list[UUID]] = {}
        for chat_id, chat in chats.items():
            for number, user_id in enumerate(chat.members):
                if not self._hub.is_here(user_id):
                    people.setdefault(user_id, []).append(chat_id)
                if number % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
        absentees = list(people)
        senders = list({sender for chat in chats.values() for sender in chat.senders if sender is not None})
        for start in range(0, len(absentees), SLICE):
            away = await self._reachable(absentees[start : start + SLICE])
            if not away:
                continue
            blocks = await push.blocks(self._db, away, senders)
            occurrences = []
            for user_id in away:
                for chat_id in people[user_id]:
                    chat = chats[chat_id]
                    if any(sender != user_id and (user_id, sender) not in blocks for sender in chat.senders):
                        occurrences.append(Occurrence(self._job("message_new", user_id, chat_id, chat.moment), chat_id))
            await self._queue.wait(occurrences)

    async def _reachable(self, users: Iterable[UUID]) -> list[UUID]:
        """Return those users who have a token and no socket on any instance."""
        absent = await self._hub.absent(users)
        reachable = await push.reachable(self._db, absent) if absent else set()
        return [user_id for user_id in absent if user_id in reachable]

    @staticmethod
    def _job(kind: str, user_id: UUID, subject: UUID | None, moment: int) -> Job:
        return Job(kind, user_id, subject, moment, moment + LIFE)
