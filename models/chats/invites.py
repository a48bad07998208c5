"""Invites: tokens with which users join a chat of many."""

from __future__ import annotations

import hashlib
from uuid import UUID

import peewee

from models.chats.events import Change
from models.chats.tables import ChatThread
from models.database import Database, Row, Table, in_sql
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


_SHOWN = (
    ChatInvite.id,
    ChatInvite.created_by,
    ChatInvite.max_uses,
    ChatInvite.uses,
    ChatInvite.expires_at,
    ChatInvite.created_at,
)


def _admits(user: str) -> str:
    """SQL: true if the invite ``i`` admits the user, a parameter such as ``$2``.

    It does not if it has expired or is used up, if its creator can no longer invite, if the user is banned, or if they
    were removed after it was created.
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
    """Store an invite with the hash of its token. Returns None if the chat already has ``at_most`` invites.

    Its time is read under the chat's lock, as that of a removal is, so the times of the two are in order.
    """
    return await change.db.row(
        f"""INSERT INTO chat_invites AS i (chat_id, created_by, token_hash, max_uses, expires_at, created_at)
            SELECT $1, $2, $3, $4, now() + $5 * interval '1 second', clock_timestamp()
            WHERE (SELECT count(*) FROM chat_invites WHERE chat_id = $1) < $6 RETURNING {in_sql(_SHOWN, "i")}""",
        change.chat_id,
        change.user_id,
        _hash(token),
        max_uses,
        expires_in,
        at_most,
    )


async def entries(db: Database, chat_id: UUID) -> list[Row]:
    """A chat's invites, the latest first."""
    return await db.rows(
        ChatInvite.select(*_SHOWN)
        .where(ChatInvite.chat == chat_id)
        .order_by(ChatInvite.created_at.desc(), ChatInvite.id)
    )


async def revoke(change: Change, invite_id: UUID) -> bool:
    """Delete an invite of a locked chat. Returns False if there is no such invite."""
    invite = (ChatInvite.id == invite_id, ChatInvite.chat == change.chat_id)
    return await change.db.do(ChatInvite.delete().where(*invite)) == 1


async def revoke_all_by(change: Change, user_id: UUID) -> None:
    """Delete the invites into a locked chat that a user has created."""
    theirs = (ChatInvite.chat == change.chat_id, ChatInvite.created_by == user_id)
    await change.db.do(ChatInvite.delete().where(*theirs))


async def chat_of(db: Database, token: str) -> UUID | None:
    """The chat of an invite, also if the invite is no longer valid."""
    chat_id: UUID | None = await db.scalar(
        ChatInvite.select(ChatInvite.chat).where(ChatInvite.token_hash == _hash(token))
    )
    return chat_id


async def use(change: Change, token: str) -> bool:
    """Use an invite into a locked chat once. Returns False if it does not admit this user."""
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
    """``chat_id, type, title, avatar_url, participant_count, joined`` of the chat of an invite; None if it does not
    admit the user, unless they are already in the chat."""
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
