"""Batches: what many requests ask of the same table at the same time, asked in one statement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

MOST = 128  # keys of one statement: enough to share its cost, few enough not to keep the last one waiting


class Batch(Generic[Key, Value]):
    """Answers keys by ``load``, which gets several at once and answers in their order.

    There is no lingering: a key that comes alone is asked for at once, and those that come while a statement is on its
    way go together in the next. A busy server thus shares what a statement costs, an idle one waits for nobody.
    """

    def __init__(self, load: Callable[[Sequence[Key]], Awaitable[Sequence[Value]]]) -> None:
        self._load = load
        self._asked: deque[tuple[Key, asyncio.Future[Value]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Value:
        """The answer to one key. Raises what ``load`` raised."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Value] = loop.create_future()
        self._asked.append((key, answer))
        if self._running is None:
            # In a context of its own: the first one's may hold a transaction.
            self._running = loop.create_task(self._run(), context=Context())
        return await answer

    async def _run(self) -> None:
        try:
            while self._asked:
                taken = [self._asked.popleft() for _ in range(min(MOST, len(self._asked)))]
                try:
                    answers = await self._load([key for key, _ in taken])
                except Exception as error:
                    for _, answer in taken:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for (_, answer), found in zip(taken, answers, strict=True):
                    if not answer.done():
                        answer.set_result(found)
        finally:
            self._running = None
