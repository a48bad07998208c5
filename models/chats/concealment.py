"""Concealment: chats that participants don't see because they have blocked somebody in them.

A block conceals those chats of the two users that the blocker never accepted. For the other user the chat goes on: the
server stores and acknowledges their messages, and delivers them to no one else. The blocker never sees what was sent
meanwhile (docs/decisions/0038-a-block-is-absolute.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from models.chats.events import POSITION
from models.chats.tables import ChatDeparture, ChatParticipant
from models.database import Database, any_of

# A seq and message number that are never reached: a membership that begins there shows nothing.
NEVER = 2**62

# Messages at each end of a chat that are searched for one by the blocker, in some 20 ms: the other user may have
# written a million, and the chat is locked.
MAX_SEARCHED = 10_000

# True if the participant ``p`` has accepted their chat of two. A server of the previous version does not record it;
# then their messages show it. user_contacts has the users that a user has written to, so few chats are searched.
ACCEPTED = f"""(p.accepted IS TRUE OR ((p.accepted IS NULL OR EXISTS (
        SELECT 1 FROM chat_participants other
        JOIN user_contacts c ON c.user_id = p.user_id AND c.contact_id = other.user_id
        WHERE other.chat_id = p.chat_id AND other.user_id <> p.user_id))
    AND EXISTS (SELECT 1 FROM (
        (SELECT sender_id FROM messages WHERE chat_id = p.chat_id ORDER BY seq LIMIT {MAX_SEARCHED}) UNION ALL
        (SELECT sender_id FROM messages WHERE chat_id = p.chat_id ORDER BY seq DESC LIMIT {MAX_SEARCHED})
    ) AS m WHERE m.sender_id = p.user_id)))"""

_LOCK_PAIR = """SELECT pg_advisory_xact_lock(hashtextextended(
    least($1::text, $2::text) || greatest($1::text, $2::text), 38))"""


async def lock_pair(db: Database, one: UUID, other: UUID) -> None:
    """Serialize blocks between two users, and new chats of the two, until the transaction ends. Call it before locking
    any row."""
    await db.execute(_LOCK_PAIR, str(one), str(other))


async def _lock_shared_chats(db: Database, one: UUID, other: UUID) -> list[UUID]:
    """Lock the chats of these two users, and raise their access number, because the right to write has changed."""
    rows = await db.fetch(
        """WITH shared AS (
               SELECT t.id FROM chat_participants mine
               JOIN chat_participants theirs ON theirs.chat_id = mine.chat_id AND theirs.user_id = $2
               JOIN chat_threads t ON t.id = mine.chat_id AND t.type IN ('direct', 'secret') AND t.deleted_at IS NULL
               WHERE mine.user_id = $1 ORDER BY t.id FOR NO KEY UPDATE OF t)
           UPDATE chat_threads t SET access = access + 1 FROM shared WHERE t.id = shared.id RETURNING t.id""",
        one,
        other,
    )
    return [row["id"] for row in rows]


async def conceal_pair(db: Database, blocker: UUID, blocked: UUID) -> list[UUID]:
    """Conceal the chats of two that the blocker never accepted. Returns those that they saw until now, without chats
    that they had deleted or never received."""
    chat_ids = await _lock_shared_chats(db, blocker, blocked)
    rows = await db.fetch(
        f"""SELECT p.chat_id, coalesce(v.deleted_number >= t.last_number, false) AS gone
            FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
            LEFT JOIN chat_views v ON v.chat_id = p.chat_id AND v.user_id = p.user_id
            WHERE p.chat_id = ANY ($1::uuid[]) AND p.user_id = $2 AND NOT p.concealed AND NOT {ACCEPTED}""",
        chat_ids,
        blocker,
    )
    seen = [row["chat_id"] for row in rows if not row["gone"]]
    await conceal(db, seen, [blocker])
    await conceal(db, [row["chat_id"] for row in rows if row["gone"]], [blocker], seen=False)
    return seen


async def conceal(db: Database, chat_ids: Sequence[UUID], user_ids: Sequence[UUID], *, seen: bool = True) -> None:
    """Conceal locked chats from participants: in lists, histories and ``/sync``. If they have ``seen`` the chats,
    ``/sync`` reports them as deleted. Other users still see the same watermarks."""
    if not chat_ids or not user_ids:
        return
    await db.do(
        ChatParticipant.update(concealed=True, joined_seq=NEVER).where(
            any_of(ChatParticipant.chat, chat_ids), any_of(ChatParticipant.user, user_ids)
        )
    )
    await db.execute(
        """INSERT INTO chat_views AS v (chat_id, user_id, deleted_number)
           SELECT chat_id, user_id, $3 FROM unnest($1::uuid[]) AS chat_id, unnest($2::uuid[]) AS user_id
           ON CONFLICT (chat_id, user_id) DO UPDATE SET deleted_number = excluded.deleted_number,
               hidden_number = NULL, archived = false, muted_until = NULL, marked_unread = false""",
        chat_ids,
        user_ids,
        NEVER,
    )
    if seen:
        await report_deleted(db, chat_ids, user_ids)


async def report_deleted(db: Database, chat_ids: Sequence[UUID], user_ids: Sequence[UUID]) -> None:
    """Let ``/sync`` report to these users that these chats are deleted up to now."""
    await db.do(
        ChatDeparture.delete().where(
            any_of(ChatDeparture.chat, chat_ids),
            any_of(ChatDeparture.user, user_ids),
            ChatDeparture.joined_seq > ChatDeparture.left_seq,
        )
    )
    await db.execute(
        f"""INSERT INTO chat_departures (chat_id, user_id, joined_seq, left_seq, position)
            SELECT id, user_id, last_seq + 1, last_seq, greatest(last_position, {POSITION})
            FROM chat_threads, unnest($2::uuid[]) AS user_id WHERE id = ANY ($1::uuid[])
            ON CONFLICT (chat_id, user_id, left_seq) DO UPDATE
                SET joined_seq = excluded.joined_seq, position = excluded.position""",
        chat_ids,
        user_ids,
    )


async def reveal_pair(db: Database, blocker: UUID, blocked: UUID) -> None:
    """End the concealment of chats of two after a block, as if the blocker had deleted them for themselves: they come
    back with the next message, or when the blocker opens the chat, and begin there. Title, avatar and settings that the
    other user set while blocked stay masked."""
    chat_ids = await _lock_shared_chats(db, blocker, blocked)
    await db.execute(
        """WITH revealed AS (
               UPDATE chat_participants p SET concealed = false, joined_seq = t.last_seq + 1,
                   read_number = t.last_number, own_after = 0,
                   masked = t.title IS NOT NULL OR t.avatar_url IS NOT NULL OR t.settings <> '{}'
               FROM chat_threads t
               WHERE t.id = p.chat_id AND p.chat_id = ANY ($1::uuid[]) AND p.user_id = $2 AND p.concealed
               RETURNING p.chat_id, p.user_id, t.last_number)
           UPDATE chat_views v SET deleted_number = revealed.last_number FROM revealed
           WHERE v.chat_id = revealed.chat_id AND v.user_id = revealed.user_id""",
        chat_ids,
        blocker,
    )


async def blocks_between(db: Database, one: UUID, other: UUID) -> tuple[bool, bool]:
    """Two flags: True if the first user has blocked the second, and True if the second has blocked the first."""
    row = await db.row(
        """SELECT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = $1 AND blocked_id = $2) AS own,
                  EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = $2 AND blocked_id = $1) AS others""",
        one,
        other,
    )
    assert row is not None
    return row["own"], row["others"]
