"""``python -m scripts.users``: what operators see of an account and do to it, and what its owner notices."""

from __future__ import annotations

import asyncio
import base64
import getpass
import hashlib
import json
import time
from typing import Any
from uuid import uuid4

import pytest

from models import sessions
from models.database import Database
from tests.client import Account, Answer, ask
from tests.running import Services, connected, periodic, place, serving
from tests.scripts.program import script
from tests.waiting import SLACK, WAIT

CHANGES = ("suspend", "unsuspend", "end-sessions", "delete")


async def second(account: Account) -> Account:
    """Another device of the account's."""
    device = Account(
        account.public_id, account.password, identity=account.identity, signing=account.signing, url=account.url
    )
    assert (await device.login()).status == 200
    return device


async def refresh(account: Account, url: str | None = None) -> Answer:
    return await ask(url or account.url, "POST", "/auth/refresh", {"refresh_token": account.refresh_token})


async def reset(account: Account, password: str) -> Answer:
    """Reset the password as its owner can, with a signed challenge."""
    identity_key = base64.b64encode(account.identity_key).decode()
    body = {"identity_key": identity_key, "new_password": password}
    challenge = (await ask(account.url, "POST", "/auth/reset-password", body)).json["challenge"]
    digest = hashlib.sha256(password.encode()).hexdigest()
    message = f"mimu-reset-v1|{identity_key}|{challenge}|{digest}".encode()
    signature = base64.b64encode(account.signing.sign(message).signature).decode()
    signed = {**body, "challenge": challenge, "signature": signature}
    return await ask(account.url, "POST", "/auth/reset-password", signed)


async def waiting(connection: Any) -> None:
    """Somebody in this database waits for a lock."""
    async with asyncio.timeout(WAIT):
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.02)


async def audited(connection: Any) -> list[tuple[str, ...]]:
    rows = await connection.fetch("SELECT actor, action, user_id::text, public_id FROM audit_log ORDER BY id")
    return [tuple(row) for row in rows]


# Show -----------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_show_tells_what_helps_and_nothing_secret(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server, connected(shared) as db:
        alice = await Account(one_time=3).register(server.url, display_name="Alice")
        headers = {"X-Platform": "ios", "X-Client-Version": "1.2.3"}
        credentials = {"public_id": alice.public_id, "password": alice.password}
        await ask(server.url, "POST", "/auth/login", credentials, headers=headers)
        async with alice.socket():
            async with asyncio.timeout(WAIT):
                while not await db.fetchval("SELECT is_online FROM users"):
                    await asyncio.sleep(0.02)
            shown = await script(shared, "users", "show", alice.public_id.upper(), "--json")
        assert (shown.code, shown.err) == (0, "")
        account = shown.json
        assert set(account) == {
            *("user_id", "public_id", "created_at", "is_online", "last_seen", "suspended_at", "sessions"),
            *("one_time_prekeys", "kyber_prekeys", "signed_prekey_created_at"),
        }
        assert (account["user_id"], account["public_id"]) == (alice.user_id, alice.public_id)
        assert (account["is_online"], account["suspended_at"]) == (True, None)
        assert (account["one_time_prekeys"], account["kyber_prekeys"]) == (3, 0)
        assert {(session["platform"], session["client_version"]) for session in account["sessions"]} == {
            (None, None),
            ("ios", "1.2.3"),
        }
        text = (await script(shared, "users", "show", alice.public_id)).out
        assert f"public_id: {alice.public_id}\n" in text
        assert "sessions: 2\n" in text
        assert "platform ios, client_version 1.2.3" in text
        row = await db.fetchrow("SELECT password_hash, identity_key, signing_public_key, fingerprint FROM users")
        hashes = await db.fetch("SELECT token_hash FROM sessions")
        for value in (*row, *(found[0] for found in hashes)):
            for form in (value,) if isinstance(value, str) else (value.hex(), base64.b64encode(value).decode()):
                assert form not in text + shown.out
        assert await audited(db) == [], "to look is no change"


# Suspend --------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_suspended_account_is_out_at_once_and_can_not_come_back(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two, connected(shared) as db:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        tablet = await second(alice)
        spent = alice.refresh_token
        alice.refresh_token = (await refresh(alice)).json["refresh_token"]
        async with alice.socket(two.url) as a, tablet.socket(one.url) as t, bob.socket(two.url) as b:
            done = await script(shared, "users", "suspend", alice.public_id, "--json")
            ended = time.monotonic()
            assert (done.code, done.err) == (0, "")
            assert done.json == {
                "action": "suspend",
                "user_id": alice.user_id,
                "public_id": alice.public_id,
                "changed": True,
                "sessions_ended": 2,
            }
            for socket in (a, t):
                assert (await socket.expect("closed"))["code"] == 4401
            assert time.monotonic() - ended < 1 + SLACK
            await b.silent(0.1)
        for url in (one.url, two.url):
            for device in (alice, tablet):
                assert (await ask(url, "GET", "/users/me", token=device.token)).status == 401
                answer = await refresh(device, url)
                assert (answer.status, answer.code) == (403, "account_suspended")
            assert (await ask(url, "GET", "/users/me", token=bob.token)).status == 200
        alice.refresh_token = spent
        assert (await refresh(alice)).code == "account_suspended"
        alice.refresh_token = spent[:32] + "0" * 64
        assert ((await refresh(alice)).status, (await refresh(alice)).code) == (401, "unauthorized")

        # Login shows the suspension only with the right password.
        answer = await alice.login()
        assert (answer.status, answer.code) == (403, "account_suspended")
        wrong = Account(alice.public_id, "a wrong password", url=one.url)
        guessed = await wrong.login()
        assert (guessed.status, guessed.code) == (401, "invalid_credentials")
        stranger = await Account("u_unknown", "a wrong password", url=one.url).login()
        same = [json.dumps({**answer.json, "request_id": ""}) for answer in (guessed, stranger)]
        assert same[0] == same[1]

        # A reset shows it only with the right keys; it changes nothing.
        answer = await reset(alice, "another password")
        assert (answer.status, answer.code) == (403, "account_suspended")
        forger = Account(identity=alice.identity, url=one.url)
        assert (await reset(forger, "another password")).code == "invalid_proof"
        assert (
            await db.fetchval("SELECT count(*) FROM sessions WHERE revoked_at IS NULL AND user_id <> $1", bob.user_id)
            == 0
        )
        assert await db.fetchval("SELECT count(*) FROM spent_challenges") == 0

        shown = (await script(shared, "users", "show", alice.public_id, "--json")).json
        assert shown["suspended_at"] is not None
        assert shown["sessions"] == []

        again = await script(shared, "users", "suspend", alice.public_id, "--json")
        assert (again.code, again.json["changed"], again.json["sessions_ended"]) == (0, False, 0)
        back = await script(shared, "users", "unsuspend", alice.public_id, "--actor", "Olga from support", "--json")
        assert (back.code, back.json["changed"]) == (0, True)
        assert (await refresh(tablet)).status == 401, "what has ended stays ended"
        assert (await alice.login()).status == 200, "with the old password"
        assert (await alice.get("/users/me")).status == 200
        assert await audited(db) == [
            (getpass.getuser(), "suspend", alice.user_id, alice.public_id),
            ("Olga from support", "unsuspend", alice.user_id, alice.public_id),
        ]


@pytest.mark.gen_test
async def test_a_login_during_a_suspension_leaves_no_session(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server, connected(shared) as db:
        alice = await Account().register(server.url)
        # The password is right and checked, and then the suspension comes: the login waits for it.
        answer = None
        while answer is None or answer.status == 503:  # on a busy machine it may wait for longer than a request may
            async with db.transaction():
                await db.execute("UPDATE users SET suspended_at = now()")
                login = asyncio.create_task(alice.login())
                await waiting(db)
            answer = await login
            await db.execute("UPDATE users SET suspended_at = NULL")
        assert (answer.status, answer.code) == (403, "account_suspended")

        # The other way round the suspension waits for the login, and ends its session.
        async with Database(shared.dsn, 2).open() as own, own.transaction():
            user_id = await db.fetchval("SELECT id FROM users")
            assert await sessions.open_(own, uuid4(), user_id, b"h" * 32, None, None)
            suspension = asyncio.create_task(script(shared, "users", "suspend", alice.public_id, "--json"))
            await waiting(db)
        assert (await suspension).json["sessions_ended"] == 2
        assert await db.fetchval("SELECT count(*) FROM sessions WHERE revoked_at IS NULL") == 0


@pytest.mark.gen_test(timeout=120)
async def test_logins_and_suspensions_at_once_leave_no_session(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server, connected(shared) as db:
        alice = await Account().register(server.url)
        for _ in range(3):
            logins = [asyncio.create_task(second(alice)) for _ in range(20)]
            await asyncio.sleep(0.1)
            assert (await script(shared, "users", "suspend", alice.public_id)).code == 0
            await asyncio.gather(*logins, return_exceptions=True)
            assert await db.fetchval("SELECT count(*) FROM sessions WHERE revoked_at IS NULL") == 0
            assert (await script(shared, "users", "unsuspend", alice.public_id)).code == 0


# End sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_ending_sessions_signs_out_everywhere_and_login_is_open(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two, connected(shared) as db:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        tablet = await second(alice)
        async with alice.socket(one.url) as a, tablet.socket(two.url) as t, bob.socket(one.url) as b:
            done = await script(shared, "users", "end-sessions", alice.public_id, "--json")
            assert (done.code, done.json["sessions_ended"]) == (0, 2)
            for socket in (a, t):
                assert (await socket.expect("closed"))["code"] == 4401
            await b.silent(0.1)
        assert (await refresh(tablet)).status == 401
        assert (await alice.login()).status == 200
        text = await script(shared, "users", "end-sessions", alice.public_id)
        assert "sessions_ended: 1\n" in text.out
        nothing = await script(shared, "users", "end-sessions", alice.public_id, "--json")
        assert (nothing.code, nothing.json["changed"]) == (0, False)
        assert [line[1] for line in await audited(db)] == ["end-sessions", "end-sessions"]


@pytest.mark.gen_test
@pytest.mark.parametrize("redis", ["", "redis://:never-shown@127.0.0.1:1/0"], ids=["unset", "away"])
async def test_without_redis_servers_ask_the_database(services: Services, redis: str) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            done = await script(shared, "users", "end-sessions", alice.public_id, REDIS_URL=redis)
            assert done.code == 0
            assert "within ten seconds" in done.err
            await periodic(server, "ended_sessions")()
            assert (await socket.expect("closed"))["code"] == 4401


# Delete -----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_delete_asks_first_and_erases_what_its_owner_could(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server, connected(shared) as db:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        fingerprint = (await bob.get(f"/users/{alice.public_id}")).json["fingerprint"]
        verified = {"verified_fingerprint": fingerprint, "method": "manual"}
        assert (await bob.post(f"/users/{alice.public_id}/verify", verified)).status in (200, 201)
        await db.execute("INSERT INTO spent_prekeys VALUES ($1::text::uuid, 'one_time', '{[900,901)}')", alice.user_id)
        for given in ("", "yes\n", f"{bob.public_id}\n"):
            kept = await script(shared, "users", "delete", alice.public_id.upper(), given=given)
            assert (kept.code, kept.out) == (1, "")
            assert f"erases {alice.public_id} for ever" in kept.err
            assert "nothing was changed" in kept.err
        assert (await alice.get("/users/me")).status == 200
        async with alice.socket() as socket:
            done = await script(shared, "users", "delete", alice.public_id, "--json", given=f"{alice.public_id}\n")
            assert (done.code, done.json["changed"], done.json["sessions_ended"]) == (0, True, 1)
            assert (await socket.expect("closed"))["code"] == 4401
        referring = await db.fetch(
            """SELECT c.conrelid::regclass::text AS name, a.attname AS field
               FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
               WHERE c.contype = 'f' AND c.confrelid = 'users'::regclass"""
        )
        for table in referring:
            where = f"{table['name']} WHERE {table['field']} = $1::text::uuid"
            assert await db.fetchval(f"SELECT count(*) FROM {where}", alice.user_id) == 0, where
        assert (await bob.get(f"/users/{alice.public_id}")).status == 404
        assert (await alice.login()).code == "invalid_credentials"
        assert await audited(db) == [(getpass.getuser(), "delete", alice.user_id, alice.public_id)]

        gone = await script(shared, "users", "delete", alice.public_id, "--yes")
        assert (gone.code, gone.err) == (1, "there is no such user\n")
        assert (await script(shared, "users", "delete", bob.public_id, "--yes")).code == 0
        again = Account(identity=alice.identity)
        await again.register(server.url, signed_prekey=again.libsignal_prekey(1))


# Dry runs, exit codes -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_dry_run_foretells_and_changes_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server, connected(shared) as db:
        alice = await Account().register(server.url)
        await second(alice)

        async def contents() -> list[Any]:
            tables = ("users", "sessions", "ended_sessions", "audit_log", "one_time_prekeys")
            return [await db.fetch(f"SELECT t::text FROM {table} t ORDER BY 1") for table in tables]

        before = await contents()
        async with alice.socket() as socket:
            dry_runs = {}
            for command in CHANGES:
                dry = await script(shared, "users", command, alice.public_id, "--dry-run", "--json")
                assert (dry.code, dry.err) == (0, "")
                dry_runs[command] = dry.json
            await socket.silent(0.2)
        async with asyncio.timeout(WAIT):  # presence is written a moment after the socket closes
            while await db.fetchval("SELECT is_online FROM users"):
                await asyncio.sleep(0.05)
        after = await contents()
        assert before[1:] == after[1:]
        assert await db.fetchval("SELECT suspended_at FROM users") is None
        outcomes = {command: (said["changed"], said["sessions_ended"]) for command, said in dry_runs.items()}
        assert outcomes == {
            "suspend": (True, 2),
            "unsuspend": (False, 0),
            "end-sessions": (True, 2),
            "delete": (True, 2),
        }
        # The commands do the same without --dry-run.
        for command in ("suspend", "unsuspend"):
            done = await script(shared, "users", command, alice.public_id, "--json")
            expected = {"suspend": dry_runs["suspend"], "unsuspend": {**dry_runs["unsuspend"], "changed": True}}[
                command
            ]
            assert {"dry_run": True, **done.json} == expected


@pytest.mark.gen_test
async def test_an_unknown_user_exits_with_1_and_wrong_usage_with_2(services: Services) -> None:
    async with place(services) as shared:
        for name in ("u_unknown", "a", "Алиса", "a'; DROP TABLE users; --", "x" * 1000, "%", "with\nline"):
            both = (script(shared, "users", command, name) for command in ("show", "suspend"))
            for ended in await asyncio.gather(*both):
                assert (ended.code, ended.out, ended.err) == (1, "", "there is no such user\n"), name
        for words in (
            [],
            ["show"],
            ["remove", "alice"],
            ["show", "alice", "--dry-run"],
            ["suspend", "alice", "--yes"],
            ["suspend", "alice", "--actor", ""],
            ["suspend", "alice", "--actor", "two\nlines"],
            ["suspend", "alice", "bob"],
        ):
            ended = await script(shared, "users", *words)
            assert (ended.code, ended.out) == (2, ""), words
        said = await script(None, "users", "--help")
        assert said.code == 0
        for word in (*CHANGES, "show", "DATABASE_URL", "audit_log", "78"):
            assert word in said.out


@pytest.mark.gen_test
async def test_settings_and_outages(services: Services) -> None:
    async with place(services) as shared:
        for settings, names in (
            ({"DATABASE_URL": ""}, ["DATABASE_URL"]),
            ({"DATABASE_URL": "mysql://root:never-shown@h/x", "REDIS_URL": "http://h"}, ["DATABASE_URL", "REDIS_URL"]),
            ({"DATABASE_URL": "postgres://mimu:never#shown@h:99999/x"}, ["DATABASE_URL"]),
        ):
            wrong = await script(shared, "users", "show", "alice", **settings)
            assert (wrong.code, wrong.out) == (78, "")
            assert [line.partition(":")[0] for line in wrong.err.splitlines()] == names
            assert "never" not in wrong.err
        closed = "postgres://mimu:never-shown@127.0.0.1:1/mimu"
        for dsn in (closed, services.dsn, shared.dsn.replace("mimu:", "mimu:not-")):
            failed = await script(shared, "users", "suspend", "alice", DATABASE_URL=dsn)
            assert (failed.code, failed.out) == (1, "")
            assert failed.err.startswith("failed: ")
