"""Chats of all five types: making them, who sees them and how, changing and ending them."""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import uuid4

import pytest

from tests.client import Account
from tests.files.transfer import announce, shared
from tests.plugins.chatting import (
    SECONDS,
    chat,
    crowd,
    everyone_hears,
    history,
    message,
    pages,
    patiently,
    roles,
    say,
    seen,
    town,
)
from tests.running import Services

TYPES = ("direct", "group", "channel", "secret", "cloud")


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_each_type_is_created_and_both_users_receive_and_see_it(services: Services, servers: int) -> None:
    async with town(services, servers, people=2) as made:
        alice, bob = made.people
        sockets = await made.sockets(alice, bob)
        for kind in TYPES:
            more = {"title": f"A {kind}", "avatar_url": "https://mimu.example/a.png", "settings": {"muted": True}}
            here = await chat(alice, bob, kind=kind, **more)
            assert (here["type"], here["created_by"], here["role"]) == (kind, alice.user_id, "owner")
            assert {name: here[name] for name in more} == more
            assert (here["participant_count"], here["last_seq"], here["unread_count"]) == (2, 1, 0)
            assert (here["read_seq"], here["delivered_seq"], here["last_message"]) == (0, 0, None)
            for event in await everyone_hears(sockets, "chat_created", chat_id=here["id"]):
                assert (event["seq"], event["chat"]["id"], event["chat"]["type"]) == (1, here["id"], kind)
            there = await seen(bob, here)
            assert (there["role"], there["title"], there["last_seq"]) == ("member", f"A {kind}", 1)
            if kind == "channel":
                assert here["participants"] is None and there["participants"] is None
            else:
                assert roles(there) == {alice.user_id: "owner", bob.user_id: "member"}
            if kind in ("direct", "secret"):
                assert here["peer"]["public_id"] == bob.public_id
                assert there["peer"]["user_id"] == alice.user_id
            else:
                assert here["peer"] is None
            listed = {entry["id"]: entry for entry in (await bob.get("/chats")).json}[here["id"]]
            assert {**listed, "participants": there["participants"]} == there
            assert roles(listed) == {alice.user_id: "owner", bob.user_id: "member"}
        assert len((await alice.get("/chats")).json) == len(TYPES)


@pytest.mark.gen_test
async def test_invalid_chats_are_refused(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        both, himself = [bob.public_id, carol.public_id], [alice.public_id]
        for kind, names, fields in (
            ("direct", [], ["participants"]),
            ("direct", himself, ["participants"]),
            ("direct", both, ["participants"]),
            ("secret", [], ["participants"]),
            ("secret", both, ["participants"]),
            ("group", [bob.public_id, "nobody_here", "nobody_there"], ["participants[1]", "participants[2]"]),
            ("party", [], ["type"]),
            ("group", ["п"], ["participants[0]"]),
            ("group", "bob", ["participants"]),
        ):
            answer = await alice.post("/chats", {"type": kind, "participants": names})
            assert (answer.status, answer.code, answer.fields()) == (400, "invalid_request", fields), (kind, names)
        for more, name in (
            ({"title": ""}, "title"),
            ({"title": "x" * 129}, "title"),
            ({"title": "a\u0007"}, "title"),
            ({"avatar_url": "http://mimu.example/a.png"}, "avatar_url"),
            ({"settings": {"a": "x" * 17_000}}, "settings"),
            ({"settings": []}, "settings"),
        ):
            answer = await alice.post("/chats", {"type": "group", **more})
            assert (answer.status, answer.fields()) == (400, [name]), more
        assert (await alice.get("/chats")).json == []
        # Names ignore case, a name given twice counts once, and the creator takes part anyway.
        names = [bob.public_id.upper(), bob.public_id, alice.public_id]
        twice = (await alice.post("/chats", {"type": "group", "participants": names})).json
        assert roles(twice) == {alice.user_id: "owner", bob.user_id: "member"}


@pytest.mark.gen_test
async def test_a_cloud_chat_has_one_participant(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        notes = await chat(alice, kind="cloud")
        await say(alice, notes, "buy milk, and bread")
        again = await seen(alice, notes)
        assert (again["participant_count"], again["unread_count"], again["last_seq"]) == (1, 0, 2)
        assert [m["seq"] for m in await history(alice, notes)] == [2]


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_pair_has_one_direct_chat_after_any_number_of_requests_by_either(
    services: Services, servers: int
) -> None:
    async with town(services, servers, people=2) as made:
        alice, bob = made.people
        sockets = await made.sockets(alice, bob)
        asked = [(a, b) for a, b in ((alice, bob), (bob, alice)) for _ in range(10)]
        answers = await asyncio.gather(
            *(patiently(partial(a.post, "/chats", {"type": "direct", "participants": [b.public_id]})) for a, b in asked)
        )
        assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
        [chat_id] = {answer.json["id"] for answer in answers}
        await everyone_hears(sockets, "chat_created", chat_id=chat_id)
        for socket in sockets:
            await socket.silent()
        again = await bob.post("/chats", {"type": "direct", "participants": [alice.public_id], "title": "other"})
        assert (again.status, again.json["id"], again.json["title"]) == (200, chat_id, None)
        # A secret chat is a new one each time.
        assert (await chat(alice, bob, kind="secret"))["id"] != (await chat(alice, bob, kind="secret"))["id"]
        # The participants and the owner never change.
        carol = await made.newcomer()
        for by in (alice, bob):
            for answer in (
                await by.post(f"/chats/{chat_id}/participants", {"public_id": carol.public_id}),
                await by.delete(f"/chats/{chat_id}/participants/{by.user_id}"),
                await by.put(f"/chats/{chat_id}/participants/{bob.user_id}", {"role": "admin"}),
                await by.post(f"/chats/{chat_id}/invites", {}),
                await by.get(f"/chats/{chat_id}/invites"),
            ):
                assert (answer.status, answer.code) == (409, "conflict")


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_changing_a_chat(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        sockets = await made.sockets(alice, bob)
        group = await chat(alice, bob, title="Old", settings={"a": 1})
        path = f"/chats/{group['id']}"
        for change, after in (
            ({"title": "New"}, ("New", None, {"a": 1})),
            ({"avatar_url": "https://mimu.example/b.png"}, ("New", "https://mimu.example/b.png", {"a": 1})),
            ({"title": None, "settings": {"b": [2]}}, (None, "https://mimu.example/b.png", {"b": [2]})),
            ({"avatar_url": None, "settings": None}, (None, None, {})),
        ):
            answer = await alice.put(path, change)
            assert answer.status == 200
            assert (answer.json["title"], answer.json["avatar_url"], answer.json["settings"]) == after
            for event in await everyone_hears(sockets, "chat_updated", seq=answer.json["last_seq"]):
                assert (event["chat"]["title"], event["chat"]["avatar_url"], event["chat"]["settings"]) == after
        before = (await seen(alice, group))["last_seq"]
        assert (await alice.put(path, {})).json["last_seq"] == before, "nothing was changed"
        assert (await bob.put(path, {"title": "Bob's"})).status == 403
        assert (await carol.put(path, {"title": "Carol's"})).status == 404
        assert (await alice.put(path, {"title": 1})).fields() == ["title"]
        # In a chat of two it is both's.
        pair = await chat(alice, bob, kind="direct")
        assert (await bob.put(f"/chats/{pair['id']}", {"title": "Ours"})).json["title"] == "Ours"


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_deleted_chat_is_gone_for_everybody(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        sockets = await made.sockets(alice, bob, carol)
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}"
        posted = await say(bob, group)
        token = (await alice.post(f"{path}/invites", {})).json["token"]
        await everyone_hears(sockets[:2], "message_new")
        assert (await bob.delete(path)).status == 403
        assert (await carol.delete(path)).status == 404
        assert (await alice.delete(path)).status == 204
        for event in await everyone_hears(sockets[:2], "chat_deleted", chat_id=group["id"]):
            assert (event["seq"], event["chat"]["id"]) == (3, group["id"])
        for who, socket in ((alice, sockets[0]), (bob, sockets[1])):
            answers = [
                await who.get(path),
                await who.put(path, {"title": "x"}),
                await who.delete(path),
                await who.get(f"{path}/messages"),
                await who.get(f"{path}/participants"),
                await who.post(f"{path}/messages", message()),
                await who.post(f"{path}/receipts", {"read_seq": 2}),
                await who.put(f"/messages/{posted['id']}/reactions/%F0%9F%91%8D", {}),
                await who.put(f"/messages/{posted['id']}", {"encrypted_payload": "AAAA"}),
                await who.delete(f"/messages/{posted['id']}"),
            ]
            assert {answer.status for answer in answers} == {404}
            assert (await socket.send("message_send", chat_id=group["id"], **message()))["code"] == "not_found"
            assert (await socket.send("typing", chat_id=group["id"]))["code"] == "not_found"
            assert (await who.get("/chats")).json == []
        assert (await carol.post("/chats/join", {"token": token})).status == 404
        for socket in sockets[:2]:
            socket.frames = [frame for frame in socket.frames if frame["type"] != "chat_created"]
        for socket in sockets:
            await socket.silent()


@pytest.mark.gen_test
async def test_the_list_has_the_last_active_first_in_pages(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        made_ = [(await chat(alice, bob, title=f"Group {n}"))["id"] for n in range(7)]
        order = made_[::-1]
        assert [entry["id"] for entry in (await alice.get("/chats")).json] == order
        for chat_id in (made_[2], made_[5], made_[0]):
            last = await say(bob, chat_id, f"in {chat_id}")
            order.remove(chat_id)
            order.insert(0, chat_id)
            [first, *_] = (await alice.get("/chats")).json
            assert (first["id"], first["last_message"]["id"], first["last_seq"]) == (chat_id, last["id"], last["seq"])
            assert first["last_message"] == (await history(alice, chat_id))[0]
        for limit in (1, 2, 3, 7, 500):
            found = await pages(alice, f"/chats?limit={limit}")
            assert [entry["id"] for page in found for entry in page] == order
            assert len(found) == -(-7 // limit)
        for query in ("limit=0", "limit=501", "limit=x", "before=x", "before="):
            assert (await alice.get(f"/chats?{query}")).status == 400, query


@pytest.mark.gen_test
async def test_the_last_message_is_the_newest_that_is_left(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        posted = [await say(alice, group, f"number {n}") for n in range(3)]
        while posted:
            assert (await seen(bob, group))["last_message"]["id"] == posted[-1]["id"]
            assert (await alice.delete(f"/messages/{posted.pop()['id']}")).status == 204
        assert (await seen(bob, group))["last_message"] is None


@pytest.mark.gen_test
async def test_a_group_holds_1024_and_no_more(services: Services) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, dave = made.people
        group = await chat(alice, bob)
        await crowd(made, group["id"], 1021)
        path = f"/chats/{group['id']}"
        token = (await alice.post(f"{path}/invites", {"max_uses": 5})).json["token"]
        answers = await asyncio.gather(
            *(who.post("/chats/join", {"token": token}) for who in (carol, dave)),
        )
        assert sorted(answer.status for answer in answers) == [200, 409]
        assert (await seen(alice, group))["participant_count"] == 1024
        late = dave if answers[0].status == 200 else carol
        full = await alice.post(f"{path}/participants", {"public_id": late.public_id})
        assert (full.status, full.code) == (409, "conflict")
        assert [invite["uses"] for invite in (await alice.get(f"{path}/invites")).json] == [1], "the refused used none"
        found = await pages(alice, f"{path}/participants?limit=300")
        everybody = [person["user_id"] for page in found for person in page]
        assert (len(found), len(everybody), len(set(everybody))) == (4, 1024, 1024)
        assert len((await seen(bob, group))["participants"]) == 1024
        # All participants receive the message, also those who come online later.
        [b] = await made.sockets(bob)
        posted = await say(alice, group)
        assert (await b.expect("message_new", SECONDS))["seq"] == posted["seq"]
        too_many = {"type": "group", "participants": [f"crowd_{n}" for n in range(1, 1025)]}
        assert (await alice.post("/chats", too_many)).fields() == ["participants"]


@pytest.mark.gen_test
async def test_an_outsider_gets_404_for_everything_in_a_chat(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        for kind in TYPES:
            here = await chat(alice, bob, kind=kind)
            posted = await say(alice, here)
            for chat_id in (here["id"], str(uuid4())):
                path = f"/chats/{chat_id}"
                for answer in (
                    await carol.get(path),
                    await carol.get(f"{path}/messages"),
                    await carol.get(f"{path}/participants"),
                    await carol.get(f"{path}/invites"),
                    await carol.post(f"{path}/messages", message()),
                    await carol.post(f"{path}/receipts", {"read_seq": 1}),
                    await carol.post(f"{path}/participants", {"public_id": carol.public_id}),
                    await carol.put(f"{path}/participants/{carol.user_id}", {"role": "owner"}),
                    await carol.delete(f"{path}/participants/{bob.user_id}"),
                    await carol.post(f"{path}/invites", {}),
                ):
                    assert (answer.status, answer.code) == (404, "not_found"), kind
            assert (await carol.delete(f"/messages/{posted['id']}")).status == 404
        anonymous = Account(url=alice.url)
        assert (await anonymous.get("/chats")).status == 401


@pytest.mark.gen_test
async def test_a_chat_s_avatar_is_judged_as_a_user_s(services: Services) -> None:
    async with town(services, people=1, AVATAR_ALLOWED_HOSTS="cdn.example, Img.Example") as made:
        [alice] = made.people
        group = await chat(alice, avatar_url="https://cdn.example/a.png")
        for url, status in (
            ("https://img.example:8443/b.png", 200),
            (None, 200),
            ("https://other.example/a.png", 400),
            ("https://cdn.example.evil.example/a.png", 400),
            ("https://cdn.example@evil.example/a.png", 400),
            ("https://127.0.0.1/a.png", 400),
            ("http://cdn.example/a.png", 400),
            (f"/files/{uuid4()}", 400),
            ("/files/x", 400),
        ):
            changed = await alice.put(f"/chats/{group['id']}", {"avatar_url": url})
            new = await alice.post("/chats", {"type": "group", "avatar_url": url})
            assert (changed.status, new.status) == (status, 201 if status == 200 else status), url
            if status == 400:
                assert changed.fields() == new.fields() == ["avatar_url"]
        listed = (await alice.get("/chats")).json
        assert {entry["avatar_url"] for entry in listed} == {"https://img.example:8443/b.png", None}


@pytest.mark.gen_test
async def test_participants_can_read_a_file_that_becomes_the_avatar_of_their_chat(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        first, second, theirs = [await shared(who, b"a picture") for who in (alice, alice, bob)]
        group, other = await chat(alice, bob, avatar_url=f"/files/{first}"), await chat(alice, carol)
        assert group["avatar_url"] == f"/files/{first}/content"
        assert (await alice.put(f"/chats/{other['id']}", {"avatar_url": f"/files/{second}/content"})).status == 200
        for who, file_id, status in (
            (bob, first, 200),
            (carol, first, 404),
            (bob, second, 404),
            (carol, second, 200),
        ):
            assert (await who.get(f"/files/{file_id}/content")).status == status
        # Neither somebody else's file, nor one of another chat, nor one that is not complete.
        unfinished = (await announce(alice, b"a picture")).json["file_id"]
        for file_id in (theirs, first, unfinished):
            answer = await alice.put(f"/chats/{other['id']}", {"avatar_url": f"/files/{file_id}"})
            assert (answer.status, answer.fields()) == (400, ["avatar_url"])
            refused = await alice.post("/chats", {"type": "group", "avatar_url": f"/files/{file_id}"})
            assert (refused.status, refused.fields()) == (400, ["avatar_url"])
        assert len((await alice.get("/chats")).json) == 2, "a chat that was refused is not there"


@pytest.mark.gen_test
async def test_changes_of_chats_and_roles_are_limited(services: Services) -> None:
    """Each is an event for everybody in the chat."""
    async with town(services, people=2, RATE_LIMITS="on", RATE_LIMIT_CHAT_CHANGES="3/hour") as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}"
        assert (await alice.put(path, {"title": "a"})).status == 200
        for role, status in (("admin", 200), ("member", 200), ("admin", 429)):
            assert (await alice.put(f"{path}/participants/{bob.user_id}", {"role": role})).status == status
        assert (await alice.put(path, {"title": "b"})).status == 429
        assert (await alice.get(path)).json["title"] == "a"
