"""docs/connections.md: a server runs over each connection that it describes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from config import reasons
from models.postgres import migrations
from tests.client import Account
from tests.deploy.connecting import PAGE, PASSWORD, block, blocks, installed, pgbouncer, running, talks, url, valkey
from tests.deploy.nginx import folder
from tests.deploy.relay import free_port
from tests.plugins.chatting import chat, message
from tests.providers.certificates import certified
from tests.replication import SETTINGS, machines
from tests.running import Place, Services, place, serving
from tests.scripts.examining import examine
from tests.waiting import WAIT

SENTINEL = "Sentinel behind HAProxy"


async def judged(shared: Place, data: Path, only: str, but: str = "") -> None:
    """The doctor, which the page says to run, finds nothing wrong; ``but`` is a part that the test itself spoils."""
    given = {**shared.environment, "MIMU_DATA_DIR": str(data)}
    found = await examine(given, only)
    assert [one for name, one in found.all if one.state == "wrong" and one.part != but] == []
    assert found[only, "reachable"].state == "good"


@pytest.mark.gen_test(timeout=60)
async def test_postgresql_behind_pgbouncer(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        with folder() as home:
            async with pgbouncer(home, shared.dsn) as dsn:
                behind = replace(shared, dsn=dsn)
                await talks(behind, tmp_path)
                await judged(behind, tmp_path, "database")
    named = block("PostgreSQL behind PgBouncer", "[pgbouncer]", {}).partition("ignore_startup_parameters")[2].strip()
    refused = reasons.of_database(OSError("unsupported startup parameter: jit"))
    assert refused is not None
    assert f"ignore_startup_parameters {named};" in refused.do, "the reason says what the page says"


@pytest.mark.gen_test(timeout=60)
async def test_postgresql_over_tls(services: Services, tmp_path: Path) -> None:
    """Which PgBouncer ends: the embedded PostgreSQL speaks none."""
    title = "PostgreSQL over TLS"
    async with place(services) as shared:
        with folder() as home:
            authority, _ = certified(home, names=("localhost",))
            (home / "server.pem").chmod(0o644)
            lines = [f"client_tls_{name} = {home / 'server.pem'}" for name in ("key_file", "cert_file")]
            async with pgbouncer(home, shared.dsn, "client_tls_sslmode = require", *lines) as plain:
                parts = urlsplit(plain)
                assert parts.password
                there = {"PASSWORD": parts.password, "/etc/mimu/db-ca.pem": str(authority)}
                dsn = url(title, {**there, "db.example.org:5432": f"localhost:{parts.port}"})
                await talks(replace(shared, dsn=dsn), tmp_path)
                await migrations.migrate(dsn)  # by dbmate, if any were due
                # The name is compared, and who signed it.
                by_number = url(title, {**there, "db.example.org:5432": f"127.0.0.1:{parts.port}"})
                found = await examine({**shared.environment, "DATABASE_URL": by_number}, "database")
                assert "certificate is not trusted" in found["database", "reachable"].says
                (other := home / "other").mkdir()
                stranger, _ = certified(other)
                found = await examine(
                    {**shared.environment, "DATABASE_URL": dsn.replace(str(authority), str(stranger))}, "database"
                )
                assert "certificate is not trusted" in found["database", "reachable"].says


@pytest.mark.gen_test(timeout=60)
async def test_postgresql_through_a_unix_socket(services: Services, tmp_path: Path) -> None:
    title = "PostgreSQL through a Unix socket"
    with folder() as home:
        home.chmod(0o777)
        before = SETTINGS["unix_socket_directories"]
        SETTINGS["unix_socket_directories"] = str(home)
        try:
            async with machines(home / "data") as made:
                (home / "data").mkdir()
                primary = await made.primary()
                trusting = primary.data / "pg_hba.conf"
                # PostgreSQL asks the system for the client's user; the map lets root, who runs the tests, in as mimu.
                trusting.write_text("local all all peer map=tests\n" + trusting.read_text())
                (primary.data / "pg_ident.conf").write_text("tests /^.*$ mimu\n")
                await primary.value("SELECT pg_reload_conf()")
                await asyncio.sleep(0.2)
                dsn = url(title, {"/run/postgresql": f"{home}&port={primary.port}"})
                assert await migrations.migrate(dsn)
                async with place(services) as shared:
                    await talks(replace(shared, dsn=dsn), tmp_path)
                    await judged(replace(shared, dsn=dsn), tmp_path, "database", but="durability")
        finally:
            SETTINGS["unix_socket_directories"] = before


@pytest.mark.gen_test(timeout=60)
async def test_redis_over_tls(services: Services, tmp_path: Path) -> None:
    title, port = "Redis over TLS", free_port()
    authority, _ = certified(tmp_path, names=("localhost",))
    files = {name: str(tmp_path / "server.pem") for name in ("/etc/redis/tls/server.pem", "/etc/redis/tls/server.key")}
    files |= {"/etc/redis/tls/ca.pem": str(authority), "6380": str(port)}
    lines = block(title, "tls-port", files) + f"bind 127.0.0.1\nrequirepass {PASSWORD}"
    program = Path(installed("redis-server"))  # the embedded Valkey speaks no TLS
    async with valkey(tmp_path / "redis", port, lines, program=program), place(services) as shared:
        there = {"PASSWORD": PASSWORD, "redis.example.org:6380": f"localhost:{port}"}
        over = replace(shared, redis=url(title, {**there, "/etc/mimu/redis-ca.pem": str(authority)}))
        await talks(over, tmp_path / "data")
        await judged(over, tmp_path / "data", "redis")
        by_number = over.redis.replace("localhost", "127.0.0.1")
        found = await examine({**over.environment, "REDIS_URL": by_number}, "redis")
        assert "certificate of Redis is not trusted" in found["redis", "reachable"].says


@pytest.mark.gen_test(timeout=60)
async def test_redis_through_a_unix_socket(services: Services) -> None:
    with folder() as home:
        port, path = free_port(), home / "redis.sock"
        lines = f"bind 127.0.0.1\nport {port}\nunixsocket {path}\nunixsocketperm 770\nrequirepass {PASSWORD}"
        async with valkey(home / "valkey", port, lines), place(services) as shared:
            there = {"PASSWORD": PASSWORD, "/run/redis/redis-server.sock": str(path)}
            over = replace(shared, redis=url("Redis through a Unix socket", there))
            await talks(over, home / "data")
            await judged(over, home / "data", "redis")


@pytest.mark.gen_test(timeout=60)
async def test_a_redis_user_with_few_rights(services: Services, tmp_path: Path) -> None:
    title, port = "A Redis user with few rights", free_port()
    user = block(title, "user mimu", {"PASSWORD": PASSWORD})
    lines = f"bind 127.0.0.1\nport {port}\nuser default on >{PASSWORD}-root ~* &* +@all\n{user}"
    async with valkey(tmp_path / "valkey", port, lines), place(services) as shared:
        over = replace(shared, redis=url(title, {"PASSWORD": PASSWORD, "6379": str(port)}))
        await talks(over, tmp_path / "data")
        await judged(over, tmp_path / "data", "redis")
        async with Redis.from_url(over.redis.replace("mimu:", "default:").replace("@", "-root@")) as root:
            assert await root.acl_log() == []
        async with Redis.from_url(over.redis) as mimu:
            for words in ("GET theirs", "PUBLISH theirs x", "KEYS *", "FLUSHALL", "CONFIG GET *", "ACL LIST", "SAVE"):
                with pytest.raises(NoPermissionError):
                    await mimu.execute_command(*words.split())


@contextlib.asynccontextmanager
async def sentinels(home: Path, ports: list[int]) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """Two Redis, three Sentinels and HAProxy as the page has them; its address, and the first Redis."""
    one, two, a, b, c, front = ports

    def redis(port: int, more: str = "") -> str:
        changes = {"bind 10.0.0.1 127.0.0.1": "bind 127.0.0.1", "6379": str(port), "PASSWORD": PASSWORD}
        return block(SENTINEL, "masterauth", changes) + more

    def sentinel(port: int) -> str:
        here = {"26379": str(port), "10.0.0.1 6379": f"127.0.0.1 {one}", "PASSWORD": PASSWORD}
        return "bind 127.0.0.1\n" + block(SENTINEL, "sentinel monitor", {**here, "mimu 5000": "mimu 500"})

    changes = {"AUTH PASSWORD": f"AUTH {PASSWORD}", "inter 1s": "inter 200ms", "127.0.0.1:6379": f"127.0.0.1:{front}"}
    for address, port in (("10.0.0.1", one), ("10.0.0.2", two)):
        escaped = address.replace(".", r"\.")
        changes[rf"{escaped}\r\n\$[0-9]+\r\n6379"] = rf"127\.0\.0\.1\r\n\$[0-9]+\r\n{port}"
        changes[f"{address}:6379"] = f"127.0.0.1:{port}"
    changes |= {f"10.0.0.{number}:26379": f"127.0.0.1:{port}" for number, port in enumerate((a, b, c), 1)}
    (home / "haproxy.cfg").write_text(block(SENTINEL, "use_backend", changes))
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(valkey(home / "one", one, redis(one)))
        await stack.enter_async_context(valkey(home / "two", two, redis(two, f"replicaof 127.0.0.1 {one}\n")))
        for name, port in (("a", a), ("b", b), ("c", c)):
            await stack.enter_async_context(valkey(home / name, port, sentinel(port), "--sentinel"))
        await stack.enter_async_context(running(installed("haproxy"), "-db", "-f", home / "haproxy.cfg", port=front))
        yield url(SENTINEL, {"PASSWORD": PASSWORD, "6379": str(front)}), first


async def primary(address: str, seconds: float = 15) -> int:
    """The port of the Redis that is reached."""
    async with asyncio.timeout(seconds):
        while True:
            async with Redis.from_url(address, socket_connect_timeout=1, socket_timeout=1) as redis:
                with contextlib.suppress(RedisError, OSError):
                    return int((await redis.info("server"))["tcp_port"])
            await asyncio.sleep(0.1)


@pytest.mark.gen_test(timeout=90)
async def test_sentinel_behind_haproxy(services: Services) -> None:
    installed("haproxy")
    with folder() as home:
        ports = [free_port() for _ in range(6)]
        async with place(services) as shared, sentinels(home, ports) as (address, first):
            assert await primary(address) == ports[0]
            over, data = replace(shared, redis=address), {"MIMU_DATA_DIR": str(home / "data")}
            await talks(over, home / "data")
            async with serving(over, **data) as one, serving(over, **data) as two:
                alice, bob = [await Account(one_time=0).register(server.url) for server in (one, two)]
                made = await chat(alice, bob, title="Friends")
                async with bob.socket() as listening:
                    first.kill()
                    first.wait(10)
                    assert await primary(address) == ports[1]
                    async with asyncio.timeout(WAIT):
                        while not (one.app.bus.up and two.app.bus.up):
                            await asyncio.sleep(0.1)
                    sent = await alice.post(f"/chats/{made['id']}/messages", message("after"))
                    await listening.expect("message_new", seq=sent.json["seq"])
                # The former one comes back as the primary that it was, and is not asked.
                conf = (home / "one" / "valkey.conf").read_text()
                async with valkey(home / "again", ports[0], conf):
                    ends = time.monotonic() + 2
                    while time.monotonic() < ends:
                        assert await primary(address) == ports[1]


def test_every_example_of_the_page_is_run_here() -> None:
    """What a part shows stands in a test by its heading."""
    titles = [line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    tests = Path(__file__).read_text() + Path(__file__).with_name("connecting.py").read_text()
    elsewhere = {"Several hosts"}  # tests/test_failover.py
    assert [title for title in titles if blocks(title) and f'"{title}"' not in tests and title not in elsewhere] == []
