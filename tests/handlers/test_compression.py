"""JSON answers of 1 KiB and more are compressed for clients that accept it, and no answer with a secret in it."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import secrets
from typing import Any

import pytest

from handlers.http import compression
from handlers.http.base import ApiHandler
from handlers.http.compression import accepts_gzip, may_compress
from tests.client import Account, Answer, ask
from tests.files.transfer import got
from tests.files.transfer import shared as upload
from tests.handlers.raw import line, request
from tests.running import Services, document_of, place, serving
from tests.waiting import WAIT

GZIP = {"Accept-Encoding": "gzip, deflate, br"}


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("deflate, gzip;q=0.5", True),
        ("x-gzip", True),
        ("*", True),
        ("br", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("*;q=0, gzip", True),
        ("gzipped", False),
    ],
)
def test_a_client_says_what_it_accepts(accepted: str, taken: bool) -> None:
    assert accepts_gzip(accepted) is taken


async def compressed(account: Account, path: str, method: str = "GET", **headers: str) -> Answer:
    return await ask(account.url, method, path, token=account.token, headers=GZIP | headers)


def unpacked(answer: Answer) -> Any:
    assert answer.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["Vary"]
    return answer.json


@pytest.mark.gen_test
async def test_long_answers_are_compressed_for_clients_that_accept_it(services: Services) -> None:
    async with place(services) as shared, serving(shared, CORS_ALLOW_ORIGINS="https://app.example") as one:
        alice = await Account().register(one.url)
        settings = {"drafts": "written by hand, " * 200}
        await alice.put("/users/me", {"settings": settings})
        plain, packed = await alice.get("/users/me"), await compressed(alice, "/users/me")
        assert unpacked(packed) == plain.json
        assert len(packed.raw) < len(plain.raw) / 4
        assert "Content-Encoding" not in plain.headers
        for answer in (plain, packed):
            assert answer.headers["Content-Length"] == str(len(answer.raw))
            assert {"Accept-Encoding", "Origin"} <= set(answer.headers["Vary"].split(","))
        head = await compressed(alice, "/users/me", "HEAD")
        assert (head.raw, head.headers["Content-Length"]) == (b"", str(len(packed.raw)))
        assert head.headers["Content-Encoding"] == "gzip"
        # A short answer is as it is, and says that it might have been otherwise.
        short = await compressed(alice, f"/users/{alice.public_id}")
        assert len(short.raw) < compression.MIN_BYTES
        assert "Content-Encoding" not in short.headers
        assert "Accept-Encoding" in short.headers["Vary"]
        # Refusals are JSON as well.
        long = {"one_time_prekeys": [{"key_id": True, "public_key": ""}] * 40}
        refused = await ask(one.url, "POST", "/users/me/prekeys", long, alice.token, GZIP)
        assert refused.status == 400
        assert len(unpacked(refused)["details"]) >= 40


@pytest.mark.gen_test
async def test_bytes_of_files_are_as_they_are(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account().register(one.url)
        file_id = await upload(alice, b"x" * 5000)
        content = await got(alice, file_id, Accept_Encoding="gzip")
        assert content.body == b"x" * 5000
        assert "Content-Encoding" not in content.headers


def has_secret(schema: Any, schemas: Any, seen: frozenset[str] = frozenset()) -> bool:
    """True if a schema has a field that is a credential."""
    if isinstance(schema, list):
        return any(has_secret(part, schemas, seen) for part in schema)
    if not isinstance(schema, dict):
        return False
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name:
        return name not in seen and has_secret(schemas[name], schemas, seen | {name})
    fields = schema.get("properties", {})
    if any(re.search(r"token$|secret|credential|challenge", field) for field in fields):
        return True
    return any(has_secret(part, schemas, seen) for part in schema.values())


@pytest.mark.gen_test
async def test_no_answer_with_a_secret_in_it_may_be_compressed(services: Services) -> None:
    """BREACH: the length would reveal a part of it. This checks all routes of the server."""
    async with place(services) as shared, serving(shared) as one:
        document = json.loads(document_of(one))
        secret = {
            path
            for path, item in document["paths"].items()
            for operation in item.values()
            if isinstance(operation, dict)
            for status, response in operation["responses"].items()
            if status.startswith("2")
            for content in response.get("content", {}).values()
            if has_secret(content.get("schema"), document["components"]["schemas"])
        }
        assert {"/auth/register", "/auth/login", "/auth/refresh", "/calls/turn-credentials"} <= secret
        assert any(path.endswith("/invites") for path in secret)
        assert [path for path in secret if may_compress(path)] == []
        for path in ("/devices", "/devices/links", "/devices/links/x", "/users/me/invites", "/auth"):
            assert not may_compress(path)
        for path in ("/users/me", "/chats", "/sync", "/authors", "/users/invites_1", "/users/devices"):
            assert may_compress(path)
        signed_in = await ask(one.url, "POST", "/auth/register", Account().body(), headers=GZIP)
        assert "Content-Encoding" not in signed_in.headers
        assert "Accept-Encoding" not in signed_in.headers.get("Vary", "")


class Large(ApiHandler):
    """An answer of 1 MiB that compresses badly, as pages of messages do."""

    public = True
    CONTENT = tuple(secrets.token_urlsafe(120) for _ in range(6500))

    def get(self) -> None:
        self.reply(self.CONTENT)


@pytest.mark.gen_test
async def test_a_large_answer_does_not_hold_the_loop(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        one.site.add_handlers(".*", [("/large", Large)])
        async with line(one.url) as each:
            answer = await each.ask(request("GET /large", Accept_Encoding="gzip"))
            assert answer.headers["Content-Encoding"] == "gzip"
            assert tuple(json.loads(gzip.decompress(answer.body))) == Large.CONTENT
            assert await each.stays()
        turns = 0

        async def look() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        looking = asyncio.ensure_future(look())
        packing = [
            asyncio.ensure_future(one.site.compressor.compress(b"".join(map(str.encode, Large.CONTENT)))) for _ in "abc"
        ]
        await asyncio.gather(*packing)
        looking.cancel()
        # Compressing them on the loop would have left it a few turns between the three.
        assert turns > 100, turns


@pytest.mark.gen_test
async def test_a_client_that_goes_away_meanwhile_leaves_nothing_open(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        one.site.add_handlers(".*", [("/large", Large)])
        async with line(one.url) as gone:
            gone.writer.write(request("GET /large", Accept_Encoding="gzip"))
            await gone.writer.drain()
            await asyncio.sleep(0.005)
        async with asyncio.timeout(WAIT):
            while one.site.active or one.site.background:
                await asyncio.sleep(0.01)
