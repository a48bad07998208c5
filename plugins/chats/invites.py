"""Invites: links by which people come into a chat of many."""

from __future__ import annotations

import secrets
from typing import Any
from uuid import UUID

from handlers.errors import Conflict, NotFound
from models import participants
from models.database import Database
from plugins.chats import shapes
from plugins.chats.chats import Chats

MOST = 100  # invites of a chat; a new one for each guest is what max_uses is for
TOKEN_BYTES = 18  # 144 bits, which nobody guesses, in 24 characters


class Invites:
    """What owners and admins do with invites. The token is shown once; its hash is all that is kept."""

    def __init__(self, db: Database, chats: Chats) -> None:
        self._db, self._chats = db, chats

    async def create(self, user_id: UUID, chat_id: UUID, request: shapes.NewInvite) -> dict[str, Any]:
        """A new invite with its token. Raises NotFound, Forbidden, Conflict."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        async with self._chats.governing(user_id, chat_id) as change:
            row = await participants.invite(change, token, request.max_uses, request.expires_in, MOST)
            if row is None:
                raise Conflict(f"A chat has at most {MOST} invites.")
        return {**dict(row), "chat_id": chat_id, "token": token}

    async def entries(self, user_id: UUID, chat_id: UUID) -> list[dict[str, Any]]:
        """The chat's invites, the latest first, without their tokens. Raises NotFound, Forbidden, Conflict."""
        async with self._chats.governing(user_id, chat_id):
            return [{**dict(row), "chat_id": chat_id} for row in await participants.invites(self._db, chat_id)]

    async def withdraw(self, user_id: UUID, chat_id: UUID, invite_id: UUID) -> None:
        """Close an invite. Raises NotFound, Forbidden, Conflict."""
        async with self._chats.governing(user_id, chat_id) as change:
            if not await participants.withdraw(change, invite_id):
                raise NotFound("There is no such invite.")
