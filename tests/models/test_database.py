"""The connections: what each of them asks of PostgreSQL, whatever the server's own settings are."""

from __future__ import annotations

import asyncio
import io
from functools import partial

import asyncpg
import pytest

from handlers.wire import errors
from models.database import Database, Unavailable
from models.postgres.epochs import Epoch
from models.postgres.outages import outages
from server import OUTAGES
from tests.running import Services, json_lines, place

ID = "SELECT pg_current_xact_id_if_assigned()"  # of the transaction, if it has written


@pytest.mark.gen_test
async def test_no_connection_compiles_its_plans(services: Services) -> None:
    async with place(services) as where:
        connection = await asyncpg.connect(where.dsn)
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET jit = on")
        await connection.close()
        for database in (Database(where.dsn), Database(where.dsn).steady()):
            async with database.open():
                assert await database.value("SHOW jit") == "off"


@pytest.mark.gen_test
async def test_a_connection_that_was_ended_meanwhile_is_given_back_in_silence(
    services: Services, log: io.StringIO
) -> None:
    async with place(services) as where:
        database = Database(where.dsn)
        async with database.open():
            asked = [asyncio.ensure_future(database.value("SELECT pg_sleep(5)")) for _ in range(3)]
            await asyncio.sleep(0.3)
            for connection in list(database.cluster._open):
                connection.terminate()  # as when the database is elsewhere
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(error) for error in errors} == {Unavailable}
            async with database.connection() as raw:
                raw.terminate()
            await asyncio.sleep(0.2)
            assert await database.value("SELECT 1") == 1
    assert not [line for line in json_lines(log.getvalue()) if line["level"] in ("warning", "error")]


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DatabaseDroppedError("x"),
        asyncpg.TransactionTimeoutError("x"),
        asyncpg.PostgresIOError("x"),
        asyncpg.UndefinedFileError("could not open shared memory segment"),
        asyncpg.DeadlockDetectedError("x"),
        asyncpg.SerializationError("x"),
        TimeoutError(),
        ConnectionResetError(),
    ],
)
def test_an_outage_is_never_our_own_mistake(error: Exception) -> None:
    """Wherever it is raised, a client is refused with 503, and may try again."""
    with pytest.raises(OUTAGES) as raised, outages():
        raise error
    assert isinstance(errors.refusal(raised.value, OUTAGES), errors.Unavailable)


@pytest.mark.parametrize("error", [asyncpg.UndefinedTableError("x"), asyncpg.UniqueViolationError("x"), KeyError("x")])
def test_a_mistake_is_no_outage(error: Exception) -> None:
    with pytest.raises(type(error)), outages():
        raise error
    assert errors.refusal(error, OUTAGES) is None


@pytest.mark.gen_test
async def test_after_commit_callbacks_see_the_committed_rows(services: Services) -> None:
    """Also callbacks of a nested transaction; a rolled back transaction runs none."""
    async with place(services) as where:
        database = Database(where.dsn, 1)
        done = []

        async def look(name: str) -> None:
            # Needs the only connection of the pool: the transaction has returned it.
            done.append((name, await database.value("SELECT count(*) FROM made"), await database.value(ID) is None))

        async def fail() -> None:
            async with database.transaction():
                database.after_commit(partial(look, "rolled back"))
                raise LookupError

        async with database.open():
            await database.execute("CREATE TABLE made (id int)")
            async with database.transaction():
                await database.execute("INSERT INTO made VALUES (1)")
                async with database.transaction():
                    database.after_commit(partial(look, "inner"))
                    await database.execute("INSERT INTO made VALUES (2)")
                with pytest.raises(LookupError):
                    await fail()  # back to the savepoint
                database.after_commit(partial(look, "outer"))
                assert done == []
                assert await database.value(ID) is not None
            assert done == [("inner", 2, True), ("outer", 2, True)]

            with pytest.raises(LookupError):
                await fail()
            assert len(done) == 2
            with pytest.raises(AssertionError):
                database.after_commit(partial(look, "in no transaction"))


@pytest.mark.gen_test
async def test_the_first_epoch_of_a_database_ends_no_connection(services: Services, log: io.StringIO) -> None:
    """The connection that has begun it is closed by then, and its end is no news for operators."""
    async with place(services) as where:
        database = Database(where.dsn)
        Epoch(database)
        async with database.open():
            assert await database.value("SELECT 1") == 1
    events = {line["event"] for line in json_lines(log.getvalue())}
    assert ("sync_epoch_begun" in events, "database_connection_ended" in events) == (True, False)
