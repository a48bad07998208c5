"""``python -m scripts.cleanup`` and the feature that does the same: what goes, what stays, and what stays refused."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from config.retention import Retention
from models import cleanup
from models.database import Database
from models.sweeps import Sweeper, Watch
from tests.client import Account, ask
from tests.planted import plant
from tests.running import ROOT, Place, Services, connected, inherited, periodic, place, serving
from tests.scripts.program import script

NOTHING = {
    "one_time_prekeys": 0,
    "kyber_prekeys": 0,
    "last_resort_kyber_prekeys": 0,
    "signed_prekeys": 0,
    "sessions": 0,
    "spent_refresh_tokens": 0,
    "ended_sessions": 0,
    "tombstones": 0,
    "spent_challenges": 0,
    "files": 0,
    "sweep_failures": 0,
    "chat_events": 0,
    "chat_departures": 0,
    "chat_invites": 0,
    "messages": 0,
    "chat_threads": 0,
    "chat_participants": 0,
    "call_sessions": 0,
    "subscriptions": 0,
}
TABLES = [
    *("one_time_prekeys", "kyber_prekeys", "signed_prekeys", "sessions", "spent_refresh_tokens", "ended_sessions"),
    *(
        "spent_challenges",
        "tombstones",
        "superseded_prekeys",
        "call_sessions",
        "users",
        "spent_prekeys",
        "chat_events",
        "chat_departures",
        "chat_invites",
    ),
    *("messages", "chat_threads", "chat_participants", "subscriptions", "spent_proofs"),
    *("files", "file_usage", "file_removals"),
]


async def contents(connection: Any) -> dict[str, Any]:
    """A fingerprint of all the rows of each table."""
    return {
        table: await connection.fetchval(
            f"SELECT md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM {table} t"
        )
        for table in TABLES
    }


async def user(connection: Any, name: str = "alice") -> Any:
    """The row of an account that has nothing."""
    return await connection.fetchval(
        """INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id, fingerprint)
           VALUES ($1, '', sha256($1::text::bytea), sha256($1::text::bytea), 1, encode(sha256($1::text::bytea), 'hex'))
           RETURNING id""",
        name,
    )


async def one_time(connection: Any, owner: Any, ids: range, days: float | None) -> None:
    """One-time prekeys that were used so many days ago; unused ones when None."""
    await connection.execute(
        """INSERT INTO one_time_prekeys (user_id, key_id, public_key, used, used_at)
           SELECT $1, key_id, sha256(key_id::text::bytea), $3::interval IS NOT NULL, now() - $3::interval
           FROM unnest($2::int[]) AS key_id""",
        owner,
        list(ids),
        None if days is None else timedelta(days=days),
    )


async def session(connection: Any, owner: Any, *, used: float, revoked: float | None = None, spent: int = 0) -> Any:
    """A session last used, and revoked, so many days ago, with spent tokens."""
    session_id = await connection.fetchval(
        """INSERT INTO sessions (user_id, token_hash, expires_at, last_used_at, revoked_at)
           VALUES ($1, sha256(gen_random_uuid()::text::bytea), now() + interval '90 days',
                   now() - $2::interval, now() - $3::interval) RETURNING id""",
        owner,
        timedelta(days=used),
        None if revoked is None else timedelta(days=revoked),
    )
    await connection.execute(
        """INSERT INTO spent_refresh_tokens
           SELECT sha256(gen_random_uuid()::text::bytea), $1 FROM generate_series(1, $2::int)""",
        session_id,
        spent,
    )
    return session_id


# What goes and what stays ---------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_prekeys_go_and_their_ids_stay_refused(services: Services) -> None:
    highest = 2**31 - 1
    async with place(services) as shared, serving(shared) as server, connected(shared) as db:
        alice, bob = Account(one_time=3), await Account(one_time=1).register(server.url)
        await alice.register(
            server.url,
            one_time_prekeys=[alice.prekey(key_id) for key_id in (1, 2, 7, highest)],
            kyber_prekeys=[alice.kyber_prekey(1), alice.kyber_prekey(2)],
            last_resort_kyber_prekey=alice.kyber_prekey(5),
        )
        path = f"/users/{alice.public_id}/prekeys"
        for _ in range(4):
            assert (await bob.get(path)).status == 200  # all one-time keys, both Kyber keys, then the last resort
        renewed = {
            "signed_prekey": alice.signed_prekey(2),
            "last_resort_kyber_prekey": alice.kyber_prekey(6),
            "one_time_prekeys": [alice.prekey(10), alice.prekey(11)],
        }
        assert (await alice.post("/users/me/prekeys", renewed)).status == 200
        assert (await bob.get(path)).json["one_time_prekey"]["key_id"] == 10  # used today
        for table, moment in (
            ("one_time_prekeys", "used_at"),
            ("kyber_prekeys", "used_at"),
            ("kyber_prekeys", "superseded_at"),
            ("signed_prekeys", "superseded_at"),
        ):
            today = "AND key_id <> 10" if table == "one_time_prekeys" else ""
            await db.execute(f"UPDATE {table} SET {moment} = {moment} - interval '31 days' WHERE true {today}")

        done = await script(shared, "cleanup", "--json")
        assert (done.code, done.err) == (0, "")
        keys = {"one_time_prekeys": 4, "kyber_prekeys": 2, "last_resort_kyber_prekeys": 1, "signed_prekeys": 1}
        assert done.json == {"removed": {**NOTHING, **keys}}
        left = "SELECT key_id FROM {} WHERE user_id = $1::text::uuid ORDER BY key_id"
        for table, ids in (("one_time_prekeys", [10, 11]), ("kyber_prekeys", [6]), ("signed_prekeys", [2])):
            assert [row[0] for row in await db.fetch(left.format(table), alice.user_id)] == ids, table
        # Ranges: what a phone counts is small.
        noted = await db.fetch("SELECT kind::text, key_ids::text FROM spent_prekeys ORDER BY spent_prekeys.kind")
        assert [tuple(row) for row in noted] == [
            ("signed", "{[1,2)}"),
            ("one_time", f"{{[1,3),[7,8),[{highest},{highest + 1})}}"),
            ("kyber", "{[1,3)}"),
            ("last_resort", "{[5,6)}"),
        ]

        # Gone or not, an id that was sent before is refused, and nothing of the upload stays.
        fresh = alice.prekey(20)
        for upload in (
            *({"one_time_prekeys": [fresh, alice.prekey(key_id)]} for key_id in (1, 2, 7, highest, 10, 11)),
            *({"one_time_prekeys": [fresh], "kyber_prekeys": [alice.kyber_prekey(key_id)]} for key_id in (1, 2)),
            *({"one_time_prekeys": [fresh], "signed_prekey": alice.signed_prekey(key_id)} for key_id in (1, 2)),
            *({"last_resort_kyber_prekey": alice.kyber_prekey(key_id)} for key_id in (5, 6)),
        ):
            refused = await alice.post("/users/me/prekeys", upload)
            assert (refused.status, refused.code) == (409, "conflict"), upload.keys()
        # Any other id is taken: one below, one between, one of another kind, one of another user's.
        others = {
            "one_time_prekeys": [alice.prekey(key_id) for key_id in (0, 3, 5, 8)],
            "kyber_prekeys": [alice.kyber_prekey(key_id) for key_id in (0, 3, 5)],
            "last_resort_kyber_prekey": alice.kyber_prekey(1),
            "signed_prekey": alice.signed_prekey(7),
        }
        assert (await alice.post("/users/me/prekeys", others)).status == 200
        assert (await bob.post("/users/me/prekeys", {"one_time_prekeys": [bob.prekey(2), bob.prekey(7)]})).status == 200


@pytest.mark.gen_test
async def test_recorded_key_ids_grow_with_each_cleanup_and_are_deleted_with_the_account(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        alice = await user(db)
        for ids in (range(10, 20), range(20, 30), range(5, 10)):
            await one_time(db, alice, ids, 40)
            assert (await script(shared, "cleanup", "--json")).json["removed"]["one_time_prekeys"] == len(ids)
        assert await db.fetchval("SELECT key_ids::text FROM spent_prekeys") == "{[5,30)}"
        with pytest.raises(asyncpg.UniqueViolationError):
            await one_time(db, alice, range(29, 31), None)
        await db.execute("DELETE FROM users")
        assert await db.fetchval("SELECT count(*) FROM spent_prekeys") == 0


@pytest.mark.gen_test
async def test_an_id_sent_again_just_as_its_row_goes_is_refused(services: Services) -> None:
    """The insertion waits for the deletion; then it must see what that noted."""
    async with place(services) as shared, connected(shared) as db, connected(shared) as other:
        alice = await user(db)
        await one_time(db, alice, range(1, 2), 40)
        [step, *_] = cleanup.steps(Retention())
        async with db.transaction():
            assert await db.fetchval(step.remove, cleanup.BATCH, *step.due.args) == 1
            again = asyncio.create_task(one_time(other, alice, range(1, 2), None))
            await asyncio.sleep(0.2)
            assert not again.done()
        with pytest.raises(asyncpg.UniqueViolationError):
            await again
        assert await db.fetchval("SELECT count(*) FROM one_time_prekeys") == 0


@pytest.mark.gen_test
async def test_sessions_go_when_nothing_can_depend_on_them(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        alice = await user(db)
        gone = [
            await session(db, alice, used=8, revoked=7.1, spent=3),
            await session(db, alice, used=37.1, spent=2),
            await session(db, alice, used=300, revoked=299),
        ]
        stay = [
            await session(db, alice, used=8, revoked=6.9, spent=1),
            await session(db, alice, used=36.9, spent=1),
            await session(db, alice, used=0),
        ]
        # It can't be refreshed any more, but its last access token may live for weeks: a changed password must end it.
        lately = await session(db, alice, used=20)
        await db.execute("UPDATE sessions SET expires_at = now() - interval '19 days' WHERE id = $1", lately)
        await db.execute(
            """INSERT INTO ended_sessions SELECT gen_random_uuid(), $1, now() - make_interval(hours => hours)
               FROM unnest('{1, 719, 720, 722, 9999}'::int[]) AS hours""",
            alice,
        )
        await db.execute(
            """INSERT INTO spent_challenges SELECT sha256(minutes::text::bytea), now() - make_interval(mins => minutes)
               FROM unnest('{-5, 1, 59, 61, 9999}'::int[]) AS minutes"""
        )
        done = await script(shared, "cleanup", "--json")
        removed = {"sessions": 3, "spent_refresh_tokens": 5, "ended_sessions": 2, "spent_challenges": 2}
        assert done.json == {"removed": {**NOTHING, **removed}}
        left = {row["id"] for row in await db.fetch("SELECT id FROM sessions")}
        assert left == {*stay, lately}
        assert not left & set(gone)
        assert await db.fetchval("SELECT count(*) FROM spent_refresh_tokens") == 2


async def call(connection: Any, caller: Any, callee: Any, status: str, days: float) -> None:
    over = status not in ("ringing", "accepted")
    await connection.execute(
        """INSERT INTO call_sessions (id, caller_id, callee_id, call_type, status, started_at, created_at, ended_at)
           SELECT $1, $2, $3, 'audio', $4::text::call_status, moment, moment, CASE WHEN $6 THEN moment END
           FROM (SELECT now() - $5::interval AS moment) AS at""",
        uuid4(),
        caller,
        callee,
        status,
        timedelta(days=days),
        over,
    )


@pytest.mark.gen_test
async def test_calls_go_after_a_year_or_as_set_or_never(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        alice, bob = await user(db), await user(db, "bob")
        for status, days in (("ended", 364), ("ended", 366), ("missed", 800), ("rejected", 1), ("accepted", 900)):
            await call(db, alice, bob, status, days)

        async def removed(**settings: str) -> int:
            done = await script(shared, "cleanup", "--json", **settings)
            return int(done.json["removed"].get("call_sessions", 0))

        assert await removed(CALL_RETENTION_DAYS="0") == 0
        assert await removed() == 2
        assert await removed(CALL_RETENTION_DAYS="2") == 1
        left = [row[0] for row in await db.fetch("SELECT status::text FROM call_sessions ORDER BY status")]
        assert left == ["accepted", "rejected"]


async def subscription(connection: Any, number: int, days: float, status: str = "active") -> None:
    """One that ended so many days ago, with its payment."""
    await connection.execute(
        """INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, status, signature, payment_proof, expires_at)
           SELECT hash, encode(sha256('alice'), 'hex'), 'premium', $2::text::subscription_status, sha512('x'), hash,
                  now() - $3::interval
           FROM (SELECT encode(sha256($1::text::bytea), 'hex') AS hash) AS hashed""",
        str(number),
        status,
        timedelta(days=days),
    )
    await connection.execute("INSERT INTO spent_proofs SELECT encode(sha256($1::text::bytea), 'hex')", str(number))


@pytest.mark.gen_test
async def test_subscriptions_go_some_time_after_their_end_and_their_payments_stay_spent(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        ends = (
            (-10, "active"),
            (89, "expired"),
            (91, "expired"),
            (-5, "cancelled"),
            (400, "cancelled"),
            (11, "expired"),
        )
        for number, (days, status) in enumerate(ends):
            await subscription(db, number, days, status)
        done = await script(shared, "cleanup", "--json")
        assert done.json["removed"]["subscriptions"] == 2
        done = await script(shared, "cleanup", "--json", SUBSCRIPTION_RETENTION_DAYS="10")
        assert done.json["removed"]["subscriptions"] == 2
        assert await db.fetchval("SELECT count(*) FROM subscriptions") == 2
        assert await db.fetchval("SELECT count(*) FROM spent_proofs") == 6


# How --------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=120)
async def test_a_dry_run_counts_and_changes_nothing(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        alice = await user(db)
        await one_time(db, alice, range(3000), 31)
        await one_time(db, alice, range(3000, 3010), 29)
        await one_time(db, alice, range(4000, 4010), None)
        await session(db, alice, used=8, revoked=8, spent=2500)
        await session(db, alice, used=40)
        before = await contents(db)
        dry = await script(shared, "cleanup", "--dry-run", "--json")
        assert await contents(db) == before
        due = {"one_time_prekeys": 3000, "sessions": 2, "spent_refresh_tokens": 2500}
        assert (dry.code, dry.json) == (0, {"due": {**NOTHING, **due}})
        text = await script(shared, "cleanup", "--dry-run")
        assert text.out.splitlines() == [
            "due:",
            "      3000  one_time_prekeys",
            "         2  sessions",
            "      2500  spent_refresh_tokens",
        ]
        assert text.err == "", "no progress where there is no terminal"

        # The same rows are removed in batches.
        done = await script(shared, "cleanup", "--json")
        assert done.json == {"removed": {**NOTHING, **due}}
        again = await script(shared, "cleanup")
        assert (again.code, again.out, again.err) == (0, "nothing removed\n", "")
        assert await db.fetchval("SELECT count(*) FROM one_time_prekeys") == 20


@pytest.mark.gen_test
async def test_a_batch_is_a_transaction_of_a_thousand_rows(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        alice = await user(db)
        await one_time(db, alice, range(3000), 31)
        await session(db, alice, used=8, revoked=8, spent=1500)
        reports: list[tuple[int, int]] = []
        seen: list[Any] = []
        async with Database(shared.dsn, 2).open() as own:
            removed = await cleanup.clean(
                own,
                Retention(),
                report=lambda so_far: reports.append(
                    (so_far["one_time_prekeys"], so_far.get("spent_refresh_tokens", 0))
                ),
            )
            seen = await db.fetch("SELECT xmin::text FROM spent_prekeys")
        assert (removed["one_time_prekeys"], removed["sessions"], removed["spent_refresh_tokens"]) == (3000, 1, 1500)
        # In turn, so that neither waits for the other; the session goes when its tokens have gone.
        assert reports == [(1000, 0), (1000, 1000), (2000, 1000), (2000, 1500), (3000, 1500), (3000, 1500)]
        assert len(seen) == 1


@pytest.mark.gen_test(timeout=120)
async def test_two_at_once_share_the_work(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        owners = [await user(db, f"user_{number}") for number in range(20)]
        for owner in owners:
            await one_time(db, owner, range(600), 31)
            await session(db, owner, used=40, spent=100)
        runs = await asyncio.gather(*(script(shared, "cleanup", "--json") for _ in range(3)))
        assert [(run.code, run.err) for run in runs] == [(0, "")] * 3
        parts = [run.json["removed"] for run in runs]
        together = {table: sum(part[table] for part in parts) for table in NOTHING}
        assert together == {**NOTHING, "one_time_prekeys": 12000, "sessions": 20, "spent_refresh_tokens": 2000}
        noted = await db.fetch("SELECT DISTINCT key_ids::text FROM spent_prekeys")
        assert [row[0] for row in noted] == ["{[0,600)}"], "no id is missing, whichever run recorded it"


@pytest.mark.gen_test
async def test_it_does_not_wait_for_locks(services: Services) -> None:
    """Rows and users that a request has locked are left for the next run."""
    async with place(services) as shared, connected(shared) as db, connected(shared) as other:
        alice, bob, carol, dave = owners = [await user(db, name) for name in ("alice", "bob", "carol", "dave")]
        for owner in owners:
            await one_time(db, owner, range(5), 31)
        async with other.transaction():
            await other.execute("DELETE FROM users WHERE id = $1", alice)
            await other.execute("SELECT 1 FROM users WHERE id = $1 FOR UPDATE", carol)  # as a deletion begins
            await other.execute("SELECT 1 FROM one_time_prekeys WHERE user_id = $1 AND key_id < 2 FOR UPDATE", bob)
            held = await asyncio.wait_for(script(shared, "cleanup", "--json"), 10)
            assert held.json["removed"]["one_time_prekeys"] == 8
        rest = await script(shared, "cleanup", "--json")
        assert rest.json["removed"]["one_time_prekeys"] == 7
        assert {row[0] for row in await db.fetch("SELECT user_id FROM spent_prekeys")} == {bob, carol, dave}


@pytest.mark.gen_test(timeout=120)
async def test_accounts_that_are_deleted_meanwhile_are_no_hindrance(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db, connected(shared) as other:
        owners = [await user(db, f"user_{number}") for number in range(60)]
        for owner in owners:
            await one_time(db, owner, range(100), 31)
            await session(db, owner, used=40, spent=30)

        async def erase() -> None:
            for owner in owners[::2]:
                await other.execute("DELETE FROM users WHERE id = $1", owner)

        async with Database(shared.dsn, 4).open() as own:
            await asyncio.gather(erase(), *(cleanup.clean(own, Retention()) for _ in range(2)))
            await cleanup.clean(own, Retention())
        assert await db.fetchval("SELECT count(*) FROM one_time_prekeys") == 0
        assert await db.fetchval("SELECT count(*) FROM spent_prekeys") == 30


@pytest.mark.gen_test
async def test_each_batch_finds_its_rows_by_an_index(services: Services) -> None:
    """With many rows that stay, it reads those that go, and no table as a whole."""
    async with place(services) as shared, connected(shared) as db:
        alice, bob = await user(db), await user(db, "bob")
        await one_time(db, alice, range(20_000), 1)
        await one_time(db, bob, range(20), 31)
        await db.execute(
            """INSERT INTO kyber_prekeys (user_id, key_id, public_key, signature, used, used_at, last_resort,
                                          superseded_at)
               SELECT $1, key_id, decode(repeat('00', 1568), 'hex'), decode(repeat('00', 64), 'hex'), key_id % 2 = 0,
                      CASE WHEN key_id % 2 = 0 THEN now() END, key_id % 2 = 1, CASE WHEN key_id % 2 = 1 THEN now() END
               FROM generate_series(1, 20000) AS key_id""",
            alice,
        )
        await db.execute(
            """INSERT INTO signed_prekeys (user_id, key_id, public_key, signature, superseded_at)
               SELECT $1, key_id, decode(repeat('00', 32), 'hex'), decode(repeat('00', 64), 'hex'), now()
               FROM generate_series(1, 20000) AS key_id""",
            alice,
        )
        await db.execute(
            """INSERT INTO sessions (user_id, token_hash, expires_at)
               SELECT $1, sha256(n::text::bytea), now() + interval '180 days' FROM generate_series(1, 20000) AS n""",
            alice,
        )
        await db.execute("INSERT INTO spent_refresh_tokens SELECT sha256(token_hash), id FROM sessions")
        await session(db, bob, used=40, spent=20)
        await db.execute(
            "INSERT INTO ended_sessions SELECT gen_random_uuid(), $1, now() FROM generate_series(1, 20000)",
            alice,
        )
        await db.execute(
            "INSERT INTO spent_challenges SELECT sha256(n::text::bytea), now() FROM generate_series(1, 20000) AS n"
        )
        await db.execute(
            """INSERT INTO tombstones SELECT sha256(n::text::bytea), now() + interval '1 day'
               FROM generate_series(1, 20000) AS n"""
        )
        await db.execute(
            """INSERT INTO call_sessions (id, caller_id, callee_id, call_type, status, ended_at)
               SELECT gen_random_uuid(), $1, $2, 'audio', 'ended', now() FROM generate_series(1, 20000)""",
            alice,
            bob,
        )
        await db.execute(
            """INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, signature, expires_at)
               SELECT encode(sha256(n::text::bytea), 'hex'), repeat('0', 64), 'premium', sha512('x'), now()
               FROM generate_series(1, 20000) AS n"""
        )
        await fill_chats(db, alice, 20_000)
        await db.execute("INSERT INTO chat_purges SELECT gen_random_uuid(), now() FROM generate_series(1, 20000)")
        await db.execute(
            """INSERT INTO files (owner_id, size, storage_key, resumable)
               SELECT $1, 1, lpad(n::text, 32, '0'), true FROM generate_series(1, 20000) AS n""",
            alice,
        )
        await db.execute("ANALYZE")
        for step in cleanup.steps(Retention()):
            plan = "\n".join(row[0] for row in await db.fetch("EXPLAIN " + step.remove, cleanup.BATCH, *step.due.args))
            # But for the two tables that stay small here, that of users, and that of failures.
            small = re.compile("Seq Scan on (users|sweep_failures)")
            assert "Seq Scan" not in small.sub("", plan), plan


# Each table of the cleanup, by a column that tells its rows apart.
KEYS = {
    "one_time_prekeys": "key_id",
    "kyber_prekeys": "key_id",
    "signed_prekeys": "key_id",
    "sessions": "id",
    "ended_sessions": "session_id",
    "spent_challenges": "nonce",
    "tombstones": "hash",
    "subscriptions": "id",
    "files": "id",
    "sweep_failures": "key",
    "chat_events": "seq",
    "chat_departures": "left_seq",
    "chat_invites": "id",
    "messages": "id",
    "chat_threads": "id",
    "call_sessions": "id",
}


@pytest.mark.gen_test(timeout=120)
async def test_bad_rows_hold_up_none_of_the_others_of_their_kind(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        await fill_due(db, 40)
        await plant(db, KEYS, 12)
        kinds = {"kyber_prekeys": 2}  # used ones, and those of last resort
        failed: Counter[str] = Counter()
        backlog: dict[str, int] = {}

        def count(sweep: str, rows: int) -> None:
            failed[sweep] += rows

        async with Database(shared.dsn, 2).open() as own:
            removing = cleanup.sweeps(own, Retention(), lambda _: None)
            sweeper = Sweeper(own, Watch(failed=count, backlog=backlog.__setitem__), *removing)
            await sweeper.run()
            for table in KEYS:
                # What is noted of the failures is in the table of failures, too.
                due = "WHERE sweep = 'old'" if table == "sweep_failures" else ""
                due = "WHERE deleted_at IS NOT NULL" if table == "chat_threads" else due
                left = await db.fetchval(f"SELECT count(*) FROM {table} {due}")
                assert left == 12 * kinds.get(table, 1), table
            assert dict(failed) == {sweep.due.sweep: 12 for sweep in removing}
            assert backlog == {sweep.due.sweep: 0 for sweep in removing}

            # They are passed over, until it is time; twice as long the next time.
            failed.clear()
            await sweeper.run()
            assert not failed
            again = "UPDATE sweep_failures SET retry_at = now() - interval '1 s' WHERE sweep <> 'old'"
            await db.execute(again)
            await sweeper.run()
            assert dict(failed) == {sweep.due.sweep: 12 for sweep in removing}
            waits = await db.fetch(
                "SELECT DISTINCT failures, retry_at > now() + interval '20 s' FROM sweep_failures WHERE sweep <> 'old'"
            )
            assert [tuple(row) for row in waits] == [(2, True)]

            # And they go once they can.
            await db.execute("DELETE FROM planted")
            await db.execute(again)
            await sweeper.run()
            for table in KEYS.keys() - {"sweep_failures"}:
                kept = 1 if table == "chat_threads" else 0
                assert await db.fetchval(f"SELECT count(*) FROM {table}") == kept, table


async def fill_due(db: Any, rows: int) -> None:
    """So many rows of each kind that a cleanup removes, which nothing else holds."""
    alice = await user(db)
    await one_time(db, alice, range(rows), 40)
    for statement in (
        """kyber_prekeys (user_id, key_id, public_key, signature, used, used_at, last_resort, superseded_at)
           SELECT $1, n, decode(repeat('00', 1568), 'hex'), decode(repeat('00', 64), 'hex'), n % 2 = 0,
                  CASE WHEN n % 2 = 0 THEN past END, n % 2 = 1, CASE WHEN n % 2 = 1 THEN past END
           FROM generate_series(1, $2::int * 2) AS n""",
        """signed_prekeys (user_id, key_id, public_key, signature, superseded_at)
           SELECT $1, n, decode(repeat('00', 32), 'hex'), decode(repeat('00', 64), 'hex'), past FROM numbers""",
        """sessions (user_id, token_hash, expires_at, last_used_at)
           SELECT $1, sha256(n::text::bytea), past, past FROM numbers""",
        "ended_sessions SELECT gen_random_uuid(), $1, past FROM numbers",
        "spent_challenges SELECT sha256(n::text::bytea), past FROM numbers",
        "tombstones SELECT sha256(n::text::bytea), past FROM numbers",
        """subscriptions (prid_hash, user_fingerprint, tier, signature, expires_at)
           SELECT encode(sha256(n::text::bytea), 'hex'), repeat('0', 64), 'premium', sha512('x'), past FROM numbers""",
        """files (owner_id, size, storage_key, resumable, expires_at)
           SELECT $1, 1, lpad(n::text, 32, '0'), true, past FROM numbers""",
        "sweep_failures SELECT 'old', n::text, 1, past FROM numbers",
        "chat_threads (id, type, deleted_at) SELECT md5(n::text)::uuid, 'group', past FROM numbers",
        """chat_events (chat_id, seq, position, type, created_at)
           SELECT md5('0')::uuid, n, 1, 'chat_created', past FROM numbers""",
        """chat_departures (chat_id, user_id, joined_seq, left_seq, position, left_at)
           SELECT md5('0')::uuid, $1, 1, n, 1, past FROM numbers""",
        """chat_invites (chat_id, token_hash, expires_at)
           SELECT md5('0')::uuid, sha256(n::text::bytea), past FROM numbers""",
        """messages (chat_id, encrypted_payload, message_type, seq, number, position, client_id, payload_hash,
                     deleted_at)
           SELECT md5('0')::uuid, '', '', -n, n, 1, md5(n::text)::uuid, 0, past FROM numbers""",
        """call_sessions (id, call_type, status, ended_at)
           SELECT gen_random_uuid(), 'audio', 'ended', past FROM numbers""",
    ):
        if "chat_events" in statement:  # they are in a chat that stays until the others have gone
            await db.execute("INSERT INTO chat_threads (id, type) VALUES (md5('0')::uuid, 'group')")
        text = statement.replace("FROM numbers", "FROM generate_series(1, $2::int) AS n")
        text = text.replace("past", "now() - interval '900 days'")
        await db.execute(f"INSERT INTO {text}".replace("$1", f"'{alice}'::uuid").replace("$2::int", str(rows)))


async def fill_chats(db: Any, user_id: Any, rows: int) -> None:
    """Chats, each with an event, a participant, a departure, an invite and a message, all of them live."""
    await db.execute(
        """INSERT INTO chat_threads (id, type)
           SELECT md5(n::text)::uuid, 'group' FROM generate_series(1, $1::int) AS n""",
        rows,
    )
    for statement in (
        "chat_events (chat_id, seq, position, type) SELECT id, 1, 1, 'chat_created' FROM chat_threads",
        "chat_participants (chat_id, user_id) SELECT id, $1 FROM chat_threads",
        "chat_departures (chat_id, user_id, joined_seq, left_seq, position) SELECT id, $1, 1, 1, 1 FROM chat_threads",
        """chat_invites (chat_id, created_by, token_hash, expires_at)
           SELECT id, $1, sha256(id::text::bytea), now() FROM chat_threads""",
        """messages (chat_id, sender_id, encrypted_payload, message_type, seq, number, position, client_id,
                     payload_hash)
           SELECT id, $1, '', 'x', 2, 1, 1, id, 0 FROM chat_threads""",
    ):
        await db.execute("INSERT INTO " + statement, *([user_id] if "$1" in statement else []))


@pytest.mark.gen_test
async def test_events_older_than_the_sync_retention_are_deleted_and_newer_ones_stay(services: Services) -> None:
    async with place(services) as shared, serving(shared, SYNC_RETENTION_DAYS="10") as server, connected(shared) as db:
        alice, bob = [await Account(one_time=0).register(server.url) for _ in range(2)]
        chats, cursor = [], (await bob.get("/sync")).json["cursor"]
        for _ in range(3):
            chat = (await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).json["id"]
            chats.append(chat)
            for _ in range(2):
                message = {"client_id": str(uuid4()), "encrypted_payload": "AAAA", "message_type": "x"}
                posted = await alice.post(f"/chats/{chat}/messages", message)
            assert (await alice.delete(f"/messages/{posted.json['id']}")).status == 204
            assert (await alice.delete(f"/chats/{chat}/participants/{bob.user_id}")).status == 204
        old, ended, fresh = chats
        assert (await alice.delete(f"/chats/{ended}")).status == 204
        await periodic(server, "deleted_chats")()
        kept = await db.fetch(
            "SELECT encrypted_payload, metadata, seq < 0 AS gone FROM messages WHERE chat_id = $1", ended
        )
        # Their sender may repeat the request: only the client_id of such a message is kept.
        assert [tuple(row) for row in kept] == [(b"", '{"reason": "deleted"}', True)] * 2
        assert await db.fetchval(
            "SELECT array_agg(type::text ORDER BY seq) FROM chat_events WHERE chat_id = $1", ended
        ) == [
            "participant_removed",  # for Bob, who had left before the chat was deleted
            "chat_deleted",
        ]
        events = (await bob.get(f"/sync?cursor={cursor}")).json["events"]
        assert [event["type"] for event in events if event["chat_id"] == ended] == ["participant_removed"]

        for table, moment in (("chat_events", "created_at"), ("chat_departures", "left_at")):
            await db.execute(f"UPDATE {table} SET {moment} = now() - interval '12 days' WHERE chat_id <> $1", fresh)
        await db.execute(
            "UPDATE messages SET deleted_at = now() - interval '12 days' WHERE seq < 0 AND chat_id <> $1", fresh
        )
        await db.execute("UPDATE chat_threads SET deleted_at = now() - interval '12 days' WHERE id = $1", ended)
        await periodic(server, "cleanup")()
        assert await db.fetchval("SELECT array_agg(id) FROM chat_threads") in (
            [*map(UUID, [old, fresh])],
            [*map(UUID, [fresh, old])],
        )
        left = await db.fetch("SELECT chat_id, count(*) FROM chat_events GROUP BY chat_id")
        assert {str(row["chat_id"]): row["count"] for row in left} == {fresh: 4}
        left = await db.fetch("SELECT chat_id, count(*) FROM messages GROUP BY chat_id")
        assert {str(row["chat_id"]): row["count"] for row in left} == {old: 1, fresh: 2}
        assert await db.fetchval("SELECT count(*) FROM chat_departures") == 1
        # What is left is read as before.
        assert len((await alice.get(f"/chats/{old}/messages")).json) == 1
        assert [chat["unread_count"] for chat in (await alice.get("/chats")).json] == [0, 0]


@pytest.mark.gen_test
async def test_the_server_does_the_same_every_hour(services: Services) -> None:
    async with place(services) as shared, serving(shared, CALL_RETENTION_DAYS="10") as server, connected(shared) as db:
        [feature] = [feature for feature in server.features if feature.name == "cleanup"]
        assert [every.seconds for every in feature.periodic] == [3600]
        alice, bob = await Account().register(server.url), await user(db, "bob")
        await one_time(db, bob, range(2100), 31)
        await call(db, bob, None, "missed", 11)
        stale = await session(db, bob, used=40, spent=3)
        await periodic(server, "cleanup")()
        assert await db.fetchval("SELECT count(*) FROM one_time_prekeys WHERE user_id = $1", bob) == 0
        assert await db.fetchval("SELECT count(*) FROM sessions WHERE id = $1", stale) == 0
        assert await db.fetchval("SELECT count(*) FROM call_sessions") == 0
        assert (await alice.get("/users/me")).status == 200
        assert (await ask(server.url, "POST", "/auth/refresh", {"refresh_token": alice.refresh_token})).status == 200


@pytest.mark.gen_test
async def test_a_run_of_the_server_s_ends_in_time(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        await one_time(db, await user(db), range(3000), 31)
        async with Database(shared.dsn, 2).open() as own:
            removed = await cleanup.clean(own, Retention(), seconds=0.001)
        assert removed["one_time_prekeys"] == 1000
        assert await db.fetchval("SELECT count(*) FROM one_time_prekeys") == 2000


@pytest.mark.gen_test
async def test_on_a_terminal_it_shows_how_far_it_is(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        await one_time(db, await user(db), range(2500), 31)
        ours, theirs = os.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.cleanup", "--env-file", os.devnull, "--json"),
            cwd=ROOT,
            env={**inherited("PATH"), **shared.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        shown = os.read(ours, 65536).decode()
        os.close(ours)
        assert b'"one_time_prekeys": 2500' in out
        assert "\r\x1b[K1000 rows removed" in shown
        assert shown.endswith("\r\x1b[K"), "the line is wiped in the end"


# Exit codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        ({"DATABASE_URL": ""}, ["DATABASE_URL: missing"]),
        ({"DATABASE_URL": "postgres://mimu:pa/ss@h/x"}, ["DATABASE_URL: expected"]),
        ({"DATABASE_URL": "mimu", "PREKEY_RETENTION_DAYS": "29"}, ["DATABASE_URL", "PREKEY_RETENTION_DAYS"]),
        ({"SESSION_RETENTION_DAYS": "0", "CALL_RETENTION_DAYS": "-1"}, ["SESSION_RETENTION", "CALL_RETENTION"]),
        ({"CALL_RETENTION_DAYS": "a year"}, ["CALL_RETENTION_DAYS"]),
    ],
    ids=["missing", "no address", "two", "out of range", "no number"],
)
async def test_wrong_settings_end_it_with_78(services: Services, settings: dict[str, str], faults: list[str]) -> None:
    nowhere = Place("postgres://mimu:never-shown@127.0.0.1:1/mimu", services.redis)
    ended = await script(nowhere, "cleanup", **settings)
    assert (ended.code, ended.out) == (78, "")
    lines = ended.err.splitlines()
    assert len(lines) == len(faults)
    assert all(line.startswith(fault) for line, fault in zip(lines, faults, strict=True)), lines
    assert "pa/ss" not in ended.err


@pytest.mark.gen_test
async def test_a_failure_exits_with_1(services: Services) -> None:
    async with place(services) as shared:
        away = await script(Place("postgres://mimu:never-shown@127.0.0.1:1/mimu", shared.redis), "cleanup")
        lacking = await script(Place(services.dsn, shared.redis), "cleanup")
        refused = await script(Place(shared.dsn.replace("mimu:", "mimu:not-"), shared.redis), "cleanup", "--dry-run")
    for ended in (away, lacking, refused):
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("cleanup failed: ")


@pytest.mark.gen_test
async def test_help_and_wrong_usage(services: Services, tmp_path: Path) -> None:
    said, wrong = await asyncio.gather(script(None, "cleanup", "--help"), script(None, "cleanup", "--everything"))
    assert said.code == 0
    for word in ("--dry-run", "--json", "CALL_RETENTION_DAYS", "78"):
        assert word in said.out
    assert (wrong.code, wrong.out) == (2, "")
