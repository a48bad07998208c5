"""The resolver: looks up hosts that users have named. It queries DNS from the event loop, without threads, and gives up
after two seconds.

``getaddrinfo`` runs in a few threads that the whole process shares: ten names whose servers never answered delayed all
pushes by 47 seconds, and kept the process from stopping. The differences: it reads /etc/hosts, then queries DNS (the
usual order of nsswitch.conf); a host is a full name, so search domains don't apply.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver

LOOKUP_TIMEOUT = 2.0  # seconds for a look-up, with all the servers that it queries
SERVER_TIMEOUT = 0.9  # seconds for the answer of one server, which leaves time for a second one
CACHE_SIZE = 1_000  # names with addresses, and names without
FAILURE_LIFE = 30.0  # seconds for which a name without an answer is not looked up again
_NUMBER = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")  # "127.1": inet_aton's way to write an address, not a name
HOSTS, RESOLV_CONF = Path("/etc/hosts"), Path("/etc/resolv.conf")


class NoAddress(OSError):
    """A name has no address, or its servers don't answer."""


class Resolver:
    """``servers`` and ``port`` are the DNS servers; without them those of /etc/resolv.conf."""

    def __init__(self, servers: Sequence[str] | None = None, port: int = 53, hosts: Path = HOSTS) -> None:
        self._servers, self._port = servers, port
        self._hosts = _Hosts(hosts)
        self._backend = dns.asyncbackend.get_backend("asyncio")
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._configured_by = 0  # mtime of the /etc/resolv.conf in use
        self._failed: OrderedDict[str, float] = OrderedDict()  # monotonic time until when a name is not looked up

    async def addresses(self, host: str) -> list[str]:
        """Return the addresses of a host, IPv6 and IPv4 alternating, or IPv4 only if this machine has no route for
        IPv6. Raises NoAddress."""
        host = host.rstrip(".").lower()
        if _is_address(host):
            return [host]
        if host.rpartition(".")[2] == "localhost":  # RFC 6761
            return ["127.0.0.1"]
        local = self._hosts.addresses(host)
        if local:
            return local
        if self._failed.get(host, 0.0) > time.monotonic():
            raise NoAddress("failed a moment ago")
        addresses = await self._look_up(host)
        if not addresses:
            self._failed[host] = time.monotonic() + FAILURE_LIFE
            self._failed.move_to_end(host)
            if len(self._failed) > CACHE_SIZE:
                self._failed.popitem(last=False)
            raise NoAddress("no address")
        return addresses

    async def _look_up(self, host: str) -> list[str]:
        try:
            name = dns.name.from_text(host)  # absolute; IDNs arrive as punycode
        except dns.exception.DNSException:
            return []
        if not host or _NUMBER.fullmatch(host):
            return []
        kinds = ["AAAA", "A"] if _ipv6() else ["A"]
        lists = await asyncio.gather(*(self._records(name, kind) for kind in kinds))
        pairs = itertools.zip_longest(*lists)
        return [address for pair in pairs for address in pair if address is not None]

    async def _records(self, name: dns.name.Name, kind: str) -> list[str]:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                answer = await self._configured().resolve(
                    name, kind, search=False, lifetime=LOOKUP_TIMEOUT, backend=self._backend
                )
        except (dns.exception.DNSException, OSError, TimeoutError, ValueError):
            return []
        return [record.address for record in answer]

    def _configured(self) -> dns.asyncresolver.Resolver:
        """Return dnspython's resolver, a new one if /etc/resolv.conf has changed."""
        changed = _modified(RESOLV_CONF)
        if self._resolver is None or (self._servers is None and changed != self._configured_by):
            self._resolver = dns.asyncresolver.Resolver(configure=self._servers is None)
            if self._servers is not None:
                self._resolver.nameservers, self._resolver.port = list(self._servers), self._port
            self._resolver.timeout = SERVER_TIMEOUT
            self._resolver.cache = dns.resolver.LRUCache(CACHE_SIZE)
            self._configured_by = changed
        return self._resolver


class _Hosts:
    """/etc/hosts, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path, self._modified = path, -1
        self._names: dict[str, list[str]] = {}

    def addresses(self, host: str) -> list[str]:
        modified = _modified(self._path)
        if modified != self._modified:
            self._modified, self._names = modified, {}
            for line in self._path.read_text(errors="replace").splitlines() if modified else ():
                address, *names = line.partition("#")[0].split() or [""]
                for name in names:
                    self._names.setdefault(name.lower(), []).append(address)
        return self._names.get(host, [])


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _ipv6() -> bool:
    """True if this machine has a route to public IPv6 addresses. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2000::1", 443))
    except OSError:
        return False
    return True
