"""The shipped turnserver.conf in a real coturn: who may allocate, how often, and which peers they reach."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import random
import re
import ssl
import subprocess
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from aioice.stun import Class, Message, Method, TransactionFailed
from aioice.turn import TurnTransport
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import plugins.turn
from config import networks
from plugins.turn import TTL
from scripts import turnserver_conf
from tests.deploy.relay import SHIPPED, Relay, folder, ipv6_loopback, protocol, relaying, turnserver
from tests.scripts.program import script
from tests.waiting import WAIT

USER_QUOTA = 10  # contract section 6

# What a relay must not reach: IANA's special-purpose registries, and an address that Azure made special by itself.
NETWORKS = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/128 ::1/128 ::/96 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 200::/7 ::/3
    2001::/32 2001:2::/48 2001:10::/28 2001:20::/28 2001::/23 2001:db8::/32 2002::/16 3fff::/20
    4000::/2 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 8000::/1
"""
FAMOUS = """
    127.0.0.1 10.0.0.1 172.17.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 192.0.0.192 224.0.0.251
    239.255.255.250 255.255.255.255 0.0.0.0 :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.0 ::127.0.0.1 ::ffff:0:10.0.0.1
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1:: 2001::1 fd00:ec2::254 fe80::1 ff02::1 1fff:: 100::
"""
PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 223.255.255.255
    2000:: 2606:4700:4700::1111 2a00:1450:4001::8a 2600:: 2001:200::
"""
# Lines that 4.6 needs, and that later versions call superfluous.
DEFAULTS_BY_NOW = "no-tlsv1|no-tlsv1_1|no-dtls|no-cli|no-stun-backward-compatibility|no-software-attribute"
SPECIAL = [ipaddress.ip_network(network) for network in NETWORKS.split()]


@pytest.mark.gen_test
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_credentials_of_the_server_allocate(transport: str) -> None:
    async with relaying() as relay:
        allocation = await relay.allocate(*relay.credentials(uuid4()), transport=transport)
        host, port = allocation.get_extra_info("sockname")
        assert host == relay.host
        assert 49152 <= port <= 65535


@pytest.mark.gen_test
async def test_other_credentials_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relaying() as relay:
        user_id = uuid4()
        username, credential = relay.credentials(user_id)
        stretched = f"{int(username.partition(':')[0]) + 3600}:{user_id}"
        somebody_else = f"{username.partition(':')[0]}:{uuid4()}"
        with monkeypatch.context() as earlier:
            earlier.setattr(plugins.turn, "time", SimpleNamespace(time=lambda: time.time() - TTL - 2))
            expired = relay.credentials(user_id)
        for name, password in (
            expired,
            (username, credential[:-2] + ("A=" if credential[-2] != "A" else "B=")),
            (stretched, credential),
            (somebody_else, credential),
            (username, ""),
        ):
            with pytest.raises(TransactionFailed) as refused:
                await relay.allocate(name, password)
            assert refused.value.response.error_code == 401
        await relay.allocate(username, credential)


@pytest.mark.gen_test
async def test_a_user_has_ten_allocations_whatever_the_timestamps(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relaying() as relay:
        user_id = uuid4()

        async def allocate(number: int) -> TurnTransport:
            with monkeypatch.context() as earlier:
                earlier.setattr(plugins.turn, "time", SimpleNamespace(time=lambda: time.time() - number))
                credentials = relay.credentials(user_id)
            return await relay.allocate(*credentials)

        held = [await allocate(number) for number in range(USER_QUOTA)]
        with pytest.raises(TransactionFailed) as refused:
            await allocate(USER_QUOTA)
        assert refused.value.response.error_code == 486
        await relay.allocate(*relay.credentials(uuid4()))  # others are not concerned
        await relay.free(held[0])
        async with asyncio.timeout(WAIT):  # coturn counts it as gone a moment after it has said so
            while len(relay.held) < USER_QUOTA + 1:
                with contextlib.suppress(TransactionFailed):
                    await allocate(USER_QUOTA)
                await asyncio.sleep(0.05)


@pytest.mark.gen_test
@pytest.mark.parametrize("host", ["127.0.0.1", *(["::1"] if ipv6_loopback() else [])])
async def test_no_peer_but_a_public_one(host: str) -> None:
    asked = [address for address in addresses() if (":" in host) == (address.version == 6)]
    async with relaying(host) as relay:
        allocation = await relay.allocate(*relay.credentials(uuid4()))
        wrong = []
        for address in asked:
            expected = 403 if denied(address) else None
            if await permission(allocation, str(address)) != expected:
                wrong.append(f"{address} should be {'refused' if expected else 'reached'}")
        assert not wrong
    assert sum(map(denied, asked)) >= 40
    assert sum(not denied(address) for address in asked) >= 5


@pytest.mark.gen_test
async def test_tls_with_the_certificate_lines() -> None:
    with folder() as place:
        certificate, key = place / "fullchain.pem", place / "privkey.pem"
        issue(certificate, key)
        lines = SHIPPED.read_text()
        assert re.search(r"(?m)^#cert=", lines)
        assert re.search(r"(?m)^#pkey=", lines)
        async with relaying(more=f"cert={certificate}\npkey={key}\n") as relay:
            trusting = ssl.create_default_context(cafile=str(certificate))
            await relay.allocate(*relay.credentials(uuid4()), transport="tcp", tls=trusting)
            assert complaints(relay) == []


@pytest.mark.gen_test(timeout=60)
async def test_during_a_rotation_both_secrets_open_it_and_then_the_new_one_alone(tmp_path: Path) -> None:
    old, settings = "t" * 40, {"MIMU_DATA_DIR": str(tmp_path), "TURN_SECRET": "t" * 40}
    assert (await script(None, "rotate_keys", "turn", **settings)).code == 0
    with folder() as place:
        certificate, key, output = place / "fullchain.pem", place / "privkey.pem", tmp_path / "turnserver.conf"
        issue(certificate, key)
        lines = ("--output", str(output), "--cert", str(certificate), "--pkey", str(key))
        assert (await script(None, "turnserver_conf", *lines, **settings)).code == 0
        both = re.findall(r"(?m)^static-auth-secret=(.+)$", output.read_text())
        [new] = [secret for secret in both if secret != old]
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with relaying(conf=output.read_text()) as relay:
            for secret in (old, new):
                for transport, tls in (("udp", None), ("tcp", None), ("tcp", trusting)):
                    await relay.allocate(*relay.credentials(uuid4(), secret), transport, tls)
        only_new = output.read_text().replace(f"static-auth-secret={old}\n", "")
        async with relaying(conf=only_new) as relay:
            await relay.allocate(*relay.credentials(uuid4(), new))
            with pytest.raises(TransactionFailed):
                await relay.allocate(*relay.credentials(uuid4(), old))


def test_the_shipped_file_denies_the_networks_that_pushes_never_reach() -> None:
    """One list (config/networks.py): python -m scripts.turnserver_conf --networks --output turnserver.conf"""
    assert turnserver_conf.with_networks(SHIPPED.read_text()) == SHIPPED.read_text()
    inside = [
        ipaddress.ip_network(written) for written in ("::ffff:0:0/96", "64:ff9b::/96")
    ]  # judged by the IPv4 in it
    for address in addresses():
        if not any(address in network for network in inside if address.version == network.version):
            assert networks.public(str(address)) == (not denied(address)), address


@pytest.mark.gen_test
async def test_coturn_knows_every_line() -> None:
    async with relaying() as relay:
        assert [line for line in complaints(relay) if not re.search("cert|private key", line, re.IGNORECASE)] == []


def test_the_shipped_file_opens_no_relay() -> None:
    lines = [line.strip() for line in SHIPPED.read_text().splitlines() if line.strip() and not line.startswith("#")]
    names = {line.partition("=")[0] for line in lines}
    assert {"use-auth-secret", "no-cli", "no-multicast-peers", "no-tcp-relay", "stale-nonce", "fingerprint"} <= names
    # A secret that everybody can read is an open relay; so is any way around the secret.
    assert names.isdisjoint(
        {"static-auth-secret", "user", "no-auth", "allow-loopback-peers", "allowed-peer-ip", "verbose"}
    )


@pytest.mark.gen_test
async def test_without_a_secret_it_refuses_everyone() -> None:
    """An operator who forgets the secret has a closed relay, not an open one."""
    async with relaying(forgotten=True) as relay:
        for guess in ("", "REPLACE_WITH_TURN_SECRET"):
            with pytest.raises(TransactionFailed) as refused:
                await relay.allocate(*replace(relay, secret=guess).credentials(uuid4()))
            assert refused.value.response.error_code == 401


def denied(address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in SPECIAL)


def addresses() -> list[IPv4Address | IPv6Address]:
    """The ends of every network, some within, what is next to it on both sides, and some that everybody knows."""
    dice = random.Random(8656)  # the same in each run
    found = {ipaddress.ip_address(address) for address in (FAMOUS + PUBLIC).split()}
    for network in SPECIAL:
        first, last = int(network.network_address), int(network.broadcast_address)
        numbers = [first, last, *(dice.randint(first, last) for _ in range(5))]
        # Zeros at the end: what coturn's comparison of byte after byte would let pass.
        numbers += [
            number >> bits << bits for number in numbers[2:] for bits in (8, 16) if number >> bits << bits >= first
        ]
        numbers += [number for number in (first - 1, last + 1) if 0 <= number < 1 << network.max_prefixlen]
        kind = IPv4Address if network.version == 4 else IPv6Address
        found |= {kind(number) for number in numbers}
    return sorted(found, key=lambda address: (address.version, int(address)))


async def permission(allocation: TurnTransport, peer: str) -> int | None:
    """Ask to relay to ``peer`` (CreatePermission, which sends it nothing); the error code, if it is refused."""
    request = Message(message_method=Method.CREATE_PERMISSION, message_class=Class.REQUEST)
    request.attributes["XOR-PEER-ADDRESS"] = (peer, 9)
    try:
        await protocol(allocation).request_with_retry(request)
    except TransactionFailed as error:
        return error.response.error_code
    return None


def complaints(relay: Relay) -> list[str]:
    """What coturn says about its configuration, beyond what it always says."""
    pattern = re.compile("bad configuration|warning|error|deprecated|unknown", re.IGNORECASE)
    found = [line for line in relay.log.read_text().splitlines() if pattern.search(line)]
    version = subprocess.run([turnserver(), "--version"], capture_output=True, text=True, timeout=10).stdout
    if not version.startswith("4.6."):
        found = [line for line in found if not re.search(rf"\b({DEFAULTS_BY_NOW})\b", line)]
    return found


def issue(certificate: Path, key: Path) -> None:
    """A certificate of our own for 127.0.0.1."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "turn.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    certificate.write_bytes(made.public_bytes(pem))
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
