"""ChatChanges: locks a chat for a change, and announces the events of the change after its commit."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from uuid import UUID

from models.chats import messages
from models.chats.events import SEVERED, Change
from models.database import Database, Row

Announce = Callable[[Change], Awaitable[None]]


class ChatChanges:
    """The only place that makes a ``Change``. It passes each one to ``announce`` when the outermost transaction has
    committed, so no caller can forget it; a change that is rolled back is not announced."""

    def __init__(self, db: Database, announce: Announce) -> None:
        self.db, self._announce = db, announce

    @contextlib.asynccontextmanager
    async def lock(
        self, chat_id: UUID, user_id: UUID, *, concealed: bool = False, charged: bool = True
    ) -> AsyncIterator[Change | None]:
        """Lock a chat as a user; yields None if there is no such chat. What the block does commits with it.

        With ``concealed``, also as a participant from whom the chat is concealed. The user is ``charged`` for the
        frames that are sent, unless the server itself is the cause.
        """
        async with self.db.transaction():
            thread = await self.db.row(
                """SELECT type::text, access, participant_count FROM chat_threads
                   WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE""",
                chat_id,
            )
            if thread is None:
                yield None
                return
            # A second statement, after the lock: what it sees can't change any more.
            own = await self.db.row(
                f"""SELECT p.role::text, p.joined_seq, {SEVERED} AS severed
                    FROM chat_threads t JOIN chat_participants p ON p.chat_id = t.id
                    WHERE t.id = $1 AND p.user_id = $2 AND ($3 OR NOT p.concealed)""",
                chat_id,
                user_id,
                concealed,
            )
            change = Change(
                self.db,
                chat_id,
                thread["type"],
                thread["access"],
                thread["participant_count"],
                user_id,
                own["role"] if own else None,
                own["joined_seq"] if own else 0,
                own["severed"] if own else False,
                payer=user_id if charged else None,
            )
            self.db.after_commit(partial(self._announce, change))
            yield change

    @contextlib.asynccontextmanager
    async def lock_message(self, user_id: UUID, message_id: UUID) -> AsyncIterator[tuple[Change, Row] | None]:
        """Lock the chat of a message, and look at both as a user; None when there is no such message that they see."""
        seen = await messages.locate_visible(self.db, message_id, user_id)
        if seen is None:
            yield None
            return
        async with self.lock(seen["chat_id"], user_id) as change:
            if change is None or change.role is None:
                yield None
                return
            row = await messages.get(self.db, message_id, user_id)
            yield (change, row) if row is not None and row["seq"] >= change.seen_from else None

    def start(self, chat_id: UUID, kind: str, participant_count: int, owner: UUID) -> Change:
        """Begin the change that creates a chat, in the transaction that inserted its row."""
        change = Change(self.db, chat_id, kind, 1, participant_count, owner, "owner", 1, payer=owner)
        self.db.after_commit(partial(self._announce, change))
        return change


async def announce_nothing(_: Change) -> None:
    """Announce nothing, for scripts: they have no sockets. Clients find the events through ``/sync``."""
