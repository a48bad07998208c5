"""The doctor on a whole installation: it complains of nothing, and names each of 25 faults with its remedy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config import embedded, last_backup
from models.postgres import migrations
from tests import canaries
from tests.deploy import nginx
from tests.deploy.relay import SHIPPED, relaying
from tests.scripts.examining import Found
from tests.scripts.installation import COTURN, Installation, installation
from tests.scripts.test_reasons import pgbouncer
from tests.scripts.valkey import sentinel, valkey

# What a tests' machine is like, and what nothing is set up for here: not for the doctor's findings to be judged by.
MACHINE = {("machine", part) for part in ("user", "packages", "open files", "memory", "disk", "clock")} | {
    ("machine", "coturn's file"),
    ("machine", "coturn's start"),
    ("storage", "room"),
}
SLOW = {("redis", "latency"), ("database", "commits"), ("public", "health")}  # beside other tests
EVERYTHING = "settings,machine,database,redis,storage,turn,nginx,public"


@dataclass
class Planted:
    """What a fault changed: settings, or the nginx to go by."""

    settings: dict[str, str]
    proxy: nginx.Proxy | None = None


Plant = Callable[[Installation], contextlib.AbstractAsyncContextManager[Planted]]


@dataclass(frozen=True)
class Fault:
    """A fault, how to plant it, and the expected finding."""

    name: str
    plant: Plant
    examination: str
    part: str
    says: str
    do: str


# How they are planted -----------------------------------------------------------------------------------------------


def with_mode(path: Callable[[Installation], list[Path]], mode: int) -> Plant:
    """Files or folders of another mode."""

    @contextlib.asynccontextmanager
    async def plant(here: Installation) -> AsyncIterator[Planted]:
        before = {one: one.stat().st_mode & 0o777 for one in path(here)}
        for one in before:
            one.chmod(mode | (0o111 if one.is_dir() else 0))
        try:
            yield Planted({})
        finally:
            for one, was in before.items():
                one.chmod(was)

    return plant


def with_line(line: str, old: str, new: str) -> Plant:
    """Another nginx with one changed line (``proxy_read_timeout {}``) in its configuration."""

    @contextlib.asynccontextmanager
    async def plant(here: Installation) -> AsyncIterator[Planted]:
        with here.fronted({line.format(old): line.format(new)}) as proxy:
            yield Planted({}, proxy)

    return plant


def with_sql(spoil: str, mend: str, *, superuser: bool = False) -> Plant:
    """A database in which a statement was run."""

    @contextlib.asynccontextmanager
    async def plant(here: Installation) -> AsyncIterator[Planted]:
        run = here.superuser if superuser else here.database
        await run(spoil)
        here.reload()
        await asyncio.sleep(0.2)
        try:
            yield Planted({})
        finally:
            await run(mend)
            here.reload()
            await asyncio.sleep(0.2)

    return plant


def with_redis(*command: str, options: tuple[str, ...] = ()) -> Plant:
    """Another Valkey on which a command was run."""

    @contextlib.asynccontextmanager
    async def plant(here: Installation) -> AsyncIterator[Planted]:
        folder = Path(tempfile.mkdtemp(dir=here.home))
        async with valkey(folder, *options) as (url, redis):
            await redis.execute_command(*command)
            yield Planted({"REDIS_URL": url})

    return plant


@contextlib.asynccontextmanager
async def with_a_sentinel(here: Installation) -> AsyncIterator[Planted]:
    folder = Path(tempfile.mkdtemp(dir=here.home))
    async with sentinel(folder) as url:
        yield Planted({"REDIS_URL": url})


@contextlib.asynccontextmanager
async def without_the_second_server(here: Installation) -> AsyncIterator[Planted]:
    await here.second.stop()
    yield Planted({})  # it stays dead: this is the last fault


@contextlib.asynccontextmanager
async def without_backups_for_two_days(here: Installation) -> AsyncIterator[Planted]:
    note = Path(here.settings["MIMU_DATA_DIR"]) / last_backup.NAME
    before = note.read_text()
    made_at = (datetime.now(UTC) - timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    note.write_text(json.dumps({**json.loads(before), "made_at": made_at}))
    yield Planted({})
    note.write_text(before)


@contextlib.asynccontextmanager
async def with_few_connections(here: Installation) -> AsyncIterator[Planted]:
    main = here.proxy.folder / "nginx.conf"
    before = main.read_text()
    main.write_text(before.replace("worker_connections 32768;", "worker_connections 768;"))  # as Debian has it
    here.proxy.process.send_signal(signal.SIGHUP)
    yield Planted({})
    main.write_text(before)


@contextlib.asynccontextmanager
async def with_a_pooler(here: Installation) -> AsyncIterator[Planted]:
    async with pgbouncer(here.place) as dsn:
        yield Planted({"DATABASE_URL": dsn})


@contextlib.asynccontextmanager
async def with_a_full_disk(here: Installation) -> AsyncIterator[Planted]:
    folder = here.home / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0777", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("NOT TESTED that a full disk is named: this user may mount no file system (run the tests as root)")
    try:
        async with embedded.postgres(folder) as dsn:
            await migrations.migrate(dsn)
            with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    continue
            yield Planted({"DATABASE_URL": dsn})
            (folder / "filler").unlink()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.asynccontextmanager
async def with_another_secret(here: Installation) -> AsyncIterator[Planted]:
    secret = "another-secret-0123456789-abcdefghijklmnop"
    canaries.plant(secret)
    yield Planted({"TURN_SECRET": secret})


@contextlib.asynccontextmanager
async def with_an_open_relay(here: Installation) -> AsyncIterator[Planted]:
    secret = here.settings["TURN_SECRET"]
    conf = re.sub(r"(?m)^denied-peer-ip=(10|169|172)\..*\n", "", SHIPPED.read_text())
    conf = re.sub(r"(?m)^#static-auth-secret=.*$", f"static-auth-secret={secret}", conf)
    async with relaying(COTURN, conf=conf) as relay:
        yield Planted({"TURN_PORT": str(relay.port), "TURN_TLS_PORT": "0"})


# What they are -------------------------------------------------------------------------------------------------------

LAST = migrations.versions()[-1]
HOST, SCHEME = "proxy_set_header Host {}", "proxy_set_header X-Forwarded-Proto {}"
UPGRADE, READ, WHOLE = "proxy_set_header Upgrade {}", "proxy_read_timeout {}", "proxy_request_buffering {}"
ISOLATION = "default_transaction_isolation"

# Its name, how it is planted, examination and part of the finding, words of what it says, words of what is to be done.
FAULTS = [
    Fault(
        "the env file is open to all", with_mode(lambda here: [here.env_file], 0o644),
        "settings", "files", "is open to more than its owner (0644)", "chmod 600",
    ),
    Fault(
        "backups have stopped", without_backups_for_two_days,
        "machine", "backup", "The last backup is 48 hours old.", "journalctl --unit mimu-backup",
    ),
    Fault(
        "backups can be read by all", with_mode(lambda here: [here.shelf, *here.shelf.glob("mimu-*")], 0o644),
        "machine", "backup access", "can be read by every user of this machine", "chmod -R o=",
    ),
    Fault(
        "archives of keys can be read by all", with_mode(lambda here: [here.archives, *here.archives.iterdir()], 0o644),
        "machine", "backup keys", "can sign tokens for anybody", "chmod 600",
    ),
    Fault(
        "the TLS key can be read by all", with_mode(lambda here: [here.proxy.folder / "privkey.pem"], 0o644),
        "nginx", "key", "privkey.pem can be read by every user", "chmod o=",
    ),
    Fault(
        "the proxy passes a wrong Host", with_line(HOST, "$host$mimu_port", "$proxy_host"),
        "public", "host", "its name is mimu", "proxy_set_header Host",
    ),
    Fault(
        "the proxy passes no X-Forwarded-Proto", with_line(SCHEME, "$scheme", '""'),
        "public", "scheme", "believes that clients use http:", "proxy_set_header X-Forwarded-Proto $scheme",
    ),
    Fault(
        "the proxy ends sockets before they are pinged", with_line(READ, "90s", "20s"),
        "nginx", "sockets", "20 s (proxy_read_timeout), and is pinged every 25 s", "proxy_read_timeout 90s",
    ),
    Fault(
        "the proxy has too few connections", with_few_connections,
        "nginx", "connections", "worker_connections is 768: 384 sockets", "worker_connections 32768",
    ),
    Fault(
        "the proxy passes no upgrades", with_line(UPGRADE, "$mimu_upgrade", '""'),
        "public", "upgrade", "a handshake into an ordinary request", "pass Upgrade and Connection",
    ),
    Fault(
        "the proxy collects uploads", with_line(WHOLE, "off", "on"),
        "public", "uploads", "proxy buffers uploads", "proxy_request_buffering off",
    ),
    Fault(
        "the database lacks a migration",
        with_sql(
            f"DELETE FROM schema_migrations WHERE version = '{LAST}'",
            f"INSERT INTO schema_migrations VALUES ('{LAST}')",
        ),
        "database", "migrations", f"lacks {LAST}", "python -m scripts.migrate",
    ),
    Fault(
        "commits are not on the disk",
        with_sql("ALTER ROLE mimu SET synchronous_commit = off", "ALTER ROLE mimu RESET synchronous_commit"),
        "database", "durability", "synchronous_commit is off", "ALTER ROLE",
    ),
    Fault(
        "the role has another isolation",
        with_sql(f"ALTER ROLE mimu SET {ISOLATION} = 'serializable'", f"ALTER ROLE mimu RESET {ISOLATION}"),
        "database", "isolation", "Transactions are serializable", f"ALTER ROLE mimu RESET {ISOLATION}",
    ),
    Fault(
        "the synchronous standby is away",
        with_sql(
            "ALTER SYSTEM SET synchronous_standby_names = 'missing'",
            "ALTER SYSTEM RESET synchronous_standby_names",
            superuser=True,
        ),
        "database", "replication", "The synchronous standby is away", "remove it from synchronous_standby_names",
    ),
    Fault(
        "an idle slot holds WAL",
        with_sql(
            "SELECT pg_create_physical_replication_slot('gone', true)",
            "SELECT pg_drop_replication_slot('gone')",
            superuser=True,
        ),
        "database", "replication", "The slot gone is idle, and holds", "pg_drop_replication_slot('gone')",
    ),
    Fault(
        "PgBouncer refuses what the servers send", with_a_pooler,
        "database", "as the server", "PgBouncer rejects", "ignore_startup_parameters = ",
    ),
    Fault(
        "the disk of PostgreSQL is full", with_a_full_disk,
        "database", "room", "The disk of PostgreSQL is full.", "Free space on it",
    ),
    Fault(
        "Redis is a read-only replica", with_redis("REPLICAOF", "127.0.0.1", "1"),
        "redis", "writes", "This is a replica, which accepts no writes.", "Set REDIS_URL to the primary.",
    ),
    Fault(
        "Redis is a node of a Cluster",
        with_redis("CLUSTER", "ADDSLOTSRANGE", "0", "16383", options=("cluster-enabled yes",)),
        "redis", "version", "is a cluster", "Use a single Redis, or a primary with replicas.",
    ),
    Fault(
        "REDIS_URL has the port of a Sentinel", with_a_sentinel,
        "redis", "version", "This is the port of a Sentinel", "usually port 6379, not 26379",
    ),
    Fault(
        "Redis drops keys when it is full", with_redis("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
        "redis", "eviction", "drops keys (allkeys-lru)", "maxmemory-policy noeviction",
    ),
    Fault(
        "coturn has another secret", with_another_secret,
        "turn", "udp", "rejects our credentials", "python -m scripts.turnserver_conf",
    ),
    Fault(
        "coturn relays into private networks", with_an_open_relay,
        "turn", "peers", "It relays to 10.0.0.1", "denied-peer-ip",
    ),
    Fault(
        "the second server is dead", without_the_second_server,
        "nginx", "servers", "No server answers at 127.0.0.1:", "systemctl restart mimu@",
    ),
]  # fmt: skip


def missed(fault: Fault, found: Found) -> str | None:
    """The difference between the findings and the expected one; None if there is none."""
    named = [one for examination, one in found.all if (examination, one.part) == (fault.examination, fault.part)]
    for one in named:
        if one.state in ("weak", "wrong") and fault.says in one.says and fault.do in one.do:
            return None
    return f"{fault.name}: {named}"


def complaints(found: Found) -> dict[tuple[str, str], str]:
    """The findings about a good installation, without those about this machine."""
    bad = {key: says for key, says in found.bad().items() if key not in MACHINE}
    return {key: says for key, says in bad.items() if key not in SLOW or found[key].state == "wrong"}


@pytest.mark.gen_test(timeout=120)
async def test_a_good_installation_and_each_of_25_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(FAULTS) == len({fault.name for fault in FAULTS}) == 25
    async with installation(monkeypatch) as here:
        found = await here.run_examination(EVERYTHING, {})
        if complaints(found):  # other tests may keep the machine from answering in time
            found = await here.run_examination(EVERYTHING, {})
        assert complaints(found) == {}
        good = [
            ("machine", "backup"), ("machine", "backup access"), ("machine", "backup keys"), ("nginx", "servers"),
            ("nginx", "sockets"), ("nginx", "connections"), ("nginx", "key"), ("public", "host"), ("public", "scheme"),
            ("database", "replication"), ("database", "instances"), ("database", "isolation"), ("settings", "files"),
        ]  # fmt: skip
        assert {key: found[key].state for key in good} == dict.fromkeys(good, "good")
        result = []
        for fault in FAULTS:
            async with fault.plant(here) as planted:
                found = await here.run_examination(fault.examination, planted.settings, planted.proxy)
                result.append(missed(fault, found))
        assert [one for one in result if one] == []
        assert (await here.run_examination("database", {}, instances=3))["database", "instances"].state == "wrong"
