"""Migrations beside running servers: the rules they keep to, who waits for whom, and which server may start on what."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from models import migrations
from tests.models.migration_rules import faults
from tests.models.test_schema import empty
from tests.running import ROOT, Place, Services, connected, place

BOUND = "0006"  # the last one made before there were rules
SUMS = migrations.FOLDER / "SHA256SUMS"


def created(sql: str) -> list[str]:
    return re.findall(r"^CREATE TABLE (\w+)", sql, re.MULTILINE)


# The rules ------------------------------------------------------------------------------------------------------------


def test_migrations_keep_to_the_rules() -> None:
    tables: list[str] = []
    earlier, found = "", {}
    for version, path in migrations.files().items():
        sql = path.read_text()
        if version > BOUND and (wrong := faults(sql, tables, earlier)):
            found[path.name] = wrong
        tables += created(sql)
        earlier += sql
    assert found == {}


def test_what_was_released_is_never_edited() -> None:
    """Databases have it already. A new file is entered with: cd migrations && sha256sum *.sql > SHA256SUMS"""
    known = {name: sha256 for sha256, _, name in (line.partition("  ") for line in SUMS.read_text().splitlines())}
    assert known == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in migrations.files().values()}


GOOD = [
    "ALTER TABLE users ADD COLUMN mood text;",
    "ALTER TABLE users ADD COLUMN mood text NOT NULL DEFAULT '', ADD COLUMN since timestamptz DEFAULT now();",
    """CREATE TABLE moods (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid REFERENCES users (id));
    CREATE INDEX moods_user_id ON moods (user_id); INSERT INTO moods DEFAULT VALUES;""",
    "ALTER TABLE users ADD CONSTRAINT bio_there CHECK (bio IS NOT NULL) NOT VALID;",
    "ALTER TABLE users VALIDATE CONSTRAINT users_mood;",
    "ALTER TABLE users ADD CONSTRAINT users_mood UNIQUE USING INDEX users_mood_index;",
    "-- Locks: it has a row for each operator.\nCREATE INDEX audit_log_actor ON audit_log (actor);",
    "ALTER TABLE users DROP COLUMN bio;\nUPDATE schema_floor SET oldest = '0009';",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1; DELETE FROM users; $$;",
    "-- DROP TABLE users;\nALTER TABLE users ADD COLUMN mood text DEFAULT ';';",
]
BAD = {
    "no way down": "CREATE TABLE a ();\n-- migrate:down\nDROP TABLE a;",
    "CONCURRENTLY": "CREATE UNIQUE INDEX users_bio ON users (bio);",
    "writes the table anew": "ALTER TABLE messages ALTER COLUMN seq TYPE numeric;",
    "a value for each row": "ALTER TABLE users ADD COLUMN token uuid NOT NULL DEFAULT gen_random_uuid();",
    "wants a default": "ALTER TABLE users ADD COLUMN mood text NOT NULL;",
    "validated before": "ALTER TABLE users ALTER COLUMN bio SET NOT NULL;",
    "NOT VALID": "ALTER TABLE users ADD COLUMN mood text CHECK (mood <> '');",
    "USING INDEX": "ALTER TABLE users ADD CONSTRAINT users_bio_key UNIQUE (bio);",
    "keeps everybody out": "LOCK TABLE users;",
    "in batches": "UPDATE users SET bio = '';",
    "holds the first": "ALTER TABLE users ADD COLUMN a int;\nALTER TABLE messages ADD COLUMN b int;",
    "schema_floor": "ALTER TABLE users DROP COLUMN bio;",
    "the runner": "SET lock_timeout = '1h';",
    "no migrate:up": None,
}


@pytest.mark.parametrize("sql", GOOD)
def test_the_rules_let_through_what_is_good(sql: str) -> None:
    assert faults(f"-- migrate:up\n\n{sql}\n", ["users", "messages", "audit_log"]) == []


@pytest.mark.parametrize("why", BAD)
def test_the_rules_find_what_is_not(why: str) -> None:
    sql = BAD[why]
    found = faults("CREATE TABLE a ();" if sql is None else f"-- migrate:up\n\n{sql}\n", ["users", "messages"])
    assert len(found) == 1
    assert why in found[0]


def test_not_null_is_good_after_a_check_was_validated() -> None:
    before = "ALTER TABLE users ADD CONSTRAINT c CHECK (bio IS NOT NULL) NOT VALID;\n"
    before += "ALTER TABLE users VALIDATE CONSTRAINT c;"
    sql = "-- migrate:up\nALTER TABLE users ALTER COLUMN bio SET NOT NULL, DROP CONSTRAINT c;\n"
    assert faults(sql, ["users"], before) == []


@pytest.mark.parametrize(
    ("sql", "good"),
    [
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS a ON users (bio);", True),
        ("DROP INDEX CONCURRENTLY IF EXISTS a;", True),
        ("CREATE INDEX CONCURRENTLY a ON users (bio);", False),
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS a ON users (bio);\nSELECT 1;", False),
        ("ALTER TABLE users ADD COLUMN a int;", False),
    ],
)
def test_outside_a_transaction_is_one_index(sql: str, good: bool) -> None:
    assert (faults(f"-- migrate:up transaction:false\n\n{sql}\n", ["users"]) == []) is good


# At work --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test writes a migration that follows the real ones."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrations.FOLDER, folder)
    monkeypatch.setattr(migrations, "FOLDER", folder)
    return folder / "9001_next.sql"


@contextlib.asynccontextmanager
async def reader(shared: Place) -> AsyncIterator[asyncpg.Connection]:
    """Somebody whose transaction has read users, and goes on."""
    async with connected(shared) as connection:
        await connection.execute("BEGIN")
        await connection.fetch("SELECT 1 FROM users LIMIT 1")
        await connection.execute("SET application_name = 'a long report'")
        yield connection


@pytest.mark.gen_test
async def test_a_migration_lets_others_go_first(services: Services, next_one: Path) -> None:
    async with place(services) as shared, reader(shared) as slow, connected(shared) as other:
        next_one.write_text("-- migrate:up\n\nALTER TABLE users ADD COLUMN mood text;\n-- migrate:down\n")
        told: list[str] = []
        migrating = asyncio.create_task(migrations.migrate(shared.dsn, tell=told.append))
        waits = []
        while len(told) < 2:
            began = time.monotonic()
            await other.fetch("SELECT count(*) FROM users")
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
        assert not migrating.done()
        # Somebody did queue up behind it, and nobody for longer than it waits itself.
        assert 0.3 < max(waits) < migrations.LOCK_TIMEOUT / 1000 + 0.5
        assert all("of a long report is in a transaction of" in text for text in told)
        await slow.execute("ROLLBACK")
        assert await asyncio.wait_for(migrating, 10) == ["9001"]
        assert await other.fetchval("SELECT count(mood) FROM users") == 0


@pytest.mark.gen_test
async def test_a_migration_that_never_gets_its_turn_says_so(services: Services, next_one: Path) -> None:
    async with place(services) as shared, reader(shared):
        next_one.write_text("-- migrate:up\n\nALTER TABLE users ADD COLUMN mood text;\n-- migrate:down\n")
        with pytest.raises(migrations.MigrationError, match=r"gave up after 0 s .* of a long report"):
            await migrations.migrate(shared.dsn, patience=0)
        assert "9001" not in await migrations.applied(shared.dsn)


@pytest.mark.gen_test
async def test_an_index_that_was_interrupted_is_built_anew(services: Services, next_one: Path) -> None:
    async with place(services) as shared, connected(shared) as other:
        next_one.write_text(
            "-- migrate:up transaction:false\n\nCREATE INDEX CONCURRENTLY IF NOT EXISTS users_bio ON users (bio);\n"
            "-- migrate:down\n"
        )
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('users_bio')"
        async with reader(shared) as slow:
            await slow.execute("UPDATE users SET bio = bio")  # which the index waits for
            migrating = asyncio.create_task(migrations.migrate(shared.dsn))
            async with asyncio.timeout(10):
                while await other.fetchval(valid) is None:
                    await asyncio.sleep(0.02)
            ended = await other.fetchval(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%CONCURRENTLY IF NOT%'"
                " AND pid <> pg_backend_pid() AND datname = current_database()"
            )
            assert ended
            with pytest.raises(migrations.MigrationError):
                await migrating
        assert await other.fetchval(valid) is False
        told: list[str] = []
        # Two at once: the one that waits must not be what the index waits for.
        both = await asyncio.wait_for(
            asyncio.gather(*(migrations.migrate(shared.dsn, tell=told.append) for _ in range(2))), 10
        )
        assert sorted(both) == [[], ["9001"]]
        assert await other.fetchval(valid) is True
        assert sorted(told) == [
            "another process is migrating; waiting for it",
            "dropping public.users_bio, which was not finished",
        ]


@pytest.mark.gen_test(timeout=60)
async def test_what_a_killed_runner_began_is_not_taken_for_done(services: Services, next_one: Path) -> None:
    """What it had started must not enter as applied what the next one drops as unfinished."""
    async with place(services) as shared, connected(shared) as other:
        next_one.write_text(
            "-- migrate:up transaction:false\n\nCREATE INDEX CONCURRENTLY IF NOT EXISTS users_bio ON users (bio);\n"
            "-- migrate:down\n"
        )
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('users_bio')"
        runner = (
            "import asyncio, pathlib, sys; from models import migrations;"
            " migrations.FOLDER = pathlib.Path(sys.argv[1]); asyncio.run(migrations.migrate(sys.argv[2]))"
        )
        async with reader(shared) as slow:
            await slow.execute("UPDATE users SET bio = bio")  # which the index waits for
            killed = await asyncio.create_subprocess_exec(
                sys.executable, "-c", runner, str(next_one.parent), shared.dsn, cwd=ROOT
            )
            async with asyncio.timeout(10):
                while await other.fetchval(valid) is None:
                    await asyncio.sleep(0.02)
            killed.kill()
            await killed.wait()
            told: list[str] = []
            again = asyncio.create_task(migrations.migrate(shared.dsn, tell=told.append))
            async with asyncio.timeout(10):
                while not told:
                    await asyncio.sleep(0.02)
            assert told == ["an index is being built; waiting for it"]
        await asyncio.wait_for(again, 20)
        assert "9001" in await migrations.applied(shared.dsn)
        assert await other.fetchval(valid) is True


async def run(command: list[str], **settings: str) -> tuple[int, str, str]:
    """A program of ours, as a process: its exit code, and what it said."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, "--env-file", os.devnull),
        cwd=ROOT,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1", **settings},
        stdout=pipe,
        stderr=pipe,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.gen_test(timeout=60)
async def test_of_five_processes_one_migrates(services: Services) -> None:
    async with empty(services) as dsn:
        ended = await asyncio.gather(*(run(["-m", "scripts.migrate", "--json"], DATABASE_URL=dsn) for _ in range(5)))
        assert [code for code, _, _ in ended] == [0] * 5
        applied = [json.loads(out)["applied"] for _, out, _ in ended]
        assert sorted(applied) == [[], [], [], [], migrations.versions()]


# Which server on which schema -----------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_an_older_server_starts_on_a_newer_schema_only_where_it_may(services: Services) -> None:
    async with place(services) as shared, connected(shared) as other:
        assert await migrations.ready(shared.dsn) == []
        await other.execute("INSERT INTO schema_migrations VALUES ('9001')")
        # It only added something: an instance that restarts in the midst of an upgrade must be able to.
        assert await migrations.ready(shared.dsn) == ["9001"]
        assert await migrations.migrate(shared.dsn) == []
        await other.execute("UPDATE schema_floor SET oldest = '9001'")
        with pytest.raises(migrations.MigrationError, match="newer than this server"):
            await migrations.migrate(shared.dsn)
        code, out, err = await run(["server.py"], **shared.environment)
        known = migrations.versions()[-1]
        assert (code, out) == (1, "")
        assert json.loads(err.splitlines()[-1])["reason"] == (
            f"the schema of the database (9001) is newer than this server ({known}) and needs "
            "a server that knows 9001: start the newer version, or restore a backup from before the upgrade"
        )
        code, _, err = await run(["-m", "scripts.migrate"], **shared.environment)
        assert (code, "newer than this server" in err, "Traceback" in err) == (1, True, False)


@pytest.mark.gen_test
async def test_a_server_does_not_start_on_what_lacks_a_migration(services: Services) -> None:
    async with place(services) as shared, connected(shared) as other:
        await other.execute("DELETE FROM schema_migrations WHERE version = '0007'")
        with pytest.raises(migrations.MigrationError, match=r"the database lacks 0007: python -m scripts\.migrate"):
            await migrations.ready(shared.dsn)
