"""The sender: sends one job to one device through its provider, and applies the provider's verdict."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis

from config.keyring import Keyring
from config.traces import Traces
from models import push
from models.batch import Batch
from models.database import Database, Row, Unavailable
from plugins.push.breaker import Breaker
from plugins.push.payload import Push, data, opaque
from plugins.push.providers.apns import silent
from plugins.push.providers.client import Failed, PrivateAddress
from plugins.push.providers.outcomes import Provider, Verdict, explain
from plugins.push.queue.jobs import HANGUP_LIFE, Job, Poison
from plugins.push.queue.lane import Lane
from plugins.push.queue.queue import Entry, Outcome, Queue
from plugins.push.queue.shares import Shares
from plugins.push.queue.tally import Tally

log = structlog.get_logger(__name__)

PUSH_TIMEOUT = 12.0  # seconds for one push, including a new access token from Google
FIRST_RETRY, MAX_RETRY = 1.0, 600.0  # seconds until a push is tried again; doubles each time, up to ten minutes
WAKE_INTERVAL = 20 * 60  # seconds between two background wakes; Apple allows an app a few per hour
SHARE_RETRY, CALL_SHARE_RETRY = 1.0, 0.3  # seconds until a push is tried again whose user or host has its full share
REPLY_LIFE = 60  # seconds for which a verdict waits for the script that requested it
_RANDOM = random.SystemRandom()  # peers see these delays: Python's own generator would give its state away


class Sender:
    def __init__(
        self,
        db: Database,
        redis: Redis,
        queue: Queue,
        providers: Mapping[str, Provider],
        keyring: Keyring,
        breaker: Breaker,
        tally: Tally,
        traces: Traces,
    ) -> None:
        self._traces = traces
        self._db, self._redis, self._queue, self._providers = db, redis, queue, providers
        self._keyring, self._breaker, self._tally = keyring, breaker, tally
        self._devices: Batch[UUID, Row | None] = Batch(partial(push.devices, db))
        self._failing_users = Breaker()  # users whose hosts fail one after the other
        self._shares: dict[str, Shares] = {}
        self.lanes: list[Lane] = []

    async def send(self, entries: Sequence[Entry]) -> None:
        """Send the one job in ``entries``, and settle its entry."""
        [entry] = entries
        try:
            job = Job.decode(entry.fields.get(b"job"))
            if job.token_id is None:
                raise Poison
        except Poison:
            await next(lane for lane in self.lanes if lane.name == entry.stream).poison(entry)
            return
        try:
            outcome = await self._deliver(entry, job, job.token_id)
        except Unavailable:  # PostgreSQL is away
            outcome = Outcome(entry, later=[(self._queue.now() + 2_000, job)])
        await self._queue.settle(outcome)

    async def _deliver(self, entry: Entry, job: Job, token_id: UUID) -> Outcome:
        if job.expires <= self._queue.now():
            self._tally.dropped("expired")
            return Outcome(entry)
        device = await self._devices.get(token_id)
        if device is None or device["provider"] not in self._providers:
            self._tally.dropped("no_token")
            return Outcome(entry)
        provider = self._providers[device["provider"]]
        place = provider.place(device)
        # A call has no time to wait until another push finds that the provider is back.
        pause = 0.0 if job.urgent else self._breaker.pause(place)
        if pause > 0:
            return self._postpone(entry, job, pause)
        shares = self._lane_shares(entry.stream)
        host = place if provider.named_by_users else None
        if host is not None and not job.urgent and shares.unproven(host):
            pause = self._failing_users.pause(str(job.user_id))
            if pause > 0:
                return self._postpone(entry, job, pause)
        if not shares.free(job.user_id, host):
            self._tally.postponed()
            retry = CALL_SHARE_RETRY if job.urgent else SHARE_RETRY
            return self._postpone(entry, job, retry * _RANDOM.uniform(1.0, 2.0))
        with shares.held(job.user_id, host):
            return await self._send(entry, job, provider, device, place, shares)

    def _lane_shares(self, stream: str) -> Shares:
        """Return the counts of pushes in progress in a lane."""
        shares = self._shares.get(stream)
        if shares is None:
            lane = next(lane for lane in self.lanes if lane.name == stream)
            shares = self._shares[stream] = Shares(lane.most)
        return shares

    async def _send(
        self, entry: Entry, job: Job, provider: Provider, device: Row, place: str, shares: Shares
    ) -> Outcome:
        token_id = device["id"]
        pushed = self._push(job, device)
        silent_wake = silent(device, pushed) and job.kind != "call_hangup" and not job.reply
        if silent_wake:
            wait = await push.wake(self._db, token_id, WAKE_INTERVAL)
            if wait > 0:
                return self._postpone(entry, job, wait)
        began = time.monotonic()
        with self._traces.push(device["provider"], job.kind) as record:
            verdict = await self._call_provider(provider, device, pushed)
            record(verdict.outcome, verdict.status)
        if silent_wake and verdict.outcome != "sent":
            await push.not_woken(self._db, token_id)
        if provider.named_by_users:
            shares.answered(place, time.monotonic() - began, well=not verdict.failing)
            if verdict.failing and not verdict.status:  # the host wasn't reached, or its name does not resolve
                self._failing_users.failed(str(job.user_id), None)
        self._tally.answered(device["provider"], job.kind, verdict.outcome, (self._queue.now() - job.raised) / 1000)
        return await self._apply_verdict(entry, job, device, place, verdict)

    def _push(self, job: Job, device: Row) -> Push:
        # Bound to the device: two devices in one chat must not share a name for it.
        about = f"{device['id']}|{'call' if job.kind.startswith('call') else job.kind}|{job.subject}"
        collapse = opaque(self._keyring.derive("push-collapse", about.encode()))
        return Push(job.kind, data(job.kind, job.subject), job.expires // 1000, collapse)

    async def _call_provider(self, provider: Provider, device: Row, pushed: Push) -> Verdict:
        try:
            async with asyncio.timeout(PUSH_TIMEOUT):
                return await provider.send(device, pushed)
        except Failed as error:
            if isinstance(error.__cause__, PrivateAddress):
                return Verdict("refused", 0, "PrivateAddress")
            return Verdict("later", 0, type(error).__name__, failing=True)

    async def _apply_verdict(self, entry: Entry, job: Job, device: Row, place: str, verdict: Verdict) -> Outcome:
        """Do what the verdict demands: drop the token, retry, or end the entry."""
        if job.reply:
            await self._reply(job, device, verdict)
            return Outcome(entry)
        if verdict.failing:
            self._breaker.failed(place, verdict.after)
        elif verdict.status:
            self._breaker.succeeded(place)
        if verdict.outcome == "later":
            log.info("push_postponed", provider=device["provider"], status=verdict.status, reason=verdict.reason)
            spread = min(FIRST_RETRY * 2.0**job.tries, MAX_RETRY) * _RANDOM.uniform(0.5, 1.5)
            return self._postpone(entry, job.again(), max(spread, verdict.after or 0.0))
        if verdict.outcome == "gone":
            dropped = await push.drop(self._db, device["id"], device["registered_at"], verdict.gone_since)
            log.info("push_token_gone", provider=device["provider"], dropped=dropped)
        elif verdict.outcome == "refused":
            log.warning("push_refused", provider=device["provider"], status=verdict.status, reason=verdict.reason)
        elif job.kind == "call_offer":
            await self._note_ring(job, device)
        return Outcome(entry)

    def _postpone(self, entry: Entry, job: Job, seconds: float) -> Outcome:
        due = self._queue.now() + int(seconds * 1000)
        if due >= job.expires:
            self._tally.dropped("expired")
            return Outcome(entry)
        return Outcome(entry, later=[(due, job)])

    async def _note_ring(self, job: Job, device: Row) -> None:
        """Remember that the device rings, to notify it when the ring ends. PushKit allows only the start of a call, so
        the hangup goes to the app's other token, if it has one."""
        token_id = device["id"]
        if device["provider"] == "apns_voip":
            token_id = await push.sibling(self._db, device["session_id"], "apns")
        if token_id is not None:
            hangup = Job("call_hangup", job.user_id, job.subject, job.raised, job.expires + HANGUP_LIFE, token_id)
            await self._queue.remember_hangup(hangup)

    async def _reply(self, job: Job, device: Row, verdict: Verdict) -> None:
        fields = {
            "provider": device["provider"],
            "outcome": verdict.outcome,
            "status": verdict.status,
            "reason": verdict.reason,
            "explanation": explain(verdict, self._providers[device["provider"]].explained),
            "milliseconds": self._queue.now() - job.raised,
        }
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.rpush(job.reply, orjson.dumps(fields).decode())
        pipeline.expire(job.reply, REPLY_LIFE)
        await pipeline.execute()
