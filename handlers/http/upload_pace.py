"""Pace: how fast bodies of all uploads together may come in, so that they leave the loop to others."""

from __future__ import annotations

import asyncio

INTERVAL = 0.01  # seconds between looks at how late the loop is, while something comes in
LATE, SOON = 0.002, 0.001  # seconds: beyond the one uploads are slowed, below the other they may come faster
SMOOTH = 0.1  # share of a look in what is remembered: some ten of them decide, one is an accident
SLOWER, FASTER = 0.9, 1.05
# Bytes/s that are let in however late the loop is, for it may be others who make it late; and from which on there is
# no limit.
LEAST, MOST = 64e6, 4e9
FEW = 4  # uploads that take little of the loop by themselves: if it is late beside them, it is others that make it so


class Pace:
    """Slows uploads down while the loop is late, whatever it is that they take from it: its own time, a processor, the
    interpreter's lock. Alone on a machine they come as fast as they can."""

    def __init__(self) -> None:
        self.rate = MOST
        self._late = 0.0
        self._taken = 0
        self._free = 0.0  # when the next bytes may come
        self._active = 0
        self._timer: asyncio.TimerHandle | None = None
        self._adjusted = 0.0

    @property
    def active(self) -> int:
        """How many uploads there are."""
        return self._active

    def begin(self) -> None:
        """An upload begins."""
        self._active += 1
        if self._timer is None:
            self._adjusted = asyncio.get_running_loop().time()
            self._wait()

    def end(self) -> None:
        self._active -= 1

    async def take(self, size: int) -> None:
        """Wait until so many bytes may come in."""
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
