"""Chat lists: a user's chats as they see them, each with its newest message and its unread count."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from models.chats.message_row import MESSAGE_SIZE, REPLY_TO_SEQ, reaction_counts, reactions
from models.chats.visibility import SEEN_FROM, UNEXPIRED
from models.database import Database, Row
from models.paging import cut, json_size, read_page, text_size

# Messages of one user's chats that have expired and are not erased yet: they don't count as unread.
_DUE = """due AS MATERIALIZED (
    SELECT m.chat_id, m.number, m.sender_id FROM messages m
    JOIN chat_participants p ON p.chat_id = m.chat_id AND p.user_id = {user}
    WHERE m.expires_at <= now() AND m.deleted_at IS NULL)"""


def due(user: str) -> str:
    """SQL: the table ``due`` that UNREAD reads. ``user`` is a parameter such as ``$1``."""
    return _DUE.format(user=user)


UNREAD = """greatest(0, t.last_number - p.read_number - p.own_after
    - CASE WHEN t.last_number > p.read_number THEN gone_after(t.id, p.read_number) + (
        SELECT count(*) FROM due WHERE due.chat_id = t.id AND due.number > p.read_number
            AND due.sender_id IS DISTINCT FROM p.user_id) ELSE 0 END)"""

# A participant's setting for a chat lasts until there is a newer message (models/chats/views.py).
_HIDDEN = "coalesce(v.hidden_number >= t.last_number, false)"
_NOT_DELETED = "(v.deleted_number IS NULL OR v.deleted_number < t.last_number)"

_ENTRIES = f"""
WITH {due("$1")}
SELECT t.id, t.type, t.title, t.avatar_url, t.created_by, t.settings, t.created_at, t.updated_at, t.role,
       t.participant_count, t.last_seq, t.read_seq, t.delivered_seq, t.unread_count,
       t.hidden, t.archived, t.muted_until, t.marked_unread, m.*
FROM (
    SELECT t.id, t.type::text, CASE WHEN NOT p.masked THEN t.title END AS title,
           CASE WHEN NOT p.masked THEN t.avatar_url END AS avatar_url, t.created_by,
           CASE WHEN p.masked THEN '{{{{}}}}' ELSE t.settings END AS settings, t.created_at, t.updated_at,
           t.participant_count, t.last_seq, p.user_id, p.role::text, p.read_seq, p.delivered_seq,
           {UNREAD} AS unread_count, {SEEN_FROM} AS seen_from, {_HIDDEN} AS hidden,
           coalesce(v.archived, false) AS archived, v.muted_until, coalesce(v.marked_unread, false) AS marked_unread
    FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
    LEFT JOIN chat_views v ON v.chat_id = p.chat_id AND v.user_id = p.user_id
    WHERE p.user_id = $1 AND t.deleted_at IS NULL AND {_NOT_DELETED} {{which}}
) AS t
LEFT JOIN LATERAL (
    SELECT m.id AS message_id, m.seq, m.sender_id, m.client_id, m.encrypted_payload, m.message_type, m.metadata,
           m.reply_to, {REPLY_TO_SEQ} AS reply_to_seq, m.forwarded_from, {reactions("t.user_id")} AS reactions,
           {reaction_counts()} AS reaction_counts, m.created_at AS sent_at, m.edited_at, m.expires_at
    FROM messages m WHERE m.chat_id = t.id AND m.seq >= t.seen_from AND {UNEXPIRED} ORDER BY m.seq DESC LIMIT 1
) AS m ON true
"""
# Bytes of JSON of an entry, without its participants.
_SIZE = f"700 + {text_size('title', 'avatar_url')} + {json_size('settings')} + {MESSAGE_SIZE}"
_PAGE = f"AND {_HIDDEN} = $3 {{earlier}} ORDER BY t.updated_at DESC, t.id DESC LIMIT $2 + 1"
_WEIGHED = cut(f"SELECT page.*, {_SIZE} AS size FROM ({_ENTRIES}) AS page", "size", "updated_at DESC, id DESC", "$2")
_ALL = _WEIGHED.format(which=_PAGE.format(earlier=""))
_EARLIER = _WEIGHED.format(which=_PAGE.format(earlier="AND (t.updated_at, t.id) < ($4, $5)"))
_ONE = _ENTRIES.format(which="AND t.id = $2")


async def entries(
    db: Database, user_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None, *, hidden: bool = False
) -> tuple[list[dict[str, Any]], bool]:
    """A page of a user's visible or ``hidden`` chats, the last active first, each with its newest message and unread
    count; and True if there are more. ``size`` is the bytes of JSON of each without its participants."""
    return read_page(await db.fetch(_EARLIER if before else _ALL, user_id, limit, hidden, *(before or ())))


async def entry(db: Database, user_id: UUID, chat_id: UUID) -> Row | None:
    """One chat as in the list; None if the user is not in it, or has deleted it for themselves."""
    return await db.row(_ONE, user_id, chat_id)


async def membership_of(db: Database, user_id: UUID, chat_id: UUID) -> Row | None:
    """``type, role, joined_seq`` of a participant; None for other users, and for a chat that was deleted, even if only
    for them."""
    return await db.row(
        f"""SELECT t.type::text, p.role::text, p.joined_seq FROM chat_participants p
            JOIN chat_threads t ON t.id = p.chat_id
            LEFT JOIN chat_views v ON v.chat_id = p.chat_id AND v.user_id = p.user_id
            WHERE p.chat_id = $2 AND p.user_id = $1 AND t.deleted_at IS NULL AND {_NOT_DELETED}""",
        user_id,
        chat_id,
    )
