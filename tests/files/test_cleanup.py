"""Periodic cleanup: uploads that were never finished, and bytes without a file row."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from models import files, orphans
from models.database import Database
from models.storage import Progress, StorageAway, new_key
from tests.client import Account
from tests.files import tus
from tests.files.transfer import MIB, announce, got, put, shared
from tests.running import Services, connected, periodic, place, serving
from tests.scripts.program import script


@pytest.mark.gen_test
async def test_the_script_does_it_too(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(1000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        kept = await shared(alice, content)
        gone = await shared(alice, content)
        announced = await announce(alice, content)
        assert (await put(announced, content)).code in (200, 204)
        db = running.app.db
        await db.execute("UPDATE files SET expires_at = now() - interval '1 s' WHERE state = 'uploading'")
        await db.execute("DELETE FROM files WHERE id = $1::text::uuid", gone)
        dry = await script(home, "cleanup", "--dry-run", "--json", **storage)
        assert (dry.json["due"]["files"], dry.json["due"]["stored_files"]) == (1, 1), dry.err
        done = await script(home, "cleanup", "--json", **storage)
        assert (done.code, done.json["removed"]["files"], done.json["removed"]["stored_files"]) == (0, 1, 1)
        assert (await alice.get("/files/usage")).json["used_bytes"] == 1000
        await db.execute("UPDATE file_removals SET due_at = now()")
        assert (await script(home, "cleanup", "--json", **storage)).json["removed"]["stored_files"] == 1
        assert "stored_files" not in (await script(home, "cleanup", "--json", **storage)).json["removed"]
        assert (await got(alice, kept)).body == content
        if "S3_BUCKET" not in storage:
            assert len(list(Path(storage["MIMU_DATA_DIR"]).glob("files/??/*"))) == 1


@pytest.mark.gen_test
async def test_several_at_once_remove_each_file_once(services: Services) -> None:
    class Counting:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def remove(self, key: str, _: str | None) -> None:
            self.asked.append(key)
            await asyncio.sleep(0.001)

    async with place(services) as home, Database(home.dsn).open() as db, connected(home) as filling:
        keys = [new_key() for _ in range(1000)]
        await filling.executemany("INSERT INTO file_removals VALUES ($1, NULL, now())", [(key,) for key in keys])
        storage = Counting()
        done = await asyncio.gather(*(orphans.remove(db, storage) for _ in range(4)))  # type: ignore[arg-type]
        assert sum(done) == 1000
        assert sorted(storage.asked) == sorted(keys)
        assert await files.waiting(db) == 0


@pytest.mark.gen_test
async def test_a_failed_removal_is_retried(services: Services) -> None:
    class Failing:
        async def remove(self, key: str, _: str | None) -> None:
            if key.startswith("a"):
                raise StorageAway

    async with place(services) as home, Database(home.dsn).open() as db:
        for first in "ab":
            await db.execute("INSERT INTO file_removals VALUES ($1, NULL, now())", first + new_key()[1:])
        assert await orphans.remove(db, Failing()) == 1  # type: ignore[arg-type]
        assert await files.waiting(db) == 0, "not at once"
        await db.execute("UPDATE file_removals SET due_at = due_at - interval '5 minutes'")
        assert await files.waiting(db) == 1
        with pytest.raises(StorageAway):
            await orphans.remove(db, Failing())  # type: ignore[arg-type]


@pytest.mark.gen_test
async def test_a_file_put_after_it_ran_out_goes_as_well(services: Services, storage: dict[str, str]) -> None:
    """On S3 the address is good for an hour, whatever becomes of the row."""
    content = secrets.token_bytes(1000)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        announced = await announce(alice, content)
        file_id = announced.json["file_id"]
        key = await running.app.db.value("SELECT storage_key FROM files")
        assert (await alice.delete(f"/files/{file_id}")).status == 204
        assert (await put(announced, content)).code in (200, 404)
        due = "SELECT due_at - now() FROM file_removals WHERE storage_key = $1"
        assert (await running.app.db.value(due, key)).total_seconds() > 3600
        await running.app.db.execute("UPDATE file_removals SET due_at = now()")
        await periodic(running, "files")()
        assert (await put(announced, content)).code in (200, 404), "nothing is there that could be in the way"


@pytest.mark.gen_test
async def test_an_upload_that_goes_while_it_is_written_leaves_nothing(services: Services, tmp_path: Path) -> None:
    async with place(services) as home, serving(home, MIMU_DATA_DIR=str(tmp_path)) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, 2 * MIB)
        async with upload.broken(0, secrets.token_bytes(MIB)):
            await asyncio.sleep(0.2)
            assert (await upload.ask("DELETE")).code == 204
        assert list(tmp_path.glob("files/??/*")) == []
        assert (await alice.get("/files/usage")).json["used_bytes"] == 0


@pytest.mark.gen_test
async def test_one_of_two_simultaneous_progress_notes_counts(services: Services) -> None:
    async with place(services) as home, serving(home) as running:
        alice = await Account().register(running.url)
        upload = await tus.created(alice, 100)
        file_id = await running.app.db.value("SELECT id FROM files")
        noted = await asyncio.gather(*(files.note(running.app.db, file_id, 0, Progress(n + 1)) for n in range(10)))
        assert sum(noted) == 1
        assert (await upload.ask("DELETE")).code == 204
