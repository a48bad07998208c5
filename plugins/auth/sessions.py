"""Sessions: refresh tokens that rotate, and ended sessions that this instance must reject."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from datetime import timedelta
from uuid import UUID, uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from handlers.http.base import Client
from handlers.http.pages import PageCursor
from handlers.revocations import Revocations
from handlers.tokens import CLOCK_MARGIN, Tokens
from handlers.wire.errors import AccountSuspended, InvalidCredentials, NotFound, Unauthorized
from models import sessions
from models.database import Database
from plugins.auth.refusals import TokenReused
from plugins.auth.shapes import Refreshed, SignedIn

log = structlog.get_logger(__name__)

NOTE_INTERVAL = 60.0  # seconds between two updates of the stored lifetime of this server's tokens
OVERLAP = 30.0  # seconds; covers rows stamped before the last query but committed after it
REDIS_TIMEOUT = 0.25  # seconds; the look-up only saves PostgreSQL work, so it may not cost time


class Sessions:
    """Opens, refreshes and ends sessions; keeps this instance up to date about ended ones."""

    def __init__(
        self, db: Database, redis: Redis, tokens: Tokens, revocations: Revocations, grace_seconds: int
    ) -> None:
        self._db, self._redis, self._tokens, self._revocations = db, redis, tokens, revocations
        self._grace = grace_seconds
        self._caught_up: float | None = None
        self._noted: float | None = None
        self._applied: set[UUID] = set()

    async def open(self, user_id: UUID, public_id: str, fingerprint: str, client: Client) -> SignedIn:
        """Insert a session in the caller's transaction; return its tokens. The caller has authenticated the user.

        Raises AccountSuspended, and InvalidCredentials if the account was deleted in the meantime.
        """
        session_id = uuid4()
        token = (session_id.bytes + secrets.token_bytes(32)).hex()
        opened = await sessions.open_(self._db, session_id, user_id, _digest(token), client.platform, client.version)
        if not opened:
            raise InvalidCredentials if opened is None else AccountSuspended
        return SignedIn(
            user_id=user_id,
            session_id=session_id,
            access_token=self._tokens.issue(user_id, session_id, public_id, fingerprint),
            refresh_token=token,
            fingerprint=fingerprint,
            expires_in=int(self._tokens.lifetime),
        )

    async def refresh(self, token: str, client: Client) -> Refreshed:
        """Rotate a refresh token. Raises Unauthorized (``token_reused`` ends the whole session), AccountSuspended."""
        session_id = family(token)
        if session_id is None:
            raise Unauthorized("The refresh token is not valid.")
        digest = _digest(token)
        successors = self._successors(session_id, token)
        rotated = await sessions.rotate(
            self._db,
            session_id,
            digest,
            [_digest(successor) for successor in successors],
            self._grace,
            client.platform,
            client.version,
        )
        if rotated is None:
            # The suspension ended the session; the app must not treat that as a logout.
            if await sessions.suspended(self._db, session_id, digest):
                raise AccountSuspended
            if not await sessions.spent(self._db, session_id, digest):
                raise Unauthorized("The refresh token is not valid.")
            self._revocations.announce(await sessions.end_reused(self._db, session_id))
            raise TokenReused
        successor = next(item for item in successors if _digest(item) == rotated.token_hash)
        await self.cache_token(session_id, successor, digest)
        return Refreshed(
            access_token=self._tokens.issue(rotated.user_id, session_id, rotated.public_id, rotated.fingerprint),
            refresh_token=successor,
            expires_in=int(self._tokens.lifetime),
        )

    def _successors(self, session_id: UUID, token: str) -> list[str]:
        """Derive the token's successors, one for each accepted secret. Deriving again gives the same ones."""
        derived = self._tokens.keyring.derivations("refresh", token.encode())
        return [(session_id.bytes + secret).hex() for secret in derived]

    async def list_live(
        self, user_id: UUID, current: UUID, limit: int, before: PageCursor | None
    ) -> list[dict[str, object]]:
        """Return the user's live sessions, the most recently used first."""
        rows = await sessions.live(self._db, user_id, limit, before)
        return [{**row, "current": row["id"] == current} for row in rows]

    async def end(self, user_id: UUID, session_id: UUID) -> None:
        """End one of the user's sessions. Raises NotFound."""
        ended = await sessions.end(self._db, user_id, session_id)
        if not ended:
            raise NotFound("There is no such session.")
        self._revocations.announce(ended)

    async def end_all(self, user_id: UUID) -> None:
        """End every session of the user."""
        self._revocations.announce(await sessions.end_all(self._db, user_id))

    # The look-up in Redis (seed: refresh:{sha256}) ------------------------------------------------------------------

    async def cache_token(self, session_id: UUID, token: str, spent: bytes | None = None) -> None:
        """Store the token in Redis, for ``is_cached``; a spent one stays there while a client may repeat it."""
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                pipeline = self._redis.pipeline(transaction=False)
                key = f"refresh:{_digest(token).hex()}"
                pipeline.set(key, str(session_id), ex=sessions.IDLE_DAYS * 86400)
                if spent is not None:
                    pipeline.expire(f"refresh:{spent.hex()}", max(1, self._grace))
                await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("refresh_not_remembered", cause=type(error).__name__)

    async def is_cached(self, token: str) -> bool:
        """True if Redis has this token. False proves nothing (Redis may lose it); it only counts for the rate limit."""
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                return bool(await self._redis.exists(f"refresh:{_digest(token).hex()}"))
        except (RedisError, OSError, TimeoutError):
            return False

    # Ended sessions --------------------------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Read from PostgreSQL which sessions ended: at start all that could still have valid tokens, later the recent
        ones. While Redis is away only this revokes sessions in time."""
        now = time.monotonic()
        if self._noted is None:
            await self._note_lifetime(now)
        since = (
            self._tokens.longest_lifetime + CLOCK_MARGIN if self._caught_up is None else now - self._caught_up + OVERLAP
        )
        moment = await sessions.now(self._db) - timedelta(seconds=since)
        ended = await sessions.ended_since(self._db, moment)
        self._revocations.apply(session for session in ended if session.id not in self._applied)
        self._applied = {session.id for session in ended}
        self._caught_up = now
        if self._noted is None or now - self._noted > NOTE_INTERVAL:
            await self._note_lifetime(now)

    async def _note_lifetime(self, now: float) -> None:
        """Store how long our tokens live, and read how long those of other servers, with other settings, live."""
        await sessions.note_lifetime(self._db, self._tokens.lifetime)
        longest = await sessions.longest_lifetime(self._db, CLOCK_MARGIN)
        self._tokens.longest_lifetime = max(longest, self._tokens.lifetime)
        self._noted = now


_TOKEN = re.compile("[0-9a-f]{96}")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def family(token: str) -> UUID | None:
    """Return the session that a refresh token names; None if it is not a refresh token."""
    if not _TOKEN.fullmatch(token):
        return None
    return UUID(token[:32])
