"""The doctor and the services: each fault that is planted in a real one is found, by its name."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from models.postgres import migrations
from scripts.checks import database
from tests import canaries
from tests.deploy.relay import free_port
from tests.plugins.paying import providing
from tests.providers.certificates import pem
from tests.providers.http2 import Reply
from tests.providers.providers import Google, World, providers
from tests.running import Services, place
from tests.scripts.examining import examine
from tests.scripts.program import script
from tests.scripts.valkey import valkey

# PostgreSQL ----------------------------------------------------------------------------------------------------------


def elsewhere(dsn: str, **parts: str) -> str:
    """The address with something else in it: a password, a port or a name."""
    found = urlsplit(dsn)
    password, port = parts.get("password", found.password), parts.get("port", found.port)
    canaries.plant(str(password))
    netloc = f"{found.username}:{password}@{found.hostname}:{port}"
    return urlunsplit(found._replace(netloc=netloc, path=parts.get("path", found.path)))


@pytest.mark.gen_test
async def test_the_reason_of_an_unreachable_database_is_reported(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared:
        for changed, words in (
            ({"password": "wrong-" + secrets.token_hex(8)}, "rejects the user or the password"),
            ({"path": "/nothing"}, "has no database of the name"),
            ({"port": str(free_port())}, "can't be reached (ConnectionRefusedError)"),
        ):
            given = {**shared.environment, "DATABASE_URL": elsewhere(shared.dsn, **changed)}
            found = await examine(given, "database,redis")
            assert words in found["database", "reachable"].says
            states = found.states("database")
            assert states.pop("reachable") == "wrong"
            assert states == dict.fromkeys(database.PARTS[1:], "skipped")
            assert found["redis", "reachable"].state == "good"
        given = {**shared.environment, "DATABASE_URL": "postgres://mimu:hush-hush@nowhere.invalid/mimu"}
        assert "has no address" in (await examine(given, "database"))["database", "reachable"].says


@pytest.mark.gen_test
async def test_faults_of_a_database(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place(services) as shared:
        name = urlsplit(shared.dsn).path[1:]
        connection = await asyncpg.connect(shared.dsn)

        async def found(part: str, **settings: str) -> tuple[str, str]:
            finding = (await examine({**shared.environment, **settings}, "database"))["database", part]
            return finding.state, finding.says

        assert (await examine(shared.environment, "database")).bad() == {}

        last = migrations.versions()[-1]
        await connection.execute("DELETE FROM schema_migrations WHERE version = $1", last)
        assert await found("migrations") == ("wrong", f"The database lacks {last}, so no server starts.")
        await connection.execute("INSERT INTO schema_migrations VALUES ($1), ('9999')", last)
        assert await found("migrations") == ("weak", "The database has 9999 of a newer release.")
        await connection.execute("DELETE FROM schema_migrations WHERE version = '9999'")

        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        assert await found("durability") == ("wrong", "synchronous_commit is off: acknowledged messages may be lost.")
        await connection.execute(f"ALTER DATABASE {name} RESET synchronous_commit")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        assert (await found("primary"))[0] == "wrong"
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

        assert (await found("connections", DATABASE_MAX_CONNECTIONS="40"))[0] == "weak"
        assert (await found("connections", DATABASE_MAX_CONNECTIONS="100"))[0] == "wrong"
        await connection.execute("INSERT INTO instances (id) SELECT gen_random_uuid() FROM generate_series(1, 3)")
        assert await found("connections") == ("wrong", "57 connections for 3 servers with 21 each: too few.")
        await connection.execute("UPDATE instances SET beat_at = now() - interval '1 hour'")
        assert (await found("connections"))[0] == "good"  # they are dead
        await connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 30")
        assert (await found("connections"))[0] == "weak"
        await connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")

        monkeypatch.setattr(database, "IDLE", 0)
        async with connection.transaction():
            await connection.fetchval("SELECT 1")
            await asyncio.sleep(0.01)
            assert (await found("transactions"))[0] == "weak"
        assert (await found("transactions"))[0] == "good"
        monkeypatch.setattr(database, "SLOW_COMMIT", 0.0)
        assert (await found("commits"))[0] == "weak"
        await connection.close()


@pytest.mark.gen_test
async def test_an_empty_database_is_reported_as_empty(services: Services) -> None:
    async with place(services) as shared:
        connection = await asyncpg.connect(shared.dsn)
        await connection.execute("DROP TABLE schema_migrations, instances CASCADE")
        await connection.close()
        found = await examine(shared.environment, "database")
        assert found.bad() == {("database", "migrations"): "The database is empty."}


# Redis ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_faults_of_redis(tmp_path: Path) -> None:
    async with valkey(tmp_path) as (url, redis):
        given = {"REDIS_URL": url}

        async def found(part: str, **settings: str) -> tuple[str, str]:
            finding = (await examine({**given, **settings}, "redis"))["redis", part]
            return finding.state, finding.says

        async def spoiled(part: str, name: str, value: str) -> tuple[str, str]:
            before = (await redis.config_get(name))[name]
            await redis.config_set(name, value)
            said = await found(part)
            await redis.config_set(name, before)
            return said

        assert (await examine(given, "redis")).bad() == {}
        assert set((await examine(given, "redis")).states("redis").values()) == {"good"}
        assert (await spoiled("persistence", "appendonly", "no"))[0] == "weak"
        policy = await spoiled("eviction", "maxmemory-policy", "allkeys-lru")
        assert policy == (
            "wrong",
            "When it is full, Redis drops keys (allkeys-lru): rate limits and queued pushes.",
        )
        assert (await spoiled("memory", "maxmemory", "0"))[0] == "weak"
        full = await spoiled("writes", "maxmemory", "1000")
        assert full == ("wrong", "Redis is full and rejects writes.")
        assert (await spoiled("writes", "min-replicas-to-write", "1"))[1] == "Redis rejects writes (NOREPLICAS)."

        await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert (await found("writes"))[1] == "This is a replica, which accepts no writes."
        await redis.execute_command("REPLICAOF", "NO", "ONE")

        # A user who may less than the server needs.
        canaries.plant("half-a-password")
        for rules, part, state in (
            ("~* &* +@all", "channels", "good"),
            ("~* +@all", "channels", "wrong"),
            ("~other:* &* +@all", "writes", "wrong"),
            ("~* &* +@all -info", "version", "weak"),
        ):
            await redis.execute_command("ACL", "SETUSER", "half", "reset", "on", ">half-a-password", *rules.split())
            narrow = f"redis://half:half-a-password@127.0.0.1:{urlsplit(url).port}/0"
            assert (await found(part, REDIS_URL=narrow))[0] == state, rules

        wrong = f"redis://:{secrets.token_hex(8)}@127.0.0.1:{urlsplit(url).port}/0"
        assert (await found("reachable", REDIS_URL=wrong))[1].startswith("Redis rejects the user or the password")
    assert (await found("reachable"))[1].startswith("Redis can't be reached")


# The local disk ------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_faults_of_the_local_disk(tmp_path: Path) -> None:
    files = tmp_path / "files"
    given = {"MIMU_DATA_DIR": str(tmp_path)}
    found = await examine(given, "storage")
    assert "the server makes it" in found["storage", "folder"].says
    assert not files.exists()
    files.mkdir(mode=0o700)
    found = await examine(given, "storage")
    assert set(found.states("storage").values()) == {"good"}
    assert list(files.iterdir()) == [], "it leaves nothing behind"
    files.chmod(0o755)
    assert (await examine(given, "storage"))["storage", "folder"].state == "weak"
    files.rmdir()
    files.write_text("no folder")
    assert (await examine(given, "storage"))["storage", "folder"].says.endswith("is no folder.")
    files.unlink()
    # A folder that takes no files, also for root: of the kernel's own.
    files.symlink_to("/proc/self")
    found = await examine(given, "storage")
    assert found["storage", "round trip"].state == "wrong"


@pytest.mark.gen_test
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED whose folder it is: only root gives folders away")
async def test_a_folder_of_another_user_is_reported(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir(mode=0o700)
    os.chown(files, 10001, 10001)
    found = await examine({"MIMU_DATA_DIR": str(tmp_path)}, "storage")
    assert found["storage", "owner"].says == f"{files} belongs to user 10001, and this is user 0."


# Push ----------------------------------------------------------------------------------------------------------------


async def pushed(world: World, **changed: str) -> dict[str, str]:
    return {finding.part: finding.says for _, finding in (await examine({**world.settings, **changed}, "push")).all}


@pytest.mark.gen_test
async def test_push_keys_are_shown_to_their_providers(tmp_path: Path) -> None:
    async with providers(tmp_path) as world:
        world.apple.answers.append(Reply(400, {"reason": "BadDeviceToken"}))
        world.google.answers.append(Google.error(400, "INVALID_ARGUMENT"))
        found = await examine({**world.settings, "VAPID_SUBJECT": "mailto:ops@mimu.test"}, "push")
        assert set(found.states("push").values()) == {"good"}
        assert await pushed(world) == {
            "apns": "Apple accepts our key.",
            "fcm": "Google accepts our service account.",
            "webpush": "VAPID_SUBJECT is at example.org, which reaches no operator; some push services reject it.",
        }
        world.assert_right()

        world.google.token_answers.append(Reply(400, {"error": "invalid_grant"}))
        assert (await pushed(world))["fcm"] == "Google issues no access token to our service account (400)."
        world.google.answers.append(Google.error(403, "PERMISSION_DENIED"))
        assert (await pushed(world))["fcm"] == "Our service account may not send here (403 PERMISSION_DENIED)."
        world.apple.answers.append(Reply(400, {"reason": "TopicDisallowed"}))
        assert (await pushed(world))["apns"] == "Apple accepts the key but rejects the app (400 TopicDisallowed)."
        world.apple.answers.append(Reply(503, {"reason": "ServiceUnavailable"}))
        assert "shows nothing about our key" in (await pushed(world))["apns"]

        # A key that is one, and not Apple's.
        (tmp_path / "other.p8").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
        said = await pushed(world, APNS_KEY_FILE=str(tmp_path / "other.p8"))
        assert said["apns"] == "Apple rejects our key (403 InvalidProviderToken)."
        assert said["fcm"] == "Google accepts our service account."
        nowhere = f"https://127.0.0.1:{free_port()}"
        said = await pushed(world, APNS_BASE_URL=nowhere, FCM_BASE_URL=nowhere)
        assert said["apns"] == said["fcm"] == "The provider can't be reached (ConnectError)."


@pytest.mark.gen_test
async def test_a_push_key_that_is_none_makes_the_settings_unusable(tmp_path: Path) -> None:
    broken = tmp_path / "apns.p8"
    broken.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0LWJ5dGVz\n-----END PRIVATE KEY-----\n")
    canaries.plant("c2VjcmV0LWJ5dGVz")
    ended = await script(None, "doctor", APNS_KEY_FILE=str(broken), APNS_KEY_ID="A", APNS_TEAM_ID="B", APNS_TOPIC="C")
    assert ended.code == 78
    assert "✗ values" in ended.out
    assert "APNS_KEY_FILE: not an unencrypted private key in PEM form" in ended.out


# Payments ------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_payment_keys_are_shown_to_their_providers() -> None:
    async with providing() as world:

        async def said(**changed: str) -> dict[str, str]:
            found = await examine({**world.settings, **changed}, "payments")
            return {finding.part: finding.says for _, finding in found.all}

        well = "Our key may read payments."
        assert await said() == {"stripe": well, "btcpay": well}
        refused = "Our key may not read payments ({})."
        canaries.plant("sk_test_another_key", "another-btcpay-key")
        assert await said(STRIPE_SECRET_KEY="sk_test_another_key") == {"stripe": refused.format(401), "btcpay": well}
        assert (await said(BTCPAY_API_KEY="another-btcpay-key"))["btcpay"] == refused.format(401)
        assert (await said(BTCPAY_STORE_ID="AnotherStore"))["btcpay"] == refused.format(403)
        world.mood = "refusing"  # a restricted key that may not read payments
        assert (await said())["stripe"] == refused.format(403)
        world.mood = "away"
        assert await said() == dict.fromkeys(("stripe", "btcpay"), "It can't be reached in time.")
