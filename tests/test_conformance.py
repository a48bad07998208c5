"""The judge of answers finds what it is to find; without that no other test would prove anything of the document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.client import Account, ask
from tests.conformance import Contract, contract_of
from tests.running import Services, place, serving

HEADERS = {"X-Request-ID": "x", "Content-Type": "application/json"}
ACK = {"type": "ack", "id": "f1"}
CALL = "0f268f7d-b420-4c41-922d-8995ce3c4b1b"
REFUSAL = {"error": "not_found", "message": "There is no such user.", "request_id": "x"}


@pytest.mark.gen_test
async def test_answers_that_differ_from_the_document_are_found(services: Services) -> None:
    async with place(services) as home, serving(home) as server:
        contract = contract_of(server.url)
        assert contract is not None
        alice = await Account().register(server.url)
        profile = (await alice.get(f"/users/{alice.public_id}")).json
        path = "/users/alice"
        said(contract, path, 200, profile)
        said(contract, path, 404, REFUSAL)

        without = {name: value for name, value in profile.items() if name != "bio"}
        peer = {**profile, "is_online": "no"}
        lies: list[tuple[str, int, Any, dict[str, str]]] = [
            (path, 200, {**profile, "password_hash": "x"}, HEADERS),
            (path, 200, without, HEADERS),
            (path, 200, peer, HEADERS),
            (path, 200, {**profile, "user_id": "x"}, HEADERS),
            (path, 200, {**profile, "created_at": "yesterday"}, HEADERS),
            (path, 200, {**profile, "fingerprint": "X" * 64}, HEADERS),
            (path, 200, [profile], HEADERS),
            (path, 200, profile, {"Content-Type": "application/json"}),
            (path, 200, profile, {**HEADERS, "Content-Type": "text/html"}),
            (path, 201, profile, HEADERS),
            (path, 409, {**REFUSAL, "error": "conflict"}, HEADERS),
            (path, 404, {**REFUSAL, "error": "call_not_found"}, HEADERS),
            (path, 404, {**REFUSAL, "sql": "SELECT"}, HEADERS),
            (path, 429, {**REFUSAL, "error": "rate_limited"}, HEADERS),  # without its Retry-After
            ("/users/al", 200, profile, HEADERS),  # too short to be a public id, so no route
        ]
        for lie in lies:
            with pytest.raises(AssertionError):
                said(contract, *lie)


def said(contract: Contract, path: str, status: int, body: Any, headers: dict[str, str] = HEADERS) -> None:
    contract.judge("GET", path, status, headers, json.dumps(body).encode())


@pytest.mark.gen_test
async def test_answers_to_frames_are_judged_by_the_frame_that_they_answer(services: Services) -> None:
    async with place(services) as home, serving(home) as server:
        contract = contract_of(server.url)
        assert contract is not None
    stored = {"message_id": CALL, "chat_id": CALL, "seq": 1, "created_at": "2026-01-01T12:00:00Z"}
    refusal = {"type": "error", "id": "f1", "code": "glare", "message": "Calling already.", "call_id": CALL}
    truths: list[tuple[str | None, dict[str, Any]]] = [
        ("message_send", {**ACK, **stored}),
        ("message_send", {**ACK, **stored, "repeated": True}),
        ("typing", ACK),
        ("call_offer", refusal),
        ("no such frame", {**refusal, "code": "invalid_request"}),
        (None, {**ACK, **stored}),
    ]
    for answered, frame in truths:
        contract.judge_frame(frame, answered)
    lies: list[tuple[str, dict[str, Any]]] = [
        ("message_send", ACK),
        ("message_send", {**ACK, **stored, "sender_id": CALL}),
        ("message_send", {**ACK, **stored, "repeated": False}),
        ("typing", {**ACK, **stored}),
        ("call_heartbeat", {**ACK, "call_id": "x"}),
        ("call_answer", refusal),
        ("typing", {**refusal, "code": "forbidden"}),  # with a call_id
        ("no such frame", ACK),
    ]
    for answered, frame in lies:
        with pytest.raises(AssertionError):
            contract.judge_frame(frame, answered)


@pytest.mark.gen_test
async def test_sockets_remember_what_they_asked(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    monkeypatch.setattr(Contract, "judge_frame", lambda _, frame, asked=None: judged.append((frame["type"], asked)))
    async with place(services) as home, serving(home) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            await socket.send("presence_subscribe", user_ids=[])
            await socket.send("no such frame")
            await socket.raw('{"type": "presence_subscribe", "user_ids": 1}')
            await socket.expect("error", code="invalid_request")
    assert judged == [
        ("ready", None),
        ("ack", "presence_subscribe"),
        ("error", "no such frame"),
        ("error", None),
    ]


@pytest.mark.gen_test
async def test_every_answer_is_compared_with_the_document(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    monkeypatch.setattr(Contract, "judge", lambda _, *answer: judged.append(answer[:3]))
    async with place(services) as home, serving(home) as server:
        await ask(server.url, "GET", "/health/live")
        await ask(server.url, "GET", "/nowhere?x=1")
    assert judged == [("GET", "/health/live", 200), ("GET", "/nowhere", 404)]
