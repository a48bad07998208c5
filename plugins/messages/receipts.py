"""Receipts: how far a participant has received and read a chat."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers.answers import account_changed
from handlers.delivery import Delivery
from handlers.errors import NotFound
from models import receipts, views
from models.changes import changing
from models.database import Database
from plugins.messages.shapes import Receipt


class Receipts:
    def __init__(self, db: Database, delivery: Delivery) -> None:
        self._db, self._delivery = db, delivery

    async def advance(self, user_id: UUID, chat_id: UUID, request: Receipt) -> dict[str, Any]:
        """Move the user's watermarks forward; where they are now, and what is unread. Raises NotFound."""
        async with changing(self._db, chat_id, user_id) as change:
            if change is None or change.role is None:
                raise NotFound("There is no such chat.")
            unmarked = request.read_seq > 0 and await views.read(change)
            marks = await receipts.advance(change, request.delivered_seq, request.read_seq)
        await self._delivery.announce(chat_id, change.access, [event.frame for event in change.events], by=user_id)
        if unmarked:
            self._delivery.tell(chat_id, change.access, [user_id], account_changed("chat", chat_id), by=user_id)
        return marks._asdict()
