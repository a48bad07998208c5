"""How long a test waits for what must happen: long, because it costs nothing when all goes well.

A bound of a few seconds judges the machine and not the server: with six processes of tests on two processors a step
that takes 20 ms alone has taken 5 s. Where the server promises a time, a test adds ``SLACK`` to it, and is made so that
a server which breaks the promise needs longer than both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WAIT = 30.0  # seconds for what must happen
SLACK = 5.0  # seconds that a busy machine may add to a time that the server promises


async def until(condition: Callable[[], object], seconds: float = WAIT) -> None:
    """Return when the condition is true. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
