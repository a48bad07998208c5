"""Pins: messages that a chat keeps at hand, each with its event."""

from __future__ import annotations

from uuid import UUID

import peewee

from models.chats.events import Change
from models.chats.message_row import MESSAGE_SIZE, message_columns
from models.chats.messages import FOR_PARTICIPANT, Message, note_accepted
from models.chats.visibility import UNEXPIRED, VISIBLE
from models.database import Database, Row, Table
from models.paging import cut, more_behind
from models.users import User


class PinnedMessage(Table):
    """``seq`` is that of the event ``message_pinned``."""

    message = peewee.ForeignKeyField(Message, primary_key=True, on_delete="CASCADE")
    chat_id = peewee.UUIDField()
    seq = peewee.BigIntegerField()
    pinned_by = peewee.ForeignKeyField(User, null=True, column_name="pinned_by", on_delete="SET NULL")
    pinned_at = peewee.DateTimeField()

    class Meta:
        table_name = "pinned_messages"


_PINS = f"""SELECT {message_columns("$1")}, pin.seq AS pin_seq, pin.pinned_by, pin.pinned_at
    FROM {FOR_PARTICIPANT} JOIN pinned_messages pin ON pin.message_id = m.id
    WHERE pin.chat_id = $2 AND pin.seq < $3 AND {VISIBLE}"""
_PIN_SIZE = f"({MESSAGE_SIZE} + 200)"
_NEWEST_FIRST = cut(_PINS, _PIN_SIZE, "pin_seq DESC", "$4")


async def listed(
    db: Database, user_id: UUID, chat_id: UUID, *, before: int | None, limit: int
) -> tuple[list[Row], bool]:
    """A page of the pinned messages of a chat that a user sees, with ``pin_seq, pinned_by, pinned_at``, the newest pin
    first; and whether there are more."""
    rows = await db.fetch(_NEWEST_FIRST, user_id, chat_id, before or 2**63 - 1, limit)
    return rows, more_behind(rows)


# The pins of chat $1 whose message is still there.
_LIVE = f"pinned_messages pin JOIN messages m ON m.id = pin.message_id AND m.seq > 0 AND {UNEXPIRED}"


async def pin(change: Change, message_id: UUID, seq: int, at_most: int) -> bool | None:
    """Pin the message at a seq. False if it was pinned; None if the chat has ``at_most`` pins already."""
    if await change.db.exists(PinnedMessage.select().where(PinnedMessage.message == message_id)):
        return False
    if await change.db.value(f"SELECT count(*) FROM {_LIVE} WHERE pin.chat_id = $1", change.chat_id) >= at_most:
        return None
    event = await change.append("message_pinned", message_id=message_id, user_id=change.user_id, about=seq)
    await change.db.do(
        PinnedMessage.insert(
            message=message_id,
            chat_id=change.chat_id,
            seq=event.seq,
            pinned_by=change.user_id,
            pinned_at=event.created_at,
        )
    )
    await note_accepted(change)
    return True


async def unpin(change: Change, message_id: UUID, seq: int) -> bool:
    """Unpin the message at a seq. False if it was not pinned."""
    if not await change.db.do(PinnedMessage.delete().where(PinnedMessage.message == message_id)):
        return False
    await change.append("message_unpinned", message_id=message_id, user_id=change.user_id, about=seq)
    return True


async def unpin_all(change: Change) -> None:
    """Unpin all messages of a chat, also those that the participant doesn't see, each with an event."""
    rows = await change.db.fetch(
        f"SELECT m.id, m.seq FROM {_LIVE} WHERE pin.chat_id = $1 ORDER BY pin.seq", change.chat_id
    )
    for row in rows:
        await unpin(change, row["id"], row["seq"])
