"""Push tokens: they address a user's devices, and each belongs to the session of its device."""

from __future__ import annotations

import re
from collections.abc import Collection
from uuid import UUID

from handlers.tokens import Session
from handlers.wire.errors import Fault, InvalidRequest, NotFound, Unauthorized
from models import push
from models.database import Database, Row
from models.push import NewToken
from plugins.push.shapes import Registration, Token

MAX_TOKENS = 10  # of a user, contract section 9
_APNS_TOKEN = re.compile(r"(?:[0-9A-Fa-f]{2}){8,128}")  # Apple says that its length may change


class Tokens:
    """``available`` are the providers that this server sends through."""

    def __init__(self, db: Database, available: Collection[str]) -> None:
        self._db, self._available = db, available

    async def register(self, session: Session, request: Registration) -> tuple[Token, bool]:
        """Store a token for the session. Returns it, and True if it is new. An eleventh replaces the one that was
        registered longest ago: a device in use registers at each start. Raises InvalidRequest, Unauthorized."""
        row = await push.register(self._db, session.user_id, session.session_id, _validate(request), MAX_TOKENS)
        if row is None:
            raise Unauthorized
        return self._shape(row, session), row["new"]

    async def list_all(self, session: Session) -> list[dict[str, object]]:
        """Return the user's tokens, the most recently registered first."""
        rows = await push.tokens(self._db, session.user_id)
        return [self._shape(row, session).model_dump() for row in rows]

    async def remove(self, user_id: UUID, token_id: UUID) -> None:
        """Delete a token. Raises NotFound."""
        if not await push.remove(self._db, user_id, token_id):
            raise NotFound("There is no such token.")

    def _shape(self, row: Row, session: Session) -> Token:
        return Token(
            id=row["id"],
            provider=row["provider"],
            environment="sandbox" if row["sandbox"] else "production",
            style="background" if row["quiet"] else "alert",
            session_id=row["session_id"],
            current=row["session_id"] == session.session_id,
            available=row["provider"] in self._available,
            registered_at=row["registered_at"],
        )


def _validate(request: Registration) -> NewToken:
    """Check that the token has the form of its provider. Raises InvalidRequest."""
    web = request.provider == "webpush"
    field, value = ("subscription", request.subscription) if web else ("token", request.token)
    if value is None:
        raise InvalidRequest("Some fields are not valid.", details=[Fault(field, f"{request.provider} needs it")])
    if request.subscription is not None and web:
        keys = request.subscription.keys
        return NewToken("webpush", request.subscription.endpoint, keys.p256dh, keys.auth, False, False)
    token = request.token or ""
    if request.provider.startswith("apns"):
        if not _APNS_TOKEN.fullmatch(token):
            raise InvalidRequest("Some fields are not valid.", details=[Fault("token", "expected hexadecimal digits")])
        token = token.lower()
    quiet = request.provider == "apns" and request.style == "background"
    return NewToken(request.provider, token, None, None, request.environment == "sandbox", quiet)
