"""Two servers behind the shipped nginx, replaced one after the other under load: no request fails, and no message is
lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

from config.settings import Core
from tests.client import Account, Answer
from tests.deploy.nginx import Proxy, proxying
from tests.deploy.relay import free_port
from tests.running import Place, Program, Services, place, program
from tests.waiting import WAIT

PHONES = 6
RESTART = 1012


def message(client_id: str) -> dict[str, Any]:
    return {"client_id": client_id, "encrypted_payload": "QUJD", "message_type": "text"}


@dataclass
class Phone:
    """A client that sends all the time, opens a new socket when one closes, and repeats unacknowledged messages."""

    account: Account
    chat: str
    acked: dict[str, int] = field(default_factory=dict)  # client_id -> seq
    heard: Counter[int] = field(default_factory=Counter)  # seqs of message_new
    closings: list[int | None] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)

    async def talk(self, until: asyncio.Event) -> None:
        """Until then, and on until the last message is acked."""
        unsaid = str(uuid4())
        while unsaid:
            address = self.account.url.replace("http", "ws", 1) + "/ws"
            request = HTTPRequest(address, headers={"Authorization": f"Bearer {self.account.token}"})
            connection = await websocket_connect(request)
            say = True
            while unsaid:
                if say:
                    frame = message(unsaid) | {"type": "message_send", "id": unsaid, "chat_id": self.chat}
                    with contextlib.suppress(WebSocketClosedError):  # then there is no more to read, either
                        await connection.write_message(json.dumps(frame))
                    say = False
                text = await asyncio.wait_for(connection.read_message(), WAIT)
                if text is None:
                    self.closings.append(connection.close_code)
                    connection.close()
                    await asyncio.sleep(random.uniform(0, 0.2))
                    break
                frame = json.loads(text)
                if frame["type"] == "message_new":
                    self.heard[frame["seq"]] += 1
                elif frame["type"] == "error":
                    self.refused.append(frame)
                    return
                elif frame["type"] == "ack":
                    self.acked[unsaid] = frame["seq"]
                    await asyncio.sleep(random.uniform(0.02, 0.06))
                    unsaid, say = "" if until.is_set() else str(uuid4()), True
        connection.close()
        async with asyncio.timeout(WAIT):
            while await connection.read_message() is not None:
                pass

    async def history(self) -> list[tuple[int, str, str]]:
        """All of the chat: seq, sender, client_id or id."""
        found, after = [], 0
        while True:
            answer = await self.account.get(f"/chats/{self.chat}/messages?limit=200&after_seq={after}")
            page = sorted(answer.json, key=lambda message: message["seq"])
            if not page:
                return found
            found += [(message["seq"], message["sender_id"], message["id"]) for message in page]
            after = page[-1]["seq"]

    async def synced(self, cursor: str) -> list[int]:
        """The seqs that /sync returns from the cursor on."""
        found: list[int] = []
        while True:
            answer = (await self.account.get(f"/sync?cursor={cursor}&limit=200")).json
            found += [event["seq"] for event in answer["events"] if event["chat_id"] == self.chat]
            cursor = answer["cursor"]
            if not answer["has_more"]:
                return found


@dataclass
class Requests:
    """Requests that only nginx repeats, and their outcomes."""

    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    posted: list[int] = field(default_factory=list)

    async def again(self, what: str, ask: Callable[[], Awaitable[Answer]], until: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not until.is_set():
            begun = loop.time()
            try:
                answer = await ask()
                self.statuses[f"{what} {answer.status}"] += 1
                if what == "post":
                    self.posted.append(answer.json["seq"])
            except Exception as error:  # whatever it is, it is what a client would see
                self.statuses[f"{what} {type(error).__name__}: {error}"] += 1
            self.slowest = max(self.slowest, loop.time() - begun)
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def talking(url: str) -> AsyncIterator[tuple[list[Phone], Requests, dict[str, str]]]:
    """Phones in one group that all talk, and others' requests; with the block they end, and nothing is under way."""
    people = [await Account(one_time=0).register(url) for _ in range(PHONES)]
    group = {"type": "group", "title": "All", "participants": [person.public_id for person in people[1:]]}
    chat = (await people[0].post("/chats", group)).json["id"]
    cursors = {person.public_id: (await person.get("/sync")).json["cursor"] for person in people}
    phones = [Phone(person, chat) for person in people]
    asked, until = Requests(), asyncio.Event()
    alice = people[0]

    def post() -> Awaitable[Answer]:
        return alice.post(f"/chats/{chat}/messages", message(str(uuid4())))

    requests: dict[str, Callable[[], Awaitable[Answer]]] = {
        "get": lambda: alice.get("/users/me"),
        "list": lambda: people[1].get("/chats"),
        "put": lambda: people[2].put("/users/me", {"bio": "here"}),
        "post": post,
    }
    tasks = [asyncio.ensure_future(phone.talk(until)) for phone in phones]
    tasks += [asyncio.ensure_future(asked.again(what, ask, until)) for what, ask in requests.items() for _ in range(3)]
    try:
        yield phones, asked, cursors
    finally:
        until.set()
        done, late = await asyncio.wait(tasks, timeout=15)
        for task in late:
            task.cancel()
        assert not late, late
        for task in done:
            task.result()


def served(shared: Place, folder: Path, port: int) -> contextlib.AbstractAsyncContextManager[Program]:
    default = str(int(Core.model_fields["shutdown_seconds"].default))
    return program(shared, folder, PORT=str(port), SHUTDOWN_SECONDS=default, TRUSTED_PROXIES="127.0.0.1/32")


async def replaced(runs: contextlib.AsyncExitStack, shared: Place, folder: Path, old: Program, port: int) -> Program:
    """As systemd and compose do it: SIGTERM, wait for the exit, and start again on the same port."""
    assert await old.stop() == 0
    return await runs.enter_async_context(served(shared, folder, port))


def retried(proxy: Proxy) -> int:
    """Count the requests that nginx sent to a second server."""
    return sum(len(set(re.findall(r"[\d.]+:\d+", line["upstream"]))) > 1 for line in proxy.requests())


@pytest.mark.gen_test(timeout=120)
async def test_servers_are_replaced_one_by_one_without_a_failed_request(services: Services, tmp_path: Path) -> None:
    ports = (free_port(), free_port())
    async with place(services) as shared, contextlib.AsyncExitStack() as runs:
        servers = [await runs.enter_async_context(served(shared, tmp_path, port)) for port in ports]
        # All of them come from one address, which is more than nginx would let it ask.
        more = {"limit_req zone=mimu_requests burst=400 nodelay": "limit_req zone=mimu_requests burst=100000 nodelay"}
        with proxying(*(f"127.0.0.1:{port}" for port in ports), changes=more) as proxy:
            async with talking(proxy.url) as (phones, asked, cursors):
                await asyncio.sleep(1)
                for old, port in zip(servers, ports, strict=True):
                    await replaced(runs, shared, tmp_path, old, port)
                await asyncio.sleep(1)

            # Requests: each was answered, and none with "later".
            assert set(asked.statuses) == {"get 200", "list 200", "put 200", "post 201"}, asked.statuses
            assert sum(asked.statuses.values()) > 200
            assert asked.slowest < 3
            assert retried(proxy) > 0
            assert {line["status"][0] for line in proxy.requests()} <= {"1", "2"}
            # Sockets: each was closed with "restart" twice, and with no other code.
            assert sum(len(phone.closings) for phone in phones) >= PHONES
            assert {code for phone in phones for code in phone.closings} == {RESTART}
            assert [phone.refused for phone in phones] == [[]] * PHONES

            # Messages: what was acked or answered is there, once, in one order without a gap, for all of them.
            histories = [await phone.history() for phone in phones]
            assert all(history == histories[0] for history in histories)
            seqs = [seq for seq, _, _ in histories[0]]
            assert len(set(seqs)) == len(seqs)
            acked = [seq for phone in phones for seq in phone.acked.values()] + asked.posted
            assert len(acked) > 300
            assert sorted(acked) == seqs
            assert len({id_ for _, _, id_ in histories[0]}) == len(seqs)
            for phone in phones:
                # Sockets delivered nothing twice; /sync misses nothing and returns nothing twice.
                assert not phone.heard or max(phone.heard.values()) == 1
                events = await phone.synced(cursors[phone.account.public_id])
                assert [seq for seq in events if seq in set(seqs)] == seqs
