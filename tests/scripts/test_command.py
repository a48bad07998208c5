"""Scripts beside a server that runs its own PostgreSQL and Valkey: they find them, and say so when there are none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.client import Account
from tests.running import program
from tests.scripts.program import script


def commands(public_id: str) -> tuple[tuple[str, ...], ...]:
    return (
        ("vouchers", "create", "--tier", "premium", "--days", "30"),
        ("cleanup",),
        ("push_test", public_id, "--list", "--json"),
        ("users", "suspend", public_id),
    )


@pytest.mark.gen_test(timeout=60)
async def test_they_find_the_services_of_the_server_that_runs_here(folder: Path) -> None:
    async with program(None, folder, MIMU_DATA_DIR=str(folder / "var")) as running:
        alice = await Account().register(running.url)
        async with alice.socket() as socket:
            for words in commands(alice.public_id):
                ended = await script(None, *words, MIMU_DATA_DIR=str(folder / "var"))
                assert (ended.code, ended.err) == (0, ""), words
                assert ended.out
            # The server is told by its own Valkey: without it, it would notice within ten seconds.
            await socket.expect("closed", code=4401)


@pytest.mark.gen_test
async def test_without_any_they_say_what_is_missing(folder: Path) -> None:
    lacking = [script(None, *words, MIMU_DATA_DIR=str(folder)) for words in commands("alice")]
    for ended in await asyncio.gather(*lacking):
        assert (ended.code, ended.out) == (78, "")
        assert "_URL: missing, and no server runs its own" in ended.err
