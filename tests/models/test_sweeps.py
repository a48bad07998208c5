"""The common mechanism of all sweeps: batches shrink around bad rows, and runs end in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from models.database import Database, Unavailable
from models.sweeps import BACKLOG, Due, RowsFailed, Sweep, Sweeper, Watch
from tests.running import Place, Services, connected, place

DUE = Due("things", "n", "things WHERE NOT done", "n")
DONE = f"UPDATE things SET done = true WHERE n IN ({DUE.batch})"


@asynccontextmanager
async def things(services: Services, number: int) -> AsyncIterator[tuple[Place, Database, Any]]:
    """So many things to do, by number."""
    async with place(services) as shared, Database(shared.dsn, 2).open() as db, connected(shared) as other:
        await other.execute("CREATE TABLE things (n integer PRIMARY KEY, done boolean NOT NULL DEFAULT false)")
        await other.execute(f"INSERT INTO things SELECT generate_series(1, {number})")
        yield shared, db, other


class Seen:
    """What a sweeper reports."""

    def __init__(self) -> None:
        self.planned: list[str] = []
        self.backlog: dict[str, int] = {}
        self.failed: list[int] = []
        self.watch = Watch(self.planned.append, self.backlog.__setitem__, lambda _, rows: self.failed.append(rows))


def doing(db: Database, batches: list[int], statement: str = DONE, batch: int = 64) -> Sweep:
    async def work(limit: int) -> int:
        batches.append(limit)
        return await db.execute(statement, limit)

    return Sweep(DUE, work, batch)


@pytest.mark.gen_test
async def test_a_batch_shrinks_to_the_row_that_fails_and_grows_again(services: Services) -> None:
    async with things(services, 200) as (_, db, other):
        await other.execute("ALTER TABLE things ADD CHECK (NOT (done AND n IN (1, 2, 150)))")
        seen, batches = Seen(), list[int]()
        await Sweeper(db, seen.watch, doing(db, batches)).run()
        assert [row[0] for row in await other.fetch("SELECT n FROM things WHERE NOT done ORDER BY n")] == [1, 2, 150]
        assert [row[0] for row in await other.fetch("SELECT key FROM sweep_failures ORDER BY key")] == [
            *("(1)", "(150)", "(2)"),
        ]
        assert (seen.planned, seen.backlog, seen.failed) == (["things"], {"things": 0}, [1, 1, 1])
        assert batches[:12] == [64, 32, 16, 8, 4, 2, 1, 1, 1, 2, 4, 8]
        assert len(batches) < 40


@pytest.mark.gen_test
async def test_a_run_that_ends_before_its_work_counts_what_is_left(services: Services) -> None:
    async with things(services, BACKLOG + 500) as (_, db, _other):
        seen, batches = Seen(), list[int]()
        sweeper = Sweeper(db, seen.watch, doing(db, batches))
        await sweeper.run(seconds=0)
        assert (len(batches), seen.backlog) == (0, {"things": BACKLOG}), "not counted beyond"
        await db.execute("UPDATE things SET done = true WHERE n > 100")
        await sweeper.run(seconds=0)
        assert seen.backlog == {"things": 100}
        await sweeper.run()
        assert seen.backlog == {"things": 0}


@pytest.mark.gen_test
async def test_a_batch_that_takes_too_long_is_made_smaller(services: Services) -> None:
    """Each row takes a tenth of a second: sixteen are more than a statement may take."""
    slow = f"""WITH due AS ({DUE.batch}), waited AS (SELECT n, pg_sleep(0.1) FROM due)
               UPDATE things SET done = true WHERE n IN (SELECT n FROM waited WHERE pg_sleep IS NOT NULL)"""
    async with things(services, 24) as (_, db, other):
        seen, batches = Seen(), list[int]()
        await Sweeper(db, seen.watch, doing(db, batches, slow, batch=16)).run()
        assert batches == [16, 8, 8, 8, 8]
        assert await other.fetchval("SELECT bool_and(done) FROM things")
        assert seen.failed == []


@pytest.mark.gen_test
async def test_a_wrong_statement_blames_no_row_and_keeps_no_other_sweep(services: Services) -> None:
    async with things(services, 100) as (_, db, other):
        seen, batches, wrong = Seen(), list[int](), list[int]()
        broken = doing(db, wrong, f"UPDATE nowhere SET done = true WHERE n IN ({DUE.batch})")
        with pytest.raises(asyncpg.UndefinedTableError):
            await Sweeper(db, seen.watch, broken, doing(db, batches)).run()
        assert (len(wrong), seen.failed) == (1, [])
        assert await other.fetchval("SELECT bool_and(done) FROM things")


@pytest.mark.gen_test
async def test_while_postgresql_is_away_no_row_is_to_blame(services: Services) -> None:
    async with things(services, 100) as (_, db, other):
        seen = Seen()

        async def away(_: int) -> int:
            raise Unavailable

        with pytest.raises(Unavailable):
            await Sweeper(db, seen.watch, Sweep(DUE, away, 64)).run()
        assert seen.failed == []
        assert await other.fetchval("SELECT count(*) FROM sweep_failures") == 0


@pytest.mark.gen_test
async def test_work_may_name_the_rows_that_failed(services: Services) -> None:
    async with things(services, 10) as (_, db, other):
        seen = Seen()

        async def work(limit: int) -> int:
            rows = [row["n"] for row in await db.fetch(DUE.batch, limit)]
            await db.execute("UPDATE things SET done = true WHERE n = ANY ($1) AND n > 3", rows)
            if bad := [f"({n})" for n in rows if n <= 3]:
                raise RowsFailed(bad, ValueError())
            return len(rows)

        await Sweeper(db, seen.watch, Sweep(DUE, work, 64)).run()
        assert seen.failed == [3]
        assert await other.fetchval("SELECT count(*) FROM things WHERE done") == 7
