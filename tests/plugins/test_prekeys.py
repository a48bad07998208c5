"""Prekeys: each one-time key is handed out once, ever."""

from __future__ import annotations

import asyncio
import base64

import pytest

from handlers import keys
from tests.client import Account, ask
from tests.running import Services, place, serving


@pytest.mark.gen_test
async def test_a_bundle_has_what_a_session_needs(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = Account(one_time=1)
        await alice.register(
            server.url, kyber_prekeys=[alice.kyber_prekey(7)], last_resort_kyber_prekey=alice.kyber_prekey(8)
        )
        bob = await Account().register(server.url)
        bundle = (await bob.get(f"/users/{alice.public_id}/prekeys")).json
        identity, signing, prekey, signature = (
            base64.b64decode(text)
            for text in (
                bundle["identity_key"],
                bundle["signing_public_key"],
                bundle["signed_prekey"]["public_key"],
                bundle["signed_prekey"]["signature"],
            )
        )
        assert identity == alice.identity_key
        assert keys.signed_by(identity, signing, signature, prekey)
        assert (bundle["registration_id"], bundle["fingerprint"]) == (12345, alice.fingerprint)
        assert bundle["one_time_prekey"]["key_id"] == 1
        assert bundle["kyber_prekey"]["key_id"] == 7
        kyber = base64.b64decode(bundle["kyber_prekey"]["public_key"])
        assert keys.signed_by(identity, signing, base64.b64decode(bundle["kyber_prekey"]["signature"]), kyber)

        second = (await bob.get(f"/users/{alice.public_id}/prekeys?format=signal")).json
        assert second["one_time_prekey"] is None
        assert second["kyber_prekey"]["key_id"] == 8
        for text in (second["identity_key"], second["signed_prekey"]["public_key"]):
            assert base64.b64decode(text)[:1] == b"\x05"
        assert base64.b64decode(second["identity_key"])[1:] == identity
        third = (await bob.get(f"/users/{alice.public_id}/prekeys")).json
        assert third["kyber_prekey"] == second["kyber_prekey"]
        assert "kyber_prekey" not in (await alice.get(f"/users/{bob.public_id}/prekeys")).json
        assert (await bob.get(f"/users/{alice.public_id}/prekeys?format=x")).fields() == ["format"]
        assert (await bob.get("/users/nobody_here/prekeys")).status == 404
        assert (await ask(server.url, "GET", f"/users/{alice.public_id}/prekeys")).status == 401


@pytest.mark.gen_test
async def test_a_hundred_fetches_of_fifty_keys_get_fifty_different_ones(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = Account(one_time=50)
        await alice.register(one.url, kyber_prekeys=[alice.kyber_prekey(n) for n in range(50)])
        bob = await Account().register(two.url)
        path = f"/users/{alice.public_id}/prekeys"
        urls = [one.url, two.url] * 50
        bundles = await asyncio.gather(*(ask(url, "GET", path, token=bob.token) for url in urls))
        for kind in ("one_time_prekey", "kyber_prekey"):
            given = [bundle.json[kind]["key_id"] for bundle in bundles if bundle.json.get(kind)]
            assert len(given) == len(set(given)) == 50


@pytest.mark.gen_test
async def test_ones_own_fetch_spends_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account(one_time=2).register(server.url)
        for _ in range(3):
            assert (await alice.get(f"/users/{alice.public_id}/prekeys")).json["one_time_prekey"] is None
        assert (await alice.get("/users/me/prekeys")).json["one_time_remaining"] == 2


@pytest.mark.gen_test
async def test_the_owner_hears_when_few_are_left(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account(one_time=11).register(one.url), await Account().register(one.url)
        path = f"/users/{alice.public_id}/prekeys"
        async with alice.socket(two.url) as socket:
            await bob.get(path)
            await socket.silent(0.2)
            await bob.get(path)
            assert (await socket.expect("prekeys_low"))["remaining"] == 9


@pytest.mark.gen_test
async def test_top_up_and_rotation(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account(one_time=1).register(server.url), await Account().register(server.url)
        upload = {
            "one_time_prekeys": [alice.prekey(2), alice.prekey(3)],
            "signed_prekey": alice.signed_prekey(2),
            "kyber_prekeys": [alice.kyber_prekey(1)],
            "last_resort_kyber_prekey": alice.kyber_prekey(1),
        }
        answer = await alice.post("/users/me/prekeys", upload)
        assert answer.status == 200, answer.text
        supply = answer.json
        assert (supply["one_time_remaining"], supply["kyber_remaining"], supply["signed_prekey"]["key_id"]) == (3, 1, 2)
        assert (await bob.get(f"/users/{alice.public_id}/prekeys")).json["signed_prekey"]["key_id"] == 2
        # Used or not, a key id is never taken again, and nothing of a refused upload stays.
        for again in (
            {"one_time_prekeys": [alice.prekey(9), alice.prekey(1)]},
            {"one_time_prekeys": [alice.prekey(9)], "signed_prekey": alice.signed_prekey(1)},
            {"one_time_prekeys": [alice.prekey(9)], "kyber_prekeys": [alice.kyber_prekey(1)]},
        ):
            refused = await alice.post("/users/me/prekeys", again)
            assert (refused.status, refused.code) == (409, "conflict")
        assert (await alice.get("/users/me/prekeys")).json["one_time_remaining"] == 2
        forged = bob.signed_prekey(5)
        refused = await alice.post("/users/me/prekeys", {"signed_prekey": forged})
        assert (refused.status, refused.fields()) == (400, ["signed_prekey.signature"])


@pytest.mark.gen_test
async def test_a_caller_can_not_drain_a_target(services: Services) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on", RATE_LIMIT_REGISTER="9/hour") as server:
        alice, bob = await Account(one_time=20).register(server.url), await Account().register(server.url)
        path = f"/users/{alice.public_id}/prekeys"
        statuses = [(await bob.get(path)).status for _ in range(7)]
        assert statuses == [200] * 6 + [429]
        assert 1 <= int((await bob.get(path)).headers["Retry-After"]) <= 600
        assert (await alice.get("/users/me/prekeys")).json["one_time_remaining"] == 14
        assert (await bob.get(f"/users/{bob.public_id}/prekeys")).status == 200


@pytest.mark.gen_test
async def test_rotations_at_once_leave_one_current_key(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = await Account().register(one.url)
        uploads = [
            ask(url, "POST", "/users/me/prekeys", {"signed_prekey": alice.signed_prekey(number)}, alice.token)
            for number, url in enumerate([one.url, two.url] * 5, 10)
        ]
        answers = await asyncio.gather(*uploads)
        assert {answer.status for answer in answers} == {200}
        db = one.app.db
        assert await db.value("SELECT count(*) FROM signed_prekeys") == 11
        assert await db.value("SELECT count(*) FROM signed_prekeys WHERE superseded_at IS NULL") == 1


@pytest.mark.gen_test
async def test_nobody_fills_the_disk_with_prekeys(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.prekeys.prekeys.MAX_UNUSED", 7)
    async with place(services) as shared, serving(shared) as server:
        alice = await Account(one_time=5).register(server.url)
        refused = await alice.post("/users/me/prekeys", {"one_time_prekeys": [alice.prekey(n) for n in (6, 7, 8)]})
        assert (refused.status, refused.fields()) == (400, ["one_time_prekeys"])
        assert (await alice.post("/users/me/prekeys", {"one_time_prekeys": [alice.prekey(6)]})).status == 200


@pytest.mark.gen_test
async def test_a_fetch_does_not_wait_for_the_key_another_one_is_taking(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with server.app.db.pool.acquire() as other, other.transaction():
            await other.execute("SELECT 1 FROM one_time_prekeys WHERE key_id = 1 FOR UPDATE")
            bundle = await bob.get(f"/users/{alice.public_id}/prekeys")
            assert (bundle.status, bundle.json["one_time_prekey"]["key_id"]) == (200, 2)
