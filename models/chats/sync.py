"""Sync: every event of a user's chats since a cursor, none skipped, in whatever order transactions commit.

An event's position is the id of its transaction, or the position of an older event in its chat if that is greater. So
positions never fall within a chat. When PostgreSQL reports that all transactions below an id are over (the horizon of a
snapshot), every event with a smaller position is visible. A cursor holds such a horizon, and for the few chats with
events at or after it, the last seq that was seen. Later events, from any instance, are at or after the horizon and
after that seq, so the next page finds them. This needs neither clocks nor a lock that all writers share.

A horizon never exceeds the newest position in the user's own chats, because that is on disk. Higher ids may belong to
transactions that were rolled back. After a crash PostgreSQL has no record of these and assigns their ids again, to
events that would be below a cursor with a higher horizon.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from config.pages import MAX_PAGE
from models.chats.events import event_fields
from models.chats.message_row import CURRENT_REACTIONS, MESSAGE_SIZE, PAST_REACTIONS, message_columns
from models.chats.tables import thread_columns
from models.chats.visibility import UNEXPIRED, Membership, scope_of
from models.database import Database, Row
from models.paging import json_size, text_size


class Moment(NamedTuple):
    """The time of a snapshot of the database: all events below the position ``horizon`` are visible; transactions from
    ``end`` on have not begun."""

    epoch: UUID
    horizon: int
    end: int


class Span(NamedTuple):
    """The events of a chat from ``first`` to ``last``, within one membership, and the position of the last one. With
    ``deletion`` there are no events: the user has deleted the chat for themselves, up to ``last``."""

    chat_id: UUID
    first: int
    last: int
    position: int
    deletion: bool
    membership: Membership


class Range(NamedTuple):
    """Events of a chat to read, from one seq to another, within one membership."""

    chat_id: UUID
    first: int
    last: int
    membership: Membership


_NOW = """
SELECT epoch, base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       base + pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS end
FROM sync_epoch
"""


async def current_moment(db: Database, user_id: UUID) -> tuple[Moment, dict[UUID, int]]:
    """The present moment, and the newest seq of those of the user's chats with events at or after its horizon."""
    rows = await db.fetch(
        f"""WITH moment AS MATERIALIZED ({_NOW}), mine AS (
                SELECT t.id AS chat_id, t.last_seq, t.last_position AS position
                FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
                WHERE p.user_id = $1 AND NOT p.concealed
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


# Of a deleted chat only its end is reported, and to users who left before, their leaving: the rest is being erased.
_SPANS = f"""
WITH moment AS MATERIALIZED ({_NOW}), spans AS (
    SELECT t.id AS chat_id, CASE WHEN t.deleted_at IS NULL THEN p.joined_seq ELSE t.last_seq END AS begins,
           t.last_seq AS last, t.last_position AS position,
           t.type::text, p.role::text, p.joined_seq, NULL::bigint AS left_seq, false AS deletion
    FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
    WHERE p.user_id = $1 AND NOT p.concealed AND t.last_position >= $2
    UNION ALL
    SELECT d.chat_id, CASE WHEN t.deleted_at IS NULL THEN d.joined_seq ELSE d.left_seq END, d.left_seq, d.position,
           t.type::text, NULL, d.joined_seq, d.left_seq, d.joined_seq > d.left_seq
    FROM chat_departures d JOIN chat_threads t ON t.id = d.chat_id
    WHERE d.user_id = $1 AND d.position >= $2
), next AS (
    SELECT * FROM spans WHERE (chat_id, last) > ($3, $4) AND (begins <= last OR deletion)
    ORDER BY chat_id, last LIMIT $5
)
SELECT epoch, least(horizon, greatest($2, (SELECT max(position) + 1 FROM spans))) AS horizon, "end",
       next.chat_id, last, position, deletion, type, role, joined_seq, left_seq,
       CASE WHEN deletion THEN last + 1 ELSE greatest(begins, first_since(next.chat_id, last, $2)) END AS first
FROM moment LEFT JOIN next ON true ORDER BY next.chat_id, last
"""


async def next_spans(
    db: Database, user_id: UUID, since: int, behind: tuple[UUID, int], limit: int
) -> tuple[Moment, list[Span]]:
    """The moment, and the user's next spans with events at or after the position ``since``, in the order of chats,
    after ``behind``: a chat and a seq in it."""
    rows = await db.fetch(_SPANS, user_id, since, *behind, limit)
    moment = Moment(rows[0]["epoch"], rows[0]["horizon"], rows[0]["end"])
    found = []
    for row in rows:
        if row["chat_id"]:
            stay = Membership(row["type"], user_id, row["role"], row["joined_seq"], row["left_seq"])
            found.append(Span(row["chat_id"], row["first"], row["last"], row["position"], row["deletion"], stay))
    return moment, found


# A message that has expired, and is about to be erased, is shown as what it will be. ``about`` is the seq of the
# message that an event names, and is looked up only where a membership began later than the chat: others see them all.
# Of a message whose row is gone it is 1, which such a membership does not see. The events are cut to a page: ``more``
# is true of the last one if others did not fit.
_EVENTS = f"""
SELECT * FROM (
SELECT range.place, e.*, {json_size("e.data")} AS size, sum({json_size("e.data")}) OVER so_far AS total,
       row_number() OVER so_far AS number, lead(true) OVER so_far IS NOT NULL AS more
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::boolean[])
    WITH ORDINALITY AS range (chat_id, first, last, late, place),
LATERAL (
    SELECT m.seq, CASE WHEN m.expires_at <= now() THEN 'message_deleted' ELSE 'message_new' END AS type,
           m.created_at AS happened_at, m.id AS message_id, NULL::uuid AS user_id,
           CASE WHEN m.expires_at <= now() THEN '{{"reason": "expired"}}' ELSE '{{}}' END::jsonb AS data, m.seq AS about
    FROM messages m WHERE m.chat_id = range.chat_id AND m.seq BETWEEN range.first AND range.last
    UNION ALL
    SELECT seq, type::text, created_at, message_id, user_id, data,
           CASE WHEN late AND message_id IS NOT NULL
                THEN coalesce((SELECT abs(m.seq) FROM messages m WHERE m.id = message_id), 1) END
    FROM chat_events c WHERE c.chat_id = range.chat_id AND c.seq BETWEEN range.first AND range.last
) AS e WINDOW so_far AS (ORDER BY range.place, e.seq ROWS UNBOUNDED PRECEDING)
) AS page WHERE total <= {MAX_PAGE} OR number = 1 ORDER BY place, seq
"""


async def events(db: Database, ranges: Sequence[Range]) -> list[tuple[Range, Row]]:
    """The events of these ranges, each with its range, in the order of the ranges and by seq; as many as one page has
    room for."""
    rows = await db.fetch(
        _EVENTS,
        [given.chat_id for given in ranges],
        [given.first for given in ranges],
        [given.last for given in ranges],
        [given.membership.seen_from > 1 for given in ranges],
    )
    return [(ranges[row["place"] - 1], row) for row in rows]


def sees(membership: Membership, row: Row) -> bool:
    """True if a row of ``events``, from the time of this membership, may be shown."""
    return membership.sees(scope_of(membership.type, row["type"], row["about"], row["user_id"], row["data"]))


# A participant sees messages as they are now, if the membership still lasts in this snapshot. For a user who has left
# (``until``) a message that was edited or erased since, or has expired, is hidden, because its earlier content is gone;
# reactions are shown as they were. The rows are in the order of the request, as many as one page has room for; a
# message that is gone has no ``chat_id``.
_MESSAGES = f"""
SELECT * FROM (
SELECT message.*, {MESSAGE_SIZE} AS size, sum({MESSAGE_SIZE}) OVER (ORDER BY place) AS total FROM (
SELECT w.place, w.id AS wanted, w.until, m.seq < 0 OR NOT {UNEXPIRED} AS gone,
       CASE WHEN m.seq < 0 THEN m.metadata ->> 'reason' WHEN NOT {UNEXPIRED} THEN 'expired' END AS reason,
       CASE WHEN w.until IS NULL THEN NOT EXISTS (
           SELECT 1 FROM chat_participants p
           WHERE p.chat_id = m.chat_id AND p.user_id = $1 AND p.joined_seq = w.joined)
       ELSE (m.seq > 0 AND NOT {UNEXPIRED}) OR EXISTS (
           SELECT 1 FROM chat_events later WHERE later.message_id = m.id AND later.seq > w.until
               AND later.type IN ('message_edited', 'message_deleted')) END AS hidden,
       {{columns}}
FROM unnest($2::uuid[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS w (id, until, joined, place)
LEFT JOIN messages m ON m.id = w.id LEFT JOIN chat_threads t ON t.id = m.chat_id
OFFSET 0) AS message) AS page WHERE total <= {MAX_PAGE} OR place = 1
"""
_PRESENT = _MESSAGES.format(columns=message_columns("$1", CURRENT_REACTIONS))
_PAST = _MESSAGES.format(columns=message_columns("$1", PAST_REACTIONS))


async def messages(
    db: Database, user_id: UUID, wanted: Collection[tuple[UUID, Membership]]
) -> dict[tuple[UUID, int | None], Row | None]:
    """Messages as a user may see them in these memberships, by message id and last seq of the membership (None while it
    lasts). Each is ``hidden``; or ``gone`` with a ``reason``; or has the columns to show, and its ``size``. None for a
    message that does not exist. Those that a page has no room for are missing."""
    found: dict[tuple[UUID, int | None], Row | None] = {}
    for statement, pairs in (
        (_PRESENT, [pair for pair in wanted if pair[1].left is None]),
        (_PAST, [pair for pair in wanted if pair[1].left is not None]),
    ):
        if pairs:
            rows = await db.fetch(
                statement,
                user_id,
                [message_id for message_id, _ in pairs],
                [stay.left for _, stay in pairs],
                [stay.joined for _, stay in pairs],
            )
            found.update({(row["wanted"], row["until"]): row if row["chat_id"] else None for row in rows})
    return found


_THREAD_SIZE = f"400 + {text_size('t.title', 't.avatar_url')} + {json_size('t.settings')}"
_THREADS = f"""
SELECT * FROM (
    SELECT wanted.id AS wanted, place, {thread_columns("coalesce(p.masked, false)")}, {_THREAD_SIZE} AS size,
           p.user_id IS NOT NULL AS inside, sum({_THREAD_SIZE}) OVER (ORDER BY place) AS total
    FROM unnest($2::uuid[]) WITH ORDINALITY AS wanted (id, place) LEFT JOIN chat_threads t ON t.id = wanted.id
    LEFT JOIN chat_participants p ON p.chat_id = t.id AND p.user_id = $1 AND NOT p.concealed
) AS page WHERE total <= {MAX_PAGE} OR place = 1
"""


async def threads(db: Database, user_id: UUID, chat_ids: Sequence[UUID]) -> dict[UUID, dict[str, Any] | None]:
    """Chats as events show them, with their ``size`` and ``inside``: true if the user is in the chat, and so may see it
    as it is. None for a chat that does not exist. Those that a page has no room for are missing."""
    rows = await db.fetch(_THREADS, user_id, list(chat_ids))
    return {
        row["wanted"]: {name: value for name, value in row.items() if name not in ("wanted", "place", "total")}
        if row["id"]
        else None
        for row in rows
    }


def fields_of(row: Row) -> dict[str, Any]:
    """The fields of a row of ``events`` besides type, chat, seq and time, without ``message`` and ``chat``."""
    return event_fields(row["type"], row["message_id"], row["user_id"], row["data"])
