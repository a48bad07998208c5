"""PostgreSQL freezes or is killed while users send: they soon get an error, and each message is stored once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from config import embedded
from models.postgres import migrations
from tests.client import Account, Socket, ask
from tests.plugins.chatting import Json, chat, message, pages, say
from tests.running import Place, Services, place, serving
from tests.waiting import SLACK

WITHIN = 3.0  # seconds in which all is answered, contract section 1
BODIES = 20  # messages that are sent while it is away, half of them over HTTP


def postgres(folder: Path) -> list[psutil.Process]:
    """The processes of the PostgreSQL in that folder, the first of all at the head."""
    pid = int((folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


@contextlib.asynccontextmanager
async def two_who_write(services: Services, folder: Path) -> AsyncIterator[tuple[Account, Account, Socket, Json]]:
    """Alice with a socket on one instance, and Bob on another; on a separate PostgreSQL."""
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(place(services))
        dsn = await stack.enter_async_context(embedded.postgres(folder))
        await migrations.migrate(dsn)
        urls = [(await stack.enter_async_context(serving(Place(dsn, shared.redis)))).url for _ in range(2)]
        alice, bob = [await Account(one_time=0).register(url) for url in urls]
        pair = await chat(alice, bob, kind="direct")
        await say(alice, pair)
        await say(bob, pair)
        yield alice, bob, await stack.enter_async_context(alice.socket()), pair


async def tried(alice: Account, socket: Socket, pair: Json, body: Json, number: int) -> dict[str, Any] | None:
    """Send a message, over the socket or HTTP, and be answered in time; the answer, or None for unavailable."""
    started = time.monotonic()
    if number % 2:
        answer = await socket.send("message_send", chat_id=pair["id"], **body)
        assert answer["type"] == "ack" or answer["code"] == "unavailable", answer
        found = {"id": answer["message_id"], "seq": answer["seq"]} if answer["type"] == "ack" else None
    else:
        posted = await ask(alice.url, "POST", f"/chats/{pair['id']}/messages", body, alice.token)
        assert posted.status in (200, 201, 503), posted.text
        if posted.status == 503:
            assert posted.code == "unavailable" and int(posted.headers["Retry-After"]) > 0
        found = {name: posted.json[name] for name in ("id", "seq")} if posted.status < 300 else None
    assert time.monotonic() - started < WITHIN + SLACK
    return found


async def sent(
    alice: Account, socket: Socket, pair: Json, bodies: list[Json], over: float = 0.0
) -> list[dict[str, Any]]:
    """Send all of them, begun over so many seconds, each until it is answered with where it stands."""

    async def one(body: Json, number: int) -> dict[str, Any]:
        await asyncio.sleep(over * number / len(bodies))
        while (found := await tried(alice, socket, pair, body, number)) is None:
            await asyncio.sleep(0.3)
        return found

    return await asyncio.gather(*(one(body, number) for number, body in enumerate(bodies)))


async def once(bob: Account, pair: Json, bodies: list[Json], answers: list[dict[str, Any]], cursor: str) -> None:
    """Each message is stored once, with its acknowledged seq, in the history and in /sync."""
    stored = [m for page in await pages(bob, f"/chats/{pair['id']}/messages?after_seq=3") for m in page]
    assert sorted(m["client_id"] for m in stored) == sorted(body["client_id"] for body in bodies)
    assert [m["seq"] for m in stored] == list(range(4, 4 + len(bodies)))
    places = {m["client_id"]: {"id": m["id"], "seq": m["seq"]} for m in stored}
    assert [places[body["client_id"]] for body in bodies] == answers
    page = (await bob.get(f"/sync?cursor={cursor}")).json
    assert [event["message"] for event in page["events"] if event["type"] == "message_new"] == stored


@pytest.mark.gen_test(timeout=120)
async def test_a_postgres_that_freezes(services: Services, folder: Path) -> None:
    async with two_who_write(services, folder) as (alice, bob, socket, pair):
        cursor = (await bob.get("/sync")).json["cursor"]
        bodies = [message(f"number {n}") for n in range(BODIES)]
        frozen = postgres(folder)
        for process in frozen:
            os.kill(process.pid, signal.SIGSTOP)
        try:
            answers = await asyncio.gather(
                *(tried(alice, socket, pair, body, number) for number, body in enumerate(bodies))
            )
            assert answers == [None] * BODIES
            started = time.monotonic()
            for path in ("/chats", f"/chats/{pair['id']}/messages", f"/sync?cursor={cursor}"):
                listed = await bob.get(path)
                assert (listed.status, listed.code) == (503, "unavailable")
                assert time.monotonic() - started < WITHIN + SLACK
                started = time.monotonic()
        finally:
            for process in frozen:
                os.kill(process.pid, signal.SIGCONT)
        await once(bob, pair, bodies, await sent(alice, socket, pair, bodies), cursor)


@pytest.mark.gen_test(timeout=120)
async def test_a_postgres_that_is_killed_amid_messages(services: Services, folder: Path) -> None:
    async with two_who_write(services, folder) as (alice, bob, socket, pair):
        cursor = (await bob.get("/sync")).json["cursor"]
        bodies = [message(f"number {n}") for n in range(3 * BODIES)]
        killed = postgres(folder)[0]
        writing = asyncio.ensure_future(sent(alice, socket, pair, bodies, over=1.0))
        await asyncio.sleep(0.5)
        killed.kill()
        answers = await writing
        await once(bob, pair, bodies, answers, cursor)
        assert await sent(alice, socket, pair, bodies) == answers, "a repeated request gets the same answer"
