"""Tasks: work that goes on until the server stops, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import structlog

log = structlog.get_logger(__name__)

CANCEL_INTERVAL = 0.2  # seconds until a task that is still there is cancelled once more
PAUSE = 1.0  # seconds after work that failed for a reason that it did not expect


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended. Once is not enough: on Python 3.11 ``asyncio.wait_for``, by which redis-py
    sends, returns what it waited for and forgets the cancellation when both come in one turn of the loop."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_INTERVAL)
    await asyncio.gather(*tasks, return_exceptions=True)


class Worker:
    """One task that runs ``work`` each time something was queued for it.

    Call ``wake`` after you have queued something; it costs as much as setting an event. ``work`` processes the whole
    queue, and handles the errors that it expects; it may call ``wake`` to run again. It starts ``gather`` seconds after
    ``wake``, so that it processes more at a time.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[None]], *, gather: float = 0.0) -> None:
        self._name, self._work, self._gather = name, work, gather
        self._news = asyncio.Event()
        self._busy = False
        self.wake: Callable[[], None] = self._news.set

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work until the block ends. What is queued then stays: see ``idle``, or run ``work`` after the block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            await ended(task)

    async def idle(self) -> None:
        """Wait until all that was queued is done; for the time when a server stops."""
        while self._busy or self._news.is_set():
            await asyncio.sleep(0.01)

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            if self._gather:
                await asyncio.sleep(self._gather)
            self._news.clear()
            self._busy = True
            try:
                await self._work()
            except Exception as error:  # whatever it is, what comes next must be done
                log.error("worker_failed", worker=self._name, exc_info=error)
                await asyncio.sleep(PAUSE)
                self.wake()
            finally:
                self._busy = False
