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

GATHER = 0.05  # seconds in which comings and goings are gathered into one statement
SWEPT_WITHIN = presence.STALE_SECONDS + 20.0  # seconds since the death of an instance when it is swept, at the most
SWEEPING = 10.0  # seconds of a run; the next one goes on
BATCH = 500  # users a statement


class Presence:
    """Writes a user's first and last socket on this instance down, in batches and in order. ``tell`` is called with
    those for whom that made a difference."""

    def __init__(
        self,
        db: Database,
        hub: Hub,
        alerts: Alerts,
        tell: Callable[[Sequence[UUID]], None],
        sweeps: Watch = UNWATCHED,
    ) -> None:
        self._db, self._hub, self._alerts, self._id, self._tell = db, hub, alerts, hub.instance_id, tell
        self._sweeper = presence.sweeper(db, sweeps, self._swept)
        self._changed: dict[UUID, bool] = {}
        self._writer = Worker("presence", self._write, gather=GATHER)

    def watch(self, user_id: UUID, online: bool) -> None:
        """Note a change; only the last one before the next write counts."""
        self._changed[user_id] = online
        self._writer.wake()

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._hub.watchers.append(self.watch)
        await presence.beat(self._db, self._id)
        try:
            async with self._writer.running():
                yield
        finally:
            try:
                self._tell(await presence.end(self._db, self._id))
            except Unavailable:
                log.warning("presence_left_to_others")  # their sweep ends it within a minute

    async def _write(self) -> None:
        changed, self._changed = self._changed, {}
        for online, record in ((True, presence.arrive), (False, presence.leave)):
            users = [user for user, now in changed.items() if now is online]
            for start in range(0, len(users), BATCH):
                batch = users[start : start + BATCH]
                try:
                    self._tell(await record(self._db, self._id, batch))
                except Exception as error:
                    # PostgreSQL is away, or another instance took us for dead and removed our row; the next beat
                    # brings it back. What happened since counts more than what is put back.
                    log.warning("presence_delayed", cause=type(error).__name__)
                    self._changed = {**dict.fromkeys(batch, online), **self._changed}
                    self._writer.wake()
                    await asyncio.sleep(1)

    async def beat(self) -> None:
        """Say that this instance lives, and sweep those that don't."""
        if await presence.beat(self._db, self._id):
            # Somebody took us for dead and swept our users away: they are all here still.
            for user_id in self._hub.users():
                self.watch(user_id, True)
        await self._sweeper.run(SWEEPING)

    def _swept(self, offline: Sequence[UUID]) -> None:
        """Users of an instance that died, who are offline now."""
        log.info("dead_instances_swept", users=len(offline))
        self._tell(offline)
        for user_id in offline:
            self._alerts.lost(user_id, SWEPT_WITHIN)
