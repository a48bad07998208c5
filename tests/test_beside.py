"""Cases beside each other are all run, all of them at once, and named when they fail."""

from __future__ import annotations

import asyncio
import inspect
import time
from pathlib import Path

import pytest

from tests.beside import MOST, beside

NUMBERS = [(1, "one"), (2, "two"), (3, "three")]


@pytest.mark.gen_test
async def test_each_combination_is_run_once_and_in_a_folder_for_itself(tmp_path: Path) -> None:
    ran = []

    @beside("letter", "ab")
    @beside(("number", "word"), NUMBERS)
    async def check(tmp_path: Path, letter: str, number: int, word: str) -> None:
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "mine").touch()
        ran.append((letter, number, word))

    assert list(inspect.signature(check).parameters) == ["tmp_path"]
    await check(tmp_path=tmp_path)
    assert sorted(ran) == [(letter, number, word) for letter in "ab" for number, word in NUMBERS]


@pytest.mark.gen_test
async def test_they_wait_together_but_not_too_many_of_them() -> None:
    running, most = 0, 0

    @beside("number", range(MOST + 2))
    async def check(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1

    started = time.monotonic()
    await check()
    assert most == MOST
    assert time.monotonic() - started >= 0.1


@pytest.mark.gen_test
async def test_failures_are_raised_with_their_cases_and_the_others_still_run() -> None:
    ended = []

    @beside("number", [0, 1, 2, 3])
    async def check(number: int) -> None:
        await asyncio.sleep(0.01 * number)
        assert number in (1, 3, *failing)
        ended.append(number)

    failing = [2]
    with pytest.raises(AssertionError) as one:
        await check()
    assert (one.value.__notes__, ended) == (["in the case {'number': 0}"], [1, 2, 3])
    failing.clear()
    with pytest.raises(BaseExceptionGroup) as several:
        await check()
    assert [error.__notes__ for error in several.value.exceptions] == [
        ["in the case {'number': 0}"],
        ["in the case {'number': 2}"],
    ]
