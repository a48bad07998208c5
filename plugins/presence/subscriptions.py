"""PresenceSubscriptions: sockets that follow the presence of certain users (contract section 7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import orjson
import structlog
from pydantic import Field
from typing_extensions import TypedDict

from config.values import Rate
from handlers.limits.rates import Limits
from handlers.metrics import Metrics
from handlers.sockets.bus import Bus
from handlers.sockets.hub import Peer, text_frame
from handlers.tasks import Worker
from handlers.wire.shapes import Id, Moment, Shape, encode
from models import presence
from models.database import Database

log = structlog.get_logger(__name__)

NEWS_CHANNEL = "presence:news"  # every instance subscribes: users who came online or went offline
VISIBILITY_CHANNEL = "presence:views"  # every instance subscribes: users whose visibility has changed
MAX_WATCHED = 200  # users that a socket may subscribe to, contract section 7
BATCH = 500  # pairs of user and viewer in one statement
RETRY_SECONDS = 1.0  # seconds after PostgreSQL did not answer

State = tuple[bool, datetime | None]  # is_online, last_seen
Pair = tuple[UUID, UUID | None]  # a user, and one viewer of theirs; all viewers if it is None
HIDDEN: State = (False, None)  # as profiles show it, too


class Subscribe(Shape):
    """Watch the presence of these users instead of the earlier ones; an empty list ends it.

    For each user who lets you see it a `presence` comes at once, before the ack; and another one whenever they come or
    go, or hide or show it."""

    user_ids: Annotated[list[Id], Field(max_length=MAX_WATCHED)]


class PresenceFrame(TypedDict):
    """Whether a watched user is online. Only sockets that sent `presence_subscribe` get it.

    It is `false` and `null` when the user's settings or a block hide it, which the server checks each time. When one of
    them starts to hide it, the server takes back at once what it has shown, and sends nothing more."""

    type: Literal["presence"]
    user_id: UUID
    is_online: bool
    last_seen: Moment | None


class PresenceSubscriptions:
    """Sends presence frames to subscribed sockets. Checks each time if the viewer may see the user, and remembers what
    it has sent, so that it can send "offline" when a block or a setting hides a user."""

    def __init__(self, db: Database, bus: Bus, limits: Limits, rate: Rate, metrics: Metrics, instance_id: UUID) -> None:
        self._db, self._bus, self._limits, self._rate, self._origin = db, bus, limits, rate, instance_id.hex
        self._metrics = metrics
        self._watchers: dict[UUID, set[Peer]] = {}
        self._watched: dict[Peer, dict[UUID, State]] = {}
        # Sockets whose list is being read, with the users who changed meanwhile.
        self._loading: dict[Peer, set[UUID]] = {}
        self._changed: dict[Pair, None] = {}
        self._worker = Worker("presence_watching", self._send_changes)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send changes until the block ends."""
        self._bus.on_return.append(self._refresh_all)
        async with self._worker.running():
            try:
                yield
            finally:
                self._bus.on_return.remove(self._refresh_all)

    async def subscribe(self, peer: Peer, request: Subscribe) -> None:
        """Subscribe a socket to these users instead of the earlier ones, and send their presence. Raises
        RateLimited."""
        await self._limits.spend("presence", str(peer.session.user_id), self._rate)
        self._forget(peer)
        users = frozenset(request.user_ids)
        shown = self._watched[peer] = dict.fromkeys(users, HIDDEN)
        for user_id in users:
            self._watchers.setdefault(user_id, set()).add(peer)
        viewer = peer.session.user_id
        changed = self._loading[peer] = set()
        try:
            rows = await presence.list_visible(self._db, [(user_id, viewer) for user_id in users])
        finally:
            del self._loading[peer]
        for row in rows:
            shown[row["user_id"]] = row["is_online"], row["last_seen"]
            peer.send(_frame(row["user_id"], shown[row["user_id"]]))
        self._mark_changed((user_id, viewer) for user_id in changed)  # what was read may be older than the change

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

    # Changes ----------------------------------------------------------------------------------------------------------

    def announce(self, users: Sequence[UUID]) -> None:
        """Send the presence of users who came online or went offline to subscribers on all instances."""
        if users:
            self._mark_changed((user_id, None) for user_id in users)
            self._bus.publish(NEWS_CHANNEL, orjson.dumps([self._origin, *map(str, users)]))

    def refresh(self, user_id: UUID, viewer: UUID | None) -> None:
        """Send a user's presence again, on all instances, as far as a viewer may see it; to all viewers if None."""
        self._mark_changed([(user_id, viewer)])
        self._bus.publish(
            VISIBILITY_CHANNEL, orjson.dumps([self._origin, str(user_id), str(viewer) if viewer else None])
        )

    def receive(self, _: str, message: bytes) -> None:
        """Receive users who came online or went offline from another instance."""
        origin, *users = orjson.loads(message)
        if origin != self._origin:
            self._mark_changed((UUID(user_id), None) for user_id in users)

    def receive_views(self, _: str, message: bytes) -> None:
        """Receive a user and a viewer whose visibility has changed from another instance."""
        origin, user_id, viewer = orjson.loads(message)
        if origin != self._origin:
            self._mark_changed([(UUID(user_id), UUID(viewer) if viewer else None)])

    def _refresh_all(self) -> None:
        """Check all users, because Redis was away and its messages are lost."""
        self._mark_changed((user_id, None) for user_id in list(self._watchers))

    def _mark_changed(self, pairs: Iterable[Pair]) -> None:
        for user_id, viewer in pairs:
            watchers = self._watchers.get(user_id)
            if watchers is None:
                continue
            self._changed[user_id, viewer] = None
            for peer in self._loading.keys() & watchers if self._loading else ():
                self._loading[peer].add(user_id)
            self._worker.wake()

    async def _send_changes(self) -> None:
        changed, self._changed = self._changed, {}
        pairs = {
            (user_id, peer.session.user_id): None
            for user_id, viewer in changed
            for peer in self._watchers.get(user_id, ())
            if viewer in (None, peer.session.user_id) and not peer.closing
        }
        queue = list(pairs)
        for start in range(0, len(queue), BATCH):
            batch = queue[start : start + BATCH]
            try:
                rows = await presence.list_visible(self._db, batch)
            except Exception as error:  # any error: a presence that must be hidden would stay
                log.warning("presence_not_shown", pairs=len(queue) - start, cause=type(error).__name__)
                self._changed = {**dict.fromkeys(queue[start:]), **self._changed}
                self._worker.wake()
                await asyncio.sleep(RETRY_SECONDS)
                break
            visible = {(row["user_id"], row["viewer"]): (row["is_online"], row["last_seen"]) for row in rows}
            for user_id, viewer in batch:
                self._show(user_id, viewer, visible.get((user_id, viewer), HIDDEN))

    def _show(self, user_id: UUID, viewer: UUID, state: State) -> None:
        """Send a state to the viewer's sockets. A frame that hides a user is never dropped because a client is slow."""
        frame = None
        for peer in self._watchers.get(user_id, ()):
            if peer.session.user_id != viewer or peer.closing or self._watched[peer].get(user_id) == state:
                continue
            frame = frame or text_frame(encode(_frame(user_id, state)))
            if peer.write(frame, droppable=state != HIDDEN):
                self._watched[peer][user_id] = state
                self._metrics.count_sent("presence", 1)


def _frame(user_id: UUID, state: State) -> PresenceFrame:
    is_online, last_seen = state
    return {"type": "presence", "user_id": user_id, "is_online": is_online, "last_seen": last_seen}
