"""Receipts: move and read the marks of how far participants have received and read a chat.

Watermarks are columns of ``chat_participants``; ``chat_marks`` has the position (models/chats/sync.py)
at which they last moved. A receipt does not lock the chat, so it never waits for a post
(docs/decisions/0037-receipts-are-marks.md).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from models.chats.changes import ChatChanges
from models.chats.chat_list import UNREAD, due
from models.chats.events import POSITION, Change
from models.chats.messages import erase
from models.chats.visibility import SEEN_FROM, UNEXPIRED, VISIBLE, blocked
from models.database import Database, Row

# Messages that one receipt records one by one: the newest ones. For older ones the watermark is enough.
MAX_RECORDED = 1000
ERASE_BATCH = 500  # messages that a receipt in a secret chat erases in one statement
MAX_ABOVE_HORIZON = 1000  # marks of a page that ends above the horizon: no more than that move during one transaction
SMALL_CHAT = 64  # participants up to which all see all marks of a chat (contract section 7)


class Advance(NamedTuple):
    """A participant's watermarks after a receipt. ``viewers`` are the users who may see the move, not yet filtered by
    blocks. ``unread_count`` counts messages by others."""

    moved: bool
    marked_unread: bool
    delivered_seq: int
    read_seq: int
    unread_count: int
    viewers: list[UUID]


# One statement, which locks the participant's row first. It computes from a snapshot, so it changes the row only if
# that is still the version in the snapshot (``xmin``): otherwise a message that the participant posts meanwhile would
# be counted wrongly in ``own_after``. Messages from before the first one they may see are neither read nor counted.
#
# Messages are locked with SKIP LOCKED: one that is skipped is being erased, or marked as delivered by another receipt.
# So this statement waits for nothing while it holds the participant's row. ``arrived`` counts ``noted`` in order to run
# after it: a statement does not lock a row that it has updated.
_ADVANCE = f"""
WITH {due("$2")}, place AS MATERIALIZED (
    SELECT t.id, t.type::text, t.last_seq, t.last_number, t.participant_count, p.user_id, p.xmin AS version,
           p.read_number, p.own_after, p.delivered_seq, p.read_seq, {SEEN_FROM} - 1 AS unseen,
           greatest(p.read_seq, least($4::bigint, t.last_seq)) AS new_read,
           EXISTS (SELECT 1 FROM chat_views WHERE chat_id = $1 AND user_id = $2 AND marked_unread) AS marked_unread
    FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
    WHERE p.chat_id = $1 AND p.user_id = $2 AND NOT p.concealed AND t.deleted_at IS NULL AND NOT EXISTS (
        SELECT 1 FROM chat_views v
        WHERE v.chat_id = t.id AND v.user_id = p.user_id AND v.deleted_number >= t.last_number)
), target AS MATERIALIZED (
    SELECT *, greatest(delivered_seq, least($3::bigint, last_seq), new_read) AS new_delivered,
           greatest(read_seq, unseen, 0) AS read_after, greatest(delivered_seq, unseen, 0) AS delivered_after
    FROM place
), moved AS (
    UPDATE chat_participants p SET delivered_seq = new_delivered, read_seq = new_read,
        own_after = CASE WHEN new_read = t.read_seq THEN p.own_after WHEN new_read = last_seq THEN 0
            ELSE p.own_after - (
                SELECT count(*) FROM messages
                WHERE chat_id = $1 AND seq > read_after AND seq <= new_read AND sender_id = $2) END,
        read_number = CASE WHEN new_read = t.read_seq THEN p.read_number WHEN new_read = last_seq THEN last_number
            ELSE greatest(p.read_number, (
                SELECT number FROM messages WHERE chat_id = $1 AND seq > 0 AND seq <= new_read
                ORDER BY seq DESC LIMIT 1)) END
    FROM target t
    WHERE p.chat_id = $1 AND p.user_id = $2 AND p.xmin = t.version AND ($5::boolean OR t.type <> 'secret')
        AND (new_delivered, new_read) <> (t.delivered_seq, t.read_seq)
    RETURNING t.id, t.type, p.user_id, p.read_number, p.own_after, read_after, delivered_after, new_read, new_delivered
), marked AS (
    INSERT INTO chat_marks (chat_id, user_id, position) SELECT $1, $2, {POSITION} FROM moved
    ON CONFLICT (chat_id, user_id) DO UPDATE SET position = excluded.position
), noted AS MATERIALIZED (
    SELECT m.id, m.seq, m.sender_id FROM moved, LATERAL (
        SELECT id, seq, sender_id FROM messages
        WHERE chat_id = $1 AND seq > moved.read_after AND seq <= moved.new_read AND sender_id IS DISTINCT FROM $2
        ORDER BY seq DESC LIMIT {MAX_RECORDED} FOR KEY SHARE SKIP LOCKED) AS m
    WHERE moved.type <> 'channel'
), reads AS (
    INSERT INTO message_reads (message_id, user_id) SELECT id, $2 FROM noted ON CONFLICT DO NOTHING
), arrived AS (
    UPDATE messages SET delivered = true WHERE id IN (
        SELECT m.id FROM moved, LATERAL (
            SELECT id FROM messages WHERE NOT delivered AND id IN (
                SELECT id FROM messages WHERE chat_id = $1 AND seq > moved.delivered_after
                    AND seq <= moved.new_delivered AND sender_id IS DISTINCT FROM $2 ORDER BY seq DESC
                LIMIT {MAX_RECORDED})
                AND (SELECT count(*) FROM noted) >= 0
            FOR NO KEY UPDATE SKIP LOCKED) AS m
        WHERE moved.type <> 'channel')
), p AS (
    SELECT user_id, read_number, own_after FROM moved
    UNION ALL
    SELECT user_id, read_number, own_after FROM target WHERE NOT EXISTS (SELECT 1 FROM moved)
)
SELECT t.type, EXISTS (SELECT 1 FROM moved) AS moved, t.marked_unread, new_delivered AS delivered_seq,
       new_read AS read_seq, {UNREAD} AS unread_count,
       CASE WHEN t.type = 'channel' THEN ARRAY[$2]
            WHEN t.participant_count <= {SMALL_CHAT}
                THEN ARRAY(SELECT user_id FROM chat_participants WHERE chat_id = $1)
            ELSE ARRAY[$2] || ARRAY(
                SELECT DISTINCT sender_id FROM noted JOIN chat_participants p
                    ON p.chat_id = $1 AND p.user_id = sender_id AND noted.seq >= {SEEN_FROM}) END AS viewers,
       (new_delivered, new_read) <> (t.delivered_seq, t.read_seq) AND NOT EXISTS (SELECT 1 FROM moved) AS outdated
FROM target t JOIN p ON true
"""


async def advance(changes: ChatChanges, user_id: UUID, chat_id: UUID, delivered: int, read: int) -> Advance | None:
    """Move a participant's watermarks forward, at most to the end of the chat; what is read is also delivered. Returns
    None if the user is not in the chat.

    In a channel reads are not recorded for each message. In a secret chat delivered messages are erased, with the chat
    locked.
    """
    db, given = changes.db, (chat_id, user_id, delivered, read)
    row = await db.row(_ADVANCE, *given, False)
    if row is not None and row["outdated"]:
        if row["type"] == "secret":
            return await _advance_and_erase(changes, *given)
        async with db.transaction():
            await db.execute(
                "SELECT 1 FROM chat_participants WHERE chat_id = $1 AND user_id = $2 FOR NO KEY UPDATE", *given[:2]
            )
            row = await db.row(_ADVANCE, *given, False)
    if row is None:
        return None
    if not row["moved"]:  # it may repeat a receipt that timed out while it waited for the standby
        await db.replicated()
    return _advance(row)


def _advance(row: Row) -> Advance:
    return Advance(**{name: row[name] for name in Advance._fields})


async def _advance_and_erase(
    changes: ChatChanges, chat_id: UUID, user_id: UUID, delivered: int, read: int
) -> Advance | None:
    db = changes.db
    async with changes.lock(chat_id, user_id) as change:
        row = await db.row(_ADVANCE, chat_id, user_id, delivered, read, True) if change else None
        if change is None or row is None:
            return None
        while reached := await _find_delivered(change, row["delivered_seq"]):
            await erase(change, reached, "delivered")
        after = await db.row(_ADVANCE, chat_id, user_id, 0, 0, True)  # what is unread now
        assert after is not None
    return _advance(row)._replace(unread_count=after["unread_count"])


async def _find_delivered(change: Change, delivered: int) -> list[UUID]:
    """Find messages that were delivered to a participant, a batch of the oldest."""
    rows = await change.db.fetch(
        f"""SELECT id FROM messages WHERE chat_id = $1 AND seq > 0 AND seq <= $3 AND sender_id IS DISTINCT FROM $2
            ORDER BY seq LIMIT {ERASE_BATCH}""",
        change.chat_id,
        change.user_id,
        delivered,
    )
    return [row["id"] for row in rows]


# Who may see which marks --------------------------------------------------------------------------------------------

# True if a block conceals the chat of two ``t`` from participant ``p``: their marks don't move, and the other user
# still sees them, as those of a user who does not answer.
_SILENT = "(p.concealed AND t.type IN ('direct', 'secret'))"

# True if participant ``mine`` may see the mark of participant ``p`` in their chat ``t``. In a large chat these are the
# marks of participants who may have read a message that ``mine`` posted, from ``posted_first`` to ``posted_last``.
_SEES = f"""(p.user_id = mine.user_id OR (t.type <> 'channel'
    AND (NOT {blocked("p.user_id", "mine.user_id")} OR {_SILENT})
    AND (t.participant_count <= {SMALL_CHAT} OR (mine.posted_first > 0 AND p.read_seq >= mine.posted_first
        AND (p.concealed OR mine.posted_last >= {SEEN_FROM})))))"""

# True if participant ``mine`` sees the chat ``t``: no block conceals it, and they have not deleted it for themselves.
_THERE = """(t.deleted_at IS NULL AND NOT mine.concealed AND NOT EXISTS (
    SELECT 1 FROM chat_views v WHERE v.chat_id = t.id AND v.user_id = mine.user_id
        AND v.deleted_number >= t.last_number))"""


async def marks(db: Database, user_id: UUID, chat_id: UUID) -> list[dict[str, Any]] | None:
    """``user_id, delivered_seq, read_seq`` of the participants whose marks a user may see, including their own; None if
    the user is not in the chat."""
    rows = await db.fetch(
        f"""SELECT p.user_id, p.delivered_seq, p.read_seq FROM chat_participants mine
            JOIN chat_threads t ON t.id = mine.chat_id
            JOIN chat_participants p ON p.chat_id = t.id AND (t.type <> 'channel' OR p.user_id = $1)
            WHERE mine.chat_id = $2 AND mine.user_id = $1 AND {_THERE} AND {_SEES}
            ORDER BY p.role, p.joined_at, p.user_id""",
        user_id,
        chat_id,
    )
    return [dict(row) for row in rows] or None


_READS = f"""
SELECT r.user_id, r.read_at FROM message_reads r
JOIN messages m ON m.id = r.message_id JOIN chat_threads t ON t.id = m.chat_id
JOIN chat_participants p ON p.chat_id = m.chat_id AND p.user_id = r.user_id
WHERE r.message_id = $2 AND m.seq > 0 AND {UNEXPIRED} AND (NOT {blocked("r.user_id", "$1")} OR {_SILENT})
    AND (t.type IN ('direct', 'secret') OR p.concealed OR m.seq >= {SEEN_FROM}) {{earlier}}
ORDER BY r.read_at DESC, r.user_id DESC LIMIT $3
"""


async def reads(
    db: Database, sender_id: UUID, message_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None
) -> list[Row] | None:
    """``user_id, read_at`` of the participants who have read a message, the last reader first; None unless this user
    has sent the message and still sees it. Reads across a block are left out."""
    sent = await db.value(
        f"""SELECT 1 FROM messages m JOIN chat_threads t ON t.id = m.chat_id AND t.deleted_at IS NULL
            JOIN chat_participants p ON p.chat_id = m.chat_id AND p.user_id = $1
            WHERE m.id = $2 AND m.sender_id = $1 AND {VISIBLE}""",
        sender_id,
        message_id,
    )
    if sent is None:
        return None
    earlier = "AND (r.read_at, r.user_id) < ($4, $5)" if before else ""
    return await db.fetch(_READS.format(earlier=earlier), sender_id, message_id, limit, *(before or ()))


Mark = dict[str, Any]  # ``chat_id, user_id, delivered_seq, read_seq``


class MarksPage(NamedTuple):
    """A page of marks that moved since a position, and the position where the next page begins."""

    marks: list[Mark]
    since: int
    has_more: bool


_MOVED = f"""
WITH moment AS MATERIALIZED (
    SELECT base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon FROM sync_epoch
), next AS MATERIALIZED (
    SELECT mine.chat_id, m.user_id, m.position FROM chat_participants mine JOIN chat_threads t ON t.id = mine.chat_id,
    LATERAL (
        (SELECT user_id, position FROM chat_marks
         WHERE chat_id = t.id AND position >= $2 AND t.type <> 'channel' ORDER BY position LIMIT $3)
        UNION ALL
        SELECT user_id, position FROM chat_marks
        WHERE chat_id = t.id AND user_id = $1 AND position >= $2 AND t.type = 'channel'
    ) AS m
    WHERE mine.user_id = $1 AND {_THERE} ORDER BY m.position LIMIT $3
)
SELECT horizon, n.position, n.chat_id, n.user_id, n.delivered_seq, n.read_seq, n.seen FROM moment LEFT JOIN (
    SELECT next.*, p.delivered_seq, p.read_seq, {_SEES} AS seen FROM next
    JOIN chat_threads t ON t.id = next.chat_id
    JOIN chat_participants mine ON mine.chat_id = next.chat_id AND mine.user_id = $1
    JOIN chat_participants p ON p.chat_id = next.chat_id AND p.user_id = next.user_id
) AS n ON true ORDER BY n.position
"""


_MARK = ("chat_id", "user_id", "delivered_seq", "read_seq")


async def moved_marks(db: Database, user_id: UUID, since: int, limit: int) -> MarksPage:
    """The marks of a user's chats that moved at or after a position, in that order: of the next ``limit`` marks those
    that the user may see.

    Each mark moves in its own transaction, so each has its own position. Below the horizon all of them are visible.
    ``since`` never goes beyond it, nor beyond a mark that was read, which is on disk. So the next page can't begin
    after a page that ends above the horizon: such a page has all marks, up to MAX_ABOVE_HORIZON.
    """
    rows = await db.fetch(_MOVED, user_id, since, limit + 1)
    if len(rows) > limit and rows[limit - 1]["position"] >= rows[0]["horizon"]:
        limit = MAX_ABOVE_HORIZON
        rows = await db.fetch(_MOVED, user_id, since, limit + 1)
    page = [row for row in rows if row["position"] is not None][:limit]
    if not page:
        return MarksPage([], since, False)
    last, horizon = page[-1]["position"], rows[0]["horizon"]
    shown = [{name: row[name] for name in _MARK} for row in page if row["seen"]]
    return MarksPage(shown, max(since, min(last + 1, horizon)), len(rows) > limit and last < horizon)


class CurrentMarks(NamedTuple):
    """Marks of participants by (chat, user); those participants who have deleted the chat for themselves or don't see
    it; and pairs of users with a block between them, in both orders."""

    marks: dict[tuple[UUID, UUID], tuple[int, int]]
    deleted: set[tuple[UUID, UUID]]
    severed: set[tuple[UUID, UUID]]


async def current_marks(db: Database, places: Collection[tuple[UUID, UUID]]) -> CurrentMarks:
    """The present marks of participants, given as (chat, user). Users who have left are missing."""
    users = list({user_id for _, user_id in places})
    rows = await db.fetch(
        f"""SELECT mine.chat_id, mine.user_id, mine.delivered_seq, mine.read_seq, {_THERE} AS there
            FROM unnest($1::uuid[], $2::uuid[]) AS place (chat_id, user_id)
            JOIN chat_participants mine ON mine.chat_id = place.chat_id AND mine.user_id = place.user_id
            JOIN chat_threads t ON t.id = mine.chat_id AND t.deleted_at IS NULL""",
        [chat_id for chat_id, _ in places],
        [user_id for _, user_id in places],
    )
    blocks = await db.fetch(
        "SELECT blocker_id, blocked_id FROM user_blocks WHERE blocker_id = ANY ($1::uuid[]) AND blocked_id = ANY ($1)",
        users,
    )
    pairs = [(row["blocker_id"], row["blocked_id"]) for row in blocks]
    return CurrentMarks(
        {(row["chat_id"], row["user_id"]): (row["delivered_seq"], row["read_seq"]) for row in rows},
        {(row["chat_id"], row["user_id"]) for row in rows if not row["there"]},
        {*pairs, *((other, one) for one, other in pairs)},
    )


async def find_across_block(db: Database, user_id: UUID, others: Collection[UUID]) -> set[UUID]:
    """Find those of the ``others`` who have blocked the user or are blocked by them."""
    rows = await db.fetch(
        f"""SELECT other FROM unnest($2::uuid[]) AS other WHERE {blocked("other", "$1")}""", user_id, list(others)
    )
    return {row["other"] for row in rows}
