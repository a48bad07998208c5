"""Rubbish: whatever is thrown at any route or frame type, the server refuses it in good form and goes on.

Schemathesis tries bodies and queries (test_schemathesis.py). Here are frames, and of requests what no schema describes:
headers, tokens, paths, bytes that are hardly JSON or HTTP. A new route or frame type is covered as soon as a feature
claims it. ``make test-thorough`` looks much longer, and elsewhere each time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import gc
import gzip
import http.client
import io
import json
import re
import secrets
import socket
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import server
from handlers.http.base import ApiHandler
from handlers.http.uploads import UploadHandler
from handlers.sockets.socket import Auth, SocketHandler
from handlers.wire.shapes import Shape
from server import Server
from tests.client import Account, ask, b64
from tests.conformance import contract
from tests.files import tus
from tests.files.transfer import announce, shared
from tests.running import Services, document_of, place, serving
from tests.thorough import THOROUGH, rounds

T = TypeVar("T")

pytestmark = [
    # The server lives in this process, and its timers draw lots while Hypothesis draws examples.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies"),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
]

# Shared out among the methods of routes, and among the types of frames.
REQUESTS, FRAMES = rounds(240, thorough=8_000), rounds(120, thorough=3_000)
AT_LEAST = 6  # of each frame; the first one has nothing wrong with it

# What is answered to rubbish, or to what happens to be good.
SANE = {200, 201, 204, 206, 304, 400, 401, 402, 403, 404, 405, 409, 410, 412, 413, 415, 416, 422, 423, 426, 428, 429}
SANE |= {460, 507}  # tus's own, and no room


# The server, in a separate thread -------------------------------------------------------------------------------------


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a client's work to its end on a new loop: asyncio.run would replace the loop of the other tests."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return loop.run_until_complete(work)


class Log:
    """What the servers in this process say, a line of JSON each."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream, self._read = stream, 0

    def mistakes(self) -> list[str]:
        """What an operator would have to look into since we last asked."""
        text = self._stream.getvalue()[self._read :]
        self._read += len(text)
        entries = [(json.loads(line), line) for line in text.splitlines()]
        return [line for entry, line in entries if entry["level"] in ("error", "critical") or "Traceback" in line]


class Running:
    """A server, the accounts that talk to it, and its log."""

    def __init__(self, running: Server) -> None:
        self.server = running
        self.log = Log(io.StringIO())
        parts = urlsplit(running.url)
        self.address = (parts.hostname or "", parts.port or 0)
        self.contract = contract(document_of(running))
        self.rules = server.assemble(running.app, running.features).wildcard_router.rules
        self.bob = run(Account().register(running.url))
        self.renew()

    def renew(self) -> None:
        """Register a user with a call and a chat. Rubbish may end the session or delete the account."""
        self.alice = run(Account().register(self.server.url))
        self.call_id = str(uuid4())
        with opened(self) as connection:
            offer = {"call_id": self.call_id, "to_user_id": self.bob.user_id, "encrypted_payload": "AAAA"}
            answers(connection, json.dumps({"type": "call_offer", **offer}).encode())
        group = self._made("/chats", {"type": "group", "participants": [self.bob.public_id]})
        self.chat_id = group["id"]
        self.message_id = self._made(f"/chats/{self.chat_id}/messages", MESSAGE | {"client_id": str(uuid4())})["id"]
        self.invite = self._made(f"/chats/{self.chat_id}/invites", {})
        self.push_token = run(self.alice.put("/push/tokens", {"provider": "fcm", "token": "x" * 64})).json["id"]
        assert run(self.alice.put("/users/me", {"sealed_access_key": KEYS[2]})).status == 200
        self.file_id = run(shared(self.alice, b"content"))
        self.announced = run(announce(self.alice, b"12345")).json
        self.upload_id = run(tus.created(self.alice, 9)).file_id

    def _made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = run(self.alice.post(path, body))
        assert answer.status == 201, answer.text
        made: dict[str, Any] = answer.json
        return made

    @functools.cached_property
    def routes(self) -> list[tuple[str, type[ApiHandler]]]:
        return [(rule.matcher.regex.pattern.removesuffix("$"), rule.target) for rule in self.rules]

    @functools.cached_property
    def events(self) -> dict[str, type[Shape]]:
        """The shape of each frame type."""
        [events] = [rule.target_kwargs["events"] for rule in self.rules if rule.target is SocketHandler]
        return {"auth": Auth, **{kind: event.shape for kind, event in events.items()}}

    def meaningful_texts(self) -> list[str]:
        """Texts that mean something to this server, as a part of a path or elsewhere."""
        alice, bob = self.alice, self.bob
        people = [bob.public_id, alice.session_id, bob.user_id, alice.public_id, alice.user_id]
        things = [self.call_id, self.chat_id, self.message_id, self.invite["id"], self.file_id, self.push_token]
        return [*people, *things]

    def there(self) -> dict[str, str]:
        """What reaches something, by what stands before it in a path."""
        return {
            "/chats/": self.chat_id,
            "/participants/": self.bob.user_id,
            "/invites/": self.invite["id"],
            "/messages/": self.message_id,
            "/reactions/": "👍",
            "/files/": self.file_id,
            "/files/tus/": self.upload_id,
            "/downloads/": self.file_id,
            "/uploads/": self.announced["file_id"],
            "/tokens/": self.push_token,
        }

    def good(self) -> dict[str, Any]:
        """Values that fields of these names may have: for what a schema can't tell."""
        return {
            "access_token": self.alice.token,
            "call_id": self.call_id,
            "chat_id": self.chat_id,
            "client_id": str(uuid4()),
            "encrypted_payload": KEYS[5],
            "expires_in": 3600,
            "forwarded_from": self.message_id,
            "message_type": "text",
            "metadata": {"a": [1, 2.5, None]},
            "reply_to": self.message_id,
            "to_user_id": self.bob.user_id,
            "user_ids": [self.bob.user_id],
        }


@pytest.fixture(scope="module")
def running(services: Services) -> Iterator[Running]:
    up, ended = threading.Event(), threading.Event()
    found: list[Server | BaseException] = []

    async def serve() -> None:
        try:
            async with place(services) as home, serving(home) as one:
                found.append(one)
                up.set()
                await asyncio.get_running_loop().run_in_executor(None, ended.wait)
        except BaseException as error:
            found.append(error)
            raise
        finally:
            up.set()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    try:
        assert up.wait(30)
        assert isinstance(found[0], Server), found
        yield Running(found[0])
    finally:
        ended.set()
        thread.join(30)


@pytest.fixture(autouse=True)
def nothing_to_look_into(running: Running, log: io.StringIO) -> Iterator[None]:
    running.log = Log(log)
    yield
    gc.collect()  # a task that failed unseen is reported when it goes
    assert running.log.mistakes() == []


def trying(what: str, examples: int, check: Callable[..., None], *given_: st.SearchStrategy[Any]) -> None:
    """Run Hypothesis; the same in each run, unless it is to be thorough, and not the same for each ``what``."""
    tried = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        # Without looking for the shortest example: the server's state makes it another one each time.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(given(*given_)(check))
    (tried if THOROUGH else seed(zlib.crc32(what.encode()))(tried))()


# JSON that is nearly good ---------------------------------------------------------------------------------------------

KEYS = [b64(secrets.token_bytes(size)) for size in (0, 1, 16, 31, 32, 33, 64, 65, 1568, 1569)]
ZEROS = [b64(bytes(32)), b64(b"\x05" + bytes(32)), b64(b"\xff" * 32), b64(b"\xff" * 64), b64(bytes(64))]
ODD_BASE64 = [
    "=",
    "====",
    "A",
    "AA=A",
    "A===",
    "AAAA====",
    "AAAA\n",
    " AAAA",
    "-_-_",
    "+/-_",
    "é",
    "A" * 5001,
    "AA\u0000A",
]
ODD_IDS = [
    str(uuid4()),
    str(uuid4()).upper(),
    uuid4().hex,
    "{" + str(uuid4()) + "}",
    "urn:uuid:" + str(uuid4()),
    "0" * 36,
]
MOMENTS = ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+00:00", "2024-02-30"]
CURSORS = [base64.urlsafe_b64encode(f"{moment} {ODD_IDS[0]}".encode()).decode() for moment in MOMENTS]
ODD_TEXTS = [
    "",
    " ",
    "%",
    "_",
    "\\",
    "'",
    '"',
    "\x7f",
    "\u202e",
    "\ufeff",
    "😀" * 70,
    "a" * 70_000,
    "..",
    "null",
    "1e400",
]
TEXTS = KEYS + ZEROS + ODD_BASE64 + ODD_IDS + MOMENTS + CURSORS + ODD_TEXTS

MESSAGE = {"encrypted_payload": KEYS[5], "message_type": "text"}

# Written into the JSON as they are; most are not JSON at all.
TOKENS = [
    *b"NaN -Infinity Infinity 1e400 -1e400 1e-400 -0 -0.0 01 +1 .5 1. 0x10 true null undefined {} [] [[]]".split(),
    *b"1e308 2147483648 -2147483649 9223372036854775808 18446744073709551616".split(),
    *(b'"\\u0000"', b'"a\\u0000b"', b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\x"', b'"a\nb"', b'"a\0b"', b'""'),
    *(b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'{"\\u0000":1}', b'{"":{}}'),
    *(b"9" * 400, b"9" * 5000, b"[" * 40 + b"]" * 40, b'{"a":' * 40 + b"1" + b"}" * 40),
]

MARK = "@raw@"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def written(value: Any, token: bytes = b"null") -> bytes:
    """JSON text, with ``token`` at the place that is marked."""
    return json.dumps(value).encode().replace(json.dumps(MARK).encode(), token)


def instances(schema: dict[str, Any], whole: dict[str, Any], good: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON Schema describes, or nearly: of texts it can't say what bytes they should hold."""
    if "$ref" in schema:
        return instances(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, good)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([instances(one, whole, good) for one in schema["anyOf"]])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", ()))
        parts = {
            name: st.just(good[name]) if name in good else instances(part, whole, good)
            for name, part in schema["properties"].items()
        }
        return st.fixed_dictionaries(
            {name: part for name, part in parts.items() if name in required},
            optional={name: part for name, part in parts.items() if name not in required},
        )
    if kind == "array":
        return st.lists(instances(schema.get("items", {}), whole, good), max_size=3)
    if kind == "integer":
        return st.sampled_from([1, 0, 2, 12345, 2**31 - 1])
    if kind == "string":
        if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        return st.sampled_from([text for text in good.values() if isinstance(text, str)] + TEXTS)
    return {"boolean": st.booleans(), "null": st.none(), "number": st.floats(0, 1)}.get(kind or "", anything)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a value, by its path."""
    yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with ``new`` at a place; without that place where ``new`` is Ellipsis."""
    if not path:
        return {} if new is ... else new
    copy = value.copy()
    if len(path) == 1 and new is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@st.composite
def wrong(draw: st.DrawFn, value: Any) -> bytes:
    """JSON text of a good value with something wrong in it; or only rubbish."""
    token = b"null"
    way = draw(st.sampled_from(["place"] * 6 + ["twice", "cut", "other", "coding", "rubbish"]))
    if way == "rubbish":
        return draw(st.sampled_from([*TOKENS, b"[" * 50_000, b""]) | st.binary(max_size=200))
    if way == "place":
        new = draw(st.sampled_from([..., MARK, MARK, MARK]) | st.sampled_from(TEXTS) | anything)
        value = changed(value, draw(st.sampled_from(list(places(value)))), new)
        token = draw(st.sampled_from(TOKENS))
    elif way == "other":
        value = draw(anything)
    text = written(value, token)
    if way == "cut":
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.binary(max_size=3)) + text[cut + draw(st.integers(0, 3)) :]
    elif way == "twice" and text.startswith(b"{") and len(text) > 2:
        text = text[:-1] + b"," + text[1:]
    elif way == "coding":
        text = text.decode().encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])))
    return text


# HTTP -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def send(address: tuple[str, int], message: bytes, method: str = "GET", *, ended: bool = False) -> Reply | None:
    """Send bytes on a new connection. Returns the answer, or None if the server closes it without any."""
    with socket.create_connection(address, timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(message)
            if ended:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
            try:
                response.begin()
                body = response.read()
                packed = response.headers["Content-Encoding"] == "gzip" and body
                return Reply(response.status, response.headers, gzip.decompress(body) if packed else body)
            except (http.client.BadStatusLine, ConnectionError):
                return None


def judge(reply: Reply, method: str) -> None:
    """An answer is in the form that contract section 1 gives it."""
    assert reply.status in SANE, reply
    made = reply.headers["X-Request-ID"]
    assert made, reply
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", made), reply
    assert b"Traceback" not in reply.body, reply
    if reply.status < 400 or method == "HEAD":
        return
    assert reply.headers["Content-Type"] == "application/json", reply
    body = json.loads(reply.body)
    assert re.fullmatch(r"[a-z][a-z_]+", body["error"]), reply
    assert isinstance(body["message"], str) and body["message"], reply
    assert body["request_id"] == made, reply
    assert not body.get("details") or reply.status == 400, reply
    for fault in body.get("details", []):
        assert fault.keys() == {"field", "issue"} and all(isinstance(text, str) for text in fault.values()), reply
    wanted = {405: "Allow", 401: "WWW-Authenticate", 429: "Retry-After"}.get(reply.status)
    assert not wanted or reply.headers[wanted], reply


def asked_of(message: bytes) -> tuple[str, str]:
    """The method and the path of a request."""
    method, path, _ = message.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
    return method, path


visible = st.characters(codec="latin-1", min_codepoint=0x20, exclude_characters="\x7f")
odd_values = st.text(visible, max_size=40) | st.sampled_from(
    ["", "é", "0", "-1", "a,b", "x" * 3000, "*", "bearer.", 'W/"x"']
)
HEADERS = {
    "Content-Type": st.sampled_from(
        [
            "application/json",
            "application/json;charset=utf-16",
            "text/plain",
            "multipart/form-data",
            "application/json/x",
        ]
    ),
    "X-Request-ID": odd_values | st.just("good-1"),
    "X-PrID": odd_values,
    "X-Client-Version": odd_values
    | st.sampled_from(["1.2.3", "9" * 50, "1." * 50, "٣"]).map(lambda v: v.encode().decode("latin-1")),
    "X-Platform": odd_values | st.just("ios"),
    "X-Forwarded-For": odd_values | st.sampled_from(["1.2.3.4", "::1, 10.0.0.1", "999.1.1.1"]),
    "Accept-Encoding": st.just("gzip, br;q=x"),
    "Content-Encoding": st.sampled_from(["gzip", "deflate", "x"]),
    "Origin": odd_values | st.sampled_from(["null", "https://[::1", "http://x:99999"]),
    "Cookie": odd_values,
    "Expect": st.sampled_from(["100-continue", "x"]),
    "If-None-Match": odd_values,
    "Range": st.sampled_from(["bytes=0-", "bytes=-1", "bytes=9-1", "x=1"]),
    "Host": odd_values,
    "Upgrade": st.sampled_from(["websocket", "WebSocket", "h2c"]),
    "Connection": st.sampled_from(["Upgrade", "close", "keep-alive", "x"]),
    "Sec-WebSocket-Version": st.sampled_from(["13", "8", "x"]),
    "Sec-WebSocket-Key": odd_values,
    "Sec-WebSocket-Protocol": odd_values | st.sampled_from(["mimu.v1, bearer.x", "bearer.", "mimu.v1"]),
    "Tus-Resumable": st.sampled_from(["1.0.0", "0.9"]),
    "Upload-Length": st.sampled_from(["0", "-1", "9" * 30, "x"]),
    "Upload-Offset": st.sampled_from(["0", "-1", "9" * 30, "x"]),
    "Upload-Metadata": odd_values | st.sampled_from(["a YQ==", "sha256 YQ==", "a,b YQ==", "chat_id 4pi6"]),
    "Upload-Checksum": odd_values | st.sampled_from(["sha1 AAAA", "md5 %", "sha1", "sha512 AAAA"]),
    "Unidentified-Access-Key": odd_values | st.sampled_from(KEYS),
}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "get")
ODD_TOKENS = [
    "",
    "a.b.c",
    "é",
    *(
        ".".join([base64.urlsafe_b64encode(header).decode().rstrip("="), "e30", "x"])
        for header in (
            b"{}",
            b"[]",
            b"null",
            b'{"kid":[],"alg":{}}',
            b'{"kid":"\\ud800"}',
            b"[" * 3000,
            b'{"kid":NaN}',
            b"\xff",
        )
    ),
]


def filled(draw: st.DrawFn, pattern: str, known: list[str], there: dict[str, str]) -> str:
    """A path that a route takes, with what is known in the place of its groups; the one that is there, if any."""

    def part(group: re.Match[str]) -> str:
        before = pattern[: group.start()].rpartition(")")[2]
        if before in there:
            return there[before]
        fitting = [text for text in known if re.fullmatch(group.group(), text)]
        ascii_ = st.characters(codec="ascii", min_codepoint=33)
        return draw(st.sampled_from(fitting) if fitting else st.from_regex(group.group(), True, alphabet=ascii_))

    path = re.sub(r"\((?:[^()]|\([^()]*\))*\)", part, pattern)
    assert re.fullmatch(pattern, path), f"{pattern}: teach this test how to make a path of it"
    return path


ODD_ENDS = ["/", "//", "%00", "%ff", "%0a", "/..", ";x", "%", "é".encode().decode("latin-1")]


@st.composite
def messages(
    draw: st.DrawFn, running: Running, pattern: str, handler: type[ApiHandler], method: str
) -> tuple[str, bytes]:
    """A method, and a whole HTTP message for one endpoint: well-formed as HTTP, with something else wrong."""
    fault = draw(st.sampled_from(["header", "header", "path", "token", "method", "body"]))
    there = {} if fault == "path" else running.there()
    path = quote(filled(draw, pattern, running.meaningful_texts() + ODD_IDS, there), safe="/")
    if fault == "path" and draw(st.booleans()):
        path += draw(st.sampled_from(ODD_ENDS))
    if fault == "method":
        method = draw(st.sampled_from(METHODS))

    headers = {"Host": "x", "Content-Type": "application/json", "Connection": "close"}
    headers["Authorization"] = f"Bearer {running.alice.token}"
    headers["Unidentified-Access-Key"] = KEYS[2]
    uploads = issubclass(handler, UploadHandler)
    if uploads:
        headers |= {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}
        headers |= {"Upload-Length": "9", "Upload-Offset": "0"}
    if fault == "token":
        bad = draw(st.sampled_from([None, *ODD_TOKENS, running.alice.token[:-3]]))
        headers["Authorization"] = draw(st.sampled_from(["Bearer {}", "{}", "Basic {}", "bearer  {} "])).format(bad)
        if bad is None:
            del headers["Authorization"]
    if fault == "header":
        for name in draw(st.lists(st.sampled_from(sorted(HEADERS)), min_size=1, max_size=3, unique=True)):
            headers[name] = draw(HEADERS[name])
    # Other tests open sockets; here an answer of 101 would not end.
    if handler is SocketHandler:
        headers |= {"Connection": "Upgrade", "Upgrade": "websocket"} if fault != "header" else {}
        headers |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEYS[2]} | headers
        missing = draw(st.sampled_from(["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key"]))
        headers.pop(missing, None)

    body = b"12345" if uploads and method in ("POST", "PUT", "PATCH") else b""
    if fault == "body":
        body = draw(wrong(running.good()))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body and draw(st.integers(0, 3)) == 3:
        half = len(body) // 2
        parts = [part for part in (body[:half], body[half:]) if part]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        lines.append("Transfer-Encoding: chunked")
    elif body:
        lines.append(f"Content-Length: {len(body)}")
    return method, "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def test_no_request_is_too_odd_for_a_good_answer(running: Running) -> None:
    endpoints = [
        (pattern, handler, method)
        for pattern, handler in running.routes
        for method in handler.allow().split(", ")
        if method != "OPTIONS"
    ]
    share = -(-REQUESTS // len(endpoints))
    seen: set[int] = set()

    def exchange(sent: tuple[str, bytes]) -> None:
        method, message = sent
        reply = send(running.address, message, method)
        # Tornado itself refuses what is not HTTP, without a body.
        if reply is None or (reply.status == 400 and not reply.body and "X-Request-ID" not in reply.headers):
            return
        seen.add(reply.status)
        judge(reply, method)
        running.contract.judge(*asked_of(message), reply.status, reply.headers, reply.body)
        if reply.status == 401 and f"Bearer {running.alice.token}".encode() in message:
            running.renew()

    for pattern, handler, method in endpoints:
        seen.clear()
        trying(method + pattern, share, exchange, messages(running, pattern, handler, method))
        assert seen, f"nothing reached {method} {pattern}"
        assert running.log.mistakes() == [], pattern


def test_accounts_can_be_erased_in_the_middle_of_calls(running: Running) -> None:
    """Two who were calling the same user can both go."""
    for _ in range(2):
        running.renew()
        answer = run(
            ask(running.server.url, "DELETE", "/users/me", {"password": running.alice.password}, running.alice.token)
        )
        assert answer.status == 204, answer.text
    running.renew()


def test_malformed_http_is_refused_or_dropped(running: Running) -> None:
    """Raw bytes, after which the client sends no more."""
    post = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = b'{"public_id": "abc", "password": "wrong one"}'
    chunked = post + b"Transfer-Encoding: chunked\r\n"
    lengths = [
        b"abc",
        b"-1",
        b"+2",
        b"0x10",
        b"1_0",
        b"1.0",
        b"",
        b" ",
        b"2, 3",
        b"9" * 30,
        b"9" * 5000,
        b"1e3",
        b"\xb2",
    ]
    chunks = [
        b"-1\r\n",
        b"x\r\n",
        b"0x2\r\n{}\r\n",
        b"2\r\n{}XX",
        b"+2\r\n{}\r\n",
        b"F" * 30 + b"\r\n",
        b"2;" + b"x" * 100,
        b"\r\n",
    ]
    lines = [
        b"NoColon\r\n",
        b": empty\r\n",
        b" folded: first\r\n",
        b"A: b\r\n folded\r\n",
        b"A: b\0c\r\n",
        b"A\0: b\r\n",
        b"A b: c\r\n",
        b"A: b\rc\r\n",
        b"\xff\xfe: b\r\n",
        b"A: " + b"b" * 20_000 + b"\r\n",
        b"A: b\r\n" * 3000,
    ]
    cases = [post + b"Content-Length: " + length + b"\r\n\r\n" + body for length in lengths]
    cases += [post + b"Content-Length: 45\r\nContent-Length: 44\r\n\r\n" + body]
    cases += [chunked + b"Content-Length: 45\r\n\r\n2d\r\n" + body + b"\r\n0\r\n\r\n"]
    cases += [
        post + b"Transfer-Encoding: " + name + b"\r\n\r\n0\r\n\r\n" for name in (b"gzip, chunked", b"x", b"chunked, x")
    ]
    cases += [chunked + b"\r\n" + chunk for chunk in chunks]
    cases += [b"GET /health HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n" for line in lines]
    cases += [
        b"",
        b"\r\n\r\n",
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: x\n\n",
        b"GET  /health  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET " + b"/a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1/health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://elsewhere.example/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"G\xc3\x89T /health HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    for case in cases:
        reply = send(running.address, case, ended=True)
        assert reply is None or reply.status in (200, 400, 401, 404, 405, 411, 413, 415, 431, 501, 505), (case, reply)
        if reply is not None and reply.body:
            judge(reply, "GET")
        assert running.log.mistakes() == [], case
    assert send(running.address, b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status == 200  # type: ignore[union-attr]


# Frames ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(running: Running) -> Iterator[ClientConnection]:
    """A socket of the user's."""
    url = running.server.url.replace("http", "ws", 1) + "/ws"
    headers = {"Authorization": f"Bearer {running.alice.token}"}
    with connect(url, additional_headers=headers, compression=None, proxy=None, max_size=None) as connection:
        assert json.loads(connection.recv(5))["type"] == "ready"
        yield connection


def answers(connection: ClientConnection, frame: bytes, *, text: bool = True) -> list[dict[str, Any]]:
    """What comes for a frame: everything until the refusal of another one that is sent after it."""
    probe = f"probe-{secrets.token_hex(8)}"
    connection.send(frame, text=text)
    connection.send(json.dumps({"type": "no such type", "id": probe}))
    found: list[dict[str, Any]] = []
    while True:
        answer = json.loads(connection.recv(5))
        if answer.get("id") == probe:
            assert (answer["type"], answer["code"]) == ("error", "invalid_request")
            return found
        found.append(answer)


def well_formed(answer: dict[str, Any]) -> None:
    if answer["type"] == "error":
        assert re.fullmatch(r"[a-z][a-z_]+", answer["code"]), answer
        assert answer["code"] not in ("internal_error", "unavailable"), answer
        assert isinstance(answer["message"], str) and answer["message"], answer
        assert "Traceback" not in json.dumps(answer), answer


def id_of(frame: bytes) -> str | None:
    """The id of a frame that is JSON, whatever else is wrong with it."""
    try:
        value = json.loads(frame.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    given_id = value.get("id") if isinstance(value, dict) else None
    return given_id if isinstance(given_id, str) and 1 <= len(given_id) <= 64 and "\0" not in given_id else None


def strict(frame: bytes) -> bool:
    """Whether a frame is JSON that the server's parser takes apart, so that its id can be known."""
    if re.search(rb"\\u[dD][89a-fA-F]|NaN|Infinity|1e400|9{300}", frame):
        return False
    try:
        json.loads(frame.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


@st.composite
def frames(draw: st.DrawFn, kind: str, fields: st.SearchStrategy[Any]) -> tuple[bytes, bool]:
    """A frame of one type, and whether it is sent as text."""
    fault = draw(st.sampled_from(["nothing", *["body"] * 6, "id", "id", "binary"]))
    own_id = draw(st.sampled_from(["mine", "m" * 64, "é", "", 1, [], {}, "m" * 65, ...])) if fault == "id" else "mine"
    head = {"type": kind} if own_id is ... else {"type": kind, "id": own_id}
    value = {**draw(fields), **head}
    sent = (draw(wrong(value)) if fault == "body" else written(value))[: 128 * 1024]
    try:
        sent.decode("utf-8")
    except UnicodeDecodeError:
        return sent, False  # as text it is no WebSocket message at all: RFC 6455 section 8.1
    return sent, fault != "binary"


def say(connection: ClientConnection, frame: tuple[bytes, bool]) -> None:
    """Send a frame, and judge what comes."""
    sent, text = frame
    came = answers(connection, sent, text=text)
    for answer in came:
        well_formed(answer)
    own = [answer for answer in came if answer["type"] in ("ack", "error")]
    assert len(own) <= 1, came
    mine = id_of(sent)
    if text and mine is not None and strict(sent):
        assert [answer.get("id") for answer in own] == [mine], came
    elif mine is None:
        assert all(answer["type"] == "error" for answer in own), came


def test_no_frame_is_too_odd_for_an_answer(running: Running) -> None:
    share = max(AT_LEAST, FRAMES // len(running.events))
    for kind, shape in running.events.items():
        running.renew()
        schema = shape.model_json_schema()
        with opened(running) as connection:
            sent = frames(kind, instances(schema, schema, running.good()))
            trying(kind, share, say, st.just(connection), sent)
        assert running.log.mistakes() == [], kind


@pytest.mark.parametrize(
    "fault",
    [b'"a\\u0000b"', b"[" * 40 + b"]" * 40, b"1", b'""', b"[]"],
    ids=["NUL", "depth", "number", "empty", "list"],
)
def test_a_bad_frame_whose_id_can_be_read_is_refused_by_its_id(running: Running, fault: bytes) -> None:
    """A client that waits for the answer to an id would otherwise wait for ever."""
    with opened(running) as connection:
        for kind in running.events:
            frame = b'{"type": "' + kind.encode() + b'", "id": "mine", "call_id": ' + fault + b', "access_token": 1}'
            [answer] = answers(connection, frame)
            assert (answer["type"], answer.get("id"), answer["code"]) == ("error", "mine", "invalid_request"), kind


def test_only_a_frame_that_is_too_large_closes_the_socket(running: Running) -> None:
    with opened(running) as connection:
        padded = json.dumps({"type": "call_heartbeat", "id": "mine"}).ljust(128 * 1024)
        [answer] = answers(connection, padded.encode())
        assert (answer["type"], answer["id"]) == ("error", "mine")
        connection.send(padded + " ")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    with opened(running) as connection:
        connection.send([b" " * 65536, b" " * 65536, b" "])
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\x82\0\0\0\0\xff\xfe",  # a text that is not UTF-8
        b"\x81\x83\0\0\0\0\xed\xa0\x80",  # a lone surrogate, as UTF-8
        b"\x88\x84\0\0\0\0\x03\xe8\xff\xfe",  # a close whose reason is not UTF-8
        b"\x88\x81\0\0\0\0x",  # a close of one byte
        b"\x88\x82\0\0\0\0\0\0",  # a close with code 0
        b"\x88\x82\0\0\0\0\xff\xff",
        b"\x89\xfe\x00\x7e\0\0\0\0" + bytes(126),  # a ping that is too long
        b"\x09\x80\0\0\0\0",  # a ping in parts
        b"\x83\x80\0\0\0\0",  # an opcode that there isn't
        b"\xc1\x80\0\0\0\0",  # compressed, which was not agreed on
        b"\x80\x80\0\0\0\0",  # continues nothing
        b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0",  # begins within a message
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",  # 2^64 - 1 bytes are to come
        b"\x81",
    ],
)
def test_an_invalid_websocket_frame_ends_that_socket_only(running: Running, frame: bytes) -> None:
    hub = running.server.app.hub
    with opened(running) as other:
        with opened(running) as connection:
            connection.socket.sendall(frame)
            with contextlib.suppress(OSError):  # it may be closed already
                connection.socket.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionClosed):
                connection.recv(5)
            for _ in range(500):
                if len(hub) == 1:
                    break
                threading.Event().wait(0.01)
            assert len(hub) == 1, "the hub still counts it"
        [answer] = answers(other, b'{"type": "call_heartbeat", "id": "mine"}')
        assert answer["id"] == "mine"
