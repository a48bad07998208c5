"""Access tokens: JWT HS256 with ``kid``, and the sessions that have ended before their tokens did."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt

from handlers.errors import Unauthorized

ISSUER = "mimu"
CACHE = 20_000  # verified tokens remembered: ~12 MiB at the most; a decode costs 25 µs, a look-up 0.2


@dataclass(frozen=True, slots=True)
class Session:
    """Who is asking: the claims of a verified access token. ``expires`` is in epoch seconds."""

    user_id: UUID
    session_id: UUID
    public_id: str
    fingerprint: str
    expires: float


class Keyring:
    """The secrets that sign and check: the first one signs, all of them check (rotation logs nobody out)."""

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets:
            raise ValueError("a keyring needs at least one secret")
        self._keys = {self.kid(secret): secret.encode() for secret in secrets}
        self.current = self.kid(secrets[0])

    @staticmethod
    def kid(secret: str) -> str:
        """A name for the secret that tells nothing about it."""
        return hashlib.sha256(b"mimu-kid|" + secret.encode()).hexdigest()[:16]

    @property
    def signing(self) -> tuple[str, bytes]:
        """The current secret with its name."""
        return self.current, self._keys[self.current]

    def key(self, kid: object) -> bytes | None:
        return self._keys.get(kid) if isinstance(kid, str) else None

    def derive(self, purpose: str, message: bytes) -> bytes:
        """HMAC-SHA256 under the current secret, in a domain of its own."""
        return self._mac(self._keys[self.current], purpose, message)

    def derivations(self, purpose: str, message: bytes) -> list[bytes]:
        """The same under every accepted secret, the current one first."""
        return [self._mac(key, purpose, message) for key in self._keys.values()]

    @staticmethod
    def _mac(key: bytes, purpose: str, message: bytes) -> bytes:
        return hmac.digest(hmac.digest(key, purpose.encode(), "sha256"), message, "sha256")


class Tokens:
    """Issues and verifies access tokens; knows which sessions were revoked."""

    def __init__(self, keyring: Keyring, lifetime: float) -> None:
        self.keyring = keyring
        self.lifetime = lifetime  # seconds
        self._verified: OrderedDict[str, Session] = OrderedDict()
        self._revoked: dict[UUID, float] = {}

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
            raise Unauthorized("The access token has expired.", code="token_expired")
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
                options={"require": ["exp", "iat", "sub", "sid", "user_id", "public_id", "fingerprint"]},
            )
            return Session(
                UUID(claims["user_id"]),
                UUID(claims["sid"]),
                str(claims["public_id"]),
                str(claims["fingerprint"]),
                float(claims["exp"]),
            )
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The access token has expired.", code="token_expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError):
            raise Unauthorized from None

    def revoked(self, session: Session) -> bool:
        """Whether the session has ended before its token."""
        return session.session_id in self._revoked

    def revoke(self, session_id: UUID) -> None:
        """Refuse the session's tokens from now on; forgotten when the last of them has expired anyway."""
        now = time.time()
        if len(self._revoked) % 1000 == 999:
            self._revoked = {sid: until for sid, until in self._revoked.items() if until > now}
        self._revoked[session_id] = now + self.lifetime
