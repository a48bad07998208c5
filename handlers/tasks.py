"""Tasks: how those end that go on until they are told to stop."""

from __future__ import annotations

import asyncio
from typing import Any

CANCEL_INTERVAL = 0.2  # seconds until a task that is still there is told once more


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended. Once is not enough: on Python 3.11 ``asyncio.wait_for``, by which redis-py
    sends, returns what it waited for and forgets the cancellation when both come in one turn of the loop."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_INTERVAL)
    await asyncio.gather(*tasks, return_exceptions=True)
