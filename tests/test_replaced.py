"""A primary that may have been replaced: its answers count only after all hosts were queried."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from handlers.redis_service import redis_client
from models.database import Database, Unavailable
from models.postgres.cluster import Cluster, fenced
from models.postgres.epochs import Epoch
from tests.nemesis.databases import databases
from tests.replication import Machine, machines
from tests.running import Services, place
from tests.test_failover import eventually, folder, pair_of_machines

__all__ = ["folder"]


@contextlib.asynccontextmanager
async def known_pair(folder: Path) -> AsyncIterator[tuple[Machine, Machine, Cluster]]:
    """A primary, its standby, and a cluster that has used the primary and has no connection just now."""
    async with pair_of_machines(folder) as (made, first, second):
        cluster = await fenced(made.dsn(), folder / "data")
        cluster.settle = _settled
        assert await reached(cluster) == first.port
        yield first, second, cluster


async def _settled(cluster: Cluster, host: Any) -> None:
    """In place of an epoch, which takes its time."""


async def reached(cluster: Cluster) -> int:
    """The port that a new connection reaches."""
    connection = await cluster.connect()
    try:
        return int(await connection.fetchval("SELECT current_setting('port')"))
    finally:
        await connection.close()


async def starts_again(machine: Machine) -> None:
    """As a primary that waits for no standby: it would acknowledge whatever comes."""
    machine.stand_alone()
    await machine.start()


@pytest.mark.gen_test(timeout=60)
async def test_a_primary_that_has_started_again_is_used_once_the_others_were_asked(folder: Path) -> None:
    async with known_pair(folder) as (first, second, cluster):
        first.kill()
        await starts_again(first)
        assert await reached(cluster) == first.port, "no other host has replaced it"
        first.kill()
        await second.promote()
        await starts_again(first)
        assert await reached(cluster) == second.port


@pytest.mark.gen_test(timeout=60)
async def test_a_slow_host_may_be_the_one_that_has_replaced_a_primary(folder: Path) -> None:
    async with known_pair(folder) as (first, second, cluster):
        first.kill()
        await second.promote()
        await starts_again(first)
        second.freeze()
        asked = asyncio.ensure_future(reached(cluster))
        try:
            await asyncio.sleep(1)
            assert not asked.done()
        finally:
            second.thaw()
        assert await asked == second.port


@pytest.mark.gen_test(timeout=60)
async def test_a_promotion_that_was_seen_counts_before_its_epoch_has_begun(folder: Path) -> None:
    async with known_pair(folder) as (first, second, cluster):
        held = await cluster.connect()
        await second.promote()
        await cluster.elect()
        assert held.is_closed()
        second.freeze()  # now only the former primary answers
        try:
            with pytest.raises(OSError, match=rf"{first.spec}: is on an older timeline"):
                await cluster.connect()
            beside = await fenced(cluster.dsn, folder / "data")
            with pytest.raises(OSError, match=rf"{first.spec}: is on an older timeline"):
                await beside.connect()
        finally:
            second.thaw()


@pytest.mark.gen_test(timeout=60)
async def test_a_read_from_a_replaced_primary_does_not_count_as_replicated(folder: Path) -> None:
    async with pair_of_machines(folder) as (made, first, second):
        db = Database(await fenced(made.dsn(), folder / "data"), 4)
        Epoch(db)
        async with db.open():
            await db.replicated()
            assert await db.value("SELECT current_setting('port')::int") == first.port
            first.kill()
            await second.promote()

            async def moved() -> bool:
                with contextlib.suppress(Unavailable):
                    return bool(await db.value("SELECT current_setting('port')::int") == second.port)
                return False

            await asyncio.create_task(eventually(moved))  # another request
            with pytest.raises(Unavailable, match="replaced"):
                await db.replicated()
            assert await moved()
            await db.replicated()


@pytest.mark.gen_test(timeout=90)
async def test_no_server_shows_the_former_state_once_another_one_shows_the_new_one(
    services: Services, folder: Path
) -> None:
    """The former primary is alive, as one that has thawed, and so are the connections to it."""
    async with (
        pair_of_machines(folder) as (made, first, second),
        place(services) as shared,
        redis_client(shared.redis) as redis,
    ):
        one, other = [Database(await fenced(made.dsn(), folder / name, redis), 4) for name in ("one", "other")]
        Epoch(one), Epoch(other)

        async def shown(db: Database) -> int:
            return int(await db.value("SELECT current_setting('port')::int"))

        async with one.open():
            assert await shown(one) == first.port
            await second.promote()
            asking = asyncio.create_task(_asks_on(one))
            async with other.open():
                assert await shown(other) == second.port
                with contextlib.suppress(Unavailable):
                    assert await shown(one) == second.port
                asking.cancel()


async def _asks_on(db: Database) -> None:
    """Query every 50 ms, so that the last answer of Redis is not always a fresh one."""
    while True:
        with contextlib.suppress(Unavailable):
            await db.value("SELECT 1")
        await asyncio.sleep(0.05)


@pytest.mark.gen_test(timeout=60)
async def test_every_failure_to_connect_is_an_outage(folder: Path) -> None:
    async with machines(folder) as made:
        first = await made.primary()
        async with Database(made.dsn(), 2).open() as db:
            await first.value("ALTER ROLE mimu PASSWORD 'another'")
            for connection in list(db.cluster._open):
                connection.terminate()
            with pytest.raises(Unavailable):
                await db.value("SELECT 1")
            with pytest.raises(Unavailable):
                async with db.transaction():
                    raise AssertionError("there is no connection")


@pytest.mark.gen_test(timeout=90)
async def test_no_standby_receives_more_after_they_were_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one takes from a frozen primary afterwards is acknowledged when that thaws, and the other one, which was
    promoted, does not have it."""
    async with databases(folder / "postgres") as stored:
        former, (one, other) = stored.primary, stored.standbys
        [to_one] = await former.rows(f"SELECT pid FROM pg_stat_replication WHERE application_name = '{one.name}'")
        [receiver] = await other.rows("SELECT pid FROM pg_stat_wal_receiver")
        os.kill(receiver["pid"], signal.SIGSTOP)
        os.kill(to_one["pid"], signal.SIGSTOP)
        promote = Machine.promote

        async def promote_late(machine: Machine) -> None:
            receives()
            await asyncio.sleep(0.5)
            await promote(machine)

        def receives() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(receiver["pid"], signal.SIGCONT)

        monkeypatch.setattr(Machine, "promote", promote_late)
        writer = await former.connect()
        try:
            statement = "INSERT INTO instances (id) VALUES (gen_random_uuid()) RETURNING id"
            written = asyncio.ensure_future(writer.fetchval(statement))
            await asyncio.sleep(0.5)  # it is in the socket of the other one, and nowhere else
            former.freeze()
            asyncio.get_running_loop().call_later(2, receives)
            await stored.fail_over()
            former.thaw()
            await asyncio.wait([written], timeout=2)
            if written.done() and written.exception() is None:
                there = await stored.primary.value("SELECT count(*) FROM instances WHERE id = $1", written.result())
                assert there == 1, "it was acknowledged, and is lost"
        finally:
            writer.terminate()
