"""TURN credentials, as coturn's REST API wants them. That a real coturn takes them is shown with the relayed calls."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest

from tests.client import Account, ask
from tests.running import Services, place, serving


@pytest.mark.gen_test
async def test_credentials(services: Services) -> None:
    async with place(services) as shared, serving(shared, TURN_HOST="turn.example.org") as server:
        alice = await Account().register(server.url)
        given = (await alice.get("/calls/turn-credentials")).json
        assert given["urls"] == [
            "stun:turn.example.org:3478",
            "turn:turn.example.org:3478?transport=udp",
            "turn:turn.example.org:3478?transport=tcp",
            "turns:turn.example.org:5349?transport=tcp",
        ]
        expiry, _, user = given["username"].partition(":")
        assert user == alice.user_id
        assert abs(int(expiry) - time.time() - given["ttl"]) < 5
        assert given["ttl"] == 3600
        secret = shared.environment["TURN_SECRET"].encode()
        expected = base64.b64encode(hmac.new(secret, given["username"].encode(), hashlib.sha1).digest()).decode()
        assert given["credential"] == expected
        assert (await ask(server.url, "GET", "/calls/turn-credentials")).status == 401


@pytest.mark.gen_test
async def test_twenty_an_hour(services: Services) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on", TURN_TLS_PORT="0") as server:
        alice = await Account().register(server.url)
        answers = [await alice.get("/calls/turn-credentials") for _ in range(21)]
        assert [answer.status for answer in answers] == [200] * 20 + [429]
        assert not any(url.startswith("turns:") for url in answers[0].json["urls"])
