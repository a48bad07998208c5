"""Frames to groups: who receives them, on which instance, in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from handlers.sockets.delivery import MAX_DIRECT, SLICE, TURN, Delivery
from tests.client import Account
from tests.running import Services, place, serving

pytestmark = pytest.mark.usefixtures("made_up_frames")


@pytest.mark.gen_test(timeout=60)
async def test_a_user_who_joins_just_after_an_event_does_not_receive_it(services: Services) -> None:
    """Members are looked up after the commit, when another user may have joined."""
    async with place(services) as shared, serving(shared) as one:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        chat = (await alice.post("/chats", {"type": "group", "participants": []})).json["id"]
        changed = (await alice.put(f"/chats/{chat}", {"title": "before"})).json
        access = await one.app.db.value("SELECT access FROM chat_threads WHERE id = $1", UUID(chat))
        assert (await alice.post(f"/chats/{chat}/participants", {"public_id": bob.public_id})).status == 201
        async with bob.socket() as late, alice.socket() as there:
            frame = {"type": "chat_updated", "chat_id": chat, "seq": changed["last_seq"]}
            await one.app.delivery.announce(UUID(chat), access, [frame])
            await there.expect("chat_updated")
            await late.silent()
            await one.app.delivery.announce(UUID(chat), access, [{**frame, "seq": changed["last_seq"] + 1}])
            await late.expect("chat_updated")


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("away", [1, MAX_DIRECT + 1])
async def test_members_on_other_instances_receive_a_frame_once(services: Services, away: int) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice, bob = [await Account(one_time=0).register(one.url) for _ in range(2)]
        chat = (await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).json["id"]
        members = [UUID(bob.user_id), UUID(alice.user_id), *(uuid4() for _ in range(away))]
        async with bob.socket(two.url) as there, alice.socket(two.url) as left_out, alice.socket(one.url) as here:
            frame = {"type": "typing", "chat_id": chat, "user_id": alice.user_id}
            one.app.delivery.send(UUID(chat), 1, members, frame, without=UUID(alice.user_id), droppable=True)
            await there.expect("typing")
            for socket in (there, left_out, here):
                await socket.silent(0.2)


@pytest.mark.gen_test(timeout=60)
async def test_frames_of_a_large_group_keep_their_order_and_let_others_through(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account(one_time=0).register(one.url)
        group, members = uuid4(), [*(uuid4() for _ in range(3 * SLICE)), UUID(alice.user_id)]
        async with alice.socket() as socket:
            for seq in range(1, 41):
                one.app.delivery.send(group, 1, members, {"type": "message_new", "seq": seq})
            other = asyncio.create_task(socket.send("typing", chat_id=str(uuid4())))
            for seq in range(1, 41):
                assert (await socket.expect("message_new"))["seq"] == seq
            assert (await other)["code"] == "not_found"


@pytest.mark.gen_test(timeout=60)
async def test_a_group_that_is_behind_says_so_and_goes_on_after_an_outage(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one:
        alice = await Account(one_time=0).register(one.url)
        answers: list[Any] = [ConnectionError("PostgreSQL is away"), [UUID(alice.user_id)]]

        async def members(*_: Any) -> Collection[UUID]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

        delivery, group = Delivery(one.app.hub, one.app.bus, members), uuid4()
        async with alice.socket() as socket:
            for seq in (1, 2):
                message = f"{uuid4().hex} send {group} {seq} {seq}  \n".encode() + b'{"type":"message_new"}'
                delivery._receive("ws:groups", message)
            await socket.expect(
                "message_new"
            )  # the second frame; the members of the first were unknown, because the look-up failed
            await socket.silent(0.2)
        everyone = [uuid4() for _ in range(SLICE + 1)]
        for seq in range(70):
            assert delivery.is_behind(group) == (seq >= 64)
            delivery.send(group, 1, everyone, {"type": "message_new", "seq": seq})
        await asyncio.gather(*delivery._tasks)
        assert not delivery.is_behind(group)


@pytest.mark.gen_test
async def test_each_turn_of_the_loop_writes_one_bounded_slice_of_all_groups() -> None:
    """Others are served in between, even if many groups are busy and their frames are large."""
    turns: list[list[tuple[str, int]]] = [[]]

    class Sockets:
        instance_id = uuid4()
        metrics = SimpleNamespace(written=lambda *_: None)

        def write_all(self, users: Collection[UUID], kind: str, frame: bytes, *_: Any) -> list[UUID]:
            turns[-1].append((kind, len(users) * len(frame)))
            return []

    delivery = Delivery(Sockets(), SimpleNamespace(publish=None), None)  # type: ignore[arg-type]
    members = [uuid4() for _ in range(1024)]
    for group in range(5):
        chat = uuid4()
        for _ in range(20):
            delivery.send(chat, 1, members, {"type": f"group_{group}", "payload": "x" * 80_000})
    small = {"type": "small", "payload": "x" * 80_000}
    delivery.send(uuid4(), 1, members[:100], small)  # 8 MB: too much for one turn, too
    assert turns == [[]]
    while delivery.waiting() or delivery._queues:
        turns.append([])
        await asyncio.sleep(0)
    written = [turn for turn in turns if turn]
    assert max(sum(size for _, size in turn) for turn in written) <= TURN
    assert all(len({kind for kind, _ in turn}) == 1 for turn in written)
    # By turns: a small group is done while large ones still go on.
    kinds = [turn[0][0] for turn in written]
    assert len(kinds) - kinds[::-1].index("small") < len(kinds) / 5
    assert sum(size for turn in written for kind, size in turn if kind == "group_0") > 20 * 1024 * 80_000
