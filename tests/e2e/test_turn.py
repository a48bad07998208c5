"""The shipped relay: users with the server's credentials get in, for a while and within bounds, and no further."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aioice.stun import TransactionFailed
from aioice.turn import TurnClientUdpProtocol

from tests.e2e.conftest import CONF
from tests.phones.coturn import HOST, Coturn, running_coturn
from tests.phones.phone import Phone
from tests.phones.signal_protocol import Json
from tests.phones.signal_python import SignalPython
from tests.running import Services, place, serving

ALLOCATIONS = 10  # of one user, contract section 6

# Nothing is sent to any of them: it is the binding of a channel that is refused, or not.
PUBLIC = ["8.8.8.8", "198.41.0.4"]
FORBIDDEN = [
    "0.0.0.1",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.1.2.3",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.192",
    "192.168.1.1",
    "224.0.0.1",
    "239.255.255.250",
    "255.255.255.255",
]


@contextlib.asynccontextmanager
async def allocation(coturn: Coturn, turn: Json) -> AsyncIterator[TurnClientUdpProtocol]:
    """A place on the relay. Raises TransactionFailed when it is refused."""
    server = (HOST, coturn.port)
    transport, client = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: TurnClientUdpProtocol(server, turn["username"], turn["credential"], 60, 60), remote_addr=server
    )
    try:
        await client.connect()
        yield client
        await client.delete()
    finally:
        transport.close()


def test_the_servers_credentials_open_the_relay(services: Services) -> None:
    async def knock() -> None:
        async with running_coturn(base=CONF) as coturn, place(services) as shared:
            settings = {"TURN_HOST": HOST, "TURN_PORT": str(coturn.port), "TURN_SECRET": coturn.secret}
            async with (
                serving(shared, **settings) as server,
                await Phone.register(server.url, "alice", SignalPython()) as alice,
            ):
                turn = await alice.turn_credentials()
                async with allocation(coturn, turn) as client:
                    assert client.relayed_address is not None
                for refused in (
                    coturn.credentials(alice.user_id, ttl=-1),
                    {**turn, "username": turn["username"].replace(alice.user_id, "mallory")},
                ):
                    with pytest.raises(TransactionFailed) as failure:
                        async with allocation(coturn, refused):
                            pass
                    assert failure.value.response.error_code == 401

    asyncio.run(knock())


def test_one_user_has_ten_allocations() -> None:
    async def fill() -> None:
        async with running_coturn(base=CONF) as coturn, contextlib.AsyncExitStack() as stack:
            for number in range(ALLOCATIONS):
                # Other moments of expiry are other names, but no other user.
                await stack.enter_async_context(allocation(coturn, coturn.credentials("alice", ttl=3600 + number)))
            with pytest.raises(TransactionFailed) as failure:
                await stack.enter_async_context(allocation(coturn, coturn.credentials("alice")))
            assert failure.value.response.error_code == 486  # Allocation Quota Reached, RFC 8656
            await stack.enter_async_context(allocation(coturn, coturn.credentials("bob")))

    asyncio.run(fill())


def test_it_relays_to_no_inner_address() -> None:
    async def refusal(client: TurnClientUdpProtocol, channel: int, peer: str) -> int | None:
        try:
            await client.channel_bind(0x4000 + channel, (peer, 9))
        except TransactionFailed as failure:
            return failure.response.error_code
        return 0

    async def try_all() -> None:
        async with (
            running_coturn(base=CONF, loopback=False) as coturn,
            allocation(coturn, coturn.credentials("mallory")) as client,
        ):
            answers = {peer: await refusal(client, n, peer) for n, peer in enumerate([*PUBLIC, *FORBIDDEN])}
            assert answers == dict.fromkeys(PUBLIC, 0) | dict.fromkeys(FORBIDDEN, 403)

    asyncio.run(try_all())
