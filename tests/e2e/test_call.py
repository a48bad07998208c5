"""The main journey: two people find each other, agree on keys, call and hear each other, and the server saw nothing."""

import asyncio
import base64
from itertools import product

import pytest

from tests.e2e.conftest import StageOf
from tests.e2e.leaks import assert_no_leak
from tests.e2e.people import MAKES, two_phones
from tests.phones.line import Refused
from tests.phones.phone import Phone
from tests.phones.signal_protocol import BundleRefused, Json
from tests.thorough import THOROUGH
from tests.waiting import WAIT

ALICE_HUMS, BOB_HUMS = 440, 880  # hertz
NOTE, REPLY = "a note that only Bob may read", "a reply that only Alice may read"


# Each make and each number of servers; in ``make test-thorough`` each with each.
JOURNEYS = list(product(MAKES, [1, 2])) if THOROUGH else list(zip(MAKES, [1, 2], strict=True))


@pytest.mark.parametrize(("make", "servers"), JOURNEYS)
def test_two_people_call_each_other(stage: StageOf, make: str, servers: int) -> None:
    async def journey() -> None:
        async with stage(servers) as set_up, two_phones(set_up.urls, make) as (alice, bob):
            await they_find_each_other(alice, bob)
            await the_prekeys_are_bobs(alice, bob)
            call_id = await they_talk(alice, bob)
            await the_history_is_right(alice, bob, call_id)
            await bob_comes_back(bob)
            await alice_errs(alice, bob)
            assert_no_leak([alice, bob], **await set_up.everything_kept())

    asyncio.run(journey())


def test_a_call_goes_through_where_only_tcp_does(stage: StageOf) -> None:
    async def journey() -> None:
        async with stage(1) as set_up, two_phones(set_up.urls, "python") as (alice, bob):
            ringing = await alice.call("bob_crypto", ALICE_HUMS, transport="tcp")
            async with ringing as call, await bob.answer(BOB_HUMS, transport="tcp") as taken:
                await call.answered()
                assert (await call.hear()).tells(BOB_HUMS, other=ALICE_HUMS)
                assert (await taken.hear()).tells(ALICE_HUMS, other=BOB_HUMS)

    asyncio.run(journey())


def test_a_phone_that_wakes_in_time_takes_the_call(stage: StageOf) -> None:
    async def journey() -> None:
        async with stage(1) as set_up, two_phones(set_up.urls, "python") as (alice, bob):
            await bob.disconnect()
            async with await alice.call("bob_crypto", ALICE_HUMS, note=NOTE) as call:
                assert call.ack["delivered"] is False
                await bob.connect()
                async with await bob.answer(BOB_HUMS) as taken:
                    await call.answered()
                    assert taken.note == NOTE
                    assert (await call.hear()).tells(BOB_HUMS, other=ALICE_HUMS)
                    assert (await taken.hear()).tells(ALICE_HUMS, other=BOB_HUMS)

    asyncio.run(journey())


async def they_find_each_other(alice: Phone, bob: Phone) -> None:
    for phone, other in ((alice, bob), (bob, alice)):
        await _seen_online(phone, other.public_id)
        found = {item["public_id"]: item for item in await phone.search("crypto")}
        for item in (found[other.public_id], await phone.profile(other.public_id)):
            assert item["user_id"] == other.user_id
            assert item["fingerprint"] == other.fingerprint
            assert item["display_name"] == other.public_id.title()
            assert item["is_online"] is True


async def _seen_online(phone: Phone, public_id: str) -> None:
    """Wait until the user is online. Presence is written a moment after the socket opens."""
    async with asyncio.timeout(WAIT):
        while not (await phone.profile(public_id))["is_online"]:
            await asyncio.sleep(0.05)


async def the_prekeys_are_bobs(alice: Phone, bob: Phone) -> None:
    first, second = await alice.bundle(bob.public_id), await alice.bundle(bob.public_id)
    assert first["one_time_prekey"]["key_id"] != second["one_time_prekey"]["key_id"]
    assert first["fingerprint"] == bob.fingerprint
    await alice.signal.check(first)
    signed = first["signed_prekey"]
    forged = {**first, "signed_prekey": {**signed, "signature": base64.b64encode(bytes(64)).decode()}}
    with pytest.raises(BundleRefused):
        await alice.signal.check(forged)


async def they_talk(alice: Phone, bob: Phone) -> str:
    async with await alice.call(bob.public_id, ALICE_HUMS, note=NOTE) as call:
        assert call.ack.get("delivered", True) is True
        async with await bob.answer(BOB_HUMS, note=REPLY) as taken:
            await call.answered()
            assert (taken.call_id, taken.peer["user_id"]) == (call.call_id, alice.user_id)
            assert (taken.note, call.note) == (NOTE, REPLY)
            assert (await call.hear()).tells(BOB_HUMS, other=ALICE_HUMS)
            assert (await taken.hear()).tells(ALICE_HUMS, other=BOB_HUMS)
            assert [call.leg.pair(), taken.leg.pair()] == [("relay", "relay")] * 2
            await call.heartbeat()
            await taken.heartbeat()
            during = await bob.get(f"/calls/{call.call_id}")
            assert (during["status"], during["end_reason"]) == ("accepted", None)
            assert during["accepted_at"] and during["last_heartbeat"]
            await asyncio.sleep(1)  # so that the call has a length to be measured
            await call.hangup()
            hangup = await taken.hung_up()
            assert (hangup["from_user_id"], hangup["reason"]) == (alice.user_id, "hangup")
    return call.call_id


async def the_history_is_right(alice: Phone, bob: Phone, call_id: str) -> None:
    for phone, other, direction in ((alice, bob, "outgoing"), (bob, alice, "incoming")):
        [row] = await phone.calls()
        assert row == await phone.get(f"/calls/{call_id}")
        assert (row["id"], row["call_type"], row["direction"]) == (call_id, "audio", direction)
        assert (row["caller_id"], row["callee_id"]) == (alice.user_id, bob.user_id)
        assert (row["status"], row["end_reason"]) == ("ended", "hangup")
        assert 1 <= row["duration_seconds"] < 60
        assert row["started_at"] <= row["accepted_at"] <= row["last_heartbeat"] <= row["ended_at"]
        assert _only(row["peer"], "user_id", "public_id", "display_name") == {
            "user_id": other.user_id,
            "public_id": other.public_id,
            "display_name": other.public_id.title(),
        }


async def bob_comes_back(bob: Phone) -> None:
    """His session is refreshed, and he logs in once more; his keys stay."""
    before = bob.access_token, bob.refresh_token
    await bob.refresh()
    assert (bob.access_token, bob.refresh_token) != before
    await bob.login()
    assert (await bob.connect())["user_id"] == bob.user_id


async def alice_errs(alice: Phone, bob: Phone) -> None:
    """Whatever is wrong with a request, the log may say so, but not quote it."""
    payload = await alice.encrypt(await alice.profile(bob.public_id), {"note": NOTE})
    alice.signalled.append(payload)
    offer = {"call_id": "no uuid", "to_user_id": bob.user_id, "call_type": "audio", "encrypted_payload": payload}
    for kind in ("call_offer", "no_such_type"):
        with pytest.raises(Refused):
            await alice.send(kind, **offer)
    assert alice.came("error") == []
    wrong = {"public_id": alice.public_id, "password": alice.password.swapcase()}
    alice.said.add(wrong["password"])
    for path, body, status in (
        ("/auth/login", wrong, 401),
        ("/auth/login", {**wrong, "public_id": 7}, 400),
        ("/auth/refresh", {"refresh_token": [alice.refresh_token]}, 400),
        ("/auth/register", {**wrong, "identity_key": alice.access_token}, 400),
    ):
        with pytest.raises(Refused) as refused:
            await alice.post(path, body)
        assert refused.value.status == status


def _only(shape: Json, *names: str) -> Json:
    return {name: shape[name] for name in names}
