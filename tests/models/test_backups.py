"""Backups that are not what they seem: each is refused, and nothing is changed by it."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from config import settings
from config.settings import Core
from models.backups import FORMAT, BackupError, Manifest, Part, keys, restoring, verify
from tests.running import Services, connected, place

SECRET = "a-secret-of-this-server-0123456789abcdef"
PRODUCTION = {"MIMU_ENV": "production", "DATABASE_URL": "postgres://h/x", "REDIS_URL": "redis://h"}


def manifest(**changes: object) -> Manifest:
    return Manifest(
        **{  # type: ignore[arg-type]
            "made_at": "2026-12-01T00:00:00Z",
            "schema": "0001",
            "epoch": "5a0d2e7c-5d0e-4d4e-9a5e-0d5b8f2f6c11",
            "postgresql": 16,
            "rows": {},
            "files": None,
            "parts": (),
            **changes,
        }
    )


def test_a_backup_of_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    manifest(format=FORMAT + 1).write(tmp_path)
    with pytest.raises(BackupError, match=f"is of format {FORMAT + 1}; this version reads {FORMAT}"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"manifest": []}', '{"manifest": {"format": 1}}'])
def test_a_manifest_that_is_none_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BackupError, match=r"manifest\.json is damaged"):
        Manifest.read(tmp_path)


def test_a_manifest_that_was_changed_is_damaged(tmp_path: Path) -> None:
    manifest(rows={"users": 2}).write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"users": 2', '"users": 3'))
    with pytest.raises(BackupError, match=r"manifest\.json is damaged"):
        Manifest.read(tmp_path)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"database/toc\.dat is missing"):
        verify(tmp_path, manifest(parts=(Part("database/toc.dat", 1, "0" * 64),)), lambda _: None)


# Archives of keys -----------------------------------------------------------------------------------------------------


def archive(folder: Path, contents: Mapping[str, bytes]) -> Path:
    path = folder / "keys.tar"
    keys.write(path, contents)
    return path


def development(folder: Path, **values: str) -> Core:
    return settings.core({"MIMU_DATA_DIR": str(folder), **values})


def test_what_is_no_archive_of_keys_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no archive" * 200)
    good = archive(tmp_path, {keys.SETTINGS: b"JWT_SECRET=a\n"}).read_bytes()
    truncated = tmp_path / "truncated"
    truncated.write_bytes(good[:700])
    without_sums, folders, large = (tmp_path / name for name in ("without_sums", "folders", "large"))
    with tarfile.open(without_sums, "w") as tar:
        tar.add(text, "settings.env")
    with tarfile.open(folders, "w") as tar:
        tar.add(tmp_path, "settings.env", recursive=False)
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(keys.MAX_MEMBER + 1))
    with tarfile.open(large, "w") as tar:
        tar.add(zeros, "settings.env")
    for path in (text, truncated, without_sums, folders, large):
        with pytest.raises(BackupError, match="is not an archive of keys"):
            keys.read(path)


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    values = {"APNS_KEY_FILE": str(tmp_path / "absent.p8")}
    with pytest.raises(BackupError, match=r"APNS_KEY_FILE: .*absent\.p8 can't be read: No such file"):
        keys.collect(development(tmp_path), values)


def test_another_secret_is_replaced_only_by_force(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "jwt_secret").write_text(SECRET)
    core = development(tmp_path)
    contents = {keys.KEYRING: b"{}", keys.SETTINGS: b"JWT_SECRET=another\n"}
    with pytest.raises(BackupError, match="jwt_secret exists and differs"):
        keys.restore(core, {}, contents, force=False)
    assert [path.name for path in folder.iterdir()] == ["jwt_secret"]
    assert (folder / "jwt_secret").read_text() == SECRET
    keys.restore(core, {}, contents, force=True)
    assert (folder / "jwt_secret").read_text() == "another"
    assert (folder / "keyring.json").read_text() == "{}"


def test_settings_of_a_production_are_left_to_its_operator(tmp_path: Path) -> None:
    key, values = tmp_path / "apns.p8", {**PRODUCTION, "TURN_SECRET": SECRET}
    core = development(tmp_path, **values)
    contents = {
        "APNS_KEY_FILE": b"a key",
        keys.SETTINGS: f"JWT_SECRET={'b' * 32}\nTURN_SECRET={SECRET}\n".encode(),
    }
    lines = keys.restore(core, {**values, "APNS_KEY_FILE": str(key)}, contents, force=False)
    kept = tmp_path / "secrets" / "settings.env"
    # The server has the present TURN_SECRET, and the place of the key, already.
    assert lines == [
        f"JWT_SECRET: set it to the value in {kept}, and delete that file",
        f"wrote {key}",
        f"wrote {kept}",
    ]
    assert (key.read_bytes(), kept.read_bytes()) == (b"a key", contents[keys.SETTINGS])
    assert {path.stat().st_mode & 0o777 for path in (key, kept)} == {0o600}


# The database that is restored into -----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_one_restore_at_a_time(services: Services) -> None:
    async with place(services) as shared:
        async with restoring.target(shared.dsn):
            with pytest.raises(BackupError, match="another restore into this database is in progress"):
                async with restoring.target(shared.dsn):
                    raise AssertionError("a second restore began")
        async with restoring.target(shared.dsn) as target:
            assert await target.contents() is None  # migrated, and without accounts


@pytest.mark.gen_test
async def test_what_others_keep_in_the_database_is_not_overlooked(services: Services) -> None:
    async with place(services) as shared:
        async with connected(shared) as db:
            await db.execute("DROP TABLE schema_migrations; CREATE SCHEMA others; CREATE TABLE others.users (id int)")
        async with restoring.target(shared.dsn) as target:
            held = await target.contents()
    assert held is not None
    assert held.endswith(" tables and other objects that are not Mimu's")
