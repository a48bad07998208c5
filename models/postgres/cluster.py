"""A cluster: the hosts of a ``DATABASE_URL``, of which one is the database, and all our connections to it.

asyncpg tries the hosts of a URL one after another within a single timeout, and uses the first that accepts it. A silent
host (frozen, or cut off without a reset) uses up that timeout each time, and a former primary that came back accepts
connections. So an election queries each host separately, with a timeout for each (models/postgres/election.py); this
module identifies each connection before it is used; and when another host becomes the database, it ends the connections
to the former one at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import asyncpg
import structlog
from redis.asyncio import Redis

from config.hosts import DatabaseHost
from models.postgres.election import ELECTION_SECONDS, HOST_SECONDS, Election, Vouched, identify_host
from models.postgres.fence import REASONS, REFUSED, Fence, Mark, Reason, behind
from models.postgres.hosts import Host, HostRefused, describe, dial, hosts, named
from models.postgres.identity import Identity, identify

log = structlog.get_logger(__name__)

PAUSE = 0.2  # seconds after a failed election before the next one
SILENT = 3  # consecutive statements without an answer after which the hosts are queried
LOG_EVERY = 60.0  # seconds between two lines on the same host for the same reason
WATCH_SECONDS = 3  # between two checks of all hosts; also the longest use of a former primary that thaws

Settle = Callable[["Cluster", Host], Coroutine[Any, Any, None]]
_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class _Open(NamedTuple):
    host: Host
    mark: Mark


class Cluster:
    def __init__(self, dsn: str, fence: Fence | None = None, *, quiet: bool = False) -> None:
        """``quiet`` logs nothing about hosts, for scripts, which print their own messages."""
        self.dsn = dsn
        self.hosts = hosts(dsn)
        self.fence = fence or Fence()
        self.fence.moved.append(self._end_behind)
        self.current: Host | None = None  # the host that was the database last
        self._vouched: Vouched | None = None
        # Begins a new epoch if one is due; ``connect`` returns no connection before that. None: begin none.
        self.settle: Settle | None = None
        # All combinations from the beginning, so that a first refusal shows as an increase.
        self.refused: Counter[tuple[str, str]] = Counter(
            {(str(h), reason): 0 for h in self.hosts for reason in REASONS}
        )
        self._quiet = quiet
        self._open: dict[asyncpg.Connection, _Open] = {}
        self._election: asyncio.Task[Host] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._advance: asyncio.Task[None] | None = None
        self._failed: tuple[float, OSError] | None = None
        self._logged: dict[tuple[str, str], float] = {}
        self.silences = 0  # statements without an answer since the last answer

    # Connecting -----------------------------------------------------------------------------------------------------

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Connect to the present database host. Raises HostAway, HostRefused and errors of PostgreSQL."""
        if len(self.hosts) == 1:
            return await self._admitted(self.hosts[0], options)
        if self.current is not None:
            with contextlib.suppress(*_ERRORS):
                async with asyncio.timeout(HOST_SECONDS) as limit:
                    return await self._admitted(self.current, options, limit)
        return await self._admitted(await self.elect(), options)

    async def pooled(self, *_: object, **options: Any) -> asyncpg.Connection:
        """Connect for asyncpg's pool, whose own URL is ignored."""
        return await self.connect(**options)

    async def _admitted(
        self, host: Host, options: dict[str, Any], limit: asyncio.Timeout | None = None
    ) -> asyncpg.Connection:
        """Connect to a host, and check that it is the database. Raises the errors of ``connect``. ``limit`` is lifted
        once the host has answered, if an epoch must begin there."""
        connection = await dial(self.dsn, host, **options)
        try:
            with named(host):
                seen = await self._admit(host, connection, limit)
        except BaseException:
            connection.terminate()
            raise
        self.current = host
        self.keep(connection, host, seen)
        return connection

    def keep(self, connection: asyncpg.Connection, host: Host, seen: Identity) -> None:
        """Register a connection, so that it is ended when another host becomes the database."""
        self._open[connection] = _Open(host, Mark.of(seen))
        connection.add_termination_listener(self._closed)

    def life(self, connection: asyncpg.Connection | None) -> tuple[int, int] | None:
        """Return the system identifier and the timeline of an open connection; None if it is not registered."""
        opened = self._open.get(connection) if connection is not None else None
        return opened and (opened.mark.system, opened.mark.timeline)

    def _closed(self, connection: Any) -> None:
        self._open.pop(connection, None)

    async def _admit(self, host: Host, connection: asyncpg.Connection, limit: asyncio.Timeout | None) -> Identity:
        """Accept a connection, or raise HostRefused. Moves the fence to a newer database, and begins an epoch if one is
        due, since rows stored before that would belong to the former epoch."""
        seen = await identify(connection)
        if len(self.hosts) > 1 and not seen.standby and self._vouched != Vouched.of(host, seen):
            if limit is not None and not limit.expired():
                limit.reschedule(None)
            await self.elect()
            if self._vouched != Vouched.of(host, seen):  # another host was elected, or the election had begun earlier
                raise HostRefused(f"{host}: has started or was promoted since the last election")
        due = not seen.settled and not seen.standby and self.settle is not None
        if due or self.fence.judge(seen) == "diverged":
            await self.fence.load()  # another instance may have begun the epoch, here or on a second primary
        self._refuse_behind(host, seen)
        if due:
            if limit is not None and not limit.expired():
                limit.reschedule(None)
            await self.begin(host)
            seen = await identify(connection)
            self._refuse_behind(host, seen)
        if seen.epoch is not None and Mark.of(seen) != self.fence.mark:  # an empty database has no epoch yet
            # Shielded: the caller may be cancelled, but the fence must move.
            self._advance = asyncio.create_task(self.fence.advance(seen))
            await asyncio.shield(self._advance)
            self._refuse_behind(host, seen)
        return seen

    def _refuse_behind(self, host: Host, seen: Identity) -> None:
        reason = self.fence.judge(seen)
        if reason is not None:
            self._note_refusal(host, reason, seen)
            raise HostRefused(f"{host}: {REFUSED[reason]}")

    def _note_refusal(self, host: Host, reason: Reason, seen: Identity) -> None:
        self.refused[str(host), reason] += 1
        key, now = (str(host), reason), time.monotonic()
        if self._quiet or reason == "standby" or self._logged.get(key, -LOG_EVERY) + LOG_EVERY > now:
            return
        self._logged[key] = now
        mark = self.fence.mark
        log.error(
            "database_host_refused",
            host=str(host),
            reason=reason,
            timeline=seen.timeline,
            expected_timeline=mark and mark.timeline,
            refused=self.refused[key],
        )

    async def begin(self, host: Host | None = None) -> None:
        """Begin the epoch that is due on a host. Concurrent callers wait for the same one, and receive its errors."""
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle_on(host or self.current or self.hosts[0]))
            self._settling.add_done_callback(self._begun)
        await asyncio.shield(self._settling)

    async def _settle_on(self, host: Host) -> None:
        assert self.settle is not None
        if len(self.hosts) > 1:
            await self.fence.shared()  # first all instances must leave the former primary and its epoch
        await self.settle(self, host)

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._settling = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("epoch_not_begun", cause=type(error).__name__)

    @property
    def held(self) -> bool:
        """True while an epoch begins: nothing may be stored, since it would belong to the former one."""
        return self._settling is not None

    # Elections ------------------------------------------------------------------------------------------------------

    async def elect(self) -> Host:
        """Identify all hosts at the same time, and choose the newest. Raises HostAway or HostRefused, with the error of
        each host; or an error of PostgreSQL (such as a wrong password) if there is no other."""
        if self._failed is not None and self._failed[0] > time.monotonic():
            raise self._failed[1]
        if self._election is None:
            self._election = asyncio.create_task(self._elect())
            self._election.add_done_callback(self._elected)
        return await asyncio.shield(self._election)

    def _elected(self, task: asyncio.Task[Host]) -> None:
        self._election = None
        error = None if task.cancelled() else task.exception()
        self._failed = (time.monotonic() + PAUSE, error) if isinstance(error, OSError) else None

    async def _elect(self) -> Host:
        election = Election(self.dsn, self.hosts, self.fence, self._vouched, self.current, self._note_refusal)
        host, seen = await election.hold()
        if self.fence.sees(seen):  # at once, before its epoch has begun
            self._advance = asyncio.create_task(self.fence.load())
        for other, theirs in election.found:
            if other != host:
                reason = behind(Mark.of(theirs), Mark.of(seen))
                if reason is not None:  # else one host has two names, or it is a copy, which the next epoch shows
                    self._note_refusal(other, reason, theirs)
        self._vouched = Vouched.of(host, seen)
        self._choose(host, election.errors)
        return host

    async def identify_host(self, host: Host, seconds: float = ELECTION_SECONDS) -> Identity:
        """Identify a host, over a separate connection. Raises HostAway and errors of PostgreSQL."""
        return await identify_host(self.dsn, host, seconds)

    def _choose(self, host: Host, errors: Sequence[tuple[Host, Exception]]) -> None:
        former, self.current = self.current, host
        if former == host:
            return
        if former is not None and not self._quiet:
            text = next((describe(error) for other, error in errors if other == former), "")
            log.warning("database_host_changed", host=str(host), former=str(former), reason=text)
        for connection, opened in list(self._open.items()):
            if opened.host != host:
                connection.terminate()

    # Watching -------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Read the fence that other instances have moved, and with several hosts hold an election: our connections to a
        former primary that thaws still work, and only an election shows that another was promoted."""
        await self.fence.load()
        if len(self.hosts) > 1:
            with contextlib.suppress(*_ERRORS):  # statements fail as well, and are logged
                await self.elect()

    def failed(self, error: BaseException | None) -> None:
        """Count a statement that failed with a timeout. After SILENT in a row an election begins."""
        if not isinstance(error, TimeoutError):
            return
        self.silences += 1
        if self.silences >= SILENT and len(self.hosts) > 1 and self._election is None:
            self.silences = 0
            self._election = asyncio.create_task(self._elect())
            self._election.add_done_callback(self._elected)

    def _end_behind(self, _: Mark | None, fence: Mark) -> None:
        """End the connections that are behind the fence, also those in use."""
        for connection, opened in list(self._open.items()):
            # A closed one is still here until the next turn of the loop, as the one that has begun an epoch is.
            if not connection.is_closed() and behind(opened.mark, fence) is not None:
                log.warning("database_connection_ended", host=str(opened.host), timeline=opened.mark.timeline)
                connection.terminate()

    def chosen_host(self) -> DatabaseHost | None:
        """Return the host in use if there are several; None if there is only one."""
        return self.host_in_use() if len(self.hosts) > 1 else None

    def host_in_use(self) -> DatabaseHost:
        mark = self.fence.mark
        refused = sum(number for (_, reason), number in self.refused.items() if reason != "standby")
        return DatabaseHost(str(self.current or self.hosts[0]), mark.timeline if mark else 0, refused)


def name_of(dsn: str) -> str:
    """The database that a URL names."""
    return unquote(urlsplit(dsn).path.lstrip("/")) or "mimu"


async def fenced(dsn: str, folder: Path | None, redis: Redis | None = None) -> Cluster:
    """A cluster whose fence stands in a folder and in Redis, where it was left."""
    cluster = Cluster(dsn, Fence(folder, redis, name_of(dsn)))
    await cluster.fence.load()
    return cluster


async def connect(where: str | Cluster, **options: Any) -> asyncpg.Connection:
    """A connection to the database of a URL. Raises HostAway, which names the host, and errors of PostgreSQL."""
    cluster = where if isinstance(where, Cluster) else Cluster(where, quiet=True)
    return await cluster.connect(**options)
