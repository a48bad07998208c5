"""peewee's queries: they run like SQL, and peewee and peewee-async have all that we rely on."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import peewee
import peewee_async
import pytest
from peewee import SQL, fn

from config.logs import STATEMENT
from models import contacts
from models.database import COMMAND_SECONDS, Database, Unavailable, any_of
from models.files import File
from models.postgres.orm import Orm, numbered
from models.postgres.statements import Watch
from models.sessions import SpentChallenge
from models.subscriptions import Subscription
from models.users import User
from tests.running import Services, place

NEW = "peewee or peewee-async has changed: see models/postgres/orm.py for what we rely on. "


class Recorder:
    """A connection that records its statements."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def cursor(self) -> Recorder:
        return self

    async def execute(self, sql: str, parameters: Any) -> None:
        self.asked.append((sql, parameters))


@contextlib.asynccontextmanager
async def database(services: Services, **options: Any) -> AsyncIterator[Database]:
    async with place(services) as where, Database(where.dsn, **options).open() as db:
        yield db


def user(name: str = "anna") -> dict[str, Any]:
    return {
        "public_id": name,
        "password_hash": "",
        "identity_key": name.encode() * 8,
        "signing_public_key": bytes(32),
        "registration_id": 1,
        "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "settings": {"a": [1, None, "ß"]},
    }


# What a new version must still have --------------------------------------------------------------------------------


def test_peewee_async_has_the_door_to_our_pool() -> None:
    kind = peewee_async.PostgresqlDatabase
    for name in ("aio_execute", "aio_execute_sql", "aio_connection", "pool_backend_cls"):
        assert hasattr(kind, name), f"{NEW}PostgresqlDatabase.{name} is missing"
    assert "fetch_results" in inspect.signature(kind.aio_execute).parameters, f"{NEW}aio_execute lacks fetch_results"


@pytest.mark.gen_test
async def test_peewee_async_takes_the_connection_from_that_door(monkeypatch: pytest.MonkeyPatch) -> None:
    connection, results = Recorder(), []

    async def fetch_results(*arguments: object) -> None:
        results.append(arguments)

    monkeypatch.setattr(Orm, "aio_connection", lambda _: connection)
    orm = Orm(lambda: pytest.fail("no connection is taken"), Watch())
    try:
        await orm.aio_execute(SpentChallenge.delete().where(SpentChallenge.nonce == b"n"), fetch_results)
    except (AttributeError, TypeError) as error:
        pytest.fail(f"{NEW}aio_execute asks for more than aio_connection, cursor and execute: {error}")
    assert connection.asked == [('DELETE FROM "spent_challenges" WHERE ("spent_challenges"."nonce" = %s)', [b"n"])], (
        f"{NEW}aio_execute does not run the statement by cursor().execute(sql, parameters)"
    )
    assert results == [(orm, connection)], f"{NEW}fetch_results is not called with the database and the cursor"


def test_peewee_keeps_the_error_of_the_driver() -> None:
    class IntegrityConstraintViolationError(Exception):
        """As asyncpg's is called."""

    with pytest.raises(peewee.PeeweeException) as raised, peewee.__exception_wrapper__:
        raise IntegrityConstraintViolationError
    orig = getattr(raised.value, "orig", None)
    assert isinstance(orig, IntegrityConstraintViolationError), f"{NEW}PeeweeException.orig is missing"


def test_peewee_writes_the_statements_that_we_expect() -> None:
    def sql(query: peewee.Query) -> str:
        written, _ = Orm(lambda: contextlib.nullcontext(), Watch()).get_sql_context().sql(query).query()
        return numbered(written)

    ids = [uuid4(), uuid4()]
    assert [
        sql(SpentChallenge.insert(nonce=b"", expires_at=datetime.now(UTC))),
        sql(Subscription.select(Subscription.tier.label).where(Subscription.status == "active")),
        sql(Subscription.update(tier=None).where(any_of(Subscription.id, ids))),
    ] == [
        'INSERT INTO "spent_challenges" ("nonce", "expires_at") VALUES ($1, $2)',
        """SELECT CAST("t1"."tier" AS text) FROM "subscriptions" AS "t1" WHERE ("t1"."status" = 'active')""",
        'UPDATE "subscriptions" SET "tier" = NULL WHERE ("subscriptions"."id" = ANY($1))',
    ], NEW


@pytest.mark.parametrize("label", ["'; DROP TABLE users --", "", "Active", "a'b", "a\n"])
def test_a_label_is_nothing_but_a_label(label: str) -> None:
    with pytest.raises(ValueError, match="not a label"):
        Subscription.status.db_value(label)


# A query runs as SQL does ------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_values_come_back_as_they_went(services: Services) -> None:
    async with database(services) as db:
        made = await db.one(User.insert(**user()).returning(User.id, User.created_at))
        assert made is not None
        assert type(made["id"]).__mro__[-2] is UUID
        assert made["created_at"].tzinfo is not None
        row = await db.one(User.select().where(User.created_at == made["created_at"], User.id == made["id"]))
        assert row == await db.row(
            f"SELECT {', '.join(User._meta.columns)} FROM users WHERE identity_key = $1", b"anna" * 8
        )
        assert row is not None
        assert row["settings"] == {"a": [1, None, "ß"]}
        file = File.insert(owner=made["id"], size=1, storage_key=uuid4().hex, resumable=True, part_etags=["x", "y"])
        found = await db.one(file.returning(File.owner, File.part_etags, File.state.label, File.expires_at))
        assert found is not None
        assert (found["owner_id"], found["part_etags"], found["state"]) == (made["id"], ["x", "y"], "uploading")
        assert await db.do(File.update(part_etags=[], chat=None).where(File.state == "uploading")) == 1
        assert await db.scalar(File.select(File.part_etags).where(any_of(File.owner, [made["id"]]))) == []


@pytest.mark.gen_test
async def test_a_query_says_what_it_found_or_changed(services: Services) -> None:
    async with database(services) as db:
        assert await db.rows(User.select()) == []
        assert await db.one(User.select()) is None
        assert await db.scalar(User.select(User.id)) is None
        assert not await db.exists(User.select())
        assert await db.do(User.insert(**user())) == 1
        assert await db.do(User.insert(**user("bert"))) == 1
        assert await db.do(User.insert(**user()).on_conflict_ignore()) == 0
        assert await db.exists(User.select().where(User.public_id == "anna"))
        assert await db.scalar(User.select(fn.count(User.id))) == 2
        assert await db.do(User.update(bio="").where(User.public_id == "anna")) == 1
        assert await db.do(User.delete()) == 2


@pytest.mark.gen_test
async def test_queries_and_sql_share_a_transaction(services: Services) -> None:
    async with database(services) as db, Database(db.cluster.dsn).open() as other:
        with contextlib.suppress(ZeroDivisionError):
            async with db.transaction():
                await db.do(User.insert(**user()))
                assert await db.value("SELECT count(*) FROM users") == 1
                assert not await other.exists(User.select()), "another database's transaction is not ours"
                raise ZeroDivisionError
        assert not await db.exists(User.select())
        async with db.transaction():
            await db.execute("INSERT INTO spent_challenges VALUES ('a', now())")
            for _ in range(2):
                with contextlib.suppress(ZeroDivisionError):
                    async with db.transaction():
                        async with db.transaction():
                            await db.do(User.insert(**user()))
                        with contextlib.suppress(asyncpg.UniqueViolationError):
                            async with db.transaction():
                                await db.do(User.insert(**user()))
                        assert await db.value("SELECT count(*) FROM users") == 1
                        raise ZeroDivisionError
        assert not await db.exists(User.select())
        assert await db.scalar(SpentChallenge.select(SpentChallenge.nonce)) == b"a"


@pytest.mark.gen_test
async def test_a_query_raises_what_sql_raises_and_is_watched(services: Services) -> None:
    answered: list[str] = []
    failed: list[str] = []
    spans: list[tuple[str, str]] = []

    def span(*names: str) -> contextlib.AbstractContextManager[None]:
        spans.append((names[0], names[1]))
        return contextlib.nullcontext()

    watch = Watch(answered=lambda operation, _: answered.append(operation), failed=failed.append, span=span)
    async with database(services, watch=watch) as db:
        await db.do(User.insert(**user()))
        with pytest.raises(asyncpg.UniqueViolationError) as raised:
            await db.do(User.insert(**user()))
        assert raised.value.constraint_name
        assert raised.value.__notes__ == [STATEMENT + "unknown"]  # a test is not of ours
        await contacts.unverify(db, uuid4(), uuid4())
        assert spans[-1] == ("DELETE", "models.contacts.unverify")
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await db.rows(User.select(fn.pg_sleep(9)))
        assert time.monotonic() - began < COMMAND_SECONDS + 1
        assert (answered, failed) == (["INSERT", "INSERT", "DELETE", "SELECT"], ["conflict", "unavailable"])
        assert await db.scalar(User.select(SQL("1"))) == 1, "the next one has a connection that answers"


@pytest.mark.gen_test
async def test_a_lost_connection_ends_the_transaction_in_silence(services: Services) -> None:
    async with database(services, max_connections=1) as db:

        async def losing() -> None:
            async with db.transaction():
                await db.do(User.insert(**user()))
                async with db.connection() as raw:
                    raw.terminate()
                await db.rows(User.select())

        with pytest.raises(Unavailable):
            await losing()
        assert not await db.exists(User.select())
