"""Typing: passed on to the others at most every 3 s, to who takes part at that moment, and kept nowhere."""

from __future__ import annotations

import asyncio
import time

import pytest

from plugins.chats import typing
from tests.plugins.chatting import SECONDS, chat, message, town
from tests.running import Services


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_the_others_hear_it_and_not_too_often(
    services: Services, servers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with town(services, servers, people=4) as made:
        alice, bob, carol, dave = made.people
        a, b, c, d = await made.sockets(alice, bob, carol, dave)
        tablet = await made.socket(alice, 1)
        group = await chat(alice, bob, carol)
        other = await chat(alice, bob, kind="direct")
        for socket in (a, tablet, b, c, b, a, tablet):
            await socket.expect("chat_created", SECONDS)
        started = time.monotonic()
        for _ in range(5):
            assert (await a.send("typing", chat_id=group["id"]))["type"] == "ack"
        assert (await a.send("typing", chat_id=other["id"]))["type"] == "ack", "another chat counts by itself"
        for socket in (b, c):
            heard = await socket.expect("typing", SECONDS, chat_id=group["id"])
            assert heard == {"type": "typing", "chat_id": group["id"], "user_id": alice.user_id}
        await b.expect("typing", SECONDS, chat_id=other["id"])
        assert (await c.send("typing", chat_id=group["id"]))["type"] == "ack", "and so does another person"
        for socket in (a, tablet, b):
            await socket.expect("typing", SECONDS, user_id=carol.user_id)
        if time.monotonic() - started < 2:
            for socket in (a, tablet, b, c, d):
                await socket.silent(0.1)
        assert (await d.send("typing", chat_id=group["id"]))["code"] == "not_found"
        assert typing.INTERVAL == 3
        await asyncio.sleep(max(0, started + 3.5 - time.monotonic()))
        await a.send("typing", chat_id=group["id"])
        for socket in (b, c):
            await socket.expect("typing", SECONDS, user_id=alice.user_id)
        # It is no event: nothing of it is left.
        assert [row["last_seq"] for row in await made.sql("SELECT last_seq FROM chat_threads")] == [1, 1]


@pytest.mark.gen_test
async def test_a_channel_sends_no_typing_frames(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        channel = await chat(alice, bob, kind="channel")
        a, b = await made.sockets(alice, bob)
        assert (await a.send("typing", chat_id=channel["id"]))["type"] == "ack"
        assert (await b.send("typing", chat_id=channel["id"]))["code"] == "forbidden"
        await b.silent()
        assert (await a.send("typing", chat_id="x"))["code"] == "invalid_request"


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("change", ["removed", "deleted", "restricted", "blocked"])
async def test_a_user_who_lost_access_neither_sends_nor_receives_typing(
    services: Services, servers: int, change: str
) -> None:
    """Whatever another instance remembers of the chat."""
    async with town(services, servers, people=4) as made:
        alice, bob, carol, dave = made.people
        kind = "direct" if change == "blocked" else "group"
        here = await chat(alice, bob, *(() if kind == "direct" else (carol, dave)), kind=kind)
        path = f"/chats/{here['id']}"
        b, d = await made.sockets(bob, dave)
        a = await made.socket(alice)
        assert (await b.send("message_send", chat_id=here["id"], **message()))["type"] == "ack"
        if kind == "group":
            assert (await d.send("message_send", chat_id=here["id"], **message()))["type"] == "ack"
        if change == "removed":
            assert (await alice.delete(f"{path}/participants/{bob.user_id}")).status == 204
        elif change == "deleted":
            assert (await alice.delete(path)).status == 204
        elif change == "restricted":
            assert (await alice.put(f"{path}/participants/{bob.user_id}", {"role": "restricted"})).status == 200
        else:
            assert (await alice.put(f"/users/{bob.public_id}/block", {})).status == 204
        expected = "not_found" if change in ("removed", "deleted") else "forbidden"
        assert (await b.send("typing", chat_id=here["id"])).get("code") == expected
        if change == "removed":
            # Dave is on bob's server; alice's knows of the removal.
            assert (await d.send("typing", chat_id=here["id"]))["type"] == "ack"
            await a.expect("typing", SECONDS, user_id=dave.user_id)
            await asyncio.sleep(0.2)
            assert [frame for frame in b.frames if frame["type"] == "typing"] == []
        assert [
            frame
            for frame in (*a.frames, *d.frames)
            if frame.get("user_id") == bob.user_id and frame["type"] == "typing"
        ] == []
