"""Contacts: verifications, blocks that the blocked one can't see, and who may see one's presence."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.client import Account, Answer
from tests.running import Services, periodic, place, serving


@pytest.mark.gen_test
async def test_verifying_a_contact(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        path = f"/users/{bob.public_id}/verify"
        for method, trust in (("manual", "verified"), ("qr_code", "trusted"), ("voice", "trusted")):
            answer = await alice.post(path, {"verified_fingerprint": bob.fingerprint, "method": method, "notes": "n"})
            assert (answer.status, answer.json["trust_level"]) == (200, trust)
        [noted] = (await alice.get("/users/me/verifications")).json
        assert noted == answer.json
        assert (noted["public_id"], noted["verified_user_id"]) == (bob.public_id, bob.user_id)
        assert (await bob.get("/users/me/verifications")).json == []
        wrong = await alice.post(path, {"verified_fingerprint": alice.fingerprint, "method": "voice"})
        assert (wrong.status, wrong.code) == (409, "fingerprint_mismatch")
        assert (await alice.post(path, {"verified_fingerprint": bob.fingerprint, "method": "x"})).fields() == ["method"]
        body = {"verified_fingerprint": bob.fingerprint, "method": "voice"}
        assert (await alice.post("/users/nobody_here/verify", body)).status == 404
        assert (await bob.post(path, body)).status == 400
        assert (await alice.delete(path)).status == 204
        assert (await alice.delete(path)).status == 404
        assert (await alice.get("/users/me/verifications")).json == []


@pytest.mark.gen_test
async def test_blocking_is_listed_idempotent_and_the_blockers_alone(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        path = f"/users/{bob.public_id}/block"
        for _ in range(2):
            assert (await alice.put(path, {})).status == 204
        [blocked] = (await alice.get("/users/me/blocks")).json
        assert (blocked["user_id"], blocked["public_id"]) == (bob.user_id, bob.public_id)
        assert (await bob.get("/users/me/blocks")).json == []
        assert (await alice.put(f"/users/{alice.public_id}/block", {})).status == 400
        assert (await alice.put("/users/nobody_here/block", {})).status == 404
        for _ in range(2):
            assert (await alice.delete(path)).status == 204
        assert (await alice.get("/users/me/blocks")).json == []


@pytest.mark.gen_test
async def test_a_list_of_blocks_that_is_full_says_so(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.contacts.MAX_BLOCKS", 1)
    async with place(services) as shared, serving(shared) as server:
        alice, bob, carol = [await Account().register(server.url) for _ in range(3)]
        first, second = (f"/users/{other.public_id}/block" for other in (bob, carol))
        assert (await alice.put(first, {})).status == 204
        refused = await alice.put(second, {})
        assert (refused.status, refused.code) == (409, "conflict")
        assert (await alice.put(first, {})).status == 204, "who is in it stays in it"
        assert [blocked["user_id"] for blocked in (await alice.get("/users/me/blocks")).json] == [bob.user_id]
        assert (await alice.delete(first)).status == 204
        assert (await alice.put(second, {})).status == 204


def offer(to: Account, call_id: str) -> dict[str, str]:
    return {"call_id": call_id, "to_user_id": to.user_id, "call_type": "audio", "encrypted_payload": "AAAA"}


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_blocked_caller_rings_into_the_void(services: Services, servers: int) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        url = one.url if servers == 1 else two.url
        alice, mallory = await Account().register(one.url), await Account().register(url)
        await alice.put(f"/users/{mallory.public_id}/block", {})
        async with alice.socket() as a, mallory.socket() as m:
            call_id, second = str(uuid4()), str(uuid4())
            ack = await m.send("call_offer", **offer(alice, call_id))
            assert (ack["type"], ack["status"], ack["delivered"]) == ("ack", "ringing", None)
            assert (await m.send("ice_candidate", call_id=call_id, encrypted_payload="AAAA"))["type"] == "ack"
            again = await m.send("call_offer", **offer(alice, call_id))
            assert (again["type"], again["repeated"]) == ("ack", True)
            await a.silent(0.2)
            # Alice learns nothing of it, not even by asking, and may call Mallory meanwhile without glare.
            assert (await a.send("call_hangup", call_id=call_id))["code"] == "call_not_found"
            for kind in ("call_answer", "ice_candidate", "call_heartbeat"):
                assert (await a.send(kind, call_id=call_id, encrypted_payload="AAAA"))["code"] == "call_not_found"
            assert (await alice.get("/calls")).json == []
            assert (await alice.get(f"/calls/{call_id}")).status == 404
            hers = str(uuid4())
            assert (await a.send("call_offer", **offer(mallory, hers)))["type"] == "ack"
            await m.expect("call_offer", call_id=hers)
            await a.send("call_hangup", call_id=hers)
            await m.expect("call_hangup", call_id=hers)
            # A new offer supersedes the silent one, and that one ends as any unanswered call does.
            await m.send("call_offer", **offer(alice, second))
            assert (await mallory.get(f"/calls/{call_id}")).json["end_reason"] == "superseded"
            await one.app.db.execute("UPDATE call_sessions SET started_at = started_at - interval '61 s'")
            await periodic(one, "call_timeouts")()
            assert (await m.expect("call_hangup", call_id=second))["reason"] == "timeout"
            entry = (await mallory.get(f"/calls/{second}")).json
            assert (entry["status"], entry["end_reason"]) == ("missed", "timeout")
            assert "silent" not in entry
            await a.silent(0.2)
            assert [call["id"] for call in (await alice.get("/calls")).json] == [hers]


async def presence(viewer: Account, of: Account) -> tuple[bool, bool]:
    """Return is_online of a user as the viewer sees it, in the profile and in the search."""
    profile = (await viewer.get(f"/users/{of.public_id}")).json
    [found] = (await viewer.get(f"/users/search?q={of.public_id}")).json
    assert (profile["last_seen"] is not None) == profile["is_online"]
    return profile["is_online"], found["is_online"]


@pytest.mark.gen_test
async def test_the_settings_decide_who_sees_the_presence(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice, bob, carol = [await Account().register(server.url) for _ in range(3)]
        db = server.app.db

        async def allow(who: str) -> Answer:
            return await alice.put("/users/me", {"settings": {"privacy": {"last_seen": who}, "theme": "dark"}})

        async with alice.socket(), bob.socket():
            while await db.value("SELECT count(*) FROM connections") < 2:
                pass
            seen, hidden = (True, True), (False, False)
            assert await presence(bob, alice) == seen
            await allow("nobody")
            assert await presence(bob, alice) == hidden
            assert await presence(alice, alice) == seen
            await allow("contacts")
            assert await presence(bob, alice) == hidden
            # A user that Alice verified is her contact; a user that verified her is not.
            await carol.post(f"/users/{alice.public_id}/verify", _verification(alice))
            assert await presence(carol, alice) == hidden
            await alice.post(f"/users/{bob.public_id}/verify", _verification(bob))
            assert await presence(bob, alice) == seen
            # A chat makes no contact of the other user, even if they write in it. It does when Alice writes to them.
            chat = (await carol.post("/chats", {"type": "direct", "participants": [alice.public_id]})).json
            assert await presence(carol, alice) == hidden
            assert (await _write(carol, chat["id"])).status == 201
            assert await presence(carol, alice) == hidden
            assert (await _write(alice, chat["id"])).status == 201
            assert await presence(carol, alice) == seen
            # A block hides both users from each other.
            await allow("everyone")
            await alice.put(f"/users/{bob.public_id}/block", {})
            assert await presence(bob, alice) == hidden
            assert await presence(alice, bob) == hidden
            await alice.delete(f"/users/{bob.public_id}/block")
            assert await presence(bob, alice) == seen
            refused = await allow("friends")
            assert (refused.status, refused.fields()) == (400, ["settings"])
            assert (await alice.put("/users/me", {"settings": {"privacy": 5}})).status == 400


async def _write(account: Account, chat_id: str) -> Answer:
    body = {"client_id": str(uuid4()), "encrypted_payload": "AAAA", "message_type": "text"}
    return await account.post(f"/chats/{chat_id}/messages", body)


@pytest.mark.gen_test
async def test_only_own_actions_make_a_contact(services: Services) -> None:
    """Calling a user or answering their call makes a contact. A received call or a shared group does not."""
    async with place(services) as shared, serving(shared) as server:
        alice, bob, carol, dave = [await Account().register(server.url) for _ in range(4)]
        db = server.app.db
        for account in (alice, bob, carol, dave):
            await account.put("/users/me", {"settings": {"privacy": {"last_seen": "contacts"}}})
        async with alice.socket() as a, bob.socket() as b, carol.socket(), dave.socket():
            while await db.value("SELECT count(*) FROM connections") < 4:
                await asyncio.sleep(0.02)
            call_id = str(uuid4())
            await a.send("call_offer", **offer(bob, call_id))
            await b.expect("call_offer")
            assert (await presence(bob, alice), await presence(alice, bob)) == ((True, True), (False, False))
            await b.send("call_answer", call_id=call_id, encrypted_payload="AAAA")
            assert await presence(alice, bob) == (True, True)
            group = {"type": "group", "participants": [carol.public_id, dave.public_id], "title": "g"}
            chat = (await alice.post("/chats", group)).json
            for account in (alice, carol):
                assert (await _write(account, chat["id"])).status == 201
            for one, other in ((alice, carol), (carol, dave), (dave, alice), (carol, alice)):
                assert await presence(one, other) == (False, False)
            # It lasts when the call, or the message, is gone.
            await db.execute("DELETE FROM call_sessions")
            assert await presence(alice, bob) == (True, True)
        rows = await db.fetch("SELECT user_id, contact_id FROM user_contacts ORDER BY created_at")
        assert [(str(row[0]), str(row[1])) for row in rows] == [
            (alice.user_id, bob.user_id),
            (bob.user_id, alice.user_id),
        ]


def _verification(account: Account) -> dict[str, str]:
    return {"verified_fingerprint": account.fingerprint, "method": "voice"}


@pytest.mark.gen_test
async def test_long_lists_come_in_pages(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        others = [await Account().register(server.url) for _ in range(5)]
        for other in others:
            await alice.put(f"/users/{other.public_id}/block", {})
            await alice.post(f"/users/{other.public_id}/verify", _verification(other))
        for path in ("/users/me/blocks", "/users/me/verifications"):
            seen: list[str] = []
            following = f"{path}?limit=2"
            while following:
                answer = await alice.get(following)
                assert len(answer.json) <= 2
                seen += [entry["public_id"] for entry in answer.json]
                link = answer.headers.get("Link", "")
                assert not link or link.endswith('; rel="next"')
                following = link.partition(">")[0].removeprefix("<")
            assert seen == [other.public_id for other in reversed(others)]
            for bad in ("limit=0", "limit=101", "limit=x", "before=x", "before=MjAyNg=="):
                assert (await alice.get(f"{path}?{bad}")).status == 400
