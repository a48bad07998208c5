"""Migrations beside running servers: their rules, their locks, and which server may start on which schema."""

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

from models.postgres import migrations
from tests.models import migration_locks
from tests.models.migration_rules import faults, statements
from tests.models.test_schema import empty
from tests.running import ROOT, Place, Services, connected, inherited, place
from tests.waiting import WAIT

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


def test_released_migrations_are_never_edited() -> None:
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
    "rewrites the table": "ALTER TABLE messages ALTER COLUMN seq TYPE numeric;",
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
    "only its first": "CREATE TABLE a (); SET LOCAL lock_timeout = '500ms';",
    "for less": "SET LOCAL lock_timeout = '60000ms';",
    "locks chats, users": "CREATE TABLE a (user_id uuid REFERENCES users (id), chat_id uuid REFERENCES chats);",
    "locks a, users": "CREATE TRIGGER t AFTER INSERT ON a EXECUTE FUNCTION f();\nALTER TABLE users ADD COLUMN b int;",
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


# What PostgreSQL says -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_migrations_delay_no_request(services: Services) -> None:
    found = {}
    async with empty(services) as dsn:
        connection = await asyncpg.connect(dsn)
        for version, path in migrations.files().items():
            sql = path.read_text()
            head = re.search(r"^-- migrate:up(.*)$", sql, re.MULTILINE)
            assert head is not None
            parts = statements(sql[head.end() :].partition("-- migrate:down")[0])
            if "transaction:false" in head[1]:
                [alone] = parts  # about one index, CONCURRENTLY: the rules see to that
                await connection.execute(alone.sql)
                continue
            async with connection.transaction():
                wrong = await migration_locks.faults(connection, parts)
            if version > BOUND and wrong:
                found[path.name] = wrong
        await connection.close()
    assert found == {}


# What it locks, what it reads from one end to the other, and what it rewrites.
EFFECTS: dict[str, tuple[str, str, str]] = {
    "CREATE TABLE moods (id uuid PRIMARY KEY, name text);": ("", "", ""),
    "CREATE TABLE moods (user_id uuid REFERENCES users (id));": ("users", "", ""),
    "CREATE TABLE moods (a uuid REFERENCES users, b uuid, FOREIGN KEY (b) REFERENCES sessions);": (
        "sessions users",
        "",
        "",
    ),
    "ALTER TABLE sessions ADD FOREIGN KEY (user_id) REFERENCES users NOT VALID;": ("sessions users", "", ""),
    "ALTER TABLE sessions ADD FOREIGN KEY (user_id) REFERENCES users;": ("sessions users", "sessions", ""),
    "ALTER TABLE users ADD COLUMN mood text NOT NULL DEFAULT '';": ("users", "", ""),
    "ALTER TABLE users ADD COLUMN token uuid DEFAULT gen_random_uuid();": ("users", "users", "users"),
    "ALTER TABLE users ALTER COLUMN language TYPE varchar(35);": ("users", "users", "users"),
    "ALTER TABLE users ADD CHECK (bio <> '');": ("users", "users", ""),
    "ALTER TABLE users ADD CHECK (bio <> '') NOT VALID;": ("users", "", ""),
    "ALTER TABLE users ALTER COLUMN bio SET NOT NULL;": ("users", "users", ""),
    "ALTER TABLE checked VALIDATE CONSTRAINT checked_id;": ("", "checked", ""),
    "ALTER TABLE parts ATTACH PARTITION part FOR VALUES FROM (1) TO (2);": ("part", "part", ""),
    "CREATE INDEX users_bio ON users (bio);": ("users", "users", ""),
    "DROP INDEX checked_index;": ("checked", "", ""),
    "CREATE TRIGGER t BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();": (
        "users",
        "",
        "",
    ),
    "DROP TRIGGER checked_trigger ON checked;": ("checked", "", ""),
    "CREATE RULE r AS ON DELETE TO checked DO INSTEAD NOTHING;": ("checked", "", ""),
    "CREATE POLICY p ON checked;": ("checked", "", ""),
    "DROP TABLE push_tokens;": ("push_tokens sessions users", "", ""),
    "DROP TABLE checked;": ("checked", "", ""),
    "LOCK TABLE users IN SHARE MODE;": ("users", "", ""),
    "DO $$ BEGIN ALTER TABLE users ADD COLUMN mood text; END $$;": ("users", "", ""),
    "COMMENT ON TABLE users IS 'people';": ("", "", ""),
    "COMMENT ON COLUMN users.bio IS 'of people';": ("", "", ""),
    "CREATE STATISTICS s ON bio, language FROM users;": ("", "", ""),
    "ALTER TYPE push_provider ADD VALUE 'pigeon';": ("", "", ""),
    "UPDATE schema_floor SET oldest = '0009';": ("", "schema_floor", ""),
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1; $$;": ("", "", ""),
}
BEFORE = """
CREATE TABLE parts (id int) PARTITION BY RANGE (id);
CREATE TABLE part (id int);
CREATE TABLE checked (id int);
CREATE INDEX checked_index ON checked (id);
ALTER TABLE checked ADD CONSTRAINT checked_id CHECK (id > 0) NOT VALID;
CREATE TRIGGER checked_trigger BEFORE UPDATE ON checked
    FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
"""
# What only PostgreSQL knows: what a body does, what a table refers to, what an index is of.
UNSEEN = ("DO", "DROP INDEX", "DROP TABLE push_tokens")


@pytest.mark.gen_test(timeout=120)
async def test_the_rules_see_the_locks_of_each_statement(services: Services) -> None:
    found = {}
    async with empty(services) as dsn:
        await migrations.migrate(dsn)
        connection = await asyncpg.connect(dsn)
        await connection.execute(BEFORE)
        for sql in EFFECTS:
            trying = connection.transaction()
            await trying.start()
            [seen] = await migration_locks.effects(connection, statements(sql))
            await trying.rollback()
            found[sql] = tuple(" ".join(sorted(names)) for names in (seen.locked, seen.read, seen.rewritten))
        await connection.close()
    assert found == EFFECTS


@pytest.mark.parametrize("sql", EFFECTS)
def test_the_rules_see_locks_as_postgresql_does(sql: str) -> None:
    """Two tables that are locked at one time are one too many; other rules may refuse the statement as well."""
    tables = EFFECTS[sql][0].split()
    found = [fault for fault in faults(f"-- migrate:up\n{sql}\n") if "holds the first" in fault]
    assert bool(found) == (len(tables) > 1 and not sql.startswith(UNSEEN))
    for table in tables if found else ():
        assert table in found[0]


@pytest.mark.gen_test
async def test_a_file_that_locks_several_tables_waits_less_for_each(services: Services) -> None:
    sql = "CREATE TABLE moods (user_id uuid REFERENCES users, session_id uuid REFERENCES sessions);"
    half = f"SET LOCAL lock_timeout = '{migrations.LOCK_TIMEOUT // 2}ms';\n{sql}"
    excused = f"-- Locks: servers start later.\n{sql}"
    later = "ALTER TABLE users ADD COLUMN mood text;\nALTER TABLE users ADD CHECK (mood <> '');"
    async with empty(services) as dsn:
        await migrations.migrate(dsn)
        connection = await asyncpg.connect(dsn)
        for text, why in ((sql, "holds the first"), (half, None), (excused, None), (later, "reads or writes all")):
            trying = connection.transaction()
            await trying.start()
            found = await migration_locks.faults(connection, statements(text))
            await trying.rollback()
            assert [why in fault for fault in found if why] == [True] * bool(why), (text, found)
            if why != "reads or writes all":
                assert bool(faults(f"-- migrate:up\n{text}\n")) == bool(why)
        await connection.close()


@pytest.mark.gen_test
async def test_writers_wait_no_longer_than_one_lock_takes(services: Services, next_one: Path) -> None:
    """Foreign keys to two tables, of which the second is in use."""
    half = migrations.LOCK_TIMEOUT // 2
    async with place(services) as shared, connected(shared) as slow, connected(shared) as other:
        next_one.write_text(
            f"-- migrate:up\nSET LOCAL lock_timeout = '{half}ms';\n"
            "CREATE TABLE moods (user_id uuid REFERENCES users, session_id uuid REFERENCES sessions);\n"
            "-- migrate:down\n"
        )
        await slow.execute("BEGIN")
        await slow.execute("LOCK TABLE sessions IN ROW EXCLUSIVE MODE")
        notices: list[str] = []
        migrating = asyncio.create_task(migrations.migrate(shared.dsn, report=notices.append))
        waits = []
        while len(notices) < 2:
            began = time.monotonic()
            await other.execute("UPDATE users SET bio = bio")
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
        assert half / 2000 < max(waits) < migrations.LOCK_TIMEOUT / 1000
        await slow.execute("ROLLBACK")
        assert await asyncio.wait_for(migrating, WAIT) == ["9001"]


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
    """A client whose open transaction has read users."""
    async with connected(shared) as connection:
        await connection.execute("BEGIN")
        await connection.fetch("SELECT 1 FROM users LIMIT 1")
        await connection.execute("SET application_name = 'a long report'")
        yield connection


@pytest.mark.gen_test
async def test_a_migration_lets_others_go_first(services: Services, next_one: Path) -> None:
    async with place(services) as shared, reader(shared) as slow, connected(shared) as other:
        next_one.write_text("-- migrate:up\n\nALTER TABLE users ADD COLUMN mood text;\n-- migrate:down\n")
        reports: list[str] = []
        migrating = asyncio.create_task(migrations.migrate(shared.dsn, report=reports.append))
        waits = []
        while len(reports) < 2:
            began = time.monotonic()
            await other.fetch("SELECT count(*) FROM users")
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
        assert not migrating.done()
        # A query did queue behind it, and none for longer than the migration waits itself.
        assert 0.3 < max(waits) < migrations.LOCK_TIMEOUT / 1000 + 0.5
        assert all("of a long report is in a transaction of" in text for text in reports)
        await slow.execute("ROLLBACK")
        assert await asyncio.wait_for(migrating, WAIT) == ["9001"]
        assert await other.fetchval("SELECT count(mood) FROM users") == 0


@pytest.mark.gen_test
async def test_a_migration_that_never_gets_its_turn_says_so(services: Services, next_one: Path) -> None:
    async with place(services) as shared, reader(shared):
        next_one.write_text("-- migrate:up\n\nALTER TABLE users ADD COLUMN mood text;\n-- migrate:down\n")
        with pytest.raises(migrations.MigrationError, match=r"gave up after 0 s .* of a long report"):
            await migrations.migrate(shared.dsn, patience=0)
        assert "9001" not in await migrations.applied(shared.dsn)


@pytest.mark.gen_test
async def test_an_interrupted_index_is_built_again(services: Services, next_one: Path) -> None:
    async with place(services) as shared, connected(shared) as other:
        next_one.write_text(
            "-- migrate:up transaction:false\n\nCREATE INDEX CONCURRENTLY IF NOT EXISTS users_bio ON users (bio);\n"
            "-- migrate:down\n"
        )
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('users_bio')"
        async with reader(shared) as slow:
            await slow.execute("UPDATE users SET bio = bio")  # which the index waits for
            migrating = asyncio.create_task(migrations.migrate(shared.dsn))
            async with asyncio.timeout(WAIT):
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
        reports: list[str] = []
        # Two at once: the one that waits must not be what the index waits for.
        both = await asyncio.wait_for(
            asyncio.gather(*(migrations.migrate(shared.dsn, report=reports.append) for _ in range(2))), 10
        )
        assert sorted(both) == [[], ["9001"]]
        assert await other.fetchval(valid) is True
        assert sorted(reports) == [
            "another process is migrating; waiting for it",
            "dropping public.users_bio, which was not finished",
        ]


@pytest.mark.gen_test(timeout=60)
async def test_a_migration_of_a_killed_runner_does_not_count_as_applied(services: Services, next_one: Path) -> None:
    """What it had started must not enter as applied what the next one drops as unfinished."""
    async with place(services) as shared, connected(shared) as other:
        next_one.write_text(
            "-- migrate:up transaction:false\n\nCREATE INDEX CONCURRENTLY IF NOT EXISTS users_bio ON users (bio);\n"
            "-- migrate:down\n"
        )
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('users_bio')"
        runner = (
            "import asyncio, pathlib, sys; from models.postgres import migrations;"
            " migrations.FOLDER = pathlib.Path(sys.argv[1]); asyncio.run(migrations.migrate(sys.argv[2]))"
        )
        async with reader(shared) as slow:
            await slow.execute("UPDATE users SET bio = bio")  # which the index waits for
            killed = await asyncio.create_subprocess_exec(
                sys.executable, "-c", runner, str(next_one.parent), shared.dsn, cwd=ROOT
            )
            async with asyncio.timeout(WAIT):
                while await other.fetchval(valid) is None:
                    await asyncio.sleep(0.02)
            killed.kill()
            await killed.wait()
            reports: list[str] = []
            again = asyncio.create_task(migrations.migrate(shared.dsn, report=reports.append))
            async with asyncio.timeout(WAIT):
                while not reports:
                    await asyncio.sleep(0.02)
            assert reports == ["an index is being built; waiting for it"]
        await asyncio.wait_for(again, 20)
        assert "9001" in await migrations.applied(shared.dsn)
        assert await other.fetchval(valid) is True


async def run(command: list[str], **settings: str) -> tuple[int, str, str]:
    """Run one of our programs as a process. Returns its exit code and its output."""
    environment = inherited("PATH", "HOME")
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
async def test_one_of_five_simultaneous_processes_migrates(services: Services) -> None:
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
