"""The statements on subscriptions: by index, also among very many."""

from __future__ import annotations

from typing import Any

import pytest

from models import subscriptions, vouchers
from models.database import Database
from models.postgres.orm import numbered
from tests.running import Services, connected, place


class Explaining:
    """A database that returns the plans of statements instead of running them."""

    def __init__(self, db: Database) -> None:
        self._db, self.plans = db, list[str]()

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        self.plans.append("\n".join(row[0] for row in await self._db.fetch("EXPLAIN " + sql, *args)))
        return []

    async def rows(self, query: Any) -> list[Any]:
        sql, parameters = self._db._orm.get_sql_context().sql(query).query()
        return await self.fetch(numbered(sql), *parameters)

    row = value = fetch
    scalar = rows


@pytest.mark.gen_test
async def test_each_finds_its_rows_by_an_index(services: Services) -> None:
    # Filled by a connection of the test's own, which may take its time.
    async with place(services) as shared, connected(shared) as filling, Database(shared.dsn, 2).open() as db:
        await filling.execute(
            """INSERT INTO users
                   (public_id, password_hash, identity_key, signing_public_key, registration_id, fingerprint)
               SELECT 'u_' || n, '', sha256(n::text::bytea), sha256('k'), 1, encode(sha256(n::text::bytea), 'hex')
               FROM generate_series(1, 20000) AS n"""
        )
        await filling.execute(
            """INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, signature, payment_proof, expires_at)
               SELECT encode(sha256('p' || n::text::bytea), 'hex'), encode(sha256(n::text::bytea), 'hex'), 'premium',
                      sha512('x'), encode(sha256('q' || n::text::bytea), 'hex'), now() + interval '30 days'
               FROM generate_series(1, 20000) AS n"""
        )
        await filling.execute("INSERT INTO spent_proofs SELECT payment_proof FROM subscriptions")
        await filling.execute(
            """INSERT INTO vouchers (proof_hash, tier, days, batch)
               SELECT payment_proof, 'premium', 30, 'b' || (random() * 1000)::int FROM subscriptions"""
        )
        await filling.execute("ANALYZE")
        hashed, explaining = "0" * 64, Explaining(db)
        asked: Any = explaining
        purchase = subscriptions.Purchase(hashed, hashed, "premium", bytes(64), "voucher", hashed)
        for query in (
            subscriptions.tier(asked, hashed),
            subscriptions.signing_key(asked, hashed),
            subscriptions.clashing(asked, purchase),
            subscriptions.live(asked, hashed),
            subscriptions.of_prid(asked, hashed),
            subscriptions.expire(asked),
            vouchers.days(asked, hashed, "premium"),
            vouchers.revoke(asked, hashes=[hashed]),
            asked.fetch(subscriptions._BUY, *purchase, 30),
            asked.fetch(subscriptions._CANCEL, hashed),
        ):
            await query
            # But for the rows that a sweep failed at, of which there are none.
            plan = explaining.plans[-1].replace("Seq Scan on sweep_failures", "")
            assert "Seq Scan" not in plan, plan
        assert len(explaining.plans) == 10
