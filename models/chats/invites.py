"""Invites: tokens that let people into a chat of many, and whom they don't let in."""

from __future__ import annotations

import hashlib
from uuid import UUID

import peewee

from models.chats.events import Change
from models.chats.tables import ChatThread
from models.database import Database, Row, Table
from models.users import User


class ChatInvite(Table):
    id = peewee.UUIDField(primary_key=True)
    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    created_by = peewee.ForeignKeyField(User, null=True, column_name="created_by", on_delete="SET NULL")
    token_hash = peewee.BlobField(unique=True)
    max_uses = peewee.IntegerField(null=True)
    uses = peewee.IntegerField(default=0)
    expires_at = peewee.DateTimeField(null=True)
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "chat_invites"


_SHOWN = "id, created_by, max_uses, uses, expires_at, created_at"


def _admits(user: str) -> str:
    """SQL: whether the invite ``i`` lets the user in, a parameter such as ``$2``.

    Not when it has expired or is used up, nor when its maker may not invite any more; not who was banned, and who was
    removed only when the invite was made after that.
    """
    return f"""
        (i.max_uses IS NULL OR i.uses < i.max_uses) AND (i.expires_at IS NULL OR i.expires_at > now())
        AND EXISTS (SELECT 1 FROM chat_participants maker WHERE maker.chat_id = i.chat_id
                    AND maker.user_id = i.created_by AND maker.role IN ('owner', 'admin'))
        AND NOT EXISTS (SELECT 1 FROM chat_sanctions s WHERE s.chat_id = i.chat_id AND s.user_id = {user}
                        AND (s.banned_at IS NOT NULL OR s.removed_at >= i.created_at))"""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def create(change: Change, token: str, max_uses: int | None, expires_in: int | None, at_most: int) -> Row | None:
    """Store an invite, of which only the token's hash is kept; None when the chat has ``at_most`` of them.

    Its time is taken under the chat's lock, as that of a removal is, so the two are in the order of what happened.
    """
    return await change.db.row(
        f"""INSERT INTO chat_invites (chat_id, created_by, token_hash, max_uses, expires_at, created_at)
            SELECT $1, $2, $3, $4, now() + $5 * interval '1 second', clock_timestamp()
            WHERE (SELECT count(*) FROM chat_invites WHERE chat_id = $1) < $6 RETURNING {_SHOWN}""",
        change.chat_id,
        change.user_id,
        _hash(token),
        max_uses,
        expires_in,
        at_most,
    )


async def entries(db: Database, chat_id: UUID) -> list[Row]:
    """A chat's invites, the latest first."""
    return await db.fetch(f"SELECT {_SHOWN} FROM chat_invites WHERE chat_id = $1 ORDER BY created_at DESC, id", chat_id)


async def revoke(change: Change, invite_id: UUID) -> bool:
    """Delete an invite of a locked chat; False when it has no such invite."""
    return (
        await change.db.execute("DELETE FROM chat_invites WHERE id = $1 AND chat_id = $2", invite_id, change.chat_id)
        == 1
    )


async def revoke_all_by(change: Change, user_id: UUID) -> None:
    """Delete the invites that a user has made for a locked chat."""
    await change.db.execute("DELETE FROM chat_invites WHERE chat_id = $1 AND created_by = $2", change.chat_id, user_id)


async def chat_of(db: Database, token: str) -> UUID | None:
    """The chat that an invite is for, also when it lets nobody in any more."""
    chat_id: UUID | None = await db.value("SELECT chat_id FROM chat_invites WHERE token_hash = $1", _hash(token))
    return chat_id


async def use(change: Change, token: str) -> bool:
    """Use an invite to a locked chat once; False when it does not let this user in."""
    return (
        await change.db.execute(
            f"""UPDATE chat_invites i SET uses = uses + 1
                WHERE i.token_hash = $1 AND i.chat_id = $2 AND {_admits("$3")}""",
            _hash(token),
            change.chat_id,
            change.user_id,
        )
        == 1
    )


async def preview(db: Database, token: str, user_id: UUID) -> Row | None:
    """``chat_id, type, title, avatar_url, participant_count, joined`` of the chat that an invite lets the user into, or
    is for and the user is in; None for any other."""
    return await db.row(
        f"""SELECT t.id AS chat_id, t.type::text, t.title, t.avatar_url, t.participant_count, mine.joined
            FROM chat_invites i JOIN chat_threads t ON t.id = i.chat_id AND t.deleted_at IS NULL,
                LATERAL (SELECT EXISTS (SELECT 1 FROM chat_participants p
                                        WHERE p.chat_id = t.id AND p.user_id = $2 AND NOT p.concealed)
                         AS joined) AS mine
            WHERE i.token_hash = $1 AND (mine.joined OR {_admits("$2")})""",
        _hash(token),
        user_id,
    )
