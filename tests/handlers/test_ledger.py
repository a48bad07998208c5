"""Budgets: spending on several instances and while Redis is down, and honest clients, which stay within them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from config.settings import Budgets, SettingsError, load
from config.values import Rate
from handlers.limits import ledger
from handlers.limits.ledger import Account, Ledger
from handlers.metrics import Metrics
from handlers.wire.costs import (
    BYTES_IN,
    BYTES_OUT,
    CHANGES,
    FANOUT,
    FRAMES,
    JOINS,
    POSTS,
    READS,
    REQUESTS,
    ROWS,
    WRITES,
    Cost,
)
from handlers.wire.errors import RateLimited
from tests.running import Services, place

SMALL = Budgets(budget_requests=Rate(10, 10), budget_rows=Rate(5, 50), budget_fanout=Rate(1000, 10))


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def away() -> Redis:
    return Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))


def alone(budgets: Budgets = SMALL, clock: Clock | None = None) -> tuple[Ledger, Clock]:
    """Return a ledger whose Redis is down."""
    clock = clock or Clock()
    return Ledger(away(), budgets, Metrics(), clock=clock), clock


@asynccontextmanager
async def instances(services: Services, budgets: Budgets = SMALL) -> AsyncIterator[tuple[Ledger, Ledger]]:
    """Two ledgers that use one Redis."""
    async with place(services) as shared, Redis.from_url(shared.redis) as one, Redis.from_url(shared.redis) as two:
        yield Ledger(one, budgets, Metrics()), Ledger(two, budgets, Metrics())


def admitted(account: Account, cost: Cost = READS, most: int = 10_000) -> int:
    """Return how many requests an account can make at once before one is refused."""
    for number in range(most):
        try:
            account.spend_request(cost)
        except RateLimited:
            return number
    return most


def wait_of(account: Account, cost: Cost = READS) -> int:
    with pytest.raises(RateLimited) as refused:
        account.spend_request(cost)
    return int(refused.value.headers["Retry-After"])


def test_a_budget_is_spent_at_once_and_refills_evenly() -> None:
    books, clock = alone()
    account = books.account(uuid4())
    assert admitted(account) == 10
    assert wait_of(account) == 1
    clock.now += 3
    assert admitted(account) == 3


def test_a_refused_request_spends_nothing() -> None:
    books, clock = alone()
    account = books.account(uuid4())
    admitted(account)
    for _ in range(100):
        wait_of(account)
    clock.now += 1
    assert admitted(account) == 1


def test_costs_counted_afterwards_may_exceed_the_budget_and_are_paid_off() -> None:
    books, clock = alone()
    account = books.account(uuid4())
    account.charge(FANOUT, 2995)  # three budgets
    assert admitted(account) == 10, "who reads does not pay for the fan-out"
    clock.now += 10
    assert wait_of(account, POSTS) == 10
    with pytest.raises(RateLimited):
        account.spend_frame(POSTS, 10)
    account.spend_frame(READS, 10)
    clock.now += 10.01
    account.spend_request(POSTS)


def test_rows_are_spent_before_and_given_back() -> None:
    books, _ = alone()
    account = books.account(uuid4())
    assert admitted(account, WRITES) == 5
    account.charge(ROWS, -1)
    assert admitted(account, WRITES) == 1
    account = books.account(uuid4())
    account.spend(ROWS, 100)
    with pytest.raises(RateLimited):
        account.spend(ROWS, 1)


def test_an_address_may_spend_more_and_shares_nothing_with_accounts() -> None:
    books, _ = alone()
    assert admitted(books.account("203.0.113.1")) == 100
    assert admitted(books.account(uuid4())) == 10


def test_the_header_shows_the_budget_that_is_used_up_the_most() -> None:
    books, clock = alone()
    account = books.account(uuid4())
    for _ in range(3):
        account.spend_request(WRITES)
    quota = account.quota(WRITES.request)
    assert (quota.policy, quota.standing) == ('"rows";q=5;w=50', '"rows";r=2;t=30')
    account.charge(BYTES_IN, 1 << 40)
    quota = account.quota(WRITES.request)
    assert quota.policy == f'"bytes-in";q={256 << 20};w=600;qu="content-bytes"'
    assert quota.standing.startswith('"bytes-in";r=0;t=')
    clock.now += 10_000_000
    assert account.quota(WRITES.request).standing.endswith(";t=0")


@pytest.mark.gen_test
async def test_two_instances_share_what_is_spent(services: Services) -> None:
    user = uuid4()
    async with instances(services) as (one, two):
        assert admitted(one.account(user)) == 10
        await one.settle()
        two.account(user).spend_request(READS)  # it knows nothing of it yet
        await two.settle()
        assert admitted(two.account(user)) == 0


@pytest.mark.gen_test
async def test_before_settlement_each_instance_grants_one_budget_and_the_excess_is_a_debt(services: Services) -> None:
    user = uuid4()
    async with instances(services) as books:
        assert [admitted(each.account(user)) for each in books] == [10, 10]
        for each in (*books, *books):
            each.account(user).charge(FRAMES, 1)
            await each.settle(all_=True)
        # Twenty of ten in ten seconds: nothing for ten seconds, on either.
        assert [9 <= wait_of(each.account(user)) <= 11 for each in books] == [True, True]


@pytest.mark.gen_test
async def test_small_spendings_reach_the_others_after_a_while(services: Services) -> None:
    user = uuid4()
    async with instances(services, Budgets(budget_requests=Rate(1000, 1000))) as (one, two):
        clock = Clock()
        one.clock = clock
        one.account(user).spend_request(READS)
        await one.settle()
        two.account(user).charge(FRAMES, 1)
        await two.settle(all_=True)
        assert two.account(user).quota((REQUESTS,)).left == 1000
        clock.now += ledger.SETTLE_SECONDS
        await one.settle()
        two.account(user).charge(FRAMES, 1)
        await two.settle(all_=True)
        assert two.account(user).quota((REQUESTS,)).left == 999


@pytest.mark.gen_test
async def test_while_redis_is_down_each_instance_counts_alone_and_settles_afterwards(services: Services) -> None:
    user = uuid4()
    async with instances(services) as (one, two):
        script, one._script = one._script, away().register_script("return 0")
        assert admitted(one.account(user)) == 10
        await one.settle()
        assert admitted(one.account(user)) == 0
        one._script = script
        one.account(user).charge(FRAMES, 1)
        await one.settle(all_=True)
        two.account(user).charge(FRAMES, 1)
        await two.settle(all_=True)
        assert admitted(two.account(user)) <= 1, "what was spent meanwhile is known again"


@pytest.mark.gen_test
async def test_a_redis_that_lost_its_data_is_restored(services: Services) -> None:
    user = uuid4()
    async with place(services) as shared, Redis.from_url(shared.redis) as redis:
        books, other = Ledger(redis, SMALL, Metrics()), Ledger(redis, SMALL, Metrics())
        admitted(books.account(user))
        await books.settle()
        await redis.flushdb()
        books.account(user).charge(FRAMES, 1)
        await books.settle(all_=True)
        other.account(user).charge(FRAMES, 1)
        await other.settle(all_=True)
        assert admitted(other.account(user)) <= 1
        assert 0 < await redis.pttl(f"budget:{user}") <= 12_000


@pytest.mark.gen_test
async def test_many_accounts_are_settled_in_few_scripts_and_forgotten_when_they_are_full(services: Services) -> None:
    async with place(services) as shared, Redis.from_url(shared.redis) as redis:
        books = Ledger(redis, SMALL, Metrics())
        users = [uuid4() for _ in range(3 * ledger.ACCOUNTS_PER_SCRIPT + 1)]
        for user in users:
            books.account(user).spend_request(READS)
        held = books.account(users[0])
        await books.settle()
        assert len(books) == len(users)
        assert await redis.dbsize() == len(users)
        clock = Clock()
        clock.now = books.clock() + 100
        books.clock = clock
        await books.settle()
        gc.collect()
        assert len(books) == 0
        assert books.account(users[0]) is held
        assert len(books._accounts) == 1


def test_the_number_of_accounts_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_ACCOUNTS", 100)
    books, _ = alone()
    oldest = books.account("203.0.113.1")
    oldest.spend_request(READS)
    for number in range(200):
        books.account(f"198.51.100.{number}").spend_request(READS)
    assert len(books) == 100
    oldest.spend_request(READS)
    assert len(books._unsettled) == 100
    assert books.account("203.0.113.1") is oldest


@pytest.mark.gen_test
async def test_metrics_count_by_kind() -> None:
    metrics = Metrics()
    books = Ledger(away(), SMALL, metrics, clock=Clock())
    account = books.account(uuid4())
    admitted(account)
    account.charge(FANOUT, 500)
    await books.settle(all_=True)
    lines = metrics.exposition().decode()
    assert 'mimu_budget_spent_total{kind="requests"} 10.0' in lines
    assert 'mimu_budget_spent_total{kind="fan_out"} 500.0' in lines
    assert 'mimu_budget_refused_total{kind="requests"} 1.0' in lines
    assert str(account.key) not in lines


def test_settings_of_bytes() -> None:
    read = load({"": Budgets}, {"BUDGET_BYTES_IN": "10MiB/2 minutes", "BUDGET_ROWS": "3/hour"})[""]
    assert isinstance(read, Budgets)
    assert (read.budget_bytes_in, read.budget_rows) == (Rate(10 << 20, 120), Rate(3, 3600))
    for wrong in ("10MiB", "ten/hour", "1/fortnight", "0/hour", "-1/hour"):
        with pytest.raises(SettingsError):
            load({"": Budgets}, {"BUDGET_BYTES_IN": wrong})


# What honest clients do, at the default budgets ---------------------------------------------------------------------

EVENT = 1200  # bytes of JSON of a message of 512 bytes


def a_phone_that_comes_back_after_a_week(account: Account) -> Iterator[float]:
    """500 queued messages, 100,000 events and a supply of keys, as fast as sockets and pages go."""
    for _ in range(500):
        account.spend_frame(POSTS, 2000)
        account.charge(FANOUT, 50 * 2000)
        yield 1 / 60
    for _ in range(500):  # pages of 200 events, ten a second as RATE_LIMIT_SYNC has it
        account.spend_request(READS)
        account.charge(BYTES_OUT, 200 * EVENT)
        yield 0.1
    account.spend_request(WRITES)
    account.charge(BYTES_IN, 250_000)


def a_desktop_that_scrolls(account: Account) -> Iterator[float]:
    """Four pages of 200 messages a second for a quarter of an hour, and images by their metadata."""
    for _ in range(15 * 60 * 4):
        account.spend_request(READS)
        account.charge(BYTES_OUT, 200 * EVENT)
        account.spend_request(READS)
        yield 0.25


def a_bot_in_200_groups(account: Account) -> Iterator[float]:
    """60 messages of 1 KiB a second into groups of 200, for an hour."""
    for _ in range(60 * 3600):
        account.spend_frame(POSTS, 1100)
        account.charge(FANOUT, 200 * 1200)
        yield 1 / 60


def an_admin_who_adds_1000_people(account: Account) -> Iterator[float]:
    """1,000 joins one after the other, as fast as answers arrive, each sent to the whole group; then 30 changes."""
    for number in range(1000):
        account.spend_request(JOINS)
        account.charge(FANOUT, number * 300)
        yield 0.02
    for _ in range(30):
        account.spend_request(CHANGES)
        account.charge(FANOUT, 1000 * 16_000)
        yield 1


def a_channel_of_100_000(account: Account) -> Iterator[float]:
    """A post of 1 KiB every ten seconds, for an hour."""
    for _ in range(360):
        account.spend_request(POSTS)
        account.charge(FANOUT, 100_000 * 1500)
        yield 10


@pytest.mark.parametrize(
    "client",
    [
        a_phone_that_comes_back_after_a_week,
        a_desktop_that_scrolls,
        a_bot_in_200_groups,
        an_admin_who_adds_1000_people,
        a_channel_of_100_000,
    ],
)
def test_an_honest_client_meets_no_budget(client: object) -> None:
    assert callable(client)
    books, clock = alone(Budgets())
    account = books.account(UUID(int=1))
    for seconds in client(account):
        clock.now += seconds


def test_a_flood_is_over_soon() -> None:
    """64 KiB of payload at 60 frames a second, into a group of 1,000."""
    books, clock = alone(Budgets())
    account, frames = books.account(uuid4()), 0
    with contextlib.suppress(RateLimited):
        while frames < 100:
            account.spend_frame(POSTS, 90_000)
            account.charge(FANOUT, 1000 * 90_000)
            frames += 1
            clock.now += 1 / 60
    assert 10 < frames < 20


@pytest.mark.gen_test
async def test_settling_does_not_block_the_loop() -> None:
    books, _ = alone()
    account = books.account(uuid4())
    account.spend_request(READS)
    async with asyncio.timeout(ledger.REDIS_TIMEOUT + 1):
        await books.settle(all_=True)
    assert not books._unsettled
