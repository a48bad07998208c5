"""Users: search, profiles, and what one changes of oneself."""

from __future__ import annotations

import pytest

from tests.client import Account, ask
from tests.running import Services, place, serving


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
    async with place(services) as shared, serving(shared) as server:
        me = await Account().register(server.url)
        await server.app.db.execute(
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
            "https://example.org:99999/",
            "https://[",
            "javascript:alert(1)",
            "",
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
