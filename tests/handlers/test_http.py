"""The conventions of every HTTP endpoint (contract section 1), checked on a running server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import jwt
import pytest

import server
from config import embedded
from config.settings import SettingsError
from handlers.http import listener
from models.postgres import migrations
from server import Server
from tests.client import Account, Answer, ask
from tests.running import Place, Services, place, serving
from tests.waiting import SLACK, WAIT

MAX_BODY = 256 * 1024
PAYLOAD = "b3BhcXVlIGNpcGhlcnRleHQ="


@contextlib.asynccontextmanager
async def at_work(services: Services, **settings: str) -> AsyncIterator[Server]:
    async with place(services) as shared, serving(shared, **settings) as running:
        yield running


@dataclass(frozen=True)
class Raw:
    """An answer read from a raw connection."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> Raw:
    head = await reader.readuntil(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    headers = BytesHeaderParser().parsebytes(rest)
    return Raw(int(first.split()[1]), headers, await reader.readexactly(int(headers.get("Content-Length", "0"))))


async def closed(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """Return the bytes until the server closes. Raises TimeoutError if it doesn't."""
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(seconds):
            return await reader.read()
    return b""


def of_the_contract(answer: Answer, status: int, code: str) -> None:
    """An error's body has the contract's shape, and the request id of its header."""
    assert (answer.status, answer.code) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json.keys() - {"details"} == {"error", "message", "request_id"}
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]
    assert re.fullmatch(r"[A-Z].+\.", answer.json["message"]), "one sentence"
    for fault in answer.json.get("details", []):
        assert fault.keys() == {"field", "issue"}


# Addresses and methods ------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_unknown_address_is_a_404_in_json(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        for path in ("/", "/nothing", "/users", "/users/me/", "//users/me", "/auth", "/%00", "/%ff", "/users/%D0%B0bc"):
            for method in ("GET", "POST", "DELETE", "HEAD"):
                answer = await ask(one.url, method, path, {} if method == "POST" else None, token=alice.token)
                assert answer.status == 404, path
                if method != "HEAD":
                    of_the_contract(answer, 404, "not_found")
        of_the_contract(await ask(one.url, "GET", "/nothing"), 404, "not_found")


@pytest.mark.gen_test
async def test_a_wrong_method_is_answered_with_the_allowed_ones(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        for method, path, allowed in (
            ("PATCH", "/users/me", {"GET", "PUT"}),
            ("POST", "/calls", {"GET"}),
            ("GET", "/auth/login", {"POST"}),
            ("PUT", "/health", {"GET"}),
            ("BREW", "/users/me", {"GET", "PUT"}),
            ("TRACE", "/metrics", {"GET"}),
            ("POST", "/ws", {"GET"}),
        ):
            answer = await ask(one.url, method, path, {} if method in ("POST", "PUT", "PATCH") else None, alice.token)
            of_the_contract(answer, 405, "method_not_allowed")
            listed = {name.strip() for name in answer.headers["Allow"].split(",")}
            assert listed - {"OPTIONS", "HEAD", "DELETE"} == allowed, path


@pytest.mark.gen_test
async def test_a_wrong_method_with_a_body_keeps_the_connection_in_step(services: Services) -> None:
    """The body of a refused request is never taken for the next request; the connection may be closed instead."""
    async with at_work(services) as one, connected(one.url) as (reader, writer):
        smuggled = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        head = f"BREW /health HTTP/1.1\r\nHost: x\r\nContent-Length: {len(smuggled)}\r\n\r\n".encode()
        writer.write(head + smuggled + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_answer(reader)).status == 405
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            assert (await read_answer(reader)).json == {"status": "live"}


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_every_route_except_the_public_ones_requires_a_token(services: Services) -> None:
    async with at_work(services) as one:
        for feature in one.features:
            for pattern, handler, _ in feature.routes:
                if handler.public:
                    continue
                group = r"\((?:[^()]|\([^()]*\))*\)"
                path = re.sub(group, str(uuid4())[:32] if "{3,32}" in pattern else str(uuid4()), pattern)
                for method in handler.allow().split(", "):
                    if method == "OPTIONS":
                        continue
                    body = {} if method in ("POST", "PUT", "PATCH") else None
                    answer = await ask(one.url, method, path.replace("-", "_") if "{3,32}" in pattern else path, body)
                    if method == "HEAD":  # the same without its body
                        assert (answer.status, answer.text) == (401, "")
                    else:
                        of_the_contract(answer, 401, "unauthorized")
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
        of_the_contract(await ask(one.url, "GET", "/ws"), 401, "unauthorized")


@pytest.mark.gen_test
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_only_our_own_tokens_are_good(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        secret = shared.environment["JWT_SECRET"]
        alice = await Account().register(one.url)
        claims = jwt.decode(alice.token, secret, algorithms=["HS256"], issuer="mimu")
        assert {"user_id", "fingerprint", "sub", "sid", "iat", "exp", "iss"} <= claims.keys()
        kid = jwt.get_unverified_header(alice.token)["kid"]
        assert jwt.get_unverified_header(alice.token) == {"alg": "HS256", "typ": "JWT", "kid": kid}
        assert secret not in kid

        def forged(key: str = secret, algorithm: str = "HS256", kid: Any = kid, **changes: Any) -> str:
            body = {name: value for name, value in {**claims, **changes}.items() if value is not None}
            return jwt.encode(body, key or None, algorithm=algorithm, headers={"kid": kid} if kid else {})

        assert (await ask(one.url, "GET", "/users/me", token=forged())).status == 200
        header, payload, mac = alice.token.split(".")
        long = "another-secret-0123456789abcdefghijklmnopqrstuvwxyz-0123456789abc"
        for name, token in {
            "alg none": forged("", "none"),
            "alg none, the good mac": forged("", "none").rstrip(".") + "." + mac,
            "HS512": forged(algorithm="HS512"),
            "HS384": forged(algorithm="HS384"),
            "another secret": forged(long),
            "another secret under another name": forged(long, kid="0" * len(kid)),
            "our secret under another name": forged(kid="0" * len(kid)),
            "no kid": forged(kid=None),
            "a kid that is a path": forged(kid="../../dev/null"),
            "no sid": forged(sid=None),
            "no exp": forged(exp=None),
            "no user": forged(user_id=None),
            "a user that is no id": forged(user_id="root"),
            "another issuer": forged(iss="another"),
            "issued in the future": forged(iat=int(time.time()) + 3600),
            "a changed payload": f"{header}.{payload[:-2]}AA.{mac}",
            "a cut mac": alice.token[:-2],
            "two parts": f"{header}.{payload}",
            "rubbish": "rubbish",
            "rubbish of three": "a.b.c",
            "nothing": "",
        }.items():
            answer = await ask(one.url, "GET", "/users/me", headers={"Authorization": f"Bearer {token}"})
            assert (answer.status, answer.code) == (401, "unauthorized"), name
            assert answer.headers["WWW-Authenticate"] == "Bearer", name
        expired = await ask(one.url, "GET", "/users/me", token=forged(exp=int(time.time()) - 1))
        of_the_contract(expired, 401, "token_expired")
        assert expired.headers["WWW-Authenticate"] == "Bearer"
        for wrong in ("Basic " + alice.token, alice.token, "Bearer", f"Bearer {alice.token} x"):
            assert (await ask(one.url, "GET", "/users/me", headers={"Authorization": wrong})).status == 401
        assert (
            await ask(one.url, "GET", "/users/me", headers={"Authorization": f"bearer {alice.token}"})
        ).status == 200


@pytest.mark.gen_test
async def test_a_bad_token_is_refused_also_where_none_is_needed(services: Services) -> None:
    async with at_work(services) as one:
        for method, path in (("GET", "/health"), ("GET", "/metrics"), ("POST", "/auth/login"), ("GET", "/nothing")):
            body = {"public_id": "unknown_user", "password": "whatever it was"} if method == "POST" else None
            of_the_contract(await ask(one.url, method, path, body, token="bad"), 401, "unauthorized")


@pytest.mark.gen_test
async def test_a_token_in_the_query_string_is_no_token(services: Services) -> None:
    """It would be in every proxy's log."""
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        for name in ("access_token", "token", "bearer", "Authorization"):
            for path in ("/users/me", "/ws"):
                of_the_contract(await ask(one.url, "GET", f"{path}?{name}={alice.token}"), 401, "unauthorized")


@pytest.mark.gen_test
async def test_a_prid_of_another_user_is_refused(services: Services) -> None:
    async with at_work(services) as one:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        of_the_contract(await alice.get("/users/me", **{"X-PrID": bob.public_id}), 403, "prid_mismatch")
        assert (await alice.get("/users/me", **{"X-PrID": alice.public_id})).status == 200
        assert (await alice.get("/users/me", **{"X-PrID": alice.public_id.upper()})).status == 200
        assert (await alice.get("/users/me")).status == 200


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "h2c"},
        {"Connection": "keep-alive"},
        {"Sec-WebSocket-Version": "8"},
        {"Sec-WebSocket-Key": ""},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "https://[::1"},
    ],
    ids=lambda changes: ": ".join(*changes.items()),
)
async def test_a_handshake_that_is_none_is_refused_in_json(services: Services, changes: dict[str, str]) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        handshake = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
            "Authorization": f"Bearer {alice.token}",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in {**handshake, **changes}.items() if value)
        async with connected(one.url) as (reader, writer):
            writer.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
            answer = await asyncio.wait_for(read_answer(reader), WAIT)
        assert answer.status in (400, 403, 426)
        assert answer.json.keys() - {"details"} == {"error", "message", "request_id"}
        assert answer.json["request_id"] == answer.headers["X-Request-ID"]


# Bodies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_body_that_is_not_declared_as_json_is_refused(services: Services) -> None:
    async with at_work(services) as one:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", ""):
            answer = await ask(one.url, "POST", "/auth/login", b"{}", headers={"Content-Type": kind})
            of_the_contract(answer, 415, "unsupported_media_type")
        for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
            answer = await ask(one.url, "POST", "/auth/login", b"{}", headers={"Content-Type": kind})
            of_the_contract(answer, 400, "invalid_request")


@pytest.mark.gen_test
async def test_the_size_of_a_body_is_bounded_exactly(services: Services) -> None:
    async with at_work(services) as one:
        of_the_contract(await ask(one.url, "POST", "/auth/login", b"{}".ljust(MAX_BODY)), 400, "invalid_request")
        of_the_contract(await ask(one.url, "POST", "/auth/login", b"{}".ljust(MAX_BODY + 1)), 413, "too_large")


@pytest.mark.gen_test
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
async def test_a_body_declared_too_large_is_refused_before_it_comes(services: Services, expect: str) -> None:
    async with at_work(services) as one, connected(one.url) as (reader, writer):
        writer.write(
            f"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{expect}"
            f"Content-Length: {MAX_BODY * 100}\r\n\r\n{{".encode()
        )
        answer = await asyncio.wait_for(read_answer(reader), WAIT)
        assert (answer.status, answer.json["error"]) == (413, "too_large")
        assert answer.json["request_id"] == answer.headers["X-Request-ID"]
        assert await closed(reader, WAIT) == b""


@pytest.mark.gen_test
@pytest.mark.parametrize("digits", [25, 5000])
async def test_an_enormous_content_length_is_too_large(services: Services, digits: int) -> None:
    async with at_work(services) as one, connected(one.url) as (reader, writer):
        writer.write(b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * digits + b"\r\n\r\n")
        assert (await asyncio.wait_for(read_answer(reader), WAIT)).status in (400, 413)


@pytest.mark.gen_test
async def test_a_body_that_grows_too_large_is_refused_and_not_read_on(services: Services) -> None:
    async with at_work(services) as one, connected(one.url) as (reader, writer):
        writer.write(
            b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        answering = asyncio.ensure_future(read_answer(reader))
        sent = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(WAIT):
                while sent < 64 << 20 and not writer.is_closing():
                    writer.write(chunk)
                    await writer.drain()
                    sent += len(chunk)
        answer = await asyncio.wait_for(answering, WAIT)
        assert (answer.status, answer.json["error"]) == (413, "too_large")
        assert sent < 32 << 20, "it went on reading"


STRICT = {
    "nothing": b"",
    "only a blank": b" ",
    "cut short": b'{"public_id": "a',
    "something after it": b'{"public_id": "abc"} {}',
    "a comment": b'{"public_id": "abc" /* */}',
    "a trailing comma": b'{"public_id": "abc",}',
    "single quotes": b"{'public_id': 'abc'}",
    "NaN": b'{"settings": {"n": NaN}}',
    "Infinity": b'{"settings": {"n": Infinity}}',
    "-Infinity": b'{"settings": {"n": -Infinity}}',
    "1e400": b'{"settings": {"n": 1e400}}',
    "-1e400": b'{"settings": {"n": -1e400}}',
    "an integer of 400 digits": b'{"settings": {"n": ' + b"9" * 400 + b"}}",
    "NUL in a string": b'{"settings": {"n": "a\\u0000b"}}',
    "NUL in a name": b'{"settings": {"a\\u0000b": 1}}',
    "NUL as itself": b'{"settings": {"n": "a\0b"}}',
    "a line break in a string": b'{"settings": {"n": "a\nb"}}',
    "a lone surrogate": b'{"settings": {"n": "\\ud800"}}',
    "a lone low surrogate": b'{"settings": {"n": "\\udc00x"}}',
    "a lone surrogate in a name": b'{"settings": {"\\ud800": 1}}',
    "UTF-16": '{"settings": {}}'.encode("utf-16"),
    "UTF-16 without a mark": '{"settings": {}}'.encode("utf-16-le"),
    "a byte order mark": b'\xef\xbb\xbf{"settings": {}}',
    "Latin-1": b'{"settings": {"n": "\xe9"}}',
    "an overlong slash": b'{"settings": {"n": "\xc0\xaf"}}',
    "a surrogate in UTF-8": b'{"settings": {"n": "\xed\xa0\x80"}}',
    "33 levels of objects": b'{"settings":' + b'{"a":' * 31 + b"{}" + b"}" * 31 + b"}",
    "33 levels of lists": b'{"settings": {"a":' + b"[" * 31 + b"]" * 31 + b"}}",
    "33 levels in an unknown field": b'{"unknown":' + b"[" * 32 + b"]" * 32 + b"}",
    "100,000 levels": b'{"settings":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list": b"[]",
    "a text": b'"text"',
    "a number": b"1",
    "null": b"null",
}


@pytest.mark.gen_test
async def test_json_is_strict(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        loose = []
        for name, body in STRICT.items():
            answer = await alice.put("/users/me", body)
            if (answer.status, bool(answer.json.get("details"))) != (400, True):
                loose.append((name, answer.status, answer.text))
            else:
                of_the_contract(answer, 400, "invalid_request")
        assert loose == []
        assert (await alice.get("/users/me")).json["settings"] == {}


@pytest.mark.gen_test
async def test_a_body_that_is_not_an_object_is_described_in_terms_of_json(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        issue = "Input should be an object"
        whole = await alice.put("/users/me", b"[]")
        assert whole.json["details"] == [{"field": "body", "issue": issue}]
        part = await alice.post("/users/me/prekeys", {"signed_prekey": 1})
        assert part.json["details"] == [{"field": "signed_prekey", "issue": issue}]


@pytest.mark.gen_test
async def test_json_is_no_stricter_than_it_should_be(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        whole: dict[str, Any] = {}
        for kept in (
            {"text": "ё 😀 \\u0000 \\ud800 \x7f \u2028", "": "an empty name"},
            {"numbers": [0, -1, 1.5, 1e300, 2**53, 9_007_199_254_740_993], "flags": [True, False, None]},
            {"deep": json.loads("[" * 30 + "]" * 30)},
            {"wide": [{}] * 1000},
        ):
            answer = await alice.put("/users/me", {"settings": kept, "never_heard_of": {"x": 1}})
            assert answer.status == 200, answer.text
            whole |= kept  # settings are merged
            assert answer.json["settings"] == whole


@pytest.mark.gen_test
async def test_a_boolean_is_no_number_and_a_number_no_text(services: Services) -> None:
    async with at_work(services) as one:
        for name, wrong in {
            "registration_id": [True, False, "1", 1.0, 1.5, None, -1, 2**31, [1], {}],
            "public_id": [True, 12345, None, ["abc"], {"a": 1}, "ab", "a" * 33, "a b", "abc\n", "аbc", ""],
            "display_name": [True, 1, ["a"], " ", "a" * 65, "a\tb"],
            "one_time_prekeys": [None, {}, "", 1, [[]], [None], [{"key_id": True}]],
        }.items():
            for value in wrong:
                answer = await ask(one.url, "POST", "/auth/register", Account().body(**{name: value}))
                of_the_contract(answer, 400, "invalid_request")
                assert all(field.startswith(name) for field in answer.fields()), (name, value, answer.text)
                assert answer.fields()


@pytest.mark.gen_test
async def test_all_bad_fields_are_named_at_once_and_never_repeated(services: Services) -> None:
    async with at_work(services) as one:
        body = Account().body(
            public_id="not good!",
            password="canary7",
            identity_key="???",
            registration_id=-1,
            language="x",
            one_time_prekeys=[{"key_id": 1, "public_key": "AAAA"}, {"key_id": "canary", "public_key": 7}],
        )
        del body["fingerprint"]
        answer = await ask(one.url, "POST", "/auth/register", body)
        of_the_contract(answer, 400, "invalid_request")
        assert set(answer.fields()) == {
            "public_id",
            "password",
            "identity_key",
            "fingerprint",
            "registration_id",
            "language",
            "one_time_prekeys[0].public_key",
            "one_time_prekeys[1].key_id",
            "one_time_prekeys[1].public_key",
        }
        assert "canary" not in answer.text
        assert "not good" not in answer.text


# Headers --------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_request_id_is_taken_when_it_looks_sane_else_made(services: Services) -> None:
    async with at_work(services) as one:
        for sane in ("a", "A-z_0.9", "x" * 64):
            for path in ("/health/live", "/nothing", "/users/me"):
                answer = await ask(one.url, "GET", path, headers={"X-Request-ID": sane})
                assert answer.headers["X-Request-ID"] == sane
        made = set()
        for odd in ("", "x" * 65, "a b", "a,b", "a/b", "é", "<script>", "a;b", '"'):
            answer = await ask(one.url, "GET", "/nothing", headers={"X-Request-ID": odd})
            of_the_contract(answer, 404, "not_found")
            assert re.fullmatch(r"[A-Za-z0-9._-]{8,64}", answer.headers["X-Request-ID"])
            made.add(answer.headers["X-Request-ID"])
        assert len(made) == 9
        too_large = await ask(one.url, "POST", "/auth/login", b" " * (MAX_BODY + 1), headers={"X-Request-ID": "mine"})
        assert too_large.json["request_id"] == too_large.headers["X-Request-ID"] == "mine"


@pytest.mark.gen_test
async def test_answers_are_not_for_caches_and_not_for_sniffing(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        for answer in (await alice.get("/users/me"), await alice.get("/nothing")):
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Tornado" not in answer.headers.get("Server", "")
            assert "Etag" not in answer.headers


@pytest.mark.gen_test
async def test_without_cors_origins_there_are_no_cors_headers(services: Services) -> None:
    async with at_work(services) as one:
        for method in ("GET", "OPTIONS"):
            asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
            answer = await ask(one.url, method, "/health", headers=asked)
            assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.gen_test
async def test_cors_is_for_the_origins_that_are_named(services: Services) -> None:
    origin = "https://app.example"
    async with at_work(services, CORS_ALLOW_ORIGINS=f"https://other.example, {origin}") as one:
        alice = await Account().register(one.url)
        for answer in (
            await alice.get("/users/me", Origin=origin),
            await ask(one.url, "GET", "/users/me", headers={"Origin": origin}),
            await ask(one.url, "GET", "/nothing", headers={"Origin": origin}),
            await ask(one.url, "POST", "/auth/login", b" " * (MAX_BODY + 1), headers={"Origin": origin}),
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "Origin" in answer.headers["Vary"]
            exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
            assert {"Link", "Retry-After", "X-Request-ID"} <= exposed

        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "authorization,content-type,x-prid",
        }
        preflight = await ask(one.url, "OPTIONS", "/users/me", headers=asked)
        assert (preflight.status, preflight.text) == (204, ""), "a preflight has no token"
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        assert {"GET", "PUT"} <= set(preflight.headers["Access-Control-Allow-Methods"].split(", "))
        allowed = {name.lower() for name in preflight.headers["Access-Control-Allow-Headers"].split(", ")}
        wanted = {"authorization", "content-type", "x-prid", "x-client-version", "x-platform", "x-request-id"}
        assert wanted <= allowed

        for stranger in ("https://app.example.evil", "http://app.example", "null", "https://APP.example/"):
            for method in ("GET", "OPTIONS"):
                answer = await ask(one.url, method, "/health", headers={**asked, "Origin": stranger})
                assert not [name for name in answer.headers if name.startswith("Access-Control")]
                assert "Origin" in answer.headers["Vary"], "a cache must not give one origin's answer to another"


@pytest.mark.gen_test
async def test_any_origin_is_for_development_only(services: Services) -> None:
    async with at_work(services, CORS_ALLOW_ORIGINS="*") as one:
        answer = await ask(one.url, "GET", "/health", headers={"Origin": "https://anyone.example"})
        assert answer.headers["Access-Control-Allow-Origin"] in ("*", "https://anyone.example")
        assert "Access-Control-Allow-Credentials" not in answer.headers
        production = {
            **Place("postgresql://x/mimu", "redis://x").environment,
            "MIMU_ENV": "production",
            "RATE_LIMITS": "on",
            "JWT_SECRET": "f3a1c58e907b264d" * 2,
            "TURN_SECRET": "0b8d64e2a9c7f153" * 2,
        }
        server.configure({**production, "CORS_ALLOW_ORIGINS": "https://app.example"})
        for origins in ("*", "https://app.example,*"):
            with pytest.raises(SettingsError, match="CORS_ALLOW_ORIGINS"):
                server.configure({**production, "CORS_ALLOW_ORIGINS": origins})
        with pytest.raises(SettingsError, match="RATE_LIMITS: off is for tests"):
            server.configure({**production, "RATE_LIMITS": "off"})


@pytest.mark.gen_test
async def test_an_old_app_receives_426(services: Services) -> None:
    async with at_work(services, MIN_CLIENT_VERSION="1.10.2") as one:
        for old in ("1.10.1", "1.9.9", "1.10", "0.99", "1", "1.10.1-beta"):
            answer = await ask(one.url, "GET", "/health/live", headers={"X-Client-Version": old})
            of_the_contract(answer, 426, "client_outdated")
        for new in ("1.10.2", "1.10.2.0", "1.10.10", "1.11", "2", "2.0.0+5", "dev", ""):
            answer = await ask(one.url, "GET", "/health/live", headers={"X-Client-Version": new})
            assert answer.status == 200, new
        assert (await ask(one.url, "GET", "/health/live")).status == 200
    async with at_work(services) as one:
        assert (await ask(one.url, "GET", "/health/live", headers={"X-Client-Version": "0.0.1"})).status == 200


# Health and metrics ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_health_says_what_the_seed_says(services: Services) -> None:
    async with at_work(services) as one:
        for path, asked in (
            ("/health", {"database": "ok", "redis": "ok", "storage": "ok"}),
            ("/health/ready", {"database": "ok"}),
        ):
            answer = await ask(one.url, "GET", path)
            uptime = answer.json["uptime_seconds"]
            assert answer.status == 200
            assert answer.json == {"status": "healthy", **asked, "uptime_seconds": uptime}
            assert isinstance(uptime, int)
            assert 0 <= uptime < 60
        assert (await ask(one.url, "GET", "/health/live")).status == 200


@pytest.mark.gen_test
async def test_metrics_are_for_the_networks_allowed(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        await alice.get(f"/users/{alice.public_id}")
        answer = await ask(one.url, "GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert 'mimu_http_requests_total{handler="Profile",method="GET",status="200"} 1.0' in answer.text
        assert alice.public_id not in answer.text
    proxied = {"X-Forwarded-For": "10.1.2.3"}
    async with at_work(services, METRICS_ALLOW="10.0.0.0/8") as one:
        of_the_contract(await ask(one.url, "GET", "/metrics"), 404, "not_found")
        of_the_contract(await ask(one.url, "GET", "/metrics", headers=proxied), 404, "not_found")
    async with at_work(services, METRICS_ALLOW="10.0.0.0/8", TRUSTED_PROXIES="127.0.0.0/8") as one:
        assert (await ask(one.url, "GET", "/metrics", headers=proxied)).status == 200
        spoofed = {"X-Forwarded-For": "10.1.2.3, 203.0.113.9"}
        of_the_contract(await ask(one.url, "GET", "/metrics", headers=spoofed), 404, "not_found")


# Connections ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "STALL_SECONDS", 0.4)
    monkeypatch.setattr(listener, "IDLE_SECONDS", 3.0)
    monkeypatch.setattr(listener, "SWEEP_SECONDS", 0.05)


LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LOGIN = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("answered", "sent"),
    [
        (b"", b""),
        (b"", b"GET /health"),
        (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n"),
        (b"", LOGIN + b'Content-Length: 100\r\n\r\n{"public_id":'),
        (b"", LOGIN + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"),
        (LIVE, b"GET /health"),
        (LIVE, LOGIN + b"Content-Length: 100\r\n\r\n{"),
    ],
    ids=["silence", "request line", "headers", "body", "chunk", "second request", "second body"],
)
async def test_a_connection_that_stalls_is_dropped(
    services: Services, impatient: None, monkeypatch: pytest.MonkeyPatch, answered: bytes, sent: bytes
) -> None:
    monkeypatch.setattr(listener, "IDLE_SECONDS", 10 * WAIT)  # a stall is not taken for an idle connection
    async with at_work(services) as one, connected(one.url) as (reader, writer):
        if answered:
            writer.write(answered)
            assert (await read_answer(reader)).status == 200
        started = time.monotonic()
        writer.write(sent)
        assert await closed(reader, WAIT) == b""
        assert time.monotonic() - started > 0.3


@pytest.mark.gen_test
async def test_headers_that_drip_are_a_stall_too(services: Services, impatient: None) -> None:
    async with at_work(services) as one, connected(one.url) as (reader, writer):
        ending = asyncio.ensure_future(closed(reader, WAIT))
        writer.write(b"GET /health HTTP/1.1\r\n")
        for _ in range(100):
            writer.write(b"X: y\r\n")
            done, _ = await asyncio.wait([ending], timeout=0.05)
            if done:
                break
        assert ending.done()
        assert ending.result() == b""


@pytest.mark.gen_test
async def test_a_kept_alive_connection_may_idle_for_longer(services: Services, impatient: None) -> None:
    async with at_work(services) as one, connected(one.url) as (reader, writer):
        for _ in range(2):
            writer.write(LIVE)
            assert (await read_answer(reader)).status == 200
            with pytest.raises(TimeoutError):
                await closed(reader, 0.8)
        assert await closed(reader, WAIT) == b""


async def no_op(_: Server) -> None:
    """Nothing happens before the stop."""


async def an_unknown_method(one: Server) -> None:
    await ask(one.url, "BREW", "/health")


async def a_socket_post(one: Server) -> None:
    await ask(one.url, "POST", "/ws", {})


async def a_cut_body(one: Server) -> None:
    async with connected(one.url) as (_, writer):
        writer.write(LOGIN + b"Content-Length: 100\r\n\r\n{")
        await writer.drain()
        await ask(one.url, "GET", "/health/live")  # the server has had its turn


async def a_socket_opened_and_closed(one: Server) -> None:
    alice = await Account().register(one.url)
    async with alice.socket():
        assert len(one.app.hub) == 1
    async with asyncio.timeout(WAIT):
        while len(one.app.hub):
            await asyncio.sleep(0.01)


GONE = (no_op, an_unknown_method, a_socket_post, a_cut_body, a_socket_opened_and_closed)


@pytest.mark.gen_test
@pytest.mark.parametrize("before", GONE, ids=lambda before: before.__name__)
async def test_a_stop_does_not_wait_for_disconnected_clients(
    services: Services, before: Callable[[Server], Awaitable[None]]
) -> None:
    """SHUTDOWN_SECONDS is for requests in flight; without any the stop is immediate."""
    async with place(services) as shared:
        async with serving(shared, SHUTDOWN_SECONDS=str(2 * WAIT)) as one:
            await before(one)
            stopping = time.monotonic()
        assert time.monotonic() - stopping < WAIT


# PostgreSQL away ------------------------------------------------------------------------------------------------------


class Wire:
    """A TCP proxy whose target can be moved, cut or made to hang, while its own address stays."""

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self._hanging = False
        self._cut = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server | None = None

    async def __aenter__(self) -> Wire:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listening is not None
        self._listening.close()
        self._drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def dsn(self) -> str:
        assert self._listening is not None
        port = self._listening.sockets[0].getsockname()[1]
        user, _, _ = self._target.netloc.rpartition("@")
        return urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{port}"))

    def cut(self) -> None:
        """Refuse new connections; the target closes the present ones."""
        self._cut = True

    def hang(self) -> None:
        """Accept everything and answer nothing, like a network that lost its route."""
        self._hanging = True

    def mend(self, dsn: str | None = None) -> None:
        self._target = urlsplit(dsn) if dsn else self._target
        if self._hanging:
            self._drop()
        self._cut = self._hanging = False

    def _drop(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.get_running_loop().create_task(self._pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                while self._hanging:
                    await asyncio.sleep(0.05)
                sink.write(data)
        self._writers.discard(sink)
        sink.close()


def requests(alice: Account, bob: Account) -> list[tuple[str, str, Any, str | None]]:
    """Return a valid request to every route that needs PostgreSQL."""
    credentials = {"public_id": alice.public_id, "password": alice.password}
    verify = {"verified_fingerprint": bob.fingerprint, "method": "manual"}
    return [
        ("POST", "/auth/register", Account().body(), None),
        ("POST", "/auth/login", credentials, None),
        ("POST", "/auth/refresh", {"refresh_token": alice.refresh_token}, None),
        ("GET", "/users/me", None, alice.token),
        ("PUT", "/users/me", {"bio": "hello"}, alice.token),
        ("GET", f"/users/{bob.public_id}", None, alice.token),
        ("GET", "/users/search?q=abc", None, alice.token),
        ("GET", "/users/me/prekeys", None, alice.token),
        ("POST", "/users/me/prekeys", {"one_time_prekeys": [alice.prekey(77)]}, alice.token),
        ("GET", f"/users/{bob.public_id}/prekeys", None, alice.token),
        ("POST", f"/users/{bob.public_id}/verify", verify, alice.token),
        ("GET", "/calls", None, alice.token),
        ("GET", f"/calls/{uuid4()}", None, alice.token),
    ]


async def timed(url: str, method: str, path: str, body: Any, token: str | None) -> tuple[str, Answer, float]:
    started = time.monotonic()
    answer = await ask(url, method, path, body, token)
    return f"{method} {path}", answer, time.monotonic() - started


async def all_refused(one: Server, alice: Account, bob: Account, times: int) -> None:
    """Check that routes that need PostgreSQL answer 503 soon, and others work."""
    asked = requests(alice, bob) * times
    answers = await asyncio.gather(*(timed(one.url, *request) for request in asked))
    for name, answer, _ in answers:
        assert answer.status == 503, (name, answer.text)
        of_the_contract(answer, 503, "unavailable")
        assert 0 < int(answer.headers["Retry-After"]) < 60
    late = [(name, round(seconds, 1)) for name, _, seconds in answers if seconds >= 3 + SLACK]
    assert late == [], f"{len(late)} of {len(answers)} took longer than 3 s"
    name, health, seconds = await timed(one.url, "GET", "/health", None, None)
    assert (health.status, health.json["status"], health.json["database"]) == (503, "unhealthy", "error")
    assert health.json["redis"] == "ok"
    assert seconds < 3 + SLACK
    assert (await ask(one.url, "GET", "/health/live")).status == 200
    assert (await alice.get("/calls/turn-credentials")).status == 200
    of_the_contract(await ask(one.url, "POST", "/auth/login", {}), 400, "invalid_request")


async def well_again(one: Server, alice: Account, bob: Account) -> None:
    async with asyncio.timeout(WAIT):
        while (await ask(one.url, "GET", "/health")).status != 200:
            await asyncio.sleep(0.05)
    for _, answer, _ in await asyncio.gather(*(timed(one.url, *request) for request in requests(alice, bob))):
        assert answer.status in (200, 201, 404, 409), answer.text


@pytest.mark.gen_test(timeout=60)
async def test_without_postgresql_every_answer_is_503_and_soon(services: Services, folder: Path) -> None:
    async with place(services) as shared, contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(contextlib.AsyncExitStack())
        dsn = await running.enter_async_context(embedded.postgres(folder))
        await migrations.migrate(dsn)
        wire = await stack.enter_async_context(Wire(dsn))
        own = Place(wire.dsn, shared.redis)
        one = await stack.enter_async_context(serving(own, DATABASE_MAX_CONNECTIONS="5"))
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        a = await stack.enter_async_context(alice.socket())

        wire.cut()
        await running.aclose()  # PostgreSQL itself says good-bye to those who are connected
        await all_refused(one, alice, bob, 2)
        offered = {"call_id": str(uuid4()), "to_user_id": bob.user_id, "encrypted_payload": PAYLOAD}
        refused = await a.send("call_offer", **offered)
        assert (refused["type"], refused["code"]) == ("error", "unavailable")
        assert refused["retry_after"] > 0

        wire.mend(await running.enter_async_context(embedded.postgres(folder)))
        await well_again(one, alice, bob)
        assert (await a.send("call_offer", **offered))["type"] == "ack"


@pytest.mark.gen_test(timeout=60)
async def test_a_postgresql_that_does_not_answer_is_away_too(services: Services) -> None:
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(place(services))
        wire = await stack.enter_async_context(Wire(shared.dsn))
        own = Place(wire.dsn, shared.redis)
        one = await stack.enter_async_context(serving(own, DATABASE_MAX_CONNECTIONS="5"))
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        wire.hang()
        await all_refused(one, alice, bob, 1)
        await all_refused(one, alice, bob, 3)  # many more than there are connections
        wire.mend()
        await well_again(one, alice, bob)


@pytest.mark.gen_test(timeout=60)
async def test_a_postgresql_that_is_too_slow_is_away_too(services: Services) -> None:
    """Each connection waits for a lock, and more requests than there are connections wait behind them."""
    async with place(services) as shared, serving(shared, DATABASE_MAX_CONNECTIONS="5") as one:
        alice = await Account().register(one.url)
        slow = await asyncpg.connect(shared.dsn)
        async with slow.transaction():
            await slow.execute("LOCK TABLE users")
            answers = await asyncio.gather(*(timed(one.url, "GET", "/users/me", None, alice.token) for _ in range(40)))
        await slow.close()
        for _, answer, _ in answers:
            of_the_contract(answer, 503, "unavailable")
        late = sorted(round(seconds, 1) for _, _, seconds in answers if seconds >= 3 + SLACK)
        assert late == []
        async with asyncio.timeout(WAIT):
            while (await alice.get("/users/me")).status != 200:
                await asyncio.sleep(0.05)


# Pages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_long_list_comes_in_pages_that_link_to_the_next(services: Services) -> None:
    async with at_work(services) as one:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        # 25 calls in both directions; every five began at the same moment.
        await one.app.db.execute(
            """INSERT INTO call_sessions (id, caller_id, callee_id, call_type, status, ended_at, started_at, created_at)
               SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN $1::uuid ELSE $2 END,
                      CASE WHEN n % 2 = 0 THEN $2 ELSE $1::uuid END, 'audio', 'missed', now(), moment, moment
               FROM (SELECT n, now() - n / 5 * interval '1 min' AS moment FROM generate_series(1, 25) AS n) AS c""",
            alice.user_id,
            bob.user_id,
        )
        whole = (await alice.get("/calls?limit=100")).json
        assert len(whole) == 25
        assert [call["created_at"] for call in whole] == sorted((call["created_at"] for call in whole), reverse=True)

        pages, path = [], "/calls?limit=10"
        while path:
            answer = await alice.get(path)
            assert isinstance(answer.json, list)
            pages.append(answer.json)
            link = answer.headers.get("Link")
            found = re.fullmatch(r'<(/calls\?[^<>\s]*)>; rel="next"', link) if link else None
            assert bool(found) == bool(link), link
            path = found.group(1) if found else ""
        assert [len(page) for page in pages] == [10, 10, 5]
        assert [call for page in pages for call in page] == whole

        exact = await alice.get("/calls?limit=25")
        assert len(exact.json) == 25
        assert "Link" not in exact.headers
        assert len((await alice.get("/calls")).json) == 25


@pytest.mark.gen_test
async def test_a_page_that_can_not_be_is_refused(services: Services) -> None:
    async with at_work(services) as one:
        alice = await Account().register(one.url)
        for limit in ("0", "-1", "101", "ten", "", "1.5", "9" * 30, "1&limit=0", "%00", "true", "0x10", "%D9%A3"):
            answer = await alice.get(f"/calls?limit={limit}")
            of_the_contract(answer, 400, "invalid_request")
            assert answer.fields() == ["limit"], limit
        for before in ("x", "AAAA", "%FF", "%00", "!", "a" * 129, PAYLOAD):
            answer = await alice.get(f"/calls?before={before}")
            of_the_contract(answer, 400, "invalid_request")
            assert answer.fields() == ["before"], before
        # Moments that leave the calendar when they are brought to UTC.
        for edge in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+00:00"):
            cursor = base64.urlsafe_b64encode(f"{edge} {uuid4()}".encode()).decode()
            answer = await alice.get(f"/calls?before={cursor}")
            assert answer.status in (200, 400), (edge, answer.text)
