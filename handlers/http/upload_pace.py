"""Pace: throttles all uploads together while the event loop is late."""

from __future__ import annotations

import asyncio

INTERVAL = 0.01  # seconds between two measurements of the loop's lag, during uploads
LATE, SOON = 0.002, 0.001  # seconds of lag above which uploads are slowed, and below which they may go faster
SMOOTH = 0.1  # weight of one measurement in the average: some ten of them decide, one may be chance
SLOWER, FASTER = 0.9, 1.05
# Bytes/s that are always allowed, because something else may make the loop late; and the rate that means no limit.
LEAST, MOST = 64e6, 4e9
FEW = 4  # so few uploads take little of the loop: if it is late, something else is the cause


class Pace:
    """Throttles uploads while the event loop is late, whether they use its time, its processor or the interpreter's
    lock. On an idle machine uploads run at full speed."""

    def __init__(self) -> None:
        self.rate = MOST
        self._late = 0.0
        self._taken = 0
        self._free = 0.0  # loop time at which the next bytes are allowed
        self._active = 0
        self._timer: asyncio.TimerHandle | None = None
        self._adjusted = 0.0

    @property
    def active(self) -> int:
        """The number of uploads in progress."""
        return self._active

    def begin(self) -> None:
        """Count a new upload."""
        self._active += 1
        if self._timer is None:
            self._adjusted = asyncio.get_running_loop().time()
            self._wait()

    def end(self) -> None:
        self._active -= 1

    async def take(self, size: int) -> None:
        """Wait until ``size`` more bytes are allowed."""
        self._taken += size
        if self.rate >= MOST or self._active <= FEW:
            return
        now = asyncio.get_running_loop().time()
        self._free = max(self._free, now) + size / self.rate
        if self._free - now > INTERVAL:
            await asyncio.sleep(self._free - now)

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + INTERVAL
        self._timer = loop.call_at(self._due, self._adjust)

    def _adjust(self) -> None:
        now = asyncio.get_running_loop().time()
        self._late += SMOOTH * (now - self._due - self._late)
        if self._late > LATE:
            came = self._taken / (now - self._adjusted)
            self.rate = max(LEAST, min(self.rate, came) * SLOWER)
        elif self._late < SOON:
            self.rate = min(MOST, self.rate * FASTER)
        self._adjusted, self._taken = now, 0
        if self._active:
            self._wait()
        else:
            self._timer = None
            self.rate, self._late = MOST, 0.0
