"""Budgets as clients see them: 429 and its headers over HTTP, refused frames, two instances, and Redis down."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from redis.exceptions import RedisError

from handlers.wire.costs import BYTES_IN, BYTES_OUT, FANOUT, REQUESTS, ROWS, TRANSFER
from server import Server
from tests.client import Account, Answer, ask
from tests.running import Services, place, serving
from tests.scripts.valkey import valkey

ON = {"RATE_LIMITS": "on", "RATE_LIMIT_REGISTER": "1000/hour"}


def standing(answer: Answer) -> dict[str, dict[str, int]]:
    """Return the items of RateLimit and RateLimit-Policy by name."""
    found: dict[str, dict[str, int]] = {}
    for header in ("RateLimit-Policy", "RateLimit"):
        for item in answer.headers[header].split(", "):
            name, *parameters = item.split(";")
            assert re.fullmatch(r'"[a-z-]+"', name)
            pairs = [parameter.split("=") for parameter in parameters]
            found.setdefault(name.strip('"'), {}).update({key: int(value) for key, value in pairs if key != "qu"})
    return found


def left(server: Server, user: Account, kind: int) -> int:
    return server.app.ledger.account(UUID(user.user_id)).quota((kind,)).left


def message(**fields: object) -> dict[str, object]:
    return {"client_id": str(uuid4()), "encrypted_payload": "QUJD", "message_type": "text", **fields}


@pytest.mark.gen_test
async def test_requests_refused_by_their_headers_spend_the_budget(services: Services) -> None:
    few = {**ON, "BUDGET_REQUESTS": "20/hour", "BUDGET_ADDRESS_TIMES": "1"}
    async with place(services) as shared, serving(shared, **few) as server:
        statuses = [(await ask(server.url, "GET", "/users/me", token="no.good.token")).status for _ in range(25)]
        assert statuses == [401] * 20 + [429] * 5


@pytest.mark.gen_test
async def test_each_answer_shows_the_limits_and_budgets(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON, CORS_ALLOW_ORIGINS="https://web.example") as server:
        alice = await Account().register(server.url)
        answer = await alice.get("/users/search?q=alice", Origin="https://web.example")
        stands = standing(answer)
        assert (stands["requests"]["q"], stands["requests"]["w"], stands["requests"]["r"]) == (3000, 60, 2999)
        assert stands["search"] == {"q": 20, "w": 60, "r": 19, "t": 3}
        assert {"RateLimit", "RateLimit-Policy"} <= set(answer.headers["Access-Control-Expose-Headers"].split(", "))
        while (answer := await alice.get("/users/search?q=alice")).status == 200:
            stands = standing(answer)
        assert stands["search"]["r"] == 0
        assert (answer.status, standing(answer)["search"]["r"]) == (429, 0)
        assert standing(answer)["search"]["t"] == int(answer.headers["Retry-After"])
        # A refusal for another reason, an address that isn't there, and one without a token.
        for path, status in (("/users/search?q=", 400), ("/nothing", 404), ("/users/me", 200)):
            answer = await alice.get(path)
            assert (answer.status, "RateLimit" in answer.headers) == (status, True), path
        anonymous = await ask(server.url, "GET", "/subscriptions/tiers")
        assert standing(anonymous)["requests"]["q"] == 30_000


@pytest.mark.gen_test
async def test_without_limits_nothing_is_refused(services: Services) -> None:
    async with place(services) as shared, serving(shared, BUDGET_REQUESTS="1/hour") as server:
        alice = await Account().register(server.url)
        for _ in range(3):
            answer = await alice.get("/users/me")
            assert (answer.status, "RateLimit" in answer.headers) == (200, False)
        assert len(server.app.ledger) == 0


@pytest.mark.gen_test
async def test_a_used_up_budget_refuses_before_anything_is_done(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON, BUDGET_ROWS="5/hour") as server:
        alice, bob = [await Account().register(server.url) for _ in range(2)]
        chat = (await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).json["id"]
        assert left(server, alice, ROWS) == 3
        answers = [await alice.put(f"/chats/{chat}", {"title": f"title {n}"}) for n in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[3].code == "rate_limited"
        assert standing(answers[3])["rows"] == {"q": 5, "w": 3600, "r": 0, "t": int(answers[3].headers["Retry-After"])}
        seen = (await bob.get(f"/chats/{chat}")).json
        assert (seen["title"], seen["last_seq"]) == ("title 2", 4)
        for path, body in ((f"/users/{bob.public_id}/block", None), ("/users/me", {"bio": "x"})):
            assert (await alice.put(path, body)).status == 429
        assert (await alice.get("/users/me")).status == 200
        assert (await alice.post(f"/chats/{chat}/messages", message())).status == 201


@pytest.mark.gen_test
async def test_the_rows_of_a_refused_request_are_refunded(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON, BUDGET_ROWS="5/hour") as server:
        alice = await Account().register(server.url)
        for _ in range(20):
            assert (await alice.put(f"/chats/{uuid4()}", {"title": "x"})).status == 404
        assert left(server, alice, ROWS) == 5


@pytest.mark.gen_test
async def test_bytes_of_both_directions_and_of_files_are_counted(services: Services) -> None:
    slow = {f"BUDGET_{name}": "1GiB/30 days" for name in ("BYTES_IN", "BYTES_OUT", "TRANSFER")}
    async with place(services) as shared, serving(shared, **ON, **slow) as server:
        alice = await Account().register(server.url)
        budget = server.app.ledger.account(UUID(alice.user_id))
        before = {kind: left(server, alice, kind) for kind in (BYTES_IN, BYTES_OUT, TRANSFER)}
        answer = await alice.put("/users/me", {"settings": {"x": "y" * 10_000}})
        assert 10_000 <= before[BYTES_IN] - left(server, alice, BYTES_IN) <= 10_500
        assert before[TRANSFER] == left(server, alice, TRANSFER)
        await alice.get("/users/me")
        assert before[BYTES_OUT] - left(server, alice, BYTES_OUT) >= 2 * len(answer.raw) - 200
        budget.charge(BYTES_OUT, 3 << 30)
        refused = await alice.get("/users/me")
        assert (refused.status, standing(refused)["bytes-out"]["r"]) == (429, 0)


@pytest.mark.gen_test
async def test_frames_are_refused_by_their_ids_and_the_socket_stays(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON, BUDGET_FANOUT="3KiB/hour") as server:
        alice, bob = [await Account().register(server.url) for _ in range(2)]
        chat = (await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).json["id"]
        async with alice.socket() as socket:
            seen = []
            for _ in range(8):
                answer = await socket.send("message_send", chat_id=chat, **message())
                seen.append(answer["type"])
            assert (seen[0], seen[-1]) == ("ack", "error")
            assert seen == sorted(seen)
            assert (answer["code"], answer["retry_after"] > 0) == ("rate_limited", True)
            stored = (await bob.get(f"/chats/{chat}/messages")).json
            assert len(stored) == seen.count("ack")
            # What sends nothing to others goes on.
            assert (await socket.send("auth", access_token=alice.token))["type"] == "ack"


@pytest.mark.gen_test
async def test_the_sender_pays_for_all_who_receive(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON, BUDGET_FANOUT="1GiB/30 days") as server:
        alice, *others = [await Account().register(server.url) for _ in range(6)]
        names = [other.public_id for other in others]
        chat = (await alice.post("/chats", {"type": "group", "participants": names})).json["id"]
        before = left(server, alice, FANOUT)
        await alice.post(f"/chats/{chat}/messages", message(encrypted_payload="QUJD" * 1000))
        assert 6 * 4000 < before - left(server, alice, FANOUT) < 6 * 5000
        assert left(server, others[0], FANOUT) == 1 << 30


@pytest.mark.gen_test
async def test_two_servers_share_the_budgets_of_an_account(services: Services) -> None:
    small = {**ON, "BUDGET_REQUESTS": "20/minute"}
    async with place(services) as shared, serving(shared, **small) as one, serving(shared, **small) as two:
        alice = await Account().register(one.url)
        statuses = [(await alice.get("/users/me")).status for _ in range(22)]
        assert statuses.count(200) in (20, 21)
        await one.app.ledger.settle()
        await ask(two.url, "GET", "/users/me", token=alice.token)
        await two.app.ledger.settle()
        assert (await ask(two.url, "GET", "/users/me", token=alice.token)).status == 429


@pytest.mark.gen_test(timeout=60)
async def test_with_redis_killed_each_server_counts_for_itself(services: Services, folder: Path) -> None:
    small = {**ON, "BUDGET_REQUESTS": "20/5 minutes"}
    async with (
        place(services) as shared,
        valkey(folder) as (url, admin),
        serving(replace(shared, redis=url), **small) as server,
    ):
        alice = await Account().register(server.url)
        assert [(await alice.get("/users/me")).status for _ in range(5)] == [200] * 5
        await server.app.ledger.settle()
        with contextlib.suppress(RedisError):
            await admin.execute_command("SHUTDOWN", "NOSAVE")
        statuses = []
        for _ in range(20):
            statuses.append((await alice.get("/users/me")).status)
            await server.app.ledger.settle(all_=True)
        assert statuses[:15] == [200] * 15
        assert statuses[-3:] == [429] * 3


@pytest.mark.gen_test
async def test_a_session_is_refreshed_so_often_and_the_token_stays_good(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON, RATE_LIMIT_REFRESH="3/minute") as server:
        alice = await Account().register(server.url)
        token, statuses = alice.refresh_token, []
        for _ in range(4):
            answer = await ask(server.url, "POST", "/auth/refresh", {"refresh_token": token})
            statuses.append(answer.status)
            token = answer.json.get("refresh_token", token)
        assert statuses == [200, 200, 200, 429]
        assert await server.app.db.value("SELECT count(*) FROM spent_refresh_tokens") == 3
        assert (await ask(server.url, "GET", "/users/me", token=alice.token)).status == 200


@pytest.mark.gen_test
async def test_a_thief_who_uses_up_the_budgets_can_not_prevent_the_end_of_the_session(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON, BUDGET_REQUESTS="5/hour") as server:
        alice = await Account().register(server.url)
        stolen = alice.session_id
        await alice.login()
        while (await alice.get("/users/me")).status == 200:
            pass
        assert stolen in [session["id"] for session in (await alice.get("/auth/sessions")).json]
        assert (await alice.delete(f"/auth/sessions/{stolen}")).status == 204
        assert (await alice.post("/auth/logout", {"all": True})).status == 204


@pytest.mark.gen_test
async def test_monitors_are_never_refused(services: Services) -> None:
    settings = {**ON, "BUDGET_REQUESTS": "1/hour", "BUDGET_ADDRESS_TIMES": "1", "TRUSTED_PROXIES": "127.0.0.1/32"}
    async with place(services) as shared, serving(shared, **settings) as server:
        for path in ("/health/live", "/metrics", "/health"):
            assert [(await ask(server.url, "GET", path)).status for _ in range(3)] == [200] * 3
        stranger = {"X-Forwarded-For": "198.51.100.7"}
        statuses = [(await ask(server.url, "GET", "/health/live", headers=stranger)).status for _ in range(3)]
        assert statuses == [200, 429, 429]


@pytest.mark.gen_test(timeout=60)
async def test_a_busy_client_meets_no_limit_at_the_defaults(services: Services) -> None:
    """A phone that reconnects, scaled down: queued messages by frames, pages, receipts, people and keys at once."""
    async with place(services) as shared, serving(shared, **ON) as server:
        alice, *others = [await Account().register(server.url) for _ in range(12)]
        chat = (await alice.post("/chats", {"type": "group", "participants": [others[0].public_id]})).json["id"]
        async with alice.socket() as socket:
            for _ in range(150):
                assert (await socket.send("message_send", chat_id=chat, **message()))["type"] == "ack"
        asked = [alice.post(f"/chats/{chat}/participants", {"public_id": other.public_id}) for other in others[1:]]
        asked += [alice.get(f"/chats/{chat}/messages?limit=200") for _ in range(50)]
        asked += [alice.post(f"/chats/{chat}/receipts", {"read_seq": number}) for number in range(50)]
        asked += [alice.get("/sync") for _ in range(50)]
        asked.append(alice.post("/users/me/prekeys", {"one_time_prekeys": [alice.prekey(n) for n in range(100, 200)]}))
        statuses = set()
        for start in range(0, len(asked), 8):
            statuses |= {answer.status for answer in await asyncio.gather(*asked[start : start + 8])}
        assert statuses == {200, 201}
        assert left(server, alice, REQUESTS) > 2500
