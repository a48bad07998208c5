"""The fence: the newest state of the database that any instance has seen. No connection to an older one is used.

It is stored in memory, in a file of ``MIMU_DATA_DIR`` and in Redis, so that a server that starts beside the former
primary does not use it. If file and Redis differ, the higher timeline is right, because timelines only grow. If they
don't compare (another cluster, another epoch of one timeline), Redis is right: the other instances use it now, while
the file may be of a machine that was off when the database moved. A copy that is lost is written again from the other.
If both are lost, the newest of the hosts is used.

Two standbys that were promoted by mistake have one timeline. The first instance that begins an epoch on one of them
writes it to Redis by compare-and-set; the other standby's epoch does not follow it, and is refused.
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
    "diverged": "is a second primary beside the one in use, and their data have diverged",
}
REDIS_SECONDS = 0.3  # a connection to PostgreSQL may wait for it
# Seconds for which a server may use the fence that it has read from Redis. A former primary may still answer: so a
# server that finds the new one waits this long before it answers from it, and no client sees the new state, then the
# old one.
LEASE = 0.5
AWAY_SECONDS = 3.0  # after a failure before Redis is read again; servers then use only what they see of the hosts
TRIES = 5  # of a compare-and-set, while other instances do the same

_SET = """
local stands = redis.call('GET', KEYS[1])
if (stands or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class Mark(NamedTuple):
    """A state of the database: the fields of its Identity without the role."""

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
        """Parse a mark. Raises ValueError, KeyError or TypeError."""
        read = orjson.loads(text)
        epoch = UUID(read["epoch"]) if read["epoch"] else None
        return cls(int(read["system"]), int(read["timeline"]), str(read["database"]), epoch, bool(read["settled"]))


def behind(seen: Mark, fence: Mark | None, follows: UUID | None = None) -> Reason | None:
    """Return why a state of the database may not be used with this fence; None if it may. ``follows`` is the epoch
    before its epoch, if that is known."""
    if fence is None:
        return None
    if seen.system != fence.system:
        # pg_upgrade and a dump create another cluster with the same epoch.
        return None if fence.epoch is not None and fence.epoch in (seen.epoch, follows) else "foreign"
    if seen.database != fence.database:
        # Not a copy of the former one, but a database that was created again on the same cluster, or is still empty.
        return "older" if seen.timeline < fence.timeline else None
    if seen.timeline != fence.timeline:
        return "older" if seen.timeline < fence.timeline else None
    if fence.epoch in (None, seen.epoch, follows) or (seen.settled and not fence.settled):
        return None
    return "diverged"


def _newer(file: Mark | None, shared: Mark | None) -> Mark | None:
    """Return which of two marks is right."""
    if file is None or shared is None:
        return shared or file
    return file if file.system == shared.system and file.timeline > shared.timeline else shared


class Fence:
    """The fence, with its copies in a file and in Redis; without both it is only in this process."""

    def __init__(self, path: Path | None = None, redis: Redis | None = None, name: str = "mimu") -> None:
        """``path`` is a folder; ``name`` distinguishes databases that share the folder or Redis."""
        self._path = path and path / f"fence-{quote(name, safe='')}.json"
        self._redis, self._key = redis, f"fence:{name}"
        self.mark: Mark | None = None
        self._complaints: set[str] = set()
        self._read_at = self._failed_at = float("-inf")  # when Redis was last read, and when that last failed
        self._glance: asyncio.Task[None] | None = None
        self.moved: list[Callable[[Mark | None, Mark], None]] = []  # called with the former mark and the new one

    async def read(self) -> tuple[Mark | None, Mark | None]:
        """Read the fence, and move to it if it is newer. Returns the marks in Redis and in the file."""
        shared, file = await self._read_redis(), await asyncio.to_thread(self._read_file)
        mark = _newer(file, shared)
        if mark is not None and (self.mark is None or self._overtakes(mark)):
            self._move(mark)
        return shared, file

    async def load(self) -> None:
        """Read the fence, and write it again where it is lost or older."""
        shared, file = await self.read()
        if self.mark is None:
            return
        if file != self.mark:
            await asyncio.to_thread(self._write_file, self.mark)
        if shared != self.mark and self._redis is not None:
            await self._publish(self.mark, None)

    async def fresh(self) -> None:
        """Read Redis again unless it was read within LEASE, or failed within AWAY_SECONDS."""
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
        """Wait until all servers that reach Redis use the present fence."""
        await self.load()
        if self._redis is not None:
            await asyncio.sleep(LEASE)

    def _overtakes(self, mark: Mark) -> bool:
        """True if the mark of another instance replaces ours."""
        assert self.mark is not None
        if mark.system == self.mark.system and mark.timeline != self.mark.timeline:
            return mark.timeline > self.mark.timeline
        return mark != self.mark and (mark.settled or not self.mark.settled)

    def sees(self, seen: Identity) -> bool:
        """Move the fence to a promoted database at once, in this process. Returns True if it moved; then ``load``
        shares it. The state is not settled yet, and the first that is settled replaces it."""
        mark = Mark.of(seen)
        if self.mark is None or mark.system != self.mark.system or mark.timeline <= self.mark.timeline:
            return False
        self._move(mark)
        return True

    def judge(self, seen: Identity, follows: UUID | None = None) -> Reason | None:
        """Return why a connection may not be used; None if it may."""
        return "standby" if seen.standby else behind(Mark.of(seen), self.mark, follows)

    async def advance(self, seen: Identity, follows: UUID | None = None) -> None:
        """Move the fence to this database, or to where another instance has moved it before us."""
        mark = Mark.of(seen)
        if mark == self.mark:
            return
        published = await self._publish(mark, follows)
        if published == self.mark:
            return
        self._move(published)
        await asyncio.to_thread(self._write_file, published)

    async def replace(self, seen: Identity) -> None:
        """Move the fence without a check: the operator has restored the database, or chosen one of several."""
        mark = Mark.of(seen)
        self._move(mark)
        await asyncio.to_thread(self._write_file, mark)
        if self._redis is not None:
            with self._redis_may_be_away():
                await self._redis.set(self._key, mark.dump())

    def detach(self) -> None:
        """Share nothing from now on: a script uses the fence, but does not move it for servers."""
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
        """True for the first failure after a success; only that one is logged."""
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
        """Write a mark to Redis unless a newer one is there. Returns the mark that is there afterwards."""
        if self._redis is None:
            return mark
        with self._redis_may_be_away():
            async with asyncio.timeout(REDIS_SECONDS):
                for _ in range(TRIES):
                    present = await self._redis.get(self._key)
                    shared = _parsed(present)
                    if shared is not None and behind(mark, shared, follows):
                        mark = shared
                        break
                    if shared == mark:
                        break
                    done: Any = self._redis.eval(_SET, 1, self._key, present or b"", mark.dump())
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
