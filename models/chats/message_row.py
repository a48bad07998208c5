"""Message rows: the columns of a message as it is shown, for every statement that reads one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.database import Row
from models.paging import base64_size, json_size

# The present reactions to message ``m``.
CURRENT_REACTIONS = "SELECT user_id, emoji, created_at FROM message_reactions WHERE message_id = m.id"

# The reactions to message ``m`` after the event at seq ``w.until``: the present ones without those added later, and
# those removed later. If a reaction changed several times, the first change shows how it was.
PAST_REACTIONS = """
WITH later AS MATERIALIZED (
    SELECT DISTINCT ON (user_id, data ->> 'emoji') user_id, data ->> 'emoji' AS emoji, type FROM chat_events
    WHERE message_id = m.id AND seq > w.until AND type IN ('reaction_added', 'reaction_removed')
    ORDER BY user_id, data ->> 'emoji', seq
)
SELECT user_id, emoji, NULL::timestamptz AS created_at FROM message_reactions n WHERE message_id = m.id
    AND NOT EXISTS (SELECT 1 FROM later WHERE later.user_id = n.user_id AND later.emoji = n.emoji)
UNION ALL
SELECT user_id, emoji, NULL FROM later WHERE type = 'reaction_removed'"""


def reactions(viewer: str, source: str = CURRENT_REACTIONS) -> str:
    """The reactions to message ``m`` of chat ``t`` as the user ``viewer`` sees them: in a channel only their own. At
    most 200, more than a screen shows, so that the size of a response is bounded."""
    some = """(SELECT coalesce(jsonb_agg(jsonb_build_object('user_id', r.user_id, 'emoji', r.emoji)), '[]')
        FROM (SELECT user_id, emoji FROM ({source}) AS given {which}
              ORDER BY created_at, user_id, emoji LIMIT 200) AS r)"""
    own = some.format(source=source, which=f"WHERE user_id = {viewer}")
    return f"CASE WHEN t.type = 'channel' THEN {own} ELSE {some.format(source=source, which='')} END"


def reaction_counts(source: str = CURRENT_REACTIONS) -> str:
    """The number of reactions with each emoji to message ``m`` of chat ``t`` in a channel; NULL in other chats."""
    return f"""CASE WHEN t.type = 'channel' THEN (
        SELECT coalesce(jsonb_agg(jsonb_build_object('emoji', r.emoji, 'count', r.count)), '[]')
        FROM (SELECT emoji, count(*) FROM ({source}) AS given GROUP BY emoji ORDER BY 2 DESC, emoji LIMIT 200) AS r
    ) END"""


REPLY_TO_SEQ = "(SELECT abs(target.seq) FROM messages target WHERE target.id = m.reply_to)"


def message_columns(viewer: str, source: str = CURRENT_REACTIONS) -> str:
    """The columns of message ``m`` in chat ``t`` as the user ``viewer`` (a parameter or column) sees it."""
    return f"""m.id, m.chat_id, m.seq, m.sender_id, m.client_id, m.encrypted_payload, m.message_type, m.metadata,
        m.reply_to, {REPLY_TO_SEQ} AS reply_to_seq, m.forwarded_from, {reactions(viewer, source)} AS reactions,
        {reaction_counts(source)} AS reaction_counts, m.created_at, m.edited_at, m.expires_at"""


_FIELDS = (
    *("id", "chat_id", "seq", "sender_id", "client_id", "encrypted_payload", "message_type", "metadata", "reply_to"),
    *("reply_to_seq", "forwarded_from", "reactions", "reaction_counts", "created_at", "edited_at", "expires_at"),
)


def message_fields(row: Row | Mapping[str, Any]) -> dict[str, Any]:
    """A message as clients receive it, from a row with these columns and maybe others. Only messages of channels have
    ``reaction_counts``."""
    return {name: row[name] for name in _FIELDS if name != "reaction_counts" or row[name] is not None}


# Bytes of JSON of a row with these columns: ids, times and names take 700 at most.
MESSAGE_SIZE = f"""(764 + {base64_size("encrypted_payload")}
    + {json_size("metadata", "reactions", "reaction_counts")})"""


# Tables with rows about messages, each with a ``message_id``. Whatever erases messages deletes these rows.
_ATTACHED = ("message_reads", "message_reactions", "pinned_messages")


def detached(messages: str) -> str:
    """The parts of a WITH that delete the rows about messages; ``messages`` selects their ids."""
    return ", ".join(f"{table}_gone AS (DELETE FROM {table} WHERE message_id IN ({messages}))" for table in _ATTACHED)


def erased(reason: str) -> str:
    """SQL assignments that erase message ``m``, except that its sender posted it, and under which ``client_id``."""
    return f"""encrypted_payload = '', metadata = jsonb_build_object('reason', {reason}), message_type = '',
        reply_to = NULL, forwarded_from = NULL, expires_at = NULL, seq = -m.seq, deleted_at = now()"""
