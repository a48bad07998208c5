"""Participants of a chat: roles, the single owner, joining, leaving, and access to the time between."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.client import Account
from tests.plugins.chatting import SECONDS, Json, Town, chat, everyone_hears, history, message, roles, say, seen, town
from tests.running import Services

ROLES = ("owner", "admin", "member", "restricted")


async def ranked(made: Town, kind: str = "group") -> tuple[Json, dict[str, Account]]:
    """A chat with a user of each role, and two more of each role except owner as targets of the requests."""
    owner, *others = made.people
    here = await chat(owner, *others, kind=kind)
    cast = {"owner": owner}
    for role, account in zip(
        ("admin", "member", "restricted", "admin 2", "member 2", "restricted 2"), others, strict=True
    ):
        cast[role] = account
        answer = await owner.put(f"/chats/{here['id']}/participants/{account.user_id}", {"role": role.split()[0]})
        assert (answer.status, answer.json["role"]) == (200, role.split()[0])
    return here, cast


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["group", "channel", "cloud"])
async def test_each_role_gets_its_statuses(services: Services, kind: str) -> None:
    """Statuses for the owner, an admin, a member and a restricted one."""
    async with town(services, people=7) as made:
        here, cast = await ranked(made, kind)
        path, owner = f"/chats/{here['id']}", cast["owner"]
        others = {role: cast[f"{role} 2"].user_id for role in ROLES[1:]}
        posted = await say(owner, here)

        async def each(expected: str, method: str, what: str, body: object = None) -> None:
            for role, status in zip(ROLES, expected.split(), strict=True):
                ask = {"GET": cast[role].get, "DELETE": cast[role].delete}.get(method)
                answer = await (ask(what) if ask else getattr(cast[role], method.lower())(what, body))
                assert answer.status == int(status), (role, method, what, answer.text)

        await each("200 200 200 200", "GET", path)
        await each("200 200 200 200", "GET", f"{path}/messages")
        await each("200 200 403 403" if kind == "channel" else "200 200 200 200", "GET", f"{path}/participants")
        await each("201 201 403 403" if kind == "channel" else "201 201 201 403", "POST", f"{path}/messages", message())
        await each("200 200 403 403", "PUT", path, {"title": "New"})
        await each("201 201 403 403", "POST", f"{path}/invites", {})
        await each("200 200 403 403", "GET", f"{path}/invites")
        await each("200 200 200 200", "POST", f"{path}/receipts", {"read_seq": 1})
        await each("204 204 204 403", "PUT", f"/messages/{posted['id']}/reactions/%F0%9F%91%8D", {})
        # Roles: users change only those below them, and only the owner makes admins and owners.
        for role, expected in (
            ("member", {"admin": "200 403 403 403", "member": "200 200 403 403", "restricted": "200 200 403 403"}),
            ("restricted", {"admin": "200 403 403 403", "member": "200 200 403 403", "restricted": "200 200 403 403"}),
            ("admin", {"admin": "200 200 403 403", "member": "200 403 403 403", "restricted": "200 403 403 403"}),
        ):
            for target, statuses in expected.items():
                for by, status in zip(ROLES, statuses.split(), strict=True):
                    answer = await cast[by].put(f"{path}/participants/{others[target]}", {"role": role})
                    assert answer.status == int(status), (by, target, role, answer.text)
                    back = await owner.put(f"{path}/participants/{others[target]}", {"role": target})
                    assert back.status == 200
        for by in ROLES[1:]:
            assert (await cast[by].put(f"{path}/participants/{owner.user_id}", {"role": "member"})).status == 403
            assert (await cast[by].put(f"{path}/participants/{cast[by].user_id}", {"role": "owner"})).status == 403
        assert (await owner.put(f"{path}/participants/{uuid4()}", {"role": "admin"})).status == 404
        assert (await owner.put(f"{path}/participants/{others['admin']}", {"role": "king"})).fields() == ["role"]

        # Letting people in, and sending them away.
        for role, statuses in (
            ("member", "201 201 403 403"),
            ("restricted", "201 201 403 403"),
            ("admin", "201 403 403 403"),
        ):
            for by, status in zip(ROLES, statuses.split(), strict=True):
                guest = made.people[-1]
                assert (await owner.delete(f"{path}/participants/{guest.user_id}")).status in (204, 404)
                answer = await cast[by].post(f"{path}/participants", {"public_id": guest.public_id, "role": role})
                assert answer.status == int(status), (by, role, answer.text)
        assert (await owner.post(f"{path}/participants", {"public_id": cast["member"].public_id})).status == 409
        assert (await owner.post(f"{path}/participants", {"public_id": "nobody_here"})).fields() == ["public_id"]
        assert (await owner.post(f"{path}/participants", {"public_id": "abc", "role": "owner"})).fields() == ["role"]
        for target, statuses in (("admin", "204 403 403 403"), ("member", "204 204 403 403")):
            for by, status in reversed(list(zip(ROLES, statuses.split(), strict=True))):
                answer = await cast[by].delete(f"{path}/participants/{others[target]}")
                assert answer.status == int(status), (by, target, answer.text)
                if answer.status == 204:
                    body = {"public_id": cast[f"{target} 2"].public_id, "role": target}
                    assert (await owner.post(f"{path}/participants", body)).status == 201
        assert (await owner.delete(f"{path}/participants/{uuid4()}")).status == 404
        for by in ROLES[1:]:
            assert (await cast[by].delete(f"{path}/participants/{owner.user_id}")).status == 403
            assert (await cast[by].delete(path)).status == 403
            assert (await cast[by].delete(f"{path}/participants/{cast[by].user_id}")).status == 204, "anybody may leave"
        assert (await owner.delete(path)).status == 204


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_there_is_one_owner_and_the_chat_can_be_handed_over(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        path = f"/chats/{group['id']}"
        sockets = await made.sockets(*made.people)
        refused = await alice.delete(f"{path}/participants/{alice.user_id}")
        assert (refused.status, refused.code) == (409, "conflict")
        assert (await alice.put(f"{path}/participants/{bob.user_id}", {"role": "owner"})).status == 200
        for socket in sockets:
            changes = [await socket.expect("participant_role", SECONDS, seq=seq) for seq in (2, 3)]
            assert [(c["user_id"], c["role"]) for c in changes] == [(alice.user_id, "admin"), (bob.user_id, "owner")]
        assert roles(await seen(carol, group)) == {
            alice.user_id: "admin",
            bob.user_id: "owner",
            carol.user_id: "member",
        }
        assert (await alice.put(f"{path}/participants/{alice.user_id}", {"role": "owner"})).status == 403
        assert (await bob.delete(f"{path}/participants/{bob.user_id}")).status == 409
        assert (await alice.delete(f"{path}/participants/{alice.user_id}")).status == 204
        assert (await bob.put(f"{path}/participants/{bob.user_id}", {"role": "owner"})).status == 200
        assert (await bob.put(f"{path}/participants/{bob.user_id}", {"role": "member"})).status == 403
        assert roles(await seen(carol, group)) == {bob.user_id: "owner", carol.user_id: "member"}


@pytest.mark.gen_test
async def test_handing_over_to_many_at_once_leaves_one_owner(services: Services) -> None:
    async with town(services, 2, people=6) as made:
        alice, *others = made.people
        group = await chat(alice, *others)
        path = f"/chats/{group['id']}/participants"
        answers = await asyncio.gather(
            *(alice.put(f"{path}/{other.user_id}", {"role": "owner"}) for other in others),
            alice.delete(f"{path}/{alice.user_id}"),
            *(other.delete(f"{path}/{other.user_id}") for other in others[:2]),
        )
        assert {answer.status for answer in answers} <= {200, 204, 403, 404, 409}
        owners = await made.sql("SELECT user_id FROM chat_participants WHERE role = 'owner'")
        assert len(owners) == 1
        rows = await made.sql("SELECT participant_count, (SELECT count(*) FROM chat_participants) FROM chat_threads")
        assert rows[0][0] == rows[0][1]


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "removed"])
async def test_a_user_who_leaves_receives_that_event_and_nothing_afterwards(
    services: Services, servers: int, leaves: bool
) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        path = f"/chats/{group['id']}"
        a, b, c = await made.sockets(*made.people)
        tablet = await made.socket(bob, 0)
        for by in (a, b, c):  # all servers know the chat by now, with bob in it
            assert (await by.send("message_send", chat_id=group["id"], **message("before he goes")))["type"] == "ack"
        await everyone_hears((b, tablet, b, tablet), "message_new")
        await tablet.expect("message_new", SECONDS)
        by = bob if leaves else alice
        assert (await by.delete(f"{path}/participants/{bob.user_id}")).status == 204
        for socket in (a, b, c, tablet):
            gone = await socket.expect("participant_removed", SECONDS, chat_id=group["id"])
            assert (gone["user_id"], gone["seq"]) == (bob.user_id, 5)
        assert (await c.send("message_send", chat_id=group["id"], **message("after he went")))["seq"] == 6
        await say(alice, group, "and more")
        await c.send("typing", chat_id=group["id"])
        await a.send("typing", chat_id=group["id"])
        await alice.put(path, {"title": "Without Bob"})
        await everyone_hears((a, c), "chat_updated")
        for socket in (b, tablet):
            await socket.silent()
        for answer in (
            await bob.get(path),
            await bob.get(f"{path}/messages"),
            await bob.post(f"{path}/messages", message()),
            await bob.post(f"{path}/receipts", {"read_seq": 2}),
            await bob.delete(f"{path}/participants/{bob.user_id}"),
        ):
            assert answer.status == 404
        assert (await b.send("message_send", chat_id=group["id"], **message()))["code"] == "not_found"
        assert (await b.send("typing", chat_id=group["id"]))["code"] == "not_found"
        assert (await bob.get("/chats")).json == []
        assert (await seen(alice, group))["participant_count"] == 2


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["group", "channel", "cloud"])
async def test_a_user_who_returns_sees_what_the_kind_of_chat_allows(services: Services, kind: str) -> None:
    """Of a group nothing from before they came; a channel and a cloud are read from their beginning."""
    async with town(services, people=2) as made:
        alice, bob = made.people
        here = await chat(alice, bob, kind=kind)
        path = f"/chats/{here['id']}"
        before = await say(alice, here, "before he went")
        assert [m["id"] for m in await history(bob, here)] == [before["id"]]
        assert (await alice.delete(f"{path}/participants/{bob.user_id}")).status == 204
        between = [await say(alice, here, f"while he was away {n}") for n in range(2)]
        assert (await alice.post(f"{path}/participants", {"public_id": bob.public_id})).status == 201
        assert (await seen(bob, here))["unread_count"] == 0
        after = await say(alice, here, "after he came back")
        older = [m["id"] for m in (before, *between)]
        expected = [after["id"]] if kind == "group" else [after["id"], *older[::-1]]
        assert [m["id"] for m in await history(bob, here)] == expected
        assert [m["id"] for m in await history(bob, here, "?after_seq=0")] == expected[::-1]
        again = await seen(bob, here)
        assert (again["unread_count"], again["last_message"]["id"]) == (1, after["id"])
        thumb = "reactions/%F0%9F%91%8D"
        for message_id in older:
            status = (await bob.put(f"/messages/{message_id}/{thumb}", {})).status
            assert status == (404 if kind == "group" else 204)
        reply = await bob.post(f"{path}/messages", message(reply_to=before["id"]))
        if kind == "group":
            assert reply.fields() == ["reply_to"]
        # The last message that is left may be one that is not his to see.
        assert (await alice.delete(f"/messages/{after['id']}")).status == 204
        newest = (await seen(bob, here))["last_message"]
        assert newest is None if kind == "group" else newest is not None
