"""The doctor's checks of coturn: it relays with our credentials, not without them, and not into private networks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import NamedTuple

from config.findings import Examination, Finding, StopExamination, good, skipped, weak, wrong
from config.threads import in_daemon_thread
from plugins.turn import stun
from plugins.turn.client import TCP, Client, Forged, Line, Refused, Transport, bind, connected

# The most harmful of each kind that turnserver.conf denies: loopback, private networks and Docker's, neighbours in a
# cloud, and the metadata of AWS, Google, Azure, Hetzner, Oracle and Alibaba.
PEERS = {
    4: (
        "127.0.0.1",
        "10.0.0.1",
        "172.17.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "0.0.0.0",
        "224.0.0.1",
    ),
    # ... and other notations of some of them (RFC 4291, 6052, 3056).
    6: ("::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fd00:ec2::254", "fe80::1", "64:ff9b::7f00:1", "2002:7f00:1::"),
}
# RFC 8656: 403 forbidden, 443 another family than the relay's, 400 coturn's response to a mapped address. Each refuses.
DENIED = (400, 403, 443)
CREDENTIAL_LIFE = 300  # seconds that credentials are valid here
MAX_ADDRESSES = 4  # addresses of one name that are tried
MIN_DAYS = 21  # days that a certificate should still be valid: renewal was due nine days ago

PACKETS, PACKET_INTERVAL = 4, 0.5  # packets from a peer, of which some may be lost, and the seconds between them

PARTS = (
    "address",
    "answers",
    "udp",
    "tcp",
    "tls",
    "relays",
    "strangers",
    "expired",
    "peers",
    "peers of IPv6",
    "relayed tcp",
)
Trouble = (OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Relay:
    """The address of coturn. ``credentials`` returns a name and a password of a new user, valid for so many seconds."""

    host: str
    port: int
    tls_port: int
    credentials: Callable[[int], tuple[str, str]]
    required: bool = True  # False: it is no fault if none runs


def examination(relay: Relay) -> Examination:
    return Examination("turn", f"TURN ({relay.host}:{relay.port})", PARTS, lambda: _look(relay))


async def _look(relay: Relay) -> AsyncIterator[Finding]:
    try:
        records = await asyncio.get_running_loop().getaddrinfo(relay.host, relay.port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        yield wrong("address", f"{relay.host} has no address.", "Check its A and AAAA records, and TURN_HOST.")
        raise StopExamination("TURN_HOST has no address") from None
    addresses = list(dict.fromkeys(str(where[0]) for *_, where in records))[:MAX_ADDRESSES]
    yield good("address", f"{relay.host} is {', '.join(addresses)}.")
    answering = []
    for address in addresses:
        try:
            async with connected("udp", address, relay.port) as line:
                await bind(line)
        except Trouble as error:
            if relay.required:
                yield _silent(address, relay.port, error)
        else:
            answering.append(address)
            yield good("answers", f"It answers at {address} by UDP.")
    if not answering and not relay.required:
        yield skipped("answers", "No coturn runs here; without it calls connect only if no NAT prevents them.")
        raise StopExamination("coturn does not run")
    address = (answering or addresses)[0]
    ways: list[Transport] = []
    for transport in ("udp", "tcp"):
        if transport == "udp" and not answering:
            yield skipped("udp", "It does not answer by UDP.")
            continue
        try:
            yield await _allocates(relay, address, transport)
            ways.append(transport)
        except Trouble as error:
            says = f"It does not answer by {transport.upper()} ({type(error).__name__})."
            yield wrong(transport, says, f"Open port {relay.port} ({transport.upper()}) in the firewall.")
    async for finding in _tls(relay, address):
        yield finding
    if not ways:
        raise StopExamination("it does not answer")
    way = Way(relay, address, ways[0])
    yield await _relays(way)
    yield await _keeps_out(
        way, "strangers", "a wrong password", relay.credentials(CREDENTIAL_LIFE), wrong_password=True
    )
    yield await _keeps_out(way, "expired", "expired credentials", relay.credentials(-60))
    yield await _peers(way, "peers", 4)
    yield await _peers(way, "peers of IPv6", 6)
    if "tcp" in ways:
        yield await _relayed_tcp(relay, address)
    else:
        yield skipped("relayed tcp", "It does not answer by TCP.")


class Way(NamedTuple):
    """An address and transport at which coturn answers."""

    relay: Relay
    address: str
    transport: Transport

    def line(self) -> contextlib.AbstractAsyncContextManager[Line]:
        return connected(self.transport, self.address, self.relay.port)


def _silent(address: str, port: int, error: Exception) -> Finding:
    if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
        return skipped("answers", f"This machine has no route to {address}.")
    says = f"No answer from {address}, port {port}, by UDP ({type(error).__name__})."
    do = "Check that coturn runs, and that firewalls allow UDP; without it many calls fail."
    return wrong("answers", says, do)


@contextlib.asynccontextmanager
async def _client(relay: Relay, line: Line) -> AsyncIterator[Client]:
    client = Client(line, *relay.credentials(CREDENTIAL_LIFE))
    try:
        yield client
    finally:
        with contextlib.suppress(Refused, Forged, *Trouble):
            await client.free()


async def _allocates(
    relay: Relay, address: str, transport: Transport, port: int = 0, trust: ssl.SSLContext | None = None
) -> Finding:
    """Check that a user of ours gets a relay. Raises one of Trouble."""
    try:
        async with (
            connected(transport, address, port or relay.port, trust, relay.host) as line,
            _client(relay, line) as client,
        ):
            relayed = (await client.allocate()).address(stun.XOR_RELAYED_ADDRESS)
    except Refused as refused:
        return wrong(transport, *_refusal(refused.code))
    except Forged:
        return wrong(transport, "It accepts us without our secret.", "Set use-auth-secret, as in turnserver.conf.")
    if relayed is None:
        return wrong(transport, "It allocates a relay without an address.", "Check which program listens there.")
    if ipaddress.ip_address(address.partition("%")[0]).is_global and not relayed.is_global:
        says = f"It allocates relays at {relayed}, which other networks can't reach."
        return wrong(transport, says, f"It is behind NAT: set external-ip={address}/{relayed}.")
    return good(transport, f"By {transport.upper()} our credentials get a relay, at {relayed}.")


def _refusal(code: int) -> tuple[str, str]:
    if code == 401:
        do = "Write TURN_SECRET there as static-auth-secret: python -m scripts.turnserver_conf"
        return "It rejects our credentials: its secret or its clock differs.", do
    if code in (486, 508):
        return f"It has no relay left ({code}).", "Raise total-quota, or check who uses them."
    return f"It refuses a relay ({code}).", "Its log says why. Compare its settings with turnserver.conf."


async def _relays(way: Way) -> Finding:
    """Check that data from a peer comes through; we are the peer as well."""
    version = ipaddress.ip_address(way.address.partition("%")[0]).version
    token = secrets.token_bytes(16)
    try:
        async with way.line() as line, _client(way.relay, line) as client:
            relayed = await client.allocate(version=version)
            there, port = relayed.address(stun.XOR_RELAYED_ADDRESS), relayed.port(stun.XOR_RELAYED_ADDRESS)
            own = relayed.address(stun.XOR_MAPPED_ADDRESS)
            if own is None:
                return skipped("relays", "It does not report our address.")
            try:
                await client.permit(str(own))
            except Refused as refused:
                if refused.code not in DENIED:
                    raise
                says = f"It sees us at {own} and rightly does not relay there; run this on another machine."
                return skipped("relays", says)
            received = await _receives(line, str(there), port, token)
    except Refused as refused:
        return skipped("relays", f"It allocates no relay for this check ({refused.code}).")
    except Forged:
        return skipped("relays", "Its response is not signed with our secret.")
    except Trouble as error:
        return skipped("relays", f"It did not answer ({type(error).__name__}).")
    if received:
        return good("relays", "Data from a peer comes through.")
    says = f"Data from a peer to {there}, port {port}, does not come through: calls connect but stay silent."
    return wrong("relays", says, "Open UDP 49152-65535 in the firewall, and check external-ip.")


async def _receives(line: Line, there: str, port: int, token: bytes) -> bool:
    """True if the token, sent to the relay from another socket of ours, arrives on the line."""
    loop = asyncio.get_running_loop()
    peer, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(there, port))
    receiving = asyncio.ensure_future(line.receive())
    try:
        for _ in range(PACKETS):
            peer.sendto(token)
            await asyncio.wait([receiving], timeout=PACKET_INTERVAL)
            if receiving.done():
                return receiving.result() == token
        return False
    finally:
        receiving.cancel()
        peer.close()


async def _tls(relay: Relay, address: str) -> AsyncIterator[Finding]:
    if not relay.tls_port:
        yield skipped("tls", "TURN_TLS_PORT is 0; calls fail in networks that allow only TLS.")
        return
    trust = ssl.create_default_context()
    try:
        days = await in_daemon_thread(lambda: _days(relay.host, address, relay.tls_port, trust))
    except ssl.SSLCertVerificationError as error:
        says = f"Its certificate is not trusted: {error.verify_message or 'it does not verify'}."
        yield wrong("tls", says, f"Install one for {relay.host}, with its whole chain, and restart coturn.")
        return
    except Trouble as error:
        says = f"No TLS handshake on port {relay.tls_port} ({type(error).__name__})."
        yield wrong("tls", says, "Give coturn a certificate (cert, pkey), or set TURN_TLS_PORT=0.")
        return
    try:
        finding = await _allocates(relay, address, "tls", relay.tls_port, trust)
    except Trouble as error:
        says = f"It does not answer after the TLS handshake ({type(error).__name__})."
        finding = wrong("tls", says, "Check which program listens on that port.")
    if finding.state == "good" and days < MIN_DAYS:
        do = "Renew it, and restart coturn, which reads it only at start."
        finding = weak("tls", f"Its certificate expires in {days:.0f} days.", do)
    yield finding


def _days(host: str, address: str, port: int, trust: ssl.SSLContext) -> float:
    """Return for how many days the server's certificate is still valid."""
    with socket.create_connection((address, port), 5) as plain, trust.wrap_socket(plain, server_hostname=host) as tls:
        ends = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
    return (ends - time.time()) / 86_400


async def _keeps_out(
    way: Way, part: str, what: str, credentials: tuple[str, str], *, wrong_password: bool = False
) -> Finding:
    """Check that these credentials, or their name with a wrong password, get no relay."""
    name, password = credentials
    try:
        async with way.line() as line:
            client = Client(line, name, password[::-1] if wrong_password else password)
            try:
                await client.allocate()
            finally:
                with contextlib.suppress(Refused, Forged, *Trouble):
                    await client.free()
    except Refused as refused:
        if refused.code == 401:
            return good(part, f"It rejects {what}.")
        return weak(part, f"It rejects {what} with {refused.code}.", "Expected 401; check which program listens there.")
    except Forged:
        return wrong(part, "It allocates relays for anyone.", "Set use-auth-secret, and remove no-auth and user.")
    except Trouble as error:
        return skipped(part, f"It did not answer ({type(error).__name__}).")
    return wrong(part, f"It allocates a relay with {what}.", "Check its clock, and that it runs with turnserver.conf.")


async def _peers(way: Way, part: str, version: int) -> Finding:
    """Check that it does not relay to addresses of this machine and its private networks; nothing is sent there."""
    permitted, odd = [], []
    try:
        async with way.line() as line, _client(way.relay, line) as client:
            await client.allocate(version=version)
            for peer in PEERS[version]:
                try:
                    await client.permit(peer)
                    permitted.append(peer)
                except Refused as refused:
                    if refused.code not in DENIED:
                        odd.append(refused.code)
    except Refused as refused:
        if version == 6 and refused.code in (440, 442, 508):
            return skipped(part, "It relays no IPv6.")
        return skipped(part, f"It allocates no relay for this check ({refused.code}).")
    except Forged:
        return skipped(part, "Its response is not signed with our secret.")
    except Trouble as error:
        return skipped(part, f"It did not answer ({type(error).__name__}).")
    if permitted:
        says = f"It relays to {', '.join(permitted)}: every user can reach hosts behind your firewall."
        return wrong(part, says, "Use the denied-peer-ip lines of turnserver.conf, without allow-loopback-peers.")
    if odd:
        return weak(part, f"It answers {odd[0]} to private addresses.", "Expected 403; check its log.")
    return good(part, f"It refuses to relay to {len(PEERS[version])} addresses of private networks.")


async def _relayed_tcp(relay: Relay, address: str) -> Finding:
    """Check that it relays no TCP (RFC 6062): users could scan ports with it, and no client of ours needs it."""
    try:
        async with connected("tcp", address, relay.port) as line, _client(relay, line) as client:
            await client.allocate(protocol=TCP)
    except Refused:
        return good("relayed tcp", "It relays no TCP.")
    except Forged:
        return skipped("relayed tcp", "Its response is not signed with our secret.")
    except Trouble as error:
        return skipped("relayed tcp", f"It did not answer ({type(error).__name__}).")
    says = "It relays TCP: every user can scan ports with it."
    return wrong("relayed tcp", says, "Set no-tcp-relay, as in turnserver.conf.")
