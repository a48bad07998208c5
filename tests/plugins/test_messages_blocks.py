"""What a block ends between two, and how soon; and what moves a chat in the list."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.client import Account, ask
from tests.running import Services, place, serving


def message() -> dict[str, str]:
    return {"client_id": str(uuid4()), "encrypted_payload": "AAAA", "message_type": "x"}


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("kind", ["direct", "secret"])
async def test_a_block_ends_what_two_write_to_each_other_on_every_instance(services: Services, kind: str) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        bob.url = two.url
        chat = (await alice.post("/chats", {"type": kind, "participants": [bob.public_id]})).json["id"]
        hers = (await alice.post(f"/chats/{chat}/messages", message())).json["id"]
        his = (await bob.post(f"/chats/{chat}/messages", message())).json["id"]

        async def answers(who: Account, own: str, other: str) -> list[int]:
            return [
                (await who.post(f"/chats/{chat}/messages", message())).status,
                (await who.put(f"/messages/{own}", {"encrypted_payload": "BBBB"})).status,
                (await who.put(f"/messages/{other}/reactions/%E2%9D%A4", None)).status,
                (await who.put(f"/chats/{chat}", {"title": "x"})).status,
            ]

        assert await answers(alice, hers, his) == await answers(bob, his, hers) == [201, 200, 204, 200]
        assert (await alice.put(f"/users/{bob.public_id}/block", {})).status == 204
        assert await answers(bob, his, hers) == await answers(alice, hers, his) == [403] * 4
        assert (await bob.delete(f"/messages/{his}")).status == 204  # what one wrote one may take back
        assert (await alice.delete(f"/users/{bob.public_id}/block")).status == 204
        assert (await bob.post(f"/chats/{chat}/messages", message())).status == 201


@pytest.mark.gen_test(timeout=60)
async def test_senders_without_the_key_do_not_use_up_the_limit_of_an_inbox(services: Services) -> None:
    limits = {"RATE_LIMITS": "on", "RATE_LIMIT_SEALED_INBOX": "2/minute", "RATE_LIMIT_SEALED": "100/minute"}
    async with place(services) as shared, serving(shared, **limits) as one:
        bob = await Account(one_time=0).register(one.url)
        me = await bob.put("/users/me", {"sealed_access_key": "A" * 22})
        assert me.json["sealed_chat_id"] == (await bob.get("/chats")).json[0]["id"]

        async def write(key: str) -> int:
            body = {"public_id": bob.public_id, **message()}
            headers = {"Unidentified-Access-Key": key}
            return (await ask(one.url, "POST", "/messages/sealed", body, headers=headers)).status

        assert [await write("B" * 22) for _ in range(5)] == [401] * 5
        assert [await write("A" * 22) for _ in range(3)] == [201, 201, 429]


@pytest.mark.gen_test(timeout=60)
async def test_the_socket_receives_a_new_inbox(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        bob = await Account(one_time=0).register(one.url)
        async with bob.socket() as socket:
            me = await bob.put("/users/me", {"sealed_access_key": "A" * 22})
            made = await socket.expect("chat_created")
            assert (made["chat_id"], made["seq"]) == (me.json["sealed_chat_id"], 1)


@pytest.mark.gen_test(timeout=60)
async def test_reading_and_reacting_leave_the_list_as_it_is(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        chats = []
        for _ in range(2):
            chats.append((await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).json["id"])
            posted = (await alice.post(f"/chats/{chats[-1]}/messages", message())).json
            if len(chats) == 1:
                old = posted
        order = [chat["id"] for chat in (await bob.get("/chats")).json]
        assert order == chats[::-1]
        assert (await bob.post(f"/chats/{chats[0]}/receipts", {"read_seq": old["seq"]})).status == 200
        assert (await bob.put(f"/messages/{old['id']}/reactions/%E2%9D%A4", None)).status == 204
        assert (await alice.put(f"/messages/{old['id']}", {"encrypted_payload": "BBBB"})).status == 200
        assert [chat["id"] for chat in (await bob.get("/chats")).json] == order
        assert (await alice.post(f"/chats/{chats[0]}/messages", message())).status == 201
        assert [chat["id"] for chat in (await bob.get("/chats")).json] == chats
