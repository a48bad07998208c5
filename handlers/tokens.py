"""Access tokens: JWT HS256 with ``kid``, and the sessions that were revoked before their tokens expired."""

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
LEEWAY = 60.0  # seconds by which the issuing instance's clock may be ahead of ours
# Seconds for which a revoked session is remembered after its last token expired, because clocks differ.
CLOCK_MARGIN = 3600.0
MAX_VERIFIED = 20_000  # cached tokens, at most ~12 MiB; a decode costs 25 µs, a look-up 0.2


@dataclass(frozen=True, slots=True)
class Session:
    """The caller: the claims of a verified access token. ``expires`` is in epoch seconds."""

    user_id: UUID
    session_id: UUID
    public_id: str
    fingerprint: str
    expires: float


class Tokens:
    """Issues and verifies access tokens; remembers revoked sessions."""

    def __init__(self, keyring: Keyring, lifetime: float) -> None:
        self.keyring = keyring
        self.lifetime = lifetime  # seconds
        # The longest lifetime that any instance may have given a token; at least ours.
        self.longest_lifetime = lifetime
        self._verified: OrderedDict[str, Session] = OrderedDict()
        self._revoked: dict[UUID, float] = {}  # epoch seconds of the revocation

    def issue(self, user_id: UUID, session_id: UUID, public_id: str, fingerprint: str) -> str:
        """Return a signed token for this session that expires after ``lifetime`` seconds."""
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
        """Return the session of a token.

        Raises TokenExpired for an expired token, Unauthorized for an invalid or revoked one.
        """
        session = self._verified.get(token)
        if session is None:
            session = self._decode(token)
            self._verified[token] = session
            if len(self._verified) > MAX_VERIFIED:
                self._verified.popitem(last=False)
        if session.expires <= time.time():
            self._verified.pop(token, None)
            raise TokenExpired
        if self.is_revoked(session):
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
                    "verify_iat": False,  # its leeway is also that of `exp`, which is checked strictly
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

    def is_revoked(self, session: Session) -> bool:
        """True if the session was revoked before its token expired."""
        return session.session_id in self._revoked

    def revoke(self, session_id: UUID) -> None:
        """Reject the session's tokens from now on. The entry is dropped when the last of them must have expired.

        Their lifetime may differ from the present one: before a restart, or on another instance.
        """
        now = time.time()
        if len(self._revoked) % 1000 == 999:
            oldest = now - self.longest_lifetime - CLOCK_MARGIN
            self._revoked = {sid: revoked for sid, revoked in self._revoked.items() if revoked > oldest}
        self._revoked[session_id] = now
