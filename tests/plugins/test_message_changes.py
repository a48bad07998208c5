"""What happens to messages: edits, deletions, reactions, and how they disappear."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest

from plugins.messages.messages import Messages
from tests.client import Account, Socket, b64
from tests.plugins.chatting import (
    SECONDS,
    Json,
    Town,
    chat,
    everyone_hears,
    history,
    message,
    patiently,
    read,
    say,
    seen,
    town,
)
from tests.running import Services, periodic

NEW = b64(b"something else")


@contextlib.asynccontextmanager
async def group(
    services: Services, servers: int, kind: str = "group"
) -> AsyncIterator[tuple[Town, Json, list[Socket]]]:
    """Three people in a chat of Alice's, each with a socket, which has heard that it was made."""
    async with town(services, servers, people=3) as made:
        sockets = await made.sockets(*made.people)
        here = await chat(*made.people, kind=kind)
        await everyone_hears(sockets, "chat_created")
        yield made, here, sockets


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_editing(services: Services, servers: int) -> None:
    async with group(services, servers) as (made, here, sockets):
        alice, bob, carol = made.people
        stranger = await made.newcomer()
        posted = await say(bob, here, metadata={"n": 1})
        await everyone_hears(sockets, "message_new")
        path = f"/messages/{posted['id']}"
        edited = await bob.put(path, {"encrypted_payload": NEW})
        assert edited.status == 200
        after = edited.json
        assert (after["encrypted_payload"], after["message_type"], after["metadata"]) == (NEW, "text", {"n": 1})
        assert (after["id"], after["seq"], after["created_at"]) == (posted["id"], 2, posted["created_at"])
        assert datetime.fromisoformat(after["edited_at"]) >= datetime.fromisoformat(after["created_at"])
        for event in await everyone_hears(sockets, "message_edited", chat_id=here["id"]):
            assert (event["seq"], event["message"]) == (3, after)
        assert await history(carol, here) == [after]
        assert (await seen(carol, here))["unread_count"] == 1
        again = {"encrypted_payload": NEW, "message_type": "image", "metadata": {"m": 2}}
        assert (await bob.put(path, again)).json["message_type"] == "image"
        await everyone_hears(sockets, "message_edited", seq=4)
        # No other user may edit it, not even the owner.
        for who, status in ((alice, 403), (carol, 403), (stranger, 404), (Account(url=alice.url), 401)):
            assert (await who.put(path, {"encrypted_payload": NEW})).status == status
        assert (await bob.put(f"/messages/{uuid4()}", {"encrypted_payload": NEW})).status == 404
        assert (await bob.put(path, {})).fields() == ["encrypted_payload"]
        assert (await bob.put(path, {"encrypted_payload": b64(bytes(65537))})).fields() == ["encrypted_payload"]
        await alice.put(f"/chats/{here['id']}/participants/{bob.user_id}", {"role": "restricted"})
        assert (await bob.put(path, {"encrypted_payload": NEW})).status == 403
        assert (await alice.delete(path)).status == 204
        assert (await bob.put(path, {"encrypted_payload": NEW})).status == 404


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_deleting_erases_it_for_everybody(services: Services, servers: int) -> None:
    async with group(services, servers) as (made, here, sockets):
        alice, bob, carol = made.people
        stranger = await made.newcomer()
        own, by_carol = await say(bob, here, "a secret of Bob's"), await say(carol, here)
        await read(carol, here, 3)
        assert (await carol.put(f"/messages/{own['id']}/reactions/%F0%9F%91%8D", {})).status == 204
        for who, status in ((carol, 403), (stranger, 404), (Account(url=alice.url), 401), (bob, 204), (bob, 404)):
            assert (await who.delete(f"/messages/{own['id']}")).status == status
        assert (await alice.delete(f"/messages/{by_carol['id']}")).status == 204, "the owner of a group may"
        for socket in sockets:
            for gone, seq in ((own, 5), (by_carol, 6)):
                event = await socket.expect("message_deleted", SECONDS, message_id=gone["id"])
                assert (event["seq"], event["reason"]) == (seq, "deleted")
        assert await history(bob, here) == []
        rows = await made.sql("SELECT encrypted_payload, metadata, seq FROM messages")
        assert [(bytes(row["encrypted_payload"]), row["metadata"]) for row in rows] == [
            (b"", '{"reason": "deleted"}')
        ] * 2
        for table in ("message_reads", "message_reactions"):
            assert await made.sql(f"SELECT * FROM {table}") == []


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["direct", "secret", "channel", "cloud"])
async def test_the_kind_of_chat_decides_who_may_delete(services: Services, kind: str) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        here = await chat(alice, bob, kind=kind)
        by_alice = await say(alice, here)
        assert (await bob.delete(f"/messages/{by_alice['id']}")).status == 403
        if kind != "channel":
            by_bob = await say(bob, here)
            # A chat of two has no administrators.
            assert (await alice.delete(f"/messages/{by_bob['id']}")).status == (204 if kind == "cloud" else 403)
        assert (await alice.delete(f"/messages/{by_alice['id']}")).status == 204


@pytest.mark.gen_test
async def test_twenty_who_delete_and_edit_at_once(services: Services) -> None:
    async with group(services, 2) as (made, here, [a, b, _]):
        alice, bob, _carol = made.people
        posted = await say(bob, here)
        answers = await asyncio.gather(
            *(patiently(partial(who.delete, f"/messages/{posted['id']}")) for who in (alice, bob) for _ in range(5)),
            *(patiently(partial(bob.put, f"/messages/{posted['id']}", {"encrypted_payload": NEW})) for _ in range(10)),
        )
        assert [answer.status for answer in answers].count(204) == 1
        edits = [answer.status for answer in answers].count(200)
        last = (await seen(alice, here))["last_seq"]
        assert last == 3 + edits
        for socket in (a, b):
            await socket.expect("message_deleted", SECONDS, seq=last)
            assert sum(frame["type"] == "message_deleted" for frame in socket.frames) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_reactions(services: Services, servers: int) -> None:
    async with group(services, servers) as (made, here, sockets):
        _, bob, carol = made.people
        stranger = await made.newcomer()
        posted = await say(bob, here)
        await everyone_hears(sockets, "message_new")
        path = f"/messages/{posted['id']}/reactions/"
        family = "👨‍👩‍👧‍👦"
        for emoji in ("👍", family, "❤️"):
            for _ in range(2):
                assert (await carol.put(path + quote(emoji), {})).status == 204
        for seq, emoji in ((3, "👍"), (4, family), (5, "❤️")):
            for event in await everyone_hears(sockets, "reaction_added", seq=seq):
                assert (event["message_id"], event["user_id"], event["emoji"]) == (posted["id"], carol.user_id, emoji)
        [shown] = await history(bob, here)
        assert shown["reactions"] == [{"user_id": carol.user_id, "emoji": e} for e in ("👍", family, "❤️")]
        for _ in range(2):
            assert (await carol.delete(path + quote(family))).status == 204
        assert (await bob.delete(path + quote("👍"))).status == 204, "carol's stays"
        for event in await everyone_hears(sockets, "reaction_removed", seq=6):
            assert (event["message_id"], event["user_id"], event["emoji"]) == (posted["id"], carol.user_id, family)
        assert [r["emoji"] for r in (await history(bob, here))[0]["reactions"]] == ["👍", "❤️"]
        for socket in sockets:
            await socket.silent(0.1)  # a repetition is no event
        for odd in (
            "%FF",
            "%00",
            "%0A",
            "a%20b",
            "x",
            "x" * 33,
            "x" * 300,
            "%ED%A0%80",
            quote("👍" * 2),
            quote("👍" * 50),
        ):
            assert (await carol.put(path + odd, {})).status == 400, odd
        for text in ("buy.at%2Fhttp:%2F%2Fevil.example", quote("\u202eecila"), quote("\u200b"), "1"):
            assert (await carol.put(path + text, {})).status == 400, text
        for who, status in ((stranger, 404), (Account(url=bob.url), 401)):
            assert (await who.put(path + quote("👍"), {})).status == status
            assert (await who.delete(path + quote("👍"))).status == status
        assert (await carol.put(f"/messages/{uuid4()}/reactions/{quote('👍')}", {})).status == 404


@pytest.mark.gen_test
async def test_a_selector_makes_no_other_reaction(services: Services) -> None:
    async with group(services, 1) as (made, here, sockets):
        bob = made.people[1]
        posted = await say(bob, here)
        await everyone_hears(sockets, "message_new")
        path = f"/messages/{posted['id']}/reactions/"

        async def shown() -> list[str]:
            [message] = await history(bob, here)
            return [reaction["emoji"] for reaction in message["reactions"]]

        for sent, stored in (("👍", "👍"), ("👍️", "👍"), ("❤", "❤️"), ("❤️", "❤️"), ("\U0001facd", "\U0001facd")):
            assert (await bob.put(path + quote(sent), {})).status == 204
            assert (await shown())[-1] == stored
        assert await shown() == ["👍", "❤️", "\U0001facd"]
        for sent in ("👍️", "❤", "\U0001facd"):
            assert (await bob.delete(path + quote(sent))).status == 204
        assert await shown() == []
        for _ in range(3):
            await everyone_hears(sockets, "reaction_removed")
        # What older servers stored: each form by itself, and text that is no emoji.
        await made.sql(
            "INSERT INTO message_reactions (message_id, user_id, emoji) SELECT $1, $2, unnest($3::text[])",
            UUID(posted["id"]),
            UUID(bob.user_id),
            ["👍", "👍️", "❤", "+"],
        )
        assert (await bob.put(path + quote("❤️"), {})).status == 204
        assert len(await shown()) == 4, "it was there"
        for sent, gone in (("👍", 2), ("❤️", 1), ("+", 1)):
            assert (await bob.delete(path + quote(sent))).status == 204
            for _ in range(gone):
                await everyone_hears(sockets, "reaction_removed")
        assert await shown() == []


@pytest.mark.gen_test
async def test_twenty_kinds_of_reactions_and_no_more(services: Services) -> None:
    async with group(services, 1) as (made, here, _):
        alice, bob, _carol = made.people
        posted = await say(alice, here)
        path = f"/messages/{posted['id']}/reactions/"
        emojis = [quote(chr(0x1F600 + n)) for n in range(30)]
        answers = await asyncio.gather(*(patiently(partial(bob.put, path + emoji, {})) for emoji in emojis))
        assert sorted(answer.status for answer in answers) == [204] * 20 + [409] * 10
        had = [emoji for emoji, answer in zip(emojis, answers, strict=True) if answer.status == 204]
        assert (await bob.put(path + had[0], {})).status == 204
        assert (await bob.delete(path + had[0])).status == 204
        assert (await bob.put(path + quote("👍"), {})).status == 204
        assert (await alice.put(path + had[0], {})).status == 204, "each has twenty"
        assert len((await history(bob, here))[0]["reactions"]) == 21


# Disappearing ---------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_message_with_a_time_goes_when_it_has_come(services: Services, servers: int) -> None:
    async with group(services, servers) as (made, here, sockets):
        alice, bob, _ = made.people
        fading = await say(alice, here, "for five seconds", expires_in=5)
        stays = await say(alice, here, "for a year", expires_in=365 * 86_400)
        [shown] = await everyone_hears(sockets[1:2], "message_new", seq=2)
        span = datetime.fromisoformat(shown["message"]["expires_at"]) - datetime.fromisoformat(fading["created_at"])
        assert span.total_seconds() == 5
        assert len(await history(bob, here)) == 2
        for socket in sockets:
            gone = await socket.expect("message_deleted", 20 + SECONDS, message_id=fading["id"])
            assert (gone["reason"], gone["seq"]) == ("expired", 4)
            late = datetime.fromisoformat(gone["created_at"]) - datetime.fromisoformat(shown["message"]["expires_at"])
            assert 0 <= late.total_seconds() < 15
        assert [m["id"] for m in await history(bob, here)] == [stays["id"]]
        assert len(await made.sql("SELECT 1 FROM messages WHERE octet_length(encrypted_payload) > 0")) == 1


@pytest.mark.gen_test
async def test_expired_messages_are_hidden_before_they_are_erased(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase, waits = Messages.expire, asyncio.Event()

    async def later(self: Messages) -> None:
        if waits.is_set():
            await erase(self)

    monkeypatch.setattr(Messages, "expire", later)
    async with group(services, 1) as (made, here, [a, b, _]):
        alice, bob, _carol = made.people
        cursor = (await bob.get("/sync")).json["cursor"]
        stays = await say(alice, here, "it stays")
        fading = await say(alice, here, "it fades, and was edited", expires_in=60)
        assert (await alice.put(f"/messages/{fading['id']}", {"encrypted_payload": NEW})).status == 200
        await made.sql("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
        assert [m["id"] for m in await history(bob, here)] == [stays["id"]]
        assert (await seen(bob, here))["last_message"]["id"] == stays["id"]
        assert (await bob.put(f"/messages/{fading['id']}/reactions/%F0%9F%91%8D", {})).status == 404
        assert (await alice.put(f"/messages/{fading['id']}", {"encrypted_payload": NEW})).status == 404
        reply = await bob.post(f"/chats/{here['id']}/messages", message(reply_to=fading["id"]))
        assert reply.fields() == ["reply_to"]
        page = await bob.get(f"/sync?cursor={cursor}")
        assert "message_edited" not in page.text and NEW not in page.text
        events = [(e["type"], e["seq"], e.get("message_id")) for e in page.json["events"]]
        assert events[-2:] == [("message_deleted", 3, fading["id"]), ("message_deleted", 4, fading["id"])]
        waits.set()
        await periodic(made.servers[0], "message_expiry")()
        for socket in (a, b):
            assert (await socket.expect("message_deleted", SECONDS))["reason"] == "expired"


@pytest.mark.gen_test
async def test_two_servers_erase_what_expires_once(services: Services) -> None:
    async with group(services, 2) as (made, here, [a, _, _]):
        alice = made.people[0]
        posted = [await say(alice, here, f"number {n}", expires_in=3600) for n in range(20)]
        await made.sql("UPDATE messages SET expires_at = now()")
        await asyncio.gather(*(periodic(server, "message_expiry")() for server in made.servers * 3))
        gone = [await a.expect("message_deleted", SECONDS) for _ in posted]
        assert {event["message_id"] for event in gone} == {m["id"] for m in posted}
        assert sorted(event["seq"] for event in gone) == list(range(22, 42))
        assert (await seen(alice, here))["last_seq"] == 41
        assert (await seen(made.people[1], here))["unread_count"] == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_in_a_secret_chat_a_message_is_erased_once_it_was_delivered(services: Services, servers: int) -> None:
    async with town(services, servers, people=2) as made:
        alice, bob = made.people
        a, b = await made.sockets(alice, bob)
        secret = await chat(alice, bob, kind="secret")
        first, second = await say(alice, secret, "a first secret"), await say(alice, secret, "a second secret")
        own = await say(bob, secret, "a secret of Bob's")
        path = f"/chats/{secret['id']}/receipts"
        # A receipt does not mark the sender's own messages as delivered.
        assert (await alice.post(path, {"delivered_seq": 3})).status == 200
        assert [m["id"] for m in await history(bob, secret)] == [own["id"], second["id"], first["id"]]
        assert (await bob.post(path, {"delivered_seq": first["seq"]})).json["unread_count"] == 1
        for socket in (a, b):
            gone = await socket.expect("message_deleted", SECONDS)
            assert (gone["message_id"], gone["reason"]) == (first["id"], "delivered")
        assert [m["id"] for m in await history(alice, secret)] == [own["id"], second["id"]]
        assert (await bob.post(path, {"read_seq": second["seq"]})).json["unread_count"] == 0
        assert (await alice.post(path, {"read_seq": own["seq"]})).json["unread_count"] == 0
        assert await history(alice, secret) == [] == await history(bob, secret)
        assert [bytes(r[0]) for r in await made.sql("SELECT encrypted_payload FROM messages")] == [b""] * 3
        assert await made.sql("SELECT * FROM message_reads") == []
