"""Transfers as clients make them: announce, put, complete, get."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from tests import canaries, conformance
from tests.client import Account, Answer

MIB = 1 << 20


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def send(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None, seconds: float = 60
) -> HTTPResponse:
    """Send one request to any URL."""
    client = SimpleAsyncHTTPClient(force_instance=True, max_body_size=1 << 32, max_buffer_size=1 << 32)
    try:
        request = HTTPRequest(
            url,
            method=method,
            body=body,
            headers=headers,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            request_timeout=seconds,
        )
        response = await client.fetch(request, raise_error=False)
        conformance.judge(response)
        return response
    finally:
        client.close()


def bearer(account: Account, **headers: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"Authorization": f"Bearer {account.token}", **named}


async def announce(account: Account, content: bytes, **changes: Any) -> Answer:
    answer = await account.post("/files", {"size": len(content), "sha256": sha256(content), **changes})
    if answer.status == 201:
        # Every holder of the URL may upload: its signature belongs in no log.
        query = urlsplit(answer.json["upload"]["url"]).query
        canaries.plant(*(part.partition("=")[2] for part in query.split("&") if "ignature=" in part))
    return answer


async def put(announced: Answer, content: bytes) -> HTTPResponse:
    upload = announced.json["upload"]
    return await send(upload["method"], upload["url"], content, upload["headers"])


async def shared(account: Account, content: bytes, **changes: Any) -> str:
    """A complete file's id."""
    announced = await announce(account, content, **changes)
    assert announced.status == 201, announced.text
    sent = await put(announced, content)
    assert sent.code in (200, 204), sent.body
    file_id: str = announced.json["file_id"]
    done = await account.post(f"/files/{file_id}/complete", {})
    assert done.status == 200, done.text
    return file_id


async def got(account: Account, file_id: str, method: str = "GET", **headers: str) -> HTTPResponse:
    """A file's content, from wherever it is."""
    answer = await send(method, f"{account.url}/files/{file_id}/content", None, bearer(account, **headers))
    if answer.code == 302:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await send(method, answer.headers["Location"], None, named)
    return answer
