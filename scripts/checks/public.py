"""The public address: what a stranger meets there, and whether all of it reaches Mimu as it was sent."""

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

BODY = 300 * 1024  # bytes: more than the 256 KiB that Mimu takes, less than the 1 MiB that proxies do
UPLOAD = 1 << 30  # bytes that are announced, and not sent
UPLOAD_TIMEOUT = 4.0  # seconds for the no that needs no body
ANSWER = 1.0  # seconds; a stranger's phone waits for several of these before it shows anything
STRANGE = "https://doctor.invalid"  # RFC 6761: no site can have this origin
ADDRESSES = 4  # of one name that are tried
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
class Door:
    """Where to knock, and with what. ``token`` is one of nobody's that the server's secret signs: the handshake of a
    socket goes far enough with it to tell that it was one. ``account`` is an access token of somebody's."""

    url: str
    core: Core
    token: str
    account: str | None = None
    public: bool = True  # as the operator named it, and not the server's own port, for want of a name


def examination(door: Door | None) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        if door is None:
            yield skipped("address", "No public address was named: --url https://chat.example.org")
            raise StopExamination("no address was named")
        parts = urlsplit(door.url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        addresses: list[str] = []
        async for finding in _address(host, port, addresses, door):
            yield finding
        for part in (_tls, _redirect):
            async for finding in part(host, port, secure, addresses):
                yield finding
        async for finding in _health(door, secure):
            yield finding
        for look_at in (_metrics, _body_limit, _uploads, _upgrade, _socket):
            async for finding in look_at(door):
                yield finding

    return Examination("public", f"The public address ({door.url})" if door else "The public address", PARTS, look)


async def _address(host: str, port: int, addresses: list[str], door: Door) -> AsyncIterator[Finding]:
    try:
        addresses += await certificate.resolved(host, port)
    except (OSError, UnicodeError):
        yield wrong("address", f"{host} has no address.", "See its A and AAAA records.")
        raise StopExamination("the name has no address") from None
    private = [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_global]
    says = f"{host} is {', '.join(addresses[:ADDRESSES])}."
    if not door.public:
        yield skipped("address", f"No --url was named: this is the server's own port, {port}.")
    elif private and not _loopback(addresses):
        yield weak("address", f"{says} That is no public address.", "See its records as the world sees them.")
    else:
        yield good("address", says)


def _loopback(addresses: list[str]) -> bool:
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


async def _tls(host: str, port: int, secure: bool, addresses: list[str]) -> AsyncIterator[Finding]:
    if secure:
        for address in addresses[:ADDRESSES]:
            yield await certificate.judged("certificate", host, port, address)
    elif _loopback(addresses):
        yield skipped("certificate", "The address is this machine's own, and not https.")
    else:
        says = "The address is not https: tokens and passwords travel in clear."
        yield wrong("certificate", says, "Let a proxy end TLS.")


async def _redirect(host: str, port: int, secure: bool, _: list[str]) -> AsyncIterator[Finding]:
    if not secure or port != 443:
        yield skipped("redirect", "The address has a port of its own.")
        return
    yield await redirected(f"http://{host}/")


async def redirected(url: str) -> Finding:
    """What somebody meets who leaves out the s."""
    try:
        answer = await ask(url)
    except Failed:
        return good("redirect", "Without TLS nobody answers.")
    if answer.status in (301, 302, 307, 308) and answer.headers.get("Location", "").startswith("https://"):
        return good("redirect", "Whoever comes without TLS is sent to https.")
    says = f"Without TLS there is an answer, too ({answer.status})."
    return wrong("redirect", says, "Let the proxy redirect port 80 to https, and do nothing else there.")


async def _health(door: Door, secure: bool) -> AsyncIterator[Finding]:
    name = f"doctor-{secrets.token_hex(8)}"
    try:
        answer = await ask(f"{door.url}/health", headers={"X-Request-ID": name})
    except ssl.SSLCertVerificationError:
        raise StopExamination("the certificate is not trusted") from None
    except Failed as error:
        kind = type(error).__name__
        if door.public:
            yield wrong("health", f"There is no answer ({kind}).", "See that the proxy and the server run.")
        else:
            yield skipped("health", f"No server answers there ({kind}).")
        raise StopExamination("there is no answer") from None
    told = answer.json
    if "status" not in told or "uptime_seconds" not in told:
        says = f"What answers there ({answer.status}) is not Mimu."
        yield wrong("health", says, "See where the proxy passes requests on to.")
        raise StopExamination("Mimu does not answer there")
    ill = [part for part, word in told.items() if word == "error"]
    if ill:
        says = f"Mimu says that it is not well: {', '.join(sorted(map(str, ill)))}."
        yield wrong("health", says, "See what is said of that here, and in its log: check_failed.")
    elif answer.seconds > ANSWER:
        yield weak("health", f"Mimu is well, and took {answer.seconds:.1f} s to say so.", "See what it is busy with.")
    else:
        yield good("health", f"Mimu is well, and said so in {answer.seconds * 1e3:.0f} ms.")
    if answer.ahead is not None:
        yield clock("clock", answer.ahead, "the public address")
    if answer.headers.get("X-Request-ID") == name:
        yield good("request id", "X-Request-ID comes back, so a request is found in the logs.")
    else:
        do = "Let the proxy pass X-Request-ID both ways."
        yield weak("request id", "X-Request-ID does not come back.", do)
    for finding in await _seen(door):
        yield finding
    if not secure:
        yield skipped("hsts", "The address is not https.")
    elif "max-age" in answer.headers.get("Strict-Transport-Security", ""):
        yield good("hsts", "Browsers are told to come by https only.")
    else:
        do = "Let the proxy add: Strict-Transport-Security: max-age=63072000"
        yield weak("hsts", "There is no Strict-Transport-Security.", do)


async def _seen(door: Door) -> list[Finding]:
    """Whether Mimu knows by which scheme and name clients find it: links and the origin of web apps go by that."""
    try:
        answer = await ask(f"{door.url}/health", headers={"Authorization": f"Bearer {door.token}"})
    except Failed as error:
        return [skipped(part, f"There was no answer ({type(error).__name__}).") for part in ("host", "scheme")]
    seen = answer.json.get("seen")
    url = seen.get("url") if isinstance(seen, dict) else None
    if not isinstance(url, str):
        return [skipped(part, "The server there takes no token of ours.") for part in ("host", "scheme")]
    own, theirs = urlsplit(door.url), urlsplit(url)
    if _host(own.netloc, own.scheme) == _host(theirs.netloc, own.scheme):
        host = good("host", f"Mimu knows that it is {own.netloc}.")
    else:
        says = f"Mimu takes itself for {theirs.netloc}: addresses of uploads lead there, and web apps open no sockets."
        do = "Let the proxy pass Host on, with its port (nginx: proxy_set_header Host $http_host)."
        host = wrong("host", says, do)
    if own.scheme == theirs.scheme:
        return [host, good("scheme", f"Mimu knows that clients come by {own.scheme}.")]
    says = f"Mimu believes that clients come by {theirs.scheme}: addresses of uploads begin so."
    do = "Let the proxy send X-Forwarded-Proto (nginx: proxy_set_header X-Forwarded-Proto $scheme) and be in "
    return [host, wrong("scheme", says, f"{do}TRUSTED_PROXIES.")]


def _host(netloc: str, scheme: str) -> str:
    return netloc.lower().removesuffix({"https": ":443", "http": ":80"}[scheme])


def _ours(answer: HttpResponse) -> bool:
    """Whether Mimu itself says no: in its one form of an error."""
    return {"error", "message", "request_id"} <= answer.json.keys()


async def _metrics(door: Door) -> AsyncIterator[Finding]:
    try:
        answer = await ask(f"{door.url}/metrics")
    except Failed as error:
        yield wrong("metrics", f"There is no answer ({type(error).__name__}).", "See the proxy's log.")
        return
    here = f"we ask from {answer.own}"
    if answer.status == 200 and b"mimu_" in answer.body:
        if not door.public:
            yield skipped("metrics", "Here /metrics may be read; whether the world may, tells --url.")
        else:
            says = f"/metrics can be read by that address ({here})."
            yield weak("metrics", says, "Let the proxy refuse /metrics; then ask again from elsewhere.")
        yield skipped("forwarded", "It shows in /metrics, and we may read that anyway.")
        return
    yield good("metrics", f"/metrics can't be read ({here}).")
    yield await _forwarded(door, answer)


async def _forwarded(door: Door, refused: HttpResponse) -> Finding:
    """Whether a stranger who says that he comes from a network of METRICS_ALLOW is believed."""
    core = door.core
    if not _ours(refused):
        return skipped("forwarded", "The proxy answers for /metrics itself, where it would show.")
    if not core.metrics_allow:
        return skipped("forwarded", "METRICS_ALLOW is empty, so it does not show.")
    if any(ipaddress.ip_address(refused.own.partition("%")[0]) in network for network in core.trusted_proxies):
        return skipped("forwarded", "This machine is in TRUSTED_PROXIES, and may say what it likes.")
    claimed = str(core.metrics_allow[0].network_address)
    try:
        answer = await ask(f"{door.url}/metrics", headers={"X-Forwarded-For": claimed})
    except Failed as error:
        return skipped("forwarded", f"There was no answer ({type(error).__name__}).")
    if answer.status == 200:
        says = "A stranger's own X-Forwarded-For is believed: limits, and METRICS_ALLOW, hold nobody back."
        return wrong("forwarded", says, "Let the proxy append the address it sees (nginx: $proxy_add_x_forwarded_for).")
    return good("forwarded", "A stranger's own X-Forwarded-For is not believed.")


async def _body_limit(door: Door) -> AsyncIterator[Finding]:
    # To /auth/login, which judges the size before it counts a try.
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"public_id": "x" * BODY}).encode()
    try:
        answer = await ask(f"{door.url}/auth/login", "POST", headers=headers, body=body)
    except Failed as error:
        says = f"A body that is too large is answered by nothing ({type(error).__name__})."
        yield weak("body limit", says, "Let the proxy pass bodies on as they come, of any size.")
        return
    if answer.status == 413 and _ours(answer):
        yield good("body limit", "What is too large is refused by Mimu, in its own words.")
    elif answer.status == 413:
        says = "The proxy refuses bodies in its own words, which apps don't read."
        yield weak("body limit", says, "Let it pass bodies of any size (nginx: client_max_body_size 0).")
    elif answer.status == 404 and _ours(answer):
        yield skipped("body limit", "There is no feature auth.")
    else:
        says = f"A body that is too large is answered with {answer.status}."
        yield wrong("body limit", says, "See what stands between here and Mimu.")


async def _uploads(door: Door) -> AsyncIterator[Finding]:
    """An upload without a signature is refused before its body comes, unless somebody in between wants it first."""
    do = "Let the proxy pass bodies on as they come (nginx: client_max_body_size 0, proxy_request_buffering off)."
    headers = {"Content-Type": "application/octet-stream"}
    address = f"{door.url}/uploads/{uuid4()}"
    try:
        answer = await ask(address, "PUT", headers=headers, declared=UPLOAD, patience=UPLOAD_TIMEOUT)
    except TimeoutError:
        yield weak("uploads", "Uploads are collected by the proxy before Mimu sees them.", do)
        return
    except Failed as error:
        yield weak("uploads", f"A large upload is answered by nothing ({type(error).__name__}).", do)
        return
    if _ours(answer):
        yield good("uploads", "Mimu sees an upload as it begins.")
    else:
        yield wrong("uploads", f"The proxy refuses large uploads ({answer.status}).", do)


async def _upgrade(door: Door) -> AsyncIterator[Finding]:
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    shake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    known = {"Authorization": f"Bearer {door.token}", "Origin": STRANGE}
    do = "Let the proxy pass Upgrade and Connection on, for /ws (nginx: proxy_http_version 1.1, proxy_set_header)."
    try:
        nobody = await ask(f"{door.url}/ws", headers=shake)
        stranger = await ask(f"{door.url}/ws", headers={**shake, **known})
    except Failed as error:
        yield wrong("upgrade", f"/ws does not answer ({type(error).__name__}).", do)
        return
    if nobody.status != 401 or not _ours(nobody):
        yield wrong("upgrade", f"/ws without a token is answered with {nobody.status}, not by Mimu's 401.", do)
    elif stranger.status == 401:
        says = "The server there takes no token that our JWT_SECRET signs: it has other settings, or another clock."
        yield wrong("upgrade", says, "Give all instances the same JWT_SECRET and KEYRING_FILE.")
    elif stranger.status == 403:
        yield good("upgrade", "The handshake of a socket reaches Mimu, which refuses strangers.")
    elif stranger.status == 101:
        yield good("upgrade", "The handshake of a socket reaches Mimu.")
    else:
        yield wrong("upgrade", f"On its way a handshake becomes an ordinary request ({stranger.status}).", do)


async def _socket(door: Door) -> AsyncIterator[Finding]:
    if door.account is None:
        yield skipped("socket", "No account was named to open one: --token-file")
        return
    request = HTTPRequest(
        "ws" + door.url.removeprefix("http") + "/ws",
        headers={"Authorization": f"Bearer {door.account}"},
        connect_timeout=SOCKET_TIMEOUT,
        ssl_options=ssl.create_default_context() if door.url.startswith("https:") else None,
    )
    do = "See the proxy's log, and that it keeps sockets open for a minute and more."
    try:
        async with asyncio.timeout(SOCKET_TIMEOUT):
            socket = await websocket_connect(request)
            ready = await socket.read_message()
            begun = time.monotonic()
            # Of a type that nobody claims: it is answered, and nothing else happens.
            await socket.write_message(json.dumps({"type": "doctor", "id": "1"}))
            answer = await socket.read_message()
            while answer is not None and json.loads(answer).get("id") != "1":
                answer = await socket.read_message()
            took = (time.monotonic() - begun) * 1e3
            socket.close()
    except HTTPClientError as error:
        says = f"The token opens no socket ({error.code})."
        yield wrong("socket", says, "Take a fresh access token; it lives for JWT_EXPIRATION_HOURS.")
        return
    except (OSError, TimeoutError, WebSocketClosedError, ValueError) as error:
        yield wrong("socket", f"A socket does not open ({type(error).__name__}).", do)
        return
    if ready is None or json.loads(ready).get("type") != "ready" or answer is None:
        yield wrong("socket", "A socket opens, and closes again.", do)
    else:
        yield good("socket", f"A socket opens, and a frame is answered in {took:.0f} ms.")
