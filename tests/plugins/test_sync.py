"""``/sync``: all events since a cursor, in pages, while participants join, leave and delete; invalid cursors."""

from __future__ import annotations

import base64
import itertools
import random
import secrets
import time
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from plugins.messages.cursor import Cursor
from tests.client import Account, Answer, b64
from tests.plugins.chatting import SECONDS, Json, chat, history, read, say, seen, town
from tests.running import Services, periodic


async def cursor_of(who: Account) -> str:
    """The present one."""
    answer = await who.get("/sync")
    assert answer.status == 200
    page = answer.json
    assert (page.keys(), page["events"], page["has_more"]) == ({"events", "marks", "cursor", "has_more"}, [], False)
    return str(page["cursor"])


async def ask(who: Account, cursor: str, limit: int | None = None) -> Answer:
    return await who.get(f"/sync?cursor={cursor}" + (f"&limit={limit}" if limit else ""))


async def caught_up(who: Account, cursor: str, luck: random.Random | None = None) -> tuple[list[Json], str]:
    """All pages from a cursor on, each of some length; the events and the cursor at the end."""
    events: list[Json] = []
    for _ in range(500):
        limit = luck.choice((1, 2, 3, 5, 8, 200)) if luck else None
        answer = await ask(who, cursor, limit)
        assert answer.status == 200, answer.text
        page = answer.json
        assert len(page["events"]) <= (limit or 200)
        events += page["events"]
        cursor = page["cursor"]
        if not page["has_more"]:
            return events, cursor
    raise AssertionError("it never ends")


def what(events: list[Json], where: Json | None = None) -> list[tuple[Any, ...]]:
    """Kind and seq of events, those of one chat."""
    return [(e["type"], e["seq"]) for e in events if where is None or e["chat_id"] == where["id"]]


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_sockets_and_sync_deliver_the_same_events(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        cursor = await cursor_of(bob)
        [b] = await made.sockets(bob)
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}"
        posted = await say(alice, group)
        assert (await bob.put(f"/messages/{posted['id']}/reactions/%F0%9F%91%8D", {})).status == 204
        assert (await bob.delete(f"/messages/{posted['id']}/reactions/%F0%9F%91%8D")).status == 204
        await read(bob, group, 2)
        assert (await alice.post(f"{path}/participants", {"public_id": carol.public_id})).status == 201
        assert (await alice.put(f"{path}/participants/{carol.user_id}", {"role": "admin"})).status == 200
        assert (await carol.put(path, {"title": "Carol's"})).status == 200
        assert (await alice.put(f"/messages/{posted['id']}", {"encrypted_payload": b64(b"edited")})).status == 200
        assert (await alice.delete(f"{path}/participants/{carol.user_id}")).status == 204
        later = await say(bob, group)
        kinds = "chat_created message_new reaction_added reaction_removed participant_added participant_role"
        kinds += " chat_updated message_edited participant_removed message_new"
        frames = [await b.expect(kind, SECONDS, seq=seq) for seq, kind in enumerate(kinds.split(), 1)]
        events, cursor = await caught_up(bob, cursor)
        assert what(events) == [(kind, seq) for seq, kind in enumerate(kinds.split(), 1)]
        for event, frame in zip(events, frames, strict=True):
            if event["type"] in ("chat_created", "chat_updated"):  # the chat as it is now
                assert event["chat"]["title"] == "Carol's"
                event["chat"] = frame["chat"]
            if event["type"] == "message_new" and event["seq"] == 2:  # the message as it is now
                assert event["message"]["encrypted_payload"] == b64(b"edited")
                event["message"] = frame["message"]
            assert event == frame
        assert events[-1]["message"] == (await history(alice, group))[0] and later["id"] == events[-1]["message"]["id"]
        assert (await caught_up(bob, cursor))[0] == []
        await say(alice, group)
        assert what((await caught_up(bob, cursor))[0]) == [("message_new", 11)]


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_pages_of_any_length_tell_all_of_many_chats_once_and_in_order(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        luck = random.Random(servers)
        people = made.people
        cursors = [await cursor_of(who) for who in people]
        chats = [await chat(*luck.sample(people, 3)) for _ in range(8)]
        for n in range(60):
            await say(luck.choice(people), luck.choice(chats), f"number {n}")
        late = [await cursor_of(who) for who in people]
        for n in range(30):
            await say(luck.choice(people), luck.choice(chats), f"more {n}")
        for who, cursor, behind in zip(people, cursors, late, strict=True):
            lasts = {here["id"]: (await seen(who, here))["last_seq"] for here in chats}
            for _ in range(3):
                events, end = await caught_up(who, cursor, luck)
                for here in chats:
                    assert [seq for _, seq in what(events, here)] == list(range(1, lasts[here["id"]] + 1))
                order = [event["chat_id"] for event in events]
                assert len([a for a, b in itertools.pairwise(order) if a != b]) == 7, "a chat stays together"
                assert (await caught_up(who, end, luck))[0] == []
            assert len((await caught_up(who, behind, luck))[0]) == 30


@pytest.mark.gen_test
async def test_events_that_arrive_between_pages_are_not_missed(services: Services) -> None:
    async with town(services, 2, people=2) as made:
        alice, bob = made.people
        cursor = await cursor_of(bob)
        chats = [await chat(alice, bob) for _ in range(5)]
        found: dict[str, list[int]] = {here["id"]: [] for here in chats}
        pages = 0
        while True:
            page = (await ask(bob, cursor, 2)).json
            for event in page["events"]:
                found[event["chat_id"]].append(event["seq"])
            cursor = page["cursor"]
            if pages < 25:
                await say(alice, chats[pages % 5])
            elif not page["has_more"]:
                break
            pages += 1
            assert pages < 100
        for here in chats:
            assert found[here["id"]] == list(range(1, 7))


@pytest.mark.gen_test
async def test_a_user_who_was_removed_and_comes_back_syncs_what_they_may_see(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        path = f"/chats/{group['id']}/participants"
        cursor = await cursor_of(bob)
        await say(alice, group, "before")  # 2
        assert (await alice.delete(f"{path}/{bob.user_id}")).status == 204  # 3
        await say(alice, group, "while he is away")  # 4
        events, away = await caught_up(bob, cursor)
        assert what(events) == [("message_new", 2), ("participant_removed", 3)]
        assert events[-1]["user_id"] == bob.user_id
        await say(alice, group, "while he is away still")  # 5
        assert (await caught_up(bob, away))[0] == []
        assert (await alice.post(path, {"public_id": bob.public_id})).status == 201  # 6
        await say(alice, group, "after")  # 7
        assert what((await caught_up(bob, away))[0]) == [("participant_added", 6), ("message_new", 7)]
        assert (await bob.delete(f"{path}/{bob.user_id}")).status == 204  # 8
        assert (await alice.post(path, {"public_id": bob.public_id})).status == 201  # 9
        for luck in (None, *map(random.Random, range(5))):
            assert [seq for _, seq in what((await caught_up(bob, cursor, luck))[0])] == [2, 3, 6, 7, 8, 9]
        assert "while he is away" not in str((await caught_up(bob, cursor))[0])


@pytest.mark.gen_test
async def test_sync_returns_the_end_of_a_deleted_chat(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group, other = await chat(alice, bob, carol), await chat(alice, bob)
        cursors = {who.public_id: await cursor_of(who) for who in made.people}
        await say(alice, group)
        assert (await alice.delete(f"/chats/{group['id']}/participants/{carol.user_id}")).status == 204
        assert (await alice.delete(f"/chats/{group['id']}")).status == 204
        await say(alice, other)
        for who in (alice, bob):
            for luck in (None, random.Random(1)):
                events, _ = await caught_up(who, cursors[who.public_id], luck)
                assert what(events, group) == [("chat_deleted", 4)]
                assert what(events, other) == [("message_new", 2)]
                [end] = [event for event in events if event["type"] == "chat_deleted"]
                assert end["chat"]["id"] == group["id"]
        # A user removed before that still needs the removal: otherwise her phone would show the chat for ever.
        for luck in (None, random.Random(1)):
            assert what((await caught_up(carol, cursors[carol.public_id], luck))[0]) == [("participant_removed", 3)]


@pytest.mark.gen_test
async def test_messages_are_shown_as_they_are_now(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        cursor = await cursor_of(bob)
        group = await chat(alice, bob)
        edited, deleted, fades, both = [
            await say(alice, group, f"number {n}", **more) for n, more in enumerate(({}, {}, {"expires_in": 60}, {}))
        ]
        new = {"encrypted_payload": b64(b"as it is now")}
        for message in (edited, both):
            assert (await alice.put(f"/messages/{message['id']}", new)).status == 200  # 6 7
        for message in (deleted, both):
            assert (await alice.delete(f"/messages/{message['id']}")).status == 204  # 8 9
        await made.sql("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
        for _ in range(2):  # before it is erased and after
            events, _end = await caught_up(bob, cursor)
            by_seq = {event["seq"]: event for event in events}
            kinds = [by_seq[seq]["type"].removeprefix("message_") for seq in range(2, 10)]
            assert kinds == ["new", "deleted", "deleted", "deleted", "edited", "deleted", "deleted", "deleted"]
            for seq in (2, 6):
                assert by_seq[seq]["message"]["encrypted_payload"] == new["encrypted_payload"]
            for seq, message, reason in ((3, deleted, "deleted"), (4, fades, "expired"), (5, both, "deleted")):
                assert (by_seq[seq]["message_id"], by_seq[seq]["reason"]) == (message["id"], reason)
            assert [by_seq[seq]["message_id"] for seq in (7, 8, 9)] == [both["id"], deleted["id"], both["id"]]
            await periodic(made.servers[0], "message_expiry")()
        assert by_seq[10]["message_id"] == fades["id"]


# Cursors --------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_cursor_that_is_too_old_or_of_another_life_of_the_database(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        await chat(alice, bob)
        good = Cursor.read(await cursor_of(bob))
        days = 86_400
        for odd in (
            replace(good, made=int(time.time()) - 30 * days - 60),
            replace(good, made=0),
            replace(good, epoch=uuid4()),
            replace(good, since=good.since + 10**6),
            replace(good, since=2**62 - 1),
        ):
            answer = await ask(bob, odd.text())
            assert (answer.status, answer.code) == (410, "cursor_expired")
        for fine in (good, replace(good, made=int(time.time()) - 30 * days + 600), replace(good, made=2**32 - 1)):
            assert (await ask(bob, fine.text())).status == 200
        # A database that was restored elsewhere begins a new epoch; then every client starts from the beginning.
        await made.sql("UPDATE sync_epoch SET epoch = gen_random_uuid()")
        assert (await ask(bob, good.text())).status == 410
        assert (await ask(bob, await cursor_of(bob))).status == 200


@pytest.mark.gen_test
async def test_rubbish_is_no_cursor(services: Services) -> None:
    async with town(services, people=1) as made:
        [bob] = made.people
        good = await cursor_of(bob)
        raw = base64.urlsafe_b64decode(good + "=" * (-len(good) % 4))
        texts = ["", "x", "%C3%A9", "A" * 12_000, good + "!", good[:-2], good[1:], "%20" + good]
        texts += [base64.urlsafe_b64encode(bytes([version]) + raw[1:]).decode() for version in (0, 2, 255)]
        texts += [base64.urlsafe_b64encode(raw[:29] + bytes([flag])).decode() for flag in (1, 2, 255)]
        texts += [base64.urlsafe_b64encode(raw[:29] + bytes([flag]) + raw[30:]).decode() for flag in (1, 2, 255)]
        texts += [replace(Cursor.read(good), marks=2**62).text()]
        texts += [base64.urlsafe_b64encode(raw + secrets.token_bytes(n)).decode() for n in (1, 23, 25)]
        huge = replace(Cursor.read(good), since=2**62)
        texts += [huge.text(), replace(huge, since=1, seen={uuid4(): 2**63}).text()]
        texts += [
            replace(huge, since=1, target=2**62).text(),
            replace(huge, since=1, target=1, at=(uuid4(), 2**63)).text(),
        ]
        for text in texts:
            answer = await ask(bob, text)
            assert (answer.status, answer.fields()) == (400, ["cursor"]), text[:100]
        for limit in ("0", "1001", "x", "-1"):
            assert (await bob.get(f"/sync?cursor={good}&limit={limit}")).fields() == ["limit"]
        luck = random.Random(3)
        for _ in range(200):
            spoilt = bytearray(raw)
            for _ in range(luck.randint(1, 6)):
                spoilt[luck.randrange(len(spoilt))] = luck.randrange(256)
            text = base64.urlsafe_b64encode(bytes(spoilt)).decode().rstrip("=")
            assert (await ask(bob, text)).status in (200, 400, 410)


@pytest.mark.gen_test
async def test_another_s_cursor_tells_nothing_of_theirs(services: Services) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, stranger = made.people
        theirs, mine = await chat(alice, bob), await chat(carol, stranger)
        cursor = await cursor_of(alice)
        await say(alice, theirs)
        await say(carol, mine)
        events, _ = await caught_up(stranger, cursor)  # Alice's cursor may hold more or fewer events
        assert {event["chat_id"] for event in events} == {mine["id"]}
        forged = Cursor.read(cursor)
        for odd in (
            replace(forged, since=0),
            replace(forged, since=0, target=0, at=(UUID(theirs["id"]), 0), reached={UUID(theirs["id"]): 0}),
            replace(forged, since=0, seen={UUID(theirs["id"]): 0}),
        ):
            for luck in (None, random.Random(2)):
                events, _ = await caught_up(stranger, odd.text(), luck)
                assert {event["chat_id"] for event in events} <= {mine["id"]}
        anonymous = Account(url=alice.url)
        assert (await ask(anonymous, cursor)).status == 401


@pytest.mark.gen_test
async def test_the_largest_cursor_that_is_given_is_taken(services: Services) -> None:
    """In the middle of a walk the cursor has two lists of chats."""
    async with town(services, people=1) as made:
        [bob] = made.people
        present = Cursor.read(await cursor_of(bob))
        many = {uuid4(): 2**40 for _ in range(400)}
        largest = replace(present, seen=many, reached=many, target=present.since, at=(uuid4(), 5)).text()
        assert (await ask(bob, largest)).status == 200
