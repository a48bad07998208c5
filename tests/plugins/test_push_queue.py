"""The queue of pushes: it outlives servers, each job is one instance's, and nothing in it grows without end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from plugins.push.breaker import Breaker
from plugins.push.queue import lane, queue
from plugins.push.queue.jobs import Job, Poison
from tests.client import Account
from tests.plugins.chatting import chat, say
from tests.plugins.pushing import pushing, registered
from tests.plugins.test_push import ring
from tests.providers.http2 import Reply
from tests.providers.providers import World, providers
from tests.running import Services, json_lines, place, program
from tests.waiting import SLACK, WAIT, until


async def people(url: str, provider: str = "fcm") -> tuple[Account, Account]:
    alice, bob = [await Account(one_time=0).register(url) for _ in range(2)]
    await registered(bob, provider)
    return alice, bob


@pytest.mark.gen_test
async def test_two_instances_send_each_push_once(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, servers=3, people=9) as (made, world):
        alice, *others = made.people
        for person in others:
            await registered(person, "fcm")
        for _ in range(5):
            await say(alice, await chat(alice, *others))
        got = [await world.google.expect("message_new") for _ in range(5 * len(others))]
        assert len({(push.token, push.data["chat_id"]) for push in got}) == len(got)
        await world.google.silent()
        consumers = await made.servers[0].app.redis.xinfo_consumers("push:fcm", queue.GROUP)
        assert len(consumers) == 3


@pytest.mark.gen_test(timeout=120)
async def test_kill_9_loses_no_push(services: Services, tmp_path: Path) -> None:
    """Of what waits for its second, for its provider to be well again, and on its way at that moment."""
    async with place(services) as shared, providers(tmp_path) as world:
        async with program(shared, tmp_path, **world.settings) as first:
            alice, bob = await people(first.url)
            chats = [await chat(alice, bob) for _ in range(3)]
            world.google.always = Reply(503, headers={"retry-after": "3"})
            await say(alice, chats[0])
            await asked(world, 1)
            world.google.always = Reply(broken="silence")
            await asyncio.sleep(3)  # the breaker lets it through again
            await say(alice, chats[1])
            await asked(world, 2)
            await say(alice, chats[2])
            await asyncio.sleep(0.4)  # it is in Redis
            first.kill()
            await first.process.wait()
        world.google.always = None
        async with program(shared, tmp_path, **world.settings):
            got = [await world.google.expect("message_new", 60) for _ in chats]
            assert {push.data["chat_id"] for push in got} == {group["id"] for group in chats}
            await world.google.silent()


async def asked(world: World, times: int) -> None:
    async with asyncio.timeout(30):
        while len(world.google.asked) < times:
            await asyncio.sleep(0.02)


@pytest.mark.gen_test(timeout=120)
async def test_jobs_that_a_dead_instance_claimed_are_sent_by_another(services: Services, tmp_path: Path) -> None:
    async with (
        place(services) as shared,
        providers(tmp_path) as world,
        program(shared, tmp_path, **world.settings) as other,
    ):
        async with program(shared, tmp_path, **world.settings) as doomed:
            alice, bob = await people(doomed.url)
            world.google.always = Reply(broken="silence")
            for _ in range(6):
                await say(alice, await chat(alice, bob))
            await asked(world, 6)
            doomed.kill()
            await doomed.process.wait()
        world.google.always = None
        for _ in range(6):
            await world.google.expect("message_new", 60)
        assert "Traceback" not in other.log_text()


@pytest.mark.gen_test
async def test_a_server_that_stops_leaves_what_waits(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, providers(tmp_path) as world:
        async with program(shared, tmp_path, **world.settings) as first:
            alice, bob = await people(first.url)
            group = await chat(alice, bob)
            await say(alice, group)
            assert await first.stop() == 0
        async with program(shared, tmp_path, **world.settings):
            await world.google.expect("message_new", chat_id=group["id"])


@pytest.mark.gen_test
async def test_an_invalid_job_is_set_aside(services: Services, tmp_path: Path) -> None:
    rubbish: list[bytes] = [b"", b"null", b"[]", b'["message_new"]', b"\xff\xfe", b'[1,"a",2,3,4,5,6,7]']
    for raw in rubbish:
        with pytest.raises(Poison):
            Job.decode(raw)
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "fcm")
        redis = made.servers[0].app.redis
        for name in ("push:judge", "push:judge.now", "push:fcm"):
            for raw in rubbish:
                await redis.xadd(name, {"job": raw})
            await redis.xadd(name, {"other": "x"})
        await say(alice, await chat(alice, bob))
        await world.google.expect("message_new")
        async with asyncio.timeout(WAIT):
            while await redis.xlen("push:poison") < 3 * (len(rubbish) + 1):
                await asyncio.sleep(0.05)
        async with asyncio.timeout(WAIT):  # what was sent is settled a moment after it came
            for name in ("push:judge", "push:judge.now", "push:fcm"):
                while await redis.xlen(name):
                    await asyncio.sleep(0.05)


@pytest.mark.gen_test
async def test_a_job_that_no_server_finishes_is_set_aside(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "ABANDONED", 0.3)
    monkeypatch.setattr(lane, "CLAIM_INTERVAL", 0.3)

    async with pushing(services, tmp_path) as (made, _):
        [push] = [feature for feature in made.servers[0].features if feature.name == "push"]
        assert push.periodic
        redis = made.servers[0].app.redis
        job = Job("message_new", uuid4(), uuid4(), 0, 2**60, uuid4())

        async def fails(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("plugins.push.sender.Batch.get", fails)
        await redis.xadd("push:fcm", {"job": job.encode()})
        async with asyncio.timeout(30):
            while not await redis.xlen("push:poison"):
                await asyncio.sleep(0.1)
        assert await redis.xlen("push:fcm") == 0


@pytest.mark.gen_test
async def test_the_queue_takes_no_more_than_it_may(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_JOBS", 5)
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "fcm")
        chats = [await chat(alice, bob) for _ in range(8)]
        world.google.always = Reply(503)
        await asyncio.gather(*(say(alice, group) for group in chats))
        await asked(world, 5)
        redis = made.servers[0].app.redis
        assert await redis.zcard("push:later") <= 5
        metrics = made.servers[0].app.metrics.exposition().decode()
        assert "mimu_push_jobs_refused_total 3.0" in metrics
        # Calls have room in any case.
        world.google.always = None
        await ring(await made.socket(alice), bob)
        await world.google.expect("call_offer")


@pytest.mark.gen_test
async def test_one_user_has_a_share_of_the_queue(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_USER_JOBS", 5)
    async with pushing(services, tmp_path, people=3) as (made, world):
        alice, bob, carol = made.people
        redis = made.servers[0].app.redis
        for person in (bob, carol):
            await registered(person, "fcm")
        # What an older version moved on without counting it, a minute ago.
        of_bob = f"push:later:of:{bob.user_id}"
        await redis.zadd(of_bob, {f"message_new|{bob.user_id}|{uuid4()}|": (time.time() - 61) * 1000 for _ in range(5)})
        chats = [await chat(alice, bob) for _ in range(8)]
        world.google.always = Reply(503)
        await asyncio.gather(*(say(alice, group) for group in chats))
        await asked(world, 5)
        assert await redis.zcard("push:later") <= 5
        assert await redis.zcard(of_bob) <= 5
        assert "mimu_push_jobs_refused_total 3.0" in made.servers[0].app.metrics.exposition().decode()
        world.google.always = None
        group = await chat(alice, carol)
        await say(alice, group)
        await world.google.expect("message_new", chat_id=group["id"])
        await ring(await made.socket(alice), bob)
        await world.google.expect("call_offer")
        async with asyncio.timeout(30):
            while await redis.zcard("push:later"):
                await asyncio.sleep(0.1)
        assert not await redis.exists(of_bob)


@pytest.mark.gen_test
async def test_users_who_do_not_read_receive_pushes_at_growing_intervals(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "fcm")
        group = await chat(alice, bob)
        redis = made.servers[0].app.redis
        await redis.hset(queue.pace(UUID(bob.user_id)), group["id"], str(queue.FREE_PUSHES + 3))
        said = time.time()
        await say(alice, group)
        async with asyncio.timeout(WAIT):
            while not (later := await redis.zrange("push:later", 0, -1, withscores=True)):
                await asyncio.sleep(0.02)
        [(_, due)] = later
        assert 7 < due / 1000 - said < 8 + SLACK
        await bob.get("/sync")
        await asyncio.sleep(0.5)
        other = await chat(alice, bob)
        await say(alice, other)
        await world.google.expect("message_new", chat_id=other["id"])


@pytest.mark.gen_test
async def test_a_day_old_job_is_dropped(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        _, bob = made.people
        await registered(bob, "fcm")
        now = int(time.time() * 1000)
        old = Job("prekeys_low", UUID(bob.user_id), None, now - 24 * 3600 * 1000, now - 1)
        await made.servers[0].app.redis.xadd("push:judge", {"job": old.encode()})
        dropped = 'mimu_push_dropped_total{reason="expired"} 1.0'
        await until(lambda: dropped in made.servers[0].app.metrics.exposition().decode())
        await world.google.silent(1)


@pytest.mark.gen_test
async def test_metrics_tell_what_became_of_pushes(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "fcm")
        world.google.answers.append(Reply(500))
        await say(alice, await chat(alice, bob))
        await world.google.expect("message_new")
        exposition = made.servers[0].app.metrics.exposition
        for outcome in ("later", "sent"):
            line = f'mimu_push_total{{kind="message_new",outcome="{outcome}",provider="fcm"}} 1.0'
            await until(lambda line=line: line in exposition().decode())
        assert 'mimu_push_duration_seconds_count{kind="message_new",provider="fcm"} 1.0' in exposition().decode()


@pytest.mark.gen_test
async def test_without_any_key_it_is_quiet_and_says_so_once(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        async with program(shared, tmp_path) as running:
            alice, bob = [await Account(one_time=0).register(running.url) for _ in range(2)]
            answer = await bob.put("/push/tokens", {"provider": "fcm", "token": "x" * 100})
            assert (answer.status, answer.json["available"]) == (201, False)
            assert (await bob.get("/push/vapid")).status == 404
            await say(alice, await chat(alice, bob))
            assert await running.stop() == 0
        said = [line["event"] for line in json_lines(running.log_text()) if str(line["event"]).startswith("push")]
        assert said == ["push_not_configured"]
        async with Redis.from_url(shared.redis) as redis:
            assert [key async for key in redis.scan_iter("push:*")] == []


def test_a_breaker_opens_for_ever_longer_and_closes_at_once() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed("a", None)
    assert breaker.pause("a") == 0
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        breaker.failed("a", None)
        assert seconds * 0.9 < breaker.pause("a") < seconds * 1.5 + 0.1
    assert breaker.pause("b") == 0
    breaker.succeeded("a")
    assert breaker.pause("a") == 0
    breaker.failed("b", 30)
    assert breaker.pause("b") > 25
