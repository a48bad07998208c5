"""The hub: who is connected here, and how a frame reaches a user wherever their sockets are."""

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

ENDS = "-"  # before a key: what has that key is over
CHANNEL = "ws:user:"  # of each user, by their id (seed)
SOCKETS_PER_USER = 10  # contract section 5
PING_EVERY = 25  # seconds; also the number of slots of the wheel
PONG_WITHIN = 20  # seconds
FORGET_AFTER = 60  # seconds; an instance that missed three announcements counts as gone
INTRODUCTION_TIMEOUT = 1.0  # seconds a socket may wait for the other instances to know of it

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
    def seen(self, key: str) -> bool: ...
    async def drained(self) -> bool: ...
    def prolong(self, session: Session) -> None: ...
    def ping(self) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


Presence = Callable[[UUID, bool], None]
Opened = tuple[float, str]  # when a socket was opened, and its peer_id: the order in which a user's sockets go


class _There(NamedTuple):
    """A user's sockets on another instance, as it told last."""

    heard: float  # monotonic
    sockets: list[Opened]


def ends(key: str) -> str:
    """The key of a frame after which none of ``key`` may come."""
    return ENDS + key


def text_frame(payload: bytes) -> bytes:
    """A whole unmasked text frame (RFC 6455 section 5.2), built once for all who get it."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def type_of(payload: bytes) -> str:
    """The type of an encoded frame: all of ours begin with it."""
    return payload[9 : payload.index(b'"', 9)].decode() if payload.startswith(b'{"type":"') else "other"


class Hub:
    """Sends to users. Local sockets are written to directly; other instances hear it through ``ws:user:{id}``.

    On that channel a message is ``{origin} {kind} {peer to skip} {key}\\n{frame}``. Besides frames (``send``, ``drop``
    for droppable ones) instances tell each other which of their users they share, so that nothing is published for a
    user who is only here: ``here`` asks for an answer, ``too`` is one, or news. Both bear the user's sockets there, so
    that every instance knows which is the oldest of all. ``gone`` ends it.
    """

    def __init__(self, bus: Bus, metrics: Metrics, instance_id: UUID) -> None:
        self.instance_id = instance_id
        self._origin = instance_id.hex
        self._bus = bus
        self.metrics = metrics
        self._peers: dict[UUID, list[Peer]] = {}
        self._elsewhere: dict[UUID, dict[str, _There]] = {}
        self._introductions: dict[UUID, asyncio.Task[None]] = {}
        self._news: dict[UUID, asyncio.Event] = {}
        self._wheel: list[set[Peer]] = [set() for _ in range(PING_EVERY)]
        self._turn = 0
        self._stopping = False
        self._closing: set[asyncio.Task[None]] = set()
        self.watchers: list[Presence] = []  # told of a user's first and last socket here
        self.losses: list[Callable[[UUID, float], None]] = []  # told of a user whose socket is silent, and for how long
        bus.on_return.append(self._announce_all)

    def __len__(self) -> int:
        return sum(map(len, self._peers.values()))

    def here(self, user_id: UUID) -> bool:
        """Whether the user has a socket on this instance."""
        return user_id in self._peers

    def users(self) -> Iterable[UUID]:
        return self._peers.keys()

    def elsewhere(self, users: Iterable[UUID]) -> list[UUID]:
        """Those of the users who may have sockets on other instances: all but those who are only here."""
        return [user_id for user_id in users if user_id not in self._peers or user_id in self._elsewhere]

    async def absent(self, users: Iterable[UUID]) -> list[UUID]:
        """Those of the users who have no socket on any instance: an instance hears the channels of its own users only,
        and one that has died hears none. Raises RedisError, OSError or TimeoutError when Redis is away."""
        others = [user_id for user_id in users if user_id not in self._peers]
        counts = await self._bus.subscribers([self._channel(user_id) for user_id in others])
        return [user_id for user_id, count in zip(others, counts, strict=True) if count == 0]

    # Coming and going ---------------------------------------------------------------------------------------------

    async def arrive(self, peer: Peer) -> None:
        """Register a socket; when this returns, whatever is sent to its user reaches it."""
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
        """Hear the user's channel, and wait until every other instance that has the user knows that we have them as
        well: until then it would keep to itself what it sends."""
        channel = self._channel(user_id)
        news = self._news[user_id] = asyncio.Event()
        try:
            async with asyncio.timeout(INTRODUCTION_TIMEOUT):
                await self._bus.subscribe(channel, self._hear)
                here = self._envelope("here", payload=self._own(user_id))
                others = await self._bus.publish_counted(channel, here) - 1
                while len(self._elsewhere.get(user_id, ())) < others:
                    news.clear()
                    await news.wait()
        except TimeoutError:
            log.warning("introduction_unanswered")  # Redis or an instance is away; the next announcement will do
        finally:
            if self._news.get(user_id) is news:  # else the user has gone and come again meanwhile
                del self._news[user_id], self._introductions[user_id]

    def leave(self, peer: Peer) -> None:
        """Forget a socket that has closed."""
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
        """Close those of our sockets that are not among the user's newest on all instances. Every instance comes to
        the same order, so each closes its own and none has to ask."""
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
        """Close every socket with 1012, spread over ``seconds`` so that clients don't all return at once; and from now
        on every one that still comes, over a connection that was there before."""
        self._stopping = True
        for task in self._closing:
            task.cancel()  # all are closed now, and in less time
        await self._close_peers(seconds, "server restarting")

    def restart(self, seconds: float) -> None:
        """Close every socket that is open now with 1012, spread over ``seconds``, without waiting for that. What their
        clients know is of another epoch; who comes back is served."""
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
        """Send a frame to every socket of a user, on all instances, but the one called ``skip``.

        ``droppable`` frames (typing, presence) are the first to go when a client reads too slowly. A frame with a
        ``key`` goes to a socket once, also when it comes to it by another way. With ``ends(key)`` as its key a frame
        is sent as any other, and those of that key are not sent after it, whichever instance they come from.
        """
        payload = encode(frame)
        if not self._write(user_id, payload, skip, key, droppable) or user_id in self._elsewhere:
            kind = "drop" if droppable else "send"
            self._bus.publish(self._channel(user_id), self._envelope(kind, skip, key, payload))

    def write_all(self, users: Iterable[UUID], kind: str, frame: bytes, skip: str, droppable: bool) -> list[UUID]:
        """Write the bytes of a whole frame of type ``kind`` to the sockets here of many users; the users who aren't
        only here."""
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
            self.metrics.sent(kind, taken)
        return others

    def publish(self, user_id: UUID, payload: bytes, skip: str, droppable: bool) -> None:
        """Send a frame's payload to the sockets of a user on other instances only."""
        kind = "drop" if droppable else "send"
        self._bus.publish(self._channel(user_id), self._envelope(kind, skip, "", payload))

    async def deliver(self, user_id: UUID, frame: Frame, *, key: str = "") -> bool:
        """Send a frame and say whether any socket of the user's was there to take it."""
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
            self.metrics.sent(type_of(payload), taken)
            self.metrics.written("user", began)
        return True

    # Other instances ----------------------------------------------------------------------------------------------

    @staticmethod
    def _channel(user_id: UUID) -> str:
        return f"{CHANNEL}{user_id}"

    def _envelope(self, kind: str, skip: str = "", key: str = "", payload: bytes = b"") -> bytes:
        return f"{self._origin} {kind} {skip} {key}\n".encode() + payload

    def _hear(self, channel: str, message: bytes) -> None:
        user_id = UUID(channel[len(CHANNEL) :])
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
            self._elsewhere.setdefault(user_id, {})[origin] = _There(time.monotonic(), sockets)
            if kind == "here":
                self._announce(user_id, "too")
            if user_id in self._news:
                self._news[user_id].set()
            self._close_oldest(user_id)

    def _own(self, user_id: UUID) -> bytes:
        peers = self._peers.get(user_id, ())
        return encode([(peer.opened, peer.peer_id) for peer in peers if not peer.closing])

    def _announce(self, user_id: UUID, kind: str) -> None:
        if user_id in self._peers:
            self._bus.publish(self._channel(user_id), self._envelope(kind, payload=self._own(user_id)))

    def _announce_all(self) -> None:
        for user_id in self._peers:
            self._announce(user_id, "here")

    async def announce(self) -> None:
        """Remind the other instances of the users we share, and forget instances that went silent."""
        horizon = time.monotonic() - FORGET_AFTER
        for user_id, others in list(self._elsewhere.items()):
            for origin in [origin for origin, there in others.items() if there.heard < horizon]:
                del others[origin]
            if not others:
                del self._elsewhere[user_id]
            self._announce(user_id, "here")

    # Heartbeat ----------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """One second of the wheel: ping one slot of the sockets, and close those that left the last ping unanswered.

        One timer for all sockets; a timer each would cost more memory than the socket's own buffers.
        """
        now = time.monotonic()
        self._turn = (self._turn + 1) % PING_EVERY
        for peer in tuple(self._wheel[self._turn]):
            peer.ping()
        for peer in tuple(self._wheel[(self._turn - PONG_WITHIN) % PING_EVERY]):
            if peer.answered < now - PONG_WITHIN - 1:
                for lost in self.losses:
                    lost(peer.session.user_id, now - peer.answered)
                peer.close(GOING_AWAY, "ping unanswered")
