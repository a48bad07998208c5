"""Messages: who may post, edit, delete, react to and read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

from asyncpg import LockNotAvailableError

from handlers.sockets.hub import Peer
from handlers.wire.errors import Conflict, Fault, Forbidden, InvalidRequest, NotFound
from models.chats import chat_list as listing
from models.chats import expiry, messages
from models.chats.access import Access, View
from models.chats.changes import ChatChanges
from models.chats.events import Change
from models.chats.messages import Posted
from models.database import Database, Row, Unavailable
from models.sweeps import UNWATCHED, RowsFailed, Sweep, Sweeper, Watch
from plugins.messages import shapes
from plugins.messages.ids import new_id, payload_hash
from plugins.messages.journal import Journal

REACTIONS = 20  # kinds a user and message, contract section 7
EXPIRED_AT_ONCE, EXPIRING = 500, 10.0  # messages of a batch, seconds of a run
A = TypeVar("A")
NO_CHAT, NO_MESSAGE = "There is no such chat.", "There is no such message."


def _post(user_id: UUID, chat_id: UUID, request: shapes.Post, access: int) -> messages.Post:
    return messages.Post(
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


def check_repetition(post: messages.Post, posted: Posted) -> tuple[Posted, bool]:
    """Where a message stands, and whether it stood there before. Raises Conflict when that is another message."""
    if posted.payload_hash is None:
        return posted, False
    if posted.payload_hash != post.payload_hash or posted.chat_id != post.chat_id:
        raise Conflict("Another message was posted under this client_id.")
    return posted, True


def _acked(post: messages.Post, posted: Posted) -> shapes.Sent:
    posted, repeated = check_repetition(post, posted)
    answer: shapes.Sent = {
        "message_id": str(posted.id),
        "chat_id": str(posted.chat_id),
        "seq": posted.seq,
        "created_at": posted.created_at,
    }
    return {**answer, "repeated": True} if repeated else answer


class Messages:
    """What users do with messages. Of what they may not see they are told that it does not exist."""

    def __init__(
        self, db: Database, access: Access, changes: ChatChanges, journal: Journal, sweeps: Watch = UNWATCHED
    ) -> None:
        self._db, self._access, self._changes, self._journal = db, access, changes, journal
        self._expiry = Sweeper(db, sweeps, Sweep(expiry.EXPIRED, self._expire, EXPIRED_AT_ONCE))

    # Posting ----------------------------------------------------------------------------------------------------------

    # Two ways lead to the journal: ``send`` puts there at once what a remembered view lets in, and everything else goes
    # through ``_judge_and_store``.

    def send(self, peer: Peer, request: shapes.Send) -> Awaitable[shapes.Sent]:
        """The frame ``message_send``; acknowledged after the commit. Returns a future where nothing is awaited before
        the journal, so that a phone may send all that it has and needn't wait for each commit."""
        user_id = peer.session.user_id
        view = self._access.remembered(request.chat_id)
        if view is None or not view.may_post(user_id) or request.reply_to or request.forwarded_from:
            return self._judge_and_store(user_id, request.chat_id, request, _acked, peer.peer_id)
        post = _post(user_id, request.chat_id, request, view.access)
        return self._journal.put(post, view, _acked, peer.peer_id)

    async def post(self, user_id: UUID, chat_id: UUID, request: shapes.Post) -> tuple[Posted, bool]:
        """Store a message of a request: where it stands, and whether it stood there before. Raises NotFound, Forbidden,
        InvalidRequest, Conflict (the client_id names another message), Unavailable."""
        return await self._judge_and_store(user_id, chat_id, request, check_repetition)

    async def _judge_and_store(
        self,
        user_id: UUID,
        chat_id: UUID,
        request: shapes.Post,
        answer: Callable[[messages.Post, Posted], A],
        skip: str = "",
    ) -> A:
        """Store a message. One that was stored before gets its answer again, whatever became of the sender's rights, of
        the chat or of what it replies to."""
        try:
            view, reply_to_seq = await self._judge(user_id, chat_id, request)
        except (NotFound, Forbidden, InvalidRequest):
            stored = await messages.stored(self._db, user_id, request.client_id)
            if stored is None:
                raise
            return answer(_post(user_id, chat_id, request, 0), stored)
        return await self._journal.put(_post(user_id, chat_id, request, view.access), view, answer, skip, reply_to_seq)

    async def _judge(self, user_id: UUID, chat_id: UUID, request: shapes.Post) -> tuple[View, int | None]:
        """The view by which the user may post, and the seq of what the message replies to."""
        view = self._access.remembered(chat_id)
        if view is None or not view.may_post(user_id):
            view = await self._access.fresh(chat_id)  # they may have been let in a moment ago
        if view is None or not view.has(user_id):
            raise NotFound(NO_CHAT)
        if not view.may_post(user_id):
            raise Forbidden("You may not post here.")
        if request.reply_to is None and request.forwarded_from is None:
            return view, None
        return view, await self._judge_references(user_id, chat_id, request)

    async def _judge_references(self, user_id: UUID, chat_id: UUID, request: shapes.Post) -> int | None:
        """A reply stays in its chat; what is forwarded is a message that the sender sees. The seq replied to."""
        faults, seq = [], None
        if request.reply_to is not None:
            seen = await messages.seen_by(self._db, request.reply_to, user_id)
            if seen is None or seen["chat_id"] != chat_id:
                faults.append(Fault("reply_to", "no such message in this chat"))
            else:
                seq = seen["seq"]
        forwarded = request.forwarded_from
        if forwarded is not None and await messages.seen_by(self._db, forwarded, user_id) is None:
            faults.append(Fault("forwarded_from", "no such message"))
        if faults:
            raise InvalidRequest("Some fields are not valid.", details=faults)
        return seq

    # Reading ----------------------------------------------------------------------------------------------------------

    async def history(
        self, user_id: UUID, chat_id: UUID, query: shapes.HistoryQuery
    ) -> tuple[list[dict[str, Any]], bool]:
        """A page of messages, and whether there are more: the oldest first behind ``after_seq``, else the newest first.
        Raises NotFound."""
        if await listing.place_of(self._db, user_id, chat_id) is None:
            raise NotFound(NO_CHAT)
        rows, more = await messages.history(
            self._db, user_id, chat_id, before=query.before_seq, after=query.after_seq, limit=query.limit
        )
        return [_shown(row) for row in rows], more

    async def get(self, user_id: UUID, message_id: UUID) -> dict[str, Any]:
        """One message that the user may see. Raises NotFound."""
        row = await messages.visible(self._db, user_id, message_id)
        if row is None:
            raise NotFound(NO_MESSAGE)
        return shown(dict(row))

    # Changing ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _lock_message(self, user_id: UUID, message_id: UUID) -> AsyncIterator[tuple[Change, Row]]:
        """A message that the user sees, with its chat locked. Raises NotFound."""
        seen = await messages.seen_by(self._db, message_id, user_id)
        if seen is None:
            raise NotFound(NO_MESSAGE)
        async with self._changes.lock(seen["chat_id"], user_id) as change:
            if change is None or change.role is None:
                raise NotFound(NO_MESSAGE)
            row = await messages.get(self._db, message_id, user_id)
            if row is None or row["seq"] < change.seen_from:
                raise NotFound(NO_MESSAGE)
            yield change, row

    async def edit(self, user_id: UUID, message_id: UUID, request: shapes.Edit) -> dict[str, Any]:
        """Replace the payload of one's own message; the message after it. Raises NotFound, Forbidden."""
        async with self._lock_message(user_id, message_id) as (change, row):
            if row["sender_id"] != user_id or not change.may_write:
                raise Forbidden("Only its sender edits a message, while they may post.")
            await messages.edit(change, message_id, request.encrypted_payload, request.message_type, request.metadata)
            after = shown(dict(await messages.get(self._db, message_id, user_id) or {}))
            # In a channel reactions are each reader's own, and the frame is one for all: an edit leaves them alone.
            sent = {**after, "reactions": []} if change.type == "channel" else after
            await change.append(
                "message_edited", message_id=message_id, user_id=user_id, fields={"message": sent}, about=row["seq"]
            )
        return after

    async def delete(self, user_id: UUID, message_id: UUID) -> None:
        """Erase one's own message, or as admin of a chat of many anybody's. Raises NotFound, Forbidden."""
        async with self._lock_message(user_id, message_id) as (change, row):
            governs = change.role in ("owner", "admin") and not change.two
            if row["sender_id"] != user_id and not governs and not self._inbox(change, row):
                raise Forbidden("Only its sender, or an admin of the chat, deletes a message.")
            await messages.erase(change, [message_id], "deleted")

    @staticmethod
    def _inbox(change: Change, row: Row) -> bool:
        """Whether it is a message in one's own sealed inbox."""
        return row["sender_id"] is None and change.participant_count == 1

    async def react(self, user_id: UUID, message_id: UUID, emoji: str) -> None:
        """React; again changes nothing. Raises NotFound, Forbidden, Conflict beyond the kinds that one may have."""
        async with self._lock_message(user_id, message_id) as (change, row):
            if not change.may_write:
                raise Forbidden("You may only read here.")
            if await messages.react(change, message_id, row["seq"], emoji, REACTIONS) is None:
                raise Conflict(f"One has at most {REACTIONS} reactions to a message.")

    async def unreact(self, user_id: UUID, message_id: UUID, emoji: str) -> None:
        """Take a reaction back; where there is none nothing changes. Raises NotFound."""
        async with self._lock_message(user_id, message_id) as (change, row):
            await messages.unreact(change, message_id, row["seq"], emoji)

    # Disappearing -----------------------------------------------------------------------------------------------------

    async def expire(self) -> None:
        """Erase what has had its time; on whichever instance comes first."""
        await self._expiry.run(EXPIRING)

    async def _expire(self, limit: int) -> int:
        """Erase what has had its time, at most so many messages; how many that were. Raises, after the other chats,
        RowsFailed for the messages of those that somebody else holds, or what another one failed with."""
        erased, held = 0, []
        failed: Exception | None = None
        for chat_id, message_ids in await expiry.expired(self._db, limit):
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


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A message as clients get it."""
    return _shown(row)


def _shown(row: Any) -> dict[str, Any]:
    message = {name: value for name, value in row.items() if name not in _NOT_SHOWN}
    if message["reaction_counts"] is None:
        del message["reaction_counts"]  # they are of channels
    return message


_NOT_SHOWN = frozenset(("number", "until", "hidden", "gone", "reason", "size", "total", "more", "place", "wanted"))
