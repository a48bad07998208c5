"""Messages: repeated requests post once; references and sizes; recipients; history."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from handlers.sockets.delivery import Delivery
from tests.client import Account, ask, b64
from tests.plugins.chatting import SECONDS, chat, everyone_hears, history, message, pages, say, seen, town
from tests.running import Services

FIELDS = {
    *("id", "chat_id", "seq", "sender_id", "client_id", "encrypted_payload", "message_type", "metadata", "reply_to"),
    *("reply_to_seq", "forwarded_from", "reactions", "created_at", "edited_at", "expires_at"),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_message_reaches_every_socket_but_the_one_that_sent_it(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        phone = await made.socket(alice, 0)
        others = [await made.socket(who, n) for who in (bob, carol) for n in (0, 1)]
        tablets = [await made.socket(alice, n) for n in (0, 1)]

        body = message(metadata={"lang": "en"})
        ack = await phone.send("message_send", chat_id=group["id"], **body)
        assert ack.keys() == {"type", "id", "message_id", "chat_id", "seq", "created_at"}
        assert (ack["type"], ack["chat_id"], ack["seq"]) == ("ack", group["id"], 2)
        frames = await everyone_hears([*others, *tablets], "message_new", seq=2)
        [stored] = await history(bob, group)
        for frame in frames:
            assert frame["message"] == stored
            assert (frame["chat_id"], frame["created_at"]) == (group["id"], ack["created_at"])
        assert stored.keys() == FIELDS
        assert stored == {
            **stored,
            **{name: body[name] for name in body},
            "id": ack["message_id"],
            "sender_id": alice.user_id,
            "seq": 2,
            "reactions": [],
            "reply_to": None,
            "forwarded_from": None,
            "edited_at": None,
            "expires_at": None,
        }
        # Over HTTP there is no socket that sent it.
        posted = await say(alice, group, metadata={"n": 1})
        assert posted.keys() == {"id", "chat_id", "seq", "created_at"}
        for frame in await everyone_hears([phone, *others, *tablets], "message_new", seq=3):
            assert frame["message"]["id"] == posted["id"]
        for socket in (phone, *others, *tablets):
            await socket.silent(0.1)


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_frames_come_in_the_order_of_seq_from_many_at_once(services: Services, servers: int) -> None:
    async with town(services, servers, people=4) as made:
        group = await chat(*made.people)
        sockets = await made.sockets(*made.people)
        acks = await asyncio.gather(
            *(s.send("message_send", chat_id=group["id"], **message(f"{n}")) for s in sockets for n in range(10))
        )
        assert sorted(ack["seq"] for ack in acks) == list(range(2, 42))
        for number, socket in enumerate(sockets):
            own = {ack["seq"] for ack in acks[number * 10 : number * 10 + 10]}
            heard = [(await socket.expect("message_new", SECONDS))["seq"] for _ in range(30)]
            assert sorted(heard) == sorted(set(range(2, 42)) - own)
            if servers == 1:
                assert heard == sorted(heard)
        assert [m["seq"] for m in await history(made.people[0], group, "?after_seq=0&limit=200")] == list(range(2, 42))


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_the_same_client_id_is_one_message_however_often_it_is_sent(services: Services, servers: int) -> None:
    async with town(services, servers, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        path = f"/chats/{pair['id']}/messages"
        [b] = await made.sockets(bob)
        urls = [server.url for server in made.servers]
        for round_ in range(5):
            body = message(f"round {round_}")
            answers = await asyncio.gather(
                *(ask(urls[n % servers], "POST", path, body, alice.token) for n in range(20))
            )
            assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
            [one] = {(a.json["id"], a.json["seq"], a.json["created_at"]) for a in answers}
            assert (await b.expect("message_new", SECONDS))["message"]["id"] == one[0]
            assert one[1] == round_ + 2
        await b.silent()
        assert len(await history(bob, pair)) == 5

        # Over sockets as well, beside HTTP.
        sockets = [await made.socket(alice, n) for n in range(4)]
        body = message("over sockets")
        acks = await asyncio.gather(*(s.send("message_send", chat_id=pair["id"], **body) for s in sockets * 3))
        assert sorted(ack.get("repeated", False) for ack in acks) == [False] + [True] * 11
        [same] = {(ack["message_id"], ack["seq"]) for ack in acks}
        again = await alice.post(path, body)
        assert (again.status, again.json["id"], again.json["seq"]) == (200, *same)
        # Bob's client ids are his own.
        assert (await bob.post(path, body)).status == 201


@pytest.mark.gen_test
async def test_a_client_id_names_one_message_for_good(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair, other = await chat(alice, bob, kind="direct"), await chat(alice, bob)
        body = message("the one")
        path = f"/chats/{pair['id']}/messages"
        first = (await alice.post(path, body)).json
        [a, b] = await made.sockets(alice, bob)
        for send_to, changed in (
            (pair, {**body, "encrypted_payload": b64(b"another")}),
            (other, body),
        ):
            answer = await alice.post(f"/chats/{send_to['id']}/messages", changed)
            assert (answer.status, answer.code) == (409, "conflict")
            refused = await a.send("message_send", chat_id=send_to["id"], **changed)
            assert (refused["type"], refused["code"]) == ("error", "conflict")
        edit = {"encrypted_payload": b64(b"the one, edited")}
        assert (await alice.put(f"/messages/{first['id']}", edit)).status == 200
        again = await alice.post(path, body)
        assert (again.status, again.json) == (200, first)
        assert (await alice.delete(f"/messages/{first['id']}")).status == 204
        again = await alice.post(path, body)
        assert (again.status, again.json) == (200, first)
        assert (await alice.post(path, {**body, "encrypted_payload": b64(b"another")})).status == 409
        assert await history(bob, pair) == []
        assert [frame["type"] for frame in b.frames if frame["type"] == "message_new"] == []


@pytest.mark.gen_test
async def test_a_repetition_is_known_also_when_what_it_refers_to_is_gone(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        asked, forwarded = await say(bob, pair, "a question"), await say(bob, pair, "a joke")
        body = message("an answer", reply_to=asked["id"], forwarded_from=forwarded["id"])
        path = f"/chats/{pair['id']}/messages"
        first = await alice.post(path, body)
        assert first.status == 201
        for gone in (asked, forwarded):
            assert (await bob.delete(f"/messages/{gone['id']}")).status == 204
        again = await alice.post(path, body)
        assert (again.status, again.json) == (200, first.json), "else she posts it again, and the chat has it twice"
        new = await alice.post(path, {**body, "client_id": str(uuid4())})
        assert (new.status, new.fields()) == (400, ["reply_to", "forwarded_from"])


@pytest.mark.gen_test
async def test_a_message_refers_only_to_messages_its_sender_sees(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group, other, theirs = await chat(alice, bob), await chat(alice, bob), await chat(bob, carol)
        path = f"/chats/{group['id']}/messages"
        here, elsewhere, hidden = await say(bob, group), await say(bob, other), await say(bob, theirs)
        gone = await say(bob, group)
        assert (await bob.delete(f"/messages/{gone['id']}")).status == 204
        reply = await say(alice, group, reply_to=here["id"])
        forward = await say(alice, group, forwarded_from=elsewhere["id"])
        found = {m["id"]: m for m in await history(bob, group)}
        assert found[reply["id"]]["reply_to"] == here["id"]
        assert found[forward["id"]]["forwarded_from"] == elsewhere["id"]
        for name, message_id in (
            ("reply_to", elsewhere["id"]),
            ("reply_to", hidden["id"]),
            ("reply_to", gone["id"]),
            ("reply_to", str(uuid4())),
            ("forwarded_from", hidden["id"]),
            ("forwarded_from", gone["id"]),
            ("forwarded_from", str(uuid4())),
            ("reply_to", "x"),
        ):
            answer = await alice.post(path, message(**{name: message_id}))
            assert (answer.status, answer.fields()) == (400, [name]), (name, answer.text)
        # What is replied to may go; the reply stays.
        assert (await bob.delete(f"/messages/{here['id']}")).status == 204
        assert reply["id"] in {m["id"] for m in await history(bob, group)}


@pytest.mark.gen_test
async def test_the_fields_of_a_message_are_bounded(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        path = f"/chats/{pair['id']}/messages"
        a, b = await made.sockets(alice, bob)
        largest = b64(b"\xff" * 65536)
        assert (await alice.post(path, {**message(), "encrypted_payload": largest})).status == 201
        assert (await b.expect("message_new", SECONDS))["message"]["encrypted_payload"] == largest
        sent = await a.send("message_send", chat_id=pair["id"], **{**message(), "encrypted_payload": largest})
        assert sent["type"] == "ack"
        url_safe = message("\u00ff\u00fe?>")
        url_safe["encrypted_payload"] = b64("\u00ff\u00fe?>~~".encode()).replace("+", "-").replace("/", "_").rstrip("=")
        assert (await alice.post(path, url_safe)).status == 201
        assert (await history(bob, pair))[0]["encrypted_payload"] == b64("\u00ff\u00fe?>~~".encode())
        for name, value in (
            ("encrypted_payload", b64(b"\xff" * 65537)),
            ("encrypted_payload", ""),
            ("encrypted_payload", "not base64!"),
            ("message_type", ""),
            ("message_type", "x" * 65),
            ("message_type", "a b"),
            ("client_id", "1"),
            ("client_id", None),
            ("metadata", {"a": "x" * 4096}),
            ("metadata", [1]),
            ("expires_in", 4),
            ("expires_in", 366 * 86_400 + 1),
            ("expires_in", 7.5),
        ):
            answer = await alice.post(path, {**message(), name: value})
            assert (answer.status, answer.fields()) == (400, [name]), (name, answer.text[:200])
            refused = await a.send("message_send", chat_id=pair["id"], **{**message(), name: value})
            assert (refused["type"], refused["code"]) == ("error", "invalid_request"), name
        bare = message()
        del bare["message_type"], bare["client_id"]
        assert sorted((await alice.post(path, bare)).fields()) == ["client_id", "message_type"]
        assert len(await history(bob, pair)) == 3


@pytest.mark.gen_test
async def test_history_in_pages_both_ways(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}/messages"
        posted = [await say(alice if n % 3 else bob, group, f"number {n}") for n in range(12)]
        for n in (0, 5, 11):
            assert (await bob.delete(f"/messages/{posted[n]['id']}")).status == (403 if n % 3 else 204)
            if n % 3:
                assert (await alice.delete(f"/messages/{posted[n]['id']}")).status == 204
        left = [m["seq"] for n, m in enumerate(posted) if n not in (0, 5, 11)]
        for limit in (1, 2, 4, 9, 200):
            down = await pages(bob, f"{path}?limit={limit}")
            assert [m["seq"] for page in down for m in page] == left[::-1]
            up = await pages(bob, f"{path}?limit={limit}&after_seq=0")
            assert [m["seq"] for page in up for m in page] == left
            assert len(down) == len(up) == -(-len(left) // limit)
            between = await pages(bob, f"{path}?limit={limit}&after_seq={left[1]}&before_seq={left[6]}")
            assert [m["seq"] for page in between for m in page] == left[2:6]
            earlier = await pages(bob, f"{path}?limit={limit}&before_seq={left[3]}")
            assert [m["seq"] for page in earlier for m in page] == left[2::-1]
        assert await history(bob, group, f"?after_seq={left[-1]}") == []
        assert await history(bob, group, "?before_seq=1") == []
        assert len(await history(bob, group)) == 9
        for query in ("limit=0", "limit=201", "before_seq=0", "after_seq=-1", "before_seq=x", f"after_seq={2**63}"):
            assert (await bob.get(f"{path}?{query}")).status == 400, query


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_the_role_decides_who_may_post_and_outsiders_get_404_or_401(services: Services, servers: int) -> None:
    async with town(services, servers, people=4) as made:
        alice, bob, carol, stranger = made.people
        channel, group = await chat(alice, bob, kind="channel"), await chat(alice, bob, carol)
        sockets = await made.sockets(alice, bob, carol, stranger)
        await alice.put(f"/chats/{group['id']}/participants/{carol.user_id}", {"role": "restricted"})
        for where, statuses in ((channel, (201, 403, 404, 404)), (group, (201, 201, 403, 404))):
            for who, socket, status in zip(made.people, sockets, statuses, strict=True):
                answer = await who.post(f"/chats/{where['id']}/messages", message())
                assert answer.status == status, answer.text
                ack = await socket.send("message_send", chat_id=where["id"], **message())
                assert ack.get("code") == {201: None, 403: "forbidden", 404: "not_found"}[status]
        anonymous = Account(url=alice.url)
        assert (await anonymous.post(f"/chats/{group['id']}/messages", message())).status == 401
        assert (await anonymous.get(f"/chats/{group['id']}/messages")).status == 401
        # As soon as the role is another one, everywhere.
        await alice.put(f"/chats/{group['id']}/participants/{carol.user_id}", {"role": "member"})
        assert (await sockets[2].send("message_send", chat_id=group["id"], **message()))["type"] == "ack"
        await alice.put(f"/chats/{group['id']}/participants/{bob.user_id}", {"role": "restricted"})
        assert (await sockets[1].send("message_send", chat_id=group["id"], **message()))["code"] == "forbidden"
        await alice.put(f"/chats/{channel['id']}/participants/{bob.user_id}", {"role": "admin"})
        assert (await sockets[1].send("message_send", chat_id=channel["id"], **message()))["type"] == "ack"
        assert (await seen(bob, channel))["unread_count"] == 2


@pytest.mark.gen_test
async def test_a_stored_message_is_acked_even_if_its_delivery_fails(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        mute, other = await chat(alice, bob), await chat(alice, bob)
        phone = await made.socket(bob)
        send = Delivery.send

        def failing_send(self: Delivery, group: UUID, *args: Any, **more: Any) -> None:
            if str(group) == mute["id"]:
                raise RuntimeError("a mistake of ours")
            send(self, group, *args, **more)

        monkeypatch.setattr(Delivery, "send", failing_send)
        answers = await asyncio.gather(
            *(alice.post(f"/chats/{where['id']}/messages", message()) for where in (mute, other, mute, other))
        )
        assert [answer.status for answer in answers] == [201] * 4
        await everyone_hears([phone], "message_new", chat_id=other["id"], seq=3)
        assert [each["seq"] for each in await history(bob, mute)] == [3, 2]
