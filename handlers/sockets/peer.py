"""One open socket: its session, and the queue to its client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from uuid import uuid4

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketHandler

from handlers.limits.rates import Bucket
from handlers.metrics import Metrics
from handlers.sockets import hub
from handlers.sockets.hub import text_frame
from handlers.sockets.rfc6455 import Protocol
from handlers.tokens import Session
from handlers.wire.frames import Frame, TokenExpiring
from handlers.wire.shapes import encode

# Contract section 5.
FRAMES_PER_SECOND, FRAME_BURST = 60, 200
MAX_QUEUED, MAX_QUEUED_BYTES = 1000, 1 << 20  # frames waiting for a slow reader
EXPIRY_WARNING = 60  # seconds before the token ends

GREETING_FRAMES, GREETING_BYTES = MAX_QUEUED // 4, MAX_QUEUED_BYTES // 4  # of a greeting that may be unread at once

MAX_KEYS = 1000  # newest keys that a socket remembers; a call has at most 600

FLUSH_FRAMES = 64  # frames of one turn of the loop that go to the kernel in one call, which costs more than a frame
FLUSH_BYTES = 8 * 1024  # larger frames gain nothing by waiting for others


class Socket:
    """An open socket: its session, and the queue to its client."""

    __slots__ = (
        "_expiry",
        "_handler",
        "_held_bytes",
        "_held_keys",
        "_loop",
        "_metrics",
        "_out",
        "_queued",
        "_queued_bytes",
        "_space",
        "answered",
        "bucket",
        "closing",
        "held",
        "keys",
        "opened",
        "peer_id",
        "session",
    )

    def __init__(self, handler: WebSocketHandler, metrics: Metrics, session: Session) -> None:
        self._handler, self._metrics = handler, metrics
        self._loop = (
            asyncio.get_running_loop()
        )  # cached: get_running_loop() makes a system call, and costs as much as a frame
        self.peer_id = uuid4().hex
        self.session = session
        self.opened = time.time()
        self.answered = time.monotonic()
        self.bucket = Bucket(FRAMES_PER_SECOND, FRAME_BURST)
        self.closing = False
        # Frames that wait until the socket's welcome is over; None after it.
        self.held: list[tuple[bytes, str]] | None = []
        self._held_bytes = 0
        self._held_keys: set[str] = set()
        self.keys: dict[str, None] | None = None  # most sockets never send a frame with a key
        self._space: asyncio.Event | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []
        self._queued = self._queued_bytes = 0

    @property
    def space(self) -> asyncio.Event:
        if self._space is None:
            self._space = asyncio.Event()
        return self._space

    def send(self, frame: Frame, key: str = "") -> None:
        """Send a frame to this socket only, at once, even during its welcome."""
        raw = text_frame(encode(frame))
        if self._has_room(raw, False) and self._put(raw, key):
            self._metrics.count_sent(frame["type"], 1)

    def write(self, frame: bytes, droppable: bool, key: str = "") -> bool:
        """Queue the bytes of a whole frame. Returns False if it was dropped.

        If the client reads too slowly, droppable frames are dropped, and others close the socket. A frame whose key was
        sent before is dropped.
        """
        if (self._queued and not self._has_room(frame, droppable)) or self.closing:
            return False
        if self.held is None:
            return self._put(frame, key)
        if key and not key.startswith(hub.ENDS):
            if key in self._held_keys or self.has_sent(key):
                return False
            self._held_keys.add(key)
        self.held.append((frame, key))
        self._held_bytes += len(frame)
        self._queued += 1
        self._queued_bytes += len(frame)
        return True

    def has_sent(self, key: str) -> bool:
        """True if a frame with this key was sent to the socket."""
        return self.keys is not None and key in self.keys

    async def wait_until_drained(self) -> bool:
        """Wait until the client has read most of its queue, so that a long greeting doesn't fill it. Returns False if
        the socket closes. Frames that wait for the end of the welcome don't count."""
        while not self.closing:
            if self._is_nearly_drained():
                return True
            self.flush()
            if self._is_nearly_drained():
                return True
            self.space.clear()
            await self.space.wait()
        return False

    def _is_nearly_drained(self) -> bool:
        held = len(self.held) if self.held else 0
        return self._queued - held < GREETING_FRAMES and self._queued_bytes - self._held_bytes < GREETING_BYTES

    def end_welcome(self) -> None:
        """End the welcome: send the frames that waited, and later frames at once."""
        held, self.held = self.held or [], None
        self._held_bytes, self._held_keys = 0, set()
        for frame, key in held:
            self._note_sent(1, len(frame))
            self._put(frame, key)

    def _has_room(self, frame: bytes, droppable: bool) -> bool:
        """True if the queue has space for the frame. Half full it drops droppable frames, full it closes the socket."""
        if self.closing:
            return False
        if self._queued and (self._queued >= MAX_QUEUED // 2 or self._queued_bytes >= MAX_QUEUED_BYTES // 2):
            if droppable:
                self._metrics.frames_dropped.inc()
                return False
            if self._queued >= MAX_QUEUED or self._queued_bytes + len(frame) > MAX_QUEUED_BYTES:
                self.close(hub.SLOW, "reading too slowly")
                return False
        return True

    def _put(self, frame: bytes, key: str) -> bool:
        if key:
            if self.keys is None:
                self.keys = {}
            if key in self.keys:
                return False
            self.keys[key.removeprefix(hub.ENDS)] = None
            if len(self.keys) > MAX_KEYS:
                del self.keys[next(iter(self.keys))]
        self._queued += 1
        self._queued_bytes += len(frame)
        self._out.append(frame)
        if len(self._out) == FLUSH_FRAMES or len(frame) >= FLUSH_BYTES:
            self.flush()
        elif len(self._out) == 1:
            self._loop.call_soon(self.flush)
        return True

    def flush(self) -> None:
        """Write the gathered frames to the kernel. The stream queues the rest until the client reads."""
        if not self._out:
            return
        frames = len(self._out)
        data = self._out[0] if frames == 1 else b"".join(self._out)
        size = len(data)
        self._out.clear()
        connection = self._handler.ws_connection
        if type(connection) is not Protocol:  # faster than isinstance, which calls the abstract base class
            return
        stream, taken = connection.stream, 0
        if not (stream.writing() or stream.closed()):
            # Most clients keep up, so the kernel takes everything; its queue and futures would double the cost.
            with contextlib.suppress(OSError):  # the stream finds out about errors
                taken = stream.write_to_fd(memoryview(data))
        if taken == size:
            self._queued -= frames
            self._queued_bytes -= size
            return
        try:
            sent = stream.write(memoryview(data)[taken:])
        except StreamClosedError:
            return
        sent.add_done_callback(lambda _: self._note_sent(frames, size))

    def _note_sent(self, frames: int, size: int) -> None:
        self._queued -= frames
        self._queued_bytes -= size
        if self._space is not None:
            self._space.set()

    def ping(self) -> None:
        connection = self._handler.ws_connection
        if connection is not None and not self.closing:
            try:
                connection.write_ping(b"")
            except StreamClosedError:
                self.closing = True

    def prolong(self, session: Session) -> None:
        """Continue with a new token."""
        self.session = session
        self.schedule()

    def schedule(self) -> None:
        """Schedule a warning before the token expires, and the close after it."""
        if self._expiry is not None:
            self._expiry.cancel()
        left = self.session.expires - time.time()
        self._expiry = self._loop.call_later(max(0.0, left - EXPIRY_WARNING), self._warn_of_expiry)

    def _warn_of_expiry(self) -> None:
        left = max(0.0, self.session.expires - time.time())
        warning: TokenExpiring = {"type": "token_expiring", "seconds": int(left)}
        self.send(warning)
        self._expiry = self._loop.call_later(left, self.close, hub.SESSION_ENDED, "token expired")

    def close(self, code: int, reason: str) -> None:
        if self.closing:
            return
        self.flush()
        self.closing = True
        self._metrics.closes.labels(code).inc()
        self._handler.close(code, reason)

    def mark_closed(self) -> None:
        self.closing = True
        if self._expiry is not None:
            self._expiry.cancel()
        self.space.set()
