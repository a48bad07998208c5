"""Access to a file: its owner, the present participants of its chat, and every user while it is an avatar."""

from __future__ import annotations

import secrets
from uuid import UUID, uuid4

import pytest

from models import files
from models.storage import new_key
from tests.client import Account, ask
from tests.files import tus
from tests.files.transfer import announce, got, put, send, shared
from tests.running import Services, place, serving


async def group(owner: Account, *others: Account) -> str:
    answer = await owner.post(
        "/chats", {"type": "group", "title": "Friends", "participants": [other.public_id for other in others]}
    )
    assert answer.status == 201, answer.text
    chat_id: str = answer.json["id"]
    return chat_id


async def sees(account: Account, file_id: str) -> bool:
    """True if the account has access to the file; every route must agree."""
    metadata = (await account.get(f"/files/{file_id}")).status
    content = [(await got(account, file_id, method)).code for method in ("GET", "HEAD")]
    assert [metadata, *content] in ([200] * 3, [404] * 3)
    return metadata == 200


@pytest.mark.gen_test
async def test_members_of_the_chat_may_read_and_former_ones_not(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as one, serving(home, **storage) as two:
        alice, bob, carol, dave = [await Account().register(one.url) for _ in range(4)]
        bob.url = two.url  # whatever another instance remembers of the chat
        chat_id = await group(alice, bob, carol)
        file_id = await shared(alice, secrets.token_bytes(100), chat_id=chat_id)
        assert [await sees(person, file_id) for person in (alice, bob, carol, dave)] == [True, True, True, False]

        refused = await bob.delete(f"/files/{file_id}")
        assert (refused.status, refused.code) == (403, "forbidden")
        assert (await dave.delete(f"/files/{file_id}")).status == 404

        assert (await alice.delete(f"/chats/{chat_id}/participants/{bob.user_id}")).status == 204
        assert (await carol.delete(f"/chats/{chat_id}/participants/{carol.user_id}")).status == 204
        assert [await sees(person, file_id) for person in (alice, bob, carol, dave)] == [True, False, False, False]
        assert (await alice.post(f"/chats/{chat_id}/participants", {"public_id": dave.public_id})).status == 201
        assert await sees(dave, file_id)
        assert (await alice.delete(f"/chats/{chat_id}")).status == 204
        assert [await sees(person, file_id) for person in (alice, dave)] == [True, False]


@pytest.mark.gen_test
async def test_an_unfinished_file_is_its_owner_s_alone(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(100)
    async with place(services) as home, serving(home, **storage) as running:
        alice, bob = [await Account().register(running.url) for _ in range(2)]
        chat_id = await group(alice, bob)
        announced = await announce(alice, content, chat_id=chat_id)
        file_id = announced.json["file_id"]
        assert (await put(announced, content)).code in (200, 204)
        assert not await sees(bob, file_id)
        assert (await bob.post(f"/files/{file_id}/complete", {})).status == 404
        assert (await bob.delete(f"/files/{file_id}")).status == 404
        upload = await tus.created(alice, 10, Upload_Metadata=tus.metadata(chat_id=chat_id))
        his = tus.Upload(bob, upload.url)
        assert (await his.ask("HEAD")).code == 404
        assert (await his.patch(0, b"x")).code == 404
        assert (await his.ask("DELETE")).code == 404
        assert await upload.offset() == 0


@pytest.mark.gen_test
async def test_a_file_can_be_shared_only_in_an_own_chat(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice, bob, carol = [await Account().register(running.url) for _ in range(3)]
        chat_id = await group(alice, bob)
        for strange in (chat_id, str(uuid4())):
            refused = await announce(carol, b"content", chat_id=strange)
            assert (refused.status, refused.code) == (404, "not_found")
        assert (await carol.get("/files/usage")).json["files"] == 0


@pytest.mark.gen_test
async def test_an_account_or_a_chat_that_went_a_moment_ago_is_not_found(services: Services) -> None:
    async with place(services) as home, serving(home) as running:
        alice = await Account().register(running.url)
        db = running.app.db
        for chat_id, owner in ((uuid4(), UUID(alice.user_id)), (None, uuid4())):
            new = files.NewFile(owner, chat_id, 1, None, None, new_key(), resumable=True)
            with pytest.raises(files.Gone):
                await files.reserve(db, new, 100)
        await db.execute("DELETE FROM users")
        assert (await announce(alice, b"content")).status == 404


@pytest.mark.gen_test
async def test_an_avatar_is_for_everybody_while_it_is_one(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage, AVATAR_ALLOWED_HOSTS="cdn.example.org") as running:
        alice, bob = [await Account().register(running.url) for _ in range(2)]
        file_id = await shared(alice, secrets.token_bytes(100))
        his = await shared(bob, secrets.token_bytes(100))
        unfinished = (await announce(alice, b"unfinished")).json["file_id"]
        for bad in (his, unfinished, str(uuid4())):
            refused = await alice.put("/users/me", {"avatar_url": f"/files/{bad}"})
            assert (refused.status, refused.fields()) == (400, ["avatar_url"])
        for bad in ("/files/x", f"/files/{file_id}/complete", f"/files/../{file_id}", f"//files/{file_id}"):
            assert (await alice.put("/users/me", {"avatar_url": bad})).fields() == ["avatar_url"], bad
        assert not await sees(bob, file_id)
        for named in (f"/files/{file_id}", f"/files/{file_id.upper()}/content"):
            worn = (await alice.put("/users/me", {"avatar_url": named})).json["avatar_url"]
            assert worn == f"/files/{file_id}/content"
        assert (await bob.get(f"/users/{alice.public_id}")).json["avatar_url"] == worn
        assert await sees(bob, file_id)
        assert (await ask(running.url, "GET", worn)).status == 401
        await alice.put("/users/me", {"avatar_url": None})
        assert not await sees(bob, file_id)
        await alice.put("/users/me", {"avatar_url": worn})
        assert (await alice.delete(f"/files/{file_id}")).status == 204
        assert (await alice.get("/users/me")).json["avatar_url"] is None


@pytest.mark.gen_test
async def test_one_s_own_files_in_pages(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice, bob = [await Account().register(running.url) for _ in range(2)]
        made = [(await announce(alice, bytes(n + 1))).json["file_id"] for n in range(5)]
        await announce(bob, b"his")
        path, found = "/files?limit=2", []
        while path:
            answer = await alice.get(path)
            found += [entry["file_id"] for entry in answer.json]
            path = answer.headers.get("Link", "").partition("<")[2].partition(">")[0]
        assert found == made[::-1]


@pytest.mark.gen_test
async def test_no_path_leads_out_of_the_folder(services: Services, storage: dict[str, str]) -> None:
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        for path in (
            "/files/..%2f..%2fetc%2fpasswd",
            "/files/../secrets/keyring.json",
            "/uploads/%2e%2e%2fx",
            "/files//",
        ):
            for method in ("GET", "PUT", "DELETE"):
                answer = await send(method, running.url + path, None, {"Authorization": f"Bearer {alice.token}"})
                assert answer.code == 404, path
        announced = await announce(alice, b"content", media_type="../../etc/passwd")
        assert announced.fields() == ["media_type"]


@pytest.mark.gen_test
async def test_limits_follow_the_tier_at_once(services: Services, storage: dict[str, str]) -> None:
    limits = {"TIER_FREE_FILE_BYTES": "10", "TIER_FREE_TOTAL_BYTES": "15", "TIER_PREMIUM_FILE_BYTES": "20"}
    async with place(services) as home, serving(home, **storage, **limits) as running:
        alice = await Account().register(running.url)
        assert (await announce(alice, bytes(11))).code == "file_too_large"
        assert (await announce(alice, bytes(10))).status == 201
        assert (await announce(alice, bytes(6))).code == "quota_exceeded"
        await running.app.db.execute(
            """INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, status, signature, expires_at)
               VALUES (repeat('0', 64), $1, 'premium', 'active', $2, now() + interval '1 hour')""",
            alice.fingerprint,
            bytes(64),
        )
        usage = (await alice.get("/files/usage")).json
        assert (usage["tier"], usage["total_bytes"], usage["file_bytes"]) == ("premium", 20 << 30, 20)
        assert (await announce(alice, bytes(20))).status == 201
        assert (await announce(alice, bytes(21))).code == "file_too_large"
        await running.app.db.execute("UPDATE subscriptions SET expires_at = now() - interval '1 second'")
        assert (await announce(alice, bytes(1))).code == "quota_exceeded"
        assert (await alice.get("/files/usage")).json["used_bytes"] == 30, "nothing is taken from who has more"
