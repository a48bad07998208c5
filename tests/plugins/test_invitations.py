"""Invitations into groups: who gets one, what the invited user sees, and what the others notice."""

from __future__ import annotations

import asyncio

import pytest

from plugins.chats.chats import MAX_PARTICIPANTS
from tests.client import Account
from tests.plugins.chatting import Json, chat, history, message, pages, say, seen, town
from tests.plugins.test_concealed_chats import block, cursor, synced, unblock
from tests.running import Services


async def asks(who: Account, setting: str | None = "requests") -> None:
    assert (await who.put("/users/me", {"settings": {"privacy": {"add": setting}}})).status == 200


async def add(by: Account, where: Json, who: Account, **more: str) -> Json:
    answer = await by.post(f"/chats/{where['id']}/participants", {"public_id": who.public_id, **more})
    assert answer.status == 201, answer.text
    added: Json = answer.json
    return added


async def decline(who: Account, *chat_ids: str, **more: bool) -> None:
    body = {"chat_ids": list(chat_ids), **more} if chat_ids else {"all": True, **more}
    assert (await who.post("/chats/requests/decline", body)).status == 204


def invited(where: Json) -> list[str]:
    return [person["user_id"] for person in where.get("invited", [])]


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_an_invited_user_sees_the_invitation_and_no_more_until_they_accept(
    services: Services, servers: int
) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        await asks(bob)
        since = await cursor(bob)
        a, b, c = await made.sockets(alice, bob, carol)
        group = await chat(alice, bob, carol, title="Sunday", settings={"x": 1})
        assert group["participant_count"] == 2 and invited(group) == [bob.user_id]
        assert invited(await seen(carol, group)) == [bob.user_id]
        frames = [await socket.expect("participant_invited") for socket in (a, b, c)]
        assert frames[0] == frames[1] == frames[2]
        event = frames[0]
        assert (event["seq"], event["user_id"], event["by"]) == (2, bob.user_id, alice.user_id)
        posted = await say(alice, group)
        await b.silent()
        [entry] = (await bob.get("/chats")).json
        assert entry == await seen(bob, group)
        assert (entry["request"], entry["title"], entry["invited_by"]["user_id"]) == (True, "Sunday", alice.user_id)
        assert (entry["participants"], entry["last_message"], entry["settings"]) == ([], None, {})
        assert (await bob.get("/chats?hidden=true")).json == []
        assert (await synced(bob, since))["events"] == [event]
        path = f"/chats/{group['id']}"
        for way in ("messages", "participants", "bans", "invites"):
            assert (await bob.get(f"{path}/{way}")).status == 404
        assert (await bob.post(f"{path}/messages", message())).status == 404
        assert (await bob.get(f"/messages/{posted['id']}")).status == 404
        assert (await bob.put(f"{path}/me", {"archived": True})).status == 404
        assert (await b.send("typing", chat_id=group["id"]))["code"] == "not_found"

        accepted = await bob.post(f"{path}/accept", {})
        assert (accepted.status, accepted.json["role"], accepted.json["unread_count"]) == (200, "member", 0)
        assert "request" not in accepted.json and invited(accepted.json) == []
        for socket in (a, b, c):
            assert (await socket.expect("participant_added"))["user_id"] == bob.user_id
        assert (await bob.post(f"{path}/accept", {})).status == 200, "again changes nothing"
        assert await history(bob, group) == []
        later = await say(alice, group, "welcome")
        assert [one["id"] for one in await history(bob, group)] == [later["id"]]
        await decline(bob)
        assert (await bob.get(path)).status == 200, "what was accepted can't be declined"


@pytest.mark.gen_test
async def test_a_declined_invitation_looks_unanswered_until_it_is_withdrawn(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        await asks(bob)
        group = await chat(alice, bob, carol)
        before = await seen(alice, group)
        since = await cursor(bob)
        a, b, other = await made.socket(alice), await made.socket(bob), await made.socket(bob)
        await decline(bob, group["id"])
        for socket in (b, other):
            assert (await socket.expect("account_changed"))["chat_id"] == group["id"]
        assert (await bob.get("/chats")).json == []
        assert (await bob.get(f"/chats/{group['id']}")).status == 404
        assert (await bob.post(f"/chats/{group['id']}/accept", {})).status == 404
        assert [gone["chat_id"] for gone in (await synced(bob, since))["deleted"]] == [group["id"]]
        await a.silent()
        assert await seen(alice, group) == before
        body = {"public_id": bob.public_id}
        assert (await alice.post(f"/chats/{group['id']}/participants", body)).status == 409
        # An invitation that is withdrawn and sent again is still declined, and the others cannot see it.
        path = f"/chats/{group['id']}/participants/{bob.user_id}"
        assert (await alice.delete(path)).status == 204
        assert (await a.expect("participant_removed"))["user_id"] == bob.user_id
        assert invited(await seen(alice, group)) == []
        assert (await alice.delete(path)).status == 404
        assert (await add(alice, group, bob))["invited"] is True
        assert invited(await seen(alice, group)) == [bob.user_id]
        await b.silent()
        # Bob may still come by himself.
        token = (await alice.post(f"/chats/{group['id']}/invites", {})).json["token"]
        assert (await bob.post("/chats/join", {"token": token})).status == 200
        assert invited(await seen(alice, group)) == []


@pytest.mark.gen_test
async def test_an_admin_withdraws_an_invitation_that_waits(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        await asks(bob)
        group = await chat(alice, bob)
        since, b = await cursor(bob), await made.socket(bob)
        assert (await alice.delete(f"/chats/{group['id']}/participants/{bob.user_id}")).status == 204
        removal = await b.expect("participant_removed")
        assert removal["user_id"] == bob.user_id
        assert (await synced(bob, since))["events"] == [removal]
        assert (await bob.get("/chats")).json == []
        await add(alice, group, bob)
        assert [one["id"] for one in (await bob.get("/chats")).json] == [group["id"]], "it was not declined"
        assert (await alice.delete(f"/chats/{group['id']}/participants/{bob.user_id}?ban=true")).status == 204
        assert (await bob.post(f"/chats/{group['id']}/accept", {})).status == 404
        assert (await alice.delete(f"/chats/{group['id']}")).status == 204


@pytest.mark.gen_test
@pytest.mark.parametrize("wish", ["everyone", "requests", "contacts", None])
async def test_the_setting_decides_and_contacts_are_added(services: Services, wish: str | None) -> None:
    async with town(services, people=3) as made:
        stranger, friend, bob = made.people
        await asks(bob, wish)
        pair = await chat(bob, friend, kind="direct")
        await say(bob, pair)
        first, second = await chat(stranger, bob), await chat(friend)
        by_stranger = await add(stranger, await chat(stranger), bob)
        by_friend = await add(friend, second, bob)
        is_asked = wish in ("requests", "contacts")
        assert by_stranger == {**by_stranger, "role": "member", "invited": is_asked}
        assert by_friend["invited"] is False
        assert invited(await seen(stranger, first)) == ([bob.user_id] if is_asked else [])
        requests = [one["id"] for one in (await bob.get("/chats")).json if one.get("request")]
        assert len(requests) == (2 if wish == "requests" else 0)
        assert (await bob.get(f"/chats/{first['id']}")).status == (404 if wish == "contacts" else 200)


@pytest.mark.gen_test
async def test_the_blocker_notices_no_invitation_of_a_blocked_user(services: Services) -> None:
    async with town(services, people=3) as made:
        victim, mallory, bystander = made.people
        await block(victim, mallory)
        since, v = await cursor(victim), await made.socket(victim)
        for kind in ("group", "channel", "cloud"):
            where = await chat(mallory, victim, bystander, kind=kind, title="BUY NOW")
            assert invited(where) == [victim.user_id]
        added = await add(mallory, await chat(mallory), victim)
        assert added["invited"] is True
        await v.silent()
        assert (await victim.get("/chats")).json == []
        page = await synced(victim, since)
        assert (page["events"], page.get("deleted", [])) == ([], [])
        await unblock(victim, mallory)
        assert (await victim.get("/chats")).json == []


@pytest.mark.gen_test
@pytest.mark.parametrize("first", ["together", "blocker", "blocked", "by a link"])
async def test_a_helper_cannot_bring_users_together_across_a_block(services: Services, first: str) -> None:
    async with town(services, 2, people=4) as made:
        helper, victim, mallory, other = made.people
        await block(victim, mallory)
        v = await made.socket(victim)
        if first == "together":
            group = await chat(helper, victim, mallory, other)
        elif first == "blocked":
            group = await chat(helper, mallory, other)
            await add(helper, group, victim)
        else:
            group = await chat(helper, victim, other)
            if first == "blocker":
                await add(helper, group, mallory)
            else:
                token = (await helper.post(f"/chats/{group['id']}/invites", {})).json["token"]
                assert (await mallory.post("/chats/join", {"token": token})).status == 200
        await asyncio.sleep(0.2)
        v.frames.clear()
        assert mallory.user_id in {one["user_id"] for one in (await seen(helper, group))["participants"]}
        posted = await say(mallory, group, "hello again")
        await v.silent()
        assert (await victim.get(f"/messages/{posted['id']}")).status == 404
        assert (await victim.get(f"/chats/{group['id']}/messages")).status == 404
        [entry] = (await victim.get("/chats")).json
        assert entry["request"] is True
        # To the others the victim was put there, or was invited.
        shown = await seen(other, group)
        people = {one["user_id"] for one in shown["participants"]}
        assert (victim.user_id in people) is (first in ("blocker", "by a link"))
        assert invited(shown) == ([] if victim.user_id in people else [victim.user_id])
        accepted = await victim.post(f"/chats/{group['id']}/accept", {})
        assert (accepted.status, accepted.json["unread_count"]) == (200, 0)
        assert await history(victim, group) == []
        later = await say(mallory, group, "a group is a group")
        assert (await v.expect("message_new"))["seq"] == later["seq"]
        assert [one["id"] for one in await history(victim, group)] == [later["id"]]


@pytest.mark.gen_test
async def test_users_who_joined_by_themselves_stay_though_a_blocked_user_comes_in(services: Services) -> None:
    async with town(services, people=5) as made:
        helper, maker, writer, joined, mallory = made.people
        for one in (maker, writer, joined):
            await block(one, mallory)
        group = await chat(maker, helper, writer)
        await maker.put(f"/chats/{group['id']}/participants/{helper.user_id}", {"role": "admin"})
        await say(writer, group)
        token = (await maker.post(f"/chats/{group['id']}/invites", {})).json["token"]
        assert (await joined.post("/chats/join", {"token": token})).status == 200
        assert (await add(helper, group, mallory))["invited"] is False
        await say(mallory, group)
        for one in (maker, writer, joined):
            assert len(await history(one, group)) >= 1
        # Users may join a chat with somebody they have blocked.
        assert (await joined.delete(f"/chats/{group['id']}/participants/{joined.user_id}")).status == 204
        assert (await joined.post("/chats/join", {"token": token})).status == 200


@pytest.mark.gen_test
async def test_declining_to_stay_looks_like_leaving(services: Services) -> None:
    async with town(services, people=3) as made:
        helper, victim, mallory = made.people
        await block(victim, mallory)
        group = await chat(helper, victim)
        await add(helper, group, mallory)
        h = await made.socket(helper)
        await decline(victim)
        left = await h.expect("participant_removed")
        assert (left["user_id"], left["role"]) == (victim.user_id, "member")
        shown = await seen(helper, group)
        assert shown["participant_count"] == 2 and invited(shown) == []
        assert (await victim.get("/chats")).json == []


@pytest.mark.gen_test
async def test_all_are_declined_and_their_makers_blocked_in_one_call(services: Services) -> None:
    async with town(services, people=3) as made:
        bob, spammer, other = made.people
        await asks(bob)
        chats = [await chat(spammer, bob), await chat(spammer, bob), await chat(other, bob)]
        assert len((await bob.get("/chats")).json) == 3
        await block(bob, other)  # takes the invitation of the blocked one away by itself
        assert {one["id"] for one in (await bob.get("/chats")).json} == {one["id"] for one in chats[:2]}
        await decline(bob, block=True)
        assert (await bob.get("/chats")).json == []
        blocked = {one["user_id"] for one in (await bob.get("/users/me/blocks")).json}
        assert blocked == {spammer.user_id, other.user_id}
        for body in ({}, {"all": True, "chat_ids": []}, {"chat_ids": ["x"]}, {"all": False}):
            assert (await bob.post("/chats/requests/decline", body)).status == 400
        await decline(bob, chats[0]["id"])  # again, or what is none, changes nothing
        await decline(other, chats[0]["id"])
        assert invited(await seen(spammer, chats[0])) == [bob.user_id]


@pytest.mark.gen_test
async def test_invitations_are_declined_also_when_no_more_can_be_blocked(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.contacts.MAX_BLOCKS", 0)
    async with town(services, people=2) as made:
        spammer, bob = made.people
        await asks(bob)
        await chat(spammer, bob, title="Buy now")
        refused = await bob.post("/chats/requests/decline", {"all": True, "block": True})
        assert (refused.status, refused.code) == (409, "conflict")
        assert (await bob.get("/chats")).json == []


@pytest.mark.gen_test
async def test_open_invitations_of_a_chat_are_bounded(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.chats.invitations.MAX_PER_CHAT", 1)
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        for person in (bob, carol):
            await asks(person)
        group = await chat(alice)
        await add(alice, group, bob)
        path = f"/chats/{group['id']}/participants"
        refused = await alice.post(path, {"public_id": carol.public_id})
        assert (refused.status, refused.code) == (409, "conflict")
        assert (await carol.get("/chats")).json == []
        await decline(bob)  # which alice must not notice
        assert (await alice.post(path, {"public_id": carol.public_id})).status == 409
        assert (await alice.delete(f"{path}/{bob.user_id}")).status == 204
        await add(alice, group, carol)


@pytest.mark.gen_test
async def test_invitations_count_against_the_size_of_a_chat(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_PARTICIPANTS, "group", 3)
    async with town(services, people=5) as made:
        alice, bob, carol, dave, erin = made.people
        for one in (bob, carol):
            await asks(one)
        group = await chat(alice, bob, carol)
        for one in (dave, erin):
            answer = await alice.post(f"/chats/{group['id']}/participants", {"public_id": one.public_id})
            assert answer.status == 409
        token = (await alice.post(f"/chats/{group['id']}/invites", {})).json["token"]
        assert (await dave.post("/chats/join", {"token": token})).status == 409
        await decline(bob)
        assert (await dave.post("/chats/join", {"token": token})).status == 409, (
            "the others cannot see that bob declined"
        )
        assert (await carol.post(f"/chats/{group['id']}/accept", {})).status == 200
        assert (await alice.delete(f"/chats/{group['id']}/participants/{bob.user_id}")).status == 204
        assert (await dave.post("/chats/join", {"token": token})).status == 200


@pytest.mark.gen_test
async def test_a_user_has_so_many_invitations_and_the_oldest_make_room(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        await asks(bob)
        group = await chat(alice, bob)
        await made.sql(
            """WITH made AS (
                   INSERT INTO chat_threads (type, created_by, participant_count)
                   SELECT 'group', $1, 1 FROM generate_series(1, 500) RETURNING id)
               INSERT INTO chat_invitations (chat_id, user_id, invited_by, created_at)
               SELECT id, $2, $1, now() - interval '1 day' FROM made""",
            alice.user_id,
            bob.user_id,
        )
        newest = await chat(alice, bob)
        listed = [one["id"] for page in await pages(bob, "/chats?limit=90") for one in page]
        assert len(listed) == len(set(listed)) == 500
        assert listed[:2] == [newest["id"], group["id"]]


@pytest.mark.gen_test
async def test_roles_and_races_of_an_answer(services: Services) -> None:
    async with town(services, 2, people=3) as made:
        alice, bob, carol = made.people
        await asks(bob)
        group = await chat(alice, carol)
        assert (await add(alice, group, bob, role="admin"))["role"] == "admin"
        await alice.put(f"/chats/{group['id']}/participants/{carol.user_id}", {"role": "owner"})
        path = f"/chats/{group['id']}/accept"
        answers = await asyncio.gather(
            *(bob.post(path, {}) for _ in range(4)), alice.delete(f"/chats/{group['id']}/participants/{bob.user_id}")
        )
        present = {one["user_id"]: one["role"] for one in (await seen(alice, group))["participants"]}
        assert present.get(bob.user_id) in (None, "member"), "who invited no longer owns the chat"
        assert {answer.status for answer in answers} <= {200, 204, 404}
        assert (await seen(alice, group))["participant_count"] == len(present)
        assert invited(await seen(alice, group)) == []


@pytest.mark.gen_test
async def test_readers_of_a_channel_learn_nothing_of_invitations(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, reader = made.people
        await asks(bob)
        channel = await chat(alice, reader, kind="channel")
        a, b, r = await made.sockets(alice, bob, reader)
        await add(alice, channel, bob)
        event = await a.expect("participant_invited")
        assert await b.expect("participant_invited") == event
        assert (await r.expect("hidden"))["seq"] == event["seq"]
        assert invited(await seen(alice, channel)) == [bob.user_id]
        assert "invited" not in await seen(reader, channel)
        assert (await bob.post(f"/chats/{channel['id']}/accept", {})).status == 200


@pytest.mark.gen_test
async def test_an_invitation_ends_with_the_chat_and_outlives_its_creator(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        await asks(bob)
        short, long = await chat(alice, bob), await chat(carol, bob, alice)
        await carol.put(f"/chats/{long['id']}/participants/{alice.user_id}", {"role": "owner"})
        since = await cursor(bob)
        assert (await alice.delete(f"/chats/{short['id']}")).status == 204
        assert [one["chat_id"] for one in (await synced(bob, since))["deleted"]] == [short["id"]]
        await made.sql("UPDATE chat_invitations SET invited_by = NULL")
        [entry] = (await bob.get("/chats")).json
        assert (entry["id"], entry["invited_by"]) == (long["id"], None)
