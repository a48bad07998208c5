"""What providers answer, and what that means: wait, try again, forget the token, or let it be."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from plugins.push import breaker
from plugins.push.providers import client as provider_client
from tests.beside import beside
from tests.client import Account, ask
from tests.plugins.chatting import Town, chat, message, say
from tests.plugins.pushing import pushing, registered, subscribed
from tests.providers.http2 import Reply
from tests.providers.providers import Google, Mailbox, World
from tests.running import Services

PROVIDERS = ("apns", "fcm", "webpush")


async def device(person: Account, world: World, provider: str) -> Mailbox:
    """Register a device; where its pushes arrive."""
    if provider == "webpush":
        await subscribed(person, world)
        return world.service
    await registered(person, provider)
    return world.apple if provider == "apns" else world.google


async def tokens(made: Town) -> int:
    return len(await made.sql("SELECT 1 FROM push_tokens"))


@pytest.mark.gen_test
@beside("provider", PROVIDERS)
@beside("status", [429, 503])
async def test_a_provider_that_asks_for_time_gets_it(
    services: Services, tmp_path: Path, provider: str, status: int
) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        mailbox = await device(bob, world, provider)
        mailbox.answers.append(Reply(status, headers={"retry-after": "3"}))
        await say(alice, await chat(alice, bob))
        await mailbox.expect("message_new")
        first, second = mailbox.asked
        assert second - first >= 2.9
        await mailbox.silent(1)


@pytest.mark.gen_test
@beside("provider", PROVIDERS)
async def test_failed_pushes_are_retried_at_growing_intervals(
    services: Services, tmp_path: Path, provider: str
) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        mailbox = await device(bob, world, provider)
        mailbox.answers.extend(Reply(500) for _ in range(3))
        await say(alice, await chat(alice, bob))
        await mailbox.expect("message_new")
        pauses = [later - earlier for earlier, later in zip(mailbox.asked, mailbox.asked[1:], strict=False)]
        assert len(pauses) == 3
        for pause, usual in zip(pauses, (1, 2, 4), strict=True):
            assert usual / 2 <= pause < 1.5 * usual + 1.5


@pytest.mark.gen_test
@beside("provider", PROVIDERS)
@beside("broken", ["reset", "goaway", "drop", "garbage", "silence"])
async def test_an_answer_that_breaks_off_is_asked_for_again(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, broken: str
) -> None:
    monkeypatch.setattr(provider_client, "REQUEST_TIMEOUT", 1.0)
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        mailbox = await device(bob, world, provider)
        mailbox.answers.append(Reply(broken=broken))
        await say(alice, await chat(alice, bob))
        await mailbox.expect("message_new")
        assert len(mailbox.asked) == 2


@pytest.mark.gen_test
@beside(
    ("provider", "reply"),
    [
        ("apns", Reply(410, {"reason": "Unregistered", "timestamp": 4_000_000_000_000 - 1})),
        ("apns", Reply(410, {"reason": "Unregistered"})),
        ("fcm", Google.error(404, "UNREGISTERED", "NOT_FOUND")),
        ("webpush", Reply(410)),
        ("webpush", Reply(404)),
    ],
)
async def test_a_token_that_is_gone_is_forgotten(
    services: Services, tmp_path: Path, provider: str, reply: Reply
) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        mailbox = await device(bob, world, provider)
        await registered(bob, "apns_voip")
        mailbox.answers.append(reply)
        await say(alice, group)
        async with asyncio.timeout(20):
            while await tokens(made) > 1:
                await asyncio.sleep(0.05)
        await say(alice, group)
        await mailbox.silent()
        assert len(mailbox.asked) == 1


@pytest.mark.gen_test
async def test_a_token_that_was_registered_again_since_is_kept(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        token = await registered(bob, "apns")
        before = int((time.time() - 3600) * 1000)  # Apple knew it to be gone an hour ago; then the app came back
        world.apple.answers.append(Reply(410, {"reason": "Unregistered", "timestamp": before}))
        await say(alice, group)
        while not world.apple.asked:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert await tokens(made) == 1
        await say(alice, group)
        await world.apple.expect("message_new")

        # And one that was registered while the provider was answering.
        world.apple.answers.append(Reply(410, {"reason": "Unregistered"}, after=0.5))
        await say(alice, group)
        while len(world.apple.asked) < 3:
            await asyncio.sleep(0.02)
        assert (await bob.put("/push/tokens", {"provider": "apns", "token": token})).status == 200
        await asyncio.sleep(1)
        assert await tokens(made) == 1


@pytest.mark.gen_test
@beside(
    ("provider", "reply"),
    [
        ("apns", Reply(400, {"reason": "BadDeviceToken"})),
        ("apns", Reply(400, b"<html>")),
        ("fcm", Google.error(400, "INVALID_ARGUMENT")),
        ("fcm", Google.error(403, "SENDER_ID_MISMATCH", "PERMISSION_DENIED")),
        ("webpush", Reply(413)),
        ("webpush", Reply(301, headers={"location": "https://127.0.0.1:1/"})),
    ],
)
async def test_a_rejected_push_is_not_retried_and_its_token_is_kept(
    services: Services, tmp_path: Path, provider: str, reply: Reply
) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        mailbox = await device(bob, world, provider)
        mailbox.answers.append(reply)
        await say(alice, group)
        await mailbox.silent(3)
        assert (len(mailbox.asked), await tokens(made)) == (1, 1)
        await say(alice, group)
        await mailbox.expect("message_new")


# Tokens of the server's own -------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_apple_is_shown_one_token_until_it_wants_another(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "apns")
        for _ in range(3):
            await say(alice, await chat(alice, bob))
        for _ in range(3):
            await world.apple.expect("message_new")
        assert len(world.apple.tokens) == 1
        await asyncio.sleep(1)  # the time in it counts seconds
        world.apple.answers.append(Reply(403, {"reason": "ExpiredProviderToken"}))
        await say(alice, await chat(alice, bob))
        await world.apple.expect("message_new")
        assert len(world.apple.tokens) == 2


@pytest.mark.gen_test
async def test_google_is_asked_for_a_token_once_and_again_when_it_has_ended(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "fcm")
        chats = [await chat(alice, bob) for _ in range(5)]
        await asyncio.gather(*(say(alice, group) for group in chats))
        for _ in chats:
            await world.google.expect("message_new")
        assert len(world.google.issued) == 1
        world.google.issued.clear()  # revoked
        world.google.token_answers.append(Reply(500))
        world.google.token_answers.append(Reply(200, b"no JSON"))
        await say(alice, chats[0])
        await world.google.expect("message_new")
        assert len(world.google.issued) == 1


# Outages --------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=90)
async def test_an_outage_of_a_provider_affects_nothing_else(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets, the other providers and the server's health work on. The server pauses its requests to the provider and
    sends the missed pushes when the provider is back, one for each chat."""
    monkeypatch.setattr(breaker, "MAX_PAUSE", 8.0)
    async with pushing(services, tmp_path, people=3) as (made, world):
        alice, bob, carol = made.people
        world.apple.always = Reply(503)
        await registered(bob, "apns")
        await registered(bob, "fcm")
        here = await made.socket(carol)
        chats = [await chat(alice, bob, carol) for _ in range(10)]
        took = []
        for group in chats:
            started = time.monotonic()
            await say(alice, group)
            await here.expect("message_new", chat_id=group["id"])
            took.append(time.monotonic() - started)
        assert sorted(took)[5] < 1
        for _ in chats:
            await world.google.expect("message_new")
        assert (await ask(alice.url, "GET", "/health")).json["status"] == "healthy"
        await asyncio.sleep(6)
        asked = len(world.apple.asked)
        assert asked < 40, "not hammered"
        for group in chats:  # more of the same waits in the same places
            await say(alice, group)
        await asyncio.sleep(2)
        waiting = await made.servers[0].app.redis.zcard("push:later")
        assert waiting <= 20

        world.apple.always = None
        arrived = {(await world.apple.expect("message_new", 40)).data["chat_id"] for _ in chats}
        assert arrived == {group["id"] for group in chats}


@pytest.mark.gen_test
async def test_messages_seen_during_an_outage_are_not_pushed_after_it(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "apns")
        world.apple.answers.append(Reply(503, headers={"retry-after": "2"}))
        await say(alice, await chat(alice, bob))
        while not world.apple.asked:
            await asyncio.sleep(0.02)
        assert (await bob.get("/sync")).status == 200
        await world.apple.silent(4)


@pytest.mark.gen_test(timeout=120)
async def test_a_slow_provider_keeps_no_call_waiting(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, people=3) as (made, world):
        alice, bob, carol = made.people
        await registered(bob, "apns")
        await registered(carol, "apns_voip")
        world.apple.always = Reply(after=7)
        for _ in range(70):  # more than are on their way at a time
            group = await chat(alice, bob)
            assert (await alice.post(f"/chats/{group['id']}/messages", message())).status == 201
        await asyncio.sleep(2)
        world.apple.always = None
        socket = await made.socket(alice)
        call = {"call_id": group["id"], "to_user_id": carol.user_id, "encrypted_payload": "AAAA"}
        await socket.send("call_offer", **call)
        rung = await world.apple.expect("call_offer")
        messages = [await world.apple.expect("message_new") for _ in range(70)]
        assert rung.at < max(got.at for got in messages), "it waited for none of them"
