"""Sweeps: rows that are due are done in batches, and a row that can't be done holds up nothing but itself.

When a batch fails because of what is in it, a smaller one is tried, down to the one row. That is noted in
``sweep_failures`` and passed over until it may be tried again: after 15 seconds, then after twice as long each time, a
day at most. The notes are rows themselves, so there may be many, and every server passes over what one of them noted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import asyncpg
import peewee
import structlog

from models.database import Database, Table, Unavailable
from models.storage import StorageAway

log = structlog.get_logger(__name__)

BACKLOG = 10_000  # rows; more are not counted
QUICK = 0.2  # seconds; a batch that took no longer may be followed by one of twice the rows
LOG_EVERY = 600.0  # seconds between two lines about the failures of one sweep
BUSY = ("40", "55P03")  # classes of SQLSTATE: rows that somebody else holds are passed over as well, but are not bad
SLOW = (TimeoutError, asyncpg.QueryCanceledError)


class SweepFailure(Table):
    """A row that a sweep failed at; ``key`` is ``Due.key`` as text."""

    sweep = peewee.TextField()
    key = peewee.TextField()
    failures = peewee.IntegerField(default=1)
    retry_at = peewee.DateTimeField()

    class Meta:
        table_name = "sweep_failures"
        primary_key = peewee.CompositeKey("sweep", "key")


class RowsFailed(Exception):
    """These rows of a batch could not be done, and its others were. ``keys`` are ``ROW(Due.key)::text``."""

    def __init__(self, keys: Sequence[str], cause: BaseException) -> None:
        super().__init__(f"{len(keys)} rows")
        self.keys, self.cause = keys, cause


@dataclass(frozen=True, slots=True)
class Due:
    """The rows of one sweep: ``SELECT key FROM rows AND (not failed lately) ORDER BY order``.

    ``rows`` names the tables and, after WHERE, what makes a row due; its parameters are ``args``, from ``$2``. An index
    has to give them in that order, so that a batch reads what it does and not what there is.
    """

    sweep: str  # the name that metrics and notes have
    key: str
    rows: str
    order: str
    lock: str = "FOR UPDATE SKIP LOCKED"
    args: tuple[object, ...] = ()
    blamed: str = ""  # what selects the key that is noted when a batch of one fails, if that is not the row's own

    @property
    def failed(self) -> str:
        """Select the keys that are passed over just now."""
        return f"(SELECT key FROM sweep_failures WHERE sweep = '{self.sweep}' AND retry_at > now())"

    @property
    def _rows(self) -> str:
        # A hashed subplan: read once a statement, and it leaves the order of the scan alone.
        return f"{self.rows} AND ROW({self.key})::text NOT IN {self.failed}"

    @property
    def batch(self) -> str:
        """Select the keys of the ``$1`` rows that come first."""
        return f"SELECT {self.key} FROM {self._rows} ORDER BY {self.order} LIMIT $1 {self.lock}"

    @property
    def first(self) -> str:
        """Select the key of what a batch of one would do, as text; ``$1`` is 1."""
        return self.blamed or f"SELECT due::text FROM ({self.batch}) AS due"

    @property
    def count(self) -> str:
        """Count what is left to do, up to ``$1``."""
        return f"SELECT count(*) FROM (SELECT FROM {self._rows} LIMIT $1) AS due"


@dataclass(frozen=True, slots=True)
class Sweep:
    """``work`` does the rows of ``due.batch``, at most as many as it is given. It returns how many, 0 when none is
    left."""

    due: Due
    work: Callable[[int], Awaitable[int]]
    batch: int


def _nothing(*_: object) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What is called with the name of a sweep: ``planned`` once, ``backlog`` with the rows that a run has left,
    ``failed`` with the number of rows that it failed at."""

    planned: Callable[[str], None] = _nothing
    backlog: Callable[[str, int], None] = _nothing
    failed: Callable[[str, int], None] = _nothing


UNWATCHED = Watch()


class Sweeper:
    """Runs sweeps, a batch of each in turn, so that much of one does not keep the others waiting."""

    def __init__(self, db: Database, watch: Watch, *sweeps: Sweep) -> None:
        self._db, self._watch, self._sweeps = db, watch, sweeps
        self._logged: dict[str, float] = {}
        for sweep in sweeps:
            watch.planned(sweep.due.sweep)

    async def run(self, seconds: float = float("inf")) -> None:
        """Do what is due, for about so many seconds at the most; the next run goes on.

        After a batch comes a rest of the same length: half of the time is everybody else's, and more when they are
        slowed. Raises Unavailable, StorageAway; and what a sweep raised whose statement is wrong, after the others.
        """
        deadline = time.monotonic() + seconds
        wrong: Exception | None = None
        left = [_Turn(self._db, sweep, self._note) for sweep in self._sweeps]
        while left:
            for turn in tuple(left):
                began = time.monotonic()
                if began > deadline:
                    await self._measure([turn.sweep for turn in left])
                    left.clear()
                    break
                try:
                    more = await turn.take()
                except (Unavailable, StorageAway):
                    raise
                except Exception as error:
                    left.remove(turn)
                    wrong = wrong or error
                    continue
                if more:
                    await asyncio.sleep(time.monotonic() - began)
                else:
                    left.remove(turn)
                    self._watch.backlog(turn.sweep.due.sweep, 0)
        if wrong is not None:
            raise wrong

    async def _measure(self, sweeps: Sequence[Sweep]) -> None:
        for sweep in sweeps:
            rows = await self._db.value(sweep.due.count, BACKLOG, *sweep.due.args)
            self._watch.backlog(sweep.due.sweep, rows)

    async def _note(self, sweep: str, keys: Sequence[str], cause: BaseException) -> None:
        """Pass over these rows for a while."""
        await self._db.execute(
            """INSERT INTO sweep_failures AS known (sweep, key, retry_at)
               SELECT $1, unnest($2::text[]), now() + interval '15 seconds'
               ON CONFLICT (sweep, key) DO UPDATE SET failures = known.failures + 1,
                   retry_at = now() + least(interval '15 seconds' * 2 ^ least(known.failures, 16), interval '1 day')""",
            sweep,
            keys,
        )
        state = str(getattr(cause, "sqlstate", ""))
        if state.startswith(BUSY):
            return
        self._watch.failed(sweep, len(keys))
        now = time.monotonic()
        if now >= self._logged.get(sweep, 0.0):
            self._logged[sweep] = now + LOG_EVERY
            log.warning("sweep_row_failed", sweep=sweep, cause=type(cause).__name__, sqlstate=state or None)


class _Turn:
    """One sweep in one run. ``limit`` is how many rows its next batch may have."""

    def __init__(
        self, db: Database, sweep: Sweep, note: Callable[[str, Sequence[str], BaseException], Awaitable[None]]
    ) -> None:
        self._db, self.sweep, self._note = db, sweep, note
        self.limit = sweep.batch

    async def take(self) -> bool:
        """Try a batch; False when nothing is left to do."""
        due, key = self.sweep.due, None
        if self.limit == 1:
            # Before it is done: what fails after its commit must not be blamed on the row that comes next.
            key = await self._db.value(due.first, 1, *due.args)
            if key is None:
                return False
        began = time.monotonic()
        try:
            done = await self.sweep.work(self.limit)
        except RowsFailed as failed:
            await self._note(due.sweep, failed.keys, failed.cause)
            return True
        except Exception as error:
            if not await self._is_of_a_row(error):
                raise
            if key is not None:
                await self._note(due.sweep, [key], error)
            self.limit = max(1, self.limit // 2)
            return True
        if time.monotonic() - began < QUICK:
            self.limit = min(self.limit * 2, self.sweep.batch)
        return done > 0

    async def _is_of_a_row(self, error: Exception) -> bool:
        """Whether fewer rows may do. Not when a service is away or full, nor when the statement is wrong (class 42 of
        SQLSTATE). Raises Unavailable when PostgreSQL answers nothing else either."""
        if isinstance(error, Unavailable):
            if not isinstance(error.__cause__, SLOW):
                return False
            await self._db.value("SELECT 1")  # it answers, so the batch was too large, or waited for a row's lock
            return True
        return not isinstance(error, StorageAway) and not str(getattr(error, "sqlstate", "")).startswith("42")
