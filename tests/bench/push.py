"""``python -m tests.bench.push``: how long 1,000 pushes to one provider take, from the message to the last of them.

A group of a thousand people who are away, each with one device; the provider is the tests' own, over HTTP/2 and TLS, on
the load's core. Beside it the same requests by the bare client, as many at once, without Redis and PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import secrets
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from uuid import UUID, uuid4

import asyncpg
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from plugins.push.payload import Push
from plugins.push.providers.apns import Apns, Identity
from plugins.push.providers.client import ProviderClient
from tests.bench import chats, machine, users
from tests.bench.users import User
from tests.client import ask, b64
from tests.providers.providers import KEY_ID, TEAM, TOPIC, Device, Mailbox, World, providers
from tests.running import Place

PEOPLE = 1_000
AT_ONCE = 64
PATIENCE = 60.0  # seconds; a second of it is waited for a socket


async def devices(place: Place, people: list[User], world: World, provider: str) -> None:
    """One device for each of the people, as rows: registering them takes longer than pushing to them."""
    rows, sessions = [], []
    for person in people:
        session, token, p256dh, auth = uuid4(), secrets.token_hex(32), None, None
        if provider == "webpush":
            device = Device()
            world.service.devices[device.name] = device
            subscription = device.subscription(world.service.doors.url)
            token = subscription["endpoint"]
            p256dh, auth = base64.b64decode(subscription["keys"]["p256dh"]), device.auth
        sessions.append((session, UUID(person.user_id), secrets.token_bytes(32)))
        digest = hashlib.sha256(token.encode()).digest()
        rows.append((UUID(person.user_id), session, provider, token, digest, p256dh, auth))
    connection = await asyncpg.connect(place.dsn)
    try:
        await connection.execute("TRUNCATE push_tokens")
        await connection.executemany(
            """INSERT INTO sessions (id, user_id, token_hash, expires_at)
               VALUES ($1, $2, $3, now() + interval '1 day')""",
            sessions,
        )
        await connection.executemany(
            """INSERT INTO push_tokens (user_id, session_id, provider, token, token_hash, p256dh, auth)
               VALUES ($1, $2, $3::text::push_provider, $4, $5, $6, $7)""",
            rows,
        )
        await connection.execute("ANALYZE push_tokens; ANALYZE sessions")
    finally:
        await connection.close()


async def arrived(mailbox: Mailbox, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(mailbox.got) < count:
            await asyncio.sleep(0.005)


async def ours(target: machine.Target, creator: User, group: str, mailbox: Mailbox) -> tuple[float, float]:
    """Seconds from the message's ack to the last push, and from the first push to the last."""
    mailbox.got.clear()
    body = {"client_id": str(uuid4()), "encrypted_payload": b64(b"x" * 300), "message_type": "text"}
    started = time.monotonic()
    answer = await ask(target.url, "POST", f"/chats/{group}/messages", body, creator.token)
    assert answer.status == 201, answer.text
    await arrived(mailbox, PEOPLE)
    moments = sorted(got.at for got in mailbox.got)
    return moments[-1] - started, moments[-1] - moments[0]


async def bare(world: World, ca_file: Path) -> float:
    """Seconds that the same pushes take without any of the rest."""
    key = ec.generate_private_key(ec.SECP256R1())
    world.apple.key = key
    client = ProviderClient(ca_file)
    apns = Apns(client, Identity(key, KEY_ID, TEAM, TOPIC, world.apple.doors.url))
    rows = [{"provider": "apns", "token": secrets.token_hex(32), "quiet": False, "sandbox": False}] * PEOPLE
    push = Push("message_new", {"type": "message_new", "chat_id": str(uuid4())}, int(time.time()) + 3600, "x" * 32)
    room = asyncio.Semaphore(AT_ONCE)

    async def send(row: object) -> None:
        async with room:
            verdict = await apns.send(row, push)  # type: ignore[arg-type]
            assert verdict.outcome == "sent", verdict

    async with client.open():
        await send(rows[0])
        world.apple.got.clear()
        started = time.monotonic()
        await asyncio.gather(*map(send, rows))
        return time.monotonic() - started


async def measure(runs: int) -> None:
    machine.take_load_core()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mimu-bench-")))
        world = await stack.enter_async_context(providers(folder))
        services, beside = await stack.enter_async_context(machine.services())
        place = await stack.enter_async_context(machine.place(services))
        creator, *people = await users.create(place, PEOPLE + 1, "push")
        target = await stack.enter_async_context(machine.server(place, beside, **world.settings))
        print(f"{PEOPLE} pushes: seconds from the message to the last one; from the first to the last; pushes a second")
        boxes = {"apns": world.apple, "fcm": world.google, "webpush": world.service}
        for provider, mailbox in boxes.items():
            await devices(place, people, world, provider)
            group = await chats.large(target, creator, "group", people)  # pushes of one chat are limited
            found = [await ours(target, creator, group, mailbox) for _ in range(runs)]
            whole, span = median(one for one, _ in found), median(one for _, one in found)
            print(f"{provider:8} {whole:6.2f} {span:6.2f} {PEOPLE / span:8.0f}")
        found_bare = median([await bare(world, folder / "ca.pem") for _ in range(runs)])
        print(f"bare      {'':6} {found_bare:6.2f} {PEOPLE / found_bare:8.0f}  (apns, client on the provider's core)")
        world.apple.wrong.clear()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.push", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=3, choices=range(1, 7), help="of each; prints the medians (default: 3)"
    )
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(arguments.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
