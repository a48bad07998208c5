"""Sanctions: restrictions, removals and bans of users who are not in a chat. They decide if and how users come back."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import peewee
from peewee import EXCLUDED, fn

from models.chats.events import Change
from models.chats.tables import ChatThread
from models.database import Database, Row, Table
from models.paging import cut, read_page, text_size
from models.users import User


class ChatSanction(Table):
    """``restricted``: the user comes back restricted. ``removed_at``: older invites don't admit them. ``banned_at``:
    nothing admits them."""

    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    restricted = peewee.BooleanField(default=False)
    removed_at = peewee.DateTimeField(null=True)
    banned_at = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "chat_sanctions"
        primary_key = peewee.CompositeKey("chat", "user")


# Call all of these except ``bans`` with the chat locked. Times are read from the clock under that lock. The
# time at which the transaction began may be earlier than changes by another one that had the lock before.


def _of(change: Change, user_id: UUID) -> tuple[peewee.Expression, ...]:
    return ChatSanction.chat == change.chat_id, ChatSanction.user == user_id


async def record_departure(change: Change, user_id: UUID, *, restricted: bool, removed: bool) -> None:
    """Store the restriction or removal of a user who goes; nothing for an unrestricted user who leaves."""
    if not restricted and not removed:
        return
    await change.db.do(
        ChatSanction.insert(
            chat=change.chat_id,
            user=user_id,
            restricted=restricted,
            removed_at=fn.clock_timestamp() if removed else None,
        ).on_conflict(
            conflict_target=[ChatSanction.chat, ChatSanction.user],
            update={
                ChatSanction.restricted: ChatSanction.restricted | EXCLUDED.restricted,
                ChatSanction.removed_at: fn.coalesce(EXCLUDED.removed_at, ChatSanction.removed_at),
            },
        )
    )


async def get(change: Change, user_id: UUID) -> Row | None:
    """``restricted, banned_at`` of a user who is not in the chat; None if they have no sanction."""
    return await change.db.one(
        ChatSanction.select(ChatSanction.restricted, ChatSanction.banned_at).where(*_of(change, user_id))
    )


def role_on_return(sanction: Row | None, role: str) -> str:
    """The role with which a user comes back. A restriction lasts until an admin changes the role, or the owner makes
    them admin."""
    return "restricted" if sanction is not None and sanction["restricted"] and role == "member" else role


async def lift(change: Change, user_id: UUID) -> None:
    """Delete the sanctions of a user who comes back."""
    await change.db.do(ChatSanction.delete().where(*_of(change, user_id)))


async def ban(change: Change, user_id: UUID, at_most: int) -> bool:
    """Ban a user who is not in the chat; idempotent. Returns False if ``at_most`` other users are banned."""
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
    """Lift a ban. Returns False if there is none. The removal stays, so older invites don't admit the user."""
    lifted = ChatSanction.update(banned_at=None).where(*_of(change, user_id), ChatSanction.banned_at.is_null(False))
    return await change.db.do(lifted) == 1


async def bans(
    db: Database, chat_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None
) -> tuple[list[dict[str, Any]], bool]:
    """A page of the users who are banned from a chat, the latest ban first; and True if there are more."""
    return read_page(await db.fetch(_EARLIER if before else _LATEST, chat_id, limit, *(before or ())))


_BANNED = """SELECT s.user_id, users.public_id, users.display_name, users.avatar_url, s.banned_at
    FROM chat_sanctions s JOIN users ON users.id = s.user_id WHERE s.chat_id = $1 AND s.banned_at IS NOT NULL"""
_SIZE, _ORDER = f"240 + {text_size('display_name', 'avatar_url')}", "banned_at DESC, user_id DESC"
_LATEST = cut(_BANNED, _SIZE, _ORDER, "$2")
_EARLIER = cut(f"{_BANNED} AND (s.banned_at, s.user_id) < ($3, $4)", _SIZE, _ORDER, "$2")
