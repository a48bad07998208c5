"""Alerts: announcements of features to their listener, and users without an open socket."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from handlers.alerts import Alerts
from tests.plugins.chatting import chat, message, say, town
from tests.running import Services


class Ears:
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def message(self, chat_id: UUID, members: Collection[UUID], sender_id: UUID | None) -> None:
        self.heard.append(("message", str(chat_id), {str(member) for member in members}, sender_id and str(sender_id)))

    def ring(self, call_id: UUID, callee_id: UUID, expires_at: datetime) -> None:
        assert expires_at.tzinfo is not None
        self.heard.append(("ring", str(call_id), str(callee_id)))

    def ring_over(self, call_id: UUID, session_id: UUID | None) -> None:
        self.heard.append(("ring_over", str(call_id), str(session_id)))

    def prekeys_low(self, user_id: UUID) -> None:
        self.heard.append(("prekeys_low", str(user_id)))

    def lost(self, user_id: UUID, seconds: float) -> None:
        self.heard.append(("lost", str(user_id)))

    def seen(self, user_id: UUID) -> None:
        self.heard.append(("seen", str(user_id)))


def test_alerts_need_no_listener() -> None:
    Alerts().message(uuid4(), (), None)


@pytest.mark.gen_test
async def test_features_announce_what_wakes(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        ears = Ears()
        made.servers[0].app.alerts.listen(ears)

        group = await chat(alice, bob)
        body = message()
        for status in (201, 200):  # a repetition is no message
            assert (await alice.post(f"/chats/{group['id']}/messages", body)).status == status
        everybody = {alice.user_id, bob.user_id}
        assert ears.heard == [("message", group["id"], everybody, alice.user_id)]

        ears.heard.clear()
        await bob.get("/sync")
        await alice.get(f"/users/{bob.public_id}/prekeys")
        assert ears.heard == [("seen", bob.user_id), ("prekeys_low", bob.user_id)]

        ears.heard.clear()
        socket = await made.socket(alice)
        call_id = str(uuid4())
        ack = await socket.send("call_offer", call_id=call_id, to_user_id=bob.user_id, encrypted_payload="AAAA")
        assert ack["delivered"] is False
        await socket.send("call_hangup", call_id=call_id)
        assert ears.heard == [("ring", call_id, bob.user_id), ("ring_over", call_id, alice.session_id)]


@pytest.mark.gen_test
async def test_calls_that_are_heard_or_must_not_be_are_not_announced(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        ears = Ears()
        made.servers[0].app.alerts.listen(ears)
        assert (await carol.put(f"/users/{alice.public_id}/block", {})).status == 204
        socket, _ = await made.sockets(alice, bob)
        for callee in (bob, carol):
            ids = {"call_id": str(uuid4()), "to_user_id": callee.user_id}
            assert (await socket.send("call_offer", **ids, encrypted_payload="AAAA"))["type"] == "ack"
        assert [event for event in ears.heard if event[0] == "ring"] == []


@pytest.mark.gen_test
async def test_a_user_without_a_socket_on_any_instance_is_absent(services: Services) -> None:
    async with town(services, servers=2, people=3) as made:
        alice, bob, carol = made.people
        here, there = (server.app.hub for server in made.servers)
        ids = {person.user_id: UUID(person.user_id) for person in made.people}
        await made.socket(alice, 0)
        socket = await made.socket(bob, 1)
        for hub in (here, there):
            assert await hub.absent(ids.values()) == [ids[carol.user_id]]
        assert await here.absent([]) == []
        await socket.close()
        await say(alice, await chat(alice, bob))
        assert await here.absent([ids[bob.user_id]]) == [ids[bob.user_id]]
