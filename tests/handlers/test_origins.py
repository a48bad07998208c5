"""Origins with and without the default port are equal (RFC 6454, 4)."""

from __future__ import annotations

import pytest

from handlers.http.origins import is_allowed, is_own
from tests.client import Account
from tests.handlers.raw import line, request
from tests.handlers.test_refused import HANDSHAKE
from tests.running import Services, place, serving

OURS = [
    ("https://mimu.example.org", "mimu.example.org", True),
    ("https://mimu.example.org:443", "mimu.example.org", True),
    ("https://mimu.example.org", "mimu.example.org:443", True),
    ("http://mimu.example.org", "mimu.example.org:80", True),
    ("http://mimu.example.org:80", "MIMU.example.org", True),
    ("wss://mimu.example.org:443", "mimu.example.org", True),
    ("http://localhost:8080", "localhost:8080", True),
    ("http://[::1]:80", "[::1]", True),
    ("https://mimu.example.org:8443", "mimu.example.org:8443", True),
    ("https://mimu.example.org:8443", "mimu.example.org", False),
    ("https://mimu.example.org:80", "mimu.example.org", False),
    ("https://mimu.example.org", "mimu.example.org:80", False),
    ("https://mimu.example.org", "mimu.example.org:8443", False),
    ("https://evil.example", "mimu.example.org", False),
    ("https://mimu.example.org.evil.example", "mimu.example.org", False),
    ("https://mimu.example.org@evil.example", "mimu.example.org", False),
    ("https://evil.example/mimu.example.org", "mimu.example.org", False),
    ("https://mimu.example.org:99999", "mimu.example.org", False),
    ("https://[::1", "[::1", False),
    ("null", "mimu.example.org", False),
    ("null", "null", False),
    ("", "", False),
]


@pytest.mark.parametrize(("origin", "host", "own"), OURS)
def test_our_own_host_matches_with_and_without_its_port(origin: str, host: str, own: bool) -> None:
    assert is_own(origin, host) is own


@pytest.mark.parametrize(
    ("origin", "allowed", "yes"),
    [
        ("https://app.example", ["https://app.example"], True),
        ("https://app.example:443", ["https://app.example"], True),
        ("https://app.example", ["https://app.example:443"], True),
        ("capacitor://localhost", ["capacitor://localhost"], True),
        ("file://", ["file://"], True),
        ("https://app.example:8443", ["https://app.example"], False),
        ("http://app.example", ["https://app.example"], False),
        ("https://app.example/", ["https://app.example"], False),
        ("null", ["https://app.example"], False),
        ("null", ["*"], True),
    ],
)
def test_an_origin_is_allowed_with_and_without_its_port(origin: str, allowed: list[str], yes: bool) -> None:
    assert is_allowed(origin, allowed) is yes


@pytest.mark.gen_test
async def test_sockets_open_for_our_own_pages(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account().register(one.url)
        for origin, host, own in OURS[:14]:
            async with line(one.url) as each:
                sent = {**HANDSHAKE, "Authorization": f"Bearer {alice.token}", "Origin": origin, "Host": host}
                each.writer.write(request("GET /ws", **sent))
                status = (await each.reader.readline()).split()[1]
                assert status == (b"101" if own else b"403"), (origin, host)
