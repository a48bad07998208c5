"""Batches: combine concurrent look-ups of many requests in the same table into one statement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

MAX_KEYS = 128  # keys of one statement: enough to share its cost, few enough not to delay the last one


class Batch(Generic[Key, Value]):
    """Loads keys with ``load``, which gets several at once and returns the values in their order.

    It never waits for more keys: a single key is loaded at once, and keys that arrive while a statement runs go
    together into the next. So a busy server shares the cost of a statement, and an idle one adds no delay.
    """

    def __init__(self, load: Callable[[Sequence[Key]], Awaitable[Sequence[Value]]]) -> None:
        self._load = load
        self._queue: deque[tuple[Key, asyncio.Future[Value]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Value:
        """Return the value of one key. Raises what ``load`` raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Value] = loop.create_future()
        self._queue.append((key, future))
        if self._running is None:
            # In a new context: that of the first caller may have an open transaction.
            self._running = loop.create_task(self._run(), context=Context())
        return await future

    async def _run(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(MAX_KEYS, len(self._queue)))]
                try:
                    values = await self._load([key for key, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), value in zip(batch, values, strict=True):
                    if not future.done():
                        future.set_result(value)
        finally:
            self._running = None
