"""The doctor and coturn: as it is shipped it is found well, and each way to spoil it is found out."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import secrets
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any
from uuid import uuid4

import pytest

from plugins.turn import examination, stun
from plugins.turn.client import Client, Line, Refused, Transport, connected
from tests import canaries
from tests.deploy.relay import SHIPPED, Relay, folder, free_port, ipv6_loopback, relaying
from tests.providers.certificates import certified
from tests.scripts.examining import Found, examine

ALL_BUT_TLS = ("address", "answers", "udp", "tcp", "strangers", "expired", "peers", "relayed tcp")


def settings(relay: Relay, **changed: str) -> dict[str, str]:
    canaries.plant(relay.secret)
    given = {"TURN_HOST": relay.host, "TURN_PORT": str(relay.port), "TURN_SECRET": relay.secret, "TURN_TLS_PORT": "0"}
    return {**given, **changed}


async def found(relay: Relay, **changed: str) -> Found:
    return await examine(settings(relay, **changed), "turn")


@pytest.mark.gen_test
async def test_as_it_is_shipped_it_is_well() -> None:
    async with relaying() as relay:
        said = await found(relay)
        assert said.bad() == {}
        assert {part: said["turn", part].state for part in ALL_BUT_TLS} == dict.fromkeys(ALL_BUT_TLS, "good")
        assert said["turn", "peers"].says == "It refuses to relay to 10 addresses of private networks."
        assert said["turn", "tls"].state == "skipped"
        # Its relays were given back: by the same user ten more can be had (user-quota).
        assert "peers of IPv6" in said.states("turn")


@pytest.mark.gen_test
async def test_another_secret_is_found_out() -> None:
    async with relaying() as relay:
        said = await found(relay, TURN_SECRET=secrets.token_hex(32))
        states = said.states("turn")
        assert (states["udp"], states["tcp"]) == ("wrong", "wrong")
        assert "its secret or its clock differs" in said["turn", "udp"].says
        assert states["peers"] == "skipped"


@pytest.mark.gen_test
async def test_a_relay_into_private_networks_is_found_out() -> None:
    conf = SHIPPED.read_text()
    open_ = "\n".join(line for line in conf.splitlines() if not line.startswith("denied-peer-ip"))
    secret = secrets.token_hex(32)
    open_ = open_.replace("#static-auth-secret=REPLACE_WITH_TURN_SECRET", f"static-auth-secret={secret}")
    async with relaying(conf=open_, more="allow-loopback-peers\n") as relay:
        said = await found(relay, TURN_SECRET=secret)
        assert said["turn", "peers"].state == "wrong"
        assert "10.0.0.1" in said["turn", "peers"].says
        assert "169.254.169.254" in said["turn", "peers"].says
        assert "denied-peer-ip" in said["turn", "peers"].do
        assert "127.0.0.1" in said["turn", "peers"].says
    one_hole = conf.replace("denied-peer-ip=192.168.0.0-192.168.255.255\n", "")
    one_hole = one_hole.replace("#static-auth-secret=REPLACE_WITH_TURN_SECRET", f"static-auth-secret={secret}")
    async with relaying(conf=one_hole) as relay:
        said = await found(relay, TURN_SECRET=secret)
        assert said["turn", "peers"].says.startswith("It relays to 192.168.0.1: ")


@pytest.mark.gen_test
async def test_where_udp_does_not_come_through_the_rest_is_tried_by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relaying() as relay:

        @contextlib.asynccontextmanager
        async def dropping(transport: Transport, *where: Any) -> AsyncIterator[Line]:
            if transport == "udp":
                raise TimeoutError
            async with connected(transport, *where) as line:
                yield line

        monkeypatch.setattr(examination, "connected", dropping)
        said = await found(relay)
        assert said.bad() == {
            ("turn", "answers"): f"No answer from 127.0.0.1, port {relay.port}, by UDP (TimeoutError)."
        }
        assert said["turn", "peers"].state == said["turn", "expired"].state == "good"


@pytest.mark.gen_test
@pytest.mark.parametrize("host", ["127.0.0.1", *(["::1"] if ipv6_loopback() else [])])
async def test_the_relay_is_also_tried_over_ipv6(host: str) -> None:
    async with relaying(host) as relay:
        said = await found(relay)
        assert said.bad() == {}
        if host == "127.0.0.1":
            assert said["turn", "peers of IPv6"].says == "It relays no IPv6."
            return
        assert said["turn", "peers of IPv6"].says == "It refuses to relay to 7 addresses of private networks."
    secret = secrets.token_hex(32)
    conf = SHIPPED.read_text().replace("denied-peer-ip=2002::-2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff\n", "")
    conf = conf.replace("#static-auth-secret=REPLACE_WITH_TURN_SECRET", f"static-auth-secret={secret}")
    async with relaying(host, conf=conf) as relay:
        said = await found(relay, TURN_SECRET=secret)
        assert said["turn", "peers of IPv6"].says.startswith("It relays to 2002:7f00:1::: ")


@pytest.mark.gen_test
async def test_data_of_a_peer_arrives_or_is_reported_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor can be the peer here only if the relay allows loopback, which it also reports as a fault."""
    secret = secrets.token_hex(32)
    conf = SHIPPED.read_text().replace("denied-peer-ip=127.0.0.0-127.255.255.255\n", "")
    conf = conf.replace("#static-auth-secret=REPLACE_WITH_TURN_SECRET", f"static-auth-secret={secret}")
    async with relaying(conf=conf, more="allow-loopback-peers\n") as relay:
        assert (await found(relay, TURN_SECRET=secret))["turn", "relays"].state == "good"
        # A firewall that lets no packet to the relay's ports.
        closed = free_port()
        monkeypatch.setattr(examination, "PACKET_INTERVAL", 0.05)
        monkeypatch.setattr(stun.Message, "port", lambda *_: closed)
        said = await found(relay, TURN_SECRET=secret)
        assert said["turn", "relays"].state == "wrong"
        assert f"port {closed}, does not come through" in said["turn", "relays"].says
        assert said["turn", "peers"].says.startswith("It relays to 127.0.0.1: ")


@pytest.mark.gen_test
async def test_a_relay_that_is_open_to_all_is_found_out() -> None:
    conf = SHIPPED.read_text().replace("use-auth-secret\n", "no-auth\n", 1)
    async with relaying(conf=conf) as relay:
        said = await found(relay)
        assert said["turn", "strangers"].state == said["turn", "expired"].state == "wrong"
        assert "anyone" in said["turn", "strangers"].says


@pytest.mark.gen_test
async def test_a_missing_turn_server_is_reported_at_once() -> None:
    missing = {"TURN_HOST": "127.0.0.1", "TURN_PORT": str(free_port()), "TURN_SECRET": secrets.token_hex(32)}
    said = await examine(missing, "turn")
    assert said["turn", "answers"].state == "wrong"
    assert said["turn", "tcp"].state == "wrong"
    assert said["turn", "peers"].says == "Not checked, because it does not answer."
    said = await examine({**missing, "TURN_HOST": "nowhere.invalid"}, "turn")
    assert said["turn", "address"].says == "nowhere.invalid has no address."


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("days", "name", "state", "words"),
    [
        (90, "127.0.0.1", "good", "By TLS our credentials get a relay"),
        (9, "127.0.0.1", "weak", "expires in 9 days"),
        (-1, "127.0.0.1", "wrong", "certificate has expired"),
        (90, "turn.mimu.test", "wrong", "IP address mismatch"),
    ],
)
async def test_its_certificate_is_looked_at(
    days: int, name: str, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder() as place:
        authority, _ = certified(place, ends=datetime.timedelta(days=days, hours=1), names=[name])
        (place / "server.pem").chmod(0o644)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        async with relaying(more=f"cert={place}/server.pem\npkey={place}/server.pem\n") as relay:
            said = await found(relay, TURN_TLS_PORT=str(relay.tls_port))
            assert (said["turn", "tls"].state, words in said["turn", "tls"].says) == (state, True), said["turn", "tls"]


@pytest.mark.gen_test
async def test_the_client_asks_again_when_its_nonce_is_stale() -> None:
    async with relaying() as relay, connected("udp", relay.host, relay.port) as line:
        client = Client(line, *relay.credentials(uuid4()))
        relayed = (await client.allocate()).address(stun.XOR_RELAYED_ADDRESS)
        assert relayed == ip_address(relay.host)
        client._nonce = b"0123456789abcdef"
        with pytest.raises(Refused) as refused:
            await client.permit("10.0.0.1")
        assert refused.value.code == 403
        await client.free()


def test_a_message_is_read_as_rfc_5769_has_it() -> None:
    """Section 2.2, a response over IPv4, and 2.4, a request with long-term credentials."""
    response = bytes.fromhex(
        "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
        "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
    )
    message = stun.read(response)
    assert message.error is None
    assert str(message.address(0x0020)) == "192.0.2.1"
    assert message.is_signed_by(b"VOkJxbRl1RmTxUk/WvJxBt")
    assert not message.is_signed_by(b"VOkJxbRl1RmTxUk/WvJxBu")
    request = bytes.fromhex(
        "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b900000015001c"
        "662f2f3439396b39353464364f4c33346f4c39465354767936347341"
        "0014000b6578616d706c652e6f72670000080014f67024656dd64a3e02b8e0712e85c9a28ca89666"
    )
    key = stun.key("マトリックス", b"example.org", "TheMatrIX")
    assert stun.read(request).is_signed_by(key)
    attributes = [(0x06, "マトリックス".encode()), (0x15, b"f//499k954d6OL34oL9FSTvy64sA"), (0x14, b"example.org")]
    assert stun.request(stun.BINDING, request[8:20], attributes, key) == request


@pytest.mark.parametrize("cut", [0, 19, 21, 40])
def test_half_a_message_is_none(cut: int) -> None:
    whole = stun.request(stun.ALLOCATE, stun.new_transaction(), [(stun.USERNAME, b"x" * 30)])
    with pytest.raises(stun.Malformed):
        stun.read(whole[:cut])


@pytest.mark.gen_test
async def test_a_server_that_floods_fills_no_memory() -> None:
    """The client keeps only one token of all data that arrives through a relay."""
    loop = asyncio.get_running_loop()
    hostile, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    port = hostile.get_extra_info("sockname")[1]
    async with connected("udp", "127.0.0.1", port) as line:
        there = line.transport.get_extra_info("sockname")  # type: ignore[attr-defined]
        relayed = stun.request(stun.DATA_INDICATION, stun.new_transaction(), [(stun.DATA, bytes(1000))])
        for _ in range(20):
            for _ in range(50):
                hostile.sendto(relayed, there)
            await asyncio.sleep(0.01)
        assert await line.receive() == bytes(1000)
        assert line.relayed.qsize() < 100  # type: ignore[attr-defined]
    hostile.close()
