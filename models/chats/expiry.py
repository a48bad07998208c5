"""Expiry: find messages that have expired, and erase them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from models.chats.changes import ChatChanges
from models.chats.messages import erase
from models.database import Database
from models.sweeps import Due

SERVER = UUID(int=0)  # in place of a user: the server erases what has expired
LOCK_MS = 250  # milliseconds to wait for a chat; one that is locked for longer is left to the next run

EXPIRED = Due(
    "message_expiry",
    "m.chat_id, m.id",
    """messages m JOIN chat_threads t ON t.id = m.chat_id AND t.deleted_at IS NULL  -- else they are being purged
       WHERE m.expires_at <= now() AND m.deleted_at IS NULL""",
    "m.expires_at",
    lock="",
)


async def find_expired(db: Database, limit: int) -> list[tuple[UUID, list[UUID]]]:
    """Messages that have expired, by chat."""
    rows = await db.fetch(
        f"SELECT chat_id, array_agg(id) AS ids FROM ({EXPIRED.batch}) AS due GROUP BY chat_id ORDER BY chat_id", limit
    )
    return [(row["chat_id"], row["ids"]) for row in rows]


async def expire(changes: ChatChanges, chat_id: UUID, message_ids: Sequence[UUID]) -> int:
    """Erase expired messages of a chat. Returns how many were erased. Raises LockNotAvailableError if the chat stays
    locked for longer than LOCK_MS: other chats have expired messages, too."""
    async with changes.db.transaction():
        await changes.db.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
        async with changes.lock(chat_id, SERVER, charged=False) as change:
            erased = await erase(change, message_ids, "expired") if change else []
    return len(erased)
