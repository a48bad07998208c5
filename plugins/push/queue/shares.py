"""Shares: how many of the pushes in progress one user, or one host that users named, may have."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from uuid import UUID

MAX_OF_USER = 8  # pushes of a user in progress: a phone, a tablet and some computers
UNPROVEN_OF_USER = 2  # of these to unproven hosts
UNPROVEN_OF_HOST = 4  # pushes in progress to one unproven host
SLOW = 2.0  # seconds without an answer after which a host counts as unproven
PROVEN_FOR = 600.0  # seconds for which an answer in time proves a host
MAX_HOSTS = 10_000  # remembered


class _Host:
    """A host that users named: when it last answered in time, and when its pushes in progress began."""

    __slots__ = ("began", "proven")

    def __init__(self) -> None:
        self.proven = -PROVEN_FOR
        self.began: OrderedDict[object, float] = OrderedDict()

    def unproven(self, now: float) -> bool:
        if now - self.proven >= PROVEN_FOR:
            return True
        return bool(self.began) and now - next(iter(self.began.values())) > SLOW


class Shares:
    """Shares of the ``most`` pushes of a lane. For providers from the settings only the user's share counts.

    A host that answers in time is proven, and has up to half of the lane: most of Web Push goes to a few large
    services. All unproven or slow hosts share a quarter of it, so that servers which accept a connection and never
    answer, or names that don't resolve, delay only each other.
    """

    def __init__(self, most: int) -> None:
        self._half, self._quarter = most // 2, most // 4
        self._users: Counter[UUID] = Counter()
        self._unproven_of_user: Counter[UUID] = Counter()
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._busy: dict[str, _Host] = {}

    def unproven(self, host: str) -> bool:
        """True if the host is not proven, or has become slow."""
        state = self._hosts.get(host)
        return state is None or state.unproven(time.monotonic())

    def free(self, user_id: UUID, host: str | None) -> bool:
        """True if one more push may be sent to that user through that host (None: a provider from the settings)."""
        if self._users[user_id] >= MAX_OF_USER:
            return False
        if host is None:
            return True
        busy = self._busy.get(host)
        if not self.unproven(host):
            return busy is None or len(busy.began) < self._half
        if self._unproven_of_user[user_id] >= UNPROVEN_OF_USER or (busy and len(busy.began) >= UNPROVEN_OF_HOST):
            return False
        now = time.monotonic()
        return sum(len(other.began) for other in self._busy.values() if other.unproven(now)) < self._quarter

    @contextlib.contextmanager
    def held(self, user_id: UUID, host: str | None) -> Iterator[None]:
        """Count a push as in progress until the block ends."""
        unproven = host is not None and self.unproven(host)
        push = object()
        self._users[user_id] += 1
        if unproven:
            self._unproven_of_user[user_id] += 1
        if host is not None:
            state = self._hosts.get(host) or self._hosts.setdefault(host, _Host())
            self._hosts.move_to_end(host)
            self._busy.setdefault(host, state).began[push] = time.monotonic()
            if len(self._hosts) > MAX_HOSTS:
                self._hosts.popitem(last=False)
        try:
            yield
        finally:
            _less(self._users, user_id)
            if unproven:
                _less(self._unproven_of_user, user_id)
            if host is not None:
                del self._busy[host].began[push]
                if not self._busy[host].began:
                    del self._busy[host]

    def answered(self, host: str, seconds: float, *, well: bool) -> None:
        """Record the result of a push: a host that answers well and in time is proven, one that fails no longer is."""
        state = self._hosts.get(host)
        if state is not None:
            state.proven = time.monotonic() if well and seconds < SLOW else -PROVEN_FOR


def _less(counter: Counter[UUID], key: UUID) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
