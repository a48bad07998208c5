"""Receipts: how far a participant has received and read a chat, and what follows from it."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from models.changes import Change
from models.database import Row
from models.listing import UNREAD, due
from models.messages import erase

# Messages that one receipt notes one by one, the newest ones; of those before them the watermark says enough.
NOTED = 1000
ERASED = 500  # messages that one statement of a receipt in a secret chat erases


class Watermarks(NamedTuple):
    """How far a participant is; ``unread_count`` is of messages by others."""

    delivered_seq: int
    read_seq: int
    unread_count: int


async def advance(change: Change, delivered: int, read: int) -> Watermarks:
    """Move a participant's watermarks forward, as far as the chat goes; what is read was delivered. In a channel they
    are kept for oneself: nobody is told, and no message notes who has read it."""
    before = await _marks(change)
    read = max(before["read_seq"], min(read, before["last_seq"]))
    delivered = max(before["delivered_seq"], min(delivered, before["last_seq"]), read)
    if (delivered, read) == (before["delivered_seq"], before["read_seq"]):
        return Watermarks(delivered, read, before["unread_count"])
    # What came before they may see anything was neither read nor counted: after a direct chat was deleted for oneself.
    unseen = change.seen_from - 1
    if read > before["read_seq"]:
        await _read(change, max(before["read_seq"], unseen), read)
    await change.db.execute(
        "UPDATE chat_participants SET delivered_seq = $3, read_seq = $4 WHERE chat_id = $1 AND user_id = $2",
        change.chat_id,
        change.user_id,
        delivered,
        read,
    )
    if change.type != "channel":
        await _note(change, max(before["delivered_seq"], unseen), delivered, max(before["read_seq"], unseen), read)
        await change.append("receipt", user_id=change.user_id, data={"delivered_seq": delivered, "read_seq": read})
    if change.type == "secret":
        while reached := await _delivered(change, delivered):
            await erase(change, reached, "delivered")
    after = await _marks(change)
    return Watermarks(delivered, read, after["unread_count"])


async def _marks(change: Change) -> Row:
    row = await change.db.row(
        f"""WITH {due("$2")}
            SELECT p.delivered_seq, p.read_seq, t.last_seq, {UNREAD} AS unread_count
            FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
            WHERE p.chat_id = $1 AND p.user_id = $2""",
        change.chat_id,
        change.user_id,
    )
    assert row is not None  # the chat is locked, and they take part
    return row


async def _read(change: Change, old: int, new: int) -> None:
    """Of one's own messages, those behind the watermark need no more be subtracted from what is unread."""
    await change.db.execute(
        """UPDATE chat_participants p SET
               own_after = CASE WHEN $4 = t.last_seq THEN 0 ELSE own_after - (
                   SELECT count(*) FROM messages
                   WHERE chat_id = $1 AND seq > $3 AND seq <= $4 AND sender_id = $2) END,
               read_number = CASE WHEN $4 = t.last_seq THEN t.last_number ELSE greatest(read_number, (
                   SELECT number FROM messages WHERE chat_id = $1 AND seq > 0 AND seq <= $4
                   ORDER BY seq DESC LIMIT 1)) END
           FROM chat_threads t WHERE t.id = $1 AND p.chat_id = $1 AND p.user_id = $2""",
        change.chat_id,
        change.user_id,
        old,
        new,
    )


async def _note(change: Change, delivered_before: int, delivered: int, read_before: int, read: int) -> None:
    await change.db.execute(
        f"""UPDATE messages SET delivered = true WHERE NOT delivered AND id IN (
                SELECT id FROM messages WHERE chat_id = $1 AND seq > greatest($3, 0) AND seq <= $4
                    AND sender_id IS DISTINCT FROM $2 ORDER BY seq DESC LIMIT {NOTED})""",
        change.chat_id,
        change.user_id,
        delivered_before,
        delivered,
    )
    await change.db.execute(
        f"""INSERT INTO message_reads (message_id, user_id)
            SELECT id, $2 FROM messages WHERE chat_id = $1 AND seq > greatest($3, 0) AND seq <= $4
                AND sender_id IS DISTINCT FROM $2 ORDER BY seq DESC LIMIT {NOTED}
            ON CONFLICT DO NOTHING""",
        change.chat_id,
        change.user_id,
        read_before,
        read,
    )


async def _delivered(change: Change, delivered: int) -> list[UUID]:
    """The messages to a participant that have reached them."""
    rows = await change.db.fetch(
        f"""SELECT id FROM messages WHERE chat_id = $1 AND seq > 0 AND seq <= $3 AND sender_id IS DISTINCT FROM $2
            ORDER BY seq LIMIT {ERASED}""",
        change.chat_id,
        change.user_id,
        delivered,
    )
    return [row["id"] for row in rows]
