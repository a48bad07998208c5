"""tus 1.0 by the letter, on both storages: created, gone on with, checked, ended, run out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from email.utils import parsedate_to_datetime
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from handlers.http import listener
from tests.client import Account, ask
from tests.files import tus
from tests.files.transfer import MIB, bearer, got, send, sha256
from tests.running import Services, periodic, place, serving
from tests.thorough import rounds
from tests.waiting import WAIT


@pytest.mark.gen_test
async def test_options_lists_the_tus_version_and_extensions(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        answer = await ask(running.url, "OPTIONS", "/files/tus")
        assert answer.status == 204
        assert answer.headers["Tus-Version"] == answer.headers["Tus-Resumable"] == "1.0.0"
        assert set(answer.headers["Tus-Extension"].split(",")) == {
            "creation",
            "creation-with-upload",
            "checksum",
            "termination",
            "expiration",
        }
        assert answer.headers["Tus-Max-Size"] == str(2 << 30)
        assert "sha1" in answer.headers["Tus-Checksum-Algorithm"].split(",")


@pytest.mark.gen_test
async def test_an_upload_in_pieces(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(300_001)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        said = tus.metadata(filename="holiday ü.jpg", filetype="image/jpeg", sha256=sha256(content)) + ",flag"
        upload = await tus.created(alice, len(content), Upload_Metadata=said)
        first = await upload.ask("HEAD")
        assert (first.code, first.headers["Upload-Offset"], first.headers["Upload-Length"]) == (200, "0", "300001")
        assert first.headers["Upload-Metadata"] == said
        assert first.headers["Cache-Control"] == "no-store"
        left = parsedate_to_datetime(first.headers["Upload-Expires"]).timestamp() - time.time()
        assert 23.9 * 3600 < left <= 24 * 3600
        shown = (await alice.get(f"/files/{upload.file_id}")).json
        assert (shown["state"], shown["media_type"], shown["size"]) == ("uploading", "image/jpeg", len(content))
        assert (await alice.post(f"/files/{upload.file_id}/complete", {})).code == "not_uploaded"
        for start in range(0, len(content), 77_777):
            assert await upload.offset() == start
            wrong = await upload.patch(start + 1, content[start:])
            assert (wrong.code, json.loads(wrong.body)["error"]) == (409, "offset_mismatch")
            answer = await upload.patch(start, content[start : start + 77_777])
            assert answer.code == 204, answer.body
            assert answer.headers["Upload-Offset"] == str(min(start + 77_777, len(content)))
        shown = (await alice.get(f"/files/{upload.file_id}")).json
        assert (shown["state"], shown["sha256"]) == ("complete", sha256(content))
        assert (await got(alice, upload.file_id)).body == content
        assert await upload.offset() == len(content)
        assert "Upload-Metadata" not in (await upload.ask("HEAD")).headers, "the name of a file is forgotten"
        assert (await alice.post(f"/files/{upload.file_id}/complete", {})).status == 200
        assert (await upload.patch(len(content), b"")).code == 204
        assert (await upload.patch(0, content)).code == 409


@pytest.mark.gen_test
async def test_a_file_that_announced_no_hash_gets_its_own(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(20_000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, len(content))
        assert (await upload.patch(0, content[:10])).code == 204
        assert (await upload.patch(10, content[10:])).code == 204
        assert (await alice.get(f"/files/{upload.file_id}")).json["sha256"] == sha256(content)


@pytest.mark.gen_test
async def test_another_content_than_announced_is_removed(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(20_000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, len(content), Upload_Metadata=tus.metadata(sha256=sha256(b"other")))
        answer = await upload.patch(0, content)
        assert (answer.code, json.loads(answer.body)["error"]) == (409, "content_mismatch")
        assert (await upload.ask("HEAD")).code == 404
        assert (await alice.get("/files/usage")).json["used_bytes"] == 0


@pytest.mark.gen_test
async def test_created_with_its_content(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(50_000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        answer = await tus.creation(alice, len(content), content[:20_000], Content_Type=tus.BODY)
        assert (answer.code, answer.headers["Upload-Offset"]) == (201, "20000")
        upload = tus.Upload(alice, answer.headers["Location"])
        assert (await upload.patch(20_000, content[20_000:])).code == 204
        assert (await got(alice, upload.file_id)).body == content
        whole = await tus.creation(alice, len(content), content, Content_Type=tus.BODY)
        assert (whole.code, whole.headers["Upload-Offset"]) == (201, "50000")
        assert "Upload-Expires" not in whole.headers
        assert (await tus.creation(alice, 10, content, Content_Type=tus.BODY)).code == 413
        wrong = await tus.creation(alice, 9, b"123", Content_Type=tus.BODY, Upload_Checksum=tus.checksum(b"124"))
        assert wrong.code == 460
        assert (await alice.get("/files/usage")).json["files"] == 2, "what came to nothing takes no room"


@pytest.mark.gen_test
async def test_a_piece_with_a_wrong_checksum_does_not_count(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(600_000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, len(content), Upload_Metadata=tus.metadata(sha256=sha256(content)))
        for algorithm in ("sha1", "sha256", "md5"):
            start = await upload.offset()
            piece = content[start : start + 200_000]
            damaged = bytes([piece[0] ^ 1]) + piece[1:]
            answer = await upload.patch(start, damaged, Upload_Checksum=tus.checksum(piece, algorithm))
            assert (answer.code, json.loads(answer.body)["error"]) == (460, "checksum_mismatch")
            assert await upload.offset() == start
            answer = await upload.patch(start, piece, Upload_Checksum=tus.checksum(piece, algorithm))
            assert answer.code == 204, answer.body
        assert (await got(alice, upload.file_id)).body == content


@pytest.mark.gen_test
async def test_a_wish_that_tus_does_not_know(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        for size in ("", "-1", "0", "1e3", "²", "9" * 30):
            assert (await tus.creation(alice, size)).code == 400, size
        for said in ("name", "a b c", "name %%%", "a YQ==,a YQ==", "x" * 5000):
            answer = await tus.creation(alice, 5, Upload_Metadata=said)
            assert answer.code == (201 if said == "name" else 400), said
        assert (await tus.creation(alice, 5, Upload_Metadata=tus.metadata(sha256="x"))).code == 400
        assert (await tus.creation(alice, 5, Upload_Metadata=tus.metadata(chat_id=str(uuid4())))).code == 404
        assert (await tus.creation(alice, 5, Upload_Concat="partial")).code == 400
        old = await send("POST", f"{alice.url}/files/tus", b"", bearer(alice, Upload_Length="5"))
        assert (old.code, old.headers["Tus-Version"]) == (412, "1.0.0")
        upload = await tus.created(alice, 5)
        assert (await send("PATCH", upload.url, b"12345", bearer(alice, Tus_Resumable="0.2.2"))).code == 412
        assert (await upload.patch(0, b"12345", Content_Type="text/plain")).code == 415
        assert (await upload.patch(0, b"12345", Upload_Checksum="crc32 AAAA")).code == 400
        assert (await upload.patch(0, b"12345", Upload_Checksum="sha1 %%")).code == 400
        assert (await upload.ask("PATCH", b"12345", Content_Type=tus.BODY)).code == 400
        assert (await upload.patch(0, b"123456")).code == 413
        assert (await upload.ask("POST", b"", X_HTTP_Method_Override="HEAD")).code == 200
        headers = {"X_HTTP_Method_Override": "PATCH", "Content_Type": tus.BODY, "Upload_Offset": "0"}
        assert (await upload.ask("POST", b"12345", **headers)).code == 204
        assert (await got(alice, upload.file_id)).body == b"12345"


@pytest.mark.gen_test
async def test_an_upload_is_taken_back(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, 9 * MIB)
        assert (await upload.patch(0, secrets.token_bytes(8 * MIB + 5))).code == 204
        assert (await upload.ask("DELETE")).code == 204
        assert (await upload.ask("HEAD")).code == 404
        assert (await upload.patch(0, b"x")).code == 404
        assert (await upload.ask("DELETE")).code == 404
        assert (await alice.get("/files/usage")).json["used_bytes"] == 0


@pytest.mark.gen_test
async def test_an_upload_that_runs_out_gives_its_room_back(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, 9 * MIB)
        assert (await upload.patch(0, secrets.token_bytes(8 * MIB + 5))).code == 204
        kept = await tus.created(alice, 5)
        await running.app.db.execute(
            "UPDATE files SET expires_at = now() - interval '1 second' WHERE id = $1::text::uuid", upload.file_id
        )
        assert (await upload.ask("HEAD")).code == 404
        assert (await upload.patch(8 * MIB + 5, b"x")).code == 404
        await periodic(running, "files")()
        assert (await alice.get("/files/usage")).json["used_bytes"] == 5
        assert await kept.offset() == 0


@pytest.mark.gen_test(timeout=120)
async def test_bytes_from_before_a_broken_connection_are_kept(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(9 * MIB)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, len(content), Upload_Metadata=tus.metadata(sha256=sha256(content)))
        offset = 0
        for size in (300_000, 1, 5 * MIB, 2 * MIB):
            async with upload.broken(offset, content[offset : offset + size]):
                await asyncio.sleep(0.3)
            found = await upload.offset()
            assert offset < found <= offset + size
            offset = found
        answer = await upload.patch(offset, content[offset:])
        assert answer.code == 204, answer.body
        assert (await got(alice, upload.file_id)).body == content


@pytest.mark.gen_test
async def test_a_resumed_upload_ends_the_hanging_request(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(200_000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, len(content))
        async with upload.broken(0, content[:100_000], 100_000) as (reader, writer):
            await asyncio.sleep(0.2)
            offset = await upload.offset()
            assert offset == 0 or offset == 100_000, "a block is passed on when it is full, or when the request ends"
            assert (await upload.patch(offset, content[offset:])).code == 204
            writer.write(bytes(100_000))  # the old one wakes up again
            with contextlib.suppress(ConnectionError):
                head = await reader.read(12)
                assert head[9:] in (b"", b"404", b"423")
        assert (await got(alice, upload.file_id)).body == content


@pytest.mark.gen_test
async def test_an_upload_that_stalls_is_dropped(
    services: Services, storage: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "STALL_SECONDS", 1.5)
    content = secrets.token_bytes(3000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, len(content))
        async with upload.broken(0, content[:1000], 2000) as (reader, writer):
            for start in range(1000, 2000, 200):  # slow is not silent
                await asyncio.sleep(0.4)
                writer.write(content[start : start + 200])
            async with asyncio.timeout(WAIT):
                assert await reader.read() == b""
        assert await upload.offset() == 2000


PIECES = st.lists(
    st.tuples(st.integers(1, 9 * MIB), st.booleans(), st.sampled_from(["whole", "checked", "broken"])),
    min_size=1,
    max_size=8,
)


def test_however_it_is_cut_it_is_put_together(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(9 * MIB + 1)
    with asyncio.Runner() as runner:
        home = place(services)
        at = serving(runner.run(home.__aenter__()), **storage)
        running = runner.run(at.__aenter__())
        alice = runner.run(Account().register(running.url))

        @settings(
            max_examples=rounds(5, thorough=40),
            deadline=None,
            database=None,
            phases=[Phase.generate],  # a shorter example would be another one: the clock has its part in it
            suppress_health_check=list(HealthCheck),
        )
        @given(PIECES)
        def cut(pieces: list[tuple[int, bool, str]]) -> None:
            runner.run(sent(pieces))

        async def sent(pieces: list[tuple[int, bool, str]]) -> None:
            upload = await tus.created(alice, len(content), Upload_Metadata=tus.metadata(sha256=sha256(content)))
            offset = 0
            for size, wrong, how in [*pieces, (len(content), False, "whole")]:
                piece = content[offset : offset + size]
                if wrong:
                    assert (await upload.patch(offset + 1, piece)).code == 409
                if how == "broken":
                    async with upload.broken(offset, piece, len(content) - offset - len(piece)):
                        await asyncio.sleep(0.05)
                    found = await upload.offset()
                    assert offset <= found <= offset + len(piece)
                    offset = found
                else:
                    headers = {"Upload_Checksum": tus.checksum(piece)} if how == "checked" else {}
                    answer = await upload.patch(offset, piece, **headers)
                    assert answer.code == 204, answer.body
                    offset += len(piece)
                assert await upload.offset() == offset
                if offset == len(content):
                    break
            assert (await alice.get(f"/files/{upload.file_id}")).json["sha256"] == sha256(content)
            assert sha256((await got(alice, upload.file_id)).body) == sha256(content)
            assert (await alice.delete(f"/files/{upload.file_id}")).status == 204

        try:
            cut()
        finally:
            runner.run(at.__aexit__(None, None, None))
            runner.run(home.__aexit__(None, None, None))
