"""Push: the tokens of devices, which are used while they have no open socket, and their owners' preferences."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import peewee

from models.chats.visibility import VISIBLE
from models.database import JSONB, Database, Enum, Row, Table, in_sql, returned
from models.sessions import IDLE_DAYS, Session, refreshable
from models.users import User


class PushToken(Table):
    id = peewee.UUIDField(primary_key=True)
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    session = peewee.ForeignKeyField(Session, on_delete="CASCADE")
    provider = Enum("push_provider")
    token = peewee.TextField()
    token_hash = peewee.BlobField()
    p256dh = peewee.BlobField(null=True)
    auth = peewee.BlobField(null=True)
    sandbox = peewee.BooleanField(default=False)
    quiet = peewee.BooleanField(default=False)
    registered_at = peewee.DateTimeField()
    woken_at = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "push_tokens"


class PushSettings(Table):
    user = peewee.ForeignKeyField(User, primary_key=True, on_delete="CASCADE")
    kinds = JSONB()
    quiet_hours = JSONB(null=True)
    muted_chats = JSONB()

    class Meta:
        table_name = "push_settings"


class NewToken(NamedTuple):
    """A token that a client registers; ``p256dh`` and ``auth`` are the keys of a Web Push subscription."""

    provider: str
    token: str
    p256dh: bytes | None
    auth: bytes | None
    sandbox: bool
    quiet: bool


# Sessions that can still be refreshed; others no longer have a device.
_LIVE = f"""s.revoked_at IS NULL AND s.expires_at > now() AND s.last_used_at > now() - interval '{IDLE_DAYS} days'"""
_FIELDS = (
    PushToken.id,
    PushToken.provider,
    PushToken.session,
    PushToken.sandbox,
    PushToken.quiet,
    PushToken.registered_at,
)
_SHOWN = in_sql(_FIELDS, "t")


async def register(db: Database, user_id: UUID, session_id: UUID, token: NewToken, at_most: int) -> Row | None:
    """Store a token for a session, or update it. Returns it, with ``new``; None if the session has ended. If the user
    has more than ``at_most`` tokens, the ones that were registered longest ago are deleted.

    The user's row is locked, so that two registrations count each other; FOR SHARE waits if the session is being ended.
    """
    async with db.transaction():
        await db.execute("SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
        row = await db.row(
            f"""WITH live AS (
                    SELECT s.id, s.user_id FROM sessions s WHERE s.id = $2 AND s.user_id = $1 AND {_LIVE} FOR SHARE
                )
                INSERT INTO push_tokens AS t (user_id, session_id, provider, token, token_hash, p256dh, auth, sandbox,
                                              quiet, registered_at)
                SELECT user_id, id, $3::text::push_provider, $4, $9, $5, $6, $7, $8, clock_timestamp() FROM live
                ON CONFLICT (user_id, provider, token_hash) DO UPDATE SET
                    session_id = excluded.session_id, p256dh = excluded.p256dh, auth = excluded.auth,
                    sandbox = excluded.sandbox, quiet = excluded.quiet, registered_at = excluded.registered_at
                RETURNING {_SHOWN}, t.xmax = 0 AS new""",
            user_id,
            session_id,
            *token,
            hashlib.sha256(token.token.encode()).digest(),
        )
        latest = PushToken.select(PushToken.id).where(PushToken.user == user_id)
        latest = latest.order_by(PushToken.registered_at.desc(), PushToken.id)
        await db.do(PushToken.delete().where(PushToken.id.in_(latest.offset(at_most))))
        return row


async def tokens(db: Database, user_id: UUID) -> list[Row]:
    """Return a user's tokens without the tokens themselves, the most recently registered first."""
    return await db.rows(
        PushToken.select(*returned(*_FIELDS))
        .join(Session)
        .where(PushToken.user == user_id, *refreshable())
        .order_by(PushToken.registered_at.desc(), PushToken.id)
    )


async def remove(db: Database, user_id: UUID, token_id: UUID) -> bool:
    """Delete a token of the user."""
    return await db.do(PushToken.delete().where(PushToken.id == token_id, PushToken.user == user_id)) == 1


# Settings -----------------------------------------------------------------------------------------------------------


async def settings(db: Database, user_id: UUID) -> Row | None:
    """Return ``kinds, quiet_hours, muted_chats``; None if the user has set nothing."""
    return await db.one(
        PushSettings.select(PushSettings.kinds, PushSettings.quiet_hours, PushSettings.muted_chats).where(
            PushSettings.user == user_id
        )
    )


async def change_settings(db: Database, user_id: UUID, kinds: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Set some columns; ``kinds`` is the default if the user has set nothing before."""
    await db.execute(
        """INSERT INTO push_settings AS p (user_id, kinds, quiet_hours, muted_chats)
           SELECT id, coalesce($3::jsonb, $2::jsonb), $5::jsonb, coalesce($6::jsonb, '{}') FROM users WHERE id = $1
           ON CONFLICT (user_id) DO UPDATE SET
               kinds = coalesce($3::jsonb, p.kinds), muted_chats = coalesce($6::jsonb, p.muted_chats),
               quiet_hours = CASE WHEN $4 THEN $5::jsonb ELSE p.quiet_hours END""",
        user_id,
        list(kinds),
        changes.get("kinds"),
        "quiet_hours" in changes,
        changes.get("quiet_hours"),
        changes.get("muted_chats"),
    )


# Waking -------------------------------------------------------------------------------------------------------------


async def reachable(db: Database, users: Sequence[UUID]) -> set[UUID]:
    """Return those of the users who have a token."""
    rows = await db.fetch(
        f"""SELECT DISTINCT t.user_id FROM push_tokens t JOIN sessions s ON s.id = t.session_id
            WHERE t.user_id = ANY ($1::uuid[]) AND {_LIVE}""",
        list(users),
    )
    return {row["user_id"] for row in rows}


async def blocks(db: Database, users: Sequence[UUID], senders: Sequence[UUID]) -> set[tuple[UUID, UUID]]:
    """Return the pairs (user, sender) in which the user has blocked the sender."""
    rows = await db.fetch(
        """SELECT blocker_id, blocked_id FROM user_blocks
           WHERE blocker_id = ANY ($1::uuid[]) AND blocked_id = ANY ($2::uuid[])""",
        list(users),
        list(senders),
    )
    return {(row["blocker_id"], row["blocked_id"]) for row in rows}


async def missed(db: Database, user_id: UUID, seconds: float) -> list[UUID]:
    """Return at most 100 of a user's chats with messages of others from the last ``seconds`` that the user's apps have
    not acknowledged; the most recently active first."""
    rows = await db.fetch(
        f"""SELECT t.id FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
           WHERE p.user_id = $1 AND NOT p.concealed AND t.deleted_at IS NULL AND t.last_seq > p.delivered_seq
             AND t.updated_at > now() - $2 * interval '1 second'
             AND EXISTS (
                 SELECT 1 FROM messages m
                 WHERE m.chat_id = t.id AND m.seq > p.delivered_seq AND m.seq >= p.joined_seq
                   AND m.sender_id IS DISTINCT FROM $1 AND {VISIBLE}
                   AND m.created_at > now() - $2 * interval '1 second'
                   AND NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = $1 AND blocked_id = m.sender_id))
           ORDER BY t.updated_at DESC LIMIT 100""",
        user_id,
        seconds,
    )
    return [row["id"] for row in rows]


# The newest message that a user has to read in a chat: unread, not deleted or expired, and its sender not blocked. Only
# the last 4,096 events are searched, so that a chat full of the user's own messages costs no more than others.
_NEWEST = f"""
    SELECT newest.seq, newest.created_at
    FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id AND t.deleted_at IS NULL, LATERAL (
        SELECT m.seq, m.created_at FROM messages m
        WHERE m.chat_id = p.chat_id AND m.seq > greatest(p.read_seq, t.last_seq - 4096) AND {VISIBLE}
          AND m.sender_id IS DISTINCT FROM p.user_id
          AND NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = p.user_id AND blocked_id = m.sender_id)
        ORDER BY m.seq DESC LIMIT 1) AS newest
    WHERE p.chat_id = g.chat_id AND p.user_id = g.user_id AND NOT p.concealed"""


async def wanted(db: Database, requests: Sequence[tuple[UUID, UUID | None]]) -> list[list[Row]]:
    """Return for each pair of user and chat (or None) the user's tokens, with the user's preferences ``kinds`` and
    ``quiet_hours`` (None if not set), ``muted``, and ``unread_seq`` and ``unread_at`` of the newest unread message
    (None if there is none). No tokens if the user isn't in the chat."""
    rows = await db.fetch(
        f"""WITH asked AS MATERIALIZED (
                SELECT g.*, unread.seq AS unread_seq, unread.created_at AS unread_at
                FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS g (user_id, chat_id, place)
                LEFT JOIN LATERAL ({_NEWEST}) AS unread ON true
            )
            SELECT g.place, g.unread_seq, g.unread_at,
                   t.id, t.provider::text, t.session_id, t.quiet, p.kinds, p.quiet_hours,
                   coalesce(p.muted_chats ? g.chat_id::text
                            AND coalesce((p.muted_chats ->> g.chat_id::text)::timestamptz > now(), true), false)
                       OR EXISTS (SELECT 1 FROM chat_views v WHERE v.chat_id = g.chat_id AND v.user_id = g.user_id
                                  AND v.muted_until > now()) AS muted
            FROM asked g
            JOIN push_tokens t ON t.user_id = g.user_id
            JOIN sessions s ON s.id = t.session_id AND {_LIVE}
            LEFT JOIN push_settings p ON p.user_id = g.user_id
            WHERE g.chat_id IS NULL OR EXISTS (
                SELECT 1 FROM chat_participants c
                WHERE c.chat_id = g.chat_id AND c.user_id = g.user_id AND NOT c.concealed)""",
        [user_id for user_id, _ in requests],
        [chat_id for _, chat_id in requests],
    )
    results: list[list[Row]] = [[] for _ in requests]
    for row in rows:
        results[row["place"] - 1].append(row)
    return results


async def ringing(db: Database, rings: Sequence[tuple[UUID, UUID]]) -> set[UUID]:
    """Return those of the calls (pairs of callee and call) that ring now, and whose callee has not blocked the
    caller."""
    rows = await db.fetch(
        """SELECT c.id FROM unnest($1::uuid[], $2::uuid[]) AS g (callee_id, call_id)
           JOIN call_sessions c ON c.id = g.call_id AND c.callee_id = g.callee_id AND c.status = 'ringing'
           WHERE NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = c.callee_id AND blocked_id = c.caller_id)""",
        [callee_id for callee_id, _ in rings],
        [call_id for _, call_id in rings],
    )
    return {row["id"] for row in rows}


async def low_on_prekeys(db: Database, users: Sequence[UUID], enough: int) -> set[UUID]:
    """Return those of the users who have fewer than ``enough`` one-time prekeys left."""
    rows = await db.fetch(
        """SELECT given.user_id FROM unnest($1::uuid[]) AS given (user_id) WHERE (
               SELECT count(*) FROM (
                   SELECT 1 FROM one_time_prekeys k WHERE k.user_id = given.user_id AND NOT k.used LIMIT $2) AS unused
           ) < $2""",
        list(users),
        enough,
    )
    return {row["user_id"] for row in rows}


async def devices(db: Database, token_ids: Sequence[UUID]) -> list[Row | None]:
    """Return for each token what its provider needs to send a push; None if the token is gone."""
    rows = await db.fetch(
        f"""SELECT {_SHOWN}, t.user_id, t.token, t.p256dh, t.auth FROM push_tokens t
            JOIN sessions s ON s.id = t.session_id AND {_LIVE} WHERE t.id = ANY ($1::uuid[])""",
        list(token_ids),
    )
    by_id = {row["id"]: row for row in rows}
    return [by_id.get(token_id) for token_id in token_ids]


async def drop(db: Database, token_id: UUID, registered_at: datetime, gone_since: datetime | None) -> bool:
    """Delete a token that its provider no longer knows, unless it was registered again: after we read it
    (``registered_at``), or after the time since when the provider has not known it. True if it was deleted."""
    if gone_since is not None and registered_at >= gone_since:
        return False
    token = (PushToken.id == token_id, PushToken.registered_at == registered_at)
    return await db.do(PushToken.delete().where(*token)) == 1


async def wake(db: Database, token_id: UUID, seconds: int) -> float:
    """Record that a device is woken in the background now, and return 0. If that was less than ``seconds`` ago, record
    nothing and return how long to wait."""
    waits = await db.value(
        """WITH woken AS (
               UPDATE push_tokens SET woken_at = now()
               WHERE id = $1 AND (woken_at IS NULL OR woken_at <= now() - $2 * interval '1 second') RETURNING 0
           )
           SELECT 0.0::float8 FROM woken
           UNION ALL
           SELECT extract(epoch FROM woken_at - now())::float8 + $2 FROM push_tokens WHERE id = $1
           LIMIT 1""",
        token_id,
        seconds,
    )
    return float(waits or 0.0)


async def not_woken(db: Database, token_id: UUID) -> None:
    """Undo ``wake``: the push failed."""
    await db.do(PushToken.update(woken_at=None).where(PushToken.id == token_id))


async def sibling(db: Database, session_id: UUID, provider: str) -> UUID | None:
    """Return a session's most recently registered token of another provider."""
    token_id: UUID | None = await db.scalar(
        PushToken.select(PushToken.id)
        .where(PushToken.session == session_id, PushToken.provider == provider)
        .order_by(PushToken.registered_at.desc())
        .limit(1)
    )
    return token_id
