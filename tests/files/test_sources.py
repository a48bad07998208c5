"""``GET /files/{id}/content`` with ``Accept: application/json``: an address for the bytes, with S3 and without."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import orjson
import pytest

from plugins.files.http import prefers_json
from plugins.files.links import DOWNLOAD_SECONDS
from tests import canaries
from tests.client import Account
from tests.files.test_access import group
from tests.files.transfer import announce, bearer, got, send, shared
from tests.running import Services, place, serving


async def source(account: Account, file_id: str) -> dict[str, Any]:
    answer = await send(
        "GET", f"{account.url}/files/{file_id}/content", None, bearer(account, Accept="application/json")
    )
    assert (answer.code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Accept" in ", ".join(answer.headers.get_list("Vary"))
    given: dict[str, Any] = orjson.loads(answer.body)
    assert given.keys() == {"url", "expires_at"}
    query = parse_qs(urlsplit(given["url"]).query)
    canaries.plant(*(value for name, [value] in query.items() if "ignature" in name))
    return given


@pytest.mark.gen_test
async def test_the_address_gives_the_bytes_without_a_token(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(100)
    async with place(services) as home, serving(home, **storage) as running:
        alice, bob = [await Account().register(running.url) for _ in range(2)]
        file_id = await shared(alice, content)
        given = await source(alice, file_id)
        left = datetime.fromisoformat(given["expires_at"]) - datetime.now(UTC)
        assert timedelta(seconds=DOWNLOAD_SECONDS - 30) < left <= timedelta(seconds=DOWNLOAD_SECONDS)
        whole = await send("GET", given["url"])
        assert (whole.code, whole.body) == (200, content)
        part = await send("GET", given["url"], None, {"Range": "bytes=90-"})
        assert (part.code, part.body, part.headers["Content-Range"]) == (206, content[90:], "bytes 90-99/100")
        asked = bearer(alice, Accept="application/json")
        head = await send("HEAD", f"{alice.url}/files/{file_id}/content", None, asked)
        assert (head.code, head.headers["Content-Type"], head.body) == (200, "application/json", b"")
        # A stranger gets no address, and nothing else has changed.
        stranger = await send("GET", f"{bob.url}/files/{file_id}/content", None, bearer(bob, Accept="application/json"))
        assert stranger.code == 404
        unfinished = (await announce(alice, content)).json["file_id"]
        assert (await send("GET", f"{alice.url}/files/{unfinished}/content", None, asked)).code == 404
        for accept in ("*/*", "application/json, text/plain, */*", "application/octet-stream, application/json;q=0.5"):
            assert (await got(alice, file_id, Accept=accept, Range="bytes=0-9")).body == content[:10]


@pytest.mark.gen_test
async def test_an_address_of_ours_is_for_one_file_one_method_and_five_minutes(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = secrets.token_bytes(100)
    async with place(services) as home, serving(home) as running:
        alice = await Account().register(running.url)
        file_id, other = await shared(alice, content), await shared(alice, content + b"!")
        url = (await source(alice, file_id))["url"]
        assert url.startswith(f"{running.url}/downloads/{file_id}?")
        assert (await send("HEAD", url)).headers["Content-Length"] == "100"
        tag = (await send("GET", url)).headers["ETag"]
        assert (await send("GET", url, None, {"If-None-Match": tag})).code == 304
        expires = parse_qs(urlsplit(url).query)["expires"][0]
        for wrong in (
            url.replace(file_id, other),
            url.replace(alice.user_id, str(uuid4())),
            url.replace(f"expires={expires}", f"expires={int(expires) + 1}"),
            url[:-1] + ("0" if url[-1] != "0" else "1"),
        ):
            assert (await send("GET", wrong)).code == 403
        assert (await send("GET", f"{running.url}/downloads/{file_id}")).code == 400
        # An address to write to doesn't read, and the other way round.
        announced = await announce(alice, content)
        writes = announced.json["upload"]["url"]
        read = writes.replace("/uploads/", "/downloads/") + f"&reader={alice.user_id}"
        assert (await send("GET", read)).code == 403
        reads = url.replace(file_id, announced.json["file_id"]).replace("/downloads/", "/uploads/")
        assert (await send("PUT", reads, content)).code == 403
        later = datetime.now(UTC).timestamp() + DOWNLOAD_SECONDS + 1
        with monkeypatch.context() as patch:
            patch.setattr("plugins.files.links.time.time", lambda: later)
            assert (await send("GET", url)).code == 403
        assert (await alice.delete(f"/files/{file_id}")).status == 204
        assert (await send("GET", url)).code == 404


@pytest.mark.gen_test
async def test_an_address_of_ours_ends_with_its_reader_s_right(services: Services) -> None:
    async with place(services) as home, serving(home) as running:
        alice, bob, carol = [await Account().register(running.url) for _ in range(3)]
        chat_id = await group(alice, bob, carol)
        file_id = await shared(alice, b"content", chat_id=chat_id)
        of_bob, of_carol = [(await source(reader, file_id))["url"] for reader in (bob, carol)]
        assert (await alice.delete(f"/chats/{chat_id}/participants/{bob.user_id}")).status == 204
        assert [(await send("GET", url)).code for url in (of_bob, of_carol)] == [404, 200]


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json, */*;q=0", True),
        ("application/json, text/plain", True),
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("application/json;q=0", False),
        ("application/json;q=0.0, text/html", False),
        ("application/json, text/plain, */*", False),
        ("application/json, application/octet-stream;q=0.1", False),
        ("text/html", False),
        (",;,", False),
    ],
)
def test_json_is_sent_only_to_clients_that_accept_nothing_else(accept: str, json: bool) -> None:
    assert prefers_json(accept) is json
