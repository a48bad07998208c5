"""The connections: what each of them asks of PostgreSQL, whatever the server's own settings are."""

from __future__ import annotations

import asyncpg
import pytest

from models.database import Database
from tests.running import Services, place


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
