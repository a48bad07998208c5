"""Messages: ciphertext with its metadata, who has read it, and reactions to it."""

from __future__ import annotations

import peewee

from models.chats import ChatThread
from models.database import JSONB, Table
from models.users import User


class Message(Table):
    id = peewee.UUIDField(primary_key=True)
    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    sender = peewee.ForeignKeyField(User, null=True, on_delete="SET NULL")
    encrypted_payload = peewee.BlobField()
    message_type = peewee.TextField()
    metadata = JSONB()
    reply_to = peewee.ForeignKeyField("self", null=True, column_name="reply_to", on_delete="SET NULL")
    forwarded_from = peewee.ForeignKeyField("self", null=True, column_name="forwarded_from", on_delete="SET NULL")
    delivered = peewee.BooleanField(default=False)
    edited_at = peewee.DateTimeField(null=True)
    deleted_at = peewee.DateTimeField(null=True)
    expires_at = peewee.DateTimeField(null=True)
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "messages"


class MessageRead(Table):
    message = peewee.ForeignKeyField(Message, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    read_at = peewee.DateTimeField()

    class Meta:
        table_name = "message_reads"
        primary_key = peewee.CompositeKey("message", "user")


class MessageReaction(Table):
    message = peewee.ForeignKeyField(Message, on_delete="CASCADE")
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    emoji = peewee.TextField()
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "message_reactions"
        primary_key = peewee.CompositeKey("message", "user", "emoji")
