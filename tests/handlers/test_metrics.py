"""Metrics: each event counts once; deliveries are sampled."""

from __future__ import annotations

import asyncio
import re
import time
from uuid import uuid4

import asyncpg
import pytest

from handlers import metrics
from handlers.metrics import Metrics
from models.postgres.statements import Watch, Watched, operation
from server import Server
from tests import canaries
from tests.client import ask
from tests.plugins.chatting import chat, message, town
from tests.running import Services, periodic, place, serving
from tests.waiting import WAIT


def value(of: Server | Metrics, name: str, **labels: str) -> float:
    """Return one sample, or 0 if it does not exist yet."""
    text = (of if isinstance(of, Metrics) else of.app.metrics).exposition().decode()
    wanted = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
    found = re.search(rf"^{name}{re.escape('{' + wanted + '}') if labels else ''} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.gen_test
async def test_frames_are_counted_by_type_in_and_out(services: Services) -> None:
    async with town(services, people=3) as made:
        [running] = made.servers
        alice, bob, _ = made.people
        phone, tablet, other = await made.sockets(alice, alice, bob)
        group = await chat(alice, *made.people[1:])
        for _ in range(3):
            await phone.send("message_send", chat_id=group["id"], **message())
        await phone.send("message_send", chat_id=str(uuid4()), **message())
        for socket in (tablet, other):
            for _ in range(3):
                await socket.expect("message_new")
        assert value(running, "mimu_websocket_frames_received_total", type="message_send") == 4
        assert value(running, "mimu_websocket_frames_sent_total", type="message_new") == 6
        assert value(running, "mimu_websocket_frames_sent_total", type="ack") == 3
        assert value(running, "mimu_websocket_frames_sent_total", type="error") == 1
        assert value(running, "mimu_websocket_frames_sent_total", type="ready") == 3
        assert value(running, "mimu_websocket_frames_refused_total", code="not_found") == 1
        assert value(running, "mimu_websocket_connections") == 3
        assert value(running, "mimu_journal_batch_messages_sum") == 3
        assert value(running, "mimu_delivery_duration_seconds_count", way="group") >= 1


@pytest.mark.gen_test
async def test_frames_from_another_instance_are_counted_where_they_are_written(services: Services) -> None:
    async with town(services, servers=2, people=2) as made:
        alice, bob = made.people
        phone, other = await made.sockets(alice, bob)
        group = await chat(alice, bob)
        await phone.send("message_send", chat_id=group["id"], **message())
        await other.expect("message_new")
        sent = [value(one, "mimu_websocket_frames_sent_total", type="message_new") for one in made.servers]
        assert sent == [0, 1]
        assert value(made.servers[0], "mimu_bus_messages_published_total") >= 1


@pytest.mark.gen_test
async def test_calls_are_counted_by_how_they_end(services: Services) -> None:
    async with town(services, people=2) as made:
        [running] = made.servers
        alice, bob = made.people
        phone, other = await made.sockets(alice, bob)
        for answered, reason in ((True, "hangup"), (False, "declined"), (False, "busy")):
            call = {"call_id": str(uuid4())}
            await phone.send("call_offer", to_user_id=bob.user_id, encrypted_payload="AAAA", **call)
            if answered:
                await other.send("call_answer", encrypted_payload="AAAA", **call)
            await other.send("call_hangup", reason=reason if reason != "declined" else "hangup", **call)
        assert value(running, "mimu_calls_started_total", type="audio") == 3
        assert value(running, "mimu_calls_answered_total", type="audio") == 1
        for status, reason in (("ended", "hangup"), ("rejected", "declined"), ("rejected", "busy")):
            assert value(running, "mimu_calls_ended_total", status=status, reason=reason) == 1
        assert value(running, "mimu_calls_ended_total", status="missed", reason="timeout") == 0


@pytest.mark.gen_test
async def test_a_sample_lasts_from_the_event_until_the_write() -> None:
    counted, loop = Metrics(), asyncio.get_running_loop()
    began = time.monotonic()
    loop.call_soon(time.sleep, 0.05)  # what a busy loop does before the sockets are flushed
    for _ in range(50):
        counted.sample_delivery("group", began)
    await asyncio.sleep(0.001)
    assert value(counted, "mimu_delivery_duration_seconds_count", way="group") == 1
    assert 0.05 <= value(counted, "mimu_delivery_duration_seconds_sum", way="group") < WAIT
    await asyncio.sleep(2 * metrics.SAMPLE_EVERY)
    counted.sample_delivery("group", time.monotonic())
    counted.sample_delivery("user", time.monotonic())
    await asyncio.sleep(0.001)
    assert value(counted, "mimu_delivery_duration_seconds_count", way="group") == 2
    assert value(counted, "mimu_delivery_duration_seconds_count", way="user") == 1


@pytest.mark.gen_test
async def test_the_tests_see_every_label(services: Services) -> None:
    """A test's server is searched for secrets by its labels alone: they are all that its exposition has."""
    async with place(services) as home, serving(home) as running:
        await ask(running.url, "GET", "/health")
        seen = set(canaries.labels(running.app.metrics.registry))
        shown = re.findall(r'[{,](\w+)="([^"]*)"', running.app.metrics.exposition().decode())
        assert {value for name, value in shown if name != "le"} <= seen
        assert len(seen) > 50


def test_the_number_of_frame_types_is_bounded() -> None:
    counted = Metrics()
    for number in range(2 * metrics.MAX_FRAME_TYPES):
        counted.count_sent(f"type_{number}", 1)
    text = counted.exposition().decode()
    assert text.count("mimu_websocket_frames_sent_total{") == metrics.MAX_FRAME_TYPES + 1
    assert value(counted, "mimu_websocket_frames_sent_total", type="other") == metrics.MAX_FRAME_TYPES


@pytest.mark.gen_test
async def test_a_stalled_loop_is_late(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        await asyncio.sleep(0.15)
        time.sleep(0.3)  # blocks the loop
        await asyncio.sleep(0.15)
        late = value(running, "mimu_event_loop_lag_seconds_bucket", le="+Inf")
        assert late - value(running, "mimu_event_loop_lag_seconds_bucket", le="0.1") >= 1


@pytest.mark.gen_test
async def test_the_pool_shows_waiting_requests(services: Services) -> None:
    async with place(services) as shared, serving(shared, DATABASE_MAX_CONNECTIONS="2") as running:
        db = running.app.db
        async with db.pool.acquire(), db.pool.acquire():
            waiting = asyncio.ensure_future(db.value("SELECT 1"))
            await asyncio.sleep(0.3)
            assert value(running, "mimu_postgres_pool_connections", state="in_use") == 2
            assert value(running, "mimu_postgres_pool_max_connections") == 2
            assert value(running, "mimu_postgres_pool_waiting_requests") >= 1
        assert await waiting == 1
        slow = value(running, "mimu_postgres_pool_acquire_duration_seconds_bucket", le="+Inf")
        assert slow - value(running, "mimu_postgres_pool_acquire_duration_seconds_bucket", le="0.25") >= 1
        assert value(running, "mimu_postgres_pool_waiting_requests") == 0


@pytest.mark.gen_test
async def test_failures_of_statements_are_counted_by_cause(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        db = running.app.db
        before = value(running, "mimu_postgres_statement_duration_seconds_count", operation="SELECT")
        assert await db.value("SELECT 1") == 1
        for statement, error in (
            ("SELECT nonsense", asyncpg.UndefinedColumnError),
            ("INSERT INTO sync_epoch SELECT * FROM sync_epoch", asyncpg.UniqueViolationError),
        ):
            with pytest.raises(error):
                await db.execute(statement)
        assert value(running, "mimu_postgres_failures_total", cause="mistake") == 1
        assert value(running, "mimu_postgres_failures_total", cause="conflict") == 1
        assert value(running, "mimu_postgres_statement_duration_seconds_count", operation="SELECT") >= before + 2


@pytest.mark.gen_test
async def test_periodic_tasks_and_checks_are_shown(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        async with asyncio.timeout(WAIT):
            while value(running, "mimu_health_check_up", check="database") != 1:
                await asyncio.sleep(0.02)
        assert value(running, "mimu_periodic_interval_seconds", task="message_expiry") == 5
        last = value(running, "mimu_periodic_last_success_timestamp_seconds", task="cleanup")
        assert abs(time.time() - last) < 30
        assert value(running, "mimu_files_free_bytes") == 0, "not measured yet"
        await periodic(running, "files_room")()
        assert value(running, "mimu_files_free_bytes") > 0
        # The scrape itself is one of the requests in flight.
        text = (await ask(running.url, "GET", "/metrics")).text
        assert "mimu_http_requests_in_flight 1.0" in text


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("SELECT 1", "SELECT"),
        ("  -- why\n  insert into a values (1)", "INSERT"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "SELECT"),
        ("WITH a AS (SELECT 1 FOR NO KEY UPDATE) INSERT INTO b SELECT * FROM a", "INSERT"),
        ("WITH a AS (DELETE FROM b RETURNING *) SELECT * FROM a", "DELETE"),
        ("WITH a AS (SELECT 1 FOR UPDATE SKIP LOCKED) UPDATE b SET c = 1", "UPDATE"),
        ("(SELECT 1) UNION (SELECT 2)", "SELECT"),
        ("VACUUM", "OTHER"),
        ("", "OTHER"),
    ],
)
def test_a_statement_is_labelled_with_one_word(sql: str, word: str) -> None:
    assert operation(sql) == word


def test_an_error_is_noted_without_its_text() -> None:
    failed: list[str] = []
    error = asyncpg.UndefinedTableError("the text")
    with pytest.raises(asyncpg.UndefinedTableError), Watched(Watch(failed=failed.append), "SELECT 1"):
        raise error
    assert failed == ["mistake"]
    assert error.__notes__ == ["statement: unknown"]  # a test is no function of ours
