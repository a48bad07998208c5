"""Views: a participant's own settings for a chat, and direct chats that one of the two has deleted for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import peewee

from models.chats.concealment import NEVER
from models.chats.events import POSITION, Change
from models.chats.tables import ChatDeparture, ChatThread
from models.database import Database, Table
from models.users import User


class ChatView(Table):
    """A participant without settings has no row. ``hidden_number`` and ``deleted_number`` are the number of the newest
    message when the chat was hidden or deleted: a later message brings the chat back without a write here."""

    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    hidden_number = peewee.BigIntegerField(null=True)
    deleted_number = peewee.BigIntegerField(null=True)
    archived = peewee.BooleanField(default=False)
    muted_until = peewee.DateTimeField(null=True)
    marked_unread = peewee.BooleanField(default=False)

    class Meta:
        table_name = "chat_views"
        primary_key = peewee.CompositeKey("chat", "user")


# A row if the user ($1) has deleted the chat ($2) for themselves, and no message came since.
_DELETED = """SELECT 1 FROM chat_views gone JOIN chat_threads now ON now.id = gone.chat_id
    WHERE gone.chat_id = $2 AND gone.user_id = $1 AND gone.deleted_number >= now.last_number"""


async def update(db: Database, user_id: UUID, chat_id: UUID, fields: Mapping[str, Any]) -> bool:
    """Set some of ``hidden, archived, muted_until, marked_unread`` for a participant. Returns False if the user is not
    in the chat, or has deleted it.

    The participant's row is locked, so that a concurrent removal leaves no view behind.
    """
    return (
        await db.execute(
            f"""INSERT INTO chat_views AS v (chat_id, user_id, hidden_number, archived, muted_until, marked_unread)
               SELECT t.id, p.user_id, CASE WHEN $3::boolean THEN t.last_number END, coalesce($4::boolean, false),
                      $6::timestamptz, coalesce($7::boolean, false)
               FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
               WHERE p.chat_id = $2 AND p.user_id = $1 AND t.deleted_at IS NULL
                 AND NOT EXISTS ({_DELETED}) FOR KEY SHARE OF p
               ON CONFLICT (chat_id, user_id) DO UPDATE SET
                   hidden_number = CASE WHEN $3 IS NULL THEN v.hidden_number ELSE excluded.hidden_number END,
                   archived = coalesce($4, v.archived),
                   muted_until = CASE WHEN $5 THEN $6 ELSE v.muted_until END,
                   marked_unread = coalesce($7, v.marked_unread)""",
            user_id,
            chat_id,
            fields.get("hidden"),
            fields.get("archived"),
            "muted_until" in fields,
            fields.get("muted_until"),
            fields.get("marked_unread"),
        )
        == 1
    )


async def forget(change: Change, user_id: UUID) -> None:
    """Delete the view of a user who joins or has left a locked chat."""
    await change.db.do(ChatView.delete().where(ChatView.chat == change.chat_id, ChatView.user == user_id))


async def clear_unread_mark(db: Database, user_id: UUID, chat_id: UUID) -> bool:
    """Clear ``marked_unread``, because the participant has read the chat. Returns True if it was set."""
    marked = (ChatView.chat == chat_id, ChatView.user == user_id, ChatView.marked_unread)
    return await db.do(ChatView.update(marked_unread=False).where(*marked)) == 1


# Deleting a chat for one user -------------------------------------------------------------------------------------


async def is_deleted(db: Database, user_id: UUID, chat_id: UUID) -> bool:
    """True if the user has deleted this chat for themselves, and no message came since."""
    return bool(await db.value(_DELETED, user_id, chat_id))


async def delete(change: Change) -> None:
    """Delete a locked chat for the participant alone: they no longer see anything up to now, and none of it is unread.
    Their watermarks, which the other user sees, stay: deleting a message does not mean that it was read.

    ``/sync`` reports it to their other devices by a departure that shows nothing; the latest one is enough. Appends no
    event, which the other user would notice.
    """
    own = change.chat_id, change.user_id
    await change.db.execute(
        """INSERT INTO chat_views AS v (chat_id, user_id, deleted_number)
           SELECT id, $2, last_number FROM chat_threads WHERE id = $1
           ON CONFLICT (chat_id, user_id) DO UPDATE SET deleted_number = excluded.deleted_number,
               hidden_number = NULL, archived = false, marked_unread = false""",
        *own,
    )
    await change.db.execute(
        """UPDATE chat_participants p SET joined_seq = t.last_seq + 1, read_number = t.last_number, own_after = 0
           FROM chat_threads t WHERE t.id = $1 AND p.chat_id = $1 AND p.user_id = $2""",
        *own,
    )
    await change.db.do(
        ChatDeparture.delete().where(
            ChatDeparture.chat == change.chat_id,
            ChatDeparture.user == change.user_id,
            ChatDeparture.joined_seq > ChatDeparture.left_seq,
        )
    )
    await change.db.execute(
        f"""INSERT INTO chat_departures (chat_id, user_id, joined_seq, left_seq, position)
            SELECT id, $2, last_seq + 1, last_seq, greatest(last_position, {POSITION})
            FROM chat_threads WHERE id = $1""",
        *own,
    )
    await change.renew_access()


async def reopen(db: Database, user_id: UUID, chat_id: UUID) -> bool:
    """List a direct chat that the user has deleted again, without its past. Returns True if it was deleted."""
    return (
        await db.execute(
            f"""UPDATE chat_views SET deleted_number = NULL
                WHERE chat_id = $2 AND user_id = $1 AND EXISTS ({_DELETED}) AND deleted_number < $3""",
            user_id,
            chat_id,
            NEVER,
        )
        == 1
    )


async def all_have_deleted(change: Change) -> bool:
    """True if all remaining participants of a locked chat have deleted it for themselves, and no message came since."""
    return not await change.db.value(
        """SELECT EXISTS (
               SELECT 1 FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
               LEFT JOIN chat_views v ON v.chat_id = p.chat_id AND v.user_id = p.user_id
               WHERE p.chat_id = $1 AND (v.deleted_number IS NULL OR v.deleted_number < t.last_number))""",
        change.chat_id,
    )
