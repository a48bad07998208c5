"""Message ids: in the order of time, and random, so that an id reveals nothing about others."""

from __future__ import annotations

import random
import time

from plugins.messages.ids import new_id
from tests.running import ROOT

PRODUCT = ("handlers", "models", "plugins", "config", "scripts")


def test_ids_are_of_version_7_and_in_the_order_of_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(2000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == len(ids)
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    moments = [one.int >> 80 for one in ids]
    assert moments == sorted(moments)
    assert before <= moments[0] <= moments[-1] <= after
    every = (0xFFF << 64) | ((1 << 62) - 1)
    ones = zeros = 0
    for one in ids:
        ones, zeros = ones | one.int, zeros | ~one.int
    assert ones & every == zeros & every == every, "each of the 74 bits is random"


def test_ids_do_not_come_from_the_generator_that_all_share() -> None:
    random.seed(1)
    first = [new_id().int & (1 << 62) - 1 for _ in range(10)]
    random.seed(1)
    assert not set(first) & {new_id().int & (1 << 62) - 1 for _ in range(10)}


def test_nothing_of_the_product_uses_that_generator() -> None:
    for room in PRODUCT:
        for file in (ROOT / room).rglob("*.py"):
            text = file.read_text().replace("random.SystemRandom", "")
            assert "random." not in text.replace("_random.", ""), file
