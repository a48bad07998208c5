"""Messages: read, edit, erase and react to ciphertext with its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import peewee

from models.chats.events import Change
from models.chats.message_row import MESSAGE_SIZE, detached, erased, message_columns
from models.chats.tables import ChatThread
from models.chats.visibility import UNEXPIRED, VISIBLE
from models.database import JSONB, Database, Row, Table
from models.paging import cut, more_behind
from models.users import User


class Message(Table):
    id = peewee.UUIDField(primary_key=True)
    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    sender = peewee.ForeignKeyField(User, null=True, on_delete="SET NULL")
    encrypted_payload = peewee.BlobField()
    message_type = peewee.TextField()
    metadata = JSONB()
    reply_to = peewee.ForeignKeyField("self", null=True, column_name="reply_to", on_delete="SET NULL")
    forwarded_from = peewee.ForeignKeyField("self", null=True, column_name="forwarded_from", on_delete="SET NULL")
    delivered = peewee.BooleanField(default=False)
    edited_at = peewee.DateTimeField(null=True)
    deleted_at = peewee.DateTimeField(null=True)
    expires_at = peewee.DateTimeField(null=True)
    created_at = peewee.DateTimeField()
    seq = peewee.BigIntegerField()
    number = peewee.BigIntegerField()
    position = peewee.BigIntegerField()
    client_id = peewee.UUIDField()
    payload_hash = peewee.BigIntegerField()
    sealed = peewee.BooleanField(default=False)

    class Meta:
        table_name = "messages"


class MessageRead(Table):
    message = peewee.ForeignKeyField(Message, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    read_at = peewee.DateTimeField()

    class Meta:
        table_name = "message_reads"
        primary_key = peewee.CompositeKey("message", "user")


class MessageReaction(Table):
    message = peewee.ForeignKeyField(Message, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    emoji = peewee.TextField()
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "message_reactions"
        primary_key = peewee.CompositeKey("message", "user", "emoji")


# Reading ------------------------------------------------------------------------------------------------------------

# A message ``m`` in its chat ``t``, with the participant ``p`` who requests it, $1.
FOR_PARTICIPANT = """messages m
    JOIN chat_threads t ON t.id = m.chat_id AND t.deleted_at IS NULL
    JOIN chat_participants p ON p.chat_id = m.chat_id AND p.user_id = $1 AND NOT p.concealed"""


async def locate_visible(db: Database, message_id: UUID, user_id: UUID) -> Row | None:
    """``chat_id, seq`` of a message that a user sees, else None."""
    return await db.row(
        f"SELECT m.chat_id, m.seq FROM {FOR_PARTICIPANT} WHERE m.id = $2 AND {VISIBLE}", user_id, message_id
    )


async def get_visible(db: Database, user_id: UUID, message_id: UUID) -> Row | None:
    """A message as a user sees it, else None."""
    return await db.row(
        f"SELECT {message_columns('$1')} FROM {FOR_PARTICIPANT} WHERE m.id = $2 AND {VISIBLE}", user_id, message_id
    )


_HISTORY = f"""SELECT {message_columns("$1")} FROM {FOR_PARTICIPANT}
    WHERE m.chat_id = $2 AND m.seq > $3 AND m.seq < $4 AND {VISIBLE}"""
_NEWEST_FIRST = cut(_HISTORY, MESSAGE_SIZE, "seq DESC", "$5")
_OLDEST_FIRST = cut(_HISTORY, MESSAGE_SIZE, "seq", "$5")


async def history(
    db: Database, user_id: UUID, chat_id: UUID, *, before: int | None, after: int | None, limit: int
) -> tuple[list[Row], bool]:
    """A page of the messages of a chat as a user sees them, and True if there are more. The oldest come first if
    ``after`` is given, else the newest. Empty if the user is not in the chat."""
    rows = await db.fetch(
        _NEWEST_FIRST if after is None else _OLDEST_FIRST, user_id, chat_id, after or 0, before or 2**63 - 1, limit
    )
    return rows, more_behind(rows)


async def get(db: Database, message_id: UUID, viewer: UUID) -> Row | None:
    """A message with its ``number``, as ``viewer`` sees it; None if it is gone. The caller checks their right."""
    return await db.row(
        f"""SELECT {message_columns("$1")}, m.number FROM messages m JOIN chat_threads t ON t.id = m.chat_id
            WHERE m.id = $2 AND m.seq > 0 AND {UNEXPIRED}""",
        viewer,
        message_id,
    )


# Changing: each with the chat locked, in a Change -----------------------------------------------------------------


async def edit(
    change: Change, message_id: UUID, payload: bytes, message_type: str | None, metadata: dict[str, Any] | None
) -> None:
    """Replace a message's payload, and the other columns unless they are None."""
    await change.db.execute(
        """UPDATE messages SET encrypted_payload = $2, message_type = coalesce($3, message_type),
               metadata = coalesce($4, metadata), edited_at = now()
           WHERE id = $1""",
        message_id,
        payload,
        message_type,
        metadata,
    )


# Erases the payload, and puts a row of chat_events in the message's place. If a sender has not read
# past their own message, they have one less to subtract from their unread count.
_ERASE = f"""
WITH doomed AS (
    SELECT id, chat_id, seq, number, position, sender_id, created_at FROM messages
    WHERE chat_id = $1 AND id = ANY ($2::uuid[]) AND seq > 0 FOR UPDATE
), gone AS (
    UPDATE messages m SET {erased("$3::text")} FROM doomed WHERE m.id = doomed.id
), placed AS (
    INSERT INTO chat_events (chat_id, seq, position, type, message_id, data, created_at)
    SELECT chat_id, seq, position, 'message_deleted', id, jsonb_build_object('reason', $3::text), created_at FROM doomed
), {detached("SELECT id FROM doomed")}, own AS (
    UPDATE chat_participants p SET own_after = own_after - many
    FROM (SELECT doomed.sender_id, count(*) AS many FROM doomed
          JOIN chat_participants author ON author.chat_id = $1 AND author.user_id = doomed.sender_id
          WHERE doomed.number > author.read_number GROUP BY doomed.sender_id) AS s
    WHERE p.chat_id = $1 AND p.user_id = s.sender_id
), blocks AS (
    INSERT INTO chat_gone AS known (chat_id, block, numbers, count)
    SELECT $1, number / 4096, range_agg(int8range(number, number, '[]')), count(*) FROM doomed GROUP BY number / 4096
    ON CONFLICT (chat_id, block) DO UPDATE
        SET numbers = known.numbers + excluded.numbers, count = known.count + excluded.count
)
SELECT id, seq FROM doomed ORDER BY seq
"""


_LOCK_SENDERS = """
SELECT 1 FROM chat_participants WHERE chat_id = $1 AND user_id IN (
    SELECT sender_id FROM messages WHERE chat_id = $1 AND id = ANY ($2::uuid[]))
ORDER BY user_id FOR NO KEY UPDATE
"""
_LOCK_MESSAGES = """
SELECT 1 FROM messages WHERE chat_id = $1 AND id = ANY ($2::uuid[]) AND seq > 0 ORDER BY seq FOR UPDATE
"""


async def erase(change: Change, message_ids: Sequence[UUID], reason: str) -> list[UUID]:
    """Erase messages of a chat, and append an event for each. Returns those that were still there."""
    # A receipt does not lock the chat: it locks its participant, then messages. Lock both in the same order, before
    # the statement that reads what receipts write (``read_number``, ``own_after``, ``message_reads``).
    for lock in (_LOCK_SENDERS, _LOCK_MESSAGES):
        await change.db.execute(lock, change.chat_id, list(message_ids))
    rows = await change.db.fetch(_ERASE, change.chat_id, list(message_ids), reason)
    gone = {row["id"]: row["seq"] for row in rows}
    await change.append_for("message_deleted", gone, {"reason": reason})
    return list(gone)


async def note_accepted(change: Change) -> None:
    """Record that the participant has accepted a locked chat, because they acted in it."""
    await change.db.execute(
        """UPDATE chat_participants SET accepted = true
           WHERE chat_id = $1 AND user_id = $2 AND accepted IS DISTINCT FROM true""",
        change.chat_id,
        change.user_id,
    )


# Older servers stored emoji as received: with and without U+FE0F they are the same reaction.
_SELECTOR = "\ufe0f"


async def react(change: Change, message_id: UUID, seq: int, emoji: str, at_most: int) -> bool | None:
    """Add a reaction to the message at a seq. Returns False if it was already there; None if the user already has
    ``at_most`` kinds on this message."""
    known = await change.db.fetch(
        "SELECT emoji FROM message_reactions WHERE message_id = $1 AND user_id = $2", message_id, change.user_id
    )
    if any(row["emoji"].replace(_SELECTOR, "") == emoji.replace(_SELECTOR, "") for row in known):
        return False
    if len(known) >= at_most:
        return None
    await change.db.execute(
        "INSERT INTO message_reactions (message_id, user_id, emoji) VALUES ($1, $2, $3)",
        message_id,
        change.user_id,
        emoji,
    )
    await note_accepted(change)
    await change.append(
        "reaction_added", message_id=message_id, user_id=change.user_id, data={"emoji": emoji}, about=seq
    )
    return True


async def unreact(change: Change, message_id: UUID, seq: int, emoji: str) -> bool:
    """Remove a reaction to the message at a seq. Returns False if there was none."""
    taken = await change.db.fetch(
        """DELETE FROM message_reactions
           WHERE message_id = $1 AND user_id = $2 AND replace(emoji, $4, '') = replace($3, $4, '') RETURNING emoji""",
        message_id,
        change.user_id,
        emoji,
        _SELECTOR,
    )
    for row in taken:
        await change.append(
            "reaction_removed", message_id=message_id, user_id=change.user_id, data=dict(row), about=seq
        )
    return bool(taken)


async def forget_sender(db: Database, user_id: UUID) -> None:
    """Remove an account from its messages and pins, and delete its reads and reactions. Works in batches, because one
    statement for all would block other users."""
    for statement in (
        "UPDATE messages SET sender_id = NULL WHERE id IN (SELECT id FROM messages WHERE sender_id = $1 LIMIT 2000)",
        """DELETE FROM message_reads WHERE user_id = $1 AND message_id IN
               (SELECT message_id FROM message_reads WHERE user_id = $1 LIMIT 2000)""",
        """DELETE FROM message_reactions WHERE user_id = $1 AND message_id IN
               (SELECT message_id FROM message_reactions WHERE user_id = $1 LIMIT 2000)""",
        """UPDATE pinned_messages SET pinned_by = NULL WHERE message_id IN
               (SELECT message_id FROM pinned_messages WHERE pinned_by = $1 LIMIT 2000)""",
    ):
        while await db.execute(statement, user_id):
            continue
