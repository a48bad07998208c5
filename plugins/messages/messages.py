"""Messages: check who may post, edit, delete, react to and read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

from asyncpg import LockNotAvailableError

from handlers.sockets.hub import Peer
from handlers.wire.errors import Conflict, Fault, Forbidden, InvalidRequest, NotFound
from models.chats import chat_list, expiry, messages, posting
from models.chats.access import Access, View
from models.chats.changes import ChatChanges
from models.chats.events import Change
from models.chats.message_row import message_fields
from models.chats.posting import Posted
from models.database import Database, Row, Unavailable
from models.sweeps import UNWATCHED, RowsFailed, Sweep, Sweeper, Watch
from plugins.messages import shapes
from plugins.messages.ids import new_id, payload_hash
from plugins.messages.journal import Journal

MAX_REACTIONS = 20  # kinds of a user on a message, contract section 7
EXPIRY_BATCH, EXPIRY_SECONDS = 500, 10.0  # messages of a batch, seconds of a run
A = TypeVar("A")
NO_CHAT, NO_MESSAGE = "There is no such chat.", "There is no such message."


def _post(user_id: UUID, chat_id: UUID, request: shapes.Post, access: int) -> posting.Post:
    return posting.Post(
        new_id(),
        chat_id,
        user_id,
        request.client_id,
        request.encrypted_payload,
        payload_hash(request.encrypted_payload),
        request.message_type,
        request.metadata,
        request.reply_to,
        request.forwarded_from,
        request.expires_in,
        access,
    )


def check_repetition(post: posting.Post, posted: Posted) -> tuple[Posted, bool]:
    """The place of a message, and True if it was posted before. Raises Conflict if that was another message."""
    if posted.payload_hash is None:
        return posted, False
    if posted.payload_hash != post.payload_hash or posted.chat_id != post.chat_id:
        raise Conflict("You have already posted another message with this client_id.")
    return posted, True


def _ack(post: posting.Post, posted: Posted) -> shapes.Sent:
    posted, repeated = check_repetition(post, posted)
    answer: shapes.Sent = {
        "message_id": str(posted.id),
        "chat_id": str(posted.chat_id),
        "seq": posted.seq,
        "created_at": posted.created_at,
    }
    return {**answer, "repeated": True} if repeated else answer


class Messages:
    """What users do with messages. A message that a user may not see does not exist for them."""

    def __init__(
        self, db: Database, access: Access, changes: ChatChanges, journal: Journal, sweeps: Watch = UNWATCHED
    ) -> None:
        self._db, self._access, self._changes, self._journal = db, access, changes, journal
        self._expiry = Sweeper(db, sweeps, Sweep(expiry.EXPIRED, self._expire, EXPIRY_BATCH))

    # Posting ----------------------------------------------------------------------------------------------------------

    # There are two ways to post: ``send`` puts a message into the journal at once if a view in the cache lets it in;
    # all other messages go through ``_check_and_store``.

    def send(self, peer: Peer, request: shapes.Send) -> Awaitable[shapes.Sent]:
        """Post the message of a frame ``message_send``; the ack follows the commit. Returns a future if nothing has to
        be awaited before the journal, so that a phone can send all its messages without waiting for each commit."""
        user_id = peer.session.user_id
        view = self._access.cached(request.chat_id)
        if view is None or not view.may_post(user_id) or request.reply_to or request.forwarded_from:
            return self._check_and_store(user_id, request.chat_id, request, _ack, peer.peer_id)
        post = _post(user_id, request.chat_id, request, view.access)
        return self._journal.put(post, view, _ack, peer.peer_id)

    async def post(self, user_id: UUID, chat_id: UUID, request: shapes.Post) -> tuple[Posted, bool]:
        """Post the message of a request. Returns its place, and True if it was posted before. Raises NotFound,
        Forbidden, InvalidRequest, Conflict (the client_id names another message), Unavailable."""
        return await self._check_and_store(user_id, chat_id, request, check_repetition)

    async def _check_and_store(
        self,
        user_id: UUID,
        chat_id: UUID,
        request: shapes.Post,
        answer: Callable[[posting.Post, Posted], A],
        skip: str = "",
    ) -> A:
        """Store a message. One that was stored before gets the same response again, even if the sender has lost their
        rights, or the chat or the message it replies to is gone."""
        try:
            view, reply_to_seq = await self._check(user_id, chat_id, request)
        except (NotFound, Forbidden, InvalidRequest):
            stored = await posting.find_stored(self._db, user_id, request.client_id)
            if stored is None:
                raise
            return answer(_post(user_id, chat_id, request, 0), stored)
        return await self._journal.put(_post(user_id, chat_id, request, view.access), view, answer, skip, reply_to_seq)

    async def _check(self, user_id: UUID, chat_id: UUID, request: shapes.Post) -> tuple[View, int | None]:
        """Check that the user may post. Returns the view, and the seq of the message replied to. Raises NotFound,
        Forbidden, InvalidRequest."""
        view = self._access.cached(chat_id)
        if view is None or not view.may_post(user_id):
            view = await self._access.load(chat_id)  # the user may have just joined
        if view is None or not view.has(user_id):
            raise NotFound(NO_CHAT)
        if not view.may_post(user_id):
            raise Forbidden("You can't post in this chat.")
        if request.reply_to is None and request.forwarded_from is None:
            return view, None
        return view, await self._check_references(user_id, chat_id, request)

    async def _check_references(self, user_id: UUID, chat_id: UUID, request: shapes.Post) -> int | None:
        """Check that the message replied to is in this chat, and that the sender sees the one that they forward.
        Returns the seq of the message replied to. Raises InvalidRequest."""
        faults, seq = [], None
        if request.reply_to is not None:
            seen = await messages.locate_visible(self._db, request.reply_to, user_id)
            if seen is None or seen["chat_id"] != chat_id:
                faults.append(Fault("reply_to", "no such message in this chat"))
            else:
                seq = seen["seq"]
        forwarded = request.forwarded_from
        if forwarded is not None and await messages.locate_visible(self._db, forwarded, user_id) is None:
            faults.append(Fault("forwarded_from", "no such message"))
        if faults:
            raise InvalidRequest("Some fields are not valid.", details=faults)
        return seq

    # Reading ----------------------------------------------------------------------------------------------------------

    async def history(
        self, user_id: UUID, chat_id: UUID, query: shapes.HistoryQuery
    ) -> tuple[list[dict[str, Any]], bool]:
        """A page of messages, and True if there are more: with ``after_seq`` the oldest first, else the newest first.
        Raises NotFound."""
        if await chat_list.membership_of(self._db, user_id, chat_id) is None:
            raise NotFound(NO_CHAT)
        rows, more = await messages.history(
            self._db, user_id, chat_id, before=query.before_seq, after=query.after_seq, limit=query.limit
        )
        return [message_fields(row) for row in rows], more

    async def get(self, user_id: UUID, message_id: UUID) -> dict[str, Any]:
        """One message that the user may see. Raises NotFound."""
        row = await messages.get_visible(self._db, user_id, message_id)
        if row is None:
            raise NotFound(NO_MESSAGE)
        return message_fields(row)

    # Changing ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _lock_message(self, user_id: UUID, message_id: UUID) -> AsyncIterator[tuple[Change, Row]]:
        """Lock the chat of a message that the user sees. Raises NotFound."""
        async with self._changes.lock_message(user_id, message_id) as found:
            if found is None:
                raise NotFound(NO_MESSAGE)
            yield found

    async def edit(self, user_id: UUID, message_id: UUID, request: shapes.Edit) -> dict[str, Any]:
        """Edit a message that the user sent. Returns the new message. Raises NotFound, Forbidden."""
        async with self._lock_message(user_id, message_id) as (change, row):
            if row["sender_id"] != user_id or not change.may_write:
                raise Forbidden("Only its sender can edit a message, and only while they can post in the chat.")
            await messages.edit(change, message_id, request.encrypted_payload, request.message_type, request.metadata)
            edited = await messages.get(self._db, message_id, user_id)
            assert edited is not None  # the time of a transaction stands still, so it has not expired meanwhile
            after = message_fields(edited)
            # In a channel each reader sees only their own reactions, but the frame is the same for all: leave them out.
            sent = {**after, "reactions": []} if change.type == "channel" else after
            await change.append(
                "message_edited", message_id=message_id, user_id=user_id, fields={"message": sent}, about=row["seq"]
            )
        return after

    async def delete(self, user_id: UUID, message_id: UUID) -> None:
        """Erase a message that the user sent; as owner or admin of a chat of many, any message. Raises NotFound,
        Forbidden."""
        async with self._lock_message(user_id, message_id) as (change, row):
            governs = change.role in ("owner", "admin") and not change.is_pair
            if row["sender_id"] != user_id and not governs and not self._is_in_own_inbox(change, row):
                raise Forbidden("Only its sender, the owner and admins of the chat can delete a message.")
            await messages.erase(change, [message_id], "deleted")

    @staticmethod
    def _is_in_own_inbox(change: Change, row: Row) -> bool:
        """True if the message is in the sealed inbox of the user."""
        return row["sender_id"] is None and change.participant_count == 1

    async def react(self, user_id: UUID, message_id: UUID, emoji: str) -> None:
        """Add a reaction. The same one again changes nothing. Raises NotFound, Forbidden, Conflict (too many)."""
        async with self._lock_message(user_id, message_id) as (change, row):
            if not change.may_write:
                raise Forbidden("You can only read in this chat.")
            if await messages.react(change, message_id, row["seq"], emoji, MAX_REACTIONS) is None:
                raise Conflict(f"You can add at most {MAX_REACTIONS} reactions to a message.")

    async def unreact(self, user_id: UUID, message_id: UUID, emoji: str) -> None:
        """Remove a reaction. Does nothing if there is none. Raises NotFound."""
        async with self._lock_message(user_id, message_id) as (change, row):
            await messages.unreact(change, message_id, row["seq"], emoji)

    # Expiring ---------------------------------------------------------------------------------------------------------

    async def expire(self) -> None:
        """Erase expired messages, unless another instance is first."""
        await self._expiry.run(EXPIRY_SECONDS)

    async def _expire(self, limit: int) -> int:
        """Erase at most ``limit`` expired messages. Returns their number. After all chats, raises RowsFailed for the
        messages of chats that are locked, or the last error of another chat."""
        erased, held = 0, []
        failed: Exception | None = None
        for chat_id, message_ids in await expiry.find_expired(self._db, limit):
            try:
                erased += await expiry.expire(self._changes, chat_id, message_ids)
            except LockNotAvailableError as error:
                held += [(f"({chat_id},{message_id})", error) for message_id in message_ids]
                continue
            except Unavailable:
                raise
            except Exception as error:
                failed = error
                continue
        if held:
            raise RowsFailed([key for key, _ in held], held[0][1])
        if failed is not None:
            raise failed
        return erased
