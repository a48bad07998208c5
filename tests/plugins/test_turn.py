"""TURN credentials, as coturn's REST API wants them. That a real coturn takes them is shown with the relayed calls."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from uuid import UUID

import pytest

from config.keyring import Keyring
from plugins.turn import Settings, Turn
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
async def test_an_opaque_name_is_one_a_user_and_day(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place(services) as shared, serving(shared, TURN_USERNAME="opaque") as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)

        async def name(who: Account) -> str:
            given = (await who.get("/calls/turn-credentials")).json
            secret = shared.environment["TURN_SECRET"].encode()
            digest = hmac.new(secret, given["username"].encode(), hashlib.sha1).digest()
            assert given["credential"] == base64.b64encode(digest).decode()
            assert abs(int(given["username"].partition(":")[0]) - time.time() - 3600) < 5
            return str(given["username"].partition(":")[2])

        # coturn counts a user's ten allocations by it.
        first = await name(alice)
        assert re.fullmatch("[0-9a-f]{32}", first)
        assert await name(alice) == first != await name(bob)
        assert alice.user_id.replace("-", "") != first
        tomorrow = time.time() + 86_400
        monkeypatch.setattr("plugins.turn.time.time", lambda: tomorrow)
        turn = Turn(Settings(turn_username="opaque"), Keyring([shared.environment["TURN_SECRET"]]))
        assert turn.sign(UUID(alice.user_id), 60)[0].partition(":")[2] != first


@pytest.mark.gen_test
async def test_twenty_an_hour(services: Services) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on", TURN_TLS_PORT="0") as server:
        alice = await Account().register(server.url)
        answers = [await alice.get("/calls/turn-credentials") for _ in range(21)]
        assert [answer.status for answer in answers] == [200] * 20 + [429]
        assert not any(url.startswith("turns:") for url in answers[0].json["urls"])
