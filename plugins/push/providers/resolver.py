"""The resolver: looks up hosts that users have named. It asks DNS from the event loop, without threads, and gives up
after two seconds.

``getaddrinfo`` runs in a few threads that all of the process shares: ten names whose servers never answered kept
everybody's pushes waiting for 47 seconds, and the process from ending. What is different here: /etc/hosts is read, then
DNS is asked (the usual order of nsswitch.conf); a host is a full name, so search domains don't apply.
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

LOOKUP_TIMEOUT = 2.0  # seconds for a look-up, however many servers are asked
ONE_SERVER = 0.9  # seconds for an answer of one of them, so that a second one is asked in time
REMEMBERED = 1_000  # names whose addresses, and names whose lack of them, are remembered
FAILED_FOR = 30.0  # seconds for which a name without an answer is not looked up again
_NUMBER = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")  # "127.1": a way of inet_aton's to write an address, and no name
HOSTS, RESOLV_CONF = Path("/etc/hosts"), Path("/etc/resolv.conf")


class NoAddress(OSError):
    """A name has no address, or its servers don't answer."""


class Resolver:
    """``servers`` and ``port`` are the DNS servers to ask; without them those of /etc/resolv.conf."""

    def __init__(self, servers: Sequence[str] | None = None, port: int = 53, hosts: Path = HOSTS) -> None:
        self._servers, self._port = servers, port
        self._hosts = _Hosts(hosts)
        self._backend = dns.asyncbackend.get_backend("asyncio")
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._configured_by = 0  # when that file was changed that is in use
        self._failed: OrderedDict[str, float] = OrderedDict()  # until when (monotonic) a name is not looked up

    async def addresses(self, host: str) -> list[str]:
        """The addresses of a host, IPv6 and IPv4 by turns, or IPv4 only where this machine has no route for IPv6.
        Raises NoAddress."""
        host = host.rstrip(".").lower()
        if _is_address(host):
            return [host]
        if host.rpartition(".")[2] == "localhost":  # RFC 6761
            return ["127.0.0.1"]
        known = self._hosts.addresses(host)
        if known:
            return known
        if self._failed.get(host, 0.0) > time.monotonic():
            raise NoAddress("failed a moment ago")
        found = await self._ask(host)
        if not found:
            self._failed[host] = time.monotonic() + FAILED_FOR
            self._failed.move_to_end(host)
            if len(self._failed) > REMEMBERED:
                self._failed.popitem(last=False)
            raise NoAddress("no address")
        return found

    async def _ask(self, host: str) -> list[str]:
        try:
            name = dns.name.from_text(host)  # an absolute one; IDNs come as punycode
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
        """dnspython's resolver; a new one when /etc/resolv.conf has changed."""
        changed = _modified(RESOLV_CONF)
        if self._resolver is None or (self._servers is None and changed != self._configured_by):
            self._resolver = dns.asyncresolver.Resolver(configure=self._servers is None)
            if self._servers is not None:
                self._resolver.nameservers, self._resolver.port = list(self._servers), self._port
            self._resolver.timeout = ONE_SERVER
            self._resolver.cache = dns.resolver.LRUCache(REMEMBERED)
            self._configured_by = changed
        return self._resolver


class _Hosts:
    """/etc/hosts, read again when it has changed."""

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
