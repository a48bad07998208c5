"""Sync: every event of a user's chats since a cursor, none skipped, whatever the order in which transactions commit.

An event's position is the id of its transaction, or that of an older event in its chat where that is greater. So within
a chat positions never fall; and when PostgreSQL says that all transactions below some id are over (the horizon of a
snapshot), every event with a smaller position can be seen. A cursor is such a horizon, and for the few chats that had
events at or after it, how far they were seen. What comes later, from whichever instance, is at or after the horizon and
behind that, so the next page finds it. This needs neither clocks nor a lock that all writers share.

A horizon is never taken further than the newest position in the user's own chats: that is on the disk. The ids above it
may be of transactions that were rolled back, of which PostgreSQL knows nothing after a crash, and which it gives out
again, to events below a cursor that had gone beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from models.changes import event_fields
from models.database import Database, Row
from models.listing import MESSAGE, UNEXPIRED


class Moment(NamedTuple):
    """What a snapshot of the database says of time: positions below ``horizon`` are complete, those from ``end`` on
    have not begun."""

    epoch: UUID
    horizon: int
    end: int


class Span(NamedTuple):
    """The events of a chat, from ``first`` to ``last``, that are a user's to see, and the position of the last one."""

    chat_id: UUID
    first: int
    last: int
    position: int


_NOW = """
SELECT epoch, base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       base + pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS end
FROM sync_epoch
"""


async def now(db: Database, user_id: UUID) -> tuple[Moment, dict[UUID, int]]:
    """The present moment, and the newest seq of those of the user's chats that have events not below its horizon."""
    rows = await db.fetch(
        f"""WITH moment AS MATERIALIZED ({_NOW}), mine AS (
                SELECT t.id AS chat_id, t.last_seq, t.last_position AS position
                FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id WHERE p.user_id = $1
                UNION ALL
                SELECT NULL, NULL, position FROM chat_departures WHERE user_id = $1
            ), held AS MATERIALIZED (
                SELECT epoch, least(horizon, (SELECT coalesce(max(position) + 1, 0) FROM mine)) AS horizon, "end"
                FROM moment
            )
            SELECT held.*, mine.chat_id, mine.last_seq FROM held LEFT JOIN mine ON mine.position >= held.horizon""",
        user_id,
    )
    moment = Moment(rows[0]["epoch"], rows[0]["horizon"], rows[0]["end"])
    return moment, {row["chat_id"]: row["last_seq"] for row in rows if row["chat_id"]}


# Of a chat that was deleted only its end is told, and to who had left before, that they did: the rest is being erased.
_SPANS = f"""
WITH moment AS MATERIALIZED ({_NOW}), spans AS (
    SELECT t.id AS chat_id, CASE WHEN t.deleted_at IS NULL THEN p.joined_seq ELSE t.last_seq END AS joined,
           t.last_seq AS last, t.last_position AS position
    FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
    WHERE p.user_id = $1 AND t.last_position >= $2
    UNION ALL
    SELECT d.chat_id, CASE WHEN t.deleted_at IS NULL THEN d.joined_seq ELSE d.left_seq END, d.left_seq, d.position
    FROM chat_departures d JOIN chat_threads t ON t.id = d.chat_id
    WHERE d.user_id = $1 AND d.position >= $2
), next AS (
    SELECT * FROM spans WHERE chat_id >= $3 AND joined <= last ORDER BY chat_id, joined LIMIT $4
)
SELECT epoch, least(horizon, greatest($2, (SELECT max(position) + 1 FROM spans))) AS horizon, "end",
       next.chat_id, greatest(joined, first_since(next.chat_id, last, $2)) AS first, last, position
FROM moment LEFT JOIN next ON true ORDER BY next.chat_id, joined
"""


async def spans(db: Database, user_id: UUID, since: int, from_chat: UUID, limit: int) -> tuple[Moment, list[Span]]:
    """The moment, and the next spans of the user's that have events at or after the position ``since``, in the order of
    their chats, from one chat on."""
    rows = await db.fetch(_SPANS, user_id, since, from_chat, limit)
    moment = Moment(rows[0]["epoch"], rows[0]["horizon"], rows[0]["end"])
    return moment, [Span(r["chat_id"], r["first"], r["last"], r["position"]) for r in rows if r["chat_id"]]


# A message that has expired, and is about to be erased, is shown as what it will be.
_EVENTS = """
SELECT range.place, e.* FROM unnest($1::uuid[], $2::bigint[], $3::bigint[])
    WITH ORDINALITY AS range (chat_id, first, last, place),
LATERAL (
    SELECT m.seq, CASE WHEN m.expires_at <= now() THEN 'message_deleted' ELSE 'message_new' END AS type,
           m.created_at AS happened_at, m.id AS message_id, NULL::uuid AS user_id,
           CASE WHEN m.expires_at <= now() THEN '{"reason": "expired"}' ELSE '{}' END::jsonb AS data
    FROM messages m WHERE m.chat_id = range.chat_id AND m.seq BETWEEN range.first AND range.last
    UNION ALL
    SELECT seq, type::text, created_at, message_id, user_id, data
    FROM chat_events c WHERE c.chat_id = range.chat_id AND c.seq BETWEEN range.first AND range.last
) AS e ORDER BY range.place, e.seq
"""


async def events(db: Database, ranges: Sequence[tuple[UUID, int, int]]) -> list[tuple[UUID, Row]]:
    """The events of chats from a seq to another one, range by range and in each by seq, with their chat. Ranges of one
    call hold as many events as they have numbers."""
    rows = await db.fetch(_EVENTS, *map(list, zip(*ranges, strict=True)))
    return [(ranges[row["place"] - 1][0], row) for row in rows]


async def messages(db: Database, ids: Sequence[UUID]) -> dict[UUID, Row | str]:
    """Messages by id as they are shown; of one that is gone, or has expired, the reason."""
    rows = await db.fetch(
        f"""SELECT CASE WHEN m.seq < 0 THEN m.metadata ->> 'reason' WHEN NOT {UNEXPIRED} THEN 'expired' END AS gone,
                   {MESSAGE} FROM messages m WHERE m.id = ANY ($1::uuid[])""",
        list(ids),
    )
    return {row["id"]: row["gone"] or row for row in rows}


def fields_of(row: Row) -> dict[str, Any]:
    """What an event of ``events`` bears beside type, chat, seq and time, but for ``message`` and ``chat``."""
    return event_fields(row["type"], row["message_id"], row["user_id"], row["data"])
