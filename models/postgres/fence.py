"""The fence: the newest life of the database that any instance has seen, and behind which no connection is used.

It stands in memory, in a file of ``MIMU_DATA_DIR`` and in Redis, so that a server that starts beside the former primary
does not take it for the database. Of the file and Redis the higher timeline is right, wherever it is: timelines only
grow. Where they don't compare (another cluster, another epoch of one timeline), Redis is right: the other instances go
by it now, while the file may be of a machine that was switched off when the database moved. What is lost in one place
is written there again from the other. With both lost, the newest of the hosts is taken.

Two standbys that were promoted by mistake have one timeline. The first instance that begins an epoch on one of them
writes it to Redis, by comparing and setting; the other standby's epoch does not follow it, and is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from models.postgres.identity import Identity

log = structlog.get_logger(__name__)

Reason = Literal["standby", "older", "foreign", "diverged"]
REASONS: tuple[Reason, ...] = ("standby", "older", "foreign", "diverged")
REFUSED: dict[Reason, str] = {
    "standby": "is a standby",
    "older": "is on an older timeline than the database that was in use: a former primary",
    "foreign": "is another database than the one that was in use (if that is right: scripts.restore --settle)",
    "diverged": "is a second primary beside the one in use, with other data since they parted",
}
REDIS_SECONDS = 0.3  # a connection to PostgreSQL may wait for it
# Seconds for which a server goes by what Redis said of the fence. A former primary may be alive and answer: so a server
# that finds the new one lets them pass before it answers from it, and no client sees first the new state, then the old.
LEASE = 0.5
AWAY_SECONDS = 3.0  # without asking a Redis that did not answer; servers then go by what they see of the hosts
TRIES = 5  # of comparing and setting, while other instances do the same

_SET = """
local stands = redis.call('GET', KEYS[1])
if (stands or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class Mark(NamedTuple):
    """A life of the database: the fields of its Identity without the role."""

    system: int
    timeline: int
    database: str
    epoch: UUID | None
    settled: bool

    @classmethod
    def of(cls, seen: Identity) -> Mark:
        return cls(seen.system, seen.timeline, seen.database, seen.epoch, seen.settled)

    def dump(self) -> bytes:
        epoch = None if self.epoch is None else str(self.epoch)
        return orjson.dumps({**self._asdict(), "system": str(self.system), "epoch": epoch}, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def parse(cls, text: bytes | str) -> Mark:
        """Raises ValueError, KeyError or TypeError for what is no mark."""
        read = orjson.loads(text)
        epoch = UUID(read["epoch"]) if read["epoch"] else None
        return cls(int(read["system"]), int(read["timeline"]), str(read["database"]), epoch, bool(read["settled"]))


def behind(seen: Mark, fence: Mark | None, follows: UUID | None = None) -> Reason | None:
    """Why a life of the database may not be used where the fence stands; None when it may. ``follows`` is the epoch
    that its own was seen to follow."""
    if fence is None:
        return None
    if seen.system != fence.system:
        # pg_upgrade and a dump make another cluster, and bring the epoch along.
        return None if fence.epoch is not None and fence.epoch in (seen.epoch, follows) else "foreign"
    if seen.database != fence.database:
        # No copy of the one before, but a database that was made again on the same cluster, or is empty still.
        return "older" if seen.timeline < fence.timeline else None
    if seen.timeline != fence.timeline:
        return "older" if seen.timeline < fence.timeline else None
    if fence.epoch in (None, seen.epoch, follows) or (seen.settled and not fence.settled):
        return None
    return "diverged"


def _newer(file: Mark | None, shared: Mark | None) -> Mark | None:
    """Which of two fences is right."""
    if file is None or shared is None:
        return shared or file
    return file if file.system == shared.system and file.timeline > shared.timeline else shared


class Fence:
    """Where the fence stands. Without a file and Redis it is one of this process only."""

    def __init__(self, path: Path | None = None, redis: Redis | None = None, name: str = "mimu") -> None:
        """``path`` is a folder; ``name`` is the database's, which may share the folder and Redis with others."""
        self._path = path and path / f"fence-{quote(name, safe='')}.json"
        self._redis, self._key = redis, f"fence:{name}"
        self.mark: Mark | None = None
        self._complaints: set[str] = set()
        self._read_at = self._failed_at = float("-inf")  # when Redis last said where the fence stands, or did not
        self._glance: asyncio.Task[None] | None = None
        self.moved: list[Callable[[Mark | None, Mark], None]] = []  # called with the former mark and the new one

    async def read(self) -> tuple[Mark | None, Mark | None]:
        """Learn where the fence was left; what Redis has, and what the file has."""
        shared, file = await self._read_redis(), await asyncio.to_thread(self._read_file)
        mark = _newer(file, shared)
        if mark is not None and (self.mark is None or self._overtakes(mark)):
            self._move(mark)
        return shared, file

    async def load(self) -> None:
        """The same, and write it again where it is lost."""
        shared, file = await self.read()
        if self.mark is None:
            return
        if file != self.mark:
            await asyncio.to_thread(self._write_file, self.mark)
        if shared != self.mark and self._redis is not None:
            await self._publish(self.mark, None)

    async def fresh(self) -> None:
        """Know what Redis said within the last LEASE, if it answers."""
        now = time.monotonic()
        if self._redis is None or now - self._read_at < LEASE or now - self._failed_at < AWAY_SECONDS:
            return
        if self._glance is None:
            self._glance = asyncio.create_task(self._look())
            self._glance.add_done_callback(self._looked)
        await asyncio.shield(self._glance)

    async def _look(self) -> None:
        mark = await self._read_redis()
        if mark is not None and (self.mark is None or self._overtakes(mark)):
            self._move(mark)

    def _looked(self, _: object) -> None:
        self._glance = None

    async def shared(self) -> None:
        """Wait until all servers that Redis answers go by the fence as it stands."""
        await self.load()
        if self._redis is not None:
            await asyncio.sleep(LEASE)

    def _overtakes(self, mark: Mark) -> bool:
        """Whether a mark that others left is one to go by instead of ours."""
        assert self.mark is not None
        if mark.system == self.mark.system and mark.timeline != self.mark.timeline:
            return mark.timeline > self.mark.timeline
        return mark != self.mark and (mark.settled or not self.mark.settled)

    def sees(self, seen: Identity) -> bool:
        """Put the fence before a database that was promoted, in this process and at once. True if it moved; then
        ``load`` shares it. The life is not settled yet, and whichever is settled first takes its place."""
        mark = Mark.of(seen)
        if self.mark is None or mark.system != self.mark.system or mark.timeline <= self.mark.timeline:
            return False
        self._move(mark)
        return True

    def judge(self, seen: Identity, follows: UUID | None = None) -> Reason | None:
        """Why a connection may not be used; None when it may."""
        return "standby" if seen.standby else behind(Mark.of(seen), self.mark, follows)

    async def advance(self, seen: Identity, follows: UUID | None = None) -> None:
        """Move the fence to what was seen, unless another instance has moved it elsewhere: then to there."""
        mark = Mark.of(seen)
        if mark == self.mark:
            return
        stands = await self._publish(mark, follows)
        if stands == self.mark:
            return
        self._move(stands)
        await asyncio.to_thread(self._write_file, stands)

    async def replace(self, seen: Identity) -> None:
        """Move the fence wherever it stands: the operator has put the database back, or chosen among several."""
        mark = Mark.of(seen)
        self._move(mark)
        await asyncio.to_thread(self._write_file, mark)
        if self._redis is not None:
            with self._redis_may_be_away():
                await self._redis.set(self._key, mark.dump())

    def detach(self) -> None:
        """Keep to this process from now on: a script goes by where the fence stands, and does not move it."""
        self._path = self._redis = None

    def _move(self, mark: Mark) -> None:
        former, self.mark = self.mark, mark
        for moved in self.moved:
            moved(former, mark)

    # Redis ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _redis_may_be_away(self) -> Iterator[None]:
        try:
            yield
            self._well("fence_not_shared")
        except (RedisError, OSError, TimeoutError) as error:
            if self._first("fence_not_shared"):
                log.warning("fence_not_shared", cause=type(error).__name__)

    def _first(self, event: str) -> bool:
        """Whether this has not gone wrong since it went well last; only then it is logged."""
        first = event not in self._complaints
        self._complaints.add(event)
        return first

    def _well(self, event: str) -> None:
        self._complaints.discard(event)

    async def _read_redis(self) -> Mark | None:
        if self._redis is None:
            return None
        found: Mark | None = None
        began, answered = time.monotonic(), False
        with self._redis_may_be_away():
            async with asyncio.timeout(REDIS_SECONDS):
                found = _parsed(await self._redis.get(self._key))
            answered = True
        self._read_at, self._failed_at = (began, float("-inf")) if answered else (self._read_at, began)
        return found

    async def _publish(self, mark: Mark, follows: UUID | None) -> Mark:
        """Write a mark into Redis unless what stands there is newer; what stands there then."""
        if self._redis is None:
            return mark
        with self._redis_may_be_away():
            async with asyncio.timeout(REDIS_SECONDS):
                for _ in range(TRIES):
                    stands = await self._redis.get(self._key)
                    shared = _parsed(stands)
                    if shared is not None and behind(mark, shared, follows):
                        mark = shared
                        break
                    if shared == mark:
                        break
                    done: Any = self._redis.eval(_SET, 1, self._key, stands or b"", mark.dump())
                    if await done:
                        break
        return mark

    # The file -------------------------------------------------------------------------------------------------------

    def _read_file(self) -> Mark | None:
        if self._path is None:
            return None
        try:
            return _parsed(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            if self._first("fence_not_read"):
                log.warning("fence_not_read", cause=type(error).__name__)
            return None

    def _write_file(self, mark: Mark) -> None:
        if self._path is None:
            return
        new = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as file:
                file.write(mark.dump())
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            self._well("fence_not_kept")
        except OSError as error:
            if self._first("fence_not_kept"):
                log.warning("fence_not_kept", cause=type(error).__name__)


def _parsed(text: bytes | str | None) -> Mark | None:
    if text is None:
        return None
    try:
        return Mark.parse(text)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("fence_not_read", cause=type(error).__name__)
        return None
