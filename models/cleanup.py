"""Cleanup: remove rows that are no longer needed, in batches that hold no lock for long.

Every batch is one statement, and so one transaction. It skips locked rows (SKIP LOCKED): it waits for no request, and
several cleanups at once share the work.

**Prekeys.** A key id that a phone sent before must be rejected for ever (contract section 3), so the ids outlive the
rows, exactly, as a set of ranges for each user and kind: ``spent_prekeys``. A phone counts its keys, so all of them
are one or a few ranges, where the rows take 200 bytes each, and a Kyber key ten times that. A highest id, up to which
all are rejected, would be smaller still, and wrong: libsignal's apps begin to count at a random id and wrap around, so
ids that they never sent would be rejected. A trigger on the tables of prekeys rejects ids in the set.

**Sessions.** A row is not needed after the session was revoked, or 30 days after its last use: then it is too idle to
be refreshed, and the last access token issued to it, which lives at most 30 days, has expired as well. Until then the
row must stay, even after ``expires_at``: without it, changing the password could not end those tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import peewee

from config.retention import Retention
from models.database import Database, Enum, Special, Table
from models.sessions import IDLE_DAYS
from models.sweeps import UNWATCHED, Due, Sweep, Sweeper
from models.tombstones import PREKEY_HASH
from models.users import User

BATCH = 1000  # rows per statement: 10 to 60 ms, with millions of rows; a statement that takes 1.5 s is cancelled
# A starting server reads sessions that ended within this time. The longest life that JWT_EXPIRATION_HOURS allows, not
# the present one: tokens keep the life they were issued with. An hour more for clocks that differ.
ENDED_KEPT = timedelta(hours=720 + 1)
# A server's clock checks a challenge, the database's removes it: if that is too early, it could be used again.
CHALLENGES_KEPT = timedelta(hours=1)
FAILURES_KEPT = timedelta(days=2)  # after a sweep may try again: by then the row is gone, or was done
INVITES_KEPT = timedelta(days=7)  # after they expire, so that their creator can see it
COUNT_TIMEOUT = 3600.0  # seconds; counting reads all rows that are due, which may take long after years


class SpentPrekeys(Table):
    """The ids of a user's prekeys that are rejected although their rows are gone."""

    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    kind = Enum("prekey_kind")
    key_ids = Special("int8multirange")

    class Meta:
        table_name = "spent_prekeys"
        primary_key = peewee.CompositeKey("user", "kind")


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of rows. Both statements return one row with a number for each table: ``count`` counts all rows that are
    due, with the parameters ``due.args``; ``remove`` removes a batch of ``$1`` rows, ``due.args`` follow."""

    due: Due
    count: str
    remove: str


def _plain(table: str, key: str, moment: str, kept: timedelta) -> Step:
    """Rows that are removed without a trace, ``kept`` after ``moment``. The oldest go first, in the order of the
    index."""
    due = Due(table, key, f"{table} WHERE {moment} < now() - $2::interval", moment, args=(kept,))
    return Step(
        due,
        f"SELECT count(*) AS {table} FROM {table} WHERE {moment} < now() - $1::interval",
        f"""WITH due AS (
                {due.batch}
            ), gone AS (
                DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM due) RETURNING 1
            )
            SELECT count(*) AS {table} FROM gone""",
    )


def _prekeys(
    table: str, kind: str, name: str, moment: str, which: str, kept: timedelta, *, hashed: bool = False
) -> Step:
    """Prekeys, whose ids (with ``hashed`` also their hashes) are stored when the rows go; reported as ``name``.

    The owners are locked with their keys: ``spent_prekeys`` refers to them, and the deletion of an account locks the
    two in the other order. Rows are written in the order of users, so that two cleanups don't deadlock.
    """
    due = Due(
        name,
        "p.id",
        f"{table} AS p JOIN users AS owner ON owner.id = p.user_id WHERE {which} AND p.{moment} < now() - $2::interval",
        f"p.{moment}",
        "FOR UPDATE OF p SKIP LOCKED FOR KEY SHARE OF owner SKIP LOCKED",
        (kept,),
    )
    hashes = ""
    if hashed:
        hashes = f"""hashes AS (
                INSERT INTO superseded_prekeys (user_id, key_hash)
                SELECT DISTINCT user_id, {PREKEY_HASH} FROM gone ORDER BY 1, 2 ON CONFLICT DO NOTHING
            ),"""
    return Step(
        due,
        f"SELECT count(*) AS {name} FROM {table} AS p WHERE {which} AND p.{moment} < now() - $1::interval",
        f"""WITH due AS (
                {due.batch}
            ), gone AS (
                DELETE FROM {table} WHERE id IN (SELECT id FROM due) RETURNING user_id, key_id, public_key
            ), {hashes} noted AS (
                INSERT INTO spent_prekeys AS known (user_id, kind, key_ids)
                SELECT user_id, '{kind}', range_agg(int8range(key_id, key_id, '[]'))
                FROM gone GROUP BY user_id ORDER BY user_id
                ON CONFLICT (user_id, kind) DO UPDATE SET key_ids = known.key_ids + excluded.key_ids
            )
            SELECT count(*) AS {name} FROM gone""",
    )


# As the index sessions_over has it.
_OVER = f"least(revoked_at, (last_used_at AT TIME ZONE 'UTC' + interval '{IDLE_DAYS} days') AT TIME ZONE 'UTC')"


def _sessions(kept: timedelta) -> Step:
    """Sessions with their spent refresh tokens, of which one session may have thousands: a batch removes tokens, and
    those sessions that had none left before it."""
    due = Due("sessions", "id", f"sessions WHERE {_OVER} < now() - $2::interval", _OVER, args=(kept,))
    over = f"{_OVER} < now() - $1::interval"
    return Step(
        due,
        f"""SELECT (SELECT count(*) FROM sessions WHERE {over}) AS sessions,
                   (SELECT count(*) FROM sessions JOIN spent_refresh_tokens ON session_id = sessions.id WHERE {over})
                       AS spent_refresh_tokens""",
        f"""WITH due AS (
                {due.batch}
            ), tokens AS (
                DELETE FROM spent_refresh_tokens WHERE token_hash IN (
                    SELECT token_hash FROM spent_refresh_tokens WHERE session_id IN (SELECT id FROM due) LIMIT $1)
                RETURNING 1
            ), gone AS (
                DELETE FROM sessions WHERE id IN (SELECT id FROM due)
                    AND NOT EXISTS (SELECT 1 FROM spent_refresh_tokens WHERE session_id = sessions.id)
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM gone) AS sessions, (SELECT count(*) FROM tokens) AS spent_refresh_tokens""",
    )


def _deleted_chats(kept: timedelta) -> Step:
    """Deleted chats with their participants: a channel may have 100,000, so a batch removes participants, and those
    chats that had none left before it. Everything else of these chats is erased already (models/chats/purge.py)."""
    purged = "NOT EXISTS (SELECT 1 FROM chat_purges WHERE chat_id = chat_threads.id)"
    due = Due(
        "chat_threads",
        "id",
        f"chat_threads WHERE deleted_at < now() - $2::interval AND {purged}",
        "deleted_at",
        args=(kept,),
    )
    over = "deleted_at < now() - $1::interval"
    return Step(
        due,
        f"""SELECT (SELECT count(*) FROM chat_threads WHERE {over}) AS chat_threads,
                   (SELECT count(*) FROM chat_threads JOIN chat_participants ON chat_id = id WHERE {over})
                       AS chat_participants""",
        f"""WITH due AS (
                {due.batch}
            ), people AS (
                DELETE FROM chat_participants WHERE (chat_id, user_id) IN (
                    SELECT chat_id, user_id FROM chat_participants WHERE chat_id IN (SELECT id FROM due) LIMIT $1)
                RETURNING 1
            ), gone AS (
                DELETE FROM chat_threads WHERE id IN (SELECT id FROM due)
                    AND NOT EXISTS (SELECT 1 FROM chat_participants WHERE chat_id = chat_threads.id)
                    AND NOT EXISTS (SELECT 1 FROM messages WHERE chat_id = chat_threads.id)
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM gone) AS chat_threads, (SELECT count(*) FROM people) AS chat_participants""",
    )


def steps(retention: Retention) -> list[Step]:
    """Return the kinds of rows to clean up."""
    keys = timedelta(days=retention.prekey_retention_days)
    kinds = [
        _prekeys("one_time_prekeys", "one_time", "one_time_prekeys", "used_at", "p.used", keys),
        _prekeys("kyber_prekeys", "kyber", "kyber_prekeys", "used_at", "p.used", keys),
        _prekeys(
            "kyber_prekeys",
            "last_resort",
            "last_resort_kyber_prekeys",
            "superseded_at",
            "p.superseded_at IS NOT NULL",
            keys,
            hashed=True,
        ),
        _prekeys(
            "signed_prekeys",
            "signed",
            "signed_prekeys",
            "superseded_at",
            "p.superseded_at IS NOT NULL",
            keys,
            hashed=True,
        ),
        _sessions(timedelta(days=retention.session_retention_days)),
        _plain("ended_sessions", "session_id", "ended_at", ENDED_KEPT),
        _plain("tombstones", "hash", "until", timedelta()),
        _plain("spent_challenges", "nonce", "expires_at", CHALLENGES_KEPT),
        # Cancelled ones, too, when they would have ended.
        _plain("subscriptions", "id", "expires_at", timedelta(days=retention.subscription_retention_days)),
        _plain("files", "id", "expires_at", timedelta()),  # uploads that were not finished in time
        _plain("sweep_failures", "sweep, key", "retry_at", FAILURES_KEPT),
    ]
    # Events that /sync no longer returns. A day longer than its cursors live, for clocks that differ.
    synced = timedelta(days=retention.sync_retention_days + 1)
    kinds += [
        _plain("chat_events", "chat_id, seq", "created_at", synced),
        _plain("chat_departures", "chat_id, user_id, left_seq", "left_at", synced),
        _plain("chat_invites", "id", "expires_at", INVITES_KEPT),
        # Deleted messages, without payload: kept so that a client that posts one again does not create another.
        _plain("messages", "id", "deleted_at", synced),
        _deleted_chats(synced),
    ]
    if retention.call_retention_days:
        # After they ended: a call that rings or goes on has no end, and is never due.
        kinds.append(_plain("call_sessions", "id", "ended_at", timedelta(days=retention.call_retention_days)))
    return kinds


async def due(db: Database, retention: Retention) -> dict[str, int]:
    """Count the rows of each table that a cleanup would remove now."""
    counts: dict[str, int] = {}
    async with db.pool.acquire() as connection, connection.transaction(readonly=True):
        await connection.execute("SET LOCAL statement_timeout = 0")  # the limit is for requests
        for step in steps(retention):
            row = await connection.fetchrow(step.count, *step.due.args, timeout=COUNT_TIMEOUT)
            counts.update(row or {})
    return counts


def sweeps(db: Database, retention: Retention, removed: Callable[[Mapping[str, int]], None]) -> list[Sweep]:
    """Return a sweep for each kind. It calls ``removed`` with the number of rows per table after each batch."""

    def sweep(step: Step) -> Sweep:
        async def work(limit: int) -> int:
            row = await db.row(step.remove, limit, *step.due.args)
            assert row is not None  # a count always returns a row
            removed(dict(row))
            return sum(row.values())

        return Sweep(step.due, work, BATCH)

    return [sweep(step) for step in steps(retention)]


async def clean(
    db: Database,
    retention: Retention,
    *,
    seconds: float = float("inf"),
    report: Callable[[dict[str, int]], None] = lambda _: None,
) -> dict[str, int]:
    """Remove rows that are due, for about ``seconds`` at most. Returns the number of rows per table, and calls
    ``report`` with it after each batch. If a statement is wrong, its error is raised after the other steps."""
    total: dict[str, int] = {}

    def removed(rows: Mapping[str, int]) -> None:
        for table, number in rows.items():
            total[table] = total.get(table, 0) + number
        if any(rows.values()):
            report(total)

    await Sweeper(db, UNWATCHED, *sweeps(db, retention, removed)).run(seconds)
    return total
