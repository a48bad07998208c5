"""The ledger: the budgets of each account, spent in this process at once and settled with Redis soon after.

A rate limit counts how often one thing is done. A budget counts the cost of everything together: requests, frames,
bytes in and out, bytes of files, rows kept, and bytes multiplied by their recipients. Every route and every frame
declares a ``Cost``; an account (or a client address if there is no account) has one budget for each kind of cost.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from uuid import UUID
from weakref import WeakValueDictionary

import structlog
from redis.asyncio import Redis

from config.settings import Budgets
from config.values import Rate
from handlers.limits.rates import REDIS_TIMEOUT, Quota
from handlers.limits.share import (
    MAX_AT_WORK,
    MAX_AT_WORK_ADDRESS,
    MAX_FANOUT_SECONDS,
    SECONDS_PER_FANOUT_BYTE,
    SECONDS_PER_RECIPIENT,
    Share,
    WaitTotals,
)
from handlers.metrics import Metrics
from handlers.redis_service import REDIS_ERRORS
from handlers.wire.costs import BYTE_KINDS, BYTES_IN, FANOUT, FRAMES, KINDS, REQUESTS, ROWS, Cost
from handlers.wire.errors import RateLimited

log = structlog.get_logger(__name__)

# An account is settled when it has spent this part of a budget, or this long after it began to spend: most accounts
# send a few frames a minute, and are then settled once in ten seconds.
SETTLE_ABOVE, SETTLE_SECONDS = 1 / 64, 10.0  # of a budget; seconds
ACCOUNTS_PER_SCRIPT = 100  # 2.5 ms here, and 1 ms in which Redis is blocked
MAX_ACCOUNTS = 50_000  # accounts and addresses in memory, 700 bytes each; the oldest are dropped first

# A budget is one number (GCRA): the time until which it is spent, in microseconds of Redis's clock. A settlement adds
# what was spent here, and raises the number to the value of this instance, which restores it after Redis lost its data
# or was down. Returns how far ahead of now each number is.
# KEYS: accounts. ARGV: for each account and kind, microseconds spent, and microseconds ahead on this instance.
_SETTLE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kinds = #ARGV / #KEYS / 2
local answer = {}
for account = 1, #KEYS do
  local stored = redis.call('HGETALL', KEYS[account])
  local at = {}
  for field = 1, #stored, 2 do at[tonumber(stored[field])] = tonumber(stored[field + 1]) end
  local longest, changed = 0, {}
  for kind = 0, kinds - 1 do
    local place = ((account - 1) * kinds + kind) * 2
    local spent, known = tonumber(ARGV[place + 1]), tonumber(ARGV[place + 2])
    local ahead = math.max((at[kind] or 0) - now, 0) + spent
    if known > ahead then ahead = known end
    if ahead > 0 and (spent > 0 or now + ahead > (at[kind] or 0) + 1000) then
      changed[#changed + 1] = kind
      changed[#changed + 1] = string.format('%.0f', now + ahead)
    end
    if ahead > longest then longest = ahead end
    answer[#answer + 1] = math.ceil(ahead)
  end
  if #changed > 0 then
    redis.call('HSET', KEYS[account], unpack(changed))
    redis.call('PEXPIRE', KEYS[account], math.ceil(longest / 1000) + 1000)
  end
end
return answer
"""


class _BudgetRates:
    """The rates of the budgets of all accounts, or of all addresses: seconds for each unit, seconds of each budget, the
    seconds ahead at which one more unit fits, and the share of the loop."""

    __slots__ = ("at_once", "counts", "intervals", "room", "share", "windows")

    def __init__(self, rates: Sequence[Rate], times: int, share: float, at_once: int) -> None:
        self.share, self.at_once = share, at_once
        self.counts = tuple(rate.count * times for rate in rates)
        self.windows = tuple(float(rate.seconds) for rate in rates)
        self.intervals = tuple(rate.seconds / (rate.count * times) for rate in rates)
        # Plus a microsecond, for the rounding errors of thousands of sums.
        self.room = tuple(
            window - interval + 1e-6 for window, interval in zip(self.windows, self.intervals, strict=True)
        )


class Account:
    """The budgets of one account or address in this process: for each kind the time until which it is spent."""

    __slots__ = ("__weakref__", "_at", "_budget", "_intervals", "_ledger", "_pending", "_room", "key", "share", "since")

    def __init__(self, ledger: Ledger, key: UUID | str, budget: _BudgetRates) -> None:
        self.key, self._ledger, self._budget = key, ledger, budget
        self._room, self._intervals = budget.room, budget.intervals
        self._at = [0.0] * len(KINDS)
        self._pending = [0.0] * len(KINDS)  # seconds of each budget that are not settled yet
        self.since = 0.0  # when the first of them was spent; 0 if there are none
        self.share = Share(budget.share, budget.at_once, ledger.clock, ledger.waits)

    def spend_frame(self, cost: Cost, size: int) -> None:
        """Spend a frame of ``size`` bytes. Raises RateLimited, and spends nothing, if a budget that it needs is
        exhausted."""
        now = self._ledger.clock()
        at, room, pending, intervals = self._at, self._room, self._pending, self._intervals
        for kind in cost.frame:
            if at[kind] - now > room[kind]:
                raise self._ledger.refusal(kind, at[kind] - now - room[kind])
        # _spend() twice, inlined: this runs 17,000 times a second.
        spent = intervals[FRAMES]
        until = at[FRAMES]
        at[FRAMES] = (until if until > now else now) + spent  # noqa: FURB136 - max() takes as long as all of this
        pending[FRAMES] += spent
        spent = size * intervals[BYTES_IN]
        until = at[BYTES_IN]
        at[BYTES_IN] = (until if until > now else now) + spent  # noqa: FURB136
        pending[BYTES_IN] += spent
        if not self.since:
            self.since = now
            self._ledger.remember(self)
        if cost.rows:
            self._spend(ROWS, cost.rows, now)

    def spend_request(self, cost: Cost) -> None:
        """Spend a request with its rows; its bytes are spent later, when they are counted. Raises RateLimited, and
        spends nothing, if a budget that it needs is exhausted."""
        now = self._ledger.clock()
        for kind in cost.request:
            self._check(kind, now)
        self._spend(REQUESTS, 1, now)
        if cost.rows:
            self._spend(ROWS, cost.rows, now)

    def spend(self, kind: int, amount: float) -> None:
        """Spend an amount before the work is done. Raises RateLimited, and spends nothing, if the budget is exhausted.
        The last amount may exceed the budget; then the account waits longer for the next one."""
        now = self._ledger.clock()
        self._check(kind, now)
        self._spend(kind, amount, now)

    def charge(self, kind: int, amount: float) -> None:
        """Spend an amount that was already used. A negative amount is a refund."""
        self._spend(kind, amount, self._ledger.clock())

    def _check(self, kind: int, now: float) -> None:
        over = self._at[kind] - now - self._room[kind]
        if over > 0:
            raise self._ledger.refusal(kind, over)

    def _spend(self, kind: int, amount: float, now: float) -> None:
        seconds = amount * self._intervals[kind]
        until = self._at[kind]
        self._at[kind] = (until if until > now else now) + seconds  # noqa: FURB136
        self._pending[kind] += seconds
        if not self.since:
            self.since = now
            self._ledger.remember(self)

    def quota(self, kinds: Iterable[int]) -> Quota:
        """Return the state of the budget with the smallest part left."""
        now, at, windows = self._ledger.clock(), self._at, self._budget.windows
        tightest = max(kinds, key=lambda kind: (at[kind] - now) / windows[kind])
        ahead = max(at[tightest] - now, 0.0)
        count, window = self._budget.counts[tightest], windows[tightest]
        left = max(0, int((window - ahead) / self._intervals[tightest] + 1e-6))
        reset = ahead if left else ahead - self._room[tightest]
        unit = "content-bytes" if tightest in BYTE_KINDS else ""
        return Quota(KINDS[tightest], count, int(window), left, max(reset, 0.0), unit)

    # Settlement, by the ledger --------------------------------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """True if the account has spent enough, or long enough ago, to be settled."""
        windows = self._budget.windows
        return now - self.since >= SETTLE_SECONDS or any(
            pending > SETTLE_ABOVE * window for pending, window in zip(self._pending, windows, strict=True)
        )

    def collect(self, now: float) -> tuple[list[int], list[float]]:
        """Return the pending amounts, in microseconds for the script and in units of each kind, and reset them."""
        arguments = []
        for pending, at in zip(self._pending, self._at, strict=True):
            arguments += [max(int(pending * 1e6), 0), max(int((at - now) * 1e6), 0)]
        spent = [pending / interval for pending, interval in zip(self._pending, self._intervals, strict=True)]
        self._pending, self.since = [0.0] * len(KINDS), 0.0
        return arguments, spent

    def merge(self, ahead: Sequence[int], now: float) -> None:
        """Merge the values from Redis with what was spent here since the request."""
        for kind, microseconds in enumerate(ahead):
            if microseconds:
                known = now + microseconds / 1e6 + self._pending[kind]
                if known > self._at[kind]:
                    self._at[kind] = known

    def is_unspent(self, now: float) -> bool:
        """True if all budgets and the share are full."""
        return not self.since and max(self._at) <= now and self.share.is_unused


class Ledger:
    """All accounts that spend on this instance. ``settle`` runs about once a second.

    An instance receives within a second what an account spent on others. Until then each instance grants at most one
    budget. What was granted too much is a debt in Redis, which must be paid off before more is granted. While Redis is
    down, each instance counts alone.
    """

    def __init__(
        self,
        redis: Redis,
        budgets: Budgets,
        metrics: Metrics,
        *,
        on: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on, self.clock, self.waits = on, clock, WaitTotals()
        self._script = redis.register_script(_SETTLE)
        rates = (
            budgets.budget_requests,
            budgets.budget_frames,
            budgets.budget_bytes_in,
            budgets.budget_bytes_out,
            budgets.budget_transfer,
            budgets.budget_rows,
            budgets.budget_fanout,
        )
        share, times = budgets.account_share, budgets.budget_address_times
        self._own = _BudgetRates(rates, 1, share, MAX_AT_WORK)
        self._address = _BudgetRates(rates, times, min(1.0, times * share), MAX_AT_WORK_ADDRESS)
        # A socket references its account; other accounts stay in memory while they have spent something.
        self._accounts: WeakValueDictionary[UUID | str, Account] = WeakValueDictionary()
        self._spent: OrderedDict[UUID | str, Account] = OrderedDict()
        self._unsettled: dict[UUID | str, Account] = {}
        self._totals, self._refusals = [0.0] * len(KINDS), [0] * len(KINDS)
        metrics.add_counter("mimu_share_waits_total", "Waits of accounts for their turn.", lambda: self.waits.count)
        metrics.add_counter("mimu_share_wait_seconds_total", "Seconds of these waits.", lambda: self.waits.seconds)
        metrics.add_counters(
            "mimu_budget_spent_total",
            "What accounts and addresses spent of their budgets.",
            ("kind",),
            lambda: self._by_kind(self._totals),
        )
        metrics.add_counters(
            "mimu_budget_refused_total",
            "Requests and frames refused because a budget was used up.",
            ("kind",),
            lambda: self._by_kind(self._refusals),
        )

    def __len__(self) -> int:
        return len(self._spent)

    def account(self, key: UUID | str) -> Account:
        """Return the budgets of a user, or of a client address."""
        account = self._accounts.get(key)
        if account is None:
            budget = self._own if isinstance(key, UUID) else self._address
            account = self._accounts[key] = Account(self, key, budget)
        return account

    def fan_out(self, sender: UUID, people: int, size: int) -> None:
        """Charge a user for a frame of ``size`` bytes that is sent to ``people`` others."""
        if self.on:
            account, amount = self._spent.get(sender) or self.account(sender), people * size
            account.charge(FANOUT, amount)
            account.share.add_work(
                min(people * SECONDS_PER_RECIPIENT + amount * SECONDS_PER_FANOUT_BYTE, MAX_FANOUT_SECONDS)
            )

    def refusal(self, kind: int, wait: float) -> RateLimited:
        """Count a refusal, and return the error with the seconds to wait."""
        self._refusals[kind] += 1
        return RateLimited(wait)

    def remember(self, account: Account) -> None:
        """Keep an account in memory until it is settled and its budgets are full again."""
        self._unsettled[account.key] = account
        self._spent[account.key] = account
        self._spent.move_to_end(account.key)
        if len(self._spent) > MAX_ACCOUNTS:
            key, oldest = self._spent.popitem(last=False)
            self._unsettled.pop(key, None)
            oldest.since = 0.0  # the account returns when it spends again

    async def settle(self, *, all_: bool = False) -> None:
        """Send to Redis what was spent here, merge what was spent elsewhere, and drop accounts with full budgets."""
        now = self.clock()
        self._forget(now)
        due = [account for account in self._unsettled.values() if all_ or account.is_due(now)]
        for start in range(0, len(due), ACCOUNTS_PER_SCRIPT):
            if not await self._settle(due[start : start + ACCOUNTS_PER_SCRIPT]):
                return  # Redis is down: the other accounts would wait for it, too

    async def _settle(self, accounts: Sequence[Account]) -> bool:
        """Settle some accounts with one script call. Returns False if Redis is down."""
        now, arguments = self.clock(), []
        for account in accounts:
            self._unsettled.pop(account.key, None)
            wanted, spent = account.collect(now)
            arguments += wanted
            self._totals = [total + max(amount, 0.0) for total, amount in zip(self._totals, spent, strict=True)]
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                ahead = await self._script(keys=[f"budget:{account.key}" for account in accounts], args=arguments)
        except REDIS_ERRORS as error:
            # Nothing is lost: the next settlement of each account sends how far ahead it is.
            log.warning("budgets_not_settled", accounts=len(accounts), cause=type(error).__name__)
            return False
        now, kinds = self.clock(), len(KINDS)
        for number, account in enumerate(accounts):
            account.merge(ahead[number * kinds : (number + 1) * kinds], now)
        return True

    def _forget(self, now: float) -> None:
        """Drop accounts whose budgets are full again; some at a time, oldest first."""
        for key, account in list(islice(self._spent.items(), MAX_ACCOUNTS // 50)):
            if account.is_unspent(now):
                del self._spent[key]
            else:
                self._spent.move_to_end(key)

    @staticmethod
    def _by_kind(values: Sequence[float]) -> Mapping[tuple[str, ...], float]:
        return {(name.replace("-", "_"),): value for name, value in zip(KINDS, values, strict=True)}
