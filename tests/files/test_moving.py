"""Files moved from a disk to a bucket and back, beside a server that runs, by ``scripts.move_files``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

from config.settings import SettingsError
from models import moving
from models.backups import BackupError
from models.storage import Storage, StorageAway, new_key
from scripts import move_files
from tests.client import Account
from tests.files.seaweed import SECRET, Seaweed
from tests.files.test_backups import storage_of
from tests.files.transfer import MIB, announce, got
from tests.files.transfer import shared as uploaded
from tests.running import ROOT, Place, Services, connected, inherited, place, serving
from tests.scripts.program import script


def env_file(folder: Path, s3: Seaweed) -> Path:
    """The settings of the bucket, as an operator writes them."""
    file = folder / "s3.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in s3.settings().items()))
    return file


async def moved(shared: Place, to: Path, *words: str, **settings: str) -> Any:
    """What the script answers in JSON, in this process, with these settings in an env file."""
    file = to.with_name("mimu.env")
    file.write_text("".join(f"{name}={value}\n" for name, value in {**shared.environment, **settings}.items()))
    return await move_files.run(move_files.parse(["--to", str(to), "--env-file", str(file), *words]))


async def keys_of(shared: Place) -> list[str]:
    async with connected(shared) as connection:
        return [row[0] for row in await connection.fetch("SELECT storage_key FROM files ORDER BY storage_key")]


def counts(report: Any) -> tuple[int, int, int]:
    return report["copied"], report["present"], report["removed"]


@pytest.mark.gen_test(timeout=120)
async def test_a_server_moves_from_its_disk_to_a_bucket(services: Services, s3: Seaweed, tmp_path: Path) -> None:
    disk = {"MIMU_DATA_DIR": str(tmp_path / "data")}
    to, contents = env_file(tmp_path, s3), [secrets.token_bytes(size) for size in (1, 100_000, 11 * MIB + 1)]
    bucket = storage_of({**s3.settings(), "MIMU_DATA_DIR": str(tmp_path / "look")})
    async with place(services) as shared, bucket.running():
        async with serving(shared, **disk) as server:
            alice = await Account(one_time=0).register(server.url)
            files = [await uploaded(alice, content) for content in contents[:2]]
            report = await moved(shared, to, "--dry-run", **disk)
            assert counts(report) == (2, 0, 0) and report["bytes"] == 100_001
            assert [await bucket.size(key) for key in await keys_of(shared)] == [None, None]
            assert not (tmp_path / "data" / "moving").exists()

            assert counts(await moved(shared, to, **disk)) == (2, 0, 0)
            # Meanwhile one arrives, one is deleted, and one is begun.
            files.append(await uploaded(alice, contents[2]))
            assert (await alice.delete(f"/files/{files[0]}")).status == 204
            await announce(alice, b"not sent")
            report = await moved(shared, to, "--verify", **disk)
            assert counts(report) == (1, 1, 1) and report["unfinished"] == 1
            with pytest.raises(BackupError, match="is connected to the database: stop it first"):
                await moved(shared, to, "--finish", **disk)
        report = await moved(shared, to, "--finish", **disk)
        assert counts(report) == (0, 2, 0) and report["unfinished"] == 1
        assert list((tmp_path / "data" / "moving").iterdir()) == []
        keys = await keys_of(shared)
        assert len(keys) == 2
        found = [await bucket.digest(key) for key in keys]
        assert sorted(found) == sorted(hashlib.sha256(content).digest() for content in contents[1:])
        async with serving(shared, **disk, **s3.settings()) as server:
            alice.url = server.url
            assert [(await got(alice, file_id)).body for file_id in files[1:]] == contents[1:]
        # And back, into an empty folder.
        back = tmp_path / "disk.env"
        back.write_text("S3_ENDPOINT=\n")
        other = {"MIMU_DATA_DIR": str(tmp_path / "other"), **s3.settings()}
        assert counts(await moved(shared, back, "--finish", **other)) == (2, 0, 0)
        async with serving(shared, MIMU_DATA_DIR=str(tmp_path / "other")) as server:
            alice.url = server.url
            assert [(await got(alice, file_id)).body for file_id in files[1:]] == contents[1:]


@pytest.mark.gen_test(timeout=60)
async def test_files_that_are_not_what_they_were_are_named(services: Services, s3: Seaweed, tmp_path: Path) -> None:
    disk, to = {"MIMU_DATA_DIR": str(tmp_path / "data")}, env_file(tmp_path, s3)
    bucket = storage_of({**s3.settings(), "MIMU_DATA_DIR": str(tmp_path / "look")})
    async with place(services) as shared, bucket.running():
        async with serving(shared, **disk) as server:
            alice = await Account(one_time=0).register(server.url)
            for _ in range(3):
                await uploaded(alice, secrets.token_bytes(1000))
        lost, damaged, well = await keys_of(shared)
        (tmp_path / "data" / "files" / lost[:2] / lost).unlink()
        (tmp_path / "data" / "files" / damaged[:2] / damaged).write_bytes(b"x" * 1000)
        ended = await script(shared, "move_files", "--to", str(to), **disk)
        assert (ended.code, SECRET in ended.out + ended.err) == (3, False)
        assert "1 files, 0.0 MB; 0 were there" in ended.out and "once more with --finish" in ended.out
        assert ended.err.splitlines() == [f"the old storage lacks: {lost}", f"damaged in the old storage: {damaged}"]
        assert [await bucket.size(key) for key in (lost, damaged, well)] == [None, None, 1000]
        # What is there and is not what it should be is found by --verify, and replaced.
        (tmp_path / "wrong").write_bytes(b"y" * 1000)
        await bucket.copy_in(well, tmp_path / "wrong")
        assert (await moved(shared, to, **disk))["present"] == 1
        assert (await moved(shared, to, "--verify", **disk))["copied"] == 1
        assert (
            await bucket.digest(well)
            == hashlib.sha256((tmp_path / "data" / "files" / well[:2] / well).read_bytes()).digest()
        )


@pytest.mark.gen_test(timeout=60)
async def test_a_move_with_wrong_settings_is_refused_with_the_reason(
    services: Services, s3: Seaweed, tmp_path: Path
) -> None:
    disk, to = {"MIMU_DATA_DIR": str(tmp_path)}, env_file(tmp_path, s3)
    async with place(services) as shared:
        with pytest.raises(SettingsError) as same:
            await moved(shared, to, **disk, **s3.settings())
        assert "where the files are already" in same.value.faults[0]
        lacking = tmp_path / "lacking.env"
        lacking.write_text(f"S3_ENDPOINT={s3.endpoint}\n")
        with pytest.raises(SettingsError) as faults:
            await moved(shared, lacking, **disk)
        assert "S3_SECRET_KEY: missing; required with S3_ENDPOINT" in faults.value.faults
        with pytest.raises(SettingsError) as none:
            await moved(shared, tmp_path / "none.env", **disk)
        assert "can't be read" in none.value.faults[0]
        wrong = tmp_path / "wrong.env"
        wrong.write_text(to.read_text().replace(SECRET, "another-secret"))
        with pytest.raises(StorageAway, match="the bucket: 403"):
            await moved(shared, wrong, **disk)


async def keep(connection: Any, storage: Storage, keys: list[str], content: Path) -> None:
    """Store files with this content for some user."""
    owner = await connection.fetchval(
        """INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id, fingerprint)
           VALUES ('alice', '-', sha256('a'), sha256('a'), 1, encode(sha256('a'), 'hex')) RETURNING id"""
    )
    size, sha256 = content.stat().st_size, hashlib.sha256(content.read_bytes()).digest()
    for key in keys:
        await storage.copy_in(key, content)
        await connection.execute(
            """INSERT INTO files (owner_id, size, sha256, storage_key, state, completed_at, expires_at, resumable)
               VALUES ($1, $2, $3, $4, 'complete', now(), NULL, false)""",
            *(owner, size, sha256, key),
        )


class Stopping:
    """A storage that fails after so many files, as a network does."""

    def __init__(self, storage: Storage, good: int) -> None:
        self._storage, self._good = storage, good

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def copy_in(self, key: str, source: Path) -> None:
        self._good -= 1
        if self._good < 0:
            raise OSError("the network is gone")
        await self._storage.copy_in(key, source)


@pytest.mark.gen_test(timeout=60)
async def test_a_run_that_broke_off_goes_on(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several pages of the database, and of the journal."""
    monkeypatch.setattr(moving, "PAGE", 7)
    old, new = [storage_of({"MIMU_DATA_DIR": str(tmp_path / name)}) for name in ("old", "new")]
    (tmp_path / "content").write_bytes(b"content")
    keys = sorted(new_key() for _ in range(30))
    async with place(services) as shared, connected(shared) as connection, old.running(), new.running():
        await keep(connection, old, keys, tmp_path / "content")
        with moving.journal(tmp_path / "moving", "there") as notes, pytest.raises(OSError, match="network"):
            await moving.move(connection, old, Stopping(new, 12), notes, str, verify=False)  # type: ignore[arg-type]
        there = [key for key in keys if await new.size(key)]
        assert 12 - moving.CONCURRENCY < len(there) <= 12, "those under way were broken off"
        await connection.execute("DELETE FROM files WHERE storage_key = $1", there[3])
        with moving.journal(tmp_path / "moving", "there") as notes:
            with pytest.raises(moving.MoveError), moving.journal(tmp_path / "moving", "there"):
                pytest.fail("two at once")
            done = await moving.move(connection, old, new, notes, str, verify=False)
            assert (done.copied + done.present, done.removed) == (29, 1)
            assert done.present >= len(there) - 1
            assert list(notes.folder.iterdir()) == []
        assert [key for key in keys if not await new.size(key)] == [there[3]]


@pytest.mark.gen_test(timeout=90)
async def test_memory_is_bounded(services: Services, s3: Seaweed, tmp_path: Path) -> None:
    """128 MiB of files, four at a time, by the process that it is."""
    disk, to = {"MIMU_DATA_DIR": str(tmp_path / "data")}, env_file(tmp_path, s3)
    old = storage_of(disk)
    (tmp_path / "content").write_bytes(content := secrets.token_bytes(32 * MIB))
    async with place(services) as shared, connected(shared) as connection, old.running():
        await keep(connection, old, [new_key() for _ in range(4)], tmp_path / "content")
        measured = """if True:
            import pathlib, re, runpy, sys
            try:
                runpy.run_module("scripts.move_files", run_name="__main__")
            finally:  # not getrusage(), which counts what the process was before exec(), too
                status = pathlib.Path("/proc/self/status").read_text()
                print(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1], file=sys.stderr)
        """
        environment = {**inherited("PATH"), **shared.environment, **disk}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", measured, "--to", str(to), "--env-file", os.devnull),
            cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        assert f"4 files, {4 * len(content) / 1e6:.1f} MB; 0 were there" in out.decode()
        assert int(err) < 200 << 10, "KiB; all four in memory are more"
