"""Calls between users of one server and of two: states, frames, history."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pytest

from plugins.calls import calls as calls_module
from plugins.calls.pending import PendingOffers
from tests.client import Account, Socket, ask
from tests.running import Services, periodic, place, program, serving

PAYLOAD = "b3BhcXVlIGNpcGhlcnRleHQ="


@contextlib.asynccontextmanager
async def pair(services: Services, servers: int = 1) -> AsyncIterator[tuple[Account, Account, Socket, Socket]]:
    """Two users with a socket each; with two servers each on one of them."""
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(place(services))
        urls = [(await stack.enter_async_context(serving(shared))).url for _ in range(servers)]
        alice, bob = await Account().register(urls[0]), await Account().register(urls[-1])
        sockets = [await stack.enter_async_context(account.socket()) for account in (alice, bob)]
        yield alice, bob, sockets[0], sockets[1]


def offer(to: Account, call_id: str) -> dict[str, str]:
    return {"call_id": call_id, "to_user_id": to.user_id, "call_type": "audio", "encrypted_payload": PAYLOAD}


@pytest.mark.gen_test
async def test_a_second_call_on_the_same_sockets_passes_on_its_candidates(services: Services) -> None:
    async with pair(services) as (_, bob, a, b):
        for call_id in (str(uuid4()), str(uuid4())):
            await a.send("call_offer", **offer(bob, call_id))
            await a.send("ice_candidate", call_id=call_id, encrypted_payload=PAYLOAD)  # while it rings
            assert (await b.expect("ice_candidate"))["call_id"] == call_id
            await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            await b.send("ice_candidate", call_id=call_id, encrypted_payload=PAYLOAD)  # behind the answer
            assert (await a.expect("ice_candidate"))["call_id"] == call_id
            await a.send("call_hangup", call_id=call_id)


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_call_from_offer_to_hangup(services: Services, servers: int) -> None:
    async with pair(services, servers) as (alice, bob, a, b):
        call_id = str(uuid4())
        ack = await a.send("call_offer", **offer(bob, call_id), from_user_id=bob.user_id)
        assert ack["type"] == "ack"
        assert ack["delivered"] is True
        rings = await b.expect("call_offer")
        assert rings["from_user_id"] == alice.user_id
        assert rings["encrypted_payload"] == PAYLOAD
        assert rings["expires_at"] == ack["expires_at"]
        assert datetime.fromisoformat(rings["expires_at"]).tzinfo is not None

        assert (await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD))["type"] == "ack"
        assert (await a.expect("call_answer"))["from_user_id"] == bob.user_id
        for number in range(3):
            candidate = PAYLOAD[:-4] + f"{number:03}="
            assert (await a.send("ice_candidate", call_id=call_id, encrypted_payload=candidate))["type"] == "ack"
            assert (await b.expect("ice_candidate"))["encrypted_payload"] == candidate
        assert (await b.send("ice_candidate", call_id=call_id, encrypted_payload=PAYLOAD))["type"] == "ack"
        assert (await a.expect("ice_candidate"))["from_user_id"] == bob.user_id
        assert (await a.send("call_heartbeat", call_id=call_id))["type"] == "ack"

        assert (await b.send("call_hangup", call_id=call_id))["end_reason"] == "hangup"
        assert (await a.expect("call_hangup"))["reason"] == "hangup"
        again = await a.send("call_hangup", call_id=call_id)
        assert (again["type"], again["status"]) == ("ack", "ended")

        [outgoing] = (await alice.get("/calls")).json
        [incoming] = (await bob.get("/calls")).json
        assert (outgoing["direction"], incoming["direction"]) == ("outgoing", "incoming")
        assert (outgoing["status"], outgoing["end_reason"]) == ("ended", "hangup")
        assert outgoing["peer"]["public_id"] == bob.public_id
        assert incoming["peer"]["user_id"] == alice.user_id
        assert outgoing["duration_seconds"] == 0
        assert (await bob.get(f"/calls/{call_id}")).json == incoming
        stranger = await Account().register(alice.url)
        assert (await stranger.get(f"/calls/{call_id}")).status == 404


@pytest.mark.gen_test
async def test_the_end_reason_depends_on_who_hangs_up_and_when(services: Services) -> None:
    async with pair(services) as (alice, bob, a, b):
        for who, reason, shown, status in (
            (a, "hangup", "cancelled", "missed"),
            (b, "declined", "declined", "rejected"),
            (b, "busy", "busy", "rejected"),
            (b, "hangup", "declined", "rejected"),
            (a, "failed", "failed", "failed"),
        ):
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.expect("call_offer")
            assert (await who.send("call_hangup", call_id=call_id, reason=reason))["status"] == status
            other = b if who is a else a
            assert (await other.expect("call_hangup"))["reason"] == shown
            entry = (await alice.get(f"/calls/{call_id}")).json
            assert (entry["status"], entry["end_reason"]) == (status, shown)


@pytest.mark.gen_test
async def test_other_events_are_refused_and_change_nothing(services: Services) -> None:
    async with pair(services) as (alice, bob, a, b):
        mallory = await Account().register(alice.url)
        async with mallory.socket() as m:
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.expect("call_offer")
            for kind in ("call_answer", "ice_candidate", "call_hangup", "call_heartbeat"):
                refused = await m.send(kind, call_id=call_id, encrypted_payload=PAYLOAD)
                assert (refused["type"], refused["code"]) == ("error", "not_participant"), kind
                unknown = await m.send(kind, call_id=str(uuid4()), encrypted_payload=PAYLOAD)
                assert unknown["code"] == "call_not_found"
            assert (await a.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD))["code"] == "invalid_state"
            assert (await b.send("call_heartbeat", call_id=call_id))["code"] == "invalid_state"
            assert (await m.send("call_offer", **offer(bob, call_id)))["code"] == "call_id_conflict"
            unknown_user = Account(user_id=str(uuid4()))
            assert (await a.send("call_offer", **offer(unknown_user, str(uuid4()))))["code"] == "user_not_found"
            assert (await a.send("call_offer", **offer(alice, str(uuid4()))))["code"] == "cannot_call_self"
            assert (await alice.get(f"/calls/{call_id}")).json["status"] == "ringing"
            await m.silent()
            await b.silent()


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_glare_supersession_and_repetition(services: Services, servers: int) -> None:
    async with pair(services, servers) as (alice, bob, a, b):
        first, second, third = (str(uuid4()) for _ in range(3))
        await a.send("call_offer", **offer(bob, first))
        await b.expect("call_offer")
        glare = await b.send("call_offer", **offer(alice, str(uuid4())))
        assert (glare["code"], glare["call_id"]) == ("glare", first)

        repeated = await a.send("call_offer", **offer(bob, first))
        assert (repeated["type"], repeated["repeated"]) == ("ack", True)
        await b.silent()

        await a.send("call_offer", **offer(bob, second))
        assert (await b.expect("call_hangup", call_id=first))["reason"] == "superseded"
        await b.expect("call_offer", call_id=second)
        await b.send("call_answer", call_id=second, encrypted_payload=PAYLOAD)
        await a.expect("call_answer")
        # Bob's phone crashed in the answered call and calls again.
        assert (await b.send("call_offer", **offer(alice, third)))["type"] == "ack"
        assert (await a.expect("call_hangup", call_id=second))["reason"] == "superseded"
        await a.expect("call_offer", call_id=third)
        calls = {call["id"]: call for call in (await alice.get("/calls")).json}
        assert [calls[c]["end_reason"] for c in (first, second, third)] == ["superseded", "superseded", None]


@pytest.mark.gen_test
async def test_several_devices_ring_and_the_first_answer_wins(services: Services) -> None:
    async with pair(services, 2) as (alice, bob, a, b), bob.socket() as tablet, alice.socket() as desk:
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        await tablet.expect("call_offer")
        await b.expect("call_offer")
        answers = await asyncio.gather(
            *(
                s.send("call_answer", call_id=call_id, encrypted_payload=own)
                for s, own in ((b, PAYLOAD), (tablet, "b3duIQ=="))
            )
        )
        assert sorted(answer["type"] for answer in answers) == ["ack", "error"]
        loser = b if answers[0]["type"] == "error" else tablet
        winner = tablet if loser is b else b
        assert (await loser.expect("call_hangup"))["reason"] == "answered_elsewhere"
        await a.expect("call_answer")
        await desk.expect("call_answer")
        await winner.silent()


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_exactly_one_of_a_simultaneous_answer_and_hangup_wins(services: Services, servers: int) -> None:
    async with pair(services, servers) as (alice, bob, a, b):
        outcomes = set()
        for _ in range(20):
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.expect("call_offer")
            hung, answered = await asyncio.gather(
                a.send("call_hangup", call_id=call_id),
                b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD),
            )
            assert hung["type"] == "ack"
            reason = (await b.expect("call_hangup"))["reason"]
            if answered["type"] == "ack":  # the answer came first, then the hangup ended an accepted call
                assert reason == "hangup"
                await a.expect("call_answer")
            else:
                assert (answered["code"], reason) == ("invalid_state", "cancelled")
            entry = (await bob.get(f"/calls/{call_id}")).json
            assert entry == {
                **(await alice.get(f"/calls/{call_id}")).json,
                "direction": "incoming",
                "peer": entry["peer"],
            }
            assert entry["end_reason"] == reason
            outcomes.add(reason)
        await a.silent()
        await b.silent()


@pytest.mark.gen_test
async def test_only_one_instance_ends_an_unanswered_call_as_missed(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account().register(one.url), await Account().register(two.url)
        async with alice.socket() as a, bob.socket() as b:
            ringing, talking = str(uuid4()), str(uuid4())
            carol = await Account().register(one.url)
            async with carol.socket() as c:
                await a.send("call_offer", **offer(bob, ringing))
                await c.send("call_offer", **offer(bob, talking))
                await b.expect("call_offer", call_id=ringing)
                await b.expect("call_offer", call_id=talking)
                await b.send("call_answer", call_id=talking, encrypted_payload=PAYLOAD)
                await c.expect("call_answer")
                db = one.app.db
                await db.execute("UPDATE call_sessions SET started_at = started_at - interval '61 s'")
                await db.execute("UPDATE call_sessions SET last_heartbeat = last_heartbeat - interval '61 min'")
                sweeps = [periodic(server, "call_timeouts") for server in (one, two)]
                await asyncio.gather(*(sweep() for sweep in sweeps * 3))
                assert (await a.expect("call_hangup"))["reason"] == "timeout"
                assert (await b.expect("call_hangup", call_id=ringing))["reason"] == "timeout"
                assert (await b.expect("call_hangup", call_id=talking))["reason"] == "connection_lost"
                assert (await c.expect("call_hangup"))["reason"] == "connection_lost"
                for socket in (a, b, c):
                    await socket.silent(0.1)
                entry = (await bob.get(f"/calls/{ringing}")).json
                assert (entry["status"], entry["end_reason"]) == ("missed", "timeout")
                entry = (await bob.get(f"/calls/{talking}")).json
                assert (entry["status"], entry["end_reason"]) == ("ended", "heartbeat_lost")


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_ring_ends_in_time_by_the_timer_of_the_instance_that_took_the_offer(
    services: Services, monkeypatch: pytest.MonkeyPatch, servers: int
) -> None:
    monkeypatch.setattr(calls_module, "RING_SECONDS", 0.5)
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account().register(one.url), await Account().register((one, two)[servers - 1].url)
        async with alice.socket() as a, bob.socket() as b:
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.expect("call_offer")
            await one.app.db.execute("UPDATE call_sessions SET started_at = started_at - interval '59.5 s'")
            for socket in (a, b):
                assert (await socket.expect("call_hangup", call_id=call_id))["reason"] == "timeout"
            await asyncio.gather(*(periodic(server, "call_timeouts")() for server in (one, two)))
            for socket in (a, b):
                await socket.silent(0.1)
            assert await one.app.redis.keys("call:waiting:*") == []
        assert (await bob.get(f"/calls/{call_id}")).json["end_reason"] == "timeout"


@pytest.mark.gen_test(timeout=60)
async def test_a_ring_whose_instance_died_is_ended_by_another(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, serving(shared) as stays, program(shared, tmp_path) as dies:
        alice, bob = await Account().register(stays.url), await Account().register(stays.url)
        async with bob.socket() as b, contextlib.AsyncExitStack() as lost:
            call_id = str(uuid4())
            a = await lost.enter_async_context(alice.socket(dies.url))
            await a.send("call_offer", **offer(bob, call_id))
            await b.expect("call_offer")
            dies.kill()
            await a.expect("closed")
            async with alice.socket() as back:
                await stays.app.db.execute("UPDATE call_sessions SET started_at = started_at - interval '60 s'")
                await asyncio.gather(*(periodic(stays, "call_timeouts")() for _ in range(3)))
                for socket in (back, b):
                    assert (await socket.expect("call_hangup", call_id=call_id))["reason"] == "timeout"
                    await socket.silent(0.1)
            while await stays.app.redis.keys("call:waiting:*"):
                await asyncio.sleep(0.01)
        sweeps = [every for feature in stays.features for every in feature.periodic if every.name == "call_timeouts"]
        assert [sweep.seconds for sweep in sweeps] == [30]


@pytest.mark.gen_test
async def test_a_call_past_its_ring_time_neither_rings_nor_is_answered_before_it_is_ended(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with alice.socket() as a, bob.socket() as b:
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.expect("call_offer")
            await server.app.db.execute(
                "UPDATE call_sessions SET started_at = now() - interval '60 s', created_at = now() - interval '60 s'"
            )
            late = await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            assert late["code"] == "invalid_state"
            async with bob.socket() as woken:
                await woken.silent()
            await a.silent(0.1)


@pytest.mark.gen_test
async def test_a_call_with_an_account_that_was_erased_ends(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with alice.socket() as a, bob.socket() as b:
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            await a.expect("call_answer")
            erased = await ask(bob.url, "DELETE", "/users/me", {"password": bob.password}, bob.token)
            assert erased.status == 204
            await periodic(server, "call_timeouts")()
            assert (await a.expect("call_hangup"))["reason"] == "connection_lost"
            entry = (await alice.get(f"/calls/{call_id}")).json
            assert (entry["status"], entry["peer"]) == ("ended", None)


@pytest.mark.gen_test
async def test_a_heartbeat_of_either_keeps_a_call_alive(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with alice.socket() as a, bob.socket() as b:
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            for socket in (a, b):
                await server.app.db.execute("UPDATE call_sessions SET last_heartbeat = now() - interval '61 min'")
                assert (await socket.send("call_heartbeat", call_id=call_id))["type"] == "ack"
                await periodic(server, "call_timeouts")()
                assert (await alice.get(f"/calls/{call_id}")).json["status"] == "accepted"


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_callee_who_connects_in_time_receives_every_frame_in_order_and_once(
    services: Services, servers: int
) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account().register(one.url), await Account().register((one, two)[servers - 1].url)
        call_id = str(uuid4())
        async with alice.socket() as a:
            ack = await a.send("call_offer", **offer(bob, call_id))
            assert (ack["type"], ack["delivered"]) == ("ack", False)
            sent = [PAYLOAD[:-4] + f"{number:03}=" for number in range(40)]
            for payload in sent[:20]:
                await a.send("ice_candidate", call_id=call_id, encrypted_payload=payload)
            later = asyncio.ensure_future(_send_all(a, call_id, sent[20:]))
            async with bob.socket() as phone, bob.socket() as tablet:
                await later
                for device in (phone, tablet):
                    assert (await device.expect("call_offer"))["call_id"] == call_id
                    assert device.frames[0]["type"] == "ice_candidate"
                    while len(device.frames) < 40:
                        await asyncio.sleep(0.01)
                    assert [frame["encrypted_payload"] for frame in device.frames] == sent
                    device.frames.clear()
                await phone.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
                await tablet.expect("call_hangup", reason="answered_elsewhere")
                await a.expect("call_answer")
                while await one.app.redis.keys("call:waiting:*"):
                    await asyncio.sleep(0.01)
            async with bob.socket() as again:
                await again.silent(0.2)
            await a.send("call_hangup", call_id=call_id)


@pytest.mark.gen_test
async def test_a_device_that_connects_elsewhere_during_the_ring_receives_the_same_frames(
    services: Services,
) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        call_id = str(uuid4())
        async with alice.socket() as a, bob.socket() as phone:
            assert (await a.send("call_offer", **offer(bob, call_id)))["delivered"] is True
            sent = [PAYLOAD[:-4] + f"{number:03}=" for number in range(60)]
            await _send_all(a, call_id, sent[:20])
            later = asyncio.ensure_future(_send_all(a, call_id, sent[20:]))
            async with bob.socket(two.url) as tablet:
                await later
                for device in (phone, tablet):
                    while len(device.frames) < 61:
                        await asyncio.sleep(0.01)
                    assert device.frames[0]["type"] == "call_offer"
                    assert [frame["encrypted_payload"] for frame in device.frames[1:]] == sent
                    device.frames.clear()
                await tablet.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
                await phone.expect("call_hangup", reason="answered_elsewhere")
                await a.expect("call_answer")
                for device in (phone, tablet):
                    await device.silent(0.1)


async def _send_all(socket: Socket, call_id: str, payloads: list[str]) -> None:
    for payload in payloads:
        await socket.send("ice_candidate", call_id=call_id, encrypted_payload=payload)


@pytest.mark.gen_test
async def test_call_offers_are_rate_limited(services: Services) -> None:
    limits = {"RATE_LIMITS": "on", "RATE_LIMIT_OFFERS": "2/hour"}
    async with place(services) as shared, serving(shared, **limits) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with alice.socket() as a:
            answers = [await a.send("call_offer", **offer(bob, str(uuid4()))) for _ in range(3)]
            assert [answer["type"] for answer in answers] == ["ack", "ack", "error"]
            assert (answers[2]["code"], answers[2]["retry_after"] > 0) == ("rate_limited", True)


@pytest.mark.gen_test
async def test_a_call_has_300_candidates_whichever_instances_they_come_to(services: Services) -> None:
    async with place(services) as shared, contextlib.AsyncExitStack() as stack:
        urls = [(await stack.enter_async_context(serving(shared, RATE_LIMITS="on"))).url for _ in range(2)]
        alice, bob = await Account().register(urls[0]), await Account().register(urls[1])
        mallory = await Account().register(urls[0])
        phone, desk, other, stranger = [
            await stack.enter_async_context(account.socket(url))
            for account, url in ((alice, urls[0]), (alice, urls[1]), (bob, urls[0]), (mallory, urls[0]))
        ]
        call_id = str(uuid4())
        await phone.send("call_offer", **offer(bob, call_id))
        await other.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
        candidate = {"call_id": call_id, "encrypted_payload": PAYLOAD}
        for _ in range(60):
            assert (await stranger.send("ice_candidate", **candidate))["code"] == "not_participant"
        answers = []
        for _ in range(110):  # of each; a socket may send 200 frames at once
            answers += [await socket.send("ice_candidate", **candidate) for socket in (phone, desk, other)]
        assert [answer["type"] for answer in answers].count("ack") == 300
        refused = answers[-1]
        assert (refused["code"], refused["retry_after"] > 0) == ("rate_limited", True)
        assert (await phone.send("call_hangup", call_id=call_id))["status"] == "ended"


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_an_answer_whose_ack_was_lost_may_be_sent_again(services: Services, servers: int) -> None:
    async with pair(services, servers) as (_, bob, a, b):
        call_id = str(uuid4())
        await a.send("call_offer", **offer(bob, call_id))
        await b.expect("call_offer")
        first = await b.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
        await a.expect("call_answer")
        async with bob.socket() as again, bob.socket() as other:
            repeated = await again.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            assert {**repeated, "id": first["id"]} == {**first, "repeated": True}
            late = await other.send("call_answer", call_id=call_id, encrypted_payload="b3duIQ==")
            assert (late["code"], late["status"]) == ("invalid_state", "accepted")
            await a.silent()
            await b.silent(0.1)
            await a.send("call_hangup", call_id=call_id)
            over = await again.send("call_answer", call_id=call_id, encrypted_payload=PAYLOAD)
            assert (over["code"], over["status"]) == ("invalid_state", "ended")


@pytest.mark.gen_test
async def test_a_socket_that_opens_while_an_offer_is_being_kept_rings_once(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened too late for the frame itself, and looked at what waits before it was there."""
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        call_id, kept = str(uuid4()), asyncio.Event()
        flush = PendingOffers._flush

        async def slow(waiting: PendingOffers) -> None:
            await kept.wait()
            await flush(waiting)

        monkeypatch.setattr(PendingOffers, "_flush", slow)
        async with alice.socket() as a:
            assert (await a.send("call_offer", **offer(bob, call_id)))["delivered"] is False
            await a.send("ice_candidate", call_id=call_id, encrypted_payload=PAYLOAD)
            async with bob.socket() as b:
                await b.silent()
                kept.set()
                await b.expect("call_offer")
                await b.expect("ice_candidate")
                await b.silent()
                async with bob.socket() as tablet:
                    await tablet.expect("ice_candidate")
                    await tablet.expect("call_offer")
                    await tablet.silent(0.1)
                    await b.silent(0.1)


@pytest.mark.gen_test
async def test_pending_offers_are_deleted_with_the_call(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        call_id = str(uuid4())
        async with alice.socket() as a:
            await a.send("call_offer", **offer(bob, call_id))
            redis = server.app.redis
            while not (keys := await redis.keys("call:waiting:*")):
                await asyncio.sleep(0.01)
            [key] = keys
            assert 50 <= await redis.ttl(key) <= 60
            await a.send("call_hangup", call_id=call_id)
            while await redis.keys("call:waiting:*"):
                await asyncio.sleep(0.01)
            async with bob.socket() as b:
                await b.silent(0.2)
        assert (await bob.get(f"/calls/{call_id}")).json["end_reason"] == "cancelled"


@pytest.mark.gen_test
async def test_unstored_offers_are_dropped_when_another_instance_ends_the_call(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = await Account().register(one.url), await Account().register(two.url)
        call_id, kept = str(uuid4()), asyncio.Event()
        flush = PendingOffers._flush

        async def slow(waiting: PendingOffers) -> None:
            if waiting._hub is one.app.hub:
                await kept.wait()
            await flush(waiting)

        monkeypatch.setattr(PendingOffers, "_flush", slow)
        async with alice.socket() as phone, alice.socket(two.url) as desk:
            await phone.send("call_offer", **offer(bob, call_id))
            await _send_all(phone, call_id, [PAYLOAD] * 3)
            assert (await desk.send("call_hangup", call_id=call_id))["end_reason"] == "cancelled"
            await phone.expect("call_hangup", call_id=call_id)
            kept.set()
            async with bob.socket() as b:
                await b.silent()
            assert await one.app.redis.keys("call:waiting:*") == []
            assert (await phone.send("ice_candidate", call_id=call_id, encrypted_payload=PAYLOAD))["status"] == "missed"
