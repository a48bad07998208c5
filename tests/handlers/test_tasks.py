"""Tasks that are cancelled and awaited."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import structlog
import structlog.testing

from handlers import tasks
from handlers.tasks import Worker, ended


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


class Sums:
    """Sums up the queued numbers."""

    def __init__(self, gather: float = 0.0) -> None:
        self.queue: list[int] = []
        self.batches: list[list[int]] = []
        self.faults: list[Exception] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.worker = Worker("sums", self._work, gather=gather)

    def put(self, number: int) -> None:
        self.queue.append(number)
        self.worker.wake()

    async def _work(self) -> None:
        while self.queue:
            batch, self.queue = self.queue, []
            await self.go_on.wait()
            if self.faults:
                raise self.faults.pop()
            self.batches.append(batch)


@pytest.mark.gen_test
async def test_a_worker_does_together_what_came_meanwhile() -> None:
    sums = Sums()
    async with sums.worker.running():
        sums.go_on.clear()
        sums.put(1)
        await asyncio.sleep(0.01)
        sums.put(2)
        sums.put(3)
        sums.go_on.set()
        await sums.worker.idle()
    assert sums.batches == [[1], [2, 3]]


@pytest.mark.gen_test
async def test_a_worker_that_gathers_waits_for_more() -> None:
    sums = Sums(gather=0.05)
    async with sums.worker.running():
        sums.put(1)
        await asyncio.sleep(0)
        sums.put(2)
        await sums.worker.idle()
    assert sums.batches == [[1, 2]]


@pytest.mark.gen_test
async def test_a_worker_that_fails_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PAUSE", 0.01)
    sums = Sums()
    sums.faults.append(ValueError())
    with structlog.testing.capture_logs() as logs:
        async with sums.worker.running():
            sums.put(1)  # is lost
            await asyncio.sleep(0)
            sums.queue.append(2)  # without a wake: what is left is done after the pause
            await sums.worker.idle()
    assert sums.batches == [[2]]
    assert [(line["event"], line["worker"]) for line in logs] == [("worker_failed", "sums")]


@pytest.mark.gen_test
async def test_a_worker_ends_with_its_block_and_leaves_what_is_queued() -> None:
    sums = Sums()
    sums.go_on.clear()
    async with sums.worker.running():
        sums.put(1)
        await asyncio.sleep(0.01)
        sums.put(2)
    assert (sums.batches, sums.queue) == ([], [2])
    sums.put(3)
    assert sums.batches == []


@pytest.mark.gen_test
async def test_nothing_queued_is_idle() -> None:
    sums = Sums()
    async with sums.worker.running():
        await sums.worker.idle()
