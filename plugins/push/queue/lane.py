"""A lane: one stream of the queue, read by this instance, with so many entries at work at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from config.reasons import redis_code
from handlers.tasks import ended
from plugins.push.queue.queue import Away, Entry, Queue

log = structlog.get_logger(__name__)

ABANDONED = 15.0  # seconds after which an entry counts as left by a dead instance; none works on one for longer
LOOK = 5.0  # seconds between looks for such ones
TAKES = 4  # times an entry is taken; one that nobody finishes may be what kills them
PAUSE = 1.0  # seconds before Redis is asked again that was away
FAREWELL = 3.0  # seconds that what is at work may take when the server stops

Work = Callable[[Sequence[Entry]], Awaitable[None]]


class Lane:
    """Reads no more than it can work on. ``together``: all that was read at once is worked on as one."""

    def __init__(self, queue: Queue, name: str, most: int, work: Work, *, together: bool = False) -> None:
        self.name, self.most = name, most
        self._queue, self._work, self._together = queue, work, together
        self._free = most
        self._room = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self._looked = -LOOK
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
                self._start(await self._abandoned() or await self._queue.read(self.name, self._free))
            except Away as error:
                opened = opened and redis_code(error) != "NOGROUP"
                log.warning("push_lane_away", lane=self.name, cause=type(error).__name__)
                await asyncio.sleep(PAUSE)
            except Exception:
                log.exception("push_lane_failed", lane=self.name)
                await asyncio.sleep(PAUSE)

    async def _abandoned(self) -> list[Entry]:
        """What others have left, from time to time."""
        if time.monotonic() - self._looked < LOOK:
            return []
        self._looked = time.monotonic()
        found = []
        for entry, taken in await self._queue.claim(self.name, self._free, ABANDONED):
            if taken > TAKES:
                await self.poison(entry)
            else:
                found.append(entry)
        return found

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
        except Away as error:
            # Not ended: in a while they are taken again, by us or by others.
            log.warning("push_not_ended", lane=self.name, entries=len(entries), cause=type(error).__name__)
        except Exception:
            log.exception("push_failed", lane=self.name, entries=len(entries))
        finally:
            self._free += len(entries)
            self._room.set()

    async def forget_dead(self) -> None:
        """Forget instances that are no more."""
        await self._queue.forget_dead(self.name, 3600)


@contextlib.asynccontextmanager
async def running(lanes: Sequence[Lane]) -> AsyncIterator[None]:
    """Read until the block ends; what is at work then is finished, or left to others. All lanes have the same time for
    it: the end doesn't take longer the more of them are stuck."""
    readers = [asyncio.create_task(lane.read()) for lane in lanes]
    try:
        yield
    finally:
        await ended(*readers)
        tasks = [task for lane in lanes for task in lane.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL)
        await ended(*tasks)
