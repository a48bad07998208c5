"""Epochs: a database that is not where it was begins a new life, once, and every server learns of it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from models.postgres import epochs
from tests.client import Account
from tests.running import Services, place, serving


@pytest.mark.gen_test
async def test_servers_that_start_at_once_begin_one_epoch(services: Services) -> None:
    async with place(services) as shared:
        settled = await asyncio.gather(*(epochs.settle(shared.dsn) for _ in range(5)))
        assert sorted(settled, key=str) == [0, None, None, None, None]
        assert await epochs.settle(shared.dsn) is None


@pytest.mark.gen_test
@pytest.mark.parametrize("part", [0, 1, 2, 3], ids=["cluster", "timeline", "database", "table"])
async def test_every_restore_of_a_database_is_noticed(services: Services, part: int) -> None:
    """Also by servers that run, as after a standby took over."""
    async with place(services) as shared, serving(shared) as server:
        alice, bob = Account(one_time=2), await Account(one_time=1).register(server.url)
        kyber = {"kyber_prekeys": [alice.kyber_prekey(1)], "last_resort_kyber_prekey": alice.kyber_prekey(9)}
        await alice.register(server.url, **kyber)
        async with alice.socket() as socket:
            epoch = socket.ready["epoch"]
        db = await asyncpg.connect(shared.dsn)
        place_ = (await db.fetchval("SELECT place FROM sync_epoch")).split("/")
        place_[part] = "1"
        await db.execute("UPDATE sync_epoch SET place = $1", "/".join(place_))
        await db.close()
        # Before anybody has looked: what is there may have been handed out.
        bundle = (await bob.get(f"/users/{alice.public_id}/prekeys")).json
        assert (bundle["one_time_prekey"], bundle["kyber_prekey"]["key_id"]) == (None, 9)
        await server.app.epoch.look()
        async with alice.socket() as socket:
            assert socket.ready["epoch"] == str(server.app.epoch.id) != epoch
            assert (await socket.expect("prekeys_low"))["remaining"] == 0
        bundle = (await bob.get(f"/users/{alice.public_id}/prekeys")).json
        assert bundle["one_time_prekey"] is None


@pytest.mark.gen_test
async def test_only_a_user_whose_prekeys_ran_out_receives_prekeys_low(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account(one_time=1).register(server.url), await Account(one_time=0).register(server.url)
        async with bob.socket() as quiet, alice.socket() as socket:
            await socket.silent()
            await quiet.silent(0)
        await bob.get(f"/users/{alice.public_id}/prekeys")
        async with alice.socket() as socket:
            assert (await socket.expect("prekeys_low"))["remaining"] == 0
        upload = {"one_time_prekeys": [alice.prekey(2)]}
        assert (await alice.post("/users/me/prekeys", upload)).status == 200
        async with alice.socket() as socket:
            await socket.silent()
