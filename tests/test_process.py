"""The program itself: its settings, its start on nothing, its end, and what kill -9 leaves."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.client import Account, ask
from tests.running import ROOT, Services, inherited, json_lines, place, program, serving
from tests.waiting import WAIT


def children(folder: Path) -> list[psutil.Process]:
    """The processes that work in a data folder, but the server."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and "server.py" not in line:
            found.append(process)
    return found


@pytest.mark.gen_test(timeout=120)
async def test_kill_9_loses_nothing_and_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    data = {"MIMU_DATA_DIR": str(folder / "var"), "RATE_LIMITS": "off"}
    (folder / "var").mkdir(mode=0o755)
    async with program(None, tmp_path, **data) as first:
        alice = await Account().register(first.url)
        async with alice.socket():
            pass
        assert children(folder)
        first.kill()
        await first.process.wait()
    async with program(None, tmp_path, **data) as second:
        alice.url = second.url
        # The old token still counts: the secrets stayed too.
        assert (await alice.get("/users/me")).json["public_id"] == alice.public_id
        assert (await alice.login()).status == 200
        answer = await ask(second.url, "POST", "/auth/refresh", {"refresh_token": alice.refresh_token})
        assert answer.status == 200
        postmasters = [p for p in children(folder) if p.name() == "postgres" and p.ppid() == second.process.pid]
        everyone = [p for p in children(folder) if p.ppid() == second.process.pid]
        assert len(postmasters) == 1
        assert len(everyone) <= 3
        # A second server on the same folder is refused with a sentence, and the first one works on.
        environment = {**inherited("PATH"), "PORT": "0", **data}
        rival = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "server.py"), env=environment, stderr=asyncio.subprocess.PIPE, cwd=ROOT
        )
        _, said = await asyncio.wait_for(rival.communicate(), 30)
        assert rival.returncode == 1
        assert str(folder / "var") in said.decode()
        assert "Traceback" not in said.decode()
        assert (await alice.get("/users/me")).status == 200
        assert await second.stop() == 0
    assert children(folder) == []


@pytest.mark.gen_test(timeout=60)
async def test_it_starts_on_nothing_in_one_line_and_logs_json_without_secrets(folder: Path, tmp_path: Path) -> None:
    var = folder / "var"
    var.mkdir(mode=0o755)
    async with program(None, tmp_path, MIMU_DATA_DIR=str(var), LOG_LEVEL="debug") as running:
        alice = await Account().register(running.url)
        assert (await ask(running.url, "GET", "/health")).json["status"] == "healthy"
        assert (await ask(running.url, "GET", "/metrics")).status == 200
        await ask(running.url, "GET", f"/users/me?token={alice.token}")
        assert await running.stop() == 0
        log = running.log_text()
    lines = json_lines(log)
    assert {"started", "stopping"} <= {line["event"] for line in lines}
    kept = [path.read_text().strip() for path in (var / "secrets").iterdir()]
    assert len(kept) == 2
    assert all((path.stat().st_mode & 0o777) == 0o600 for path in (var / "secrets").iterdir())
    for secret in (*kept, alice.token, alice.refresh_token, alice.password):
        assert secret not in log


@pytest.mark.gen_test(timeout=60)
async def test_sigterm_lets_requests_in_flight_finish(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, program(shared, tmp_path) as running:
        alice = await Account().register(running.url)
        async with alice.socket() as socket:
            logins = [asyncio.ensure_future(alice.login()) for _ in range(6)]
            await asyncio.sleep(0.02)
            running.process.send_signal(signal.SIGTERM)
            assert {answer.status for answer in await asyncio.gather(*logins)} == {200}
            assert (await socket.expect("closed"))["code"] == 1012
        assert await asyncio.wait_for(running.process.wait(), WAIT) == 0


def check_config(**settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**inherited("PATH"), **settings}
    command = [sys.executable, str(ROOT / "server.py"), "--check-config"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)


def test_check_config_tells_every_fault_at_once_and_no_value(tmp_path: Path) -> None:
    secret = "a-canary-that-is-no-number"
    faulty = {
        "PORT": secret,
        "TRUSTED_PROXIES": "10.0.0.0/8,nonsense",
        "RATE_LIMIT_LOGIN": "often",
        "TURN_TLS_PORT": "-1",
        "MIMU_ENV": "staging",
        "DATABASE_URL": "mysql://" + secret,
        "REDIS_URL": "redis://host:port-" + secret,
        "PLUGINS_DISABLED": "nope",
        "MIMU_DATA_DIR": str(tmp_path),
    }
    result = check_config(**faulty)
    assert result.returncode == 78
    named = {line.partition(":")[0] for line in result.stderr.splitlines()}
    assert {
        "DATABASE_URL",
        "REDIS_URL",
        "PORT",
        "TRUSTED_PROXIES",
        "RATE_LIMIT_LOGIN",
        "TURN_TLS_PORT",
        "MIMU_ENV",
    } <= named
    assert "PLUGINS_DISABLED" in result.stderr
    assert secret not in result.stderr
    good = check_config(MIMU_DATA_DIR=str(tmp_path))
    assert (good.returncode, good.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("jwt", "turn", "faults"),
    [
        ("", "", ["JWT_SECRET: missing", "TURN_SECRET: missing"]),
        ("change_me_super_secret", "change_me_turn_secret", ["JWT_SECRET: is a default", "TURN_SECRET: is a default"]),
        ("k" * 31, "0123456789abcdef" * 2, ["JWT_SECRET: too short"]),
        ("kkkkkkkk" * 8, "0123456789abcdef" * 2, ["JWT_SECRET: too weak"]),
        ("0123456789abcdef" * 2, "0123456789abcdef" * 2, ["equal"]),
    ],
)
def test_production_does_not_start_with_a_bad_secret(jwt: str, turn: str, faults: list[str]) -> None:
    settings = {"DATABASE_URL": "postgres://x@127.0.0.1:1/x", "JWT_SECRET": jwt, "TURN_SECRET": turn}
    result = check_config(**{name: value for name, value in settings.items() if value})
    assert result.returncode == 78
    for part in faults:
        assert part in result.stderr
    started = subprocess.run(
        [sys.executable, str(ROOT / "server.py")],
        env={**inherited("PATH"), **settings},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=30,
    )
    assert (started.returncode, started.stderr) == (78, result.stderr)


@pytest.mark.gen_test(timeout=60)
async def test_a_wrong_password_is_reported_in_a_sentence(services: Services) -> None:
    async with place(services) as shared:
        parts = urlsplit(shared.dsn)
        wrong = shared.dsn.replace(parts.password or "", "wrong")
        environment = {**inherited("PATH"), **shared.environment, "DATABASE_URL": wrong}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "server.py"), env=environment, stderr=asyncio.subprocess.PIPE, cwd=ROOT
        )
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert "password authentication failed" in said.decode()
        assert "Traceback" not in said.decode()


@pytest.mark.gen_test(timeout=60)
async def test_a_port_that_is_taken_is_named(services: Services) -> None:
    async with place(services) as shared, serving(shared) as first:
        environment = {**inherited("PATH"), **shared.environment, "PORT": str(first.port)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "server.py"), env=environment, stderr=asyncio.subprocess.PIPE, cwd=ROOT
        )
        _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert f"Can't listen on PORT {first.port} of HOST 127.0.0.1: Address already in use" in said.decode()
    assert "Traceback" not in said.decode()


@pytest.mark.parametrize("content", [None, b"PORT=\xff"], ids=["missing", "no text"])
@pytest.mark.parametrize("name", ["server", "scripts.doctor", "scripts.migrate", "scripts.cleanup"])
def test_an_env_file_that_can_not_be_read_is_not_taken_for_an_empty_one(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "mimu.env"
    if content is not None:
        file.write_bytes(content)
    command = [sys.executable, "-m", name, "--env-file", str(file)]
    environment = {**inherited("PATH"), "MIMU_DATA_DIR": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.startswith(f"{file} can't be read"), ended.stderr


@pytest.mark.gen_test(timeout=60)
async def test_a_database_that_lacks_migrations_is_refused(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        # In its own folder, because a fence that another run left in the shared one would reject this database first.
        own = {"DATABASE_URL": services.dsn, "MIMU_DATA_DIR": str(tmp_path)}
        environment = {**inherited("PATH"), **shared.environment, **own}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "server.py"), env=environment, stderr=asyncio.subprocess.PIPE, cwd=ROOT
        )
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert re.search(r"the database lacks 0001.*scripts\.migrate", said.decode())
        assert "Traceback" not in said.decode()
