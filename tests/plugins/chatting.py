"""People who chat, for tests: accounts on one server or several that share everything, their sockets and chats."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from server import Server
from tests.client import Account, Answer, Socket, b64
from tests.running import Place, Services, place, serving

SECONDS = 20.0  # for a frame that must come, on a machine that has other things to do

Json = dict[str, Any]


@dataclass
class Town:
    """Servers on one database, and people who are spread over them. What is opened here is closed at the end."""

    shared: Place
    servers: list[Server]
    stack: contextlib.AsyncExitStack
    people: list[Account] = field(default_factory=list)

    async def newcomer(self) -> Account:
        """One more account, on the server after that of the last one."""
        account = await Account(one_time=0).register(self.servers[len(self.people) % len(self.servers)].url)
        self.people.append(account)
        return account

    async def socket(self, account: Account, number: int | None = None) -> Socket:
        """A socket on the account's own server, or on that one."""
        url = account.url if number is None else self.servers[number % len(self.servers)].url
        return await self.stack.enter_async_context(account.socket(url))

    async def sockets(self, *accounts: Account) -> list[Socket]:
        return [await self.socket(account) for account in accounts]

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.shared.dsn)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return rows
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def town(services: Services, servers: int = 1, people: int = 0, **settings: str) -> AsyncIterator[Town]:
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(place(services))
        running = [await stack.enter_async_context(serving(shared, **settings)) for _ in range(servers)]
        made = Town(shared, running, stack)
        for _ in range(people):
            await made.newcomer()
        yield made


def message(text: str = "hello, world", **more: Any) -> Json:
    """What is posted; a client encrypts before."""
    body = {"client_id": str(uuid4()), "encrypted_payload": b64(text.encode()), "message_type": "text"}
    return {**body, **more}


async def chat(owner: Account, *others: Account, kind: str = "group", **more: Any) -> Json:
    """A new chat, as its owner sees it."""
    body = {"type": kind, "participants": [other.public_id for other in others], **more}
    answer = await owner.post("/chats", body)
    assert answer.status == 201, answer.text
    made: Json = answer.json
    return made


async def say(by: Account, where: Json | str, text: str = "hello, world", **more: Any) -> Json:
    """Post over HTTP; the answer."""
    answer = await by.post(f"/chats/{of(where)}/messages", message(text, **more))
    assert answer.status == 201, answer.text
    posted: Json = answer.json
    return posted


async def read(by: Account, where: Json | str, seq: int) -> Json:
    """Read a chat up to a seq. Returns the watermarks and the unread count."""
    answer = await by.post(f"/chats/{of(where)}/receipts", {"read_seq": seq})
    assert answer.status == 200, answer.text
    marks: Json = answer.json
    return marks


async def seen(by: Account, where: Json | str) -> Json:
    """A chat as a user sees it."""
    answer = await by.get(f"/chats/{of(where)}")
    assert answer.status == 200, answer.text
    found: Json = answer.json
    return found


async def history(by: Account, where: Json | str, query: str = "") -> list[Json]:
    """A page of a chat's messages."""
    answer = await by.get(f"/chats/{of(where)}/messages{query}")
    assert answer.status == 200, answer.text
    messages: list[Json] = answer.json
    return messages


async def pages(by: Account, path: str) -> list[list[Json]]:
    """All pages of a list, by their Links."""
    found = []
    following: str | None = path
    while following is not None:
        answer = await by.get(following)
        assert answer.status == 200, answer.text
        found.append(answer.json)
        assert len(found) < 200, "it never ends"
        following = link(answer)
    return found


def link(answer: Answer) -> str | None:
    """The path of the next page."""
    if "Link" not in answer.headers:
        return None
    found = re.fullmatch(r'<(/[^>]+)>; rel="next"', answer.headers["Link"])
    assert found, answer.headers["Link"]
    return found.group(1)


async def patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Repeat a request until the answer is not 503: many requests for one chat's lock wait for each other, and on a
    slow machine the server rejects the last of them as busy."""
    for _ in range(50):
        if (answer := await ask()).status != 503:
            return answer
        await asyncio.sleep(0.2)
    raise AssertionError("it stays unavailable")


def of(where: Json | str) -> str:
    return where if isinstance(where, str) else str(where["id"])


def roles(where: Json) -> dict[str, str]:
    """By their user ids, what the participants of a chat are."""
    return {person["user_id"]: person["role"] for person in where["participants"]}


async def everyone_hears(sockets: Iterable[Socket], kind: str, **fields: Any) -> list[Json]:
    return [await socket.expect(kind, SECONDS, **fields) for socket in sockets]


async def crowd(town: Town, chat_id: str, number: int) -> list[UUID]:
    """Let many in at once, behind the server's back: people who never come online."""
    rows = await town.sql(
        """WITH people AS (
               INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id,
                                  fingerprint)
               SELECT 'crowd_' || n, '-', sha256(n::text::bytea), sha256(n::text::bytea), 1,
                      encode(sha256(sha256(n::text::bytea)), 'hex')
               FROM generate_series(1, $2) AS n RETURNING id
           ), counted AS (
               UPDATE chat_threads SET participant_count = participant_count + $2, access = access + 1 WHERE id = $1
           )
           INSERT INTO chat_participants (chat_id, user_id) SELECT $1, id FROM people RETURNING user_id""",
        UUID(chat_id),
        number,
    )
    return [row["user_id"] for row in rows]
