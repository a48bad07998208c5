"""Sealed inboxes: where messages arrive of which not even the server knows who sent them."""

from __future__ import annotations

import hashlib
from uuid import UUID

from peewee import fn

from models.chats.chats import NewChat, create
from models.chats.events import Event
from models.database import Database, Row
from models.users import User


def key_hash(key: bytes) -> bytes:
    """What is kept of an access key: whoever reads the database can't write into inboxes."""
    return hashlib.sha256(key).digest()


async def set_key(db: Database, user_id: UUID, key: bytes | None) -> tuple[int, Event] | None:
    """Open a user's inbox under a key, or close it (None); what is in it stays. The access and the first event of the
    chat, where that had to be made."""
    made = None
    async with db.transaction():
        row = await db.row(
            """SELECT (SELECT id FROM chat_threads WHERE id = sealed_chat_id AND deleted_at IS NULL) AS chat_id
               FROM users WHERE id = $1 FOR NO KEY UPDATE""",
            user_id,
        )
        if row is None:
            return None
        chat_id = row["chat_id"]  # None also when its owner has deleted it
        if chat_id is None and key is not None:
            new = await create(db, user_id, NewChat("secret", None, None, {}, ()))
            assert new is not None and new[1] is not None  # without others it is always a new one
            chat_id, made = new[0], (new[1].access, new[1].events[0])
        opened = {"sealed_access_key": key and key_hash(key), "sealed_chat_id": chat_id}
        await db.do(User.update(**opened, updated_at=fn.now()).where(User.id == user_id))
    return made


async def inbox(db: Database, public_id: str) -> Row | None:
    """``sealed_access_key`` and ``sealed_chat_id`` of who has opened an inbox."""
    return await db.row(
        """SELECT sealed_access_key, sealed_chat_id FROM users
           WHERE lower(public_id) = lower($1) AND sealed_access_key IS NOT NULL AND sealed_chat_id IS NOT NULL""",
        public_id,
    )
