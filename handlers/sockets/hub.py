"""The hub: the open sockets of this instance, and how a frame reaches a user's sockets on any instance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol
from uuid import UUID

import structlog

from handlers.metrics import Metrics
from handlers.sockets.bus import Bus
from handlers.tokens import Session
from handlers.wire.frames import Frame
from handlers.wire.shapes import decode, encode

log = structlog.get_logger(__name__)

ENDS = "-"  # prefix of a key: the last frame with that key
USER_CHANNEL = "ws:user:"  # the prefix of a user's channel, before their id (seed)
SOCKETS_PER_USER = 10  # contract section 5
PING_EVERY = 25  # seconds; also the number of slots of the wheel
PONG_WITHIN = 20  # seconds
FORGET_AFTER = 60  # seconds; an instance that missed three announcements counts as stopped
INTRODUCTION_TIMEOUT = 1.0  # seconds that a new socket may wait for the other instances

GOING_AWAY, SESSION_ENDED, SLOW, REPLACED, FLOOD, RESTART = 1001, 4401, 4408, 4409, 4429, 1012


class Peer(Protocol):
    """One open socket, as the hub and the features see it."""

    peer_id: str
    session: Session
    opened: float  # seconds since 1970
    answered: float
    closing: bool

    def send(self, frame: Frame, key: str = "") -> None: ...
    def write(self, frame: bytes, droppable: bool, key: str = "") -> bool: ...
    def has_sent(self, key: str) -> bool: ...
    async def wait_until_drained(self) -> bool: ...
    def prolong(self, session: Session) -> None: ...
    def ping(self) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


Presence = Callable[[UUID, bool], None]
SocketAge = tuple[float, str]  # opening time and peer_id: the order in which a user's sockets are closed


class _RemoteSockets(NamedTuple):
    """A user's sockets on another instance, as it last announced."""

    received: float  # monotonic
    sockets: list[SocketAge]


def last_of(key: str) -> str:
    """Return the key of a frame after which no frame with ``key`` may be sent."""
    return ENDS + key


def text_frame(payload: bytes) -> bytes:
    """Return a whole unmasked text frame (RFC 6455 section 5.2), built once for all recipients."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def type_of(payload: bytes) -> str:
    """Return the type of an encoded frame; all our frames begin with it."""
    return payload[9 : payload.index(b'"', 9)].decode() if payload.startswith(b'{"type":"') else "other"


class Hub:
    """Sends frames to users. Writes to local sockets directly; other instances receive frames on ``ws:user:{id}``.

    On that channel a message is ``{origin} {kind} {peer to skip} {key}\\n{frame}``. Besides frames (``send``, ``drop``
    for droppable ones) instances announce which users they share, so that nothing is published for a user who is only
    here: ``here`` requests an answer, ``too`` is an answer or an update. Both contain the user's sockets on the sender,
    so that every instance can find the oldest of all. ``gone`` means that the sender has no more sockets of the user.
    """

    def __init__(self, bus: Bus, metrics: Metrics, instance_id: UUID) -> None:
        self.instance_id = instance_id
        self._origin = instance_id.hex
        self._bus = bus
        self.metrics = metrics
        self._peers: dict[UUID, list[Peer]] = {}
        self._elsewhere: dict[UUID, dict[str, _RemoteSockets]] = {}
        self._introductions: dict[UUID, asyncio.Task[None]] = {}
        self._news: dict[UUID, asyncio.Event] = {}
        self._wheel: list[set[Peer]] = [set() for _ in range(PING_EVERY)]
        self._turn = 0
        self._stopping = False
        self._closing: set[asyncio.Task[None]] = set()
        self.watchers: list[Presence] = []  # called for a user's first and last socket here
        self.silence_watchers: list[
            Callable[[UUID, float], None]
        ] = []  # called with a user whose socket is silent, and the seconds
        bus.on_return.append(self._announce_all)

    def __len__(self) -> int:
        return sum(map(len, self._peers.values()))

    def is_here(self, user_id: UUID) -> bool:
        """True if the user has a socket on this instance."""
        return user_id in self._peers

    def users(self) -> Iterable[UUID]:
        return self._peers.keys()

    def elsewhere(self, users: Iterable[UUID]) -> list[UUID]:
        """Return the users who may have sockets on other instances: all except those who are only here."""
        return [user_id for user_id in users if user_id not in self._peers or user_id in self._elsewhere]

    async def absent(self, users: Iterable[UUID]) -> list[UUID]:
        """Return the users who have no socket on any instance: an instance subscribes to the channels of its own users
        only, and a dead instance to none. Raises RedisError, OSError or TimeoutError if Redis is down."""
        others = [user_id for user_id in users if user_id not in self._peers]
        counts = await self._bus.count_subscribers([self._channel(user_id) for user_id in others])
        return [user_id for user_id, count in zip(others, counts, strict=True) if count == 0]

    # Sockets that open and close ----------------------------------------------------------------------------------

    async def register(self, peer: Peer) -> None:
        """Register a socket. When this returns, every frame to its user reaches it."""
        user_id = peer.session.user_id
        self.metrics.sockets.inc()
        self._wheel[self._turn - 1].add(peer)
        first = user_id not in self._peers
        if first:
            self._peers[user_id] = [peer]
            self._introductions[user_id] = asyncio.get_running_loop().create_task(self._introduce(user_id))
            for watch in self.watchers:
                watch(user_id, True)
        else:
            self._peers[user_id].append(peer)
            self._close_oldest(user_id)
        if user_id in self._introductions:
            await asyncio.wait([self._introductions[user_id]])
        if not first and user_id in self._elsewhere:
            self._announce(user_id, "too")
        if self._stopping:
            peer.close(RESTART, "server restarting")

    async def _introduce(self, user_id: UUID) -> None:
        """Subscribe to the user's channel, and wait until every other instance with this user has answered: until then
        it may not publish its frames."""
        channel = self._channel(user_id)
        news = self._news[user_id] = asyncio.Event()
        try:
            async with asyncio.timeout(INTRODUCTION_TIMEOUT):
                await self._bus.subscribe(channel, self._receive)
                here = self._envelope("here", payload=self._own_sockets(user_id))
                others = await self._bus.publish_counted(channel, here) - 1
                while len(self._elsewhere.get(user_id, ())) < others:
                    news.clear()
                    await news.wait()
        except TimeoutError:
            log.warning("introduction_unanswered")  # Redis or an instance is down; the next announcement repairs it
        finally:
            if self._news.get(user_id) is news:  # else the user has disconnected and reconnected meanwhile
                del self._news[user_id], self._introductions[user_id]

    def unregister(self, peer: Peer) -> None:
        """Remove a closed socket."""
        user_id = peer.session.user_id
        peers = self._peers.get(user_id, [])
        if peer not in peers:
            return
        peers.remove(peer)
        self.metrics.sockets.dec()
        for slot in self._wheel:
            slot.discard(peer)
        if peers:
            if user_id in self._elsewhere:
                self._announce(user_id, "too")
            return
        del self._peers[user_id]
        self._elsewhere.pop(user_id, None)
        for watch in self.watchers:
            watch(user_id, False)
        self._bus.publish(self._channel(user_id), self._envelope("gone"))
        self._bus.unsubscribe(self._channel(user_id))

    def _close_oldest(self, user_id: UUID) -> None:
        """Close our sockets that are not among the user's newest SOCKETS_PER_USER on all instances. All instances
        compute the same order, so each closes its own sockets without a request to others."""
        own = {(peer.opened, peer.peer_id): peer for peer in self._peers.get(user_id, ()) if not peer.closing}
        others = [opened for there in self._elsewhere.get(user_id, {}).values() for opened in there.sockets]
        for opened in sorted([*own, *others], reverse=True)[SOCKETS_PER_USER:]:
            if opened in own:
                own[opened].close(REPLACED, "too many sockets")

    def end_session(self, user_id: UUID, session_id: UUID) -> None:
        """Close the sockets of a session that was revoked."""
        for peer in list(self._peers.get(user_id, ())):
            if peer.session.session_id == session_id:
                peer.close(SESSION_ENDED, "session ended")

    async def close_all(self, seconds: float) -> None:
        """Close every socket with 1012, spread over ``seconds`` so that clients don't all reconnect at once. Sockets
        that still open on existing connections are closed, too."""
        self._stopping = True
        for task in self._closing:
            task.cancel()  # this closes all sockets, and sooner
        await self._close_peers(seconds, "server restarting")

    def restart(self, seconds: float) -> None:
        """Close every open socket with 1012, spread over ``seconds``, without waiting. Their clients have data of
        another epoch; clients that reconnect are served."""
        task = asyncio.get_running_loop().create_task(self._close_peers(seconds, "database restored"))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_peers(self, seconds: float, reason: str) -> None:
        peers = [peer for peers in self._peers.values() for peer in peers]
        slices = max(1, min(len(peers), round(seconds / 0.05)))
        pause = min(seconds / slices, 0.25)  # a few sockets need not take all the time
        for start in range(slices):
            for peer in peers[start::slices]:
                peer.close(RESTART, reason)
            if start + 1 < slices:
                await asyncio.sleep(pause)

    # Sending ------------------------------------------------------------------------------------------------------

    def send(self, user_id: UUID, frame: Frame, *, skip: str = "", key: str = "", droppable: bool = False) -> None:
        """Send a frame to every socket of a user, on all instances, except the one with the peer_id ``skip``.

        ``droppable`` frames (typing, presence) are dropped first when a client reads too slowly. A frame with a ``key``
        is sent to a socket once, even if it arrives twice. After a frame with the key ``last_of(key)``, no frame with
        that ``key`` is sent, from any instance.
        """
        payload = encode(frame)
        if not self._write(user_id, payload, skip, key, droppable) or user_id in self._elsewhere:
            kind = "drop" if droppable else "send"
            self._bus.publish(self._channel(user_id), self._envelope(kind, skip, key, payload))

    def write_all(self, users: Iterable[UUID], kind: str, frame: bytes, skip: str, droppable: bool) -> list[UUID]:
        """Write the bytes of a whole frame of type ``kind`` to the local sockets of many users. Returns the users who
        may have sockets on other instances."""
        others = []
        taken = 0
        mine, elsewhere = self._peers, self._elsewhere
        for user_id in users:
            peers = mine.get(user_id)
            if peers is None:
                others.append(user_id)
                continue
            for peer in tuple(peers) if len(peers) > 1 else peers:
                if peer.peer_id != skip and peer.write(frame, droppable):
                    taken += 1
            if user_id in elsewhere:
                others.append(user_id)
        if taken:
            self.metrics.count_sent(kind, taken)
        return others

    def publish(self, user_id: UUID, payload: bytes, skip: str, droppable: bool) -> None:
        """Send a frame's payload to a user's sockets on other instances only."""
        kind = "drop" if droppable else "send"
        self._bus.publish(self._channel(user_id), self._envelope(kind, skip, "", payload))

    async def deliver(self, user_id: UUID, frame: Frame, *, key: str = "") -> bool:
        """Send a frame. Returns True if the user has a socket on any instance."""
        payload = encode(frame)
        local = self._write(user_id, payload, "", key, False)
        message = self._envelope("send", "", key, payload)
        if local:
            if user_id in self._elsewhere:
                self._bus.publish(self._channel(user_id), message)
            return True
        return await self._bus.publish_counted(self._channel(user_id), message) > 0

    def _write(self, user_id: UUID, payload: bytes, skip: str, key: str, droppable: bool) -> bool:
        peers = self._peers.get(user_id)
        if peers is None:
            return False
        began = time.monotonic()
        frame = text_frame(payload)
        taken = 0
        for peer in tuple(peers) if len(peers) > 1 else peers:
            if peer.peer_id != skip and peer.write(frame, droppable, key):
                taken += 1
        if taken:
            self.metrics.count_sent(type_of(payload), taken)
            self.metrics.sample_delivery("user", began)
        return True

    # Other instances ----------------------------------------------------------------------------------------------

    @staticmethod
    def _channel(user_id: UUID) -> str:
        return f"{USER_CHANNEL}{user_id}"

    def _envelope(self, kind: str, skip: str = "", key: str = "", payload: bytes = b"") -> bytes:
        return f"{self._origin} {kind} {skip} {key}\n".encode() + payload

    def _receive(self, channel: str, message: bytes) -> None:
        user_id = UUID(channel[len(USER_CHANNEL) :])
        head, _, payload = message.partition(b"\n")
        origin, kind, skip, key = head.decode().split(" ")
        if origin == self._origin:
            return
        if kind in ("send", "drop"):
            self._write(user_id, payload, skip, key, kind == "drop")
        elif kind == "gone":
            others = self._elsewhere.get(user_id, {})
            others.pop(origin, None)
            if not others:
                self._elsewhere.pop(user_id, None)
        elif user_id in self._peers:
            sockets = [(opened, peer_id) for opened, peer_id in decode(payload)]
            self._elsewhere.setdefault(user_id, {})[origin] = _RemoteSockets(time.monotonic(), sockets)
            if kind == "here":
                self._announce(user_id, "too")
            if user_id in self._news:
                self._news[user_id].set()
            self._close_oldest(user_id)

    def _own_sockets(self, user_id: UUID) -> bytes:
        peers = self._peers.get(user_id, ())
        return encode([(peer.opened, peer.peer_id) for peer in peers if not peer.closing])

    def _announce(self, user_id: UUID, kind: str) -> None:
        if user_id in self._peers:
            self._bus.publish(self._channel(user_id), self._envelope(kind, payload=self._own_sockets(user_id)))

    def _announce_all(self) -> None:
        for user_id in self._peers:
            self._announce(user_id, "here")

    async def announce(self) -> None:
        """Announce our users to the other instances, and drop instances that are silent."""
        horizon = time.monotonic() - FORGET_AFTER
        for user_id, others in list(self._elsewhere.items()):
            for origin in [origin for origin, there in others.items() if there.received < horizon]:
                del others[origin]
            if not others:
                del self._elsewhere[user_id]
            self._announce(user_id, "here")

    # Heartbeat ----------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Turn the wheel by one second: ping one slot of the sockets, and close those that missed the last ping.

        There is one timer for all sockets; a timer for each would take more memory than the socket's own buffers.
        """
        now = time.monotonic()
        self._turn = (self._turn + 1) % PING_EVERY
        for peer in tuple(self._wheel[self._turn]):
            peer.ping()
        for peer in tuple(self._wheel[(self._turn - PONG_WITHIN) % PING_EVERY]):
            if peer.answered < now - PONG_WITHIN - 1:
                for lost in self.silence_watchers:
                    lost(peer.session.user_id, now - peer.answered)
                peer.close(GOING_AWAY, "ping unanswered")
