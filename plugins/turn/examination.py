"""What the doctor asks of coturn: that it relays for who has our credentials, for nobody else, and not inwards."""

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
from plugins.turn.client import TCP, Client, Forged, Line, Refused, Transport, bound, connected

# Of each kind that turnserver.conf denies the one that would hurt: loopback, private networks and Docker's, neighbours
# of a cloud, and the metadata of AWS, Google, Azure, Hetzner, Oracle and Alibaba.
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
    # ... and the other ways to write some of them (RFC 4291, 6052, 3056).
    6: ("::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fd00:ec2::254", "fe80::1", "64:ff9b::7f00:1", "2002:7f00:1::"),
}
# RFC 8656: 403 forbidden, 443 another family than the relay's, 400 what coturn says to a mapped address. Each is a no.
NO = (400, 403, 443)
CALL = 300  # seconds that credentials are good for here
ADDRESSES = 4  # of one name that are tried
SOON = 21  # days that a certificate should be good for at least: it was to be renewed nine days ago

KNOCKS, KNOCK = 4, 0.5  # so many packets from a peer, of which some may be lost, with so many seconds between them

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
    """Where coturn is, and how to be let in: ``credentials`` gives a name and a password that are good for so many
    seconds from now, of a user of its own."""

    host: str
    port: int
    tls_port: int
    credentials: Callable[[int], tuple[str, str]]
    missed: bool = True  # when there is none


def examination(relay: Relay) -> Examination:
    return Examination("turn", f"TURN ({relay.host}:{relay.port})", PARTS, lambda: _look(relay))


async def _look(relay: Relay) -> AsyncIterator[Finding]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(relay.host, relay.port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        yield wrong("address", f"{relay.host} has no address.", "See its A and AAAA records, and TURN_HOST.")
        raise StopExamination("TURN_HOST has no address") from None
    addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))[:ADDRESSES]
    yield good("address", f"{relay.host} is {', '.join(addresses)}.")
    answering = []
    for address in addresses:
        try:
            async with connected("udp", address, relay.port) as line:
                await bound(line)
        except Trouble as error:
            if relay.missed:
                yield _silent(address, relay.port, error)
        else:
            answering.append(address)
            yield good("answers", f"It answers at {address} by UDP.")
    if not answering and not relay.missed:
        yield skipped("answers", "No coturn runs here; without one calls connect where no NAT is in the way.")
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
            says = f"Nobody answers by {transport.upper()} ({type(error).__name__})."
            yield wrong(transport, says, f"Open port {relay.port} ({transport.upper()}) in the firewall.")
    async for finding in _tls(relay, address):
        yield finding
    if not ways:
        raise StopExamination("it does not answer")
    way = Way(relay, address, ways[0])
    yield await _relays(way)
    yield await _kept_out(way, "strangers", "somebody with a made-up password", relay.credentials(CALL), made_up=True)
    yield await _kept_out(way, "expired", "credentials that have expired", relay.credentials(-60))
    yield await _peers(way, "peers", 4)
    yield await _peers(way, "peers of IPv6", 6)
    if "tcp" in ways:
        yield await _relayed_tcp(relay, address)
    else:
        yield skipped("relayed tcp", "It does not answer by TCP.")


class Way(NamedTuple):
    """How coturn can be asked, after it was seen to answer like that."""

    relay: Relay
    address: str
    transport: Transport

    def line(self) -> contextlib.AbstractAsyncContextManager[Line]:
        return connected(self.transport, self.address, self.relay.port)


def _silent(address: str, port: int, error: Exception) -> Finding:
    if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
        return skipped("answers", f"From this machine there is no way to {address}.")
    says = f"Nobody answers at {address}, port {port}, by UDP ({type(error).__name__})."
    do = "See that coturn runs, and that firewalls let UDP in; without it many calls fail."
    return wrong("answers", says, do)


@contextlib.asynccontextmanager
async def _client(relay: Relay, line: Line) -> AsyncIterator[Client]:
    client = Client(line, *relay.credentials(CALL))
    try:
        yield client
    finally:
        with contextlib.suppress(Refused, Forged, *Trouble):
            await client.free()


async def _allocates(
    relay: Relay, address: str, transport: Transport, port: int = 0, trust: ssl.SSLContext | None = None
) -> Finding:
    """Whether a user of ours gets a relay. Raises what is in Trouble."""
    try:
        async with (
            connected(transport, address, port or relay.port, trust, relay.host) as line,
            _client(relay, line) as client,
        ):
            given = (await client.allocate()).address(stun.XOR_RELAYED_ADDRESS)
    except Refused as refused:
        return wrong(transport, *_refusal(refused.code))
    except Forged:
        return wrong(transport, "It lets us in without our secret.", "Set use-auth-secret, as in turnserver.conf.")
    if given is None:
        return wrong(transport, "It gives a relay without an address.", "See what listens there.")
    if ipaddress.ip_address(address.partition("%")[0]).is_global and not given.is_global:
        says = f"It gives relays at {given}, where nobody reaches them."
        return wrong(transport, says, f"It is behind NAT: set external-ip={address}/{given}.")
    return good(transport, f"By {transport.upper()} our credentials get a relay, at {given}.")


def _refusal(code: int) -> tuple[str, str]:
    if code == 401:
        do = "Write TURN_SECRET there as static-auth-secret: python -m scripts.turnserver_conf"
        return "It does not take our credentials: its secret is another one, or its clock.", do
    if code in (486, 508):
        return f"It has no relay left ({code}).", "Raise total-quota, or see who takes them."
    return f"It refuses a relay ({code}).", "Its log says why; turnserver.conf is what was tried."


async def _relays(way: Way) -> Finding:
    """Whether what a peer sends comes through: we are that peer, too."""
    version = ipaddress.ip_address(way.address.partition("%")[0]).version
    token = secrets.token_bytes(16)
    try:
        async with way.line() as line, _client(way.relay, line) as client:
            given = await client.allocate(version=version)
            there, port = given.address(stun.XOR_RELAYED_ADDRESS), given.port(stun.XOR_RELAYED_ADDRESS)
            own = given.address(stun.XOR_MAPPED_ADDRESS)
            if own is None:
                return skipped("relays", "It does not say where it sees us.")
            try:
                await client.permit(str(own))
            except Refused as refused:
                if refused.code not in NO:
                    raise
                return skipped("relays", f"It sees us at {own}, where it rightly relays nothing; ask from elsewhere.")
            came = await _knocked(line, str(there), port, token)
    except Refused as refused:
        return skipped("relays", f"It gives no relay to try it with ({refused.code}).")
    except Forged:
        return skipped("relays", "It gives no relay that our secret signs.")
    except Trouble as error:
        return skipped("relays", f"It did not answer ({type(error).__name__}).")
    if came:
        return good("relays", "What a peer sends comes through.")
    says = f"What a peer sends to {there}, port {port}, does not come through: calls connect, and nobody hears a word."
    return wrong("relays", says, "Open UDP 49152-65535 in the firewall, and see that external-ip is right.")


async def _knocked(line: Line, there: str, port: int, token: bytes) -> bool:
    """Whether the token, sent to a relay from another socket of ours, arrives on the line."""
    loop = asyncio.get_running_loop()
    peer, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(there, port))
    hearing = asyncio.ensure_future(line.heard())
    try:
        for _ in range(KNOCKS):
            peer.sendto(token)
            await asyncio.wait([hearing], timeout=KNOCK)
            if hearing.done():
                return hearing.result() == token
        return False
    finally:
        hearing.cancel()
        peer.close()


async def _tls(relay: Relay, address: str) -> AsyncIterator[Finding]:
    if not relay.tls_port:
        yield skipped("tls", "TURN_TLS_PORT is 0; networks that let nothing but TLS through have no calls.")
        return
    trust = ssl.create_default_context()
    try:
        days = await in_daemon_thread(lambda: _days(relay.host, address, relay.tls_port, trust))
    except ssl.SSLCertVerificationError as error:
        says = f"Its certificate is not trusted: {error.verify_message or 'it proves nothing'}."
        yield wrong("tls", says, f"Give it one for {relay.host}, with its whole chain, and restart it.")
        return
    except Trouble as error:
        says = f"Nobody shakes hands on port {relay.tls_port} ({type(error).__name__})."
        yield wrong("tls", says, "Give coturn a certificate (cert, pkey), or set TURN_TLS_PORT=0.")
        return
    try:
        finding = await _allocates(relay, address, "tls", relay.tls_port, trust)
    except Trouble as error:
        says = f"It shakes hands, and then says nothing ({type(error).__name__})."
        finding = wrong("tls", says, "See what listens on that port.")
    if finding.state == "good" and days < SOON:
        do = "Renew it, and restart coturn, which reads it at its start."
        finding = weak("tls", f"Its certificate is good for {days:.0f} days.", do)
    yield finding


def _days(host: str, address: str, port: int, trust: ssl.SSLContext) -> float:
    """For how many days the certificate that is shown is good."""
    with socket.create_connection((address, port), 5) as plain, trust.wrap_socket(plain, server_hostname=host) as tls:
        ends = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
    return (ends - time.time()) / 86_400


async def _kept_out(way: Way, part: str, whom: str, shown: tuple[str, str], *, made_up: bool = False) -> Finding:
    """Whether these credentials, or that name with another password, get nothing."""
    name, password = shown
    try:
        async with way.line() as line:
            client = Client(line, name, password[::-1] if made_up else password)
            try:
                await client.allocate()
            finally:
                with contextlib.suppress(Refused, Forged, *Trouble):
                    await client.free()
    except Refused as refused:
        if refused.code == 401:
            return good(part, f"It refuses {whom}.")
        return weak(part, f"It refuses {whom} by {refused.code}.", "401 was to be expected; see what listens there.")
    except Forged:
        return wrong(part, "It gives everybody a relay.", "Set use-auth-secret, and remove no-auth and user.")
    except Trouble as error:
        return skipped(part, f"It did not answer ({type(error).__name__}).")
    return wrong(part, f"It gives {whom} a relay.", "See its clock, and that it runs with turnserver.conf.")


async def _peers(way: Way, part: str, version: int) -> Finding:
    """Whether it refuses to relay to where only this machine and its neighbours get; nothing is sent there."""
    let, odd = [], []
    try:
        async with way.line() as line, _client(way.relay, line) as client:
            await client.allocate(version=version)
            for peer in PEERS[version]:
                try:
                    await client.permit(peer)
                    let.append(peer)
                except Refused as refused:
                    if refused.code not in NO:
                        odd.append(refused.code)
    except Refused as refused:
        if version == 6 and refused.code in (440, 442, 508):
            return skipped(part, "It relays no IPv6.")
        return skipped(part, f"It gives no relay to try it with ({refused.code}).")
    except Forged:
        return skipped(part, "It gives no relay that our secret signs.")
    except Trouble as error:
        return skipped(part, f"It did not answer ({type(error).__name__}).")
    if let:
        says = f"It relays to {', '.join(let)}: every user gets at what is behind your firewall."
        return wrong(part, says, "Take the denied-peer-ip of turnserver.conf, and no allow-loopback-peers.")
    if odd:
        return weak(part, f"It answers {odd[0]} to private addresses.", "403 was to be expected; see its log.")
    return good(part, f"It refuses to relay to {len(PEERS[version])} addresses of private networks.")


async def _relayed_tcp(relay: Relay, address: str) -> Finding:
    """RFC 6062 would make a port scanner of it; no client of ours needs it."""
    try:
        async with connected("tcp", address, relay.port) as line, _client(relay, line) as client:
            await client.allocate(protocol=TCP)
    except Refused:
        return good("relayed tcp", "It relays no TCP.")
    except Forged:
        return skipped("relayed tcp", "Its answer is not signed by our secret.")
    except Trouble as error:
        return skipped("relayed tcp", f"It did not answer ({type(error).__name__}).")
    says = "It relays TCP, too: a port scanner for whoever has an account."
    return wrong("relayed tcp", says, "Set no-tcp-relay, as in turnserver.conf.")
