"""A lane: one stream of the queue that this instance reads, with a bounded number of entries in progress."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from config.reasons import redis_code
from handlers.redis_service import REDIS_ERRORS
from handlers.tasks import ended
from plugins.push.queue.queue import Entry, Queue

log = structlog.get_logger(__name__)

ABANDONED = 15.0  # seconds after which an entry counts as abandoned by a dead instance; no entry takes longer
CLAIM_INTERVAL = 5.0  # seconds between two claims of such entries
MAX_DELIVERIES = 4  # times an entry is delivered; one that is never finished may be what kills the instances
RETRY = 1.0  # seconds before Redis is read again after a failure
STOP_TIMEOUT = 3.0  # seconds that entries in progress may take when the server stops

Work = Callable[[Sequence[Entry]], Awaitable[None]]


class Lane:
    """Reads at most as many entries as it can work on. ``together``: works on all entries of one read as a batch."""

    def __init__(self, queue: Queue, name: str, most: int, work: Work, *, together: bool = False) -> None:
        self.name, self.most = name, most
        self._queue, self._work, self._together = queue, work, together
        self._free = most
        self._room = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self._claimed_at = -CLAIM_INTERVAL
        self.poisoned = 0

    async def read(self) -> None:
        opened = False
        while True:
            try:
                if not opened:
                    await self._queue.open(self.name)
                    opened = True
                while not self._free:
                    self._room.clear()
                    await self._room.wait()
                self._start(await self._claim_abandoned() or await self._queue.read(self.name, self._free))
            except REDIS_ERRORS as error:
                opened = opened and redis_code(error) != "NOGROUP"
                log.warning("push_lane_away", lane=self.name, cause=type(error).__name__)
                await asyncio.sleep(RETRY)
            except Exception:
                log.exception("push_lane_failed", lane=self.name)
                await asyncio.sleep(RETRY)

    async def _claim_abandoned(self) -> list[Entry]:
        """Claim the entries that dead instances left, once in CLAIM_INTERVAL."""
        if time.monotonic() - self._claimed_at < CLAIM_INTERVAL:
            return []
        self._claimed_at = time.monotonic()
        entries = []
        for entry, deliveries in await self._queue.claim(self.name, self._free, ABANDONED):
            if deliveries > MAX_DELIVERIES:
                await self.poison(entry)
            else:
                entries.append(entry)
        return entries

    async def poison(self, entry: Entry) -> None:
        """Set an entry aside for good."""
        self.poisoned += 1
        log.error("push_poisoned", lane=self.name, entry=entry.id.decode())
        await self._queue.set_aside(entry)

    def _start(self, entries: list[Entry]) -> None:
        for part in [entries] if self._together and entries else [[entry] for entry in entries]:
            self._free -= len(part)
            task = asyncio.get_running_loop().create_task(self._do(part))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _do(self, entries: list[Entry]) -> None:
        try:
            await self._work(entries)
        except REDIS_ERRORS as error:
            # Not settled: this instance or another one claims them again later.
            log.warning("push_not_ended", lane=self.name, entries=len(entries), cause=type(error).__name__)
        except Exception:
            log.exception("push_failed", lane=self.name, entries=len(entries))
        finally:
            self._free += len(entries)
            self._room.set()

    async def forget_dead(self) -> None:
        """Forget instances that are gone."""
        await self._queue.forget_dead(self.name, 3600)


@contextlib.asynccontextmanager
async def running(lanes: Sequence[Lane]) -> AsyncIterator[None]:
    """Read until the block ends; then finish the entries in progress within STOP_TIMEOUT, or leave them to other
    instances. All lanes share that time, so several stuck lanes do not add up."""
    readers = [asyncio.create_task(lane.read()) for lane in lanes]
    try:
        yield
    finally:
        await ended(*readers)
        tasks = [task for lane in lanes for task in lane.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT)
        await ended(*tasks)
