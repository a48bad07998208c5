"""Storing messages: many in one statement, each once per client_id."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from models.chats.events import POSITION
from models.database import Database


class Post(NamedTuple):
    """A message to be stored. ``access`` is that of the view that let its sender post (models/chats/access.py);
    ``expires_in`` is in seconds."""

    id: UUID
    chat_id: UUID
    sender_id: UUID | None
    client_id: UUID
    payload: bytes
    payload_hash: int
    message_type: str
    metadata: dict[str, Any] | None
    reply_to: UUID | None
    forwarded_from: UUID | None
    expires_in: int | None
    access: int
    sealed: bool = False


class Posted(NamedTuple):
    """The place of a message in its chat. ``payload_hash`` is set if the sender had posted this client_id before; then
    all fields are those of the earlier message."""

    id: UUID
    chat_id: UUID
    seq: int
    created_at: datetime
    expires_at: datetime | None
    payload_hash: int | None


# Stores each message, unless its sender has stored this client_id before, or the access of its chat is not the one that
# it relied on; in the second case it returns no row for it. Chats are locked in the order of their ids, so that two
# instances don't deadlock. Numbers are assigned under that lock, so they are in the order of commits.
_POST = f"""
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bytea[], $6::bigint[], $7::text[],
                         $8::jsonb[], $9::uuid[], $10::uuid[], $11::integer[], $12::bigint[], $13::boolean[])
        WITH ORDINALITY AS g (id, chat_id, sender_id, client_id, payload, payload_hash, message_type, metadata,
                              reply_to, forwarded_from, expires_in, access, sealed, place)
), known AS (
    SELECT given.place, given.id AS asked, m.* FROM given,
    LATERAL (
        SELECT id, chat_id, abs(seq) AS seq, created_at, expires_at, payload_hash FROM messages
        WHERE sender_id = given.sender_id AND client_id = given.client_id LIMIT 1
    ) AS m
    UNION ALL
    SELECT given.place, given.id, m.* FROM given,
    LATERAL (
        SELECT id, chat_id, abs(seq), created_at, expires_at, payload_hash FROM messages
        WHERE sealed AND chat_id = given.chat_id AND client_id = given.client_id LIMIT 1
    ) AS m
    WHERE given.sealed
), fresh AS (
    SELECT given.*, row_number() OVER (PARTITION BY chat_id, access ORDER BY place) AS nth FROM given
    WHERE place NOT IN (SELECT place FROM known)
), counted AS (
    SELECT chat_id, access, count(*) AS many FROM fresh GROUP BY chat_id, access
), locked AS (
    SELECT t.id, counted.access, counted.many FROM counted
    JOIN chat_threads t ON t.id = counted.chat_id AND t.access = counted.access AND t.deleted_at IS NULL
    ORDER BY t.id FOR NO KEY UPDATE OF t
), moved AS (
    UPDATE chat_threads t SET last_seq = last_seq + many, last_number = last_number + many, updated_at = now(),
        last_position = greatest(last_position, {POSITION})
    FROM locked WHERE t.id = locked.id
    RETURNING t.id, locked.access, last_seq - many AS seq, last_number - many AS number, last_position AS position
), stored AS (
    INSERT INTO messages (id, chat_id, sender_id, client_id, encrypted_payload, payload_hash, message_type, metadata,
                          reply_to, forwarded_from, expires_at, sealed, seq, number, position)
    SELECT fresh.id, chat_id, sender_id, client_id, payload, payload_hash, message_type, coalesce(metadata, '{{}}'),
           reply_to, forwarded_from, now() + expires_in * interval '1 second', sealed,
           moved.seq + nth, moved.number + nth, moved.position
    FROM fresh JOIN moved ON moved.id = chat_id AND moved.access = fresh.access
    RETURNING id, chat_id, sender_id, seq, created_at, expires_at
), own AS (
    UPDATE chat_participants p SET own_after = own_after + many, accepted = true, posted_last = s.last,
        posted_first = CASE WHEN posted_first = 0 THEN s.first ELSE posted_first END
    FROM (SELECT chat_id, sender_id, count(*) AS many, min(seq) AS first, max(seq) AS last
          FROM stored GROUP BY chat_id, sender_id) AS s
    WHERE p.chat_id = s.chat_id AND p.user_id = s.sender_id
)
SELECT id AS asked, id, chat_id, seq, created_at, expires_at, NULL::bigint AS payload_hash FROM stored
UNION ALL
SELECT asked, id, chat_id, seq, created_at, expires_at, payload_hash FROM known
"""


async def post(db: Database, posts: Sequence[Post]) -> list[Posted | None]:
    """Store messages in one statement. Returns the place of each; None if it relied on an outdated access.

    No two of them may have the same sender and client_id. A database error stores none of them. A message that was
    stored before is on the standby, too, when this returns.
    """
    rows = await db.fetch(_POST, *map(list, zip(*posts, strict=True)))
    found = {row[0]: Posted(*row[1:]) for row in rows}
    # A new message has already waited for all earlier commits.
    if found and all(posted.payload_hash is not None for posted in found.values()):
        await db.replicated()
    return [found.get(post.id) for post in posts]


async def find_stored(db: Database, sender_id: UUID, client_id: UUID) -> Posted | None:
    """The message that a sender has stored under this client_id, even if it was erased since or the sender has lost
    their rights. It is on the standby, too, when this returns."""
    row = await db.row(
        """SELECT id, chat_id, abs(seq) AS seq, created_at, expires_at, payload_hash FROM messages
           WHERE sender_id = $1 AND client_id = $2""",
        sender_id,
        client_id,
    )
    if row is None:
        return None
    await db.replicated()
    return Posted(*row.values())
