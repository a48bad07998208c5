"""Contacts: noting that one has compared another's fingerprint (contract section 3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from config.settings import Section
from handlers.base import ApiHandler
from handlers.errors import Conflict, InvalidRequest, NotFound
from handlers.shapes import Hex256, Shape
from models import contacts, users
from models.database import Database
from plugins import App, Plugin

# Comparing by eye is weaker than a code or a voice one knows.
TRUST = {"manual": "verified", "qr_code": "trusted", "voice": "trusted"}


class Settings(Section):
    """Nothing to set."""


class Verification(Shape):
    verified_fingerprint: Hex256
    method: Literal["qr_code", "voice", "manual"]
    notes: Annotated[str, StringConstraints(max_length=500)] | None = None


class Verify(ApiHandler):
    def initialize(self, db: Database) -> None:
        self._db = db

    async def post(self, public_id: str) -> None:
        """200 the verification; 404, 409 ``fingerprint_mismatch``, 400."""
        request = self.body(Verification)
        target = await users.identity(self._db, public_id)
        if target is None:
            raise NotFound("There is no such user.")
        if target.id == self.session.user_id:
            raise InvalidRequest("You can't verify yourself.")
        noted = await contacts.verify(
            self._db,
            self.session.user_id,
            public_id,
            request.verified_fingerprint,
            request.method,
            TRUST[request.method],
            request.notes,
        )
        if noted is None:
            raise Conflict("That is not this user's fingerprint.", code="fingerprint_mismatch")
        self.reply({**noted, "public_id": target.public_id})


def setup(app: App, settings: Settings) -> Plugin:
    return Plugin(name="contacts", routes=(("/users/([A-Za-z0-9_]{3,32})/verify", Verify, {"db": app.db}),))
