"""Sealed sender: messages to an inbox by its key; the server learns, stores and logs nothing about the sender."""

from __future__ import annotations

import asyncio
import io
import secrets
from uuid import uuid4

import pytest

from tests import canaries
from tests.client import Account, Answer, ask, b64
from tests.plugins.chatting import SECONDS, Json, Town, history, message, read, town
from tests.running import Services

KEY = secrets.token_bytes(16)


async def sealed(to: Account, key: str | None = None, url: str = "", **more: object) -> Answer:
    body = {**message("sealed and opaque"), "public_id": to.public_id, **more}
    headers = {} if key == "" else {"Unidentified-Access-Key": key or b64(KEY)}
    return await ask(url or to.url, "POST", "/messages/sealed", body, headers=headers)


async def inbox(made: Town, owner: Account) -> str:
    """Open it; the id of its chat."""
    assert (await owner.put("/users/me", {"sealed_access_key": b64(KEY)})).status == 200
    [entry] = [e for e in (await owner.get("/chats")).json if e["type"] == "secret" and e["peer"] is None]
    assert (entry["role"], entry["participant_count"]) == ("owner", 1)
    return str(entry["id"])


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_it_arrives_without_a_name(services: Services, servers: int, log: io.StringIO) -> None:
    async with town(services, servers, people=2) as made:
        alice, bob = made.people
        chat_id = await inbox(made, bob)
        [b] = await made.sockets(bob)
        name = f"agent-{uuid4()}"
        body = {**message("sealed and opaque"), "public_id": bob.public_id.upper(), "metadata": {"v": 1}}
        headers = {"Unidentified-Access-Key": b64(KEY), "X-Request-ID": name, "User-Agent": name, "X-Platform": "ios"}
        answer = await ask(alice.url, "POST", "/messages/sealed", body, headers=headers)
        assert (answer.status, answer.json.keys()) == (201, {"id", "created_at"})
        frame = await b.expect("message_new", SECONDS, chat_id=chat_id)
        assert (frame["message"]["id"], frame["message"]["sender_id"]) == (answer.json["id"], None)
        [stored] = await history(bob, chat_id)
        assert stored == frame["message"]
        assert (stored["encrypted_payload"], stored["metadata"]) == (body["encrypted_payload"], {"v": 1})
        # Nothing of her, nor of her request, is in the database, the log or Redis; not even when she sends her token.
        again = {**body, "client_id": str(uuid4())}
        assert (await ask(alice.url, "POST", "/messages/sealed", again, alice.token, headers)).status == 201
        tables = await made.sql(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        for table in {row["relname"] for row in tables} - {"users", "sessions", "user_rotations"}:
            text = str(await made.sql(f"SELECT * FROM {table}"))
            assert table.endswith("prekeys") or alice.user_id not in text, table
            assert name not in text and alice.public_id not in text, table
        for hidden in (name, alice.user_id, alice.public_id, body["encrypted_payload"], body["client_id"]):
            assert hidden not in log.getvalue()
        keys = [key.decode() for key in await made.servers[0].app.redis.keys("*")]
        assert [key for key in keys if alice.public_id in key] == []


@pytest.mark.gen_test
async def test_a_wrong_key_an_unknown_user_and_no_inbox_are_one_answer(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        chat_id = await inbox(made, bob)
        canaries.plant(b64(KEY))
        longer = b64(KEY + bytes(16))
        answers = [
            await sealed(bob, b64(secrets.token_bytes(16))),
            await sealed(bob, longer),
            await sealed(alice),
            await sealed(Account(public_id="nobody_here", url=bob.url)),
            await sealed(bob, "not base64!"),
            await sealed(bob, b64(b"")[:0] + "="),
        ]
        for answer in answers:
            body = {**answer.json, "request_id": None}
            assert (answer.status, answer.code) == (401, "unauthorized")
            assert body == {**answers[0].json, "request_id": None}
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await sealed(bob, "")).status == 401
        # A key is known by its hash; another one shuts the first out, and none shuts the inbox.
        assert KEY not in [bytes(r[0]) for r in await made.sql("SELECT sealed_access_key FROM users") if r[0]]
        assert (await sealed(bob, b64(KEY).rstrip("="))).status == 201
        assert (await bob.put("/users/me", {"sealed_access_key": longer})).status == 200
        assert (await sealed(bob)).status == 401
        assert (await sealed(bob, longer)).status == 201
        assert (await bob.put("/users/me", {"sealed_access_key": None})).status == 200
        assert (await sealed(bob, longer)).status == 401
        assert len(await history(bob, chat_id)) == 2, "what is in it stays"
        assert await inbox(made, bob) == chat_id
        for short in (b64(bytes(15)), b64(bytes(33)), "x", 5):
            assert (await bob.put("/users/me", {"sealed_access_key": short})).fields() == ["sealed_access_key"]


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_twenty_times_the_same_is_one_message(services: Services, servers: int) -> None:
    async with town(services, servers, people=1) as made:
        [bob] = made.people
        chat_id = await inbox(made, bob)
        again: Json = {"client_id": str(uuid4())}

        async def taken(url: str) -> Answer:
            while (answer := await sealed(bob, url=url, **again)).status == 503:
                await asyncio.sleep(0.1)
            return answer

        answers = await asyncio.gather(*(taken(made.servers[n % servers].url) for n in range(20)))
        assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
        assert len({(answer.json["id"], answer.json["created_at"]) for answer in answers}) == 1
        other = await sealed(bob, **again, encrypted_payload=b64(b"another payload"))
        assert (other.status, other.code) == (409, "conflict")
        [stored] = await history(bob, chat_id)
        # Once it was delivered it is erased, and still known.
        await read(bob, chat_id, stored["seq"])
        assert await history(bob, chat_id) == []
        assert (await sealed(bob, **again)).status == 200
        assert await history(bob, chat_id) == []


@pytest.mark.gen_test
async def test_an_inbox_counts_fades_and_is_its_owners_to_clear(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        chat_id = await inbox(made, bob)
        assert (await sealed(bob, expires_in=5)).status == 201
        assert (await sealed(bob)).status == 201
        entry = (await bob.get(f"/chats/{chat_id}")).json
        assert (entry["unread_count"], entry["last_message"]["sender_id"]) == (2, None)
        newest, fading = await history(bob, chat_id)
        assert fading["expires_at"] is not None
        assert (await alice.delete(f"/messages/{newest['id']}")).status == 404
        assert (await bob.delete(f"/messages/{newest['id']}")).status == 204
        assert (await bob.put(f"/messages/{fading['id']}", {"encrypted_payload": "AAAA"})).status == 403
        assert (await alice.get(f"/chats/{chat_id}/messages")).status == 404
        for name, value in (
            ("encrypted_payload", b64(bytes(65537))),
            ("expires_in", 1),
            ("public_id", "п"),
            ("client_id", "x"),
        ):
            assert (await sealed(bob, **{name: value})).fields() == [name]


@pytest.mark.gen_test
async def test_a_deleted_inbox_can_be_opened_again(services: Services) -> None:
    async with town(services, people=1) as made:
        [bob] = made.people
        chat_id = await inbox(made, bob)
        assert (await sealed(bob)).status == 201
        assert (await bob.delete(f"/chats/{chat_id}")).status == 204
        assert (await sealed(bob)).status in (401, 404)
        assert (await bob.get("/chats")).json == []
        new = await inbox(made, bob)
        assert new != chat_id
        assert (await sealed(bob)).status == 201
        assert len(await history(bob, new)) == 1
