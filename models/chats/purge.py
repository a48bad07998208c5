"""Purges: erase the content of deleted chats, except what ``/sync`` still has to report."""

from __future__ import annotations

from dataclasses import replace

import peewee

from models.chats.message_row import detached, erased
from models.database import Database, Table
from models.sweeps import Due, Sweep

BATCH = 500  # chats, and rows of their content, in one statement: some 20 ms, 60 on a busy machine


class ChatPurge(Table):
    """A deleted chat that may still have content. A trigger on chats inserts the row. No foreign key."""

    chat_id = peewee.UUIDField(primary_key=True)
    due_at = peewee.DateTimeField()

    class Meta:
        table_name = "chat_purges"


_CHATS = Due("deleted_chats", "chat_id", "chat_purges WHERE due_at <= now()", "due_at, chat_id")

# The rows to erase, and the files shared in a chat, which their owners keep. At most $1 rows in all: if a batch of one
# fails, its row is the cause. The event of a chat's end stays, and that of each participant who left.
_DOOMED = f"""
WITH due AS (
    {_CHATS.batch}
), messages_ AS (
    SELECT m.id FROM due, LATERAL (
        SELECT id FROM messages
        WHERE chat_id = due.chat_id AND seq > 0 AND ROW(id)::text NOT IN {_CHATS.failed} LIMIT $1) AS m
    LIMIT $1
), events_ AS (
    SELECT e.chat_id, e.seq FROM due JOIN chat_threads t ON t.id = due.chat_id, LATERAL (
        SELECT chat_id, seq FROM chat_events AS found
        WHERE chat_id = t.id AND seq < t.last_seq AND ROW(chat_id, seq)::text NOT IN {_CHATS.failed} AND NOT EXISTS (
            SELECT 1 FROM chat_departures d WHERE d.chat_id = found.chat_id AND d.left_seq = found.seq)
        LIMIT $1) AS e
    LIMIT $1 - (SELECT count(*) FROM messages_)
), files_ AS (
    SELECT f.id FROM due, LATERAL (
        SELECT id FROM files WHERE chat_id = due.chat_id AND ROW(id)::text NOT IN {_CHATS.failed} LIMIT $1) AS f
    LIMIT $1 - (SELECT count(*) FROM messages_) - (SELECT count(*) FROM events_)
), sanctions_ AS (
    SELECT s.chat_id, s.user_id FROM due, LATERAL (
        SELECT chat_id, user_id FROM chat_sanctions
        WHERE chat_id = due.chat_id AND ROW(chat_id, user_id)::text NOT IN {_CHATS.failed} LIMIT $1) AS s
    LIMIT $1 - (SELECT count(*) FROM messages_) - (SELECT count(*) FROM events_) - (SELECT count(*) FROM files_)
), views_ AS (
    SELECT v.chat_id, v.user_id FROM due, LATERAL (
        SELECT chat_id, user_id FROM chat_views
        WHERE chat_id = due.chat_id AND ROW(chat_id, user_id)::text NOT IN {_CHATS.failed} LIMIT $1) AS v
    LIMIT $1 - (SELECT count(*) FROM messages_) - (SELECT count(*) FROM events_) - (SELECT count(*) FROM files_)
             - (SELECT count(*) FROM sanctions_)
), found AS (
    SELECT (SELECT count(*) FROM messages_) + (SELECT count(*) FROM events_) + (SELECT count(*) FROM files_)
         + (SELECT count(*) FROM sanctions_) + (SELECT count(*) FROM views_) AS rows
)"""

DUE = replace(
    _CHATS,
    blamed=f"""{_DOOMED}
SELECT coalesce((SELECT ROW(id)::text FROM messages_), (SELECT ROW(chat_id, seq)::text FROM events_),
                (SELECT ROW(id)::text FROM files_), (SELECT ROW(chat_id, user_id)::text FROM sanctions_),
                (SELECT ROW(chat_id, user_id)::text FROM views_), due::text)
FROM due""",
)

# Of a message its sender and client_id stay, so that a repeated post still gets the stored response. Fewer than $1 rows
# mean that these chats have no more. Then a chat leaves the queue; a chat with rows that failed, and are skipped, waits
# in it for another attempt.
_PURGE = f"""{_DOOMED}, gone AS (
    UPDATE messages m SET {erased("'deleted'")} WHERE m.id IN (SELECT id FROM messages_) RETURNING 1
), {detached("SELECT id FROM messages_")}, untold AS (
    DELETE FROM chat_events WHERE (chat_id, seq) IN (SELECT chat_id, seq FROM events_) RETURNING 1
), parted AS (
    UPDATE files SET chat_id = NULL WHERE id IN (SELECT id FROM files_) RETURNING 1
), lifted AS (
    DELETE FROM chat_sanctions WHERE (chat_id, user_id) IN (SELECT chat_id, user_id FROM sanctions_) RETURNING 1
), unseen AS (
    DELETE FROM chat_views WHERE (chat_id, user_id) IN (SELECT chat_id, user_id FROM views_) RETURNING 1
), empty AS (
    SELECT chat_id,
           EXISTS (SELECT 1 FROM messages WHERE chat_id = due.chat_id AND seq > 0 AND ROW(id)::text IN {_CHATS.failed})
           OR EXISTS (SELECT 1 FROM chat_events AS e
                      WHERE chat_id = due.chat_id AND ROW(e.chat_id, seq)::text IN {_CHATS.failed})
           OR EXISTS (SELECT 1 FROM files WHERE chat_id = due.chat_id AND ROW(id)::text IN {_CHATS.failed})
           OR EXISTS (SELECT 1 FROM chat_sanctions AS s
                      WHERE chat_id = due.chat_id AND ROW(s.chat_id, s.user_id)::text IN {_CHATS.failed})
           OR EXISTS (SELECT 1 FROM chat_views AS v
                      WHERE chat_id = due.chat_id AND ROW(v.chat_id, v.user_id)::text IN {_CHATS.failed}) AS failed
    FROM due WHERE (SELECT rows FROM found) < $1
), later AS (
    UPDATE chat_purges SET due_at = now() + interval '10 minutes'
    WHERE chat_id IN (SELECT chat_id FROM empty WHERE failed) RETURNING 1
), done AS (
    DELETE FROM chat_purges WHERE chat_id IN (SELECT chat_id FROM empty WHERE NOT failed) RETURNING 1
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM untold) + (SELECT count(*) FROM parted)
     + (SELECT count(*) FROM lifted) + (SELECT count(*) FROM unseen)
     + (SELECT count(*) FROM later) + (SELECT count(*) FROM done)
"""


async def purge(db: Database, batch: int) -> int:
    """Erase at most ``batch`` rows of deleted chats and release their files. A chat without rows leaves the queue.
    Returns the number of rows that were changed."""
    changed: int = await db.value(_PURGE, batch)
    return changed


def sweep(db: Database) -> Sweep:
    """Purge deleted chats, as a sweep."""
    return Sweep(DUE, lambda limit: purge(db, limit), BATCH)
