"""Why PostgreSQL and Redis can't be used: named with what to do, by the doctor and where a server starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from config import embedded, reasons, urls
from config.reasons import Unfit
from models import database
from models.database import Database, Unavailable
from models.postgres import migrations, pool
from models.postgres.fitness import takes_writes
from tests import canaries
from tests.deploy.nginx import folder
from tests.deploy.relay import free_port
from tests.deploy.test_turn_files import UNPRIVILEGED_UID
from tests.providers.certificates import certified
from tests.running import ROOT, Place, Services, inherited, place
from tests.scripts.examining import examine
from tests.waiting import WAIT


async def started(*words: str, **settings: str) -> tuple[int, str]:
    """Run ``python server.py`` with these settings. Returns its exit code and its output."""
    given = {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1", **settings}
    command = (sys.executable, "server.py", "--env-file", os.devnull, *words)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = said.decode()
    assert not canaries.escaped(text)
    assert process.returncode is not None
    return process.returncode, text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("connect_timeout=3", "connect_timeout is a parameter of libpq"),
        ("sslmode=verify-full&sslrootcert=system", "sslrootcert=system works only with libpq"),
        ("sslmode=verify-ca", "sslmode=verify-ca needs sslrootcert=FILE"),
        ("sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "sslrootcert names a file that does not exist"),
        ("sslmode=sure", "sslmode must be one of"),
        ("application_name=x&sslmode=require&search_path=public", None),
    ],
)
def test_an_address_of_postgresql_is_judged_before_it_is_used(
    query: str, words: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    fault = urls.database_fault(f"postgres://mimu:hush-hush@one:5432,two:5432/mimu?{query}")
    assert fault is None if words is None else words in str(fault)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:hush@a,b/0", "several hosts"),
        ("redis://:hush@a:6379,b:6379/0", "several hosts"),
        ("redis://host/cache", "the number of a database"),
        ("redis://host/0?tls=yes", "a parameter that the client does not know"),
        ("redis://host/0?ssl_ca_certs=/etc/ca.pem", "needs TLS"),
        ("rediss://host/0?ssl_ca_certs=/nowhere/ca.pem", "names a file that does not exist"),
        ("rediss://host/0?ssl_cert_reqs=maybe", "must be one of"),
        ("redis://host/0?socket_timeout=soon", "must be a number"),
        ("redis://:a,b@host:6379/3?socket_timeout=1.5", None),
        ("unix:///run/redis.sock?db=1", None),
        ("rediss://host:6380/0?ssl_cert_reqs=none", None),
    ],
)
def test_an_address_of_redis_is_judged_before_it_is_used(url: str, words: str | None) -> None:
    fault = urls.redis_fault(url)
    assert fault is None if words is None else words in str(fault)


@pytest.mark.gen_test(timeout=60)
async def test_check_config_names_the_setting_and_not_the_password() -> None:
    canaries.plant("hush-hush-hush")
    given = {
        "DATABASE_URL": "postgres://mimu:hush-hush-hush@db/mimu?connect_timeout=3",
        "REDIS_URL": "redis://:hush-hush-hush@a,b/0",
        "MIMU_ENV": "development",
    }
    code, said = await started("--check-config", **given)
    assert code == 78
    assert "DATABASE_URL: connect_timeout is a parameter of libpq" in said
    assert "REDIS_URL: it names several hosts" in said


@contextlib.asynccontextmanager
async def pgbouncer(shared: Place) -> AsyncIterator[str]:
    """A PgBouncer before that PostgreSQL, as it is shipped, with no parameter ignored."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("NOT TESTED what PgBouncer refuses: pgbouncer is not installed (Debian: apt install pgbouncer)")
    parts, port = urlsplit(shared.dsn), free_port()
    with folder() as home:
        home.chmod(0o777)
        ini = home / "pgbouncer.ini"
        there = f"host={parts.hostname} port={parts.port} user={parts.username} password={parts.password}"
        ini.write_text(
            f"[databases]\n{parts.path[1:]} = {there}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            "auth_type = any\nunix_socket_dir =\n"
        )
        become = (
            ["setpriv", f"--reuid={UNPRIVILEGED_UID}", f"--regid={UNPRIVILEGED_UID}", "--clear-groups"]
            if os.geteuid() == 0
            else []
        )
        process = subprocess.Popen([*become, program, "-q", str(ini)], stderr=subprocess.DEVNULL)
        try:
            async with asyncio.timeout(WAIT):
                while True:
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                        break
                    await asyncio.sleep(0.05)
            yield f"postgres://{parts.username}@127.0.0.1:{port}{parts.path}"
        finally:
            process.kill()
            process.wait(10)


@pytest.mark.gen_test(timeout=60)
async def test_a_rejection_by_pgbouncer_is_named(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, pgbouncer(shared) as dsn:
        given = {**shared.environment, "DATABASE_URL": dsn, "MIMU_DATA_DIR": str(tmp_path), "MIMU_ENV": "development"}
        found = (await examine(given, "database")).bad()
        assert "PgBouncer rejects" in found["database", "as the server"]
        code, said = await started(**{**given, "PORT": "0"})
        assert code == 1
        assert "PgBouncer rejects" in said
        assert "ignore_startup_parameters" in said


def test_the_remedy_for_pgbouncer_names_all_that_is_sent() -> None:
    known = reasons.of_database(asyncpg.PostgresError("unsupported startup parameter: jit"))
    assert known is not None
    assert {"application_name", *pool._SESSION, *database._STEADY} <= set(re.findall(r"\w+", known.do))


@pytest.mark.gen_test(timeout=60)
async def test_a_role_without_a_right_is_named(services: Services) -> None:
    """Here by the function that asks for it: only a superuser takes the right to pg_control_system() away."""
    async with place(services) as shared:
        connection = await asyncpg.connect(shared.dsn)
        await connection.execute("REVOKE EXECUTE ON FUNCTION database_place() FROM PUBLIC, CURRENT_USER")
        await connection.close()
        found = (await examine(shared.environment, "database")).bad()
        assert found["database", "as the server"] == "The role of DATABASE_URL may not call database_place()."


@pytest.mark.gen_test(timeout=60)
async def test_an_authority_that_is_not_known_is_named(tmp_path: Path) -> None:
    authority, _ = certified(tmp_path, names=("localhost", "127.0.0.1"))
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(tmp_path / "server.pem")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(4096):
                writer.write(b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=trust)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = (await examine({"REDIS_URL": f"rediss://:hush-hush@127.0.0.1:{port}/0"}, "redis"))["redis", "reachable"]
        assert found.says.startswith("The certificate of Redis is not trusted: ")
        assert "self-signed" in found.says or "unable to get local issuer" in found.says
        assert "ssl_ca_certs=FILE" in found.do
        named = f"rediss://:hush-hush@127.0.0.1:{port}/0?ssl_ca_certs={authority}"
        assert "not trusted" not in (await examine({"REDIS_URL": named}, "redis"))["redis", "reachable"].says


@pytest.mark.gen_test(timeout=90)
async def test_a_synchronous_standby_that_is_away_is_named() -> None:
    with folder() as home:
        home.chmod(0o777)
        async with embedded.postgres(home) as dsn:
            data = home / "postgres" / "data"
            connection = await asyncpg.connect(dsn)
            await connection.execute("CREATE TABLE instances (id uuid PRIMARY KEY, beat_at timestamptz)")
            await connection.close()
            with (data / "postgresql.auto.conf").open("a") as file:
                file.write("synchronous_standby_names = 'missing'\n")
            os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)
            await asyncio.sleep(0.5)
            async with Database(dsn, 3).open() as db, asyncio.timeout(WAIT):
                with pytest.raises(Unavailable, match="synchronous standby") as caught:
                    await takes_writes(db, uuid4())
                assert reasons.fault_name("database", caught.value) == "standby_away"
            given = {"DATABASE_URL": dsn, "MIMU_ENV": "development"}
            found = (await examine(given, "database", seconds=18))["database", "commits"]
            assert found.state == "wrong"
            assert "waits for a synchronous standby" in found.says


def test_a_reason_holds_no_secret() -> None:
    secret = "hush-hush-hush"
    refused = ResponseError(f"unknown command 'AUTH', with args beginning with: '{secret}'")
    for error in (
        ValueError(f"Port could not be cast to integer value as '{secret}'"),
        asyncpg.InterfaceError(f"invalid DSN: {secret}"),
        asyncpg.DataError(f"invalid input syntax: {secret}"),
        refused,
    ):
        assert secret not in reasons.describe_chain(error) + reasons.explain(error)
    outer = RedisConnectionError("Error 1 connecting to redis:6380.")
    outer.__cause__ = ssl.SSLCertVerificationError(1, "certificate verify failed")
    assert "SSLCertVerificationError" in reasons.describe_chain(outer)
    assert "REDIS_URL" in str(reasons.of_redis(outer))


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        ("READONLY You can't write against a read only replica.", "READONLY", reasons.REPLICA),
        ("MOVED 3999 127.0.0.1:6381", "MOVED", reasons.CLUSTER),
        ("CROSSSLOT Keys in request don't hash to the same slot", "CROSSSLOT", reasons.CLUSTER),
        ("ERR unknown command 'SET', with args beginning with: ''", "unknown command", reasons.SENTINEL),
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", reasons.FULL),
        ("NOGROUP No such key 'a' or consumer group 'b'", "NOGROUP", None),
        ("BUSYGROUP Consumer Group name already exists", "BUSYGROUP", None),
        ("WRONGPASS invalid username-password pair", "WRONGPASS", None),
        ("ERR syntax error", "", None),
    ],
)
def test_answers_of_redis_are_known_by_their_code(answer: str, code: str, reason: reasons.Reason | None) -> None:
    error = BaseParser.parse_error(answer)
    assert reasons.redis_code(error) == code
    assert reasons.of_redis(error) == reason


def test_errors_without_a_code_have_none() -> None:
    assert reasons.redis_code(RedisConnectionError("Connection refused")) == ""
    assert reasons.of_redis(ReadOnlyError()) == reasons.REPLICA


@pytest.mark.parametrize("error", [OSError("READONLY"), asyncpg.PostgresError("MOVED"), ValueError("OOM")])
def test_a_word_in_another_error_is_no_code_of_redis(error: Exception) -> None:
    assert reasons.of_redis(error) is None


def test_an_error_of_ours_carries_its_reason_and_no_text_decides() -> None:
    assert reasons.of_database(Unavailable(reasons.STANDBY_AWAY.says)) is None
    assert reasons.of_database(Unavailable("PostgreSQL is away", reasons.STANDBY_AWAY)) == reasons.STANDBY_AWAY
    assert reasons.of_redis(Unfit(" ".join(reasons.CLUSTER))) is None
    assert reasons.of_redis(Unfit(reasons.CLUSTER)) == reasons.CLUSTER
    assert str(Unfit(reasons.CLUSTER)) == " ".join(reasons.CLUSTER)


def test_a_program_s_text_becomes_a_type_in_one_place() -> None:
    busy = migrations._meaning("Error: pq: canceling statement due to lock timeout")
    assert isinstance(busy, migrations.TableInUse)
    assert type(migrations._meaning("Error: pq: syntax error")) is migrations.MigrationError
    assert reasons.describe_chain(busy) == str(busy), "it is an error of ours, like the one that it is a kind of"
