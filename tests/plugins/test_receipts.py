"""Receipts: marks that only grow, who may see them, and how they reach sockets, ``/sync`` and lists."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from plugins.messages import marks as coalescing
from plugins.messages import sync as pages_of_sync
from plugins.messages.cursor import Cursor
from tests.beside import beside
from tests.client import Account, Socket
from tests.plugins.chatting import SECONDS, Json, Town, chat, crowd, link, of, patiently, read, say, seen, town
from tests.running import Services
from tests.waiting import WAIT

Mark = tuple[str, int, int]
QUIET = coalescing.INTERVAL + 0.5  # seconds after which whatever waits has been sent


def plain(marks: Iterable[Json]) -> list[Mark]:
    return [(mark["user_id"], mark["delivered_seq"], mark["read_seq"]) for mark in marks]


async def listed(who: Account, where: Json | str) -> dict[str, tuple[int, int]]:
    """The receipts that a user sees in a chat."""
    answer = await who.get(f"/chats/{of(where)}/receipts")
    assert answer.status == 200, answer.text
    return {user_id: (delivered, read_) for user_id, delivered, read_ in plain(answer.json)}


async def synced(who: Account, cursor: str, limit: int = 200) -> tuple[list[Json], str]:
    """All marks of the pages since a cursor, and the cursor at the end."""
    found: list[Json] = []
    for _ in range(100):
        page = (await who.get(f"/sync?cursor={cursor}&limit={limit}")).json
        assert len(page["marks"]) <= limit
        found += page["marks"]
        cursor = page["cursor"]
        if not page["has_more"]:
            return found, cursor
    raise AssertionError("it never ends")


async def cursor_of(who: Account) -> str:
    return str((await who.get("/sync")).json["cursor"])


def frames(socket: Socket, where: Json) -> list[Json]:
    return [frame for frame in socket.frames if frame["type"] == "receipts" and frame["chat_id"] == where["id"]]


async def advance(who: Account, where: Json | str, **body: int) -> Json:
    answer = await who.post(f"/chats/{of(where)}/receipts", body)
    assert answer.status == 200, answer.text
    marks: Json = answer.json
    return marks


async def large(made: Town, here: Json) -> list[UUID]:
    """Make a chat one in which not everybody sees all marks."""
    return await crowd(made, here["id"], 64)


@pytest.mark.gen_test(timeout=60)
@beside("servers", [1, 2])
async def test_marks_only_grow_and_reach_everybody(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        sockets = await made.sockets(*made.people)
        here = await chat(*made.people)
        posted = [await say(alice, here, f"number {n}") for n in range(4)]  # 2 3 4 5
        for given, after in (
            ({"delivered_seq": 3}, (3, 0, 4)),
            ({"delivered_seq": 2}, (3, 0, 4)),
            ({"read_seq": 2}, (3, 2, 3)),
            ({"read_seq": 4}, (4, 4, 1)),
            ({"read_seq": 3, "delivered_seq": 1}, (4, 4, 1)),
            ({}, (4, 4, 1)),
        ):
            marks = await advance(bob, here, **given)
            assert (marks["delivered_seq"], marks["read_seq"], marks["unread_count"]) == after, given
        for socket in sockets:
            first = await socket.expect("receipts", SECONDS, chat_id=here["id"])
            assert first["marks"][0]["user_id"] == bob.user_id
            if plain(first["marks"]) != [(bob.user_id, 4, 4)]:
                assert plain((await socket.expect("receipts", SECONDS))["marks"]) == [(bob.user_id, 4, 4)]
        reads = await made.sql("SELECT message_id::text, user_id::text FROM message_reads")
        assert {(r["message_id"], r["user_id"]) for r in reads} == {(m["id"], bob.user_id) for m in posted[:3]}
        delivered = await made.sql("SELECT seq FROM messages WHERE delivered ORDER BY seq")
        assert [row["seq"] for row in delivered] == [2, 3, 4]
        # Not beyond the chat's end, however far is asked; and no event.
        assert (await advance(bob, here, read_seq=2**62))["read_seq"] == 5
        found = await seen(bob, here)
        assert (found["read_seq"], found["last_seq"]) == (5, 5)
        path = f"/chats/{here['id']}/receipts"
        for name, value in (("read_seq", -1), ("read_seq", 2**62 + 1), ("delivered_seq", "1"), ("read_seq", True)):
            assert (await bob.post(path, {name: value})).fields() == [name]
        # Of many at once the farthest stays.
        answers = await asyncio.gather(
            *(patiently(partial(carol.post, path, {"read_seq": seq})) for seq in (2, 3, 5, 4, 5, 1, 2, 4))
        )
        assert {answer.status for answer in answers} == {200}
        assert await listed(alice, here) == {alice.user_id: (0, 0), bob.user_id: (5, 5), carol.user_id: (5, 5)}
        stranger = await made.newcomer()
        for method in (stranger.get, partial(stranger.post, body={"read_seq": 1})):
            assert (await method(path)).status == 404


@pytest.mark.gen_test(timeout=60)
@beside("servers", [1, 2])
async def test_a_quiet_chat_gets_a_frame_at_once_and_a_busy_one_each_two_seconds(
    services: Services, servers: int
) -> None:
    async with town(services, servers, people=4) as made:
        alice, *others = made.people
        here = await chat(*made.people)
        [a] = await made.sockets(alice)
        for n in range(30):
            await say(alice, here, f"number {n}")
        began = time.monotonic()
        await advance(others[0], here, read_seq=2)
        await a.expect("receipts", chat_id=here["id"])
        arrived: list[float] = []

        async def watch() -> None:
            while True:
                await a.expect("receipts", SECONDS, chat_id=here["id"])
                arrived.append(time.monotonic())

        watching = asyncio.create_task(watch())
        for seq in range(3, 31):
            for who in others:
                await advance(who, here, read_seq=seq)
            await asyncio.sleep(max(0.0, began + seq * 0.15 - time.monotonic()))
        lasted = time.monotonic() - began
        await asyncio.sleep(QUIET)
        watching.cancel()
        assert 1 <= len(arrived) <= lasted / coalescing.INTERVAL + 1
        for one, next_ in zip([began, *arrived], arrived, strict=False):
            assert next_ - one >= coalescing.INTERVAL - 0.3
        assert set((await listed(alice, here)).values()) == {(0, 0), (30, 30)}


@pytest.mark.gen_test(timeout=60)
@beside("servers", [1, 2])
@beside("kind", ["direct", "group"])
async def test_no_mark_crosses_a_block(services: Services, servers: int, kind: str) -> None:
    async with town(services, servers, people=2) as made:
        alice, bob = made.people
        a, b = await made.sockets(alice, bob)
        here = await chat(alice, bob, kind=kind)
        posted = await say(alice, here)
        cursors = {who.user_id: await cursor_of(who) for who in made.people}
        assert (await alice.put(f"/users/{bob.public_id}/block", {})).status in (200, 204)
        await read(bob, here, 2)
        await read(alice, here, 2)
        await asyncio.sleep(QUIET)
        for who, socket in ((alice, a), (bob, b)):
            own = [(who.user_id, 2, 2)]
            assert [plain(frame["marks"]) for frame in frames(socket, here)] == [own]
            assert await listed(who, here) == {who.user_id: (2, 2)}
            assert plain((await synced(who, cursors[who.user_id]))[0]) == own
        assert (await alice.get(f"/messages/{posted['id']}/reads")).json == []
        assert (await alice.delete(f"/users/{bob.public_id}/block")).status in (200, 204)
        for who in made.people:
            assert await listed(who, here) == {alice.user_id: (2, 2), bob.user_id: (2, 2)}
        assert [r["user_id"] for r in (await alice.get(f"/messages/{posted['id']}/reads")).json] == [bob.user_id]


@pytest.mark.gen_test(timeout=60)
@beside("servers", [1, 2])
async def test_in_a_large_group_only_the_sender_and_the_reader_see_a_receipt(services: Services, servers: int) -> None:
    async with town(services, servers, people=4) as made:
        alice, bob, carol, dave = made.people
        here = await chat(*made.people)
        await large(made, here)
        sockets = {who.user_id: await made.socket(who) for who in made.people}
        await say(alice, here, "of Alice")  # 2
        await say(bob, here, "of Bob")  # 3
        cursors = {who.user_id: await cursor_of(who) for who in made.people}
        await advance(carol, here, delivered_seq=3)
        await read(carol, here, 2)
        await read(dave, here, 1)
        await asyncio.sleep(QUIET)
        expected: list[set[Mark]] = [{(carol.user_id, 3, 2)}, set(), {(carol.user_id, 3, 2)}, {(dave.user_id, 1, 1)}]
        for who, marks in zip(made.people, expected, strict=True):
            last = {mark[0]: mark for frame in frames(sockets[who.user_id], here) for mark in plain(frame["marks"])}
            assert set(last.values()) == marks
            assert set(plain((await synced(who, cursors[who.user_id]))[0])) == marks
            shown = {**{mark[0]: mark[1:] for mark in marks}, who.user_id: (await listed(who, here))[who.user_id]}
            assert await listed(who, here) == shown
        # What she reads next is Bob's alone: Alice gets no frame for it.
        for socket in sockets.values():
            socket.frames.clear()
        await read(carol, here, 3)
        await asyncio.sleep(QUIET)
        heard = {who for who, socket in sockets.items() if frames(socket, here)}
        assert heard == {bob.user_id, carol.user_id}
        assert plain(frames(sockets[bob.user_id], here)[0]["marks"]) == [(carol.user_id, 3, 3)]


@pytest.mark.gen_test(timeout=60)
async def test_receipts_in_a_channel_go_to_the_readers_own_devices(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, _ = made.people
        here = await chat(*made.people, kind="channel")
        sockets = await made.sockets(*made.people)
        posted = [await say(alice, here, f"news {n}") for n in range(3)]
        cursors = {who.user_id: await cursor_of(who) for who in made.people}
        assert (await seen(bob, here))["unread_count"] == 3
        assert (await read(bob, here, 3))["unread_count"] == 1
        assert (await seen(bob, here))["read_seq"] == 3
        await asyncio.sleep(QUIET)
        for who, socket in zip(made.people, sockets, strict=True):
            own = [(bob.user_id, 3, 3)] if who is bob else []
            assert [mark for frame in frames(socket, here) for mark in plain(frame["marks"])] == own
            assert plain((await synced(who, cursors[who.user_id]))[0]) == own
            assert set(await listed(who, here)) == {who.user_id}
        assert await made.sql("SELECT * FROM message_reads") == []
        assert (await alice.get(f"/messages/{posted[0]['id']}/reads")).json == []
        assert (await seen(alice, here))["last_seq"] == 4


@pytest.mark.gen_test(timeout=60)
async def test_a_removed_user_receives_no_queued_receipt(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        here = await chat(*made.people)
        [_, b, _] = await made.sockets(*made.people)
        await say(alice, here)
        cursor = await cursor_of(bob)
        await read(carol, here, 1)
        await b.expect("receipts", SECONDS)
        await read(carol, here, 2)  # waits for two seconds
        assert (await alice.delete(f"/chats/{here['id']}/participants/{bob.user_id}")).status == 204
        await asyncio.sleep(QUIET)
        assert b.frames[-1]["type"] == "participant_removed"
        assert frames(b, here) == []
        assert (await synced(bob, cursor))[0] == []
        assert (await bob.get(f"/chats/{here['id']}/receipts")).status == 404
        assert set(await listed(alice, here)) == {alice.user_id, carol.user_id}
        assert [row["user_id"] for row in await made.sql("SELECT user_id::text FROM chat_marks")] == [carol.user_id]


@pytest.mark.gen_test(timeout=60)
async def test_a_restricted_participant_counts_as_others_do(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        here = await chat(alice, bob)
        [a] = await made.sockets(alice)
        await say(alice, here)
        await alice.put(f"/chats/{here['id']}/participants/{bob.user_id}", {"role": "restricted"})
        await read(bob, here, 2)
        assert plain((await a.expect("receipts", SECONDS))["marks"]) == [(bob.user_id, 2, 2)]


# /sync ----------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_sync_brings_the_newest_marks_in_pages_and_not_again(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        chats = [await chat(alice, bob, carol) for _ in range(4)]
        for here in chats:
            for _ in range(2):
                await say(alice, here)
        cursor = await cursor_of(alice)
        for here in chats:
            for who in (bob, carol):
                await read(who, here, 2)
                await read(who, here, 3)
        expected = {(here["id"], who.user_id, 3, 3) for here in chats for who in (bob, carol)}
        for limit in (1, 3, 7, 200):
            found, end = await synced(alice, cursor, limit)
            marks = [(mark["chat_id"], *plain([mark])[0]) for mark in found]
            assert set(marks) == expected and len(marks) == len(expected), limit
            assert (await synced(alice, end))[0] == []
        await read(bob, chats[0], 3)  # moves nothing
        assert (await synced(alice, end))[0] == []
        await say(alice, chats[1])
        assert (await synced(alice, end))[0] == []
        await read(bob, chats[1], 4)
        assert plain((await synced(alice, end))[0]) == [(bob.user_id, 4, 4)]


@pytest.mark.gen_test(timeout=60)
async def test_sync_skips_no_mark_that_commits_late(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        here = await chat(*made.people)
        await say(alice, here)
        cursor = await cursor_of(alice)
        late = await asyncpg.connect(made.shared.dsn)
        try:
            transaction = late.transaction()
            await transaction.start()
            # As a receipt does it, by a server that is slow to commit.
            await late.execute(
                """WITH moved AS (UPDATE chat_participants SET delivered_seq = 2, read_seq = 2
                       WHERE chat_id::text = $1 AND user_id::text = $2 RETURNING chat_id, user_id)
                   INSERT INTO chat_marks SELECT chat_id, user_id,
                       (SELECT base + pg_current_xact_id()::text::bigint FROM sync_epoch) FROM moved""",
                here["id"],
                bob.user_id,
            )
            await read(carol, here, 2)
            for _ in range(3):  # those above the horizon may come again, and the pages end all the same
                found, cursor = await synced(alice, cursor, 1)
                assert plain(found) == [(carol.user_id, 2, 2)]
            await transaction.commit()
        finally:
            await late.close()
        found, cursor = await synced(alice, cursor, 1)
        assert set(plain(found)) == {(bob.user_id, 2, 2), (carol.user_id, 2, 2)}
        assert (await synced(alice, cursor))[0] == []


@pytest.mark.gen_test(timeout=60)
async def test_marks_above_the_horizon_come_all_at_once(services: Services) -> None:
    async with town(services, people=5) as made:
        alice, *others = made.people
        here = await chat(*made.people)
        await say(alice, here)
        cursor = await cursor_of(alice)
        other = await asyncpg.connect(made.shared.dsn)
        try:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("SELECT pg_current_xact_id()")  # while it runs, nothing behind it is complete
            for one in others:
                await read(one, here, 2)
            page = (await alice.get(f"/sync?cursor={cursor}&limit=1")).json
            assert not page["has_more"]
            assert {mark["user_id"] for mark in page["marks"]} == {one.user_id for one in others}
            await transaction.rollback()
        finally:
            await other.close()


@pytest.mark.gen_test(timeout=60)
async def test_marks_that_are_hidden_from_the_viewer_do_not_hold_up_the_pages(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_of_sync, "MAX_MARKS", 5)
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        here, small = await chat(*made.people), await chat(*made.people)
        people = await large(made, here)
        await say(carol, here)
        await say(carol, small)
        cursor = await cursor_of(alice)
        for user_id in people[:30]:
            await made.sql(
                """INSERT INTO chat_marks SELECT $1, $2,
                       (SELECT base + pg_current_xact_id()::text::bigint FROM sync_epoch)""",
                UUID(here["id"]),
                user_id,
            )
        await read(bob, small, 2)
        found, cursor = await synced(alice, cursor)
        assert plain(found) == [(bob.user_id, 2, 2)]
        assert (await synced(alice, cursor))[0] == []


@pytest.mark.gen_test(timeout=60)
async def test_a_cursor_of_an_older_server_brings_marks_since_its_own_position(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        here = await chat(alice, bob)
        await say(alice, here)
        given = Cursor.read(await cursor_of(alice))
        await read(bob, here, 2)
        # Without the entry that such a server knows nothing of.
        raw = given.text()
        older = Cursor(given.epoch, given.made, given.since, given.seen)
        text = older.text()
        assert Cursor.read(raw).marks == given.marks and Cursor.read(text).marks == 0
        pad = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        entry = (1).to_bytes(16) + bytes(8)
        without = base64.urlsafe_b64encode(pad.replace(entry, b"", 1)).decode().rstrip("=")
        assert Cursor.read(without).marks == given.since
        assert plain((await synced(alice, without))[0]) == [(bob.user_id, 2, 2)]


@pytest.mark.gen_test(timeout=60)
async def test_receipts_that_older_servers_stored_as_events_keep_their_places(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        here = await chat(*made.people)
        cursor = await cursor_of(alice)
        await say(alice, here)
        for who in (bob, carol):
            await made.sql(
                """WITH moved AS (UPDATE chat_threads SET last_seq = last_seq + 1,
                       last_position = (SELECT base + pg_current_xact_id()::text::bigint FROM sync_epoch)
                       WHERE id::text = $1 RETURNING id, last_seq, last_position)
                   INSERT INTO chat_events (chat_id, seq, position, type, user_id, data)
                   SELECT id, last_seq, last_position, 'receipt', $2::text::uuid,
                          '{"delivered_seq": 2, "read_seq": 2}' FROM moved""",
                here["id"],
                who.user_id,
            )
        await say(alice, here)

        async def kinds() -> list[tuple[str, int, str | None]]:
            events = (await alice.get(f"/sync?cursor={cursor}")).json["events"]
            return [(event["type"], event["seq"], event.get("user_id")) for event in events]

        old = [("receipt", 3, bob.user_id), ("receipt", 4, carol.user_id)]
        assert await kinds() == [("message_new", 2, None), *old, ("message_new", 5, None)]
        await carol.put(f"/users/{alice.public_id}/block", {})
        hidden = ("hidden", 4, None)
        assert await kinds() == [("message_new", 2, None), old[0], hidden, ("message_new", 5, None)]


# Reads of a message ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_the_sender_sees_the_readers_of_a_message(services: Services) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, dave = made.people
        here = await chat(*made.people)
        posted = await say(alice, here)
        path = f"/messages/{posted['id']}/reads"
        assert (await alice.get(path)).json == []
        for who in (bob, carol, dave, alice):
            await read(who, here, 2)
        found: list[Any] = []
        following: str | None = f"{path}?limit=2"
        while following:
            answer = await alice.get(following)
            assert answer.status == 200 and len(answer.json) <= 2
            found += answer.json
            following = link(answer)
        assert [entry["user_id"] for entry in found] == [dave.user_id, carol.user_id, bob.user_id]
        assert all(entry.keys() == {"user_id", "read_at"} for entry in found)
        for who in (bob, carol, await made.newcomer()):
            assert (await who.get(path)).status == 404
        assert (await alice.get(f"/messages/{here['id']}/reads")).status == 404
        # Those who leave are not listed; and with the message the list goes.
        assert (await dave.delete(f"/chats/{here['id']}/participants/{dave.user_id}")).status == 204
        assert [entry["user_id"] for entry in (await alice.get(path)).json] == [carol.user_id, bob.user_id]
        assert (await alice.delete(f"/messages/{posted['id']}")).status == 204
        assert (await alice.get(path)).status == 404
        assert await made.sql("SELECT * FROM message_reads") == []


# Beside others --------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_a_receipt_does_not_wait_for_the_chat(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        here = await chat(alice, bob)
        await say(alice, here)
        other = await asyncpg.connect(made.shared.dsn)
        try:
            async with other.transaction():
                await other.execute("SELECT 1 FROM chat_threads FOR NO KEY UPDATE")
                async with asyncio.timeout(WAIT):
                    assert (await read(bob, here, 2))["unread_count"] == 0
        finally:
            await other.close()


@pytest.mark.gen_test(timeout=120)
async def test_counts_stay_exact_while_one_posts_reads_and_deletes_at_once(services: Services) -> None:
    async with town(services, 2, people=3) as made:
        here = await chat(*made.people)
        path = f"/chats/{here['id']}"
        posted: list[tuple[Account, str]] = []

        async def post(who: Account) -> None:
            for n in range(15):
                said = await say(who, here, f"number {n}")
                posted.append((who, said["id"]))

        async def receive(who: Account) -> None:
            for n in range(25):
                answer = await patiently(partial(who.post, f"{path}/receipts", {"read_seq": 2 * n}))
                assert answer.status == 200

        async def erase() -> None:
            for _ in range(15):
                await asyncio.sleep(0.02)
                if posted:
                    who, message_id = posted.pop(len(posted) // 2)
                    answer = await patiently(partial(who.delete, f"/messages/{message_id}"))
                    assert answer.status == 204

        await asyncio.gather(
            *(post(who) for who in made.people), *(receive(who) for who in made.people for _ in range(2)), erase()
        )
        for who in made.people:
            found = await seen(who, here)
            [row] = await made.sql(
                "SELECT count(*) FROM messages WHERE seq > $1 AND sender_id::text <> $2", found["read_seq"], who.user_id
            )
            assert found["unread_count"] == row["count"]
        orphans = "SELECT 1 FROM message_reads r JOIN messages m ON m.id = r.message_id WHERE m.seq < 0"
        assert await made.sql(orphans) == []
