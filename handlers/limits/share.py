"""A share: how much of this process's time one account may take. An account that is ahead of its share waits for its
turn.

A budget (handlers/limits/ledger.py) bounds what an account may cost in minutes, and refuses. A share bounds what it may
cost in a moment, and delays: the socket is not read, the request does not begin. So others never feel more of an
account than its share, however large its budgets are, and an honest client that comes with much is served a little
later. Each instance has a loop of its own, so nothing of this is settled between instances.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from handlers.wire.costs import READS
from handlers.wire.errors import RateLimited

BURST = 0.1  # seconds of work at once: what an app asks for when it is opened, three times; four pages of 1 MiB
# Requests and slow frames of one account or address at work at once. Behind one address may be many people. What has
# been at work for longer than HELD seconds waits for something else than this server, and is not counted any more.
AT_ONCE, AT_ONCE_ADDRESS, HELD = 2, 32, 0.25
# Requests of one account that may wait, and for how many seconds: a request may take 3 in all (contract section 1).
# A client that waits for each answer before its next request waits less, by the bounds below.
WAITING, WAIT_TIMEOUT = 32, 2.0
LOOK = 0.005  # seconds between looks for a place

# What work costs, in seconds of the loop: estimates for one core of 2.4 GHz that PostgreSQL uses as well. They were
# chosen by what others felt in `python -m tests.bench hostile`.
# Of frames, which are parsed and handled (a small one counts as 4 KiB), and of answers.
BYTE = 1.5e-8
# Of a frame to many: the kernel copies it, PostgreSQL reads it again for everybody who asks /sync for it; and a queue.
FANOUT_BYTE, RECIPIENT = 4e-9, 2e-6
FANOUT_MOST = 0.25  # of one frame
# Of a request or a slow frame it is the time that it took, which counts what PostgreSQL did as well; but not more than
# its cost says, for it may have waited for others.
REQUEST_MOST = READS.seconds
OPENING = 0.02  # of a socket: the handshake, its greeting, the announcement of presence, and its end


class Waits:
    """How often and how long accounts waited for their turn, all together."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0


class Share:
    """How far ahead of its share an account is. ``rate`` is the share, in seconds of work a second."""

    __slots__ = ("_at_once", "_begun", "_clock", "_large", "_line", "_queued", "_rate", "_room", "_until", "_waits")

    def __init__(self, rate: float, at_once: int, clock: Callable[[], float], waits: Waits | None = None) -> None:
        self._rate, self._room, self._clock = rate, BURST / rate, clock
        self._until = 0.0
        self._at_once, self._waits = at_once, waits or Waits()
        self._begun: deque[float] = deque()  # when what is at work began
        self._queued = 0
        # Most accounts never wait, and few ever send a large frame.
        self._line: asyncio.Lock | None = None
        self._large: asyncio.Lock | None = None

    def work(self, seconds: float) -> None:
        """Note work that was done for the account."""
        now = self._clock()
        self._until = max(self._until, now) + seconds / self._rate

    @property
    def ahead(self) -> float:
        """Seconds that the account has to wait; negative or 0 if it need not."""
        return self._until - self._clock() - self._room

    @property
    def is_unused(self) -> bool:
        """True if the whole burst is there."""
        return self._until <= self._clock()

    @property
    def is_free(self) -> bool:
        """True if nothing of the account waits or has to."""
        return (self._line is None or not self._line.locked()) and self.ahead <= 0

    @property
    def line(self) -> asyncio.Lock:
        """The line of those who wait: who came first is the first."""
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

    async def turn(self) -> None:
        """The same, behind all that waits already."""
        async with self.line:
            await self.catch_up()

    async def give_way(self, size: int) -> None:
        """Note so many bytes of frames that were handled, and give the loop to others; until the account's next turn
        where it is ahead."""
        self.work(size * BYTE)
        await (asyncio.sleep(0) if self.is_free else self.turn())

    # Requests -------------------------------------------------------------------------------------------------------

    def begin(self) -> float:
        """Begin a request, or a frame that takes long, at once: the time, for ``end``. Returns 0 if it has to wait."""
        return 0.0 if self._queued or not self.is_free else self._take_place()

    def _take_place(self) -> float:
        now, begun = self._clock(), self._begun
        while begun and now - begun[0] > HELD:
            begun.popleft()
        if len(begun) >= self._at_once:
            return 0.0
        begun.append(now)
        return now

    def is_at_work(self, began: float) -> bool:
        """True if what began then has its place still."""
        return began in self._begun

    async def begin_in_turn(self) -> float:
        """Begin a request when its turn comes. Raises RateLimited if that would be too late, or too many wait."""
        if self._queued >= WAITING or self.ahead > WAIT_TIMEOUT:
            raise RateLimited(max(self.ahead, 1.0))
        self._queued += 1
        try:
            async with asyncio.timeout(WAIT_TIMEOUT):
                return await self.begin_whenever()
        except TimeoutError:
            raise RateLimited(max(self.ahead, 1.0)) from None
        finally:
            self._queued -= 1

    async def begin_whenever(self) -> float:
        """Begin a request when its turn comes, however late."""
        async with self.line:
            await self.catch_up()
            while not (began := self._take_place()):
                await asyncio.sleep(LOOK)
                await self.catch_up()
            return began

    def end(self, began: float, most: float = REQUEST_MOST) -> None:
        """Note the end of a request, and the time that it took, ``most`` seconds at most."""
        if began in self._begun:
            self._begun.remove(began)
        self.work(min(self._clock() - began, most))
