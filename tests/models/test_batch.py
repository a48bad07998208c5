"""Batches: each caller gets its own answer, and no caller waits for a batch to fill."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from models import batch
from models.batch import Batch


@pytest.mark.gen_test
async def test_keys_that_arrive_while_a_statement_runs_share_the_next_one() -> None:
    asked: list[list[int]] = []
    go = asyncio.Event()

    async def load(keys: Sequence[int]) -> list[int]:
        asked.append(list(keys))
        await go.wait()
        return [key * 10 for key in keys]

    tens = Batch(load)
    first = asyncio.ensure_future(tens.get(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asked == [[1]]
    others = [asyncio.ensure_future(tens.get(key)) for key in (2, 3, 2)]
    gone = asyncio.ensure_future(tens.get(4))
    await asyncio.sleep(0)
    gone.cancel()
    go.set()
    assert await first == 10
    assert await asyncio.gather(*others) == [20, 30, 20]
    assert asked == [[1], [2, 3, 2, 4]]
    assert await tens.get(5) == 50


@pytest.mark.gen_test
async def test_a_failure_is_raised_in_all_callers_of_its_batch_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_KEYS", 2)

    async def load(keys: Sequence[int]) -> list[int]:
        if 13 in keys:
            raise LookupError
        return list(keys)

    same = Batch(load)
    answers = await asyncio.gather(*(same.get(key) for key in (1, 2, 13, 3, 4)), return_exceptions=True)
    assert [answer if isinstance(answer, int) else type(answer) for answer in answers] == [
        1,
        2,
        LookupError,
        LookupError,
        4,
    ]
