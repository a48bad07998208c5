"""The journal is shared fairly: a busy account fills only its share, and does not wait for the work of others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from models.chats import posting
from plugins.messages import journal
from tests.client import b64
from tests.plugins.chatting import Town, town
from tests.running import Services

EACH = 60  # frames that each flooding socket sends at once; more than 64 are not taken before they are answered


class Commits:
    """The batches that are stored, each held until the gate is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.senders: list[list[UUID | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._post = posting.post
        monkeypatch.setattr(posting, "post", self.post)

    async def post(self, db: Any, posts: Sequence[posting.Post]) -> Any:
        self.senders.append([post.sender_id for post in posts])
        await self.gate.wait()
        return await self._post(db, posts)


def frame(chat_id: str, payload: bytes) -> str:
    message = {"chat_id": chat_id, "client_id": str(uuid4()), "encrypted_payload": b64(payload), "message_type": "text"}
    return json.dumps({"type": "message_send", "id": str(uuid4()), **message})


def queued(made: Town) -> float:
    text = made.servers[0].app.metrics.exposition().decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("mimu_journal_queue_messages "))


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize(("size", "sockets"), [(10, 6), (60_000, 4)])
async def test_one_who_floods_it_takes_no_place_of_others(
    services: Services, monkeypatch: pytest.MonkeyPatch, size: int, sockets: int
) -> None:
    """Many messages, or large ones: some are refused, and everybody else's is in the next commit."""
    async with town(services, people=2) as made:
        flooder, other = made.people
        chats = [(await person.post("/chats", {"type": "cloud"})).json["id"] for person in (flooder, other)]
        floods = [await made.socket(flooder) for _ in range(sockets)]
        quiet = await made.socket(other)
        for socket, chat in ((floods[0], chats[0]), (quiet, chats[1])):
            await socket.raw(frame(chat, b"first"))
            await socket.expect("ack")
        commits = Commits(monkeypatch)
        commits.gate.clear()
        await floods[0].raw(frame(chats[0], b"held"))
        while not commits.senders:
            await asyncio.sleep(0.01)
        for socket in floods:
            for _ in range(EACH):
                await socket.raw(frame(chats[0], b"x" * size))
        before = -1.0
        while before != (waiting := queued(made)):
            before = waiting
            await asyncio.sleep(0.5)
        # Of small ones all wait; of large ones a third of all bytes that may, and the rest is refused.
        assert (waiting == sockets * EACH) == (size == 10)
        assert waiting * size <= journal.QUEUE_BYTES / 3
        await quiet.raw(frame(chats[1], b"hello"))
        await asyncio.sleep(0.3)
        commits.gate.set()
        await quiet.expect("ack")
        assert UUID(other.user_id) in commits.senders[1], "in the next commit, whatever waits"
        assert len(commits.senders[1]) > 1
        assert max(map(len, commits.senders)) <= journal.BATCH_MESSAGES
