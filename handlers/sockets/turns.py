"""Turns: handles the frames of one socket in order, while some of them take long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from handlers.limits.share import Share
from handlers.wire.frames import AckFields

# Frames of one socket, and their bytes, that may wait behind a slow one; then the reader pauses, and its pongs, too. A
# burst fits.
MAX_WAITING, MAX_WAITING_BYTES = 256, 256 * 1024
MAX_UNDER_WAY = 64  # frames of one socket in progress at once; two such sockets share a batch of the journal


class Frames(Protocol):
    """Handles the frames of a socket."""

    @property
    def share(self) -> Share | None: ...

    def handle(self, message: str | bytes) -> Awaitable[None] | None:
        """Handle a frame. Returns None if that is done, else what to await before the next one is handled."""

    def answer(self, frame_id: str | None, answered: asyncio.Future[AckFields]) -> None:
        """Send the answer to a frame whose work is done."""


class Turns:
    """Handles a frame at once, unless an earlier one takes long: then it waits. Frames in progress at the same time are
    answered in the order in which they arrived."""

    __slots__ = ("_frames", "_space", "_under_way", "_work", "waiting", "waiting_bytes")

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        # Most sockets never need any of these.
        self.waiting: deque[str | bytes] | None = None
        self.waiting_bytes = 0
        self._under_way: deque[tuple[str | None, asyncio.Future[AckFields]]] | None = None
        self._work: asyncio.Task[None] | None = None
        self._space: asyncio.Event | None = None

    def take(self, message: str | bytes) -> Awaitable[None] | None:
        """Handle a frame, or queue it. Returns None, or what to await before the next one is read."""
        if self.waiting is not None:
            self.waiting.append(message)
            self.waiting_bytes += len(message)
            return self._wait_for_space() if self._is_full else None
        pending = self._frames.handle(message)
        if pending is not None:
            self.waiting = deque()
            self._work = asyncio.get_running_loop().create_task(self._go_on(pending))
        return None

    @property
    def _is_full(self) -> bool:
        return self.waiting is not None and (
            len(self.waiting) >= MAX_WAITING or self.waiting_bytes >= MAX_WAITING_BYTES
        )

    async def _wait_for_space(self) -> None:
        while self._is_full:
            await self._changed()

    async def _go_on(self, pending: Awaitable[None]) -> None:
        """Finish a slow frame, then handle those that wait behind it."""
        await pending
        while self.waiting:
            if self._frames.share is not None:
                await self._frames.share.catch_up()
                if not self.waiting:
                    break  # the socket has closed meanwhile
            message = self.waiting.popleft()
            self.waiting_bytes -= len(message)
            following = self._frames.handle(message)
            self._note_space()
            if following is not None:
                await following
        self.waiting = self._work = None
        self._note_space()

    # Frames in progress at the same time ---------------------------------------------------------------------------

    @property
    def has_under_way(self) -> bool:
        """True if frames are in progress that a later one must not overtake."""
        return bool(self._under_way)

    def add(self, frame_id: str | None, answered: asyncio.Future[AckFields]) -> Awaitable[None] | None:
        """Answer a frame when it is done and all earlier ones are answered. Returns None, or what to await before the
        next one is handled."""
        if self._under_way is None:
            self._under_way = deque()
        self._under_way.append((frame_id, answered))
        answered.add_done_callback(self._answer_done)
        return self.wait_until_answered() if len(self._under_way) >= MAX_UNDER_WAY else None

    def _answer_done(self, _: asyncio.Future[AckFields]) -> None:
        under_way = self._under_way
        while under_way and under_way[0][1].done():
            self._frames.answer(*under_way.popleft())
        if not under_way:
            self._under_way = None
            self._note_space()

    async def wait_until_answered(self) -> None:
        """Wait until all frames in progress are answered."""
        while self._under_way:
            await self._changed()

    async def wait_until_idle(self) -> None:
        """Wait until no frame is queued or in progress."""
        while self._work is not None:
            await asyncio.wait([self._work])
        await self.wait_until_answered()

    def close(self) -> None:
        """Drop queued frames: the socket has closed."""
        if self.waiting is not None:
            self.waiting, self.waiting_bytes = deque(), 0
        self._note_space()

    # ----------------------------------------------------------------------------------------------------------------

    async def _changed(self) -> None:
        """Wait until something was handled or answered."""
        if self._space is None:
            self._space = asyncio.Event()
        self._space.clear()
        await self._space.wait()

    def _note_space(self) -> None:
        if self._space is not None:
            self._space.set()
