"""Scripts that root runs on a data folder of the server's user: what they leave, the server can use."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import last_backup
from models.backups.shelf import Shelf
from scripts import command
from scripts.__main__ import env_file, usage
from tests.running import Services, place
from tests.scripts.program import script

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED what root's scripts leave: only root can be root")
SERVER = 65534  # a user without any rights
NAMELESS = 54321  # a user that no list of users has, as in containers
SECRETS = {"JWT_SECRET": "a2" * 32, "TURN_SECRET": "b3" * 32, "MIMU_ENV": "production"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the server's user may enter, unlike pytest's own, with one of theirs in it."""
    with tempfile.TemporaryDirectory(prefix="mimu-as-root-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "data").mkdir(mode=0o700)
        (folder / "shelf").mkdir(mode=0o700)
        for made in ("data", "shelf"):
            os.chown(folder / made, SERVER, SERVER)
        yield folder


def foreign(folder: Path) -> list[Path]:
    """What the server's user does not own."""
    return [path for path in (folder, *folder.rglob("*")) if path.lstat().st_uid != SERVER]


@pytest.mark.gen_test
async def test_a_rotation_by_root_leaves_the_servers_user_its_files(home: Path) -> None:
    given = {"MIMU_DATA_DIR": str(home / "data"), **SECRETS}
    assert (await script(None, "rotate_keys", "jwt", "--dry-run", **given)).code == 0
    assert list((home / "data").iterdir()) == [], "a dry run makes nothing"
    assert (await script(None, "rotate_keys", "jwt", **given)).code == 0
    assert (home / "data" / "secrets" / "keyring.json").exists()
    assert foreign(home / "data") == []


@pytest.mark.gen_test
async def test_root_makes_no_data_folder_of_a_production(home: Path) -> None:
    given = {"MIMU_DATA_DIR": str(home / "missing"), **SECRETS}
    done = await script(None, "rotate_keys", "jwt", **given)
    assert (done.code, "root must not create it" in done.err) == (78, True)
    assert not (home / "missing").exists()


@pytest.mark.gen_test
async def test_files_of_root_are_reported_with_their_owner(home: Path) -> None:
    given = {"MIMU_DATA_DIR": str(home / "data"), **SECRETS}
    (home / "data" / "secrets").mkdir(mode=0o700)
    done = await script(None, "rotate_keys", "jwt", **given)
    assert done.code == 1
    assert f"{home}/data/secrets belongs to user root" in done.err
    assert f"this is user {command.user(SERVER)}" in done.err


@pytest.mark.gen_test
async def test_a_key_of_web_push_is_the_servers(home: Path) -> None:
    file = home / "vapid.pem"
    done = await script(None, "vapid_keys", str(file), MIMU_DATA_DIR=str(home / "data"))
    assert done.code == 0, done.err
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (SERVER, 0o600)


@pytest.mark.gen_test(timeout=90)
async def test_backups_by_root_do_not_end_those_of_each_night(services: Services, home: Path) -> None:
    shelf, data = home / "shelf", home / "data"
    async with place(services) as shared:
        given = {**shared.environment, "MIMU_DATA_DIR": str(data), **SECRETS}
        words = ("--output", str(shelf), "--json", "--keep", "1")
        first = await script(None, "backup", *words, **given)
        assert first.code == 0, first.err
        assert foreign(shelf) == foreign(data) == []
        noted = last_backup.read(data)
        assert noted is not None
        assert noted.whole
        assert abs(noted.made_at - time.time()) < 60

        # As older versions left them: everything root's, one of them half removed, and the lock.
        root_s = [shelf / "mimu-20200101T000000Z", shelf / ".mimu-20200102T000000Z.removed"]
        for path in root_s:
            path.mkdir(mode=0o700)
            (path / "manifest.json").write_text("{}")
        os.chown(shelf / ".lock", 0, 0)
        (shelf / ".lock").chmod(0o600)
        second = await script(None, "backup", *words, **given)
        assert second.code == 3, second.err
        assert sorted(second.json["stepped_over"]) == sorted(map(str, root_s))
        for path in root_s:
            assert str(path) in second.err
            assert path.exists()
        assert Path(second.json["backup"]).is_dir()
        assert second.json["removed"] == [first.json["backup"]]
        # Nor does a restore leave what only root can read.
        shutil.rmtree(data / "secrets", ignore_errors=True)
        back = await script(
            None, "restore", second.json["backup"], "--keys", second.json["keys"], "--yes", "--force", **given
        )
        assert back.code == 0, back.err
        assert (data / "secrets" / "keyring.json").exists()
        assert foreign(data) == []


def test_a_note_that_can_not_be_read_is_none(tmp_path: Path) -> None:
    assert last_backup.read(tmp_path) is None
    for text in ("", "{}", '{"made_at": 5, "whole": 1}', '["x"]'):
        (tmp_path / last_backup.NAME).write_text(text)
        assert last_backup.read(tmp_path) is None
    last_backup.write(tmp_path, "2026-11-30T04:00:00Z", whole=False)
    assert last_backup.read(tmp_path) == last_backup.LastBackup(1796011200.0, False)
    assert json.loads((tmp_path / last_backup.NAME).read_text())["whole"] is False
    assert Shelf(tmp_path).foreign == []


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_command_knows_of_settings_that_its_user_may_not_read(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    with as_user(NAMELESS):
        file = env_file({}, closed / "mimu.env")
        shown = usage(file)
    assert file == str(closed / "mimu.env")
    assert f"Settings: {file}, which this user can't read" in shown
    assert f"User: {NAMELESS}" in shown
