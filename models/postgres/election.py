"""Elections: query all hosts at once; the newest of them is the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from models.postgres.fence import REFUSED, Fence, Reason
from models.postgres.hosts import Host, HostAway, HostRefused, dial, named, no_host
from models.postgres.identity import Identity, identify

HOST_SECONDS = 0.5  # for one of several hosts to accept a connection, while a request waits; then all are queried
ELECTION_SECONDS = 2.0  # for any host to identify as the database; one request does not wait so long, later ones do
SETTINGS = {"application_name": "mimu-hosts", "statement_timeout": "5000"}


class Vouched(NamedTuple):
    """The server that the last election chose. If it has started again since, a standby may have replaced it in the
    meantime, so it is not used before another election."""

    host: Host
    started: datetime
    timeline: int

    @classmethod
    def of(cls, host: Host, seen: Identity) -> Vouched:
        return cls(host, seen.started, seen.timeline)


async def identify_host(dsn: str, host: Host, seconds: float) -> Identity:
    """Identify a host, over a separate connection. Raises HostAway and errors of PostgreSQL."""
    connection = await dial(dsn, host, timeout=seconds, command_timeout=seconds, server_settings=SETTINGS)
    try:
        with named(host):
            return await identify(connection)
    finally:
        connection.terminate()


class Election:
    """One election among the hosts of a cluster. ``found`` has the hosts that may be used, with their identities."""

    def __init__(
        self,
        dsn: str,
        hosts: Sequence[Host],
        fence: Fence,
        vouched: Vouched | None,
        current: Host | None,
        refuse: Callable[[Host, Reason, Identity], None],
    ) -> None:
        """``vouched`` and ``current`` are the result of the last election. ``refuse`` is called with each host that
        may not be used."""
        self._dsn, self._hosts, self._fence = dsn, hosts, fence
        self._vouched, self._current, self._refuse = vouched, current, refuse
        self.found: list[tuple[Host, Identity]] = []
        self._errors: dict[Host, Exception] = {}

    @property
    def errors(self) -> list[tuple[Host, Exception]]:
        """The errors of the hosts that are not used, in the order of the URL."""
        return sorted(self._errors.items(), key=lambda error: self._hosts.index(error[0]))

    async def hold(self) -> tuple[Host, Identity]:
        """Query all hosts, and return the newest. Raises HostAway or HostRefused, with the error of each host, or an
        error of PostgreSQL if there was no other."""
        queries = {asyncio.create_task(identify_host(self._dsn, host, ELECTION_SECONDS)): host for host in self._hosts}
        ends = time.monotonic() + ELECTION_SECONDS
        reading = asyncio.create_task(self._fence.read())  # where other instances have moved it
        waiting = set(queries)
        try:
            while waiting and time.monotonic() < ends:
                # Each query gets HOST_SECONDS. Once the database is found, silent hosts are not waited for.
                seconds = min(HOST_SECONDS, ends - time.monotonic())
                done, waiting = await asyncio.wait(waiting, timeout=max(0, seconds), return_when=asyncio.ALL_COMPLETED)
                standbys = [queries[task] for task in done if await self._collect(queries[task], task)]
                if self.found and not self._may_be_replaced():
                    break
                # A standby may be promoted while we wait for a silent host.
                if waiting:
                    again = {
                        asyncio.create_task(identify_host(self._dsn, host, HOST_SECONDS)): host for host in standbys
                    }
                    queries |= again
                    waiting |= set(again)
            await reading
        finally:
            for task in (*waiting, reading):
                task.cancel()
        for task in waiting:
            self._errors.setdefault(queries[task], HostAway(f"{queries[task]}: TimeoutError: no answer in time"))
        self.found = [one for one in self.found if not self._behind(*one)]
        if not self.found:
            raise no_host(self.errors)
        return max(self.found, key=lambda one: self._rank(*one))

    def _may_be_replaced(self) -> bool:
        """True if the newest of the primaries may have been replaced by a host that has not answered yet: if it has
        started again on the timeline that it had before."""
        host, seen = max(self.found, key=lambda one: self._rank(*one))
        known, mark = self._vouched, self._fence.mark
        if known is None:
            return mark is not None and seen.timeline <= mark.timeline
        return seen.timeline <= known.timeline and known != Vouched.of(host, seen)

    async def _collect(self, host: Host, task: asyncio.Task[Identity]) -> bool:
        """Add the identity of a host to ``found``, or its error to ``errors``. Returns True if it is a standby."""
        error = task.exception()
        if error is not None:
            self._errors[host] = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            return False
        seen = task.result()
        if self._fence.judge(seen) == "diverged":
            await self._fence.load()  # another instance may have begun an epoch there
        if not self._behind(host, seen):
            self.found.append((host, seen))
        return seen.standby

    def _behind(self, host: Host, seen: Identity) -> bool:
        """True if the fence rejects a host now; then the refusal is counted and added to ``errors``."""
        reason = self._fence.judge(seen)
        if reason is not None:
            self._refuse(host, reason, seen)
            self._errors[host] = HostRefused(f"{host}: {REFUSED[reason]}")
        return reason is not None

    def _rank(self, host: Host, seen: Identity) -> tuple[bool, int, bool, bool, int]:
        mark = self._fence.mark
        same = mark is not None and mark.epoch == seen.epoch
        ours = mark is None or mark.system == seen.system
        return ours, seen.timeline, same and seen.settled, host == self._current, -self._hosts.index(host)
