"""Health checks that write: services that answer but can't be used, and the log lines about them."""

from __future__ import annotations

import asyncio
import io
import re
import time
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from config.reasons import Unfit
from handlers.http.health import LOG_INTERVAL, CachedCheck, Examiner
from handlers.http.health import services as checks_of
from models.postgres.fitness import SPACE_CHECK
from server import Server
from tests.client import Account, ask
from tests.running import Services, json_lines, place, serving
from tests.scripts.examining import examine
from tests.scripts.valkey import sentinel, valkey
from tests.waiting import SLACK, WAIT


async def health(url: str, part: str) -> str:
    """Return the health of a service; the answer must arrive within 3 seconds. A write may take PostgreSQL 10."""
    began = time.monotonic()
    answer = await ask(url, "GET", "/health")
    assert time.monotonic() - began < 3 + SLACK
    return str(answer.json[part])


async def becomes(url: str, part: str, state: str) -> None:
    async with asyncio.timeout(WAIT):
        while await health(url, part) != state:
            await asyncio.sleep(0.2)


async def shown(running: Server, fault: str) -> None:
    """Wait until the fault metric has this fault, and no other."""
    async with asyncio.timeout(WAIT):
        while True:
            text = running.app.metrics.exposition().decode()
            if named := re.findall(r'mimu_health_fault\{check="\w+",fault="(\w+)"\} 1', text):
                assert named == [fault]
                return
            await asyncio.sleep(0.2)


def reasons(log: io.StringIO, check: str) -> str:
    lines = [line for line in json_lines(log.getvalue()) if line["event"] == "check_failed" and line["check"] == check]
    return " ".join(line["reason"] for line in lines)


@pytest.mark.gen_test(timeout=60)
async def test_a_database_that_takes_no_writes_is_unhealthy(services: Services, log: io.StringIO) -> None:
    async with place(services) as shared, serving(shared) as one:
        assert await health(one.url, "database") == "ok"
        name = urlsplit(shared.dsn).path[1:]
        connection = await asyncpg.connect(shared.dsn)
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await one.app.db.pool.expire_connections()
        await becomes(one.url, "database", "error")
        assert (await ask(one.url, "GET", "/health/ready")).status == 503
        assert "accepts no writes" in reasons(log, "database")
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await connection.close()
        await one.app.db.pool.expire_connections()
        await becomes(one.url, "database", "ok")


@pytest.mark.gen_test
async def test_the_check_writes_to_the_disk(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        plan = "\n".join(row[0] for row in await one.app.db.fetch(f"EXPLAIN (ANALYZE) {SPACE_CHECK}"))
        assert "Sort Method: external" in plan, plan
        assert await one.app.db.value("SHOW work_mem") != "64kB"


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("kind", ["replica", "cluster"])
async def test_a_redis_that_can_not_be_used_is_unhealthy(
    kind: str, services: Services, tmp_path: Path, log: io.StringIO
) -> None:
    options = ["cluster-enabled yes"] if kind == "cluster" else []
    async with valkey(tmp_path, *options) as (url, redis), place(services) as shared:
        if kind == "cluster":
            await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        else:
            await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        async with serving(shared, REDIS_URL=url) as one:
            await becomes(one.url, "redis", "error")
            await shown(one, kind)
            assert {"replica": "replica, which accepts no writes", "cluster": "node of a Cluster"}[kind] in reasons(
                log, "redis"
            )
        found = await examine({"REDIS_URL": url}, "redis")
        assert any(kind in says.lower() for says in found.bad().values())


@pytest.mark.gen_test(timeout=60)
async def test_the_port_of_a_sentinel_is_named(services: Services, tmp_path: Path, log: io.StringIO) -> None:
    async with sentinel(tmp_path) as url, place(services) as shared:
        async with serving(shared, REDIS_URL=url) as one:
            await becomes(one.url, "redis", "error")
            await shown(one, "sentinel")
            assert "the port of a Sentinel" in reasons(log, "redis")
        assert "the port of a Sentinel" in " ".join((await examine({"REDIS_URL": url}, "redis")).bad().values())


@pytest.mark.gen_test
async def test_simultaneous_writes_of_a_value_are_made_once() -> None:
    made = 0

    async def write() -> None:
        nonlocal made
        made += 1
        await asyncio.sleep(0.05)
        raise OSError("no")

    remembered = CachedCheck(write)
    outcomes = await asyncio.gather(*(remembered() for _ in range(50)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unfit}
    with pytest.raises(Unfit):
        await remembered()
    assert made == 1


@pytest.mark.gen_test
async def test_a_token_shows_how_a_request_came_through_the_proxy(services: Services) -> None:
    passed = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "Host": "chat.mimu.test"}
    async with place(services) as shared, serving(shared, TRUSTED_PROXIES="127.0.0.1/32") as one:
        alice = await Account().register(one.url)
        for path in ("/health", "/health/ready"):
            said = (await ask(one.url, "GET", path, token=alice.token, headers=passed)).json
            assert said["seen"] == {"url": "https://chat.mimu.test", "address": "203.0.113.7"}
            assert "seen" not in (await ask(one.url, "GET", path, headers=passed)).json
    async with place(services) as shared, serving(shared) as one:  # which trusts no proxy
        alice = await Account().register(one.url)
        said = (await ask(one.url, "GET", "/health", token=alice.token, headers=passed)).json
        assert said["seen"] == {"url": "http://chat.mimu.test", "address": "127.0.0.1"}


@pytest.mark.gen_test
async def test_ready_reuses_the_write_of_health() -> None:
    made, fails = 0, True

    async def answers() -> None:
        return

    async def write() -> None:
        nonlocal made
        made += 1
        if fails:
            raise OSError("no")

    checks = checks_of(answers, write, Redis(), lambda: True, uuid4())
    everything, ready = Examiner({"database": checks["database"]}), Examiner({"database": checks["database"]})
    assert (await everything.examine())["database"] == "error"
    fails = False
    for _ in range(20):  # as steady as the outcome that counts
        assert await ready.examine() == {"database": "error"}
    assert made == 1


@pytest.mark.gen_test
async def test_a_caller_that_gives_up_does_not_cancel_the_write_of_others() -> None:
    ended = asyncio.Event()

    async def write() -> None:
        await asyncio.sleep(0.1)
        ended.set()

    remembered = CachedCheck(write)
    impatient = asyncio.create_task(remembered())
    patient = asyncio.create_task(remembered())
    await asyncio.sleep(0.01)
    impatient.cancel()
    await patient
    assert ended.is_set()


@pytest.mark.gen_test
async def test_a_check_that_goes_on_failing_is_logged_once_a_minute(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    fails = True
    monkeypatch.setattr("handlers.http.health.time.monotonic", lambda: now)

    async def check() -> None:
        if fails:
            raise ConnectionRefusedError(111, "refused")

    examiner = Examiner({"redis": check})
    for _ in range(5):
        assert await examiner.examine() == {"redis": "error"}
    now += LOG_INTERVAL
    await examiner.examine()
    fails = False
    assert await examiner.examine() == {"redis": "ok"}
    events = [line["event"] for line in json_lines(log.getvalue())]
    assert events == ["check_failed", "check_failed", "check_recovered"]
