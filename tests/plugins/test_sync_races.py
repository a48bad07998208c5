"""Sync under many writers on two instances: a reader who pages with the cursor sees every event, and each once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest

from tests.client import Account, Socket, ask, b64
from tests.running import Services, place, serving

WRITERS, READERS, CHATS, DEEDS = 16, 3, 30, 40

# What a serial id would have been: drawn by each event as it is stored. Some transactions then take a while, as they do
# when a disk or a lock is slow, so that others overtake them.
SERIAL = """
CREATE TABLE serial (id bigserial PRIMARY KEY, chat_id uuid, seq bigint);
CREATE FUNCTION draw() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO serial (chat_id, seq) VALUES (NEW.chat_id, NEW.seq);
    IF random() < 0.1 THEN
        PERFORM pg_sleep(0.005);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER drawn AFTER INSERT ON messages FOR EACH ROW EXECUTE FUNCTION draw();
CREATE TRIGGER drawn AFTER INSERT ON chat_events FOR EACH ROW EXECUTE FUNCTION draw();
"""
EVENTS = "SELECT chat_id::text, seq FROM messages WHERE seq > 0 UNION ALL SELECT chat_id::text, seq FROM chat_events"

Place = tuple[str, int]  # of an event: chat, seq


class Reader:
    """Pages /sync on any instance, some events at a time."""

    def __init__(self, account: Account, urls: Sequence[str], luck: random.Random) -> None:
        self._account, self._urls, self._luck = account, urls, luck
        self._cursor = ""
        self.seen: list[Place] = []

    async def begin(self) -> None:
        answer = (await ask(self._urls[0], "GET", "/sync", token=self._account.token)).json
        assert answer["events"] == []
        self._cursor = answer["cursor"]

    async def page(self, limit: int | None = None) -> bool:
        """The next events; whether there are more."""
        path = f"/sync?cursor={self._cursor}&limit={limit or self._luck.choice((1, 3, 10, 100))}"
        answer = await ask(self._luck.choice(self._urls), "GET", path, token=self._account.token)
        assert answer.status == 200, answer.text
        self.seen += [(event["chat_id"], event["seq"]) for event in answer.json["events"]]
        self._cursor = answer.json["cursor"]
        return bool(answer.json["has_more"])

    async def read(self, until: asyncio.Event) -> None:
        while not until.is_set():
            if not await self.page():
                await asyncio.sleep(0.005)
        while await self.page():
            pass


class Naive:
    """Reads "everything after the last id that I saw"."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection
        self.seen: list[Place] = []
        self._last = 0

    async def page(self) -> None:
        rows = await self._connection.fetch(
            "SELECT id, chat_id::text, seq FROM serial WHERE id > $1 ORDER BY id", self._last
        )
        self.seen += [(row["chat_id"], row["seq"]) for row in rows]
        self._last = max([self._last, *(row["id"] for row in rows)])

    async def read(self, until: asyncio.Event) -> None:
        while not until.is_set():
            await self.page()
            await asyncio.sleep(0.002)
        await self.page()


async def write(account: Account, socket: Socket, chats: list[str], urls: list[str], luck: random.Random) -> int:
    """So many deeds; how many messages were acknowledged."""
    sent: list[tuple[str, str]] = []
    for _ in range(DEEDS):
        chat, url = luck.choice(chats), luck.choice(urls)
        deed = luck.choice(("frame", "frame", "post", "react", "receipt"))
        body = {"client_id": str(uuid4()), "encrypted_payload": b64(luck.randbytes(30)), "message_type": "text"}
        socket.frames.clear()
        if deed == "frame" or (deed == "react" and not sent):
            ack = await socket.send("message_send", chat_id=chat, **body)
            assert ack["type"] == "ack", ack
            sent.append((chat, ack["message_id"]))
        elif deed == "post":
            answer = await ask(url, "POST", f"/chats/{chat}/messages", body, account.token)
            assert answer.status == 201, answer.text
            sent.append((chat, answer.json["id"]))
        elif deed == "react":
            path = f"/messages/{luck.choice(sent)[1]}/reactions/{quote(luck.choice('👍🔥😂'))}"
            assert (await ask(url, "PUT", path, token=account.token)).status == 204
        else:
            answer = await ask(url, "POST", f"/chats/{chat}/receipts", {"read_seq": luck.randint(1, 5)}, account.token)
            assert answer.status in (200, 400), answer.text  # nothing is there to be read yet
    return len(sent)


@pytest.mark.gen_test(timeout=120)
async def test_readers_skip_nothing_and_see_nothing_twice(services: Services) -> None:
    luck = random.Random(7)
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        urls = [one.url, two.url]
        people = [await Account(one_time=0).register(luck.choice(urls)) for _ in range(WRITERS + READERS)]
        writers, others = people[:WRITERS], people[WRITERS:]
        readers = [Reader(account, urls, luck) for account in others]
        for reader in readers:
            await reader.begin()
        connection = await asyncpg.connect(shared.dsn)
        try:
            await connection.execute(SERIAL)
            naive, over = Naive(connection), asyncio.Event()
            chats: dict[str, list[Account]] = {}
            for number in range(CHATS):
                members = luck.sample(writers, 4)
                body = {"type": "group", "title": f"group {number}"}
                body["participants"] = [who.public_id for who in (*members[1:], *others)]  # type: ignore[assignment]
                chats[(await members[0].post("/chats", body)).json["id"]] = members
            async with asyncio.TaskGroup() as group:
                for reader in (*readers, naive):
                    group.create_task(reader.read(over))
                sent = sum(await asyncio.gather(*(writes(who, chats, urls, luck) for who in writers)))
                over.set()
            there = [(row["chat_id"], row["seq"]) for row in await connection.fetch(EVENTS)]
        finally:
            await connection.close()
    assert len(there) >= sent
    assert len(set(there)) == len(there)
    for reader in readers:
        assert [seen for seen, times in Counter(reader.seen).items() if times > 1] == []
        assert set(there) - set(reader.seen) == set()
        assert set(reader.seen) - set(there) == set()
        for chat in chats:
            seqs = [seq for where, seq in reader.seen if where == chat]
            assert seqs == sorted(seqs)
    # The yardstick: with the same writers a reader of a serial id does skip some.
    assert set(there) - set(naive.seen)


async def writes(who: Account, chats: dict[str, list[Account]], urls: list[str], luck: random.Random) -> int:
    own = [chat for chat, members in chats.items() if who in members]
    if not own:
        return 0
    async with who.socket(luck.choice(urls)) as socket:
        return await write(who, socket, own, urls, luck)


@pytest.mark.gen_test(timeout=60)
async def test_there_is_more_as_long_as_a_walk_has_left_something_behind(services: Services) -> None:
    luck = random.Random(7)
    async with place(services) as shared, serving(shared) as server:
        alice, bob = [await Account(one_time=0).register(server.url) for _ in range(2)]
        chats = sorted(
            [
                (await alice.post("/chats", {"type": "group", "title": name, "participants": [bob.public_id]})).json[
                    "id"
                ]
                for name in ("one", "is_pair", "three")
            ]
        )
        reader = Reader(bob, [server.url], luck)
        await reader.begin()

        async def post(chat: str) -> Place:
            body = {"client_id": str(uuid4()), "encrypted_payload": b64(b"hi"), "message_type": "text"}
            return chat, (await alice.post(f"/chats/{chat}/messages", body)).json["seq"]

        sent = [await post(chat) for chat in chats for _ in range(2)]
        while len(reader.seen) < 3:
            assert await reader.page(limit=1)
        # A client that was killed here goes on later, from the cursor that it kept.
        sent += [await post(chat) for chat in chats]
        while await reader.page():
            pass
        assert Counter(reader.seen) == Counter(sent)
