"""Sessions: listing, ending, and how fast every instance and socket hears of it."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from tests.client import Account, ask
from tests.running import Services, periodic, place, serving
from tests.waiting import SLACK


async def signed_in(account: Account) -> Account:
    """A second device of the account's."""
    device = Account(account.public_id, account.password, identity=account.identity, url=account.url)
    assert (await device.login()).status == 200
    return device


async def refused_soon(account: Account, url: str, seconds: float = 1 + SLACK) -> None:
    """The account's token stops working there within that time."""
    deadline = time.monotonic() + seconds
    while (await ask(url, "GET", "/users/me", token=account.token)).status != 401:
        assert time.monotonic() < deadline, "the token still works"
        await asyncio.sleep(0.02)


@pytest.mark.gen_test
async def test_listing_tells_devices_apart(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        phone = await Account().register(server.url)
        body = {"public_id": phone.public_id, "password": phone.password}
        headers = {"X-Platform": "Android", "X-Client-Version": "1.2.3"}
        await ask(server.url, "POST", "/auth/login", body, headers=headers)
        listed = (await phone.get("/auth/sessions")).json
        assert len(listed) == 2
        [current] = [session for session in listed if session["current"]]
        [other] = [session for session in listed if not session["current"]]
        assert current["id"] == phone.session_id
        assert (other["platform"], other["client_version"]) == ("android", "1.2.3")
        assert set(other) == {"id", "platform", "client_version", "created_at", "last_used_at", "current"}
        stranger = await Account().register(server.url)
        assert len((await stranger.get("/auth/sessions")).json) == 1


@pytest.mark.gen_test
async def test_logout_ends_one_session_or_all_on_every_instance(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        phone = await Account().register(one.url)
        tablet, laptop = await signed_in(phone), await signed_in(phone)
        async with phone.socket(two.url) as p, tablet.socket(two.url) as t:
            assert (await ask(one.url, "POST", "/auth/logout", token=phone.token)).status == 204
            assert (await p.expect("closed"))["code"] == 4401
            await refused_soon(phone, one.url, 0.1)
            await refused_soon(phone, two.url)
            refresh = await ask(one.url, "POST", "/auth/refresh", {"refresh_token": phone.refresh_token})
            assert refresh.status == 401
            assert len((await tablet.get("/auth/sessions")).json) == 2
            assert (await tablet.post("/auth/logout", {"all": True})).status == 204
            assert (await t.expect("closed"))["code"] == 4401
        await refused_soon(laptop, two.url)
        assert (await phone.login()).status == 200


@pytest.mark.gen_test
async def test_ending_a_session_by_id_is_the_owners_alone(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        phone, mallory = await Account().register(one.url), await Account().register(one.url)
        tablet = await signed_in(phone)
        path = f"/auth/sessions/{tablet.session_id}"
        assert (await mallory.delete(path)).status == 404
        assert (await phone.delete(f"/auth/sessions/{uuid4()}")).status == 404
        assert (await tablet.get("/users/me")).status == 200
        async with tablet.socket(two.url) as socket:
            assert (await phone.delete(path)).status == 204
            assert (await socket.expect("closed"))["code"] == 4401
        await refused_soon(tablet, two.url)
        assert (await phone.delete(path)).status == 404


@pytest.mark.gen_test
async def test_changing_the_password_ends_the_other_sessions(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        phone = await Account().register(server.url)
        tablet = await signed_in(phone)
        wrong = await phone.post("/auth/change-password", {"old_password": "wrong", "new_password": "another one"})
        assert (wrong.status, wrong.code) == (401, "invalid_credentials")
        short = await phone.post("/auth/change-password", {"old_password": phone.password, "new_password": "short"})
        assert (short.status, short.fields()) == (400, ["new_password"])
        body = {"old_password": phone.password, "new_password": "another one"}
        assert (await phone.post("/auth/change-password", body)).status == 204
        assert (await phone.get("/users/me")).status == 200
        assert (await tablet.get("/users/me")).status == 401
        assert (await phone.login()).status == 401
        phone.password = "another one"
        assert (await phone.login()).status == 200


@pytest.mark.gen_test
async def test_news_that_redis_lost_come_from_the_database(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        phone = await Account().register(one.url)
        async with phone.socket(two.url) as socket:
            listeners = two.app.bus._listeners
            deaf = listeners.pop("sessions:ended")
            assert (await phone.post("/auth/logout", {})).status == 204
            assert (await ask(two.url, "GET", "/users/me", token=phone.token)).status == 200
            await periodic(two, "ended_sessions")()
            assert (await socket.expect("closed"))["code"] == 4401
            await refused_soon(phone, two.url, 0.1)
            listeners["sessions:ended"] = deaf
        # An instance that starts later knows it too.
        async with serving(shared) as three:
            await refused_soon(phone, three.url, 0.1)


@pytest.mark.gen_test
async def test_tries_on_an_account_are_delayed_and_never_locked(services: Services) -> None:
    limits = {"RATE_LIMITS": "on", "RATE_LIMIT_LOGIN": "1000/minute", "RATE_LIMIT_REGISTER": "9/hour"}
    async with place(services) as shared, serving(shared, **limits) as server:
        alice = await Account().register(server.url)
        body = {"public_id": alice.public_id.upper(), "password": "wrong password"}
        for _ in range(10):
            assert (await ask(server.url, "POST", "/auth/login", body)).status == 401
        start = time.monotonic()
        assert (await alice.login()).status == 200
        assert time.monotonic() - start >= 2
        bob = await Account().register(server.url)
        start = time.monotonic()
        assert (await bob.login()).status == 200
        assert time.monotonic() - start < 2


@pytest.mark.gen_test
async def test_deletion_erases_table_by_table(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = Account(one_time=3), await Account().register(one.url)
        await alice.register(
            one.url, kyber_prekeys=[alice.kyber_prekey(1)], last_resort_kyber_prekey=alice.kyber_prekey(2)
        )
        db = one.app.db
        for a, b in ((alice, bob), (bob, alice)):
            body = {"verified_fingerprint": b.fingerprint, "method": "voice"}
            assert (await a.post(f"/users/{b.public_id}/verify", body)).status == 200
            await db.execute("INSERT INTO user_blocks VALUES ($1::text::uuid, $2::text::uuid)", a.user_id, b.user_id)
        call_id = str(uuid4())
        async with alice.socket() as a, bob.socket() as b:
            offer = {"call_id": call_id, "to_user_id": bob.user_id, "call_type": "audio", "encrypted_payload": "AAAA"}
            await db.execute("DELETE FROM user_blocks")
            await a.send("call_offer", **offer)
            await b.expect("call_offer")
            await a.send("call_hangup", call_id=call_id)
        chat = (await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).json["id"]
        for account in (alice, bob):
            text = {"client_id": str(uuid4()), "encrypted_payload": "AAAA", "message_type": "text"}
            message = (await account.post(f"/chats/{chat}/messages", text)).json
        assert (await alice.put(f"/messages/{message['id']}/reactions/%F0%9F%91%8D", None)).status == 204
        assert (await alice.post(f"/chats/{chat}/receipts", {"read_seq": message["seq"]})).status == 200
        assert await db.value("SELECT count(*) FROM message_reads") == 1

        async with alice.socket(two.url) as socket:
            wrong = await ask(one.url, "DELETE", "/users/me", {"password": "wrong password"}, token=alice.token)
            assert (wrong.status, wrong.code) == (401, "invalid_credentials")
            assert (await ask(one.url, "DELETE", "/users/me", {}, token=alice.token)).status == 400
            done = await ask(one.url, "DELETE", "/users/me", {"password": alice.password}, token=alice.token)
            assert done.status == 204
            assert (await socket.expect("closed"))["code"] == 4401
        await refused_soon(alice, two.url)
        tables = await db.fetch(
            """SELECT c.conrelid::regclass::text AS name, a.attname AS field
               FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
               WHERE c.contype = 'f' AND c.confrelid = 'users'::regclass"""
        )
        assert len(tables) > 10
        for table in tables:
            where = f"{table['name']} WHERE {table['field']} = $1::text::uuid"
            assert await db.value(f"SELECT count(*) FROM {where}", alice.user_id) == 0, where
        assert await db.value("SELECT count(*) FROM users WHERE public_id = $1", alice.public_id) == 0
        # What is also others' stays, without her name.
        assert await db.value("SELECT count(*) FROM messages WHERE sender_id IS NULL") == 1
        [call] = (await bob.get("/calls")).json
        assert (call["id"], call["peer"], call["caller_id"]) == (call_id, None, None)
        assert call["direction"] == "incoming"
        assert (await bob.get(f"/users/{alice.public_id}")).status == 404
        # The key is free for who has it, the name is not.
        again = Account(identity=alice.identity)
        await again.register(one.url, signed_prekey=again.libsignal_prekey(1))


@pytest.mark.gen_test
async def test_a_login_during_the_deletion_leaves_no_token_that_works(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        for _ in range(5):
            alice = await Account().register(one.url)
            devices = [
                Account(alice.public_id, alice.password, identity=alice.identity, url=url)
                for url in (one.url, two.url) * 3
            ]
            deletion = ask(one.url, "DELETE", "/users/me", {"password": alice.password}, token=alice.token)
            done, *_ = await asyncio.gather(deletion, *(device.login() for device in devices))
            assert done.status == 204
            for device in devices:
                for url in (one.url, two.url) if device.token else ():
                    await refused_soon(device, url)


@pytest.mark.gen_test
async def test_an_ended_session_stays_ended_when_tokens_live_shorter(services: Services) -> None:
    async with place(services) as shared:
        async with serving(shared, JWT_EXPIRATION_HOURS="24") as server:
            alice = await Account().register(server.url)
            live = await Account().register(server.url)
            assert (await alice.post("/auth/logout", {})).status == 204
            # What a migration notes for the sake of older servers has passed.
            await server.app.db.execute("DELETE FROM token_lifetimes WHERE seconds > 86400")
            await server.app.db.execute("UPDATE ended_sessions SET ended_at = now() - interval '5 hours'")
        async with serving(shared, JWT_EXPIRATION_HOURS="1") as server:
            assert (await ask(server.url, "GET", "/users/me", token=alice.token)).status == 401
            assert (await ask(server.url, "GET", "/users/me", token=live.token)).status == 200
            assert server.app.tokens.longest_lifetime == 86_400
            await server.app.db.execute(
                "UPDATE token_lifetimes SET seen_at = now() - interval '26 hours' WHERE seconds = 86400"
            )
        async with serving(shared, JWT_EXPIRATION_HOURS="1") as server:
            assert server.app.tokens.longest_lifetime == 3600
