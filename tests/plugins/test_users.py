"""Users: search, profiles, and changes to one's profile and settings."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.client import Account, ask
from tests.running import Services, connected, place, serving


@pytest.mark.gen_test
async def test_search_shows_the_exact_match_then_prefixes_then_the_rest(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        for name in ("xxbobxx", "bobby_tables", "Bob", "al_bob", "carol", "b_ob", "bXob"):
            await Account(name).register(server.url)
        me = await Account().register(server.url)
        found = (await me.get("/users/search?q=bob")).json
        assert [item["public_id"] for item in found] == ["Bob", "bobby_tables", "al_bob", "xxbobxx"]
        assert set(found[0]) == {"user_id", "public_id", "display_name", "avatar_url", "fingerprint", "is_online"}
        # An underscore is an underscore, not any letter.
        assert [item["public_id"] for item in (await me.get("/users/search?q=b_ob")).json] == ["b_ob"]
        for bad in ("a", "x" * 33, "a%25", "", "a%00b", "%D0%B0%D0%B1"):
            answer = await me.get(f"/users/search?q={bad}")
            assert (answer.status, answer.fields()) == (400, ["q"]), bad
        assert (await me.get("/users/search")).status == 400
        assert (await ask(server.url, "GET", "/users/search?q=bob")).status == 401


@pytest.mark.gen_test
async def test_search_shows_at_most_fifty(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server, connected(shared) as filling:
        me = await Account().register(server.url)
        await filling.execute(
            """INSERT INTO users
                   (public_id, password_hash, identity_key, signing_public_key, registration_id, fingerprint)
               SELECT 'crowd_' || n, 'x', sha256(n::text::bytea), sha256('s'), 1,
                      encode(sha256(n::text::bytea), 'hex')
               FROM generate_series(1, 60) AS n"""
        )
        assert len((await me.get("/users/search?q=crowd")).json) == 50


@pytest.mark.gen_test
async def test_profiles(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account("Alice").register(server.url, display_name="Alice Ä", language="ru")
        bob = await Account().register(server.url)
        profile = (await bob.get("/users/aLICE")).json
        assert profile["user_id"] == alice.user_id
        assert (profile["public_id"], profile["display_name"], profile["language"]) == ("Alice", "Alice Ä", "ru")
        assert profile["fingerprint"] == alice.fingerprint
        assert set(profile) == {
            "user_id", "public_id", "display_name", "fingerprint", "signing_public_key", "avatar_url", "bio",
            "is_online", "last_seen", "language", "created_at",
        }  # fmt: skip
        assert profile["created_at"].endswith("Z")
        mine = (await alice.get("/users/me")).json
        assert {name: mine[name] for name in profile} == profile
        assert (mine["settings"], mine["tier"]) == ({}, "free")
        assert mine["limits"] == {"file_bytes": 50 << 20, "total_bytes": 1 << 30}
        assert (await bob.get("/users/nobody_here")).status == 404
        assert (await bob.get("/users/x")).status == 404
        assert (await ask(server.url, "GET", "/users/Alice")).status == 401


@pytest.mark.gen_test
async def test_changes_touch_only_what_was_sent_and_null_clears(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        me = await Account().register(server.url, display_name="Old")
        settings = {"theme": "dark", "nested": [1, {"a": None}], "числа": 1.5}
        answer = await me.put(
            "/users/me", {"bio": "About", "settings": settings, "password_hash": "x", "is_online": True}
        )
        assert answer.status == 200
        assert (answer.json["display_name"], answer.json["bio"]) == ("Old", "About")
        assert answer.json["settings"] == settings
        assert answer.json["is_online"] is False
        answer = await me.put("/users/me", {"display_name": None, "settings": None})
        assert (answer.json["display_name"], answer.json["bio"], answer.json["settings"]) == (None, "About", {})
        assert (await me.put("/users/me", {})).json == answer.json
        for field, value in (
            ("display_name", "x" * 65),
            ("bio", "x" * 501),
            ("language", "not a language"),
            ("settings", []),
            ("settings", {"x": "y" * 16_384}),
            ("avatar_url", 5),
        ):
            refused = await me.put("/users/me", {"bio": "changed", field: value})
            assert (refused.status, refused.fields()) == (400, [field]), (field, refused.text)
        assert (await me.get("/users/me")).json["bio"] == "About"


@pytest.mark.gen_test
async def test_an_avatar_is_a_plain_https_address(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        me = await Account().register(server.url)
        good = "https://example.org/a.png"
        assert (await me.put("/users/me", {"avatar_url": good})).json["avatar_url"] == good
        for bad in (
            "http://example.org/a.png",
            "https://user:pw@example.org/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://127.1/",
            "https:///path",
            "https://exa mple.org/",
            "https://example.org/\x01\x7f",
            "https://example.org:99999/",
            "https://[",
            "javascript:alert(1)",
        ):
            answer = await me.put("/users/me", {"avatar_url": bad})
            assert (answer.status, answer.fields()) == (400, ["avatar_url"]), bad
        both = await me.put("/users/me", {"avatar_url": "http://x", "bio": "x" * 501})
        assert set(both.fields()) == {"avatar_url", "bio"}
        assert (await me.get("/users/me")).json["avatar_url"] == good
    async with place(services) as shared, serving(shared, AVATAR_ALLOWED_HOSTS="cdn.example.org") as server:
        me = await Account().register(server.url)
        assert (await me.put("/users/me", {"avatar_url": good})).status == 400
        assert (await me.put("/users/me", {"avatar_url": "https://CDN.example.org/a"})).status == 200


@pytest.mark.gen_test
async def test_settings_are_merged(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        me = await Account().register(server.url)

        async def put(settings: Any) -> Any:
            answer = await me.put("/users/me", {"settings": settings})
            assert answer.status == 200, answer.text
            assert answer.json == (await me.get("/users/me")).json
            return answer.json["settings"]

        assert await put({"theme": "dark", "privacy": {"last_seen": "nobody", "x": 1}}) == {
            "theme": "dark",
            "privacy": {"last_seen": "nobody", "x": 1},
        }
        assert await put({"font": {"size": 1, "no": None}, "privacy": {"call": "contacts", "x": None}}) == {
            "theme": "dark",
            "font": {"size": 1, "no": None},
            "privacy": {"last_seen": "nobody", "call": "contacts"},
        }
        assert await put({"font": {"face": "serif"}, "theme": None}) == {
            "font": {"face": "serif"},
            "privacy": {"last_seen": "nobody", "call": "contacts"},
        }
        assert await put({"privacy": None, "absent": None}) == {"font": {"face": "serif"}}
        assert await put({"privacy": {"last_seen": None}}) == {"font": {"face": "serif"}, "privacy": {}}
        assert await put({}) == {"font": {"face": "serif"}, "privacy": {}}
        assert await put(None) == {}
        for bad in ({"privacy": {"last_seen": "friends"}}, {"privacy": 5}, {"privacy": []}):
            assert (await me.put("/users/me", {"settings": bad})).fields() == ["settings"]


@pytest.mark.gen_test
async def test_settings_of_two_devices_lose_nothing_and_are_bounded_together(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        me = await Account().register(one.url)

        async def put(url: str, settings: Any, **more: Any) -> int:
            return (await ask(url, "PUT", "/users/me", {"settings": settings, **more}, me.token)).status

        urls = [one.url, two.url] * 10
        changes = [{f"key{n}": n, "privacy": {f"p{n}": n}} for n in range(20)]
        assert await asyncio.gather(*map(put, urls, changes)) == [200] * 20
        stored = (await me.get("/users/me")).json["settings"]
        assert {name for name in stored if name != "privacy"} == {f"key{n}" for n in range(20)}
        assert stored["privacy"] == {f"p{n}": n for n in range(20)}
        # 16 KiB of JSON as it is written shortly: what is in strings counts as it is, with its blanks.
        assert await put(one.url, None) == 200
        text = 'a "quoted" text, with: blanks \\\\ and ü '
        whole = {"list": [1, 2, {"a": "b, c"}], "text": text, "fill": ""}
        room = 16_384 - len(json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode())
        assert await put(one.url, {"list": whole["list"], "text": text}) == 200
        assert await put(one.url, {"fill": "x" * (room + 1)}, bio="changed") == 400
        assert (await me.get("/users/me")).json["bio"] is None
        assert await put(one.url, {"fill": "x" * room}) == 200
        refused = await me.put("/users/me", {"settings": {"y": 1}})
        assert (refused.status, refused.fields()) == (400, ["settings"])
        assert (await me.put("/users/me", {"bio": "still"})).status == 200
        # Two that fit alone and not together: one of them comes too late.
        assert await put(one.url, None) == 200
        halves = [{"a": "x" * 9000}, {"b": "x" * 9000}]
        assert sorted(await asyncio.gather(*map(put, (one.url, two.url), halves))) == [200, 400]
        # A number may be short on the wire and long in the database.
        assert await put(one.url, {"numbers": [1e300] * 2000}) == 400


@pytest.mark.gen_test
async def test_a_user_id_is_as_good_as_a_public_id(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        # A public id that looks like a user id without its hyphens is a public id.
        bare = await Account(alice.user_id.replace("-", "")).register(server.url)
        verification = {"verified_fingerprint": alice.fingerprint.upper(), "method": "qr_code"}
        for user in (alice.user_id, alice.user_id.upper(), alice.public_id):
            assert (await bob.get(f"/users/{user}")).json["user_id"] == alice.user_id
            assert (await bob.get(f"/users/{user}/prekeys")).json["fingerprint"] == alice.fingerprint
            assert (await bob.post(f"/users/{user}/verify", verification)).status == 200
            assert (await bob.delete(f"/users/{user}/verify")).status == 204
            assert (await bob.put(f"/users/{user}/block", {})).status == 204
            assert (await bob.delete(f"/users/{user}/block")).status == 204
        assert (await bob.get(f"/users/{bare.public_id}")).json["user_id"] == bare.user_id
        for unknown in ("00000000-0000-4000-8000-000000000000", f"{{{alice.user_id}}}", f"urn:uuid:{alice.user_id}"):
            assert (await bob.get(f"/users/{unknown}")).status == 404
        both = await asyncio.gather(*(bob.get(f"/users/{user}") for user in (alice.user_id, bare.public_id) * 5))
        assert [answer.json["user_id"] for answer in both] == [alice.user_id, bare.user_id] * 5


@pytest.mark.gen_test
async def test_an_empty_text_clears(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        me = await Account().register(server.url, display_name="", language="ru_RU")
        mine = (await me.get("/users/me")).json
        assert (mine["display_name"], mine["language"]) == (None, "ru-RU")
        given = {"display_name": "Ann", "bio": "one\ntwo", "language": "zh_Hans_CN", "avatar_url": "https://a.example/"}
        mine = (await me.put("/users/me", given)).json
        assert {name: mine[name] for name in given} == {**given, "language": "zh-Hans-CN"}
        mine = (await me.put("/users/me", dict.fromkeys(given, ""))).json
        assert {name: mine[name] for name in given} == dict.fromkeys(given)
