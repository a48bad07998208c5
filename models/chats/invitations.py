"""Invitations: requests to users to join a chat of many, instead of adding them.

A user is invited if their settings say so, or if they have blocked somebody in the chat. To all others every invitation
looks the same until it is accepted: they can't see that it was declined, or was never shown because the inviter is
blocked (docs/decisions/0038-a-block-is-absolute.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import peewee

from models.chats import concealment
from models.chats.events import POSITION, Change
from models.chats.tables import ChatThread
from models.database import Database, Enum, Row, Table
from models.presence import is_contact
from models.users import User

MAX_PER_USER = 500  # open invitations of a user; the oldest beyond it are declined
MAX_PER_CHAT = 1024  # open invitations of a chat
MAX_SHOWN = 100  # invited users that a chat shows: their profiles share a response that is limited in bytes


class ChatInvitation(Table):
    """``state`` is ``waiting``; ``declined``, which all except the invited user see as waiting; ``withdrawn``, after it
    was declined; or ``inside``: the user is a participant, and sees the chat again when they accept."""

    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    invited_by = peewee.ForeignKeyField(User, null=True, column_name="invited_by", on_delete="SET NULL")
    role = Enum("participant_role", default="member")
    state = peewee.TextField(default="waiting")
    seq = peewee.BigIntegerField(default=0)
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "chat_invitations"
        primary_key = peewee.CompositeKey("chat", "user")


# Who is invited -----------------------------------------------------------------------------------------------------


async def find_invite_only(
    db: Database, adder: UUID, user_ids: Sequence[UUID], among: Sequence[UUID], chat_id: UUID | None = None
) -> dict[UUID, bool]:
    """Find the users that this adder can only invite. The value is True if the user must not see the invitation.

    Users who have blocked the adder, or who accept additions only from contacts, are invited without noticing. Users
    see the invitation if they require one from strangers, or have blocked somebody ``among`` these users or in the
    (locked) chat; in a channel only its owner and admins count, since readers don't meet.
    """
    rows = await db.fetch(
        f"""SELECT * FROM (
               SELECT users.id,
                   EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = users.id AND blocked_id = $1 OFFSET 0)
                   OR (mode = 'contacts' AND NOT {is_contact("$1")}) AS unseen,
                   (mode = 'requests' AND NOT {is_contact("$1")})
                   OR EXISTS (SELECT 1 FROM user_blocks b WHERE b.blocker_id = users.id AND (
                       b.blocked_id = ANY ($3::uuid[]) OR EXISTS (
                           SELECT 1 FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
                           WHERE p.chat_id = $4 AND p.user_id = b.blocked_id
                             AND (t.type <> 'channel' OR p.role IN ('owner', 'admin'))))) AS asked
               FROM users, LATERAL (SELECT users.settings #>> '{{privacy,add}}' AS mode) AS wish
               WHERE users.id = ANY ($2::uuid[])) AS judged
           WHERE unseen OR asked""",
        adder,
        list(user_ids),
        list(among),
        chat_id,
    )
    return {row["id"]: row["unseen"] for row in rows}


async def count_open(change: Change, but: UUID | None = None) -> int:
    """Count the open invitations of a locked chat, except that of user ``but``. They count against its size."""
    number: int = await change.db.value(
        """SELECT count(*) FROM chat_invitations
           WHERE chat_id = $1 AND state IN ('waiting', 'declined') AND user_id IS DISTINCT FROM $2""",
        change.chat_id,
        but,
    )
    return number


# Inviting, with the chat locked -------------------------------------------------------------------------------------


async def invite(change: Change, user_id: UUID, role: str, *, unseen: bool) -> bool:
    """Invite a user into a locked chat, and append the event. Returns False if they are already invited. An ``unseen``
    invitation is not shown to the user, nor is one into a chat whose invitation they have declined before."""
    state: str | None = await change.db.value(
        """INSERT INTO chat_invitations AS known (chat_id, user_id, invited_by, role, state)
           VALUES ($1, $2, $3, $4::text::participant_role, $5)
           ON CONFLICT (chat_id, user_id) DO UPDATE SET state = 'declined', invited_by = excluded.invited_by,
               role = excluded.role, created_at = now()
           WHERE known.state = 'withdrawn' RETURNING state""",
        change.chat_id,
        user_id,
        change.user_id,
        role,
        "declined" if unseen else "waiting",
    )
    if state is None:
        return False
    event = await change.append("participant_invited", user_id=user_id, data={"by": str(change.user_id)})
    if state == "waiting":
        change.notices[user_id] = event
        await _make_visible(change, user_id, event.seq)
    return True


async def _make_visible(change: Change, user_id: UUID, seq: int) -> None:
    """Show the event in the user's ``/sync``, and nothing else of the chat. Declines the oldest invitations beyond
    MAX_PER_USER."""
    await change.db.execute(
        "UPDATE chat_invitations SET seq = $3 WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id, seq
    )
    await _show_in_sync(change, user_id, seq)
    await change.db.execute(
        # Materialized: otherwise the list may be sorted again for each of its rows.
        f"""WITH oldest AS MATERIALIZED (
                SELECT chat_id FROM chat_invitations WHERE user_id = $1 AND state = 'waiting' AND chat_id <> $2
                ORDER BY created_at DESC, chat_id DESC OFFSET {MAX_PER_USER - 1}
            ), locked AS MATERIALIZED (
                SELECT i.chat_id FROM oldest JOIN chat_invitations i ON i.chat_id = oldest.chat_id
                WHERE i.user_id = $1 AND i.state = 'waiting' FOR UPDATE OF i SKIP LOCKED
            )
            UPDATE chat_invitations i SET state = 'declined' FROM locked
            WHERE i.chat_id = locked.chat_id AND i.user_id = $1 AND i.state = 'waiting'""",
        user_id,
        change.chat_id,
    )


async def _show_in_sync(change: Change, user_id: UUID, seq: int) -> None:
    await change.db.execute(
        """INSERT INTO chat_departures (chat_id, user_id, joined_seq, left_seq, position)
           SELECT id, $2, $3, $3, last_position FROM chat_threads WHERE id = $1
           ON CONFLICT (chat_id, user_id, left_seq) DO NOTHING""",
        change.chat_id,
        user_id,
        seq,
    )


async def ask_to_stay(change: Change, newcomer: UUID) -> None:
    """Ask participants who have blocked the ``newcomer`` of a locked chat if they want to stay: conceal the chat from
    them and invite them. Only participants that others have added, and who have never written, joined or accepted, are
    asked. Others see no difference. In a channel readers don't meet, so they are not asked."""
    if change.type == "channel":
        return
    rows = await change.db.fetch(
        """SELECT p.user_id FROM user_blocks b JOIN chat_participants p ON p.chat_id = $1 AND p.user_id = b.blocker_id
           WHERE b.blocked_id = $2 AND p.accepted IS FALSE AND NOT p.concealed AND p.role <> 'owner'""",
        change.chat_id,
        newcomer,
    )
    people = [row["user_id"] for row in rows]
    if not people:
        return
    await concealment.conceal(change.db, [change.chat_id], people)
    await change.db.execute(
        """INSERT INTO chat_invitations AS known (chat_id, user_id, invited_by, state, seq)
           SELECT id, user_id, $3, 'inside', last_seq FROM chat_threads, unnest($2::uuid[]) AS user_id WHERE id = $1
           ON CONFLICT (chat_id, user_id) DO UPDATE SET state = 'inside', invited_by = $3, seq = excluded.seq,
               created_at = now()""",
        change.chat_id,
        people,
        None if change.user_id == newcomer else change.user_id,
    )
    change.notices.update(dict.fromkeys(people))


async def withdraw(change: Change, user_id: UUID) -> bool:
    """Withdraw an invitation into a locked chat, and append the event of a removal. Returns False if there is none."""
    # Lock the user before the invitation, as the erasure of an account does: the rows below refer to the user.
    await change.db.execute("SELECT 1 FROM users WHERE id = $1 FOR KEY SHARE", user_id)
    row = await change.db.row(
        """SELECT role::text, state FROM chat_invitations
           WHERE chat_id = $1 AND user_id = $2 AND state IN ('waiting', 'declined') FOR UPDATE""",
        change.chat_id,
        user_id,
    )
    if row is None:
        return False
    event = await change.append("participant_removed", user_id=user_id, data={"role": row["role"]})
    if row["state"] == "waiting":
        await delete(change, user_id)
        await _show_in_sync(change, user_id, event.seq)
        change.notices[user_id] = event
    else:
        await change.db.execute(
            "UPDATE chat_invitations SET state = 'withdrawn' WHERE chat_id = $1 AND user_id = $2",
            change.chat_id,
            user_id,
        )
    return True


async def delete(change: Change, user_id: UUID) -> None:
    """Delete the invitation of a user who joins or leaves a locked chat."""
    await change.db.execute("DELETE FROM chat_invitations WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id)


async def delete_all(change: Change) -> None:
    """Delete the invitations into a locked chat that ends. ``/sync`` reports the end to users who saw theirs."""
    waiting = await change.db.fetch(
        "SELECT user_id FROM chat_invitations WHERE chat_id = $1 AND state = 'waiting'", change.chat_id
    )
    if waiting:
        await concealment.report_deleted(change.db, [change.chat_id], [row["user_id"] for row in waiting])
    await change.db.execute("DELETE FROM chat_invitations WHERE chat_id = $1", change.chat_id)


# What the invited user does -----------------------------------------------------------------------------------------


async def consume(change: Change, user_id: UUID) -> Row | None:
    """Delete the invitation that a user accepts. Returns its ``state`` and the ``role`` that the user gets; None if
    they see none. Only the owner makes admins, so the role is ``admin`` only if the inviter still is the owner."""
    return await change.db.row(
        """DELETE FROM chat_invitations i WHERE chat_id = $1 AND user_id = $2 AND state IN ('waiting', 'inside')
           RETURNING state, CASE WHEN role = 'admin' AND NOT EXISTS (
               SELECT 1 FROM chat_participants p
               WHERE p.chat_id = i.chat_id AND p.user_id = i.invited_by AND p.role = 'owner')
               THEN 'member' ELSE role::text END AS role""",
        change.chat_id,
        user_id,
    )


async def reveal(change: Change, user_id: UUID) -> None:
    """End the concealment of a locked chat of many for a participant who stays; for them it begins now."""
    await change.db.execute(
        """UPDATE chat_participants p SET concealed = false, accepted = true, joined_seq = t.last_seq + 1,
               delivered_seq = greatest(delivered_seq, t.last_seq), read_seq = greatest(read_seq, t.last_seq),
               read_number = t.last_number, own_after = 0
           FROM chat_threads t WHERE t.id = $1 AND p.chat_id = $1 AND p.user_id = $2""",
        change.chat_id,
        user_id,
    )
    await change.db.execute(
        f"""INSERT INTO chat_marks (chat_id, user_id, position) VALUES ($1, $2, {POSITION})
            ON CONFLICT (chat_id, user_id) DO UPDATE SET position = excluded.position""",
        change.chat_id,
        user_id,
    )
    await change.db.execute("DELETE FROM chat_views WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id)
    await change.renew_access()


async def decline(db: Database, user_id: UUID, chat_ids: Sequence[UUID] | None) -> list[Row]:
    """Decline invitations of a user into these chats, or into all. Returns ``chat_id, invited_by`` and the old
    ``state``. Those that are ``inside`` stay unchanged, because their chat has to be locked first. Appends no event:
    others don't notice."""
    async with db.transaction():
        rows = await db.fetch(
            """SELECT chat_id, invited_by, state FROM chat_invitations
               WHERE user_id = $1 AND state IN ('waiting', 'inside') AND ($2::uuid[] IS NULL OR chat_id = ANY ($2))
               ORDER BY chat_id FOR UPDATE""",
            user_id,
            None if chat_ids is None else list(chat_ids),
        )
        waiting = [row["chat_id"] for row in rows if row["state"] == "waiting"]
        await db.execute(
            "UPDATE chat_invitations SET state = 'declined' WHERE user_id = $1 AND chat_id = ANY ($2::uuid[])",
            user_id,
            waiting,
        )
        await concealment.report_deleted(db, waiting, [user_id])
    return rows


async def decline_from(db: Database, user_id: UUID, inviter: UUID) -> list[UUID]:
    """Decline the open invitations that the user has from an inviter that they block. Returns their chats."""
    rows = await db.fetch(
        """WITH due AS (
               SELECT chat_id FROM chat_invitations WHERE user_id = $1 AND invited_by = $2 AND state = 'waiting'
               ORDER BY chat_id FOR UPDATE)
           UPDATE chat_invitations i SET state = 'declined' FROM due
           WHERE i.chat_id = due.chat_id AND i.user_id = $1 RETURNING i.chat_id""",
        user_id,
        inviter,
    )
    chat_ids = [row["chat_id"] for row in rows]
    if chat_ids:
        await concealment.report_deleted(db, chat_ids, [user_id])
    return chat_ids


# Reading ------------------------------------------------------------------------------------------------------------

# What an invited user sees: what chat it is, and who invited them; not what happens in it, nor when.
_INVITATION = """SELECT t.id, t.type::text, t.title, t.avatar_url, t.created_by, t.created_at,
        i.created_at AS updated_at, i.role::text, i.seq AS last_seq, t.participant_count,
        u.id AS inviter_id, u.public_id, u.display_name, u.avatar_url AS inviter_avatar
    FROM chat_invitations i JOIN chat_threads t ON t.id = i.chat_id AND t.deleted_at IS NULL
    LEFT JOIN users u ON u.id = i.invited_by
    WHERE i.user_id = $1 AND i.state IN ('waiting', 'inside')"""


async def entries(db: Database, user_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None) -> list[Row]:
    """A page of the open invitations that a user sees, the latest first."""
    earlier = "AND (i.created_at, i.chat_id) < ($3, $4)" if before else ""
    return await db.fetch(
        f"{_INVITATION} {earlier} ORDER BY i.created_at DESC, i.chat_id DESC LIMIT $2", user_id, limit, *(before or ())
    )


async def entry(db: Database, user_id: UUID, chat_id: UUID) -> Row | None:
    """The open invitation of a user into a chat; None if they see none."""
    return await db.row(f"{_INVITATION} AND i.chat_id = $2", user_id, chat_id)


async def list_invited(db: Database, chat_id: UUID) -> list[Row]:
    """The open invitations of a chat as its participants see them, the latest first, at most MAX_SHOWN."""
    return await db.fetch(
        f"""SELECT u.id AS user_id, u.public_id, u.display_name, u.avatar_url, i.invited_by AS by,
                  i.created_at AS invited_at
           FROM chat_invitations i JOIN users u ON u.id = i.user_id
           WHERE i.chat_id = $1 AND i.state IN ('waiting', 'declined')
           ORDER BY i.created_at DESC, i.user_id DESC LIMIT {MAX_SHOWN}""",
        chat_id,
    )
