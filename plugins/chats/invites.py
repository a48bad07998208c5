"""Invites: links by which people come into a chat of many."""

from __future__ import annotations

import secrets
from typing import Any
from uuid import UUID

from handlers.wire.errors import Conflict, NotFound
from models.chats import invites
from models.chats.changes import ChatChanges
from models.database import Database
from plugins.chats import shapes
from plugins.chats.rights import lock_as_admin

MAX_INVITES = 100  # invites of a chat; a new one for each guest is what max_uses is for
NOT_VALID = "This invite is not valid any more."
TOKEN_BYTES = 18  # 144 bits, which nobody guesses, in 24 characters


class Invites:
    """What owners and admins do with invites. The token is shown once; its hash is all that is kept."""

    def __init__(self, db: Database, changes: ChatChanges) -> None:
        self._db, self._changes = db, changes

    async def create(self, user_id: UUID, chat_id: UUID, request: shapes.NewInvite) -> dict[str, Any]:
        """A new invite with its token. Raises NotFound, Forbidden, Conflict."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            row = await invites.create(change, token, request.max_uses, request.expires_in, MAX_INVITES)
            if row is None:
                raise Conflict(f"A chat has at most {MAX_INVITES} invites.")
        return {**dict(row), "chat_id": chat_id, "token": token}

    async def entries(self, user_id: UUID, chat_id: UUID) -> list[dict[str, Any]]:
        """The chat's invites, the latest first, without their tokens. Raises NotFound, Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id):
            return [{**dict(row), "chat_id": chat_id} for row in await invites.entries(self._db, chat_id)]

    async def revoke(self, user_id: UUID, chat_id: UUID, invite_id: UUID) -> None:
        """Close an invite. Raises NotFound, Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            if not await invites.revoke(change, invite_id):
                raise NotFound("There is no such invite.")

    async def preview(self, user_id: UUID, token: str) -> dict[str, Any]:
        """What an invite leads to. Raises NotFound where joining by it would."""
        row = await invites.preview(self._db, token, user_id)
        if row is None:
            raise NotFound(NOT_VALID)
        return {**dict(row), "chat_id": row["chat_id"] if row["joined"] else None}
