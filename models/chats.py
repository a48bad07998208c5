"""Chats: threads and who takes part in them."""

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

    class Meta:
        table_name = "chat_threads"


class ChatParticipant(Table):
    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    role = Enum("participant_role", default="member")
    joined_at = peewee.DateTimeField()

    class Meta:
        table_name = "chat_participants"
        primary_key = peewee.CompositeKey("chat", "user")
