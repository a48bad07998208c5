"""Unread counts stay exact while messages are posted, read, deleted and expire, and users join and leave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.plugins.chatting import Json, Town, chat, message, patiently, read, say, seen, town
from tests.running import Services, periodic
from tests.thorough import rounds

T = TypeVar("T")


async def unread(by: Any, where: Json | str) -> int:
    """As the chat says; the list says the same."""
    found = await seen(by, where)
    [listed] = [entry for entry in (await by.get("/chats")).json if entry["id"] == found["id"]]
    assert listed["unread_count"] == found["unread_count"]
    return int(found["unread_count"])


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_posting_reading_and_deleting(services: Services, servers: int) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob, carol)
        by_alice = [await say(alice, group, f"of Alice {n}") for n in range(4)]  # 2 3 4 5
        by_bob = [await say(bob, group, f"of Bob {n}") for n in range(3)]  # 6 7 8
        assert [await unread(who, group) for who in made.people] == [3, 4, 7]

        # Messages of others and own ones, not read yet.
        assert (await alice.delete(f"/messages/{by_alice[1]['id']}")).status == 204
        assert [await unread(who, group) for who in made.people] == [3, 3, 6]
        assert (await bob.delete(f"/messages/{by_bob[0]['id']}")).status == 204
        assert [await unread(who, group) for who in made.people] == [2, 3, 5]

        # A receipt in the middle: 2 4 | 5 7 8.
        assert (await read(carol, group, 4))["unread_count"] == 3
        assert (await read(bob, group, 4))["unread_count"] == 1
        # A receipt at a deleted message, or at an own one, reads nothing more.
        assert (await read(bob, group, 3))["unread_count"] == 1
        assert (await read(carol, group, by_bob[0]["seq"]))["unread_count"] == 2  # 5 was before it
        assert [await unread(who, group) for who in made.people] == [2, 1, 2]

        # Deleting a message that all have read changes no count.
        assert (await alice.delete(f"/messages/{by_alice[0]['id']}")).status == 204
        assert [await unread(who, group) for who in made.people] == [2, 1, 2]
        assert (await read(alice, group, 10**9))["unread_count"] == 0
        assert (await bob.delete(f"/messages/{by_bob[2]['id']}")).status == 204
        assert [await unread(who, group) for who in made.people] == [0, 1, 1]

        # A later participant begins with none unread.
        dave = await made.newcomer()
        body = {"public_id": dave.public_id}
        assert (await alice.post(f"/chats/{group['id']}/participants", body)).status == 201
        assert await unread(dave, group) == 0
        late = await say(carol, group)
        assert [await unread(who, group) for who in (*made.people,)] == [1, 2, 1, 1]
        assert (await read(dave, group, late["seq"]))["unread_count"] == 0
        assert (await alice.delete(f"/messages/{late['id']}")).status == 204
        assert [await unread(who, group) for who in made.people] == [0, 1, 1, 0]


@pytest.mark.gen_test
async def test_simultaneous_posts_are_all_counted(services: Services) -> None:
    async with town(services, 2, people=4) as made:
        group = await chat(*made.people)
        path = f"/chats/{group['id']}/messages"
        posts = [(who, message()) for who in made.people for _ in range(10)]
        reads = [(who, seq) for who in made.people[:2] for seq in (5, 15, 25)]
        answers = await asyncio.gather(
            *(patiently(partial(who.post, path, body)) for who, body in posts),
            *(patiently(partial(who.post, f"/chats/{group['id']}/receipts", {"read_seq": seq})) for who, seq in reads),
        )
        assert {answer.status for answer in answers} == {200, 201}
        posted = [answer.json["id"] for answer in answers if answer.status == 201]
        gone = await asyncio.gather(
            *(patiently(partial(made.people[n // 10].delete, f"/messages/{posted[n]}")) for n in range(0, 40, 3)),
        )
        assert {answer.status for answer in gone} == {204}
        for who in made.people:
            marks = await seen(who, group)
            [row] = await made.sql(
                "SELECT count(*) FROM messages WHERE seq > $1 AND sender_id::text <> $2", marks["read_seq"], who.user_id
            )
            assert marks["unread_count"] == row["count"]


@pytest.mark.gen_test
async def test_unread_counts_stay_exact_across_blocks_of_deleted_messages(services: Services) -> None:
    """What is gone is kept in blocks of 4,096 messages, by number."""
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        await made.sql("UPDATE chat_threads SET last_number = 4090")
        await made.sql("UPDATE chat_participants SET read_number = 4090")
        posted = [await say(alice, group) for _ in range(12)]
        assert await unread(bob, group) == 12
        for n in (5, 4, 11, 6, 0):
            assert (await alice.delete(f"/messages/{posted[n]['id']}")).status == 204
        assert [row["block"] for row in await made.sql("SELECT block FROM chat_gone ORDER BY block")] == [0, 1]
        assert await unread(bob, group) == 7
        for number, left in ((0, 7), (2, 5), (4, 4), (5, 4), (6, 4), (7, 3), (11, 0)):
            assert (await read(bob, group, posted[number]["seq"]))["unread_count"] == left, number


# Against a simple model -----------------------------------------------------------------------------------------------

PEOPLE = 3

# A step, who takes it, and a number: of the message among those there are, or how far before the end is read.
WEIGHTS = {"post": 7, "fade": 1, "delete": 5, "read": 5, "react": 1, "leave": 1, "come": 2, "expire": 1}
does = st.tuples(
    st.sampled_from([step for step, weight in WEIGHTS.items() for _ in range(weight)]),
    st.integers(0, PEOPLE - 1),
    st.sampled_from([0, 0, 1, 1, 2, 3, 5, 8, 12]),
)


@dataclass
class Model:
    """What there should be: messages that are there by seq, and how far each has read since they came."""

    last: int = 1
    sent: dict[int, tuple[str, int, bool]] = field(default_factory=dict)  # seq: id, sender, True if it expires
    marks: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(PEOPLE), 0))
    joined: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(PEOPLE), 1))

    def unread(self, who: int) -> int:
        seen_from = max(self.marks[who], self.joined[who] - 1)
        return sum(1 for seq, (_, by, _) in self.sent.items() if seq > seen_from and by != who)


async def live(made: Town, steps: list[tuple[str, int, int]]) -> None:
    """Do the steps, and compare after each."""
    people, model = made.people, Model()
    here = await chat(*people)
    path = f"/chats/{here['id']}"
    for step, who, what in steps:
        by, inside = people[who], who in model.marks
        theirs = [seq for seq in model.sent if inside and seq >= model.joined[who]]
        if step in ("post", "fade") and inside:
            answer = await by.post(f"{path}/messages", message(**({"expires_in": 3600} if step == "fade" else {})))
            assert answer.status == 201, answer.text
            model.last += 1
            assert answer.json["seq"] == model.last
            model.sent[model.last] = answer.json["id"], who, step == "fade"
        elif step == "delete" and theirs:
            seq = theirs[-1 - what % len(theirs)]
            allowed = model.sent[seq][1] == who or who == 0
            answer = await by.delete(f"/messages/{model.sent[seq][0]}")
            assert answer.status == (204 if allowed else 403), answer.text
            if allowed:
                model.last += 1
                del model.sent[seq]
        elif step == "read" and inside:
            seq = max(0, model.last - what)
            model.marks[who] = max(seq, model.marks[who])
            marks = await read(by, here, seq)
            assert (marks["read_seq"], marks["unread_count"]) == (model.marks[who], model.unread(who))
        elif step == "react" and theirs:
            seq = theirs[-1 - what % len(theirs)]
            before = (await seen(by, here))["last_seq"]
            assert (await by.put(f"/messages/{model.sent[seq][0]}/reactions/%F0%9F%91%8D", {})).status == 204
            model.last = (await seen(by, here))["last_seq"]
            assert model.last - before in (0, 1)
        elif step == "leave" and inside and who > 0:
            assert (await by.delete(f"{path}/participants/{by.user_id}")).status == 204
            model.last += 1
            del model.marks[who], model.joined[who]
        elif step == "come" and not inside:
            assert (await people[0].post(f"{path}/participants", {"public_id": by.public_id})).status == 201
            model.last += 1
            model.marks[who] = model.joined[who] = model.last
        elif step == "expire":
            due = [seq for seq, (_, _, expires) in model.sent.items() if expires]
            await made.sql("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
            await periodic(made.servers[0], "message_expiry")()
            model.last += len(due)
            for seq in due:
                del model.sent[seq]
        for other in model.marks:
            found = await seen(people[other], here)
            assert found["last_seq"] == model.last
            assert found["unread_count"] == model.unread(other), (other, step)
    assert (await people[0].delete(path)).status == 204


@contextlib.contextmanager
def background(services: Services, people: int) -> Iterator[Callable[[Callable[[Town], Coroutine[Any, Any, T]]], T]]:
    """A town in a separate thread, where each example runs."""
    loop, ready, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[Town] = []

    async def serve() -> None:
        try:
            async with town(services, people=people) as made:
                found.append(made)
                ready.set()
                await ended.wait()
        finally:
            ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="town")
    thread.start()
    try:
        assert ready.wait(60)
        yield lambda work: asyncio.run_coroutine_threadsafe(work(found[0]), loop).result(60)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()


@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
def test_the_count_always_equals_that_of_a_simple_model(services: Services) -> None:
    with background(services, PEOPLE) as at:

        @seed(7)
        @settings(
            max_examples=rounds(10, thorough=100),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(does, min_size=20, max_size=60))
        def check(steps: list[tuple[str, int, int]]) -> None:
            at(lambda made: live(made, steps))

        check()
