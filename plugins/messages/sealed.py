"""Sealed sender: deliver messages to an inbox for its access key, without learning the sender."""

from __future__ import annotations

import hmac
from typing import Any

from config.values import Rate
from handlers.limits.rates import Limits
from handlers.wire.errors import NotFound, Unauthorized
from handlers.wire.shapes import unb64
from models.chats import posting, sealed
from models.chats.access import Access
from models.database import Database
from plugins.messages.ids import new_id, payload_hash
from plugins.messages.journal import Journal
from plugins.messages.messages import check_repetition
from plugins.messages.shapes import Sealed


class Inboxes:
    def __init__(self, db: Database, access: Access, journal: Journal, limits: Limits, rate: Rate) -> None:
        self._db, self._access, self._journal = db, access, journal
        self._limits, self._rate = limits, rate

    async def deliver(self, key: str, request: Sealed) -> tuple[dict[str, Any], bool]:
        """Deliver a message to an inbox. Returns its ``id`` and ``created_at``, and True if it is new. Stores and logs
        nothing about the sender. Raises RateLimited, NotFound, Conflict, Unavailable, and Unauthorized, the same for a
        wrong key, an unknown user and a user without an inbox."""
        try:
            key_hash = sealed.key_hash(unb64(key))
        except ValueError:
            raise Unauthorized("This key opens no inbox of that user.") from None
        row = await sealed.inbox(self._db, request.public_id)
        expected = row["sealed_access_key"] if row else bytes(32)
        if not hmac.compare_digest(key_hash, expected) or row is None:
            raise Unauthorized("This key opens no inbox of that user.")
        # After the check of the key: otherwise users without it could use up the rate of those who have it.
        await self._limits.spend("sealed-inbox", str(row["sealed_chat_id"]), self._rate)
        view = await self._access.view(row["sealed_chat_id"])
        if view is None or not view.live:
            raise NotFound("This inbox is closed.")
        post = posting.Post(
            new_id(),
            row["sealed_chat_id"],
            None,
            request.client_id,
            request.encrypted_payload,
            payload_hash(request.encrypted_payload),
            request.message_type,
            request.metadata,
            None,
            None,
            request.expires_in,
            view.access,
            sealed=True,
        )
        posted, repeated = await self._journal.put(post, view, check_repetition)
        return {"id": posted.id, "created_at": posted.created_at}, not repeated
