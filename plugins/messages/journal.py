"""The journal: stores the messages of many users in one statement, and sends them after the commit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
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
from models.chats import messages, posting
from models.chats.access import Access, View
from models.chats.posting import Post, Posted
from models.database import COMMAND_SECONDS, Database
from models.database import Unavailable as DatabaseUnavailable

log = structlog.get_logger(__name__)

BATCH_MESSAGES = 128  # in one statement: enough to share its commit, few enough not to delay the last one
BATCH_BYTES = 1 << 20  # of payloads in one statement, because all others wait for its commit
QUEUE_MESSAGES = 4096  # some 0.3 s of work; beyond it the sender receives `unavailable`
QUEUE_BYTES = 32 << 20  # of payloads in the queue
ROW_BYTES = 512  # of a message besides its payload: a row and its index entries
QUANTUM_BYTES = 4096  # of a sender in each turn: some text messages
MAX_ATTEMPTS = 5  # after a conflict or a change of the chat; then the sender receives `unavailable`
# Age of a stored message at which a repetition of it is sent to the others. A commit times out after COMMAND_SECONDS; a
# younger message is being sent right now.
MIN_AGE, MAX_AGE = timedelta(seconds=COMMAND_SECONDS), timedelta(seconds=60)
MAX_SENT_IDS = 65_536  # sent messages that are remembered, at least half of them, so that each is sent once; 8 MB
# Two instances conflict: both store the same client_id, or they deadlock.
CONFLICTS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError)
# The columns of a message that are in its frame.
_SHOWN = ("id", "chat_id", "seq", "sender_id", "client_id", "encrypted_payload", "message_type", "metadata", "reply_to",
          "reply_to_seq", "forwarded_from", "created_at", "edited_at", "expires_at")  # fmt: skip

A = TypeVar("A")


class _Entry(Generic[A]):
    """A message in the queue, with the view that let its sender post, the function that makes the response, the socket
    to skip, and the context of its request, whose id is logged with it."""

    __slots__ = ("answer", "answered", "attempts", "context", "post", "reply_to_seq", "skip", "view")

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
        self.attempts = 0

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
    """Stores messages by group commit: one task writes the messages that arrived during the last commit.

    It does not wait for more: a single message is written at once. The response to a message and its frame to the
    others follow the commit. The statement checks that the chat's access has not changed since the message was let
    in; if it has, the sender's right is checked again.
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
        # Ids of messages that this instance has sent: the newest, and those before them.
        self._sent: set[UUID] = set()
        self._sent_before: set[UUID] = set()
        self._sending: set[asyncio.Task[None]] = set()
        # By sender; sealed messages, which have no sender, by inbox.
        self._queue: FairQueue[UUID, _Entry[Any]] = FairQueue(QUANTUM_BYTES, QUEUE_MESSAGES, QUEUE_BYTES)
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
        metrics.add_gauge(
            "mimu_journal_queue_bytes", "Bytes of the messages that wait for a commit.", lambda: self._queue.weight
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write until the block ends; then write the rest of the queue."""
        self._loop = asyncio.get_running_loop()
        async with self._db.open(), self._writer.running():
            try:
                yield
            finally:
                await self._writer.idle()
                await asyncio.gather(*self._sending)

    def put(
        self,
        post: Post,
        view: View,
        answer: Callable[[Post, Posted], A],
        skip: str = "",
        reply_to_seq: int | None = None,
    ) -> asyncio.Future[A]:
        """Queue a message that ``view`` lets in. Once it is stored, send it to all participants except socket ``skip``.

        The future's result is that of ``answer``, from the message and its place. Messages of one sender are stored and
        answered in order, except those that have to be checked again. Senders take turns. Raises Unavailable, at once
        or later, also if only this sender's share of the queue is full; the message may then have been stored or not,
        and the sender may post the same client_id again.
        """
        sender, weight = post.sender_id or post.chat_id, len(post.payload) + ROW_BYTES
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
            except Exception as error:  # any error: the next ones must be written
                log.error("journal_failed", exc_info=error)
                for entry in batch:
                    entry.refused(Unavailable())

    def _take(self) -> list[_Entry[Any]]:
        """Take the next batch. A second message with the same client_id waits for the batch after it."""
        return self._queue.take(BATCH_MESSAGES, BATCH_BYTES, _identity)

    async def _store(self, batch: Sequence[_Entry[Any]]) -> None:
        began = time.monotonic()
        try:
            with self._traces.batch([entry.context for entry in batch]):
                found = await posting.post(self._db, [entry.post for entry in batch])
        except DatabaseUnavailable:
            for entry in batch:
                entry.refused(Unavailable())
            return
        except asyncpg.PostgresError as error:
            if len(batch) == 1:
                [entry] = batch
                if isinstance(error, CONFLICTS) and entry.attempts < MAX_ATTEMPTS:
                    entry.attempts += 1
                    await self._store(batch)  # another instance was first, and its change is visible now
                else:
                    entry.refused(entry.context.run(_api_error, error))
                return
            # One of them is invalid, or two instances conflict: store each alone, and reject only that one.
            for entry in batch:
                await self._store([entry])
            return
        committed = time.monotonic()
        self._sizes.observe(len(batch))
        self._seconds.observe(committed - began)
        stale, sent = [], []
        for entry, posted in zip(batch, found, strict=True):
            if posted is None:
                stale.append(entry)
                continue
            if posted.payload_hash is None:
                try:
                    self._send_new(entry, posted, committed)
                    sent.append(posted.id)
                except Exception as error:  # all are stored: go on to send and acknowledge them
                    entry.context.run(_log_not_sent, error)
            entry.stored(posted)
            if posted.payload_hash is not None:
                self._send_repeated(entry, posted)
        self._note_sent(sent)
        for entry in stale:
            await self._judge_again(entry)

    def _send_repeated(self, entry: _Entry[Any], posted: Posted) -> None:
        """Send a message that was stored before, if it is recent and this instance has not sent it: if the commit timed
        out, its sender received `unavailable`, and nothing was sent to the others. If another instance has sent it,
        clients drop the duplicate."""
        post, age = entry.post, datetime.now(UTC) - posted.created_at
        same = (posted.payload_hash, posted.chat_id) == (post.payload_hash, post.chat_id)
        sent = posted.id in self._sent or posted.id in self._sent_before
        if not same or sent or not MIN_AGE <= age < MAX_AGE:
            return
        self._note_sent([posted.id])
        task = asyncio.create_task(self._load_and_send(entry, posted))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _load_and_send(self, entry: _Entry[Any], posted: Posted) -> None:
        try:
            row = await messages.get(self._reading, posted.id, entry.post.sender_id or entry.post.chat_id)
            if row is None:
                return  # deleted or expired since
            view = entry.view
            audience = [user_id for user_id in view.audience if view.joined.get(user_id, 1) <= posted.seq]
            message = {name: row[name] for name in _SHOWN} | {"reactions": ()}
            self._send(entry, view._replace(audience=audience), message, time.monotonic())
        except Exception as error:  # the sender has the ack; the others find the message through /sync
            self._sent.discard(posted.id)
            self._sent_before.discard(posted.id)
            entry.context.run(_log_not_sent, error)

    def _note_sent(self, message_ids: Iterable[UUID]) -> None:
        self._sent.update(message_ids)
        if len(self._sent) >= MAX_SENT_IDS // 2:
            self._sent_before, self._sent = self._sent, set()

    def _send_new(self, entry: _Entry[Any], posted: Posted, committed: float) -> None:
        post, view = entry.post, entry.view
        message: dict[str, Any] = {
            "id": str(post.id),  # as text, because orjson calls Python for each NativeUUID
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

    async def _judge_again(self, entry: _Entry[Any]) -> None:
        """Check a message by the present view, because its chat has changed since it was let in."""
        entry.attempts += 1
        post = entry.post
        try:
            view = await self._access.view(post.chat_id, entry.view.access + 1)
        except DatabaseUnavailable:
            entry.refused(Unavailable())
            return
        if view is None or not (view.has(post.sender_id) if post.sender_id else view.live):
            entry.refused(NotFound("There is no such chat."))
        elif post.sender_id is not None and not view.may_post(post.sender_id):
            entry.refused(Forbidden("You can't post in this chat."))
        elif entry.attempts > MAX_ATTEMPTS:
            entry.refused(Unavailable())
        else:
            entry.view, entry.post = view, post._replace(access=view.access)
            self._queue.put_back(post.sender_id or post.chat_id, len(post.payload) + ROW_BYTES, entry)
            self._writer.wake()


def _log_not_sent(error: Exception) -> None:
    log.error("message_not_sent", exc_info=error)


def _api_error(error: asyncpg.PostgresError) -> ApiError:
    """The error that the sender of one message receives for an error of the database."""
    if isinstance(error, asyncpg.ForeignKeyViolationError):  # the account or a message that it refers to is gone
        return NotFound("A message that this one refers to no longer exists.")
    if not isinstance(error, CONFLICTS):
        log.error("message_not_stored", exc_info=error)
    return Unavailable()
