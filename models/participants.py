"""Participants: joining and leaving a chat, roles, and the invites that let people in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import peewee

from models.changes import Change, Event, changing
from models.chats import delete
from models.database import Database, Row, Table
from models.threads import ChatThread
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


async def named(db: Database, asker: UUID, public_ids: Sequence[str]) -> dict[str, Row]:
    """By their public ids in lower case: ``id`` and ``blocks`` (whether they have blocked the asker)."""
    rows = await db.fetch(
        """SELECT lower(public_id) AS name, id,
                  EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = users.id AND blocked_id = $1) AS blocks
           FROM users WHERE lower(public_id) = ANY ($2::text[])""",
        asker,
        [public_id.lower() for public_id in public_ids],
    )
    return {row["name"]: row for row in rows}


async def role_of(change: Change, user_id: UUID) -> str | None:
    """A participant's role in a locked chat."""
    role: str | None = await change.db.value(
        "SELECT role::text FROM chat_participants WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id
    )
    return role


async def add(change: Change, user_id: UUID, role: str) -> bool:
    """Let a user in; False when they are in already. They have read what they may not see."""
    if await role_of(change, user_id) is not None:
        return False
    event = await change.append("participant_added", user_id=user_id, data={"role": role})
    await change.db.execute(
        """INSERT INTO chat_participants (chat_id, user_id, role, joined_seq, delivered_seq, read_seq, read_number)
           SELECT id, $2, $3::text::participant_role, $4, $4, $4, last_number FROM chat_threads WHERE id = $1""",
        change.chat_id,
        user_id,
        role,
        event.seq,
    )
    await _counted(change, 1)
    return True


async def remove(change: Change, user_id: UUID) -> bool:
    """Let a user go; False when they are not in. The removal is the last event that is theirs to see."""
    role = await role_of(change, user_id)
    if role is None:
        return False
    event = await change.append("participant_removed", user_id=user_id, data={"role": role})
    await change.db.execute(
        """WITH gone AS (DELETE FROM chat_participants WHERE chat_id = $1 AND user_id = $2 RETURNING joined_seq)
           INSERT INTO chat_departures (chat_id, user_id, joined_seq, left_seq, position)
           SELECT id, $2, joined_seq, $3, last_position FROM gone, chat_threads WHERE id = $1""",
        change.chat_id,
        user_id,
        event.seq,
    )
    await _counted(change, -1)
    return True


async def _counted(change: Change, more: int) -> None:
    change.participant_count += more
    await change.db.execute(
        "UPDATE chat_threads SET participant_count = participant_count + $2 WHERE id = $1", change.chat_id, more
    )
    await change.renew_access()


async def set_role(change: Change, user_id: UUID, role: str) -> None:
    """Give a participant a role. Who gives ``owner`` away becomes admin: there is exactly one."""
    if role == "owner":
        await _set(change, change.user_id, "admin")
    await _set(change, user_id, role)
    await change.renew_access()


async def _set(change: Change, user_id: UUID, role: str) -> None:
    was = await role_of(change, user_id)
    await change.db.execute(
        "UPDATE chat_participants SET role = $3::text::participant_role WHERE chat_id = $1 AND user_id = $2",
        change.chat_id,
        user_id,
        role,
    )
    await change.append("participant_role", user_id=user_id, data={"role": role, "was": was})


async def listed(db: Database, chat_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None) -> list[Row]:
    """A chat's participants with their profiles, who joined last first."""
    earlier = "AND (p.joined_at, p.user_id) < ($3, $4)" if before else ""
    return await db.fetch(
        f"""SELECT p.user_id, users.public_id, users.display_name, users.avatar_url, p.role::text, p.joined_at
            FROM chat_participants p JOIN users ON users.id = p.user_id
            WHERE p.chat_id = $1 {earlier} ORDER BY p.joined_at DESC, p.user_id DESC LIMIT $2""",
        chat_id,
        limit,
        *(before or ()),
    )


# Invites ------------------------------------------------------------------------------------------------------------

_INVITE = "id, created_by, max_uses, uses, expires_at, created_at"


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def invite(change: Change, token: str, max_uses: int | None, expires_in: int | None, at_most: int) -> Row | None:
    """Note an invite, of which only the token's hash is kept; None when the chat has ``at_most`` of them."""
    return await change.db.row(
        f"""INSERT INTO chat_invites (chat_id, created_by, token_hash, max_uses, expires_at)
            SELECT $1, $2, $3, $4, now() + $5 * interval '1 second'
            WHERE (SELECT count(*) FROM chat_invites WHERE chat_id = $1) < $6 RETURNING {_INVITE}""",
        change.chat_id,
        change.user_id,
        _hash(token),
        max_uses,
        expires_in,
        at_most,
    )


async def invites(db: Database, chat_id: UUID) -> list[Row]:
    """A chat's invites, the latest first."""
    return await db.fetch(
        f"SELECT {_INVITE} FROM chat_invites WHERE chat_id = $1 ORDER BY created_at DESC, id", chat_id
    )


async def withdraw(change: Change, invite_id: UUID) -> bool:
    return (
        await change.db.execute("DELETE FROM chat_invites WHERE id = $1 AND chat_id = $2", invite_id, change.chat_id)
        == 1
    )


async def invited_to(db: Database, token: str) -> UUID | None:
    """The chat that an invite opens, used up or not."""
    chat_id: UUID | None = await db.value("SELECT chat_id FROM chat_invites WHERE token_hash = $1", _hash(token))
    return chat_id


async def use(change: Change, token: str) -> bool:
    """Use an invite once; False when it is used up, over, or gone."""
    return (
        await change.db.execute(
            """UPDATE chat_invites SET uses = uses + 1
               WHERE token_hash = $1 AND chat_id = $2 AND (max_uses IS NULL OR uses < max_uses)
                 AND (expires_at IS NULL OR expires_at > now())""",
            _hash(token),
            change.chat_id,
        )
        == 1
    )


# An account that is erased ------------------------------------------------------------------------------------------


async def depart(db: Database, user_id: UUID) -> list[tuple[Change, list[Event]]]:
    """Take a user out of all their chats, one transaction each; what happened. A chat that was theirs goes to the next
    in rank, the one who joined first; one in which nobody is left ends."""
    happened = []
    while True:
        chat_ids = [
            row["chat_id"]
            for row in await db.fetch(
                "SELECT chat_id FROM chat_participants WHERE user_id = $1 ORDER BY chat_id LIMIT 500", user_id
            )
        ]
        for chat_id in chat_ids:
            async with changing(db, chat_id, user_id) as change:
                if change is None:  # deleted, and about to be purged
                    await db.execute(
                        "DELETE FROM chat_participants WHERE chat_id = $1 AND user_id = $2", chat_id, user_id
                    )
                elif change.role is not None:
                    await _depart(change)
                    happened.append((change, change.events))
        if len(chat_ids) < 500:
            break
    # Their name as the maker of chats, which is looked at whenever a transaction changes such a chat twice.
    while await db.execute(
        """UPDATE chat_threads SET created_by = NULL WHERE id IN (
               SELECT id FROM chat_threads WHERE created_by = $1 ORDER BY id LIMIT 500 FOR NO KEY UPDATE)""",
        user_id,
    ):
        continue
    return happened


async def _depart(change: Change) -> None:
    heir = await change.db.value(
        """SELECT user_id FROM chat_participants WHERE chat_id = $1 AND user_id <> $2
           ORDER BY role, joined_at, user_id LIMIT 1""",
        change.chat_id,
        change.user_id,
    )
    owner = change.role == "owner"
    await remove(change, change.user_id)
    if heir is None:
        await change.append("chat_deleted")
        await delete(change)
    elif owner:
        await _set(change, heir, "owner")
        await change.renew_access()
