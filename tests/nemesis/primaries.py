"""Scenarios in which the primary goes: killed, frozen, thawed, started again by itself, and without its standbys."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from tests.bench.users import User
from tests.client import ask
from tests.nemesis.stage import Instance
from tests.nemesis.trial import Trial
from tests.replication import Machine

READS = 100  # equal ones, over all instances
WATCHED = 5.0  # seconds in which a former primary is watched
LINGERS = 1.0  # seconds after which a connection to it is a session, and not a question who it is
_SESSIONS = """
SELECT concat_ws(' ', state, wait_event_type, wait_event, round(extract(epoch FROM now() - backend_start)), 's')
FROM pg_stat_activity
WHERE application_name LIKE 'mimu/%' AND now() - backend_start > make_interval(secs => $1)
  -- Of these the client has gone (the kernel is asked, too); they wait for a standby, or for one that does, before they
  -- see that.
  AND coalesce(wait_event, '') <> 'SyncRep' AND coalesce(wait_event_type, '') <> 'Lock'
"""
_WRITES = "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM chat_events)"


async def replaced(trial: Trial) -> None:
    """1. A primary is killed, and starts by itself after the promotion; another one freezes, and thaws after it."""
    databases = trial.stage.databases
    former = databases.primary
    former.kill()
    await trial.calm(await databases.fail_over())
    former.stand_alone()  # it takes whatever comes
    await former.start()
    await _is_left_alone(trial, former)
    fresh = databases.dsn_of(former, databases.primary)
    async with trial.stage.beside("fresh", fresh) as instance:
        await _equal_reads(trial, [instance, *trial.stage.instances])
    await databases.rejoin(former)

    former = databases.primary
    former.freeze()
    try:
        accepted = await databases.fail_over()
        await trial.calm(accepted)
    finally:
        former.thaw()
    await _is_left_alone(trial, former)
    await _equal_reads(trial, trial.stage.instances)
    await databases.rejoin(former)


async def _is_left_alone(trial: Trial, former: Machine) -> None:
    """Nothing is written to a former primary, and no server stays connected to it."""
    await asyncio.sleep(4)  # connections from before the freeze have been closed
    connection = await former.connect()
    try:
        rows, lingered, held = await connection.fetchval(_WRITES), set(), dict[tuple[str, int], float]()
        for _ in range(int(WATCHED / 0.25)):
            lingered |= {row[0] for row in await connection.fetch(_SESSIONS, LINGERS)}
            now = time.monotonic()
            open_now = {(one.url, port) for one in trial.stage.instances for port in one.connected_to(former.port)}
            held = {one: held.get(one, now) for one in open_now}
            lingered |= {f"{url} holds a connection" for (url, _), since in held.items() if now - since > LINGERS}
            await asyncio.sleep(0.25)
        trial.expect(not lingered, f"sessions at the former primary: {', '.join(sorted(lingered))}")
        trial.expect(await connection.fetchval(_WRITES) == rows, "something was written to the former primary")
    finally:
        connection.terminate()


async def _equal_reads(trial: Trial, instances: list[Instance]) -> None:
    """A message that was just acknowledged is in what every instance reads, each time."""
    writer, chat, sent = await _post(trial)
    shown = set()
    for number in range(READS):
        url = instances[number % len(instances)].url
        answer = await ask(url, "GET", f"/messages/{sent['id']}", token=writer.token)
        shown.add((answer.status, answer.status == 200 and answer.json["seq"]))
        listed = await ask(url, "GET", f"/chats/{chat}", token=writer.token)
        trial.expect(
            listed.status == 200 and listed.json["last_seq"] >= sent["seq"], "a chat is shown as it was before"
        )
    trial.expect(shown == {(200, sent["seq"])}, f"{len(shown)} different answers to equal reads")


async def _post(trial: Trial) -> tuple[User, str, Any]:
    """A message of one of the clients, as part of the history; its sender, its chat and where it stands."""
    for actor in trial.actors:
        for chat, view in actor.client.views.items():
            if view.member and trial.ledger.kinds.get(chat) == "direct":
                send = await actor.send(chat)
                if send is not None:
                    [(message_id, seq)] = send.places
                    return actor.client.user, chat, {"id": message_id, "seq": seq}
    raise AssertionError("no client may write")


async def silent(trial: Trial) -> None:
    """2. A primary freezes, without resetting a connection: servers leave it by themselves."""
    databases = trial.stage.databases
    former = databases.primary
    former.freeze()
    try:
        await asyncio.sleep(1)
        await trial.calm(await databases.fail_over())
    finally:
        former.thaw()
        former.kill()
    await databases.rejoin(former)


async def alone(trial: Trial) -> None:
    """3. No standby is there: nothing is acknowledged, however often it is sent. Then the primary is killed."""
    databases = trial.stage.databases
    writer, chat, _ = await _post(trial)
    held = list(databases.standbys)
    for standby in held:
        standby.freeze()
    try:
        for _ in range(3):
            body = _message(trial, writer, chat)
            for instance in trial.stage.instances:
                answer = await ask(instance.url, "POST", f"/chats/{chat}/messages", body, writer.token)
                trial.expect(answer.status == 503, f"a message on one machine was answered with {answer.status}")
        await asyncio.sleep(0.5)
        former = databases.primary
        former.kill()
    finally:
        for standby in held:
            standby.thaw()
    await trial.calm(await databases.fail_over())
    await databases.rejoin(former)


def _message(trial: Trial, writer: User, chat: str) -> dict[str, Any]:
    """A message that the ledger knows, and that may be stored or not."""
    number = len(trial.ledger.sends)
    client_id = f"00000000-0000-4000-8000-{number:012}"
    send = trial.ledger.send(chat, writer.user_id, client_id, 40)
    return {"client_id": client_id, "encrypted_payload": send.payload, "message_type": "text"}


async def late(trial: Trial) -> None:
    """4. A commit comes after its message was refused: who should hear of it does when it is sent again."""
    databases = trial.stage.databases
    one, other = trial.stage.instances
    sender, receiver, chat = _pair(trial)
    for again in (one, other):
        body = _message(trial, sender, chat)
        for standby in databases.standbys:
            standby.freeze()
        try:
            answer = await ask(one.url, "POST", f"/chats/{chat}/messages", body, sender.token)
            trial.expect(answer.status == 503, f"without a standby it was answered with {answer.status}")
        finally:
            for standby in databases.standbys:
                standby.thaw()
        accepted = await databases.accepts()
        await asyncio.sleep(2)
        async with asyncio.timeout(20):
            while (answer := await ask(again.url, "POST", f"/chats/{chat}/messages", body, sender.token)).status == 503:
                await asyncio.sleep(0.2)
        trial.expect(answer.status in (200, 201), f"sent again it was answered with {answer.status}")
        place = (answer.json["id"], answer.json["seq"])
        trial.ledger.sends[body["client_id"]].places.add(place)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while place not in receiver.framed:
                    await asyncio.sleep(0.05)
        trial.expect(place in receiver.framed, "the receiver's socket did not hear of the late message")
        await trial.calm(accepted)


class _Ear:
    """What a client's socket brings, beside what it learns by /sync."""

    def __init__(self) -> None:
        self.framed: set[tuple[str, int]] = set()


def _pair(trial: Trial) -> tuple[User, _Ear, str]:
    """Two of a direct chat: the sender, what the other one hears, and the chat."""
    for chat, kind in trial.ledger.kinds.items():
        if kind == "direct":
            inside = [client for client in trial.clients if (view := client.views.get(chat)) and view.member]
            sender, receiver = inside[0], inside[1]
            ear, hears = _Ear(), receiver.line._heard

            def heard(frame: dict[str, Any], ear: _Ear = ear, hears: Any = hears) -> None:
                if frame["type"] == "message_new":
                    ear.framed.add((frame["message"]["id"], frame["seq"]))
                hears(frame)

            receiver.line._heard = heard
            return sender.user, ear, chat
    raise AssertionError("there is no direct chat")
