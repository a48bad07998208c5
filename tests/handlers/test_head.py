"""HEAD is GET without its body, if GET changes nothing (RFC 9110, 9.3.2)."""

from __future__ import annotations

from uuid import UUID

import pytest

from handlers.http.base import ApiHandler
from tests.client import Account, ask
from tests.files.transfer import got
from tests.files.transfer import shared as upload
from tests.running import Services, place, serving

SPENDS = ("Bundle", "Credentials", "SocketHandler")


@pytest.mark.gen_test
async def test_head_answers_as_get_does(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account().register(one.url)
        file_id = await upload(alice, b"x" * 3000)
        for path in (
            "/health/live",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/nothing",
            "/users/me",
            f"/users/{alice.public_id}",
            "/users/search?q=alice",
            "/users/search",
            "/users/me/prekeys",
            "/chats",
            "/sync",
            "/calls?limit=0",
            "/files",
            f"/files/{file_id}",
            f"/files/{file_id}/content",
            "/auth/sessions",
        ):
            answers = [await ask(one.url, method, path, token=alice.token) for method in ("GET", "HEAD")]
            got_, head = answers
            assert (head.status, head.raw) == (got_.status, b""), path
            for name in ("Content-Type", "ETag", "Vary", "Accept-Ranges", "Content-Encoding", "Cache-Control"):
                assert head.headers.get(name) == got_.headers.get(name), path
            if path != "/metrics":  # which has counted meanwhile
                assert head.headers["Content-Length"] == str(len(got_.raw)), path
        for path in ("/health", "/health/ready"):
            assert (await ask(one.url, "HEAD", path)).status == 200
        assert (await got(alice, file_id, "HEAD")).headers["ETag"]


@pytest.mark.gen_test
async def test_head_spends_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        for path in (f"/users/{alice.public_id}/prekeys", "/calls/turn-credentials", "/ws"):
            answer = await ask(one.url, "HEAD", path, token=bob.token)
            assert answer.status == 405
            assert "HEAD" not in answer.headers["Allow"]
        assert (await alice.get("/users/me/prekeys")).json["one_time_remaining"] == alice.one_time
        # Every other GET has its HEAD, and Allow says so.
        for rule in one.site.wildcard_router.rules:
            allowed = rule.target.allow().split(", ")
            assert ("HEAD" in allowed) == ("GET" in allowed and rule.target.__name__ not in SPENDS) or (
                "GET" not in allowed and rule.target.head is not ApiHandler.head
            ), rule.target


@pytest.mark.gen_test
async def test_head_of_sync_does_not_suppress_pushes(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has fetched /sync receives no push for its content."""
    seen: list[UUID] = []
    async with place(services) as shared, serving(shared) as one:
        alice = await Account().register(one.url)
        monkeypatch.setattr(one.app.alerts, "seen", seen.append)
        assert (await ask(one.url, "HEAD", "/sync", token=alice.token)).status == 200
        assert seen == []
        assert (await alice.get("/sync")).status == 200
        assert seen == [UUID(alice.user_id)]


@pytest.mark.gen_test
async def test_head_counts_as_get_does_where_gets_are_limited(services: Services) -> None:
    """The length of an answer reveals whether a user was found."""
    async with place(services) as shared, serving(shared, RATE_LIMITS="on", RATE_LIMIT_SEARCH="2/hour") as one:
        alice = await Account().register(one.url)
        codes = [(await ask(one.url, "HEAD", "/users/search?q=abc", token=alice.token)).status for _ in range(3)]
        assert codes == [200, 200, 429]
