"""Failovers: a primary that dies, freezes, comes back or has a twin, and what servers and their users see of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from config import settings
from handlers.redis_service import redis_client
from models.database import Database, Unavailable
from models.postgres import migrations
from models.postgres.cluster import Cluster, fenced
from models.postgres.epochs import Epoch
from scripts.checks import database
from server import Server
from tests.client import Account
from tests.conftest import memory
from tests.plugins.chatting import message
from tests.replication import PASSWORD, Machine, Machines, machines
from tests.running import Place, Services, json_lines, place, serving
from tests.waiting import SLACK, WAIT

ANSWER = 3.5  # seconds: the contract's three, and a slow machine


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is room: several clusters are made here."""
    path = Path(tempfile.mkdtemp(prefix="mimu-failover-", dir=memory()))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.asynccontextmanager
async def pair_of_machines(folder: Path) -> AsyncIterator[tuple[Machines, Machine, Machine]]:
    """A migrated primary and its standby."""
    async with machines(folder) as made:
        primary = await made.primary()
        await migrations.migrate(made.dsn())
        standby = await made.standby(primary, "second")
        await standby.caught_up(primary)
        yield made, primary, standby


@contextlib.asynccontextmanager
async def cluster_server(services: Services, dsn: str, data: Path, **given: str) -> AsyncIterator[Server]:
    given |= {"MIMU_DATA_DIR": str(data)}
    async with place(services) as shared, serving(Place(dsn, shared.redis), **given) as server:
        yield server


async def takes_over(dsn: str, seconds: float = WAIT) -> None:
    """Wait until the host of a URL is a primary whose epoch was begun."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(OSError):
                await (await Cluster(dsn).connect(timeout=2)).close()
                return
            await asyncio.sleep(0.1)


async def eventually(question: Any, seconds: float = WAIT) -> Any:
    """Ask until the answer is true."""
    async with asyncio.timeout(seconds):
        while not (answer := await question()):
            await asyncio.sleep(0.1)
    return answer


async def hosts_of(db: Database, number: int = 8) -> set[int]:
    """The ports that connections of a pool reach, with several open at once."""

    async def port() -> int:
        return int(await db.value("SELECT current_setting('port') FROM pg_sleep(0.02)"))

    return set(await asyncio.gather(*(port() for _ in range(number))))


@pytest.mark.gen_test(timeout=120)
async def test_a_former_primary_that_comes_back_is_not_used(folder: Path, log: io.StringIO) -> None:
    async with pair_of_machines(folder) as (made, first, second):
        db = Database(await fenced(made.dsn(), folder / "data"), 12)
        epoch = Epoch(db)
        async with db.open():
            before = epoch.id
            assert await hosts_of(db) == {first.port}
            first.kill()
            await second.promote()

            async def answers() -> bool:
                try:
                    return await hosts_of(db) == {second.port}
                except Unavailable:
                    return False

            await eventually(answers)
            assert epoch.id not in (before, UUID(int=0))
            await first.start()
            for _ in range(5):
                for connection in list(db.cluster._open):
                    connection.terminate()
                assert await hosts_of(db, 12) == {second.port}
            await db.cluster.watch()
            standing = db.cluster.host_in_use()
            assert (standing.host, standing.timeline) == (second.spec, 2) and standing.refused > 0
            refusals = [line for line in json_lines(log.getvalue()) if line["event"] == "database_host_refused"]
            assert [line["host"] for line in refusals] == [first.spec], "said once a minute"
            assert (refusals[0]["reason"], refusals[0]["timeline"], refusals[0]["expected_timeline"]) == ("older", 1, 2)

        # An instance that starts now finds the fence, also when it reaches only the former primary.
        for found in (folder / "data", None):
            fresh = Database(await fenced(made.dsn(), found))
            async with fresh.open():
                assert await hosts_of(fresh) == {second.port}
        core = settings.core({"DATABASE_URL": made.dsn(), "MIMU_DATA_DIR": str(folder / "data")})
        found = {finding.part: finding async for finding in database.examination(core).look()}
        assert found["hosts"].state == "wrong"
        assert f"{first.spec} (timeline 1)" in found["hosts"].says and second.spec in found["hosts"].says
        assert found["primary"].state == "good"
        lonely = Database(await fenced(made.dsn(first), folder / "data"))
        with pytest.raises(Unavailable, match=rf"{first.spec}.*older"):
            async with lonely.open():
                raise AssertionError("the former primary was taken")
        assert PASSWORD not in log.getvalue()


@pytest.mark.gen_test(timeout=120)
async def test_a_silent_primary_is_left_and_not_returned_to_when_it_thaws(folder: Path) -> None:
    async with pair_of_machines(folder) as (made, first, second):
        db = Database(await fenced(made.dsn(), folder / "data"), 6)
        steady = db.steady()
        Epoch(db)
        async with db.open(), steady.open():
            assert await hosts_of(db) == {first.port} == await hosts_of(steady, 1)
            first.freeze()
            try:
                await second.promote()
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    await db.value("SELECT 1")
                assert time.monotonic() - began < ANSWER + SLACK

                async def answers() -> bool:
                    try:
                        return await hosts_of(db, 1) == {second.port} == await hosts_of(steady, 1)
                    except Unavailable:
                        return False

                await eventually(answers)
            finally:
                first.thaw()
            assert await hosts_of(db) == {second.port} == await hosts_of(steady, 1)


@pytest.mark.gen_test(timeout=120)
async def test_a_primary_that_froze_while_nothing_was_asked_is_left_when_it_thaws(folder: Path) -> None:
    """Nothing has failed, so only asking all hosts finds that another one was promoted."""
    async with pair_of_machines(folder) as (made, _, second):
        db = Database(await fenced(made.dsn(), folder / "data"), 4)
        Epoch(db)
        async with db.open():
            await hosts_of(db)
            asked = asyncio.ensure_future(db.value("SELECT pg_sleep(1.2)"))
            await asyncio.sleep(0.1)
            await second.promote()
            await db.cluster.watch()
            with pytest.raises(Unavailable):
                await asked  # in use, and ended all the same
            assert await hosts_of(db) == {second.port}


@pytest.mark.gen_test(timeout=60)
async def test_a_standby_that_is_promoted_during_an_election_wins_it(folder: Path) -> None:
    """The silent former primary has until the end of it to answer; who has answered may have been promoted since."""
    async with pair_of_machines(folder) as (made, first, second):
        first.freeze()
        try:
            election = asyncio.ensure_future(Cluster(made.dsn()).elect())
            await asyncio.sleep(0.2)
            await second.promote()
            promoted = time.monotonic()
            assert str(await election) == second.spec
            assert time.monotonic() - promoted < 1.5 + SLACK
        finally:
            first.thaw()


@pytest.mark.gen_test(timeout=60)
async def test_a_caller_that_waits_for_an_epoch_contacts_no_other_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair_of_machines(folder) as (made, first, _):
        db = Database(await fenced(made.dsn(), folder / "data"), 4)
        Epoch(db)
        async with db.open():
            settle, asked = db.cluster.settle, 0
            assert settle is not None

            async def slowly(cluster: Cluster, host: Any) -> None:
                await asyncio.sleep(0.8)
                await settle(cluster, host)

            async def elect() -> Any:
                nonlocal asked
                asked += 1
                raise OSError("all hosts are asked")

            await first.value("UPDATE sync_epoch SET place = '' RETURNING 1")
            monkeypatch.setattr(db.cluster, "settle", slowly)
            monkeypatch.setattr(db.cluster, "elect", elect)
            connections = await asyncio.gather(*(db.cluster.connect() for _ in range(3)))
            assert asked == 0
            for connection in connections:
                connection.terminate()


@pytest.mark.gen_test(timeout=120)
async def test_one_of_two_promoted_standbys_is_used(services: Services, folder: Path) -> None:
    async with pair_of_machines(folder) as (made, first, second), place(services) as shared:
        third = await made.standby(first, "third")
        async with redis_client(shared.redis) as redis:
            start = await fenced(made.dsn(), folder / "one", redis)
            async with Database(start).open() as db:
                Epoch(db)
            first.kill()
            await asyncio.gather(second.promote(), third.promote())
            # Each instance reaches another one of the two first.
            one = Database(await fenced(made.dsn(second, third), folder / "one", redis))
            other = Database(await fenced(made.dsn(third, second), folder / "other", redis))
            for db in (one, other):
                Epoch(db)
            async with one.open():
                assert await hosts_of(one) == {second.port}
                async with other.open():
                    assert await hosts_of(other) == {second.port}
                    assert one.cluster.fence.mark == other.cluster.fence.mark
                # Redis has lost everything; the file knows it still.
                await redis.flushdb()
                again = Database(await fenced(made.dsn(third, second), folder / "other", redis))
                Epoch(again)
                async with again.open():
                    assert await hosts_of(again) == {second.port}


@pytest.mark.gen_test(timeout=120)
async def test_a_host_that_is_silent_keeps_no_script_from_its_work(folder: Path) -> None:
    async with machines(folder) as made:
        first = await made.primary()
        second = await made.standby(first, "second")
        await second.caught_up(first)
        first.freeze()
        try:
            await second.promote()
            began = time.monotonic()
            assert await migrations.migrate(made.dsn()) == migrations.versions()
            assert await migrations.applied(made.dsn()) == migrations.versions()
            assert time.monotonic() - began < 60
        finally:
            first.thaw()
        assert await first.value("SELECT to_regclass('users')::text") is None


@pytest.mark.gen_test(timeout=60)
async def test_the_error_contains_the_reason_of_every_host(folder: Path) -> None:
    async with pair_of_machines(folder) as (made, first, second):
        first.freeze()
        try:
            with pytest.raises(OSError, match=rf"{first.spec}: TimeoutError.*; {second.spec}: is a standby"):
                await Cluster(made.dsn(first, second)).connect()
            with pytest.raises(OSError, match=rf"{first.spec}: TimeoutError"):
                await Cluster(made.dsn(first)).connect(timeout=0.3)
        finally:
            first.thaw()
    assert urlsplit(made.dsn()).password == PASSWORD


async def _two(server: Server) -> tuple[Account, Account, str]:
    alice, bob = await Account().register(server.url), await Account().register(server.url)
    chat = (await alice.post("/chats", {"type": "direct", "participants": [bob.public_id]})).json
    return alice, bob, chat["id"]


@pytest.mark.gen_test(timeout=180)
async def test_sockets_are_closed_at_a_failover_and_nothing_is_stored_in_between(
    services: Services, folder: Path, log: io.StringIO
) -> None:
    async with (
        pair_of_machines(folder) as (made, first, second),
        cluster_server(services, made.dsn(), folder / "data") as server,
    ):
        alice, bob, chat = await _two(server)
        async with alice.socket() as hers, bob.socket() as his:
            before = hers.ready["epoch"]
            await second.caught_up(first)
            first.kill()
            await second.promote()

            async def posted() -> Any:
                answer = await alice.post(f"/chats/{chat}/messages", message("after"))
                assert answer.status in (201, 503)
                return answer.status == 201

            await eventually(posted)
            for socket in (hers, his):
                await socket.expect("closed", code=1012)
        async with alice.socket() as hers:
            assert hers.ready["epoch"] == str(server.app.epoch.id) != before
        # What was stored was stored in the new life.
        stored = await second.value("SELECT max(position) FROM messages")
        assert stored >= await second.value("SELECT base FROM sync_epoch")
        await first.start()
        listed = [(await alice.get("/chats")).json for _ in range(100)]
        assert all(len(chats) == 1 for chats in listed)
        await server.app.db.cluster.watch()
        health = (await alice.get("/health")).json
        assert health["database_host"]["host"] == second.spec and health["database_host"]["timeline"] == 2
        text = server.app.metrics.exposition().decode()
        assert f'mimu_postgres_timeline{{host="{second.spec}"}} 2.0' in text
        assert f'mimu_postgres_hosts_refused_total{{host="{first.spec}",reason="older"}}' in text


@pytest.mark.gen_test(timeout=180)
async def test_a_repetition_is_acked_when_it_is_replicated_and_is_announced(services: Services, folder: Path) -> None:
    async with pair_of_machines(folder) as (made, first, second):
        await first.value("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await first.value("SELECT pg_reload_conf()")
        async with cluster_server(services, made.dsn(), folder / "data") as server:
            alice, bob, chat = await _two(server)
            async with bob.socket() as his:
                second.freeze()
                try:
                    body = message("held")
                    for _ in range(3):  # committed here after the first time, and nowhere else
                        answer = await alice.post(f"/chats/{chat}/messages", body)
                        assert (answer.status, answer.code) == (503, "unavailable")
                    assert await first.value("SELECT count(*) FROM messages") == 1
                    await his.silent()
                finally:
                    second.thaw()

                async def acked() -> Any:
                    answer = await alice.post(f"/chats/{chat}/messages", body)
                    return answer.status == 200 and answer.json

                known = await eventually(acked)
                frame = await his.expect("message_new")
                assert (frame["message"]["id"], frame["seq"]) == (known["id"], known["seq"])
                assert frame["message"]["encrypted_payload"] == body["encrypted_payload"]
                assert (await alice.post(f"/chats/{chat}/messages", body)).status == 200
                await his.silent()  # announced once by an instance, however often it is repeated
            first.kill()
            await second.promote()

            async def there() -> Any:
                answer = await bob.get(f"/chats/{chat}/messages")
                return answer.status == 200 and answer.json

            assert [m["id"] for m in await eventually(there)] == [known["id"]]
