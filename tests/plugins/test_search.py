"""The user search against the plainest model of it, whatever the ids; and that it stays with its indexes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models import profiles
from models.database import Database
from tests.client import Account
from tests.running import Services, connected, place, serving
from tests.thorough import rounds

VIEWER = uuid4()

# Few letters, so that ids share parts and repeat themselves; of either case, with the sign that LIKE gives a meaning.
_LETTERS = "abAB_0z"
_IDS = st.one_of(
    st.text(_LETTERS, min_size=3, max_size=32),
    st.builds(
        lambda part, tail: ((part * 32)[: 32 - len(tail)]) + tail,
        st.text(_LETTERS, min_size=1),
        st.text("ab_z", max_size=3),
    ),
).map(lambda text: text[:32])


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[str], str]:
    """Ids, and a q: any, or a part of one of them in other letters."""
    ids = draw(st.lists(_IDS, max_size=25, unique_by=str.lower))
    anything = st.text(_LETTERS, min_size=2, max_size=32)
    if not ids or draw(st.booleans()):
        return ids, draw(anything)
    whole = draw(st.sampled_from(ids))
    begin = draw(st.integers(0, len(whole) - 2))
    part = whole[begin : draw(st.integers(begin + 2, len(whole)))]
    return ids, draw(st.sampled_from([part, part.swapcase()]))


async def add(connection: asyncpg.Connection, ids: Iterable[str]) -> None:
    keys = [(public_id, hashlib.sha256(public_id.encode()).digest()) for public_id in ids]
    await connection.executemany(
        """INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id, fingerprint)
           VALUES ($1, 'x', $2, $2, 1, $3)""",
        [(public_id, key, key.hex()) for public_id, key in keys],
    )


async def found(db: Database, q: str, limit: int = 50) -> list[str]:
    return [row["public_id"] for row in await profiles.find(db, q, VIEWER, limit)]


@asynccontextmanager
async def database(services: Services) -> AsyncIterator[tuple[Database, asyncpg.Connection]]:
    """A database as a server has it, and a connection by which it is filled: a trigger adds 30 rows to each user."""
    async with place(services) as shared, Database(shared.dsn).open() as db, connected(shared) as filling:
        yield db, filling


def judge(ids: list[str], q: str, limit: int, answer: list[str]) -> None:
    """Assert that the search may return these results."""
    matches = sorted((public_id for public_id in ids if q.lower() in public_id.lower()), key=str.lower)
    beginning = [public_id for public_id in matches if public_id.lower().startswith(q.lower())]
    rest = [public_id for public_id in matches if public_id not in beginning]
    # Of those that begin with q the first by the alphabet, with q itself before all; it has no letter more.
    shown = beginning[:limit]
    assert answer[: len(shown)] == shown
    others = answer[len(shown) :]
    assert set(others) <= set(rest)
    assert others == sorted(set(others), key=str.lower)
    assert len(others) == min(limit - len(shown), len(rest))


def test_any_search_finds_what_the_plain_model_finds(services: Services) -> None:
    with asyncio.Runner() as runner:
        open_database = database(services)
        db, filling = runner.run(open_database.__aenter__())

        @settings(max_examples=rounds(60, thorough=1_000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(searches(), st.sampled_from([1, 2, 3, 50]))
        # Two that begin with q and repeat it 30 times each stand before the one that only holds it.
        @example((["a" * 32, "a" * 31 + "b", "zaaz"], "aa"), 3)
        # One that repeats q hides another, unless more is read than is shown.
        @example((["z" + "ab" * 15, "zzabz"], "ab"), 2)
        def judged(search: tuple[list[str], str], limit: int) -> None:
            async def both() -> list[str]:
                await filling.execute("DELETE FROM users")
                rotations = await filling.fetchval("SELECT count(*) FROM user_rotations")
                assert rotations == 0, "the deleted leave nothing behind"
                await add(filling, search[0])
                return await found(db, search[1], limit)

            judge(*search, limit, runner.run(both()))

        try:
            judged()
        finally:
            runner.run(open_database.__aexit__(None, None, None))


@pytest.mark.gen_test
async def test_more_than_fifty_match(services: Services) -> None:
    async with database(services) as (db, filling):
        begin = [f"Bo{n:03}" for n in range(30)]
        hold = [f"{n:03}_BO_{n:03}" for n in range(200)]
        await add(filling, [*hold, *begin, "bo_", "bob"])
        answer = await found(db, "bo")
        judge([*hold, *begin, "bo_", "bob"], "bo", 50, answer)
        assert answer[:32] == [*begin, "bo_", "bob"]
        assert len(answer) == 50
        # Those that begin with q leave no place for others.
        await add(filling, [f"bO9{n:03}" for n in range(60)])
        assert all(name.lower().startswith("bo") for name in await found(db, "BO"))


@pytest.mark.gen_test
async def test_a_search_sees_accounts_come_change_and_go(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        me = await Account("searcher").register(server.url)
        other = await Account("Marianne_X").register(server.url)

        async def names(q: str) -> list[str]:
            return [item["public_id"] for item in (await me.get(f"/users/search?q={q}")).json]

        assert await names("ANNE_x") == ["Marianne_X"]
        db = server.app.db
        await db.execute("UPDATE users SET public_id = 'MARIANNE_x' WHERE public_id = 'Marianne_X'")
        assert await names("anne") == ["MARIANNE_x"]
        await db.execute("UPDATE users SET public_id = 'Marie' WHERE public_id = 'MARIANNE_x'")
        assert (await names("anne"), await names("arie")) == ([], ["Marie"])
        await db.execute("DELETE FROM users WHERE public_id = 'Marie'")
        assert await names("arie") == []
        assert await db.value("SELECT count(*) FROM user_rotations") == len(me.public_id) - 2
        assert other.user_id


@pytest.mark.gen_test
async def test_the_plan_that_postgres_keeps_reads_by_index(services: Services) -> None:
    """A plan for any q, which a connection comes to use after five searches, must not read a table from end to end."""
    async with database(services) as (db, filling):
        await add(filling, [f"{n * 7919 % 10_007:05}_{n % 26:02}" for n in range(5_000)])
        await filling.execute("ANALYZE users, user_rotations")
        async with db.transaction():  # on one connection
            await db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            await db.execute(f"PREPARE search (text, text, uuid) AS {profiles._find(50)}")
            rows = await db.fetch(f"EXPLAIN EXECUTE search ('ab', 'ab{{', '{VIEWER}')")
            plan = "\n".join(row[0] for row in rows)
            await db.execute("DEALLOCATE search")
        assert "Seq Scan on users" not in plan, plan
        assert "Seq Scan on user_rotations" not in plan, plan
