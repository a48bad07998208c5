"""Traces: what a collector gets to know of requests, frames, commits and pushes, and what it doesn't."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config import tracing
from handlers.http.site import template
from tests import canaries
from tests.client import Account, ask
from tests.monitoring.collector import Collector, Span, collecting
from tests.plugins.chatting import chat, message, say, town
from tests.plugins.pushing import pushing, registered
from tests.running import ROOT, Services, json_lines, place, program, serving
from tests.waiting import WAIT, until

SERVER, CLIENT = 2, 3  # SpanKind
ERROR = 2  # StatusCode
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent soon, and nothing of our environment changes them."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


def assert_no_leak(collector: Collector, *people: Account) -> None:
    """No secret and no name of an account was exported."""
    everything = b"".join(collector.bodies).decode("latin-1")
    assert not canaries.escaped(everything)
    for person in people:
        for name in (person.user_id, person.public_id, person.session_id):
            assert name not in everything


@pytest.mark.gen_test
async def test_a_request_is_traced_with_its_statements(services: Services, log: io.StringIO) -> None:
    async with collecting() as collector:
        async with town(services, people=2, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as made:
            alice, bob = made.people
            group = await chat(alice, bob)
            answer = await alice.get(f"/chats/{group['id']}", **{"X-Request-ID": "traced"})
            assert answer.status == 200
            span = await collector.expect("GET /chats/{id}", mimu__request_id="traced")
            assert (span.kind, span.parent, span.status) == (SERVER, "", 0)
            assert span.attributes == {
                "http.request.method": "GET",
                "http.route": "/chats/{id}",
                "http.response.status_code": 200,
                "mimu.request_id": "traced",
            }
            assert span.resource["service.name"] == "mimu"
            assert span.resource["service.instance.id"] == str(made.servers[0].app.instance_id)
            statements = collector.children(span)
            assert statements
            for statement in statements:
                assert (statement.kind, statement.status) == (CLIENT, 0)
                assert statement.attributes.keys() == {
                    *("db.system.name", "db.operation.name", "code.function.name"),
                }
                assert statement.attributes["db.system.name"] == "postgresql"
                assert statement.attributes["db.operation.name"] == "SELECT"
                assert str(statement.attributes["code.function.name"]).startswith("models.")
                assert statement.name == f"SELECT {statement.attributes['code.function.name']}"
            # Unknown paths and methods that a client invents are not exported.
            assert (await alice.get("/nowhere/secret-path")).status == 404
            await ask(alice.url, "FANTASY", "/users/me", token=alice.token)
            lost = await collector.expect("GET", http__response__status_code=404)
            assert "http.route" not in lost.attributes
        assert_no_leak(collector, alice, bob)
        assert collector.kinds == {"application/x-protobuf"}
        assert not any(b"secret-path" in body or b"FANTASY" in body for body in collector.bodies)
    assert "traces_collector_away" not in log.getvalue()


@pytest.mark.gen_test
async def test_a_message_is_traced_from_frame_to_commit(services: Services) -> None:
    async with collecting() as collector:
        async with town(services, people=2, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as made:
            alice, bob = made.people
            group = await chat(alice, bob)
            phone, _ = await made.sockets(alice, bob)
            await phone.send("message_send", chat_id=group["id"], **message())
            frame = await collector.expect("frame message_send")
            assert (frame.kind, frame.parent, frame.attributes) == (SERVER, "", {"mimu.frame.type": "message_send"})
            # The handshake is another trace, and linked.
            [linked] = frame.links
            assert linked in {span.id for span in collector.named("GET /ws")}
            commit = await collector.expect("journal commit")
            assert (commit.trace, commit.parent) == (frame.trace, frame.id)
            assert commit.links == {frame.id}
            assert commit.attributes == {"mimu.batch.messages": 1}
            [statement] = collector.children(commit)
            assert statement.attributes["code.function.name"] == "models.chats.posting.post"
            # Over HTTP likewise.
            await say(alice, group)
            request = await collector.expect("POST /chats/{id}/messages")
            await until(lambda: any(child.name == "journal commit" for child in collector.children(request)))
        assert_no_leak(collector, alice, bob)
        assert not any(group["id"].encode() in body for body in collector.bodies)


@pytest.mark.gen_test
async def test_messages_that_share_a_commit_are_all_linked_to_it(services: Services) -> None:
    async with collecting() as collector:
        async with town(services, people=2, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as made:
            alice, bob = made.people
            group = await chat(alice, bob)
            phone, _ = await made.sockets(alice, bob)
            await asyncio.gather(*(phone.send("message_send", chat_id=group["id"], **message()) for _ in range(20)))
            await until(lambda: len(collector.named("frame message_send")) == 20)
            frames = {span.id for span in collector.named("frame message_send")}
            await until(lambda: frames == {one for span in collector.named("journal commit") for one in span.links})
            commits = collector.named("journal commit")
            assert sum(span.attributes["mimu.batch.messages"] for span in commits) == 20
            assert len(commits) < 20
        assert_no_leak(collector, alice, bob)


@pytest.mark.gen_test
async def test_a_slow_frame_holds_its_statements_and_its_refusal(services: Services, log: io.StringIO) -> None:
    async with collecting() as collector:
        async with town(services, people=2, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as made:
            alice, bob = made.people
            phone, _ = await made.sockets(alice, bob)
            call = "00000000-0000-4000-8000-000000000001"
            offer = {"call_id": call, "to_user_id": bob.user_id, "encrypted_payload": "AAAA"}
            await phone.send("call_offer", **offer)
            frame = await collector.expect("frame call_offer")
            assert "models.calls.ring" in {span.attributes["code.function.name"] for span in collector.children(frame)}
            refused = await phone.send("call_answer", call_id=call, encrypted_payload="AAAA")
            span = await collector.expect("frame call_answer")
            assert span.attributes["error.type"] == refused["code"]
            assert span.status == 0  # the client's fault
            await made.sql("ALTER TABLE call_sessions RENAME TO elsewhere")
            await phone.send("call_heartbeat", call_id=call)
            failed = await collector.expect("frame call_heartbeat")
            assert (failed.status, failed.attributes["error.type"]) == (ERROR, "UndefinedTableError")
            [statement] = collector.children(failed)
            assert statement.status == ERROR
            assert statement.attributes["db.response.status_code"] == "42P01"
        assert_no_leak(collector, alice, bob)
        assert not any(b"elsewhere" in body or b"does not exist" in body for body in collector.bodies)
    [line] = [line for line in json_lines(log.getvalue()) if line["event"] == "frame_failed"]
    assert line["trace_id"] == failed.trace


@pytest.mark.gen_test
async def test_a_push_is_traced_without_its_token(services: Services, tmp_path: Path) -> None:
    async with collecting() as collector:
        async with pushing(services, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as (made, world):
            alice, bob = made.people
            await registered(bob, "fcm")
            await say(alice, await chat(alice, bob))
            await world.google.expect("message_new")
            push = await collector.expect("push fcm")
            assert (push.kind, push.status) == (CLIENT, 0)
            assert push.attributes == {
                "mimu.push.provider": "fcm",
                "mimu.push.kind": "message_new",
                "mimu.push.outcome": "sent",
                "http.response.status_code": 200,
            }
        assert_no_leak(collector, alice, bob)


@pytest.mark.gen_test
@pytest.mark.parametrize("trusted", [True, False])
async def test_a_trace_is_taken_on_from_a_trusted_proxy_only(services: Services, trusted: bool) -> None:
    proxies = {"TRUSTED_PROXIES": "127.0.0.0/8"} if trusted else {}
    async with collecting() as collector:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **proxies}
        async with place(services) as shared, serving(shared, **settings) as running:
            await ask(running.url, "GET", "/health/live", headers={"traceparent": PARENT})
            span: Span = await collector.expect("GET /health/live")
    _, trace, parent, _ = PARENT.split("-")
    assert ((span.trace, span.parent) == (trace, parent)) is trusted
    assert trusted or (span.parent == "" and span.trace != trace and not span.links)


@pytest.mark.gen_test
async def test_a_line_of_the_log_has_the_trace_of_its_request(services: Services, log: io.StringIO) -> None:
    async with collecting() as collector, town(services, people=1, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as made:
        [alice] = made.people
        await made.sql("ALTER TABLE call_sessions RENAME TO elsewhere")
        assert (await alice.get("/calls")).status == 500
        span = await collector.expect("GET /calls")
        assert (span.status, span.attributes["error.type"]) == (ERROR, "500")
    [line] = [line for line in json_lines(log.getvalue()) if line["event"] == "request_failed"]
    assert line["trace_id"] == span.trace


@pytest.mark.gen_test
async def test_the_usual_sampler_decides(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with collecting() as collector, town(services, people=2, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as made:
        alice, bob = made.people
        await say(alice, await chat(alice, bob))
    assert collector.spans == []


@pytest.mark.gen_test
async def test_an_unreachable_collector_delays_no_request_and_is_logged_once(
    services: Services, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # seconds until the exporter gives a batch up
    async with town(services, people=2, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        phone, other = await made.sockets(alice, bob)
        times = []
        for _ in range(30):
            began = time.monotonic()
            await phone.send("message_send", chat_id=group["id"], **message())
            await other.expect("message_new")
            assert (await alice.get("/users/me")).status == 200
            times.append(time.monotonic() - began)
        assert sorted(times)[15] < 3, "half of them waited for the exporter"
        await until(lambda: "traces_collector_away" in log.getvalue())
        await asyncio.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < WAIT, "stopping waits for a collector that is not there"
    lines = json_lines(log.getvalue())
    assert [line["event"] for line in lines if line["level"] in ("warning", "error")] == ["traces_collector_away"]


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    # (redis-py looks for the metrics of the SDK, which are not ours, and imports them when they are installed.)
    script = "import sys, server; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = done.stdout.split()
    assert "server" in loaded
    ours = ("config.spans", "opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.proto", "google")
    assert [name for name in loaded if name.startswith(ours)] == []


@pytest.mark.gen_test
@pytest.mark.parametrize("setting", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
async def test_it_is_off_when_its_own_variables_say_so(
    services: Services, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    async with (
        collecting() as collector,
        place(services) as shared,
        serving(shared, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        assert not running.app.traces.on
        await ask(running.url, "GET", "/health/live")
    assert collector.spans == []


@pytest.mark.gen_test(timeout=60)
async def test_the_variables_may_be_in_the_env_file(services: Services, tmp_path: Path) -> None:
    async with collecting() as collector, place(services) as shared:
        given = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "another"}
        (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
        started = (str(ROOT / "server.py"), "--env-file", str(tmp_path / "env"))
        async with program(shared, tmp_path, started=started) as running:
            await ask(running.url, "GET", "/health/live")
            # At its end it sends what it has.
            assert await running.stop() == 0
    [span] = collector.named("GET /health/live")
    assert span.resource["service.name"] == "another"


def test_another_protocol_is_refused() -> None:
    assert tracing.faults({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}) == []
    assert tracing.faults({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) != []


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        ("/chats/([0-9a-fA-F]{8}-[0-9a-fA-F]{4})/messages", "/chats/{id}/messages"),
        ("/messages/([0-9a-fA-F-]{36})/reactions/([^/]{1,96})", "/messages/{id}/reactions/{name}"),
        ("/health", "/health"),
    ],
)
def test_a_route_is_traced_without_its_parameters(pattern: str, shown: str) -> None:
    assert template(pattern) == shown
