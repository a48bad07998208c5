"""Elections: all hosts are asked at once who they are, and the newest of them is the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from models.postgres.fence import REFUSED, Fence, Reason
from models.postgres.hosts import Host, HostAway, HostRefused, dial, named, no_host
from models.postgres.identity import Identity, identify

HOST_SECONDS = 0.5  # for one of several hosts to let us in, while a request waits; others are asked then
ELECTION_SECONDS = 2.0  # for any host to say that it is the database; no request waits so long, its successors do
ASKING = {"application_name": "mimu-hosts", "statement_timeout": "5000"}


class Vouched(NamedTuple):
    """The server that was the database when all hosts were asked: one that has started since may have been replaced
    while it was away, and gets no connection before they are asked again."""

    host: Host
    started: datetime
    timeline: int

    @classmethod
    def of(cls, host: Host, seen: Identity) -> Vouched:
        return cls(host, seen.started, seen.timeline)


async def ask(dsn: str, host: Host, seconds: float) -> Identity:
    """Ask a host who it is, over a connection for that. Raises HostAway and errors of PostgreSQL."""
    connection = await dial(dsn, host, timeout=seconds, command_timeout=seconds, server_settings=ASKING)
    try:
        with named(host):
            return await identify(connection)
    finally:
        connection.terminate()


class Election:
    """One election among the hosts of a cluster. ``found`` are the hosts that may be used, and what they are."""

    def __init__(
        self,
        dsn: str,
        hosts: Sequence[Host],
        fence: Fence,
        vouched: Vouched | None,
        current: Host | None,
        refuse: Callable[[Host, Reason, Identity], None],
    ) -> None:
        """``vouched`` and ``current`` are the outcome of the last election; ``refuse`` notes a host that may not be
        used."""
        self._dsn, self._hosts, self._fence = dsn, hosts, fence
        self._vouched, self._current, self._refuse = vouched, current, refuse
        self.found: list[tuple[Host, Identity]] = []
        self._errors: dict[Host, Exception] = {}

    @property
    def said(self) -> list[tuple[Host, Exception]]:
        """Why the other hosts are not used, in the order of the URL."""
        return sorted(self._errors.items(), key=lambda error: self._hosts.index(error[0]))

    async def hold(self) -> tuple[Host, Identity]:
        """Ask all hosts, and return the newest. Raises HostAway or HostRefused, with what each of them said, and an
        error of PostgreSQL when that is all that was said."""
        asked = {asyncio.create_task(ask(self._dsn, host, ELECTION_SECONDS)): host for host in self._hosts}
        ends = time.monotonic() + ELECTION_SECONDS
        reading = asyncio.create_task(self._fence.read())  # what other instances have seen
        waiting = set(asked)
        try:
            while waiting and time.monotonic() < ends:
                # Each gets the time of a host. Once there is a database, the silent are not waited for any longer.
                seconds = min(HOST_SECONDS, ends - time.monotonic())
                done, waiting = await asyncio.wait(waiting, timeout=max(0, seconds), return_when=asyncio.ALL_COMPLETED)
                standbys = [asked[task] for task in done if await self._hear(asked[task], task)]
                if self.found and not self._may_be_replaced():
                    break
                # A standby may be promoted while a silent host is waited for.
                if waiting:
                    again = {asyncio.create_task(ask(self._dsn, host, HOST_SECONDS)): host for host in standbys}
                    asked |= again
                    waiting |= set(again)
            await reading
        finally:
            for task in (*waiting, reading):
                task.cancel()
        for task in waiting:
            self._errors.setdefault(asked[task], HostAway(f"{asked[task]}: TimeoutError: no answer in time"))
        self.found = [one for one in self.found if not self._behind(*one)]
        if not self.found:
            raise no_host(self.said)
        return max(self.found, key=lambda one: self._rank(*one))

    def _may_be_replaced(self) -> bool:
        """True if the newest of the primaries may have been replaced by a host that has not answered yet: if it has
        started again on the timeline that it had before."""
        host, seen = max(self.found, key=lambda one: self._rank(*one))
        known, mark = self._vouched, self._fence.mark
        if known is None:
            return mark is not None and seen.timeline <= mark.timeline
        return seen.timeline <= known.timeline and known != Vouched.of(host, seen)

    async def _hear(self, host: Host, task: asyncio.Task[Identity]) -> bool:
        """Take what a host has said; whether it is a standby."""
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
        """Judge a host by where the fence stands now; True if it may not be used, which is noted."""
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
