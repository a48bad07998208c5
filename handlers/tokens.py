"""Access tokens: JWT HS256 with ``kid``, and the sessions that have ended before their tokens did."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt

from config.keyring import Keyring
from handlers.wire.errors import TokenExpired, Unauthorized
from handlers.wire.shapes import read_uuid

ISSUER = "mimu"
LEEWAY = 60.0  # seconds that the clock of the instance which issued a token may be ahead of ours
# Seconds for which an ended session is remembered beyond the life of its last token: for clocks that differ.
MARGIN = 3600.0
CACHE = 20_000  # verified tokens remembered: ~12 MiB at the most; a decode costs 25 µs, a look-up 0.2


@dataclass(frozen=True, slots=True)
class Session:
    """Who is asking: the claims of a verified access token. ``expires`` is in epoch seconds."""

    user_id: UUID
    session_id: UUID
    public_id: str
    fingerprint: str
    expires: float


class Tokens:
    """Issues and verifies access tokens; knows which sessions were revoked."""

    def __init__(self, keyring: Keyring, lifetime: float) -> None:
        self.keyring = keyring
        self.lifetime = lifetime  # seconds
        # The longest life of a token that any instance may have issued; at least ours.
        self.longest_lifetime = lifetime
        self._verified: OrderedDict[str, Session] = OrderedDict()
        self._revoked: dict[UUID, float] = {}  # when

    def issue(self, user_id: UUID, session_id: UUID, public_id: str, fingerprint: str) -> str:
        """A signed token of this session that lives ``lifetime`` seconds."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": str(user_id),
            "user_id": str(user_id),
            "public_id": public_id,
            "fingerprint": fingerprint,
            "sid": str(session_id),
            "iat": now,
            "exp": now + int(self.lifetime),
        }
        kid, key = self.keyring.signing
        return jwt.encode(claims, key, algorithm="HS256", headers={"kid": kid})

    def verify(self, token: str) -> Session:
        """The session the token speaks for.

        Raises Unauthorized: ``token_expired`` for one that was good, ``unauthorized`` for any other.
        """
        session = self._verified.get(token)
        if session is None:
            session = self._decode(token)
            self._verified[token] = session
            if len(self._verified) > CACHE:
                self._verified.popitem(last=False)
        if session.expires <= time.time():
            self._verified.pop(token, None)
            raise TokenExpired
        if self.revoked(session):
            raise Unauthorized("The session has ended.")
        return session

    def _decode(self, token: str) -> Session:
        try:
            key = self.keyring.key(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise Unauthorized
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["HS256"],
                issuer=ISSUER,
                options={
                    "require": ["exp", "iat", "sub", "sid", "user_id", "public_id", "fingerprint"],
                    "verify_iat": False,  # it has no leeway but the one of `exp`, which is judged strictly
                },
            )
            if float(claims["iat"]) > time.time() + LEEWAY:
                raise Unauthorized
            return Session(
                read_uuid(claims["user_id"]),
                read_uuid(claims["sid"]),
                str(claims["public_id"]),
                str(claims["fingerprint"]),
                float(claims["exp"]),
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError):
            raise Unauthorized from None

    def revoked(self, session: Session) -> bool:
        """Whether the session has ended before its token."""
        return session.session_id in self._revoked

    def revoke(self, session_id: UUID) -> None:
        """Refuse the session's tokens from now on; forgotten when the last of them has expired anyway.

        That may have been issued with another life than today's, before a restart or by another instance.
        """
        now = time.time()
        if len(self._revoked) % 1000 == 999:
            oldest = now - self.longest_lifetime - MARGIN
            self._revoked = {sid: revoked for sid, revoked in self._revoked.items() if revoked > oldest}
        self._revoked[session_id] = now
