"""Sweeps: process due rows in batches, so that a row that fails delays only itself.

When a batch fails because of its rows, a smaller one is tried, down to a single row. That row is stored in
``sweep_failures`` and skipped until it may be tried again: after 15 seconds, then after twice as long each time, a day
at most. The failures are rows themselves, so there may be many, and every server skips the rows that one of them
stored.
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
QUICK = 0.2  # seconds; after a batch that took no longer the next one may have twice the rows
LOG_INTERVAL = 600.0  # seconds between two lines about the failures of one sweep
BUSY = ("40", "55P03")  # classes of SQLSTATE: rows that are locked elsewhere are skipped as well, but are not faulty
SLOW = (TimeoutError, asyncpg.QueryCanceledError)


class SweepFailure(Table):
    """A row on which a sweep failed; ``key`` is ``Due.key`` as text."""

    sweep = peewee.TextField()
    key = peewee.TextField()
    failures = peewee.IntegerField(default=1)
    retry_at = peewee.DateTimeField()

    class Meta:
        table_name = "sweep_failures"
        primary_key = peewee.CompositeKey("sweep", "key")


class RowsFailed(Exception):
    """Some rows of a batch failed, and the others were processed. ``keys`` are ``ROW(Due.key)::text``."""

    def __init__(self, keys: Sequence[str], cause: BaseException) -> None:
        super().__init__(f"{len(keys)} rows")
        self.keys, self.cause = keys, cause


@dataclass(frozen=True, slots=True)
class Due:
    """The rows of one sweep: ``SELECT key FROM rows AND (not failed lately) ORDER BY order``.

    ``rows`` has the tables and, after WHERE, the condition of due rows; its parameters are ``args``, from ``$2``. An
    index must provide this order, so that a batch reads only the rows that it processes.
    """

    sweep: str  # the name in metrics and in sweep_failures
    key: str
    rows: str
    order: str
    lock: str = "FOR UPDATE SKIP LOCKED"
    args: tuple[object, ...] = ()
    blamed: str = ""  # selects the key to store when a batch of one fails, if it is not the row's own

    @property
    def failed(self) -> str:
        """Select the keys that are skipped now."""
        return f"(SELECT key FROM sweep_failures WHERE sweep = '{self.sweep}' AND retry_at > now())"

    @property
    def _rows(self) -> str:
        # A hashed subplan: it is read once per statement, and does not change the order of the scan.
        return f"{self.rows} AND ROW({self.key})::text NOT IN {self.failed}"

    @property
    def batch(self) -> str:
        """Select the keys of the first ``$1`` rows."""
        return f"SELECT {self.key} FROM {self._rows} ORDER BY {self.order} LIMIT $1 {self.lock}"

    @property
    def first(self) -> str:
        """Select the key of the row in a batch of one, as text; ``$1`` is 1."""
        return self.blamed or f"SELECT due::text FROM ({self.batch}) AS due"

    @property
    def count(self) -> str:
        """Count the due rows, up to ``$1``."""
        return f"SELECT count(*) FROM (SELECT FROM {self._rows} LIMIT $1) AS due"


@dataclass(frozen=True, slots=True)
class Sweep:
    """``work`` processes the rows of ``due.batch``, at most as many as its argument. It returns how many, 0 if none is
    left."""

    due: Due
    work: Callable[[int], Awaitable[int]]
    batch: int


def _nothing(*_: object) -> None:
    """The default callback."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks that get the name of a sweep: ``planned`` once, ``backlog`` with the rows that a run has left,
    ``failed`` with the number of rows that failed."""

    planned: Callable[[str], None] = _nothing
    backlog: Callable[[str, int], None] = _nothing
    failed: Callable[[str, int], None] = _nothing


UNWATCHED = Watch()


class Sweeper:
    """Runs sweeps, a batch of each in turn, so that a large one does not delay the others."""

    def __init__(self, db: Database, watch: Watch, *sweeps: Sweep) -> None:
        self._db, self._watch, self._sweeps = db, watch, sweeps
        self._logged: dict[str, float] = {}
        for sweep in sweeps:
            watch.planned(sweep.due.sweep)

    async def run(self, seconds: float = float("inf")) -> None:
        """Process due rows, for about ``seconds`` at most; the next run continues.

        After a batch it pauses for as long as the batch took: half of the time is left to requests, and more when they
        are slow. Raises Unavailable, StorageAway; if a statement is wrong, its error, after the other sweeps.
        """
        deadline = time.monotonic() + seconds
        error_to_raise: Exception | None = None
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
                    error_to_raise = error_to_raise or error
                    continue
                if more:
                    await asyncio.sleep(time.monotonic() - began)
                else:
                    left.remove(turn)
                    self._watch.backlog(turn.sweep.due.sweep, 0)
        if error_to_raise is not None:
            raise error_to_raise

    async def _measure(self, sweeps: Sequence[Sweep]) -> None:
        for sweep in sweeps:
            rows = await self._db.value(sweep.due.count, BACKLOG, *sweep.due.args)
            self._watch.backlog(sweep.due.sweep, rows)

    async def _note(self, sweep: str, keys: Sequence[str], cause: BaseException) -> None:
        """Store failures, so that these rows are skipped for a while."""
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
            self._logged[sweep] = now + LOG_INTERVAL
            log.warning("sweep_row_failed", sweep=sweep, cause=type(cause).__name__, sqlstate=state or None)


class _Turn:
    """One sweep in one run. ``limit`` is the maximum size of its next batch."""

    def __init__(
        self, db: Database, sweep: Sweep, note: Callable[[str, Sequence[str], BaseException], Awaitable[None]]
    ) -> None:
        self._db, self.sweep, self._note = db, sweep, note
        self.limit = sweep.batch

    async def take(self) -> bool:
        """Try a batch; False if nothing is left to do."""
        due, key = self.sweep.due, None
        if self.limit == 1:
            # Before the work: an error after its commit must not be blamed on the next row.
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
            if not await self._is_about_rows(error):
                raise
            if key is not None:
                await self._note(due.sweep, [key], error)
            self.limit = max(1, self.limit // 2)
            return True
        if time.monotonic() - began < QUICK:
            self.limit = min(self.limit * 2, self.sweep.batch)
        return done > 0

    async def _is_about_rows(self, error: Exception) -> bool:
        """True if a smaller batch may succeed. Not if a service is away or full, or if the statement is wrong (class 42
        of SQLSTATE). Raises Unavailable if PostgreSQL answers no other statement either."""
        if isinstance(error, Unavailable):
            if not isinstance(error.__cause__, SLOW):
                return False
            await self._db.value("SELECT 1")  # it answers, so the batch was too large, or waited for a row lock
            return True
        return not isinstance(error, StorageAway) and not str(getattr(error, "sqlstate", "")).startswith("42")
