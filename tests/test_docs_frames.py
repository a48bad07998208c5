"""docs/realtime.md and docs/calls.md against a running server: each JSON example is sent to it or heard from it, each
sequence diagram is played, each table that can be tried is tried.

An example's label stands above it, in a comment. ``client …`` is sent as it stands, ``server …`` is what a socket must
hear, ``http …`` an answer over HTTP, ``sealed …`` what apps put into encrypted_payload. Ids, tokens and names of the
documents stand for those of the run; times and the values of ``FREE`` may differ, all else is compared.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import importlib
import json
import re
import typing
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from handlers import errors, hub, limits, peer, rfc6455, shapes, socket, tokens
from handlers.errors import ApiError
from models import calls
from models.database import Unavailable
from plugins import turn
from plugins.calls.shapes import Hangup
from server import Server
from tests import canaries
from tests.client import Account, Socket, ask, b64
from tests.running import ROOT, Services, periodic, place, serving
from tests.test_docs import API, SOURCES, codes, first_cells, name_of, part

REALTIME, CALLS = ROOT / "docs/realtime.md", ROOT / "docs/calls.md"
PAGES = (REALTIME, CALLS)

# The people and things of the documents.
ALICE, BOB = "a11ce000-51d5-4c8e-9b0a-3f1e6d7c2a01", "b0b00000-7c3e-4f6a-8d21-5e9a4b8c1d02"
CALL, SESSION = "ca110000-2f4d-4e19-a7b3-6c0d9e8f5a03", "5e550000-9a1b-4d3c-b2e8-7f6a5c4d3e05"
TOKEN = "eyJhbGciOiJIUzI1NiIsImtpZCI6…"

FREE = {"credential", "duration_seconds", "request_id", "retry_after", "seconds", "username"}  # type alone is compared
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

CLIENT_CODES = {1000, 1006}  # of the client, and of its library: the server sends neither
BEFORE_UPGRADE = {"method_not_allowed"}  # a refusal of the handshake that no open socket hears

_EXAMPLE = re.compile(r"^<!-- example: ([^\n]+) -->\n```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ARROW = re.compile(r"(\w+)(-->>|->>|-x)(\w+): (.+)")


def examples() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for page in PAGES:
        for label, text in _EXAMPLE.findall(page.read_text()):
            assert label not in found, f"{label} stands there twice"
            found[label] = json.loads(text)
    return found


EXAMPLES = examples()
SEALED = sorted(label for label in EXAMPLES if label.startswith("sealed "))


def diagrams() -> dict[str, str]:
    """Every diagram by its page and the heading above it."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text()
        for match in _MERMAID.finditer(text):
            heading = _HEADING.findall(text[: match.start()])[-1]
            name = f"{page.stem}: {heading}"
            found[name if name not in found else f"{name}, again"] = match[1]
    return found


DIAGRAMS = diagrams()
SEQUENCES = {name: text for name, text in DIAGRAMS.items() if text.startswith("sequenceDiagram\n")}


def rows(page: Path, title: str) -> list[list[str]]:
    """The cells of the first table of a part, without its head."""
    table = re.search(r"^\|.*?(?=^[^|]|\Z)", part(page, title), re.MULTILINE | re.DOTALL)
    assert table, f"{name_of(page)}: {title} has no table"
    lines = [line.strip().strip("|").split("|") for line in table[0].strip().splitlines()]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# The stage: two users, and what the documents call them ---------------------------------------------------------------


def same(example: Any, real: Any, where: str) -> None:
    """Keys, types and values; times and what is FREE only by their form."""
    assert type(real) is type(example), f"{where} is {real!r}, the document says {example!r}"
    if isinstance(example, dict):
        assert real.keys() == example.keys(), f"{where} has {sorted(real)}, the document says {sorted(example)}"
        for key in example:
            if key in FREE:
                assert type(real[key]) is type(example[key]), f"{where}.{key} is {real[key]!r}"
            else:
                same(example[key], real[key], f"{where}.{key}")
    elif isinstance(example, list):
        assert len(real) == len(example), f"{where} has {len(real)} items, the document says {len(example)}"
        for number, (item, other) in enumerate(zip(example, real, strict=True)):
            same(item, other, f"{where}[{number}]")
    elif isinstance(example, str) and MOMENT.fullmatch(example):
        assert MOMENT.fullmatch(real), f"{where} is {real!r}, and no time"
    else:
        assert real == example, f"{where} is {real!r}, the document says {example!r}"


@dataclass
class Stage:
    server: Server
    alice: Account
    bob: Account
    call_id: str = field(default_factory=lambda: str(uuid4()))

    def real(self, value: Any, **other: str) -> Any:
        """A document's value with the ids, names and tokens of this run."""
        if isinstance(value, dict):
            return {key: self.real(item, **other) for key, item in value.items()}
        if isinstance(value, list):
            return [self.real(item, **other) for item in value]
        cast = {
            ALICE: self.alice.user_id,
            BOB: other.get("bob", self.bob.user_id),
            CALL: other.get("call", self.call_id),
            SESSION: self.alice.session_id,
            TOKEN: other.get("token", self.alice.token),
            "bob": self.bob.public_id,
        }
        return cast.get(value, value) if isinstance(value, str) else value

    async def says(self, speaker: Socket, label: str, **other: str) -> None:
        """Send a client's frame as the document has it; ``other`` puts other ids in the place of the usual ones."""
        frame = self.real(EXAMPLES[label], **other)
        canaries.plant(*(frame[name] for name in ("encrypted_payload", "access_token") if name in frame))
        await speaker.raw(json.dumps(frame))

    async def hears(self, listener: Socket, label: str) -> None:
        """The next frame of the example's type (and id) must be as the document has it."""
        example = self.real(EXAMPLES[label])
        frame = await listener.expect(example["type"], **({"id": example["id"]} if "id" in example else {}))
        same(example, frame, label)

    async def rings(self, caller: Socket, *callees: Socket) -> None:
        """A new call, as the documents have it."""
        self.call_id = str(uuid4())
        await self.says(caller, "client call_offer")
        await self.hears(caller, "server ack of call_offer")
        for callee in callees:
            await self.hears(callee, "server call_offer")

    async def answered(self, caller: Socket, callee: Socket) -> None:
        await self.says(callee, "client call_answer")
        await self.hears(callee, "server ack of call_answer")
        await self.hears(caller, "server call_answer")

    async def pass_time(self, column: str, interval: str) -> None:
        await self.server.app.db.execute(f"UPDATE call_sessions SET {column} = {column} - interval '{interval}'")
        await periodic(self.server, "call_timeouts")()


@contextlib.asynccontextmanager
async def stage(services: Services, **settings: str) -> AsyncIterator[Stage]:
    async with place(services) as shared, serving(shared, TURN_HOST="turn.example.org", **settings) as running:
        alice = await Account().register(running.url)
        bob = await Account().register(running.url, display_name="Bob")
        yield Stage(running, alice, bob)


# Calls ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_frames_of_a_call(services: Services) -> None:
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        await on.rings(a, b)
        await on.says(a, "client call_offer")
        await on.hears(a, "server ack of call_offer, repeated")
        await on.answered(a, b)
        await on.says(b, "client call_answer")
        await on.hears(b, "server ack of call_answer, repeated")
        await on.says(a, "client ice_candidate")
        await on.hears(a, "server ack of ice_candidate")
        await on.hears(b, "server ice_candidate")
        await on.says(a, "client call_heartbeat")
        await on.hears(a, "server ack of call_heartbeat")
        await on.says(a, "client call_hangup")
        await on.hears(a, "server ack of call_hangup")
        await on.hears(b, "server call_hangup")
        same(on.real(EXAMPLES["http call"]), (await on.alice.get(f"/calls/{on.call_id}")).json, "http call")
        await a.silent(0.1)
        await b.silent(0.1)


@pytest.mark.gen_test
async def test_how_calls_end(services: Services) -> None:
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b, on.bob.socket() as b2:
        await on.rings(a, b, b2)
        await on.answered(a, b)
        await on.hears(b2, "server call_hangup, answered_elsewhere")
        await on.rings(a)
        for callee in (b, b2):
            await callee.expect("call_hangup", reason="superseded")
            await on.hears(callee, "server call_offer")
        await b.send("call_hangup", call_id=on.call_id, reason="declined")
        await on.hears(b2, "server call_hangup, declined_elsewhere")
        await a.expect("call_hangup", reason="declined")
        await on.rings(a, b, b2)
        await on.pass_time("started_at", "61 s")
        for listener in (a, b, b2):
            await on.hears(listener, "server call_hangup, timeout")
        await on.says(b, "client call_answer")
        await on.hears(b, "server error invalid_state")


@pytest.mark.gen_test
async def test_what_calls_are_refused_with(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        await on.says(a, "client call_offer", bob=str(uuid4()))
        await on.hears(a, "server error user_not_found")
        await on.says(a, "client call_offer", bob=on.alice.user_id)
        await on.hears(a, "server error cannot_call_self")
        await on.says(a, "client call_heartbeat")
        await on.hears(a, "server error call_not_found")
        await on.rings(a, b)
        await on.says(b, "client call_offer", bob=on.alice.user_id, call=str(uuid4()))
        await on.hears(b, "server error glare")
        mallory = await Account().register(on.server.url)
        async with mallory.socket() as m:
            await on.says(m, "client call_offer")
            await on.hears(m, "server error call_id_conflict")
            await on.says(m, "client call_hangup")
            await on.hears(m, "server error not_participant")
        on.server.app.limits.on = True
        monkeypatch.setattr(calls, "CANDIDATES", 0)
        await on.says(a, "client ice_candidate")
        await on.hears(a, "server error rate_limited, candidates")


@pytest.mark.gen_test
async def test_relays_are_as_the_page_says(services: Services) -> None:
    async with stage(services) as on:
        answer = (await on.alice.get("/calls/turn-credentials")).json
        same(EXAMPLES["http turn"], answer, "http turn")
        documented, username = EXAMPLES["http turn"]["username"], answer["username"]
        assert re.fullmatch(rf"\d{{10}}:{ALICE}", documented)
        assert re.fullmatch(rf"\d{{10}}:{on.alice.user_id}", username)
        assert {len(base64.b64decode(text["credential"])) for text in (answer, EXAMPLES["http turn"])} == {20}


@pytest.mark.gen_test
@pytest.mark.parametrize("label", SEALED)
async def test_sealed_payloads_arrive_as_they_were(services: Services, label: str) -> None:
    sealed = b64(json.dumps(EXAMPLES[label]).encode())
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        assert EXAMPLES[label]["call_id"] == CALL
        await a.send("call_offer", call_id=on.call_id, to_user_id=on.bob.user_id, encrypted_payload=sealed)
        assert (await b.expect("call_offer"))["encrypted_payload"] == sealed


@pytest.mark.gen_test
async def test_what_may_be_sent_when(services: Services) -> None:
    table = rows(CALLS, "What may be sent when")
    assert {named(row[0])[0] for row in table} == {"call_offer", *taken_by_calls()}
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        for what, by, *told in table:
            [kind] = named(what)
            speaker = {"caller": a, "callee": b}[by]
            for state, expected in zip(("ringing", "accepted", "ended"), told, strict=True):
                await on.rings(a)
                if state != "ringing":
                    said = {"encrypted_payload": "YQ=="} if "another" in what else {}
                    await b.send("call_answer", **{**_fields(on, "client call_answer"), **said})
                if state == "ended":
                    await b.send("call_hangup", call_id=on.call_id)
                answer = await speaker.send(kind, **_fields(on, f"client {kind}"))
                assert answer.get("code", answer["type"]) == expected.strip("`"), f"{what} by {by} when {state}"
                assert answer["type"] == "ack" or answer["status"] == state


def _fields(on: Stage, label: str) -> dict[str, Any]:
    return {key: value for key, value in on.real(EXAMPLES[label]).items() if key not in ("type", "id")}


def taken_by_calls() -> set[str]:
    features = importlib.import_module("plugins.calls")
    tree = ast.parse(Path(str(features.__file__)).read_text())
    [events] = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "events"]
    assert isinstance(events, ast.Dict)
    return {ast.literal_eval(key) for key in events.keys if key is not None}


REASONS = {"timeout", "answered_elsewhere", "declined_elsewhere", "superseded", "connection_lost"}  # the server's own


def test_every_reason_is_explained_and_heard() -> None:
    ours = set(typing.get_args(Hangup.model_fields["reason"].annotation))
    tables = re.findall(r"^\| `(\w+)` \|", part(CALLS, "call_hangup"), re.MULTILINE)
    assert sorted(tables) == sorted([*ours, *ours, *REASONS])
    heard = {frame["reason"] for label, frame in EXAMPLES.items() if label.startswith("server call_hangup")}
    for text in SEQUENCES.values():
        heard |= set(re.findall(r"S->>\w+: call_hangup.* reason (\w+)", text))
    assert heard == ours | REASONS


# The socket ----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_frames_of_the_socket(services: Services) -> None:
    async with stage(services) as on, on.alice.socket() as a:
        same(on.real(EXAMPLES["server ready"]), a.ready, "server ready")
        await on.says(a, "client auth")
        await on.hears(a, "server ack of auth")
        await on.says(a, "client auth", token="x")
        await on.hears(a, "server error unauthorized")
        await on.says(a, "client auth", token=on.bob.token)
        await on.hears(a, "server error forbidden")
        issue = on.server.app.tokens
        lifetime, issue.lifetime = issue.lifetime, -1
        ended = issue.issue(*_claims(on))
        issue.lifetime = 61
        on.alice.token = issue.issue(*_claims(on))
        issue.lifetime = lifetime
        await on.says(a, "client auth", token=ended)
        await on.hears(a, "server error token_expired")
        async with on.alice.socket() as short:
            await on.hears(short, "server token_expiring")
        assert EXAMPLES["server token_expiring"]["seconds"] < peer.EXPIRY_WARNING == 60
        assert (await on.bob.get(f"/users/{on.alice.public_id}/prekeys")).status == 200
        await on.hears(a, "server prekeys_low")


def _claims(on: Stage) -> tuple[Any, ...]:
    session = on.server.app.tokens.verify(on.alice.token)
    return session.user_id, session.session_id, session.public_id, session.fingerprint


@pytest.mark.gen_test
async def test_errors_of_the_socket(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(services) as on, on.alice.socket() as a:
        await on.says(a, "client call_answer, wrong fields")
        await on.hears(a, "server error invalid_request, fields")
        await a.raw("hello")
        await on.hears(a, "server error invalid_request, no JSON")
        await a.raw(b"\x00\x01", binary=True)
        await on.hears(a, "server error invalid_request, binary")
        await a.raw('{"type": "call_me_maybe", "id": "19"}')
        await on.hears(a, "server error invalid_request, unknown type")

        async def away(*_: object) -> None:
            raise Unavailable

        async def broken(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(calls, "ring", away)
        await on.says(a, "client call_offer")
        await on.hears(a, "server error unavailable")
        assert EXAMPLES["server error unavailable"]["retry_after"] == int(errors.Unavailable().headers["Retry-After"])
        monkeypatch.setattr(calls, "ring", broken)
        await on.says(a, "client call_offer")
        await on.hears(a, "server error internal_error")


@pytest.mark.gen_test
async def test_a_limit_says_how_long_to_wait(services: Services) -> None:
    async with stage(services, RATE_LIMITS="on", RATE_LIMIT_OFFERS="1/10 seconds") as on, on.alice.socket() as a:
        await on.says(a, "client call_offer")
        await a.expect("ack")
        await on.says(a, "client call_offer")
        await on.hears(a, "server error rate_limited")


@pytest.mark.gen_test
async def test_who_is_refused_before_the_upgrade(services: Services) -> None:
    async with stage(services, MIN_CLIENT_VERSION="2.0") as on:
        url, bearer = on.server.url, {"Authorization": f"Bearer {on.alice.token}"}
        issue = on.server.app.tokens
        lifetime, issue.lifetime = issue.lifetime, -1
        ended = issue.issue(*_claims(on))
        issue.lifetime = lifetime
        seen = set()
        for subprotocols, headers in (
            ([], {}),
            ([], {"Authorization": f"Bearer {ended}"}),
            ([f"bearer.{on.alice.token}"], {}),
            (["mimu.v1", f"bearer.{ended}"], {}),
            ([], {**bearer, "Origin": "https://elsewhere.example"}),
            ([], {**bearer, "X-PrID": on.bob.public_id}),
            ([], {**bearer, "X-Client-Version": "1.9"}),
        ):
            request = HTTPRequest(url.replace("http", "ws", 1) + "/ws", headers=headers)
            with pytest.raises(HTTPClientError) as refused:
                await websocket_connect(request, subprotocols=subprotocols)
            assert refused.value.response is not None
            seen.add((refused.value.code, json.loads(refused.value.response.body)["error"]))
        for method, token in (("GET", on.alice.token), ("POST", on.alice.token)):
            answer = await ask(url, method, "/ws", token=token)
            seen.add((answer.status, answer.code))
        table = [(int(status), *named(code)) for status, code, *_ in rows(REALTIME, "Refused before the upgrade")]
        assert sorted(table) == sorted(seen)
        same(EXAMPLES["http 401"], (await ask(url, "GET", "/ws")).json, "http 401")
        chosen = await websocket_connect(
            HTTPRequest(url.replace("http", "ws", 1) + "/ws"), subprotocols=["mimu.v1", f"bearer.{on.alice.token}"]
        )
        assert chosen.selected_subprotocol == "mimu.v1"
        chosen.close()


@pytest.mark.gen_test
async def test_sockets_close_with_the_codes_and_reasons_of_the_table(services: Services) -> None:
    seen: dict[int, str] = {}

    async def closed(listener: Socket) -> None:
        code = (await listener.expect("closed"))["code"]
        seen[code] = str(listener.connection.close_reason)

    async with contextlib.AsyncExitStack() as opened, stage(services, SHUTDOWN_SECONDS="0.1") as on:
        large, flood, *crowd = [await opened.enter_async_context(on.alice.socket()) for _ in range(3)]
        await large.raw('"' + "x" * socket.MAX_FRAME + '"')
        await closed(large)
        on.server.app.limits.on = True
        with contextlib.suppress(Exception):
            for _ in range(peer.FRAME_BURST + 100):
                await flood.raw("x")
        await closed(flood)
        crowd += [await opened.enter_async_context(on.alice.socket()) for _ in range(hub.SOCKETS_PER_USER)]
        await closed(crowd[0])
        await on.alice.post("/auth/logout", {})
        await closed(crowd[1])
        last = await opened.enter_async_context(on.bob.socket())
        on.server.app.tokens.lifetime = 2
        brief = Account(on.bob.public_id, on.bob.password, url=on.bob.url)
        await brief.login()
        short = await opened.enter_async_context(brief.socket())
        assert (await short.expect("closed"))["code"] == 4401
        assert short.connection.close_reason == "token expired"
    await closed(last)
    table = {int(code): named(reason) for code, reason, *_ in rows(REALTIME, "When it closes")}
    assert sorted(seen) == [1009, 1012, 4401, 4409, 4429]
    for code, reason in seen.items():
        assert reason in table[code]


def test_every_close_code_is_explained() -> None:
    sent = {rfc6455.PROTOCOL_ERROR, rfc6455.NOT_UTF8, rfc6455.TOO_BIG, hub.GOING_AWAY, hub.RESTART}
    sent |= {hub.SESSION_ENDED, hub.SLOW, hub.REPLACED, hub.FLOOD}
    table = {int(code): named(reason) for code, reason, *_ in rows(REALTIME, "When it closes")}
    assert table.keys() == sent | CLIENT_CODES
    source = "".join(path.read_text() for path in SOURCES)
    for reasons in table.values():
        for reason in reasons:
            assert f'"{reason}"' in source, f"nothing closes with {reason}"
    told = set(map(int, re.findall(r"\b\d{4}\b", " ".join(row[0] for row in rows(API, "Close codes")))))
    assert told == sent


def test_limits_are_those_of_the_code() -> None:
    table = " ".join(row[1] for row in rows(REALTIME, "Limits"))
    for limit in (
        f"{socket.MAX_FRAME // 1024} KiB",
        f"{peer.FRAMES_PER_SECOND} frames/s, a burst of {peer.FRAME_BURST}",
        f"{peer.MAX_QUEUED:,} frames or {peer.MAX_QUEUED_BYTES >> 20} MiB",
        f"{hub.SOCKETS_PER_USER} sockets",
        f"{calls.CANDIDATES} candidates",
    ):
        assert limit in table
    assert f"ping every {hub.PING_EVERY} seconds" in REALTIME.read_text()
    assert f"within {hub.PONG_WITHIN} seconds" in REALTIME.read_text()
    timers = " ".join(cell for row in rows(CALLS, "Timers") for cell in row)
    for timer in (
        f"{calls.RING_SECONDS} s from `started_at`",
        f"`heartbeat_seconds` ({socket.HEARTBEAT} s)",
        f"{calls.HEARTBEAT_HOURS} h",
        f"`ttl` ({turn.TTL} s)",
    ):
        assert timer in timers


# Nothing is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_json_is_an_example(page: Path) -> None:
    assert page.read_text().count("```json\n") == len(_EXAMPLE.findall(page.read_text()))


def test_every_example_is_tried() -> None:
    tree = ast.parse(Path(__file__).read_text())
    tried = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert EXAMPLES.keys() - tried - set(SEALED) == set()


@pytest.mark.gen_test
async def test_every_frame_and_every_error_of_the_socket_has_an_example(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        events = {kind: event for feature in running.features for kind, event in feature.events.items()}
    said = {frame["type"] for label, frame in EXAMPLES.items() if label.startswith("client ")}
    heard = {frame["type"] for label, frame in EXAMPLES.items() if label.startswith("server ")}
    assert said == {*events, "auth"}
    assert heard == set(sent())
    table = rows(REALTIME, "Types of frames")
    directions = [(kind, direction) for kinds, direction, _ in table for kind in named(kinds)]
    assert {kind for kind, direction in directions if direction in ("to the server", "both")} == said
    assert {kind for kind, direction in directions if direction in ("from the server", "both")} == heard
    acked = {label.partition(" of ")[2].partition(",")[0] for label in EXAMPLES if label.startswith("server ack")}
    assert acked == said, "each ack has an example"

    may = set(refusals({event.handle.__module__ for event in events.values()})) - BEFORE_UPGRADE
    shown = {frame["code"] for frame in EXAMPLES.values() if isinstance(frame, dict) and frame.get("type") == "error"}
    assert shown == may
    assert first_cells(REALTIME, "Errors") | first_cells(CALLS, "Errors of calls") == may


def sent() -> Iterator[str]:
    """The types of frames that the server makes."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "type" and isinstance(value, ast.Constant):
                        yield str(value.value)


def refusals(features: set[str]) -> Iterator[str]:
    """The codes of the refusals that are raised or made in the modules behind a socket."""
    names = {name.rpartition(".")[0] for name in features if name.startswith("plugins.")}
    behind = [socket, tokens, shapes, limits, errors]
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module.rpartition(".")[0] in names and path.stem not in ("__init__", "http"):
            behind.append(importlib.import_module(module))
    assert len(behind) > 8
    for module in behind:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        yield from codes(tree) if module is tokens else ()
        for node in ast.walk(tree):
            made = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
            name = made.attr if isinstance(made, ast.Attribute) else made.id if isinstance(made, ast.Name) else ""
            kind = getattr(module, name, None) or getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, ApiError):
                yield kind.code


# Diagrams ------------------------------------------------------------------------------------------------------------


def steps(text: str) -> tuple[list[str], list[str]]:
    """The participants of a sequence diagram, and its lines."""
    head, *lines = [line.strip() for line in text.splitlines()]
    assert head == "sequenceDiagram"
    people = [line.split()[1] for line in lines if line.startswith("participant ")]
    return people, [line for line in lines if not line.startswith("participant ")]


@pytest.mark.parametrize("name", DIAGRAMS)
def test_diagrams_are_well_formed(name: str) -> None:
    text = DIAGRAMS[name]
    if text.startswith("stateDiagram-v2\n"):
        arrows = re.findall(r"^    (\[\*\]|\w+) --> (\[\*\]|\w+)(?:: .+)?$", text, re.MULTILINE)
        assert len(arrows) == len(text.splitlines()) - 1
        states = {state for arrow in arrows for state in arrow} - {"[*]"}
        assert states == {named(row[0])[0] for row in rows(CALLS, "States")}
        return
    people, lines = steps(text)
    assert len(set(people)) == len(people)
    open_blocks = 0
    for line in lines:
        if line.startswith("loop "):
            open_blocks += 1
        elif line == "end":
            open_blocks -= 1
            assert open_blocks >= 0, line
        elif line.startswith("Note over "):
            where, _, said = line.removeprefix("Note over ").partition(": ")
            assert set(where.split(",")) <= set(people), line
            assert said, line
        else:
            arrow = _ARROW.fullmatch(line)
            assert arrow, f"{line} is no step"
            assert {arrow[1], arrow[3]} <= set(people), line
            assert not re.search(r"[;#]", arrow[4]), f"mermaid stumbles over {line}"
    assert open_blocks == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("name", SEQUENCES)
async def test_diagrams_are_what_happens(services: Services, name: str) -> None:
    async with stage(services) as on, Play(on, SEQUENCES[name]) as play:
        await play.all()


class Play:
    """Plays a sequence diagram: sends what goes to S, and wants to hear what comes from S, and nothing else.

    A step is a type of frame (or a request and its status) and what it bears, ``reason busy, call 2``. Steps that are
    neither to nor from S, and notes that are not about time, are for people.
    """

    def __init__(self, on: Stage, text: str) -> None:
        self._on, self._text = on, text
        self._people, self._lines = steps(text)
        self._calls = {"1": str(uuid4()), "2": str(uuid4())}
        self._sockets: dict[str, Socket] = {}
        self._stack = contextlib.AsyncExitStack()
        self._asked: dict[str, list[str]] = {person: [] for person in self._people}
        self._status: dict[str, list[int]] = {person: [] for person in self._people}
        self._ids = 0

    async def __aenter__(self) -> Play:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _account(self, person: str) -> Account:
        return self._on.alice if person.startswith("A") else self._on.bob

    async def _open(self, person: str) -> None:
        self._sockets[person] = await self._stack.enter_async_context(self._account(person).socket())

    async def all(self) -> None:
        if "token_expiring" in self._text:
            issue = self._on.server.app.tokens
            lifetime, issue.lifetime = issue.lifetime, 30
            self._on.alice.token = issue.issue(*_claims(self._on))
            issue.lifetime = lifetime
        arrows = [_ARROW.fullmatch(line) for line in self._lines]
        for person in self._people:
            said = [arrow[4] for arrow in arrows if arrow and (arrow[1], arrow[3]) == (person, "S")]
            back = [arrow for arrow in arrows if arrow and arrow[2] == "-x" and arrow[1] == person]
            if person != "S" and ("GET /ws" not in said or back):
                await self._open(person)
        for line, arrow in zip(self._lines, arrows, strict=True):
            try:
                if arrow is not None:
                    await self._step(*arrow.groups())
                elif line.startswith("Note over S: 60 s pass"):
                    await self._on.pass_time("started_at", "61 s")
                elif line.startswith("Note over S: 1 h without"):
                    await self._on.pass_time("last_heartbeat", "61 min")
            except AssertionError as error:
                raise AssertionError(f"at {line}: {error}") from None
        await asyncio.sleep(0.1)
        for person, listener in self._sockets.items():
            assert listener.frames == [], f"{person} hears what the diagram doesn't show"

    async def _step(self, source: str, arrow: str, target: str, text: str) -> None:
        what, *rest = text.split(", ")
        if arrow == "-x":
            await self._sockets.pop(source).close()
        elif target == "S":
            await self._to_server(source, what, dict(pair.split(" ") for pair in rest))
        elif source == "S":
            bears = {key: {"true": True, "false": False}.get(value, value) for key, value in map(str.split, rest)}
            await self._from_server(target, what, bears, answer=arrow == "-->>")
        else:
            assert what not in {"ack", *sent()}, "frames go through S"

    async def _to_server(self, person: str, what: str, bears: dict[str, str]) -> None:
        account = self._account(person)
        method, _, path = what.partition(" ")
        if what == "GET /ws":
            await self._open(person)
            self._asked[person].clear()
        elif what == "POST /auth/refresh":
            answer = await account.post(path, {"refresh_token": account.refresh_token})
            account.token = answer.json["access_token"]
            self._status[person].append(answer.status)
        elif path:
            path = path.replace("/alice", f"/{self._on.alice.public_id}")
            body = {} if method in ("POST", "PUT") else None
            self._status[person].append((await ask(account.url, method, path, body, account.token)).status)
        else:
            call = self._calls[bears.pop("call", "1")]
            other = self._on.bob if account is self._on.alice else self._on.alice
            frame = self._on.real(EXAMPLES[f"client {what}"], bob=other.user_id, call=call, token=account.token)
            if "encrypted_payload" in frame:  # every device encrypts for itself
                frame["encrypted_payload"] = b64(person.encode())
            self._ids += 1
            self._asked[person].append(f"p{self._ids}")
            await self._sockets[person].raw(json.dumps({**frame, "id": f"p{self._ids}", **bears}))

    async def _from_server(self, person: str, what: str, bears: dict[str, Any], *, answer: bool) -> None:
        kind, _, code = what.partition(" ")
        if what.isdecimal():
            assert self._status[person].pop(0) == int(what)
            return
        assert answer == (kind in ("ready", "ack", "error")), "answers are dashed, and nothing else is"
        if kind == "ready":
            assert self._sockets[person].ready
            return
        if "call" in bears or (not answer and kind.startswith(("call_", "ice_"))):
            bears["call_id"] = self._calls[bears.pop("call", "1")]
        if answer:
            bears["id"] = self._asked[person].pop(0)
        if code:
            bears["code"] = code
        await self._sockets[person].expect(kind, **bears)
