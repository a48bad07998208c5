"""Presence follows the sockets of all instances, and survives the death of one."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from models import presence
from tests.client import Account
from tests.running import Services, periodic, place, serving
from tests.waiting import WAIT


async def eventually(account: Account, public_id: str, online: bool) -> dict[str, object]:
    async with asyncio.timeout(WAIT):
        while True:
            profile: dict[str, object] = (await account.get(f"/users/{public_id}")).json
            if profile["is_online"] is online:
                return profile
            await asyncio.sleep(0.02)


@pytest.mark.gen_test
async def test_one_is_online_while_any_socket_is_open_anywhere(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        assert (await bob.get(f"/users/{alice.public_id}")).json["last_seen"] is None
        async with alice.socket(one.url):
            await eventually(bob, alice.public_id, True)
            async with alice.socket(two.url), alice.socket(two.url):
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.3)
            assert (await bob.get(f"/users/{alice.public_id}")).json["is_online"] is True
            [found] = (await bob.get(f"/users/search?q={alice.public_id}")).json
            assert found["is_online"] is True
        assert (await eventually(bob, alice.public_id, False))["last_seen"] is not None
        assert await one.app.db.value("SELECT count(*) FROM connections") == 0


@pytest.mark.gen_test
async def test_a_dead_instance_is_swept_with_its_presence(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        db, dead = server.app.db, uuid4()
        ids = await db.fetch("SELECT id FROM users ORDER BY public_id = $1 DESC", alice.public_id)
        await presence.record_heartbeat(db, dead)
        await presence.arrive(db, dead, [row["id"] for row in ids])
        async with bob.socket():
            async with asyncio.timeout(WAIT):
                while await db.value("SELECT count(*) FROM connections") < 3:
                    await asyncio.sleep(0.02)
            await db.execute("UPDATE instances SET beat_at = now() - interval '41 s' WHERE id = $1", dead)
            beat = periodic(server, "presence")
            await asyncio.gather(beat(), beat())
            await eventually(bob, alice.public_id, False)
            assert (await bob.get("/users/me")).json["is_online"] is True


@pytest.mark.gen_test
async def test_an_instance_taken_for_dead_tells_its_users_again(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with alice.socket():
            await eventually(alice, alice.public_id, True)
            await server.app.db.execute("UPDATE instances SET beat_at = now() - interval '1 h'")
            await presence.sweep(server.app.db)
            assert (await alice.get("/users/me")).json["is_online"] is False
            await periodic(server, "presence")()
            await eventually(alice, alice.public_id, True)


@pytest.mark.gen_test
async def test_arrivals_and_leavings_at_once_end_in_the_truth(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        db = server.app.db
        user = await db.value("SELECT id FROM users")
        one, two = uuid4(), uuid4()
        for instance in (one, two):
            await presence.record_heartbeat(db, instance)
        for _ in range(30):
            await presence.arrive(db, one, [user])
            await asyncio.gather(presence.leave(db, one, [user]), presence.arrive(db, two, [user]))
            assert await db.value("SELECT is_online FROM users")
            await presence.leave(db, two, [user])
            assert not await db.value("SELECT is_online FROM users")
        assert (await alice.get("/users/me")).json["is_online"] is False


@pytest.mark.gen_test
async def test_users_of_an_instance_that_counted_as_dead_are_online_after_its_next_heartbeat(
    services: Services,
) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        await server.app.db.execute("DELETE FROM instances")
        async with alice.socket():
            await asyncio.sleep(0.3)  # long enough for the attempt that fails
            assert (await bob.get(f"/users/{alice.public_id}")).json["is_online"] is False
            await periodic(server, "presence")()
            await eventually(bob, alice.public_id, True)
        await eventually(bob, alice.public_id, False)
