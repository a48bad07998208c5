"""Shares: how many of the pushes on their way at once may be one user's, or go to one host that users named."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from uuid import UUID

USER = 8  # of a user at once: a phone, a tablet and some computers
STRANGE_OF_USER = 2  # of them to hosts that are not proven
STRANGE_OF_HOST = 4  # to one such host
SLOW = 2.0  # seconds after which a push that is not answered makes its host count as not proven
PROVEN_FOR = 600.0  # seconds for which an answer in time proves a host
HOSTS = 10_000  # remembered


class _Host:
    """A host that users named: when it last answered in time, and which pushes are on their way to it since when."""

    __slots__ = ("began", "proven")

    def __init__(self) -> None:
        self.proven = -PROVEN_FOR
        self.began: OrderedDict[object, float] = OrderedDict()

    def strange(self, now: float) -> bool:
        if now - self.proven >= PROVEN_FOR:
            return True
        return bool(self.began) and now - next(iter(self.began.values())) > SLOW


class Shares:
    """Of the ``most`` pushes of a lane. Providers of the settings are bounded by the user only.

    A host that answers in time is proven, and gets up to half of the lane: most of Web Push goes to a few large
    services. All hosts that are not proven, or have become slow, get a quarter of it together, so that servers which
    accept a connection and say nothing, or names that lead nowhere, hold up each other and nobody else.
    """

    def __init__(self, most: int) -> None:
        self._half, self._quarter = most // 2, most // 4
        self._users: Counter[UUID] = Counter()
        self._strange_of_user: Counter[UUID] = Counter()
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._busy: dict[str, _Host] = {}

    def strange(self, host: str) -> bool:
        """True if the host is not proven, or has become slow."""
        known = self._hosts.get(host)
        return known is None or known.strange(time.monotonic())

    def free(self, user_id: UUID, host: str | None) -> bool:
        """True if one more push may be sent to that user, at that host (None: a provider of the settings)."""
        if self._users[user_id] >= USER:
            return False
        if host is None:
            return True
        busy = self._busy.get(host)
        if not self.strange(host):
            return busy is None or len(busy.began) < self._half
        if self._strange_of_user[user_id] >= STRANGE_OF_USER or (busy and len(busy.began) >= STRANGE_OF_HOST):
            return False
        now = time.monotonic()
        return sum(len(other.began) for other in self._busy.values() if other.strange(now)) < self._quarter

    @contextlib.contextmanager
    def held(self, user_id: UUID, host: str | None) -> Iterator[None]:
        """Count a push as on its way until the block ends."""
        strange = host is not None and self.strange(host)
        push = object()
        self._users[user_id] += 1
        if strange:
            self._strange_of_user[user_id] += 1
        if host is not None:
            known = self._hosts.get(host) or self._hosts.setdefault(host, _Host())
            self._hosts.move_to_end(host)
            self._busy.setdefault(host, known).began[push] = time.monotonic()
            if len(self._hosts) > HOSTS:
                self._hosts.popitem(last=False)
        try:
            yield
        finally:
            _less(self._users, user_id)
            if strange:
                _less(self._strange_of_user, user_id)
            if host is not None:
                del self._busy[host].began[push]
                if not self._busy[host].began:
                    del self._busy[host]

    def answered(self, host: str, seconds: float, *, well: bool) -> None:
        """What became of a push: a host that answers well and in time is proven, one that fails is not any more."""
        known = self._hosts.get(host)
        if known is not None:
            known.proven = time.monotonic() if well and seconds < SLOW else -PROVEN_FOR


def _less(counter: Counter[UUID], key: UUID) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
