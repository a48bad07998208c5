"""HTTP requests of the doctor, made the way a stranger would make them, with exactly the headers given here."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from datetime import UTC
from email.message import Message
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from config.threads import in_daemon_thread

HTTP_TIMEOUT = 5.0  # seconds for a connection, and for each answer
MAX_BODY = 1 << 20  # bytes that are read of a response

Failed = (OSError, http.client.HTTPException, ValueError)  # no response came, or it is not HTTP


class HttpResponse(NamedTuple):
    """A response. ``ahead`` is the number of seconds by which its Date is ahead of our clock; ``own`` is the address
    that we sent the request from."""

    status: int
    headers: Message
    body: bytes
    seconds: float
    ahead: float | None
    own: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object in the body; empty if the body is not one."""
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(self.body)
            if isinstance(found, dict):
                return found
        return {}


async def ask(
    url: str,
    method: str = "GET",
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    declared: int | None = None,
    seconds: float = HTTP_TIMEOUT,
) -> HttpResponse:
    """Send a request without following redirects. ``declared`` is the Content-Length to send, even if ``body`` is
    shorter. Raises one of Failed. Ignores proxies of the environment; SSL_CERT_FILE names further authorities."""
    async with asyncio.timeout(3 * seconds):  # to connect, send and receive, however small the pieces are
        return await in_daemon_thread(lambda: _ask(url, method, dict(headers or {}), body, declared, seconds))


def _ask(
    url: str, method: str, headers: dict[str, str], body: bytes, declared: int | None, seconds: float
) -> HttpResponse:
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        trust = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.netloc, timeout=seconds, context=trust)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=seconds)
    with contextlib.closing(connection):
        begun, moment = time.monotonic(), time.time()
        connection.putrequest(method, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        headers = {"User-Agent": "mimu-doctor", "Connection": "close", **headers}
        if body or declared is not None or method in ("POST", "PUT"):
            headers["Content-Length"] = str(len(body) if declared is None else declared)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        with contextlib.suppress(
            ConnectionError
        ):  # a server that rejects a body may close before it is sent, after its response
            connection.send(body)
        own = str(connection.sock.getsockname()[0])
        answer = connection.getresponse()
        ahead = seconds_ahead(answer.headers.get("Date"), moment, time.time())
        read = b"" if answer.status == 101 else answer.read(MAX_BODY)
        return HttpResponse(answer.status, answer.headers, read, time.monotonic() - begun, ahead, own)


def seconds_ahead(date: str | None, before: float, after: float) -> float | None:
    """Return the seconds by which a Date header, which has whole seconds, is ahead of the time it was made."""
    try:
        moment = email.utils.parsedate_to_datetime(date or "")
    except ValueError:
        return None
    theirs = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    if theirs + 1 < before:
        return theirs + 1 - before
    return max(0.0, theirs - after)
