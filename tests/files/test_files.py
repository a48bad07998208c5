"""Files on a local disk and on a real S3 server: up and down again, whole, and for those who may."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from tests.client import Account, Answer, ask
from tests.files.transfer import MIB, announce, got, put, send, sha256
from tests.running import Services, place, serving


@pytest.mark.gen_test
async def test_an_upload_by_another_method_begins_nothing(services: Services) -> None:
    """Found by Schemathesis: an upload was begun, and its address judged, before anybody looked at the method."""
    async with place(services) as home, serving(home) as running:
        alice = await Account().register(running.url)
        announced = await announce(alice, b"content")
        url = announced.json["upload"]["url"]
        for method in ("POST", "PATCH"):
            for address in (url, url[:-8] + "0" * 8):
                refused = await send(method, address, b"content")
                assert (refused.code, refused.headers["Allow"]) == (405, "PUT, OPTIONS")
        file_id = announced.json["file_id"]
        assert (await alice.post(f"/files/{file_id}/complete", {})).code == "not_uploaded"
        assert (await put(announced, b"content")).code == 204
        assert (await alice.post(f"/files/{file_id}/complete", {})).status == 200


@pytest.mark.gen_test
async def test_a_file_goes_up_and_comes_down(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(MIB + 17)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        announced = await announce(alice, content, media_type="image/png")
        assert announced.status == 201, announced.text
        upload = announced.json["upload"]
        assert upload["method"] == "PUT"
        assert upload["expires_at"].endswith("Z")
        file_id = announced.json["file_id"]
        assert (await got(alice, file_id)).code == 404
        early = await alice.post(f"/files/{file_id}/complete", {})
        assert (early.status, early.code) == (409, "not_uploaded")

        assert (await put(announced, content)).code in (200, 204)
        done = await alice.post(f"/files/{file_id}/complete", {})
        assert done.status == 200, done.text
        again = await alice.post(f"/files/{file_id}/complete", {})
        assert (again.status, again.json) == (200, done.json)
        assert done.json == (await alice.get(f"/files/{file_id}")).json
        assert {**done.json, "created_at": 0, "completed_at": 0} == {
            "file_id": file_id,
            "owner_id": alice.user_id,
            "chat_id": None,
            "size": len(content),
            "sha256": sha256(content),
            "media_type": "image/png",
            "state": "complete",
            "created_at": 0,
            "completed_at": 0,
        }

        whole = await got(alice, file_id)
        assert (whole.code, whole.body) == (200, content)
        assert whole.headers["Content-Type"] == "application/octet-stream"
        assert whole.headers["Content-Disposition"] == "attachment"
        part = await got(alice, file_id, Range="bytes=5-9")
        assert (part.code, part.body) == (206, content[5:10])
        assert part.headers["Content-Range"] == f"bytes 5-9/{len(content)}"
        last = await got(alice, file_id, Range="bytes=-7")
        assert (last.code, last.body) == (206, content[-7:])
        assert (await got(alice, file_id, Range=f"bytes={len(content)}-")).code == 416
        head = await got(alice, file_id, "HEAD")
        assert (head.code, head.body, head.headers["Content-Length"]) == (200, b"", str(len(content)))
        tag = whole.headers["ETag"]
        assert (await got(alice, file_id, If_None_Match=tag)).code == 304

        usage = (await alice.get("/files/usage")).json
        assert (usage["tier"], usage["files"], usage["used_bytes"]) == ("free", 1, len(content))
        assert (await alice.delete(f"/files/{file_id}")).status == 204
        assert (await alice.get(f"/files/{file_id}")).status == 404
        assert (await got(alice, file_id)).code == 404
        assert (await alice.get("/files/usage")).json["used_bytes"] == 0
        assert await running.app.db.value("SELECT count(*) FROM file_removals") == 0


@pytest.mark.gen_test
async def test_an_upload_that_differs_from_its_announcement_is_removed(
    services: Services, storage: dict[str, str]
) -> None:
    content = secrets.token_bytes(100_000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        announced = await announce(alice, content)
        assert (await put(announced, content[:-1] + bytes([content[-1] ^ 1]))).code in (200, 204)
        file_id = announced.json["file_id"]
        refused = await alice.post(f"/files/{file_id}/complete", {})
        assert (refused.status, refused.code) == (409, "content_mismatch")
        assert (await alice.get(f"/files/{file_id}")).status == 404
        assert (await alice.get("/files/usage")).json["used_bytes"] == 0


@pytest.mark.gen_test
async def test_another_size_is_not_taken(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(1000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        announced = await announce(alice, content)
        assert (await put(announced, content + b"x")).code in (403, 413)
        assert (await put(announced, content[:-1])).code in (400, 403)
        early = await alice.post(f"/files/{announced.json['file_id']}/complete", {})
        assert early.code == "not_uploaded"
        assert (await put(announced, content)).code in (200, 204)
        assert (await put(announced, secrets.token_bytes(1000))).code == 412, "nothing takes its place"
        assert (await alice.post(f"/files/{announced.json['file_id']}/complete", {})).status == 200
        assert (await put(announced, secrets.token_bytes(1000))).code in (404, 412)
        assert (await got(alice, announced.json["file_id"])).body == content


@pytest.mark.gen_test
async def test_the_address_can_not_be_bent(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        mine, other = [await announce(alice, secrets.token_bytes(64)) for _ in range(2)]
        upload = mine.json["upload"]
        for bent in (
            upload["url"][:-1] + ("0" if upload["url"][-1] != "0" else "1"),
            upload["url"].partition("?")[0],
            upload["url"].replace("xpires=", "xpires=9"),
            other.json["upload"]["url"].partition("?")[0] + "?" + upload["url"].partition("?")[2],
        ):
            answer = await send("PUT", bent, bytes(64), upload["headers"])
            assert answer.code in (400, 403), bent
        assert (await send("GET", upload["url"])).code in (403, 405)


async def announce_patiently(account: Account, content: bytes) -> Answer:
    """Announce a file, and again while the server has no connection to its database free."""
    while (answer := await announce(account, content)).status == 503:
        await asyncio.sleep(0.2)
    return answer


@pytest.mark.gen_test(timeout=120)
async def test_the_quota_holds_when_many_race(services: Services, storage: dict[str, str]) -> None:
    limits = {"TIER_FREE_TOTAL_BYTES": "10 MiB", "TIER_FREE_FILE_BYTES": "1MiB"}
    content = secrets.token_bytes(MIB)
    async with place(services) as home, serving(home, **storage, **limits) as running:
        alice = await Account().register(running.url)
        answers = await asyncio.gather(*(announce_patiently(alice, content) for _ in range(20)))
        good = [answer for answer in answers if answer.status == 201]
        assert len(good) == 10
        refused = {(answer.status, answer.code) for answer in answers if answer.status != 201}
        assert refused == {(507, "quota_exceeded")}
        for announced in good:
            assert (await put(announced, content)).code in (200, 204)
        too_large = await announce(alice, content + b"x")
        assert (too_large.status, too_large.code) == (413, "file_too_large")
        assert (await alice.get("/files/usage")).json == {
            "tier": "free",
            "files": 10,
            "used_bytes": 10 * MIB,
            "total_bytes": 10 * MIB,
            "file_bytes": MIB,
        }
        for announced in good[:3]:
            assert (await alice.delete(f"/files/{announced.json['file_id']}")).status == 204
        answers = await asyncio.gather(*(announce_patiently(alice, content) for _ in range(20)))
        assert sum(answer.status == 201 for answer in answers) == 3


@pytest.mark.gen_test
async def test_health_says_how_the_storage_is(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        health = await ask(running.url, "GET", "/health")
        assert (health.status, health.json["storage"]) == (200, "ok")
