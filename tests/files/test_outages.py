"""What can fail under a file: the server is killed, the storage is away, the disk is full, the bytes rot."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.storage import local
from tests.client import Account, ask
from tests.files import tus
from tests.files.seaweed import Seaweed, seaweed
from tests.files.transfer import MIB, announce, got, put, sha256, shared
from tests.running import Services, periodic, place, program, serving
from tests.waiting import SLACK, WAIT


@pytest.mark.gen_test(timeout=180)
async def test_an_upload_goes_on_after_the_server_was_killed(
    services: Services, storage: dict[str, str], tmp_path: Path
) -> None:
    content = secrets.token_bytes(40 * MIB)
    async with place(services) as home:
        async with program(home, tmp_path, **storage) as first:
            alice = await Account().register(first.url)
            whole = await shared(alice, content[:MIB])
            upload = await tus.created(alice, len(content), Upload_Metadata=tus.metadata(sha256=sha256(content)))
            assert (await upload.patch(0, content[:MIB])).code == 204
            async with upload.broken(MIB, content[MIB : 35 * MIB], 5 * MIB):
                await asyncio.sleep(1.5)
                first.kill()
                await first.process.wait()
        async with program(home, tmp_path, **storage) as second:
            alice.url = second.url
            upload.url = f"{second.url}/files/tus/{upload.file_id}"
            offset = await upload.offset()
            assert 16 * MIB <= offset <= 35 * MIB, "all acknowledged bytes, and nearly all others"
            assert (await upload.patch(offset, content[offset:])).code == 204
            assert sha256((await got(alice, upload.file_id)).body) == sha256(content)
            assert (await got(alice, whole)).body == content[:MIB]


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "frozen"])
async def test_a_storage_that_is_away_is_503_and_nothing_is_half_done(
    services: Services, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, killed: bool
) -> None:
    content = secrets.token_bytes(MIB)
    with seaweed(tmp_path_factory.mktemp("away")) as s3:
        settings = {"MIMU_DATA_DIR": str(tmp_path), **s3.settings()}
        async with place(services) as home, serving(home, **settings) as running:
            alice = await Account().register(running.url)
            file_id = await shared(alice, content)
            announced = await announce(alice, content)
            assert (await put(announced, content)).code == 200
            upload = await tus.created(alice, 2 * MIB)
            assert (await upload.patch(0, content[:1000])).code == 204

            s3.stop() if killed else s3.freeze()
            await asyncio.sleep(1.1)  # what is remembered of its health
            before = (await alice.get("/files/usage")).json
            started = time.monotonic()
            health = await ask(running.url, "GET", "/health")
            assert (health.status, health.json["storage"]) == (503, "error")
            assert time.monotonic() - started < 3 + SLACK
            assert (await ask(running.url, "GET", "/health/ready")).status == 200
            for asked in (
                announce(alice, content),
                alice.post(f"/files/{announced.json['file_id']}/complete", {}),
                alice.get(f"/files/{file_id}/content"),
            ):
                started = time.monotonic()
                answer = await asked
                assert (answer.status, answer.code) == (503, "unavailable")
                assert "Retry-After" in answer.headers
                assert time.monotonic() - started < 3 + SLACK
            assert (await tus.creation(alice, 5)).code == 503
            assert (await upload.patch(1000, content)).code == 503
            assert (await alice.get("/files/usage")).json == before
            other = await alice.get(f"/files/{announced.json['file_id']}")
            assert other.json["state"] == "uploading", "it can be completed afterwards"
            assert (await alice.delete(f"/files/{file_id}")).status == 204, "its bytes go when the storage is back"
            assert await running.app.db.value("SELECT count(*) FROM file_removals") == 1

            await asyncio.to_thread(s3.start if killed else s3.thaw)
            async with asyncio.timeout(30):  # it answers before it knows all that it has
                while (await alice.post(f"/files/{announced.json['file_id']}/complete", {})).status == 503:
                    await asyncio.sleep(0.3)
            assert (await got(alice, announced.json["file_id"])).body == content
            assert await upload.offset() == 1000
            await running.app.db.execute("UPDATE file_removals SET due_at = now()")
            await periodic(running, "files")()
            assert await running.app.db.value("SELECT count(*) FROM file_removals") == 0


@pytest.mark.gen_test(timeout=120)
async def test_a_server_starts_without_its_storage(
    services: Services, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    with seaweed(tmp_path_factory.mktemp("late")) as s3:
        s3.stop()
        settings = {"MIMU_DATA_DIR": str(tmp_path), **s3.settings()}
        async with place(services) as home, serving(home, **settings) as running:
            alice = await Account().register(running.url)
            assert (await announce(alice, b"content")).status == 503
            await asyncio.to_thread(s3.start)
            async with asyncio.timeout(30):
                while (await announce(alice, b"content")).status == 503:
                    await asyncio.sleep(0.3)
            file_id = await shared(alice, b"content")  # in a bucket that was made meanwhile
            assert (await got(alice, file_id)).body == b"content"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("NOT TESTED on a full disk: only root may mount one")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED on a full disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def _fills_up(services: Services, settings: dict[str, str]) -> None:
    content = secrets.token_bytes(10 * MIB)
    async with place(services) as home, serving(home, **settings) as running:
        alice = await Account().register(running.url)
        file_id = await shared(alice, content)
        resumable = await tus.created(alice, 20 * MIB)
        assert (await resumable.patch(0, content[:MIB])).code == 204
        announced = await announce(alice, content * 2)
        full = await put(announced, content * 2)
        assert full.code == 507
        assert b"storage_full" in full.body
        async with asyncio.timeout(WAIT):
            while (await resumable.patch(await resumable.offset(), content[: 4 * MIB])).code == 204:
                pass
        offset = await resumable.offset()
        assert MIB <= offset < 20 * MIB
        assert (await got(alice, file_id)).body == content, "what was there stays"
        assert (await alice.delete(f"/files/{announced.json['file_id']}")).status == 204
        assert (await alice.delete(f"/files/{file_id}")).status == 204
        assert (await resumable.patch(offset, content[:MIB])).code == 204, "with room again it goes on"


@pytest.mark.gen_test(timeout=120)
async def test_a_disk_that_fills_up(services: Services, small_disk: Path) -> None:
    await _fills_up(services, {"MIMU_DATA_DIR": str(small_disk)})


@pytest.mark.gen_test(timeout=120)
async def test_a_disk_that_fills_up_to_the_last_byte(
    services: Services, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "KEEP_FREE", 0)
    await _fills_up(services, {"MIMU_DATA_DIR": str(small_disk)})


@pytest.mark.gen_test(timeout=120)
async def test_a_file_that_the_system_lets_grow_no_further(services: Services, tmp_path: Path) -> None:
    content = secrets.token_bytes(4 * MIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with place(services) as home, serving(home, MIMU_DATA_DIR=str(tmp_path)) as running:
        alice = await Account().register(running.url)
        file_id = await shared(alice, content[:MIB])
        announced = await announce(alice, content)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
        try:
            full = await put(announced, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert full.code == 507
        assert (await put(announced, content)).code == 204
        assert (await got(alice, file_id)).body == content[:MIB]


@pytest.mark.gen_test
async def test_an_upload_that_fails_at_its_end_leaves_nothing_open(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(services) as home, serving(home, MIMU_DATA_DIR=str(tmp_path)) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, 1000)
        announced = await announce(alice, b"content")
        with monkeypatch.context() as full:
            full.setattr(local, "KEEP_FREE", 1 << 60)
            full.setattr(local, "KEEP_FREE_PART", 2)
            assert (await upload.patch(0, bytes(500))).code == 507
            assert (await put(announced, b"content")).code == 507
            assert (await announce(alice, b"content")).status == 507
            assert (await ask(running.url, "GET", "/health")).json["storage"] == "error"
        held = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
        assert not [path for path in held if path.is_relative_to(tmp_path)]
        assert (await upload.patch(0, bytes(500))).code == 204


@pytest.mark.gen_test
async def test_a_file_that_is_lost_is_not_found(services: Services, tmp_path: Path) -> None:
    async with place(services) as home, serving(home, MIMU_DATA_DIR=str(tmp_path)) as running:
        alice = await Account().register(running.url)
        file_id = await shared(alice, b"content")
        [path] = (tmp_path / "files").glob("??/*")
        assert path.stat().st_mode & 0o777 == 0o600
        assert file_id.replace("-", "") not in path.name
        path.unlink()
        assert (await got(alice, file_id)).code == 404


@pytest.mark.gen_test
async def test_rot_is_found_at_the_end(services: Services, tmp_path: Path) -> None:
    """The server was restarted, so that it has to read again what came before: and that is not what it was."""
    content = secrets.token_bytes(1000)
    async with place(services) as home:
        async with serving(home, MIMU_DATA_DIR=str(tmp_path)) as running:
            alice = await Account().register(running.url)
            upload = await tus.created(alice, 1000, Upload_Metadata=tus.metadata(sha256=sha256(content)))
            assert (await upload.patch(0, content[:500])).code == 204
        [path] = (tmp_path / "files").glob("??/*.part")
        path.write_bytes(bytes(500))
        async with serving(home, MIMU_DATA_DIR=str(tmp_path)) as running:
            again = tus.Upload(alice, f"{running.url}/files/tus/{upload.file_id}")
            assert (await again.patch(500, content[500:])).code == 409


@pytest.mark.gen_test(timeout=120)
async def test_an_erased_account_s_files_go(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice, bob = [await Account().register(running.url) for _ in range(2)]
        for _ in range(3):
            await shared(alice, secrets.token_bytes(1000))
        kept = await shared(bob, b"content")
        upload = await tus.created(alice, 9 * MIB)
        assert (await upload.patch(0, secrets.token_bytes(8 * MIB + 1))).code == 204
        erased = await ask(running.url, "DELETE", "/users/me", {"password": alice.password}, token=alice.token)
        assert erased.status == 204
        db = running.app.db
        assert await db.value("SELECT count(*) FROM files") == await db.value("SELECT count(*) FROM file_usage") == 1
        assert await db.value("SELECT count(*) FROM file_removals") == 4
        await periodic(running, "files")()
        assert await db.value("SELECT count(*) FROM file_removals") == 1, "more could come of the one under way"
        await db.execute("UPDATE file_removals SET due_at = now()")
        await periodic(running, "files")()
        assert await db.value("SELECT count(*) FROM file_removals") == 0
        assert (await got(bob, kept)).body == b"content"
        if "S3_BUCKET" not in storage:
            assert len(list(Path(storage["MIMU_DATA_DIR"]).glob("files/??/*"))) == 1


@pytest.mark.gen_test
async def test_two_instances_on_one_folder_don_t_write_into_each_other(services: Services, tmp_path: Path) -> None:
    content = secrets.token_bytes(600_000)
    own = {"MIMU_DATA_DIR": str(tmp_path)}
    async with place(services) as home, serving(home, **own) as one, serving(home, **own) as two:
        alice = await Account().register(one.url)
        upload = await tus.created(alice, len(content))
        other = tus.Upload(alice, upload.url.replace(one.url, two.url))
        async with upload.broken(0, content[:300_000], 300_000):
            await asyncio.sleep(0.2)
            assert (await other.patch(0, content)).code == 423
        offset = await upload.offset()
        assert (await other.patch(offset, content[offset:])).code == 204
        assert (await got(alice, upload.file_id)).body == content


@pytest.mark.gen_test(timeout=120)
async def test_a_deleted_file_is_removed_from_the_bucket(services: Services, s3: Seaweed, tmp_path: Path) -> None:
    settings = {"MIMU_DATA_DIR": str(tmp_path), **s3.settings()}
    async with place(services) as home, serving(home, **settings) as running:
        alice = await Account().register(running.url)
        file_id = await shared(alice, b"content")
        address = await got(alice, file_id)
        upload = await tus.created(alice, 20 * MIB)
        assert (await upload.patch(0, secrets.token_bytes(9 * MIB))).code == 204
        assert (await upload.ask("DELETE")).code == 204
        assert (await alice.delete(f"/files/{file_id}")).status == 204
        again = await got(alice, file_id)
        assert (address.code, again.code) == (200, 404)
        assert list((tmp_path / "spool").iterdir()) == []
