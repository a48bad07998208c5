"""Pushes: their recipients, causes and times, and the data a provider sees."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.beside import beside
from tests.client import Account, Socket, ask
from tests.plugins.chatting import Town, chat, say
from tests.plugins.pushing import pushing, registered, subscribed
from tests.providers.http2 import Reply
from tests.providers.providers import TOPIC, Got
from tests.running import Services
from tests.waiting import SLACK


def offer(to: Any, **more: str) -> dict[str, str]:
    return {"call_id": str(uuid4()), "to_user_id": to.user_id, "encrypted_payload": "AAAA", **more}


async def ring(socket: Socket, to: Any, delivered: bool | None = False) -> str:
    """Call an absent user. Returns the call's id."""
    body = offer(to)
    ack = await socket.send("call_offer", **body)
    assert (ack["type"], ack["delivered"]) == ("ack", delivered)
    return body["call_id"]


# Messages -------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_message_is_pushed_to_every_device_of_an_absent_user(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, people=3) as (made, world):
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        phone, tablet = await registered(bob, "apns"), await registered(bob, "fcm")
        await registered(bob, "apns_voip")  # of no use to messages
        await registered(alice, "apns")  # who writes is not woken
        browser = await subscribed(bob, world)
        started = time.monotonic()
        await say(alice, group)
        data = {"type": "message_new", "chat_id": group["id"]}
        for mailbox, token in ((world.apple, phone), (world.google, tablet), (world.service, browser.name)):
            got = await mailbox.expect("message_new")
            assert (got.token, got.data) == (token, data)
            assert got.at - started > 0.9, "a second is waited for a socket"
        for mailbox in (world.apple, world.google, world.service):
            await mailbox.silent(0)


@pytest.mark.gen_test
async def test_many_messages_of_a_chat_are_one_push(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group, other = await chat(alice, bob), await chat(alice, bob)
        await registered(bob, "apns")
        for _ in range(10):
            await asyncio.gather(say(alice, group), say(alice, other))
        first, second = await world.apple.expect("message_new"), await world.apple.expect("message_new")
        assert {first.data["chat_id"], second.data["chat_id"]} == {group["id"], other["id"]}
        await world.apple.silent()
        await say(alice, group)
        third = await world.apple.expect("message_new")
        names = [got.headers["apns-collapse-id"] for got in (first, second, third)]
        assert len(set(names)) == 2, "a provider keeps one of each chat"
        assert not any(chat_id in name for name in names for chat_id in (group["id"], other["id"], bob.user_id))


@pytest.mark.gen_test
async def test_two_devices_have_no_name_of_a_chat_in_common(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, people=3) as (made, world):
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        for person in (bob, carol):
            await registered(person, "apns")
        await say(alice, group)
        names = {(await world.apple.expect("message_new")).headers["apns-collapse-id"] for _ in range(2)}
        assert len(names) == 2


@pytest.mark.gen_test
@beside("where", [0, 1])  # here, and on another instance
async def test_a_user_with_an_open_socket_receives_no_push(services: Services, tmp_path: Path, where: int) -> None:
    async with pushing(services, tmp_path, servers=2) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "apns")
        socket = await made.socket(bob, where)
        await say(alice, group)
        await socket.expect("message_new")
        await world.apple.silent()
        await socket.close()
        await say(alice, group)
        await world.apple.expect("message_new")


@pytest.mark.gen_test
@beside("way", ["socket", "sync"])
@beside("where", [0, 1])  # here, and on another instance
async def test_a_client_that_fetches_within_the_second_receives_no_push(
    services: Services, tmp_path: Path, way: str, where: int
) -> None:
    async with pushing(services, tmp_path, servers=2) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "apns")
        await say(alice, group)
        await asyncio.sleep(0.3)
        if way == "socket":
            await (await made.socket(bob, where)).close()
        else:
            assert (await ask(made.servers[where].url, "GET", "/sync", token=bob.token)).status == 200
        await world.apple.silent()
        await say(alice, group)
        await world.apple.expect("message_new")


@pytest.mark.gen_test
async def test_a_message_that_meets_a_closing_socket_is_pushed(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, servers=2) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "apns")
        socket = await made.socket(bob)
        socket.connection.close()  # and its server has not heard of it yet
        await say(alice, group)
        await world.apple.expect("message_new")


@pytest.mark.gen_test
async def test_blocked_senders_and_muted_chats_send_no_push(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, people=3) as (made, world):
        alice, bob, mallory = made.people
        group, loud = await chat(alice, bob, mallory), await chat(alice, bob)
        await registered(bob, "apns")
        assert (await bob.put(f"/users/{mallory.public_id}/block", {})).status == 204
        assert (await bob.put("/push/settings", {"muted_chats": [{"chat_id": loud["id"]}]})).status == 200
        await say(mallory, group)
        await say(alice, loud)
        await world.apple.silent()
        await asyncio.gather(say(mallory, group), say(alice, group))
        await world.apple.expect("message_new", chat_id=group["id"])

        soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        assert (
            await bob.put("/push/settings", {"muted_chats": [{"chat_id": loud["id"], "until": soon}]})
        ).status == 200
        await asyncio.sleep(1)
        await say(alice, loud)
        await world.apple.expect("message_new", chat_id=loud["id"])


@pytest.mark.gen_test
async def test_the_settings_decide_which_pushes_are_sent(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "fcm")
        socket = await made.socket(alice)

        async def wants(**settings: Any) -> None:
            assert (await bob.put("/push/settings", settings)).status == 200
            await say(alice, group)
            await ring(socket, bob)
            await world.google.silent()

        await wants(kinds=["prekeys_low"])
        now = datetime.now(UTC)
        quiet = {"start": f"{now - timedelta(hours=1):%H:%M}", "end": f"{now + timedelta(hours=1):%H:%M}"}
        await wants(kinds=["message_new", "call_offer"], quiet_hours={**quiet, "calls": False})

        assert (await bob.put("/push/settings", {"quiet_hours": quiet})).status == 200
        await say(alice, group)
        call_id = await ring(socket, bob)
        await world.google.expect("call_offer", call_id=call_id)  # unless one says that they may not
        await world.google.silent()

        # What came in quiet hours waits for their end.
        redis, queue = made.servers[0].app.redis, "push:later"
        [(_, due)] = await redis.zrange(queue, 0, -1, withscores=True)
        assert 50 * 60 < due / 1000 - time.time() <= 3600


@pytest.mark.gen_test
async def test_a_user_who_left_the_chat_meanwhile_receives_no_push(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "apns")
        await say(alice, group)
        assert (await bob.delete(f"/chats/{group['id']}/participants/{bob.user_id}")).status < 300
        await world.apple.silent()


@pytest.mark.gen_test
async def test_in_the_background_an_iphone_is_woken_once_in_twenty_minutes(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group, other = await chat(alice, bob), await chat(alice, bob)
        await registered(bob, "apns", style="background")
        await say(alice, group)
        assert (await world.apple.expect("message_new")).headers["apns-push-type"] == "background"
        await say(alice, other)
        await world.apple.silent()
        redis = made.servers[0].app.redis
        [(_, due)] = await redis.zrange("push:later", 0, -1, withscores=True)
        assert 19 * 60 < due / 1000 - time.time() <= 20 * 60


async def falls_silent(made: Town, person: Account) -> None:
    """The person's sockets have not answered for a minute."""
    hub = made.servers[0].app.hub
    for peer in hub._peers[UUID(person.user_id)]:
        peer.answered -= 60
    for _ in range(25):  # once round, and no pong comes in between
        await hub.tick()


@pytest.mark.gen_test
async def test_unacknowledged_frames_are_pushed_when_a_silent_socket_is_closed(
    services: Services, tmp_path: Path
) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        caller = await made.socket(alice)
        heard, unheard = await chat(alice, bob), await chat(alice, bob)
        await registered(bob, "fcm")
        phone = await made.socket(bob)
        said = await say(alice, heard)
        await say(alice, unheard)
        marks = {"delivered_seq": said["seq"]}
        assert (await bob.post(f"/chats/{heard['id']}/receipts", marks)).status == 200
        body = offer(bob)
        assert (await caller.send("call_offer", **body))["delivered"] is True
        await phone.expect("call_offer")
        await world.google.silent(0.2)
        await falls_silent(made, bob)
        await world.google.expect("call_offer", call_id=body["call_id"])
        await world.google.expect("message_new", chat_id=unheard["id"])
        await world.google.silent()


@pytest.mark.gen_test
async def test_a_silent_socket_causes_no_push_while_another_one_is_alive(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, servers=2) as (made, world):
        alice, bob = made.people
        await registered(bob, "fcm")
        await made.socket(bob, 0)
        await made.socket(bob, 1)
        await say(alice, await chat(alice, bob))
        await falls_silent(made, bob)
        await world.google.silent(3)


# Calls ----------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_call_and_its_end_are_pushed_at_once(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        socket = await made.socket(alice)
        tokens = {provider: await registered(bob, provider) for provider in ("apns", "apns_voip", "fcm")}
        browser = await subscribed(bob, world)
        started, now = time.monotonic(), time.time()
        call_id = await ring(socket, bob)

        rung = await world.apple.expect("call_offer", call_id=call_id)
        assert (rung.token, rung.headers["apns-topic"]) == (tokens["apns_voip"], TOPIC + ".voip")
        assert (rung.headers["apns-push-type"], rung.headers["apns-priority"]) == ("voip", "10")
        assert 55 < int(rung.headers["apns-expiration"]) - now < 65, "it expires with the ring"
        pushed = await world.google.expect("call_offer", call_id=call_id)
        assert pushed.token == tokens["fcm"]
        android = pushed.body["message"]["android"]
        assert android["priority"] == "HIGH"
        assert 50 < int(android["ttl"][:-1]) <= 60
        web = await world.service.expect("call_offer", call_id=call_id)
        assert (web.token, web.headers["urgency"]) == (browser.name, "high")
        assert 50 < int(web.headers["ttl"]) <= 60
        assert max(got.at for got in (rung, pushed, web)) - started < 1 + SLACK, "at once"

        await socket.send("call_hangup", call_id=call_id)
        over = await world.apple.expect("call_hangup", call_id=call_id)
        assert over.token == tokens["apns"], "a push to PushKit may only begin a call"
        assert over.headers["apns-push-type"] == "background"
        assert (await world.google.expect("call_hangup", call_id=call_id)).token == tokens["fcm"]
        hung_up = await world.service.expect("call_hangup", call_id=call_id)
        assert hung_up.headers["topic"] == web.headers["topic"], "it takes the place of one that was not delivered"
        for mailbox in (world.apple, world.google, world.service):
            await mailbox.silent(0.3)


@pytest.mark.gen_test
async def test_an_iphone_without_pushkit_is_alerted(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        token = await registered(bob, "apns")
        call_id = await ring(await made.socket(alice), bob)
        got = await world.apple.expect("call_offer", call_id=call_id)
        assert (got.token, got.headers["apns-push-type"]) == (token, "alert")


@pytest.mark.gen_test
async def test_a_phone_wakes_by_a_push_and_answers_within_the_ring(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, servers=2) as (made, world):
        alice, bob = made.people
        caller = await made.socket(alice, 0)
        await registered(bob, "apns_voip")
        await registered(bob, "apns")
        started = time.monotonic()
        body = offer(bob, encrypted_payload="b2ZmZXI=")
        await caller.send("call_offer", **body)
        await caller.send("ice_candidate", call_id=body["call_id"], encrypted_payload="AAAA")
        woken = await world.apple.expect("call_offer")
        phone = await made.socket(bob, 1)
        rings = await phone.expect("call_offer", call_id=woken.data["call_id"])
        assert rings["encrypted_payload"] == body["encrypted_payload"]
        await phone.expect("ice_candidate")
        assert (await phone.send("call_answer", call_id=rings["call_id"], encrypted_payload="AAAA"))["type"] == "ack"
        await caller.expect("call_answer")
        assert time.monotonic() - started < 60, "the ring"
        await world.apple.silent(0.5)  # it knows that the ring is over


@pytest.mark.gen_test
async def test_a_device_that_did_not_connect_is_notified_when_another_answers(
    services: Services, tmp_path: Path
) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        caller = await made.socket(alice)
        await registered(bob, "fcm")
        await bob.login()  # a second device
        second = await registered(bob, "fcm")
        call_id = await ring(caller, bob)
        for _ in range(2):
            await world.google.expect("call_offer")
        phone = await made.socket(bob)  # the second one
        await phone.send("call_answer", call_id=call_id, encrypted_payload="AAAA")
        assert (await world.google.expect("call_hangup")).token != second
        await world.google.silent(0.3)


@pytest.mark.gen_test
async def test_a_blocked_caller_rings_no_phone(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        mallory, bob = made.people
        await registered(bob, "apns_voip")
        assert (await bob.put(f"/users/{mallory.public_id}/block", {})).status == 204
        socket = await made.socket(mallory)
        call_id = await ring(socket, bob, None)
        await socket.send("call_hangup", call_id=call_id)
        await world.apple.silent(0.5)


@pytest.mark.gen_test
async def test_a_call_that_is_over_before_it_was_pushed_is_not(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        socket = await made.socket(alice)
        await registered(bob, "fcm")
        world.google.answers.append(Reply(503, headers={"retry-after": "2"}))
        call_id = await ring(socket, bob)
        while not world.google.asked:
            await asyncio.sleep(0.01)
        await socket.send("call_hangup", call_id=call_id)
        await world.google.silent(3)


# Prekeys --------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_user_without_prekeys_is_notified(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "apns")
        assert (await alice.get(f"/users/{bob.public_id}/prekeys")).status == 200
        got = await world.apple.expect("prekeys_low")
        assert (got.data, got.headers["apns-push-type"]) == ({"type": "prekeys_low"}, "background")


# What a push says -----------------------------------------------------------------------------------------------------


def texts(value: Any) -> list[str]:
    """Every key and every value in JSON."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [str(value)]


@pytest.mark.gen_test
async def test_a_push_tells_what_happened_and_an_id_and_nothing_else(services: Services, tmp_path: Path) -> None:
    """Of every kind, to every provider: the data, and all that a provider gets besides."""
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        title, text, name = "A title that is secret", "what no provider may read", "Alice in person"
        assert (await alice.put("/users/me", {"display_name": name})).status == 200
        for provider in ("apns", "apns_voip", "fcm"):
            await registered(bob, provider)
        await subscribed(bob, world)
        group = await chat(alice, bob, title=title)
        socket = await made.socket(alice)
        await say(alice, group, text)
        await alice.get(f"/users/{bob.public_id}/prekeys")
        call_id = await ring(socket, bob)
        kinds = {"message_new", "call_offer", "call_hangup", "prekeys_low"}
        seen: list[Got] = []
        mailboxes = (world.apple, world.google, world.service)
        for mailbox in mailboxes:
            seen += [await mailbox.expect(kind) for kind in ("message_new", "prekeys_low", "call_offer")]
        await socket.send("call_hangup", call_id=call_id)
        seen += [await mailbox.expect("call_hangup") for mailbox in mailboxes]

        subject = {"message_new": {"chat_id": group["id"]}, "prekeys_low": {}}
        for got in seen:
            assert got.data == {"type": got.kind, **subject.get(got.kind, {"call_id": call_id})}
            assert got.kind in kinds
            said = " ".join(texts(got.body)) + " ".join(f"{key} {value}" for key, value in got.headers.items())
            secrets = [title, text, name, alice.public_id, bob.public_id, alice.user_id, bob.user_id, alice.token]
            assert [secret for secret in secrets if secret in said] == []
            ids = {word for word in said.split() if len(word) == 36 and word.count("-") == 4}
            assert ids <= {group["id"], call_id}
        for provider in ("apple", "google", "service"):
            mine = [got for got in seen if got.headers[":authority"] == getattr(world, provider).doors.url[8:]]
            assert len(mine) == 4
            assert len({got.size for got in mine}) == 1, "every push is as long as the others"
        loc_keys = {got.body["aps"]["alert"]["title-loc-key"] for got in seen if "alert" in got.body.get("aps", ())}
        assert loc_keys == {"MESSAGE_NEW"}
        assert all(UUID(got.data[key]) for got in seen for key in got.data if key != "type")
