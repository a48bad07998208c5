"""Contacts: verify users, with levels of trust, and block users without notifying them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers.alerts import Alerts
from handlers.http.pages import PageCursor
from handlers.sockets.hub import Hub
from handlers.wire.errors import Conflict, InvalidRequest, NotFound
from handlers.wire.frames import chat_changed
from models import contacts, users
from models.database import Database
from plugins.contacts.shapes import Verification

# Comparing by eye is weaker than scanning a code or hearing a known voice.
TRUST = {"manual": "verified", "qr_code": "trusted", "voice": "trusted"}


class FingerprintMismatch(Conflict):
    """That is not the user's fingerprint."""

    code, message = "fingerprint_mismatch", "This is not the user's fingerprint."


class Contacts:
    def __init__(self, db: Database, alerts: Alerts, hub: Hub) -> None:
        self._db, self._alerts, self._hub = db, alerts, hub

    async def _other(self, user_id: UUID, user: UUID | str) -> users.Identity:
        other = await users.identity(self._db, user)
        if other is None:
            raise NotFound("There is no such user.")
        if other.id == user_id:
            raise InvalidRequest("You can't verify or block yourself.")
        return other

    async def verify(self, user_id: UUID, user: UUID | str, request: Verification) -> dict[str, Any]:
        """Store a verification in place of an earlier one. Raises NotFound, Conflict ``fingerprint_mismatch``."""
        other = await self._other(user_id, user)
        trust = TRUST[request.method]
        row = await contacts.verify(
            self._db, user_id, other.id, request.verified_fingerprint, request.method, trust, request.notes
        )
        if row is None:
            raise FingerprintMismatch
        self._alerts.visibility(user_id, other.id)
        return dict(row)

    async def unverify(self, user_id: UUID, user: UUID | str) -> None:
        """Delete a verification. Raises NotFound."""
        other = await self._other(user_id, user)
        if not await contacts.unverify(self._db, user_id, other.id):
            raise NotFound("You have not verified this user.")
        self._alerts.visibility(user_id, other.id)

    async def verifications(self, user_id: UUID, limit: int, before: PageCursor | None) -> list[dict[str, Any]]:
        """The user's verifications, the latest first."""
        return [dict(row) for row in await contacts.verifications(self._db, user_id, limit, before)]

    async def block(self, user_id: UUID, user: UUID | str) -> None:
        """Block a user. Blocking again changes nothing. Raises NotFound, Conflict if the list is full."""
        other = await self._other(user_id, user)
        concealed = await contacts.block(self._db, user_id, other.id, contacts.MAX_BLOCKS)
        if concealed is None:
            raise Conflict(f"You can block at most {contacts.MAX_BLOCKS} users.")
        for chat_id in concealed:
            self._hub.send(user_id, chat_changed(chat_id))
        self._update_presence(user_id, other.id)

    async def unblock(self, user_id: UUID, user: UUID | str) -> None:
        """Unblock a user. Does nothing if they are not blocked. Raises NotFound for an unknown user."""
        other = await self._other(user_id, user)
        await contacts.unblock(self._db, user_id, other.id)
        self._update_presence(user_id, other.id)

    def _update_presence(self, user_id: UUID, other_id: UUID) -> None:
        """Hide or show the presence of the two users to each other. A block hides both."""
        self._alerts.visibility(user_id, other_id)
        self._alerts.visibility(other_id, user_id)

    async def blocks(self, user_id: UUID, limit: int, before: PageCursor | None) -> list[dict[str, Any]]:
        """The users that the user has blocked, the latest first."""
        return [dict(row) for row in await contacts.blocks(self._db, user_id, limit, before)]
