"""Receipts: how far a participant has received and read a chat."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers.http.pages import PageQuery
from handlers.sockets.hub import Hub
from handlers.wire.errors import NotFound
from handlers.wire.frames import chat_changed
from models.chats import receipts, views
from models.chats.changes import ChatChanges
from models.database import Database
from plugins.messages.marks import Marks
from plugins.messages.shapes import Receipt

_NO_CHAT = NotFound("There is no such chat.")


class Receipts:
    def __init__(self, db: Database, hub: Hub, changes: ChatChanges, marks: Marks) -> None:
        self._db, self._hub, self._changes, self._marks = db, hub, changes, marks

    async def advance(self, user_id: UUID, chat_id: UUID, request: Receipt) -> dict[str, Any]:
        """Move the user's watermarks forward. Returns where they are now, and what is unread. Raises NotFound."""
        after = await receipts.advance(self._changes, user_id, chat_id, request.delivered_seq, request.read_seq)
        if after is None:
            raise _NO_CHAT
        if after.moved:
            self._marks.announce(chat_id, user_id, after.viewers)
        # Also for a receipt that moves nothing, because the user has opened the chat.
        if request.read_seq > 0 and after.marked_unread and await views.clear_unread_mark(self._db, user_id, chat_id):
            self._hub.send(user_id, chat_changed(chat_id))
        return {name: getattr(after, name) for name in ("delivered_seq", "read_seq", "unread_count")}

    async def marks(self, user_id: UUID, chat_id: UUID) -> list[dict[str, Any]]:
        """The marks of a chat that the user may see. Raises NotFound."""
        marks = await receipts.marks(self._db, user_id, chat_id)
        if marks is None:
            raise _NO_CHAT
        return marks

    async def reads(self, user_id: UUID, message_id: UUID, query: PageQuery) -> list[dict[str, Any]]:
        """A page of the readers of a message that the user sent, and one more if there is one. Raises NotFound."""
        reads = await receipts.reads(self._db, user_id, message_id, query.limit + 1, query.cursor)
        if reads is None:
            raise NotFound("You have not sent this message.")
        return [dict(row) for row in reads]
