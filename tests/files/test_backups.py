"""Files of a backup: out of each storage and into each, byte for byte, whichever of the two they were in."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import pytest

from config.settings import environment, load
from config.storage import StorageSettings
from models.storage import Storage, StorageAway, new_key, opened
from tests.client import Account
from tests.files.seaweed import Seaweed
from tests.files.transfer import MIB, got
from tests.files.transfer import shared as uploaded
from tests.running import Services, place, serving
from tests.scripts.program import script


def storage_of(settings: dict[str, str]) -> Storage:
    section = load({"files": StorageSettings}, environment(Path("/dev/null"), settings))["files"]
    assert isinstance(section, StorageSettings)
    return opened.storage(section, Path(settings["MIMU_DATA_DIR"]))


@pytest.mark.gen_test(timeout=60)
async def test_a_file_goes_out_and_in(storage: dict[str, str], tmp_path: Path) -> None:
    there, content = storage_of(storage), secrets.token_bytes(9 * MIB + 1)  # more than one read, and one part
    source, key = tmp_path / "source", new_key()
    source.write_bytes(content)
    async with there.running():
        with pytest.raises(FileNotFoundError):
            await there.copy_out(key, tmp_path / "none")
        for _ in range(2):
            await there.copy_in(key, source)
        assert await there.copy_out(key, tmp_path / "target") == hashlib.sha256(content).digest()
        with pytest.raises(StorageAway):  # it writes over nothing
            await there.copy_out(key, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600


@pytest.mark.gen_test(timeout=120)
async def test_a_server_moves_from_a_bucket_to_a_disk(services: Services, s3: Seaweed, tmp_path: Path) -> None:
    bucket = {**s3.settings(), "MIMU_DATA_DIR": str(tmp_path / "old")}
    contents = [secrets.token_bytes(size) for size in (1, 100_000)]
    async with place(services) as old, serving(old, **bucket) as server:
        alice = await Account(one_time=0).register(server.url)
        files = [await uploaded(alice, content) for content in contents]
        made = await script(old, "backup", "--output", str(tmp_path / "backups"), "--json", **bucket)
        assert made.code == 0, made.err
        bare = await script(old, "backup", "--output", str(tmp_path / "bare"), "--files", "none", "--json", **bucket)
        assert (bare.code, bare.json["files"], bare.json["lost"]) == (0, None, None)
    disk = {"MIMU_DATA_DIR": str(tmp_path / "new")}
    async with place(services) as new:
        moved = await script(new, "restore", made.json["backup"], "--keep-sessions", "--yes", "--json", **disk)
        assert moved.code == 0, moved.err
        async with serving(new, **disk) as server:
            alice.url = server.url  # and still signed in
            assert [(await got(alice, file_id)).body for file_id in files] == contents
