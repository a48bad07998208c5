"""The audio legs and the coturn of the tests, proven on one another, with no server between them."""

import asyncio
from pathlib import Path

import pytest
from aioice.stun import TransactionFailed
from aioice.turn import create_turn_endpoint

from tests.phones.coturn import HOST, Coturn, configuration, running_coturn
from tests.phones.media import Leg


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_two_legs_hear_each_other_through_the_relay(transport: str) -> None:
    async def talk() -> None:
        async with running_coturn() as coturn:
            turn = {name: coturn.credentials(name) for name in ("alice", "bob")}
            async with Leg(turn["alice"], 440, transport) as alice, Leg(turn["bob"], 880, transport) as bob:
                offer = await alice.offer()
                assert "a=candidate" not in offer
                for early in alice.candidates():
                    await bob.add_candidate(early)
                await alice.accept(await bob.answer(offer))
                for late in bob.candidates():
                    await alice.add_candidate(late)
                heard = [await alice.hear(loud=50), await bob.hear(loud=50)]
                assert heard[0].tells(880, other=440)
                assert heard[1].tells(440, other=880)
                assert [alice.pair(), bob.pair()] == [("relay", "relay")] * 2

    asyncio.run(talk())


def test_coturn_takes_what_is_due_and_no_more() -> None:
    async def allocate(coturn: Coturn, username: str, credential: str) -> None:
        transport, _ = await create_turn_endpoint(
            asyncio.DatagramProtocol, server_addr=(HOST, coturn.port), username=username, password=credential
        )
        transport.close()

    async def knock() -> None:
        async with running_coturn() as coturn:
            good = coturn.credentials("alice")
            await allocate(coturn, good["username"], good["credential"])
            expired = coturn.credentials("alice", ttl=-10)
            for username, credential in (
                (expired["username"], expired["credential"]),
                (good["username"], "bm90IHRoZSBzZWNyZXQ="),
                (good["username"].replace("alice", "mallory"), good["credential"]),
            ):
                with pytest.raises(TransactionFailed):
                    await allocate(coturn, username, credential)

    asyncio.run(knock())


def test_a_base_configuration_keeps_what_does_not_touch_the_loopback() -> None:
    base = """
        # a comment
        fingerprint
        listening-port=3478
        user-quota = 10
        denied-peer-ip=10.0.0.0-10.255.255.255
        denied-peer-ip=127.0.0.0-127.255.255.255
        denied-peer-ip=0.0.0.0/0
        denied-peer-ip=::1
        denied-peer-ip=fe80::/10
        cert=/etc/ssl/cert.pem
        static-auth-secret=other
    """
    lines = [line.strip() for line in configuration(base, 1234, "shared", "/tmp").splitlines()]
    assert lines[:4] == [
        "fingerprint",
        "user-quota = 10",
        "denied-peer-ip=10.0.0.0-10.255.255.255",
        "denied-peer-ip=fe80::/10",
    ]
    assert "listening-port=1234" in lines
    assert "static-auth-secret=shared" in lines
    assert not [line for line in lines if line.startswith("cert")]


def test_coturn_ends_with_its_context() -> None:
    async def look() -> int:
        async with running_coturn() as coturn:
            assert Path(f"/proc/{coturn.pid}").exists()
            return coturn.pid

    assert not Path(f"/proc/{asyncio.run(look())}").exists()
