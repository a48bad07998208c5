"""Sealed inboxes: they receive messages whose senders not even the server knows."""

from __future__ import annotations

import hashlib
from uuid import UUID

from peewee import fn

from models.chats.changes import ChatChanges
from models.chats.chats import NewChat, create
from models.database import Database, Row
from models.users import User


def key_hash(key: bytes) -> bytes:
    """The hash of an access key. Only it is stored, so a leaked database does not give write access to inboxes."""
    return hashlib.sha256(key).digest()


async def set_key(changes: ChatChanges, user_id: UUID, key: bytes | None) -> None:
    """Open a user's inbox under a key, or close it if the key is None; its messages stay."""
    db = changes.db
    async with db.transaction():
        row = await db.row(
            """SELECT (SELECT id FROM chat_threads WHERE id = sealed_chat_id AND deleted_at IS NULL) AS chat_id
               FROM users WHERE id = $1 FOR NO KEY UPDATE""",
            user_id,
        )
        if row is None:
            return
        chat_id = row["chat_id"]  # None also when its owner has deleted it
        if chat_id is None and key is not None:
            new = await create(changes, user_id, NewChat("secret", None, None, {}, ()))
            assert new is not None  # it has no second user who could be blocked
            chat_id, _ = new
        opened = {"sealed_access_key": key and key_hash(key), "sealed_chat_id": chat_id}
        await db.do(User.update(**opened, updated_at=fn.now()).where(User.id == user_id))


async def inbox(db: Database, public_id: str) -> Row | None:
    """``sealed_access_key`` and ``sealed_chat_id`` of a user; None if they have no open inbox."""
    return await db.row(
        """SELECT sealed_access_key, sealed_chat_id FROM users
           WHERE lower(public_id) = lower($1) AND sealed_access_key IS NOT NULL AND sealed_chat_id IS NOT NULL""",
        public_id,
    )
