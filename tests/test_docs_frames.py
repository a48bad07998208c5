"""docs/realtime.md, docs/calls.md and docs/messaging.md against a running server: each JSON example is sent to it or
heard from it, each sequence diagram is played, each table that can be tried is tried.

An example's label stands above it, in a comment. ``client …`` is sent as it stands, ``server …`` is what a socket must
hear, ``body …`` goes to a route and ``http …`` is an answer over HTTP, ``sealed …`` and ``inside …`` are what apps put
into encrypted_payload. Ids, tokens and names of the documents stand for those of the run; times and the values of
``FREE`` may differ, all else is compared.
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
from urllib.parse import quote
from uuid import uuid4

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from handlers import tokens
from handlers.limits import rates as limits
from handlers.sockets import hub, peer, rfc6455, socket
from handlers.wire import errors, shapes
from handlers.wire.errors import ApiError
from models import calls
from models.database import Unavailable
from plugins import turn
from plugins.calls import pending
from plugins.calls import shapes as call_shapes
from plugins.calls.shapes import Hangup
from plugins.chats import chats, invites
from plugins.chats import typing as typing_
from plugins.chats.shapes import NewChat
from plugins.messages import messages
from plugins.messages import shapes as message_shapes
from plugins.pins import shapes as pin_shapes
from plugins.presence import subscriptions
from server import Server
from tests import canaries
from tests.client import Account, Answer, Socket, ask, b64
from tests.plugins.paying import new_prid, purchase, voucher
from tests.running import ROOT, Services, periodic, place, serving
from tests.test_docs import SOURCES, codes, first_cells, name_of, part, sent
from tests.waiting import WAIT

REALTIME, CALLS, MESSAGING = (ROOT / f"docs/{name}.md" for name in ("realtime", "calls", "messaging"))
PAGES = (REALTIME, CALLS, MESSAGING)

# The people and things of the documents.
ALICE, BOB = "a11ce000-51d5-4c8e-9b0a-3f1e6d7c2a01", "b0b00000-7c3e-4f6a-8d21-5e9a4b8c1d02"
CALL, SESSION = "ca110000-2f4d-4e19-a7b3-6c0d9e8f5a03", "5e550000-9a1b-4d3c-b2e8-7f6a5c4d3e05"
TOKEN = "eyJhbGciOiJIUzI1NiIsImtpZCI6…"
CAROL = "ca201000-9e4f-4b2c-8d7a-1f0e3c5b6a03"
DIRECT, GROUP = "d12ec700-4b1a-4c58-9e0d-2a7f6b3c8d11", "92009000-6c3e-4d7f-8a10-5b9e2f4c7d12"
SECRET, INBOX = "5ec2e700-7a9b-4d1e-8c3f-0b2d4f6a8e16", "5ea1ed00-8b0c-4e2f-9d40-1c3e5f7b9f19"
MESSAGE, SEALED_MESSAGE = "3e55a9e0-1d2c-7b4a-9f83-6e5d4c3b2a13", "3e55a9e1-1d2c-7b4a-9f83-6e5d4c3b2a18"
INVITE = "1a017e00-3b5d-4c7e-9f10-8d6b4a2c0e15"

# Of these the type alone is compared.
FREE = {
    "credential",
    "cursor",
    "duration_seconds",
    "epoch",
    "fingerprint",
    "request_id",
    "retry_after",
    "seconds",
    "token",
    "username",
}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

CLIENT_CODES = {1000, 1006}  # of the client, and of its library: the server sends neither
# Refusals that no open socket hears: of the handshake, and of what is only asked over HTTP.
ELSEWHERE = {"method_not_allowed", "cursor_expired"}

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
INSIDE = sorted(label for label in EXAMPLES if label.startswith("inside "))


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
    names: dict[str, str] = field(default_factory=dict)  # of chats, messages and others: their ids in the run

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
            "alice": self.alice.public_id,
            "bob": self.bob.public_id,
            **self.names,
        }
        return cast.get(value, value) if isinstance(value, str) else value

    async def says(self, speaker: Socket, label: str, **other: str) -> None:
        """Send a client's frame as the document has it; ``other`` puts other ids in the place of the usual ones."""
        frame = self.real(EXAMPLES[label], **other)
        canaries.plant(*(frame[name] for name in ("encrypted_payload", "access_token") if name in frame))
        await speaker.raw(json.dumps(frame))

    async def hears(self, listener: Socket, label: str) -> None:
        """The next frame of the example's type (and id) must be as the document has it."""
        example = EXAMPLES[label]
        frame = await listener.expect(example["type"], **({"id": example["id"]} if "id" in example else {}))
        self.learn(example, frame)
        same(self.real(example), frame, label)

    def learn(self, example: Any, real: Any) -> None:
        """The ids that the server has made: of chats, messages and invites that are seen for the first time."""
        if isinstance(example, dict) and isinstance(real, dict):
            for name in example.keys() & real.keys():
                self.learn(example[name], real[name])
        elif example in (DIRECT, GROUP, SECRET, INBOX, MESSAGE, SEALED_MESSAGE, INVITE):
            self.names.setdefault(example, real)

    async def asks(self, account: Account, method: str, path: str, label: str = "", answer: str = "") -> Answer:
        """A request, with the body of one example, whose answer must be another one, if they are named."""
        for name, real in self.names.items():
            path = path.replace(name, real)
        body = self.real(EXAMPLES[label]) if label else None
        got = await ask(account.url, method, path, body, account.token)
        if answer:
            self.learn(EXAMPLES[answer], got.json)
            same(self.real(EXAMPLES[answer]), got.json, answer)
        else:
            assert got.status < 300, got.text
        return got

    async def chat(self, kind: str, *others: Account, by: Account | None = None, **fields: Any) -> str:
        """A new chat of Alice's (or another's) with others; its id."""
        body = {"type": kind, "participants": [other.public_id for other in others], **fields}
        answer = await (by or self.alice).post("/chats", body)
        assert answer.status == 201, answer.text
        return str(answer.json["id"])

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
        alice = await Account().register(running.url, display_name="Alice")
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
        await on.hears(a, "server call_hangup, timeout")
        for listener in (b, b2):
            over = await listener.expect("call_hangup", reason="timeout")
            assert (over["from_user_id"], over["to_user_id"]) == (on.alice.user_id, on.bob.user_id)
        await on.says(b, "client call_answer")
        await on.hears(b, "server error invalid_state")


@pytest.mark.gen_test
async def test_calls_are_refused_with_the_documented_errors(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        monkeypatch.setattr(calls, "MAX_CANDIDATES", 0)
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
async def test_each_state_of_a_call_accepts_the_documented_frames(services: Services) -> None:
    table = rows(CALLS, "What may be sent when")
    assert {named(row[0])[0] for row in table} == {"call_offer", *taken_by_calls()}
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        for what, by, *outcomes in table:
            [kind] = named(what)
            speaker = {"caller": a, "callee": b}[by]
            for state, expected in zip(("ringing", "accepted", "ended"), outcomes, strict=True):
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


# Messages ------------------------------------------------------------------------------------------------------------


async def with_carol(on: Stage) -> Account:
    carol = await Account().register(on.server.url)
    on.names |= {CAROL: carol.user_id, "carol": carol.public_id}
    return carol


@pytest.mark.gen_test
async def test_the_frames_of_a_message(services: Services) -> None:
    async with stage(services) as on:
        on.names[DIRECT] = await on.chat("direct", on.bob)
        began = await on.asks(on.bob, "GET", "/sync", answer="http sync, no cursor")
        since = f"/sync?cursor={began.json['cursor']}"
        async with on.alice.socket() as a, on.bob.socket() as b:
            await on.says(a, "client message_send")
            await on.hears(a, "server ack of message_send")
            await on.hears(b, "server message_new")
            await on.says(a, "client message_send")
            await on.hears(a, "server ack of message_send, repeated")
            await on.asks(on.bob, "GET", "/chats", answer="http chats")
            receipts = f"/chats/{DIRECT}/receipts"
            await on.asks(on.bob, "POST", receipts, "body POST /receipts", "http receipts")
            await on.hears(a, "server receipts")
            await on.hears(b, "server receipts")
            await on.asks(on.bob, "GET", since, answer="http sync")
            await on.asks(on.alice, "PUT", f"/messages/{MESSAGE}", "body PUT /messages")
            await on.hears(b, "server message_edited")
            reaction = f"/messages/{MESSAGE}/reactions/{quote(EXAMPLES['server reaction_added']['emoji'])}"
            assert f"`…{reaction.removeprefix(f'/messages/{MESSAGE}')}`" in MESSAGING.read_text()
            for _ in range(2):  # a repetition is no event
                await on.asks(on.bob, "PUT", reaction)
            await on.hears(a, "server reaction_added")
            for _ in range(2):
                await on.asks(on.bob, "DELETE", reaction)
            await on.hears(a, "server reaction_removed")
            for _ in range(2):
                await on.asks(on.bob, "PUT", f"/messages/{MESSAGE}/pin")
            await on.hears(a, "server message_pinned")
            await on.asks(on.alice, "GET", f"/chats/{DIRECT}/pins", answer="http pins")
            for _ in range(2):
                await on.asks(on.bob, "DELETE", f"/messages/{MESSAGE}/pin")
            await on.hears(a, "server message_unpinned")
            await on.asks(on.alice, "DELETE", f"/messages/{MESSAGE}")
            await on.hears(b, "server message_deleted")
            await on.says(a, "client message_send")
            await on.hears(a, "server ack of message_send, repeated")
            events = (await on.bob.get(since)).json["events"]
            assert [event["seq"] for event in events] == [2, 3, 4, 5, 6, 7, 8]
            assert [event["seq"] for event in events if event["type"] == "message_deleted"] == [2, 3, 8]
            await on.says(a, "client typing")
            await on.hears(a, "server ack of typing")
            await on.hears(b, "server typing")
            async with asyncio.timeout(WAIT):  # comings are written down a moment later
                while not (await on.alice.get(f"/users/{on.bob.public_id}")).json["is_online"]:
                    await asyncio.sleep(0.02)
            await on.says(a, "client presence_subscribe")
            await on.hears(a, "server ack of presence_subscribe")
            await on.hears(a, "server presence")


@pytest.mark.gen_test
async def test_one_s_own_view_of_a_chat_and_its_deletion(services: Services) -> None:
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        on.names[DIRECT] = await on.chat("direct", on.bob)
        await on.asks(on.bob, "PUT", f"/chats/{DIRECT}/me", "body PUT /chats/{direct}/me")
        await on.hears(b, "server account_changed")
        await on.says(a, "client message_send")
        await b.expect("message_new")
        since = f"/sync?cursor={(await on.bob.get('/sync')).json['cursor']}"
        await on.asks(on.bob, "DELETE", f"/chats/{DIRECT}")
        await on.hears(b, "server account_changed")
        await on.asks(on.bob, "GET", since, answer="http sync, deleted")


@pytest.mark.gen_test
async def test_a_message_that_disappears(services: Services) -> None:
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        on.names[DIRECT] = await on.chat("direct", on.bob)
        for _ in range(6):
            await a.send("message_send", **{**_fields(on, "client message_send"), "client_id": str(uuid4())})
        ack = await a.send("message_send", **_fields(on, "client message_send"), expires_in=5)
        on.names[MESSAGE] = ack["message_id"]
        await on.server.app.db.execute("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
        await periodic(on.server, "message_expiry")()
        await on.hears(b, "server message_deleted, expired")


@pytest.mark.gen_test
async def test_events_of_a_chat_match_their_examples(services: Services) -> None:
    async with stage(services) as on, on.alice.socket() as a:
        carol = await with_carol(on)
        body = {**on.real(EXAMPLES["body POST /chats"]), "participants": [on.bob.public_id]}
        assert (await on.alice.post("/chats", body)).status == 201
        await on.hears(a, "server chat_created")
        group = f"/chats/{on.names[GROUP]}"
        assert (await on.alice.post(f"{group}/participants", {"public_id": carol.public_id})).status == 201
        await on.hears(a, "server participant_added")
        assert (await on.alice.put(f"{group}/participants/{carol.user_id}", {"role": "admin"})).status == 200
        await on.hears(a, "server participant_role")
        assert (await on.alice.put(group, {"title": "Monday"})).status == 200
        await on.hears(a, "server chat_updated")
        made = await on.alice.post(f"{group}/invites", {"max_uses": 10, "expires_in": 86400})
        on.learn(EXAMPLES["http invite"], made.json)
        same(on.real(EXAMPLES["http invite"]), made.json, "http invite")
        assert len(made.json["token"]) == len(EXAMPLES["http invite"]["token"])
        assert (await on.alice.delete(f"{group}/participants/{carol.user_id}")).status == 204
        await on.hears(a, "server participant_removed")
        assert (await on.alice.delete(group)).status == 204
        await on.hears(a, "server chat_deleted")


@pytest.mark.gen_test
async def test_frames_of_an_invitation_match_their_examples(services: Services) -> None:
    async with stage(services) as on:
        carol = await with_carol(on)
        assert (await carol.put("/users/me", {"settings": {"privacy": {"add": "requests"}}})).status == 200
        async with carol.socket() as c:
            on.names[GROUP] = await on.chat("group", carol)
            await on.hears(c, "server participant_invited")


@pytest.mark.gen_test
async def test_frames_of_a_membership_match_their_examples(services: Services) -> None:
    async with stage(services) as on:
        carol = await with_carol(on)
        on.names[GROUP] = group = await on.chat("group", on.bob)
        message = {key: value for key, value in _fields(on, "client message_send").items() if key != "chat_id"}
        posted = await on.alice.post(f"/chats/{group}/messages", message)
        assert (await on.alice.post(f"/chats/{group}/participants", {"public_id": carol.public_id})).status == 201
        async with carol.socket() as c:
            edited = await on.alice.put(f"/messages/{posted.json['id']}", EXAMPLES["body PUT /messages"])
            assert edited.status == 200
            await on.hears(c, "server hidden")


@pytest.mark.gen_test
async def test_secret_and_sealed_messages(services: Services) -> None:
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        on.names[SECRET] = await on.chat("secret", on.bob)
        ack = await a.send("message_send", **{**_fields(on, "client message_send"), "chat_id": on.names[SECRET]})
        on.names[MESSAGE] = ack["message_id"]
        await on.asks(on.bob, "POST", f"/chats/{SECRET}/receipts", "body POST /receipts, secret")
        await on.hears(a, "server message_deleted, delivered")
        assert (await on.bob.get(f"/chats/{on.names[SECRET]}/messages")).json == []
        b.frames.clear()
        key = EXAMPLES["body PUT /users/me"]["sealed_access_key"]
        assert f"`Unidentified-Access-Key: {key}`" in MESSAGING.read_text()
        await on.asks(on.bob, "PUT", "/users/me", "body PUT /users/me")
        body = on.real(EXAMPLES["body POST /messages/sealed"])
        headers = {"Unidentified-Access-Key": key}
        for status in (201, 200):
            answer = await ask(on.server.url, "POST", "/messages/sealed", body, headers=headers)
            assert answer.status == status
            on.learn(EXAMPLES["http sealed"], answer.json)
            same(on.real(EXAMPLES["http sealed"]), answer.json, "http sealed")
        await on.hears(b, "server message_new, sealed")
        inbox = (await on.bob.get(f"/chats/{on.names[INBOX]}")).json
        assert (inbox["type"], inbox["peer"]) == ("secret", None)


@pytest.mark.gen_test
async def test_messages_are_refused_with_the_documented_errors(services: Services) -> None:
    async with stage(services, SYNC_RETENTION_DAYS="1") as on, on.alice.socket() as a:
        on.names[DIRECT] = str(uuid4())
        await on.says(a, "client message_send")
        await on.hears(a, "server error not_found")
        on.names[DIRECT] = await on.chat("direct", on.bob)
        await on.says(a, "client message_send")
        await a.expect("ack")
        again = {**on.real(EXAMPLES["client message_send"]), "encrypted_payload": "AAAA"}
        await a.raw(json.dumps(again))
        await on.hears(a, "server error conflict")
        # A blocker who never accepted the chat is not noticed.
        assert (await on.bob.post(f"/chats/{on.names[DIRECT]}/accept", {})).status == 200
        assert (await on.bob.put(f"/users/{on.alice.public_id}/block", {})).status == 204
        await a.raw(json.dumps({**again, "client_id": str(uuid4())}))
        await on.hears(a, "server error forbidden, restricted")
        cursor = (await on.alice.get("/sync")).json["cursor"]
        raw = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        raw[17:21] = (int.from_bytes(raw[17:21]) - 86_401).to_bytes(4)  # when it was made (plugins/messages/cursor.py)
        old = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        answer = await on.alice.get(f"/sync?cursor={old}")
        assert answer.status == 410
        same(EXAMPLES["http 410"], answer.json, "http 410")


@pytest.mark.gen_test
@pytest.mark.parametrize("label", INSIDE)
async def test_payloads_arrive_unchanged(services: Services, label: str) -> None:
    inside = b64(json.dumps(EXAMPLES[label]).encode())
    async with stage(services) as on, on.alice.socket() as a, on.bob.socket() as b:
        on.names[DIRECT] = await on.chat("direct", on.bob)
        fields = {**_fields(on, "client message_send"), "encrypted_payload": inside}
        assert (await a.send("message_send", **fields))["type"] == "ack"
        assert (await b.expect("message_new"))["message"]["encrypted_payload"] == inside


ROLES = ("owner", "admin", "member", "restricted")


@pytest.mark.gen_test
async def test_roles_may_do_what_the_table_says(services: Services) -> None:
    table = {row[0]: dict(zip(ROLES, row[1:], strict=True)) for row in rows(MESSAGING, "Roles")}
    async with stage(services) as on:
        people = {name: await Account().register(on.server.url) for name in (*ROLES, "other", "chief")}
        owner, other, chief = people["owner"], people["other"], people["chief"]

        async def group() -> str:
            others = [person for name, person in people.items() if name != "owner"]
            made = f"/chats/{await on.chat('group', *others, by=owner)}"
            for name, role in (("admin", "admin"), ("restricted", "restricted"), ("chief", "admin")):
                assert (await owner.put(f"{made}/participants/{people[name].user_id}", {"role": role})).status == 200
            return made

        async def post(account: Account, chat: str) -> Answer:
            body = {"client_id": str(uuid4()), "encrypted_payload": "AAAA", "message_type": "group"}
            return await account.post(f"{chat}/messages", body)

        async def own(account: Account, role: str, chat: str) -> str:
            """Post a message and return its path. A restricted user is a member while it is posted."""
            person = f"{chat}/participants/{account.user_id}"
            if role == "restricted":
                await owner.put(person, {"role": "member"})
            path = f"/messages/{(await post(account, chat)).json['id']}"
            if role == "restricted":
                await owner.put(person, {"role": "restricted"})
            return path

        for role in ROLES:
            who, chat = people[role], await group()
            posted = f"/messages/{(await post(other, chat)).json['id']}"
            person = f"{chat}/participants/{other.user_id}"
            edit, admin = {"encrypted_payload": "BBBB"}, {"role": "admin"}
            async with who.socket() as speaker:
                typed = await speaker.send("typing", chat_id=chat.removeprefix("/chats/"))
            tried = {
                "read, sync, receipts": [
                    await who.get(f"{chat}/messages"),
                    await who.get("/sync"),
                    await who.post(f"{chat}/receipts", {"read_seq": 1}),
                ],
                "post, type": [await post(who, chat)],
                "react": [await who.put(f"{posted}/reactions/%F0%9F%91%8D", {})],
                "pin, unpin a message": [
                    await who.put(f"{posted}/pin", {}),
                    await who.delete(f"{posted}/pin"),
                    await who.delete(f"{chat}/pins"),
                ],
                "edit one's own message": [await who.put(await own(who, role, chat), edit)],
                "delete one's own message": [await who.delete(await own(who, role, chat))],
                "delete another's message": [await who.delete(posted)],
                "change title, avatar, settings": [await who.put(chat, {"title": "x"})],
                "add a member, make an invite": [
                    await who.post(f"{chat}/participants", {"public_id": on.bob.public_id}),
                    await who.post(f"{chat}/invites", {}),
                ],
                "restrict or remove a member": [
                    await who.put(person, {"role": "restricted"}),
                    await who.delete(person),
                ],
                "make an admin, remove an admin": [
                    await who.put(f"{chat}/participants/{people['member'].user_id}", admin)
                    if role != "member"
                    else await who.put(f"{chat}/participants/{people['restricted'].user_id}", admin),
                    await who.delete(f"{chat}/participants/{chief.user_id}"),
                ],
                "ban, lift a ban": [
                    await who.delete(f"{chat}/participants/{on.bob.user_id}?ban=true"),
                    await who.get(f"{chat}/bans"),
                    await who.delete(f"{chat}/bans/{on.bob.user_id}"),
                ],
                "leave": [await who.delete(f"{chat}/participants/{who.user_id}")],
            }
            tried["delete the chat"] = [await who.delete(await group())]
            for what, answers in tried.items():
                said = {"yes" if answer.status < 300 else answer.code for answer in answers}
                assert said == {table[what][role].strip("`")}, f"{what}, {role}"
            assert (typed["type"] == "ack") == (table["post, type"][role] == "yes")
            assert table.keys() == tried.keys()


def test_limits_of_messages_are_those_of_the_code() -> None:
    table = " ".join(cell for row in rows(MESSAGING, "Limits of messages") for cell in row)
    sizes = chats.MAX_PARTICIPANTS
    most = next(m.max_length for m in NewChat.model_fields["participants"].metadata if hasattr(m, "max_length"))
    for limit in (
        f"{message_shapes.MAX_PAYLOAD >> 10} KiB",
        f"{message_shapes.MAX_METADATA >> 10} KiB of JSON",
        f"{peer.FRAMES_PER_SECOND} frames/s, a burst of {peer.FRAME_BURST}",
        f"{sizes['direct']} in a direct or secret chat; {sizes['group']:,} in a group or cloud; ",
        f"; in a channel {sizes['channel']:,}",
        f"{most:,} others",
        f"{invites.MAX_INVITES} invites",
        f"{messages.MAX_REACTIONS} reactions",
        f"{pin_shapes.MAX_PINS} pinned messages",
        f"{subscriptions.MAX_WATCHED} people",
        "1,000 events, 200 messages",
    ):
        assert limit in table
    text = MESSAGING.read_text()
    assert f"more than one in {typing_.INTERVAL:.0f} seconds" in text
    types = {named(row[0])[0]: row[1] for row in rows(MESSAGING, "Types")}
    assert types.keys() == chats.MAX_PARTICIPANTS.keys()
    for kind, who in types.items():
        assert f"{chats.MAX_PARTICIPANTS[kind]:,}" in who or (chats.MAX_PARTICIPANTS[kind] == 2 and who == "two people")


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
        bought = purchase(on.alice, new_prid(), "voucher", await voucher(on.server))
        subscription = (await ask(on.server.url, "POST", "/subscriptions/purchase", bought)).json
        on.names[EXAMPLES["server subscription_updated"]["subscription_id"]] = subscription["subscription_id"]
        await on.hears(a, "server subscription_updated")


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
async def test_handshakes_are_refused_with_the_documented_statuses(services: Services) -> None:
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


def test_limits_are_those_of_the_code() -> None:
    table = " ".join(row[1] for row in rows(REALTIME, "Limits"))
    for limit in (
        f"{socket.MAX_FRAME // 1024} KiB",
        f"{peer.FRAMES_PER_SECOND} frames/s, a burst of {peer.FRAME_BURST}",
        f"{peer.MAX_QUEUED:,} frames or {peer.MAX_QUEUED_BYTES >> 20} MiB",
        f"{hub.SOCKETS_PER_USER} sockets",
        f"{calls.MAX_CANDIDATES} candidates",
        f"{call_shapes.PAYLOAD >> 10} KiB; {call_shapes.CANDIDATE_PAYLOAD >> 10} KiB",
        f"{pending.RING_BYTES >> 10} KiB",
    ):
        assert limit in table
    assert f"ping every {hub.PING_EVERY} seconds" in REALTIME.read_text()
    assert f"within {hub.PONG_WITHIN} seconds" in REALTIME.read_text()
    timers = " ".join(cell for row in rows(CALLS, "Timers") for cell in row)
    for timer in (
        f"{calls.RING_SECONDS} s from `started_at`",
        f"`heartbeat_seconds` ({socket.HEARTBEAT_SECONDS} s)",
        f"{calls.ANSWER_SECONDS} s, or until the caller's first heartbeat",
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
    assert EXAMPLES.keys() - tried - set(SEALED) - set(INSIDE) == set()


@pytest.mark.gen_test
async def test_every_frame_and_every_error_of_the_socket_has_an_example(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        events = {kind: event for feature in running.features for kind, event in feature.events.items()}
        declared = sent(running)
    said = {frame["type"] for label, frame in EXAMPLES.items() if label.startswith("client ")}
    heard = {frame["type"] for label, frame in EXAMPLES.items() if label.startswith("server ")}
    assert said == {*events, "auth"}
    assert heard == declared
    table = rows(REALTIME, "Types of frames")
    directions = [(kind, direction) for kinds, direction, _ in table for kind in named(kinds)]
    assert {kind for kind, direction in directions if direction in ("to the server", "both")} == said
    assert {kind for kind, direction in directions if direction in ("from the server", "both")} == heard
    acked = {label.partition(" of ")[2].partition(",")[0] for label in EXAMPLES if label.startswith("server ack")}
    assert acked == said, "each ack has an example"

    may = set(refusals({event.handle.__module__ for event in events.values()})) - ELSEWHERE
    shown = {frame["code"] for frame in EXAMPLES.values() if isinstance(frame, dict) and frame.get("type") == "error"}
    assert shown == may
    explained = first_cells(REALTIME, "Errors") | first_cells(CALLS, "Errors of calls")
    assert explained | first_cells(MESSAGING, "Errors of messages") - ELSEWHERE == may


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
        if name.startswith(MESSAGING.stem):
            await play.meet()
        await play.all()


def _expected_field(pair: str) -> tuple[str, Any]:
    """The name and value of a frame's field in a step of the document, such as ``seq 2``."""
    key, value = pair.split(" ")
    if value.isdecimal() and key != "call":
        return key, int(value)
    return key, {"true": True, "false": False, "null": None}.get(value, value)


class Play:
    """Plays a sequence diagram: sends what goes to S, and wants to hear what comes from S, and nothing else.

    A step is a type of frame (or a request and its status) and what it bears, ``reason busy, call 2``. ``chat group``
    is the one that has this name in the run, as is ``{group}`` in a path. Steps that are neither to nor from S, and
    notes that are not about time, are for people.
    """

    def __init__(self, on: Stage, text: str) -> None:
        self._on, self._text = on, text
        self._people, self._lines = steps(text)
        self._calls = {"1": str(uuid4()), "2": str(uuid4())}
        self._sockets: dict[str, Socket] = {}
        self._stack = contextlib.AsyncExitStack()
        self._asked: dict[str, list[str]] = {person: [] for person in self._people}
        self._answers: dict[str, list[Answer]] = {person: [] for person in self._people}
        self._ids = 0
        self._names: dict[str, str] = {}  # of chats, people and cursors
        self._carol: Account | None = None
        self._sent = ""  # the client_id of the last message

    async def __aenter__(self) -> Play:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _account(self, person: str) -> Account:
        if person.startswith("C"):
            assert self._carol is not None
            return self._carol
        return self._on.alice if person.startswith("A") else self._on.bob

    async def meet(self) -> None:
        """Make the chats that a diagram of messages takes for granted, and take a cursor."""
        on, names = self._on, self._names
        names["direct"] = on.names[DIRECT] = await on.chat("direct", on.bob)
        if "C" in self._people:
            self._carol = await with_carol(on)
            names |= {"carol_id": self._carol.user_id, "carol": await on.chat("direct", self._carol)}
            if "POST /chats\n" not in self._text:
                names["group"] = await on.chat("group", on.bob, self._carol)
        if "chat secret" in self._text:
            names["secret"] = await on.chat("secret", on.bob)
        for person in set(self._people) - {"S"}:
            names[f"cursor of {person}"] = (await self._account(person).get("/sync")).json["cursor"]

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
            bears = dict(_expected_field(pair) for pair in rest)
            await self._from_server(target, what, bears, answer=arrow == "-->>")
        else:
            assert what.partition(" ")[0] not in {
                frame["type"] for label, frame in EXAMPLES.items() if label.startswith("server ")
            }, "frames go through S"

    async def _to_server(self, person: str, what: str, bears: dict[str, str]) -> None:
        account = self._account(person)
        method, _, path = what.partition(" ")
        if what == "GET /ws":
            await self._open(person)
            self._asked[person].clear()
        elif what == "POST /auth/refresh":
            answer = await account.post(path, {"refresh_token": account.refresh_token})
            account.token = answer.json["access_token"]
            self._answers[person].append(answer)
        elif path:
            path = path.replace("/alice", f"/{self._on.alice.public_id}").replace("/bob", f"/{self._on.bob.public_id}")
            path = path.replace("{cursor}", f"{{cursor of {person}}}")
            path = re.sub(r"\{([^}]+)\}", lambda found: self._names[found[1]], path)
            body = {key: int(value) for key, value in bears.items()} if method in ("POST", "PUT") else None
            if what == "POST /chats":
                body = self._on.real(EXAMPLES["body POST /chats"])
            answer = await ask(account.url, method, path, body, account.token)
            if what == "POST /chats":
                self._names["group"] = answer.json["id"]
            self._answers[person].append(answer)
        elif what == "message_send":
            if "the" not in bears:  # the same
                self._sent = str(uuid4())
            chat = self._names[bears.get("chat", "direct")]
            frame = {**EXAMPLES["client message_send"], "chat_id": chat, "client_id": self._sent}
            self._ids += 1
            self._asked[person].append(f"p{self._ids}")
            await self._sockets[person].raw(json.dumps({**frame, "id": f"p{self._ids}"}))
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
            got = self._answers[person].pop(0)
            assert got.status == int(what), got.text
            if "events" in bears:
                assert len(got.json["events"]) == bears["events"]
            return
        assert answer == (kind in ("ready", "ack", "error")), "answers are dashed, and nothing else is"
        if kind == "ready":
            assert self._sockets[person].ready
            return
        if "call" in bears or (not answer and kind.startswith(("call_", "ice_"))):
            bears["call_id"] = self._calls[bears.pop("call", "1")]
        if "chat" in bears:
            bears["chat_id"] = self._names[bears.pop("chat")]
        if answer:
            bears["id"] = self._asked[person].pop(0)
        if code:
            bears["code"] = code
        await self._sockets[person].expect(kind, **bears)
