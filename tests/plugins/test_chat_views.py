"""A user's view of a chat: hidden, archived, muted, marked as unread, and the users shown in the list."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from models import push
from tests.client import Account
from tests.plugins.chatting import SECONDS, Json, chat, crowd, pages, read, roles, say, seen, town
from tests.running import Services

OPEN = {"hidden": False, "archived": False, "muted_until": None, "marked_unread": False}


async def listed(who: Account, query: str = "") -> list[str]:
    return [entry["id"] for entry in (await who.get(f"/chats{query}")).json]


def view_of(entry: Json) -> Json:
    return {name: entry[name] for name in OPEN}


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_view_belongs_to_one_user_and_its_devices_are_notified(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}/me"
        phone, tablet, b = await made.socket(alice, 0), await made.socket(alice, 1), await made.socket(bob)
        until = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds").replace("+00:00", "Z")
        expected = {**OPEN}
        assert view_of(group) == expected
        for change in (
            {"archived": True},
            {"muted_until": until},
            {"marked_unread": True},
            {"hidden": True},
            {"archived": False, "muted_until": None},
            {"hidden": False, "marked_unread": False},
        ):
            expected |= change
            answer = await alice.put(path, change)
            assert (answer.status, view_of(answer.json)) == (200, expected)
            assert view_of(await seen(alice, group)) == expected
            for socket in (phone, tablet):
                heard = await socket.expect("account_changed", SECONDS)
                assert heard == {"type": "account_changed", "what": "chat", "chat_id": group["id"]}
        assert view_of(await seen(bob, group)) == OPEN
        assert view_of((await bob.get("/chats")).json[0]) == OPEN
        await b.silent()
        assert (await alice.put(path, {})).status == 200
        for socket in (phone, tablet):
            await socket.silent()
        assert (await carol.put(path, {"hidden": True})).status == 404
        for field, value in (
            ("hidden", None),
            ("archived", 1),
            ("marked_unread", "true"),
            ("muted_until", "tomorrow"),
            ("muted_until", "2030-01-01T00:00:00"),
            ("muted_until", "9999-12-31T23:59:59-12:00"),
            ("muted_until", 5),
        ):
            assert (await alice.put(path, {field: value})).fields() == [field], (field, value)


@pytest.mark.gen_test
async def test_a_hidden_chat_comes_back_with_the_next_message(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        shown, group, pair = await chat(alice, bob), await chat(alice, bob), await chat(alice, bob, kind="direct")
        posted = await say(bob, group)
        for one in (group, pair):
            assert (await alice.put(f"/chats/{one['id']}/me", {"hidden": True})).status == 200
        assert await listed(alice) == [shown["id"]]
        assert set(await listed(alice, "?hidden=true")) == {group["id"], pair["id"]}
        assert len(await listed(bob)) == 3
        found = await pages(alice, "/chats?hidden=true&limit=1")
        assert sorted(entry["id"] for page in found for entry in page) == sorted((group["id"], pair["id"]))
        # A receipt, a reaction, an edit or a new title is nothing new to read.
        await read(alice, group, posted["seq"])
        assert (await bob.put(f"/messages/{posted['id']}/reactions/%F0%9F%91%8D", {})).status == 204
        assert (await bob.put(f"/messages/{posted['id']}", {"encrypted_payload": "AAAA"})).status == 200
        assert (await alice.put(f"/chats/{group['id']}", {"title": "New"})).json["hidden"]
        assert await listed(alice) == [shown["id"]]
        last = await say(bob, group)
        assert await listed(alice) == [group["id"], shown["id"]]
        assert not (await seen(alice, group))["hidden"]
        # Also when the message is gone again.
        assert (await bob.delete(f"/messages/{last['id']}")).status == 204
        assert group["id"] in await listed(alice)
        await say(alice, pair)
        assert await listed(alice, "?hidden=true") == [], "one's own message counts as well"
        assert (await alice.get("/chats?hidden=maybe")).fields() == ["hidden"]


@pytest.mark.gen_test
async def test_a_view_ends_with_the_membership(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        everything = {"hidden": True, "archived": True, "muted_until": "2999-01-01T00:00:00Z", "marked_unread": True}
        assert (await bob.put(f"/chats/{group['id']}/me", everything)).status == 200
        assert (await alice.delete(f"/chats/{group['id']}/participants/{bob.user_id}")).status == 204
        assert (await bob.put(f"/chats/{group['id']}/me", everything)).status == 404
        body = {"public_id": bob.public_id}
        assert (await alice.post(f"/chats/{group['id']}/participants", body)).status == 201
        assert view_of(await seen(bob, group)) == OPEN


@pytest.mark.gen_test
async def test_a_mark_as_unread_ends_with_the_next_read_receipt(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        posted = await say(bob, group)
        await read(alice, group, posted["seq"])
        tablet = await made.socket(alice)
        for seq in (posted["seq"], (await say(bob, group))["seq"]):  # one that moves nothing counts as well
            assert (await alice.put(f"/chats/{group['id']}/me", {"marked_unread": True})).status == 200
            await tablet.expect("account_changed", SECONDS)
            delivered = await alice.post(f"/chats/{group['id']}/receipts", {"delivered_seq": seq})
            assert delivered.status == 200
            await read(bob, group, seq)
            assert (await seen(alice, group))["marked_unread"], "not by another's, nor by what was only delivered"
            await read(alice, group, seq)
            assert not (await seen(alice, group))["marked_unread"]
            await tablet.expect("account_changed", SECONDS)


@pytest.mark.gen_test
async def test_a_muted_chat_sends_no_push_until_the_mute_ends(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group, other = await chat(alice, bob), await chat(alice, bob)
        assert (await alice.put("/push/tokens", {"provider": "fcm", "token": "x" * 100})).status in (200, 201)
        ids = [UUID(group["id"]), UUID(other["id"])]

        async def muted() -> list[bool]:
            asked = [(UUID(alice.user_id), chat_id) for chat_id in ids]
            return [rows[0]["muted"] for rows in await push.wanted(made.servers[0].app.db, asked)]

        assert await muted() == [False, False]
        for until, expected in (
            ("2999-01-01T00:00:00Z", True),
            ("2020-01-01T00:00:00Z", False),
            ("2999-01-01T00:00:00+02:00", True),
            (None, False),
        ):
            assert (await alice.put(f"/chats/{group['id']}/me", {"muted_until": until})).status == 200
            assert await muted() == [expected, False]
        # Beside what the push settings say.
        muting = {"muted_chats": [{"chat_id": other["id"], "until": None}]}
        assert (await alice.put("/push/settings", muting)).status == 200
        assert await muted() == [False, True]


# Users shown in the list ----------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_list_shows_eight_participants_and_counts_all(services: Services) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, dave = made.people
        group = await chat(alice, bob, carol, dave)
        await crowd(made, group["id"], 20)
        path = f"/chats/{group['id']}/participants"
        assert (await alice.put(f"{path}/{bob.user_id}", {"role": "admin"})).status == 200
        for who in (alice, bob, carol):
            [entry] = (await who.get("/chats")).json
            shown = {person["user_id"]: person for person in entry["participants"]}
            assert (len(entry["participants"]), len(shown), entry["participant_count"]) == (8, 8, 24)
            assert {alice.user_id, bob.user_id, who.user_id} <= shown.keys()
            assert shown[bob.user_id] == {
                "user_id": bob.user_id,
                "public_id": bob.public_id,
                "display_name": None,
                "avatar_url": None,
                "fingerprint": bob.fingerprint,
                "role": "admin",
                "delivered_seq": None,
                "read_seq": None,
            }
        everybody = (await alice.get(f"{path}?limit=1024")).json
        assert bob.fingerprint in {person["fingerprint"] for person in everybody}


@pytest.mark.gen_test
async def test_readers_of_a_channel_are_shown_the_admins_and_themselves(services: Services) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, dave = made.people
        channel = await chat(alice, bob, carol, dave, kind="channel")
        admin = f"/chats/{channel['id']}/participants/{bob.user_id}"
        assert (await alice.put(admin, {"role": "admin"})).status == 200
        governors = {alice.user_id: "owner", bob.user_id: "admin"}
        for reader, other in ((carol, dave), (dave, carol)):
            [entry] = (await reader.get("/chats")).json
            assert roles(entry) == {**governors, reader.user_id: "member"}
            assert other.user_id not in str(entry)
        for governor in (alice, bob):
            [entry] = (await governor.get("/chats")).json
            assert roles(entry) == {**governors, carol.user_id: "member", dave.user_id: "member"}


@pytest.mark.gen_test
async def test_direct_chats_show_how_far_both_have_read_but_not_across_a_block(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        pair, group = await chat(alice, bob, kind="direct"), await chat(alice, bob)
        await say(bob, pair)  # else the block would conceal the chat
        posted = await say(alice, pair)
        await say(alice, group)
        assert (await bob.post(f"/chats/{pair['id']}/receipts", {"delivered_seq": posted["seq"]})).status == 200
        await read(alice, pair, posted["seq"])

        async def marks(who: Account, where: Json) -> dict[str, tuple[int | None, int | None]]:
            entry = {one["id"]: one for one in (await who.get("/chats")).json}[where["id"]]
            full = await seen(who, where)
            found = {p["user_id"]: (p["delivered_seq"], p["read_seq"]) for p in entry["participants"]}
            assert found == {p["user_id"]: (p["delivered_seq"], p["read_seq"]) for p in full["participants"]}
            return found

        both = {alice.user_id: (3, 3), bob.user_id: (3, 0)}
        assert await marks(alice, pair) == await marks(bob, pair) == both
        assert set((await marks(alice, group)).values()) == {(None, None)}
        assert (await bob.put(f"/users/{alice.public_id}/block", {})).status == 204
        assert await marks(alice, pair) == {**both, bob.user_id: (None, None)}
        assert await marks(bob, pair) == {**both, alice.user_id: (None, None)}
