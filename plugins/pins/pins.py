"""Pins: who may pin and unpin messages of a chat, and who sees which pins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

from handlers.wire.answers import Message
from handlers.wire.errors import Conflict, Forbidden, NotFound
from models.chats import chat_list, pins
from models.chats.changes import ChatChanges
from models.chats.events import Change
from models.chats.message_row import message_fields
from models.chats.visibility import GOVERNING
from models.database import Database, Row
from plugins.pins import shapes


class Pins:
    def __init__(self, db: Database, changes: ChatChanges) -> None:
        self._db, self._changes = db, changes

    async def listed(self, user_id: UUID, chat_id: UUID, query: shapes.PinsQuery) -> tuple[list[shapes.Pin], bool]:
        """A page of pins whose messages the user sees, the newest first, and whether there are more. Raises
        NotFound."""
        await self._check_participant(user_id, chat_id)
        rows, more = await pins.listed(self._db, user_id, chat_id, before=query.before_seq, limit=query.limit)
        return [_pin(row) for row in rows], more

    async def pin(self, user_id: UUID, message_id: UUID) -> None:
        """Pin a message; nothing changes if it is pinned. Raises NotFound, Forbidden, Conflict in a full chat."""
        async with self._locked(user_id, message_id) as (change, seq):
            if await pins.pin(change, message_id, seq, shapes.MAX_PINS) is None:
                raise Conflict(f"A chat can have at most {shapes.MAX_PINS} pinned messages. Unpin one first.")

    async def unpin(self, user_id: UUID, message_id: UUID) -> None:
        """Unpin a message; nothing changes if it is not pinned. Raises NotFound, Forbidden."""
        async with self._locked(user_id, message_id) as (change, seq):
            await pins.unpin(change, message_id, seq)

    async def unpin_all(self, user_id: UUID, chat_id: UUID) -> None:
        """Unpin all messages of a chat. Raises NotFound, Forbidden."""
        await self._check_participant(user_id, chat_id)
        async with self._changes.lock(chat_id, user_id) as change:
            if change is None or change.role is None:
                raise NotFound("There is no such chat.")
            _check_right(change)
            await pins.unpin_all(change)

    async def _check_participant(self, user_id: UUID, chat_id: UUID) -> None:
        if await chat_list.membership_of(self._db, user_id, chat_id) is None:
            raise NotFound("There is no such chat.")

    @asynccontextmanager
    async def _locked(self, user_id: UUID, message_id: UUID) -> AsyncIterator[tuple[Change, int]]:
        """A message that the user sees and may pin, by its seq, with its chat locked. Raises NotFound, Forbidden."""
        async with self._changes.lock_message(user_id, message_id) as found:
            if found is None:
                raise NotFound("There is no such message.")
            change, row = found
            _check_right(change)
            yield change, row["seq"]


def _check_right(change: Change) -> None:
    """Raises Forbidden."""
    if not change.is_pair and change.role not in GOVERNING:
        raise Forbidden("Only the owner and admins can pin messages here.")
    if not change.may_write:
        raise Forbidden("You may only read here.")


def _pin(row: Row) -> shapes.Pin:
    message = cast(Message, message_fields(row))
    return {"seq": row["pin_seq"], "pinned_by": row["pinned_by"], "pinned_at": row["pinned_at"], "message": message}
