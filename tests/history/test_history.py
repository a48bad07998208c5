"""A short random history on two instances, and in ``make test-thorough`` on one; ``python -m tests.history`` plays long
ones."""

from __future__ import annotations

import os
import random

import pytest

from tests.history.__main__ import play
from tests.history.run import Plan
from tests.thorough import THOROUGH, rounds

# Another one each time, which the failure names.
SEED = int(os.environ.get("MIMU_TEST_SEED") or random.SystemRandom().randrange(10**6))

PLANS = [(1, 2, 1), (2, 3, 2)]  # for ``make test-thorough``, each kill four times


@pytest.mark.gen_test(timeout=300)
@pytest.mark.parametrize(("instances", "server_kills", "postgres_kills"), PLANS if THOROUGH else [(2, 2, 1)])
async def test_nothing_is_lost_doubled_or_out_of_order(instances: int, server_kills: int, postgres_kills: int) -> None:
    times = rounds(1, thorough=4)
    plan = Plan(SEED, instances, times * server_kills, times * postgres_kills, rounds(30, thorough=50), pace=0.3)
    report = await play(plan)
    print(report.story())
    assert not report.faults, report.story()
    assert report.counts["acked"] > 20, report.story()
