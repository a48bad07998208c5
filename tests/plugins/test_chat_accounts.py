"""Accounts and chats: what a block hides in a chat, and what an erased account leaves in it."""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import UUID

import pytest

from models import accounts
from models.database import Unavailable
from tests.client import Account, Socket, ask
from tests.plugins.chatting import SECONDS, chat, history, message, patiently, read, roles, say, seen, town
from tests.running import Services


async def erased(account: Account) -> None:
    body = {"password": account.password}
    answer = await patiently(partial(ask, account.url, "DELETE", "/users/me", body, account.token))
    assert answer.status == 204, answer.text


async def refused(socket: Socket, chat_id: str) -> bool:
    answer = await socket.send("message_send", chat_id=chat_id, **message())
    assert answer.get("code") in (None, "forbidden"), answer
    return answer["type"] == "error"


# Blocks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_block_ends_posting_in_a_direct_chat_at_once_either_way_round(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        pair, group = await chat(alice, bob, kind="direct"), await chat(alice, bob, carol)
        path = f"/chats/{pair['id']}/messages"
        everywhere = [await made.socket(who, n) for who in (alice, bob) for n in (0, 1)]
        for blocker, blocked in ((alice, bob), (bob, alice)):
            for socket in everywhere:
                assert not await refused(socket, pair["id"])
            assert (await blocker.put(f"/users/{blocked.public_id}/block", {})).status == 204
            for socket in everywhere:
                assert await refused(socket, pair["id"])
                assert not await refused(socket, group["id"]), "a group is everybody's"
            for who in (alice, bob):
                answer = await who.post(path, message())
                assert (answer.status, answer.code) == (403, "forbidden")
                assert len(await history(who, pair)) > 0, "what was said stays to be read"
            assert (await blocker.delete(f"/users/{blocked.public_id}/block")).status == 204
        for socket in everywhere:
            assert not await refused(socket, pair["id"])


@pytest.mark.gen_test
async def test_a_blocked_user_cannot_bring_the_blocker_into_chats(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        assert (await alice.put(f"/users/{bob.public_id}/block", {})).status == 204
        # He is not refused, which would tell of the block: the chats are made, and she never sees them.
        for kind in ("group", "channel", "secret", "cloud", "direct"):
            await say(bob, await chat(bob, alice, kind=kind))
        group = await chat(bob, carol)
        body = {"public_id": alice.public_id}
        assert (await bob.post(f"/chats/{group['id']}/participants", body)).status == 201
        assert (await alice.get("/chats")).json == []
        assert (await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).status == 201
        token = (await bob.post(f"/chats/{group['id']}/invites", {})).json["token"]
        assert (await alice.post("/chats/join", {"token": token})).status == 200, "of her own will"


@pytest.mark.gen_test
async def test_a_block_beside_messages_lets_none_through_after_it(services: Services) -> None:
    async with town(services, 2, people=2) as made:
        alice, bob = made.people
        pair = await chat(alice, bob, kind="direct")
        a, b = await made.sockets(alice, bob)
        assert not await refused(b, pair["id"])
        posting = [asyncio.ensure_future(b.send("message_send", chat_id=pair["id"], **message())) for _ in range(30)]
        await asyncio.sleep(0.005)
        assert (await alice.put(f"/users/{bob.public_id}/block", {})).status == 204
        blocked_at = (await seen(alice, pair))["last_seq"]
        answers = await asyncio.gather(*posting)
        assert {answer.get("code") for answer in answers} <= {None, "forbidden"}
        assert max(answer.get("seq", 0) for answer in answers) <= blocked_at
        assert (await seen(alice, pair))["last_seq"] == blocked_at
        assert await refused(b, pair["id"]) and await refused(a, pair["id"])


# Erasing an account ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_an_erased_account_leaves_its_chats_and_its_messages_lose_its_name(
    services: Services, servers: int
) -> None:
    async with town(services, servers, people=4) as made:
        alice, bob, carol, dave = made.people
        group = await chat(alice, bob, carol, dave)
        path = f"/chats/{group['id']}"
        assert (await alice.put(f"{path}/participants/{carol.user_id}", {"role": "admin"})).status == 200
        pair, notes = await chat(alice, bob, kind="direct"), await chat(alice, kind="cloud")
        posted, _ = await say(alice, group, "it stays"), await say(alice, pair, "so does this")
        reply = await say(bob, group, reply_to=posted["id"])
        await say(alice, notes)
        await read(alice, group, reply["seq"])
        assert (await alice.put(f"/messages/{reply['id']}/reactions/%F0%9F%91%8D", {})).status == 204
        before = (await seen(bob, group))["last_seq"]
        sockets = await made.sockets(bob, carol, dave)
        await erased(alice)

        for socket in sockets:
            gone = await socket.expect("participant_removed", SECONDS, chat_id=group["id"])
            heir = await socket.expect("participant_role", SECONDS, chat_id=group["id"])
            assert (gone["seq"], gone["user_id"]) == (before + 1, alice.user_id)
            assert (heir["seq"], heir["user_id"], heir["role"]) == (before + 2, carol.user_id, "owner")
        await sockets[0].expect("participant_removed", SECONDS, chat_id=pair["id"])
        after = await seen(bob, group)
        assert roles(after) == {carol.user_id: "owner", bob.user_id: "member", dave.user_id: "member"}
        assert (after["participant_count"], after["created_by"], after["unread_count"]) == (3, None, 1)
        found = {m["id"]: m for m in await history(bob, group)}
        assert (found[posted["id"]]["sender_id"], found[posted["id"]]["seq"]) == (None, posted["seq"])
        assert found[reply["id"]]["reactions"] == []
        assert [m["sender_id"] for m in await history(bob, pair)] == [None]
        assert (await seen(bob, pair))["peer"] is None
        assert found[reply["id"]]["reply_to"] == posted["id"]
        # A chat without participants is deleted.
        [row] = await made.sql("SELECT deleted_at FROM chat_threads WHERE type = 'cloud'")
        assert row["deleted_at"] is not None
        # The others go on, and the new owner rules.
        assert (await say(bob, group))["seq"] == before + 3
        assert (await carol.delete(f"/messages/{posted['id']}")).status == 204
        assert (await carol.delete(path)).status == 204


@pytest.mark.gen_test
async def test_only_admins_inherit_and_of_those_the_first_who_came(services: Services) -> None:
    async with town(services, people=5) as made:
        alice, bob, carol, dave, eve = made.people
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}/participants"
        for later in (carol, dave, eve):
            assert (await alice.post(path, {"public_id": later.public_id})).status == 201
        for admin in (dave, carol):
            assert (await alice.put(f"{path}/{admin.user_id}", {"role": "admin"})).status == 200
        assert (await alice.put(f"{path}/{eve.user_id}", {"role": "restricted"})).status == 200
        await erased(alice)
        left = {bob.user_id: "member", eve.user_id: "restricted"}
        assert roles(await seen(bob, group)) == {**left, carol.user_id: "owner", dave.user_id: "admin"}
        await erased(carol)
        assert roles(await seen(bob, group)) == {**left, dave.user_id: "owner"}
        await erased(dave)
        assert roles(await seen(bob, group)) == left, "members and restricted users do not become owner"
        assert (await bob.put(f"/chats/{group['id']}", {"title": "Mine"})).status == 403
        assert (await bob.delete(f"/chats/{group['id']}")).status == 403
        assert (await say(bob, group))["seq"] > 0
        assert (await eve.post(f"/chats/{group['id']}/messages", message())).status == 403
        # The last one who leaves ends it.
        assert (await eve.delete(f"{path}/{eve.user_id}")).status == 204
        [b] = await made.sockets(bob)
        assert (await bob.delete(f"{path}/{bob.user_id}")).status == 204
        await b.expect("participant_removed", SECONDS)
        await b.silent()
        [row] = await made.sql("SELECT deleted_at FROM chat_threads")
        assert row["deleted_at"] is not None


@pytest.mark.gen_test
async def test_a_channel_without_admins_has_only_readers_from_then_on(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        channel = await chat(alice, bob, kind="channel")
        token = (await alice.post(f"/chats/{channel['id']}/invites", {})).json["token"]
        await say(alice, channel)
        await erased(alice)
        assert ((await seen(bob, channel))["role"], len(await history(bob, channel))) == ("member", 1)
        assert (await bob.post(f"/chats/{channel['id']}/messages", message())).status == 403
        carol = await made.newcomer()
        assert (await carol.post("/chats/join", {"token": token})).status == 404, "its maker's invites went with them"


@pytest.mark.gen_test
async def test_several_participants_can_erase_their_accounts_at_once(services: Services) -> None:
    async with town(services, 2, people=6) as made:
        alice, bob, *others = made.people
        group = await chat(alice, bob, *others)
        pairs = [await chat(alice, other, kind="direct") for other in (bob, *others)]
        await asyncio.gather(*(say(who, group) for who in made.people))
        await asyncio.gather(*(erased(who) for who in (alice, *others)))
        assert roles(await seen(bob, group)) == {bob.user_id: "member"}
        assert (await seen(bob, group))["participant_count"] == 1
        senders = [m["sender_id"] for m in await history(bob, group)]
        assert sorted(str(sender) for sender in senders) == sorted([bob.user_id] + ["None"] * 5)
        left = await made.sql("SELECT id::text FROM chat_threads WHERE deleted_at IS NULL")
        assert {row["id"] for row in left} == {group["id"], pairs[0]["id"]}


@pytest.mark.gen_test
async def test_the_creator_can_leave_a_chat_while_others_change_it(services: Services) -> None:
    """PostgreSQL asks for the row of who made it when a chat's row is written for the second time in a transaction."""
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}/participants"
        assert (await alice.put(f"{path}/{bob.user_id}", {"role": "owner"})).status == 200
        assert (await alice.delete(f"{path}/{alice.user_id}")).status == 204
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with made.servers[0].app.changes.lock(UUID(group["id"]), UUID(bob.user_id)) as change:
            assert change is not None
            await change.append("chat_updated")
            going = asyncio.ensure_future(erased(alice))
            while not going.done() and not await made.sql(waiting):
                await asyncio.sleep(0.05)
            await change.append("chat_updated")
        await going
        assert (await seen(bob, group))["created_by"] is None


@pytest.mark.gen_test
async def test_others_receive_a_departure_even_if_the_erasure_fails_later(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chat is left in its own transaction, and the frame follows its commit."""

    async def fail(*_: object) -> None:
        raise Unavailable

    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        socket = await made.socket(alice)
        monkeypatch.setattr(accounts.messages, "forget_sender", fail)
        body = {"password": bob.password}
        assert (await ask(bob.url, "DELETE", "/users/me", body, bob.token)).status == 503
        removed = await socket.expect("participant_removed")
        assert (removed["chat_id"], removed["user_id"]) == (group["id"], bob.user_id)
        monkeypatch.undo()
        await erased(bob)
        await socket.silent(0.2)
