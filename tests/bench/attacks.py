"""The attacks, and ``python -m tests.bench.attacks``: the process that makes them when the benchmark says so.

It reads lines: first who there is, then the name of an attack, which it prepares, and for how many seconds to make it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable
from uuid import uuid4

import orjson
import uvloop

from tests.bench.enemy import Enemy, Hand, frame, message, run
from tests.bench.load import masked
from tests.bench.users import User, payload
from tests.providers.providers import Device

SETTINGS = 16_000  # characters
HASHES = 16  # connections that send wrong passwords


async def pages(enemy: Enemy) -> list[str]:
    """Paths that each answer with as much as a page may have."""
    cursor = (await enemy.must("GET", "/sync"))["cursor"]
    chat = await enemy.chat()
    for _ in range(enemy.notes):
        await enemy.note(chat)
    for _ in range(enemy.notes // 2):
        await enemy.note(await enemy.chat(settings={"x": "x" * SETTINGS}))
    return [f"/sync?limit=1000&cursor={cursor}", "/chats?limit=500", f"/chats/{chat}/messages?limit=200"]


async def unread_pages(enemy: Enemy) -> list[Hand]:
    """Pages of 1 MiB that are asked for on 32 connections, half of which are opened again each second; none is read."""
    paths = await pages(enemy)
    return enemy.unread(paths * 4, 16, 3600) + enemy.unread(paths, 16, 1)


async def read_pages(enemy: Enemy) -> list[Hand]:
    """The same pages, read as fast as they come."""
    return enemy.asking(*(("GET", path, None) for path in await pages(enemy)), at_once=8)


async def calls(enemy: Enemy) -> list[Hand]:
    """Offers of 32 KiB to people who are away, and as many candidates of 4 KiB as fit."""
    away = itertools.cycle(enemy.crowd[-200:])
    call, large, small = "", payload(32_000), payload(4_000)

    def offer() -> bytes:
        nonlocal call
        call = str(uuid4())
        callee = next(away).user_id
        return masked({"type": "call_offer", "call_id": call, "to_user_id": callee, "encrypted_payload": large})

    def candidate() -> bytes:
        return masked({"type": "ice_candidate", "call_id": call, "encrypted_payload": small})

    return enemy.sending([offer] + [candidate] * 50, 4, paced=True)


async def receipts(enemy: Enemy) -> list[Hand]:
    """Receipts in a group of 1,024, each for one message more than the last."""
    chat = await enemy.group()
    for _ in range(enemy.notes):
        await enemy.note(chat, 100)
    seqs = itertools.cycle(range(1, enemy.notes))
    body: Callable[[], object] = lambda: {"read_seq": next(seqs), "delivered_seq": 2**40}  # noqa: E731
    return enemy.asking(("POST", f"/chats/{chat}/receipts", body), at_once=8)


async def settings(enemy: Enemy) -> list[Hand]:
    """16 KiB of settings, again and again, in a group of 1,024."""
    chat = await enemy.group()
    body: Callable[[], object] = lambda: {"settings": {"x": secrets.token_hex(SETTINGS // 2)}}  # noqa: E731
    return enemy.asking(("PUT", f"/chats/{chat}", body), at_once=8)


async def posts(enemy: Enemy) -> list[Hand]:
    """Messages of 64 KiB to a group of 1,024, by requests and over sockets."""
    chat = await enemy.group()
    over_http = enemy.asking(("POST", f"/chats/{chat}/messages", lambda: message(65_536)), at_once=4)
    return over_http + enemy.sending(
        [lambda: masked({"type": "message_send", "chat_id": chat, **message(65_536)})], 4, paced=True
    )


async def frames(enemy: Enemy) -> list[Hand]:
    """Frames as fast as they leave, on ten sockets that come back when they are closed; half of them are rubbish."""
    chat = await enemy.group()
    rubbish = frame("message_send", chat_id=chat, encrypted_payload="A" * 100_000, metadata=[[[]]])
    return enemy.sending([frame("typing", chat_id=chat), rubbish], 10, paced=False)


async def passwords(enemy: Enemy) -> list[Hand]:
    """Wrong passwords, each from another address: one address may try five."""

    def hand() -> Hand:
        wire = enemy.wire()

        async def log_in() -> None:
            address = f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
            body = {"public_id": enemy.user.public_id, "password": secrets.token_hex(128)}
            await wire.ask("POST", "/auth/login", body, Authorization="", X_Forwarded_For=address)

        return log_in

    return [hand() for _ in range(3 * HASHES)]


async def presence(enemy: Enemy) -> list[Hand]:
    """Lists of 200 people to watch, on nine sockets, while more sockets come and go."""
    watched = [each.user_id for each in enemy.crowd]
    lists = [frame("presence_subscribe", user_ids=watched[start : start + 200]) for start in range(0, 1000, 200)]

    async def come_and_go() -> None:
        async with enemy.socket():
            enemy.answers["sockets opened"] += 1

    return enemy.sending(lists, 9, paced=True) + [come_and_go] * 4


async def searches(enemy: Enemy) -> list[Hand]:
    """Searches for what every id has, and profiles."""
    wanted = [("GET", f"/users/search?q={part}", None) for part in ("an", "00", "hostile_", "_0", "e_0")]
    return enemy.asking(*wanted, ("GET", f"/users/{enemy.crowd[0].public_id}", None), at_once=8)


async def uploads(enemy: Enemy) -> list[Hand]:
    """Files that are announced and never come."""
    body: Callable[[], object] = lambda: {"size": 1 << 20, "sha256": secrets.token_hex(32)}  # noqa: E731
    tus = {"Tus_Resumable": "1.0.0", "Upload_Length": str(1 << 20)}
    wires = [enemy.wire() for _ in range(4)]

    def resumable(number: int) -> Hand:
        async def hand() -> None:
            await wires[number].ask("POST", "/files/tus", **tus)

        return hand

    return enemy.asking(("POST", "/files", body), at_once=4) + [resumable(number) for number in range(4)]


async def silent_hosts(enemy: Enemy) -> list[Hand]:
    """Ten Web Push addresses that accept connections and say nothing, and an accomplice who writes in ten chats."""
    mute = socket.create_server(("127.0.0.1", 0), backlog=4096)
    for _ in range(10):
        await enemy.must("PUT", "/push/tokens", subscription(mute.getsockname()[1]))
    friend = Enemy(
        enemy.host, enemy.port, enemy.accomplice, enemy.user, enemy.crowd, enemy.people, enemy.notes, enemy.answers
    )
    chats = [await friend.chat("group", participants=[enemy.user.public_id]) for _ in range(10)]
    posted = [("POST", f"/chats/{chat}/messages", lambda: message(100)) for chat in chats]
    hands = friend.asking(*posted, at_once=4)

    async def keep() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            mute.close()

    return [*hands, keep]


def subscription(port: int) -> dict[str, object]:
    return {"provider": "webpush", "subscription": Device().subscription(f"https://127.0.0.1:{port}")}


async def made_and_deleted(enemy: Enemy) -> list[Hand]:
    """Chats that are made, filled and deleted: what they leave is swept later."""
    large = await enemy.group()
    for _ in range(6):  # more would use up the fan-out
        await enemy.note(large)
    wires = [enemy.wire() for _ in range(4)]

    def hand(number: int) -> Hand:
        async def make_and_delete() -> None:
            names = [each.public_id for each in enemy.crowd[:20]]
            body = {"type": "group", "participants": names, "settings": {"x": "x" * SETTINGS}}
            status, content = await wires[number].ask("POST", "/chats", body)
            if status == 201:
                chat = orjson.loads(content)["id"]
                await wires[number].ask("POST", f"/chats/{chat}/messages", message(65_536))
                await wires[number].ask("DELETE", f"/chats/{chat}")

        return make_and_delete

    await enemy.must("DELETE", f"/chats/{large}")
    return [hand(number) for number in range(4)]


async def reactions(enemy: Enemy) -> list[Hand]:
    """Reactions that come and go under a message in a group of 1,024."""
    note = await enemy.note(await enemy.group())
    path = f"/messages/{note}/reactions/%F0%9F%91%8D"
    return enemy.asking(("PUT", path, None), ("DELETE", path, None), at_once=8)


async def invitations(enemy: Enemy) -> list[Hand]:
    """People who are put into a group and out again, and invites that are made and ended."""
    chat = await enemy.group()
    invites = [(await enemy.must("POST", f"/chats/{chat}/invites", {}))["id"] for _ in range(5)]
    other = enemy.crowd[-1]
    return enemy.asking(
        ("POST", f"/chats/{chat}/invites", {}),
        ("DELETE", f"/chats/{chat}/participants/{other.user_id}", None),
        ("POST", f"/chats/{chat}/participants", {"public_id": other.public_id}),
        *(("DELETE", f"/chats/{chat}/invites/{invite}", None) for invite in invites),
        at_once=8,
    )


ATTACKS: dict[str, Callable[[Enemy], Awaitable[list[Hand]]]] = {
    "pages that are not read": unread_pages,
    "pages that are read": read_pages,
    "calls to people who are away": calls,
    "receipts in a group of 1,024": receipts,
    "settings of 16 KiB there": settings,
    "messages of 64 KiB there": posts,
    "reactions there": reactions,
    "people and invites there": invitations,
    "frames as fast as possible": frames,
    "wrong passwords": passwords,
    "presence": presence,
    "searches": searches,
    "uploads that never come": uploads,
    "push services that are silent": silent_hosts,
    "chats made and deleted": made_and_deleted,
}


async def main() -> None:
    os.nice(10)  # the honest ones, on the same core, are measured: they go first

    async def line() -> bytes:
        return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.readline)

    world = orjson.loads(await line())
    accounts = {name: [User(**each) for each in users] for name, users in world.pop("accounts").items()}
    crowd = [User(**each) for each in world.pop("crowd")]
    while name := (await line()).decode().strip():
        enemy = Enemy(user=accounts[name][0], accomplice=accounts[name][1], crowd=crowd, **world)
        hands = await ATTACKS[name](enemy)
        print("ready", flush=True)
        enemy.answers.clear()
        await run(hands, float(await line()), enemy.answers)
        print(orjson.dumps(dict(enemy.answers)).decode(), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
