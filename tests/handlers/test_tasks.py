"""Tasks that are told to stop, and end."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from handlers.tasks import ended


@pytest.mark.gen_test
async def test_a_task_ends_also_when_its_cancellation_was_swallowed() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
                continue
            swallowed += 1
        await asyncio.sleep(60)

    async def fails() -> None:
        raise ZeroDivisionError

    tasks = [asyncio.create_task(work) for work in (stubborn(), fails(), asyncio.sleep(60))]
    await asyncio.sleep(0)
    await ended(*tasks)
    assert swallowed == 2
    assert all(task.done() for task in tasks)
    await ended()
