"""Chats under load: users who write to each other through ours, or through the bare relay that knows no chats."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from tests.bench.calls import sockets_of
from tests.bench.load import Socket
from tests.bench.machine import Target
from tests.bench.pairs import PAYLOAD, USERS
from tests.bench.users import User, payload
from tests.client import ask

CONTENT = PAYLOAD * 4 // 3  # characters of base64
REQUESTED = 1_000  # participants named in one request
_NEW, _ACK, _ERROR = b'"message_new"', b'"ack"', b'"error"'
_HEAD = 24  # bytes of a frame within which its type is


async def chat(target: Target, creator: User, kind: str, others: list[User], **fields: Any) -> str:
    """Make a chat over HTTP, and say its id. Raises RuntimeError."""
    body = {"type": kind, "participants": [user.public_id for user in others], **fields}
    answer = await ask(target.url, "POST", "/chats", body, creator.token)
    if answer.status not in (200, 201):
        raise RuntimeError(f"no chat was made: {answer.status} {answer.text[:500]}")
    return str(answer.json["id"])


async def large(target: Target, creator: User, kind: str, others: list[User]) -> str:
    """Make a chat of more people than one request takes: the rest come as rows, since requests would take long."""
    chat_id = await chat(target, creator, kind, others[:REQUESTED], title="bench")
    rest = others[REQUESTED:]
    if rest:
        assert target.place is not None
        connection = await asyncpg.connect(target.place.dsn)
        try:
            rows = [(UUID(chat_id), UUID(user.user_id)) for user in rest]
            await connection.copy_records_to_table("chat_participants", records=rows, columns=("chat_id", "user_id"))
            # With another `access` the instance reads the chat again.
            await connection.execute(
                """UPDATE chat_threads SET participant_count = participant_count + $2, access = access + 1
                   WHERE id = $1""",
                UUID(chat_id),
                len(rest),
            )
            await connection.execute("ANALYZE chat_participants")
        finally:
            await connection.close()
    return chat_id


class Post:
    """A message's frame, of which only the client id differs from one to the next.

    The ids are random: an index takes random ones at a higher price than ascending ones, and phones make random ones.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        slot = "0" * 36
        frame = {**fields, "id": "m", "client_id": slot, "message_type": "text", "encrypted_payload": payload(CONTENT)}
        clear = orjson.dumps(frame)
        self.size, at, mask = len(clear), clear.index(slot.encode()), os.urandom(4)
        key = (mask * (self.size // 4 + 1))[: self.size]
        body = (int.from_bytes(clear) ^ int.from_bytes(key)).to_bytes(self.size)
        length = b"\xfe" + self.size.to_bytes(2)
        self._before = b"\x81" + length + mask + body[:at]
        self._after = body[at + 36 :]
        self._key = int.from_bytes(key[at : at + 36])

    @classmethod
    def to(cls, chat_id: str) -> Post:
        """To a chat of ours."""
        return cls({"type": "message_send", "chat_id": chat_id})

    @classmethod
    def relayed(cls, user_id: str) -> Post:
        """To a user of the bare relay, which sends on what it got."""
        return cls({"type": "message_new", "to_user_id": user_id})

    def frames(self, count: int) -> bytes:
        """So many of them, as they go through the socket."""
        parts = []
        for _ in range(count):
            masked = int.from_bytes(str(UUID(bytes=os.urandom(16), version=4)).encode()) ^ self._key
            parts += (self._before, masked.to_bytes(36), self._after)
        return b"".join(parts)


class Member:
    """A user's socket, and the post that they send. ``heard`` is called with the number of new messages of a read."""

    partner: Member

    def __init__(self, socket: Socket, post: Post) -> None:
        self.socket, self._post = socket, post
        self.acked = self._new = 0
        self.on_ack: Callable[[], None] | None = None
        self.heard: Callable[[int], None] | None = None
        self.refusals: list[bytes] = []
        socket.take, socket.counted = self._take, self._counted

    @property
    def lost(self) -> bool:
        return self.socket.lost

    def say(self, count: int) -> None:
        self.socket.send(self._post.frames(count))

    def _take(self, frame: bytes) -> None:
        head = frame[:_HEAD]
        if _NEW in head:
            self._new += 1
        elif _ACK in head:
            self.acked += 1
            if self.on_ack is not None:
                self.on_ack()
        elif _ERROR in head:
            self.refusals.append(frame)

    def _counted(self, _: int) -> None:
        count, self._new = self._new, 0
        if count and self.heard is not None:
            self.heard(count)


@contextlib.asynccontextmanager
async def talking(
    target: Target, accounts: list[User], count: int = USERS, *, other: Target | None = None
) -> AsyncIterator[list[Member]]:
    """So many users, each with a partner; the second of each pair is on the ``other`` instance when there is one."""
    accounts = accounts[:count]
    async with (
        sockets_of(target, accounts[::2]) as first,
        sockets_of(other or target, accounts[1::2]) as second,
    ):
        members: list[Member] = []
        for one, two, a, b in zip(accounts[::2], accounts[1::2], first, second, strict=True):
            if target.ours:
                post = Post.to(await chat(target, one, "direct", [two]))
                pair = Member(a, post), Member(b, post)
            else:
                pair = Member(a, Post.relayed(two.user_id)), Member(b, Post.relayed(one.user_id))
            pair[0].partner, pair[1].partner = pair[1], pair[0]
            members += pair
        await asyncio.sleep(0.2)  # the chats' own events are no part of the load
        yield members


async def audit(target: Target, members: list[Member]) -> int:
    """How many messages are stored. Raises RuntimeError unless it is as many as were acknowledged to these members,
    who must be the only ones that ever wrote there.
    """
    assert target.place is not None
    connection = await asyncpg.connect(target.place.dsn)
    try:
        stored = int(await connection.fetchval("SELECT count(*) FROM messages"))
    finally:
        await connection.close()
    for _ in range(100):  # a message may arrive before its ack does
        acked = sum(member.acked for member in members)
        if acked == stored:
            return stored
        await asyncio.sleep(0.01)
    raise RuntimeError(f"{acked:,} messages were acknowledged, and {stored:,} are stored")
