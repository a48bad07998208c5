"""Bounds of what calls queue; the queue never keeps a user from opening a socket."""

from __future__ import annotations

import asyncio
import contextlib
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from tests.client import Account, Socket
from tests.plugins.test_calls import PAYLOAD, offer, pair
from tests.plugins.test_calls import _send_all as send_all
from tests.running import Services, place, serving
from tests.waiting import WAIT


@pytest.mark.gen_test
async def test_payloads_have_a_bound(services: Services) -> None:
    async with pair(services) as (_, bob, a, b):
        call_id = str(uuid4())
        full, more = "A" * 32_768, "A" * 32_772
        refused = await a.send("call_offer", **{**offer(bob, call_id), "encrypted_payload": more})
        assert (refused["code"], [fault["field"] for fault in refused["details"]]) == (
            "invalid_request",
            ["encrypted_payload"],
        )
        await a.send("call_offer", **{**offer(bob, call_id), "encrypted_payload": full})
        assert (await b.expect("call_offer"))["encrypted_payload"] == full
        for payload, kind in (("A" * 4096, "ack"), ("A" * 4100, "error")):
            assert (await a.send("ice_candidate", call_id=call_id, encrypted_payload=payload))["type"] == kind
        for payload, kind in ((more, "error"), (full, "ack")):
            assert (await b.send("call_answer", call_id=call_id, encrypted_payload=payload))["type"] == kind
        assert (await a.expect("call_answer"))["encrypted_payload"] == full


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("state", ["online", "offline", "blocked"])
async def test_a_ring_has_256_kib_whatever_the_callee_is(services: Services, state: str) -> None:
    async with place(services) as shared, serving(shared) as server, contextlib.AsyncExitStack() as stack:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        if state == "online":
            await stack.enter_async_context(bob.socket())
        if state == "blocked":
            await bob.put(f"/users/{alice.public_id}/block", {})
        async with alice.socket() as a:
            call_id = str(uuid4())
            await a.send("call_offer", **{**offer(bob, call_id), "encrypted_payload": "A" * 32_768})
            candidate = {"call_id": call_id, "encrypted_payload": "A" * 4096}
            answers = [await a.send("ice_candidate", **candidate) for _ in range(60)]
            assert [answer["type"] for answer in answers] == ["ack"] * 56 + ["error"] * 4
            assert (answers[-1]["code"], answers[-1]["retry_after"]) == ("rate_limited", 60)
            assert (await a.send("call_hangup", call_id=call_id))["status"] == "missed"


async def _fill(a: Socket, to: Account) -> str:
    call_id = str(uuid4())
    assert (await a.send("call_offer", **{**offer(to, call_id), "encrypted_payload": "A" * 32_768}))["type"] == "ack"
    for _ in range(56):
        await a.send("ice_candidate", call_id=call_id, encrypted_payload="A" * 4096)
    return call_id


async def _waiting_bytes(redis: Redis) -> int:
    await asyncio.sleep(0.3)
    lists = [await redis.lrange(name, 0, -1) for name in await redis.keys("call:waiting:*")]
    return sum(len(entry) for kept in lists for entry in kept)


@pytest.mark.gen_test(timeout=120)
async def test_one_account_lets_a_mebibyte_wait_and_all_together_what_is_set(services: Services) -> None:
    async with place(services) as shared, serving(shared, CALL_WAITING_BYTES="2MiB") as server:
        mallory, eve, *victims = [await Account(one_time=0).register(server.url) for _ in range(13)]
        redis = server.app.redis
        async with mallory.socket() as m, eve.socket() as e:
            for victim in victims[:6]:
                await _fill(m, victim)
            one = await _waiting_bytes(redis)
            assert 3 << 18 < one <= 1 << 20
            for victim in victims[6:]:
                await _fill(e, victim)
            assert one < await _waiting_bytes(redis) <= 2 << 20
            for name in await redis.keys("call:*"):
                assert 0 < await redis.ttl(name) <= 60, name
            # A call rings all the same where a socket is open.
            async with victims[0].socket() as v:
                v.frames.clear()
                call_id = str(uuid4())
                await e.send("call_offer", **offer(victims[0], call_id))
                await v.expect("call_offer", call_id=call_id)


@pytest.mark.gen_test(timeout=120)
async def test_many_strangers_cannot_keep_a_victim_from_opening_a_socket_nor_a_contact_from_ringing(
    services: Services,
) -> None:
    async with place(services) as shared, serving(shared) as server:
        victim, friend, *strangers = [await Account(one_time=0).register(server.url) for _ in range(8)]
        await victim.post(
            f"/users/{friend.public_id}/verify", {"verified_fingerprint": friend.fingerprint, "method": "manual"}
        )
        async with contextlib.AsyncExitStack() as stack:
            for stranger in strangers:
                await _fill(await stack.enter_async_context(stranger.socket()), victim)
            f = await stack.enter_async_context(friend.socket())
            call_id = str(uuid4())
            await f.send("call_offer", **offer(victim, call_id))
            await send_all(f, call_id, [PAYLOAD] * 3)
            async with asyncio.timeout(WAIT):
                while await server.app.redis.llen(f"call:waiting:{call_id}") < 4:
                    await asyncio.sleep(0.01)
            for _ in range(2):
                async with victim.socket() as v:
                    first = await v.expect("call_offer")
                    assert first["call_id"] == call_id, "a contact's call comes first"
                    for _ in range(3):
                        await v.expect("ice_candidate", call_id=call_id)
                    await v.expect("call_offer", from_user_id=strangers[0].user_id)
                    assert (await v.send("presence_subscribe", user_ids=[]))["type"] == "ack"
                    await asyncio.sleep(0.3)
                    assert sum(len(frame.get("encrypted_payload", "")) for frame in v.frames) <= 1 << 20
                    assert not [frame for frame in v.frames if frame["type"] == "closed"]


@pytest.mark.gen_test
async def test_a_new_socket_receives_no_call_of_a_user_blocked_meanwhile(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with alice.socket() as a:
            await a.send("call_offer", **offer(bob, str(uuid4())))
            await bob.put(f"/users/{alice.public_id}/block", {})
            async with bob.socket() as b:
                await b.silent()


@pytest.mark.gen_test
async def test_pending_offers_are_stored_again_after_redis_lost_the_script(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        async with alice.socket() as a:
            for _ in range(2):
                await server.app.redis.script_flush()
                call_id = str(uuid4())
                await a.send("call_offer", **offer(bob, call_id))
                await a.send("ice_candidate", call_id=call_id, encrypted_payload=PAYLOAD)
                while await server.app.redis.llen(f"call:waiting:{call_id}") < 2:
                    await asyncio.sleep(0.01)
