"""The HTTP/2 client to the providers, pooled. It connects to hosts that users named only at public addresses."""

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

MAX_RESPONSE = 8192  # bytes of a response that are read; providers describe an error in a few hundred
REQUEST_TIMEOUT = 10.0  # seconds for a whole request; APNs and FCM answer within one
MAX_ADDRESSES = 4  # addresses of one name that are tried
CONNECTIONS = httpx.Limits(max_connections=200, max_keepalive_connections=100, keepalive_expiry=60)

# Ports that users may name: HTTPS, and unprivileged ones. Below 1024 are mail, file sharing and the like.
HTTPS, MIN_PORT = 443, 1024

Failed = (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError)  # a request without a usable response


class PrivateAddress(httpcore.ConnectError):
    """A name has an address that is not public, or the port is not allowed for users."""


class ProviderResponse(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def allowed(port: int) -> bool:
    """True if the server may send pushes to that port for users."""
    return port == HTTPS or port >= MIN_PORT


class PublicAddressesOnly(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only. It looks up a name once, checks the addresses and connects to these same
    addresses: a name that changes its addresses a moment later (DNS rebinding) gains nothing."""

    def __init__(self, resolver: Resolver, *, allow_private: bool = False) -> None:
        self._backend = httpcore.AnyIOBackend()
        self._resolver, self._allow_private = resolver, allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        if not allowed(port):
            raise PrivateAddress("not a port for pushes")
        try:
            addresses = (await self._resolver.addresses(host))[:MAX_ADDRESSES]
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


class SplitTransport(httpx.AsyncBaseTransport):
    """Two pools: guarded for hosts that users name, open for hosts from the settings."""

    def __init__(self, trust: ssl.SSLContext, guard: PublicAddressesOnly) -> None:
        self._open = httpx.AsyncHTTPTransport(verify=trust, http2=True, limits=CONNECTIONS)
        self._guarded = httpx.AsyncHTTPTransport(verify=trust, http2=True, limits=CONNECTIONS)
        # httpx has no parameter for this, httpcore's pool has; a test connects to a private address to check it.
        self._guarded._pool._network_backend = guard

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = self._guarded if request.extensions.get("guarded") else self._open
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._open.aclose()
        await self._guarded.aclose()


class ProviderClient:
    """Posts to providers. It follows no redirects and uses no proxies of the environment."""

    def __init__(self, ca_file: Path | None, *, allow_private: bool = False, resolver: Resolver | None = None) -> None:
        self._ca_file = ca_file
        self._guard = PublicAddressesOnly(resolver or Resolver(), allow_private=allow_private)
        self._client: httpx.AsyncClient | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        trust = httpx.create_ssl_context(trust_env=False)
        if self._ca_file is not None:
            trust.load_verify_locations(self._ca_file)
        transport = SplitTransport(trust, self._guard)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # any host could fill a jar, and it only grows
        async with httpx.AsyncClient(
            transport=transport,
            trust_env=False,
            timeout=REQUEST_TIMEOUT,
            cookies=no_cookies,
            headers={"User-Agent": "Mimu"},
        ) as self._client:
            yield

    async def post(
        self, url: str, headers: Mapping[str, str], content: bytes, *, guarded: bool = False
    ) -> ProviderResponse:
        """Post, and read at most MAX_RESPONSE bytes of the response within REQUEST_TIMEOUT. Raises one of Failed."""
        assert self._client is not None, "the client is not open"
        request = self._client.build_request(
            "POST", url, headers=dict(headers), content=content, extensions={"guarded": guarded}
        )
        async with asyncio.timeout(REQUEST_TIMEOUT):
            response = await self._client.send(request, stream=True)
            try:
                body = b""
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) >= MAX_RESPONSE:
                        break
            finally:
                await response.aclose()
        return ProviderResponse(response.status_code, response.headers, body[:MAX_RESPONSE])
