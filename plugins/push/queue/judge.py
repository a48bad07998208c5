"""The judge: decides if an event is pushed, and to which of the user's devices.

When a job is due its event may be obsolete: a message read or deleted, a call ended, prekeys replenished. So the judge
checks each job against PostgreSQL now, also one that was delayed, collapsed or tried before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from handlers.sockets.hub import Hub
from models import prekeys, push
from models.database import Database, Row, Unavailable
from plugins.push.preferences import quiet_until
from plugins.push.queue.jobs import Job, Poison
from plugins.push.queue.lane import Lane
from plugins.push.queue.queue import Decision, Entry, Outcome, Queue, stream
from plugins.push.queue.tally import Tally

RETRY = 2_000  # ms after which a job is judged again when PostgreSQL was away
CALL_RETRY = 500  # the same for a call, which rings for a minute at most
SLACK = 60_000  # ms before a user was last online in which a message may have arrived without being seen


class _Facts(NamedTuple):
    """The facts by which a batch of jobs is judged."""

    absent: Collection[UUID]
    seen: dict[UUID, int]
    upto: dict[tuple[UUID, UUID], int]
    over: Collection[UUID]
    ringing: Collection[UUID]
    low: Collection[UUID]
    opened: dict[UUID, int]


class Judge:
    """``available`` are the providers that this server sends through."""

    def __init__(self, db: Database, hub: Hub, queue: Queue, available: Collection[str], tally: Tally) -> None:
        self._db, self._hub, self._queue, self._available, self._tally = db, hub, queue, available, tally
        self.lanes: list[Lane] = []

    async def judge(self, entries: Sequence[Entry]) -> None:
        """Pass each job on to the lanes of the providers, postpone it, or drop it."""
        jobs: list[tuple[Entry, Job]] = []
        for entry in entries:
            try:
                jobs.append((entry, Job.decode(entry.fields.get(b"job"))))
            except Poison:
                await next(lane for lane in self.lanes if lane.name == entry.stream).poison(entry)
        try:
            outcomes = await self._decide_all(jobs)
        except Unavailable:
            now = self._queue.now()
            due = [now + (CALL_RETRY if job.urgent else RETRY) for _, job in jobs]
            outcomes = [Outcome(entry, later=[(when, job)]) for (entry, job), when in zip(jobs, due, strict=True)]
        await asyncio.gather(*map(self._queue.settle, outcomes))

    async def _decide_all(self, jobs: Sequence[tuple[Entry, Job]]) -> list[Outcome]:
        of_chats = [(job.user_id, job.subject if job.kind == "message_new" else None) for _, job in jobs]
        wanted = await push.wanted(self._db, of_chats)
        facts = await self._look_up([job for _, job in jobs], wanted)
        return [self._decide(entry, job, rows, facts) for (entry, job), rows in zip(jobs, wanted, strict=True)]

    async def _look_up(self, jobs: Sequence[Job], wanted: Sequence[Sequence[Row]]) -> _Facts:
        users = list({job.user_id for job in jobs})
        calls = list({job.subject for job in jobs if job.kind == "call_offer" and job.subject})
        hangups = [
            row["session_id"]
            for job, rows in zip(jobs, wanted, strict=True)
            for row in rows
            if job.kind == "call_hangup" and row["id"] == job.token_id
        ]
        seen = dict(zip(users, await self._queue.seen_at(users), strict=True))
        chats = list({(job.user_id, job.subject) for job in jobs if job.kind == "message_new" and job.subject})
        upto = dict(zip(chats, await self._queue.decided_upto(chats), strict=True)) if chats else {}
        over = await self._queue.over(calls) if calls else ()
        rings = [(job.user_id, job.subject) for job in jobs if job.kind == "call_offer" and job.subject]
        ringing = await push.ringing(self._db, rings) if rings else ()
        owners = list({job.user_id for job in jobs if job.kind == "prekeys_low"})
        low = await push.low_on_prekeys(self._db, owners, prekeys.LOW) if owners else ()
        opened = dict(zip(hangups, await self._queue.opened_at(hangups), strict=True)) if hangups else {}
        return _Facts(set(await self._hub.absent(users)), seen, upto, over, ringing, low, opened)

    def _decide(self, entry: Entry, job: Job, rows: Sequence[Row], facts: _Facts) -> Outcome:
        reason = self._drop_reason(job, rows, facts)
        if reason:
            self._tally.dropped(reason)
            return Outcome(entry, decided=self._decisions(job, rows, False) if reason in ("muted", "unwanted") else ())
        hours: dict[str, Any] | None = rows[0]["quiet_hours"]
        over = quiet_until(hours, datetime.now(UTC)) if hours and not job.urgent else None
        if over is not None:  # later events of the same chat replace it until then
            return Outcome(entry, later=[(self._queue.at(over), job)])
        devices = [row for row in rows if self._is_for(job, row, rows)]
        puts = [(stream(row["provider"], now=job.urgent), job.to(row["id"])) for row in devices]
        return Outcome(entry, puts=puts, decided=self._decisions(job, rows, True) if puts else ())

    @staticmethod
    def _decisions(job: Job, rows: Sequence[Row], pushed: bool) -> Sequence[Decision]:
        if job.kind != "message_new" or job.subject is None or rows[0]["unread_seq"] is None:
            return ()
        first = job.token_id is None  # a job for one device is a retry: its push was counted before
        return [Decision(job.user_id, job.subject, rows[0]["unread_seq"], pushed and first)]

    def _drop_reason(self, job: Job, rows: Sequence[Row], facts: _Facts) -> str:
        """Return why a job is not pushed; empty if it is pushed."""
        if job.expires <= self._queue.now():
            return "expired"
        if not rows or (job.token_id is not None and all(row["id"] != job.token_id for row in rows)):
            return "no_token"
        if job.reply:
            return ""
        if job.kind == "call_hangup":
            # A device whose socket opened in the meantime receives it there.
            session = next(row["session_id"] for row in rows if row["id"] == job.token_id)
            return "seen" if facts.opened.get(session, 0) >= job.raised else ""
        if job.user_id not in facts.absent:
            return "online"
        if facts.seen.get(job.user_id, 0) >= job.raised:
            return "seen"
        if job.kind == "call_offer" and (job.subject in facts.over or job.subject not in facts.ringing):
            return "over"
        if job.kind == "message_new" and not self._unread(job, rows[0], facts):
            return "read"
        if job.kind == "prekeys_low" and job.user_id not in facts.low:
            return "topped_up"
        if rows[0]["kinds"] is not None and job.kind not in rows[0]["kinds"]:
            return "unwanted"
        hours: dict[str, Any] | None = rows[0]["quiet_hours"]
        if job.urgent and hours and not hours.get("calls", True) and quiet_until(hours, datetime.now(UTC)):
            return "unwanted"
        return "muted" if rows[0]["muted"] else ""

    def _unread(self, job: Job, row: Row, facts: _Facts) -> bool:
        """True if there is an unread message that was not judged yet. A job for one device was judged before, and is
        tried again."""
        if row["unread_seq"] is None or job.subject is None:
            return False
        if job.token_id is not None:
            return True
        upto = facts.upto.get((job.user_id, job.subject), 0)
        if upto:
            return bool(row["unread_seq"] > upto)
        return self._queue.at(row["unread_at"]) > facts.seen.get(job.user_id, 0) - SLACK

    def _is_for(self, job: Job, row: Row, rows: Sequence[Row]) -> bool:
        """True if a job is for this device."""
        if row["provider"] not in self._available or job.token_id not in (None, row["id"]):
            return False
        if job.reply:
            return True
        if job.kind == "call_offer":
            # An iPhone rings through PushKit; only one without a PushKit token receives an alert instead.
            sessions = [other["session_id"] for other in rows if other["provider"] == "apns_voip"]
            return bool(row["provider"] != "apns" or row["session_id"] not in sessions)
        return bool(row["provider"] != "apns_voip")  # PushKit blocks apps that receive pushes without a call
