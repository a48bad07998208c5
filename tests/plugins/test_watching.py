"""presence_subscribe: told of comings and goings, on every instance, by those alone who let one see them."""

from __future__ import annotations

import pytest

from tests.client import Account
from tests.running import Services, place, serving


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("servers", [1, 2])
async def test_who_watches_is_told_at_once_and_of_each_change(services: Services, servers: int) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = await Account(one_time=0).register(one.url)
        bob = await Account(one_time=0).register(one.url)
        there = (one, two)[servers - 1].url
        async with alice.socket() as watcher:
            ack = await watcher.send("presence_subscribe", user_ids=[bob.user_id])
            assert ack["type"] == "ack"
            before = await watcher.expect("presence", user_id=bob.user_id)
            assert before["is_online"] is False
            async with bob.socket(there):
                assert (await watcher.expect("presence", user_id=bob.user_id))["is_online"] is True
                async with bob.socket(one.url):
                    await watcher.silent()
                await watcher.silent()
            after = await watcher.expect("presence", user_id=bob.user_id)
            assert after["is_online"] is False
            assert after["last_seen"] is not None

            # A new list takes the place of the old one.
            await watcher.send("presence_subscribe", user_ids=[])
            async with bob.socket(there):
                await watcher.silent()


@pytest.mark.gen_test(timeout=60)
async def test_who_hides_or_has_blocked_is_not_told_of(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice, bob, carol = [await Account(one_time=0).register(one.url) for _ in range(3)]
        hidden = {"settings": {"privacy": {"last_seen": "nobody"}}}
        assert (await bob.put("/users/me", hidden)).status == 200
        async with alice.socket() as watcher:
            await watcher.send("presence_subscribe", user_ids=[bob.user_id, carol.user_id])
            await watcher.expect("presence", user_id=carol.user_id)
            await watcher.silent()
            async with bob.socket():
                await watcher.silent()
            # A block counts from the next change on, also for a list that was sent before it.
            assert (await carol.put(f"/users/{alice.public_id}/block", {})).status == 204
            async with carol.socket():
                await watcher.silent()


@pytest.mark.gen_test
async def test_a_list_has_an_end(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account(one_time=0).register(one.url)
        async with alice.socket() as socket:
            refused = await socket.send("presence_subscribe", user_ids=[alice.user_id] * 201)
            assert (refused["type"], refused["code"]) == ("error", "invalid_request")
