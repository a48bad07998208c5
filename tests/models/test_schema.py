"""The schema that the migrations make: the seed's tables, the models' columns, keys, indexes; and migrating itself."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import peewee
import pytest

import models
from models.database import Table
from models.postgres import migrations
from tests.running import ROOT, Services, inherited

_names = count()

SEED = {
    "users": "id public_id password_hash identity_key signing_public_key registration_id fingerprint display_name bio"
    " avatar_url language settings is_online last_seen created_at updated_at",
    "signed_prekeys": "id user_id key_id public_key signature created_at",
    "one_time_prekeys": "id user_id key_id public_key used used_at created_at",
    "subscriptions": "id prid_hash user_fingerprint tier status activated_at expires_at payment_proof payment_method"
    " signature signature_verified metadata",
    "user_verifications": "id verifier_id verified_user_id method verified_fingerprint trust_level notes verified_at",
    "chat_threads": "id type title avatar_url created_by settings created_at updated_at",
    "chat_participants": "chat_id user_id role joined_at",
    "messages": "id chat_id sender_id encrypted_payload message_type metadata reply_to forwarded_from delivered"
    " edited_at deleted_at expires_at created_at",
    "message_reads": "message_id user_id read_at",
    "message_reactions": "message_id user_id emoji created_at",
    "call_sessions": "id caller_id callee_id call_type status started_at accepted_at ended_at end_reason"
    " last_heartbeat created_at",
}
SEED_TYPES = {
    "users.id": "uuid",
    "users.public_id": "text",
    "users.identity_key": "bytea",
    "users.signing_public_key": "bytea",
    "users.registration_id": "integer",
    "users.settings": "jsonb",
    "signed_prekeys.public_key": "bytea",
    "one_time_prekeys.used": "boolean",
    "subscriptions.signature": "bytea",
    "subscriptions.metadata": "jsonb",
    "messages.encrypted_payload": "bytea",
    "call_sessions.last_heartbeat": "timestamp with time zone",
}
SEED_ENUMS = {
    "subscriptions.tier": ["premium", "ultra"],
    "subscriptions.status": ["active", "expired", "cancelled"],
    "user_verifications.trust_level": ["unverified", "verified", "trusted"],
    "chat_threads.type": ["direct", "group", "channel", "secret", "cloud"],
    "chat_participants.role": ["owner", "admin", "member", "restricted"],
    "call_sessions.call_type": ["audio", "video"],
    "call_sessions.status": ["ringing", "accepted", "ended", "missed", "rejected", "failed"],
}
SEED_KEYS = {
    "signed_prekeys.user_id": "users",
    "one_time_prekeys.user_id": "users",
    "user_verifications.verifier_id": "users",
    "user_verifications.verified_user_id": "users",
    "chat_threads.created_by": "users",
    "chat_participants.chat_id": "chat_threads",
    "chat_participants.user_id": "users",
    "messages.chat_id": "chat_threads",
    "messages.sender_id": "users",
    "messages.reply_to": "messages",
    "messages.forwarded_from": "messages",
    "message_reads.message_id": "messages",
    "message_reads.user_id": "users",
    "message_reactions.message_id": "messages",
    "message_reactions.user_id": "users",
    "call_sessions.caller_id": "users",
    "call_sessions.callee_id": "users",
}
SEED_UNIQUE = {
    ("users", ("lower(public_id)",)),
    ("users", ("identity_key",)),
    ("users", ("fingerprint",)),
    ("subscriptions", ("prid_hash",)),
    ("user_verifications", ("verifier_id", "verified_user_id")),
    ("chat_participants", ("chat_id", "user_id")),
    ("message_reads", ("message_id", "user_id")),
    ("message_reactions", ("message_id", "user_id", "emoji")),
}

# peewee's names for types, as PostgreSQL writes them; an enum has one name for both.
TYPES = {
    "UUID": "uuid",
    "TEXT": "text",
    "BLOB": "bytea",
    "BOOL": "boolean",
    "SMALLINT": "smallint",
    "INT": "integer",
    "BIGINT": "bigint",
    "DATETIME": "timestamp with time zone",
    "JSONB": "jsonb",
    "DOUBLE": "double precision",
}
# Foreign keys of which the models say nothing: peewee has no field for one that points back.
POINT_BACK = {"users.sealed_chat_id": ("chat_threads", "SET NULL")}
# And none of several columns.
COMPOSITE = {"chat_marks.chat_id,user_id": ("chat_participants", "CASCADE")}
ON_DELETE = {"a": None, "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}

_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       (SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = a.atttypid)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
  AND c.relname <> 'schema_migrations'
"""
_FOREIGN_KEYS = """
SELECT c.conrelid::regclass::text, (SELECT array_agg(a.attname::text ORDER BY array_position(c.conkey, a.attnum))
                                    FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)),
       c.confrelid::regclass::text, c.confdeltype::text
FROM pg_constraint c WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
"""
_INDEXES = """
SELECT i.indrelid::regclass::text, i.indexrelid::regclass::text, i.indisunique, i.indisprimary,
       pg_get_expr(i.indpred, i.indrelid),
       (SELECT array_agg(pg_get_indexdef(i.indexrelid, place, true) ORDER BY place)
        FROM generate_series(1, i.indnkeyatts) AS place)
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'schema_migrations'
"""


@dataclass(frozen=True)
class Column:
    type: str
    null: bool
    labels: list[str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Index:
    table: str
    name: str
    unique: bool
    primary: bool
    condition: str | None
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """What pg_catalog says of a database; columns are written ``table.column``."""

    columns: dict[str, Column]
    foreign_keys: dict[str, tuple[str, str | None]]
    indexes: list[Index]

    @property
    def tables(self) -> set[str]:
        return {name.partition(".")[0] for name in self.columns}


async def read(dsn: str) -> Schema:
    connection = await asyncpg.connect(dsn)
    try:
        columns = {f"{r[0]}.{r[1]}": Column(r[2], not r[3], r[4]) for r in await connection.fetch(_COLUMNS)}
        keys = {}
        for table, own, target, action in await connection.fetch(_FOREIGN_KEYS):
            keys[f"{table}.{','.join(own)}"] = (target, ON_DELETE[action])
        indexes = [Index(*r[:5], tuple(r[5])) for r in await connection.fetch(_INDEXES)]
        return Schema(columns, keys, indexes)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def empty(services: Services) -> AsyncIterator[str]:
    """A database with nothing in it, dropped at the end."""
    name = f"schema_{os.getpid()}_{next(_names)}"
    admin = await asyncpg.connect(services.dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield urlunsplit(urlsplit(services.dsn)._replace(path="/" + name))
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture(scope="module")
def schema(services: Services) -> Schema:
    async def made() -> Schema:
        async with empty(services) as dsn:
            await migrations.migrate(dsn)
            return await read(dsn)

    # Not asyncio.run, which would replace the loop of the other tests.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return loop.run_until_complete(made())


def below(kind: type[Table]) -> Iterator[type[Table]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def tables() -> dict[str, type[Table]]:
    """Every model, by the name of its table."""
    for module in pkgutil.walk_packages(models.__path__, "models."):
        importlib.import_module(module.name)
    found = [kind for kind in below(Table) if kind.__module__.startswith("models.")]
    named = {kind._meta.table_name: kind for kind in found}
    assert len(named) == len(found), "two models of one table"
    return named


def fields() -> dict[str, peewee.Field]:
    """Every model's fields, by ``table.column``."""
    return {f"{t}.{column}": f for t, kind in tables().items() for column, f in kind._meta.columns.items()}


def type_of(given: peewee.Field) -> str:
    while isinstance(given, peewee.ForeignKeyField):
        given = given.rel_field
    return TYPES.get(given.field_type, given.field_type)


# The models -----------------------------------------------------------------------------------------------------------


def test_every_table_has_a_model_and_every_model_a_table(schema: Schema) -> None:
    assert schema.tables == set(tables())


def test_models_have_the_columns_of_their_tables(schema: Schema) -> None:
    assert set(fields()) == set(schema.columns)


def test_models_know_types_and_what_may_be_null(schema: Schema) -> None:
    said = {name: Column(type_of(given), given.null) for name, given in fields().items()}
    assert said == {name: schema.columns[name] for name in said}


def test_models_have_the_foreign_keys_with_what_a_deletion_does(schema: Schema) -> None:
    said = {
        name: (given.rel_model._meta.table_name, given.on_delete)
        for name, given in fields().items()
        if isinstance(given, peewee.ForeignKeyField)
    }
    assert said | POINT_BACK | COMPOSITE == schema.foreign_keys


def test_models_know_primary_keys_and_unique_columns(schema: Schema) -> None:
    primary = {index.table: index.columns for index in schema.indexes if index.primary}
    said = {}
    for name, kind in tables().items():
        key = kind._meta.primary_key
        parts = [kind._meta.fields[part] for part in key.field_names] if hasattr(key, "field_names") else [key]
        said[name] = tuple(part.column_name for part in parts)
    assert said == primary

    single = {
        f"{index.table}.{index.columns[0]}"
        for index in schema.indexes
        if index.unique and not index.primary and index.condition is None and len(index.columns) == 1
    }
    assert {name for name, given in fields().items() if given.unique} == {n for n in single if n in schema.columns}


# The database ---------------------------------------------------------------------------------------------------------


def test_the_seed_s_tables_columns_and_types_are_there(schema: Schema) -> None:
    wanted = {f"{table}.{column}" for table, columns in SEED.items() for column in columns.split()}
    assert wanted - set(schema.columns) == set()
    assert {name: schema.columns[name].type for name in SEED_TYPES} == SEED_TYPES
    assert {name: schema.columns[name].labels for name in SEED_ENUMS} == SEED_ENUMS
    assert {name: schema.foreign_keys[name][0] for name in SEED_KEYS} == SEED_KEYS
    unique = {(index.table, index.columns) for index in schema.indexes if index.unique and index.condition is None}
    assert SEED_UNIQUE - unique == set()


def test_times_have_a_time_zone(schema: Schema) -> None:
    without = [name for name, column in schema.columns.items() if column.type.startswith("timestamp without")]
    assert without == []


def test_every_foreign_key_has_an_index_that_begins_with_it(schema: Schema) -> None:
    """Else the deletion of one row reads the whole table that points to it. An index with a condition serves only
    when the condition follows from ``column = $1``, as ``column IS NOT NULL`` does."""
    bare = []
    for name in schema.foreign_keys:
        table, _, column = name.partition(".")
        columns = tuple(column.split(","))
        serving = [
            index
            for index in schema.indexes
            if index.table == table
            and index.columns[: len(columns)] == columns
            and index.condition in (None, f"({column} IS NOT NULL)")
        ]
        if not serving:
            bare.append(name)
    assert bare == []


def test_no_index_repeats_another(schema: Schema) -> None:
    """One that is the beginning of another costs a write and gives nothing, unless it is unique or partial."""
    idle = [
        (index.name, other.name)
        for index in schema.indexes
        for other in schema.indexes
        if index is not other
        and index.table == other.table
        and index.columns == other.columns[: len(index.columns)]
        and index.condition == other.condition
        and not index.unique
    ]
    assert idle == []


# Migrating ------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_migrating_again_changes_nothing(services: Services) -> None:
    async with empty(services) as dsn:
        assert await migrations.applied(dsn) == []
        assert await migrations.migrate(dsn) == migrations.versions()
        before = await read(dsn)
        assert await migrations.migrate(dsn) == []
        assert await migrations.applied(dsn) == migrations.versions()
        assert await read(dsn) == before


@pytest.mark.gen_test
async def test_five_that_migrate_at_once_do_it_once(services: Services, schema: Schema) -> None:
    async with empty(services) as dsn:
        await asyncio.gather(*(migrations.migrate(dsn) for _ in range(5)))
        assert await migrations.applied(dsn) == migrations.versions()
        assert (await read(dsn)).columns == schema.columns


@pytest.mark.gen_test
async def test_a_migration_that_fails_says_why_and_leaves_nothing_half_done(services: Services) -> None:
    async with empty(services) as dsn:
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE call_sessions ()")  # in the way of the last statements of the first file
        with pytest.raises(migrations.MigrationError, match="call_sessions"):
            await migrations.migrate(dsn)
        assert await migrations.applied(dsn) == []
        assert (await read(dsn)).tables == set()
        await connection.execute("DROP TABLE call_sessions")
        await connection.close()
        assert await migrations.migrate(dsn) == migrations.versions()


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


async def migrate(folder: Path, dsn: str | None, *arguments: str) -> Ended:
    """Run ``python -m scripts.migrate`` with this DATABASE_URL and no other setting."""
    nothing = folder / "empty.env"
    nothing.touch()
    environment = inherited("PATH", "HOME")
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", **({"DATABASE_URL": dsn} if dsn else {})}
    command = [sys.executable, "-m", "scripts.migrate", "--env-file", str(nothing), *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


@pytest.mark.gen_test
async def test_the_script_checks_applies_and_says_so(services: Services, tmp_path: Path) -> None:
    versions = migrations.versions()
    async with empty(services) as dsn:
        due, due_json = await asyncio.gather(
            migrate(tmp_path, dsn, "--check"), migrate(tmp_path, dsn, "--check", "--json")
        )
        assert (due.code, due.out) == (1, f"due: {', '.join(versions)}\n")
        assert (due_json.code, json.loads(due_json.out)) == (1, {"due": versions})
        assert await migrations.applied(dsn) == [], "a check changes nothing"

        done = await migrate(tmp_path, dsn, "--json")
        assert (done.code, json.loads(done.out)) == (0, {"applied": versions})

        again, check, check_json = await asyncio.gather(
            migrate(tmp_path, dsn), migrate(tmp_path, dsn, "--check"), migrate(tmp_path, dsn, "--check", "--json")
        )
        assert (again.code, again.out, again.err) == (0, "up to date\n", "")
        assert (check.code, check.out) == (0, "up to date\n")
        assert (check_json.code, json.loads(check_json.out)) == (0, {"due": []})


@pytest.mark.gen_test
async def test_the_script_quotes_no_address_that_it_cannot_read(tmp_path: Path) -> None:
    """An unescaped / ends the password, and the text before it is no valid port."""
    odd = [f"postgres://mimu:{word}@127.0.0.1:1/mimu" for word in ("canary/x", "canary#x", "canary[x", "can,ary/x")]
    odd.append("postgres://mimu:canary@127.0.0.1:1/mimu?sslmode=odd")
    *unreadable, unknown = await asyncio.gather(*(migrate(tmp_path, dsn) for dsn in odd))
    for ended in unreadable:
        assert (ended.code, ended.err) == (78, "DATABASE_URL: expected postgresql://user:password@host:port/name\n")
    assert (unknown.code, unknown.err[:21]) == (78, "DATABASE_URL: sslmode")
    assert "canary" not in unknown.err


@pytest.mark.gen_test
async def test_the_script_says_what_it_lacks_and_never_the_password(services: Services, tmp_path: Path) -> None:
    password = urlsplit(services.dsn).password
    assert password
    async with empty(services) as dsn:
        in_the_way = await asyncpg.connect(dsn)
        await in_the_way.execute("CREATE TABLE users ()")
        await in_the_way.close()
        closed = dsn.replace(f":{urlsplit(dsn).port}/", ":1/")
        missing, away, refused, failed = await asyncio.gather(
            migrate(tmp_path, None),
            migrate(tmp_path, closed),
            migrate(tmp_path, dsn.replace(password, "wrong-" + password)),
            migrate(tmp_path, dsn),
        )
    assert (missing.code, missing.err.partition(":")[0]) == (78, "DATABASE_URL")
    for ended in (away, refused, failed):
        assert ended.code == 1
        assert ended.err.startswith("migration failed: ")
        assert password not in ended.out + ended.err
        assert "Traceback" not in ended.err
