"""Pinned messages: who pins, who sees which pins and their events, and what ends a pin."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.pins.shapes import MAX_PINS
from tests.client import Account, Answer, ask, b64
from tests.plugins.chatting import Json, Town, chat, everyone_hears, history, link, message, of, pages, say, town
from tests.running import Services, periodic

EVENTS = ("message_pinned", "message_unpinned")


async def pin(by: Account, posted: Json, status: int = 204) -> Answer:
    answer = await by.put(f"/messages/{posted['id']}/pin", None)
    assert answer.status == status, answer.text
    return answer


async def unpin(by: Account, posted: Json, status: int = 204) -> Answer:
    answer = await by.delete(f"/messages/{posted['id']}/pin")
    assert answer.status == status, answer.text
    return answer


async def pinned(by: Account, where: Json | str) -> list[Json]:
    answer = await by.get(f"/chats/{of(where)}/pins")
    assert answer.status == 200, answer.text
    found: list[Json] = answer.json
    return found


async def ids(by: Account, where: Json | str) -> list[str]:
    """The pinned messages that a user sees."""
    return [one["message"]["id"] for one in await pinned(by, where)]


async def cursor(by: Account) -> str:
    return str((await by.get("/sync")).json["cursor"])


async def synced(by: Account, since: str) -> list[tuple[Any, ...]]:
    """Type, seq and message of each event since a cursor."""
    events = (await by.get(f"/sync?cursor={since}")).json["events"]
    return [(event["type"], event["seq"], event.get("message_id")) for event in events]


async def rows(town: Town) -> int:
    return int((await town.sql("SELECT count(*) FROM pinned_messages"))[0][0])


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_message_is_pinned_and_unpinned_for_everybody(services: Services, servers: int) -> None:
    async with town(services, servers=servers, people=2) as home:
        alice, bob = home.people
        group = await chat(alice, bob)
        first, second = await say(alice, group), await say(bob, group)
        since = await cursor(bob)
        sockets = await home.sockets(alice, bob)
        assert await pinned(bob, group) == []
        for _ in range(2):  # a repetition is no event
            await pin(alice, first)
        await pin(alice, second)
        shown = {one["id"]: one for one in await history(bob, group)}
        found = await pinned(bob, group)
        assert [one["message"] for one in found] == [shown[second["id"]], shown[first["id"]]], "the newest pin first"
        assert [(one["seq"], one["pinned_by"]) for one in found] == [(5, alice.user_id), (4, alice.user_id)]
        for number, posted in ((4, first), (5, second)):
            for frame in await everyone_hears(sockets, "message_pinned", seq=number):
                assert (frame["message_id"], frame["user_id"]) == (posted["id"], alice.user_id)
                assert frame["created_at"] == found[5 - number]["pinned_at"]
        for _ in range(2):
            await unpin(alice, first)
        for frame in await everyone_hears(sockets, "message_unpinned", seq=6):
            assert (frame["message_id"], frame["user_id"]) == (first["id"], alice.user_id)
        assert await ids(alice, group) == [second["id"]]
        await pin(alice, first)
        assert await ids(alice, group) == [first["id"], second["id"]], "a new pin"
        assert await synced(bob, since) == [
            ("message_pinned", 4, first["id"]),
            ("message_pinned", 5, second["id"]),
            ("message_unpinned", 6, first["id"]),
            ("message_pinned", 7, first["id"]),
        ]


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["group", "channel", "cloud"])
async def test_in_a_chat_of_many_the_owner_and_admins_pin(services: Services, kind: str) -> None:
    async with town(services, people=5) as home:
        owner, admin, member, restricted, stranger = home.people
        where = await chat(owner, admin, member, restricted, kind=kind)
        for who, role in ((admin, "admin"), (restricted, "restricted")):
            path = f"/chats/{where['id']}/participants/{who.user_id}"
            assert (await owner.put(path, {"role": role})).status == 200
        posted, other = await say(owner, where), await say(owner, where)
        for who in (owner, admin):
            await pin(who, posted)
            await unpin(who, posted)
        await pin(admin, posted)
        for who in (member, restricted):
            assert (await pin(who, other, 403)).code == "forbidden"
            await unpin(who, posted, 403)
            assert (await who.delete(f"/chats/{where['id']}/pins")).status == 403
            assert await ids(who, where) == [posted["id"]]
        await pin(stranger, other, 404)
        await unpin(stranger, posted, 404)
        assert (await stranger.delete(f"/chats/{where['id']}/pins")).status == 404
        assert (await stranger.get(f"/chats/{where['id']}/pins")).status == 404
        assert await ids(owner, where) == [posted["id"]]


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["direct", "secret"])
async def test_in_a_chat_of_two_both_pin_until_a_block(services: Services, kind: str) -> None:
    async with town(services, people=2) as home:
        alice, bob = home.people
        where = await chat(alice, bob, kind=kind)
        first, second = await say(alice, where), await say(alice, where)
        await pin(bob, first)  # by which Bob accepts the chat, so a block ends it for both
        await pin(alice, second)
        await unpin(alice, first)
        assert await ids(bob, where) == [second["id"]]
        assert (await bob.put(f"/users/{alice.public_id}/block", {})).status == 204
        for who in (alice, bob):
            await pin(who, first, 403)
            await unpin(who, second, 403)
            assert await ids(who, where) == [second["id"]]


@pytest.mark.gen_test
async def test_a_cloud_chat_has_pins(services: Services) -> None:
    async with town(services, people=1) as home:
        [alice] = home.people
        notes = await chat(alice, kind="cloud")
        posted = await say(alice, notes)
        await pin(alice, posted)
        assert await ids(alice, notes) == [posted["id"]]


@pytest.mark.gen_test
async def test_a_blocker_who_never_accepted_the_chat_sees_nothing_of_pins(services: Services) -> None:
    async with town(services, people=2) as home:
        alice, bob = home.people
        where = await chat(alice, bob, kind="direct")
        posted = await say(alice, where)
        assert (await bob.put(f"/users/{alice.public_id}/block", {})).status == 204
        since = await cursor(bob)
        [socket] = await home.sockets(bob)
        await pin(alice, posted)
        assert await ids(alice, where) == [posted["id"]]
        await pin(bob, posted, 404)
        assert (await bob.get(f"/chats/{where['id']}/pins")).status == 404
        assert await synced(bob, since) == []
        await socket.silent()
        # When the chat comes back it begins with what came after the block.
        assert (await bob.delete(f"/users/{alice.public_id}/block")).status == 204
        await say(alice, where)
        assert await pinned(bob, where) == []


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_later_participant_sees_no_pin_of_an_earlier_message(services: Services, servers: int) -> None:
    async with town(services, servers=servers, people=3) as home:
        alice, bob, late = home.people
        group = await chat(alice, bob)
        old = await say(alice, group)  # 2
        await pin(alice, old)  # 3
        joining = {"public_id": late.public_id, "role": "admin"}
        assert (await alice.post(f"/chats/{group['id']}/participants", joining)).status == 201  # 4
        since = await cursor(late)
        sockets = await home.sockets(late, bob)
        new = await say(bob, group)  # 5
        await everyone_hears(sockets, "message_new", seq=5)
        await unpin(alice, old)  # 6
        await pin(alice, old)  # 7
        await pin(late, new)  # 8
        late_hears, bob_hears = sockets
        for seq, kind in ((6, "message_unpinned"), (7, "message_pinned")):
            await bob_hears.expect(kind, 20, seq=seq, message_id=old["id"])
            hidden = await late_hears.expect("hidden", 20, seq=seq)
            assert old["id"] not in str(hidden)
        await everyone_hears(sockets, "message_pinned", seq=8, message_id=new["id"])
        assert await synced(late, since) == [
            ("message_new", 5, None),
            ("hidden", 6, None),
            ("message_pinned", 8, new["id"]),
        ]
        assert (await ids(late, group), await ids(bob, group)) == ([new["id"]], [new["id"], old["id"]])
        await unpin(late, old, 404)
        # An admin can still make room in a chat that is full of pins which they don't see.
        assert (await late.delete(f"/chats/{group['id']}/pins")).status == 204
        await bob_hears.expect("message_unpinned", 20, seq=9, message_id=old["id"], user_id=late.user_id)
        await bob_hears.expect("message_unpinned", 20, seq=10, message_id=new["id"])
        await late_hears.expect("hidden", 20, seq=9)
        assert await pinned(bob, group) == []
        assert (await late.delete(f"/chats/{group['id']}/pins")).status == 204
        await bob_hears.silent()


@pytest.mark.gen_test
async def test_a_direct_chat_that_one_side_deleted_comes_back_without_its_pins(services: Services) -> None:
    async with town(services, people=2) as home:
        alice, bob = home.people
        where = await chat(alice, bob, kind="direct")
        posted = await say(alice, where)
        await pin(bob, posted)
        assert (await bob.delete(f"/chats/{where['id']}")).status == 204
        for answer in (
            await bob.get(f"/chats/{where['id']}/pins"),
            await bob.delete(f"/chats/{where['id']}/pins"),
            await pin(bob, posted, 404),
        ):
            assert answer.status == 404
        await say(alice, where)
        assert (await pinned(bob, where), await ids(alice, where)) == ([], [posted["id"]])


@pytest.mark.gen_test
async def test_a_former_participant_sees_no_pins(services: Services) -> None:
    async with town(services, people=2) as home:
        alice, bob = home.people
        where = await chat(alice, bob, kind="channel")
        posted = await say(alice, where)
        await pin(alice, posted)
        since = await cursor(bob)
        assert (await bob.delete(f"/chats/{where['id']}/participants/{bob.user_id}")).status == 204
        await unpin(alice, posted)
        assert (await bob.get(f"/chats/{where['id']}/pins")).status == 404
        assert not {kind for kind, _, _ in await synced(bob, since)} & set(EVENTS)


# The end of a pin -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_pin_goes_with_its_message(services: Services) -> None:
    async with town(services, people=2) as home:
        alice, bob = home.people
        where = await chat(alice, bob, kind="secret")
        deleted, fading, delivered = [await say(alice, where, expires_in=5) for _ in range(3)]
        for posted in (deleted, fading, delivered):
            await pin(alice, posted)
        await home.sql("UPDATE messages SET expires_at = NULL WHERE id <> $1", fading["id"])
        assert (await alice.delete(f"/messages/{deleted['id']}")).status == 204
        assert (await ids(bob, where), await rows(home)) == ([delivered["id"], fading["id"]], 2)
        await home.sql("UPDATE messages SET expires_at = now() WHERE id = $1", fading["id"])
        assert await ids(bob, where) == [delivered["id"]], "before it is erased"
        await periodic(home.servers[0], "message_expiry")()
        assert await rows(home) == 1
        receipt = {"delivered_seq": delivered["seq"]}
        assert (await bob.post(f"/chats/{where['id']}/receipts", receipt)).status == 200
        assert (await pinned(bob, where), await rows(home)) == ([], 0)
        await pin(bob, delivered, 404)


@pytest.mark.gen_test
async def test_pins_go_with_their_chat(services: Services) -> None:
    async with town(services, people=1) as home:
        [alice] = home.people
        group = await chat(alice)
        await pin(alice, await say(alice, group))
        assert (await alice.delete(f"/chats/{group['id']}")).status == 204
        assert (await alice.get(f"/chats/{group['id']}/pins")).status == 404
        await home.sql("UPDATE chat_purges SET due_at = now()")
        await periodic(home.servers[0], "deleted_chats")()
        assert await rows(home) == 0


@pytest.mark.gen_test
async def test_a_pin_stays_when_its_account_is_deleted(services: Services) -> None:
    async with town(services, people=2) as home:
        alice, bob = home.people
        group = await chat(bob, alice)
        assert (await bob.put(f"/chats/{group['id']}/participants/{alice.user_id}", {"role": "admin"})).status == 200
        posted = await say(bob, group)
        await pin(alice, posted)
        gone = await ask(alice.url, "DELETE", "/users/me", {"password": alice.password}, alice.token)
        assert gone.status == 204, gone.text
        [one] = await pinned(bob, group)
        assert (one["message"]["id"], one["pinned_by"]) == (posted["id"], None)


@pytest.mark.gen_test
async def test_an_edit_shows_in_the_pins(services: Services) -> None:
    async with town(services, people=1) as home:
        [alice] = home.people
        group = await chat(alice)
        posted = await say(alice, group)
        await pin(alice, posted)
        assert (await alice.put(f"/messages/{posted['id']}", {"encrypted_payload": b64(b"other")})).status == 200
        [one] = await pinned(alice, group)
        assert one["message"] == (await alice.get(f"/messages/{posted['id']}")).json


# Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_a_chat_has_at_most_so_many_pins(services: Services) -> None:
    async with town(services, people=1) as home:
        [alice] = home.people
        group = await chat(alice)
        posted = [await say(alice, group) for _ in range(MAX_PINS + 2)]
        for one in posted[:MAX_PINS]:
            await pin(alice, one)
        refused = await pin(alice, posted[MAX_PINS], 409)
        assert (refused.code, refused.json["message"]) == (
            "conflict",
            "A chat can have at most 50 pinned messages. Unpin one first.",
        )
        await pin(alice, posted[0])  # is pinned
        assert len(await pinned(alice, group)) == MAX_PINS
        # A server of the version before erases messages without their pins: these don't count.
        await home.sql("UPDATE messages SET seq = -seq, deleted_at = now() WHERE id = $1", posted[1]["id"])
        await pin(alice, posted[MAX_PINS])
        await pin(alice, posted[MAX_PINS + 1], 409)
        assert len(await pinned(alice, group)) == MAX_PINS
        other = await chat(alice)
        await pin(alice, await say(alice, other))


@pytest.mark.gen_test(timeout=60)
async def test_pages_of_pins_end_by_bytes_and_by_number(services: Services) -> None:
    async with town(services, people=1) as home:
        [alice] = home.people
        group = await chat(alice)
        made = []
        for _ in range(18):
            answer = await alice.post(f"/chats/{group['id']}/messages", message("x" * 60_000))
            made.append(answer.json["id"])
            await pin(alice, answer.json)
        first = await alice.get(f"/chats/{group['id']}/pins")
        assert 10 < len(first.json) < 18
        assert len(first.content) < 1 << 20
        assert link(first) is not None
        whole = await pages(alice, f"/chats/{group['id']}/pins")
        assert [one["message"]["id"] for page in whole for one in page] == made[::-1]
        small = await pages(alice, f"/chats/{group['id']}/pins?limit=7")
        assert [len(page) for page in small] == [7, 7, 4]
        assert [one["message"]["id"] for page in small for one in page] == made[::-1]
        for query in ("limit=0", "limit=51", "before_seq=0", "before_seq=x"):
            assert (await alice.get(f"/chats/{group['id']}/pins?{query}")).status == 400


@pytest.mark.gen_test
async def test_pins_are_limited(services: Services) -> None:
    async with town(services, people=1, RATE_LIMITS="on", RATE_LIMIT_PINS="3/minute") as home:
        [alice] = home.people
        group = await chat(alice)
        posted = await say(alice, group)
        await pin(alice, posted)
        await unpin(alice, posted)
        assert (await alice.delete(f"/chats/{group['id']}/pins")).status == 204
        for answer in (
            await pin(alice, posted, 429),
            await unpin(alice, posted, 429),
            await alice.delete(f"/chats/{group['id']}/pins"),
        ):
            assert (answer.status, answer.code) == (429, "rate_limited")
        assert await pinned(alice, group) == []
