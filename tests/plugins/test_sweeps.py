"""The sweeps of a running server: a bad row delays no other row, and finished rows cost nothing."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from models import presence, sessions
from models.chats import purge
from models.database import Database
from plugins import Timer
from tests.planted import plant
from tests.plugins.chatting import Town, chat, town
from tests.running import Services, connected, periodic, place
from tests.waiting import WAIT


@pytest.fixture(autouse=True)
def _no_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the runs of the tests count."""
    monkeypatch.setattr(Timer, "start", lambda _: None)


def metric(made: Town, name: str, sweep: str) -> float:
    """What the first server shows of a sweep."""
    text = made.servers[0].app.metrics.exposition().decode()
    [value] = re.findall(rf'^{name}{{sweep="{sweep}"}} (\S+)$', text, re.MULTILINE)
    return float(value)


async def post_many(made: Town, chat_id: str, number: int, expires: str = "NULL") -> None:
    """So many messages, put into a new chat by SQL."""
    await made.sql(
        f"""INSERT INTO messages (chat_id, encrypted_payload, message_type, seq, number, position, client_id,
                                  payload_hash, expires_at)
            SELECT $1::text::uuid, 'secret', 'x', n + 1, n, 1, gen_random_uuid(), 0, {expires}
            FROM generate_series(1, {number}) AS n""",
        chat_id,
    )
    await made.sql(
        "UPDATE chat_threads SET last_seq = $2 + 1, last_number = $2 WHERE id = $1::text::uuid", chat_id, number
    )


@pytest.mark.gen_test(timeout=60)
async def test_messages_expire_beside_bad_ones_and_beside_a_chat_that_is_held(services: Services) -> None:
    async with town(services, people=2) as made, connected(made.shared) as other:
        alice, bob = made.people
        here, held = await chat(alice, bob), await chat(alice, bob)
        socket = await made.socket(bob)
        past = "now() - interval '1 s'"
        await post_many(made, held["id"], 40, past)
        await post_many(made, here["id"], 40, past)
        await plant(other, {"messages": "id"}, 0)
        await other.execute(
            """INSERT INTO planted SELECT 'messages', id::text FROM messages
               WHERE chat_id = $1 AND seq % 3 = 0 LIMIT 12""",
            UUID(here["id"]),
        )
        expire = periodic(made.servers[0], "message_expiry")
        left = "SELECT count(*) FROM messages WHERE chat_id = $1::text::uuid AND deleted_at IS NULL"
        async with other.transaction():
            await other.execute("SELECT 1 FROM chat_threads WHERE id = $1 FOR UPDATE", UUID(held["id"]))
            async with asyncio.timeout(WAIT):
                await expire()
        assert (await made.sql(left, here["id"]))[0][0] == 12
        assert metric(made, "mimu_sweep_bad_rows_total", "message_expiry") == 12, "one that is held is not bad"
        gone = await socket.expect("message_deleted")
        assert (gone["chat_id"], gone["reason"]) == (here["id"], "expired")
        # Later they go as well.
        await made.sql("UPDATE sweep_failures SET retry_at = now()")
        await expire()
        assert (await made.sql(left, held["id"]))[0][0] == 0
        assert (await made.sql(left, here["id"]))[0][0] == 12
        await made.sql("DELETE FROM planted")
        await made.sql("UPDATE sweep_failures SET retry_at = now()")
        await expire()
        assert (await made.sql(left, here["id"]))[0][0] == 0
        assert metric(made, "mimu_sweep_backlog", "message_expiry") == 0


@pytest.mark.gen_test(timeout=60)
async def test_deleted_chats_are_erased_beside_bad_rows_and_leave_the_queue(services: Services) -> None:
    async with town(services, people=1) as made, connected(made.shared) as db:
        [alice] = made.people
        chats = [await chat(alice) for _ in range(30)]
        for one in chats:
            await post_many(made, one["id"], 20)
        for one in chats[1:]:
            assert (await alice.delete(f"/chats/{one['id']}")).status == 204
        await db.execute(
            """INSERT INTO files (owner_id, chat_id, size, storage_key, resumable)
               SELECT $1::text::uuid, $2, 1, lpad(n::text, 32, '0'), true FROM generate_series(1, 2000) AS n""",
            alice.user_id,
            UUID(chats[9]["id"]),
        )
        await plant(db, {"messages": "id", "chat_events": "seq", "chat_purges": "chat_id", "files": "id"}, 0)
        await db.execute("INSERT INTO planted SELECT 'files', id::text FROM files LIMIT 2")
        # Bad messages in the chats that come first, files that were shared in one, and a row of the queue itself.
        await db.execute(
            "INSERT INTO planted SELECT 'messages', id::text FROM messages WHERE number <= 2 AND chat_id = ANY ($1)",
            [UUID(one["id"]) for one in chats[1:7]],
        )
        await db.execute("INSERT INTO planted VALUES ('chat_purges', $1)", chats[8]["id"])
        sweep = periodic(made.servers[0], "deleted_chats")
        await sweep()
        left = {
            row["chat_id"]: row["count"]
            for row in await db.fetch("SELECT chat_id, count(*) FROM messages WHERE seq > 0 GROUP BY chat_id")
        }
        assert left == {UUID(chats[0]["id"]): 20, **{UUID(one["id"]): 2 for one in chats[1:7]}}
        queued = {row[0] for row in await db.fetch("SELECT chat_id FROM chat_purges")}
        assert queued == {UUID(one["id"]) for one in [*chats[1:7], *chats[8:10]]}
        assert await db.fetchval("SELECT count(*) FROM files WHERE chat_id IS NOT NULL") == 2
        kinds = await db.fetch("SELECT chat_id, array_agg(type::text) AS types FROM chat_events GROUP BY chat_id")
        types = {row["chat_id"]: row["types"] for row in kinds}
        assert types.pop(UUID(chats[0]["id"])) == ["chat_created"]
        assert set(map(tuple, types.values())) == {("chat_deleted",)}
        assert metric(made, "mimu_sweep_bad_rows_total", "deleted_chats") == 15
        assert metric(made, "mimu_sweep_backlog", "deleted_chats") == 0

        await db.execute("DELETE FROM planted")
        await db.execute("UPDATE sweep_failures SET retry_at = now()")
        await db.execute("UPDATE chat_purges SET due_at = now()")
        await sweep()
        assert await db.fetchval("SELECT count(*) FROM messages WHERE seq > 0") == 20
        assert await db.fetchval("SELECT count(*) FROM chat_purges") == 0
        assert await db.fetchval("SELECT count(*) FROM files WHERE chat_id IS NULL") == 2000


@pytest.mark.gen_test(timeout=60)
async def test_a_purge_costs_what_is_left_to_erase_and_not_what_was_deleted(services: Services) -> None:
    async with place(services) as shared, connected(shared) as db:
        await db.execute(
            """INSERT INTO chat_threads (id, type, deleted_at, last_seq)
               SELECT md5(n::text)::uuid, 'group', now() - n * interval '1 s', 2 FROM generate_series(1, 20000) AS n"""
        )
        await db.execute("INSERT INTO chat_events SELECT id, 2, 1, 'chat_deleted' FROM chat_threads")
        # Five of them still have something, and wait in the queue.
        await db.execute("INSERT INTO chat_purges SELECT id, deleted_at FROM chat_threads LIMIT 5")
        await db.execute("INSERT INTO chat_events SELECT chat_id, 1, 1, 'chat_created' FROM chat_purges")
        await db.execute("ANALYZE")
        pages = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + purge._PURGE
        [plan] = json.loads(await db.fetchval(pages, 1000))
        read = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        assert read < 400, read
        assert await db.fetchval("SELECT count(*) FROM chat_purges") == 0
        assert await db.fetchval("SELECT count(*) FROM chat_events") == 20000


@pytest.mark.gen_test(timeout=60)
async def test_every_way_of_deleting_a_chat_queues_it(services: Services) -> None:
    """An older server, which knows nothing of the queue, does it by the same column."""
    async with place(services) as shared, connected(shared) as db:
        await db.execute("INSERT INTO chat_threads (type) SELECT 'group' FROM generate_series(1, 3)")
        await db.execute("UPDATE chat_threads SET title = 'x'")
        assert await db.fetchval("SELECT count(*) FROM chat_purges") == 0
        for _ in range(2):
            await db.execute("UPDATE chat_threads SET deleted_at = now()")
            assert await db.fetchval("SELECT count(*) FROM chat_purges") == 3


@pytest.mark.gen_test(timeout=60)
async def test_calls_end_beside_bad_ones(services: Services) -> None:
    async with town(services) as made, connected(made.shared) as db:
        await db.execute(
            """INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id,
                                  fingerprint)
               SELECT 'user_' || n, '', sha256(n::text::bytea), sha256(n::text::bytea), 1,
                      encode(sha256(n::text::bytea), 'hex') FROM generate_series(1, 121) AS n"""
        )
        await db.execute(
            """INSERT INTO call_sessions (id, caller_id, callee_id, call_type, status, started_at, last_heartbeat)
               SELECT gen_random_uuid(), id, lead(id) OVER (ORDER BY id), 'audio',
                      (CASE row_number() OVER (ORDER BY id) % 2 WHEN 0 THEN 'ringing' ELSE 'accepted' END)::call_status,
                      now() - interval '2 h', now() - interval '2 h' FROM users"""
        )
        await plant(db, {"call_sessions": "id"}, 12)
        await periodic(made.servers[0], "call_timeouts")()
        live = await db.fetch("SELECT id::text FROM call_sessions WHERE status IN ('ringing', 'accepted') ORDER BY 1")
        assert [row[0] for row in live] == [row[0] for row in await db.fetch("SELECT key FROM planted ORDER BY 1")]
        assert (
            sum(
                metric(made, "mimu_sweep_bad_rows_total", f"calls_{kind}") for kind in ("ringing", "silent", "deserted")
            )
            == 12
        )


@pytest.mark.gen_test(timeout=60)
async def test_subscriptions_and_uploads_end_beside_bad_ones(services: Services) -> None:
    async with town(services, people=1) as made, connected(made.shared) as db:
        [alice] = made.people
        await db.execute(
            """INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, signature, expires_at)
               SELECT encode(sha256(n::text::bytea), 'hex'), repeat('0', 64), 'premium', sha512('x'), now()
               FROM generate_series(1, 60) AS n"""
        )
        await db.execute(
            """INSERT INTO files (owner_id, size, storage_key, resumable, expires_at)
               SELECT $1::text::uuid, 1, lpad(n::text, 32, '0'), true, now() - interval '1 s'
               FROM generate_series(1, 60) AS n""",
            alice.user_id,
        )
        await plant(db, {"subscriptions": "id", "files": "id"}, 12)
        for name in ("subscriptions", "files"):
            await periodic(made.servers[0], name)()
        assert await db.fetchval("SELECT count(*) FROM subscriptions WHERE status = 'active'") == 12
        assert await db.fetchval("SELECT count(*) FROM files") == 12
        assert metric(made, "mimu_sweep_bad_rows_total", "subscriptions_expiry") == 12
        assert metric(made, "mimu_sweep_bad_rows_total", "unfinished_uploads") == 12


@pytest.mark.gen_test(timeout=60)
async def test_bytes_that_can_not_be_removed_hold_up_no_others(services: Services) -> None:
    """Keys that no server of ours has made; the storage refuses them before it looks."""
    async with town(services) as made, connected(made.shared) as db:
        await db.execute(
            """INSERT INTO file_removals SELECT CASE WHEN n % 5 = 0 THEN '../' || n ELSE md5(n::text) END, NULL,
                                                now() - n * interval '1 s' FROM generate_series(1, 60) AS n"""
        )
        sweep = periodic(made.servers[0], "files")
        await sweep()
        assert await db.fetchval("SELECT count(*) FROM file_removals") == 12
        assert metric(made, "mimu_sweep_bad_rows_total", "file_removals") == 12
        await db.execute("UPDATE file_removals SET due_at = now()")
        await sweep()
        assert metric(made, "mimu_sweep_bad_rows_total", "file_removals") == 12, "not so soon"


@pytest.mark.gen_test
async def test_every_sweep_has_its_series_from_the_start(services: Services) -> None:
    async with town(services) as made:
        text = made.servers[0].app.metrics.exposition().decode()
        for name in ("mimu_sweep_backlog", "mimu_sweep_bad_rows_total"):
            found = set(re.findall(rf'^{name}{{sweep="(\w+)"}} 0.0$', text, re.MULTILINE))
            assert {"message_expiry", "deleted_chats", "calls_ringing", "calls_silent", "calls_deserted"} <= found
            assert {"subscriptions_expiry", "unfinished_uploads", "file_removals", "sessions", "chat_threads"} <= found


@pytest.mark.gen_test(timeout=60)
async def test_presence_of_a_dead_instance_ends_beside_bad_rows_and_in_batches(services: Services) -> None:
    async with town(services) as made, connected(made.shared) as db:
        dead = await db.fetchval(
            "INSERT INTO instances VALUES (gen_random_uuid(), now() - interval '41 s') RETURNING id"
        )
        await db.execute(
            """INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id,
                                  fingerprint, is_online)
               SELECT 'user_' || n, '', sha256(n::text::bytea), sha256(n::text::bytea), 1,
                      encode(sha256(n::text::bytea), 'hex'), true FROM generate_series(1, 1200) AS n"""
        )
        await db.execute("INSERT INTO connections SELECT id, $1 FROM users", dead)
        await plant(db, {"users": "id"}, 12)
        beat = periodic(made.servers[0], "presence")
        await beat()
        assert await db.fetchval("SELECT count(*) FROM users WHERE is_online") == 12
        assert metric(made, "mimu_sweep_bad_rows_total", "dead_connections") == 12
        assert await db.fetchval("SELECT count(*) FROM instances WHERE id = $1", dead) == 1, "until they have gone"
        await db.execute("DELETE FROM planted")
        await db.execute("UPDATE sweep_failures SET retry_at = now()")
        await beat()
        assert await db.fetchval("SELECT count(*) FROM users WHERE is_online") == 0
        assert await db.fetchval("SELECT count(*) FROM instances WHERE id = $1", dead) == 0


@pytest.mark.gen_test(timeout=60)
async def test_an_instance_that_was_swept_in_part_announces_all_its_users_again(services: Services) -> None:
    async with place(services) as shared, Database(shared.dsn, 2).open() as db:
        instance = uuid4()
        assert await presence.record_heartbeat(db, instance)
        assert not await presence.record_heartbeat(db, instance)
        await db.execute("UPDATE instances SET beat_at = now() - interval '41 s'")
        assert await presence.record_heartbeat(db, instance), "a sweep may have taken some of them"
        assert not await presence.record_heartbeat(db, instance)


@pytest.mark.gen_test(timeout=60)
async def test_a_server_reads_all_ended_sessions_page_by_page(services: Services) -> None:
    async with place(services) as shared, connected(shared) as filling, Database(shared.dsn, 2).open() as db:
        await filling.execute(
            """INSERT INTO ended_sessions (session_id, user_id, ended_at)
               SELECT gen_random_uuid(), gen_random_uuid(), now() - n / 3000 * interval '1 s'
               FROM generate_series(1, 12000) AS n"""
        )
        now = await sessions.now(db)
        found = await sessions.ended_since(db, now - timedelta(hours=1))
        assert len({session.id for session in found}) == len(found) == 12000
        assert await sessions.ended_since(db, now + timedelta(seconds=1)) == []
