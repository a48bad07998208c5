"""presence_subscribe: presence frames on every instance, only of users that show their presence to the subscriber."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest

from models.database import Database, Row, Unavailable
from plugins.presence import subscriptions
from tests.client import Account, Socket, ask
from tests.running import Services, place, serving


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_subscriber_receives_the_presence_at_once_and_each_change(services: Services, servers: int) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = await Account(one_time=0).register(one.url)
        bob = await Account(one_time=0).register(one.url)
        there = (one, two)[servers - 1].url
        async with alice.socket() as watcher:
            ack = await watcher.send("presence_subscribe", user_ids=[bob.user_id])
            assert ack["type"] == "ack"
            before = await watcher.expect("presence", user_id=bob.user_id)
            assert before["is_online"] is False
            async with bob.socket(there):
                assert (await watcher.expect("presence", user_id=bob.user_id))["is_online"] is True
                async with bob.socket(one.url):
                    await watcher.silent()
                await watcher.silent()
            after = await watcher.expect("presence", user_id=bob.user_id)
            assert after["is_online"] is False
            assert after["last_seen"] is not None

            # A new list takes the place of the old one.
            await watcher.send("presence_subscribe", user_ids=[])
            async with bob.socket(there):
                await watcher.silent()


@pytest.mark.gen_test(timeout=60)
async def test_a_subscriber_receives_nothing_of_users_that_hide_or_block(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice, bob, carol = [await Account(one_time=0).register(one.url) for _ in range(3)]
        hidden = {"settings": {"privacy": {"last_seen": "nobody"}}}
        assert (await bob.put("/users/me", hidden)).status == 200
        async with alice.socket() as watcher:
            await watcher.send("presence_subscribe", user_ids=[bob.user_id, carol.user_id])
            await watcher.expect("presence", user_id=carol.user_id)
            await watcher.silent()
            async with bob.socket():
                await watcher.silent()
            # A block counts from the next change on, also for a list that was sent before it.
            assert (await carol.put(f"/users/{alice.public_id}/block", {})).status == 204
            async with carol.socket():
                await watcher.silent()


@pytest.mark.gen_test
async def test_a_list_has_an_end(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account(one_time=0).register(one.url)
        async with alice.socket() as socket:
            refused = await socket.send("presence_subscribe", user_ids=[alice.user_id] * 201)
            assert (refused["type"], refused["code"]) == ("error", "invalid_request")


HIDDEN = {"is_online": False, "last_seen": None}


async def _taken_back(watcher: Socket, of: Account) -> None:
    frame = await watcher.expect("presence", user_id=of.user_id)
    assert {name: frame[name] for name in HIDDEN} == HIDDEN


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("by", ["block", "blocked", "setting", "verification"])
async def test_a_change_that_hides_a_user_ends_the_presence_frames_of_open_sockets(
    services: Services, servers: int, by: str
) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        verification = f"/users/{alice.public_id}/verify"
        block = f"/users/{alice.public_id}/block" if by == "block" else f"/users/{bob.public_id}/block"
        blocker = bob if by == "block" else alice
        if by == "verification":
            await bob.put("/users/me", {"settings": {"privacy": {"last_seen": "contacts"}}})
            await bob.post(verification, {"verified_fingerprint": alice.fingerprint, "method": "voice"})
        async with alice.socket((one, two)[servers - 1].url) as watcher, alice.socket(one.url) as other:
            async with bob.socket(one.url):
                while not (await bob.get("/users/me")).json["is_online"]:
                    await asyncio.sleep(0.02)
                for socket in (watcher, other):
                    await socket.send("presence_subscribe", user_ids=[bob.user_id])
                    assert (await socket.expect("presence"))["is_online"] is True
                if by in ("block", "blocked"):
                    assert (await blocker.put(block, {})).status == 204
                elif by == "setting":
                    await bob.put("/users/me", {"settings": {"privacy": {"last_seen": "nobody"}}})
                else:
                    assert (await bob.delete(verification)).status == 204
                for socket in (watcher, other):
                    await _taken_back(socket, bob)
            for socket in (watcher, other):
                await socket.silent()
            async with bob.socket(one.url):
                for socket in (watcher, other):
                    await socket.silent()
                # And given back.
                if by in ("block", "blocked"):
                    assert (await blocker.delete(block)).status == 204
                elif by == "setting":
                    await bob.put("/users/me", {"settings": {"privacy": {"last_seen": "everyone"}}})
                else:
                    await bob.post(verification, {"verified_fingerprint": alice.fingerprint, "method": "voice"})
                for socket in (watcher, other):
                    assert (await socket.expect("presence", user_id=bob.user_id))["is_online"] is True
                    await socket.silent()


@pytest.mark.gen_test(timeout=60)
async def test_a_block_while_a_list_is_read_is_not_missed(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        seen, went, go = subscriptions.presence.list_visible, asyncio.Event(), asyncio.Event()

        async def slow(db: Database, asked: Sequence[tuple[UUID, UUID]]) -> list[Row]:
            rows = await seen(db, asked)
            if not went.is_set():
                went.set()
                await go.wait()
            return rows

        async with alice.socket() as watcher, bob.socket():
            while not (await bob.get("/users/me")).json["is_online"]:
                await asyncio.sleep(0.02)
            monkeypatch.setattr(subscriptions.presence, "list_visible", slow)
            asking = asyncio.ensure_future(watcher.send("presence_subscribe", user_ids=[bob.user_id]))
            await went.wait()
            assert (await bob.put(f"/users/{alice.public_id}/block", {})).status == 204
            await asyncio.sleep(0.1)
            go.set()
            await asking
            assert (await watcher.expect("presence"))["is_online"] is True  # as it was when it was read
            await _taken_back(watcher, bob)


@pytest.mark.gen_test(timeout=60)
async def test_a_presence_is_taken_back_though_the_database_was_away(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "RETRY_SECONDS", 0.05)
    async with place(services) as shared, serving(shared) as one:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        seen, failed = subscriptions.presence.list_visible, []

        async def away(db: Database, asked: Sequence[tuple[UUID, UUID]]) -> list[Row]:
            if len(failed) < 2:
                failed.append(1)
                raise Unavailable
            return await seen(db, asked)

        async with alice.socket() as watcher, bob.socket():
            while not (await bob.get("/users/me")).json["is_online"]:
                await asyncio.sleep(0.02)
            await watcher.send("presence_subscribe", user_ids=[bob.user_id])
            await watcher.expect("presence")
            monkeypatch.setattr(subscriptions.presence, "list_visible", away)
            await bob.put("/users/me", {"settings": {"privacy": {"last_seen": "nobody"}}})
            await _taken_back(watcher, bob)


@pytest.mark.gen_test(timeout=60)
async def test_an_erased_account_goes_offline(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        async with alice.socket() as watcher, bob.socket():
            while not (await bob.get("/users/me")).json["is_online"]:
                await asyncio.sleep(0.02)
            await watcher.send("presence_subscribe", user_ids=[bob.user_id])
            await watcher.expect("presence")
            erased = await ask(bob.url, "DELETE", "/users/me", {"password": bob.password}, bob.token)
            assert erased.status == 204
            await _taken_back(watcher, bob)
