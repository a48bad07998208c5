"""The sender: sends one job to one device by its provider, and does what the answer demands."""

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
from plugins.push.providers.outcomes import Provider, Verdict
from plugins.push.queue.jobs import AFTERWARDS, Job, Poison
from plugins.push.queue.lane import Lane
from plugins.push.queue.queue import Entry, Queue, Settled
from plugins.push.queue.shares import Shares
from plugins.push.queue.tally import Tally

log = structlog.get_logger(__name__)

PUSH_TIMEOUT = 12.0  # seconds for one push with all that it takes, a new access token of Google's too
FIRST, LONGEST = 1.0, 600.0  # seconds until a push is tried again; twice as many each time, up to ten minutes
WOKEN_EVERY = 20 * 60  # seconds between two wakings in the background, of which Apple lets an app have a few an hour
SHARE, SHARE_OF_CALL = 1.0, 0.3  # seconds until a push is tried again whose user, or host, has its share on the way
ANSWERS = 60  # seconds for which a verdict waits for the script that asked
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
        self._failing_users = Breaker()  # those whose hosts fail one after the other
        self._shares: dict[str, Shares] = {}
        self.lanes: list[Lane] = []

    async def send(self, entries: Sequence[Entry]) -> None:
        """Send one job."""
        [entry] = entries
        try:
            job = Job.decode(entry.fields.get(b"job"))
            if job.token_id is None:
                raise Poison
        except Poison:
            await next(lane for lane in self.lanes if lane.name == entry.stream).poison(entry)
            return
        try:
            settled = await self._sent(entry, job, job.token_id)
        except Unavailable:  # PostgreSQL is away
            settled = Settled(entry, later=[(self._queue.now() + 2_000, job)])
        await self._queue.settle(settled)

    async def _sent(self, entry: Entry, job: Job, token_id: UUID) -> Settled:
        if job.expires <= self._queue.now():
            self._tally.dropped("expired")
            return Settled(entry)
        device = await self._devices.get(token_id)
        if device is None or device["provider"] not in self._providers:
            self._tally.dropped("no_token")
            return Settled(entry)
        provider = self._providers[device["provider"]]
        place = provider.place(device)
        # A call has no time to wait for others to find out that the provider is back.
        closed = 0.0 if job.urgent else self._breaker.closed(place)
        if closed > 0:
            return self._postponed(entry, job, closed)
        shares = self._shares_of(entry.stream)
        host = place if provider.named_by_users else None
        if host is not None and not job.urgent and shares.strange(host):
            closed = self._failing_users.closed(str(job.user_id))
            if closed > 0:
                return self._postponed(entry, job, closed)
        if not shares.free(job.user_id, host):
            self._tally.postponed()
            again = SHARE_OF_CALL if job.urgent else SHARE
            return self._postponed(entry, job, again * _RANDOM.uniform(1.0, 2.0))
        with shares.held(job.user_id, host):
            return await self._send(entry, job, provider, device, place, shares)

    def _shares_of(self, stream: str) -> Shares:
        """What is on its way in a lane."""
        shares = self._shares.get(stream)
        if shares is None:
            lane = next(lane for lane in self.lanes if lane.name == stream)
            shares = self._shares[stream] = Shares(lane.most)
        return shares

    async def _send(
        self, entry: Entry, job: Job, provider: Provider, device: Row, place: str, shares: Shares
    ) -> Settled:
        token_id = device["id"]
        pushed = self._push(job, device)
        woken = silent(device, pushed) and job.kind != "call_hangup" and not job.reply
        if woken:
            waits = await push.wake(self._db, token_id, WOKEN_EVERY)
            if waits > 0:
                return self._postponed(entry, job, waits)
        began = time.monotonic()
        with self._traces.push(device["provider"], job.kind) as told:
            verdict = await self._asked(provider, device, pushed)
            told(verdict.outcome, verdict.status)
        if woken and verdict.outcome != "sent":
            await push.not_woken(self._db, token_id)
        if provider.named_by_users:
            shares.answered(place, time.monotonic() - began, well=not verdict.failing)
            if verdict.failing and not verdict.status:  # it wasn't reached, or its name leads nowhere
                self._failing_users.failed(str(job.user_id), None)
        self._tally.answered(device["provider"], job.kind, verdict.outcome, (self._queue.now() - job.raised) / 1000)
        return await self._followed(entry, job, device, place, verdict)

    def _push(self, job: Job, device: Row) -> Push:
        # Bound to the device: two that are in one chat must not have one name for it in common.
        about = f"{device['id']}|{'call' if job.kind.startswith('call') else job.kind}|{job.subject}"
        collapse = opaque(self._keyring.derive("push-collapse", about.encode()))
        return Push(job.kind, data(job.kind, job.subject), job.expires // 1000, collapse)

    async def _asked(self, provider: Provider, device: Row, pushed: Push) -> Verdict:
        try:
            async with asyncio.timeout(PUSH_TIMEOUT):
                return await provider.send(device, pushed)
        except Failed as error:
            if isinstance(error.__cause__, PrivateAddress):
                return Verdict("refused", 0, "PrivateAddress")
            return Verdict("later", 0, type(error).__name__, failing=True)

    async def _followed(self, entry: Entry, job: Job, device: Row, place: str, verdict: Verdict) -> Settled:
        """What an answer demands."""
        if job.reply:
            await self._tell(job, device, verdict)
            return Settled(entry)
        if verdict.failing:
            self._breaker.failed(place, verdict.after)
        elif verdict.status:
            self._breaker.worked(place)
        if verdict.outcome == "later":
            log.info("push_postponed", provider=device["provider"], status=verdict.status, reason=verdict.reason)
            spread = min(FIRST * 2.0**job.tries, LONGEST) * _RANDOM.uniform(0.5, 1.5)
            return self._postponed(entry, job.again(), max(spread, verdict.after or 0.0))
        if verdict.outcome == "gone":
            dropped = await push.drop(self._db, device["id"], device["registered_at"], verdict.gone_since)
            log.info("push_token_gone", provider=device["provider"], dropped=dropped)
        elif verdict.outcome == "refused":
            log.warning("push_refused", provider=device["provider"], status=verdict.status, reason=verdict.reason)
        elif job.kind == "call_offer":
            await self._rang(job, device)
        return Settled(entry)

    def _postponed(self, entry: Entry, job: Job, seconds: float) -> Settled:
        due = self._queue.now() + int(seconds * 1000)
        if due >= job.expires:
            self._tally.dropped("expired")
            return Settled(entry)
        return Settled(entry, later=[(due, job)])

    async def _rang(self, job: Job, device: Row) -> None:
        """The device rings now, and must hear when that is over. PushKit may be used to begin a call only: there the
        app's other token is used, if it has one."""
        token_id = device["id"]
        if device["provider"] == "apns_voip":
            token_id = await push.sibling(self._db, device["session_id"], "apns")
        if token_id is not None:
            hangup = Job("call_hangup", job.user_id, job.subject, job.raised, job.expires + AFTERWARDS, token_id)
            await self._queue.rang(hangup)

    async def _tell(self, job: Job, device: Row, verdict: Verdict) -> None:
        told = {
            "provider": device["provider"],
            "outcome": verdict.outcome,
            "status": verdict.status,
            "reason": verdict.reason,
            "milliseconds": self._queue.now() - job.raised,
        }
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.rpush(job.reply, orjson.dumps(told).decode())
        pipeline.expire(job.reply, ANSWERS)
        await pipeline.execute()
