"""The public address: how it answers strangers, and whether requests reach Mimu unchanged."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

from config.findings import Examination, Finding, StopExamination, clock, good, skipped, weak, wrong
from config.settings import Core
from scripts.checks import certificate
from scripts.checks.asking import Failed, HttpResponse, ask

BODY = 300 * 1024  # bytes: more than the 256 KiB that Mimu accepts, less than the usual 1 MiB of proxies
UPLOAD = 1 << 30  # bytes that are announced but not sent
UPLOAD_TIMEOUT = 4.0  # seconds for the rejection, which needs no body
ANSWER = 1.0  # seconds; an app waits for several of these before it shows anything
STRANGE = "https://doctor.invalid"  # RFC 6761: no site can have this origin
ADDRESSES = 4  # of one name that are checked
SOCKET_TIMEOUT = 5.0

PARTS = (
    "address",
    "certificate",
    "redirect",
    "health",
    "clock",
    "request id",
    "host",
    "scheme",
    "hsts",
    "metrics",
    "forwarded",
    "body limit",
    "uploads",
    "upgrade",
    "socket",
)


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """The URL to check, and tokens for it. ``token`` is signed with the server's secret but belongs to no user: it is
    enough to check the handshake of a socket. ``account`` is an access token of a user."""

    url: str
    core: Core
    token: str
    account: str | None = None
    public: bool = True  # False: no URL is known, so this is the server's own port


def examination(target: PublicAddress | None) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        if target is None:
            yield skipped("address", "No public URL: name it with --url https://chat.example.org")
            raise StopExamination("no URL is known")
        parts = urlsplit(target.url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        addresses: list[str] = []
        async for finding in _address(host, port, addresses, target):
            yield finding
        for part in (_tls, _redirect):
            async for finding in part(host, port, secure, addresses):
                yield finding
        async for finding in _health(target, secure):
            yield finding
        for look_at in (_metrics, _body_limit, _uploads, _upgrade, _socket):
            async for finding in look_at(target):
                yield finding

    return Examination("public", f"The public address ({target.url})" if target else "The public address", PARTS, look)


async def _address(host: str, port: int, addresses: list[str], target: PublicAddress) -> AsyncIterator[Finding]:
    try:
        addresses += await certificate.resolve(host, port)
    except (OSError, UnicodeError):
        yield wrong("address", f"{host} has no address.", "Check its A and AAAA records.")
        raise StopExamination("the name has no address") from None
    private = [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_global]
    says = f"{host} is {', '.join(addresses[:ADDRESSES])}."
    if not target.public:
        yield skipped("address", f"Without --url this is the server's own port, {port}.")
    elif private and not _loopback(addresses):
        yield weak("address", f"{says} That is not a public address.", "Check its DNS records from outside.")
    else:
        yield good("address", says)


def _loopback(addresses: list[str]) -> bool:
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


async def _tls(host: str, port: int, secure: bool, addresses: list[str]) -> AsyncIterator[Finding]:
    if secure:
        for address in addresses[:ADDRESSES]:
            yield await certificate.check("certificate", host, port, address)
    elif _loopback(addresses):
        yield skipped("certificate", "This is an address of this machine without https.")
    else:
        says = "The URL is not https: tokens and passwords are sent unencrypted."
        yield wrong("certificate", says, "Let a proxy terminate TLS.")


async def _redirect(host: str, port: int, secure: bool, _: list[str]) -> AsyncIterator[Finding]:
    if not secure or port != 443:
        yield skipped("redirect", "The URL is not https on port 443.")
        return
    yield await redirected(f"http://{host}/")


async def redirected(url: str) -> Finding:
    """Check what a client receives that uses http instead of https."""
    try:
        answer = await ask(url)
    except Failed:
        return good("redirect", "Nothing answers without TLS.")
    if answer.status in (301, 302, 307, 308) and answer.headers.get("Location", "").startswith("https://"):
        return good("redirect", "Requests without TLS are redirected to https.")
    says = f"Requests without TLS are answered ({answer.status})."
    return wrong("redirect", says, "Let the proxy redirect port 80 to https, and do nothing else there.")


async def _health(target: PublicAddress, secure: bool) -> AsyncIterator[Finding]:
    name = f"doctor-{secrets.token_hex(8)}"
    try:
        answer = await ask(f"{target.url}/health", headers={"X-Request-ID": name})
    except ssl.SSLCertVerificationError:
        raise StopExamination("the certificate is not trusted") from None
    except Failed as error:
        kind = type(error).__name__
        if target.public:
            yield wrong("health", f"There is no answer ({kind}).", "Check that the proxy and the server run.")
        else:
            yield skipped("health", f"No server answers ({kind}).")
        raise StopExamination("there is no answer") from None
    health = answer.json
    if "status" not in health or "uptime_seconds" not in health:
        says = f"What answers there ({answer.status}) is not Mimu."
        yield wrong("health", says, "Check where the proxy passes requests to.")
        raise StopExamination("Mimu does not answer there")
    ill = [part for part, word in health.items() if word == "error"]
    if ill:
        says = f"Mimu reports failed checks: {', '.join(sorted(map(str, ill)))}."
        yield wrong("health", says, "See their findings here, and check_failed in its log.")
    elif answer.seconds > ANSWER:
        yield weak(
            "health", f"Mimu is healthy, but took {answer.seconds:.1f} s to answer.", "Find out what it is busy with."
        )
    else:
        yield good("health", f"Mimu is healthy, and answered in {answer.seconds * 1e3:.0f} ms.")
    if answer.ahead is not None:
        yield clock("clock", answer.ahead, "the public address")
    if answer.headers.get("X-Request-ID") == name:
        yield good("request id", "X-Request-ID is returned, so requests can be found in the logs.")
    else:
        do = "Let the proxy pass X-Request-ID in both directions."
        yield weak("request id", "X-Request-ID is not returned.", do)
    for finding in await _seen(target):
        yield finding
    if not secure:
        yield skipped("hsts", "The URL is not https.")
    elif "max-age" in answer.headers.get("Strict-Transport-Security", ""):
        yield good("hsts", "Browsers use https only.")
    else:
        do = "Let the proxy add: Strict-Transport-Security: max-age=63072000"
        yield weak("hsts", "The header Strict-Transport-Security is missing.", do)


async def _seen(target: PublicAddress) -> list[Finding]:
    """Check that Mimu knows the scheme and name that clients use: links and the origin of web apps depend on them."""
    try:
        answer = await ask(f"{target.url}/health", headers={"Authorization": f"Bearer {target.token}"})
    except Failed as error:
        return [skipped(part, f"There was no answer ({type(error).__name__}).") for part in ("host", "scheme")]
    seen = answer.json.get("seen")
    url = seen.get("url") if isinstance(seen, dict) else None
    if not isinstance(url, str):
        return [skipped(part, "The server there rejects our token.") for part in ("host", "scheme")]
    own, theirs = urlsplit(target.url), urlsplit(url)
    if _host(own.netloc, own.scheme) == _host(theirs.netloc, own.scheme):
        host = good("host", f"Mimu knows its name: {own.netloc}.")
    else:
        says = (
            f"Mimu believes that its name is {theirs.netloc}: upload URLs lead there, and web apps can't open sockets."
        )
        do = "Let the proxy pass Host with its port (nginx: proxy_set_header Host $http_host)."
        host = wrong("host", says, do)
    if own.scheme == theirs.scheme:
        return [host, good("scheme", f"Mimu knows that clients use {own.scheme}.")]
    says = f"Mimu believes that clients use {theirs.scheme}: upload URLs begin with that."
    do = "Let the proxy send X-Forwarded-Proto (nginx: proxy_set_header X-Forwarded-Proto $scheme), "
    return [host, wrong("scheme", says, f"{do}and name its address in TRUSTED_PROXIES.")]


def _host(netloc: str, scheme: str) -> str:
    return netloc.lower().removesuffix({"https": ":443", "http": ":80"}[scheme])


def _ours(answer: HttpResponse) -> bool:
    """True if the response is an error of Mimu itself, by its form."""
    return {"error", "message", "request_id"} <= answer.json.keys()


async def _metrics(target: PublicAddress) -> AsyncIterator[Finding]:
    try:
        answer = await ask(f"{target.url}/metrics")
    except Failed as error:
        yield wrong("metrics", f"There is no answer ({type(error).__name__}).", "See the proxy's log.")
        return
    here = f"asked from {answer.own}"
    if answer.status == 200 and b"mimu_" in answer.body:
        if not target.public:
            yield skipped("metrics", "/metrics is readable from here; use --url to check it from outside.")
        else:
            says = f"/metrics is readable through that URL ({here})."
            yield weak("metrics", says, "Let the proxy reject /metrics; then check again from elsewhere.")
        yield skipped("forwarded", "The check needs /metrics to be closed to us.")
        return
    yield good("metrics", f"/metrics is closed ({here}).")
    yield await _forwarded(target, answer)


async def _forwarded(target: PublicAddress, refused: HttpResponse) -> Finding:
    """Check that the server does not trust an X-Forwarded-For that a stranger sends."""
    core = target.core
    if not _ours(refused):
        return skipped("forwarded", "The proxy answers /metrics itself, so this can't be checked.")
    if not core.metrics_allow:
        return skipped("forwarded", "METRICS_ALLOW is empty, so this can't be checked.")
    if any(ipaddress.ip_address(refused.own.partition("%")[0]) in network for network in core.trusted_proxies):
        return skipped("forwarded", "This machine is in TRUSTED_PROXIES, so the server trusts it.")
    claimed = str(core.metrics_allow[0].network_address)
    try:
        answer = await ask(f"{target.url}/metrics", headers={"X-Forwarded-For": claimed})
    except Failed as error:
        return skipped("forwarded", f"There was no answer ({type(error).__name__}).")
    if answer.status == 200:
        says = "The server trusts X-Forwarded-For of strangers, so limits and METRICS_ALLOW have no effect."
        return wrong("forwarded", says, "Let the proxy append the address it sees (nginx: $proxy_add_x_forwarded_for).")
    return good("forwarded", "The server does not trust X-Forwarded-For of strangers.")


async def _body_limit(target: PublicAddress) -> AsyncIterator[Finding]:
    # To /auth/login, which checks the size before it counts an attempt.
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"public_id": "x" * BODY}).encode()
    try:
        answer = await ask(f"{target.url}/auth/login", "POST", headers=headers, body=body)
    except Failed as error:
        says = f"A body that is too large receives no response ({type(error).__name__})."
        yield weak("body limit", says, "Let the proxy stream bodies of any size.")
        return
    if answer.status == 413 and _ours(answer):
        yield good("body limit", "Mimu itself rejects bodies that are too large.")
    elif answer.status == 413:
        says = "The proxy rejects bodies with its own page, which apps can't read."
        yield weak("body limit", says, "Let it pass bodies of any size (nginx: client_max_body_size 0).")
    elif answer.status == 404 and _ours(answer):
        yield skipped("body limit", "The feature auth is off.")
    else:
        says = f"A body that is too large receives {answer.status}."
        yield wrong("body limit", says, "Find out what is between here and Mimu.")


async def _uploads(target: PublicAddress) -> AsyncIterator[Finding]:
    """Check that an unsigned upload is rejected before its body is sent: a proxy that buffers waits for it."""
    do = "Let the proxy stream bodies (nginx: client_max_body_size 0, proxy_request_buffering off)."
    headers = {"Content-Type": "application/octet-stream"}
    address = f"{target.url}/uploads/{uuid4()}"
    try:
        answer = await ask(address, "PUT", headers=headers, declared=UPLOAD, seconds=UPLOAD_TIMEOUT)
    except TimeoutError:
        yield weak("uploads", "The proxy buffers uploads before Mimu sees them.", do)
        return
    except Failed as error:
        yield weak("uploads", f"A large upload receives no response ({type(error).__name__}).", do)
        return
    if _ours(answer):
        yield good("uploads", "Uploads reach Mimu while they are sent.")
    else:
        yield wrong("uploads", f"The proxy rejects large uploads ({answer.status}).", do)


async def _upgrade(target: PublicAddress) -> AsyncIterator[Finding]:
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    shake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    known = {"Authorization": f"Bearer {target.token}", "Origin": STRANGE}
    do = "Let the proxy pass Upgrade and Connection for /ws (nginx: proxy_http_version 1.1, proxy_set_header)."
    try:
        anonymous = await ask(f"{target.url}/ws", headers=shake)
        stranger = await ask(f"{target.url}/ws", headers={**shake, **known})
    except Failed as error:
        yield wrong("upgrade", f"/ws does not answer ({type(error).__name__}).", do)
        return
    if anonymous.status != 401 or not _ours(anonymous):
        yield wrong("upgrade", f"/ws without a token returns {anonymous.status}, not Mimu's 401.", do)
    elif stranger.status == 401:
        says = "The server there rejects tokens signed with our JWT_SECRET: it has other settings, or another clock."
        yield wrong("upgrade", says, "Give all instances the same JWT_SECRET and KEYRING_FILE.")
    elif stranger.status == 403:
        yield good("upgrade", "The handshake of a socket reaches Mimu, which rejects foreign origins.")
    elif stranger.status == 101:
        yield good("upgrade", "The handshake of a socket reaches Mimu.")
    else:
        yield wrong("upgrade", f"The proxy turns a handshake into an ordinary request ({stranger.status}).", do)


async def _socket(target: PublicAddress) -> AsyncIterator[Finding]:
    if target.account is None:
        yield skipped("socket", "Opening a socket needs an access token: --token-file")
        return
    request = HTTPRequest(
        "ws" + target.url.removeprefix("http") + "/ws",
        headers={"Authorization": f"Bearer {target.account}"},
        connect_timeout=SOCKET_TIMEOUT,
        ssl_options=ssl.create_default_context() if target.url.startswith("https:") else None,
    )
    do = "See the proxy's log, and check that it keeps sockets open for more than a minute."
    try:
        async with asyncio.timeout(SOCKET_TIMEOUT):
            socket = await websocket_connect(request)
            ready = await socket.read_message()
            begun = time.monotonic()
            # An unknown type: the server answers it with an error and does nothing else.
            await socket.write_message(json.dumps({"type": "doctor", "id": "1"}))
            answer = await socket.read_message()
            while answer is not None and json.loads(answer).get("id") != "1":
                answer = await socket.read_message()
            took = (time.monotonic() - begun) * 1e3
            socket.close()
    except HTTPClientError as error:
        says = f"The server rejects the token ({error.code})."
        yield wrong("socket", says, "Use a fresh access token; it is valid for JWT_EXPIRATION_HOURS.")
        return
    except (OSError, TimeoutError, WebSocketClosedError, ValueError) as error:
        yield wrong("socket", f"A socket can't be opened ({type(error).__name__}).", do)
        return
    if ready is None or json.loads(ready).get("type") != "ready" or answer is None:
        yield wrong("socket", "A socket opens and closes at once.", do)
    else:
        yield good("socket", f"A socket opens, and a frame is answered in {took:.0f} ms.")
