"""A share: the part of this process's time that one account may use. An account that is ahead of its share waits.

A budget (handlers/limits/ledger.py) bounds what an account costs in minutes, and rejects. A share bounds what it costs
at any moment, and delays: the server does not read the socket, or does not begin the request. So an account never slows
others by more than its share, however large its budgets are, and an honest client with much work is served a little
later. Each instance has its own event loop, so shares are not settled between instances.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from handlers.wire.costs import READS
from handlers.wire.errors import RateLimited

BURST_SECONDS = 0.1  # of work at once: three times what an app requests when it opens; four pages of 1 MiB
# Requests and slow frames of one account or address that may be at work at once. Many people may share an address.
# After HELD_SECONDS a request waits for something other than this server, and is no longer counted.
MAX_AT_WORK, MAX_AT_WORK_ADDRESS, HELD_SECONDS = 2, 32, 0.25
# Requests of one account that may wait, and for how long: a request may take 3 seconds in all (contract section 1). A
# client that sends one request at a time waits less, because of the bounds below.
MAX_WAITING, WAIT_TIMEOUT = 32, 2.0
POLL_SECONDS = 0.005  # between two checks for a free place

# The cost of work, in seconds of the loop: estimates for one core of 2.4 GHz that PostgreSQL uses as well. They were
# chosen by the delay that other clients had in `python -m tests.bench hostile`.
# For each byte of frames, which are parsed and handled (a small frame counts as 4 KiB), and of answers.
SECONDS_PER_BYTE = 1.5e-8
# For each byte and recipient of a frame to a group: the kernel copies it, PostgreSQL reads it again for each /sync; and
# for each recipient's queue.
SECONDS_PER_FANOUT_BYTE, SECONDS_PER_RECIPIENT = 4e-9, 2e-6
MAX_FANOUT_SECONDS = 0.25  # of one frame
# A request or a slow frame counts the time that it took, which includes PostgreSQL's work; but no more than its cost
# declares, because it may have waited for others.
MAX_REQUEST_SECONDS = READS.seconds
SECONDS_PER_SOCKET = 0.02  # the handshake, the greeting, the presence frames, and the close


class WaitTotals:
    """How often and how long all accounts together waited for their turn."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0


class Share:
    """The share of one account, and how far ahead of it the account is. ``rate`` is in seconds of work per second."""

    __slots__ = ("_at_once", "_begun", "_clock", "_large", "_line", "_queued", "_rate", "_room", "_until", "_waits")

    def __init__(self, rate: float, at_once: int, clock: Callable[[], float], waits: WaitTotals | None = None) -> None:
        self._rate, self._room, self._clock = rate, BURST_SECONDS / rate, clock
        self._until = 0.0
        self._at_once, self._waits = at_once, waits or WaitTotals()
        self._begun: deque[float] = deque()  # start times of the requests at work
        self._queued = 0
        # Most accounts never wait, and few ever send a large frame.
        self._line: asyncio.Lock | None = None
        self._large: asyncio.Lock | None = None

    def add_work(self, seconds: float) -> None:
        """Count work that was done for the account."""
        now = self._clock()
        self._until = max(self._until, now) + seconds / self._rate

    @property
    def ahead(self) -> float:
        """Seconds that the account must wait; negative or 0 if it need not."""
        return self._until - self._clock() - self._room

    @property
    def is_unused(self) -> bool:
        """True if the whole burst is available."""
        return self._until <= self._clock()

    @property
    def is_free(self) -> bool:
        """True if no request or frame of the account waits, or would have to."""
        return (self._line is None or not self._line.locked()) and self.ahead <= 0

    @property
    def line(self) -> asyncio.Lock:
        """The lock that requests wait for, first come, first served."""
        if self._line is None:
            self._line = asyncio.Lock()
        return self._line

    @property
    def large(self) -> asyncio.Lock:
        """Held while a large frame of the account is at work."""
        if self._large is None:
            self._large = asyncio.Lock()
        return self._large

    async def catch_up(self) -> None:
        """Wait until the account is within its share."""
        while (ahead := self.ahead) > 0:
            self._waits.count += 1
            self._waits.seconds += ahead
            await asyncio.sleep(ahead)

    async def wait_turn(self) -> None:
        """Wait behind all requests that already wait, then until the account is within its share."""
        async with self.line:
            await self.catch_up()

    async def yield_to_others(self, size: int) -> None:
        """Count ``size`` bytes of handled frames, and yield the loop to others; if the account is ahead, wait for its
        next turn."""
        self.add_work(size * SECONDS_PER_BYTE)
        await (asyncio.sleep(0) if self.is_free else self.wait_turn())

    # Requests -------------------------------------------------------------------------------------------------------

    def begin(self) -> float:
        """Begin a request or a slow frame at once. Returns the start time, for ``end``; 0 if it has to wait."""
        return 0.0 if self._queued or not self.is_free else self._take_place()

    def _take_place(self) -> float:
        now, begun = self._clock(), self._begun
        while begun and now - begun[0] > HELD_SECONDS:
            begun.popleft()
        if len(begun) >= self._at_once:
            return 0.0
        begun.append(now)
        return now

    def is_at_work(self, began: float) -> bool:
        """True if the request that began then still has its place."""
        return began in self._begun

    async def begin_in_turn(self) -> float:
        """Wait for the turn of a request, and begin it. Raises RateLimited if the wait is too long or too many wait."""
        if self._queued >= MAX_WAITING or self.ahead > WAIT_TIMEOUT:
            raise RateLimited(max(self.ahead, 1.0))
        self._queued += 1
        try:
            async with asyncio.timeout(WAIT_TIMEOUT):
                return await self.begin_eventually()
        except TimeoutError:
            raise RateLimited(max(self.ahead, 1.0)) from None
        finally:
            self._queued -= 1

    async def begin_eventually(self) -> float:
        """Wait for the turn of a request for as long as it takes, and begin it."""
        async with self.line:
            await self.catch_up()
            while not (began := self._take_place()):
                await asyncio.sleep(POLL_SECONDS)
                await self.catch_up()
            return began

    def end(self, began: float, most: float = MAX_REQUEST_SECONDS) -> None:
        """End a request, and count the time that it took, at most ``most`` seconds."""
        if began in self._begun:
            self._begun.remove(began)
        self.add_work(min(self._clock() - began, most))
