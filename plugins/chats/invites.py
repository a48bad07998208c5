"""Invites: create, list and revoke the tokens with which users join a chat of many."""

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

MAX_INVITES = 100  # of a chat; use max_uses instead of an invite for each guest
NOT_VALID = "This invite is invalid, has expired or has been used up."
TOKEN_BYTES = 18  # 144 bits, too many to guess, in 24 characters


class Invites:
    """What owners and admins do with invites. The token is shown once, and only its hash is stored."""

    def __init__(self, db: Database, changes: ChatChanges) -> None:
        self._db, self._changes = db, changes

    async def create(self, user_id: UUID, chat_id: UUID, request: shapes.NewInvite) -> dict[str, Any]:
        """Create an invite. Returns it with its token. Raises NotFound, Forbidden, Conflict."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            row = await invites.create(change, token, request.max_uses, request.expires_in, MAX_INVITES)
            if row is None:
                raise Conflict(f"A chat can have at most {MAX_INVITES} invites.")
        return {**dict(row), "chat_id": chat_id, "token": token}

    async def entries(self, user_id: UUID, chat_id: UUID) -> list[dict[str, Any]]:
        """The chat's invites, the latest first, without their tokens. Raises NotFound, Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id):
            return [{**dict(row), "chat_id": chat_id} for row in await invites.entries(self._db, chat_id)]

    async def revoke(self, user_id: UUID, chat_id: UUID, invite_id: UUID) -> None:
        """Revoke an invite. Raises NotFound, Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            if not await invites.revoke(change, invite_id):
                raise NotFound("There is no such invite.")

    async def preview(self, user_id: UUID, token: str) -> dict[str, Any]:
        """The chat that an invite leads to. Raises NotFound if joining would."""
        row = await invites.preview(self._db, token, user_id)
        if row is None:
            raise NotFound(NOT_VALID)
        return {**dict(row), "chat_id": row["chat_id"] if row["joined"] else None}
