"""A direct chat that one of the two deletes: gone for that one, and back with the next message, without its past."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.client import Account, ask
from tests.plugins.chatting import SECONDS, Json, chat, history, message, read, say, seen, town
from tests.running import Services


async def listed(who: Account) -> list[str]:
    return [entry["id"] for entry in (await who.get("/chats")).json]


async def cursor_of(who: Account) -> str:
    return str((await who.get("/sync")).json["cursor"])


async def synced(who: Account, cursor: str, limit: int = 200) -> tuple[list[Json], list[Json], str]:
    """The events, the deletions and the next cursor."""
    events: list[Json] = []
    deleted: list[Json] = []
    for _ in range(100):
        page = (await who.get(f"/sync?cursor={quote(cursor)}&limit={limit}")).json
        events, deleted, cursor = events + page["events"], deleted + page.get("deleted", []), page["cursor"]
        if not page["has_more"]:
            return events, deleted, cursor
    raise AssertionError("it never ends")


async def deletes(who: Account, pair: Json) -> None:
    answer = await who.delete(f"/chats/{pair['id']}")
    assert answer.status == 204, answer.text


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("by_maker", [True, False], ids=["by its maker", "by the other"])
async def test_deleting_a_direct_chat_leaves_it_to_the_other_user(
    services: Services, servers: int, by_maker: bool
) -> None:
    async with town(services, servers, people=2) as made:
        maker, other = made.people
        pair = await chat(maker, other, kind="direct")
        alice, bob = (maker, other) if by_maker else (other, maker)
        posted = [await say(alice, pair, "mine"), await say(bob, pair, "yours"), await say(bob, pair, "again")]
        await read(alice, pair, posted[1]["seq"])
        phone, tablet = await made.socket(alice, 0), await made.socket(alice, 1)
        b = await made.socket(bob)
        before = await seen(bob, pair)
        cursor = await cursor_of(bob)
        await deletes(alice, pair)
        for socket in (phone, tablet):
            heard = await socket.expect("account_changed", SECONDS)
            assert heard == {"type": "account_changed", "what": "chat", "chat_id": pair["id"]}

        # The other user keeps everything and notices nothing.
        await b.silent()
        assert await seen(bob, pair) == before
        assert [m["id"] for m in await history(bob, pair)] == [m["id"] for m in posted[::-1]]
        assert (await synced(bob, cursor))[:2] == ([], [])
        path = f"/chats/{pair['id']}"
        assert await listed(alice) == []
        assert (await alice.get("/chats?hidden=true")).json == []
        for answer in (
            await alice.get(path),
            await alice.put(path, {"title": "x"}),
            await alice.delete(path),
            await alice.get(f"{path}/messages"),
            await alice.get(f"{path}/participants"),
            await alice.put(f"{path}/me", {"archived": True}),
            await alice.put(f"/messages/{posted[0]['id']}", {"encrypted_payload": "AAAA"}),
            await alice.put(f"/messages/{posted[1]['id']}/reactions/%F0%9F%91%8D", {}),
            await alice.delete(f"/messages/{posted[0]['id']}"),
        ):
            assert (answer.status, answer.code) == (404, "not_found")

        # It is back with the next message, without its past.
        news = await say(bob, pair, "hello again")
        for socket in (phone, tablet):
            assert (await socket.expect("message_new", SECONDS))["seq"] == news["seq"]
        assert await listed(alice) == [pair["id"]]
        again = await seen(alice, pair)
        assert (again["unread_count"], again["last_message"]["id"]) == (1, news["id"])
        for query in ("", "?after_seq=0", "?before_seq=100"):
            assert [m["id"] for m in await history(alice, pair, query)] == [news["id"]]
        reply = await alice.post(f"{path}/messages", message(reply_to=posted[1]["id"]))
        assert reply.fields() == ["reply_to"]
        await say(alice, pair, "hello")
        assert (await read(alice, pair, news["seq"]))["unread_count"] == 0
        await say(bob, pair)
        assert (await seen(alice, pair))["unread_count"] == 1
        assert len(await history(bob, pair)) == 6


@pytest.mark.gen_test
async def test_deleting_does_not_say_that_it_was_read(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        old = await say(bob, pair)
        await deletes(alice, pair)
        marks = {p["user_id"]: (p["delivered_seq"], p["read_seq"]) for p in (await seen(bob, pair))["participants"]}
        assert marks[alice.user_id] == (0, 0)
        news = await say(bob, pair)
        await read(alice, pair, news["seq"])
        rows = await made.sql("SELECT message_id::text AS id FROM message_reads")
        assert [row["id"] for row in rows] == [news["id"]], f"{old['id']} was never read"


@pytest.mark.gen_test
async def test_own_messages_of_the_past_are_not_counted_twice(services: Services) -> None:
    """What is unread stays right, whatever was read when the chat was deleted."""
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        for _ in range(3):
            for who in (bob, alice, alice):
                await say(who, pair)
            await deletes(alice, pair)
            await say(alice, pair)
            first, _, last = [await say(bob, pair) for _ in range(3)]
            assert (await seen(alice, pair))["unread_count"] == 3
            assert (await read(alice, pair, first["seq"]))["unread_count"] == 2
            assert (await read(alice, pair, last["seq"]))["unread_count"] == 0
            await say(bob, pair)
            assert (await seen(alice, pair))["unread_count"] == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("limit", [1, 2, 200])
async def test_sync_says_what_was_deleted_on_another_device(services: Services, limit: int) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, dave = made.people
        pairs = [await chat(alice, other, kind="direct") for other in (bob, carol, dave)]
        seqs = {pair["id"]: (await say(alice, pair))["seq"] for pair in pairs}
        cursor = await cursor_of(alice)
        kept, *gone = pairs
        for pair in gone:
            await say(alice, pair)
            seqs[pair["id"]] = (await say(alice, pair))["seq"]
            await deletes(alice, pair)
        news = await say(bob, kept)
        events, deleted, after = await synced(alice, cursor, limit)
        assert [event["seq"] for event in events] == [news["seq"]], "of the past nothing is shown"
        assert {one["chat_id"]: one["seq"] for one in deleted} == {pair["id"]: seqs[pair["id"]] for pair in gone}
        # Once is enough, unless something is under way.
        assert (await synced(alice, after, limit))[:2] == ([], [])
        # Again and again: the latest of each counts.
        for _ in range(4):
            back = await say(carol, gone[0])
            await deletes(alice, gone[0])
        last = await say(carol, gone[0])
        events, deleted, after = await synced(alice, after, limit)
        assert [event["seq"] for event in events] == [last["seq"]]
        assert deleted == [{"chat_id": gone[0]["id"], "seq": back["seq"]}]
        assert (await synced(alice, after, limit))[:2] == ([], [])
        # An old cursor of somebody else has nothing of it.
        assert (await synced(carol, cursor, limit))[1] == []


@pytest.mark.gen_test
@pytest.mark.parametrize("who_asks", ["the one who deleted", "the other"])
async def test_asking_for_the_chat_gives_the_same(services: Services, who_asks: str) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        await say(bob, pair)
        await deletes(alice, pair)
        assert (await alice.put(f"/chats/{pair['id']}/me", {"archived": True})).status == 404
        a, b = (alice, bob) if who_asks == "the one who deleted" else (bob, alice)
        tablet = await made.socket(alice)
        answer = await a.post("/chats", {"type": "direct", "participants": [b.public_id]})
        assert (answer.status, answer.json["id"], answer.json["archived"]) == (200, pair["id"], False)
        if a is alice:  # it is open again, and still empty
            assert (await listed(alice), await history(alice, pair)) == ([pair["id"]], [])
            assert (answer.json["last_message"], answer.json["unread_count"]) == (None, 0)
            await tablet.expect("account_changed", SECONDS)
        else:
            assert await listed(alice) == []
            await tablet.silent()
        assert len(await history(bob, pair)) == 1


@pytest.mark.gen_test
async def test_both_users_may_delete_the_chat_and_an_own_message_brings_it_back(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        await say(alice, pair)
        await deletes(alice, pair)
        await deletes(bob, pair)
        assert await listed(alice) == await listed(bob) == []
        [a] = await made.sockets(alice)
        ack = await a.send("message_send", chat_id=pair["id"], **message("here I am"))
        assert ack["type"] == "ack"
        for who in (alice, bob):
            assert await listed(who) == [pair["id"]]
            assert [m["seq"] for m in await history(who, pair)] == [ack["seq"]]


@pytest.mark.gen_test
async def test_a_block_lets_neither_user_erase_messages_of_the_other(services: Services) -> None:
    async with town(services, people=2) as made:
        abuser, victim = made.people
        pair = await chat(abuser, victim, kind="direct")
        await say(abuser, pair, "a threat")
        await say(victim, pair, "an answer")
        assert (await victim.put(f"/users/{abuser.public_id}/block", {})).status == 204
        await deletes(abuser, pair)
        assert len(await history(victim, pair)) == 2
        await deletes(victim, pair)
        assert await listed(victim) == []


@pytest.mark.gen_test
async def test_a_secret_chat_ends_for_both_by_its_owner(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        secret = await chat(alice, bob, kind="secret")
        assert (await bob.delete(f"/chats/{secret['id']}")).status == 403
        assert (await bob.put(f"/chats/{secret['id']}/me", {"hidden": True})).status == 200
        assert (await alice.delete(f"/chats/{secret['id']}")).status == 204
        assert (await bob.get(f"/chats/{secret['id']}")).status == 404


@pytest.mark.gen_test
@pytest.mark.parametrize("deleted_first", [True, False])
async def test_a_deleted_chat_ends_when_the_other_account_goes(services: Services, deleted_first: bool) -> None:
    """No account is left that could read it."""
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        await say(bob, pair)
        if deleted_first:
            await deletes(alice, pair)
        body = {"password": bob.password}
        assert (await ask(bob.url, "DELETE", "/users/me", body, bob.token)).status == 204
        if not deleted_first:
            assert len(await history(alice, pair)) == 1
            await deletes(alice, pair)
        assert await listed(alice) == []
        [row] = await made.sql("SELECT deleted_at FROM chat_threads")
        assert row["deleted_at"] is not None
