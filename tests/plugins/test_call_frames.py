"""Frames of calls: their fields, hangups, queued answers, and presence in acks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from handlers.sockets.hub import Hub
from models import calls
from models.database import Database
from tests.client import Account, Socket
from tests.plugins.test_calls import PAYLOAD, offer, pair
from tests.plugins.test_calls import _send_all as send_all
from tests.running import Services, periodic, place, serving

# Hanging up -----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize(
    ("odd", "passed_on"),
    [
        ({"encrypted_payload": ""}, ""),
        ({"encrypted_payload": None}, ""),
        ({"encrypted_payload": 5}, ""),
        ({"encrypted_payload": "not base64!"}, ""),
        ({"encrypted_payload": "A" * 32_772}, ""),
        ({"encrypted_payload": "b3du"}, "b3du"),
        ({"reason": None}, ""),
        ({"reason": "user_hangup", "encrypted_payload": "b3du"}, "b3du"),
        ({"reason": ["declined"]}, ""),
        ({"reason": {}, "call_type": 7, "to_user_id": "", "from_user_id": None, "more": [1]}, ""),
    ],
)
async def test_a_hangup_always_hangs_up(services: Services, odd: dict[str, object], passed_on: str) -> None:
    async with pair(services) as (_, bob, a, b):
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        await b.expect("call_offer")
        await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
        await a.expect("call_answer")
        await a.raw(json.dumps({"type": "call_hangup", "id": "over", "call_id": call_id, **odd}))
        assert (await a.expect("ack", id="over"))["status"] == "ended"
        over = await b.expect("call_hangup")
        assert (over["reason"], over["encrypted_payload"]) == ("hangup", passed_on)


@pytest.mark.gen_test
async def test_a_heartbeat_is_taken_with_whatever_an_older_client_puts_beside_it(services: Services) -> None:
    async with pair(services) as (_, bob, a, b):
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
        beside = {"from_user_id": None, "to_user_id": "", "call_type": None, "encrypted_payload": ""}
        for socket in (a, b):
            assert (await socket.send("call_heartbeat", call_id=call_id, **beside))["type"] == "ack"


# Frames ---------------------------------------------------------------------------------------------------------------

FIELDS = {"call_id", "from_user_id", "to_user_id", "call_type", "encrypted_payload"}


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("servers", [1, 2])
async def test_every_frame_of_a_call_has_the_same_fields(services: Services, servers: int) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        there = (one, two)[servers - 1].url
        alice, bob = await Account().register(one.url), await Account().register(there)
        heard: list[tuple[str, str, str, str]] = []

        async def hears(socket: Socket, to: Account, kind: str, by: Account, **fields: object) -> None:
            frame = await socket.expect(kind, **fields)
            assert frame.keys() >= FIELDS, frame
            assert (frame["from_user_id"], frame["to_user_id"]) == (by.user_id, to.user_id), frame
            assert frame["call_type"] == "video"
            assert isinstance(frame["encrypted_payload"], str)
            heard.append((kind, frame.get("reason", ""), to.public_id, frame["encrypted_payload"]))

        async def ring() -> str:
            call_id = str(uuid4())
            await a.send("call_offer", **{**offer(bob, call_id), "call_type": "video"})
            await hears(b, bob, "call_offer", alice, call_id=call_id)
            await hears(b2, bob, "call_offer", alice, call_id=call_id)
            return call_id

        async with alice.socket() as a, alice.socket() as a2, bob.socket() as b, bob.socket() as b2:
            first = await ring()
            await b.send("call_answer", call_id=first, encrypted_payload=PAYLOAD)
            for socket in (a, a2):
                await hears(socket, alice, "call_answer", bob)
            await hears(b2, bob, "call_hangup", alice, reason="answered_elsewhere")
            await a.send("ice_candidate", call_id=first, encrypted_payload=PAYLOAD)
            await b.send("ice_candidate", call_id=first, encrypted_payload=PAYLOAD)
            for socket in (b, b2):
                await hears(socket, bob, "ice_candidate", alice)
            for socket in (a, a2):
                await hears(socket, alice, "ice_candidate", bob)
            second = await ring()
            for socket in (b, b2):
                await hears(socket, bob, "call_hangup", alice, call_id=first, reason="superseded")
            await hears(a2, alice, "call_hangup", alice, call_id=first, reason="superseded")
            await b.send("call_hangup", call_id=second, reason="declined")
            for socket in (a, a2):
                await hears(socket, alice, "call_hangup", bob, reason="declined")
            await hears(b2, bob, "call_hangup", bob, reason="declined_elsewhere")
            for by, reason in (("bob", "busy"), ("alice", "cancelled"), ("bob", "failed")):
                call_id = await ring()
                sender, own, other, account = (a, a2, b, alice) if by == "alice" else (b, b2, a, bob)
                await sender.send("call_hangup", call_id=call_id, reason=reason, encrypted_payload="b3du")
                await hears(other, bob if by == "alice" else alice, "call_hangup", account, reason=reason)
                await hears(own, account, "call_hangup", account, reason=reason)
                for socket in (a, a2, b, b2):
                    socket.frames.clear()
            await ring()
            await one.app.db.execute("UPDATE call_sessions SET started_at = started_at - interval '61 s'")
            await periodic(one, "call_timeouts")()
            for socket, to, by in ((a, alice, bob), (a2, alice, bob), (b, bob, alice), (b2, bob, alice)):
                await hears(socket, to, "call_hangup", by, reason="timeout")
            fourth = await ring()
            await b.send("call_answer", call_id=fourth, encrypted_payload=PAYLOAD)
            await hears(a, alice, "call_answer", bob)
            await one.app.db.execute("UPDATE call_sessions SET last_heartbeat = last_heartbeat - interval '61 min'")
            await periodic(one, "call_timeouts")()
            for socket, to, by in ((a, alice, bob), (a2, alice, bob), (b, bob, alice), (b2, bob, alice)):
                await hears(socket, to, "call_hangup", by, reason="connection_lost")
            async with alice.socket() as late:
                await ring()
                await late.silent(0)
        # The server passes a payload on to the other side only.
        assert {payload for kind, _, _, payload in heard if kind != "call_hangup"} == {PAYLOAD}
        with_payload = {(reason, to) for kind, reason, to, payload in heard if kind == "call_hangup" and payload}
        assert with_payload == {("busy", alice.public_id), ("cancelled", bob.public_id), ("failed", alice.public_id)}


# The answer of a call whose caller is away ----------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("servers", [1, 2])
async def test_an_answer_is_queued_for_an_absent_caller(services: Services, servers: int) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account().register(one.url), await Account().register((one, two)[servers - 1].url)
        call_id = str(uuid4())
        async with bob.socket() as b:
            async with alice.socket() as a:
                await a.send("call_offer", **offer(bob, call_id))
                await b.expect("call_offer")
            await _gone(one.app.hub, alice)
            ack = await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            assert (ack["status"], ack["delivered"]) == ("accepted", False)
            sent = [PAYLOAD[:-4] + f"{number:03}=" for number in range(5)]
            await send_all(b, call_id, sent)
            async with alice.socket() as a:
                for payload in sent:
                    await a.expect("ice_candidate", encrypted_payload=payload)
                assert (await a.expect("call_answer"))["encrypted_payload"] == PAYLOAD
                again = await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
                assert (again["repeated"], again["delivered"]) == (True, True)
                await a.silent()
                # A heartbeat shows that the caller has the answer, so it is no longer queued for its other devices.
                assert (await a.send("call_heartbeat", call_id=call_id))["type"] == "ack"
                while servers == 1 and await one.app.redis.keys("call:answer:*"):
                    await asyncio.sleep(0.01)
                await b.send("call_hangup", call_id=call_id)
                await a.expect("call_hangup")
                while await one.app.redis.keys("call:answer:*"):
                    await asyncio.sleep(0.01)
                async with alice.socket() as late:
                    await late.silent(0.1)


@pytest.mark.gen_test
async def test_an_answer_that_an_old_socket_took_reaches_the_new_one(services: Services) -> None:
    """A phone changes its network: its old socket is still open on the server, but the client no longer reads it."""
    async with pair(services) as (alice, bob, a, b):
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        await b.expect("call_offer")
        assert (await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD))["delivered"] is True
        await _kept(a, b, call_id)
        async with alice.socket() as new:
            assert (await new.expect("call_answer"))["from_user_id"] == bob.user_id
            await new.expect("ice_candidate")
            await new.silent(0.1)


@pytest.mark.gen_test
async def test_a_heartbeat_before_the_answer_came_does_not_drop_it(services: Services) -> None:
    async with pair(services) as (alice, bob, a, b):
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        await b.expect("call_offer")
        await a.close()
        async with greeting_held_up() as (went, go), alice.socket() as early:
            await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            await went.wait()
            assert (await early.send("call_heartbeat", call_id=call_id))["type"] == "ack"
            go.set()
            await early.expect("call_answer")
            await early.silent(0.1)


@pytest.mark.gen_test
async def test_a_socket_receives_every_event_that_happened_during_its_greeting(services: Services) -> None:
    async with pair(services) as (_, bob, a, b):
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        await b.expect("call_offer")
        async with greeting_held_up() as (went, go), bob.socket() as tablet:
            await went.wait()
            await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            await a.send("call_hangup", call_id=call_id)
            go.set()
            for reason in ("answered_elsewhere", "hangup"):
                await tablet.expect("call_hangup", reason=reason)
            # The offer is sent once more if it was kept for sockets that open, and the tablet may be one by then.
            assert {frame["type"] for frame in tablet.frames} <= {"call_offer"}
            tablet.frames.clear()
            await tablet.silent(0.1)


@contextlib.asynccontextmanager
async def greeting_held_up() -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """Hold up the next greeting: an event when it has come so far, and one that lets it go on."""
    went, go, look = asyncio.Event(), asyncio.Event(), calls.list_pending

    async def slow(db: Database, user_id: UUID, at_most: int) -> list[calls.PendingFrames]:
        went.set()
        await go.wait()
        return await look(db, user_id, at_most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "list_pending", slow)
        yield went, go


async def _kept(a: Socket, b: Socket, call_id: str) -> None:
    """Send a candidate after the answer, and wait until it is kept."""
    await b.send("ice_candidate", call_id=call_id, encrypted_payload=PAYLOAD)
    await a.expect("call_answer")
    await a.expect("ice_candidate")
    await asyncio.sleep(0.2)


async def _gone(hub: Hub, account: Account) -> None:
    while hub.is_here(UUID(account.user_id)):
        await asyncio.sleep(0.01)


# What an ack says of somebody's presence ------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("hide", ["nobody", "contacts", "block", "blocked"])
async def test_only_users_who_may_see_the_presence_learn_of_the_delivery(services: Services, hide: str) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with alice.socket() as a:

            async def probe() -> object:
                call_id = str(uuid4())
                ack = await a.send("call_offer", **offer(bob, call_id))
                await a.send("call_hangup", call_id=call_id)
                return {**ack, "id": "", "call_id": "", "expires_at": ""}

            assert (await probe())["delivered"] is False  # type: ignore[index]
            if hide in ("nobody", "contacts"):
                await bob.put("/users/me", {"settings": {"privacy": {"last_seen": hide}}})
            else:
                one, other = (bob, alice) if hide == "block" else (alice, bob)
                await one.put(f"/users/{other.public_id}/block", {})
            away = await probe()
            async with bob.socket():
                there = await probe()
            assert away == there
            assert there["delivered"] is None  # type: ignore[index]


@pytest.mark.gen_test
async def test_the_ack_does_not_show_that_a_hidden_caller_received_the_answer(services: Services) -> None:
    async with pair(services) as (alice, bob, a, b):
        await alice.put("/users/me", {"settings": {"privacy": {"last_seen": "nobody"}}})
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        answer = await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
        assert (answer["status"], answer["delivered"]) == ("accepted", None)
        again = await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
        assert (again["repeated"], again["delivered"]) == (True, None)
        await a.expect("call_answer")
