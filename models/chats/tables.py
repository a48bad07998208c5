"""Chat tables: chats, their participants, marks and departures."""

from __future__ import annotations

import peewee

from models.database import JSONB, Enum, Table
from models.users import User


class ChatThread(Table):
    id = peewee.UUIDField(primary_key=True)
    type = Enum("chat_type")
    title = peewee.TextField(null=True)
    avatar_url = peewee.TextField(null=True)
    created_by = peewee.ForeignKeyField(User, null=True, column_name="created_by", on_delete="SET NULL")
    settings = JSONB()
    created_at = peewee.DateTimeField()
    updated_at = peewee.DateTimeField()
    last_seq = peewee.BigIntegerField(default=0)
    last_number = peewee.BigIntegerField(default=0)
    last_position = peewee.BigIntegerField(default=0)
    access = peewee.BigIntegerField(default=1)
    participant_count = peewee.IntegerField(default=0)
    pair = peewee.BlobField(null=True)
    deleted_at = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "chat_threads"


class ChatParticipant(Table):
    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    role = Enum("participant_role", default="member")
    joined_at = peewee.DateTimeField()
    joined_seq = peewee.BigIntegerField(default=1)
    delivered_seq = peewee.BigIntegerField(default=0)
    read_seq = peewee.BigIntegerField(default=0)
    read_number = peewee.BigIntegerField(default=0)
    own_after = peewee.BigIntegerField(default=0)
    posted_first = peewee.BigIntegerField(default=0)
    posted_last = peewee.BigIntegerField(default=0)
    accepted = peewee.BooleanField(null=True, default=False)
    concealed = peewee.BooleanField(default=False)
    masked = peewee.BooleanField(default=False)

    class Meta:
        table_name = "chat_participants"
        primary_key = peewee.CompositeKey("chat", "user")


class ChatMark(Table):
    """The position at which a participant's watermarks last moved; no row if they never did. Deleted with the
    participant."""

    chat_id = peewee.UUIDField()
    user_id = peewee.UUIDField()
    position = peewee.BigIntegerField()

    class Meta:
        table_name = "chat_marks"
        primary_key = peewee.CompositeKey("chat_id", "user_id")


class ChatDeparture(Table):
    """A membership that ended, with the events it shows: from ``joined_seq`` to ``left_seq``."""

    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    joined_seq = peewee.BigIntegerField()
    left_seq = peewee.BigIntegerField()
    position = peewee.BigIntegerField()
    left_at = peewee.DateTimeField()

    class Meta:
        table_name = "chat_departures"
        primary_key = peewee.CompositeKey("chat", "user", "left_seq")


def thread_columns(masked: str = "false") -> str:
    """The columns of a chat ``t`` as events show it; without title, avatar and settings if ``masked`` is true."""
    return f"""t.id, t.type::text, CASE WHEN NOT {masked} THEN t.title END AS title,
        CASE WHEN NOT {masked} THEN t.avatar_url END AS avatar_url, t.created_by,
        CASE WHEN {masked} THEN '{{}}' ELSE t.settings END AS settings, t.created_at, t.updated_at,
        t.participant_count"""
