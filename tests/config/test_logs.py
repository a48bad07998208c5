"""The log: every line is JSON with the id of the request that caused it, and without quoted values."""

from __future__ import annotations

import asyncio
import io
import re
import signal
from pathlib import Path
from uuid import UUID

import pytest

from tests.client import ask
from tests.deploy.relay import free_port
from tests.plugins.chatting import chat, message, town
from tests.running import ROOT, Program, Services, json_lines, place, program, serving

# What must not reach a log: the text of whatever goes wrong.
SECRET = "the-text-of-an-error"

TROUBLED = f"""
import asyncio, gc, logging, sys, threading, warnings

sys.path.insert(0, {str(ROOT)!r})
import server

serve = server.serve


class Unfinished:
    def __del__(self):
        raise ValueError({SECRET!r})


def fail(*_):
    raise ValueError({SECRET!r})


async def failing(_):
    fail()


async def troubled(configuration):
    async def trouble():
        await asyncio.sleep(0)
        asyncio.create_task(failing({SECRET!r}))
        asyncio.get_running_loop().call_soon(fail, {SECRET!r})
        threading.Thread(target=fail).start()
        Unfinished()
        warnings.warn({SECRET!r}, RuntimeWarning)
        logging.getLogger("a.library").error("it says %d\\nin two lines", 5)
        await asyncio.sleep(0.1)
        gc.collect()

    # serve() sets the loop's exception handler; earlier errors go to another one.
    asyncio.get_running_loop().call_later(1, asyncio.ensure_future, trouble())
    await serve(configuration)
    raise RuntimeError({SECRET!r})


server.serve = troubled
sys.exit(server.main())
"""


async def wait_for_log(running: Program, *words: str) -> None:
    """Wait until the log has all of these."""
    async with asyncio.timeout(20):
        while not all(word in running.log_text() for word in words):
            await asyncio.sleep(0.05)


@pytest.mark.gen_test(timeout=60)
async def test_every_error_is_logged_as_json_without_secrets(services: Services, tmp_path: Path) -> None:
    script = tmp_path / "troubled.py"
    script.write_text(TROUBLED)
    async with (
        place(services) as shared,
        program(shared, tmp_path, started=(str(script),), LOG_LEVEL="debug") as running,
    ):
        await wait_for_log(running, "a.library", "loop_complained", "thread_failed")
        await ask(running.url, "GET", "/nowhere")
        running.process.send_signal(signal.SIGTERM)
        await running.process.wait()
        assert running.process.returncode == 1
        text = running.log_text()
    assert SECRET not in text
    lines = json_lines(text)
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    found = {str(line["event"]): line for line in lines}
    assert {"started", "loop_complained", "thread_failed", "not_raised", "python_warning", "crashed"} <= found.keys()
    complaints = [line for line in lines if line["event"] == "loop_complained"]
    assert {line["complaint"] for line in complaints} >= {"Task exception was never retrieved"}
    assert {"failing"} <= {line["task"] for line in complaints}
    assert all(line["error"] == "ValueError" for line in complaints)
    assert found["python_warning"]["category"] == "RuntimeWarning"
    assert found["it says 5\nin two lines"]["logger"] == "a.library"
    assert found["crashed"]["error"] == "RuntimeError"


@pytest.mark.gen_test(timeout=60)
async def test_a_server_in_production_says_nothing_but_json(services: Services, tmp_path: Path) -> None:
    """Docker brings both of a container's streams to one log."""
    port = free_port()
    script = tmp_path / "production.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport server\n"
        # For program(), which waits for a line, and then asks.
        f"def tell(state):\n    if state == 'READY=1':\n        print('http://127.0.0.1:{port}', flush=True)\n"
        "server.supervisor.notify = tell\n"
        "sys.exit(server.main())\n"
    )
    secrets = {"MIMU_ENV": "production", "RATE_LIMITS": "on", "PORT": str(port)}
    async with (
        place(services) as shared,
        program(shared, tmp_path, started=(str(script),), **secrets) as running,
    ):
        await wait_for_log(running, '"started"')
        assert await running.stop() == 0
        assert running.process.stdout is not None
        assert await running.process.stdout.read() == b""
        json_lines(running.log_text())


@pytest.mark.gen_test
async def test_a_failed_start_is_a_line_of_json(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        nowhere = re.sub(r"@[^/]+/", "@127.0.0.1:1/", shared.dsn)
        with pytest.raises(AssertionError, match="did not start"):
            async with program(shared, tmp_path, DATABASE_URL=nowhere):
                raise AssertionError("it started without a database")
    [log] = tmp_path.glob("*.log")
    last = json_lines(log.read_text())[-1]
    assert (last["event"], last["level"]) == ("start_failed", "error")
    assert last["reason"]


# From the proxy to PostgreSQL -----------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_error_of_sql_is_logged_with_the_request_id_of_the_proxy(services: Services, log: io.StringIO) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        await made.sql("ALTER TABLE call_sessions RENAME TO elsewhere")
        answer = await alice.get("/calls", **{"X-Request-ID": "from-the-proxy.1"})
        assert (answer.status, answer.json["request_id"]) == (500, "from-the-proxy.1")
        assert answer.headers["X-Request-ID"] == "from-the-proxy.1"
    [failed] = [line for line in json_lines(log.getvalue()) if line["event"] == "request_failed"]
    assert failed["request_id"] == "from-the-proxy.1"
    assert failed["sqlstate"] == "42P01"  # undefined_table
    assert failed["statement"] == "models.calls.history"
    assert failed["error"] == "UndefinedTableError"
    assert "elsewhere" not in str(failed)


@pytest.mark.gen_test
async def test_an_error_of_sql_on_a_socket_is_logged_with_the_id_of_its_handshake(
    services: Services, log: io.StringIO
) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        first, second = await made.sockets(alice, bob)
        await made.sql("ALTER TABLE call_sessions RENAME TO elsewhere")
        offer = {"call_id": str(UUID(int=1)), "to_user_id": bob.user_id, "encrypted_payload": "AAAA"}
        assert (await first.send("call_offer", **offer))["code"] == "internal_error"
        # The journal stores messages of many users in one task; its log line has the sender's id.
        await made.sql("ALTER TABLE messages ADD CHECK (client_id <> '00000000-0000-4000-8000-000000000001')")
        bad = message() | {"client_id": "00000000-0000-4000-8000-000000000001"}
        assert (await second.send("message_send", chat_id=group["id"], **bad))["code"] == "unavailable"
    lines = {str(line["event"]): line for line in json_lines(log.getvalue())}
    failed, refused = lines["frame_failed"], lines["message_not_stored"]
    assert (failed["sqlstate"], failed["statement"]) == ("42P01", "models.calls.ring")
    assert (refused["sqlstate"], refused["statement"]) == ("23514", "models.chats.posting.post")
    assert failed["request_id"]
    assert refused["request_id"]
    assert failed["request_id"] != refused["request_id"]


@pytest.mark.gen_test
async def test_a_timeout_logs_its_statement(services: Services, log: io.StringIO) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        connection = made.servers[0].app.db.pool
        async with connection.acquire() as blocker, blocker.transaction():
            await blocker.execute("LOCK TABLE users")
            answer = await alice.get("/users/me", **{"X-Request-ID": "impatient"})
        assert answer.status == 503
    [line] = [line for line in json_lines(log.getvalue()) if line["event"] == "request_unavailable"]
    assert line["request_id"] == "impatient"
    assert str(line["statement"]).startswith("models.")


@pytest.mark.gen_test
async def test_postgresql_knows_which_instance_asks(services: Services, log: io.StringIO) -> None:
    async with place(services) as shared, serving(shared) as running:
        names = await running.app.db.fetch(
            "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
        )
        assert [row[0] for row in names] == [f"mimu/{running.app.instance_id}"]
    [started] = [line for line in json_lines(log.getvalue()) if line["event"] == "started"]
    assert started["instance"] == str(running.app.instance_id)
