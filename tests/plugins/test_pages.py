"""Pages end by bytes: no list is longer than 1 MiB, whatever is in it, and following it shows everything once."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest

from config.pages import MAX_PAGE
from tests.client import Account, Answer, ask, b64
from tests.plugins.chatting import Json, Town, chat, crowd, link, say, seen, town
from tests.running import Services

PAYLOAD = secrets.token_bytes(64 * 1024)
METADATA = {"m": "\\" * 2000}
SETTINGS = {"x": '"' * 8000}
AVATAR = "https://example.org/" + '"' * 2028


async def fill(who: Account, where: Json, many: int) -> None:
    """Post messages as large as they get."""
    for begin in range(0, many, 8):
        await asyncio.gather(*(_long(who, where) for _ in range(begin, min(begin + 8, many))))


async def _long(who: Account, where: Json) -> None:
    posted = await say(who, where, "", encrypted_payload=b64(PAYLOAD), metadata=METADATA)
    assert posted["seq"]


async def magnify(made: Town) -> None:
    """Give everybody the longest profile that there may be."""
    await made.sql("UPDATE users SET display_name = repeat('\U0001f9d1', 64), avatar_url = $1", AVATAR)


def judged(answer: Answer, at_least: int = MAX_PAGE // 2) -> Any:
    """A full page, which has not left room for no reason."""
    assert answer.status == 200, answer.text
    assert at_least <= len(answer.content) <= MAX_PAGE
    return answer.json


async def walked(who: Account, path: str) -> list[list[Json]]:
    pages = []
    following: str | None = path
    while following is not None:
        answer = await who.get(following)
        following = link(answer)
        pages.append(judged(answer, MAX_PAGE // 2 if following else 2))
        assert pages[-1]
    return pages


async def synced(who: Account, cursor: str, limit: int = 1000) -> tuple[list[Json], list[Json], int]:
    """The events, the deletions, and how many pages they took."""
    events: list[Json] = []
    deleted: list[Json] = []
    for pages in range(1, 300):
        page = judged(await who.get(f"/sync?cursor={quote(cursor)}&limit={limit}"), 0)
        assert len(page["events"]) + len(page.get("deleted", ())) <= limit
        events, deleted, cursor = events + page["events"], deleted + page.get("deleted", []), page["cursor"]
        if not page["has_more"]:
            return events, deleted, pages
    raise AssertionError("it never ends")


def numbers(events: list[Json], where: Json) -> Iterator[int]:
    """The seqs that events of a chat have, each of those that a hidden one stands for, too."""
    for event in events:
        if event["chat_id"] == where["id"]:
            yield from range(event["seq"], event.get("to_seq", event["seq"]) + 1)


async def cursor_of(who: Account) -> str:
    return str((await who.get("/sync")).json["cursor"])


@pytest.mark.gen_test
async def test_histories_end_by_bytes(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        notes = await chat(alice, kind="cloud")
        await fill(alice, notes, 25)
        await say(alice, notes, "short")
        path = f"/chats/{notes['id']}/messages"
        newest = await walked(alice, f"{path}?limit=200")
        assert len(newest) == 3
        seqs = [message["seq"] for page in newest for message in page]
        assert seqs == list(range(27, 1, -1))
        oldest = await walked(alice, f"{path}?after_seq=0&limit=200")
        assert [message["seq"] for page in oldest for message in page] == seqs[::-1]
        between = await walked(alice, f"{path}?after_seq=3&before_seq=24&limit=200")
        assert [message["seq"] for page in between for message in page] == list(range(4, 24))
        # Short messages fill pages by their number, as ever.
        for n in range(5):
            await say(alice, notes, str(n))
        answer = await alice.get(f"{path}?limit=5")
        assert [message["seq"] for message in answer.json] == [32, 31, 30, 29, 28]
        assert link(answer) == f"{path}?limit=5&before_seq=28"


@pytest.mark.gen_test
async def test_a_page_of_reactions_ends_by_bytes(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        group = await chat(alice)
        people = await crowd(made, group["id"], 200)
        for n in range(60):
            await say(alice, group, str(n))
        await made.sql(
            """INSERT INTO message_reactions (message_id, user_id, emoji)
               SELECT m.id, u, repeat('\U0001f9d1', 16)
               FROM messages m, unnest($2::uuid[]) AS u WHERE m.chat_id = $1""",
            UUID(group["id"]),
            people,
        )
        pages = await walked(alice, f"/chats/{group['id']}/messages?limit=200")
        assert [message["seq"] for page in pages for message in page] == list(range(61, 1, -1))
        assert all(len(message["reactions"]) == 200 for page in pages for message in page)


@pytest.mark.gen_test
async def test_sync_ends_by_bytes(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        cursor = await cursor_of(alice)
        notes = await chat(alice, kind="cloud")
        group = await chat(alice, bob)
        await fill(alice, notes, 25)
        await fill(bob, group, 13)
        for n in range(5):
            await say(alice, notes, str(n))
        events, _, pages = await synced(alice, cursor)
        assert pages >= 4
        assert list(numbers(events, notes)) == list(range(1, 32))
        assert list(numbers(events, group)) == list(range(1, 15))
        # However few are wanted at once.
        few, _, _ = await synced(alice, cursor, 3)
        assert few == events


@pytest.mark.gen_test
async def test_a_message_or_a_chat_that_comes_often_counts_each_time(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        cursor, bobs = await cursor_of(alice), await cursor_of(bob)
        group = await chat(alice, bob)
        posted = await say(alice, group)
        for _ in range(20):
            body = {"encrypted_payload": b64(PAYLOAD), "metadata": METADATA}
            assert (await alice.put(f"/messages/{posted['id']}", body)).status == 200
        for _ in range(90):
            answer = await alice.put(f"/chats/{group['id']}", {"settings": SETTINGS, "title": '"' * 64})
            assert answer.status == 200
        events, _, pages = await synced(alice, cursor)
        assert pages >= 4
        assert list(numbers(events, group)) == list(range(1, 113))
        # To who has left all of it is shown as it was, or hidden.
        assert (await bob.delete(f"/chats/{group['id']}/participants/{bob.user_id}")).status == 204
        events, _, _ = await synced(bob, bobs)
        assert list(numbers(events, group)) == list(range(1, 114))


@pytest.mark.gen_test
async def test_deletions_are_part_of_pages(services: Services) -> None:
    """A user deletes direct chats: every deletion is in a page, however small the pages are."""
    async with town(services, people=1) as made:
        [alice] = made.people
        cursor = await cursor_of(alice)
        others = [await made.newcomer() for _ in range(5)]
        chats = [await chat(alice, other, kind="direct") for other in others]
        for each in chats:
            await say(alice, each)
            assert (await alice.delete(f"/chats/{each['id']}")).status == 204
        await say(others[0], chats[0], "again")
        group = await chat(alice, others[0])
        for limit in (1, 2, 3, 1000):
            events, deleted, pages = await synced(alice, cursor, limit)
            assert sorted(one["chat_id"] for one in deleted) == sorted(each["id"] for each in chats)
            assert [event["type"] for event in events if event["chat_id"] == chats[0]["id"]] == ["message_new"]
            assert list(numbers(events, group)) == [1]
            assert pages >= (7 if limit == 1 else 1)


@pytest.mark.gen_test
async def test_leaving_and_coming_back_often_is_walked_through(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        cursor = await cursor_of(bob)
        group = await chat(alice, bob)
        for n in range(6):
            await say(alice, group, str(n))
            assert (await bob.delete(f"/chats/{group['id']}/participants/{bob.user_id}")).status == 204
            answer = await alice.post(f"/chats/{group['id']}/participants", {"public_id": bob.public_id})
            assert answer.status == 201
        whole, _, _ = await synced(bob, cursor)
        few, _, _ = await synced(bob, cursor, 1)
        assert list(numbers(few, group)) == list(numbers(whole, group))


@pytest.mark.gen_test
async def test_the_list_of_chats_ends_by_bytes(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        chats = [await chat(alice, kind="cloud", settings=SETTINGS) for _ in range(30)]
        for each in chats:
            await fill(alice, each, 1)
        pages = await walked(alice, "/chats?limit=500")
        assert [each["id"] for page in pages for each in page] == [each["id"] for each in reversed(chats)]
        assert len(pages) == 4


@pytest.mark.gen_test
async def test_profiles_of_participants_count(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        chats = [await chat(alice) for _ in range(40)]
        people = await crowd(made, chats[0]["id"], 1023)
        await made.sql(
            """INSERT INTO chat_participants (chat_id, user_id)
               SELECT t.id, u FROM chat_threads t, unnest($1::uuid[]) AS u WHERE t.id <> $2""",
            people[:7],
            UUID(chats[0]["id"]),
        )
        path = f"/chats/{chats[0]['id']}"
        assert len((await seen(alice, chats[0]))["participants"]) == 1024  # people as they are fit
        await magnify(made)
        pages = await walked(alice, "/chats?limit=500")
        assert sorted(each["id"] for page in pages for each in page) == sorted(each["id"] for each in chats)
        assert all(len(each["participants"]) == 8 for page in pages for each in page)

        everybody = [alice.user_id, *map(str, people)]
        listed = await walked(alice, f"{path}/participants?limit=1024")
        assert sorted(person["user_id"] for page in listed for person in page) == sorted(everybody)
        assert len(listed) >= 4

        # A chat in full has as many as fit, and leads to the others.
        answer = await alice.get(path)
        shown, following = answer.json, link(answer)
        assert len(answer.content) <= MAX_PAGE + 128 * 1024
        assert following is not None
        assert 100 < len(shown["participants"]) < shown["participant_count"] == 1024
        rest = [person for page in await walked(alice, following) for person in page]
        assert sorted(person["user_id"] for person in [*shown["participants"], *rest]) == sorted(everybody)

        await made.sql(
            """INSERT INTO chat_sanctions (chat_id, user_id, removed_at, banned_at)
               SELECT $1, u, now(), now() FROM unnest($2::uuid[]) AS u""",
            UUID(chats[1]["id"]),
            people[7:],
        )
        banned = await walked(alice, f"/chats/{chats[1]['id']}/bans?limit=500")
        assert sum(len(page) for page in banned) == 1016


# The lists that do not end by bytes, each with the most entries that it may have: what they hold is filled up below, or
# bounded where it is written.
BOUNDED = {
    "/auth/sessions": 1000,
    "/calls": 100,
    "/chats/{id}/invites": 100,
    "/files": 100,
    "/push/tokens": 10,
    "/subscriptions/restore": 1000,
    "/subscriptions/tiers": 10,
    "/users/me/blocks": 100,
    "/users/me/verifications": 100,
    "/users/search": 50,
}
# At most 1,024 entries of some 150 bytes each, however large the rows are: nothing in them is a text of a user's.
SMALL = {"/chats/{id}/receipts", "/messages/{id}/reads"}
BY_BYTES = {"/chats", "/chats/{id}/bans", "/chats/{id}/messages", "/chats/{id}/participants", "/chats/{id}/pins"}


@pytest.mark.gen_test
async def test_every_other_list_is_short_by_its_shape(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        document = (await alice.get("/openapi.json")).json
        lists = {
            path.replace("{chat_id}", "{id}").replace("{message_id}", "{id}")
            for path, methods in document["paths"].items()
            if "array" in json.dumps(methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {}))
        }
        assert lists == {*BOUNDED, *BY_BYTES, *SMALL}

        group = await chat(alice)
        own = UUID(alice.user_id)
        await crowd(made, group["id"], 1024)
        await magnify(made)
        await made.sql("UPDATE users SET display_name = repeat('\U0001f9d1', 64), avatar_url = $1", AVATAR)
        others = "FROM users WHERE id <> $1 LIMIT 200"
        await made.sql(f"INSERT INTO user_blocks (blocker_id, blocked_id) SELECT $1, id {others}", own)
        await made.sql(
            f"""INSERT INTO user_verifications
                   (verifier_id, verified_user_id, method, verified_fingerprint, trust_level, notes)
               SELECT $1, id, 'qr_code', fingerprint, 'trusted', repeat('"', 500) {others}""",
            own,
        )
        await made.sql(
            f"""INSERT INTO call_sessions (id, caller_id, callee_id, call_type, status, ended_at, end_reason)
               SELECT gen_random_uuid(), $1, id, 'video', 'missed', now(), 'timeout' {others}""",
            own,
        )
        await made.sql(
            """INSERT INTO sessions (user_id, token_hash, expires_at, platform, client_version)
               SELECT $1, sha256(n::text::bytea), now() + interval '9 days', repeat('p', 16), repeat('"', 32)
               FROM generate_series(1, 1200) AS n""",
            own,
        )
        await made.sql(
            """INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, signature, signature_verified,
                   payment_method, payment_proof, activated_at, expires_at, status)
               SELECT encode(sha256(n::text::bytea), 'hex'), $1, 'premium', repeat('x', 64)::bytea, true, 'voucher',
                   encode(sha256(n::text::bytea), 'hex'), now(),
                   now() + interval '9 days', 'active' FROM generate_series(1, 1200) AS n""",
            alice.fingerprint,
        )
        await made.sql(
            """INSERT INTO files (owner_id, chat_id, size, sha256, media_type, storage_key, resumable)
               SELECT $1, $2, 1000000000, sha256('x'), repeat('m', 127), md5(n::text), false
               FROM generate_series(1, 200) AS n""",
            own,
            UUID(group["id"]),
        )
        await made.sql(
            """INSERT INTO chat_invites (chat_id, created_by, token_hash, max_uses, uses, expires_at, created_at)
               SELECT $1, $2, sha256(n::text::bytea), 100000, 99999, now(), now() FROM generate_series(1, 100) AS n""",
            UUID(group["id"]),
            own,
        )
        for path, most in BOUNDED.items():
            paged = path in ("/calls", "/files", "/users/me/blocks", "/users/me/verifications")
            query = "?limit=100" if paged else "?q=crowd" if path == "/users/search" else ""
            answer = await alice.get(path.replace("{id}", group["id"]) + query)
            assert answer.status == 200, path
            assert len(answer.json) == most or path in ("/push/tokens", "/subscriptions/tiers"), path
            assert len(answer.content) <= MAX_PAGE // 2, path
        # The sessions behind a page can be had, too.
        answer = await alice.get("/auth/sessions")
        following = link(answer)
        assert following is not None
        assert len((await alice.get(following)).json) == 201


@pytest.mark.gen_test
async def test_an_error_is_short_however_much_is_wrong(services: Services) -> None:
    async with town(services) as made:
        body = Account().body(one_time_prekeys=[1] * 60_000, kyber_prekeys=[1] * 15_000)
        answer = await ask(made.servers[0].url, "POST", "/auth/register", body)
        assert (answer.status, sorted(answer.fields())) == (400, ["kyber_prekeys", "one_time_prekeys"])
        assert len(answer.content) < 1024
