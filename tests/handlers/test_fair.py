"""The fair queue: it loses nothing, keeps the order of each key, and serves all keys in turn."""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.limits.fair_queue import FairQueue

QUANTUM, HEAVIEST = 4, 16  # so the heaviest item waits for four turns
KEYS = st.integers(0, 5)
# Put an item under a key with a weight, or (None) take at most so many.
STEPS = st.lists(st.one_of(st.tuples(KEYS, st.integers(1, HEAVIEST)), st.tuples(st.none(), st.integers(1, 9))))


@given(STEPS, st.integers(1, 40))
def test_nothing_is_lost_and_each_key_keeps_its_order(steps: list[tuple[int | None, int]], heavy: int) -> None:
    queue: FairQueue[int, tuple[int, int, int]] = FairQueue(QUANTUM, 50, 200)
    waiting: dict[int, deque[tuple[int, int, int]]] = defaultdict(deque)
    refused = False
    for number, (key, amount) in enumerate([*steps, *[(None, 9)] * len(steps)]):
        if key is not None:
            item = (key, number, amount)
            if queue.put(key, amount, item):
                waiting[key].append(item)
            else:
                refused = True
        else:
            taken = queue.take(amount, heavy)
            assert len(taken) <= amount
            assert len(taken) == 1 or sum(item[2] for item in taken) <= heavy
            assert taken or not any(waiting.values())
            for item in taken:
                assert waiting[item[0]].popleft() == item
        assert len(queue) == sum(map(len, waiting.values())) <= 50
        assert queue.weight == sum(item[2] for items in waiting.values() for item in items) <= 200
    assert len(queue) == 0
    assert not refused or len(steps) > 1


@given(st.lists(st.lists(st.integers(1, HEAVIEST), min_size=1, max_size=20), min_size=1, max_size=6), st.integers(1, 9))
def test_each_key_is_served_within_a_few_rounds(others: list[list[int]], most: int) -> None:
    """Before the first item of a key, each other key receives at most the weight of the turns that this item needs,
    and what it had left from an earlier turn."""
    queue: FairQueue[int, tuple[int, int]] = FairQueue(QUANTUM, 10_000, 100_000)
    for key, weights in enumerate(others):
        for weight in weights:
            assert queue.put(key, weight, (key, weight))
    assert queue.put(99, HEAVIEST, (99, HEAVIEST))
    before: dict[int, int] = defaultdict(int)
    while True:
        taken = queue.take(most, 2 * HEAVIEST)
        for key, weight in taken:
            if key == 99:
                turns = HEAVIEST // QUANTUM
                # A queue that is drained in one go has no turns: then everything is taken at once.
                assert all(total <= turns * QUANTUM + HEAVIEST for total in before.values())
                return
            before[key] += weight


def test_a_key_with_heavy_items_gets_no_larger_share() -> None:
    queue: FairQueue[str, str] = FairQueue(QUANTUM, 10_000, 100_000)
    for _ in range(100):
        assert queue.put("heavy", HEAVIEST, "heavy")
        for _ in range(HEAVIEST):
            assert queue.put("light", 1, "light")
    taken = queue.take(170)
    assert taken.count("heavy") == pytest.approx(10, abs=1)
    assert taken.count("light") == pytest.approx(160, abs=1)


def test_no_key_fills_it_and_there_is_always_room_for_another() -> None:
    queue: FairQueue[int, int] = FairQueue(QUANTUM, 1_000, 1_000)
    held = dict.fromkeys(range(10), 0)
    for _ in range(100):  # ten that put whatever they may, while it is served
        for key in held:
            while queue.put(key, 1, key):
                held[key] += 1
        for key in queue.take(100):
            held[key] -= 1
    # 1,000 = 10 shares and twice one share that stays free.
    assert all(share == pytest.approx(1_000 / 12, abs=60) for share in held.values())
    newcomer = 0
    while queue.put(99, 1, 99):
        newcomer += 1
    assert newcomer > 50


def test_a_key_holds_no_more_than_each() -> None:
    queue: FairQueue[int, int] = FairQueue(1, 32, 32, each=4)
    assert [queue.put(1, 1, 1) for _ in range(6)] == [True] * 4 + [False] * 2
    assert queue.put(2, 1, 2)
    # The last place is for a key that has nothing in it.
    for key in range(3, 30):
        assert queue.put(key, 1, key)
    assert len(queue) == 32
    assert not queue.put(99, 1, 99)
    assert queue.take(2) == [1, 2]


def test_two_of_one_identity_are_not_taken_together() -> None:
    queue: FairQueue[str, str] = FairQueue(100, 100, 1_000)
    for key, item in (("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "z")):
        assert queue.put(key, 1, item)
    assert queue.take(100, identity=str) == ["x", "x", "z"]
    queue.put_back("b", 1, "w")
    assert sorted(queue.take(100, identity=str)) == ["w", "x", "y"]
    assert len(queue) == queue.weight == 0
