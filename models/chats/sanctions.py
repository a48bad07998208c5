"""Sanctions: what stands against users who are not in a chat, and decides whether and how they come back."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import peewee

from models.chats.events import Change
from models.chats.tables import ChatThread
from models.database import Database, Row, Table
from models.paging import cut, taken, text_size
from models.users import User


class ChatSanction(Table):
    """``restricted``: was restricted, and comes back as that. ``removed_at``: no invite made before lets them in.
    ``banned_at``: nothing lets them in."""

    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    restricted = peewee.BooleanField(default=False)
    removed_at = peewee.DateTimeField(null=True)
    banned_at = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "chat_sanctions"
        primary_key = peewee.CompositeKey("chat", "user")


# Each of these but ``bans`` is called with the chat locked. Times are those of the clock under that lock, not of the
# transaction's begin, which may be earlier than what another transaction did before this one got the lock.


async def record_departure(change: Change, user_id: UUID, *, restricted: bool, removed: bool) -> None:
    """Remember of a user who goes what must outlast it; nothing of who leaves without having been restricted."""
    if not restricted and not removed:
        return
    await change.db.execute(
        """INSERT INTO chat_sanctions AS known (chat_id, user_id, restricted, removed_at)
           VALUES ($1, $2, $3, CASE WHEN $4 THEN clock_timestamp() END)
           ON CONFLICT (chat_id, user_id) DO UPDATE SET restricted = known.restricted OR excluded.restricted,
               removed_at = coalesce(excluded.removed_at, known.removed_at)""",
        change.chat_id,
        user_id,
        restricted,
        removed,
    )


async def get(change: Change, user_id: UUID) -> Row | None:
    """``restricted, banned_at`` of a user who is not in the chat; None when nothing stands against them."""
    return await change.db.row(
        "SELECT restricted, banned_at FROM chat_sanctions WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id
    )


def role_on_return(sanction: Row | None, role: str) -> str:
    """The role in which a user comes back: a restriction lasts until an admin changes the role, or the owner makes them
    admin."""
    return "restricted" if sanction is not None and sanction["restricted"] and role == "member" else role


async def lift(change: Change, user_id: UUID) -> None:
    """Forget what stood against a user, who is in the chat again."""
    await change.db.execute("DELETE FROM chat_sanctions WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id)


async def ban(change: Change, user_id: UUID, at_most: int) -> bool:
    """Ban a user who is not in the chat (any more); again changes nothing. False when ``at_most`` others are banned."""
    return (
        await change.db.execute(
            """INSERT INTO chat_sanctions AS known (chat_id, user_id, removed_at, banned_at)
               SELECT $1, $2, clock_timestamp(), clock_timestamp()
               WHERE (SELECT count(*) FROM chat_sanctions
                      WHERE chat_id = $1 AND banned_at IS NOT NULL AND user_id <> $2) < $3
               ON CONFLICT (chat_id, user_id) DO UPDATE SET removed_at = excluded.removed_at,
                   banned_at = coalesce(known.banned_at, excluded.banned_at)""",
            change.chat_id,
            user_id,
            at_most,
        )
        == 1
    )


async def unban(change: Change, user_id: UUID) -> bool:
    """Lift a ban; False when there is none. The user was removed all the same, so older invites stay closed to them."""
    return (
        await change.db.execute(
            """UPDATE chat_sanctions SET banned_at = NULL
               WHERE chat_id = $1 AND user_id = $2 AND banned_at IS NOT NULL""",
            change.chat_id,
            user_id,
        )
        == 1
    )


async def bans(
    db: Database, chat_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None
) -> tuple[list[dict[str, Any]], bool]:
    """A page of who is banned from a chat, the latest first; and whether there are more."""
    return taken(await db.fetch(_EARLIER if before else _LATEST, chat_id, limit, *(before or ())))


_BANNED = """SELECT s.user_id, users.public_id, users.display_name, users.avatar_url, s.banned_at
    FROM chat_sanctions s JOIN users ON users.id = s.user_id WHERE s.chat_id = $1 AND s.banned_at IS NOT NULL"""
_SIZE, _ORDER = f"240 + {text_size('display_name', 'avatar_url')}", "banned_at DESC, user_id DESC"
_LATEST = cut(_BANNED, _SIZE, _ORDER, "$2")
_EARLIER = cut(f"{_BANNED} AND (s.banned_at, s.user_id) < ($3, $4)", _SIZE, _ORDER, "$2")
