"""Answers in flight: memory for long answers, reserved before anything is read for them, and kept until clients have
taken them (docs/decisions/0036-pages-end-by-bytes.md)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Hashable
from typing import Any

from tornado.iostream import IOStream

from handlers.wire.errors import Unavailable

EACH = 4 << 20  # bytes in flight of one account or address: four pages, or 32 downloads
MEMORY_TIMEOUT = 2.5  # seconds that a request waits for memory; it may take 3 in all (contract section 1)
WAITING = 1000  # requests that may wait, of all accounts together
WAITING_EACH = 32  # of one account or address: it must not take all places of the line
GRACE = 5.0  # seconds; an answer that has waited longer for its client goes when others need the memory
LOOK_SECONDS = 0.25

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: drop what was not sent


def drop(stream: IOStream) -> None:
    """Close a connection whose client does not read, with what the kernel still holds for it."""
    if not stream.closed():
        with contextlib.suppress(OSError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        stream.close()


class Room:
    """Memory for one answer."""

    __slots__ = ("_answers", "key", "size", "stream", "waits_since")

    def __init__(self, answers: InFlight, key: Hashable, size: int, stream: IOStream) -> None:
        self._answers, self.key, self.size, self.stream = answers, key, size, stream
        self.waits_since: float | None = None  # that its client takes something

    def wait(self) -> None:
        """Note that the answer waits for its client from now on."""
        self.waits_since = time.monotonic()

    def hold(self, size: int, written: asyncio.Future[Any]) -> None:
        """Keep what the answer needs, of what was reserved for it, until it is written."""
        self.wait()
        self._answers.resize(self, size)
        if written.done():
            self.release()
        else:
            written.add_done_callback(lambda _: self.release())

    def release(self) -> None:
        self._answers.release(self)


class InFlight:
    """Shares ``total`` bytes among all answers. One account or address has at most EACH; who waits is served in turn,
    one request of each. When memory is short, answers that have waited for their clients for GRACE go, first those of
    who has most in flight."""

    def __init__(self, total: int, each: int = EACH) -> None:
        self.free, self._total, self._each = total, total, min(each, total)
        self._rooms: set[Room] = set()
        self._held: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[tuple[int, IOStream, asyncio.Future[Room]]]] = {}
        self._count = 0
        self._looking: asyncio.TimerHandle | None = None

    async def reserve(self, key: Hashable, size: int, stream: IOStream) -> Room:
        """Raises Unavailable when this key has as much in flight as it may for too long, or all together have."""
        size = min(size, self._each)
        if key not in self._waiting and self._fits(key, size):
            return self._take(key, size, stream)
        if self._count >= WAITING or len(self._waiting.get(key, ())) >= WAITING_EACH:
            raise Unavailable
        coming: asyncio.Future[Room] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((size, stream, coming))
        self._count += 1
        self._look_again()
        try:
            return await asyncio.wait_for(coming, MEMORY_TIMEOUT)
        except BaseException as error:
            if coming.done() and not coming.cancelled():
                coming.result().release()  # it came in the same turn of the loop
            if isinstance(error, TimeoutError):
                raise Unavailable from None
            raise
        finally:
            self._forget(key)

    def resize(self, room: Room, size: int) -> None:
        """Give back what a room does not need. A longer answer than was expected is counted, too."""
        if room in self._rooms:
            self.free += room.size - size
            self._held[room.key] += size - room.size
            room.size = size
            self._serve()

    def release(self, room: Room) -> None:
        if room in self._rooms:
            self._rooms.discard(room)
            self.free += room.size
            left = self._held[room.key] - room.size
            if left > 0:
                self._held[room.key] = left
            else:
                del self._held[room.key]
            self._serve()

    def _fits(self, key: Hashable, size: int) -> bool:
        return size <= self.free and self._held.get(key, 0) + size <= self._each

    def _take(self, key: Hashable, size: int, stream: IOStream) -> Room:
        room = Room(self, key, size, stream)
        self._rooms.add(room)
        self.free -= size
        self._held[key] = self._held.get(key, 0) + size
        return room

    def _serve(self) -> None:
        served = True
        while served and self._waiting:
            served = False
            for key in list(self._waiting):
                line = self._waiting[key]
                while line and line[0][2].done():
                    line.popleft()  # it has waited too long
                if line and self._fits(key, line[0][0]):
                    size, stream, coming = line.popleft()
                    coming.set_result(self._take(key, size, stream))
                    served = True
                    self._waiting[key] = self._waiting.pop(key)  # to the end of the turn

    def _forget(self, key: Hashable) -> None:
        """One that has waited goes."""
        self._count -= 1
        line = self._waiting.get(key)
        if line is not None:
            while line and line[0][2].done():
                line.popleft()
            if not line:
                del self._waiting[key]

    def _look_again(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Drop an answer that is not taken, while others wait for memory that no answer of their own has."""
        self._looking = None
        if not self._waiting:
            return
        before = time.monotonic() - GRACE
        short = any(line and self._held.get(key, 0) + line[0][0] <= self._each for key, line in self._waiting.items())
        stale = [room for room in self._rooms if room.waits_since is not None and room.waits_since < before]
        if short and stale:
            worst = max(stale, key=lambda room: (self._held[room.key], -(room.waits_since or 0.0)))
            drop(worst.stream)
            self.release(worst)
        self._look_again()
