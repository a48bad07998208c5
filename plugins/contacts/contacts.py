"""Trust and distrust: verifications with their levels, and blocks that the blocked one can't see."""

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

# Comparing by eye is weaker than a code or a voice one knows.
TRUST = {"manual": "verified", "qr_code": "trusted", "voice": "trusted"}


class FingerprintMismatch(Conflict):
    """That is not the user's fingerprint."""

    code, message = "fingerprint_mismatch", "That is not this user's fingerprint."


class Contacts:
    def __init__(self, db: Database, alerts: Alerts, hub: Hub) -> None:
        self._db, self._alerts, self._hub = db, alerts, hub

    async def _other(self, user_id: UUID, user: UUID | str) -> users.Identity:
        other = await users.identity(self._db, user)
        if other is None:
            raise NotFound("There is no such user.")
        if other.id == user_id:
            raise InvalidRequest("That is yourself.")
        return other

    async def verify(self, user_id: UUID, user: UUID | str, request: Verification) -> dict[str, Any]:
        """Note a comparison, instead of an earlier one. Raises NotFound, Conflict ``fingerprint_mismatch``."""
        other = await self._other(user_id, user)
        trust = TRUST[request.method]
        noted = await contacts.verify(
            self._db, user_id, other.id, request.verified_fingerprint, request.method, trust, request.notes
        )
        if noted is None:
            raise FingerprintMismatch
        self._alerts.visibility(user_id, other.id)
        return dict(noted)

    async def unverify(self, user_id: UUID, user: UUID | str) -> None:
        """Take a verification back. Raises NotFound."""
        other = await self._other(user_id, user)
        if not await contacts.unverify(self._db, user_id, other.id):
            raise NotFound("You have not verified this user.")
        self._alerts.visibility(user_id, other.id)

    async def verifications(self, user_id: UUID, limit: int, before: PageCursor | None) -> list[dict[str, Any]]:
        """The user's verifications, the latest first."""
        return [dict(row) for row in await contacts.verifications(self._db, user_id, limit, before)]

    async def block(self, user_id: UUID, user: UUID | str) -> None:
        """Block a user; again changes nothing. Raises NotFound, Conflict when the list is full."""
        other = await self._other(user_id, user)
        gone = await contacts.block(self._db, user_id, other.id, contacts.MAX_BLOCKS)
        if gone is None:
            raise Conflict(f"You can block at most {contacts.MAX_BLOCKS} users.")
        for chat_id in gone:
            self._hub.send(user_id, chat_changed(chat_id))
        self._hide_or_show(user_id, other.id)

    async def unblock(self, user_id: UUID, user: UUID | str) -> None:
        """Take a block back; where there is none nothing changes. Raises NotFound for an unknown user."""
        other = await self._other(user_id, user)
        await contacts.unblock(self._db, user_id, other.id)
        self._hide_or_show(user_id, other.id)

    def _hide_or_show(self, user_id: UUID, other_id: UUID) -> None:
        """Neither of the two sees the other's presence across a block."""
        self._alerts.visibility(user_id, other_id)
        self._alerts.visibility(other_id, user_id)

    async def blocks(self, user_id: UUID, limit: int, before: PageCursor | None) -> list[dict[str, Any]]:
        """Whom the user has blocked, the latest first."""
        return [dict(row) for row in await contacts.blocks(self._db, user_id, limit, before)]
