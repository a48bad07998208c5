"""Watching: sockets that asked to be told when certain users come and go (contract section 7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated
from uuid import UUID

import orjson
import structlog
from pydantic import Field

from config.settings import Rate
from handlers.bus import Bus
from handlers.hub import Peer, text_frame
from handlers.limits import Limits
from handlers.metrics import Metrics
from handlers.shapes import Id, Shape, encode
from handlers.socket import Answer
from models import profiles
from models.database import Database, Row, Unavailable

log = structlog.get_logger(__name__)

CHANNEL = "presence:news"  # heard by every instance
MOST = 200  # users that a socket may watch, contract section 7
BATCH = 500  # pairs of user and viewer asked for in one statement


class Subscribe(Shape):
    user_ids: Annotated[list[Id], Field(max_length=MOST)]


class Watching:
    """Tells sockets of the comings and goings of users who let them see it. Whether they do is asked each time, for a
    block or a setting may have changed."""

    def __init__(self, db: Database, bus: Bus, limits: Limits, rate: Rate, metrics: Metrics, instance_id: UUID) -> None:
        self._db, self._bus, self._limits, self._rate, self._origin = db, bus, limits, rate, instance_id.hex
        self._metrics = metrics
        self._watchers: dict[UUID, set[Peer]] = {}
        self._watched: dict[Peer, frozenset[UUID]] = {}
        self._changed: dict[UUID, None] = {}
        self._wake = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell until the block ends."""
        teller = asyncio.create_task(self._work())
        try:
            yield
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)

    async def subscribe(self, peer: Peer, request: Subscribe) -> Answer:
        """Watch these users instead of those before; how they are is told at once. Raises RateLimited."""
        await self._limits.spend("presence", str(peer.session.user_id), self._rate)
        self._forget(peer)
        users = frozenset(request.user_ids)
        self._watched[peer] = users
        for user_id in users:
            self._watchers.setdefault(user_id, set()).add(peer)
        viewer = peer.session.user_id
        for row in await profiles.presence(self._db, [(user_id, viewer) for user_id in users]):
            peer.send(_frame(row))
        return None

    def _forget(self, peer: Peer) -> None:
        for user_id in self._watched.pop(peer, ()):
            watchers = self._watchers[user_id]
            watchers.discard(peer)
            if not watchers:
                del self._watchers[user_id]

    async def forget_closed(self) -> None:
        """Forget the sockets that have closed."""
        for peer in [peer for peer in self._watched if peer.closing]:
            self._forget(peer)

    # News -------------------------------------------------------------------------------------------------------------

    def tell(self, users: Sequence[UUID]) -> None:
        """These users have come or gone: who watches them is told, on all instances."""
        if users:
            self._note(users)
            self._bus.publish(CHANNEL, orjson.dumps([self._origin, *map(str, users)]))

    def hear(self, _: str, message: bytes) -> None:
        """What another instance tells."""
        origin, *users = orjson.loads(message)
        if origin != self._origin:
            self._note(map(UUID, users))

    def _note(self, users: Iterable[UUID]) -> None:
        watched = [user_id for user_id in users if user_id in self._watchers]
        if watched:
            self._changed.update(dict.fromkeys(watched))
            self._wake.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            pairs = {
                (user_id, peer.session.user_id): None
                for user_id in changed
                for peer in self._watchers.get(user_id, ())
                if not peer.closing
            }
            asked = list(pairs)
            for start in range(0, len(asked), BATCH):
                try:
                    for row in await profiles.presence(self._db, asked[start : start + BATCH]):
                        self._send(row)
                except Unavailable:
                    log.warning("presence_not_told", pairs=len(asked) - start)
                    break

    def _send(self, row: Row) -> None:
        for peer in self._watchers.get(row["user_id"], ()):
            if peer.session.user_id == row["viewer"] and not peer.closing:
                taken = peer.write(text_frame(encode(_frame(row))), droppable=True)
                self._metrics.sent("presence", int(taken))


def _frame(row: Row) -> dict[str, object]:
    return {
        "type": "presence",
        "user_id": row["user_id"],
        "is_online": row["is_online"],
        "last_seen": row["last_seen"],
    }
