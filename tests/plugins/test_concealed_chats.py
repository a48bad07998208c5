"""Chats of two across a block: what the blocked user does there, and that the blocker sees nothing of it, ever."""

from __future__ import annotations

import asyncio

import pytest

from tests.client import Account, Answer, Socket, ask
from tests.plugins.chatting import Json, chat, history, message, pages, say, seen, town
from tests.running import Services

HEART = "%E2%9D%A4"


async def block(by: Account, other: Account) -> None:
    assert (await by.put(f"/users/{other.public_id}/block", {})).status == 204


async def unblock(by: Account, other: Account) -> None:
    assert (await by.delete(f"/users/{other.public_id}/block")).status == 204


async def cursor(who: Account) -> str:
    return str((await who.get("/sync")).json["cursor"])


async def synced(who: Account, since: str) -> Json:
    page: Json = (await who.get(f"/sync?cursor={since}")).json
    return page


async def nothing_is_shown(who: Account, chat_id: str, message_id: str, since: str, socket: Socket) -> None:
    """By no way that a client has."""
    await socket.silent()
    for query in ("", "?hidden=true"):
        assert (await who.get(f"/chats{query}")).json == []
    for path in ("", "/messages", "/participants"):
        assert (await who.get(f"/chats/{chat_id}{path}")).status == 404
    assert (await who.get(f"/messages/{message_id}")).status == 404
    assert (await who.put(f"/messages/{message_id}/reactions/{HEART}", None)).status == 404
    assert (await who.put(f"/chats/{chat_id}", {"title": "mine"})).status == 404
    assert (await who.put(f"/chats/{chat_id}/me", {"archived": True})).status == 404
    assert (await who.delete(f"/chats/{chat_id}")).status == 404
    assert (await who.post(f"/chats/{chat_id}/receipts", {"read_seq": 1})).status == 404
    assert (await who.post(f"/chats/{chat_id}/messages", message())).status == 404
    assert (await who.post(f"/chats/{chat_id}/accept", {})).status == 404
    assert (await socket.send("typing", chat_id=chat_id))["code"] == "not_found"
    page = await synced(who, since)
    assert (page["events"], page.get("deleted", [])) == ([], [])


async def try_everything(by: Account, socket: Socket, where: Json) -> Json:
    """All that one may do in a chat of two; the last message. All is answered as by a server that delivers it."""
    path = f"/chats/{where['id']}"
    posted = await say(by, where)
    assert (await socket.send("message_send", chat_id=where["id"], **message()))["type"] == "ack"
    assert (await by.put(f"/messages/{posted['id']}", {"encrypted_payload": "BBBB"})).status == 200
    assert (await by.put(f"/messages/{posted['id']}/reactions/{HEART}", None)).status == 204
    assert (await by.post(f"{path}/receipts", {"read_seq": posted["seq"]})).status == 200
    assert (await socket.send("typing", chat_id=where["id"]))["type"] == "ack"
    assert (await by.put(path, {"title": "I know where you live"})).status == 200
    return await say(by, where, "once more")


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["direct", "secret"])
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_chat_made_with_a_blocker_is_seen_by_its_maker_only(
    services: Services, kind: str, servers: int
) -> None:
    async with town(services, servers, people=2) as made:
        victim, mallory = made.people
        await block(victim, mallory)
        since = await cursor(victim)
        v, m = await made.sockets(victim, mallory)
        where = await chat(mallory, victim, kind=kind, title="hello", settings={"colour": "red"})
        assert where["peer"]["public_id"] == victim.public_id and where["participant_count"] == 2
        last = await try_everything(mallory, m, where)
        await nothing_is_shown(victim, where["id"], last["id"], since, v)
        assert len(await history(mallory, where)) == 3
        if kind == "direct":
            again = await mallory.post("/chats", {"type": kind, "participants": [victim.public_id], "title": "again"})
            assert (again.status, again.json["id"]) == (200, where["id"])
            assert (await mallory.delete(f"/chats/{where['id']}")).status == 204
            await say(mallory, where)
        await v.silent()


@pytest.mark.gen_test
async def test_messages_sent_while_blocked_are_never_shown_and_later_ones_are(services: Services) -> None:
    async with town(services, people=2) as made:
        victim, mallory = made.people
        await block(victim, mallory)
        since = await cursor(victim)
        where = await chat(mallory, victim, kind="direct", title="threat", avatar_url="https://example.com/beacon.png")
        before = await say(mallory, where, "while blocked")
        await unblock(victim, mallory)
        v = await made.socket(victim)
        for change in (block, unblock):  # a chat that never was shown is not shown to be gone either
            await change(victim, mallory)
            assert (await synced(victim, since)).get("deleted", []) == []
        await v.silent()
        assert (await victim.get("/chats")).json == []
        later = await say(mallory, where, "afterwards")
        assert (await v.expect("message_new"))["seq"] == later["seq"]
        [entry] = (await victim.get("/chats")).json
        described = entry["title"], entry["avatar_url"], entry["settings"]
        assert described == (None, None, {}), "given while blocked"
        assert (entry["unread_count"], entry["last_message"]["id"]) == (1, later["id"])
        assert [m["id"] for m in await history(victim, where)] == [later["id"]]
        assert (await victim.get(f"/messages/{before['id']}")).status == 404
        assert (await victim.put(f"/messages/{before['id']}/reactions/{HEART}", None)).status == 404
        events = (await synced(victim, since))["events"]
        assert [(event["type"], event["seq"]) for event in events] == [("message_new", later["seq"])]
        # A later change of the earlier message shows only that something happened.
        await mallory.put(f"/messages/{before['id']}", {"encrypted_payload": "BBBB"})
        assert (await v.expect("hidden"))["seq"] == later["seq"] + 1
        await mallory.put(f"/chats/{where['id']}", {"title": "threat"})
        assert (await v.expect("hidden"))["seq"] == later["seq"] + 2
        assert (await seen(victim, where))["title"] is None
        # A new description of the chat begins with what its author saw.
        assert (await victim.put(f"/chats/{where['id']}", {"title": "ours"})).status == 200
        shown = await seen(mallory, where)
        assert (shown["title"], shown["avatar_url"]) == ("ours", None)


@pytest.mark.gen_test
async def test_one_chat_serves_both_when_the_blocker_comes_back(services: Services) -> None:
    async with town(services, people=2) as made:
        victim, mallory = made.people
        await block(victim, mallory)
        where = await chat(mallory, victim, kind="direct")
        await say(mallory, where)
        body = {"type": "direct", "participants": [mallory.public_id]}
        assert (await victim.post("/chats", body)).code == "forbidden", "unblock first"
        await unblock(victim, mallory)
        again = await victim.post("/chats", body)
        assert (again.status, again.json["id"], again.json["unread_count"]) == (200, where["id"], 0)
        own = await say(victim, where, "hello")
        assert [m["id"] for m in await history(victim, where)] == [own["id"]]
        assert len(await history(mallory, where)) == 2
        await block(victim, mallory)  # accepted by now
        assert (await mallory.post(f"/chats/{where['id']}/messages", message())).status == 403
        assert (await seen(victim, where))["id"] == where["id"]


@pytest.mark.gen_test
@pytest.mark.parametrize("accepts", ["nothing", "writes", "accepts", "reacts", "made it"])
async def test_a_block_conceals_what_was_not_accepted(services: Services, accepts: str) -> None:
    async with town(services, 2, people=2) as made:
        victim, mallory = made.people
        makers = (victim, mallory) if accepts == "made it" else (mallory, victim)
        where = await chat(*makers, kind="direct")
        first = await say(mallory, where)
        if accepts == "writes":
            await say(victim, where)
        elif accepts == "accepts":
            assert (await victim.post(f"/chats/{where['id']}/accept", {})).status == 200
        elif accepts == "reacts":
            assert (await victim.put(f"/messages/{first['id']}/reactions/{HEART}", None)).status == 204
        since = await cursor(victim)
        v, m = await made.sockets(victim, mallory)
        await block(victim, mallory)
        if accepts != "nothing":
            assert (await m.send("message_send", chat_id=where["id"], **message()))["code"] == "forbidden"
            assert (await m.send("typing", chat_id=where["id"]))["code"] == "forbidden"
            assert (await mallory.put(f"/messages/{first['id']}", {"encrypted_payload": "BBBB"})).status == 403
            assert [one["id"] for one in (await victim.get("/chats")).json] == [where["id"]]
            return
        assert (await v.expect("account_changed"))["chat_id"] == where["id"], "gone from the other devices"
        assert (await synced(victim, since))["deleted"] == [{"chat_id": where["id"], "seq": first["seq"]}]
        since = await cursor(victim)
        last = await try_everything(mallory, m, where)
        await v.silent()
        assert (await victim.get("/chats")).json == []
        assert (await synced(victim, since))["events"] == []
        assert (await victim.get(f"/messages/{first['id']}")).status == 404
        await unblock(victim, mallory)
        assert (await victim.get(f"/messages/{last['id']}")).status == 404


@pytest.mark.gen_test
async def test_rows_of_older_servers_are_judged_by_what_was_written(services: Services) -> None:
    async with town(services, people=3) as made:
        victim, mallory, friend = made.people
        strange, known = await chat(mallory, victim, kind="direct"), await chat(friend, victim, kind="direct")
        await say(mallory, strange)
        await say(victim, known)
        await made.sql("UPDATE chat_participants SET accepted = NULL")
        await block(victim, mallory)
        await block(victim, friend)
        assert [one["id"] for one in (await victim.get("/chats")).json] == [known["id"]]
        await say(mallory, strange)
        assert (await friend.post(f"/chats/{known['id']}/messages", message())).status == 403


@pytest.mark.gen_test
async def test_a_block_beside_a_new_chat_and_messages_never_shows_later_ones(services: Services) -> None:
    """In either order, on two servers: a message stored after the block is shown only to its sender."""
    async with town(services, 2, people=8) as made:
        victim, *strangers = made.people
        v = await made.socket(victim)

        async def disturb(stranger: Account) -> None:
            body = {"type": "direct", "participants": [victim.public_id], "title": "x"}
            made_one = await stranger.post("/chats", body)
            assert made_one.status == 201
            for _ in range(5):
                await say(stranger, made_one.json)

        await asyncio.gather(*(disturb(one) for one in strangers), *(block(victim, one) for one in strangers))
        assert (await victim.get("/chats")).json == []
        await asyncio.sleep(0.3)
        v.frames.clear()
        for stranger in strangers:
            [where] = (await stranger.get("/chats")).json
            await say(stranger, where)
            assert len(await history(stranger, where)) == 6
        await v.silent()


@pytest.mark.gen_test
async def test_accounts_go_as_from_any_chat_that_was_not_answered(services: Services) -> None:
    async with town(services, people=3) as made:
        victim, mallory, other = made.people
        for one in (mallory, other):
            await block(victim, one)
        where, second = await chat(mallory, victim, kind="direct"), await chat(other, victim, kind="direct")
        v, m = await made.sockets(victim, mallory)
        assert (await _erase(other)).status == 204
        await v.silent()
        assert await made.sql("SELECT 1 FROM chat_threads WHERE id = $1 AND deleted_at IS NULL", second["id"]) == []
        assert (await _erase(victim)).status == 204
        assert (await m.expect("participant_removed"))["user_id"] == victim.user_id
        assert (await seen(mallory, where))["participant_count"] == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["direct", "secret"])
async def test_receipts_of_a_blocker_stop_and_do_not_vanish(services: Services, kind: str) -> None:
    async with town(services, people=2) as made:
        victim, mallory = made.people
        where = await chat(mallory, victim, kind=kind)
        first = await say(mallory, where)
        assert (await victim.post(f"/chats/{where['id']}/receipts", {"read_seq": where["last_seq"]})).status == 200
        before = (await mallory.get(f"/chats/{where['id']}/receipts")).json
        await block(victim, mallory)
        assert (await mallory.get(f"/chats/{where['id']}/receipts")).json == before
        # An older device of the blocker's may still send what it has queued.
        refused = await victim.post(f"/chats/{where['id']}/receipts", {"read_seq": first["seq"]})
        assert refused.status == 404
        assert (await mallory.get(f"/chats/{where['id']}/receipts")).json == before
        assert (await mallory.get(f"/messages/{first['id']}")).status == 200


@pytest.mark.gen_test
async def test_reads_stay_when_a_reader_deletes_a_direct_chat(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        where = await chat(alice, bob, kind="direct")
        posted = await say(alice, where)
        assert (await bob.post(f"/chats/{where['id']}/receipts", {"read_seq": posted["seq"]})).status == 200
        reads = (await alice.get(f"/messages/{posted['id']}/reads")).json
        assert [one["user_id"] for one in reads] == [bob.user_id]
        assert (await bob.delete(f"/chats/{where['id']}")).status == 204
        assert (await alice.get(f"/messages/{posted['id']}/reads")).json == reads
        marks = (await alice.get(f"/chats/{where['id']}/receipts")).json
        assert (await bob.post(f"/chats/{where['id']}/receipts", {"read_seq": 99})).status == 404
        assert (await alice.get(f"/chats/{where['id']}/receipts")).json == marks


@pytest.mark.gen_test
async def test_a_concealed_chat_ends_with_its_maker(services: Services) -> None:
    async with town(services, people=2) as made:
        victim, mallory = made.people
        await block(victim, mallory)
        where = await chat(mallory, victim, kind="secret")
        await say(mallory, where)
        assert (await _erase(mallory)).status == 204
        assert await made.sql("SELECT 1 FROM chat_threads WHERE id = $1 AND deleted_at IS NULL", where["id"]) == []


async def _erase(who: Account) -> Answer:
    return await ask(who.url, "DELETE", "/users/me", {"password": who.password}, token=who.token)


@pytest.mark.gen_test
async def test_both_have_blocked_each_other(services: Services) -> None:
    async with town(services, people=2) as made:
        victim, mallory = made.people
        where = await chat(mallory, victim, kind="direct")
        await say(mallory, where)
        await block(mallory, victim)
        assert (await mallory.post(f"/chats/{where['id']}/messages", message())).status == 403
        await block(victim, mallory)
        assert (await victim.get("/chats")).json == []
        assert (await mallory.post(f"/chats/{where['id']}/messages", message())).status == 403, "their own block"
        await unblock(mallory, victim)
        await say(mallory, where)
        assert (await victim.get("/chats")).json == []
        assert await pages(victim, "/chats?limit=1") == [[]]


@pytest.mark.gen_test
async def test_files_of_a_concealed_chat_are_not_read(services: Services) -> None:
    async with town(services, people=2) as made:
        victim, mallory = made.people
        where = await chat(mallory, victim, kind="direct")
        [row] = await made.sql(
            """INSERT INTO files
                   (owner_id, chat_id, size, sha256, storage_key, state, resumable, completed_at, expires_at)
               VALUES ($1, $2, 3, $3, repeat('0a', 16), 'complete', false, now(), NULL) RETURNING id""",
            mallory.user_id,
            where["id"],
            b"x" * 32,
        )
        assert (await victim.get(f"/files/{row['id']}")).status == 200
        await block(victim, mallory)
        assert (await victim.get(f"/files/{row['id']}")).status == 404
