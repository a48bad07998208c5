"""Names that users gave are looked up with patience of two seconds, and none of them keeps anything else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sized
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from plugins.push.providers import resolver
from plugins.push.providers.resolver import NoAddress, Resolver
from plugins.push.queue.shares import MAX_OF_USER, UNPROVEN_OF_HOST, UNPROVEN_OF_USER, Shares
from tests.plugins.chatting import chat, say
from tests.plugins.pushing import pushing, registered, subscribed
from tests.plugins.test_push import ring
from tests.providers.dns import answering
from tests.running import Services
from tests.waiting import SLACK, WAIT


@pytest.mark.gen_test
async def test_names_are_found_in_hosts_and_in_dns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.1.2.3  Push.internal other # both\n\n::1 six\n")
    known = {"push.example.org": ["192.0.2.1", "192.0.2.2", "2001:db8::1"], "nowhere.example.org": []}
    async with answering(known) as names:
        names_of = Resolver(["127.0.0.1"], names.port, hosts)
        assert await names_of.addresses("push.internal") == ["10.1.2.3"]
        assert await names_of.addresses("OTHER") == ["10.1.2.3"]
        assert await names_of.addresses("six") == ["::1"]
        for local in ("localhost", "a.localhost"):
            assert await names_of.addresses(local) == ["127.0.0.1"]
        assert await names_of.addresses("192.0.2.7") == ["192.0.2.7"]
        assert await names_of.addresses("::1") == ["::1"]
        assert names.asked == []
        monkeypatch.setattr(resolver, "_ipv6", lambda: True)
        first, *others = await names_of.addresses("Push.example.org.")
        assert (first, sorted(others)) == ("2001:db8::1", ["192.0.2.1", "192.0.2.2"])
        monkeypatch.setattr(resolver, "_ipv6", lambda: False)
        assert sorted(await names_of.addresses("push.example.org")) == ["192.0.2.1", "192.0.2.2"]
        before = len(names.asked)
        for _ in range(3):
            with pytest.raises(NoAddress):
                await names_of.addresses("nowhere.example.org")
        assert len(names.asked) - before == 1, "remembered"
        # inet_aton's ways to write an address, and what is no name at all
        for odd in ("127.1", "0x7f000001", "2130706433", "10.0.0.0x1", "a..b", "x" * 70, ""):
            with pytest.raises(NoAddress):
                await names_of.addresses(odd)
        assert len(names.asked) - before == 1
        hosts.write_text("10.1.2.4 push.internal\n")
        assert await names_of.addresses("push.internal") == ["10.1.2.4"], "read again"


@pytest.mark.gen_test
async def test_names_without_an_answer_take_two_seconds_however_many(tmp_path: Path) -> None:
    async with answering({"good.example.org": ["192.0.2.1"]}) as names:
        names_of = Resolver(["127.0.0.1"], names.port, tmp_path / "none")
        began = time.monotonic()
        slow = [asyncio.create_task(names_of.addresses(f"{number}.example.org")) for number in range(100)]
        await asyncio.sleep(0)
        assert await names_of.addresses("good.example.org") == ["192.0.2.1"]
        assert not any(task.done() for task in slow), "it waits for none of them"
        assert all(isinstance(found, NoAddress) for found in await asyncio.gather(*slow, return_exceptions=True))
        assert 1.5 < time.monotonic() - began < 2 + SLACK
        asked = len(names.asked)
        with pytest.raises(NoAddress):
            await names_of.addresses("7.example.org")
        assert len(names.asked) == asked, "not again for half a minute"


@pytest.mark.gen_test
async def test_a_second_server_is_asked_in_time(tmp_path: Path) -> None:
    async with answering({"good.example.org": ["192.0.2.1"]}) as names:
        names_of = Resolver(["127.0.0.9", "127.0.0.1"], names.port, tmp_path / "none")
        assert await names_of.addresses("good.example.org") == ["192.0.2.1"]


@pytest.mark.gen_test(timeout=90)
async def test_names_without_an_answer_delay_no_other_push(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten devices of one account, each at a name whose servers never answer, in many chats: pushes and calls of others
    come as always, and the server stops as quickly."""
    async with answering() as names:
        made_with = resolver.Resolver.__init__

        def asks_here(self: Resolver, *_: object) -> None:
            made_with(self, ["127.0.0.1"], names.port)

        monkeypatch.setattr(resolver.Resolver, "__init__", asks_here)
        async with pushing(services, tmp_path, people=3) as (made, world):
            alice, bob, mallory = made.people
            await subscribed(bob, world)
            await registered(bob, "fcm")
            for number in range(10):
                subscription = world.service.device().subscription(f"https://{number}.example.org")
                body = {"provider": "webpush", "subscription": subscription}
                assert (await mallory.put("/push/tokens", body)).status == 201
            crowd = [await chat(alice, mallory) for _ in range(20)]
            for group in crowd:
                await say(alice, group)
            await flooded(names.asked)
            for _ in range(3):
                began = time.monotonic()
                group = await chat(alice, bob)
                await say(alice, group)
                await world.service.expect("message_new", chat_id=group["id"])
                assert time.monotonic() - began < 4 + SLACK, "a message waits for a second of it"
                await say(alice, crowd[0])
            async with alice.socket() as caller:
                began = time.monotonic()
                await ring(caller, mallory)
                await ring(caller, bob)
                await world.service.expect("call_offer")
                assert time.monotonic() - began < 2 + SLACK
            stopping = time.monotonic()
        assert time.monotonic() - stopping < WAIT


@pytest.mark.gen_test(timeout=90)
async def test_a_server_that_accepts_and_never_answers_delays_no_other_push(services: Services, tmp_path: Path) -> None:
    """Ten devices of one account, each at a host of the account that accepts a connection and sends nothing."""
    taken: list[asyncio.StreamWriter] = []

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)

    async with pushing(services, tmp_path, people=3) as (made, world):
        alice, bob, mallory = made.people
        await subscribed(bob, world)
        doors = [await asyncio.start_server(silent, "127.0.0.1", 0) for _ in range(10)]
        for door in doors:
            url = f"https://127.0.0.1:{door.sockets[0].getsockname()[1]}"
            body = {"provider": "webpush", "subscription": world.service.device().subscription(url)}
            assert (await mallory.put("/push/tokens", body)).status == 201
        for _ in range(20):
            await say(alice, await chat(alice, mallory))
        await flooded(taken)
        for _ in range(3):
            began = time.monotonic()
            group = await chat(alice, bob)
            await say(alice, group)
            await world.service.expect("message_new", chat_id=group["id"])
            assert time.monotonic() - began < 4 + SLACK
        assert len(taken) <= 2 * UNPROVEN_OF_USER, "two at a time of one account"
        text = made.servers[0].app.metrics.exposition().decode()
        assert float(text.partition("\nmimu_push_postponed_total ")[2].split()[0]) > 0
        for writer in taken:
            writer.transport.abort()
        for door in doors:
            door.close()


async def flooded(something: Sized) -> None:
    async with asyncio.timeout(20):
        while not something:
            await asyncio.sleep(0.05)


def test_a_user_and_a_host_have_their_shares() -> None:
    shares = Shares(64)
    with_host = "push.example.org"
    people = [uuid4() for _ in range(200)]

    with contextlib.ExitStack() as stack:

        def fill(users: list[UUID], host: str | None) -> int:
            number = 0
            for user in users:
                while shares.free(user, host):
                    stack.enter_context(shares.held(user, host))
                    number += 1
            return number

        assert fill(people[:1], None) == MAX_OF_USER
        assert fill(people[1:2], "slow.example.org") == UNPROVEN_OF_USER
        assert fill(people[2:], "slow.example.org") == UNPROVEN_OF_HOST - UNPROVEN_OF_USER
        # All hosts that are not proven have a quarter.
        assert sum(fill(people[2:], f"{number}.example.org") for number in range(100)) == 16 - UNPROVEN_OF_HOST
        # One that has answered gets half of the lane, whatever the others do.
        with shares.held(people[3], with_host):
            shares.answered(with_host, 0.1, well=True)
        assert fill(people[50:], with_host) == 32
    assert not shares._users
    assert not shares._busy
    assert not shares._unproven_of_user


def test_a_host_that_becomes_slow_is_not_proven_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, user, host = Shares(64), uuid4(), "push.example.org"
    with shares.held(user, host):
        shares.answered(host, 0.1, well=True)
    assert not shares.unproven(host)
    with shares.held(user, host):
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2.5)
        assert shares.unproven(host)
    assert not shares.unproven(host)
    shares.answered(host, 12, well=False)
    assert shares.unproven(host)
