"""Push tokens: their owners, their number, and their removal."""

from __future__ import annotations

import asyncio
import base64
import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.client import Account, ask
from tests.plugins.chatting import town
from tests.plugins.pushing import pushing, registered, subscribed
from tests.providers.providers import Device
from tests.running import Services


def apns(token: str = "") -> dict[str, Any]:
    return {"provider": "apns", "token": token or secrets.token_hex(32)}


async def listed(person: Account) -> list[dict[str, Any]]:
    answer = await person.get("/push/tokens")
    assert answer.status == 200
    tokens: list[dict[str, Any]] = answer.json
    return tokens


@pytest.mark.gen_test
async def test_a_token_is_registered_once_shown_and_removed(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        body = apns()
        first, again = await alice.put("/push/tokens", body), await alice.put("/push/tokens", body)
        assert (first.status, again.status) == (201, 200)
        assert first.json["id"] == again.json["id"]
        assert body["token"] not in first.text, "the answer does not repeat the token"
        [shown] = await listed(alice)
        assert shown == again.json
        assert shown == {
            "id": first.json["id"],
            "provider": "apns",
            "environment": "production",
            "style": "alert",
            "session_id": alice.session_id,
            "current": True,
            "available": False,  # this server has no key of Apple's
            "registered_at": shown["registered_at"],
        }
        assert shown["registered_at"] > first.json["registered_at"]
        path = f"/push/tokens/{shown['id']}"
        assert (await bob.delete(path)).status == 404
        assert (await alice.delete(path)).status == 204
        assert (await alice.delete(path)).status == 404
        assert await listed(alice) == []


@pytest.mark.gen_test
async def test_the_same_token_of_another_account_is_left_alone(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, mallory = made.people
        body = apns()
        for person in (alice, mallory):
            assert (await person.put("/push/tokens", body)).status == 201
        assert (await mallory.delete(f"/push/tokens/{(await listed(mallory))[0]['id']}")).status == 204
        assert len(await listed(alice)) == 1


@pytest.mark.gen_test
async def test_an_eleventh_token_replaces_the_oldest(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        bodies = [apns() for _ in range(11)]
        ids = [(await alice.put("/push/tokens", body)).json["id"] for body in bodies[:10]]
        assert (await alice.put("/push/tokens", bodies[0])).status == 200  # now the second is the oldest
        ids.append((await alice.put("/push/tokens", bodies[10])).json["id"])
        assert {token["id"] for token in await listed(alice)} == {*ids} - {ids[1]}
        await asyncio.gather(*(alice.put("/push/tokens", apns()) for _ in range(20)))
        assert len(await listed(alice)) == 10


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["logout", "elsewhere", "password", "account"])
async def test_tokens_go_with_their_session(services: Services, way: str) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        phone = Account(
            **{name: getattr(alice, name) for name in ("public_id", "password", "identity", "signing", "url")}
        )
        assert (await phone.login()).status == 200
        assert (await alice.put("/push/tokens", apns())).status == 201
        assert (await phone.put("/push/tokens", apns())).status == 201
        assert [token["current"] for token in await listed(alice)] == [False, True]
        match way:
            case "logout":
                assert (await phone.post("/auth/logout", {})).status == 204
            case "elsewhere":
                assert (await alice.delete(f"/auth/sessions/{phone.session_id}")).status == 204
            case "password":
                change = {"old_password": alice.password, "new_password": "another horse, another battery"}
                assert (await alice.post("/auth/change-password", change)).status == 204
            case "account":
                erased = await ask(alice.url, "DELETE", "/users/me", {"password": alice.password}, token=alice.token)
                assert erased.status == 204
        rows = await made.sql("SELECT session_id FROM push_tokens")
        assert [str(row[0]) for row in rows] == ([] if way == "account" else [alice.session_id])


@pytest.mark.gen_test
async def test_a_token_moves_to_the_session_that_registers_it(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        body, before = apns(), alice.session_id
        await alice.put("/push/tokens", body)
        await alice.login()
        assert (await alice.put("/push/tokens", body)).status == 200
        await alice.delete(f"/auth/sessions/{before}")
        [kept] = await listed(alice)
        assert kept["session_id"] == alice.session_id


@pytest.mark.gen_test
async def test_an_invalid_token_is_refused(services: Services) -> None:
    good = Device().subscription("https://push.example.org")
    curve = base64.b64encode(b"\x04" + bytes(64)).decode()
    async with town(services, people=1) as made:
        [alice] = made.people
        for body, field in [
            ({"provider": "apns"}, "token"),
            ({"provider": "apns", "token": "not hex"}, "token"),
            ({"provider": "apns_voip", "token": "abc"}, "token"),
            ({"provider": "apns", "token": "../../3/device/00"}, "token"),
            ({"provider": "fcm", "token": "with space"}, "token"),
            ({"provider": "fcm", "token": "x" * 5000}, "token"),
            ({"provider": "webpush", "token": "x" * 64}, "subscription"),
            ({"provider": "carrier-pigeon", "token": "x" * 64}, "provider"),
            ({"provider": "webpush", "subscription": {**good, "endpoint": "http://push.example.org/x"}}, "endpoint"),
            (
                {"provider": "webpush", "subscription": {**good, "endpoint": "https://a:b@example.org/"}},
                "endpoint",
            ),
            ({"provider": "webpush", "subscription": {**good, "endpoint": "https:///x"}}, "endpoint"),
            ({"provider": "webpush", "subscription": {**good, "endpoint": "https://example.org:25/x"}}, "endpoint"),
            ({"provider": "webpush", "subscription": {**good, "endpoint": "https://example.org:0/x"}}, "endpoint"),
            ({"provider": "webpush", "subscription": {**good, "keys": {**good["keys"], "p256dh": curve}}}, "p256dh"),
            ({"provider": "webpush", "subscription": {**good, "keys": {**good["keys"], "auth": "AAAA"}}}, "auth"),
        ]:
            refused = await alice.put("/push/tokens", body)
            assert (refused.status, refused.fields()[0].rpartition(".")[2]) == (400, field), body
        assert (await alice.put("/push/tokens", {"provider": "webpush", "subscription": good})).status == 201


@pytest.mark.gen_test
async def test_the_owner_sees_every_token_and_the_vapid_key(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, people=1) as (made, world):
        [alice] = made.people
        for provider in ("apns", "apns_voip", "fcm"):
            await registered(alice, provider)
        await subscribed(alice, world)
        assert {token["provider"] for token in await listed(alice)} == {"apns", "apns_voip", "fcm", "webpush"}
        key = (await alice.get("/push/vapid")).json
        point = base64.b64decode(key["public_key"], validate=True)
        assert (len(point), point[0]) == (65, 4)
        assert base64.urlsafe_b64decode(key["application_server_key"] + "=") == point


@pytest.mark.gen_test
async def test_the_last_settings_count(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        usual = {"kinds": ["message_new", "call_offer", "prekeys_low"], "quiet_hours": None, "muted_chats": []}
        assert (await alice.get("/push/settings")).json == usual
        quiet = {"start": "22:00", "end": "07:00", "time_zone": "Europe/Berlin", "calls": False}
        assert (await alice.put("/push/settings", {"quiet_hours": quiet})).json == {**usual, "quiet_hours": quiet}
        muted = [
            {"chat_id": alice.user_id, "until": "2030-01-01T00:00:00Z"},
            {"chat_id": alice.session_id, "until": None},
        ]
        changed = await alice.put("/push/settings", {"kinds": ["call_offer"], "muted_chats": muted})
        assert changed.json["kinds"] == ["call_offer"]
        assert sorted(changed.json["muted_chats"], key=str) == sorted(muted, key=str)
        assert changed.json["quiet_hours"] == quiet, "what is not sent stays"
        assert (await alice.put("/push/settings", {"quiet_hours": None, "muted_chats": []})).json == {
            **usual,
            "kinds": ["call_offer"],
        }
        for wrong in [
            {"kinds": ["everything"]},
            {"quiet_hours": {"start": "24:00", "end": "07:00"}},
            {"quiet_hours": {"start": "22:00", "end": "07:00", "time_zone": "Middle_earth/Shire"}},
            {"quiet_hours": {"start": "22:00", "end": "07:00", "time_zone": "America"}},
            {"muted_chats": [{"chat_id": "x"}]},
            {"muted_chats": [{"chat_id": alice.user_id, "until": "tomorrow"}]},
            {"muted_chats": [{"chat_id": alice.user_id}] * 501},
        ]:
            assert (await alice.put("/push/settings", wrong)).status == 400, wrong
