"""Presence: keeps ``is_online`` and ``last_seen`` true for the sockets of all instances (contract section 3)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from uuid import UUID

import structlog

from handlers.alerts import Alerts
from handlers.sockets.hub import Hub
from handlers.tasks import Worker
from models import presence
from models.database import Database, Unavailable
from models.sweeps import UNWATCHED, Watch

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.05  # seconds of changes that one statement writes
SWEPT_WITHIN = presence.STALE_SECONDS + 20.0  # seconds after its death in which an instance is swept
SWEEP_SECONDS = 10.0  # of a run; the next one continues
BATCH = 500  # users in one statement


class Presence:
    """Records the first and last socket of users on this instance, in batches and in order. Passes the users who came
    online or went offline to ``announce``."""

    def __init__(
        self,
        db: Database,
        hub: Hub,
        alerts: Alerts,
        announce: Callable[[Sequence[UUID]], None],
        sweeps: Watch = UNWATCHED,
    ) -> None:
        self._db, self._hub, self._alerts, self._id, self._announce = db, hub, alerts, hub.instance_id, announce
        self._sweeper = presence.sweeper(db, sweeps, self._swept)
        self._changed: dict[UUID, bool] = {}
        self._writer = Worker("presence", self._write, gather=GATHER_SECONDS)

    def watch(self, user_id: UUID, online: bool) -> None:
        """Queue a change. A later one replaces it if it is not written yet."""
        self._changed[user_id] = online
        self._writer.wake()

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._hub.watchers.append(self.watch)
        await presence.record_heartbeat(self._db, self._id)
        try:
            async with self._writer.running():
                yield
        finally:
            try:
                self._announce(await presence.stop(self._db, self._id))
            except Unavailable:
                log.warning("presence_left_to_others")  # their sweep ends it within a minute

    async def _write(self) -> None:
        changed, self._changed = self._changed, {}
        for online, record in ((True, presence.arrive), (False, presence.leave)):
            users = [user for user, now in changed.items() if now is online]
            for start in range(0, len(users), BATCH):
                batch = users[start : start + BATCH]
                try:
                    self._announce(await record(self._db, self._id, batch))
                except Exception as error:
                    # PostgreSQL is away, or another instance took us for dead and removed our row; the next beat
                    # brings it back. What happened since counts more than what is put back.
                    log.warning("presence_delayed", cause=type(error).__name__)
                    self._changed = {**dict.fromkeys(batch, online), **self._changed}
                    self._writer.wake()
                    await asyncio.sleep(1)

    async def beat(self) -> None:
        """Record that this instance lives, and sweep dead ones."""
        if await presence.record_heartbeat(self._db, self._id):
            # Another instance considered us dead and removed our users: they are still here.
            for user_id in self._hub.users():
                self.watch(user_id, True)
        await self._sweeper.run(SWEEP_SECONDS)

    def _swept(self, offline: Sequence[UUID]) -> None:
        """Announce users of a dead instance who are now offline."""
        log.info("dead_instances_swept", users=len(offline))
        self._announce(offline)
        for user_id in offline:
            self._alerts.lost(user_id, SWEPT_WITHIN)
