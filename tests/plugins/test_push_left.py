"""Pushes are sent only for pending messages, not for those read, deleted or settled before the push is due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.beside import beside
from tests.client import Account
from tests.plugins.chatting import Town, chat, read, say
from tests.plugins.pushing import pushing, registered
from tests.plugins.test_push import ring
from tests.providers.http2 import Reply
from tests.running import Services

Json = dict[str, Any]


async def ok(answer: Awaitable[Any]) -> None:
    got = await answer
    assert got.status < 300, got.text


async def read_it(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await read(bob, group, posted["seq"])


async def delete_it(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await ok(alice.delete(f"/messages/{posted['id']}"))


async def let_it_expire(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await made.sql("UPDATE messages SET expires_at = now()")


async def block_its_sender(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await ok(bob.put(f"/users/{alice.public_id}/block", {}))


async def leave(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await ok(bob.delete(f"/chats/{group['id']}/participants/{bob.user_id}"))


async def leave_and_come_back(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await leave(made, alice, bob, group, posted)
    await ok(alice.post(f"/chats/{group['id']}/participants", {"public_id": bob.public_id}))


async def end_the_chat(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await ok(alice.delete(f"/chats/{group['id']}"))


async def mute_it(made: Town, alice: Account, bob: Account, group: Json, posted: Json) -> None:
    await ok(bob.put("/push/settings", {"muted_chats": [{"chat_id": group["id"]}]}))


ENDS: list[Callable[[Town, Account, Account, Json, Json], Awaitable[None]]]
ENDS = [
    read_it,
    delete_it,
    let_it_expire,
    block_its_sender,
    leave,
    leave_and_come_back,
    end_the_chat,
    mute_it,
]


@pytest.mark.gen_test
@beside("end", ENDS)
async def test_a_message_that_is_gone_before_its_push_is_not_pushed(
    services: Services, tmp_path: Path, end: Any
) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "apns")
        posted = await say(alice, group)
        await asyncio.sleep(0.2)  # it waits for its second
        await end(made, alice, bob, group, posted)
        await world.apple.silent(2.5)


@pytest.mark.gen_test
async def test_older_messages_that_were_decided_on_are_no_reason(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "apns")
        await say(alice, group)
        await world.apple.expect("message_new")  # and is not read
        await mute_it(made, alice, bob, group, {})
        await say(alice, group)
        await world.apple.silent(2.5)
        await ok(bob.put("/push/settings", {"muted_chats": []}))
        posted = await say(alice, group)
        await delete_it(made, alice, bob, group, posted)
        await world.apple.silent(2.5)
        # Of two that become one push, one is left.
        _, gone = await say(alice, group), await say(alice, group)
        await delete_it(made, alice, bob, group, gone)
        await world.apple.expect("message_new")
        await world.apple.silent(2.5)


@pytest.mark.gen_test
async def test_after_a_deletion_own_messages_alone_send_no_push(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "apns")
        gone = await say(alice, group)
        await say(bob, group)  # from the button "reply" of a notification; nothing is read by it
        await delete_it(made, alice, bob, group, gone)
        await world.apple.silent(2.5)
        await say(alice, group)
        await say(bob, group)
        await world.apple.expect("message_new")


@pytest.mark.gen_test
async def test_a_push_that_is_tried_again_is_judged_again(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        group = await chat(alice, bob)
        await registered(bob, "fcm")
        for reads in (False, True):
            world.google.answers.append(Reply(503, headers={"retry-after": "2"}))
            asked = len(world.google.asked)
            posted = await say(alice, group)
            while len(world.google.asked) == asked:
                await asyncio.sleep(0.01)
            if reads:
                await read(bob, group, posted["seq"])
                await world.google.silent(3)
            else:
                await world.google.expect("message_new")


@pytest.mark.gen_test
async def test_a_ring_whose_caller_was_blocked_meanwhile_is_not_pushed(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        socket = await made.socket(alice)
        await registered(bob, "fcm")
        world.google.answers.append(Reply(503, headers={"retry-after": "2"}))
        await ring(socket, bob)
        while not world.google.asked:
            await asyncio.sleep(0.01)
        await block_its_sender(made, alice, bob, {}, {})
        await world.google.silent(3)


@pytest.mark.gen_test
async def test_prekeys_that_were_topped_up_are_not_asked_for(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path) as (made, world):
        alice, bob = made.people
        await registered(bob, "apns")
        assert (await alice.get(f"/users/{bob.public_id}/prekeys")).status == 200
        more = [bob.prekey(n) for n in range(5000, 5020)]
        await ok(bob.post("/users/me/prekeys", {"one_time_prekeys": more}))
        await world.apple.silent(2.5)
