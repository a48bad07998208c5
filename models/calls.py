"""Calls: one row for each call. Each transition is one statement that includes its condition."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
import peewee
from peewee import fn

from models.database import Database, Enum, Table, interval
from models.presence import is_contact, sees_presence
from models.sweeps import Due, Sweep
from models.users import User

RING_SECONDS = 60  # seed: a call that is not answered by then is missed
ANSWER_SECONDS = 60  # an answer waits for a disconnected caller as long as the ring may have lasted
MAX_CANDIDATES = 300  # candidates of a call, contract section 6; a phone with many networks gathers a few dozen
CANDIDATES_RESERVED = 20  # candidates that an instance reserves at once: one statement for each phone of a usual call
SWEEP_BATCH = 500  # calls that one statement of a sweep ends
HEARTBEAT_HOURS = 1  # seed: an answered call without a heartbeat for this long has ended


class CallSession(Table):
    id = peewee.UUIDField(primary_key=True)
    caller = peewee.ForeignKeyField(User, null=True, on_delete="SET NULL")
    callee = peewee.ForeignKeyField(User, null=True, on_delete="SET NULL")
    call_type = Enum("call_type")
    status = Enum("call_status", default="ringing")
    started_at = peewee.DateTimeField()
    accepted_at = peewee.DateTimeField(null=True)
    ended_at = peewee.DateTimeField(null=True)
    end_reason = peewee.TextField(null=True)
    last_heartbeat = peewee.DateTimeField(null=True)
    created_at = peewee.DateTimeField()
    silent = peewee.BooleanField(default=False)
    candidates = peewee.SmallIntegerField(default=0)
    answer_hash = peewee.BlobField(null=True)

    class Meta:
        table_name = "call_sessions"


class Call(NamedTuple):
    """The part of a call that its participants may see. A callee who has blocked the caller does not see the call at
    all: it is ``silent``."""

    id: UUID
    caller_id: UUID | None
    callee_id: UUID | None
    call_type: Literal["audio", "video"]
    status: Literal["ringing", "accepted", "rejected", "missed", "ended", "failed"]
    end_reason: str | None
    started_at: datetime
    silent: bool

    @property
    def live(self) -> bool:
        return self.status in ("ringing", "accepted")

    def concerns(self, user_id: UUID) -> bool:
        """True if the user is a participant and may see the call."""
        return user_id == self.caller_id or (user_id == self.callee_id and not self.silent)


_CALL = "id, caller_id, callee_id, call_type::text, status::text, end_reason, started_at, silent"
_PAIR = "least(caller_id, callee_id) = least({0}, {1}) AND greatest(caller_id, callee_id) = greatest({0}, {1})"
_CONCERNS = "(caller_id = $2 OR (callee_id = $2 AND NOT silent))"
_LIVE = "status IN ('ringing', 'accepted')"

_RING = f"""
WITH superseded AS (
    UPDATE call_sessions SET status = 'ended', ended_at = now(), end_reason = 'superseded'
    WHERE ({_PAIR.format("$2::uuid", "$3::uuid")} AND {_LIVE} AND NOT silent AND (caller_id = $2 OR status = 'accepted')
           OR caller_id = $2 AND callee_id = $3 AND silent AND status = 'ringing')
      AND NOT EXISTS (SELECT 1 FROM call_sessions WHERE id = $1)
    RETURNING {_CALL}
), rung AS (
    -- count(*) makes the insert wait for the update above: the pair's index has room only after it
    INSERT INTO call_sessions (id, caller_id, callee_id, call_type, silent)
    SELECT $1, $2, $3, $4::text::call_type,
           EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = $3 AND blocked_id = $2)
    FROM (SELECT count(*) FROM superseded) AS cleared
    ON CONFLICT DO NOTHING
    RETURNING {_CALL}
), called AS (
    INSERT INTO user_contacts (user_id, contact_id) SELECT caller_id, callee_id FROM rung ON CONFLICT DO NOTHING
)
SELECT rung.*, {sees_presence("$2::uuid")} AS visible, {is_contact("$2::uuid")} AS contact
FROM rung JOIN users ON users.id = rung.callee_id
UNION ALL SELECT superseded.*, false, false FROM superseded
"""


class RingOutcome(NamedTuple):
    """The outcome of an offer: the call that rings now or already existed, ``new`` if it rings now, and the calls that
    the offer ended. For a new call ``visible`` is true if the caller may see the callee's presence, and ``contact`` if
    the caller is a contact of the callee."""

    call: Call
    new: bool
    superseded: list[Call]
    visible: bool = False
    contact: bool = False


async def ring(db: Database, call_id: UUID, caller_id: UUID, callee_id: UUID, call_type: str) -> RingOutcome | None:
    """Start a call between two users. Ends an earlier call from the caller to the callee, and an answered one between
    the two.

    ``new`` is False if another call already rings between them (glare), or if this id was offered before. Returns None
    if there is no such callee.
    """
    for _ in range(5):  # a concurrent offer of the same pair may come between our two statements; rarely twice
        try:
            found = await db.fetch(_RING, call_id, caller_id, callee_id, call_type)
        except asyncpg.ForeignKeyViolationError:
            return None
        rows = [Call(*row[:-2]) for row in found]
        if rows and rows[0].id == call_id:
            return RingOutcome(rows[0], True, rows[1:], found[0]["visible"], found[0]["contact"])
        met = await db.row(
            f"""SELECT {_CALL} FROM call_sessions
                WHERE id = $1 OR ({_PAIR.format("$2::uuid", "$3::uuid")} AND {_LIVE} AND NOT silent)
                ORDER BY id = $1 DESC LIMIT 1""",
            call_id,
            caller_id,
            callee_id,
        )
        if met is not None and (met["id"] == call_id or met["caller_id"] != caller_id):
            return RingOutcome(Call(*met), False, rows)
    raise asyncpg.SerializationError("offers of one pair keep colliding")


class AnswerOutcome(NamedTuple):
    """An answered call. ``new`` is False if the same answer was received before; ``visible`` is true if the callee may
    see the caller's presence."""

    call: Call
    new: bool
    visible: bool


async def answer(db: Database, call_id: UUID, callee_id: UUID, answer_hash: bytes) -> AnswerOutcome | None:
    """ringing → accepted, by the callee, while it rings. Returns None if the call was not answered by this answer."""
    row = await db.row(
        f"""WITH answered AS (
                UPDATE call_sessions
                SET status = 'accepted', accepted_at = now(), last_heartbeat = now(), answer_hash = $3
                WHERE id = $1 AND callee_id = $2 AND status = 'ringing' AND NOT silent
                  AND started_at > now() - interval '{RING_SECONDS} seconds' RETURNING {_CALL}
            ), met AS (
                INSERT INTO user_contacts (user_id, contact_id)
                SELECT callee_id, caller_id FROM answered WHERE caller_id IS NOT NULL ON CONFLICT DO NOTHING
            )
            SELECT calls.*, coalesce({sees_presence("$2")}, false) AS visible
            FROM (
                SELECT *, true AS new FROM answered
                UNION ALL
                SELECT {_CALL}, false FROM call_sessions
                WHERE id = $1 AND callee_id = $2 AND status = 'accepted' AND answer_hash = $3
                LIMIT 1
            ) AS calls LEFT JOIN users ON users.id = caller_id""",
        call_id,
        callee_id,
        answer_hash,
    )
    return None if row is None else AnswerOutcome(Call(*row[:-2]), row["new"], row["visible"])


async def reserve_candidates(db: Database, call_id: UUID) -> int:
    """Reserve some of a live call's candidates for this instance. Returns their number, 0 if all are used up."""
    taken = await db.execute(
        f"""UPDATE call_sessions SET candidates = candidates + {CANDIDATES_RESERVED}
            WHERE id = $1 AND {_LIVE} AND candidates <= {MAX_CANDIDATES - CANDIDATES_RESERVED}""",
        call_id,
    )
    return CANDIDATES_RESERVED * taken


async def hang_up(db: Database, call_id: UUID, user_id: UUID, reason: str) -> Call | None:
    """End a live call of the user. The new status depends on who hangs up, and when (contract section 6)."""
    return await _one_call(
        db,
        f"""UPDATE call_sessions SET ended_at = now(),
                status = (CASE WHEN $3 = 'failed' THEN 'failed' WHEN status = 'accepted' THEN 'ended'
                               WHEN callee_id = $2 THEN 'rejected' ELSE 'missed' END)::call_status,
                end_reason = CASE WHEN $3 = 'failed' THEN 'failed' WHEN status = 'accepted' THEN 'hangup'
                                  WHEN callee_id = $2 THEN CASE WHEN $3 = 'busy' THEN 'busy' ELSE 'declined' END
                                  ELSE 'cancelled' END
            WHERE id = $1 AND {_CONCERNS} AND {_LIVE} RETURNING {_CALL}""",
        call_id,
        user_id,
        reason,
    )


async def record_heartbeat(db: Database, call_id: UUID, user_id: UUID) -> bool:
    """Record that an answered call is still alive. Returns False if the user has no such call."""
    return (
        await db.execute(
            f"UPDATE call_sessions SET last_heartbeat = now() WHERE id = $1 AND {_CONCERNS} AND status = 'accepted'",
            call_id,
            user_id,
        )
        == 1
    )


async def expire(db: Database, call_id: UUID) -> Call | None:
    """ringing → missed, if the call has rung long enough and no other instance was first."""
    return await _one_call(
        db,
        f"""UPDATE call_sessions SET status = 'missed', ended_at = now(), end_reason = 'timeout'
            WHERE id = $1 AND status = 'ringing' AND started_at <= now() - interval '{RING_SECONDS} seconds'
            RETURNING {_CALL}""",
        call_id,
    )


def _sweep_statement(name: str, rows: str, order: str, outcome: str) -> tuple[Due, str]:
    due = Due(name, "id", f"call_sessions WHERE {rows}", order)
    return due, f"UPDATE call_sessions SET ended_at = now(), {outcome} WHERE id IN ({due.batch}) RETURNING {_CALL}"


_SWEEPS = (
    _sweep_statement(
        "calls_ringing",
        f"status = 'ringing' AND started_at <= now() - interval '{RING_SECONDS} seconds'",
        "started_at",
        "status = 'missed', end_reason = 'timeout'",
    ),
    _sweep_statement(
        "calls_silent",
        f"status = 'accepted' AND last_heartbeat <= now() - interval '{HEARTBEAT_HOURS} hours'",
        "last_heartbeat",
        "status = 'ended', end_reason = 'heartbeat_lost'",
    ),
    _sweep_statement(
        "calls_deserted",
        f"{_LIVE} AND (caller_id IS NULL OR callee_id IS NULL)",
        "id",
        "status = 'ended', end_reason = 'connection_lost'",
    ),
)


def sweeps(db: Database, ended: Callable[[Call], None]) -> list[Sweep]:
    """Sweeps that end calls that rang or lacked heartbeats for too long, or of which an account was erased. They run on
    every instance; the one that ends a call passes it to ``ended``."""

    def sweep(due: Due, statement: str) -> Sweep:
        async def work(limit: int) -> int:
            rows = await db.fetch(statement, limit)
            for row in rows:
                ended(Call(*row))
            return len(rows)

        return Sweep(due, work, SWEEP_BATCH)

    return [sweep(due, statement) for due, statement in _SWEEPS]


async def get(db: Database, call_id: UUID) -> Call | None:
    return await _one_call(db, f"SELECT {_CALL} FROM call_sessions WHERE id = $1", call_id)


class PendingFrames(NamedTuple):
    """A call whose frames may wait for a user: if ``offer``, the offer and its candidates, else the answer."""

    call_id: UUID
    offer: bool


async def list_pending(db: Database, user_id: UUID, at_most: int) -> list[PendingFrames]:
    """List the calls whose frames may wait for a user now: the user's own that were just answered; then calls that ring
    for them, from contacts first, the oldest first. Leaves out callers whom the user has blocked meanwhile."""
    rows = await db.fetch(
        f"""SELECT id, false AS offer FROM call_sessions
            WHERE caller_id = $1 AND status = 'accepted' AND accepted_at > now() - interval '{ANSWER_SECONDS} seconds'
              AND created_at > now() - interval '{2 * (RING_SECONDS + ANSWER_SECONDS)} seconds'
            UNION ALL
            (SELECT calls.id, true FROM call_sessions AS calls JOIN users ON users.id = $1
             WHERE callee_id = $1 AND status = 'ringing' AND NOT silent
               AND calls.created_at > now() - interval '{RING_SECONDS} seconds'
               AND NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = $1 AND blocked_id = caller_id OFFSET 0)
             ORDER BY {is_contact("caller_id")} DESC, calls.created_at, calls.id LIMIT $2)""",
        user_id,
        at_most,
    )
    return [PendingFrames(*row) for row in rows]


async def list_ringing(db: Database, callee_id: UUID) -> list[tuple[UUID, datetime]]:
    """List the calls that ring for a user now, each with the end of its ring."""
    over = CallSession.started_at + interval(f"{RING_SECONDS} seconds")
    rows = await db.rows(
        CallSession.select(CallSession.id, over.alias("over")).where(
            CallSession.callee == callee_id,
            CallSession.status == "ringing",
            ~CallSession.silent,
            CallSession.started_at > fn.now() - interval(f"{RING_SECONDS} seconds"),
        )
    )
    return [(row["id"], row["over"]) for row in rows]


async def _one_call(db: Database, sql: str, *args: object) -> Call | None:
    """Run a statement that returns one call, or none."""
    row = await db.row(sql, *args)
    return Call(*row) if row else None


# The columns of a call in the history: those of the seed.
HISTORY_COLUMNS = tuple(
    name for name in CallSession._meta.columns if name not in ("silent", "candidates", "answer_hash")
)

_HISTORY = """
SELECT c.id, c.caller_id, c.callee_id, c.call_type::text, c.status::text, c.started_at, c.accepted_at, c.ended_at,
       c.end_reason, c.last_heartbeat, c.created_at,
       u.id AS peer_id, u.public_id AS peer_public_id, u.display_name AS peer_name, u.avatar_url AS peer_avatar
FROM ({calls}) AS c
LEFT JOIN users u ON u.id = CASE WHEN c.caller_id = $1 THEN c.callee_id ELSE c.caller_id END
ORDER BY c.created_at DESC, c.id DESC LIMIT {limit}
"""


async def history(
    db: Database, user_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None
) -> list[asyncpg.Record]:
    """A user's calls with their peers, newest first. ``before`` is (created_at, id) of the last one seen."""
    earlier = "AND (created_at, id) < ($3, $4)" if before else ""
    page = f"{earlier} ORDER BY created_at DESC, id DESC LIMIT $2"
    calls = (
        f"(SELECT * FROM call_sessions WHERE caller_id = $1 {page})"
        f" UNION ALL (SELECT * FROM call_sessions WHERE callee_id = $1 AND NOT silent {page})"
    )
    return await db.fetch(_HISTORY.format(calls=calls, limit="$2"), user_id, limit, *(before or ()))


async def detail(db: Database, user_id: UUID, call_id: UUID) -> asyncpg.Record | None:
    """One call of the user, as in the history."""
    calls = "SELECT * FROM call_sessions WHERE id = $2 AND (caller_id = $1 OR (callee_id = $1 AND NOT silent))"
    return await db.row(_HISTORY.format(calls=calls, limit="1"), user_id, call_id)
