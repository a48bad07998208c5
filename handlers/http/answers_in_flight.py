"""Answers in flight: memory for long answers, reserved before their data is read, and kept until clients have received
them (docs/decisions/0036-pages-end-by-bytes.md)."""

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

MAX_BYTES_EACH = 4 << 20  # bytes in flight of one account or address: four pages, or 32 downloads
MEMORY_TIMEOUT = 2.5  # that a request may wait for memory; it may take 3 in all (contract section 1)
MAX_WAITING = 1000  # requests that may wait, of all accounts together
MAX_WAITING_EACH = 32  # of one account or address, so that it cannot fill the line
GRACE_SECONDS = 5.0  # an answer that has waited longer for its client is dropped when others need the memory
CHECK_SECONDS = 0.25

_RESET = struct.pack("ii", 1, 0)  # struct linger: drop unsent data


def drop(stream: IOStream) -> None:
    """Close a connection whose client does not read, and drop the data that the kernel holds for it."""
    if not stream.closed():
        with contextlib.suppress(OSError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        stream.close()


class Reservation:
    """The memory of one answer."""

    __slots__ = ("_answers", "key", "size", "stream", "waiting_since")

    def __init__(self, answers: AnswerMemory, key: Hashable, size: int, stream: IOStream) -> None:
        self._answers, self.key, self.size, self.stream = answers, key, size, stream
        self.waiting_since: float | None = None  # monotonic; since when the answer waits for its client to read

    def start_waiting(self) -> None:
        """Note that the answer waits for its client to read from now on."""
        self.waiting_since = time.monotonic()

    def keep_until_written(self, size: int, written: asyncio.Future[Any]) -> None:
        """Keep the memory that the answer needs until it is written; release the rest."""
        self.start_waiting()
        self._answers.resize(self, size)
        if written.done():
            self.release()
        else:
            written.add_done_callback(lambda _: self.release())

    def release(self) -> None:
        self._answers.release(self)


class AnswerMemory:
    """Shares ``total`` bytes among all answers. One account or address has at most MAX_BYTES_EACH. Waiting keys are
    served in turn, one request of each. When memory is short, answers that have waited for their clients longer than
    GRACE_SECONDS are dropped, first those of the key with most bytes in flight."""

    def __init__(self, total: int, each: int = MAX_BYTES_EACH) -> None:
        self.free, self._total, self._each = total, total, min(each, total)
        self._reservations: set[Reservation] = set()
        self._held: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[tuple[int, IOStream, asyncio.Future[Reservation]]]] = {}
        self._count = 0
        self._check_timer: asyncio.TimerHandle | None = None

    async def reserve(self, key: Hashable, size: int, stream: IOStream) -> Reservation:
        """Wait for memory. Raises Unavailable when this key, or all together, are at their bound for too long."""
        size = min(size, self._each)
        if key not in self._waiting and self._fits(key, size):
            return self._take(key, size, stream)
        if self._count >= MAX_WAITING or len(self._waiting.get(key, ())) >= MAX_WAITING_EACH:
            raise Unavailable
        coming: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((size, stream, coming))
        self._count += 1
        self._schedule_check()
        try:
            return await asyncio.wait_for(coming, MEMORY_TIMEOUT)
        except BaseException as error:
            if coming.done() and not coming.cancelled():
                coming.result().release()  # it was granted in the same turn of the loop
            if isinstance(error, TimeoutError):
                raise Unavailable from None
            raise
        finally:
            self._forget(key)

    def resize(self, reservation: Reservation, size: int) -> None:
        """Set the size of a reservation to what the answer needs, also when that is more than was reserved."""
        if reservation in self._reservations:
            self.free += reservation.size - size
            self._held[reservation.key] += size - reservation.size
            reservation.size = size
            self._serve()

    def release(self, reservation: Reservation) -> None:
        if reservation in self._reservations:
            self._reservations.discard(reservation)
            self.free += reservation.size
            left = self._held[reservation.key] - reservation.size
            if left > 0:
                self._held[reservation.key] = left
            else:
                del self._held[reservation.key]
            self._serve()

    def _fits(self, key: Hashable, size: int) -> bool:
        return size <= self.free and self._held.get(key, 0) + size <= self._each

    def _take(self, key: Hashable, size: int, stream: IOStream) -> Reservation:
        reservation = Reservation(self, key, size, stream)
        self._reservations.add(reservation)
        self.free -= size
        self._held[key] = self._held.get(key, 0) + size
        return reservation

    def _serve(self) -> None:
        served = True
        while served and self._waiting:
            served = False
            for key in list(self._waiting):
                line = self._waiting[key]
                while line and line[0][2].done():
                    line.popleft()  # it timed out
                if line and self._fits(key, line[0][0]):
                    size, stream, coming = line.popleft()
                    coming.set_result(self._take(key, size, stream))
                    served = True
                    self._waiting[key] = self._waiting.pop(key)  # to the end of the line

    def _forget(self, key: Hashable) -> None:
        """Remove a request that no longer waits."""
        self._count -= 1
        line = self._waiting.get(key)
        if line is not None:
            while line and line[0][2].done():
                line.popleft()
            if not line:
                del self._waiting[key]

    def _schedule_check(self) -> None:
        if self._check_timer is None:
            self._check_timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._drop_stalled)

    def _drop_stalled(self) -> None:
        """Drop an answer that its client does not read, if others wait for memory and are below their own bounds."""
        self._check_timer = None
        if not self._waiting:
            return
        before = time.monotonic() - GRACE_SECONDS
        short = any(line and self._held.get(key, 0) + line[0][0] <= self._each for key, line in self._waiting.items())
        stale = [
            reservation
            for reservation in self._reservations
            if reservation.waiting_since is not None and reservation.waiting_since < before
        ]
        if short and stale:
            worst = max(
                stale, key=lambda reservation: (self._held[reservation.key], -(reservation.waiting_since or 0.0))
            )
            drop(worst.stream)
            self.release(worst)
        self._schedule_check()
