"""Coming back to a chat: what outlasts leaving it, removals that close older invites, and bans."""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import uuid4

import pytest

from models.chats import purge
from tests.client import Account, ask
from tests.plugins.chatting import SECONDS, Json, chat, message, pages, patiently, roles, say, seen, town
from tests.running import Services


def people_of(group: Json) -> str:
    return f"/chats/{group['id']}/participants"


async def invite(by: Account, group: Json, **more: int) -> str:
    answer = await by.post(f"/chats/{group['id']}/invites", more)
    assert answer.status == 201, answer.text
    return str(answer.json["token"])


async def join(who: Account, token: str) -> tuple[int, str | None]:
    """The status, and the role that they have then. A preview says the same just before."""
    preview = await who.post("/chats/join/preview", {"token": token})
    answer = await who.post("/chats/join", {"token": token})
    assert preview.status == answer.status
    return answer.status, answer.json.get("role")


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["group", "channel", "cloud"])
async def test_a_restriction_outlasts_leaving_and_removal(services: Services, kind: str) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol, kind=kind)
        token = await invite(alice, group)
        own = f"{people_of(group)}/{bob.user_id}"
        assert (await alice.put(own, {"role": "restricted"})).status == 200
        assert (await alice.put(f"{people_of(group)}/{carol.user_id}", {"role": "admin"})).status == 200
        [a] = await made.sockets(alice)

        async def restricted() -> None:
            assert (await a.expect("participant_added", SECONDS))["role"] == "restricted"
            assert (await seen(bob, group))["role"] == "restricted"
            assert (await bob.post(f"/chats/{group['id']}/messages", message())).status == 403

        assert (await bob.delete(own)).status == 204
        assert await join(bob, token) == (200, "restricted")
        await restricted()
        assert (await bob.delete(own)).status == 204
        added = await carol.post(people_of(group), {"public_id": bob.public_id, "role": "member"})
        assert (added.status, added.json["role"]) == (201, "restricted")
        await restricted()
        assert (await carol.delete(own)).status == 204
        assert (await join(bob, token))[0] == 404
        assert await join(bob, await invite(carol, group)) == (200, "restricted")
        await restricted()
        # Until an admin says otherwise: then it is over for good.
        assert (await carol.put(own, {"role": "member"})).status == 200
        assert (await bob.delete(own)).status == 204
        assert await join(bob, token) == (200, "member")
        # The owner may say so by adding them as admin.
        assert (await alice.put(own, {"role": "restricted"})).status == 200
        assert (await alice.delete(own)).status == 204
        added = await alice.post(people_of(group), {"public_id": bob.public_id, "role": "admin"})
        assert (added.status, added.json["role"]) == (201, "admin")
        # Other roles come back as member.
        assert (await bob.delete(own)).status == 204
        assert await join(bob, token) == (200, "member")


@pytest.mark.gen_test
async def test_a_removed_user_cannot_return_by_an_earlier_invite(services: Services) -> None:
    async with town(services, 2, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        before = await invite(alice, group)
        assert (await alice.delete(f"{people_of(group)}/{bob.user_id}")).status == 204
        refused = await bob.post("/chats/join", {"token": before})
        unknown = await bob.post("/chats/join", {"token": "x" * 24})
        assert (refused.status, refused.code) == (404, "not_found")
        assert refused.json["message"] == unknown.json["message"], "nothing says that the invite is good for others"
        dave = await made.newcomer()
        assert await join(dave, before) == (200, "member"), "the invite stays open to others"
        assert await join(bob, await invite(alice, group)) == (200, "member")
        # A user who left may come back by any invite.
        assert (await bob.delete(f"{people_of(group)}/{bob.user_id}")).status == 204
        assert await join(bob, before) == (200, "member")
        # A removed user may be added.
        assert (await alice.delete(f"{people_of(group)}/{bob.user_id}")).status == 204
        assert (await alice.post(people_of(group), {"public_id": bob.public_id})).status == 201


@pytest.mark.gen_test
@pytest.mark.parametrize("how", ["lowered", "restricted", "removed", "left", "banned"])
async def test_invites_end_when_their_maker_may_not_invite_any_more(services: Services, how: str) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, dave = made.people
        group = await chat(alice, bob)
        own = f"{people_of(group)}/{bob.user_id}"
        assert (await alice.put(own, {"role": "admin"})).status == 200
        token, other = await invite(bob, group), await invite(alice, group)
        assert (await join(carol, token))[0] == 200
        for_role = {"lowered": "member", "restricted": "restricted"}
        if how in for_role:
            assert (await alice.put(own, {"role": for_role[how]})).status == 200
        elif how == "left":
            assert (await bob.delete(own)).status == 204
        else:
            assert (await alice.delete(own + ("?ban=true" if how == "banned" else ""))).status == 204
        for who in (bob, dave) if how not in for_role else (dave,):
            assert (await join(who, token))[0] == 404
        listed = (await alice.get(f"/chats/{group['id']}/invites")).json
        assert [one["created_by"] for one in listed] == [alice.user_id]
        assert (await join(dave, other))[0] == 200
        # Nor does it live again with the role.
        if how in for_role:
            assert (await alice.put(own, {"role": "admin"})).status == 200
            assert (await (await made.newcomer()).post("/chats/join", {"token": token})).status == 404


@pytest.mark.gen_test
async def test_an_owner_who_hands_the_chat_over_may_still_invite(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob)
        token = await invite(alice, group)
        assert (await alice.put(f"{people_of(group)}/{bob.user_id}", {"role": "owner"})).status == 200
        assert await join(carol, token) == (200, "member")


@pytest.mark.gen_test
async def test_an_invite_that_an_older_server_left_behind_opens_nothing(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob)
        token = await invite(alice, group)
        for maker in (f"'{bob.user_id}'", "NULL", f"'{carol.user_id}'"):
            await made.sql(f"UPDATE chat_invites SET created_by = {maker}")
            assert (await join(carol, token))[0] == 404


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_banned_user_cannot_return_until_the_ban_is_lifted(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        path = f"/chats/{group['id']}"
        token = await invite(alice, group)
        [b] = await made.sockets(bob)
        assert (await alice.delete(f"{people_of(group)}/{bob.user_id}?ban=true")).status == 204
        await b.expect("participant_removed", SECONDS, user_id=bob.user_id)
        for opened in (token, await invite(alice, group)):
            assert (await join(bob, opened))[0] == 404
        added = await alice.post(people_of(group), {"public_id": bob.public_id})
        assert (added.status, added.code) == (409, "conflict")
        assert (await alice.post(people_of(group), {"public_id": bob.public_id, "role": "admin"})).status == 409
        [banned] = (await alice.get(f"{path}/bans")).json
        assert banned.keys() == {"user_id", "public_id", "display_name", "avatar_url", "banned_at"}
        assert (banned["user_id"], banned["public_id"]) == (bob.user_id, bob.public_id)
        # Again changes nothing.
        assert (await alice.delete(f"{people_of(group)}/{bob.user_id}?ban=true")).status == 204
        assert (await alice.get(f"{path}/bans")).json == [banned]
        assert (await alice.delete(f"{people_of(group)}/{bob.user_id}?ban=false")).status == 404

        assert (await alice.delete(f"{path}/bans/{bob.user_id}")).status == 204
        assert (await alice.delete(f"{path}/bans/{bob.user_id}")).status == 404
        assert (await alice.get(f"{path}/bans")).json == []
        assert (await join(bob, token))[0] == 404, "an invite from before stays closed"
        assert await join(bob, await invite(alice, group)) == (200, "member")


@pytest.mark.gen_test
async def test_a_ban_needs_a_higher_role(services: Services) -> None:
    async with town(services, people=6) as made:
        alice, bob, carol, dave, eve, stranger = made.people
        group = await chat(alice, bob, carol, dave, eve)
        path = f"/chats/{group['id']}"
        for admin in (bob, carol):
            assert (await alice.put(f"{people_of(group)}/{admin.user_id}", {"role": "admin"})).status == 200

        async def ban(by: Account, user_id: str) -> int:
            return (await by.delete(f"{people_of(group)}/{user_id}?ban=true")).status

        assert await ban(dave, eve.user_id) == await ban(dave, stranger.user_id) == 403
        assert await ban(bob, alice.user_id) == await ban(bob, carol.user_id) == 403
        assert await ban(alice, alice.user_id) == await ban(bob, bob.user_id) == 409
        assert await ban(stranger, dave.user_id) == 404
        assert await ban(bob, str(uuid4())) == 404
        for who, status in ((dave, 403), (stranger, 404)):
            assert (await who.get(f"{path}/bans")).status == status
            assert (await who.delete(f"{path}/bans/{eve.user_id}")).status == status
        # Former participants and outsiders can be banned as well; a ban does not change the role of "restricted".
        assert (await alice.put(f"{people_of(group)}/{eve.user_id}", {"role": "restricted"})).status == 200
        assert (await eve.delete(f"{people_of(group)}/{eve.user_id}")).status == 204
        assert await ban(bob, eve.user_id) == await ban(bob, stranger.user_id) == 204
        assert [one["user_id"] for one in (await carol.get(f"{path}/bans")).json] == [stranger.user_id, eve.user_id]
        found = await pages(carol, f"{path}/bans?limit=1")
        assert [one["user_id"] for page in found for one in page] == [stranger.user_id, eve.user_id]
        assert (await carol.delete(f"{path}/bans/{eve.user_id}")).status == 204
        assert await join(eve, await invite(bob, group)) == (200, "restricted")
        pair = await chat(alice, bob, kind="direct")
        assert (await alice.get(f"/chats/{pair['id']}/bans")).status == 409
        assert (await alice.delete(f"{people_of(pair)}/{bob.user_id}?ban=true")).status == 409
        assert (await alice.delete(f"{people_of(group)}/{dave.user_id}?ban=perhaps")).fields() == ["ban"]


@pytest.mark.gen_test
async def test_a_chat_has_so_many_bans_and_a_removal_works_beyond_them(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        await made.sql(
            """WITH people AS (
                   INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id,
                                      fingerprint)
                   SELECT 'banned_' || n, '-', sha256(n::text::bytea), sha256(n::text::bytea), 1,
                          encode(sha256(sha256(n::text::bytea)), 'hex') FROM generate_series(1, 9999) AS n RETURNING id)
               INSERT INTO chat_sanctions (chat_id, user_id, banned_at) SELECT $1::text::uuid, id, now() FROM people""",
            group["id"],
        )
        assert (await alice.delete(f"{people_of(group)}/{bob.user_id}?ban=true")).status == 204
        refused = await alice.delete(f"{people_of(group)}/{carol.user_id}?ban=true")
        assert (refused.status, refused.code) == (409, "conflict")
        assert carol.user_id in roles(await seen(alice, group)), "all of it or nothing"
        assert (await alice.delete(f"{people_of(group)}/{bob.user_id}?ban=true")).status == 204, "banned already"
        assert (await alice.delete(f"{people_of(group)}/{carol.user_id}")).status == 204
        assert len((await alice.get(f"/chats/{group['id']}/bans?limit=500")).json) == 500


@pytest.mark.gen_test
async def test_a_ban_beside_joins_leaves_no_banned_user_in_the_chat(services: Services) -> None:
    async with town(services, 2, people=9) as made:
        alice, *guests = made.people
        group = await chat(alice)
        token = await invite(alice, group)
        joins = [partial(guest.post, "/chats/join", {"token": token}) for guest in guests]
        bans = [partial(alice.delete, f"{people_of(group)}/{guest.user_id}?ban=true") for guest in guests]
        answers = await asyncio.gather(*(patiently(step) for pair in zip(joins, bans, strict=True) for step in pair))
        assert {answer.status for answer in answers[::2]} <= {200, 404}
        assert {answer.status for answer in answers[1::2]} == {204}
        assert roles(await seen(alice, group)) == {alice.user_id: "owner"}
        assert len((await alice.get(f"/chats/{group['id']}/bans")).json) == 8
        for guest in guests:
            assert (await guest.get(f"/chats/{group['id']}")).status == 404


@pytest.mark.gen_test
async def test_an_invite_made_beside_the_removal_of_its_maker_opens_nothing(services: Services) -> None:
    async with town(services, 2, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob)
        own = f"{people_of(group)}/{bob.user_id}"
        for _ in range(5):
            assert (await alice.put(own, {"role": "admin"})).status == 200
            answers = await asyncio.gather(
                *(bob.post(f"/chats/{group['id']}/invites", {}) for _ in range(4)), alice.delete(own)
            )
            assert {answer.status for answer in answers} <= {201, 204, 403, 404}
            for answer in answers[:-1]:
                if answer.status == 201:
                    assert (await join(carol, answer.json["token"]))[0] == 404
            assert (await alice.get(f"/chats/{group['id']}/invites")).json == []
            assert (await alice.post(people_of(group), {"public_id": bob.public_id})).status == 201


@pytest.mark.gen_test
async def test_a_preview_shows_what_an_invite_leads_to_and_uses_nothing(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, carol, title="Sunday", avatar_url="https://mimu.example/a.png")
        token = await invite(alice, group, max_uses=1)
        about = {
            "type": "group",
            "title": "Sunday",
            "avatar_url": "https://mimu.example/a.png",
            "participant_count": 2,
        }
        for _ in range(2):
            preview = await bob.post("/chats/join/preview", {"token": token})
            assert (preview.status, preview.json) == (200, {**about, "joined": False, "chat_id": None})
        assert await join(bob, token) == (200, "member")
        preview = await bob.post("/chats/join/preview", {"token": token})
        assert preview.json == {**about, "participant_count": 3, "joined": True, "chat_id": group["id"]}
        dave = await made.newcomer()
        refused = await dave.post("/chats/join/preview", {"token": token})
        assert (refused.status, refused.code) == (404, "not_found"), "it is used up"
        assert (await dave.post("/chats/join/preview", {"token": "short"})).fields() == ["token"]
        assert (await alice.delete(f"/chats/{group['id']}")).status == 204
        assert (await bob.post("/chats/join/preview", {"token": token})).status == 404


@pytest.mark.gen_test
async def test_previews_count_with_joins(services: Services) -> None:
    settings = {"RATE_LIMITS": "on", "RATE_LIMIT_JOIN": "3/hour"}
    async with town(services, people=1, **settings) as made:
        [alice] = made.people
        look = "join/preview"
        for route, status in (("join", 404), (look, 404), ("join", 404), (look, 429), ("join", 429)):
            assert (await alice.post(f"/chats/{route}", {"token": "x" * 24})).status == status


@pytest.mark.gen_test
async def test_bans_are_deleted_with_the_chat_and_with_the_account(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group, other = await chat(alice, bob, carol), await chat(alice, carol)
        for who in (bob, carol):
            assert (await alice.delete(f"{people_of(group)}/{who.user_id}?ban=true")).status == 204
        assert (await alice.delete(f"{people_of(other)}/{carol.user_id}")).status == 204
        erased = await ask(carol.url, "DELETE", "/users/me", {"password": carol.password}, carol.token)
        assert erased.status == 204
        assert [one["user_id"] for one in (await alice.get(f"/chats/{group['id']}/bans")).json] == [bob.user_id]
        assert (await alice.put(f"/chats/{group['id']}/me", {"archived": True})).status == 200
        await say(alice, group)
        assert (await alice.delete(f"/chats/{group['id']}")).status == 204
        while await purge.purge(made.servers[0].app.db, 100):
            continue
        for table in ("chat_sanctions", "chat_views", "messages WHERE seq > 0 AND"):
            which = table if "WHERE" in table else f"{table} WHERE"
            assert await made.sql(f"SELECT 1 FROM {which} chat_id::text = '{group['id']}'") == []
