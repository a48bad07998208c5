"""The judge of answers finds what it is to find; without that no other test would prove anything of the document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.client import Account, ask
from tests.conformance import Contract, contract_of
from tests.running import Services, place, serving

HEADERS = {"X-Request-ID": "x", "Content-Type": "application/json"}
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
async def test_whatever_is_asked_is_judged(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    monkeypatch.setattr(Contract, "judge", lambda _, *answer: judged.append(answer[:3]))
    async with place(services) as home, serving(home) as server:
        await ask(server.url, "GET", "/health/live")
        await ask(server.url, "GET", "/nowhere?x=1")
    assert judged == [("GET", "/health/live", 200), ("GET", "/nowhere", 404)]
