"""Sessions: signed-in devices. A row decides on the rotation of refresh tokens; only their SHA-256 is stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import peewee
from peewee import Tuple, fn

from models.database import Database, Row, Table, interval
from models.users import User

IDLE_DAYS, MAX_DAYS = 30, 180  # contract section 2
PAGE = 5000  # ended sessions of one statement


class Session(Table):
    id = peewee.UUIDField(primary_key=True)
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    token_hash = peewee.BlobField(unique=True)
    previous_hash = peewee.BlobField(null=True)
    rotated_at = peewee.DateTimeField(null=True)
    platform = peewee.TextField(null=True)
    client_version = peewee.TextField(null=True)
    created_at = peewee.DateTimeField()
    last_used_at = peewee.DateTimeField()
    expires_at = peewee.DateTimeField()
    revoked_at = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "sessions"


def refreshable() -> tuple[peewee.Expression, ...]:
    """The conditions of a session that can still be refreshed."""
    return (
        Session.revoked_at.is_null(),
        Session.expires_at > fn.now(),
        Session.last_used_at > fn.now() - interval(f"{IDLE_DAYS} days"),
    )


class EndedSession(Table):
    session_id = peewee.UUIDField(primary_key=True)
    user_id = peewee.UUIDField()
    ended_at = peewee.DateTimeField()

    class Meta:
        table_name = "ended_sessions"


class TokenLifetime(Table):
    """Lifetimes of access tokens in the settings of running servers, each with when a server last used it."""

    seconds = peewee.DoubleField(primary_key=True)
    seen_at = peewee.DateTimeField()

    class Meta:
        table_name = "token_lifetimes"


class SpentRefreshToken(Table):
    token_hash = peewee.BlobField(primary_key=True)
    session = peewee.ForeignKeyField(Session, on_delete="CASCADE")

    class Meta:
        table_name = "spent_refresh_tokens"


class SpentChallenge(Table):
    nonce = peewee.BlobField(primary_key=True)
    expires_at = peewee.DateTimeField()

    class Meta:
        table_name = "spent_challenges"


async def open_(
    db: Database, session_id: UUID, user_id: UUID, token_hash: bytes, platform: str | None, client_version: str | None
) -> bool | None:
    """Insert a session whose current refresh token has this hash. False if the account is suspended, None if it is
    gone.

    FOR SHARE waits for a suspension in progress, and makes the next one wait for us, so that it also ends this session.
    """
    return await db.value(  # type: ignore[no-any-return]
        f"""WITH owner AS (
                SELECT id, suspended_at IS NULL AS welcome FROM users WHERE id = $2 FOR SHARE
            ), opened AS (
                INSERT INTO sessions (id, user_id, token_hash, platform, client_version, expires_at)
                SELECT $1, id, $3, $4, $5, now() + interval '{MAX_DAYS} days' FROM owner WHERE welcome
            )
            SELECT welcome FROM owner""",
        session_id,
        user_id,
        token_hash,
        platform,
        client_version,
    )


class Rotated(NamedTuple):
    """``token_hash`` is the successor, among several candidates, that the session now has."""

    user_id: UUID
    public_id: str
    fingerprint: str
    token_hash: bytes


async def rotate(
    db: Database,
    session_id: UUID,
    token_hash: bytes,
    successors: Sequence[bytes],
    grace_seconds: int,
    platform: str | None,
    client_version: str | None,
) -> Rotated | None:
    """Replace the current token by ``successors[0]``, in one conditional statement; None if that is not allowed.

    If the previous token is sent again within the grace time, while its successor (any of ``successors``: the signing
    secret may have changed in between) is unused, nothing changes, and the same successor is returned.
    """
    row = await db.row(
        f"""WITH before AS (
                SELECT id, token_hash = $2 AS is_current FROM sessions
                WHERE id = $1 AND revoked_at IS NULL AND expires_at > now()
                  AND last_used_at > now() - interval '{IDLE_DAYS} days'
                  AND (token_hash = $2 OR (previous_hash = $2 AND token_hash = ANY ($3::bytea[])
                                           AND rotated_at > now() - make_interval(secs => $4)))
                FOR UPDATE
            ), rotated AS (
                UPDATE sessions SET
                    token_hash = CASE WHEN before.is_current THEN ($3::bytea[])[1] ELSE token_hash END,
                    previous_hash = $2,
                    rotated_at = CASE WHEN before.is_current THEN now() ELSE rotated_at END,
                    last_used_at = now(),
                    platform = coalesce($5, platform), client_version = coalesce($6, client_version)
                FROM before WHERE sessions.id = before.id
                RETURNING sessions.user_id, sessions.token_hash, before.is_current
            ), spent AS (
                INSERT INTO spent_refresh_tokens (token_hash, session_id)
                SELECT $2, $1 FROM rotated WHERE is_current
            )
            SELECT users.id, public_id, fingerprint, rotated.token_hash
            FROM rotated JOIN users ON users.id = rotated.user_id""",
        session_id,
        token_hash,
        list(successors),
        grace_seconds,
        platform,
        client_version,
    )
    return Rotated(*row) if row else None


class Ended(NamedTuple):
    id: UUID
    user_id: UUID


async def _end(db: Database, condition: str, *args: object) -> list[Ended]:
    """End the live sessions that meet the condition, and store it for instances that missed the announcement."""
    rows = await db.fetch(
        f"""WITH ended AS (
                UPDATE sessions SET revoked_at = now() WHERE revoked_at IS NULL AND {condition} RETURNING id, user_id
            ), noted AS (
                INSERT INTO ended_sessions (session_id, user_id) SELECT id, user_id FROM ended ON CONFLICT DO NOTHING
            )
            SELECT id, user_id FROM ended""",
        *args,
    )
    return [Ended(*row) for row in rows]


async def end(db: Database, user_id: UUID, session_id: UUID) -> list[Ended]:
    """End one live session of a user; empty if there is none."""
    return await _end(db, "id = $1 AND user_id = $2", session_id, user_id)


async def end_all(db: Database, user_id: UUID, but: UUID | None = None) -> list[Ended]:
    """End every live session of a user, except one."""
    return await _end(db, "user_id = $1 AND id IS DISTINCT FROM $2", user_id, but)


async def spent(db: Database, session_id: UUID, token_hash: bytes) -> bool:
    """True if the session had this refresh token before."""
    return await db.exists(
        SpentRefreshToken.select().where(
            SpentRefreshToken.token_hash == token_hash, SpentRefreshToken.session == session_id
        )
    )


async def suspended(db: Database, session_id: UUID, token_hash: bytes) -> bool:
    """True if the refresh token is or was this session's, and its account is suspended."""
    return await db.value(  # type: ignore[no-any-return]
        """SELECT EXISTS (
               SELECT 1 FROM sessions JOIN users ON users.id = sessions.user_id
               WHERE sessions.id = $1 AND users.suspended_at IS NOT NULL
                 AND (sessions.token_hash = $2 OR EXISTS (SELECT 1 FROM spent_refresh_tokens AS spent
                                                          WHERE spent.token_hash = $2 AND spent.session_id = $1)))""",
        session_id,
        token_hash,
    )


async def end_reused(db: Database, session_id: UUID) -> list[Ended]:
    """End the session of a spent token that was sent again; empty if it had ended before."""
    return await _end(db, "id = $1", session_id)


async def ended_since(db: Database, moment: datetime) -> list[Ended]:
    """Return the sessions that ended after a moment, for an instance that may have missed announcements. It reads by
    page: at a server's start they are those of a token's whole lifetime."""
    ended: list[Ended] = []
    place = Tuple(EndedSession.ended_at, EndedSession.session_id)
    page = EndedSession.select(EndedSession.session_id, EndedSession.user_id, EndedSession.ended_at)
    page = page.order_by(EndedSession.ended_at, EndedSession.session_id).limit(PAGE)
    last, rows = UUID(int=0), None
    while rows is None or len(rows) == PAGE:
        rows = await db.rows(page.where(place > (moment, last)))
        ended += [Ended(row["session_id"], row["user_id"]) for row in rows]
        if rows:
            moment, last = rows[-1]["ended_at"], rows[-1]["session_id"]
    return ended


async def note_lifetime(db: Database, seconds: float) -> None:
    """Store that a server issues tokens with this lifetime. Call it before the first is issued, and every minute."""
    await db.do(
        TokenLifetime.insert(seconds=seconds).on_conflict(
            conflict_target=[TokenLifetime.seconds],
            update={TokenLifetime.seen_at: fn.greatest(TokenLifetime.seen_at, fn.now())},
        )
    )


async def longest_lifetime(db: Database, margin: float) -> float:
    """Return the longest lifetime, in seconds, of tokens that may still be valid, or expired less than ``margin``
    seconds ago."""
    over = TokenLifetime.seen_at + (TokenLifetime.seconds + margin) * interval("1 second")
    longest = await db.scalar(TokenLifetime.select(fn.max(TokenLifetime.seconds)).where(over > fn.now()))
    return longest or 0.0


async def live(
    db: Database, user_id: UUID, limit: int = 1000, before: tuple[datetime, UUID] | None = None
) -> list[Row]:
    """Return a user's sessions that can still be refreshed, the most recently used first."""
    page = (
        Session.select(Session.id, Session.platform, Session.client_version, Session.created_at, Session.last_used_at)
        .where(Session.user == user_id, *refreshable())
        .order_by(Session.last_used_at.desc(), Session.id.desc())
        .limit(limit)
    )
    if before:
        page = page.where(Tuple(Session.last_used_at, Session.id) < before)
    return await db.rows(page)


async def now(db: Database) -> datetime:
    """Return the time of the database's clock, which stamps rows."""
    return await db.value("SELECT now()")  # type: ignore[no-any-return]


async def spend_challenge(db: Database, nonce: bytes, expires_at: datetime) -> bool:
    """Use up a challenge; False if it was used before."""
    return await db.do(SpentChallenge.insert(nonce=nonce, expires_at=expires_at).on_conflict_ignore()) == 1
