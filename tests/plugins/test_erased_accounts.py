"""Erased accounts: no other user can take over their name, keys or subscriptions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nacl.signing import SigningKey

from config.retention import Retention
from models import cleanup
from server import Server
from tests.client import Account, Answer, ask
from tests.plugins.paying import buy, hashed, new_prid, purchase, voucher
from tests.running import Services, place, serving


async def erase(account: Account) -> None:
    answer = await ask(account.url, "DELETE", "/users/me", {"password": account.password}, account.token)
    assert answer.status == 204


async def register(server: Server, body: dict[str, Any]) -> Answer:
    return await ask(server.url, "POST", "/auth/register", body)


async def after_180_days(server: Server) -> None:
    await server.app.db.execute("UPDATE tombstones SET until = until - interval '181 days'")


@pytest.mark.gen_test
async def test_a_public_id_is_taken_for_180_days_for_everybody(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account("Alice_1").register(server.url)
        await erase(alice)
        proven = alice.body(signed_prekey=alice.libsignal_prekey(1))
        for body in (Account("aLICE_1").body(), alice.body(), proven):
            answer = await register(server, body)
            assert (answer.status, answer.code) == (409, "public_id_taken")
        assert await server.app.db.value("SELECT count(*) FROM users") == 0
        await after_180_days(server)
        await Account("aLICE_1").register(server.url)


@pytest.mark.gen_test
async def test_an_identity_key_is_taken_for_who_has_only_its_public_half(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        victim = Account()
        first, second = victim.libsignal_prekey(1), victim.libsignal_prekey(2)
        await victim.register(server.url, signed_prekey=first)
        assert (await victim.post("/users/me/prekeys", {"signed_prekey": second})).status == 200
        await server.app.db.execute("UPDATE signed_prekeys SET superseded_at = superseded_at - interval '31 days'")
        await cleanup.clean(server.app.db, Retention())
        assert await server.app.db.value("SELECT count(*) FROM signed_prekeys") == 1
        await erase(victim)
        thief = Account(identity=victim.identity)  # has a bundle, but signs with another key
        replayed = Account(identity=victim.identity, signing=victim.signing)
        for body in (
            thief.body(),
            # What was in every bundle proves nothing, whether it was the last one, or was cleaned up.
            thief.body(signed_prekey=second),
            thief.body(signed_prekey={**first, "key_id": 9}),
            replayed.body(),
            replayed.body(signed_prekey=second),
        ):
            answer = await register(server, body)
            assert (answer.status, answer.code) == (409, "identity_key_taken"), body["signed_prekey"]
        owner = Account(identity=victim.identity)
        await owner.register(server.url, signed_prekey=owner.libsignal_prekey(3))
        await erase(owner)
        await after_180_days(server)
        await thief.register(server.url)


@pytest.mark.gen_test
async def test_registrations_during_an_erasure_cannot_take_its_name_or_key(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        for _ in range(5):
            alice = await Account().register(one.url)
            rivals = [Account(alice.public_id), Account(identity=alice.identity)] * 4
            answers, _ = await asyncio.gather(
                asyncio.gather(*(register(two, rival.body()) for rival in rivals)), erase(alice)
            )
            assert {answer.status for answer in answers} == {409}


@pytest.mark.gen_test
async def test_tombstones_are_swept(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        db = server.app.db
        await erase(await Account().register(server.url))
        assert await db.value("SELECT count(*) FROM tombstones") == 3, "name, identity, signed prekey"
        await cleanup.clean(db, Retention())
        assert await db.value("SELECT count(*) FROM tombstones") == 3
        await after_180_days(server)
        await cleanup.clean(db, Retention())
        assert await db.value("SELECT count(*) FROM tombstones") == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("replays", [False, True])
async def test_subscriptions_stay_with_their_buyer(services: Services, replays: bool) -> None:
    """Somebody with the public keys alone registers them when they are as new, even with what bundles showed."""
    async with place(services) as shared, serving(shared) as server:
        victim = await Account().register(server.url)
        shown = victim.signed_prekey(2)
        assert (await victim.post("/users/me/prekeys", {"signed_prekey": shown})).status == 200
        prid = new_prid()
        assert (await buy(victim, purchase(victim, prid, "voucher", await voucher(server, days=300)))).status == 201
        await erase(victim)
        await after_180_days(server)
        if replays:
            thief = Account(identity=victim.identity, signing=victim.signing)
            await thief.register(server.url, signed_prekey=shown)
        else:
            thief = Account(identity=victim.identity, signing=SigningKey.generate())
            await thief.register(server.url)
        assert (await thief.get("/users/me")).json["tier"] == "free"
        assert (await thief.get("/subscriptions/restore")).json == []
        own = new_prid()
        assert (await buy(thief, purchase(thief, own, "voucher", await voucher(server)))).status == 201
        [bought] = (await thief.get("/subscriptions/restore")).json
        assert bought["prid_hash"] == hashed(own)
        assert (await thief.get("/users/me")).json["tier"] == "premium"
        await erase(thief)
        await after_180_days(server)
        # The buyer comes back with new prekeys, signed with the key that signed the purchase.
        owner = Account(identity=victim.identity, signing=victim.signing)
        await owner.register(server.url)
        assert hashed(prid) in [item["prid_hash"] for item in (await owner.get("/subscriptions/restore")).json]
