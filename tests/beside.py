"""Cases of one test that run beside each other: where a test mostly waits, all its cases wait at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

MOST = 8  # cases at a time; each has a numbered database of Redis, of which there are 15

Test = Callable[..., Awaitable[None]]
_turns: ContextVar[asyncio.Lock | None] = ContextVar("turns", default=None)


@contextlib.asynccontextmanager
async def turn() -> AsyncIterator[None]:
    """Work that would keep the other cases' servers waiting for too long, such as the start of one: one at a time."""
    async with _turns.get() or contextlib.nullcontext():
        yield


def beside(names: str | Sequence[str], values: Iterable[Any]) -> Callable[[Test], Test]:
    """Run a test once for each value, as ``pytest.mark.parametrize`` does, but all of them at the same time.

    Several of these decorators multiply. A case has a folder in ``tmp_path`` for itself, and shares every other
    fixture. Each case runs to its end, and a failure says which case it is.
    """
    single = isinstance(names, str)
    fields = (names,) if isinstance(names, str) else tuple(names)
    given = [dict(zip(fields, (value,) if single else value, strict=True)) for value in values]

    def decorate(test: Test) -> Test:
        single_test = getattr(test, "single_case", test)
        cases = [{**more, **case} for more in given for case in getattr(test, "cases", [{}])]
        signature = inspect.signature(test)
        left = [parameter for name, parameter in signature.parameters.items() if name not in fields]
        assert len(left) == len(signature.parameters) - len(fields)

        @functools.wraps(single_test)
        async def all_cases(**fixtures: Any) -> None:
            await _run(single_test, cases, fixtures)

        all_cases.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        all_cases.single_case, all_cases.cases = single_test, cases  # type: ignore[attr-defined]
        return all_cases

    return decorate


async def _run(test: Test, cases: Sequence[dict[str, Any]], fixtures: dict[str, Any]) -> None:
    places, turns = asyncio.Semaphore(MOST), asyncio.Lock()

    async def run(number: int, case: dict[str, Any]) -> None:
        _turns.set(turns)
        own = dict(fixtures)
        if isinstance(own.get("tmp_path"), Path):
            own["tmp_path"] /= f"case{number}"
            own["tmp_path"].mkdir()
        async with places:
            await test(**own, **case)

    results = await asyncio.gather(*(run(*one) for one in enumerate(cases)), return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, BaseException):
            result.add_note(f"in the case {case}")
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases failed", failures)
