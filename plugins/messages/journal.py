"""The journal: what many users post at the same moment goes to the disk in one statement, and is told after it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Histogram

from config.traces import Traces
from handlers.alerts import Alerts
from handlers.limits.fair_queue import FairQueue
from handlers.metrics import SECONDS, Metrics
from handlers.sockets.delivery import Delivery
from handlers.tasks import Worker
from handlers.wire.errors import ApiError, Forbidden, NotFound, Unavailable
from handlers.wire.shapes import b64
from models.chats import messages
from models.chats.access import Access, View
from models.chats.messages import Post, Posted
from models.database import COMMAND_SECONDS, Database
from models.database import Unavailable as Away

log = structlog.get_logger(__name__)

MOST = 128  # messages of one statement: enough to share its commit, few enough not to keep the last one waiting
MOST_BYTES = 1 << 20  # of their payloads, for a commit keeps all others waiting
WAITING = 4096  # messages, some 0.3 s of work; beyond it the sender gets `unavailable`
WAITING_BYTES = 32 << 20  # of their payloads
ROW = 512  # bytes that a message weighs beside its payload: a row and its index entries
QUANTUM = 4096  # bytes of a sender in each turn: some messages of text
LOOKS = 5  # times a message's chat is looked at anew before its sender is told to come back
# Since a message was stored, in which a repetition of it is announced: a commit that came too late was given up after
# COMMAND_SECONDS, and what comes sooner meets a message that is being sent just now.
LATE, YOUNG = timedelta(seconds=COMMAND_SECONDS), timedelta(seconds=60)
SENT = 65_536  # messages remembered as sent at most, and half of them at least, so that each is announced once; 8 MB
# Two instances met: one client_id was posted on both, or each had what the other waited for.
MET = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError)
# Of a message's columns those that are in its frame.
_SHOWN = ("id", "chat_id", "seq", "sender_id", "client_id", "encrypted_payload", "message_type", "metadata", "reply_to",
          "reply_to_seq", "forwarded_from", "created_at", "edited_at", "expires_at")  # fmt: skip

A = TypeVar("A")


class _Entry(Generic[A]):
    """A message that waits: by which view it was let in, what is answered when it is stored, to which socket it isn't
    told, and in whose context it came: what is logged of it bears the id of that request."""

    __slots__ = ("answer", "answered", "context", "looks", "post", "reply_to_seq", "skip", "view")

    def __init__(
        self,
        post: Post,
        view: View,
        answer: Callable[[Post, Posted], A],
        answered: asyncio.Future[A],
        skip: str,
        reply_to_seq: int | None,
    ) -> None:
        self.post, self.view, self.answer, self.answered = post, view, answer, answered
        self.skip, self.reply_to_seq = skip, reply_to_seq
        self.context = copy_context()
        self.looks = 0

    def stored(self, posted: Posted) -> None:
        if not self.answered.done():
            try:
                self.answered.set_result(self.answer(self.post, posted))
            except ApiError as error:
                self.answered.set_exception(error)

    def refused(self, error: ApiError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


def _identity(entry: _Entry[Any]) -> UUID:
    return entry.post.client_id


class Journal:
    """Stores messages by group commit: one task, which writes what has come while the last commit was on its way.

    Nobody lingers: a message that comes alone is written at once. The answer to a message, and the frame to the others,
    come after the commit. The access of a chat that let a message in is judged again by the statement; when it has
    changed, the chat is looked at anew.
    """

    def __init__(
        self,
        db: Database,
        access: Access,
        delivery: Delivery,
        alerts: Alerts,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        self._db, self._access, self._delivery, self._alerts = db.steady(), access, delivery, alerts
        self._traces = traces
        self._reading = db
        # Messages that this instance has sent, the newest; and those before them.
        self._sent: set[UUID] = set()
        self._sent_before: set[UUID] = set()
        self._announcing: set[asyncio.Task[None]] = set()
        # By sender; sealed messages, which have none, by the inbox.
        self._queue: FairQueue[UUID, _Entry[Any]] = FairQueue(QUANTUM, WAITING, WAITING_BYTES)
        self._writer = Worker("journal", self._write)
        self._sizes = Histogram(
            "mimu_journal_batch_messages",
            "Messages that shared a commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=metrics.registry,
        )
        self._seconds = Histogram(
            "mimu_journal_commit_duration_seconds",
            "Time of a statement that stores messages, with its commit.",
            buckets=SECONDS,
            registry=metrics.registry,
        )
        metrics.add_gauge("mimu_journal_queue_messages", "Messages that wait for a commit.", lambda: len(self._queue))
        metrics.add_gauge("mimu_journal_queue_bytes", "Bytes that they weigh.", lambda: self._queue.weight)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write until the block ends; what waits then is written first."""
        self._loop = asyncio.get_running_loop()
        async with self._db.open(), self._writer.running():
            try:
                yield
            finally:
                await self._writer.idle()
                await asyncio.gather(*self._announcing)

    def put(
        self,
        post: Post,
        view: View,
        answer: Callable[[Post, Posted], A],
        skip: str = "",
        reply_to_seq: int | None = None,
    ) -> asyncio.Future[A]:
        """Store a message that ``view`` lets in, and tell it to all who take part but the socket ``skip``.

        What ``answer`` makes of where it stands then is the result; messages of one sender are stored and answered in
        the order in which they were put, but for those that have to be judged again. Senders are served in turn. Raises
        Unavailable, at once or later, also when only this sender has too much waiting; then it may have been stored or
        not, and the same client_id may be posted again.
        """
        sender, weight = post.sender_id or post.chat_id, len(post.payload) + ROW
        entry = _Entry(post, view, answer, self._loop.create_future(), skip, reply_to_seq)
        if self._delivery.is_behind(post.chat_id) or not self._queue.put(sender, weight, entry):
            raise Unavailable
        self._writer.wake()
        return entry.answered

    async def _write(self) -> None:
        while self._queue:
            batch = self._take()
            try:
                await self._store(batch)
            except Exception as error:  # whatever it is, the next ones must be written
                log.error("journal_failed", exc_info=error)
                for entry in batch:
                    entry.refused(Unavailable())

    def _take(self) -> list[_Entry[Any]]:
        """The next ones; a second message with a client_id of the batch waits for the next, and is known by then."""
        return self._queue.take(MOST, MOST_BYTES, _identity)

    async def _store(self, batch: Sequence[_Entry[Any]]) -> None:
        began = time.monotonic()
        try:
            with self._traces.batch([entry.context for entry in batch]):
                found = await messages.post(self._db, [entry.post for entry in batch])
        except Away:
            for entry in batch:
                entry.refused(Unavailable())
            return
        except asyncpg.PostgresError as error:
            if len(batch) == 1:
                [entry] = batch
                if isinstance(error, MET) and entry.looks < LOOKS:
                    entry.looks += 1
                    await self._store(batch)  # another instance was before us, and what it did can be seen now
                else:
                    entry.refused(entry.context.run(_meaning, error))
                return
            # One of them is at fault, or two instances met: each for itself, and only that one is refused.
            for entry in batch:
                await self._store([entry])
            return
        committed = time.monotonic()
        self._sizes.observe(len(batch))
        self._seconds.observe(committed - began)
        stale = []
        for entry, posted in zip(batch, found, strict=True):
            if posted is None:
                stale.append(entry)
                continue
            if posted.payload_hash is None:
                try:
                    self._tell(entry, posted, committed)
                    self._note_sent(posted.id)
                except Exception as error:  # it is stored, and so are the others: they are told and acked
                    entry.context.run(_not_told, error)
            entry.stored(posted)
            if posted.payload_hash is not None:
                self._repeat(entry, posted)
        for entry in stale:
            await self._look_again(entry)

    def _repeat(self, entry: _Entry[Any], posted: Posted) -> None:
        """Announce a message that was stored before, if that is a moment ago and this instance has not sent it: its
        sender may have got `unavailable` because the commit came too late, and then nothing was sent to the others.
        Another instance may have sent it all the same; clients drop doubles."""
        post, age = entry.post, datetime.now(UTC) - posted.created_at
        same = (posted.payload_hash, posted.chat_id) == (post.payload_hash, post.chat_id)
        sent = posted.id in self._sent or posted.id in self._sent_before
        if not same or sent or not LATE <= age < YOUNG:
            return
        self._note_sent(posted.id)
        task = asyncio.create_task(self._announce(entry, posted))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    async def _announce(self, entry: _Entry[Any], posted: Posted) -> None:
        try:
            row = await messages.get(self._reading, posted.id, entry.post.sender_id or entry.post.chat_id)
            if row is None:
                return  # deleted or expired since
            view = entry.view
            then = [user_id for user_id in view.audience if view.joined.get(user_id, 1) <= posted.seq]
            message = {name: row[name] for name in _SHOWN} | {"reactions": ()}
            self._send(entry, view._replace(audience=then), message, time.monotonic())
        except Exception as error:  # the sender has its ack; the others find the message by /sync
            self._sent.discard(posted.id)
            self._sent_before.discard(posted.id)
            entry.context.run(_not_told, error)

    def _note_sent(self, message_id: UUID) -> None:
        self._sent.add(message_id)
        if len(self._sent) == SENT // 2:
            self._sent_before, self._sent = self._sent, set()

    def _tell(self, entry: _Entry[Any], posted: Posted, committed: float) -> None:
        post, view = entry.post, entry.view
        message: dict[str, Any] = {
            "id": str(post.id),  # as text, for orjson calls Python for each NativeUUID
            "chat_id": str(post.chat_id),
            "seq": posted.seq,
            "sender_id": None if post.sender_id is None else str(post.sender_id),
            "client_id": str(post.client_id),
            "encrypted_payload": b64(post.payload),
            "message_type": post.message_type,
            "metadata": post.metadata or {},
            "reply_to": post.reply_to,
            "reply_to_seq": entry.reply_to_seq,
            "forwarded_from": post.forwarded_from,
            "reactions": (),
            "created_at": posted.created_at,
            "edited_at": None,
            "expires_at": posted.expires_at,
        }
        self._send(entry, view, message, committed)

    def _send(self, entry: _Entry[Any], view: View, message: dict[str, Any], began: float) -> None:
        post = entry.post
        if view.type == "channel":
            message["reaction_counts"] = ()
        frame = {
            "type": "message_new",
            "chat_id": message["chat_id"],
            "seq": message["seq"],
            "created_at": message["created_at"],
            "message": message,
        }
        self._delivery.send(
            post.chat_id, view.access, view.audience, frame, by=post.sender_id, skip=entry.skip, began=began
        )
        self._alerts.message(post.chat_id, view.audience, post.sender_id)

    async def _look_again(self, entry: _Entry[Any]) -> None:
        """The chat has changed since the message was let in: judge it by what it is now."""
        entry.looks += 1
        post = entry.post
        try:
            view = await self._access.view(post.chat_id, entry.view.access + 1)
        except Away:
            entry.refused(Unavailable())
            return
        if view is None or not (view.has(post.sender_id) if post.sender_id else view.live):
            entry.refused(NotFound("There is no such chat."))
        elif post.sender_id is not None and not view.may_post(post.sender_id):
            entry.refused(Forbidden("You may not post here."))
        elif entry.looks > LOOKS:
            entry.refused(Unavailable())
        else:
            entry.view, entry.post = view, post._replace(access=view.access)
            self._queue.put_back(post.sender_id or post.chat_id, len(post.payload) + ROW, entry)
            self._writer.wake()


def _not_told(error: Exception) -> None:
    log.error("message_not_told", exc_info=error)


def _meaning(error: asyncpg.PostgresError) -> ApiError:
    """What an error of the database means to who posted this one message."""
    if isinstance(error, asyncpg.ForeignKeyViolationError):  # the sender's account, or what it replies to, is gone
        return NotFound("What this message refers to is gone.")
    if not isinstance(error, MET):
        log.error("message_not_stored", exc_info=error)
    return Unavailable()
