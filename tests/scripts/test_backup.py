"""Backups and restores, by the scripts that make them, beside servers and clients that are ahead of what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

import server as server_program
from models.backups import BackupError, Manifest, verify
from models.backups.programs import address, find
from models.postgres import migrations
from server import Server
from tests.client import Account, Answer, ask
from tests.files.transfer import got
from tests.files.transfer import shared as uploaded
from tests.plugins.chatting import chat, message
from tests.running import ROOT, Place, Services, connected, inherited, place, program, serving
from tests.scripts.program import Ended, script


async def bundle(caller: Account, owner: Account) -> Any:
    answer = await caller.get(f"/users/{owner.public_id}/prekeys")
    assert answer.status == 200, answer.text
    return answer.json


async def upload(owner: Account, *key_ids: int, kyber: int | None = None) -> Answer:
    body: dict[str, Any] = {"one_time_prekeys": [owner.prekey(key_id) for key_id in key_ids]}
    if kyber is not None:
        body["kyber_prekeys"] = [owner.kyber_prekey(kyber)]
    return await owner.post("/users/me/prekeys", body)


@dataclass
class People:
    """Alice and Bob, who write to each other, and what they have sent: what a backup is made of."""

    alice: Account = field(default_factory=lambda: Account(one_time=4))
    bob: Account = field(default_factory=lambda: Account(one_time=2))
    chat: str = ""
    sent: list[dict[str, Any]] = field(default_factory=list)
    seqs: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    async def move_in(self, server: Server) -> None:
        kyber = {
            "kyber_prekeys": [self.alice.kyber_prekey(n) for n in (1, 2, 3)],
            "last_resort_kyber_prekey": self.alice.kyber_prekey(9),
        }
        await self.alice.register(server.url, **kyber)
        await self.bob.register(server.url)
        self.chat = (await chat(self.alice, self.bob, kind="direct"))["id"]
        for size in (0, 3, 700_001):
            content = secrets.token_bytes(size + 1)
            self.files[await uploaded(self.alice, content, chat_id=self.chat)] = content

    async def write(self, *texts: str) -> None:
        for number, text in enumerate(texts):
            await self.post((self.alice, self.bob)[number % 2], message(text))

    async def post(self, by: Account, body: dict[str, Any]) -> Answer:
        answer = await by.post(f"/chats/{self.chat}/messages", body)
        assert answer.status in (200, 201), answer.text
        if answer.status == 201:
            self.sent.append({**body, "by": by})
            self.seqs[body["client_id"]] = answer.json["seq"]
        return answer

    async def read(self) -> list[tuple[str, str, int]]:
        """The chat as Bob gets it, in its order: client_id, payload, seq."""
        answer = await self.bob.get(f"/chats/{self.chat}/messages?after_seq=0&limit=200")
        assert answer.status == 200, answer.text
        return [(one["client_id"], one["encrypted_payload"], one["seq"]) for one in answer.json]

    async def log_in(self, server: Server) -> None:
        for person in (self.alice, self.bob):
            person.url = server.url
            assert (await person.login()).status == 200


async def backup(shared: Place | None, output: Path, *arguments: str, code: int = 0, **settings: str) -> Any:
    ended = await script(shared, "backup", "--output", str(output), "--json", *arguments, **settings)
    assert ended.code == code, ended.err
    return ended.json


async def restore(shared: Place | None, folder: str | Path, *arguments: str, **settings: str) -> Ended:
    return await script(shared, "restore", str(folder), "--yes", "--json", *arguments, **settings)


def of(folder: Path) -> dict[str, str]:
    return {"MIMU_DATA_DIR": str(folder)}


@pytest.mark.gen_test(timeout=120)
async def test_a_server_that_went_back_in_time(services: Services, tmp_path: Path) -> None:
    people, output = People(), tmp_path / "backups"
    alice, bob = people.alice, people.bob
    async with place(services) as old, serving(old, **of(tmp_path / "old")) as server:
        await people.move_in(server)
        assert (await bundle(bob, alice))["one_time_prekey"]["key_id"] == 1
        await people.write("one", "two", "three")
        kept = await people.read()
        cursor = (await bob.get("/sync")).json["cursor"]
        async with connected(old) as db:
            await db.execute("CREATE DATABASE mimu_verify_0")  # of a run that was killed
            await db.execute("COMMENT ON DATABASE mimu_verify_0 IS 'made for a moment by scripts.backup --verify'")
            made = await backup(old, output, "--verify", **of(tmp_path / "old"))
            assert (made["verified"], made["files"]["count"], made["lost"]) == (True, 3, [])
            assert await db.fetchval("SELECT count(*) FROM pg_database WHERE datname LIKE 'mimu_verify%'") == 0

        # Restoring the backup must not undo this.
        after = await bundle(bob, alice)
        assert (after["one_time_prekey"]["key_id"], after["kyber_prekey"]["key_id"]) == (2, 2)
        await people.write("four", "five", "six")
        lost = people.sent[3:]
        other = await Account().register(server.url)
        async with alice.socket() as socket:
            epoch = socket.ready["epoch"]
        assert epoch == made["epoch"]
        stale = alice.token

    async with place(services) as new:
        ended = await restore(new, made["backup"], **of(tmp_path / "new"))
        assert ended.code == 0, ended.err
        report = ended.json
        assert (report["files"], report["sessions_ended"], report["due"]) == (3, 2, [])
        async with serving(new, **of(tmp_path / "new")) as server:
            # Tokens from before the restore are revoked, also those of accounts that are not in the backup.
            for token in (stale, other.token):
                assert (await ask(server.url, "GET", "/users/me", token=token)).status == 401
            await people.log_in(server)
            assert await people.read() == kept
            for file_id, content in people.files.items():
                assert (await got(bob, file_id)).body == content
            gone = await ask(server.url, "GET", f"/sync?cursor={cursor}", token=bob.token)
            assert (gone.status, gone.code) == (410, "cursor_expired")
            async with alice.socket() as socket:
                assert socket.ready["epoch"] == report["epoch"] != epoch
                assert (await socket.expect("prekeys_low"))["remaining"] == 0
            given = await bundle(bob, alice)
            assert given["one_time_prekey"] is None
            assert given["kyber_prekey"]["key_id"] == 9
            # A known id is refused as always, also one that was never handed out.
            for key_id in (1, 2, 3, 4):
                assert (await upload(alice, key_id)).status == 409
            for key_id in (1, 2, 3):
                assert (await upload(alice, 50, kyber=key_id)).status == 409
            assert (await upload(alice, 5, 6, kyber=4)).json["one_time_remaining"] == 2
            given = await bundle(bob, alice)
            assert (given["one_time_prekey"]["key_id"], given["kyber_prekey"]["key_id"]) == (5, 4)
            async with alice.socket() as socket:
                await socket.silent(0.2)

            # Clients that are ahead send again: stored messages stay, lost ones are stored, and none is stored twice.
            again = [dict(one) for one in people.sent]
            for _ in range(2):
                for one in again:
                    body = dict(one)
                    await people.post(body.pop("by"), body)
            now = await people.read()
            assert now[:3] == kept
            assert [client_id for client_id, _, _ in now[3:]] == [one["client_id"] for one in lost]
            seqs = [seq for _, _, seq in now]
            assert seqs == list(range(seqs[0], seqs[0] + 6))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not tmp_path: when the tests run as root, the user of PostgreSQL cannot enter its parents.
    path = Path(tempfile.mkdtemp(prefix="mimu-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Made:
    """A backup that tests of this module share, and may not change."""

    path: Path
    people: People
    plain: Path  # pg_dump's own, of the same moment

    def copy(self, folder: Path) -> Path:
        target = folder / self.path.name
        shutil.copytree(self.path, target)
        return target


@pytest.fixture(scope="module")
def made(services: Services, folder: Path) -> Made:
    async def make() -> Made:
        people = People()
        async with place(services) as old, serving(old, **of(folder / "old")) as server:
            await people.move_in(server)
            await bundle(people.bob, people.alice)
            await people.write("one", "two")
            report = await backup(old, folder / "backups", **of(folder / "old"))
            shown, password = address(old.dsn)
            plain = folder / "plain.dump"
            dump = await find("pg_dump", 16)
            command = [dump, "--format=custom", "--no-owner", f"--file={plain}", f"--dbname={shown}"]
            await asyncio.to_thread(subprocess.run, command, env={**os.environ, **password}, check=True)
        return Made(Path(report["backup"]), people, plain)

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return loop.run_until_complete(make())


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("which", ["ours", "a plain dump"])
async def test_a_restore_with_pg_restore_hands_out_no_used_prekey(
    services: Services, made: Made, tmp_path: Path, which: str
) -> None:
    async with place(services) as new:
        shown, password = address(new.dsn)
        source = made.path / "database" if which == "ours" else made.plain
        command = [
            await find("pg_restore", 16),
            "--clean",
            "--if-exists",
            "--no-owner",
            str(source),
            f"--dbname={shown}",
        ]
        await asyncio.to_thread(subprocess.run, command, env={**os.environ, **password}, check=True)
        async with connected(new) as db:
            unused = await db.fetchval("SELECT count(*) FROM one_time_prekeys WHERE NOT used")
            assert unused == (0 if which == "ours" else 5)  # the dump itself has none, or the server sees to it
        async with serving(new, **of(tmp_path)) as server:
            people = made.people
            await people.log_in(server)
            assert len(await people.read()) == 2
            given = await bundle(people.bob, people.alice)
            assert (given["one_time_prekey"], given["kyber_prekey"]["key_id"]) == (None, 9)
            for key_id in (1, 4):
                assert (await upload(people.alice, key_id)).status == 409
            assert (await upload(people.alice, 50, kyber=3)).status == 409
            async with people.alice.socket() as socket:
                assert socket.ready["epoch"] != Manifest.read(made.path).epoch


@pytest.mark.parametrize(
    "name", ["manifest.json", "files.sha256", "database/toc.dat", "a table", "a file", "a file that is gone"]
)
def test_a_damaged_backup_is_refused_with_the_name_of_the_part(made: Made, tmp_path: Path, name: str) -> None:
    copy = made.copy(tmp_path)
    verify(copy, Manifest.read(copy), lambda _: None)  # it is good
    whole = sorted(path for path in copy.rglob("*") if path.is_file())
    path = {
        "a table": next(path for path in whole if path.suffix == ".gz"),
        "a file": next(path for path in whole if path.parent.parent.name == "files"),
        "a file that is gone": next(path for path in whole if path.parent.parent.name == "files"),
    }.get(name, copy / name)
    if name == "a file that is gone":
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    with pytest.raises(BackupError, match=f"{path.name} is (damaged|missing)"):
        verify(copy, Manifest.read(copy), lambda _: None)


def test_an_unfinished_backup_is_refused(made: Made, tmp_path: Path) -> None:
    copy = made.copy(tmp_path)
    (copy / "manifest.json").unlink()
    with pytest.raises(BackupError, match="not a finished backup"):
        Manifest.read(copy)
    hidden = tmp_path / f".{copy.name}.unfinished"
    shutil.copytree(made.path, hidden)
    with pytest.raises(BackupError, match="not a finished backup"):
        Manifest.read(hidden)


@pytest.mark.gen_test(timeout=120)
async def test_a_restore_asks_and_refuses_before_it_changes_anything(
    services: Services, made: Made, tmp_path: Path
) -> None:
    async with place(services) as new:
        home = of(tmp_path / "home")
        broken = made.copy(tmp_path)
        with (broken / "files.sha256").open("a") as file:
            file.write("\n")
        damaged, checked, unconfirmed, without_path = await asyncio.gather(
            restore(new, broken, **home),
            script(None, "restore", str(made.path), "--check", "--json"),
            script(new, "restore", str(made.path), given="y\n", **home),
            script(new, "restore", **home),
        )
        assert (damaged.code, damaged.err) == (
            1,
            "restore failed: files.sha256 is damaged: its SHA-256 is not the one of the backup\n",
        )
        assert (checked.code, checked.json["rows"]["users"], checked.json["files"]) == (0, 2, 3)
        assert (unconfirmed.code, "not confirmed; nothing was changed" in unconfirmed.err) == (1, True)
        assert without_path.code == 2
        assert await migrations.ready(new.dsn) == []

        async with serving(new, **home) as server:
            await Account().register(server.url)
            running = await restore(new, made.path, "--force", **home)
            assert (running.code, running.err.rstrip()) == (
                1,
                "restore failed: mimu is connected to the database: stop it first",
            )
        full = await restore(new, made.path, **home)
        assert full.code == 1
        assert "has 1 accounts: restore into an empty one, or replace them with --force" in full.err
        assert not (tmp_path / "home" / "files").exists() or not any((tmp_path / "home" / "files").iterdir())

        forced = await restore(new, made.path, "--force", "--keep-sessions", **home)
        assert (forced.code, forced.json["sessions_ended"], forced.json["keyring"]) == (0, 0, None)
        async with serving(new, **home) as server:
            people = made.people
            await people.log_in(server)
            assert (await people.alice.get(f"/users/{people.bob.public_id}")).status == 200


@pytest.mark.gen_test(timeout=60)
async def test_a_look_at_a_backup_touches_nothing_else(services: Services, made: Made, tmp_path: Path) -> None:
    name = f"a_look_{os.getpid()}"
    async with place(services) as own, serving(own, **of(tmp_path)) as server:
        alice = await Account().register(server.url)
        words = ("--into", name, "--jobs", "2", "--yes")
        # What the server itself keeps there: where the fence of its database stands.
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert [path.name for path in before] == [f"fence-{urlsplit(own.dsn).path[1:]}.json"]
        ended = await script(own, "restore", str(made.path), *words, **of(tmp_path))
        assert ended.code == 0, ended.err
        assert ended.out.startswith(f"restored {made.path}, made 20")
        assert (await alice.get("/users/me")).status == 200
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        async with connected(own) as db:
            look = await asyncpg.connect(own.dsn, database=name)
            try:
                rows = Manifest.read(made.path).rows
                for table in ("users", "messages", "files", "spent_prekeys", "kyber_prekeys", "one_time_prekeys"):
                    assert await look.fetchval(f"SELECT count(*) FROM {table}") == rows[table]
                assert rows["messages"] == 2
                assert rows["one_time_prekeys"] == 0
            finally:
                await look.close()
                await db.execute(f"DROP DATABASE {name}")


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("what", ["backup", "--settle"])
async def test_a_server_that_starts_during_the_question_is_noticed(
    services: Services, made: Made, tmp_path: Path, what: str
) -> None:
    """A supervisor starts a server again, while the operator reads the question."""
    async with place(services) as shared:
        home = {**shared.environment, **of(tmp_path / "home")}
        environment = {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1", **home}
        given = what if what.startswith("--") else str(made.path)
        command = [sys.executable, "-m", "scripts.restore", given, "--env-file", os.devnull]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdin=pipe, stderr=pipe)
        assert process.stderr is not None
        async with asyncio.timeout(20):
            await process.stderr.readuntil(b"Type yes to go on: ")
        server = await asyncpg.connect(shared.dsn, server_settings={"application_name": "mimu/1"})
        before = await server.fetchval("SELECT epoch FROM sync_epoch")
        _, err = await process.communicate(b"yes\n")
        assert (process.returncode, err.decode()) == (
            1,
            "restore failed: mimu is connected to the database: stop it first\n",
        )
        assert await server.fetchval("SELECT epoch FROM sync_epoch") == before
        await server.close()
        assert await migrations.ready(shared.dsn) == []
        assert not (tmp_path / "home" / "secrets").exists()


@pytest.mark.gen_test(timeout=120)
async def test_a_restore_that_broke_off_lets_no_server_start_and_is_begun_again(
    services: Services, made: Made, tmp_path: Path
) -> None:
    async with place(services) as new:
        home = {**new.environment, **of(tmp_path / "home")}
        environment = {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1", **home}
        command = [sys.executable, "-m", "scripts.restore", str(made.path), "--yes", "--env-file", os.devnull]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment)
        # From another database: who is connected to this one is a reason not to begin.
        admin = await asyncpg.connect(services.dsn)
        filling = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'mimu-backup'"
        async with asyncio.timeout(20):
            while not await admin.fetchval(filling, urlsplit(new.dsn).path.lstrip("/")):
                await asyncio.sleep(0.005)
        process.kill()
        await admin.close()
        await process.wait()
        with pytest.raises(migrations.MigrationError, match="being restored"):
            await migrations.ready(new.dsn)
        with pytest.raises(migrations.MigrationError, match="being restored"):
            await migrations.migrate(new.dsn)
        with pytest.raises(migrations.MigrationError, match="being restored"):
            async with server_program.running(server_program.configure(home)):
                raise AssertionError("it started")
        refused = await script(new, "backup", "--output", str(tmp_path / "none"), **of(tmp_path / "home"))
        assert (refused.code, "being restored" in refused.err) == (1, True)
        assert list((tmp_path / "none").glob("mimu-*")) == []
        again = await restore(new, made.path, **of(tmp_path / "home"))
        assert again.code == 0, again.err
        async with serving(new, **of(tmp_path / "home")) as server:
            await made.people.log_in(server)
            assert len(await made.people.read()) == 2


@pytest.mark.gen_test(timeout=120)
async def test_a_backup_that_is_killed_leaves_none(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, connected(shared) as db:
        output, home = tmp_path / "backups", of(tmp_path / "home")
        environment = {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1", **shared.environment, **home}
        command = [sys.executable, "-m", "scripts.backup", "--output", str(output), "--env-file", os.devnull]
        dumping = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'mimu-backup' AND (wait_event_type = 'Lock' OR $1)"
        )
        # pg_dump waits for a table that the script doesn't look at: that is the midst of it.
        await db.execute("CREATE SCHEMA other CREATE TABLE other.things ()")
        await db.execute("BEGIN")
        await db.execute("LOCK TABLE other.things")
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment)
        async with asyncio.timeout(20), connected(shared) as other:
            while not await other.fetchval(dumping, False):
                await asyncio.sleep(0.02)
            [unfinished] = output.glob(".mimu-*")
            second = await script(shared, "backup", "--output", str(output), **home)
            assert (second.code, "another backup is being made into" in second.err) == (1, True)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            while await other.fetchval(dumping, True):  # what it had started ends with it
                await asyncio.sleep(0.02)
        await db.execute("ROLLBACK")
        assert [path.name for path in output.glob("mimu-*")] == []
        ended = await restore(shared, unfinished, **home)
        assert (ended.code, "not a finished backup" in ended.err) == (1, True)
        report = await backup(shared, output, "--without-keys", **home)
        assert sorted(path.name for path in output.iterdir()) == [".lock", Path(report["backup"]).name]


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize(
    ("room", "says"),
    [
        (4_000, "pg_dump: error: could not write to file: File too large"),
        (400_000, "a file can't be copied (File too large)"),
    ],
)
async def test_a_disk_that_is_full_is_said_and_left_as_it_was(
    services: Services, tmp_path: Path, room: int, says: str
) -> None:
    """A limit for files, which pg_dump meets first, or what users uploaded."""
    people, output, home = People(), tmp_path / "backups", tmp_path / "home"
    async with place(services) as shared, serving(shared, **of(home)) as server:
        await people.move_in(server)
        limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2);"
        limited += "runpy.run_module('scripts.backup', run_name='__main__', alter_sys=True)"
        environment = {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1", **shared.environment, **of(home)}
        command = [sys.executable, "-c", limited, str(room), "--output", str(output), "--env-file", os.devnull]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
    assert (process.returncode, out, err.decode()) == (1, b"", f"backup failed: {says}\n")
    assert [path.name for path in output.iterdir()] == [".lock"]


@pytest.mark.gen_test(timeout=120)
async def test_old_backups_go_and_files_are_stored_once(services: Services, tmp_path: Path) -> None:
    output, home = tmp_path / "backups", tmp_path / "home"
    async with place(services) as shared, serving(shared, **of(home)) as server:
        alice = await Account(one_time=0).register(server.url)
        first, second = [await uploaded(alice, secrets.token_bytes(1000)) for _ in range(2)]
        one = await backup(shared, output, "--keep", "2", **of(home))
        (output / "something of the operator's").mkdir()
        third = await uploaded(alice, secrets.token_bytes(1000))
        assert (await alice.delete(f"/files/{first}")).status == 204
        two = await backup(shared, output, "--keep", "2", **of(home))
        assert (two["files"]["count"], two["files"]["linked"], two["removed"]) == (2, 1, [])
        # A file that the storage has lost is reported, and its row is not restored without its bytes.
        async with connected(shared) as db:
            key = await db.fetchval("SELECT storage_key FROM files WHERE id = $1", third)
        (home / "files" / key[:2] / key).unlink()
        shutil.rmtree(two["backup"] + "/files")
        three = await backup(shared, output, "--keep", "2", code=3, **of(home))
        assert (three["lost"], three["files"]["count"], three["removed"]) == ([key], 1, [one["backup"]])
        left = {path.name for path in output.iterdir()} - {".lock", "something of the operator's"}
        assert left == {Path(report[what]).name for report in (two, three) for what in ("backup", "keys")}
        size = Path(three["keys"]).stat()
        assert size.st_mode & 0o777 == 0o600
        assert Path(three["backup"]).stat().st_mode & 0o777 == 0o700
    async with place(services) as new:
        ended = await restore(new, three["backup"], **of(tmp_path / "new"))
        assert (ended.code, ended.json["files"], ended.json["files_forgotten"]) == (0, 1, 1)
        async with serving(new, **of(tmp_path / "new")) as server:
            alice.url = server.url
            await alice.login()
            assert [(await got(alice, file_id)).code for file_id in (first, second, third)] == [404, 200, 404]
            assert (await alice.get("/files")).json[0]["file_id"] == second


@pytest.mark.gen_test(timeout=60)
async def test_a_file_damaged_in_one_backup_is_copied_again_by_the_next(services: Services, tmp_path: Path) -> None:
    output, safe, home = tmp_path / "backups", tmp_path / "safe", tmp_path / "home"
    async with place(services) as shared, serving(shared, **of(home)) as server:
        alice = await Account(one_time=0).register(server.url)
        for _ in range(2):
            await uploaded(alice, secrets.token_bytes(1000))
        one = await backup(shared, output, "--keys", str(safe), **of(home))
        [rotten, _] = (path for path in Path(one["backup"], "files").rglob("*") if path.is_file())
        raw = bytearray(rotten.read_bytes())
        raw[500] ^= 1
        rotten.write_bytes(raw)
        two = await backup(shared, output, "--verify", "--keep", "1", "--keys", str(safe), **of(home))
        assert (two["files"]["count"], two["files"]["linked"], two["verified"]) == (2, 1, True)
        # The secrets of a backup that goes are good for nothing any more.
        assert [path.name for path in safe.iterdir()] == [Path(two["keys"]).name]


@pytest.mark.gen_test(timeout=120)
async def test_secrets_are_apart(services: Services, made: Made, tmp_path: Path) -> None:
    home = tmp_path / "home"
    vapid = tmp_path / "vapid.pem"
    vapid.write_text("-----BEGIN PRIVATE KEY-----")
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "keyring.json").write_text(json.dumps({"turn": [{"secret": "t" * 40}]}))
    async with place(services) as shared:
        named = {**of(home), "VAPID_PRIVATE_KEY_FILE": str(vapid)}
        report = await backup(shared, tmp_path / "backups", "--keys", str(tmp_path / "safe"), **named)
        archive = Path(report["keys"])
        assert archive.parent == tmp_path / "safe"
        with tarfile.open(archive) as tar:
            assert sorted(tar.getnames()) == ["SHA256SUMS", "VAPID_PRIVATE_KEY_FILE", "keyring.json", "settings.env"]
        # Nowhere else: not in what is backed up every night to wherever that goes.
        secret_ones = [shared.environment["JWT_SECRET"].encode(), b"t" * 40, b"BEGIN PRIVATE KEY"]
        for path in Path(report["backup"]).rglob("*"):
            assert not path.is_file() or not [one for one in secret_ones if one in path.read_bytes()]

        elsewhere = tmp_path / "elsewhere"
        settings = {**of(elsewhere), "JWT_SECRET": "", "TURN_SECRET": ""}
        raw = bytearray(archive.read_bytes())
        raw[600] ^= 1
        damaged = tmp_path / "damaged.tar"
        damaged.write_bytes(raw)
        refused = await restore(shared, report["backup"], "--keys", str(damaged), **settings)
        assert (refused.code, elsewhere.exists()) == (1, False)
        ended = await restore(shared, report["backup"], "--keys", str(archive), **settings)
        assert ended.code == 0, ended.err
        folder = elsewhere / "secrets"
        assert (folder / "jwt_secret").read_text() == shared.environment["JWT_SECRET"]
        assert (folder / "vapid_private_key_file").read_text() == vapid.read_text()
        keyring = json.loads((folder / "keyring.json").read_text())
        assert keyring["turn"][0]["secret"] == "t" * 40
        assert [key["secret"] != shared.environment["JWT_SECRET"] for key in keyring["jwt"]] == [True]
        assert {path.stat().st_mode & 0o777 for path in folder.glob("[a-z]*") if path.suffix != ".lock"} == {0o600}
        assert f"VAPID_PRIVATE_KEY_FILE: set it to {folder / 'vapid_private_key_file'}" in ended.json["keys"]


@pytest.mark.gen_test(timeout=120)
async def test_the_embedded_database_beside_its_server_and_without_it(folder: Path) -> None:
    home, new, output = folder / "embedded", folder / "embedded-new", folder / "embedded-backups"
    nothing = await script(None, "backup", "--output", str(output), **of(home))
    assert (nothing.code, "has no database" in nothing.err) == (1, True)
    alice = Account(one_time=1)
    async with program(None, folder, RATE_LIMITS="off", **of(home)) as running:
        await alice.register(running.url)
        one = await backup(None, output, **of(home))
        inside = await restore(None, one["backup"], **of(home))
        assert (inside.code, "is in use by another Mimu server" in inside.err) == (1, True)
    two = await backup(None, output, "--without-keys", **of(home))
    assert Manifest.read(Path(two["backup"])).rows["users"] == 1
    ended = await restore(None, one["backup"], "--keys", one["keys"], **of(new))
    assert ended.code == 0, ended.err
    async with program(None, folder, RATE_LIMITS="off", **of(new)) as running:
        alice.url = running.url
        assert (await alice.get("/users/me")).status == 401
        assert (await alice.login()).status == 200
        async with alice.socket() as socket:
            assert socket.ready["epoch"] == ended.json["epoch"]
            assert (await socket.expect("prekeys_low"))["remaining"] == 0


@pytest.mark.gen_test(timeout=60)
async def test_a_restored_snapshot_is_settled_by_hand(services: Services, tmp_path: Path) -> None:
    """A snapshot of the disk: nothing in the database shows that it was restored."""
    async with place(services) as shared:
        async with serving(shared, **of(tmp_path)) as server:
            alice, bob = await Account(one_time=2).register(server.url), await Account().register(server.url)
            async with alice.socket() as socket:
                epoch = socket.ready["epoch"]
        settled = await script(shared, "restore", "--settle", "--yes", "--json", **of(tmp_path))
        assert (settled.code, settled.json["prekeys_withdrawn"], settled.json["sessions_ended"]) == (0, 7, 2)
        async with serving(shared, **of(tmp_path)) as server:
            alice.url = bob.url = server.url
            assert (await alice.get("/users/me")).status == 401
            assert ((await alice.login()).status, (await bob.login()).status) == (200, 200)
            assert (await bundle(bob, alice))["one_time_prekey"] is None
            async with alice.socket() as socket:
                assert socket.ready["epoch"] == settled.json["epoch"] != epoch


@pytest.mark.gen_test
async def test_the_password_is_no_argument_and_the_tools_fit(services: Services) -> None:
    shown, environment = address("postgres://mimu:p%40ss@db.example:5433/mimu?sslmode=require")
    assert (shown, environment) == ("postgres://mimu@db.example:5433/mimu?sslmode=require", {"PGPASSWORD": "p@ss"})
    assert address("postgres:///mimu?password=x&host=/run")[1] == {"PGPASSWORD": "x"}
    assert address("postgres://localhost/mimu") == ("postgres://localhost/mimu", {})
    assert (await find("pg_dump", 16)).name == "pg_dump"
    with pytest.raises(
        BackupError, match=r"needs a pg_dump that is no older; here is only .* install postgresql-client-99"
    ):
        await find("pg_dump", 99)
