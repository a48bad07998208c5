"""Prekeys: each one-time key is handed out once, ever."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import Any

import pytest

from config.retention import Retention
from handlers.wire import signal_keys as keys
from models import cleanup
from tests.client import Account, ask, b64
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
async def test_a_fetch_of_the_own_bundle_uses_up_no_prekey(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account(one_time=2).register(server.url)
        for _ in range(3):
            assert (await alice.get(f"/users/{alice.public_id}/prekeys")).json["one_time_prekey"] is None
        assert (await alice.get("/users/me/prekeys")).json["one_time_remaining"] == 2


@pytest.mark.gen_test
async def test_the_owner_is_notified_when_few_prekeys_are_left(services: Services) -> None:
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
async def test_an_upload_whose_answer_was_lost_is_repeated(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account(one_time=0).register(server.url), await Account().register(server.url)
        upload = {
            "one_time_prekeys": [alice.prekey(n) for n in range(1, 4)],
            "signed_prekey": alice.signed_prekey(2),
            "kyber_prekeys": [alice.kyber_prekey(n) for n in (1, 2)],
            "last_resort_kyber_prekey": alice.kyber_prekey(1),
        }
        first = await alice.post("/users/me/prekeys", upload)
        rows = "SELECT array_agg(k ORDER BY k) FROM (SELECT {0}::text AS k FROM {0}) AS keys"
        tables = ("one_time_prekeys", "signed_prekeys", "kyber_prekeys")
        before = [await server.app.db.value(rows.format(table)) for table in tables]
        again = await alice.post("/users/me/prekeys", upload)
        assert (again.status, again.json) == (200, first.json)
        assert [await server.app.db.value(rows.format(table)) for table in tables] == before
        # What was handed out meanwhile stays handed out.
        bundle = (await bob.get(f"/users/{alice.public_id}/prekeys")).json
        assert (bundle["one_time_prekey"]["key_id"], bundle["kyber_prekey"]["key_id"]) == (1, 1)
        more = {**upload, "one_time_prekeys": [*upload["one_time_prekeys"], alice.prekey(4)]}
        supply = (await alice.post("/users/me/prekeys", more)).json
        assert (supply["one_time_remaining"], supply["kyber_remaining"]) == (3, 1)
        given = [(await bob.get(f"/users/{alice.public_id}/prekeys")).json for _ in range(4)]
        assert [bundle["one_time_prekey"] and bundle["one_time_prekey"]["key_id"] for bundle in given] == [
            2,
            3,
            4,
            None,
        ]
        assert (await alice.post("/users/me/prekeys", upload)).json["one_time_remaining"] == 0
        answers = await asyncio.gather(*(alice.post("/users/me/prekeys", upload) for _ in range(5)))
        assert {answer.status for answer in answers} == {200}


@pytest.mark.gen_test
async def test_a_signed_key_that_was_superseded_never_comes_back(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = Account()
        signed, kyber = [alice.signed_prekey(n) for n in (1, 2, 3)], [alice.kyber_prekey(n) for n in range(1, 5)]
        await alice.register(
            server.url, signed_prekey=signed[0], last_resort_kyber_prekey=kyber[0], kyber_prekeys=[kyber[3]]
        )
        body = {"signed_prekey": signed[1], "last_resort_kyber_prekey": kyber[1]}
        assert (await alice.post("/users/me/prekeys", body)).status == 200

        async def refused() -> None:
            for again in (
                {"signed_prekey": signed[0]},
                {"signed_prekey": {**signed[0], "key_id": 77}},
                {"signed_prekey": {**signed[1], "key_id": 78}},
                {"last_resort_kyber_prekey": kyber[0]},
                {"last_resort_kyber_prekey": {**kyber[0], "key_id": 77}},
                {"last_resort_kyber_prekey": {**kyber[3], "key_id": 79}},
                {"kyber_prekeys": [{**kyber[0], "key_id": 80}]},
                {"kyber_prekeys": [{**kyber[3], "key_id": 81}]},
                {"kyber_prekeys": [{**kyber[2], "key_id": 82}, {**kyber[2], "key_id": 83}]},
            ):
                answer = await alice.post("/users/me/prekeys", again)
                assert (answer.status, answer.code) == (409, "conflict"), again
            assert (await alice.get("/users/me/prekeys")).json["signed_prekey"]["key_id"] == 2
            assert (await alice.post("/users/me/prekeys", body)).status == 200

        await refused()
        for table in ("signed_prekeys", "kyber_prekeys"):
            await server.app.db.execute(f"UPDATE {table} SET superseded_at = superseded_at - interval '31 days'")
        await cleanup.clean(server.app.db, Retention())
        assert await server.app.db.value("SELECT count(*) FROM signed_prekeys") == 1
        assert await server.app.db.value("SELECT count(*) FROM superseded_prekeys") == 2
        await refused()


@pytest.mark.gen_test
async def test_the_profile_of_libsignal(services: Services) -> None:
    async with place(services) as shared, serving(shared, SIGNAL_PROFILE="libsignal") as server:
        alice, other = Account(), Account()

        def kyber(key_id: int) -> dict[str, Any]:
            key = b"\x08" + os.urandom(1568)
            return {"key_id": key_id, "public_key": b64(key), "signature": b64(alice.xeddsa(key))}

        good = {"signed_prekey": alice.libsignal_prekey(1), "last_resort_kyber_prekey": kyber(1)}
        key = base64.b64decode(alice.prekey(1)["public_key"])
        over_32 = {"key_id": 1, "public_key": b64(key), "signature": b64(alice.xeddsa(key))}
        for changes, field in (
            ({"signed_prekey": alice.signed_prekey(1)}, "signed_prekey.signature"),
            ({"signed_prekey": over_32}, "signed_prekey.signature"),
            ({"signed_prekey": other.libsignal_prekey(1)}, "signed_prekey.signature"),
            ({"last_resort_kyber_prekey": None}, "last_resort_kyber_prekey"),
            ({"last_resort_kyber_prekey": alice.kyber_prekey(1)}, "last_resort_kyber_prekey.signature"),
        ):
            answer = await ask(server.url, "POST", "/auth/register", alice.body(**{**good, **changes}))
            assert (answer.status, answer.fields()) == (400, [field])
            assert "SIGNAL_PROFILE=libsignal" in answer.text
        await alice.register(server.url, **good)
        answer = await alice.post("/users/me/prekeys", {"signed_prekey": alice.signed_prekey(2)})
        assert (answer.status, answer.fields()) == (400, ["signed_prekey.signature"])
        assert (await alice.post("/users/me/prekeys", {"signed_prekey": alice.libsignal_prekey(2)})).status == 200
        # One who came before the setting has no last-resort key.
        await server.app.db.execute("DELETE FROM kyber_prekeys")
        late = {"signed_prekey": alice.libsignal_prekey(3)}
        assert (await alice.post("/users/me/prekeys", late)).fields() == ["last_resort_kyber_prekey"]
        assert (await alice.post("/users/me/prekeys", {**late, "last_resort_kyber_prekey": kyber(2)})).status == 200


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
async def test_prekeys_of_an_account_are_limited(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.prekeys.prekeys.MAX_UNUSED", 7)
    async with place(services) as shared, serving(shared) as server:
        alice = await Account(one_time=5).register(server.url)
        refused = await alice.post("/users/me/prekeys", {"one_time_prekeys": [alice.prekey(n) for n in (6, 7, 8)]})
        assert (refused.status, refused.fields()) == (400, ["one_time_prekeys"])
        assert (await alice.post("/users/me/prekeys", {"one_time_prekeys": [alice.prekey(6)]})).status == 200
        kyber = [alice.kyber_prekey(n) for n in range(1, 9)]
        refused = await alice.post("/users/me/prekeys", {"kyber_prekeys": kyber})
        assert (refused.status, refused.fields()) == (400, ["kyber_prekeys"])
        assert (await alice.post("/users/me/prekeys", {"kyber_prekeys": kyber[:7]})).status == 200


@pytest.mark.gen_test
async def test_a_fetch_does_not_wait_for_the_key_another_one_is_taking(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with server.app.db.pool.acquire() as other, other.transaction():
            await other.execute("SELECT 1 FROM one_time_prekeys WHERE key_id = 1 FOR UPDATE")
            bundle = await bob.get(f"/users/{alice.public_id}/prekeys")
            assert (bundle.status, bundle.json["one_time_prekey"]["key_id"]) == (200, 2)
