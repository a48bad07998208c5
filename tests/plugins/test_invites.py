"""Invites: as many as they are for come in, as long as they last."""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import uuid4

import pytest

from tests.plugins.chatting import SECONDS, chat, everyone_hears, patiently, roles, seen, town
from tests.running import Services


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_an_invite_lets_in_and_is_listed_without_its_token(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice)
        path = f"/chats/{group['id']}/invites"
        made_ = (await alice.post(path, {"max_uses": 3, "expires_in": 3600})).json
        assert (made_["max_uses"], made_["uses"], made_["chat_id"]) == (3, 0, group["id"])
        token = made_["token"]
        sockets = await made.sockets(alice, bob)
        joined = await bob.post("/chats/join", {"token": token})
        assert (joined.status, joined.json["id"], joined.json["role"]) == (200, group["id"], "member")
        for event in await everyone_hears(sockets, "participant_added", chat_id=group["id"]):
            assert (event["user_id"], event["role"], event["seq"]) == (bob.user_id, "member", 2)
        # Again uses nothing, and is no event; the owner needs no invite either.
        for who in (bob, bob, alice):
            assert (await who.post("/chats/join", {"token": token})).status == 200
        for socket in sockets:
            await socket.silent()
        [listed] = (await alice.get(path)).json
        assert listed == {**{name: made_[name] for name in made_ if name != "token"}, "uses": 1}
        assert token not in str(await made.sql("SELECT * FROM chat_invites"))
        assert (await carol.get(path)).status == 404
        assert (await bob.get(path)).status == 403
        # A user who left may join again, which is another use.
        assert (await bob.delete(f"/chats/{group['id']}/participants/{bob.user_id}")).status == 204
        assert (await bob.post("/chats/join", {"token": token})).status == 200
        assert [invite["uses"] for invite in (await alice.get(path)).json] == [2]


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_exactly_max_uses_of_twenty_simultaneous_guests_join(services: Services, servers: int) -> None:
    async with town(services, servers, people=21) as made:
        alice, *guests = made.people
        group = await chat(alice)
        path = f"/chats/{group['id']}"
        token = (await alice.post(f"{path}/invites", {"max_uses": 7})).json["token"]
        [a] = await made.sockets(alice)
        answers = await asyncio.gather(
            *(patiently(partial(guest.post, "/chats/join", {"token": token})) for guest in guests)
        )
        assert sorted(answer.status for answer in answers) == [200] * 7 + [404] * 13
        inside = {guest.user_id for guest, answer in zip(guests, answers, strict=True) if answer.status == 200}
        after = await seen(alice, group)
        assert (set(roles(after)), after["participant_count"]) == ({alice.user_id, *inside}, 8)
        added = [await a.expect("participant_added", SECONDS) for _ in range(7)]
        assert {event["user_id"] for event in added} == inside
        assert sorted(event["seq"] for event in added) == list(range(2, 9))
        await a.silent()
        assert [invite["uses"] for invite in (await alice.get(f"{path}/invites")).json] == [7]


@pytest.mark.gen_test
async def test_the_same_guest_twenty_times_at_once_is_one_use(services: Services) -> None:
    async with town(services, 2, people=2) as made:
        alice, bob = made.people
        group = await chat(alice)
        token = (await alice.post(f"/chats/{group['id']}/invites", {"max_uses": 5})).json["token"]
        answers = await asyncio.gather(
            *(patiently(partial(bob.post, "/chats/join", {"token": token})) for _ in range(20))
        )
        assert {answer.status for answer in answers} == {200}
        after = await seen(alice, group)
        assert (after["participant_count"], after["last_seq"]) == (2, 2)
        assert [i["uses"] for i in (await alice.get(f"/chats/{group['id']}/invites")).json] == [1]


@pytest.mark.gen_test
async def test_an_expired_revoked_or_unknown_invite_is_refused(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group, other = await chat(alice), await chat(alice)
        path = f"/chats/{group['id']}/invites"
        over, withdrawn, good = [(await alice.post(path, {"expires_in": 60})).json for _ in range(3)]
        await made.sql("UPDATE chat_invites SET expires_at = now() WHERE id::text = $1", over["id"])
        assert (await bob.delete(f"{path}/{withdrawn['id']}")).status == 404
        assert (await alice.delete(f"/chats/{other['id']}/invites/{withdrawn['id']}")).status == 404
        assert (await alice.delete(f"{path}/{withdrawn['id']}")).status == 204
        assert (await alice.delete(f"{path}/{withdrawn['id']}")).status == 404
        assert (await alice.delete(f"{path}/{uuid4()}")).status == 404
        for token in (over["token"], withdrawn["token"], "x" * 24):
            answer = await bob.post("/chats/join", {"token": token})
            assert (answer.status, answer.code) == (404, "not_found")
        for token in ("", "short", "x" * 65, "ä" * 24, None, 5):
            assert (await bob.post("/chats/join", {"token": token})).fields() == ["token"]
        assert (await bob.post("/chats/join", {"token": good["token"]})).status == 200
        assert {invite["id"] for invite in (await alice.get(path)).json} == {over["id"], good["id"]}


@pytest.mark.gen_test
async def test_admins_may_invite_within_the_limits(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        path = f"/chats/{group['id']}/invites"
        assert (await bob.post(path, {})).status == 403
        assert (await alice.put(f"/chats/{group['id']}/participants/{bob.user_id}", {"role": "admin"})).status == 200
        invite = await bob.post(path, {})
        assert (invite.status, invite.json["max_uses"], invite.json["expires_at"]) == (201, None, None)
        assert (await alice.delete(f"{path}/{invite.json['id']}")).status == 204
        for body, name in (
            ({"max_uses": 0}, "max_uses"),
            ({"max_uses": 100_001}, "max_uses"),
            ({"max_uses": True}, "max_uses"),
            ({"expires_in": 59}, "expires_in"),
            ({"expires_in": 10**9}, "expires_in"),
        ):
            assert (await alice.post(path, body)).fields() == [name], body
        answers = [await alice.post(path, {}) for _ in range(99)]
        assert {answer.status for answer in answers} == {201}
        last = await asyncio.gather(*(alice.post(path, {}) for _ in range(5)))
        assert sorted(answer.status for answer in last) == [201] + [409] * 4
        assert len((await alice.get(path)).json) == 100
