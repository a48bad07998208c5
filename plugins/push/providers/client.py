"""The road to the providers: one pooled HTTP/2 client, and a guard on its way to addresses that users have named."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, NamedTuple

import httpcore
import httpx

from config.networks import public
from plugins.push.providers.resolver import NoAddress, Resolver

MOST = 8192  # bytes of an answer that are read; providers say what is wrong in a few hundred
REQUEST_TIMEOUT = 10.0  # seconds for a whole request; APNs and FCM answer within one
DIALLED = 4  # addresses of one name that are tried
CONNECTIONS = httpx.Limits(max_connections=200, max_keepalive_connections=100, keepalive_expiry=60)

# Ports that users may name: HTTPS, and those that need no privilege. Below are mail, file sharing and the like.
HTTPS, LEAST = 443, 1024

Failed = (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError)  # nothing that is known came of a request


class PrivateAddress(httpcore.ConnectError):
    """A name leads to no public address, or to a port that is not for users of ours to reach."""


class ProviderResponse(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def allowed(port: int) -> bool:
    """True if users may have pushes sent to that port."""
    return port == HTTPS or port >= LEAST


class Guard(httpcore.AsyncNetworkBackend):
    """Dials public addresses only. A name is looked up here, once, and what was found and judged is what is dialled:
    a name that leads elsewhere a moment later is of no use."""

    def __init__(self, resolver: Resolver, *, allow_private: bool = False) -> None:
        self._backend = httpcore.AnyIOBackend()
        self._resolver, self._allow_private = resolver, allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's own
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        if not allowed(port):
            raise PrivateAddress("not a port for pushes")
        try:
            addresses = (await self._resolver.addresses(host))[:DIALLED]
        except NoAddress as error:
            raise httpcore.ConnectError(str(error)) from error
        if not self._allow_private and not all(map(public, addresses)):
            raise PrivateAddress("not a public address")
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._backend.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise PrivateAddress("not an address")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class _Fork(httpx.AsyncBaseTransport):
    """Two pools: guarded for addresses that users name, open for those of the settings."""

    def __init__(self, trust: ssl.SSLContext, guard: Guard) -> None:
        self._open = httpx.AsyncHTTPTransport(verify=trust, http2=True, limits=CONNECTIONS)
        self._guarded = httpx.AsyncHTTPTransport(verify=trust, http2=True, limits=CONNECTIONS)
        # httpx has no parameter for it. A pool of httpcore's has, and a test dials a private address.
        self._guarded._pool._network_backend = guard

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        road = self._guarded if request.extensions.get("guarded") else self._open
        return await road.handle_async_request(request)

    async def aclose(self) -> None:
        await self._open.aclose()
        await self._guarded.aclose()


class Road:
    """Posts to providers. Redirects are not followed, proxies of the environment not used."""

    def __init__(self, ca_file: Path | None, *, allow_private: bool = False, resolver: Resolver | None = None) -> None:
        self._ca_file = ca_file
        self._guard = Guard(resolver or Resolver(), allow_private=allow_private)
        self._client: httpx.AsyncClient | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        trust = httpx.create_ssl_context(trust_env=False)
        if self._ca_file is not None:
            trust.load_verify_locations(self._ca_file)
        fork = _Fork(trust, self._guard)
        none = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # a jar that anybody can fill would never be emptied
        async with httpx.AsyncClient(
            transport=fork, trust_env=False, timeout=REQUEST_TIMEOUT, cookies=none, headers={"User-Agent": "Mimu"}
        ) as self._client:
            yield

    async def post(
        self, url: str, headers: Mapping[str, str], content: bytes, *, guarded: bool = False
    ) -> ProviderResponse:
        """Post, and read what is answered, up to a bound in size and time. Raises one of Failed."""
        assert self._client is not None, "the road is not open"
        request = self._client.build_request(
            "POST", url, headers=dict(headers), content=content, extensions={"guarded": guarded}
        )
        async with asyncio.timeout(REQUEST_TIMEOUT):
            response = await self._client.send(request, stream=True)
            try:
                body = b""
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) >= MOST:
                        break
            finally:
                await response.aclose()
        return ProviderResponse(response.status_code, response.headers, body[:MOST])
