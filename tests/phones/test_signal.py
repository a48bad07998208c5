"""The Signal devices of the tests, proven on one another, with no server between them."""

import asyncio
import base64
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.phones.signal_libsignal import SignalLibsignal
from tests.phones.signal_protocol import BundleRefused, Json, Signal
from tests.phones.signal_python import SignalPython

DEVICES = ["python", "libsignal"]


@contextlib.asynccontextmanager
async def device(kind: str) -> AsyncIterator[Signal]:
    made: Signal = SignalPython(one_time=3) if kind == "python" else await SignalLibsignal.start(one_time=3, kyber=1)
    try:
        yield made
    finally:
        await made.close()


def bundle_of(body: Json, index: int | None = 0, kyber: str = "one-time") -> Json:
    """What the server would make of a register body, with the one-time prekey at `index`."""
    keys = body.get("kyber_prekeys") or [None]
    return {
        **{name: body[name] for name in ("identity_key", "registration_id", "fingerprint", "signing_public_key")},
        "signed_prekey": {"id": str(uuid.uuid4()), **body["signed_prekey"]},
        "one_time_prekey": None if index is None else {"id": str(uuid.uuid4()), **body["one_time_prekeys"][index]},
        "kyber_prekey": keys[0] if kyber == "one-time" else body.get("last_resort_kyber_prekey"),
    }


@pytest.mark.parametrize("kind", DEVICES)
def test_two_devices_agree_and_talk(kind: str) -> None:
    async def talk() -> None:
        async with device(kind) as alice, device(kind) as bob:
            await alice.known_as("alice")
            await bob.known_as("bob")
            bundle = bundle_of(await bob.register_body())
            await alice.register_body()
            first = await alice.encrypt(bundle, "bob", b"hello")
            second = await alice.encrypt(None, "bob", b"are you there?")
            assert b"hello" not in first
            assert await bob.decrypt("alice", second) == b"are you there?"  # out of order
            assert await bob.decrypt("alice", first) == b"hello"
            for turn in range(5):
                text = secrets.token_bytes(2000)
                assert await alice.decrypt("bob", await bob.encrypt(None, "alice", text)) == text, turn
                assert await bob.decrypt("alice", await alice.encrypt(None, "bob", text)) == text, turn
            assert alice.has_session("bob") and bob.has_session("alice")

    asyncio.run(talk())


@pytest.mark.parametrize("kind", DEVICES)
def test_a_session_begins_without_a_one_time_prekey(kind: str) -> None:
    async def talk() -> None:
        async with device(kind) as alice, device(kind) as bob:
            await alice.known_as("alice")
            await bob.known_as("bob")
            bundle = bundle_of(await bob.register_body(), index=None, kyber="last resort")
            await alice.register_body()
            assert await bob.decrypt("alice", await alice.encrypt(bundle, "bob", b"hello")) == b"hello"

    asyncio.run(talk())


@pytest.mark.parametrize("kind", DEVICES)
def test_a_one_time_prekey_serves_one_handshake(kind: str) -> None:
    async def talk() -> None:
        async with device(kind) as alice, device(kind) as bob, device(kind) as carol:
            for person, name in ((alice, "alice"), (bob, "bob"), (carol, "carol")):
                await person.known_as(name)
            bundle = bundle_of(await bob.register_body())
            await bob.decrypt("alice", await alice.encrypt(bundle, "bob", b"hello"))
            again = await carol.encrypt(bundle, "bob", b"hello")
            with pytest.raises(Exception, match=r"unknown or used|1"):
                await bob.decrypt("carol", again)

    asyncio.run(talk())


@pytest.mark.parametrize("kind", DEVICES)
def test_a_forged_bundle_is_refused(kind: str) -> None:
    async def look() -> None:
        async with device(kind) as alice, device(kind) as bob, device(kind) as mallory:
            await alice.known_as("alice")
            bundle = bundle_of(await bob.register_body())
            forged = await mallory.register_body()
            await alice.check(bundle)
            with pytest.raises(BundleRefused):
                await alice.check({**bundle, "signed_prekey": {"id": "", **forged["signed_prekey"]}})
            with pytest.raises(BundleRefused):
                await alice.check({**bundle, "identity_key": forged["identity_key"]})
            with pytest.raises(BundleRefused):
                await alice.encrypt({**bundle, "fingerprint": "0" * 64}, "bob", b"hello")

    asyncio.run(look())


def test_the_shapes_are_those_of_real_clients() -> None:
    """32-byte keys from the one; from libsignal 33-byte ones and Kyber prekeys with their signatures."""

    def size(key: Json) -> tuple[int, int]:
        return len(base64.b64decode(key["public_key"])), len(base64.b64decode(key["signature"]))

    async def look() -> None:
        async with device("python") as python, device("libsignal") as libsignal:
            body = await python.register_body()
            assert size(body["signed_prekey"]) == (32, 64)
            assert len(base64.b64decode(body["identity_key"])) == 32
            body = await libsignal.register_body()
            assert size(body["signed_prekey"]) == (33, 64)
            assert len(base64.b64decode(body["identity_key"])) == 33
            assert [size(key) for key in body["kyber_prekeys"]] == [(1569, 64)]
            assert size(body["last_resort_kyber_prekey"]) == (1569, 64)

    asyncio.run(look())
