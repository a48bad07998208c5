"""Asking: one HTTP request the way a stranger would make it, with every header as it is written here."""

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

from config.threads import aside

HTTP_TIMEOUT = 5.0  # seconds for a connection, and for each answer
MOST = 1 << 20  # bytes of an answer that are read

Failed = (OSError, http.client.HTTPException, ValueError)  # no answer came, or none that is HTTP


class HttpResponse(NamedTuple):
    """What was answered; ``ahead`` are the seconds by which the Date of it is ahead of our clock, ``own`` is the
    address from which we asked."""

    status: int
    headers: Message
    body: bytes
    seconds: float
    ahead: float | None
    own: str

    @property
    def json(self) -> dict[str, Any]:
        """The body's object; empty when it is none."""
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
    patience: float = HTTP_TIMEOUT,
) -> HttpResponse:
    """Ask without following redirects. ``declared`` is a length to announce of which nothing but ``body`` is sent.
    Raises one of Failed. Proxies of the environment are not used; SSL_CERT_FILE names further authorities."""
    async with asyncio.timeout(3 * patience):  # to connect, to send and to answer, however small the pieces are
        return await aside(lambda: _ask(url, method, dict(headers or {}), body, declared, patience))


def _ask(
    url: str, method: str, headers: dict[str, str], body: bytes, declared: int | None, patience: float
) -> HttpResponse:
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        trust = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.netloc, timeout=patience, context=trust)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=patience)
    with contextlib.closing(connection):
        begun, moment = time.monotonic(), time.time()
        connection.putrequest(method, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        headers = {"User-Agent": "mimu-doctor", "Connection": "close", **headers}
        if body or declared is not None or method in ("POST", "PUT"):
            headers["Content-Length"] = str(len(body) if declared is None else declared)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        with contextlib.suppress(ConnectionError):  # who refuses a body may close before it is sent; then comes why
            connection.send(body)
        own = str(connection.sock.getsockname()[0])
        answer = connection.getresponse()
        ahead = _ahead(answer.headers.get("Date"), moment, time.time())
        read = b"" if answer.status == 101 else answer.read(MOST)
        return HttpResponse(answer.status, answer.headers, read, time.monotonic() - begun, ahead, own)


def _ahead(date: str | None, before: float, after: float) -> float | None:
    """By how much a Date header is ahead of the moments between which it was made; it tells whole seconds."""
    try:
        moment = email.utils.parsedate_to_datetime(date or "")
    except ValueError:
        return None
    theirs = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    if theirs + 1 < before:
        return theirs + 1 - before
    return max(0.0, theirs - after)
