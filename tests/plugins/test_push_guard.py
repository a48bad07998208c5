"""The guard: no push goes to an address that isn't of the public Internet, whatever name leads there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpcore
import pytest

from config.networks import public
from plugins.push.providers.client import Failed, PrivateAddress, ProviderClient, PublicAddressesOnly
from plugins.push.providers.resolver import Resolver
from tests.plugins.chatting import chat, say
from tests.plugins.pushing import pushing, subscribed
from tests.providers.certificates import certified
from tests.providers.dns import answering
from tests.providers.http2 import Reply, Request, listening
from tests.running import Services
from tests.waiting import until

PUBLIC = ["93.184.216.34", "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2001:0:a00:1::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not(address: str) -> None:
    assert not public(address)


@pytest.mark.gen_test
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "[::1]", "0.0.0.0"])
async def test_the_guard_does_not_dial_them(tmp_path: Path, host: str) -> None:
    asked: list[Request] = []

    async def answer(request: Request) -> Reply:
        asked.append(request)
        return Reply(201)

    ca_file, context = certified(tmp_path)
    async with listening(answer, context) as doors:
        guarded = ProviderClient(ca_file)
        async with guarded.open():
            url = f"https://{host}:{doors.port}/push"
            with pytest.raises(Failed) as refused:
                await guarded.post(url, {}, b"", guarded=True)
            assert isinstance(refused.value.__cause__, PrivateAddress) or "[::1]" not in url
            assert (doors.connections, asked) == (0, [])
            # The operator's own addresses are another matter.
            assert (await guarded.post(f"{doors.url}/push", {}, b"")).status == 201


@pytest.mark.gen_test
async def test_a_name_is_judged_by_what_is_dialled() -> None:
    """What is looked up twice may be two things; a name may have a public and a private address."""
    dialled: list[str] = []
    name = "rebinding.example.org"

    class Backend:
        async def connect_tcp(self, host: str, *_: Any) -> str:
            dialled.append(host)
            return "a stream"

    answers = [["1.1.1.1"], ["1.1.1.1", "127.0.0.1"], ["127.0.0.1", "1.1.1.1"], []]
    for number, addresses in enumerate(answers):
        async with answering({name: addresses}) as names:
            guard = PublicAddressesOnly(Resolver(["127.0.0.1"], names.port))
            guard._backend = Backend()  # type: ignore[assignment]
            if number == 0:
                assert await guard.connect_tcp(name, 443) == "a stream"
                continue
            with pytest.raises(PrivateAddress if addresses else httpcore.ConnectError):
                await guard.connect_tcp(name, 443)
    assert dialled == ["1.1.1.1"], "the address that was judged, not the name"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("port", "may"), [(443, True), (1024, True), (8443, True), (25, False), (80, False), (1023, False)]
)
async def test_ports_of_other_services_are_not_dialled(port: int, may: bool) -> None:
    class Backend:
        async def connect_tcp(self, host: str, *_: Any) -> str:
            return "a stream"

    guard = PublicAddressesOnly(Resolver())
    guard._backend = Backend()  # type: ignore[assignment]
    if may:
        assert await guard.connect_tcp("1.1.1.1", port) == "a stream"
    else:
        with pytest.raises(PrivateAddress):
            await guard.connect_tcp("1.1.1.1", port)


@pytest.mark.gen_test
async def test_a_subscription_to_a_private_address_receives_nothing(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, PUSH_ALLOW_PRIVATE="false") as (made, world):
        alice, bob = made.people
        await subscribed(bob, world)
        await say(alice, await chat(alice, bob))
        refused = 'mimu_push_total{kind="message_new",outcome="refused",provider="webpush"} 1.0'
        await until(lambda: refused in made.servers[0].app.metrics.exposition().decode())
        assert world.service.doors.connections == 0


@pytest.mark.gen_test
async def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    async def answer(_: Request) -> Reply:
        return Reply(200, b"x" * 60_000, {"set-cookie": "a=b"})

    ca_file, context = certified(tmp_path)
    async with listening(answer, context) as doors:
        client = ProviderClient(ca_file)
        async with client.open():
            found = await client.post(doors.url, {}, b"")
            assert len(found.body) <= 8192
            assert client._client is not None
            assert not client._client.cookies
