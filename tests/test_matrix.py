"""Access: every route and frame, requested without a token and by a stranger, a blocked user, a participant, the owner.

A route, method or frame that is missing from the tables below fails the test: closed until somebody has thought of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from handlers.http.base import ID, ApiHandler
from handlers.sockets.socket import SocketHandler
from handlers.wire.shapes import USER
from plugins import joined
from server import Server
from tests.client import Account, Answer, ask, b64
from tests.files import tus
from tests.files.transfer import announce, shared
from tests.plugins.paying import new_prid, purchase
from tests.running import Services, place, serving

PERSONS = ("anonymous", "stranger", "blocked", "participant", "owner")
PUBLIC_ROUTES = {"/health", "/health/ready", "/health/live", "/metrics", "/ws"}
PUBLIC_ROUTES |= {"/openapi.json", "/docs", "/docs/([a-z0-9.-]{1,64})"}


@dataclass
class World:
    """Alice owns things, has a ringing call and a group with Bob, has blocked Mallory after a direct chat,
    and has never met Carol."""

    server: Server
    people: dict[str, Account]
    call_id: str
    group: str
    pair: str
    message_id: str
    invite_id: str
    invite: str
    file_id: str  # in the group
    unfinished: str
    resumable: str
    push_token: str

    @property
    def owner(self) -> Account:
        return self.people["owner"]


@contextlib.asynccontextmanager
async def world(server: Server) -> AsyncIterator[World]:
    people = {name: await Account().register(server.url) for name in PERSONS[1:]}
    people["anonymous"] = Account(url=server.url)
    owner, participant, blocked = people["owner"], people["participant"], people["blocked"]
    pair = await _made(owner, "/chats", {"type": "direct", "participants": [blocked.public_id]})
    group = await _made(owner, "/chats", {"type": "group", "participants": [participant.public_id]})
    message = await _made(owner, f"/chats/{group['id']}/messages", _message())
    invite = await _made(owner, f"/chats/{group['id']}/invites", {})
    assert (await owner.put(f"/users/{blocked.public_id}/block", {})).status == 204
    body = {"verified_fingerprint": participant.fingerprint, "method": "voice"}
    assert (await owner.post(f"/users/{participant.public_id}/verify", body)).status == 200
    file_id = await shared(owner, b"content", chat_id=group["id"])
    unfinished = (await announce(owner, b"content")).json["file_id"]
    resumable = (await tus.created(owner, 7)).file_id
    of_chats = group["id"], pair["id"], message["id"], invite["id"], invite["token"]
    token = await owner.put("/push/tokens", {"provider": "fcm", "token": "x" * 100})
    of_files = file_id, unfinished, resumable
    made = World(server, people, str(uuid4()), *of_chats, *of_files, token.json["id"])
    async with owner.socket() as socket:
        ack = await socket.send("call_offer", **_offer(participant.user_id, made.call_id))
        assert ack["type"] == "ack"
        yield made


def _offer(to: str, call_id: str) -> dict[str, str]:
    return {"call_id": call_id, "to_user_id": to, "call_type": "audio", "encrypted_payload": "AAAA"}


def _message() -> dict[str, str]:
    return {"client_id": str(uuid4()), "encrypted_payload": "AAAA", "message_type": "text"}


async def _made(by: Account, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await by.post(path, body)
    assert answer.status == 201, answer.text
    made: dict[str, Any] = answer.json
    return made


Ask = Callable[[World, Account], tuple[Any, ...]]
TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": tus.BODY, "Upload-Offset": "0"}
ALIKE = "401 200 200 200 200"  # needs a token, and is the same for everyone who has one

# Path, body and headers of each request, and the statuses for PERSONS. Paths name what is Alice's, unless it is one's
# own.
ROUTES: dict[str, tuple[Ask, str]] = {
    "GET /auth/available": (lambda w, p: ("/auth/available?public_id=nobody_has_it", None), "200 200 200 200 200"),
    "POST /auth/register": (lambda w, p: ("/auth/register", Account().body()), "201 201 201 201 201"),
    "POST /auth/login": (
        lambda w, p: ("/auth/login", {"public_id": w.owner.public_id, "password": "a guess at it"}),
        "401 401 401 401 401",
    ),
    "POST /auth/refresh": (
        lambda w, p: ("/auth/refresh", {"refresh_token": w.owner.refresh_token[:32] + "0" * 64}),
        "401 401 401 401 401",
    ),
    "POST /auth/reset-password": (
        lambda w, p: ("/auth/reset-password", {**_key(w.owner), "new_password": "a new password"}),
        "428 428 428 428 428",
    ),
    "POST /auth/logout": (lambda w, p: ("/auth/logout", {}), "401 204 204 204 204"),
    "GET /auth/sessions": (lambda w, p: ("/auth/sessions", None), ALIKE),
    "DELETE /auth/sessions/([0-9a-fA-F-]{36})": (
        lambda w, p: (f"/auth/sessions/{w.owner.session_id}", None),
        "401 404 404 404 204",
    ),
    "POST /auth/change-password": (
        lambda w, p: ("/auth/change-password", {"old_password": w.owner.password + "x", "new_password": "x" * 9}),
        "401 401 401 401 401",
    ),
    "GET /users/search": (lambda w, p: (f"/users/search?q={w.owner.public_id}", None), ALIKE),
    "GET /users/me": (lambda w, p: ("/users/me", None), ALIKE),
    "PUT /users/me": (lambda w, p: ("/users/me", {"bio": "x"}), ALIKE),
    "DELETE /users/me": (lambda w, p: ("/users/me", {"password": p.password}), "401 204 204 204 204"),
    f"GET /users/{USER}": (lambda w, p: (f"/users/{w.owner.public_id}", None), ALIKE),
    "GET /users/me/prekeys": (lambda w, p: ("/users/me/prekeys", None), ALIKE),
    "POST /users/me/prekeys": (
        lambda w, p: ("/users/me/prekeys", {"signed_prekey": w.owner.signed_prekey(9)}),
        "401 400 400 400 200",
    ),
    f"GET /users/{USER}/prekeys": (lambda w, p: (f"/users/{w.owner.public_id}/prekeys", None), ALIKE),
    "GET /users/me/verifications": (lambda w, p: ("/users/me/verifications", None), ALIKE),
    "GET /users/me/blocks": (lambda w, p: ("/users/me/blocks", None), ALIKE),
    f"POST /users/{USER}/verify": (
        lambda w, p: (
            f"/users/{w.owner.public_id}/verify",
            {"verified_fingerprint": w.owner.fingerprint, "method": "voice"},
        ),
        "401 200 200 200 400",
    ),
    f"DELETE /users/{USER}/verify": (
        lambda w, p: (f"/users/{w.people['participant'].public_id}/verify", None),
        "401 404 404 400 204",
    ),
    f"PUT /users/{USER}/block": (
        lambda w, p: (f"/users/{w.owner.public_id}/block", None),
        "401 204 204 204 400",
    ),
    f"DELETE /users/{USER}/block": (
        lambda w, p: (f"/users/{w.people['blocked'].public_id}/block", None),
        "401 204 400 204 204",
    ),
    "GET /subscriptions/tiers": (lambda w, p: ("/subscriptions/tiers", None), "200 200 200 200 200"),
    # For all callers: only the owner's signature counts, here over a payment that doesn't exist.
    "POST /subscriptions/purchase": (
        lambda w, p: ("/subscriptions/purchase", purchase(w.owner, new_prid(), "voucher", "no code")),
        "402 402 402 402 402",
    ),
    "POST /subscriptions/validate": (
        lambda w, p: ("/subscriptions/validate", {"prid": new_prid(), "signature": b64(bytes(64))}),
        "200 200 200 200 200",
    ),
    "GET /subscriptions/restore": (lambda w, p: ("/subscriptions/restore", None), ALIKE),
    "POST /subscriptions/webhooks/stripe": (
        lambda w, p: ("/subscriptions/webhooks/stripe", {}),
        "422 422 422 422 422",  # without Stripe
    ),
    "GET /calls": (lambda w, p: ("/calls", None), ALIKE),
    "GET /calls/([0-9a-fA-F-]{36})": (lambda w, p: (f"/calls/{w.call_id}", None), "401 404 404 200 200"),
    "GET /calls/turn-credentials": (lambda w, p: ("/calls/turn-credentials", None), ALIKE),
    "GET /push/tokens": (lambda w, p: ("/push/tokens", None), ALIKE),
    "PUT /push/tokens": (
        lambda w, p: ("/push/tokens", {"provider": "fcm", "token": "x" * 100}),
        "401 201 201 201 200",
    ),
    f"DELETE /push/tokens/{ID}": (lambda w, p: (f"/push/tokens/{w.push_token}", None), "401 404 404 404 204"),
    "GET /push/settings": (lambda w, p: ("/push/settings", None), ALIKE),
    "PUT /push/settings": (lambda w, p: ("/push/settings", {"kinds": ["call_offer"]}), ALIKE),
    "GET /push/vapid": (lambda w, p: ("/push/vapid", None), "401 404 404 404 404"),  # it has no key
    "GET /chats": (lambda w, p: ("/chats", None), ALIKE),
    "POST /chats": (
        lambda w, p: ("/chats", {"type": "group", "participants": [w.owner.public_id]}),
        "401 201 201 201 201",
    ),
    "POST /chats/requests/decline": (lambda w, p: ("/chats/requests/decline", {"all": True}), "401 204 204 204 204"),
    f"POST /chats/{ID}/accept": (lambda w, p: (f"/chats/{w.group}/accept", {}), "401 404 404 200 200"),
    "POST /chats/join": (lambda w, p: ("/chats/join", {"token": w.invite}), ALIKE),
    "POST /chats/join/preview": (lambda w, p: ("/chats/join/preview", {"token": w.invite}), ALIKE),
    f"PUT /chats/{ID}/me": (lambda w, p: (f"/chats/{w.group}/me", {"archived": True}), "401 404 404 200 200"),
    f"GET /chats/{ID}/bans": (lambda w, p: (f"/chats/{w.group}/bans", None), "401 404 404 403 200"),
    f"DELETE /chats/{ID}/bans/{ID}": (
        lambda w, p: (f"/chats/{w.group}/bans/{w.people['stranger'].user_id}", None),
        "401 404 404 403 404",
    ),
    f"GET /chats/{ID}": (lambda w, p: (f"/chats/{w.group}", None), "401 404 404 200 200"),
    f"PUT /chats/{ID}": (lambda w, p: (f"/chats/{w.group}", {"title": "New"}), "401 404 404 403 200"),
    f"DELETE /chats/{ID}": (lambda w, p: (f"/chats/{w.group}", None), "401 404 404 403 204"),
    f"GET /chats/{ID}/participants": (lambda w, p: (f"/chats/{w.group}/participants", None), "401 404 404 200 200"),
    f"POST /chats/{ID}/participants": (
        lambda w, p: (f"/chats/{w.group}/participants", {"public_id": w.people["stranger"].public_id}),
        "401 404 404 403 201",
    ),
    f"PUT /chats/{ID}/participants/{ID}": (
        lambda w, p: (f"/chats/{w.group}/participants/{w.people['participant'].user_id}", {"role": "admin"}),
        "401 404 404 403 200",
    ),
    f"DELETE /chats/{ID}/participants/{ID}": (
        lambda w, p: (f"/chats/{w.group}/participants/{w.owner.user_id}", None),
        "401 404 404 403 409",
    ),
    f"GET /chats/{ID}/invites": (lambda w, p: (f"/chats/{w.group}/invites", None), "401 404 404 403 200"),
    f"POST /chats/{ID}/invites": (lambda w, p: (f"/chats/{w.group}/invites", {}), "401 404 404 403 201"),
    f"DELETE /chats/{ID}/invites/{ID}": (
        lambda w, p: (f"/chats/{w.group}/invites/{w.invite_id}", None),
        "401 404 404 403 204",
    ),
    f"GET /chats/{ID}/messages": (lambda w, p: (f"/chats/{w.group}/messages", None), "401 404 404 200 200"),
    f"POST /chats/{ID}/messages": (
        lambda w, p: (f"/chats/{w.pair if p is w.people['blocked'] else w.group}/messages", _message()),
        "401 404 403 201 201",
    ),
    f"POST /chats/{ID}/receipts": (
        lambda w, p: (f"/chats/{w.group}/receipts", {"read_seq": 2}),
        "401 404 404 200 200",
    ),
    f"GET /chats/{ID}/receipts": (lambda w, p: (f"/chats/{w.group}/receipts", None), "401 404 404 200 200"),
    f"GET /messages/{ID}/reads": (lambda w, p: (f"/messages/{w.message_id}/reads", None), "401 404 404 404 200"),
    "POST /messages/sealed": (  # who they are doesn't count, but that none of them has the key
        lambda w, p: ("/messages/sealed", {**_message(), "public_id": w.owner.public_id}),
        "401 401 401 401 401",
    ),
    f"GET /messages/{ID}": (lambda w, p: (f"/messages/{w.message_id}", None), "401 404 404 200 200"),
    f"PUT /messages/{ID}": (
        lambda w, p: (f"/messages/{w.message_id}", {"encrypted_payload": "AAAA"}),
        "401 404 404 403 200",
    ),
    f"GET /chats/{ID}/pins": (lambda w, p: (f"/chats/{w.group}/pins", None), "401 404 404 200 200"),
    f"DELETE /chats/{ID}/pins": (lambda w, p: (f"/chats/{w.group}/pins", None), "401 404 404 403 204"),
    f"PUT /messages/{ID}/pin": (lambda w, p: (f"/messages/{w.message_id}/pin", {}), "401 404 404 403 204"),
    f"DELETE /messages/{ID}/pin": (lambda w, p: (f"/messages/{w.message_id}/pin", None), "401 404 404 403 204"),
    f"DELETE /messages/{ID}": (lambda w, p: (f"/messages/{w.message_id}", None), "401 404 404 403 204"),
    f"PUT /messages/{ID}/reactions/([^/]+)": (
        lambda w, p: (f"/messages/{w.message_id}/reactions/%F0%9F%91%8D", {}),
        "401 404 404 204 204",
    ),
    f"DELETE /messages/{ID}/reactions/([^/]+)": (
        lambda w, p: (f"/messages/{w.message_id}/reactions/%F0%9F%91%8D", None),
        "401 404 404 204 204",
    ),
    "GET /sync": (lambda w, p: ("/sync", None), ALIKE),
    "GET /files": (lambda w, p: ("/files", None), ALIKE),
    "POST /files": (
        lambda w, p: ("/files", {"size": 1, "sha256": "0" * 64, "chat_id": w.group}),
        "401 404 404 201 201",
    ),
    "GET /files/usage": (lambda w, p: ("/files/usage", None), ALIKE),
    f"GET /files/{ID}": (lambda w, p: (f"/files/{w.file_id}", None), "401 404 404 200 200"),
    f"DELETE /files/{ID}": (lambda w, p: (f"/files/{w.file_id}", None), "401 404 404 403 204"),
    f"POST /files/{ID}/complete": (lambda w, p: (f"/files/{w.unfinished}/complete", {}), "401 404 404 404 409"),
    f"GET /files/{ID}/content": (lambda w, p: (f"/files/{w.file_id}/content", None), "401 404 404 200 200"),
    f"HEAD /files/{ID}/content": (lambda w, p: (f"/files/{w.file_id}/content", None), "401 404 404 200 200"),
    "POST /files/tus": (lambda w, p: ("/files/tus", b"", {**TUS, "Upload-Length": "1"}), "401 201 201 201 201"),
    f"HEAD /files/tus/{ID}": (lambda w, p: (f"/files/tus/{w.resumable}", None, TUS), "401 404 404 404 200"),
    f"PATCH /files/tus/{ID}": (lambda w, p: (f"/files/tus/{w.resumable}", b"con", PIECE), "401 404 404 404 204"),
    f"DELETE /files/tus/{ID}": (lambda w, p: (f"/files/tus/{w.resumable}", None, TUS), "401 404 404 404 204"),
    f"GET /downloads/{ID}": (
        lambda w, p: (
            f"/downloads/{w.file_id}?reader={w.owner.user_id}&expires=99999999999&signature={'0' * 64}",
            None,
        ),
        "403 403 403 403 403",
    ),
    f"HEAD /downloads/{ID}": (
        lambda w, p: (
            f"/downloads/{w.file_id}?reader={w.owner.user_id}&expires=99999999999&signature={'0' * 64}",
            None,
        ),
        "403 403 403 403 403",
    ),
    f"PUT /uploads/{ID}": (  # who has the signed address may; who they are doesn't count
        lambda w, p: (f"/uploads/{w.unfinished}?expires=99999999999&signature={'0' * 64}", b"content"),
        "403 403 403 403 403",
    ),
}

# The frame of each type about Alice's call or group with Bob, and the answers ("ack" or an error's code) for
# PERSONS[1:].
FRAMES: dict[str, tuple[Callable[[World], dict[str, Any]], str]] = {
    "call_offer": (lambda w: _offer(w.owner.user_id, str(uuid4())), "ack ack glare cannot_call_self"),
    "call_answer": (
        lambda w: {"call_id": w.call_id, "encrypted_payload": "AAAA"},
        "not_participant not_participant ack invalid_state",
    ),
    "ice_candidate": (
        lambda w: {"call_id": w.call_id, "encrypted_payload": "AAAA"},
        "not_participant not_participant ack ack",
    ),
    "call_heartbeat": (
        lambda w: {"call_id": w.call_id},
        "not_participant not_participant invalid_state invalid_state",
    ),
    "call_hangup": (lambda w: {"call_id": w.call_id}, "not_participant not_participant ack ack"),
    "message_send": (lambda w: {"chat_id": w.group, **_message()}, "not_found not_found ack ack"),
    "typing": (lambda w: {"chat_id": w.group}, "not_found not_found ack ack"),
    "presence_subscribe": (lambda w: {"user_ids": [w.owner.user_id]}, "ack ack ack ack"),
}


def _key(account: Account) -> dict[str, str]:
    return {"identity_key": account.body()["identity_key"]}


def claimed(server: Server) -> tuple[set[str], set[str]]:
    """Every method of every route, and every frame type, of the running server's features."""
    routes, events, *_ = joined(server.features)
    methods: set[str] = set()
    for pattern, handler, *_ in routes:
        methods |= {f"{method} {pattern}" for method in handler.methods()}
    return methods, set(events)


@pytest.mark.gen_test
async def test_nothing_is_missing_from_the_tables(services: Services) -> None:
    async with place(services) as home, serving(home) as server:
        routes, events = claimed(server)
        assert routes == set(ROUTES)
        assert events == set(FRAMES)
        # And the site serves these and the house's own, nothing else.
        rules = server.site.wildcard_router.rules
        patterns = {route.partition(" ")[2] for route in ROUTES}
        assert {rule.matcher.regex.pattern.removesuffix("$") for rule in rules} == patterns | PUBLIC_ROUTES
        handlers = [rule.target for rule in rules]
        assert all(issubclass(handler, ApiHandler) for handler in handlers)
        assert sum(issubclass(handler, SocketHandler) for handler in handlers) == 1


async def _route_fails(made: World, route: str) -> str:
    request, expected = ROUTES[route]
    method, url = route.partition(" ")[0], made.server.url
    for person, status in zip(PERSONS, expected.split(), strict=True):
        account = made.people[person]
        path, body, *headers = request(made, account)
        answer: Answer = await ask(url, method, path, body, account.token or None, *headers)
        if answer.status != int(status):
            return f"{person}: {answer.status} {answer.text}"
        if answer.status == 401 and answer.headers["WWW-Authenticate"] != "Bearer":
            return f"{person}: {answer.headers}"
    answer = await ask(url, method, path, body, "x.y.z", *headers)
    return "" if answer.status == 401 else f"a token that is none: {answer.status} {answer.text}"


async def _frame_fails(made: World, kind: str) -> str:
    fields, expected = FRAMES[kind]
    for person, code in zip(PERSONS[1:], expected.split(), strict=True):
        async with made.people[person].socket() as socket:
            answer = await socket.send(kind, **fields(made))
            if (answer["code"] if answer["type"] == "error" else "ack") != code:
                return f"{person}: {answer}"
    return ""


def _area(route: str) -> str:
    return route.split("/")[1]


# The server is shared by the routes of an area; the people and what they own are not.
@pytest.mark.gen_test(timeout=240)
@pytest.mark.parametrize("area", sorted(set(map(_area, ROUTES))))
async def test_each_route_answers_each_person(services: Services, area: str) -> None:
    failures = {}
    async with place(services) as home, serving(home) as server:
        for route in (route for route in ROUTES if _area(route) == area):
            async with world(server) as made:
                if failure := await _route_fails(made, route):
                    failures[route] = failure
    assert failures == {}


@pytest.mark.gen_test(timeout=240)
async def test_each_frame_answers_each_person(services: Services) -> None:
    failures = {}
    async with place(services) as home, serving(home) as server:
        for kind in FRAMES:
            async with world(server) as made:
                if failure := await _frame_fails(made, kind):
                    failures[kind] = failure
    assert failures == {}
