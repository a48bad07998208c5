"""Outages: the errors of asyncpg that mean that PostgreSQL is away, not that a statement is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg

from config.reasons import Reason
from models.postgres.hosts import describe


class Unavailable(Exception):
    """PostgreSQL is away, or too busy to answer in time. Nothing is left half done: a transaction rolls back.
    ``reason`` is given if more is known."""

    def __init__(self, why: str = "", reason: Reason | None = None) -> None:
        super().__init__(why)
        self.reason = reason


# Raised by asyncpg when the server is down, stopping, starting or full, or can't access its files.
AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.DatabaseDroppedError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)
# SQLSTATE classes of expected conflicts: a constraint, a deadlock, a serialization failure.
_CONFLICTS = ("23", "40")


@contextlib.contextmanager
def outages() -> Iterator[None]:
    """Raise Unavailable for an outage; other errors pass."""
    try:
        yield
    except AWAY as error:
        raise Unavailable(f"PostgreSQL is away ({describe(error)})") from error


def cause(error: BaseException) -> str:
    """Return ``disk_full``, ``unavailable`` for any other outage, ``conflict`` for an expected conflict, and
    ``mistake`` for our own bugs."""
    if isinstance(error, asyncpg.DiskFullError) or isinstance(error.__cause__, asyncpg.DiskFullError):
        return "disk_full"
    if isinstance(error, (Unavailable, *AWAY)):
        return "unavailable"
    state = getattr(error, "sqlstate", None)
    return "conflict" if isinstance(state, str) and state.startswith(_CONFLICTS) else "mistake"
