"""The throttle of uploads: no limit while the loop is on time, lower while it is late, and never zero."""

from __future__ import annotations

import asyncio
import time

import pytest

from handlers.http import upload_pace as pace
from handlers.http.upload_pace import Pace
from tests.waiting import WAIT, until


@pytest.mark.gen_test
async def test_uploads_are_slowed_while_the_loop_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LEAST", 1e6)
    ours = Pace()
    for _ in range(pace.FEW + 1):
        ours.begin()
    for _ in range(100):
        await ours.take(1 << 20)
        time.sleep(0.015)  # blocks the loop
        await asyncio.sleep(0)
        if ours.rate == pace.LEAST:
            break
    assert ours.rate < pace.MOST
    slowed = ours.rate
    started = time.monotonic()
    for _ in range(3):
        await ours.take(int(slowed / 10))
    assert time.monotonic() - started > 0.15
    monkeypatch.setattr(pace, "LATE", 9.0)  # a busy machine is late by itself
    monkeypatch.setattr(pace, "SOON", 8.0)
    for _ in range(400):
        await asyncio.sleep(0.01)
        if ours.rate >= pace.MOST:
            break
    assert ours.rate > slowed, "it comes back"
    ours.rate = 1.0
    ours.end()
    async with asyncio.timeout(WAIT):  # a few are not held back: at that rate it would take 30,000 years
        await ours.take(1 << 40)
    for _ in range(pace.FEW):
        ours.end()


@pytest.mark.gen_test
async def test_the_limit_ends_with_the_last_upload() -> None:
    ours = Pace()
    ours.begin()
    ours.rate = 1.0
    ours.end()
    await until(lambda: ours.rate == pace.MOST)
    async with asyncio.timeout(WAIT):
        await ours.take(1 << 40)
