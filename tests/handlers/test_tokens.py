"""Access tokens: clocks that differ, and how long revoked sessions are remembered."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import jwt
import pytest

from config.keyring import Keyring
from handlers.tokens import CLOCK_MARGIN, ISSUER, LEEWAY, Tokens
from handlers.wire.errors import TokenExpired, Unauthorized

SECRET = "s" * 32


def issued(ahead: float, lifetime: float = 3600, **changes: Any) -> str:
    """Return a token from an instance whose clock is so many seconds ahead."""
    ring = Keyring([SECRET])
    now = int(time.time() + ahead)
    user = str(uuid4())
    claims = {"iss": ISSUER, "sub": user, "user_id": user, "sid": str(uuid4()), "public_id": "a", "fingerprint": "f"}
    claims |= {"iat": now, "exp": now + lifetime, **changes}
    return jwt.encode(claims, ring.signing[1], algorithm="HS256", headers={"kid": ring.signing[0]})


@pytest.mark.parametrize("ahead", [-30, 0, 2, LEEWAY - 2])
def test_clocks_may_differ_by_a_minute(ahead: float) -> None:
    Tokens(Keyring([SECRET]), 3600).verify(issued(ahead))


@pytest.mark.parametrize("iat", [4_102_444_800, "soon", None, [], 1e400])
def test_a_token_from_the_future_is_refused(iat: Any) -> None:
    with pytest.raises(Unauthorized):
        Tokens(Keyring([SECRET]), 3600).verify(issued(0, iat=iat))


def test_the_end_has_no_leeway() -> None:
    with pytest.raises(TokenExpired):
        Tokens(Keyring([SECRET]), 3600).verify(issued(-3602))


def test_ended_sessions_are_remembered_as_long_as_the_longest_token_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(Keyring([SECRET]), 60)
    tokens.longest_lifetime = 86_400.0
    now = time.time()
    old = tokens.verify(issued(0, 86_400))
    tokens.revoke(old.session_id)
    for seconds, known in ((70, True), (80_000, True), (86_400 + CLOCK_MARGIN + 10, False)):
        monkeypatch.setattr(time, "time", lambda moment=now + seconds: moment)
        for _ in range(1001):
            tokens.revoke(uuid4())
        assert tokens.is_revoked(old) is known
