"""A request that is refused before its body was read does not cost the client its connection (RFC 9112, 9.3, 9.6)."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from handlers.http.base import MAX_BODY
from handlers.http.health import Live
from server import Server
from tests.client import Account, ask
from tests.files.transfer import announce
from tests.handlers.raw import LIVE, line, request
from tests.running import Services, place, serving
from tests.waiting import WAIT

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
TUS = {"Tus_Resumable": "1.0.0", "Content_Type": "application/offset+octet-stream"}


def refused(alice: Account, bob: Account) -> dict[str, tuple[bytes, int, str]]:
    """Requests that are refused by their headers: bytes, status and code."""
    token = {"Authorization": f"Bearer {alice.token}"}
    bad = {"Authorization": "Bearer x"}
    some = b'{"bio": "' + b"x" * 5000 + b'"}'
    gone = f"/files/tus/{uuid4()}"
    return {
        "a bad token, no body": (request("GET /users/me", **bad), 401, "unauthorized"),
        "a bad token, a body": (request("POST /chats", some, **bad), 401, "unauthorized"),
        "no token": (request("PUT /users/me", some), 401, "unauthorized"),
        "a bad token where none is needed": (request("POST /auth/login", some, **bad), 401, "unauthorized"),
        "another's id": (request("GET /users/me", **token, X_PrID=bob.public_id), 403, "prid_mismatch"),
        "another's id, a body": (request("PUT /users/me", some, **token, X_PrID=bob.public_id), 403, "prid_mismatch"),
        "an old app": (request("POST /auth/login", some, X_Client_Version="0.1"), 426, "client_outdated"),
        "a wrong method": (request("PUT /health", b""), 405, "method_not_allowed"),
        "a wrong method, a body": (request("PATCH /users/me", some, **token), 405, "method_not_allowed"),
        "an unknown method": (request("BREW /users/me", some, **token), 405, "method_not_allowed"),
        "an unknown address": (request("POST /nothing", some), 404, "not_found"),
        "an address that is not UTF-8": (request("POST /users/%ff/verify", some, **token), 404, "not_found"),
        "a HEAD that would spend": (request(f"HEAD /users/{bob.public_id}/prekeys", **token), 405, ""),
        "metrics": (request("GET /metrics"), 404, "not_found"),
        "docs": (request("GET /docs/nothing.js"), 404, "not_found"),
        "docs, a wrong method": (request("POST /docs", some), 405, "method_not_allowed"),
        "a socket, a bad token": (request("GET /ws", **HANDSHAKE, **bad), 401, "unauthorized"),
        "a socket, no token": (request("GET /ws?access_token=x", **HANDSHAKE), 401, "unauthorized"),
        "a socket, no subprotocol": (
            request("GET /ws", **HANDSHAKE, Sec_WebSocket_Protocol="bearer.x"),
            401,
            "unauthorized",
        ),
        "a socket, a page elsewhere": (
            request("GET /ws", **HANDSHAKE, **token, Origin="https://evil.example"),
            403,
            "forbidden",
        ),
        "a socket, OPTIONS": (request("OPTIONS /ws", some), 405, "method_not_allowed"),
        "no socket": (request("GET /ws", **token), 400, "invalid_request"),
        "no socket, a body": (request("POST /ws", some, **token), 405, "method_not_allowed"),
        "tus, no version": (request("POST /files/tus", some, **token), 412, "unsupported_tus_version"),
        "tus, a bad token": (request(f"PATCH {gone}", some, **TUS, Upload_Offset="0", **bad), 401, "unauthorized"),
        "tus, no such upload": (request(f"PATCH {gone}", some, **TUS, Upload_Offset="0", **token), 404, "not_found"),
        "an upload that is not signed": (
            request(f"PUT /uploads/{uuid4()}?expires=1&sig=x", some),
            400,
            "invalid_request",
        ),
    }


SETTINGS = {"MIN_CLIENT_VERSION": "1.0", "METRICS_ALLOW": "10.0.0.0/8"}


@pytest.mark.gen_test(timeout=60)
async def test_the_connection_stays_whatever_is_refused(services: Services) -> None:
    async with place(services) as shared, serving(shared, **SETTINGS) as one:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        async with line(one.url) as kept:
            for name, (message, status, code) in refused(alice, bob).items():
                answer = await kept.ask(message, bare=message.startswith(b"HEAD"))
                assert (answer.status, answer.ends) == (status, False), name
                if code:
                    assert answer.json["error"] == code, name
                    assert answer.json["request_id"] == answer.headers["X-Request-ID"], name
                assert await kept.stays(), name
        # And all of them at once, before any is answered: each answer belongs to its request.
        async with line(one.url) as kept:
            asked = [(m, status) for m, status, code in refused(alice, bob).values() if code]
            kept.writer.write(b"".join(message + LIVE for message, _ in asked))
            for _, status in asked:
                assert (await asyncio.wait_for(kept.answer(), WAIT)).status == status
                assert (await asyncio.wait_for(kept.answer(), WAIT)).json == {"status": "live"}
        await at_rest(one)


async def at_rest(one: Server) -> None:
    async with asyncio.timeout(WAIT):
        while one.site.active:
            await asyncio.sleep(0.01)


@pytest.mark.gen_test
async def test_a_chunked_body_is_read_to_its_end_too(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        chunked = {"Authorization": "Bearer x", "Transfer_Encoding": "chunked", "Content_Type": "application/json"}
        answer = await kept.ask(request("POST /chats", **chunked) + b"5\r\nhello\r\n" * 100 + b"0\r\n\r\n")
        assert (answer.status, answer.ends) == (401, False)
        assert await kept.stays()
        # A client that waits for 100 gets it, and the error after the body.
        waiting = request("POST /chats", **chunked, Expect="100-continue")
        assert (await kept.ask(waiting)).status == 100
        assert (await kept.ask(b"0\r\n\r\n")).status == 401
        assert await kept.stays()


@pytest.mark.gen_test
async def test_where_the_body_is_too_long_the_answer_says_that_the_connection_ends(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account().register(one.url)
        bad, token = {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {alice.token}"}
        long, some = {"Content_Length": str(MAX_BODY + 1)}, b"x" * 1000
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        gone = f"PATCH /files/tus/{uuid4()}"
        for name, message, status in (
            ("a bad token", request("POST /chats", **bad, **long) + some, 401),
            ("a bad token, waiting", request("POST /chats", **bad, **long, Expect="100-continue"), 401),
            ("an unknown method", request("BREW /health", **long) + some, 405),
            ("an unknown address", request("POST /nothing", **long) + some, 413),
            ("a socket", request("GET /ws", **HANDSHAKE, **bad, **long) + some, 401),
            ("chunks", request("POST /chats", **bad, Transfer_Encoding="chunked") + chunk * 9, 401),
            ("chunks of an upload", request(gone, **TUS, Upload_Offset="0", **token, Transfer_Encoding="chunked"), 404),
            ("a long upload", request(gone, **TUS, Upload_Offset="0", **token, **long) + some, 404),
        ):
            async with line(one.url) as kept:
                answer = await kept.ask(message)
                assert (answer.status, answer.ends) == (status, True), name
                assert answer.json["request_id"] == answer.headers["X-Request-ID"], name
                # What still comes is read and dropped, so that nothing is reset; it is no second request.
                kept.writer.write(some + b"\r\n\r\n" + LIVE)
                assert await kept.ended() == b"", name
        await at_rest(one)


@pytest.mark.gen_test
async def test_an_upload_with_too_long_a_body_keeps_its_connection_if_it_is_small(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account().register(one.url)
        announced = await announce(alice, b"x" * 100)
        path = announced.json["upload"]["url"].removeprefix(one.url)
        async with line(one.url) as kept:
            answer = await kept.ask(request(f"PUT {path}", b"x" * 1000))
            assert (answer.status, answer.json["error"], answer.ends) == (413, "too_large", False)
            assert await kept.stays()
            assert (await kept.ask(request(f"PUT {path}", b"x" * 100))).status == 204


@pytest.mark.gen_test
async def test_refused_requests_are_counted_and_none_is_left_open(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        for _ in range(3):
            assert (await ask(one.url, "POST", "/chats", {}, token="x")).status == 401
        counted = one.app.metrics.exposition().decode()
        assert 'method="POST",status="401"} 3.0' in counted
        async with line(one.url) as gone:  # it goes away in the middle of a body that is refused
            gone.writer.write(request("POST /chats", Authorization="Bearer x", Content_Length="100") + b"{")
            await gone.writer.drain()
            assert (await ask(one.url, "GET", "/health/live")).status == 200
        await at_rest(one)


@pytest.mark.gen_test
async def test_a_mistake_of_ours_is_answered_too(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one in an endpoint's initialize, where Tornado would drop the connection."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        for where in ("initialize", "_check_headers"):
            with monkeypatch.context() as broken:
                broken.setattr(Live, where, fail)
                answer = await kept.ask(request("GET /health/live"))
                assert (answer.status, answer.json["error"], answer.ends) == (500, "internal_error", False)
            assert await kept.stays()
        await at_rest(one)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "message",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"POST /chats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
async def test_an_invalid_request_gets_a_json_error_and_ends_the_connection(services: Services, message: bytes) -> None:
    async with place(services) as shared, serving(shared) as one:
        async with line(one.url) as kept:
            answer = await kept.ask(message + LIVE)
            assert (answer.status, answer.json["error"], answer.ends) == (400, "invalid_request", True)
            assert answer.json["request_id"] == answer.headers["X-Request-ID"]
            assert await kept.ended() == b""
        await at_rest(one)


@pytest.mark.gen_test(timeout=60)
async def test_nodes_agent_loses_nothing_after_a_refusal(services: Services) -> None:
    if shutil.which("node") is None:
        pytest.skip("NOT TESTED with a client of Node's: there is no node")
    script = Path(__file__).parent / "node" / "refused.mjs"
    async with place(services) as shared, serving(shared) as one:
        process = await asyncio.create_subprocess_exec(
            "node", str(script), one.url, "100", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert json.loads(out) == {"seen": {"401 401": 100}, "connections": 1}
