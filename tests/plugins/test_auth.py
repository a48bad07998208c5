"""Accounts and sessions: validation, answers and races."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
import unicodedata
from functools import partial
from typing import Any

import pytest
from argon2 import PasswordHasher
from nacl.signing import SigningKey

from handlers.passwords import MAX_QUEUED_EACH, THREADS
from handlers.wire import signal_keys as keys
from models import sessions
from tests.client import Account, Answer, ask, b64
from tests.plugins.chatting import patiently
from tests.running import Services, connected, place, serving

REFUSED = {
    "public_id": ["ab", "a" * 33, "alice\n", "аlice", "a-b", "search", "Admin", "", None, 5],
    "password": ["short", "x" * 257, "e\u0301" * 7, "\u0958" * 129, None, True],
    "identity_key": [b64(b"\0" * 32), b64(b"\1" + b"\0" * 31), b64(b"\xff" * 32), b64(b"x" * 31), "!!", 7],
    "fingerprint": ["0" * 64, "A" * 64, "", None],
    "signing_public_key": [b64(b"\0" * 32), b64(b"\1" + b"\0" * 31), b64(b"\xff" * 32), b64(b"x" * 33)],
    "registration_id": [-1, 2**31, "1", True, 1.5, None],
    "signed_prekey": [None, {}, {"key_id": 1, "public_key": b64(b"x" * 32), "signature": b64(b"s" * 64)}],
    "one_time_prekeys": [[{"key_id": 1}], "none", [{"key_id": n, "public_key": b64(b"x" * 32)} for n in range(101)]],
    "display_name": ["x" * 65, "   ", "\u200b", "\u202eecilA", "a\nb", 5],
    "language": ["!", "english language", 5],
}


@pytest.mark.gen_test
async def test_registration_names_each_bad_field(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        account = Account()
        for name, values in REFUSED.items():
            for value in values:
                answer = await ask(server.url, "POST", "/auth/register", account.body(**{name: value}))
                assert answer.status == 400, (name, value, answer.text)
                assert answer.code == "invalid_request"
                assert any(field.startswith(name) for field in answer.fields()), (name, value, answer.text)
        several = account.body(public_id="!", password="x", registration_id=-1)
        answer = await ask(server.url, "POST", "/auth/register", several)
        assert set(answer.fields()) == {"public_id", "password", "registration_id"}
        twice = account.body(one_time_prekeys=[account.prekey(1), account.prekey(2), account.prekey(1)])
        answer = await ask(server.url, "POST", "/auth/register", twice)
        assert answer.fields() == ["one_time_prekeys[2].key_id"]
        # None of these left anything behind.
        assert await server.app.db.value("SELECT count(*) FROM users") == 0
        await account.register(server.url)


@pytest.mark.gen_test
async def test_keys_come_in_every_form_and_go_in_one(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        account = Account()
        body = account.body()
        raw = account.identity_key
        body["identity_key"] = base64.urlsafe_b64encode(b"\x05" + raw).decode().rstrip("=")
        await account.register(server.url, **body)
        assert (await account.get("/users/me")).json["identity_key"] == b64(raw)


@pytest.mark.gen_test
async def test_the_signed_prekey_may_be_signed_in_four_ways(services: Services) -> None:
    """By the signing key (Ed25519) or the identity key (XEdDSA), over 32 or 33 bytes."""
    async with place(services) as shared, serving(shared) as server:
        for number in range(16):
            account = Account()
            prekey = base64.b64decode(account.prekey(1)["public_key"])
            message = b"\x05" + prekey if number % 2 else prekey
            signature = account.signing.sign(message).signature if number % 4 < 2 else account.xeddsa(message)
            signed = {"key_id": 1, "public_key": b64(prekey), "signature": b64(signature)}
            await account.register(server.url, signed_prekey=signed)
            forged = bytearray(signature)
            forged[5] ^= 1
            assert not keys.signed_by(account.identity_key, bytes(account.signing.verify_key), bytes(forged), message)


@pytest.mark.gen_test
async def test_names_and_keys_are_unique_without_regard_to_case(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account("Alice_1").register(server.url)
        answer = await ask(server.url, "POST", "/auth/register", Account("aLICE_1").body())
        assert (answer.status, answer.code) == (409, "public_id_taken")
        thief = Account(identity=alice.identity)
        answer = await ask(server.url, "POST", "/auth/register", thief.body())
        assert (answer.status, answer.code) == (409, "identity_key_taken")
        rivals = [Account("Rival") for _ in range(10)]
        answers = await asyncio.gather(*(ask(server.url, "POST", "/auth/register", r.body()) for r in rivals))
        assert sorted(answer.status for answer in answers) == [201] + [409] * 9
        assert await server.app.db.value("SELECT count(*) FROM signed_prekeys") == 2


@pytest.mark.gen_test
@pytest.mark.usefixtures("real_argon2")
async def test_a_wrong_password_and_an_unknown_user_are_one_answer(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        assert (await alice.login()).status == 200
        answers = []
        for public_id, password in ((alice.public_id, "wrong password"), ("nobody_here", "wrong password"), ("?", "x")):
            body = {"public_id": public_id, "password": password}
            answers.append(await ask(server.url, "POST", "/auth/login", body))
        assert [answer.status for answer in answers] == [401] * 3
        assert len({json.dumps({**answer.json, "request_id": ""}) for answer in answers}) == 1
        assert answers[0].code == "invalid_credentials"
        assert answers[0].headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.gen_test
@pytest.mark.usefixtures("real_argon2")
async def test_a_hash_of_older_parameters_is_renewed_at_login(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        db = server.app.db
        old = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(alice.password)
        await db.execute("UPDATE users SET password_hash = $1", old)
        assert (await alice.login()).status == 200
        assert "m=19456,t=2,p=1" in await db.value("SELECT password_hash FROM users")
        assert (await alice.login()).status == 200


async def refresh(url: str, token: str) -> Answer:
    return await ask(url, "POST", "/auth/refresh", {"refresh_token": token})


@pytest.mark.gen_test
async def test_refresh_rotates_and_a_lost_answer_may_be_asked_again(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        first = await refresh(server.url, alice.refresh_token)
        again = await refresh(server.url, alice.refresh_token)
        assert first.status == again.status == 200
        successor = first.json["refresh_token"]
        assert again.json["refresh_token"] == successor != alice.refresh_token
        assert (await ask(server.url, "GET", "/users/me", token=again.json["access_token"])).status == 200
        # Only hashes are stored, here and in Redis.
        rows = await server.app.db.fetch("SELECT token_hash, previous_hash FROM sessions")
        assert [row["token_hash"] for row in rows] == [hashlib.sha256(successor.encode()).digest()]
        known = {key.decode() for key in await server.app.redis.keys("refresh:*")}
        assert f"refresh:{hashlib.sha256(successor.encode()).hexdigest()}" in known

        # The successor is used: now the first token betrays a thief, and the session ends.
        third = await refresh(server.url, successor)
        assert third.status == 200
        reused = await refresh(server.url, alice.refresh_token)
        assert (reused.status, reused.code) == (401, "token_reused")
        assert (await refresh(server.url, third.json["refresh_token"])).status == 401
        assert (await ask(server.url, "GET", "/users/me", token=third.json["access_token"])).status == 401


@pytest.mark.gen_test
async def test_without_grace_any_repetition_ends_the_session(services: Services) -> None:
    async with place(services) as shared, serving(shared, REFRESH_GRACE_SECONDS="0") as server:
        alice = await Account().register(server.url)
        assert (await refresh(server.url, alice.refresh_token)).status == 200
        assert (await refresh(server.url, alice.refresh_token)).code == "token_reused"


@pytest.mark.gen_test
async def test_rubbish_and_forged_tokens_end_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        forged = alice.refresh_token[:32] + "0" * 64
        for token in ("", "x", "0" * 96, forged, alice.refresh_token + "\n"):
            answer = await refresh(server.url, token)
            assert (answer.status, answer.code) == (401, "unauthorized"), token
        assert (await refresh(server.url, alice.refresh_token.upper())).status == 200, "hex is taken in either case"


@pytest.mark.gen_test
@pytest.mark.parametrize("round_", range(3))
async def test_a_hundred_refreshes_at_once_are_one_rotation(services: Services, round_: int) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = await Account().register(one.url)
        urls = [one.url, two.url] * 50
        asked = [partial(refresh, url, alice.refresh_token) for url in urls]
        answers = await asyncio.gather(*map(patiently, asked))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.json["refresh_token"] for answer in answers}) == 1
        assert await one.app.db.value("SELECT count(*) FROM spent_refresh_tokens") == 1


@pytest.mark.gen_test
async def test_losing_redis_logs_no_user_out(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        await server.app.redis.flushdb()
        answer = await refresh(server.url, alice.refresh_token)
        assert answer.status == 200
        assert (await refresh(server.url, answer.json["refresh_token"])).status == 200


@pytest.mark.gen_test
async def test_an_idle_or_old_session_can_not_be_refreshed(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        for change in (
            f"last_used_at = now() - interval '{sessions.IDLE_DAYS} days 1 minute'",
            "expires_at = now()",
            "revoked_at = now()",
        ):
            alice = await Account().register(server.url)
            await server.app.db.execute(f"UPDATE sessions SET {change}")
            assert (await refresh(server.url, alice.refresh_token)).status == 401, change


async def challenge(account: Account) -> dict[str, Any]:
    body = {"identity_key": b64(account.identity_key), "new_password": "a new password"}
    answer = await ask(account.url, "POST", "/auth/reset-password", body)
    assert (answer.status, answer.code) == (428, "proof_required")
    assert answer.json["expires_in"] == 300
    return {**body, "challenge": answer.json["challenge"]}


def proof_message(body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(body["new_password"].encode()).hexdigest()
    return f"mimu-reset-v1|{body['identity_key']}|{body['challenge']}|{digest}".encode()


@pytest.mark.gen_test
@pytest.mark.parametrize("scheme", ["ed25519", "xeddsa"])
async def test_reset_takes_a_proof_once_and_ends_every_session(services: Services, scheme: str) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = await Account().register(one.url)
        async with alice.socket(two.url) as socket:
            body = await challenge(alice)
            message = proof_message(body)
            signature = alice.signing.sign(message).signature if scheme == "ed25519" else alice.xeddsa(message)
            body["signature"] = b64(signature)
            urls = [one.url, two.url] * 10
            asked = [partial(ask, url, "POST", "/auth/reset-password", body) for url in urls]
            answers = await asyncio.gather(*map(patiently, asked))
            assert sorted(answer.status for answer in answers) == [200] + [403] * 19
            assert {answer.code for answer in answers if answer.status == 403} == {"invalid_proof"}
            assert (await socket.expect("closed"))["code"] == 4401
        [fresh] = [answer.json for answer in answers if answer.status == 200]
        assert (await ask(two.url, "GET", "/users/me", token=fresh["access_token"])).status == 200
        assert (await alice.get("/users/me")).status == 401
        assert (await refresh(one.url, alice.refresh_token)).status == 401
        alice.password = "a new password"
        assert (await alice.login()).status == 200


@pytest.mark.gen_test
async def test_no_other_proof_resets_anything(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, mallory = await Account().register(server.url), await Account().register(server.url)
        stranger = Account(url=server.url)
        good = await challenge(alice)
        sign = alice.signing.sign
        expired = base64.urlsafe_b64encode(base64.urlsafe_b64decode(good["challenge"])[:16] + bytes(40)).decode()
        other = await challenge(mallory)
        bad = [
            {**good, "signature": b64(mallory.signing.sign(proof_message(good)).signature)},
            {**good, "signature": b64(sign(b"something else").signature)},
            {**good, "new_password": "another password", "signature": b64(sign(proof_message(good)).signature)},
            {
                **good,
                "challenge": expired,
                "signature": b64(sign(proof_message({**good, "challenge": expired})).signature),
            },
            {**good, "challenge": "x", "signature": b64(sign(proof_message({**good, "challenge": "x"})).signature)},
        ]
        swapped = {**good, "challenge": other["challenge"]}
        bad.append({**swapped, "signature": b64(sign(proof_message(swapped)).signature)})
        unknown = await challenge(stranger)
        bad.append({**unknown, "signature": b64(stranger.signing.sign(proof_message(unknown)).signature)})
        for body in bad:
            answer = await ask(server.url, "POST", "/auth/reset-password", body)
            assert (answer.status, answer.code) == (403, "invalid_proof"), body
        assert (await alice.get("/users/me")).status == 200
        assert (await alice.login()).status == 200


@pytest.mark.gen_test
@pytest.mark.usefixtures("real_argon2")
async def test_logins_that_would_wait_too_long_for_a_hash_get_503(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        answers = await asyncio.gather(*(alice.login() for _ in range(120)))
        statuses = {answer.status for answer in answers}
        assert statuses == {200, 503}
        busy = next(answer for answer in answers if answer.status == 503)
        assert busy.code == "unavailable"
        assert int(busy.headers["Retry-After"]) >= 1
        assert (await alice.login()).status == 200


class SlowHasher:
    """Argon2 as it is, and 0.2 s more for each password."""

    def __init__(self, hasher: Any) -> None:
        self._hasher = hasher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hasher, name)

    def verify(self, *args: Any) -> Any:
        time.sleep(0.2)
        return self._hasher.verify(*args)


@pytest.mark.gen_test
@pytest.mark.usefixtures("real_argon2")
async def test_one_address_keeps_no_other_from_logging_in(services: Services) -> None:
    limited = {
        "RATE_LIMITS": "on",
        "RATE_LIMIT_LOGIN": "1000/hour",
        "TRUSTED_PROXIES": "127.0.0.1/32",
    }
    async with place(services) as shared, serving(shared, **limited) as server:
        alice = await Account().register(server.url)
        body = {"public_id": alice.public_id, "password": alice.password}
        server.app.passwords._hasher = SlowHasher(server.app.passwords._hasher)  # beside it a request takes no time

        async def login(address: str) -> tuple[str, int]:
            answer = await ask(server.url, "POST", "/auth/login", body, headers={"X-Forwarded-For": address})
            order.append((address, answer.status))
            return order[-1]

        order: list[tuple[str, int]] = []
        # All of one /64; then somebody else, who has come last.
        flood = [asyncio.create_task(login(f"2001:db8::{number:x}")) for number in range(1, 60)]
        while server.app.passwords.waiting < THREADS + MAX_QUEUED_EACH:
            await asyncio.sleep(0)
        assert await login("192.0.2.1") == ("192.0.2.1", 200)
        await asyncio.gather(*flood)
        statuses = [status for _, status in order]
        assert statuses.count(200) + statuses.count(503) == 60
        assert statuses.count(503) >= 40
        # Those that were being hashed are before it, and at most one that waited: they take turns.
        served = [address for address, status in order if status == 200]
        assert served.index("192.0.2.1") <= THREADS + 2


@pytest.mark.gen_test
async def test_registrations_that_fail_are_limited_by_themselves(services: Services) -> None:
    limits = {"RATE_LIMITS": "on", "RATE_LIMIT_REGISTER": "5/hour", "RATE_LIMIT_REGISTER_FAILED": "4/hour"}
    async with place(services) as shared, serving(shared, **limits) as server:
        stranger = await Account().register(server.url)
        forged = Account().body(signed_prekey=stranger.signed_prekey(1))
        taken = Account(stranger.public_id).body()
        answers = [await ask(server.url, "POST", "/auth/register", body) for body in (forged, taken)]
        assert [answer.status for answer in answers] == [400, 409]
        async with serving(shared, **limits) as other:
            answers = await asyncio.gather(*(ask(other.url, "POST", "/auth/register", forged) for _ in range(10)))
            # Of those that come at once, too, no more are looked at than may fail.
            statuses = [answer.status for answer in answers]
            assert 1 <= statuses.count(400) <= 2
            assert statuses.count(429) == 10 - statuses.count(400)
            assert (await ask(other.url, "POST", "/auth/register", {})).status == 400, (
                "what has no form counts for nothing"
            )


@pytest.mark.gen_test
@pytest.mark.parametrize("redis", [True, False])
async def test_a_failed_registration_leaves_the_limit_as_it_was(services: Services, redis: bool) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on", RATE_LIMIT_REGISTER="2/hour") as server:
        if not redis:
            server.app.limits._away_until = float("inf")
        taken = await Account().register(server.url)
        for _ in range(5):
            answer = await ask(server.url, "POST", "/auth/register", Account(taken.public_id).body())
            assert answer.status == 409
        await Account().register(server.url)
        assert (await ask(server.url, "POST", "/auth/register", Account().body())).status == 429


@pytest.mark.gen_test
async def test_a_failure_of_the_server_costs_the_address_nothing(services: Services) -> None:
    limits = {"RATE_LIMITS": "on", "RATE_LIMIT_REGISTER": "1/hour", "RATE_LIMIT_REGISTER_FAILED": "1/hour"}
    async with place(services) as shared, serving(shared, **limits) as server, connected(shared) as db:
        async with db.transaction():
            await db.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            assert (await ask(server.url, "POST", "/auth/register", Account().body())).status == 503
        await Account().register(server.url)
        assert (await ask(server.url, "POST", "/auth/register", Account().body())).status == 429


@pytest.mark.gen_test
async def test_a_registration_with_a_kyber_key_under_two_ids_stores_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = Account()
        key = alice.kyber_prekey(1)
        answer = await ask(server.url, "POST", "/auth/register", alice.body(kyber_prekeys=[key, {**key, "key_id": 2}]))
        assert (answer.status, answer.code) == (409, "conflict")
        assert "twice in kyber_prekeys" in answer.json["message"]
        await alice.register(server.url)


@pytest.mark.gen_test
async def test_of_several_new_passwords_at_once_one_counts(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        path, wanted = "/auth/change-password", [f"the new password {number}" for number in range(4)]
        answers = await asyncio.gather(
            *(alice.post(path, {"old_password": alice.password, "new_password": new}) for new in wanted)
        )
        statuses = [answer.status for answer in answers]
        assert statuses.count(204) == 1
        # 401 where the old password was compared after the change, 409 where it was before.
        assert set(statuses) <= {204, 401, 409}
        alice.password = wanted[statuses.index(204)]
        assert (await alice.login()).status == 200


@pytest.mark.gen_test
async def test_a_public_id_that_is_free(services: Services) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on", RATE_LIMIT_AVAILABLE="5/hour") as server:
        alice = await Account("Alice_1").register(server.url)
        gone = await Account().register(server.url)
        assert (await ask(server.url, "DELETE", "/users/me", {"password": gone.password}, gone.token)).status == 204

        async def available(public_id: str) -> Answer:
            return await ask(server.url, "GET", f"/auth/available?public_id={public_id}")

        for public_id, free in (("nobody_has_it", True), ("aLICE_1", False), (gone.public_id, False), ("Admin", False)):
            answer = await available(public_id)
            assert (answer.status, answer.json) == (200, {"available": free}), public_id
        assert (await available("a-b")).fields() == ["public_id"]
        assert [(await available(alice.public_id)).status for _ in range(2)] == [200, 429]


@pytest.mark.gen_test
@pytest.mark.usefixtures("real_argon2")
async def test_a_password_is_the_same_from_every_keyboard(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        composed = unicodedata.normalize("NFC", "Ключ й Motörhead")
        apart = unicodedata.normalize("NFD", composed)

        async def login(who: Account, password: str) -> int:
            return (
                await ask(server.url, "POST", "/auth/login", {"public_id": who.public_id, "password": password})
            ).status

        for mine, other in ((composed, apart), (apart, composed)):
            alice = await Account(password=mine).register(server.url)
            assert [await login(alice, password) for password in (mine, other)] == [200, 200]
            body = {"old_password": other, "new_password": "another pass" + other}
            assert (await alice.post("/auth/change-password", body)).status == 204
            assert await login(alice, "another pass" + mine) == 200
            assert (
                await ask(server.url, "DELETE", "/users/me", {"password": "another pass" + mine}, alice.token)
            ).status == 204
        # Eight to 256 characters, whichever form they come in.
        for password in ("é" * 256, "e\u0301" * 256, "e\u0301" * 8):
            await Account(password=password).register(server.url)
        # Hashed as it was sent, by an older server: taken in that form, then rehashed.
        old = await Account().register(server.url)
        raw = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1).hash(apart)
        await server.app.db.execute("UPDATE users SET password_hash = $1 WHERE public_id = $2", raw, old.public_id)
        assert [await login(old, password) for password in (composed, apart, composed)] == [401, 200, 200]


@pytest.mark.gen_test
@pytest.mark.usefixtures("real_argon2")
async def test_both_forms_of_a_password_are_tried_for_an_unknown_user(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        passwords = server.app.passwords
        real = await passwords.hash("right password")
        tried: list[tuple[str, str]] = []
        verify = passwords._verify
        passwords._verify = lambda stored, form: tried.append((stored, form)) or verify(stored, form)  # type: ignore
        apart = unicodedata.normalize("NFD", "Motörhead")
        for stored in (None, real):
            for password, forms in ((apart, 2), ("ascii only", 1)):
                tried.clear()
                assert await passwords.check("somebody", stored, password) is None
                assert len(tried) == forms


@pytest.mark.gen_test
async def test_a_reset_proves_the_password_as_it_is_sent(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        apart = unicodedata.normalize("NFD", "Motörhead für alle")
        body = {"identity_key": b64(alice.identity_key), "new_password": apart}
        challenge = (await ask(server.url, "POST", "/auth/reset-password", body)).json["challenge"]

        def proof(password: str) -> dict[str, Any]:
            digest = hashlib.sha256(password.encode()).hexdigest()
            message = f"mimu-reset-v1|{body['identity_key']}|{challenge}|{digest}".encode()
            return {**body, "challenge": challenge, "signature": b64(alice.signing.sign(message).signature)}

        composed = unicodedata.normalize("NFC", apart)
        assert (await ask(server.url, "POST", "/auth/reset-password", proof(composed))).status == 403
        assert (await ask(server.url, "POST", "/auth/reset-password", proof(apart))).status == 200
        for password in (composed, apart):
            alice.password = password
            assert (await alice.login()).status == 200


@pytest.mark.gen_test
async def test_limits_count_an_address_on_all_instances(services: Services) -> None:
    async with place(services) as shared:
        limited = {"RATE_LIMITS": "on", "TRUSTED_PROXIES": "127.0.0.1/32"}
        async with serving(shared, **limited) as one, serving(shared, **limited) as two:
            body = {"public_id": "nobody_here", "password": "wrong password"}

            async def login(url: str, address: str) -> Answer:
                return await ask(url, "POST", "/auth/login", body, headers={"X-Forwarded-For": address})

            statuses = [(await login(url, "203.0.113.7")).status for url in (one.url, two.url) * 3]
            assert statuses == [401] * 5 + [429]
            refused = await login(one.url, "203.0.113.7")
            assert (refused.status, refused.code) == (429, "rate_limited")
            assert 1 <= int(refused.headers["Retry-After"]) <= 180
            assert (await login(one.url, "203.0.113.8")).status == 401
            # A client's own word about where it is counts for nothing.
            assert (await login(one.url, "198.51.100.1, 203.0.113.7")).status == 429
            # An IPv6 household is one address.
            statuses = [(await login(one.url, f"2001:db8:1:2::{n}")).status for n in range(1, 7)]
            assert statuses == [401] * 5 + [429]


def test_small_order_and_mauled_signatures_are_refused() -> None:
    key = SigningKey.generate()
    message = b"message"
    signature = key.sign(message).signature
    public = bytes(key.verify_key)
    assert keys.ed25519(public, signature, message)
    # S + L is the second form of the same signature (RFC 8032 section 5.1.7 forbids it).
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    assert not keys.ed25519(public, signature[:32] + s.to_bytes(32, "little"), message)
    # Under a small-order key R = identity, S = 0 would verify for any message.
    identity = b"\1" + bytes(31)
    assert not keys.ed25519(identity, identity + bytes(32), message)
    assert not keys.xeddsa(bytes(32), identity + bytes(32), message)
    assert not keys.xeddsa((2**255 - 20).to_bytes(32, "little"), signature, message)
