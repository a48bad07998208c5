"""Networks that no user may reach through this server: all that are not globally reachable unicast.

Source: IANA's special-purpose registries of IPv4 and IPv6 addresses (RFC 6890), and one special address of Azure.
turnserver.conf denies them to relayed calls (``python -m scripts.turnserver_conf`` writes them there), and the server
sends no pushes to them.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Special(NamedTuple):
    """Networks, and what they are for."""

    what: str
    networks: tuple[str, ...]


SPECIAL4 = (
    Special('"This network": Linux takes 0.0.0.0 for the machine itself.', ("0.0.0.0/8",)),
    Special("Private (RFC 1918)", ("10.0.0.0/8",)),
    Special("Carrier-grade NAT (RFC 6598); also Alibaba's metadata at 100.100.100.200", ("100.64.0.0/10",)),
    Special("Loopback", ("127.0.0.0/8",)),
    Special("Azure's platform address (metadata, DNS, agent), public by its number only", ("168.63.129.16/32",)),
    Special("Link-local; also the metadata of AWS, Google, Azure, Hetzner at 169.254.169.254", ("169.254.0.0/16",)),
    Special("Private (RFC 1918); also Docker's networks", ("172.16.0.0/12",)),
    Special("IETF assignments (RFC 6890); also Oracle's metadata at 192.0.0.192", ("192.0.0.0/24",)),
    Special("Documentation (RFC 5737)", ("192.0.2.0/24",)),
    Special("6to4 relays, withdrawn (RFC 7526)", ("192.88.99.0/24",)),
    Special("Private (RFC 1918)", ("192.168.0.0/16",)),
    Special("Benchmarks (RFC 2544)", ("198.18.0.0/15",)),
    Special("Documentation (RFC 5737), two more", ("198.51.100.0/24", "203.0.113.0/24")),
    Special("Multicast", ("224.0.0.0/4",)),
    Special("Reserved, and broadcast", ("240.0.0.0/4",)),
)
# Only 2000::/3 is global unicast, so all below and above it is denied, whatever it may mean some day.
BELOW = "::/3"
SPECIAL6 = (
    Special(
        "Below: loopback ::1; IPv4-compatible ::a.b.c.d, -mapped ::ffff:a.b.c.d, -translated ::ffff:0:a.b.c.d and "
        "NAT64 64:ff9b::/96, which are other names of IPv4 addresses; NAT64 64:ff9b:1::/48; discard 100::/64",
        (BELOW,),
    ),
    Special("IETF assignments: Teredo (IPv4 in disguise), benchmarks, ORCHID", ("2001::/23",)),
    Special("Documentation (RFC 3849)", ("2001:db8::/32",)),
    Special("6to4: again IPv4 in disguise", ("2002::/16",)),
    Special("Documentation (RFC 9637)", ("3fff::/20",)),
    Special(
        "Above: segment routing 5f00::/16, unique local fc00::/7 (AWS's metadata at fd00:ec2::254), link-local "
        "fe80::/10, site-local fec0::/10, multicast ff00::/8",
        ("4000::/2", "8000::/1"),
    ),
)
_SPECIAL = tuple(ipaddress.ip_network(name) for special in SPECIAL4 + SPECIAL6 for name in special.networks)
# IPv6 notations of IPv4 addresses that reach real services: IPv4-mapped (RFC 4291), and the NAT64 of a machine without
# IPv4 (RFC 6052). The last 32 bits are the address that is reached, so they are checked.
_WRITTEN_AS_IPV6 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


def public(address: str) -> bool:
    """True if the address belongs to the public Internet, in any notation. Raises ValueError if it is no address."""
    parsed: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and any(parsed in network for network in _WRITTEN_AS_IPV6):
        parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return not any(parsed in network for network in _SPECIAL if network.version == parsed.version)
